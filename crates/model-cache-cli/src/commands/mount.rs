//! `mount`: the store as a folder, until somebody unmounts it.

use crate::{
    context::Context,
    exit::{Code, Failure},
    output, render,
};
use model_cache_mount::{Error, Holder, Mount, MountOptions, Unmounted};
use serde_json::json;
use std::path::PathBuf;
use tokio::task::JoinError;

pub(super) async fn mount(cx: &Context, folder: PathBuf, repos: Vec<String>, allow_other: bool) -> Result<Code, Failure> {
    let mut options = MountOptions { allow_other, ..MountOptions::default() };
    for repo in repos {
        options.repos.push(repo.parse()?);
    }
    let store = cx.store()?;
    let cache = cx.open_there().await?;
    let mounting = tokio::task::spawn_blocking(move || Mount::new(cache, &folder, options));
    let Some(mounted) = cx.interrupt.during(mounting).await else { return Err(cx.interrupt.failure()) };
    let mount = ended(mounted)?;
    let name = render::clean(&mount.folder().to_string_lossy());
    if mount.has_cleared_a_dead_mount() {
        cx.warn(&format!("{name} had a mount of a model-cache that was killed; it was taken away"));
    }
    if cx.global.json {
        output::json(&json!({
            "mounted": mount.folder().to_string_lossy(),
            "store": store.to_string_lossy(),
            "files": mount.files(),
            "size_bytes": mount.size_bytes(),
        }))?;
    }
    let (files, size) = (render::count(mount.files(), "file"), render::size(mount.size_bytes()));
    let store = render::clean(&store.to_string_lossy());
    cx.say(&format!("Mounted {store} on {name} (read-only): {files}, {size}; Ctrl-C unmounts"));
    let unmounter = mount.unmounter();
    let waiting = tokio::task::spawn_blocking(move || mount.wait());
    tokio::pin!(waiting);
    tokio::select! {
        // Somebody else unmounted it.
        result = &mut waiting => ended(result)?,
        () = cx.interrupt.token().cancelled_owned() => {
            if let Unmounted::InUse(holders) = ended(tokio::task::spawn_blocking(move || unmounter.unmount()).await)? {
                cx.say(&in_use(&name, &holders));
            }
            ended(waiting.await)?;
        }
    }
    cx.say(&format!("Unmounted {name}"));
    Ok(Code::Done)
}

/// What a thread of ours came to.
fn ended<T>(result: Result<Result<T, Error>, JoinError>) -> Result<T, Failure> {
    // The hook of `talk` said what happened.
    result.map_err(|_| Failure::new(Code::Other, "model-cache failed inside; this is a bug"))?.map_err(Failure::from)
}

/// Why a program that was to end goes on.
fn in_use(folder: &str, holders: &[Holder]) -> String {
    let named: Vec<_> =
        holders.iter().take(3).map(|holder| format!("{} ({})", holder.process, render::clean(&holder.name))).collect();
    let by = match holders.len() {
        0 => String::new(),
        1 => format!(" by process {}", named[0]),
        count if count > 3 => format!(" by processes {} and {} more", named.join(", "), count - 3),
        _ => format!(" by processes {}", named.join(", ")),
    };
    format!("{folder} is still in use{by}: it is unmounted for everybody else, and ends when that does; Ctrl-C again ends it now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_a_mount_busy_is_named_as_far_as_known() {
        let holder = |process| Holder { process, name: "python3".to_owned() };
        assert!(in_use("/m", &[]).starts_with("/m is still in use: it is unmounted"));
        assert!(in_use("/m", &[holder(7)]).starts_with("/m is still in use by process 7 (python3): "));
        let many: Vec<_> = (1..6).map(holder).collect();
        assert!(in_use("/m", &many).contains("by processes 1 (python3), 2 (python3), 3 (python3) and 2 more: "));
    }
}
