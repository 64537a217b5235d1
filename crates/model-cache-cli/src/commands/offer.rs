//! `scan` and `show`: what a repo offers, and what of it is here.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    render::{self, Cell, Fit, Paint, Side, Style, Table, column},
};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tabagent_model_cache::{Error, Manifest, QuantInfo, QuantStatus, RepoSpec};

pub(super) async fn scan(cx: &Context, repo: String) -> Result<Code, Failure> {
    let spec: RepoSpec = repo.parse()?;
    let cache = cx.open().await?;
    let cancel = cx.interrupt.token();
    let manifest = cx
        .task(async move {
            tokio::select! {
                manifest = cache.scan_repo(&repo) => manifest,
                () = cancel.cancelled() => Err(Error::Cancelled),
            }
        })
        .await?;
    if cx.global.json {
        output::json(&document(&manifest))?;
    } else {
        let revision = spec.revision_or_main();
        let at = match revision.as_commit() {
            Some(_) => manifest.commit.short().to_owned(),
            None => format!("{} = {}", render::clean(revision.as_str()), manifest.commit.short()),
        };
        output::text(&overview(&manifest, &at, cx.paint()))?;
        note_trouble(cx, &manifest);
        if manifest.files.is_empty() {
            cx.say(&format!("{} has no files.", manifest.repo));
        } else {
            suggest(cx, &spec, &manifest);
        }
    }
    Ok(Code::Done)
}

pub(super) async fn show(cx: &Context, repo: String) -> Result<Code, Failure> {
    let spec: RepoSpec = repo.parse()?;
    let cache = cx.open_there().await?;
    let looked = cx.blocking(move || match cache.local_manifest(&repo)? {
        Some(manifest) => Ok((Some(manifest), false)),
        None => Ok((None, cache.is_imported(&repo)?)),
    });
    let (manifest, imported) = looked.await?;
    let Some(manifest) = manifest else {
        if imported {
            let failure = Failure::new(Code::NotFound, format!("{spec} was imported, so it has no manifest"));
            return Err(failure.hint(format!("model-cache ls {spec}")));
        }
        let failure = Failure::new(Code::NotFound, format!("{spec} was never scanned into this store"));
        return Err(failure.hint(format!("model-cache scan {spec}")));
    };
    if cx.global.json {
        output::json(&document(&manifest))?;
    } else {
        output::text(&in_full(&manifest, cx.paint()))?;
        note_trouble(cx, &manifest);
    }
    Ok(Code::Done)
}

/// Tells what is wrong with which quants.
fn note_trouble(cx: &Context, manifest: &Manifest) {
    note_missing(cx, manifest.quants.iter().map(|(key, quant)| (key.as_str(), &quant.missing[..])));
    for (key, quant) in &manifest.quants {
        if let Some(error) = &quant.last_error {
            let error = render::clean(render::root_cause(error));
            cx.warn(&format!("the last pull of {} failed: {error}", render::clean(key)));
        }
    }
}

/// Tells which quants promise files the repo lacks.
pub(super) fn note_missing<'a>(cx: &Context, quants: impl Iterator<Item = (&'a str, &'a [String])>) {
    for (key, missing) in quants.filter(|(_, missing)| !missing.is_empty()) {
        let mut named: Vec<_> = missing.iter().take(3).map(|path| render::clean(path)).collect();
        if missing.len() > named.len() {
            named.push(format!("{} more", missing.len() - named.len()));
        }
        cx.warn(&format!("{} is incomplete at the Hub: it lacks {}", render::clean(key), named.join(", ")));
    }
}

// -- JSON ----------------------------------------------------------------------------------------------------------

fn document(manifest: &Manifest) -> Value {
    let quants: Map<String, Value> = manifest
        .quants
        .iter()
        .map(|(key, quant)| {
            let value = json!({
                "status": quant.status,
                "files": quant.files,
                "own_files": quant.own_files,
                "total_bytes": quant.total_bytes,
                "downloaded_bytes": quant.downloaded_bytes,
                "missing": quant.missing,
                "last_error": quant.last_error,
            });
            (key.clone(), value)
        })
        .collect();
    let files: Vec<_> = manifest
        .files
        .iter()
        .map(|file| json!({ "path": file.path.as_str(), "size_bytes": file.size_bytes, "digest": file.digest.to_string() }))
        .collect();
    json!({
        "repo": manifest.repo.as_str(),
        "commit": manifest.commit.as_str(),
        "task": manifest.task,
        "quants": quants,
        "files": files,
        "shared": manifest.shared,
        "extras": manifest.extras,
    })
}

// -- text ----------------------------------------------------------------------------------------------------------

/// `org/name   main = 5ab33fa94d1d   text-generation`.
fn title(manifest: &Manifest, at: &str, paint: Paint) -> String {
    let mut parts = vec![manifest.repo.to_string(), at.to_owned()];
    parts.extend(manifest.task.as_deref().map(render::clean));
    render::title(&parts, output::stdout_width(), paint)
}

/// Quants as people look for them: the smallest first.
fn by_size(manifest: &Manifest) -> Vec<(&String, &QuantInfo)> {
    let mut quants: Vec<_> = manifest.quants.iter().collect();
    quants.sort_by_key(|(key, quant)| (quant.total_bytes, *key));
    quants
}

fn overview(manifest: &Manifest, at: &str, paint: Paint) -> String {
    let sizes = sizes(manifest);
    let mut text = title(manifest, at, paint);
    if !manifest.quants.is_empty() {
        let mut table = Table::new([
            column("QUANT", Side::Left, Fit::Keep),
            column("FILES", Side::Right, Fit::Keep),
            column("SIZE", Side::Right, Fit::Keep),
            column("STATUS", Side::Left, Fit::Keep),
        ]);
        // Sizes add up: what all share is told once, below.
        for (key, quant) in by_size(manifest) {
            let own: Vec<_> = quant.files.iter().filter(|path| !manifest.shared.contains(path)).collect();
            let bytes = own.iter().filter_map(|path| sizes.get(path.as_str())).sum();
            table.row([
                Cell::styled(key, Style::Strong),
                own.len().to_string().into(),
                render::size(bytes).into(),
                status(quant),
            ]);
        }
        text += &table.render(output::stdout_width(), paint);
    }
    let bytes_of = |paths: &[String]| -> u64 { paths.iter().filter_map(|path| sizes.get(path.as_str())).sum() };
    let also = |paths: &[String], what: &str| match paths.len() as u64 {
        0 => String::new(),
        files => {
            format!("{}\n", paint.dim(&format!("+ {} {what}, {}", render::count(files, "file"), render::size(bytes_of(paths)))))
        }
    };
    let shared = if manifest.quants.len() == 1 { "beside the weights" } else { "every quant uses" };
    text += &also(&manifest.shared, shared);
    text += &also(&manifest.extras, if manifest.quants.is_empty() { "" } else { "no quant uses" }).replace(" ,", ",");
    text
}

fn in_full(manifest: &Manifest, paint: Paint) -> String {
    let sizes = sizes(manifest);
    let mut text = title(manifest, manifest.commit.as_str(), paint);
    let mut table = Table::new([
        column("QUANT", Side::Left, Fit::CutMiddle(24)),
        column("SIZE", Side::Right, Fit::Keep),
        column("STATUS", Side::Left, Fit::CutEnd(12)),
    ]);
    let digests: HashMap<&str, String> =
        manifest.files.iter().map(|file| (file.path.as_str(), file.digest.to_string())).collect();
    let mut group = |name: Cell, bytes: u64, note: Cell, paths: &mut dyn Iterator<Item = &String>| {
        table.row([name, render::size(bytes).into(), note]);
        for path in paths {
            let size = sizes.get(path.as_str()).copied().unwrap_or(0);
            let digest = digests.get(path.as_str()).map(|digest| short_digest(digest)).unwrap_or_default();
            table.row([format!("  {path}").into(), render::size(size).into(), Cell::styled(digest, Style::Faint)]);
        }
    };
    let bytes_of = |paths: &[&String]| -> u64 { paths.iter().filter_map(|path| sizes.get(path.as_str())).sum() };
    for (key, quant) in by_size(manifest) {
        let own: Vec<_> = quant.files.iter().filter(|path| !manifest.shared.contains(path)).collect();
        group(Cell::styled(key, Style::Strong), bytes_of(&own), status(quant), &mut own.iter().copied());
    }
    for (name, paths) in [("every quant", &manifest.shared), ("no quant", &manifest.extras)] {
        if !paths.is_empty() {
            let paths: Vec<_> = paths.iter().collect();
            group(Cell::styled(name, Style::Strong), bytes_of(&paths), Cell::default(), &mut paths.iter().copied());
        }
    }
    text += &table.render(output::stdout_width(), paint);
    text
}

fn sizes(manifest: &Manifest) -> HashMap<&str, u64> {
    manifest.files.iter().map(|file| (file.path.as_str(), file.size_bytes)).collect()
}

fn status(quant: &QuantInfo) -> Cell {
    let word = quant.status.as_str();
    let (style, with_percent) = match quant.status {
        QuantStatus::Downloaded => (Style::Good, false),
        QuantStatus::Downloading => (Style::Busy, true),
        QuantStatus::Partial => (Style::Busy, true),
        QuantStatus::Failed => (Style::Bad, true),
        _ => (Style::Plain, false),
    };
    let text = match with_percent {
        true => format!("{word}, {} %", render::percent(quant.downloaded_bytes, quant.total_bytes)),
        false => word.to_owned(),
    };
    Cell::styled(text, style)
}

/// `sha256:0123456789ab`.
pub(super) fn short_digest(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.chars().take(12).collect::<String>()),
        None => digest.to_owned(),
    }
}

/// One hint: to go on with what was begun, else to pull, else to look.
fn suggest(cx: &Context, spec: &RepoSpec, manifest: &Manifest) {
    let quants = by_size(manifest);
    let with = |wanted: fn(&QuantStatus) -> bool| quants.iter().find(|(_, quant)| wanted(&quant.status)).map(|(key, _)| *key);
    let begun = with(|status| matches!(status, QuantStatus::Partial | QuantStatus::Failed));
    let usual = manifest.quants.get_key_value("Q4_K_M").filter(|(_, quant)| quant.status == QuantStatus::Available);
    let next = begun.or(usual.map(|(key, _)| key)).or(with(|status| *status == QuantStatus::Available));
    cx.suggest(&match next {
        Some(_) if quants.len() == 1 => format!("model-cache pull {spec}"),
        Some(quant) => format!("model-cache pull {spec} --quant {}", render::shell(&render::clean(quant))),
        None if quants.is_empty() => format!("model-cache pull {spec} --all"),
        None => format!("model-cache ls {spec}"),
    });
}
