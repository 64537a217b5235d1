//! What is read, in which order, and with which bytes: functions of a seed, the same for every subject.

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`, which is not 0. That some are likelier by `bound / 2^64` matters to nobody here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Fills `bytes`, so that no two blocks of them are alike.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// Offsets of `count` random reads of `read_bytes`, each on a multiple of them, within `bytes`.
pub(crate) fn random_offsets(seed: u64, bytes: u64, read_bytes: u64, count: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(seed);
    let places = (bytes / read_bytes).max(1);
    (0..count).map(move |_| random.below(places) * read_bytes)
}

/// The wrapping sum of the first 8 bytes of each cache line: touches all of `bytes` and, at one addition a line, waits for nothing
/// but memory.
pub(crate) fn sum_lines(bytes: &[u8]) -> u64 {
    bytes.chunks(64).fold(0, |sum, line| match line.first_chunk() {
        Some(word) => sum.wrapping_add(u64::from_le_bytes(*word)),
        None => line.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_order_and_another_gives_another() {
        let offsets = |seed| random_offsets(seed, 1 << 30, 4096, 1000).collect::<Vec<_>>();
        assert_eq!(offsets(1), offsets(1));
        assert_ne!(offsets(1), offsets(2));
    }

    #[test]
    fn random_reads_lie_within_the_file_and_reach_all_of_it() {
        const BYTES: u64 = 100 * 4096 + 77;
        let mut seen = [false; 100];
        for offset in random_offsets(3, BYTES, 4096, 5000) {
            assert!(offset % 4096 == 0 && offset + 4096 <= BYTES, "{offset}");
            seen[(offset / 4096) as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
        assert_eq!(random_offsets(3, 10, 4096, 2).collect::<Vec<_>>(), [0, 0], "a file of less than one read");
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first outputs of the reference implementation for seed 1234567.
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_sum_changes_with_the_first_byte_of_any_line() {
        let mut bytes = vec![0; 64 * 5 + 3];
        Random::new(1).fill(&mut bytes);
        let sum = sum_lines(&bytes);
        for line in 0..6 {
            let mut other = bytes.clone();
            other[line * 64] ^= 1;
            assert_ne!(sum_lines(&other), sum, "line {line}");
        }
    }
}
