//! `export` and `import`: the store and folders.

use super::backup::{left_out, show_left_out};
use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render,
};
use serde_json::json;
use std::{collections::HashSet, path::PathBuf, time::Duration};
use tabagent_model_cache::{CopyMethod, ExportOptions, FileState, ImportOptions, ModelCache, RepoSpec};

/// The first few of `paths`, and how many more there are.
pub(super) fn few(paths: &[String]) -> String {
    let mut named: Vec<_> = paths.iter().take(3).map(|path| render::clean(path)).collect();
    if paths.len() > named.len() {
        named.push(format!("{} more", paths.len() - named.len()));
    }
    named.join(", ")
}

/// What was imported as `repo`: paths, with the digests of their content. Nothing where that can't be told.
fn imported(cache: &ModelCache, repo: &str) -> HashSet<(String, String)> {
    let commits = cache.files(repo).unwrap_or_default();
    let imports = commits.into_iter().filter(|commit| commit.commit.is_none()).flat_map(|commit| commit.files);
    let sealed = imports.filter(|file| file.state == FileState::Sealed);
    sealed.map(|file| (file.path.to_string(), file.digest)).collect()
}

/// What a method means for the disk.
fn how(method: CopyMethod) -> &'static str {
    match method {
        CopyMethod::Reflink => "blocks shared with the store: no space taken",
        CopyMethod::CopyFileRange => "copied by the kernel",
        CopyMethod::Copy => "copied",
    }
}

pub(super) async fn export(
    cx: &Context,
    repo: String,
    globs: Vec<String>,
    to: PathBuf,
    force: bool,
    check: bool,
) -> Result<Code, Failure> {
    let cache = cx.open_there().await?;
    let name = repo.clone();
    let mut progress = Progress::begin(cx.global.progress);
    let (told, cancel) = (Some(progress.callback("exporting")), Some(cx.interrupt.token()));
    let options = ExportOptions { force, check, progress: told, cancel };
    let folder = to.clone();
    let result = cx.blocking(move || cache.export(&repo, &globs, &folder, &options)).await;
    progress.end();
    let report = result?;
    if cx.global.json {
        let paths: Vec<_> = report.paths.iter().map(|path| path.to_string_lossy()).collect();
        output::json(&json!({
            "files": report.files,
            "size_bytes": report.bytes,
            "shared_bytes": report.shared_bytes,
            "method": report.method.map(CopyMethod::as_str),
            "paths": paths,
            "left_out": left_out(&report.left_out),
            "unfinished": report.unfinished,
        }))?;
    } else {
        let (files, size) = (render::count(report.files, "file"), render::size(report.bytes));
        let how = report.method.map(|method| format!(" ({})", how(method))).unwrap_or_default();
        cx.say(&format!("Exported {files}, {size}, to {}{how}", render::clean(&to.to_string_lossy())));
        if !report.unfinished.is_empty() {
            let (files, named) = (render::count(report.unfinished.len() as u64, "unfinished file"), few(&report.unfinished));
            cx.warn(&format!("{files} of {name} left out: {named}"));
        }
        if !report.left_out.is_empty() {
            show_left_out(cx, &report.left_out)?;
            cx.warn("what is damaged in the store was left out");
            cx.suggest(&format!("model-cache repair {name}"));
        }
    }
    Ok(if report.left_out.is_empty() { Code::Done } else { Code::Integrity })
}

pub(super) async fn import(cx: &Context, repo: String, paths: Vec<PathBuf>) -> Result<Code, Failure> {
    let spec: RepoSpec = repo.parse()?;
    let cache = cx.open().await?;
    let (looking, name) = (cache.clone(), repo.clone());
    let before = cx.blocking(move || Ok(imported(&looking, &name))).await?;
    let (looking, name) = (cache.clone(), repo.clone());
    let mut progress = Progress::begin(cx.global.progress);
    let options = ImportOptions { progress: Some(progress.callback("importing")), cancel: Some(cx.interrupt.token()) };
    let result = cx.blocking(move || cache.import(&repo, &paths, &options)).await;
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(failure) => {
            let count = tokio::task::spawn_blocking(move || imported(&looking, &name).difference(&before).count() as u64);
            // Not worth making somebody wait who wants to leave.
            let count = tokio::time::timeout(Duration::from_millis(100), count).await.ok().and_then(Result::ok).unwrap_or(0);
            let failure = match count {
                0 if matches!(failure.code, Code::Interrupted | Code::Terminated) => {
                    failure.detail("no file was imported by then")
                }
                0 => failure,
                1 => failure.detail("1 file was imported by then"),
                count => failure.detail(format!("{count} files were imported by then")),
            };
            let failure = if count > 0 { failure.or_hint(format!("model-cache ls {}", spec.repo)) } else { failure };
            return Err(failure.field("imported_files", count));
        }
    };
    let skipped: Vec<_> = report.skipped.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    if cx.global.json {
        output::json(&json!({
            "repo": report.repo.as_str(),
            "files": report.files,
            "size_bytes": report.bytes,
            "here_bytes": report.here_bytes,
            "mended_files": report.mended_files,
            "skipped": skipped,
        }))?;
    } else {
        let here = match report.here_bytes {
            0 => String::new(),
            bytes => format!(", of which {} was here already", render::size(bytes)),
        };
        let (files, size) = (render::count(report.files, "file"), render::size(report.bytes));
        cx.say(&format!("Imported {files}, {size}{here} as {}", report.repo));
        if report.mended_files > 0 {
            let files = render::count(report.mended_files, "file");
            cx.say(&format!("Content of {files} was here and damaged: it is whole again, under all its names"));
        }
        if !skipped.is_empty() {
            cx.warn(&format!("skipped what is no file (links to folders, pipes, devices): {}", few(&skipped)));
        }
        cx.suggest(&format!("model-cache ls {}", report.repo));
    }
    Ok(Code::Done)
}
