//! Repair: what is damaged is found as [`verify`](ModelCache::verify) finds it, and mended: records from what other records say, blocks
//! from the Hub, only those.

use crate::{
    cache::ModelCache,
    digest::Digest,
    download::{self, Buffers, Gates, Lane, SealTime, blocking},
    error::{Error, ErrorKind, Result},
    hub::TreeFile,
    key::PinnedRepo,
    manifest,
    name::{FilePath, RepoSpec},
    progress::{Paced, ProgressCallback, Reporter},
    record::{FileMetadata, INLINE_BYTES},
    store::{Fill, MendedRecords, Store, Suspect, Working, discard},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often a fill that came to nothing is asked whether its threads have ended.
const END_PAUSE: Duration = Duration::from_millis(5);

/// A repair to be described, then [`run`](Self::run).
///
/// ```no_run
/// # async fn repair() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = tabagent_model_cache::ModelCache::open("./models")?;
/// let report = cache.repair(Some("org/name")).run().await?;
/// println!("{} of {} files were damaged", report.damaged.len(), report.files);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Repair {
    cache: ModelCache,
    repo: Option<String>,
    dry_run: bool,
    checked: Option<ProgressCallback>,
    fetched: Option<ProgressCallback>,
    cancel: Option<CancellationToken>,
}

/// What a repair found and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// Files looked at.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// The damaged ones, each under its names.
    pub damaged: Vec<DamagedFile>,
    /// Records that were put in order, or, in a dry run, would be.
    pub records: Vec<MendedRecord>,
    /// Damaged values made of files for loaders that were dropped: they are made again when they are needed.
    pub dropped_values: u64,
}

/// A record that was put in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MendedRecord {
    /// Its key.
    pub what: String,
    /// What was done with it.
    pub how: String,
}

/// A damaged file and what came of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DamagedFile {
    /// The repo, with its commit.
    pub repo: String,
    /// The file.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
    /// Blocks that have to be fetched again.
    pub blocks: u64,
    /// Bytes of them.
    pub fetch_bytes: u64,
    /// Bytes of disk space its repair takes until it is done: a second copy. Files are repaired one after the other.
    pub room_bytes: u64,
    /// What came of it.
    pub outcome: RepairOutcome,
}

/// What came of a damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairOutcome {
    /// It is whole again, by its digest.
    Repaired,
    /// It would be repaired: this was a dry run.
    WouldRepair,
    /// It is as damaged as before.
    Failed {
        /// Which kind of error kept it.
        kind: ErrorKind,
        /// The error.
        message: String,
    },
}

/// What is to be done for one content.
struct Patient {
    names: Vec<(PinnedRepo, FilePath)>,
    metadata: FileMetadata,
    reason: String,
    /// Blocks that are not here.
    blocks: u64,
    fetch_bytes: u64,
}

impl Patient {
    /// Whether blocks of it are lost that nobody but its owner has.
    fn needs_original(&self) -> bool {
        self.blocks > 0 && self.names.iter().all(|(repo, _)| repo.commit.is_none())
    }

    /// The error that says so.
    fn original_wanted(&self) -> Result<Error> {
        let (repo, path) = &self.names[0];
        let digest: Digest = self.metadata.digest.parse()?;
        let reason = format!("it was imported, so the Hub can't be asked; import the original again, {digest}");
        Ok(Error::Damaged { what: format!("{repo} {path}"), reason })
    }
}

impl ModelCache {
    /// A repair of the whole store, or of one repo, to be described.
    ///
    /// Finds what [`verify`](Self::verify) finds, reads it all once, and mends it: damaged blocks, and only those, are fetched again from the Hub the file
    /// came from, held against the CRC32C that was sealed, and the file against its digest, before anything is changed. A file is replaced as a
    /// whole, in one transaction: who reads it goes on reading what he has, and the damaged content is freed when the last reader lets go.
    /// Where records, which are put in order for the whole store, or chunks' headers alone are damaged, nothing is fetched. Imports the Hub does not have: their damaged blocks can't be
    /// mended, and the report names the digest of the original.
    pub fn repair(&self, repo: Option<&str>) -> Repair {
        Repair { cache: self.clone(), repo: repo.map(str::to_owned), dry_run: false, checked: None, fetched: None, cancel: None }
    }
}

impl Repair {
    /// Whether to say what would be done, and do nothing. Default: no.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Called with bytes checked and bytes in all, while damage is looked for. Default: nobody is.
    pub fn on_check(mut self, callback: Option<ProgressCallback>) -> Self {
        self.checked = callback;
        self
    }

    /// Called with bytes fetched and bytes in all, of each file that needs some. Default: nobody is.
    pub fn on_fetch(mut self, callback: Option<ProgressCallback>) -> Self {
        self.fetched = callback;
        self
    }

    /// Cancels the repair when the token is: [`run`](Self::run) then ends with [`Error::Cancelled`]. Files that were repaired by then stay
    /// so, the others stay as they were. Default: none.
    pub fn cancel_token(mut self, token: CancellationToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Repairs; done when everything that can be mended is whole, durable and visible.
    ///
    /// Needs a Tokio runtime. Dropping the future cancels at any point; what was begun then is freed by the next open. One file that can't be repaired does not keep
    /// the others: see [`DamagedFile::outcome`].
    ///
    /// Cost: one read of everything checked, and for each damaged file room for a second copy of it until the first is freed.
    ///
    /// # Errors
    /// [`Error::NotInStore`], [`Error::Cancelled`], and those of a store that can't be read at all.
    pub async fn run(mut self) -> Result<RepairReport> {
        let cancel = self.cancel.take().unwrap_or_default();
        let (working, mut ended) = mpsc::channel(1);
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Cancelled),
            result = self.work(&cancel, working) => result,
        };
        // What writes and hashes ends by itself. Once this has returned nobody shall find it still at work.
        ended.recv().await;
        result
    }

    async fn work(&self, cancel: &CancellationToken, working: Working) -> Result<RepairReport> {
        let mut report = RepairReport::default();
        let (store, dry_run) = (Arc::clone(self.cache.store()), self.dry_run);
        let mended = blocking::run(move || store.mend_records(dry_run)).await?;
        let how = |(what, how): &(String, &'static str)| MendedRecord { what: what.clone(), how: (*how).to_owned() };
        report.records.extend(mended.mended.iter().map(how));
        self.list_again(&mended, &mut report).await;
        let (cache, repo, checked, token) = (self.cache.clone(), self.repo.clone(), self.checked.clone(), cancel.clone());
        let (patients, found) = blocking::run(move || find(&cache, repo.as_deref(), dry_run, checked.as_ref(), &token)).await?;
        (report.files, report.bytes, report.dropped_values) = (found.files, found.bytes, found.dropped_values);
        if let Some(asked) = &self.repo
            && found.files == 0
            && !mended.lost.iter().any(|(repo, _)| is_of(asked, repo))
        {
            return Err(Error::NotInStore { repo: asked.parse()? });
        }
        for patient in &patients {
            let outcome = if dry_run && patient.needs_original() {
                let error = patient.original_wanted()?;
                RepairOutcome::Failed { kind: error.kind(), message: error.chain() }
            } else if dry_run {
                RepairOutcome::WouldRepair
            } else {
                match self.mend(patient, cancel, &working, &mut report.fetched_bytes).await {
                    Ok(()) => RepairOutcome::Repaired,
                    Err(Error::Cancelled) => return Err(Error::Cancelled),
                    Err(error) => RepairOutcome::Failed { kind: error.kind(), message: error.chain() },
                }
            };
            report.damaged.extend(patient.names.iter().map(|(repo, path)| DamagedFile {
                repo: repo.to_string(),
                path: path.to_string(),
                reason: patient.reason.clone(),
                blocks: patient.blocks,
                fetch_bytes: patient.fetch_bytes,
                room_bytes: Some(patient.metadata.size_bytes).filter(|&bytes| bytes > INLINE_BYTES).unwrap_or(0),
                outcome: outcome.clone(),
            }));
        }
        for (repo, path) in &mended.lost {
            if self.repo.as_ref().is_none_or(|asked| is_of(asked, repo)) {
                report.damaged.push(self.bring_back(repo, path, &mut report.fetched_bytes).await);
            }
        }
        // Last: a small file may have been mended of them.
        let store = Arc::clone(self.cache.store());
        let dropped = blocking::run(move || store.drop_strays(dry_run)).await?;
        let how = "dropped: bytes of a small file no row leads to";
        report.records.extend(dropped.into_iter().map(|(what, _)| MendedRecord { what, how: how.to_owned() }));
        Ok(report)
    }

    /// Asks the Hub again for listings that are damaged or gone. Those it can't give are told: content does not need them.
    async fn list_again(&self, mended: &MendedRecords, report: &mut RepairReport) {
        let inner = self.cache.inner();
        for repo in &mended.unlisted {
            let Some(commit) = &repo.commit else { continue };
            let listing = async {
                let info = inner.hub.model_info(&repo.repo, &commit.as_str().parse()?, &|_| {}).await?;
                let files = inner.hub.list_tree(&repo.repo, commit, &|_| {}).await?;
                let entry = manifest::entry(&info, &files);
                let (store, repo) = (Arc::clone(&inner.store), repo.clone());
                blocking::run(move || store.put_manifest(&repo, &entry)).await
            };
            let how = match self.dry_run {
                true => "would be asked for at the Hub again".to_owned(),
                false => match listing.await {
                    Ok(()) => "asked for at the Hub again".to_owned(),
                    Err(error) => format!("left as it is: {}", error.chain()),
                },
            };
            report.records.push(MendedRecord { what: crate::key::manifest(repo), how });
        }
    }

    /// Pulls a file again whose name can't be read, and no row has.
    async fn bring_back(&self, repo: &PinnedRepo, path: &FilePath, fetched_bytes: &mut u64) -> DamagedFile {
        let mut damaged = DamagedFile {
            repo: repo.to_string(),
            path: path.to_string(),
            reason: "the record of its name is damaged, and its content is not known".to_owned(),
            blocks: 0,
            fetch_bytes: 0,
            room_bytes: 0,
            outcome: RepairOutcome::WouldRepair,
        };
        if self.dry_run {
            return damaged;
        }
        let pulled = async {
            if repo.commit.is_none() {
                let what = format!("{repo} {path}");
                return Err(Error::Damaged { what, reason: "it was imported; import it again".to_owned() });
            }
            let (store, name, file) = (Arc::clone(self.cache.store()), repo.clone(), path.clone());
            blocking::run(move || store.forget_damaged_name(&name, &file)).await?;
            // A pull within a repair: boxed, or each future would hold the other.
            Box::pin(self.cache.pull(&repo.to_string()).path(path.as_str()).run()).await
        };
        damaged.outcome = match pulled.await {
            Ok(report) => {
                *fetched_bytes += report.fetched_bytes;
                damaged.fetch_bytes = report.fetched_bytes;
                RepairOutcome::Repaired
            }
            Err(error) => RepairOutcome::Failed { kind: error.kind(), message: error.chain() },
        };
        damaged
    }

    /// Repairs one content, by the first of its names the Hub still serves.
    async fn mend(
        &self,
        patient: &Patient,
        cancel: &CancellationToken,
        working: &Working,
        fetched_bytes: &mut u64,
    ) -> Result<()> {
        let digest: Digest = patient.metadata.digest.parse()?;
        let mut failed = None;
        let (mut local, mut names) = (patient.names.first(), patient.names.iter().filter(|(repo, _)| repo.commit.is_some()));
        let needs_hub = patient.blocks > 0;
        loop {
            let name = if needs_hub { names.next() } else { local.take() };
            let Some((repo, path)) = name else { break };
            let size_bytes = patient.metadata.size_bytes;
            let file = TreeFile { path: path.clone(), size_bytes, digest };
            let callback = self.fetched.clone().filter(|_| needs_hub);
            let reporter = Reporter::new(repo.repo.to_string(), String::new(), None, callback);
            reporter.started([(path.as_str(), patient.fetch_bytes)].into_iter());
            let mended = async {
                if size_bytes <= INLINE_BYTES {
                    self.mend_small(repo, &file, needs_hub, &reporter, working).await
                } else {
                    self.mend_large(repo, &file, needs_hub, &reporter, cancel, working).await
                }
            };
            match mended.await {
                Ok(bytes) => {
                    *fetched_bytes += bytes;
                    reporter.done(bytes, Duration::ZERO);
                    return Ok(());
                }
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or_else(|| patient.original_wanted(), Ok)?)
    }

    /// Mends a small file; the bytes fetched.
    async fn mend_small(
        &self,
        repo: &PinnedRepo,
        file: &TreeFile,
        needs_hub: bool,
        reporter: &Reporter,
        working: &Working,
    ) -> Result<u64> {
        let (bytes, fetched) = if needs_hub {
            let bytes = self.with_lane(repo, reporter, working, async |lane| download::fetch_small(lane, file).await).await?;
            check_digest(repo, file, &bytes)?;
            (bytes, file.size_bytes)
        } else {
            let store = Arc::clone(self.cache.store());
            let (name, wanted) = (repo.clone(), file.clone());
            let bytes = blocking::run(move || sound_inline(&store, &name, &wanted)).await?;
            let gone = || Error::Damaged { what: format!("{repo} {}", file.path), reason: "its bytes are gone".to_owned() };
            (bytes.ok_or_else(gone)?, 0)
        };
        let (store, repo, path) = (Arc::clone(self.cache.store()), repo.clone(), file.path.clone());
        blocking::run(move || store.repair_inline(&repo, &path, &bytes)).await?;
        Ok(fetched)
    }

    /// Mends a file with extents; the bytes fetched.
    async fn mend_large(
        &self,
        repo: &PinnedRepo,
        file: &TreeFile,
        needs_hub: bool,
        reporter: &Reporter,
        cancel: &CancellationToken,
        working: &Working,
    ) -> Result<u64> {
        let what = format!("{} {}", repo.repo, file.path);
        // Asked before anything is copied: it may be gone, or the Hub out of reach.
        let location = if needs_hub {
            Some(self.with_lane(repo, reporter, working, async |lane| lane.resolve(file).await).await?)
        } else {
            None
        };
        let store = Arc::clone(self.cache.store());
        let (name, path, token, works) = (repo.clone(), file.path.clone(), cancel.clone(), working.clone());
        let begun = blocking::run(move || {
            let Some(suspect) = store.suspect(&name, &path)? else { return Ok(None) };
            let (fill, damaged) = store.begin_repair(&suspect, |_| crate::progress::go_on(Some(&token)))?;
            fill.works_for(works);
            Ok(Some((suspect, fill, damaged)))
        });
        // Removed, or replaced, since it was looked at.
        let Some((suspect, fill, damaged)) = begun.await? else { return Ok(0) };
        let fill = Ending(fill);
        let result = async {
            let (found, bytes) = if damaged.is_empty() {
                let (read, hasher) = (Arc::clone(&fill.0), file.digest.hasher(file.size_bytes));
                (blocking::run(move || read.digest(hasher)).await?, 0)
            } else {
                if !needs_hub && repo.commit.is_none() {
                    return Err(Error::Damaged { what: what.clone(), reason: "more of it is damaged by now".to_owned() });
                }
                let fetching = self
                    .with_lane(repo, reporter, working, async |lane| download::fetch_file(lane, file, location, &fill.0).await);
                let fetched = fetching.await?;
                (fetched.digest, fetched.fetched_bytes)
            };
            storage::fail_point("repair.blocks_fetched");
            if found != file.digest {
                let (name, expected, size_bytes) = (what.clone(), file.digest, file.size_bytes);
                return Err(Error::DigestMismatch { name, expected, found, size_bytes });
            }
            Ok(bytes)
        };
        let bytes = match result.await {
            Ok(bytes) => bytes,
            Err(error) => {
                fill.give_up().await;
                return Err(error);
            }
        };
        let (store, sealed) = (Arc::clone(self.cache.store()), Arc::clone(&fill.0));
        let ended = blocking::run(move || {
            let ended = store.end_repair(&suspect, &sealed, None);
            // Its lease goes first: the damaged blob is freed at once, unless others read it.
            drop(suspect);
            store.free_replaced();
            ended
        });
        if let Err(error) = ended.await {
            fill.give_up().await;
            return Err(error);
        }
        Ok(bytes)
    }

    /// Has `work` fetch from the Hub, as a pull of `repo` would.
    async fn with_lane<T>(
        &self,
        repo: &PinnedRepo,
        reporter: &Reporter,
        working: &Working,
        work: impl AsyncFnOnce(&Lane<'_>) -> Result<T>,
    ) -> Result<T> {
        let inner = self.cache.inner();
        let commit = repo.commit.as_ref().ok_or_else(|| Error::Damaged {
            what: repo.to_string(),
            reason: "it was imported, so the Hub can't be asked".to_owned(),
        })?;
        let means = inner.means()?;
        let gates = Gates::new(means.connections);
        let lane = Lane {
            store: &inner.store,
            hub: &inner.hub,
            repo,
            commit,
            reporter,
            gates: &gates,
            buffers: Buffers::new(means.buffers),
            seal_time: SealTime::default(),
            working: working.clone(),
        };
        work(&lane).await
    }
}

/// A fill whose long reads end early once this is dropped.
struct Ending(Arc<Fill>);

impl Ending {
    /// Frees what was filled, once nobody writes into it any more.
    async fn give_up(&self) {
        self.0.cancel();
        while Arc::strong_count(&self.0) > 1 {
            tokio::time::sleep(END_PAUSE).await;
        }
        let fill = Arc::clone(&self.0);
        let freed = blocking::run(move || {
            discard(&fill);
            Ok(())
        });
        let _ = freed.await;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How much was looked at.
#[derive(Default)]
struct Found {
    files: u64,
    bytes: u64,
    dropped_values: u64,
}

fn is_of(asked: &str, repo: &PinnedRepo) -> bool {
    asked.parse::<RepoSpec>().is_ok_and(|spec| spec.repo == repo.repo)
}

/// Looks for damaged content: of the whole store, or of one repo.
fn find(
    cache: &ModelCache,
    repo: Option<&str>,
    dry_run: bool,
    progress: Option<&ProgressCallback>,
    cancel: &CancellationToken,
) -> Result<(Vec<Patient>, Found)> {
    let mut contents: BTreeMap<String, (FileMetadata, Vec<(PinnedRepo, FilePath)>)> = BTreeMap::new();
    for (repo, path, metadata) in cache.names_of(repo)? {
        contents.entry(metadata.digest.clone()).or_insert_with(|| (metadata, Vec::new())).1.push((repo, path));
    }
    let mut found = Found::default();
    let total_bytes = contents.values().map(|(metadata, _)| metadata.size_bytes).sum();
    let mut paced = Paced::new(progress, Some(cancel), total_bytes);
    let mut patients = Vec::new();
    for (digest, (metadata, names)) in contents {
        let (repo, path) = &names[0];
        let before = found.bytes;
        let seen = if metadata.size_bytes <= INLINE_BYTES {
            look_at_small(cache.store(), repo, path, &metadata)?
        } else {
            match cache.store().suspect(repo, path) {
                // Whoever seals or frees it knows what it is.
                Ok(None) | Err(Error::Busy { .. }) => None,
                Ok(Some(suspect)) => look_at(&suspect, |bytes| paced.tell(before + bytes))?,
                Err(error) => return Err(error),
            }
        };
        found.files += names.len() as u64;
        found.bytes = before + metadata.size_bytes;
        paced.tell(found.bytes)?;
        if !dry_run {
            let dropped = cache.store().verify_derived(&digest, &|| crate::progress::go_on(Some(cancel)))?;
            found.dropped_values += dropped.len() as u64;
        }
        if let Some((reason, blocks, fetch_bytes)) = seen {
            patients.push(Patient { names, metadata, reason, blocks, fetch_bytes });
        }
    }
    Ok((patients, found))
}

/// What is wrong with a file, how many blocks of it are lost, and how many bytes; `None` where all is well.
type Seen = Option<(String, u64, u64)>;

fn look_at(suspect: &Suspect, mut tell: impl FnMut(u64) -> Result<()>) -> Result<Seen> {
    let mut reasons: Vec<String> = suspect.bad_chunks.iter().map(|(_, reason)| reason.clone()).collect();
    if !suspect.has_row() {
        reasons.push("its row is damaged or gone".to_owned());
    }
    let (mut blocks, mut fetch_bytes) = (0, 0);
    let mut buffer = Vec::new();
    for block in 0..suspect.layout().blocks() {
        let range = suspect.layout().block_range(block);
        if let Err(reason) = suspect.read_block(block, &mut buffer) {
            blocks += 1;
            fetch_bytes += range.end - range.start;
            reasons.push(format!("block {block}: {reason}"));
        }
        tell(range.end)?;
    }
    Ok((!reasons.is_empty()).then(|| (summary(&reasons), blocks, fetch_bytes)))
}

/// The first of several reasons, and how many more there are.
fn summary(reasons: &[String]) -> String {
    match reasons {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
    }
}

fn look_at_small(store: &Arc<Store>, repo: &PinnedRepo, path: &FilePath, metadata: &FileMetadata) -> Result<Seen> {
    match store.open_file(repo, path, false) {
        Ok(_) => Ok(None),
        Err(error) if error.is_corruption() => {
            let file = TreeFile { path: path.clone(), size_bytes: metadata.size_bytes, digest: metadata.digest.parse()? };
            let lost = sound_inline(store, repo, &file)?.is_none();
            Ok(Some((error.chain(), u64::from(lost), if lost { metadata.size_bytes } else { 0 })))
        }
        Err(error) => Err(error),
    }
}

/// A small file's bytes, if they are still here and those promised.
fn sound_inline(store: &Store, repo: &PinnedRepo, file: &TreeFile) -> Result<Option<Vec<u8>>> {
    let candidates = store.inline_candidates(repo, &file.path)?;
    Ok(candidates.into_iter().find(|bytes| check_digest(repo, file, bytes).is_ok()))
}

fn check_digest(repo: &PinnedRepo, file: &TreeFile, bytes: &[u8]) -> Result<()> {
    let mut hasher = file.digest.hasher(file.size_bytes);
    hasher.update(bytes);
    let found = hasher.finish();
    if found == file.digest && bytes.len() as u64 == file.size_bytes {
        return Ok(());
    }
    let name = format!("{} {}", repo.repo, file.path);
    Err(Error::DigestMismatch { name, expected: file.digest, found, size_bytes: bytes.len() as u64 })
}
