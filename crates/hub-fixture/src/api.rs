//! The JSON side of the Hub: model info, tree, refs, paths-info, whoami.

use std::sync::Arc;

use hyper::header;
use serde_json::{Map, Value, json};

use crate::access::{Caller, Wanted, no_entry, no_revision};
use crate::faults::Fault;
use crate::origin::{Answer, Call, Origin};
use crate::reply::Reply;
use crate::route;
use crate::store::{Commit, DATE, Served};

/// Entries per page of an expanded listing, as on the Hub.
const EXPANDED_PAGE: usize = 50;

/// Keeps clients from reading a position out of a cursor.
const CURSOR_MASK: u64 = 0x5bd1_e995_7ac3_01f7;

impl Origin {
    pub(crate) fn info(&self, call: &Call<'_>, revision: Option<&str>) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Listing)?;
        let revision = revision.unwrap_or("main");
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        let query = route::pairs(call.query);
        let info = info_of(repo, &commit, route::flag(&query, "blobs"));
        let named: Vec<&str> = query.iter().filter(|(key, _)| key == "expand").map(|(_, value)| value.as_str()).collect();
        if named.is_empty() {
            return Ok(Reply::json(&info.into()));
        }
        let kept = info.into_iter().filter(|(key, _)| matches!(key.as_str(), "_id" | "id") || named.contains(&key.as_str()));
        Ok(Reply::json(&Value::Object(kept.collect())))
    }

    pub(crate) fn tree(&self, call: &Call<'_>, revision: &str, directory: &str) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Listing)?;
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        if !commit.directories.contains_key(directory) {
            return Err(no_entry(&commit.id).into());
        }
        let query = route::pairs(call.query);
        let expand = route::flag(&query, "expand");
        let mut rows = commit.rows(directory, route::flag(&query, "recursive"));
        if expand {
            rows.iter_mut().for_each(|row| expand_row(row, &commit));
        }
        let page = if expand { self.page_entries.min(EXPANDED_PAGE) } else { self.page_entries };
        let start = match query.iter().find(|(key, _)| key == "cursor") {
            None => 0,
            Some((_, cursor)) => match u64::from_str_radix(cursor, 16) {
                Ok(masked) => (masked ^ CURSOR_MASK) as usize,
                Err(_) => return Err(Reply::error(400, None, "Invalid cursor").into()),
            },
        };
        let endless = call.strike(|fault| if let Fault::EndlessPaging { fresh } = fault { Some(*fresh) } else { None });
        let rows: Vec<Value> = match endless {
            Some(true) => (start..start + page.min(100)).map(unheard_of).collect(),
            Some(false) => rows.into_iter().take(page).collect(),
            None => {
                let more = rows.len().saturating_sub(start) > page;
                let rows = rows.into_iter().skip(start).take(page).collect();
                if !more {
                    return Ok(Reply::json(&Value::Array(rows)));
                }
                rows
            }
        };
        let kept = call.query.split('&').filter(|part| !part.is_empty() && !part.starts_with("cursor="));
        let cursor = format!("cursor={:016x}", (start + page) as u64 ^ CURSOR_MASK);
        let query = kept.chain([cursor.as_str()]).collect::<Vec<_>>().join("&");
        let (scheme, own_host) = self.hub_base.split_once("://").unwrap_or_default();
        let host = call.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(own_host);
        let link = format!("<{scheme}://{host}{}?{query}>; rel=\"next\"", call.path);
        Ok(Reply::json(&Value::Array(rows)).with("link", &link))
    }

    pub(crate) fn refs(&self, call: &Call<'_>) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Listing)?;
        let listed = |prefix: &str| -> Vec<Value> {
            let named = repo.refs.iter().filter_map(|(full, commit)| Some((full, full.strip_prefix(prefix)?, commit)));
            named.map(|(full, name, commit)| json!({"name": name, "ref": full, "targetCommit": commit.id})).collect()
        };
        let pull_requests = if route::flag(&route::pairs(call.query), "include_prs") { listed("refs/pr/") } else { Vec::new() };
        Ok(Reply::json(&json!({
            "branches": listed("refs/heads/"),
            "converts": listed("refs/convert/"),
            "tags": listed("refs/tags/"),
            "pullRequests": pull_requests,
        })))
    }

    pub(crate) fn paths_info(&self, call: &Call<'_>, revision: &str) -> Answer {
        let store = self.store();
        let repo = self.admit(&store, call, Wanted::Listing)?;
        let commit = repo.commit(revision).ok_or_else(|| no_revision(revision))?;
        let (paths, expand) = asked_paths(call).ok_or_else(|| Reply::error(400, None, "Invalid paths"))?;
        let mut rows = commit.rows("", true);
        rows.retain(|row| paths.iter().any(|path| row["path"] == path.as_str()));
        if expand {
            rows.iter_mut().for_each(|row| expand_row(row, &commit));
        }
        Ok(Reply::json(&Value::Array(rows)))
    }

    pub(crate) fn who_am_i(&self, call: &Call<'_>) -> Answer {
        let name = match call.caller {
            Caller::Good => "tester",
            Caller::Unlisted => "stranger",
            Caller::Anonymous | Caller::Garbage => {
                return Err(Reply::error(401, None, "Invalid username or password.").into());
            }
        };
        let auth = json!({"type": "access_token", "accessToken": {"role": "read"}});
        Ok(Reply::json(&json!({"type": "user", "name": name, "auth": auth, "orgs": []})))
    }
}

fn info_of(repo: &Served, commit: &Arc<Commit>, blobs: bool) -> Map<String, Value> {
    let mut info = Map::new();
    let mut set = |key: &str, value: Value| info.insert(key.to_owned(), value);
    set("_id", commit.id[..24].into());
    set("id", repo.id.as_str().into());
    set("modelId", repo.id.as_str().into());
    set("author", repo.id.split('/').next().into());
    set("sha", commit.id.as_str().into());
    set("lastModified", DATE.into());
    set("createdAt", DATE.into());
    set("private", repo.private.into());
    set("gated", repo.gated.as_deref().map_or(false.into(), Into::into));
    set("disabled", repo.disabled.into());
    set("downloads", 0.into());
    set("likes", 0.into());
    set("tags", json!([]));
    set("usedStorage", commit.files.values().map(|entry| entry.size).sum::<u64>().into());
    set("siblings", commit.files.values().map(|entry| entry.sibling(blobs)).collect::<Vec<_>>().into());
    for (key, value) in &repo.meta {
        set(key, value.clone());
    }
    info
}

fn expand_row(row: &mut Value, commit: &Commit) {
    row["lastCommit"] = json!({"id": commit.id, "title": "import", "date": DATE});
    if row["type"] == "file" {
        row["securityFileStatus"] = json!({"status": "safe", "avScan": null, "pickleImportScan": null});
    }
}

/// A tree row of a file no repo has, for listings without end.
fn unheard_of(number: usize) -> Value {
    json!({"type": "file", "oid": format!("{number:040x}"), "size": 1, "path": format!("endless/{number:09}.txt")})
}

/// The paths of a paths-info request, and whether to expand: a form from Python, JSON from Rust.
fn asked_paths(call: &Call<'_>) -> Option<(Vec<String>, bool)> {
    let kind = call.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/json") {
        let body: Value = serde_json::from_slice(call.body).ok()?;
        let paths = match body.get("paths")? {
            Value::String(path) => vec![path.clone()],
            Value::Array(paths) => paths.iter().map(|path| path.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            _ => return None,
        };
        return Some((paths, body.get("expand").and_then(Value::as_bool).unwrap_or(false)));
    }
    let form = route::pairs(std::str::from_utf8(call.body).ok()?);
    let expand = route::flag(&form, "expand");
    Some((form.into_iter().filter(|(key, _)| key == "paths").map(|(_, path)| path).collect(), expand))
}
