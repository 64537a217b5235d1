//! What a server sends: what is read of it can be written and read again, what it leads to may be gone to, and what is told of it is fit
//! to be shown.

use super::{
    api::{next_page, parse_info},
    auth::{is_endpoint, may_see_token},
    client::redirect_target,
    file::{Promise, covered_by_part},
    retry::{MAX_SERVER_WAIT, RetryPolicy},
    status::{Refusal, Subject, explain, explain_abroad, header},
    tree::{Listing, MAX_FILE_BYTES, TreeFile},
    wire::{ContentRange, digits, exhausted_for, info_url, parse_content_range, resolve_url, tree_url, unquote_etag},
};
use crate::{
    digest::Digest,
    error::Error,
    fuzz::{check_error, check_text},
    name::{CommitId, FilePath, RepoId, Revision},
};
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

const COMMIT: &str = "1234567890123456789012345678901234567890";
const SHA: &str = "sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";
/// In the query of each address: nobody is to see it.
const SECRET: &str = "X-Amz-Signature-5a4f";

fn url(text: &str) -> Url {
    text.parse().expect("an address")
}

fn commit() -> CommitId {
    COMMIT.parse().expect("a commit")
}

fn subject(path: Option<&str>) -> Subject {
    Subject {
        repo: "o/n".parse().expect("a repo"),
        revision: Revision::default(),
        path: path.map(|path| path.parse().expect("a path")),
    }
}

/// A body, of the kind that the first byte names: a model's info, pages of a listing with zeros between them, or an error's.
pub(crate) fn json(input: &[u8]) {
    let Some((&selector, body)) = input.split_first() else { return };
    match selector % 4 {
        0 => info(body),
        1 | 2 => listing(body),
        _ => {
            let Some((&[low, high], body)) = body.split_first_chunk() else { return };
            refusal(u16::from_le_bytes([low, high]) % 600, &HeaderMap::new(), body);
        }
    }
}

fn info(body: &[u8]) {
    let at_main = parse_info(body, &Revision::default());
    let at_commit = parse_info(body, &COMMIT.parse().expect("a revision"));
    match &at_main {
        Ok(info) => {
            assert_eq!(info.commit.as_str().parse().ok().as_ref(), Some(&info.commit));
            info.task.iter().chain(&info.library).for_each(|text| check_text(text));
        }
        Err(reason) => check_text(reason),
    }
    match at_commit {
        Ok(info) => assert!(info.commit == commit() && at_main == Ok(info)),
        Err(reason) => check_text(&reason),
    }
}

fn listing(body: &[u8]) {
    let mut listing = Listing::default();
    for page in body.split(|byte| *byte == 0) {
        if let Err(reason) = listing.add_page(page) {
            return check_text(&reason);
        }
    }
    let files = match listing.finish() {
        Ok(files) => files,
        Err(reason) => return check_text(&reason),
    };
    assert!(files.iter().all(|file| file.size_bytes <= MAX_FILE_BYTES));
    // Too many are not compared each with each.
    for (at, one) in files.iter().enumerate().take(64) {
        for other in files.iter().skip(at + 1).take(64) {
            let (one, other) = (one.path.as_str().to_lowercase(), other.path.as_str().to_lowercase());
            let inside = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
            assert!(one != other && !inside(&one, &other) && !inside(&other, &one), "{one} beside {other}");
        }
    }
    // Written as a Hub writes it, in two pages, it is the same.
    let mut again = Listing::default();
    let (first, second) = files.split_at(files.len() / 2);
    for page in [first, second] {
        again.add_page(page_of(page).as_bytes()).expect("a page written of files that were read");
    }
    assert_eq!(again.finish().as_ref(), Ok(&files));
}

fn page_of(files: &[TreeFile]) -> String {
    let entry = |file: &TreeFile| {
        let path = serde_json::to_string(file.path.as_str()).expect("text is JSON");
        let (size, hex) = (file.size_bytes, file.digest.hex());
        match file.digest {
            Digest::GitSha1(_) => format!(r#"{{"type":"file","path":{path},"size":{size},"oid":"{hex}"}}"#),
            Digest::Sha256(_) => {
                let lfs = format!(r#"{{"oid":"{hex}","size":{size}}}"#);
                format!(r#"{{"type":"file","path":{path},"size":{size},"oid":"{COMMIT}","lfs":{lfs}}}"#)
            }
        }
    };
    format!("[{}]", files.iter().map(entry).collect::<Vec<_>>().join(","))
}

/// The head of an answer: its status, what was asked for and where, and headers, a line each.
///
/// ```text
/// status u16 | first byte u16 | bytes u16 | bytes behind them u16 | host u8 | Name: value\n ..
/// ```
pub(crate) fn headers(input: &[u8]) {
    let Some((head, lines)) = input.split_first_chunk::<9>() else { return };
    let number = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let (status, asked) = (number(0) as u16 % 600, number(2)..number(2) + number(4) + 1);
    let size_bytes = asked.end + number(6);
    let endpoint = url("https://hub.example:8443/mirror");
    let at = match head[8] % 3 {
        0 => format!("https://hub.example:8443/mirror/o/n/resolve/{COMMIT}/f?sig={SECRET}"),
        1 => format!("https://huggingface.co/o/n/resolve/{COMMIT}/f?sig={SECRET}"),
        _ => format!("http://cdn.example/a/b?sig={SECRET}"),
    };
    let at = url(&at);
    let headers = parse_headers(lines);

    match redirect_target(&at, status, &headers) {
        Ok(Some(target)) => {
            assert!(matches!(target.scheme(), "http" | "https") && target.fragment().is_none());
            assert!(target.username().is_empty() && target.password().is_none());
            let is_hub = target.origin() == endpoint.origin()
                || ["https://huggingface.co", "https://hf.co"].contains(&target.origin().ascii_serialization().as_str());
            assert_eq!(may_see_token(&endpoint, &target), is_hub, "{target}");
        }
        Ok(None) => assert!(!matches!(status, 301 | 302 | 303 | 307 | 308)),
        Err(error) => check_no_secret(&error),
    }
    match next_page(&endpoint, &at, &headers) {
        Ok(link) => assert!(link.is_none_or(|link| is_endpoint(&endpoint, &link) && link.username().is_empty())),
        Err(error) => check_no_secret(&error),
    }
    match covered_by_part(&at, &headers, &asked) {
        Ok((range, total)) => {
            assert!(range.start == asked.start && range.start < range.end && range.end <= asked.end && range.end <= total);
        }
        Err(error) => check_no_secret(&error),
    }
    promise(&at, &headers, size_bytes);
    refusal(status, &headers, b"");
    for value in headers.values() {
        let Ok(text) = std::str::from_utf8(value.as_bytes()) else { continue };
        match parse_content_range(text) {
            Some(ContentRange::Bytes { range, total }) => {
                assert!(range.start < range.end && total.is_none_or(|total| range.end <= total));
                let total_text = total.map_or("*".to_owned(), |total| total.to_string());
                let written = format!("bytes {}-{}/{total_text}", range.start, range.end - 1);
                assert_eq!(parse_content_range(&written), Some(ContentRange::Bytes { range, total }));
            }
            Some(ContentRange::Unsatisfied { total }) => {
                assert_eq!(parse_content_range(&format!("bytes */{total}")), Some(ContentRange::Unsatisfied { total }));
            }
            None => {}
        }
        if let Some(wait) = exhausted_for(text) {
            assert_eq!(exhausted_for(&format!("\"x\";r=0;t={wait}")), Some(wait));
        }
        assert!(text.contains(unquote_etag(text)));
    }
}

/// Lines that can be headers, as many as an HTTP client takes.
fn parse_headers(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Headers that speak of another file than was promised are refused.
fn promise(at: &Url, headers: &HeaderMap, size_bytes: u64) {
    let (repo, commit, digest) = ("o/n".parse().expect("a repo"), commit(), SHA.parse().expect("a digest"));
    let file = TreeFile { path: "f".parse().expect("a path"), size_bytes, digest };
    for redirects in [true, false] {
        let mut promise = Promise { repo: &repo, commit: &commit, file: &file, commit_seen: false };
        if let Err(error) = promise.check(at, headers, redirects) {
            check_no_secret(&error);
            continue;
        }
        let named = header(headers, "x-repo-commit");
        assert_eq!(promise.commit_seen, named.is_some());
        assert!(named.is_none_or(|named| named.eq_ignore_ascii_case(COMMIT)));
        let linked = header(headers, "x-linked-etag").and_then(|etag| Digest::sha256_from_hex(unquote_etag(&etag)));
        assert!(linked.is_none_or(|linked| linked == digest));
        let linked = header(headers, "x-linked-size").map(|size| digits(size.trim()));
        assert!(linked.is_none_or(|linked| linked == Some(size_bytes)));
    }
}

/// What a refusal is told as is short and clean, and no server makes us wait for longer than we are willing to.
fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) {
    let endpoint = url("https://hub.example:8443/mirror");
    let at = url(&format!("https://hub.example:8443/mirror/o/n?sig={SECRET}"));
    for (path, token_source) in [(None, None), (Some("f"), Some("HF_TOKEN"))] {
        let refusal = Refusal { url: &at, status, headers, body, token_source };
        for error in [explain(&refusal, &endpoint, &subject(path)), explain_abroad(&refusal)] {
            check_no_secret(&error);
            if let Error::HubStatus { message, request_id, .. } = &error {
                request_id.iter().chain([message]).for_each(|text| check_text(text));
            }
            let wait = RetryPolicy::default().wait_after(1, &error, 0.5);
            assert!(wait.is_none_or(|wait| wait <= MAX_SERVER_WAIT && error.is_transient()));
        }
    }
}

fn check_no_secret(error: &Error) {
    check_error(error);
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
}

/// The addresses of a repo, a revision and a path are below the endpoint, and tell what they were made of.
pub(crate) fn check_urls(repo: &RepoId, revision: &Revision, path: &FilePath) {
    let endpoint = url("https://hub.example:8443/mirror");
    let commit = commit();
    for (address, prefix, last) in [
        (info_url(&endpoint, repo, revision), format!("/mirror/api/models/{repo}/revision/"), revision.as_str()),
        (tree_url(&endpoint, repo, &commit), format!("/mirror/api/models/{repo}/tree/"), COMMIT),
        (resolve_url(&endpoint, repo, &commit, path), format!("/mirror/{repo}/resolve/{COMMIT}/"), path.as_str()),
    ] {
        assert!(is_endpoint(&endpoint, &address) && address.fragment().is_none(), "{address}");
        let tail = address.path().strip_prefix(&prefix).unwrap_or_else(|| panic!("{address} is not below {prefix}"));
        assert_eq!(percent_decode_str(tail).decode_utf8().expect("it was text"), last);
    }
}
