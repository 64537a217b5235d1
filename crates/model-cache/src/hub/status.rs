//! An answer that is no success, as an [`Error`]: the Hub's own error code first, then the status.

use super::{
    field::Field,
    wire::{digits, exhausted_for, seconds_until, shown},
};
use crate::{
    error::Error,
    name::{FilePath, RepoId, Revision, printable},
};
use reqwest::header::HeaderMap;
use serde::{Deserialize, de::IgnoredAny};
use std::time::Duration;
use url::Url;

/// What was asked for, so that an error can name it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) repo: RepoId,
    pub(super) revision: Revision,
    /// The file, if one was asked for and not the repo.
    pub(super) path: Option<FilePath>,
}

/// The answer to be explained.
pub(super) struct Refusal<'a> {
    pub(super) url: &'a Url,
    pub(super) status: u16,
    pub(super) headers: &'a HeaderMap,
    /// As much of the body as was read.
    pub(super) body: &'a [u8],
    /// Where the token that was sent came from, if one was.
    pub(super) token_source: Option<&'a str>,
}

/// Why the Hub at `endpoint` refused to show `subject`.
///
/// The table of huggingface_hub's `hf_raise_for_status` (`utils/_http.py`). Where a mirror sends no `X-Error-Code`, a 404 means
/// the file or the repo asked for, and a 401 a repo that is missing or private, unless it speaks of the credentials.
pub(super) fn explain(refusal: &Refusal<'_>, endpoint: &Url, subject: &Subject) -> Error {
    let Refusal { url, status, headers, token_source, .. } = *refusal;
    let message = message(headers, refusal.body);
    let token_source = token_source.map(str::to_owned);
    let repo = subject.repo.clone();
    let repo_not_found = |token_source| Error::RepoNotFound { repo: repo.clone(), endpoint: shown(endpoint), token_source };
    let file_not_found = |path: &FilePath| Error::FileNotFound {
        repo: repo.clone(),
        commit: subject.revision.as_commit(),
        path: path.as_str().to_owned(),
    };
    match (header(headers, "x-error-code").as_deref(), status, &subject.path) {
        (Some("RepoNotFound"), ..) => repo_not_found(token_source),
        (Some("GatedRepo"), ..) => Error::Gated { repo, token_source },
        (Some("RevisionNotFound"), ..) => Error::RevisionNotFound { repo, revision: subject.revision.clone() },
        (Some("EntryNotFound"), _, Some(path)) | (None, 404, Some(path)) => file_not_found(path),
        (_, 429, _) => Error::RateLimited { endpoint: shown_origin(url), retry_after: asked_wait(headers) },
        (_, 403, _) if message == "Access to this resource is disabled." => Error::Disabled { repo },
        (None, 401, _) => match token_source {
            Some(token_source) if speaks_of_credentials(&message) => Error::BadToken { endpoint: shown(endpoint), token_source },
            token_source => repo_not_found(token_source),
        },
        (None, 404, None) => repo_not_found(token_source),
        _ => hub_status(refusal, &message),
    }
}

/// Why a host that is not the Hub refused to send bytes: it knows no repos, so only the status counts.
pub(super) fn explain_abroad(refusal: &Refusal<'_>) -> Error {
    if refusal.status == 429 {
        return Error::RateLimited { endpoint: shown_origin(refusal.url), retry_after: asked_wait(refusal.headers) };
    }
    hub_status(refusal, &message(refusal.headers, refusal.body))
}

fn hub_status(refusal: &Refusal<'_>, message: &str) -> Error {
    Error::HubStatus {
        url: shown(refusal.url),
        status: refusal.status,
        message: printable(message),
        request_id: header(refusal.headers, "x-request-id").map(|id| printable(&id)),
        retry_after: asked_wait(refusal.headers),
    }
}

/// A header's text, whatever its bytes.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// How long a refusal asks to wait: until the exhausted window resets, and a second; else what `Retry-After` says, in seconds or
/// as a date. A date that is past asks for nothing: its server's clock is another than ours.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let until_reset = header(headers, "ratelimit").and_then(|limit| exhausted_for(&limit)).map(|t| t.saturating_add(1));
    let asked = || {
        let text = header(headers, "retry-after")?;
        digits(text.trim()).or_else(|| seconds_until(&text, chrono::Utc::now()))
    };
    until_reset.or_else(asked).map(Duration::from_secs)
}

/// Whether a 401's message blames the token and not the repo.
fn speaks_of_credentials(message: &str) -> bool {
    message.starts_with("Invalid credentials") || message.starts_with("Invalid username or password")
}

/// The server's own words: `X-Error-Message`, else `error` or `message` of a JSON body, else the body, unless it is HTML.
/// At most 200 characters; not yet escaped.
fn message(headers: &HeaderMap, body: &[u8]) -> String {
    let words = header(headers, "x-error-message").unwrap_or_else(|| {
        if serde_json::from_slice::<IgnoredAny>(body).is_ok() {
            let said: Said<'_> = serde_json::from_slice(body).unwrap_or_default();
            return said.error.as_str().or(said.message.as_str()).unwrap_or_default().to_owned();
        }
        let text = String::from_utf8_lossy(body);
        if text.trim_start().starts_with('<') { String::new() } else { text.into_owned() }
    });
    words.trim().chars().take(200).collect()
}

/// The JSON body of an error, as much of it as is read.
#[derive(Default, Deserialize)]
struct Said<'a> {
    #[serde(default, borrow)]
    error: Field<'a>,
    #[serde(default, borrow)]
    message: Field<'a>,
}

fn shown_origin(url: &Url) -> String {
    printable(&url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn explained(status: u16, headers: &[(&str, &str)], body: &str, path: Option<&str>, token: Option<&str>) -> Error {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect();
        let subject = Subject {
            repo: "o/n".parse().unwrap(),
            revision: "main".parse().unwrap(),
            path: path.map(|path| path.parse().unwrap()),
        };
        let refusal = Refusal {
            url: &"https://hub.example/o/n?sig=s3cret".parse().unwrap(),
            status,
            headers: &headers,
            body: body.as_bytes(),
            token_source: token,
        };
        explain(&refusal, &"https://hub.example/".parse().unwrap(), &subject)
    }

    #[test]
    fn the_error_code_decides_before_the_status() {
        let code = |code, status, path, token| explained(status, &[("X-Error-Code", code)], "", path, token);
        for status in [401, 403, 404] {
            assert!(
                matches!(code("RepoNotFound", status, None, Some("HF_TOKEN")), Error::RepoNotFound { token_source: Some(t), .. } if t == "HF_TOKEN")
            );
            assert!(matches!(code("GatedRepo", status, Some("f"), None), Error::Gated { token_source: None, .. }));
            assert!(matches!(code("RevisionNotFound", status, None, None), Error::RevisionNotFound { .. }));
            assert!(matches!(code("EntryNotFound", status, Some("f"), None), Error::FileNotFound { path, .. } if path == "f"));
        }
        assert!(matches!(code("EntryNotFound", 404, None, None), Error::HubStatus { status: 404, .. }));
        assert!(matches!(code("SomethingNew", 404, Some("f"), None), Error::HubStatus { status: 404, .. }));
    }

    #[test]
    fn without_a_code_the_status_and_the_words_decide() {
        let invalid = "Invalid credentials in Authorization header";
        let said = |status, message, token| explained(status, &[("X-Error-Message", message)], "", None, token);
        assert!(
            matches!(said(401, invalid, Some("HF_TOKEN")), Error::BadToken { token_source, .. } if token_source == "HF_TOKEN")
        );
        assert!(matches!(said(401, invalid, None), Error::RepoNotFound { .. }));
        assert!(matches!(said(401, "", Some("HF_TOKEN")), Error::RepoNotFound { .. }));
        assert!(matches!(said(403, "Access to this resource is disabled.", None), Error::Disabled { .. }));
        assert!(matches!(said(403, "Forbidden", None), Error::HubStatus { status: 403, .. }));
        assert!(matches!(explained(404, &[], "", None, None), Error::RepoNotFound { .. }));
        assert!(matches!(explained(404, &[], "", Some("f"), None), Error::FileNotFound { .. }));
        for status in [408, 500, 502, 503, 504] {
            assert!(explained(status, &[], "", None, None).is_transient());
        }
        for status in [400, 418, 501] {
            assert!(!explained(status, &[], "", None, None).is_transient());
        }
    }

    #[test]
    fn a_rate_limit_says_how_long() {
        let waits = |headers: &[(&str, &str)]| match explained(429, headers, "", None, None) {
            Error::RateLimited { retry_after, endpoint } => {
                assert_eq!(endpoint, "https://hub.example");
                retry_after.map(|wait| wait.as_secs())
            }
            other => panic!("{other}"),
        };
        assert_eq!(waits(&[("RateLimit", r#""api";r=0;t=55"#), ("Retry-After", "3")]), Some(56));
        assert_eq!(waits(&[("RateLimit", r#""api";r=9;t=55"#), ("Retry-After", "3")]), Some(3));
        assert_eq!(waits(&[("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")]), None);
        let in_an_hour = (chrono::Utc::now() + chrono::TimeDelta::hours(1)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!((3500..=3600).contains(&waits(&[("Retry-After", &in_an_hour)]).unwrap()));
        assert_eq!(waits(&[("RateLimit", r#""api";r=0;t=18446744073709551615"#)]), Some(u64::MAX));
        assert_eq!(waits(&[]), None);
    }

    #[test]
    fn a_server_in_trouble_may_say_how_long_too() {
        let wait = |headers: &[(&str, &str)]| match explained(503, headers, "", None, None) {
            Error::HubStatus { retry_after, .. } => retry_after.map(|wait| wait.as_secs()),
            other => panic!("{other}"),
        };
        assert_eq!((wait(&[("Retry-After", "7")]), wait(&[])), (Some(7), None));
    }

    #[test]
    fn a_servers_words_are_cut_escaped_and_never_html() {
        let text = |headers: &[(&str, &str)], body: &str| explained(500, headers, body, None, None).to_string();
        assert_eq!(
            text(&[], r#"{"error":"out of\u001b[31m order"}"#),
            "https://hub.example/o/n answered 500: out of\\u{1b}[31m order"
        );
        assert_eq!(text(&[], "<!DOCTYPE html><p>x"), "https://hub.example/o/n answered 500");
        assert!(text(&[], &"x".repeat(10_000)).chars().count() < 260);
        assert!(text(&[("X-Error-Message", "müde")], "").ends_with("müde"));
        let with_id = explained(500, &[("X-Request-Id", "Root=1")], "", None, None);
        assert!(matches!(with_id, Error::HubStatus { request_id: Some(id), .. } if id == "Root=1"));
    }
}
