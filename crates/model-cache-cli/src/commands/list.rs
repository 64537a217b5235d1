//! `ls` and `df`: what is in the store, and what it takes.

use super::offer::short_digest;
use crate::{
    context::Context,
    exit::{Code, Failure},
    output,
    render::{self, Cell, Fit, Side, Style, Table, column},
};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tabagent_model_cache::{CommitId, FileInfo, FileState, RepoFiles, RepoSummary, Stats};

// -- repos ---------------------------------------------------------------------------------------------------------

pub(super) async fn repos(cx: &Context) -> Result<Code, Failure> {
    let cache = cx.open_if_there().await?;
    let there = cache.is_some();
    let repos = match cache {
        Some(cache) => cx.blocking(move || cache.list()).await?,
        None => Vec::new(),
    };
    if cx.global.json {
        let repos: Vec<_> = repos.iter().map(repo_document).collect();
        output::json(&json!({ "repos": repos }))?;
        return Ok(Code::Done);
    }
    if repos.is_empty() {
        if there {
            cx.say("Nothing is in the store yet.");
        }
        cx.suggest("what a repo offers:\nmodel-cache scan org/name");
        return Ok(Code::Done);
    }
    let mut table = Table::new([
        column("REPO", Side::Left, Fit::CutMiddle(24)),
        column("COMMIT", Side::Left, Fit::Keep),
        column("QUANTS", Side::Left, Fit::CutEnd(10)),
        column("SIZE", Side::Right, Fit::Keep),
        column("LAST USED", Side::Left, Fit::DropLast),
    ]);
    let now = SystemTime::now();
    for repo in &repos {
        table.row([
            Cell::styled(repo.repo.as_str(), Style::Strong),
            commit(repo.commit.as_ref()),
            quants(repo),
            render::size(repo.size_bytes + repo.landed_bytes).into(),
            last_used(repo, now),
        ]);
    }
    output::text(&table.render(output::stdout_width(), cx.paint()))?;
    Ok(Code::Done)
}

fn repo_document(repo: &RepoSummary) -> Value {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "repo": repo.repo.as_str(),
        "commit": repo.commit.as_ref().map(CommitId::as_str),
        "quants": repo.quants,
        "files": repo.files,
        "size_bytes": repo.size_bytes,
        "filling_files": repo.filling_files,
        "landed_bytes": repo.landed_bytes,
        "last_used_unix_seconds": repo.last_used.map(seconds),
        "readers": repo.readers,
        "damaged_files": repo.damaged_files,
    })
}

fn commit(commit: Option<&CommitId>) -> Cell {
    match commit {
        Some(commit) => (&commit.as_str()[..8]).into(),
        None => "imported".into(),
    }
}

/// The quants that are whole; files begun and not finished are named beside them.
fn quants(repo: &RepoSummary) -> Cell {
    let unfinished = format!("{} unfinished", repo.filling_files);
    match &repo.quants[..] {
        [] if repo.filling_files > 0 => Cell::styled(unfinished, Style::Busy),
        [] => Cell::styled(render::count(repo.files, "file"), Style::Faint),
        quants if repo.filling_files > 0 => format!("{} + {unfinished}", quants.join(" ")).into(),
        quants => quants.join(" ").into(),
    }
}

fn last_used(repo: &RepoSummary, now: SystemTime) -> Cell {
    match (repo.readers.len() as u64, repo.last_used) {
        (0, None) => Cell::styled("-", Style::Faint),
        (0, Some(used)) => render::ago(now.duration_since(used).unwrap_or_default()).into(),
        (readers, _) => Cell::styled(format!("now, by {}", render::count(readers, "reader")), Style::Good),
    }
}

// -- one repo's files ----------------------------------------------------------------------------------------------

pub(super) async fn files(cx: &Context, repo: String) -> Result<Code, Failure> {
    let cache = cx.open_there().await?;
    let commits = cx.blocking(move || cache.files(&repo)).await?;
    let Some((first, others)) = commits.split_first() else {
        return Err(Failure::new(Code::NotFound, "nothing of it is in the store"));
    };
    if cx.global.json {
        let mut document = files_document(first);
        if !others.is_empty() {
            document["other_commits"] = others.iter().map(files_document).collect();
        }
        output::json(&document)?;
        return Ok(Code::Done);
    }
    for (place, commit) in commits.iter().enumerate() {
        if place > 0 {
            output::text("\n")?;
        }
        output::text(&files_text(cx, commit))?;
    }
    Ok(Code::Done)
}

fn files_document(commit: &RepoFiles) -> Value {
    let files: Vec<_> = commit
        .files
        .iter()
        .map(|file| {
            json!({
                "path": file.path.as_str(),
                "size_bytes": file.size_bytes,
                "chunks": file.chunks,
                "digest": file.digest,
                "state": file.state.as_str(),
                "landed_bytes": file.landed_bytes,
                "readers": file.readers,
            })
        })
        .collect();
    json!({ "repo": commit.repo.as_str(), "commit": commit.commit.as_ref().map(CommitId::as_str), "files": files })
}

fn files_text(cx: &Context, commit: &RepoFiles) -> String {
    let paint = cx.paint();
    let bytes: u64 = commit.files.iter().map(|file| file.landed_bytes).sum();
    let parts = [
        commit.repo.to_string(),
        commit.commit.as_ref().map_or("imported", CommitId::short).to_owned(),
        format!("{}, {}", render::count(commit.files.len() as u64, "file"), render::size(bytes)),
    ];
    let mut text = render::title(&parts, output::stdout_width(), paint);
    let mut table = Table::new([
        column("FILE", Side::Left, Fit::CutMiddle(24)),
        column("SIZE", Side::Right, Fit::Keep),
        column("CHUNKS", Side::Right, Fit::DropLast),
        column("STATE", Side::Left, Fit::Keep),
        column("DIGEST", Side::Left, Fit::Drop),
    ]);
    for file in &commit.files {
        table.row([
            file.path.as_str().into(),
            render::size(file.size_bytes).into(),
            file.chunks.to_string().into(),
            state(file),
            Cell::styled(short_digest(&file.digest), Style::Faint),
        ]);
    }
    text += &table.render(output::stdout_width(), paint);
    text
}

fn state(file: &FileInfo) -> Cell {
    match (file.state, file.readers.len() as u64) {
        (FileState::Sealed, 0) => Cell::styled("sealed", Style::Good),
        (FileState::Sealed, readers) => Cell::styled(format!("sealed, {}", render::count(readers, "reader")), Style::Good),
        (state, _) => {
            let percent = render::percent(file.landed_bytes, file.size_bytes);
            Cell::styled(format!("{}, {percent} %", state.as_str()), Style::Busy)
        }
    }
}

// -- sizes ---------------------------------------------------------------------------------------------------------

pub(super) async fn df(cx: &Context) -> Result<Code, Failure> {
    let cache = cx.open_if_there().await?;
    let there = cache.is_some();
    let stats = match cache {
        Some(cache) => cx.blocking(move || cache.stats()).await?,
        None => Stats::default(),
    };
    if cx.global.json {
        output::json(&json!({
            "files": stats.files,
            "chunks": stats.chunks,
            "live_bytes": stats.live_bytes,
            "derived_bytes": stats.derived_bytes,
            "filling_bytes": stats.filling_bytes,
            "doomed_bytes": stats.doomed_bytes,
            "disk_bytes": stats.disk_bytes,
            "damaged_records": stats.damaged_records,
            "store": cx.store()?.to_string_lossy(),
        }))?;
    } else if there {
        output::text(&df_text(cx, &stats, &cx.store()?))?;
    }
    Ok(Code::Done)
}

fn df_text(cx: &Context, stats: &Stats, store: &Path) -> String {
    let mut table = Table::new([
        column("WHAT", Side::Left, Fit::Keep),
        column("SIZE", Side::Right, Fit::Keep),
        column("", Side::Left, Fit::Keep),
    ]);
    let complete = format!("{} in {}", render::count(stats.files, "file"), render::count(stats.chunks, "chunk"));
    let faint = |text: &str| Cell::styled(text, Style::Faint);
    table.row(["complete".into(), render::size(stats.live_bytes).into(), complete.into()]);
    if stats.derived_bytes > 0 {
        let note = faint("made of them for loaders; goes when they go");
        table.row(["derived".into(), render::size(stats.derived_bytes).into(), note]);
    }
    if stats.filling_bytes > 0 {
        let note = faint("unfinished downloads: pull goes on, gc frees");
        table.row(["filling".into(), render::size(stats.filling_bytes).into(), note]);
    }
    if stats.doomed_bytes > 0 {
        table.row([
            "removed".into(),
            render::size(stats.doomed_bytes).into(),
            faint("still in use; freed when its readers let go"),
        ]);
    }
    table.row([Cell::styled("on disk", Style::Strong), render::size(stats.disk_bytes).into(), Cell::default()]);
    let title = render::title(&[render::clean(&store.to_string_lossy())], None, cx.paint());
    title + &table.render(output::stdout_width(), cx.paint())
}
