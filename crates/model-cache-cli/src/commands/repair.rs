//! `repair`: what is damaged is mended.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::json;
use std::collections::BTreeSet;
use tabagent_model_cache::{DamagedFile, ErrorKind, RepairOutcome, RepairReport};

pub(super) async fn repair(cx: &Context, repo: Option<String>, dry_run: bool) -> Result<Code, Failure> {
    // Where there is none, nothing is known to be sound: who asks means another place.
    let cache = cx.open_there().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let repair = cache.repair(repo.as_deref()).dry_run(dry_run).cancel_token(cx.interrupt.token());
    let repair = repair.on_check(Some(progress.callback("checking"))).on_fetch(Some(progress.callback("fetching")));
    let result = cx.task(repair.run()).await;
    progress.end();
    let report = result?;
    if cx.global.json {
        output::json(&document(&report, dry_run))?;
    } else {
        tell(cx, &report, dry_run)?;
    }
    Ok(code(&report))
}

/// What is left damaged decides: the network alone, or more than that.
fn code(report: &RepairReport) -> Code {
    let mut code = Code::Done;
    for file in &report.damaged {
        code = match (&file.outcome, code) {
            (RepairOutcome::Repaired, code) => code,
            (RepairOutcome::Failed { kind: ErrorKind::Network, .. }, Code::Done | Code::Network) => Code::Network,
            (RepairOutcome::Failed { kind, .. }, Code::Done) => (*kind).into(),
            _ => Code::Integrity,
        };
    }
    code
}

fn outcome(file: &DamagedFile) -> (&'static str, Option<&str>) {
    match &file.outcome {
        RepairOutcome::Repaired => ("repaired", None),
        RepairOutcome::WouldRepair => ("would_repair", None),
        RepairOutcome::Failed { message, .. } => ("failed", Some(message)),
        _ => ("unknown", None),
    }
}

fn document(report: &RepairReport, dry_run: bool) -> serde_json::Value {
    let damaged: Vec<_> = report
        .damaged
        .iter()
        .map(|file| {
            let (outcome, message) = outcome(file);
            json!({
                "repo": file.repo,
                "path": file.path,
                "reason": file.reason,
                "blocks": file.blocks,
                "fetch_bytes": file.fetch_bytes,
                "room_bytes": file.room_bytes,
                "outcome": outcome,
                "message": message,
            })
        })
        .collect();
    let records: Vec<_> = report.records.iter().map(|record| json!({ "what": record.what, "how": record.how })).collect();
    json!({
        "dry_run": dry_run,
        "files": report.files,
        "size_bytes": report.bytes,
        "fetched_bytes": report.fetched_bytes,
        "dropped_values": report.dropped_values,
        "damaged": damaged,
        "records": records,
    })
}

fn tell(cx: &Context, report: &RepairReport, dry_run: bool) -> Result<(), Failure> {
    if !report.records.is_empty() {
        let mut table =
            Table::new([column("RECORD", Side::Left, Fit::CutMiddle(24)), column("WHAT WAS DONE", Side::Left, Fit::CutEnd(16))]);
        for record in &report.records {
            table.row([render::clean(&record.what).as_str().into(), record.how.as_str().into()]);
        }
        output::text(&table.render(output::stdout_width(), cx.paint()))?;
    }
    if !report.damaged.is_empty() {
        let mut table = Table::new([
            column("REPO", Side::Left, Fit::CutMiddle(16)),
            column("FILE", Side::Left, Fit::CutMiddle(16)),
            column("TO FETCH", Side::Right, Fit::Keep),
            column("OUTCOME", Side::Left, Fit::Keep),
            column("DAMAGE", Side::Left, Fit::CutEnd(16)),
        ]);
        for file in &report.damaged {
            let (outcome, message) = outcome(file);
            let style = if matches!(file.outcome, RepairOutcome::Repaired) { Style::Good } else { Style::Bad };
            table.row([
                file.repo.as_str().into(),
                file.path.as_str().into(),
                render::size(file.fetch_bytes).into(),
                Cell::styled(outcome.replace('_', " "), style),
                render::clean(message.unwrap_or(&file.reason)).as_str().into(),
            ]);
        }
        output::text(&table.render(output::stdout_width(), cx.paint()))?;
    }
    let amount = format!("{}, {}", render::count(report.files, "file"), render::size(report.bytes));
    let whole = report.damaged.iter().filter(|file| matches!(file.outcome, RepairOutcome::Repaired)).count();
    let left = report.damaged.len() - whole;
    let contents: BTreeSet<_> = report.damaged.iter().map(|file| (&file.reason, file.fetch_bytes)).collect();
    let fetch_bytes: u64 = contents.iter().map(|(_, bytes)| bytes).sum();
    let said = match (dry_run, whole, left) {
        (_, 0, 0) if report.records.is_empty() => "nothing is damaged".to_owned(),
        (_, 0, 0) => "no content is damaged".to_owned(),
        (true, ..) => {
            let room_bytes = report.damaged.iter().map(|file| file.room_bytes).max().unwrap_or(0);
            let room = match room_bytes {
                0 => String::new(),
                bytes => format!(", with {} of disk space for a second copy meanwhile", render::size(bytes)),
            };
            format!("{} damaged; {} would be fetched{room}", render::count(left as u64, "file"), render::size(fetch_bytes))
        }
        (false, whole, 0) => {
            format!("{} repaired, {} fetched", render::count(whole as u64, "file"), render::size(report.fetched_bytes))
        }
        (false, whole, left) => format!(
            "{} repaired, {} still damaged, {} to be fetched for all",
            render::count(whole as u64, "file"),
            left,
            render::size(fetch_bytes)
        ),
    };
    cx.say(&format!("Looked at {amount}: {said}"));
    Ok(())
}
