//! One request in, one answer out: routing, logging, and the faults that replace an answer. Sockets are elsewhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use hyper::header::{self, HeaderMap};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use tokio::sync::watch;

use crate::access::{self, Caller, Wanted};
use crate::body::{Body, Wire};
use crate::cdn::{self, Signatures};
use crate::faults::{Fault, Faults, Site};
use crate::log::{Log, OpenLine, Request, Server};
use crate::reply::{RangeSpec, Reply};
use crate::route::{self, Parsed, Route};
use crate::store::{Served, Store};

/// An answer, or the refusal that stands in its place. Both are sent alike; the split is for `?`.
pub(crate) type Answer = Result<Reply, Box<Reply>>;

/// The state both servers share.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) store: RwLock<Store>,
    pub(crate) faults: Faults,
    pub(crate) log: Log,
    pub(crate) signatures: Signatures,
    pub(crate) page_entries: usize,
    pub(crate) url_lifetime: Duration,
    /// Scheme, host and port of each server.
    pub(crate) hub_base: String,
    pub(crate) cdn_base: String,
    pub(crate) abroad_base: String,
    pub(crate) answers: AtomicU64,
    /// Tells every connection to end.
    pub(crate) connections: watch::Sender<()>,
    /// The end of the outage, if there is one.
    pub(crate) down_until: Mutex<Option<Instant>>,
}

/// A request being answered.
pub(crate) struct Call<'a> {
    pub(crate) server: Server,
    pub(crate) method: &'a Method,
    /// Raw, as is the query.
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a [u8],
    pub(crate) caller: Caller,
    pub(crate) parsed: &'a Parsed,
    site: Site<'a>,
    faults: &'a Faults,
}

impl Call<'_> {
    /// The first fault in force that `picks` accepts, used once.
    pub(crate) fn strike<T>(&self, picks: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.faults.strike(&self.site, picks)
    }
}

impl Origin {
    pub(crate) fn store(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(|e| e.into_inner())
    }

    /// The repo a call is about, if its caller may have what is wanted of it.
    pub(crate) fn admit<'s>(&self, store: &'s Store, call: &Call<'_>, wanted: Wanted) -> Result<&'s Served, Box<Reply>> {
        access::admit(store, &call.parsed.repo, call.caller, wanted, |canonical| {
            let at = &call.parsed.repo_at;
            let query = if call.query.is_empty() { String::new() } else { format!("?{}", call.query) };
            format!("{}{canonical}{}{query}", &call.path[..at.start], &call.path[at.end..])
        })
    }

    /// Closes all connections; for `time`, if there is one, new ones too.
    pub(crate) fn drop_connections(&self, time: Option<Duration>) {
        if let Some(time) = time {
            *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
        }
        let _ = self.connections.send(());
    }

    /// Whether there is an outage.
    pub(crate) fn is_down(&self) -> bool {
        let until = *self.down_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Answers one request, which came over this wire.
    pub(crate) async fn answer(&self, server: Server, request: HttpRequest<Vec<u8>>, wire: Arc<Wire>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        let url = head.uri.path_and_query().map_or(path, |url| url.as_str());
        let parsed = match server {
            Server::Hub | Server::Abroad => route::parse(path),
            Server::Cdn => Parsed { route: Route::Unknown, repo: String::new(), repo_at: 0..0 },
        };
        let file = match (server, &parsed.route) {
            (Server::Cdn, _) => self.cdn_file(path, query),
            (Server::Abroad, _) if path.starts_with(cdn::PREFIX) => self.cdn_file(path, query),
            (_, Route::Resolve { path, .. } | Route::Raw { path, .. } | Route::ResolveCache { path, .. }) => {
                Some(format!("{}/{path}", parsed.repo))
            }
            _ => None,
        };
        let line = self.begin_line(server, &head.method, url, &head.headers, file.clone());
        let site = Site { server, method: Some(head.method.as_str()), url, file: file.as_deref(), drawn: None };
        let range = head.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let drawn = self.faults.draw(&site, range);
        let site = Site { drawn: drawn.as_ref(), ..site };
        let outage = self.faults.strike(&site, |fault| if let Fault::Outage(time) = fault { Some(*time) } else { None });
        if let Some(time) = outage {
            self.drop_connections(Some(time));
            // This connection too is about to go.
            return std::future::pending().await;
        }
        let delay = self.faults.strike(&site, |fault| if let Fault::Delay(time) = fault { Some(*time) } else { None });
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let call = Call {
            server,
            method: &head.method,
            path,
            query,
            headers: &head.headers,
            body: &body,
            caller: Caller::of(&head.headers),
            parsed: &parsed,
            site,
            faults: &self.faults,
        };
        let reply = self.faulty_reply(&call).unwrap_or_else(|| {
            let is_content = server == Server::Cdn || (server == Server::Abroad && path.starts_with(cdn::PREFIX));
            let reply = if is_content { self.cdn(&call) } else { self.hub(&call) };
            self.redirected(reply.unwrap_or_else(|refusal| *refusal), &call, url)
        });
        let reply = if server == Server::Hub { self.with_hub_headers(reply, &call) } else { reply };
        reply.finish(&head.method, &head.headers, &self.faults, &site, line, wire)
    }

    fn begin_line(&self, server: Server, method: &Method, url: &str, headers: &HeaderMap, file: Option<String>) -> OpenLine {
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let raw_range = text(header::RANGE);
        let range = match raw_range.as_deref().and_then(RangeSpec::parse) {
            Some(RangeSpec::From(first, last)) => Some((first, last)),
            _ => None,
        };
        let request = Request {
            server,
            method: method.to_string(),
            path_and_query: url.to_owned(),
            status: 0,
            range,
            authorization: text(header::AUTHORIZATION),
            body_bytes_sent: 0,
            finished: false,
            file,
            user_agent: text(header::USER_AGENT),
        };
        self.log.begin(request, raw_range)
    }

    fn hub(&self, call: &Call<'_>) -> Answer {
        let route = &call.parsed.route;
        let allowed = match route {
            Route::PathsInfo { .. } => call.method == Method::POST,
            _ => matches!(*call.method, Method::GET | Method::HEAD),
        };
        if !allowed {
            return Err(Reply::error(405, None, "Method not allowed").into());
        }
        match route {
            Route::Info { revision } => self.info(call, revision.as_deref()),
            Route::Tree { revision, directory } => self.tree(call, revision, directory),
            Route::Refs => self.refs(call),
            Route::PathsInfo { revision } => self.paths_info(call, revision),
            Route::Resolve { revision, path } => self.resolve(call, revision, path),
            Route::Raw { revision, path } => self.raw(call, revision, path),
            Route::ResolveCache { commit, path } => self.resolve_cache(call, commit, path),
            Route::WhoAmI => self.who_am_i(call),
            Route::Unknown => Err(Reply::error(404, None, "Sorry, we can't find the page you are looking for.").into()),
        }
    }

    /// The answer of a fault that asks for no look at the request.
    fn faulty_reply(&self, call: &Call<'_>) -> Option<Reply> {
        call.strike(|fault| match fault {
            Fault::Status { code, retry_after, rate_limit } => {
                let reason = StatusCode::from_u16(*code).ok().and_then(|status| status.canonical_reason());
                let mut reply = Reply::error(*code, None, reason.unwrap_or("Fault on demand"));
                if let Some(seconds) = retry_after {
                    reply = reply.with("retry-after", &seconds.to_string());
                }
                Some(if let Some(text) = rate_limit { reply.with("ratelimit", text) } else { reply })
            }
            Fault::RetryAfterDate { code, wait } => {
                let date = httpdate::fmt_http_date(SystemTime::now() + *wait);
                Some(Reply::error(*code, None, "Fault on demand").with("retry-after", &date))
            }
            Fault::RawBody { status, headers, body } => {
                let reply = Reply::text(*status, body.clone());
                Some(headers.iter().fold(reply, |reply, (name, value)| reply.with(name, value)))
            }
            _ => None,
        })
    }

    /// `reply`, sent elsewhere if a fault says so.
    fn redirected(&self, reply: Reply, call: &Call<'_>, url: &str) -> Reply {
        let location = call.strike(|fault| match fault {
            Fault::RedirectLoop => Some(url.to_owned()),
            Fault::RedirectTo(location) => Some(location.clone()),
            Fault::RedirectAbroad if call.server != Server::Abroad => {
                // Where the answer is a redirect already, to where that leads, but on the other host.
                let due = reply.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or(url);
                let path = due.split_once("://").map_or(due, |(_, rest)| &rest[rest.find('/').unwrap_or(rest.len())..]);
                Some(format!("{}{path}", self.abroad_base))
            }
            _ => None,
        });
        match location {
            None => reply,
            Some(location) if reply.status.is_redirection() => reply.with("location", &location),
            Some(location) => Reply::text(302, format!("Found. Redirecting to {location}")).with("location", &location),
        }
    }

    fn with_hub_headers(&self, reply: Reply, call: &Call<'_>) -> Reply {
        let count = self.answers.fetch_add(1, Relaxed);
        let (bucket, quota) = match call.parsed.route {
            Route::Resolve { .. } | Route::ResolveCache { .. } | Route::Raw { .. } => ("resolvers", 3000),
            _ => ("api", 500),
        };
        let limited = reply.headers.contains_key("ratelimit");
        let reply = reply
            .with("x-request-id", &format!("Root=1-{count:08x}"))
            .with("ratelimit-policy", &format!("\"fixed window\";\"{bucket}\";q={quota};w=300"));
        // The budget is told, never enforced: a suite may ask more in five minutes than the Hub allows.
        if limited { reply } else { reply.with("ratelimit", &format!("\"{bucket}\";r={};t=300", quota - 1)) }
    }
}
