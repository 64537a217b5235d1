//! `pull`: bring quants or files into the store.

use super::offer;
use crate::{
    context::{Context, Network},
    exit::{Code, Failure},
    output,
    progress::Progress,
    render,
};
use serde_json::json;
use std::time::Duration;
use tabagent_model_cache::{Error, ModelCache, PullReport, RepoSpec};

/// What was asked for.
pub(super) struct Wanted {
    pub(super) repo: String,
    pub(super) quants: Vec<String>,
    pub(super) globs: Vec<String>,
    pub(super) all: bool,
}

pub(super) async fn pull(cx: &Context, wanted: Wanted, network: Network) -> Result<Code, Failure> {
    let mut progress = Progress::begin(cx.global.progress);
    let repo = wanted.repo.clone();
    let result = run(cx, wanted, network, &progress).await;
    progress.end();
    progress.tell_end(&repo, result.as_ref().err());
    let report = match result {
        Ok(report) => report,
        // The last event said it.
        Err(failure) if cx.says_events() && !cx.global.json => return Ok(failure.code),
        Err(failure) => return Err(failure),
    };
    if cx.global.json {
        output::json(&json!({
            "repo": report.repo.as_str(),
            "commit": report.commit.as_str(),
            "quants": report.quants,
            "files": report.files,
            "total_bytes": report.total_bytes,
            "fetched_bytes": report.fetched_bytes,
            "here_bytes": report.here_bytes,
            "elapsed_ms": report.elapsed.as_millis() as u64,
            "seal_ms": report.seal_time.map(|time| time.as_millis() as u64),
            "missing": report.missing,
        }))?;
    } else {
        cx.say(&summary(&report, progress.waited()));
        offer::note_missing(cx, [(report.quants.join(", ").as_str(), &report.missing[..])].into_iter());
    }
    Ok(Code::Done)
}

async fn run(cx: &Context, wanted: Wanted, network: Network, progress: &Progress) -> Result<PullReport, Failure> {
    let spec: RepoSpec = wanted.repo.parse()?;
    let cache = cx.open_with(network).await?;
    let mut pull = cache.pull(&wanted.repo).all(wanted.all);
    pull = wanted.quants.iter().fold(pull, |pull, quant| pull.quant(quant));
    pull = wanted.globs.iter().fold(pull, |pull, glob| pull.file(glob));
    let pull = pull.on_event(Some(progress.events())).cancel_token(cx.interrupt.token());
    match cx.task(pull.run()).await {
        Err(failure) if matches!(failure.code, Code::Interrupted | Code::Terminated) => {
            Err(interrupted(cx, &cache, &spec, progress).await)
        }
        Err(failure) => Err(failed(failure, &cache, &spec, progress).await),
        Ok(report) => Ok(report),
    }
}

/// What a pull that ended early leaves: the bytes that landed, if they could be counted within `patience`, and those it was to bring.
async fn kept(cache: &ModelCache, spec: &RepoSpec, progress: &Progress, patience: Duration) -> Option<(Option<u64>, u64)> {
    let (commit, total_bytes) = progress.started()?;
    let (paths, cache) = (progress.paths(), cache.clone());
    let at = format!("{}@{commit}", spec.repo);
    let counted = tokio::task::spawn_blocking(move || {
        let files = match cache.files(&at) {
            Err(Error::NotInStore { .. }) => return Some(0),
            files => files.ok()?.into_iter().next()?.files,
        };
        Some(files.iter().filter(|file| paths.contains(file.path.as_str())).map(|file| file.landed_bytes).sum::<u64>())
    });
    let counted = tokio::time::timeout(patience, counted).await;
    Some((counted.ok().and_then(Result::ok).flatten(), total_bytes))
}

/// `failure`, with what it leaves.
async fn failed(failure: Failure, cache: &ModelCache, spec: &RepoSpec, progress: &Progress) -> Failure {
    let Some((kept_bytes, total_bytes)) = kept(cache, spec, progress, Duration::from_secs(2)).await else { return failure };
    let failure = failure.field("kept_bytes", kept_bytes).field("total_bytes", total_bytes);
    match kept_bytes {
        None | Some(0) => failure,
        Some(kept) => failure.detail(format!("kept {}; the same command goes on from there", of(kept, total_bytes))),
    }
}

/// `19.1 of 60.0 MiB`.
fn of(part: u64, whole: u64) -> String {
    render::part_of(part, whole).replacen('/', " of ", 1)
}

async fn interrupted(cx: &Context, cache: &ModelCache, spec: &RepoSpec, progress: &Progress) -> Failure {
    // Not worth making somebody wait who wants to leave.
    let kept = kept(cache, spec, progress, Duration::from_millis(100)).await;
    let Some((kept_bytes, total_bytes)) = kept else { return cx.interrupt.failure() };
    let message = match kept_bytes {
        Some(0) => format!("interrupted: nothing of {} landed yet", render::size(total_bytes)),
        Some(kept) => format!("interrupted: kept {}", of(kept, total_bytes)),
        None => format!("interrupted: what landed of {} is kept", render::size(total_bytes)),
    };
    Failure::new(cx.interrupt.code(), message)
        .hint("the same command goes on from there")
        .field("kept_bytes", kept_bytes)
        .field("total_bytes", total_bytes)
}

/// `Pulled Q8_0 of org/name (5ab33fa94d1d): 5 files, 3.19 GiB, of which 1.31 GiB was here already; 9.4 s; verified`.
fn summary(report: &PullReport, waited: bool) -> String {
    let what = if report.quants.is_empty() { String::new() } else { format!("{} of ", render::clean(&report.quants.join(", "))) };
    let name = format!("{what}{} ({})", report.repo, report.commit.short());
    let amount = format!("{}, {}", render::count(report.files, "file"), render::size(report.total_bytes));
    if report.files == 0 {
        return format!("Nothing to pull: {name} has no files");
    }
    // Whether empty files were here can't be seen from their bytes.
    if report.total_bytes == 0 {
        return format!("Here now: {name}: {amount}");
    }
    if report.fetched_bytes == 0 && waited {
        return format!("Here now: {name}: {amount}; another process fetched it");
    }
    if report.fetched_bytes == 0 {
        return format!("Already here: {name}: {amount}");
    }
    // A shared config that was here is not worth a word.
    let here = match report.here_bytes {
        bytes if bytes < report.total_bytes / 100 => String::new(),
        0 => String::new(),
        bytes => format!(", of which {} was here already", render::size(bytes)),
    };
    let seconds = report.elapsed.as_secs_f64();
    let speed = match report.fetched_bytes >= 1 << 20 && seconds > 0.5 {
        true => format!(" at {}", render::speed((report.fetched_bytes as f64 / seconds) as u64)),
        false => String::new(),
    };
    format!("Pulled {name}: {amount}{here}; {}{speed}; digests verified", render::took(report.elapsed))
}
