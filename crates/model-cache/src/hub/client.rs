//! [`HubClient`]: sends requests and follows their redirects. What is asked and what the answers mean is [`super::api`]'s and
//! [`super::file`]'s business.

use super::{
    auth::may_see_token,
    env::HubConfig,
    status::{self, Refusal, Subject},
    wire::shown,
};
use crate::{
    error::{Error, Result},
    limit::RateLimit,
    name::printable,
};
use bytes::Bytes;
use reqwest::{
    Method, Response,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE},
};
use std::{
    collections::HashSet,
    future::Future,
    io,
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use url::Url;

/// Small files asked for at once at the Hub, and as many where it sends them, by all pulls of a client.
const SMALL_AT_ONCE: usize = 32;
/// Redirects followed for one request, as browsers do.
pub(super) const MAX_REDIRECTS: usize = 20;
/// As much of an error's body as is read.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// The longest wait for the body of a redirect.
const MAX_DRAIN_TIME: Duration = Duration::from_millis(50);
/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that nobody uses is kept: spare ones are begun when others are handed back while they are made.
const SPARE_CONNECTION: Duration = Duration::from_secs(2);
/// The longest an answer that describes files may take in all, so that no server can drip one byte before each timeout.
const MAX_BODY_TIME: Duration = Duration::from_secs(300);
/// The fewest bytes a body must bring in [`PACE_TIMEOUTS`] times its timeout: one that drips a byte before each timeout has no end.
const LEAST_BYTES: u64 = 4 << 10;
/// See [`LEAST_BYTES`]: with the default timeouts of 10 s, a minute.
const PACE_TIMEOUTS: u32 = 6;
/// Warnings remembered as already logged; more are not logged at all.
const MAX_WARNINGS: usize = 100;

/// A client of one Hub. Cheap to clone: clones share connections and settings.
///
/// Nothing is opened and no certificates are read before the first request, so a client that never asks costs nothing.
/// Calls must run inside a tokio runtime with time and I/O. In offline mode each fails with [`Error::Offline`] at once.
#[derive(Clone)]
pub(crate) struct HubClient {
    shared: Arc<Shared>,
}

struct Shared {
    config: HubConfig,
    http: OnceLock<reqwest::Client>,
    warned: Mutex<HashSet<String>>,
    limit: Option<Arc<RateLimit>>,
    /// Places for small files' requests to the Hub, and to the hosts it sends them to.
    asking_hub: Semaphore,
    asking_abroad: Semaphore,
}

/// The end of a chain of redirects.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Where it came from.
    pub(super) url: Url,
    /// Whether the token was allowed all the way.
    pub(super) with_token: bool,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }
}

impl HubClient {
    /// A client with these settings.
    pub(crate) fn new(config: HubConfig) -> Self {
        let limit = config.limit_rate.map(|rate| Arc::new(RateLimit::new(rate)));
        Self {
            shared: Arc::new(Shared {
                config,
                http: OnceLock::new(),
                warned: Mutex::default(),
                limit,
                asking_hub: Semaphore::new(SMALL_AT_ONCE),
                asking_abroad: Semaphore::new(SMALL_AT_ONCE),
            }),
        }
    }

    /// Places for small files' requests.
    pub(super) fn places(&self, abroad: bool) -> &Semaphore {
        if abroad { &self.shared.asking_abroad } else { &self.shared.asking_hub }
    }

    /// What bytes of files pay to, if their rate is limited.
    pub(crate) fn limit(&self) -> Option<Arc<RateLimit>> {
        self.shared.limit.clone()
    }

    /// The settings.
    pub(crate) fn config(&self) -> &HubConfig {
        &self.shared.config
    }

    /// # Errors
    /// [`Error::Offline`] if the network is forbidden; `action` says what needed it.
    pub(super) fn need_network(&self, action: impl FnOnce() -> String) -> Result<()> {
        if self.config().offline { Err(Error::Offline { action: action() }) } else { Ok(()) }
    }

    /// Sends one GET and follows redirects, at most 20. The token goes along while every address on the way may see it; once
    /// taken off it stays off. A description, which has no range, is not followed from https to http: nothing else would show that
    /// somebody on the way changed it, whereas bytes have a digest.
    pub(super) async fn get(
        &self,
        url: Url,
        mut with_token: bool,
        range: Option<&Range<u64>>,
        timeout: Duration,
    ) -> Result<Answer> {
        let mut hop = url;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(Method::GET, &hop, with_token, range, timeout).await?;
            match redirect_target(&hop, response.status().as_u16(), response.headers())? {
                None => return Ok(Answer { response, url: hop, with_token }),
                Some(target) if range.is_none() && hop.scheme() == "https" && target.scheme() == "http" => {
                    return Err(bad_answer(&hop, format!("it redirects from https to {}", shown(&target))));
                }
                Some(target) => {
                    drain(response).await;
                    with_token &= may_see_token(&self.config().endpoint, &target);
                    hop = target;
                }
            }
        }
        Err(too_many_redirects(&hop))
    }

    /// Sends one request and gives the answer's head, whatever its status.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        with_token: bool,
        range: Option<&Range<u64>>,
        timeout: Duration,
    ) -> Result<Response> {
        tracing::debug!(%method, url = shown(url), ?range, "asking");
        let mut request = self.http()?.request(method, url.clone());
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        // Checked once more at the only place where the token leaves, whatever a caller thinks.
        if let Some(token) = &self.config().token
            && with_token
            && may_see_token(&self.config().endpoint, url)
        {
            request = request.header(AUTHORIZATION, token.header());
        }
        let response = in_time(url, timeout, "reach", request.send()).await?;
        self.log_warning(url, response.headers());
        Ok(response)
    }

    /// Reads a whole body of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] for a longer or compressed one, or one that takes more than 300 s; [`Error::Stalled`] and
    /// [`Error::Network`] as ever.
    pub(super) async fn read_body(&self, answer: Answer, limit: u64) -> Result<Vec<u8>> {
        let Answer { mut response, url, .. } = answer;
        refuse_compressed(&url, response.headers())?;
        let too_long = || bad_answer(&url, format!("it has more than {limit} bytes"));
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let reading = async {
            let mut body = Vec::new();
            let mut pace = Pace::new(self.config().metadata_timeout);
            while let Some(chunk) = pace.chunk(&url, &mut response).await? {
                if (body.len() + chunk.len()) as u64 > limit {
                    return Err(too_long());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        match tokio::time::timeout(MAX_BODY_TIME, reading).await {
            Ok(read) => read,
            Err(_) => Err(bad_answer(&url, format!("it took more than {} s", MAX_BODY_TIME.as_secs()))),
        }
    }

    /// Why this answer of the Hub refuses `subject`; reads a little of its body.
    pub(super) async fn refused(&self, answer: Answer, subject: &Subject) -> Error {
        self.explained(answer, |refusal| status::explain(refusal, &self.config().endpoint, subject)).await
    }

    /// Why this answer of a foreign host is no success.
    pub(super) async fn refused_abroad(&self, answer: Answer) -> Error {
        self.explained(answer, status::explain_abroad).await
    }

    async fn explained(&self, mut answer: Answer, explain: impl FnOnce(&Refusal<'_>) -> Error) -> Error {
        let mut body = Vec::new();
        let reading = async {
            while let Ok(Some(chunk)) = answer.response.chunk().await {
                let room = (MAX_ERROR_BYTES as usize).saturating_sub(body.len());
                body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if body.len() as u64 >= MAX_ERROR_BYTES {
                    break;
                }
            }
        };
        // Half an explanation is better than none: what arrived in time is used.
        let _ = tokio::time::timeout(self.config().metadata_timeout, reading).await;
        let token = self.config().token.as_ref().filter(|_| answer.with_token);
        explain(&Refusal {
            url: &answer.url,
            status: answer.response.status().as_u16(),
            headers: answer.response.headers(),
            body: &body,
            token_source: token.map(|token| token.source()),
        })
    }

    /// The HTTP client, built by the first request.
    fn http(&self) -> Result<&reqwest::Client> {
        if let Some(http) = self.shared.http.get() {
            return Ok(http);
        }
        // Losing either race is fine: a provider is then installed, and one of two equal clients is dropped.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("model-cache/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(SPARE_CONNECTION)
            .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
            .build()
            .map_err(|error| network("set up TLS for", &self.config().endpoint, error))?;
        Ok(self.shared.http.get_or_init(|| http))
    }

    /// `X-HF-Warning: topic; text` is logged, each text once.
    fn log_warning(&self, url: &Url, headers: &HeaderMap) {
        if let Some(warning) = status::header(headers, "x-hf-warning") {
            let warning = printable(&warning);
            let mut warned = self.shared.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.len() < MAX_WARNINGS && warned.insert(warning.clone()) {
                tracing::warn!(url = shown(url), warning, "the Hub warns");
            }
        }
    }
}

/// Reads the few words a redirect comes with, so that its connection can be used again; gives it up where there are more, or they
/// do not come with the head.
pub(super) async fn drain(mut response: Response) {
    let mut left = MAX_ERROR_BYTES;
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(MAX_DRAIN_TIME, reading).await;
}

/// Waits for `answer`, at most for `timeout`.
///
/// # Errors
/// [`Error::Stalled`] then; [`Error::Network`] with `action` if the connection fails.
pub(super) async fn in_time<T>(
    url: &Url,
    timeout: Duration,
    action: &'static str,
    answer: impl Future<Output = reqwest::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(network(action, url, error)),
        Err(_) => Err(Error::Stalled { url: shown(url), after: timeout, bytes: 0 }),
    }
}

/// Watches that a body comes at all: some byte within each timeout, and 4 KiB within six of them.
pub(super) struct Pace {
    timeout: Duration,
    /// Time waited for bytes, and what it brought, since the last look.
    waited: Duration,
    bytes: u64,
    /// Time waited in all.
    total: Duration,
}

impl Pace {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, waited: Duration::ZERO, bytes: 0, total: Duration::ZERO }
    }

    /// Time waited so far.
    pub(super) fn total(&self) -> Duration {
        self.total
    }

    /// The next bytes of the body, at its end none.
    ///
    /// # Errors
    /// [`Error::Stalled`] for none or too few in time; [`Error::Network`] if the connection fails.
    pub(super) async fn chunk(&mut self, url: &Url, response: &mut Response) -> Result<Option<Bytes>> {
        let asked = Instant::now();
        let chunk = in_time(url, self.timeout, "read from", response.chunk()).await?;
        if let Some(chunk) = &chunk {
            let noted = self.note(asked.elapsed(), chunk.len() as u64);
            noted.map_err(|(after, bytes)| Error::Stalled { url: shown(url), after, bytes })?;
        }
        Ok(chunk)
    }

    /// Takes down a wait and what it brought; the whole of both, if that is too little.
    fn note(&mut self, waited: Duration, bytes: u64) -> std::result::Result<(), (Duration, u64)> {
        self.waited += waited;
        self.total += waited;
        self.bytes += bytes;
        if self.waited < self.timeout.saturating_mul(PACE_TIMEOUTS) {
            return Ok(());
        }
        let seen = (std::mem::take(&mut self.waited), std::mem::take(&mut self.bytes));
        if seen.1 < LEAST_BYTES { Err(seen) } else { Ok(()) }
    }
}

/// Where a redirect leads; none if the answer is no redirect.
///
/// # Errors
/// [`Error::BadAnswer`] if it leads nowhere: no `Location`, no URL, not http(s), or an address with credentials, which the HTTP
/// client would turn into a second `Authorization`.
pub(super) fn redirect_target(from: &Url, status: u16, headers: &HeaderMap) -> Result<Option<Url>> {
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = headers.get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let target = location.and_then(|location| from.join(location).ok());
    match target {
        Some(mut target)
            if matches!(target.scheme(), "http" | "https") && target.username().is_empty() && target.password().is_none() =>
        {
            target.set_fragment(None);
            Ok(Some(target))
        }
        _ => Err(bad_answer(from, "it redirects to no address that can be followed")),
    }
}

/// # Errors
/// [`Error::BadAnswer`] for a body that is compressed though that was not allowed: sizes and ranges would not be the file's.
pub(super) fn refuse_compressed(url: &Url, headers: &HeaderMap) -> Result<()> {
    match status::header(headers, CONTENT_ENCODING.as_str()) {
        Some(coding) if !coding.trim().eq_ignore_ascii_case("identity") => {
            Err(bad_answer(url, format!("it is compressed ({}) though that was not asked for", printable(&coding))))
        }
        _ => Ok(()),
    }
}

pub(super) fn too_many_redirects(url: &Url) -> Error {
    bad_answer(url, format!("it is the {MAX_REDIRECTS}th redirect in a row"))
}

pub(super) fn bad_answer(url: &Url, reason: impl Into<String>) -> Error {
    Error::BadAnswer { url: shown(url), reason: reason.into() }
}

fn network(action: &'static str, url: &Url, error: reqwest::Error) -> Error {
    // The client's own text would show the whole URL, with the query.
    let error = error.without_url();
    match certificate_fault(&error) {
        Some(fault) => Error::Certificate { url: shown(url), source: fault.into() },
        None => Error::Network { action, url: shown(url), source: error.into() },
    }
}

/// What is wrong with the server's certificate, if that is at the root of an error: no further try will mend it.
fn certificate_fault(error: &(dyn std::error::Error + 'static)) -> Option<rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // An I/O error's source is that of the error it wraps, which itself must be asked for.
        let mut found = error;
        while let Some(wrapped) = found.downcast_ref::<io::Error>().and_then(|error| error.get_ref()) {
            found = wrapped;
        }
        if let Some(fault @ rustls::Error::InvalidCertificate(_)) = found.downcast_ref::<rustls::Error>() {
            return Some(fault.clone());
        }
        cause = found.source();
    }
    None
}

/// The kind of a page for people, or of an error's JSON, that came in place of a file's bytes, by its headers.
pub(super) fn page_in_place(headers: &HeaderMap) -> Option<&'static str> {
    let kind = status::header(headers, CONTENT_TYPE.as_str())?.to_ascii_lowercase();
    ["text/html", "application/json"].into_iter().find(|page| kind.starts_with(page))
}

pub(super) fn page_answer(url: &Url, kind: &str) -> Error {
    bad_answer(url, format!("it is a page ({kind}), as a network's login page or a proxy sends one, and not what was asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_to_bring_so_much_in_so_many_timeouts_and_then_begins_anew() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(second);
        for _ in 0..10 {
            for _ in 0..5 {
                pace.note(second, 10).unwrap();
            }
            pace.note(second, LEAST_BYTES - 50).unwrap();
        }
        for _ in 0..5 {
            pace.note(second, 10).unwrap();
        }
        assert_eq!(pace.note(second, LEAST_BYTES - 51), Err((6 * second, LEAST_BYTES - 1)));
        pace.note(5 * second, 0).unwrap();
        // Without a wait nothing is too slow.
        (0..100_000).for_each(|_| pace.note(Duration::ZERO, 1).unwrap());
    }
}
