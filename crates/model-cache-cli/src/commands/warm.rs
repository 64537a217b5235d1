//! `warm`: files into memory before they are loaded.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render,
};
use serde_json::json;
use tabagent_model_cache::{PrefetchOptions, PrefetchReport};

pub(super) async fn warm(cx: &Context, repo: String, quants: Vec<String>, globs: Vec<String>) -> Result<Code, Failure> {
    let cache = cx.open_there().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let options = PrefetchOptions { progress: Some(progress.callback("warming")), cancel: Some(cx.interrupt.token()) };
    let result = cx.blocking(move || cache.prefetch(&repo, &quants, &globs, &options)).await;
    progress.end();
    let report = result?;
    if cx.global.json {
        output::json(&json!({
            "files": report.files,
            "size_bytes": report.bytes,
            "resident_bytes": report.resident_bytes,
            "read_bytes": report.read_bytes(),
            "left_bytes": report.left_bytes,
            "available_bytes": report.available_bytes,
            "elapsed_ms": report.elapsed.as_millis() as u64,
        }))?;
    } else {
        cx.say(&told(&report));
    }
    if let Some(warning) = warning(&report) {
        cx.warn(&warning);
    }
    Ok(Code::Done)
}

/// `Warmed 3 files, 12.3 GiB, of which 4.0 GiB were in memory already; 3.1 s at 2.70 GiB/s`.
fn told(report: &PrefetchReport) -> String {
    let (files, size) = (render::count(report.files, "file"), render::size(report.bytes));
    let seconds = report.elapsed.as_secs_f64();
    let read_bytes = report.read_bytes();
    let took = match read_bytes {
        0 => render::took(report.elapsed),
        read_bytes => {
            format!("{} at {}", render::took(report.elapsed), render::speed((read_bytes as f64 / seconds.max(0.001)) as u64))
        }
    };
    let already = match report.resident_bytes {
        0 => String::new(),
        bytes if bytes == report.bytes => ", all in memory already".to_owned(),
        bytes => format!(", of which {} were in memory already", render::size(bytes)),
    };
    format!("Warmed {files}, {size}{already}; {took}")
}

/// What happens to what is larger than the memory.
fn warning(report: &PrefetchReport) -> Option<String> {
    let available_bytes = report.available_bytes.filter(|_| report.left_bytes > 0)?;
    Some(format!(
        "{} is more than the {} of memory available: the last {} were left on the disk, and are read as they are used",
        render::size(report.bytes),
        render::size(available_bytes),
        render::size(report.left_bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report() -> PrefetchReport {
        let mut report = PrefetchReport::default();
        (report.files, report.bytes, report.elapsed) = (1, 12 << 30, Duration::from_secs(4));
        report
    }

    #[test]
    fn what_was_in_memory_already_is_told_and_the_speed_is_that_of_the_rest() {
        assert_eq!(told(&report()), "Warmed 1 file, 12.00 GiB; 4.0 s at 3.00 GiB/s");
        let mut part = report();
        part.resident_bytes = 4 << 30;
        assert_eq!(told(&part), "Warmed 1 file, 12.00 GiB, of which 4.00 GiB were in memory already; 4.0 s at 2.00 GiB/s");
        part.resident_bytes = 12 << 30;
        assert_eq!(told(&part), "Warmed 1 file, 12.00 GiB, all in memory already; 4.0 s");
    }

    #[test]
    fn what_did_not_fit_is_warned_of_and_what_did_is_not() {
        let mut large = report();
        large.available_bytes = Some(8 << 30);
        assert_eq!(warning(&large), None);
        large.left_bytes = 4 << 30;
        assert_eq!(
            warning(&large).unwrap(),
            "12.00 GiB is more than the 8.00 GiB of memory available: the last 4.00 GiB were left on the disk, and are read as they are used"
        );
    }
}
