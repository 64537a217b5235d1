//! An answer before faults and ranges are applied to it, and the making of the final response from it.

use std::ops::Range;
use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::{Body, Mishaps, Wire};
use crate::content::Content;
use crate::faults::{Fault, Faults, Site};
use crate::log::OpenLine;

/// Status, headers, and the whole of what a 200 would carry.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Content,
    /// Whether the body is a file's: ranges are honoured for those.
    is_file: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Content>) -> Reply {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Reply { status, headers: HeaderMap::new(), body: body.into(), is_file: false }.with("content-type", content_type)
    }

    pub(crate) fn json(body: &Value) -> Reply {
        Reply::new(200, "application/json; charset=utf-8", body.to_string())
    }

    pub(crate) fn text(status: u16, body: impl Into<Content>) -> Reply {
        Reply::new(status, "text/plain; charset=utf-8", body)
    }

    /// A whole file, from which a range may be taken.
    pub(crate) fn file(content_type: &str, content: Content) -> Reply {
        let reply = Reply::new(200, content_type, content).with("accept-ranges", "bytes");
        Reply { is_file: true, ..reply }
    }

    /// The Hub's error form: message in a header and in a JSON body, and a code for those that have one.
    pub(crate) fn error(status: u16, code: Option<&str>, message: &str) -> Reply {
        let reply = Reply::new(status, "application/json; charset=utf-8", json!({"error": message}).to_string());
        let reply = reply.with("x-error-message", message);
        if let Some(code) = code { reply.with("x-error-code", code) } else { reply }
    }

    /// Sets a header; a value HTTP cannot carry is sent with `?` in place of the bytes at fault.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        let clean = || value.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect::<String>();
        let value = HeaderValue::from_str(value).or_else(|_| HeaderValue::from_str(&clean()));
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Applies faults, the range asked for, and the rules of `HEAD`.
    pub(crate) fn finish(
        mut self,
        method: &Method,
        asked: &HeaderMap,
        faults: &Faults,
        site: &Site<'_>,
        line: OpenLine,
        wire: Arc<Wire>,
    ) -> Response<Body> {
        let open = |body: &Content| Ok::<_, std::io::Error>((body.open()?, body.size_bytes()?));
        let (source, total) = open(&self.body).unwrap_or_else(|e| {
            self = Reply::text(500, format!("the fixture cannot read this content: {e}"));
            open(&self.body).expect("text in memory is always there")
        });
        let mut range = 0..total;
        if self.is_file && self.status == StatusCode::OK {
            range = self.take_range(asked, total, faults, site);
        }
        let carries = matches!(self.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) && method != Method::HEAD;
        let mut mishaps = Mishaps::default();
        if carries && !range.is_empty() {
            let missing =
                faults.strike(site, |fault| if let Fault::ShortLength { missing } = fault { Some(*missing) } else { None });
            range.end = range.start.max(range.end.saturating_sub(missing.unwrap_or(0)));
            mishaps = self.mishaps(&range, faults, site);
        }
        if self.is_file && carries && faults.strike(site, |fault| (*fault == Fault::OtherContent).then_some(())).is_some() {
            mishaps.corrupt = Some(0..total);
            self = self.with("etag", "\"another-content\"");
        }
        if faults.strike(site, |fault| (*fault == Fault::Gzip).then_some(())).is_some() {
            self = self.with("content-encoding", "gzip");
        }
        self = self.with("content-length", &(range.end - range.start + mishaps.extra).to_string());
        if carries {
            let wrong = |fault: &Fault| if let Fault::WrongLength { announced } = fault { Some(*announced) } else { None };
            if let Some(announced) = faults.strike(site, wrong) {
                self = self.with("content-length", &announced.to_string());
                // Or hyper would insist on the true one.
                mishaps.no_length = true;
            } else if faults.strike(site, |fault| (*fault == Fault::NoLength).then_some(())).is_some() {
                self.headers.remove(header::CONTENT_LENGTH);
                mishaps.no_length = true;
            }
        }
        if self.status == StatusCode::NOT_MODIFIED {
            self.headers.remove(header::CONTENT_LENGTH);
            self.headers.remove(header::CONTENT_TYPE);
        }
        if method == Method::HEAD {
            range.end = range.start;
        }
        line.answered(self.status.as_u16());
        let mut response = Response::new(Body::new(source, range, mishaps, line, wire));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    /// Turns a 200 into a 206 or 416 if a range is asked for and honoured; returns the bytes to send.
    fn take_range(&mut self, asked: &HeaderMap, total: u64, faults: &Faults, site: &Site<'_>) -> Range<u64> {
        let whole = 0..total;
        let Some(spec) = asked.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(RangeSpec::parse) else {
            return whole;
        };
        if asked.get(header::IF_RANGE).is_some_and(|wanted| Some(wanted) != self.headers.get(header::ETAG)) {
            return whole;
        }
        if faults.strike(site, |fault| (*fault == Fault::IgnoreRange).then_some(())).is_some() {
            return whole;
        }
        let refused = faults.strike(site, |fault| (*fault == Fault::NotSatisfiable).then_some(())).is_some();
        let Some(range) = spec.within(total).filter(|_| !refused) else {
            self.status = StatusCode::RANGE_NOT_SATISFIABLE;
            self.headers.insert(header::CONTENT_RANGE, header_of(format!("bytes */{total}")));
            return 0..0;
        };
        let lie = faults.strike(site, |fault| match fault {
            Fault::WrongContentRange { start, total } => Some((*start, *total)),
            _ => None,
        });
        let (start, said_total) = lie.unwrap_or_default();
        let start = start.unwrap_or(range.start);
        let len = range.end - range.start;
        let said = format!("bytes {start}-{}/{}", start.saturating_add(len - 1), said_total.unwrap_or(total));
        self.status = StatusCode::PARTIAL_CONTENT;
        if faults.strike(site, |fault| (*fault == Fault::NoContentRange).then_some(())).is_none() {
            self.headers.insert(header::CONTENT_RANGE, header_of(said));
        }
        if start.checked_add(len).is_some_and(|end| end <= total) { start..start + len } else { range }
    }

    fn mishaps(&self, range: &Range<u64>, faults: &Faults, site: &Site<'_>) -> Mishaps {
        let len = range.end - range.start;
        Mishaps {
            cut_after: faults.strike(site, |fault| match fault {
                Fault::CutBody { after_bytes } if *after_bytes < len => Some(*after_bytes),
                _ => None,
            }),
            reset_after: faults.strike(site, |fault| match fault {
                Fault::Reset { after_bytes } if *after_bytes < len => Some(*after_bytes),
                _ => None,
            }),
            trickle: faults.strike(site, |fault| match fault {
                Fault::Trickle { after_bytes, every } if *after_bytes < len => Some((*after_bytes, *every)),
                _ => None,
            }),
            extra: faults
                .strike(site, |fault| if let Fault::ExtraBytes { extra } = fault { Some(*extra) } else { None })
                .unwrap_or_default(),
            no_length: false,
            stall_after: faults.strike(site, |fault| match fault {
                Fault::Stall { after_bytes } if *after_bytes < len => Some(*after_bytes),
                _ => None,
            }),
            corrupt: faults.strike(site, |fault| match fault {
                Fault::CorruptBytes { offset, len } if self.is_file => {
                    let damaged = *offset..offset.saturating_add(*len);
                    (damaged.start < range.end && range.start < damaged.end).then_some(damaged)
                }
                _ => None,
            }),
            bytes_per_second: faults.strike(site, |fault| match fault {
                Fault::SlowBytesPerSecond(rate) => Some(*rate),
                _ => None,
            }),
        }
    }
}

fn header_of(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).expect("digits and ASCII punctuation make a header")
}

/// A single byte range as written in a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RangeSpec {
    /// `a-b` (inclusive) or `a-`.
    From(u64, Option<u64>),
    /// `-n`.
    Last(u64),
}

impl RangeSpec {
    /// `None` for what a server may ignore (RFC 9110, 14.2): other units, several ranges, bad syntax.
    pub(crate) fn parse(header: &str) -> Option<RangeSpec> {
        let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
        if first.is_empty() {
            return Some(RangeSpec::Last(last.parse().ok()?));
        }
        let first = first.parse().ok()?;
        let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
        if last.is_some_and(|last| last < first) { None } else { Some(RangeSpec::From(first, last)) }
    }

    /// The bytes meant, of a file of `total`; `None` if it has none of them.
    fn within(self, total: u64) -> Option<Range<u64>> {
        let range = match self {
            RangeSpec::From(first, last) => first..last.map_or(total, |last| last.saturating_add(1).min(total)),
            RangeSpec::Last(count) => total.saturating_sub(count)..total,
        };
        if range.is_empty() { None } else { Some(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_the_rfc_says() {
        let within = |text: &str| RangeSpec::parse(text).map(|spec| spec.within(10));
        assert_eq!(within("bytes=0-0"), Some(Some(0..1)));
        assert_eq!(within("bytes=3-"), Some(Some(3..10)));
        assert_eq!(within("bytes=3-99"), Some(Some(3..10)));
        assert_eq!(within("bytes=-4"), Some(Some(6..10)));
        assert_eq!(within("bytes=-99"), Some(Some(0..10)));
        assert_eq!(within("bytes=10-"), Some(None));
        assert_eq!(within("bytes=-0"), Some(None));
        for ignored in ["bytes=5-3", "bytes=0-1,3-4", "items=0-1", "bytes=x-", "bytes="] {
            assert_eq!(within(ignored), None, "{ignored}");
        }
    }
}
