//! Who is asking, and what they may not have. The refusals are worded as the Hub words them.

use hyper::header::{self, HeaderMap};

use crate::reply::Reply;
use crate::store::{Lookup, Served, Store};

/// The token that opens everything.
pub const GOOD_TOKEN: &str = "hf_good";

/// A valid token of someone on no gated repo's list and with no private repo.
pub const UNLISTED_TOKEN: &str = "hf_unlisted";

/// Who a request's `Authorization` says is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Anonymous,
    Good,
    Unlisted,
    /// A token that is none, or another scheme.
    Garbage,
}

impl Caller {
    pub(crate) fn of(headers: &HeaderMap) -> Caller {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Caller::Anonymous };
        match value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")) {
            Some(GOOD_TOKEN) => Caller::Good,
            Some(UNLISTED_TOKEN) => Caller::Unlisted,
            _ => Caller::Garbage,
        }
    }
}

/// What is wanted of a repo: gating closes bytes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Listing,
    Bytes,
}

pub(crate) fn bad_token() -> Reply {
    Reply::error(401, None, "Invalid credentials in Authorization header")
}

fn no_repo(caller: Caller) -> Reply {
    // Missing and private look the same, so that a stranger learns nothing.
    let status = if caller == Caller::Anonymous { 401 } else { 404 };
    Reply::error(status, Some("RepoNotFound"), "Repository not found")
}

fn gated(repo: &str, caller: Caller) -> Reply {
    let message = format!("Access to model {repo} is restricted.");
    let reply = match caller {
        Caller::Unlisted | Caller::Good => {
            Reply::text(403, format!("Access to model {repo} is restricted and you are not in the authorized list."))
        }
        Caller::Anonymous | Caller::Garbage => {
            Reply::text(401, format!("{message} You must have access to it and be authenticated to access it. Please log in."))
        }
    };
    reply.with("x-error-code", "GatedRepo").with("x-error-message", &message)
}

pub(crate) fn no_revision(revision: &str) -> Reply {
    Reply::error(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}"))
}

/// The missing-file answer; it names the commit, so that clients can note the absence.
pub(crate) fn no_entry(commit: &str) -> Reply {
    let reply = Reply::text(404, "Entry not found").with("x-error-code", "EntryNotFound");
    reply.with("x-error-message", "Entry not found").with("x-repo-commit", commit)
}

/// The repo if the caller may have what is wanted of it, else the refusal or the redirect to its present name.
///
/// `moved` makes a redirect's target from the canonical id.
pub(crate) fn admit<'a>(
    store: &'a Store,
    id: &str,
    caller: Caller,
    wanted: Wanted,
    moved: impl FnOnce(&str) -> String,
) -> Result<&'a Served, Box<Reply>> {
    let repo = match store.lookup(id) {
        Lookup::Found(repo) => repo,
        Lookup::Moved(canonical) => {
            let location = moved(canonical);
            let text = format!("Temporary Redirect. Redirecting to {location}");
            return Err(Box::new(Reply::text(307, text).with("location", &location)));
        }
        Lookup::Unknown if caller == Caller::Garbage => return Err(Box::new(bad_token())),
        Lookup::Unknown => return Err(Box::new(no_repo(caller))),
    };
    let closed = repo.gated.is_some() && wanted == Wanted::Bytes;
    let refusal = if repo.disabled {
        Reply::error(403, None, "Access to this resource is disabled.")
    } else if repo.private && matches!(caller, Caller::Anonymous | Caller::Unlisted) {
        no_repo(caller)
    } else if closed && caller != Caller::Good {
        gated(&repo.id, caller)
    } else if caller == Caller::Garbage {
        bad_token()
    } else {
        return Ok(repo);
    };
    Err(Box::new(refusal))
}
