//! `export` and `import`: the store and folders.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    progress::Progress,
    render,
};
use serde_json::json;
use std::path::PathBuf;
use tabagent_model_cache::{ExportOptions, ImportOptions};

pub(super) async fn export(cx: &Context, repo: String, globs: Vec<String>, to: PathBuf, force: bool) -> Result<Code, Failure> {
    let cache = cx.open().await?;
    let options = ExportOptions { force, cancel: Some(cx.interrupt.token()) };
    let folder = to.clone();
    let report = cx.blocking(move || cache.export(&repo, &globs, &folder, &options)).await?;
    if cx.global.json {
        let paths: Vec<_> = report.paths.iter().map(|path| path.to_string_lossy()).collect();
        output::json(&json!({ "files": report.files, "size_bytes": report.bytes, "paths": paths }))?;
    } else {
        let (files, size) = (render::count(report.files, "file"), render::size(report.bytes));
        cx.say(&format!("Exported {files}, {size} to {}", render::clean(&to.to_string_lossy())));
    }
    Ok(Code::Done)
}

pub(super) async fn import(cx: &Context, repo: String, paths: Vec<PathBuf>) -> Result<Code, Failure> {
    let cache = cx.open().await?;
    let mut progress = Progress::begin(cx.global.progress);
    let options = ImportOptions { progress: Some(progress.callback("importing")), cancel: Some(cx.interrupt.token()) };
    let result = cx.blocking(move || cache.import(&repo, &paths, &options)).await;
    progress.end();
    let report = result?;
    if cx.global.json {
        output::json(&json!({
            "repo": report.repo.as_str(),
            "files": report.files,
            "size_bytes": report.bytes,
            "here_bytes": report.here_bytes,
        }))?;
    } else {
        let here = match report.here_bytes {
            0 => String::new(),
            bytes => format!(", of which {} was here already", render::size(bytes)),
        };
        let (files, size) = (render::count(report.files, "file"), render::size(report.bytes));
        cx.say(&format!("Imported {files}, {size}{here} as {}", report.repo));
        cx.suggest(&format!("model-cache ls {}", report.repo));
    }
    Ok(Code::Done)
}
