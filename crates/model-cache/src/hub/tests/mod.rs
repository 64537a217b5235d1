//! The client against servers that answer from a script: what the protocol allows, and what it does not.

mod answers;
mod files;
mod origins;
mod secrets;
pub(in crate::hub) mod server;

use self::server::{Scripted, Seen, answer, client, config};
use super::*;
use crate::{
    digest::Digest,
    error::{Error, Result},
    name::{CommitId, RepoId, Revision},
};
use serde_json::json;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const COMMIT: &str = "1234567890123456789012345678901234567890";
const OTHER: &str = "abcdefabcdefabcdefabcdefabcdefabcdefabcd";
const GIT: &str = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad";
const SHA: &str = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";
const BYTES: &[u8] = b"hello world\n";

fn repo() -> RepoId {
    "org/name".parse().unwrap()
}

fn commit() -> CommitId {
    COMMIT.parse().unwrap()
}

fn lfs_file() -> TreeFile {
    TreeFile { path: "a b.gguf".parse().unwrap(), size_bytes: 12, digest: Digest::sha256_from_hex(SHA).unwrap() }
}

fn git_file() -> TreeFile {
    TreeFile { digest: Digest::git_sha1_from_hex(GIT).unwrap(), ..lfs_file() }
}

async fn info(hub: &HubClient) -> Result<ModelInfo> {
    hub.model_info(&repo(), &Revision::default(), &|_| {}).await
}

async fn list(hub: &HubClient) -> Result<Vec<TreeFile>> {
    hub.list_tree(&repo(), &commit(), &|_| {}).await
}

async fn resolve(hub: &HubClient, file: &TreeFile) -> Result<Location> {
    hub.resolve(&repo(), &commit(), file, &|_| {}).await
}

async fn open(hub: &HubClient, location: &Location, range: std::ops::Range<u64>) -> Result<RangeBody> {
    match hub.get_range(location, range).await? {
        RangeOutcome::Body(body) => Ok(body),
        RangeOutcome::Expired(error) => panic!("expired: {error}"),
    }
}

async fn read(mut body: RangeBody) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn bearer(seen: &Seen) -> bool {
    seen.headers.contains_key("authorization")
}

/// The reason of a `BadAnswer`.
fn bad<T>(result: Result<T>) -> String {
    match result {
        Err(Error::BadAnswer { reason, .. }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

/// A server of a file's bytes with ranges, as a mirror without redirects has it.
fn plain_mirror(seen: &Seen) -> Vec<u8> {
    let mut headers =
        vec![("X-Repo-Commit", COMMIT), ("ETag", "\"a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447\"")];
    let Some(range) = seen.headers.get("range") else { return answer(seen, "200 OK", &headers, BYTES) };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let content_range = format!("bytes {first}-{last}/{}", BYTES.len());
    headers.push(("Content-Range", &content_range));
    answer(seen, "206 Partial Content", &headers, &BYTES[first..=last])
}

/// A location on a CDN that answers GETs by `script`, and the client to read it with.
async fn on_cdn(script: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> (HubClient, Location) {
    let cdn = Scripted::start(script);
    let hub = Scripted::start(move |seen| {
        answer(seen, "302 Found", &[("Location", &format!("{}/blob?sig=s3cret", cdn.url)), ("X-Repo-Commit", COMMIT)], b"")
    });
    let client = client(&hub.url, true);
    let location = resolve(&client, &lfs_file()).await.unwrap();
    (client, location)
}
