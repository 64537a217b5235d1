//! `verify`: whether the bytes are what they were.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::json;
use std::{collections::BTreeSet, time::Instant};
use tabagent_model_cache::{VerifyOptions, VerifyReport};

pub(super) async fn verify(
    cx: &Context,
    repo: Option<String>,
    globs: Vec<String>,
    digest: bool,
    cached: bool,
) -> Result<Code, Failure> {
    // Where there is none, nothing is known to be sound: who asks means another place.
    let cache = cx.open_there().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let (told, cancel) = (Some(progress.callback("verifying")), Some(cx.interrupt.token()));
    let options = VerifyOptions { digest, cached, progress: told, cancel };
    let started = Instant::now();
    let result = cx.blocking(move || cache.verify(repo.as_deref(), &globs, &options)).await;
    progress.end();
    let report = result?;
    if cx.global.json {
        let bad: Vec<_> = report
            .bad
            .iter()
            .map(
                |bad| json!({ "repo": bad.repo, "path": bad.path, "chunk": bad.chunk, "block": bad.block, "reason": bad.reason }),
            )
            .collect();
        let bad_records: Vec<_> =
            report.bad_records.iter().map(|bad| json!({ "what": bad.what, "reason": bad.reason })).collect();
        let elapsed_ms = started.elapsed().as_millis() as u64;
        output::json(&json!({
            "files": report.files,
            "blocks": report.blocks,
            "size_bytes": report.bytes,
            "elapsed_ms": elapsed_ms,
            "bad": bad,
            "bad_records": bad_records,
        }))?;
    } else {
        tell(cx, &report, started, digest)?;
    }
    Ok(if report.is_sound() { Code::Done } else { Code::Integrity })
}

fn tell(cx: &Context, report: &VerifyReport, started: Instant, digest: bool) -> Result<(), Failure> {
    let amount = format!(
        "{}, {}, {} in {}",
        render::count(report.files, "file"),
        render::count(report.blocks, "block"),
        render::size(report.bytes),
        render::took(started.elapsed())
    );
    if report.is_sound() {
        let checked = if digest { "every block and digest is as it was sealed" } else { "every block is as it was sealed" };
        cx.say(&format!("Verified {amount}: {checked}"));
        return Ok(());
    }
    let mut table = Table::new([
        column("REPO", Side::Left, Fit::CutMiddle(16)),
        column("FILE", Side::Left, Fit::CutMiddle(16)),
        column("CHUNK", Side::Right, Fit::Keep),
        column("BLOCK", Side::Right, Fit::Keep),
        column("DAMAGE", Side::Left, Fit::CutEnd(16)),
    ]);
    for bad in &report.bad {
        table.row([
            bad.repo.as_str().into(),
            bad.path.as_str().into(),
            bad.chunk.to_string().into(),
            bad.block.to_string().into(),
            Cell::styled(&bad.reason, Style::Bad),
        ]);
    }
    if !report.bad.is_empty() {
        output::text(&table.render(output::stdout_width(), cx.paint()))?;
    }
    if !report.bad_records.is_empty() {
        let mut table =
            Table::new([column("RECORD", Side::Left, Fit::CutMiddle(24)), column("DAMAGE", Side::Left, Fit::CutEnd(16))]);
        for bad in &report.bad_records {
            table.row([render::clean(&bad.what).as_str().into(), Cell::styled(&bad.reason, Style::Bad)]);
        }
        output::text(&table.render(output::stdout_width(), cx.paint()))?;
    }
    let damaged = [(report.bad.len(), "block"), (report.bad_records.len(), "record")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| render::count(count as u64, what))
        .collect::<Vec<_>>();
    cx.say(&format!("Verified {amount}: {} damaged", damaged.join(" and ")));
    let repos: BTreeSet<&str> = report.bad.iter().map(|bad| bad.repo.as_str()).collect();
    match repos.into_iter().collect::<Vec<_>>()[..] {
        [repo] if report.bad_records.is_empty() => cx.suggest(&format!("model-cache repair {repo}")),
        _ => cx.suggest("model-cache repair"),
    }
    Ok(())
}
