//! A file's bytes: where they are ([`HubClient::resolve`]), a range of them ([`HubClient::get_range`]), and both in one go
//! ([`HubClient::get_whole`]).

use super::{
    auth::may_see_token,
    client::{
        Answer, HubClient, MAX_REDIRECTS, Pace, bad_answer, drain, page_answer, page_in_place, redirect_target,
        refuse_compressed, too_many_redirects,
    },
    retry::{Observer, retry},
    status::{Subject, header},
    tree::TreeFile,
    wire::{ContentRange, digits, parse_content_range, resolve_url, shown, unquote_etag},
};
use crate::{
    digest::Digest,
    error::{Error, Result},
    limit::RateLimit,
    name::{CommitId, FilePath, RepoId},
};
use bytes::Bytes;
use reqwest::{
    Method, Response,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap},
};
use std::{fmt, io, ops::Range, sync::Arc, time::Duration};
use url::Url;

/// Where a file's bytes are, for a while: the address may be signed and expire.
#[derive(Clone)]
pub(crate) struct Location {
    url: Url,
    /// Whether every address on the way here may see the token.
    with_token: bool,
    /// Whether a redirect led here. Only then asking the Hub again can lead elsewhere.
    redirected: bool,
    size_bytes: u64,
    repo: RepoId,
    commit: CommitId,
    path: FilePath,
}

/// Shows no query: it may hold a signature.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({} {} at {}, with_token: {})", self.repo, self.path, shown(&self.url), self.with_token)
    }
}

/// How a ranged request ended, if not with an error.
pub(crate) enum RangeOutcome {
    /// Bytes are coming.
    Body(RangeBody),
    /// The address does not serve the file any more: resolve the file again and ask there. The error is the one to give up
    /// with if a fresh address does no better.
    Expired(Error),
}

/// The bytes of an answer, as they arrive.
pub(crate) struct RangeBody {
    response: Response,
    url: Url,
    pace: Pace,
    range: Range<u64>,
    /// Where in the file the next chunk begins.
    at: u64,
    limit: Option<Arc<RateLimit>>,
}

impl HubClient {
    /// Finds the bytes of `file`: asks the Hub, checks that it still speaks of the same commit, digest and size, and follows
    /// redirects up to the first host that may not see the token. Tried again by the policy, so not to be wrapped in [`retry`].
    ///
    /// One HEAD for an LFS file, two for a git file; where HEAD is not allowed, GETs of one byte.
    ///
    /// # Errors
    /// `FileNotFound`, `Gated`, `RepoNotFound` and so on from the Hub; `ContentChanged`; `BadAnswer` if no answer carries
    /// `X-Repo-Commit`, which all Hubs send; those of the network.
    pub(crate) async fn resolve(
        &self,
        repo: &RepoId,
        commit: &CommitId,
        file: &TreeFile,
        observer: Observer<'_>,
    ) -> Result<Location> {
        self.need_network(|| format!("fetch {} of {repo}", file.path))?;
        retry(&self.config().retry, observer, || self.resolve_once(repo, commit, file)).await
    }

    async fn resolve_once(&self, repo: &RepoId, commit: &CommitId, file: &TreeFile) -> Result<Location> {
        let endpoint = &self.config().endpoint;
        let first = resolve_url(endpoint, repo, commit, &file.path);
        let mut promise = Promise { repo, commit, file, commit_seen: false };
        let (mut method, mut url, mut redirected) = (Method::HEAD, first.clone(), false);
        for _ in 0..=MAX_REDIRECTS {
            // The first byte is enough, but an empty file has none.
            let range = (method == Method::GET && file.size_bytes > 0).then_some(0..1);
            let response = self.send(method.clone(), &url, true, range.as_ref(), self.config().metadata_timeout).await?;
            let status = response.status().as_u16();
            if method == Method::HEAD && matches!(status, 405 | 501) {
                method = Method::GET;
                continue;
            }
            let target = redirect_target(&url, status, response.headers())?;
            if target.is_none() && !matches!(status, 200 | 206) {
                let subject = Subject { repo: repo.clone(), revision: commit.as_str().parse()?, path: Some(file.path.clone()) };
                return Err(self.refused(Answer { response, url, with_token: true }, &subject).await);
            }
            promise.check(&url, response.headers(), target.is_some())?;
            let arrived = match target {
                None => true,
                Some(target) => {
                    url = target;
                    redirected = true;
                    !may_see_token(endpoint, &url)
                }
            };
            if arrived {
                if !promise.commit_seen {
                    return Err(bad_answer(&first, "it has no X-Repo-Commit header, so this is not a Hub"));
                }
                return Ok(Location {
                    with_token: may_see_token(endpoint, &url),
                    url,
                    redirected,
                    size_bytes: file.size_bytes,
                    repo: repo.clone(),
                    commit: commit.clone(),
                    path: file.path.clone(),
                });
            }
        }
        Err(too_many_redirects(&url))
    }

    /// Asks for the bytes `range` of the file, which is not empty and lies in the file. Asks once: the caller decides, by
    /// [`super::retry::RetryPolicy`], whether an error is worth another try and from which byte.
    ///
    /// # Errors
    /// `ContentChanged` if the file has another size now; `BadAnswer` for bytes not asked for; `HubStatus` and so on; those of
    /// the network.
    pub(crate) async fn get_range(&self, location: &Location, range: Range<u64>) -> Result<RangeOutcome> {
        let Location { repo, path, size_bytes, .. } = location;
        self.need_network(|| format!("fetch {path} of {repo}"))?;
        if range.start >= range.end || range.end > *size_bytes {
            let (path, size_bytes) = (path.to_string(), *size_bytes);
            return Err(Error::InvalidRange { path, start: range.start, end: range.end, size_bytes });
        }
        let timeout = self.config().read_timeout;
        let answer = self.get(location.url.clone(), location.with_token, Some(&range), timeout).await?;
        self.body_of(answer, location, range).await
    }

    /// Asks for all bytes of `file`, which is not empty, and follows redirects straight to them: what [`resolve`](Self::resolve) and
    /// [`get_range`](Self::get_range) do with one answer fewer to wait for. What the Hub says on the way is checked as there. Asks
    /// once; [`RangeOutcome::Expired`] means that the same call may find a fresh address.
    ///
    /// # Errors
    /// As for these two.
    pub(crate) async fn get_whole(&self, repo: &RepoId, commit: &CommitId, file: &TreeFile) -> Result<RangeOutcome> {
        self.need_network(|| format!("fetch {} of {repo}", file.path))?;
        let endpoint = &self.config().endpoint;
        let first = resolve_url(endpoint, repo, commit, &file.path);
        let range = 0..file.size_bytes;
        let mut promise = Promise { repo, commit, file, commit_seen: false };
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            // While one file waits for the Hub another waits for its CDN, so that neither host sees more connections than the other.
            let place = self.places(false).acquire().await;
            let response = self.send(Method::GET, &url, true, Some(&range), self.config().metadata_timeout).await?;
            let status = response.status().as_u16();
            if status == 416 {
                return Err(no_such_bytes(&url, &range, file.size_bytes));
            }
            let target = redirect_target(&url, status, response.headers())?;
            if target.is_none() && !matches!(status, 200 | 206) {
                let subject = Subject { repo: repo.clone(), revision: commit.as_str().parse()?, path: Some(file.path.clone()) };
                return Err(self.refused(Answer { response, url, with_token: true }, &subject).await);
            }
            promise.check(&url, response.headers(), target.is_some())?;
            let at = target.as_ref().unwrap_or(&url);
            let abroad = !may_see_token(endpoint, at);
            if target.is_none() || abroad {
                if !promise.commit_seen {
                    return Err(bad_answer(&first, "it has no X-Repo-Commit header, so this is not a Hub"));
                }
                let location = Location {
                    url: at.clone(),
                    with_token: !abroad,
                    // The Hub was asked just now: another answer is not to be had from it.
                    redirected: false,
                    size_bytes: file.size_bytes,
                    repo: repo.clone(),
                    commit: commit.clone(),
                    path: file.path.clone(),
                };
                if target.is_none() {
                    return self.body_of(Answer { response, url, with_token: true }, &location, range).await;
                }
                drain(response).await;
                drop(place);
                let _place = self.places(true).acquire().await;
                return self.get_range(&location, range).await;
            }
            drain(response).await;
            if let Some(target) = target {
                url = target;
            }
        }
        Err(too_many_redirects(&url))
    }

    /// What an answer to a request for `range` brings.
    async fn body_of(&self, answer: Answer, location: &Location, range: Range<u64>) -> Result<RangeOutcome> {
        let Location { repo, path, size_bytes, .. } = location;
        let abroad = !may_see_token(&self.config().endpoint, &answer.url);
        let headers = answer.response.headers();
        let covered = match answer.status() {
            206 => covered_by_part(&answer.url, headers, &range)
                .and_then(|(covered, total)| location.same_size(total).map(|()| covered))?,
            200 => {
                let length = header(headers, CONTENT_LENGTH.as_str()).and_then(|length| digits(&length));
                refuse_page(&answer.url, headers, path, length == Some(*size_bytes))?;
                if let Some(length) = length {
                    refuse_compressed(&answer.url, headers)?;
                    location.same_size(length)?;
                }
                0..*size_bytes
            }
            416 => {
                if let Some(ContentRange::Unsatisfied { total }) = content_range(headers) {
                    location.same_size(total)?;
                }
                return Err(no_such_bytes(&answer.url, &range, *size_bytes));
            }
            401 | 403 | 404 | 410 if abroad || (location.redirected && !headers.contains_key("x-error-code")) => {
                return Ok(RangeOutcome::Expired(self.refused_abroad(answer).await));
            }
            _ if abroad => return Err(self.refused_abroad(answer).await),
            _ => {
                let revision = location.commit.as_str().parse()?;
                let subject = Subject { repo: repo.clone(), revision, path: Some(path.clone()) };
                return Err(self.refused(answer, &subject).await);
            }
        };
        refuse_compressed(&answer.url, headers)?;
        Ok(RangeOutcome::Body(RangeBody {
            response: answer.response,
            url: answer.url,
            pace: Pace::new(self.config().read_timeout),
            at: covered.start,
            range: covered,
            limit: self.limit(),
        }))
    }
}

impl Location {
    /// Whether the bytes are on a host that may see the token.
    #[cfg(test)]
    pub(crate) fn is_on_hub(&self) -> bool {
        self.with_token
    }

    /// Whether this is the very address `other` is.
    pub(crate) fn is_same_address(&self, other: &Self) -> bool {
        self.url == other.url
    }

    fn same_size(&self, found: u64) -> Result<()> {
        if found == self.size_bytes {
            return Ok(());
        }
        Err(Error::ContentChanged {
            repo: self.repo.clone(),
            path: self.path.clone(),
            what: "size",
            expected: self.size_bytes.to_string(),
            found: found.to_string(),
        })
    }
}

impl RangeBody {
    /// The bytes of the file this body is: the range asked for or a beginning of it, or, where the server ignores ranges, the
    /// whole file.
    pub(crate) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Time waited for its bytes so far, the limit of the rate not counted.
    pub(crate) fn waited(&self) -> Duration {
        self.pace.total()
    }

    /// The error of having brought no more than this.
    pub(crate) fn stalled(&self, after: Duration, bytes: u64) -> Error {
        Error::Stalled { url: shown(&self.url), after, bytes }
    }

    /// The next bytes; none once every byte of [`Self::range`] has come. Never gives more. Waits until the limit of the rate allows
    /// for them, which no timeout counts.
    ///
    /// # Errors
    /// [`Error::Stalled`] after the read timeout, or six of them with less than 4 KiB; [`Error::Network`] if the body breaks off or ends too soon;
    /// [`Error::BadAnswer`] if it goes on too long.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self.pace.chunk(&self.url, &mut self.response).await? {
            Some(chunk) if chunk.len() as u64 > self.range.end - self.at => {
                Err(bad_answer(&self.url, format!("it sends more than bytes {}..{}", self.range.start, self.range.end)))
            }
            Some(chunk) => {
                self.at += chunk.len() as u64;
                if let Some(limit) = &self.limit {
                    limit.pay(chunk.len() as u64).await;
                }
                Ok(Some(chunk))
            }
            None if self.at < self.range.end => {
                let missing = format!("the answer ends {} bytes too soon", self.range.end - self.at);
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, missing).into();
                Err(Error::Network { action: "read from", url: shown(&self.url), source })
            }
            None => Ok(None),
        }
    }
}

/// What the listing said of a file, held against what the answers on the way to it say.
pub(super) struct Promise<'a> {
    pub(super) repo: &'a RepoId,
    pub(super) commit: &'a CommitId,
    pub(super) file: &'a TreeFile,
    /// Whether some answer named the commit, the right one.
    pub(super) commit_seen: bool,
}

impl Promise<'_> {
    /// Checks one answer. The headers of `X-Linked-*` speak of the file also in a redirect; `ETag` stands in for the one if it
    /// has the shape of the digest expected; a length is the file's only at the end of the way.
    pub(super) fn check(&mut self, url: &Url, headers: &HeaderMap, redirects: bool) -> Result<()> {
        let length = header(headers, CONTENT_LENGTH.as_str()).and_then(|length| digits(length.trim()));
        let linked = headers.contains_key("x-linked-size") || headers.contains_key("x-repo-commit");
        if !redirects && !linked {
            refuse_page(url, headers, &self.file.path, length == Some(self.file.size_bytes))?;
        }
        if let Some(commit) = header(headers, "x-repo-commit") {
            let commit: CommitId = commit.parse().map_err(|_| bad_answer(url, "its X-Repo-Commit is not a commit"))?;
            self.same("commit", self.commit.as_str(), commit.as_str())?;
            self.commit_seen = true;
        }
        let digest = self.file.digest;
        if let Some(etag) = header(headers, "x-linked-etag") {
            if let Some(found) = any_digest(unquote_etag(&etag)) {
                self.same("digest", &digest.to_string(), &found.to_string())?;
            }
        } else if let Some(etag) = header(headers, ETAG.as_str())
            && let Some(found) = any_digest(unquote_etag(&etag)).filter(|found| same_kind(found, &digest))
        {
            self.same("digest", &digest.to_string(), &found.to_string())?;
        }
        let size = match header(headers, "x-linked-size") {
            Some(size) => Some(digits(size.trim()).ok_or_else(|| bad_answer(url, "its X-Linked-Size is not a size"))?),
            None if redirects => None,
            None => {
                refuse_compressed(url, headers)?;
                match content_range(headers) {
                    Some(ContentRange::Bytes { total, .. }) => total,
                    _ => length,
                }
            }
        };
        size.map_or(Ok(()), |size| self.same("size", &self.file.size_bytes.to_string(), &size.to_string()))
    }

    fn same(&self, what: &'static str, expected: &str, found: &str) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        let (repo, path) = (self.repo.clone(), self.file.path.clone());
        Err(Error::ContentChanged { repo, path, what, expected: expected.to_owned(), found: found.to_owned() })
    }
}

/// An etag that has the shape of a digest.
fn any_digest(etag: &str) -> Option<Digest> {
    Digest::sha256_from_hex(etag).or_else(|| Digest::git_sha1_from_hex(etag))
}

fn same_kind(one: &Digest, other: &Digest) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    header(headers, CONTENT_RANGE.as_str()).and_then(|header| parse_content_range(&header))
}

fn no_such_bytes(url: &Url, range: &Range<u64>, size_bytes: u64) -> Error {
    bad_answer(url, format!("it has no bytes {}..{} of {size_bytes}", range.start, range.end))
}

/// # Errors
/// [`Error::BadAnswer`] for a page where the bytes of `path` are due, unless the file itself is of that kind, or has its length.
fn refuse_page(url: &Url, headers: &HeaderMap, path: &FilePath, has_its_length: bool) -> Result<()> {
    let is_one = |kind: &str| match kind {
        "text/html" => path.as_str().ends_with(".html") || path.as_str().ends_with(".htm"),
        _ => path.as_str().ends_with(".json"),
    };
    match page_in_place(headers) {
        Some(kind) if !has_its_length && !is_one(kind) => Err(page_answer(url, kind)),
        _ => Ok(()),
    }
}

/// The bytes a 206 brings, and the file's size by its own account: from the first byte asked for, perhaps not to the last.
pub(super) fn covered_by_part(url: &Url, headers: &HeaderMap, asked: &Range<u64>) -> Result<(Range<u64>, u64)> {
    let Some(ContentRange::Bytes { range, total: Some(total) }) = content_range(headers) else {
        return Err(bad_answer(url, "it is a part without a Content-Range that says which and of how many bytes"));
    };
    if range.start != asked.start || range.end > asked.end {
        let reason = format!("bytes {}..{} were asked for, {}..{} are sent", asked.start, asked.end, range.start, range.end);
        return Err(bad_answer(url, reason));
    }
    match header(headers, CONTENT_LENGTH.as_str()).and_then(|length| digits(length.trim())) {
        Some(length) if length != range.end - range.start => Err(bad_answer(
            url,
            format!("its Content-Length {length} contradicts its Content-Range {}..{}", range.start, range.end),
        )),
        _ => Ok((range, total)),
    }
}
