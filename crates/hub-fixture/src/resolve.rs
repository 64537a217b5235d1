//! From a file's name to its bytes on the Hub: redirects for `/resolve/`, bytes for `/raw/` and the resolve cache.

use hyper::header::{self, HeaderMap};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::access::{Wanted, no_entry, no_revision};
use crate::faults::Fault;
use crate::git;
use crate::origin::{Answer, Call, Origin};
use crate::reply::Reply;

/// Python's `quote`: everything but letters, digits, `_.-~` and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b'/');

/// [`PATH`], and the slash too: one segment or one query value.
pub(crate) const SEGMENT: &AsciiSet = &PATH.add(b'/');

impl Origin {
    /// 302 to the CDN for an LFS file, 307 to the resolve cache for one git holds.
    pub(crate) fn resolve(&self, call: &Call<'_>, revision: &str, path: &str) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Bytes)?;
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        let entry = commit.files.get(path).ok_or_else(|| no_entry(&commit.id))?;
        let wrong = call.strike(|fault| if let Fault::WrongEtag(etag) = fault { Some(etag.clone()) } else { None });
        let etag = format!("\"{}\"", wrong.as_deref().unwrap_or(entry.etag()));
        let wrong = call.strike(|fault| if let Fault::WrongLinkedSize(size) = fault { Some(*size) } else { None });
        let size = wrong.unwrap_or(entry.size);
        if is_known(call.headers, &etag) {
            return Ok(Reply::text(304, "").with("etag", &etag).with("x-repo-commit", &commit.id));
        }
        let (status, location) = match &entry.sha256 {
            Some(sha256) => (302, self.sign(sha256, &repo.id, path)),
            None => {
                let path = utf8_percent_encode(path, PATH);
                let location = format!("/api/resolve-cache/models/{}/{}/{path}?etag=%22{}%22", repo.id, commit.id, entry.etag());
                (307, location)
            }
        };
        let verb = if status == 302 { "Found" } else { "Temporary Redirect" };
        let mut reply = Reply::text(status, format!("{verb}. Redirecting to {location}"))
            .with("location", &location)
            .with("x-repo-commit", &commit.id)
            .with("x-linked-etag", &etag)
            .with("x-linked-size", &size.to_string())
            .with("accept-ranges", "bytes");
        if entry.sha256.is_some() {
            reply = reply.with("etag", &etag);
        }
        Ok(reply)
    }

    /// The bytes of a file at a full commit id.
    pub(crate) fn resolve_cache(&self, call: &Call<'_>, revision: &str, path: &str) -> Answer {
        if revision.len() != 40 || !revision.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Reply::error(400, None, "Invalid commit hash").into());
        }
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Bytes)?;
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        let entry = commit.files.get(path).ok_or_else(|| no_entry(&commit.id))?;
        let etag = format!("\"{}\"", entry.etag());
        let known = is_known(call.headers, &etag);
        let reply = if known { Reply::text(304, "") } else { Reply::file("text/plain; charset=utf-8", entry.content.clone()) };
        Ok(reply.with("etag", &etag).with("x-repo-commit", &commit.id))
    }

    /// The bytes git has: of an LFS file, its pointer.
    pub(crate) fn raw(&self, call: &Call<'_>, revision: &str, path: &str) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Bytes)?;
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        let entry = commit.files.get(path).ok_or_else(|| no_entry(&commit.id))?;
        let content = match &entry.sha256 {
            Some(sha256) => git::lfs_pointer(sha256, entry.size).into(),
            None => entry.content.clone(),
        };
        let reply = Reply::file("text/plain; charset=utf-8", content);
        Ok(reply.with("etag", &format!("\"{}\"", entry.oid)).with("x-repo-commit", &commit.id))
    }
}

/// Whether the caller says it has the content of this (quoted) etag.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(',').any(|one| one.trim().trim_start_matches("W/") == etag)
}
