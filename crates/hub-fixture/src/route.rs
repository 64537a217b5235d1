//! From a raw URL to what is meant by it. Knows the Hub's grammar only, not which repos exist.

use std::ops::Range;

use percent_encoding::percent_decode_str;

/// What a URL of the Hub names. Every part is decoded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Route {
    /// `/api/models/{repo}` and `/api/models/{repo}/revision/{revision}`.
    Info { revision: Option<String> },
    /// `/api/models/{repo}/tree/{revision}[/{directory}]`.
    Tree { revision: String, directory: String },
    /// `/api/models/{repo}/refs`.
    Refs,
    /// `/api/models/{repo}/paths-info/{revision}`.
    PathsInfo { revision: String },
    /// `/{repo}/resolve/{revision}/{path}`.
    Resolve { revision: String, path: String },
    /// `/{repo}/raw/{revision}/{path}`: bytes as git has them.
    Raw { revision: String, path: String },
    /// `/api/resolve-cache/models/{repo}/{commit}/{path}`.
    ResolveCache { commit: String, path: String },
    /// `/api/whoami-v2`.
    WhoAmI,
    /// Anything else.
    Unknown,
}

/// A route, and the repo it lies in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) route: Route,
    /// Decoded id; empty where the route has none.
    pub(crate) repo: String,
    /// Where the id stands in the raw path, for redirects that replace it.
    pub(crate) repo_at: Range<usize>,
}

impl Parsed {
    fn new(path: &str, route: Route, repo: &[&str]) -> Parsed {
        let (Some(first), Some(last)) = (repo.first(), repo.last()) else {
            return Parsed { route, repo: String::new(), repo_at: 0..0 };
        };
        // The segments are slices of `path`, so their addresses say where they stand.
        let start = first.as_ptr() as usize - path.as_ptr() as usize;
        let end = last.as_ptr() as usize - path.as_ptr() as usize + last.len();
        Parsed { route, repo: decode(&path[start..end]), repo_at: start..end }
    }
}

pub(crate) fn decode(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn join(segments: &[&str]) -> String {
    decode(&segments.join("/"))
}

/// The position of the verb after a repo id of two segments, or of one.
fn verb_at(segments: &[&str], verbs: &[&str]) -> Option<usize> {
    [2, 1].into_iter().find(|&i| segments.get(i).is_some_and(|segment| verbs.contains(segment)))
}

/// A revision at the head of `segments`, and the rest. It is one encoded segment, but a bare `refs/pr/1` is understood too.
fn revision<'s, 'a>(segments: &'s [&'a str]) -> Option<(String, &'s [&'a str])> {
    let len = if segments.first() == Some(&"refs") && segments.len() >= 3 { 3 } else { 1 };
    let revision = join(segments.get(..len)?);
    if revision.is_empty() { None } else { Some((revision, &segments[len..])) }
}

/// Parses the raw path of a request to the Hub, without its query.
pub(crate) fn parse(path: &str) -> Parsed {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (route, repo): (Option<Route>, &[&str]) = match segments.as_slice() {
        ["api", "whoami-v2"] => (Some(Route::WhoAmI), &[]),
        ["api", "models", rest @ ..] => api(rest),
        ["api", "resolve-cache", "models", rest @ ..] if rest.len() >= 4 => {
            (Some(Route::ResolveCache { commit: decode(rest[2]), path: join(&rest[3..]) }), &rest[..2])
        }
        ["api", ..] => (None, &[]),
        rest => site(rest),
    };
    Parsed::new(path, route.unwrap_or(Route::Unknown), repo)
}

fn api<'s, 'a>(rest: &'s [&'a str]) -> (Option<Route>, &'s [&'a str]) {
    let Some(at) = verb_at(rest, &["revision", "tree", "refs", "paths-info"]) else {
        let whole = matches!(rest, [_] | [_, _]) && rest.iter().all(|segment| !segment.is_empty());
        return if whole { (Some(Route::Info { revision: None }), rest) } else { (None, &[]) };
    };
    let after = &rest[at + 1..];
    let route = match rest[at] {
        "revision" => Some(Route::Info { revision: Some(join(after)) }),
        "paths-info" => Some(Route::PathsInfo { revision: join(after) }),
        "refs" => after.is_empty().then_some(Route::Refs),
        _ => revision(after)
            .map(|(revision, directory)| Route::Tree { revision, directory: join(directory).trim_matches('/').to_owned() }),
    };
    (route, &rest[..at])
}

fn site<'s, 'a>(rest: &'s [&'a str]) -> (Option<Route>, &'s [&'a str]) {
    let Some(at) = verb_at(rest, &["resolve", "raw"]) else { return (None, &[]) };
    let route = revision(&rest[at + 1..]).filter(|(_, path)| !path.is_empty()).map(|(revision, path)| {
        let path = join(path);
        if rest[at] == "raw" { Route::Raw { revision, path } } else { Route::Resolve { revision, path } }
    });
    (route, &rest[..at])
}

/// `(name, value)` pairs of a query or a form, decoded; `+` is a space in both.
pub(crate) fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| decode(&part.replace('+', " "));
    let parts = text.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, ""))).map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Whether a parameter is given and true; `True` and `1` count, as the Hub's older clients send them.
pub(crate) fn flag(pairs: &[(String, String)], name: &str) -> bool {
    pairs.iter().any(|(key, value)| key == name && (value.eq_ignore_ascii_case("true") || value == "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn urls_mean_what_the_hub_means_by_them() {
        let resolve = |revision: &str, path: &str| Route::Resolve { revision: text(revision), path: text(path) };
        let tree = |revision: &str, directory: &str| Route::Tree { revision: text(revision), directory: text(directory) };
        for (path, repo, route) in [
            ("/api/models/o/n", "o/n", Route::Info { revision: None }),
            ("/api/models/gpt2", "gpt2", Route::Info { revision: None }),
            ("/api/models/o/n/revision/dev%2Fx", "o/n", Route::Info { revision: Some(text("dev/x")) }),
            ("/api/models/gpt2/revision/main", "gpt2", Route::Info { revision: Some(text("main")) }),
            ("/api/models/o/n/refs", "o/n", Route::Refs),
            ("/api/models/o/n/tree/refs%2Fpr%2F1", "o/n", tree("refs/pr/1", "")),
            ("/api/models/o/n/tree/refs/pr/1/a/b", "o/n", tree("refs/pr/1", "a/b")),
            ("/api/models/o/n/tree/main/a%2Fb", "o/n", tree("main", "a/b")),
            ("/o/n/resolve/main/a/b%20c+d.txt", "o/n", resolve("main", "a/b c+d.txt")),
            ("/o/n/resolve/refs/pr/1/f", "o/n", resolve("refs/pr/1", "f")),
            ("/gpt2/resolve/main/f", "gpt2", resolve("main", "f")),
            ("/o/n/raw/main/f", "o/n", Route::Raw { revision: text("main"), path: text("f") }),
            ("/api/resolve-cache/models/o/n/main/a/b", "o/n", Route::ResolveCache { commit: text("main"), path: text("a/b") }),
            ("/api/agent-harnesses", "", Route::Unknown),
            ("/o/n/resolve/main", "o/n", Route::Unknown),
            ("/", "", Route::Unknown),
        ] {
            let parsed = parse(path);
            assert_eq!((&parsed.route, parsed.repo.as_str()), (&route, repo), "{path}");
            assert_eq!(decode(&path[parsed.repo_at]), repo, "{path}");
        }
    }
}
