//! One file's bytes, from the Hub into a fill: connections that take ranges from a plan.

use super::{
    Lane,
    plan::{Begun, Plan, blocks_per_request},
    write::{BlockWriter, FileWriter, Pieces},
};
use crate::{
    digest::Digest,
    error::{Error, Result},
    hub::{Location, RangeBody, RangeOutcome, RetryPolicy, TreeFile, random_unit},
    record::*,
    store::Fill,
};
use futures::{StreamExt, TryStreamExt, future, stream::FuturesUnordered};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Most requests in a row that fail without progress: with the waits between, about a quarter of a minute of no network.
const RANGE_TRIES: u32 = 8;
/// A block that takes so many times as long as the quickest one did, and longer than a byte may take, is left to another connection.
const SLOW_FACTOR: u32 = 16;
/// Bytes more of a file that are progress.
const PROGRESS_BYTES: u64 = 64 << 10;
/// Most answers in a row that can't be used: one may be a sick server's among several, or a proxy's, but it is rather a rule than chance.
const BAD_ANSWER_TRIES: u32 = 3;
/// Most fresh addresses asked for while nothing lands.
const MOST_EXPIRED: u32 = 4;

/// What came of a file's fetch.
pub(crate) struct Fetch {
    /// Of the bytes read back.
    pub(crate) digest: Digest,
    /// Bytes that came over the network.
    pub(crate) fetched_bytes: u64,
    /// When the last of them did, if any came.
    pub(crate) last_byte: Option<Instant>,
}

/// Fetches what is missing of `fill`, hashed and sent on its way to the disk as it lands.
///
/// `location` is where the bytes are, if that was asked for already.
pub(crate) async fn fetch_file(lane: &Lane<'_>, file: &TreeFile, location: Option<Location>, fill: &Arc<Fill>) -> Result<Fetch> {
    let plan = Plan::new(&fill.landed(), lane.gates.connections.most());
    let workers = plan.connections();
    let (pieces, digest) = FileWriter::start(fill, file.digest.hasher(file.size_bytes))?.split();
    let fetch = FileFetch {
        lane,
        file,
        plan: Mutex::new(plan),
        pieces,
        location: tokio::sync::Mutex::new(location),
        expired: AtomicU32::new(0),
        sequential: AtomicBool::new(false),
        fetched_bytes: AtomicU64::new(0),
        last_byte: Mutex::new(None),
    };
    let fetching = async move {
        let workers: FuturesUnordered<_> = (0..workers).map(|_| fetch.worker()).collect();
        workers.try_collect::<()>().await?;
        if !fetch.plan().is_complete() {
            // Every worker returned content, so this can't be; the writer's error would say less.
            return Err(Error::Damaged { what: file.path.to_string(), reason: "blocks are missing after its fetch".to_owned() });
        }
        lane.reporter.verifying(file.path.as_str());
        let fetched_bytes = fetch.fetched_bytes.load(Ordering::Relaxed);
        let last_byte = *fetch.last_byte.lock().unwrap_or_else(PoisonError::into_inner);
        // The writer ends once nobody can send to it.
        drop(fetch);
        Ok((fetched_bytes, last_byte))
    };
    let ((fetched_bytes, last_byte), digest) = future::try_join(fetching, digest).await?;
    Ok(Fetch { digest, fetched_bytes, last_byte })
}

/// Fetches a small file whole.
pub(crate) async fn fetch_small(lane: &Lane<'_>, file: &TreeFile) -> Result<Vec<u8>> {
    let mut failed = 0;
    let mut expired = 0;
    let path = file.path.as_str();
    if file.size_bytes == 0 {
        return Ok(Vec::new());
    }
    loop {
        let place = lane.gates.enter_small().await;
        let attempt = async {
            match lane.hub.get_whole(&lane.repo.repo, lane.commit, file).await? {
                RangeOutcome::Expired(error) => Ok(Err(error)),
                RangeOutcome::Body(mut body) => {
                    let mut bytes = Vec::with_capacity(file.size_bytes as usize);
                    while let Some(chunk) = body.chunk().await? {
                        bytes.extend_from_slice(&chunk);
                    }
                    Ok(Ok(bytes))
                }
            }
        };
        match attempt.await {
            Ok(Ok(bytes)) if bytes.len() as u64 == file.size_bytes => {
                lane.reporter.arrived(path, file.size_bytes);
                return Ok(bytes);
            }
            // A server may answer less than was asked for; the size is known, so this is a body that broke off.
            Ok(Ok(bytes)) => {
                drop(place);
                failed += 1;
                let reason = format!("it gave {} of {} bytes", bytes.len(), file.size_bytes);
                let error = Error::BadAnswer { url: format!("{} {path}", lane.repo.repo), reason };
                lane.wait_after(failed, path, error).await?;
            }
            Ok(Err(error)) => {
                expired += 1;
                if expired > MOST_EXPIRED {
                    return Err(error);
                }
            }
            Err(error) => {
                drop(place);
                failed += 1;
                lane.wait_after(failed, path, error).await?;
            }
        }
    }
}

struct FileFetch<'a> {
    lane: &'a Lane<'a>,
    file: &'a TreeFile,
    plan: Mutex<Plan>,
    /// Where what arrives is written.
    pieces: Pieces,
    /// Where the bytes are, shared by all connections; asked for once.
    location: tokio::sync::Mutex<Option<Location>>,
    /// Addresses found expired since the last block landed.
    expired: AtomicU32,
    /// Set by the connection that found the server ignoring ranges: it alone goes on, from the start.
    sequential: AtomicBool,
    fetched_bytes: AtomicU64,
    last_byte: Mutex<Option<Instant>>,
}

/// How one request ended, if not with an error that is final.
enum Fetched {
    /// It brought what it was asked for, each block in this time.
    Whole { per_block: Duration },
    /// Another connection streams the whole file.
    Superseded,
    /// It was much slower than others were: a new connection goes on where it stood.
    Slow,
    /// Whether it is tried again is the policy's to say.
    Broken(Error),
}

impl FileFetch<'_> {
    /// One connection: takes ranges until none is missing. What it took and could not land it gives back. One the server refuses
    /// while others go on leaves the rest to them.
    async fn worker(&self) -> Result<()> {
        let mut failed = 0;
        let mut pace = Duration::ZERO;
        loop {
            let gate = &self.lane.gates.blocks;
            let place = gate.enter().await;
            if self.sequential.load(Ordering::Acquire) {
                self.plan().leave();
                return Ok(());
            }
            // The shortest of all waits is the way to the server; this connection's may be this machine's being busy.
            let most = blocks_per_request(gate.first_byte(), pace);
            let taken = self.plan().take_or_leave(most, gate.allowed());
            let Some(range) = taken else { return Ok(()) };
            let mut taken = Taken { fetch: self, range: range.clone() };
            let here_before = self.plan().most_here();
            let result = self.fetch(&mut taken).await;
            drop(taken);
            match result? {
                Fetched::Whole { per_block } => {
                    failed = 0;
                    pace = per_block;
                }
                Fetched::Superseded => {
                    self.plan().leave();
                    return Ok(());
                }
                Fetched::Slow => {}
                Fetched::Broken(error) => {
                    drop(place);
                    if is_asked_too_much(&error) {
                        gate.refused();
                    }
                    // Progress, by whichever connection, shows that the server is there.
                    let made_progress = self.plan().most_here() >= here_before + PROGRESS_BYTES;
                    failed = if made_progress { 1 } else { failed + 1 };
                    match self.lane.wait_after(failed, self.file.path.as_str(), error).await {
                        Err(error) if is_worth_another_try(&error) && self.plan().retire() => return Ok(()),
                        waited => waited?,
                    }
                }
            }
        }
    }

    async fn fetch(&self, taken: &mut Taken<'_, '_>) -> Result<Fetched> {
        let blocks = taken.range.clone();
        let begun = self.plan().begun(blocks.start);
        let start = block_range(self.file.size_bytes, blocks.start).start + begun.map_or(0, |begun| begun.bytes);
        let bytes = start..block_range(self.file.size_bytes, blocks.end - 1).end;
        let asked_blocks = blocks.end - blocks.start;
        loop {
            // Tried again by the policy inside, so that its error is final.
            let location = self.location().await?;
            let asked = Instant::now();
            let outcome = match self.lane.hub.get_range(&location, bytes.clone()).await {
                Ok(outcome) => outcome,
                Err(error) => return Ok(Fetched::Broken(error)),
            };
            let stored = match outcome {
                RangeOutcome::Expired(error) => {
                    self.forget_location(&location).await;
                    if self.expired.fetch_add(1, Ordering::Relaxed) >= MOST_EXPIRED * self.lane.gates.connections.most() as u32 {
                        return Err(error);
                    }
                    continue;
                }
                RangeOutcome::Body(body) if body.range().start == bytes.start && body.range().end <= bytes.end => {
                    self.store(body, begun, asked, asked_blocks).await
                }
                RangeOutcome::Body(body) => {
                    // The whole file comes whatever is asked for: one connection takes it all.
                    if self.sequential.swap(true, Ordering::AcqRel) {
                        return Ok(Fetched::Superseded);
                    }
                    taken.release();
                    let stored = self.store(body, None, asked, asked_blocks).await;
                    // After a failure this connection asks again, and finds the same.
                    self.sequential.store(false, Ordering::Release);
                    stored
                }
            };
            return Ok(stored.unwrap_or_else(Fetched::Broken));
        }
    }

    /// Writes a body's bytes where they belong, but for blocks that arrive at another connection or have landed; its first block goes on
    /// as it was begun.
    async fn store(&self, mut body: RangeBody, begun: Option<Begun>, asked: Instant, blocks: u64) -> Result<Fetched> {
        let size_bytes = self.file.size_bytes;
        let start = body.range().start;
        let mut at = start;
        let mut writer =
            BlockWriter::new(&self.pieces, &self.lane.buffers, size_bytes, self.lane.reporter, self.file.path.as_str(), at);
        let mut landed = |block| self.land(block);
        let mut first_byte = None;
        let mut claimed = None;
        let mut block_begun = Duration::ZERO;
        let result = async {
            while let Some(chunk) = body.chunk().await? {
                first_byte.get_or_insert_with(|| asked.elapsed());
                self.fetched_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                self.lane.gates.blocks.arrived(chunk.len() as u64);
                let mut chunk = &chunk[..];
                while !chunk.is_empty() {
                    let block = at / BLOCK_BYTES;
                    let range = block_range(size_bytes, block);
                    let (part, rest) = chunk.split_at(chunk.len().min((range.end - at) as usize));
                    // Decided at a block's start, or where it goes on, and kept to its end, or the writer would begin in its middle.
                    if let Some(begun) = begun.filter(|_| at == start) {
                        if self.plan().claim_rest(block, begun) {
                            writer.go_on(begun);
                            claimed = Some(block);
                        }
                    } else if at == range.start && self.claim(block) {
                        claimed = Some(block);
                    }
                    if claimed == Some(block) {
                        writer.push(part, &mut landed).await?;
                    }
                    at += part.len() as u64;
                    chunk = rest;
                    if at == range.end {
                        if writer.at() < at {
                            writer.skip_to(at);
                        }
                        let took = body.waited() - std::mem::replace(&mut block_begun, body.waited());
                        // Not of a last block, nor of the rest of one: they are shorter.
                        if range.end - range.start.max(start) == BLOCK_BYTES {
                            self.lane.gates.blocks.block_took(took);
                        }
                    }
                }
                if body.waited() - block_begun > self.patience() {
                    return Ok(true);
                }
            }
            *self.last_byte.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Ok(false)
        }
        .await;
        // Waited for also after an error: the blocks given back may be written by another connection at once.
        let left = writer.leave(&mut landed).await;
        let broken = claimed.is_some_and(|block| self.plan().unclaim(block, left.as_ref().ok().copied()));
        let slow = left.and(result)?;
        if slow {
            let (path, waited) = (self.file.path.as_str(), body.waited());
            tracing::debug!(path, bytes = at - start, waited_ms = waited.as_millis() as u64, "a slow connection is made anew");
            if at - start < PROGRESS_BYTES {
                return Err(body.stalled(waited, at - start));
            }
            return Ok(Fetched::Slow);
        }
        // A server may send less than it was asked for, but going on like this would have no end.
        if broken && claimed == Some(start / BLOCK_BYTES) && writer.at() < start + PROGRESS_BYTES {
            return Err(Error::BadAnswer {
                url: format!("{} {}", self.lane.repo.repo, self.file.path),
                reason: format!("asked for bytes from {start}, it sends {} of them", writer.at() - start),
            });
        }
        let first_byte = first_byte.unwrap_or_default();
        self.lane.gates.blocks.answered_after(first_byte);
        Ok(Fetched::Whole { per_block: asked.elapsed().saturating_sub(first_byte) / blocks as u32 })
    }

    /// How long a connection may wait for one block. As long as it takes where the whole file comes: it would begin anew.
    fn patience(&self) -> Duration {
        let quickest = self.lane.gates.blocks.quickest_block().filter(|_| !self.sequential.load(Ordering::Acquire));
        quickest.map_or(Duration::MAX, |quickest| self.lane.hub.config().read_timeout.max(SLOW_FACTOR * quickest))
    }

    /// Whether a block that arrives from its start is to be written.
    fn claim(&self, block: u64) -> bool {
        let claimed = self.plan().claim(block);
        if let Some(lost_bytes) = claimed.filter(|bytes| *bytes > 0) {
            self.lane.reporter.lost(self.file.path.as_str(), lost_bytes);
        }
        claimed.is_some()
    }

    fn land(&self, block: u64) {
        let mut plan = self.plan();
        plan.land(block);
        self.expired.store(0, Ordering::Relaxed);
    }

    async fn location(&self) -> Result<Location> {
        let mut known = self.location.lock().await;
        match &*known {
            Some(location) => Ok(location.clone()),
            None => {
                let location = self.lane.resolve(self.file).await?;
                Ok(known.insert(location).clone())
            }
        }
    }

    /// Drops an expired address, unless another connection has a fresh one already.
    async fn forget_location(&self, expired: &Location) {
        let mut known = self.location.lock().await;
        if known.as_ref().is_some_and(|known| known.is_same_address(expired)) {
            *known = None;
        }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        // Every change leaves the plan whole.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks taken from the plan; what has not landed when it is dropped goes back.
struct Taken<'a, 'b> {
    fetch: &'a FileFetch<'b>,
    range: Range<u64>,
}

impl Taken<'_, '_> {
    /// Gives back all now.
    fn release(&mut self) {
        self.fetch.plan().give_back(self.range.clone());
        self.range = 0..0;
    }
}

impl Drop for Taken<'_, '_> {
    fn drop(&mut self) {
        self.release();
    }
}

impl Lane<'_> {
    pub(crate) async fn resolve(&self, file: &TreeFile) -> Result<Location> {
        let path = file.path.as_str();
        let observer = |notice: crate::hub::RetryNotice<'_>| {
            self.reporter.retry(Some(path), notice.attempt, notice.reason, notice.wait);
        };
        let resolve = || self.hub.resolve(&self.repo.repo, self.commit, file, &observer);
        match resolve().await {
            // By the Hub, which is one, rather a rule than chance: once more is enough.
            Err(error @ Error::BadAnswer { .. }) => {
                self.wait_after(1, path, error).await?;
                resolve().await
            }
            other => other,
        }
    }

    /// Waits before the next try, or gives the error back if there is to be none.
    async fn wait_after(&self, failed: u32, path: &str, error: Error) -> Result<()> {
        if !is_worth_another_try(&error) {
            return Err(error);
        }
        let max_tries = if error.is_transient() { RANGE_TRIES } else { BAD_ANSWER_TRIES };
        let policy = RetryPolicy { max_tries, ..self.hub.config().retry };
        let Some(wait) = policy.wait_by_count(failed, &error, random_unit()) else { return Err(error) };
        tracing::debug!(path, failed, wait_ms = wait.as_millis() as u64, reason = %error, "trying again");
        self.reporter.retry(Some(path), failed, &error, wait);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn is_worth_another_try(error: &Error) -> bool {
    error.is_transient() || matches!(error, Error::BadAnswer { .. })
}

/// Whether a server says with this that fewer connections would be welcome.
fn is_asked_too_much(error: &Error) -> bool {
    matches!(error, Error::RateLimited { .. } | Error::HubStatus { status: 503, .. })
}

/// Runs the tasks at most `at_once` at a time; the first error drops the rest.
pub(crate) async fn run_all<T>(tasks: impl Iterator<Item = impl Future<Output = Result<T>>>, at_once: usize) -> Result<Vec<T>> {
    futures::stream::iter(tasks).buffer_unordered(at_once).try_collect().await
}
