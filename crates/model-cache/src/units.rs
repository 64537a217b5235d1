//! Sizes for people: IEC units, two decimals.

/// `bytes` as `1.95 GiB`; whole bytes below 1 KiB.
pub fn iec(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // Rounded before compared, so that 1,048,575 bytes say 1.00 MiB and not 1024.00 KiB.
    while (value * 100.0).round() / 100.0 >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_round_into_the_unit_a_person_expects() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_048_575, "1.00 MiB"),
            (104_857_600, "100.00 MiB"),
            (2_093_796_556, "1.95 GiB"),
        ] {
            assert_eq!(super::iec(bytes), text);
        }
    }
}
