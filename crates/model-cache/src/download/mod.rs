//! Pulling: from a choice of files to sealed ones. One way: plan, fetch, fill, verify, seal, tell.
//!
//! Everything runs in the one future of the pull, so that dropping it stops it; only disk work goes to blocking threads, which
//! own what they need. No transaction lives across an `.await`.

mod adapt;
pub(crate) mod blocking;
mod fetch;
mod gate;
mod plan;
mod write;

pub(crate) use fetch::{fetch_file, fetch_small};
pub(crate) use gate::Connections;
pub(crate) use write::{BUFFER_BYTES, Buffers};

use crate::{
    error::{Error, Result},
    hub::{HubClient, Location, TreeFile},
    key::PinnedRepo,
    name::CommitId,
    progress::Reporter,
    record::{BLOCK_BYTES, INLINE_BYTES},
    store::{Acquired, Fill, Store, Wanted, Working},
};
use futures::future;
use gate::{Gate, Place};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

/// Files begun at once. Their connections come from one pool, so more would only spread them thinner.
const FILES_AT_ONCE: usize = 4;
/// Files of at most a block begun at once: each takes one connection, and waits for answers and the disk more than it transfers.
const MIDDLING_AT_ONCE: usize = 8;
/// Small files begun at once, for each connection a large one may have: two that wait for the Hub and two that wait for its CDN.
const SMALL_PER_CONNECTION: usize = 4;
/// How often a file that another process fetches is looked at.
const WAIT_PAUSE: Duration = Duration::from_millis(200);

/// What every part of one pull works with.
pub(crate) struct Lane<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) hub: &'a HubClient,
    pub(crate) repo: &'a PinnedRepo,
    pub(crate) commit: &'a CommitId,
    pub(crate) reporter: &'a Reporter,
    pub(crate) gates: &'a Gates,
    /// What network bytes are gathered in.
    pub(crate) buffers: Buffers,
    /// The longest time from a file's last byte to its seal.
    pub(crate) seal_time: SealTime,
    pub(crate) working: Working,
}

/// The longest time from a file's last byte received to its seal, so far.
#[derive(Default)]
pub(crate) struct SealTime(Mutex<Option<Duration>>);

impl SealTime {
    fn note(&self, time: Duration) {
        let mut longest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = (*longest).max(Some(time));
    }

    pub(crate) fn longest(&self) -> Option<Duration> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of a pull's connections, over all its files.
pub(crate) struct Gates {
    connections: Connections,
    /// For requests for blocks, and where the number of connections is fixed for all.
    blocks: Gate,
    /// For small files. They are no bandwidth to speak of, so they are not adapted, and are not what `blocks` is adapted by.
    small: Option<Gate>,
    sealing: SealQueue,
}

impl Gates {
    pub(crate) fn new(connections: Connections) -> Self {
        let small = match connections {
            Connections::Fixed(_) => None,
            Connections::Adaptive { most } => Some(Gate::new(Connections::Fixed(SMALL_PER_CONNECTION * most))),
        };
        Self { connections, blocks: Gate::new(connections), small, sealing: SealQueue::default() }
    }

    /// A place to fetch a small file.
    async fn enter_small(&self) -> Place<'_> {
        self.small.as_ref().unwrap_or(&self.blocks).enter().await
    }
}

/// Brings `files` into the store, each sealed as it is complete. Gives the bytes that came over the network.
///
/// # Errors
/// The first that is final. Files sealed by then stay; blocks that landed are kept for the next pull.
pub(crate) async fn pull_files(lane: &Lane<'_>, files: &[TreeFile]) -> Result<u64> {
    // Files of one content are one blob: fetched for the first name, linked for the others.
    // Owned: futures made from borrowed items would not be `Send` (rust-lang/rust#102211).
    let mut contents: BTreeMap<_, Vec<TreeFile>> = BTreeMap::new();
    for file in files {
        contents.entry(file.digest).or_default().push(file.clone());
    }
    let mut contents: Vec<_> = contents.into_values().collect();
    // The largest first: it takes longest.
    contents.sort_by_key(|names| (std::cmp::Reverse(names[0].size_bytes), names[0].path.clone()));
    let (large, rest): (Vec<_>, Vec<_>) = contents.into_iter().partition(|names| names[0].size_bytes > BLOCK_BYTES);
    let (middling, small): (Vec<_>, Vec<_>) = rest.into_iter().partition(|names| names[0].size_bytes > INLINE_BYTES);
    let small_at_once = SMALL_PER_CONNECTION * lane.gates.connections.most();
    let pulling = future::try_join3(
        pull_contents(lane, large, FILES_AT_ONCE),
        pull_contents(lane, middling, MIDDLING_AT_ONCE),
        pull_contents(lane, small, small_at_once),
    );
    let limit = lane.hub.limit();
    tokio::select! {
        pulled = pulling => pulled.map(|(large, middling, small)| large + middling + small),
        never = lane.gates.blocks.adapt(limit.as_deref()) => match never {},
    }
}

/// Brings files into the store, those of one content together and so many contents at once.
async fn pull_contents(lane: &Lane<'_>, contents: Vec<Vec<TreeFile>>, at_once: usize) -> Result<u64> {
    let tasks = contents.into_iter().map(|names| async move {
        let mut fetched_bytes = 0;
        for file in names {
            fetched_bytes += pull_file(lane, &file).await?;
        }
        Ok(fetched_bytes)
    });
    Ok(fetch::run_all(tasks, at_once).await?.into_iter().sum())
}

async fn pull_file(lane: &Lane<'_>, file: &TreeFile) -> Result<u64> {
    let path = file.path.as_str();
    let wanted = Wanted { repo: lane.repo.clone(), path: file.path.clone(), size_bytes: file.size_bytes, digest: file.digest };
    let here = {
        let (store, wanted) = (Arc::clone(lane.store), wanted.clone());
        blocking::run(move || store.link_if_here(&wanted)).await?
    };
    let fetched_bytes = if here {
        0
    } else if file.size_bytes <= INLINE_BYTES {
        let bytes = fetch::fetch_small(lane, file).await?;
        lane.gates.sealing.seal(lane.store, wanted, bytes).await?;
        file.size_bytes
    } else {
        // A file nobody began is asked for before its space is taken: it may be gated, or gone.
        let begun = lane.store.blob(&crate::key::blob(&wanted.digest))?.is_some();
        let location = if begun { None } else { Some(lane.resolve(file).await?) };
        match acquire(lane, &wanted).await? {
            None => 0,
            Some(fill) => fill_and_seal(lane, file, location, wanted, fill).await?,
        }
    };
    lane.reporter.sealed(path, file.size_bytes, fetched_bytes);
    Ok(fetched_bytes)
}

/// The fill of `wanted`, its landed blocks checked; `None` if its content came to be here, now or while another fetched it.
async fn acquire(lane: &Lane<'_>, wanted: &Wanted) -> Result<Option<Cancelling>> {
    let path = wanted.path.as_str();
    let mut told = false;
    loop {
        let (store, wanted, working) = (Arc::clone(lane.store), wanted.clone(), lane.working.clone());
        let acquired = blocking::run(move || {
            let acquired = store.acquire(&wanted)?;
            if let Acquired::Fill(fill) = &acquired {
                fill.works_for(working);
            }
            Ok(acquired)
        });
        match acquired.await? {
            Acquired::Here => return Ok(None),
            Acquired::Busy { landed_bytes } => {
                if !std::mem::replace(&mut told, true) {
                    lane.reporter.waiting(path);
                }
                lane.reporter.is_here(path, landed_bytes);
                tokio::time::sleep(WAIT_PAUSE).await;
            }
            Acquired::Fill(fill) => {
                let fill = Cancelling(fill);
                let checked = Arc::clone(&fill.0);
                blocking::run(move || checked.verify_landed()).await?;
                return Ok(Some(fill));
            }
        }
    }
}

async fn fill_and_seal(
    lane: &Lane<'_>,
    file: &TreeFile,
    location: Option<Location>,
    wanted: Wanted,
    fill: Cancelling,
) -> Result<u64> {
    let path = file.path.as_str();
    lane.reporter.is_here(path, fill.0.landed_bytes());
    let fetched = fetch::fetch_file(lane, file, location, &fill.0).await?;
    let found = fetched.digest;
    let name = format!("{} {path}", lane.repo.repo);
    let sealed = Arc::clone(&fill.0);
    blocking::run(move || {
        sealed.check(&name, wanted.digest, found)?;
        sealed.seal(&wanted).map(drop)
    })
    .await?;
    if let Some(last_byte) = fetched.last_byte {
        lane.seal_time.note(last_byte.elapsed());
    }
    Ok(fetched.fetched_bytes)
}

/// Small files whose bytes are here and that wait to be sealed: each transaction takes all that came while the last one waited for
/// the disk.
#[derive(Default)]
struct SealQueue {
    waiting: Mutex<Vec<Unsealed>>,
    turn: tokio::sync::Mutex<()>,
}

struct Unsealed {
    wanted: Wanted,
    bytes: Vec<u8>,
    sealed: oneshot::Sender<Result<()>>,
}

impl SealQueue {
    /// Seals a small file; done when it is durable and visible.
    async fn seal(&self, store: &Arc<Store>, wanted: Wanted, bytes: Vec<u8>) -> Result<()> {
        let (sealed, done) = oneshot::channel();
        self.waiting().push(Unsealed { wanted, bytes, sealed });
        {
            let _turn = self.turn.lock().await;
            // Empty where whoever had the turn before took this file along, and has sealed it by now.
            let batch = std::mem::take(&mut *self.waiting());
            if !batch.is_empty() {
                let store = Arc::clone(store);
                blocking::run(move || {
                    seal_batch(&store, batch);
                    Ok(())
                })
                .await?;
            }
        }
        done.await.unwrap_or(Err(Error::Cancelled))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Unsealed>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seal_batch(store: &Store, batch: Vec<Unsealed>) {
    let together: Vec<_> = batch.iter().map(|file| (&file.wanted, &file.bytes[..])).collect();
    let all = store.seal_inline_together(&together);
    for Unsealed { wanted, bytes, sealed } in batch {
        // One that can't be sealed keeps the others from nothing.
        let result = if all.is_ok() { Ok(()) } else { store.seal_inline(&wanted, &bytes) };
        // Nobody waits where the pull was dropped.
        let _ = sealed.send(result);
    }
}

/// A fill whose long reads end early once this is dropped.
struct Cancelling(Arc<Fill>);

impl Drop for Cancelling {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The error for files that do not fit, if they don't; told before the first byte is fetched.
pub(crate) fn check_space(store: &Store, what: &str, files: &[TreeFile]) -> Result<()> {
    let mut needed_bytes = 0;
    let mut seen = std::collections::HashSet::new();
    for file in files.iter().filter(|file| seen.insert(file.digest)) {
        // A blob with a row has its space, or is here.
        if store.blob(&crate::key::blob(&file.digest))?.is_none() {
            needed_bytes += file.size_bytes;
        }
    }
    let free_bytes = store.free_bytes()?;
    if needed_bytes > free_bytes {
        return Err(Error::NoSpace { what: what.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}
