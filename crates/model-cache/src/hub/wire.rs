//! The protocol's small grammars as functions of values: headers read, URLs written. Nothing here touches the network.

use crate::name::{CommitId, FilePath, RepoId, Revision, printable};
use chrono::{DateTime, NaiveDateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::ops::Range;
use url::Url;

/// Everything but RFC 3986's unreserved characters, as `urllib.parse.quote(safe="")` has it: also `/` and `+`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One path segment, percent-encoded: `refs/pr/1` becomes `refs%2Fpr%2F1`.
pub(super) fn encode_segment(segment: &str) -> String {
    utf8_percent_encode(segment, SEGMENT).to_string()
}

/// A file path with each part encoded and its slashes kept.
pub(super) fn encode_path(path: &FilePath) -> String {
    path.as_str().split('/').map(encode_segment).collect::<Vec<_>>().join("/")
}

/// `{endpoint}/api/models/{repo}/revision/{revision}`
pub(super) fn info_url(endpoint: &Url, repo: &RepoId, revision: &Revision) -> Url {
    below(endpoint, &format!("api/models/{repo}/revision/{}", encode_segment(revision.as_str())))
}

/// `{endpoint}/api/models/{repo}/tree/{commit}?recursive=true&expand=false`: the first page of the listing.
pub(super) fn tree_url(endpoint: &Url, repo: &RepoId, commit: &CommitId) -> Url {
    let mut url = below(endpoint, &format!("api/models/{repo}/tree/{commit}"));
    url.set_query(Some("recursive=true&expand=false"));
    url
}

/// `{endpoint}/{repo}/resolve/{commit}/{path}`
pub(super) fn resolve_url(endpoint: &Url, repo: &RepoId, commit: &CommitId, path: &FilePath) -> Url {
    below(endpoint, &format!("{repo}/resolve/{commit}/{}", encode_path(path)))
}

/// `{endpoint}/api/whoami-v2`
pub(super) fn whoami_url(endpoint: &Url) -> Url {
    below(endpoint, "api/whoami-v2")
}

/// `path`, already encoded, below the endpoint's own path.
fn below(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    url.set_path(&format!("{}/{path}", endpoint.path().trim_end_matches('/')));
    url
}

/// A URL for people: scheme, host, port and path. Query, fragment and credentials, where secrets are, stay out.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Refused only for URLs that cannot have credentials anyway.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    printable(url.as_str())
}

/// What a `Content-Range` header says. [RFC 9110, 14.4](https://www.rfc-editor.org/rfc/rfc9110#section-14.4)
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContentRange {
    /// `bytes 0-9/20`: these bytes of that many; the total is `None` for `*`.
    Bytes {
        /// Half-open, unlike on the wire.
        range: Range<u64>,
        /// The file's size.
        total: Option<u64>,
    },
    /// `bytes */20`: the range asked for does not lie in the file.
    Unsatisfied {
        /// The file's size.
        total: u64,
    },
}

/// Reads a `Content-Range` header; none if it is malformed, contradicts itself or counts no bytes.
pub(super) fn parse_content_range(header: &str) -> Option<ContentRange> {
    let (unit, rest) = header.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    if range == "*" {
        return Some(ContentRange::Unsatisfied { total: digits(total)? });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (digits(first)?, digits(last)?);
    let total = match total {
        "*" => None,
        total => Some(digits(total)?),
    };
    if first > last || last == u64::MAX || total.is_some_and(|total| last >= total) {
        return None;
    }
    Some(ContentRange::Bytes { range: first..last + 1, total })
}

/// A decimal number of digits alone; `u64::from_str` would also take `+5`.
pub(super) fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Whole seconds from `now` to an HTTP date; none if it is past or no date. [RFC 9110, 5.6.7](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7)
pub(super) fn seconds_until(date: &str, now: DateTime<Utc>) -> Option<u64> {
    // The form in use, and the two a recipient must still read.
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(date.trim(), form).ok())?.and_utc();
    u64::try_from((date - now).num_seconds()).ok().filter(|seconds| *seconds > 0)
}

/// An entity tag without its `W/` and quotes.
pub(super) fn unquote_etag(etag: &str) -> &str {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag)
}

/// The target of the first link whose relation is `next`. [RFC 8288, 3](https://www.rfc-editor.org/rfc/rfc8288#section-3)
pub(super) fn next_link(header: &str) -> Option<&str> {
    split_unquoted(header, ',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = split_unquoted(parameters, ';').any(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next"))
            })
        });
        is_next.then_some(target)
    })
}

/// The pieces of `text` between separators that stand neither in quotes nor in angle brackets.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped, mut bracketed) = (false, false, false);
    text.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if !bracketed => quoted = !quoted,
            '<' if !quoted => bracketed = true,
            '>' if !quoted => bracketed = false,
            c => return c == separator && !quoted && !bracketed,
        }
        false
    })
}

/// Seconds until an exhausted rate limit resets: the longest `t` among the buckets with `r=0`, none if all have some left.
///
/// `RateLimit: "api";r=0;t=55`: <https://huggingface.co/docs/hub/rate-limits>
pub(super) fn exhausted_for(header: &str) -> Option<u64> {
    split_unquoted(header, ',')
        .filter_map(|bucket| {
            let parameter = |wanted: &str| {
                split_unquoted(bucket, ';').find_map(|item| {
                    let (name, value) = item.split_once('=')?;
                    (name.trim() == wanted).then(|| digits(value.trim()))?
                })
            };
            (parameter("r")? == 0).then(|| parameter("t"))?
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn urls_are_those_the_hub_documents() {
        let repo = "org/na.me".parse().unwrap();
        let commit: CommitId = "ab".repeat(20).parse().unwrap();
        for (endpoint, prefix) in [
            ("https://huggingface.co", "https://huggingface.co"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("https://mirror.example/hf/hub", "https://mirror.example/hf/hub"),
        ] {
            let endpoint = url(endpoint);
            assert_eq!(
                info_url(&endpoint, &repo, &"refs/pr/1".parse().unwrap()).as_str(),
                format!("{prefix}/api/models/org/na.me/revision/refs%2Fpr%2F1")
            );
            assert_eq!(
                tree_url(&endpoint, &repo, &commit).as_str(),
                format!("{prefix}/api/models/org/na.me/tree/{commit}?recursive=true&expand=false")
            );
            assert_eq!(
                resolve_url(&endpoint, &repo, &commit, &"a b/c+d?e#f%/ü".parse().unwrap()).as_str(),
                format!("{prefix}/org/na.me/resolve/{commit}/a%20b/c%2Bd%3Fe%23f%25/%C3%BC")
            );
        }
    }

    #[test]
    fn a_shown_url_keeps_no_secret() {
        assert_eq!(
            shown(&url("https://user:pass@cdn.example:444/a/b?X-Amz-Signature=s3cret#frag")),
            "https://cdn.example:444/a/b"
        );
    }

    #[test]
    fn an_http_date_is_so_many_seconds_away() {
        let now = "2026-11-30T12:00:00Z".parse().unwrap();
        for date in ["Mon, 30 Nov 2026 12:01:30 GMT", "Monday, 30-Nov-26 12:01:30 GMT", "Mon Nov 30 12:01:30 2026"] {
            assert_eq!(seconds_until(date, now), Some(90), "{date}");
        }
        for date in
            ["Mon, 30 Nov 2026 12:00:00 GMT", "Mon, 30 Nov 2026 11:00:00 GMT", "soon", "", "Mon, 99 Nov 2026 12:00:00 GMT"]
        {
            assert_eq!(seconds_until(date, now), None, "{date}");
        }
    }

    #[test]
    fn content_ranges_are_read_and_the_malformed_refused() {
        let bytes = |range, total| Some(ContentRange::Bytes { range, total });
        assert_eq!(parse_content_range("bytes 0-0/1"), bytes(0..1, Some(1)));
        assert_eq!(parse_content_range("Bytes 5-9/*"), bytes(5..10, None));
        assert_eq!(parse_content_range("bytes */0"), Some(ContentRange::Unsatisfied { total: 0 }));
        for bad in [
            "",
            "bytes",
            "bytes 0-9",
            "bytes 9-0/10",
            "bytes 0-10/10",
            "bytes +0-9/10",
            "bytes -9/10",
            "bytes 0-/10",
            "items 0-9/10",
            "bytes */*",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
            "bytes 0-9/10, 20-29/30",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn etags_lose_weakness_and_quotes() {
        for (header, etag) in
            [("\"abc\"", "abc"), ("W/\"abc\"", "abc"), ("abc", "abc"), ("\"abc", "\"abc"), ("\"", "\""), ("", "")]
        {
            assert_eq!(unquote_etag(header), etag);
        }
    }

    #[test]
    fn the_next_link_is_found_among_others() {
        for (header, next) in [
            (r#"<https://h/a?cursor=x%3D>; rel="next""#, Some("https://h/a?cursor=x%3D")),
            (r#"<https://h/a,b;c>; title="x, <y>; rel=\"next\""; rel=prev, <https://h/n>;REL=Next"#, Some("https://h/n")),
            (r#"<../token>; rel="xet-auth", <https://cas/r>; rel="xet-reconstruction-info""#, None),
            (r#"<https://h/n>; rel="last next""#, Some("https://h/n")),
            (r#"https://h/n; rel="next""#, None),
            ("<https://h/n", None),
            ("", None),
        ] {
            assert_eq!(next_link(header), next, "{header}");
        }
    }

    #[test]
    fn an_exhausted_bucket_says_how_long() {
        for (header, wait) in [
            (r#""api";r=0;t=55"#, Some(55)),
            (r#""api";r=499;t=55"#, None),
            (r#""api";r=3;t=9, "resolvers"; r=0; t=7"#, Some(7)),
            (r#""a";r=0;t=1, "b";r=0;t=2"#, Some(2)),
            (r#""r=0;t=9";r=1;t=5"#, None),
            ("r=0", None),
            ("r=0;t=-5", None),
            ("", None),
        ] {
            assert_eq!(exhausted_for(header), wait, "{header}");
        }
    }

    proptest! {
        #[test]
        fn an_encoded_segment_decodes_to_itself_and_stays_one_segment(segment in "\\PC{0,40}") {
            let encoded = encode_segment(&segment);
            prop_assert!(!encoded.contains(['/', '?', '#', '+', '\\']));
            prop_assert_eq!(percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap(), segment);
        }

        #[test]
        fn any_valid_path_survives_the_url(path in "[a-z.%+?#&=:;, ü~-]{1,12}(/[a-z.%+?#&=:;, ü~-]{1,12}){0,3}") {
            let Ok(path) = path.parse::<FilePath>() else { return Ok(()) };
            let commit: CommitId = "0".repeat(40).parse().unwrap();
            let url = resolve_url(&url("http://h/x"), &"o/n".parse().unwrap(), &commit, &path);
            let tail = url.path().strip_prefix(&format!("/x/o/n/resolve/{commit}/")).expect("below the repo");
            prop_assert_eq!(percent_encoding::percent_decode_str(tail).decode_utf8().unwrap(), path.as_str());
            prop_assert!(url.query().is_none());
        }

        #[test]
        fn a_written_content_range_reads_back(first in 0u64..1 << 44, length in 1u64..1 << 44, beyond in 0u64..1 << 44) {
            let (last, total) = (first + length - 1, first + length + beyond);
            prop_assert_eq!(
                parse_content_range(&format!("bytes {first}-{last}/{total}")),
                Some(ContentRange::Bytes { range: first..first + length, total: Some(total) })
            );
        }

        #[test]
        fn no_header_makes_a_parser_panic(header in "\\PC{0,60}", shaped in "[ <>;,=\"\\\\rtnextbys0-9/*-]{0,60}") {
            for text in [header, shaped] {
                let _ = (parse_content_range(&text), next_link(&text), exhausted_for(&text), unquote_etag(&text), seconds_until(&text, Utc::now()));
            }
        }
    }
}
