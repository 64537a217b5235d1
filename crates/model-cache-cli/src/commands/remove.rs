//! `rm` and `gc`: give space back.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output, render, talk,
};
use serde_json::{Value, json};
use std::io::{self, BufRead, IsTerminal};
use tabagent_model_cache::{CommitId, Error, ModelCache, Removed, RepoSpec};

pub(super) async fn rm(cx: &Context, repo: String, globs: Vec<String>, quants: Vec<String>, yes: bool) -> Result<Code, Failure> {
    let spec: RepoSpec = repo.parse()?;
    let cache = cx.open_there().await?;
    if !yes {
        let (asking, name) = (cache.clone(), repo.clone());
        if cx.blocking(move || asking.is_imported(&name)).await? && !confirmed(cx, &spec, &globs).await? {
            let (asking, name) = (cache.clone(), repo.clone());
            let commits = cx.blocking(move || Ok(pulled(&asking, &name))).await?;
            return Err(not_confirmed(&spec, &commits, &globs, &quants));
        }
    }
    let removed = cx
        .blocking(move || match globs.is_empty() && quants.is_empty() {
            true => cache.delete_model(&repo),
            false => cache.delete_files(&repo, &globs, &quants),
        })
        .await?;
    if cx.global.json {
        output::json(&document(&removed))?;
    } else {
        cx.say(&removed_text(&removed));
    }
    Ok(Code::Done)
}

pub(super) async fn gc(cx: &Context) -> Result<Code, Failure> {
    let cache = cx.open_if_there().await?;
    let there = cache.is_some();
    let removed = match cache {
        Some(cache) => cx.blocking(move || cache.gc()).await?,
        None => Removed::default(),
    };
    if cx.global.json {
        output::json(&document(&removed))?;
    } else if there {
        cx.say(&freed_text(&removed));
    }
    Ok(Code::Done)
}

/// Whether the user says yes; without a terminal nobody does.
async fn confirmed(cx: &Context, spec: &RepoSpec, globs: &[String]) -> Result<bool, Failure> {
    if cx.global.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let what = if globs.is_empty() { spec.to_string() } else { format!("these files of {spec}") };
    talk::raw(format!("{what} was imported and can't be fetched again. Remove it? [y/N] ").as_bytes());
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    tokio::select! {
        answer = answer => {
            let answer = answer.ok().and_then(Result::ok).unwrap_or_default();
            Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
        }
        () = cx.interrupt.token().cancelled_owned() => {
            talk::line("");
            Err(cx.interrupt.failure())
        }
    }
}

/// The commits of `repo` that were pulled, so that the Hub can give them again.
fn pulled(cache: &ModelCache, repo: &str) -> Vec<CommitId> {
    // What can't be listed is told by who removes it.
    cache.files(repo).unwrap_or_default().into_iter().filter_map(|files| files.commit).collect()
}

/// The refusal, with what to type: of a name that was pulled too, what leaves the import.
fn not_confirmed(spec: &RepoSpec, commits: &[CommitId], globs: &[String], quants: &[String]) -> Failure {
    let all = command(spec, globs, quants) + " --yes";
    let failure = Failure::from(Error::NotConfirmed { repo: spec.repo.clone() });
    if commits.is_empty() {
        return failure.hint(all);
    }
    let of = |commit: &CommitId| RepoSpec { repo: spec.repo.clone(), revision: commit.as_str().parse().ok() };
    let each = commits.iter().map(|commit| command(&of(commit), globs, quants) + "\n");
    failure.hint(format!("what was pulled under this name, and what was imported too:\n{}{all}", each.collect::<String>()))
}

/// The same command: no more and no less than was asked for.
fn command(spec: &RepoSpec, globs: &[String], quants: &[String]) -> String {
    let mut command = format!("model-cache rm {spec}");
    globs.iter().for_each(|glob| command += &format!(" {}", render::shell(&render::clean(glob))));
    quants.iter().for_each(|quant| command += &format!(" --quant {}", render::shell(&render::clean(quant))));
    command
}

fn document(removed: &Removed) -> Value {
    json!({
        "files": removed.files,
        "size_bytes": removed.bytes,
        "freed_bytes": removed.freed_bytes,
        "busy_bytes": removed.busy_bytes,
        "filling_bytes": removed.filling_bytes,
        "busy_processes": removed.busy_processes,
        "shared_bytes": removed.shared_bytes,
    })
}

fn removed_text(removed: &Removed) -> String {
    let mut text = match (removed.files, removed.freed_bytes) {
        (0, 0) if removed.filling_bytes > 0 => "Removed what was known of it; no complete file was here.".to_owned(),
        (0, 0) => "Removed what was known of it; no file was here.".to_owned(),
        (0, freed) => format!("Removed unfinished downloads, {} freed.", render::size(freed)),
        (files, _) => format!("Removed {}, {}.", render::count(files, "file"), render::size(removed.bytes)),
    };
    // Space that returned beyond that of the files: downloads that were not finished.
    let accounted = removed.freed_bytes + removed.busy_bytes + removed.shared_bytes;
    let unfinished = accounted.saturating_sub(removed.bytes);
    if removed.files > 0 && unfinished > 0 && removed.freed_bytes >= unfinished && removed.shared_bytes == 0 {
        text += &format!(" {} of unfinished downloads freed too.", render::size(unfinished));
    }
    // A config every model has is not worth a word.
    if removed.shared_bytes > removed.bytes / 100 {
        text += &format!(" {} of it stays: other names have the same content.", render::size(removed.shared_bytes));
    }
    text + &busy_text(removed) + &filling_text(removed)
}

fn freed_text(removed: &Removed) -> String {
    let text = match removed.freed_bytes {
        0 => "Nothing to free.".to_owned(),
        freed => format!("Freed {}.", render::size(freed)),
    };
    let (busy, filling) = (render::size(removed.busy_bytes), render::size(removed.filling_bytes));
    let by = by(&removed.busy_processes);
    match (removed.busy_bytes, removed.filling_bytes) {
        (0, 0) => text,
        (_, 0) => format!("{text} {busy} is in use{by}."),
        (0, _) => format!("{text} {filling} is being pulled{by}."),
        // Who reads and who pulls is not known apart.
        (_, _) => format!("{text} {busy} is in use and {filling} is being pulled{by}."),
    }
}

fn busy_text(removed: &Removed) -> String {
    let when = match removed.busy_processes.len() {
        _ if removed.busy_bytes == 0 => return String::new(),
        0 => "when that ends",
        1 => "when it lets go",
        _ => "when they let go",
    };
    let (size, by) = (render::size(removed.busy_bytes), by(&removed.busy_processes));
    format!(" {size} is still in use{by} and will be freed {when}.")
}

/// What somebody fetches right now is left to him.
fn filling_text(removed: &Removed) -> String {
    if removed.filling_bytes == 0 {
        return String::new();
    }
    let goes_on = if removed.busy_processes.len() > 1 { "which go on and keep it" } else { "which goes on and keeps it" };
    let size = render::size(removed.filling_bytes);
    // Beside readers, who is who is not known.
    match removed.busy_bytes {
        0 if !removed.busy_processes.is_empty() => {
            format!(" {size} of it is being pulled{}, {goes_on}.", by(&removed.busy_processes))
        }
        _ => format!(" {size} of it is being pulled by another process, which goes on and keeps it."),
    }
}

/// Who reads or fills it, as far as this process may look.
fn by(processes: &[u32]) -> String {
    let pids: Vec<_> = processes.iter().map(ToString::to_string).collect();
    match &pids[..] {
        [] => String::new(),
        [only] => format!(" by process {only}"),
        several => format!(" by processes {}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed() -> Removed {
        let mut removed = Removed::default();
        (removed.files, removed.bytes, removed.freed_bytes) = (9, 2 << 30, 2 << 30);
        removed
    }

    #[test]
    fn what_is_still_read_is_told_with_who_reads_it() {
        assert_eq!(removed_text(&removed()), "Removed 9 files, 2.00 GiB.");
        let mut busy = removed();
        (busy.freed_bytes, busy.busy_bytes, busy.busy_processes) = (1 << 30, 1 << 30, vec![41277]);
        assert_eq!(
            removed_text(&busy),
            "Removed 9 files, 2.00 GiB. 1.00 GiB is still in use by process 41277 and will be freed when it lets go."
        );
        busy.busy_processes.push(41278);
        assert!(removed_text(&busy).ends_with("in use by processes 41277, 41278 and will be freed when they let go."));
    }

    #[test]
    fn gc_tells_what_is_read_from_what_is_being_pulled() {
        let mut left = Removed::default();
        assert_eq!(freed_text(&left), "Nothing to free.");
        (left.filling_bytes, left.busy_processes) = (120 << 20, vec![41277]);
        assert_eq!(freed_text(&left), "Nothing to free. 120.00 MiB is being pulled by process 41277.");
        left.busy_bytes = 1 << 30;
        left.busy_processes.push(41278);
        assert_eq!(
            freed_text(&left),
            "Nothing to free. 1.00 GiB is in use and 120.00 MiB is being pulled by processes 41277, 41278."
        );
        left.filling_bytes = 0;
        assert!(freed_text(&left).ends_with(" 1.00 GiB is in use by processes 41277, 41278."));
    }

    #[test]
    fn what_is_being_pulled_stays_with_who_pulls_it() {
        let mut removed = Removed::default();
        (removed.filling_bytes, removed.busy_processes) = (120 << 20, vec![41277]);
        assert_eq!(
            removed_text(&removed),
            "Removed what was known of it; no complete file was here. \
             120.00 MiB of it is being pulled by process 41277, which goes on and keeps it."
        );
    }

    #[test]
    fn content_other_names_use_is_not_called_freed() {
        let mut shared = removed();
        (shared.freed_bytes, shared.shared_bytes) = (0, 2 << 30);
        assert_eq!(removed_text(&shared), "Removed 9 files, 2.00 GiB. 2.00 GiB of it stays: other names have the same content.");
    }

    #[test]
    fn the_command_that_confirms_removes_no_more_than_was_asked_for() {
        let spec = "me/model".parse().unwrap();
        let hint = |commits: &[CommitId]| not_confirmed(&spec, commits, &["*.md".to_owned()], &["Q8_0".to_owned()]);
        let all = "hint: model-cache rm me/model '*.md' --quant Q8_0 --yes\n";
        let alone = hint(&[]);
        assert_eq!(alone.code, Code::Usage);
        assert!(alone.text(false, render::Paint(false)).ends_with(&format!("nothing was removed\n{all}")));
        let commit = "ab".repeat(20);
        let both = hint(&[commit.parse().unwrap()]).text(false, render::Paint(false));
        assert!(both.ends_with(&format!("hint: model-cache rm me/model@{commit} '*.md' --quant Q8_0\n{all}")), "{both}");
    }
}
