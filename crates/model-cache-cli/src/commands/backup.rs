//! `backup` and `restore`: the store as plain files, and back.

use super::folder::few;
use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};
use tabagent_model_cache::{
    BackupCheck, BackupOptions, BackupReport, BadBackupFile, CheckOptions, Error, LeftOut, ModelCache, RestoreOptions,
};

pub(super) async fn backup(cx: &Context, dir: PathBuf, keep: u64, drop_others: bool, recheck: bool) -> Result<Code, Failure> {
    let cache = cx.open_there().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let (told, cancel) = (Some(progress.callback("backing up")), Some(cx.interrupt.token()));
    let options = BackupOptions { keep, drop_others, recheck, progress: told, cancel };
    let (started, to) = (Instant::now(), dir.clone());
    let result = cx.blocking(move || cache.backup(&to, &options)).await;
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(failure) if matches!(failure.code, Code::Interrupted | Code::Terminated | Code::NoSpace) => {
            return Err(
                failure.detail("no snapshot was made; what was copied by then is kept, and the next backup goes on with it")
            );
        }
        Err(failure) => return Err(failure),
    };
    if cx.global.json {
        output::json(&json!({
            "snapshot": report.snapshot,
            "files": report.files,
            "size_bytes": report.bytes,
            "copied_bytes": report.copied_bytes,
            "shared_bytes": report.shared_bytes,
            "left_out": left_out(&report.left_out),
            "bad": bad(&report.bad),
            "unfinished": report.unfinished,
            "another_store": report.another_store,
            "other_snapshots": report.other_snapshots,
            "dropped_snapshots": report.dropped_snapshots,
            "dropped_bytes": report.dropped_bytes,
            "damaged_snapshots": report.damaged_snapshots,
            "elapsed_ms": started.elapsed().as_millis() as u64,
        }))?;
    } else {
        tell(cx, &report, &dir, drop_others, started)?;
    }
    Ok(if report.left_out.is_empty() && report.bad.is_empty() { Code::Done } else { Code::Integrity })
}

fn tell(cx: &Context, report: &BackupReport, dir: &Path, drop_others: bool, started: Instant) -> Result<(), Failure> {
    let shared = if report.shared_bytes > 0 && report.shared_bytes == report.copied_bytes { ", no space taken" } else { "" };
    cx.say(&format!(
        "Backed up {}, {} ({} copied{shared}), to {} in {}: snapshot {}",
        render::count(report.files, "file"),
        render::size(report.bytes),
        render::size(report.copied_bytes),
        render::clean(&dir.to_string_lossy()),
        render::took(started.elapsed()),
        report.snapshot,
    ));
    if report.dropped_bytes > 0 {
        cx.say(&format!("{} that only older snapshots needed went with them.", render::size(report.dropped_bytes)));
    }
    if !report.unfinished.is_empty() {
        let (files, named) = (render::count(report.unfinished.len() as u64, "unfinished file"), few(&report.unfinished));
        cx.warn(&format!("{files} left out: {named}"));
    }
    if !report.damaged_snapshots.is_empty() {
        let numbers = listed(&report.damaged_snapshots);
        cx.warn(&format!("snapshots are damaged: {numbers}; what they need is not known, so no content was dropped"));
        cx.suggest(&give_up(dir, &report.damaged_snapshots));
    }
    if report.another_store {
        let what = match (report.kept_as_all_is_new, drop_others) {
            (true, _) => "nothing of this store's newest snapshot before is in this one, so no older snapshot was dropped",
            (false, true) => "the newest snapshot before is of another store, or has nothing of this one",
            (false, false) => "the newest snapshot before is of another store, of which no older snapshot was dropped",
        };
        let then = match (report.kept_as_all_is_new, report.dropped_snapshots.as_slice()) {
            (true, _) => " If it is, the next backup drops them as --keep says".to_owned(),
            (false, dropped @ [_, ..]) if drop_others => {
                format!(" Dropped, as --drop-others and --keep say: snapshots {}", listed(dropped))
            }
            _ => String::new(),
        };
        cx.warn(&format!("{what}: is this the right store?{then}"));
        cx.suggest("--store or MODEL_CACHE_HOME names another store");
    }
    if !report.other_snapshots.is_empty() {
        cx.say(&format!("Snapshots of another store stay: {}", listed(&report.other_snapshots)));
        cx.suggest("--drop-others drops them as --keep says");
    }
    show_left_out(cx, &report.left_out)?;
    if !report.left_out.is_empty() {
        cx.warn("what is damaged in the store was left out; no older snapshot was dropped");
        cx.suggest("model-cache verify");
    }
    if let Some(first) = report.bad.first() {
        show_bad(cx, &report.bad)?;
        let snapshots: BTreeSet<u64> = report.bad.iter().flat_map(|bad| bad.snapshots.iter().copied()).collect();
        let snapshots: Vec<u64> = snapshots.into_iter().collect();
        cx.warn(&format!(
            "what older snapshots need is damaged and not in the store, and was set aside: snapshots {}",
            listed(&snapshots)
        ));
        let snapshot = first.snapshots.first().copied().unwrap_or_default();
        cx.suggest(&format!(
            "to restore what is sound:\nmodel-cache restore {} --snapshot {snapshot} --skip-damaged",
            shown(dir)
        ));
    }
    Ok(())
}

pub(super) async fn check(cx: &Context, dir: PathBuf, snapshot: Option<u64>) -> Result<Code, Failure> {
    let mut progress = Progress::begin(cx.global.progress);
    let options = CheckOptions { snapshot, progress: Some(progress.callback("checking")), cancel: Some(cx.interrupt.token()) };
    let started = Instant::now();
    let from = dir.clone();
    let result = cx.blocking(move || ModelCache::check_backup(&from, &options)).await;
    progress.end();
    let checked = result?;
    if cx.global.json {
        output::json(&json!({
            "snapshot": checked.snapshot,
            "snapshots": checked.snapshots,
            "created_unix_ms": checked.created_unix_ms,
            "files": checked.files,
            "size_bytes": checked.bytes,
            "bad": bad(&checked.bad),
            "whole_snapshot": checked.whole_snapshot,
            "left_out": left_out(&checked.left_out),
            "elapsed_ms": started.elapsed().as_millis() as u64,
        }))?;
    } else {
        tell_checked(cx, &checked, &dir, started)?;
    }
    Ok(if checked.bad.is_empty() { Code::Done } else { Code::Integrity })
}

fn tell_checked(cx: &Context, checked: &BackupCheck, dir: &Path, started: Instant) -> Result<(), Failure> {
    let amount = format!(
        "snapshot {} of {}: {}, {} in {}",
        checked.snapshot,
        render::clean(&dir.to_string_lossy()),
        render::count(checked.files, "file"),
        render::size(checked.bytes),
        render::took(started.elapsed())
    );
    show_left_out(cx, &checked.left_out)?;
    if checked.bad.is_empty() {
        cx.say(&format!("Checked {amount}: every block and digest is as it was backed up"));
        return Ok(());
    }
    show_bad(cx, &checked.bad)?;
    cx.say(&format!("Checked {amount}: {} damaged", render::count(checked.bad.len() as u64, "file")));
    // Its own files no other backup can mend.
    cx.suggest(&match checked.created_unix_ms {
        Some(_) => format!("copied anew, where the store has them:\nmodel-cache backup {} --recheck", shown(dir)),
        None => give_up(dir, &[checked.snapshot]),
    });
    if let Some(whole) = checked.whole_snapshot {
        cx.suggest(&format!("model-cache restore {} --snapshot {whole}", shown(dir)));
    }
    Ok(())
}

pub(super) async fn restore(
    cx: &Context,
    dir: PathBuf,
    to: Option<PathBuf>,
    replace: bool,
    skip_damaged: bool,
    snapshot: Option<u64>,
) -> Result<Code, Failure> {
    let to_typed = to.as_deref().map_or_else(String::new, |to| format!(" --to {}", shown(to)));
    // Where it is another snapshot that is suggested.
    let to_same_place = move |hint: String| {
        let command = hint.lines().last().unwrap_or_default();
        if !command.starts_with("model-cache restore ") || command.contains(" --check ") {
            return hint;
        }
        let replace = if replace && !command.contains(" --replace") { " --replace" } else { "" };
        format!("{hint}{replace}{to_typed}")
    };
    // By what was typed, or could be.
    let (store, option) = match to {
        Some(store) => (store, "to"),
        None => (cx.store()?, "store"),
    };
    let mut progress = Progress::begin(cx.global.progress);
    let (told, cancel) = (Some(progress.callback("restoring")), Some(cx.interrupt.token()));
    let options = RestoreOptions { snapshot, replace, skip_damaged, progress: told, cancel };
    let started = Instant::now();
    let restore = move || {
        ModelCache::restore(&dir, &store, &options).map_err(|error| match error {
            Error::InvalidOption { name: "to", value, reason } => Error::InvalidOption { name: option, value, reason },
            other => other,
        })
    };
    let result = cx.blocking(restore).await;
    progress.end();
    let report = result.map_err(|failure| failure.change_hint(to_same_place))?;
    let code = if report.skipped.is_empty() { Code::Done } else { Code::Integrity };
    if cx.global.json {
        output::json(&json!({
            "snapshot": report.snapshot,
            "store": report.store.to_string_lossy(),
            "files": report.files,
            "size_bytes": report.bytes,
            "replaced": report.replaced,
            "left_out": left_out(&report.left_out),
            "skipped": left_out(&report.skipped),
            "elapsed_ms": started.elapsed().as_millis() as u64,
        }))?;
        return Ok(code);
    }
    let place = if report.replaced { ", in place of the store that was there" } else { "" };
    cx.say(&format!(
        "Restored snapshot {}: {}, {}, to {} in {}{place}",
        report.snapshot,
        render::count(report.files, "file"),
        render::size(report.bytes),
        render::clean(&report.store.to_string_lossy()),
        render::took(started.elapsed()),
    ));
    show_left_out(cx, &report.left_out)?;
    if !report.skipped.is_empty() {
        show_left_out(cx, &report.skipped)?;
        cx.warn("what is damaged in the backup was left out");
        cx.suggest("pull again, into the new store, what came from the Hub");
    }
    Ok(code)
}

fn bad(bad: &[BadBackupFile]) -> Vec<Value> {
    let row =
        |bad: &BadBackupFile| json!({ "file": bad.file, "reason": bad.reason, "names": bad.names, "snapshots": bad.snapshots });
    bad.iter().map(row).collect()
}

/// Damaged files of a backup, as a table.
fn show_bad(cx: &Context, bad: &[BadBackupFile]) -> Result<(), Failure> {
    let mut table = Table::new([
        column("FILE", Side::Left, Fit::CutMiddle(16)),
        column("DAMAGE", Side::Left, Fit::CutEnd(16)),
        column("CONTENT OF", Side::Left, Fit::CutMiddle(16)),
        column("SNAPSHOTS", Side::Left, Fit::Keep),
    ]);
    for bad in bad {
        let (names, snapshots) = (bad.names.join(", "), listed(&bad.snapshots));
        table.row([
            bad.file.as_str().into(),
            Cell::styled(&bad.reason, Style::Bad),
            names.as_str().into(),
            snapshots.as_str().into(),
        ]);
    }
    output::text(&table.render(output::stdout_width(), cx.paint()))
}

pub(super) fn left_out(left_out: &[LeftOut]) -> Vec<Value> {
    left_out.iter().map(|left| json!({ "repo": left.repo, "path": left.path, "reason": left.reason })).collect()
}

/// What is not in a snapshot, an export or a restored store, as a table.
pub(super) fn show_left_out(cx: &Context, left_out: &[LeftOut]) -> Result<(), Failure> {
    if left_out.is_empty() {
        return Ok(());
    }
    let mut table = Table::new([
        column("LEFT OUT", Side::Left, Fit::CutMiddle(16)),
        column("FILE", Side::Left, Fit::CutMiddle(16)),
        column("DAMAGE", Side::Left, Fit::CutEnd(16)),
    ]);
    for left in left_out {
        let path = left.path.as_deref().unwrap_or("-");
        table.row([left.repo.as_str().into(), path.into(), Cell::styled(&left.reason, Style::Bad)]);
    }
    output::text(&table.render(output::stdout_width(), cx.paint()))
}

/// How to do without snapshots whose own files are damaged.
fn give_up(dir: &Path, snapshots: &[u64]) -> String {
    let [document, sums] =
        ["json", "sha256"].map(|end| move |number: &u64| shown(&dir.join(format!("snapshots/{number}.{end}"))));
    let commands: Vec<_> = snapshots.iter().map(|number| format!("\nrm -f {} {}", document(number), sums(number))).collect();
    format!(
        "such a snapshot can't be mended; with its two files removed, the next backup drops what only it needs:{}",
        commands.concat()
    )
}

fn listed(snapshots: &[u64]) -> String {
    snapshots.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// A folder as a word of a command.
fn shown(dir: &Path) -> String {
    render::shell(&render::clean(&dir.to_string_lossy()))
}
