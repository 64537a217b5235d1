//! A pull, from its description to its report: [`Pull`].

use crate::{
    cache::ModelCache,
    choice::Globs,
    download::{self, Buffers, Gates, Lane, SealTime, blocking},
    error::{Error, Result},
    hub::{RetryNotice, TreeFile},
    key::PinnedRepo,
    manifest::activity,
    name::{CommitId, FilePath, RepoId, RepoSpec, Revision},
    progress::{EventSink, ProgressCallback, Reporter},
    record::ManifestEntry,
    store::Working,
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A pull to be described, then [`run`](Self::run).
///
/// ```no_run
/// # async fn pull() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = tabagent_model_cache::ModelCache::open("./models")?;
/// let report = cache.pull("org/name@v1.0").quant("Q4_K_M").file("*.md").run().await?;
/// println!("{} bytes fetched", report.fetched_bytes);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Pull {
    cache: ModelCache,
    repo: String,
    quants: Vec<String>,
    globs: Vec<String>,
    paths: Vec<String>,
    all: bool,
    callback: Option<ProgressCallback>,
    sink: Option<EventSink>,
    cancel: Option<CancellationToken>,
}

/// What a pull did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullReport {
    /// The repo.
    pub repo: RepoId,
    /// The commit pulled.
    pub commit: CommitId,
    /// The quants pulled, as the manifest names them; empty where files were chosen.
    pub quants: Vec<String>,
    /// How many files.
    pub files: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
    /// Bytes that came over the network.
    pub fetched_bytes: u64,
    /// Bytes that were here already, or came in through another pull.
    pub here_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// The longest time from a file's last byte received to its seal: what was left to check and to wait for the disk. None if no
    /// file over 64 KiB was fetched.
    pub seal_time: Option<Duration>,
    /// Files that names of the others promise and the repo lacks.
    pub missing: Vec<String>,
}

/// Where a pull stands, once its commit is known.
struct Placed {
    pinned: PinnedRepo,
    revision: Revision,
    reporter: Reporter,
}

/// What was chosen of a listing.
struct Chosen {
    files: Vec<TreeFile>,
    quants: Vec<String>,
    missing: Vec<String>,
    /// The listing it was chosen of.
    entry: Arc<ManifestEntry>,
}

impl Pull {
    pub(crate) fn new(cache: ModelCache, repo: &str) -> Self {
        Self {
            cache,
            repo: repo.to_owned(),
            quants: Vec::new(),
            globs: Vec::new(),
            paths: Vec::new(),
            all: false,
            callback: None,
            sink: None,
            cancel: None,
        }
    }

    /// Adds a quant, case ignored. Default: the repo's only one.
    pub fn quant(mut self, quant: impl Into<String>) -> Self {
        self.quants.push(quant.into());
        self
    }

    /// Adds the files a glob matches; `*` matches `/` too.
    pub fn file(mut self, glob: impl Into<String>) -> Self {
        self.globs.push(glob.into());
        self
    }

    /// Adds one file, by its exact path.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.paths.push(path.into());
        self
    }

    /// Whether to take every file of the repo. Default: no.
    pub fn all(mut self, all: bool) -> Self {
        self.all = all;
        self
    }

    /// Called with bytes here and bytes in all. Default: nobody is.
    pub fn on_progress(mut self, callback: Option<ProgressCallback>) -> Self {
        self.callback = callback;
        self
    }

    /// Called with every event. Default: nobody is.
    pub fn on_event(mut self, sink: Option<EventSink>) -> Self {
        self.sink = sink;
        self
    }

    /// Cancels the pull when the token is: [`run`](Self::run) then ends with [`Error::Cancelled`]. Default: none.
    pub fn cancel_token(mut self, token: CancellationToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Pulls; done when every file is here, verified, durable and visible.
    ///
    /// Needs a Tokio runtime. Dropping the future cancels at any point; the store keeps every block that landed.
    ///
    /// # Errors
    /// [`Error::QuantNotChosen`] where nothing was chosen and there are several; otherwise as
    /// [`ModelCache::download_quant`].
    pub async fn run(mut self) -> Result<PullReport> {
        let spec: RepoSpec = self.repo.parse()?;
        let commit = spec.revision_or_main().to_string();
        // Until the commit is known, events carry the revision.
        let early = Reporter::new(spec.repo.to_string(), commit, self.sink.clone(), None);
        let cancel = self.cancel.take().unwrap_or_default();
        let work = async {
            self.cache.inner().means()?;
            let globs = Globs::new(&self.globs)?;
            let paths = self.paths.iter().map(|path| path.parse()).collect::<Result<Vec<FilePath>>>()?;
            let observer = |notice: RetryNotice<'_>| early.retry(None, notice.attempt, notice.reason, notice.wait);
            let (pinned, entry) = self.listing(&spec, &observer).await?;
            let chosen = self.choose(&pinned, Arc::new(entry), &globs, &paths)?;
            Ok((pinned, chosen))
        };
        let started = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Cancelled),
            result = work => result,
        };
        let (pinned, chosen) = match started {
            Ok(started) => started,
            Err(error) => {
                tell_end(&early, &error);
                return Err(error);
            }
        };
        early.hand_over();
        let commit = pinned.commit.as_ref().map(ToString::to_string).unwrap_or_default();
        let reporter = Reporter::new(spec.repo.to_string(), commit, self.sink.clone(), self.callback.clone());
        let placed = Placed { pinned, revision: spec.revision_or_main(), reporter };
        let (working, mut ended) = mpsc::channel(1);
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Cancelled),
            result = self.fetch(&placed, &chosen, working) => result,
        };
        // What writes, hashes and writes back ends by itself. Once this has returned nobody shall find it still at work.
        ended.recv().await;
        if let Err(error) = &result {
            if !matches!(error, Error::Cancelled) {
                self.note_failure(&placed.pinned, &chosen.quants, Some(error.chain())).await;
            }
            tell_end(&placed.reporter, error);
        }
        result
    }

    /// The listing from the Hub; from the store where the Hub can't be reached and the store has one.
    async fn listing(&self, spec: &RepoSpec, observer: &(dyn Fn(RetryNotice<'_>) + Sync)) -> Result<(PinnedRepo, ManifestEntry)> {
        let error = match self.cache.listing(spec, observer).await {
            Err(error) if error.is_transient() => error,
            other => return other,
        };
        for pinned in self.cache.store().local_repos(spec)? {
            if let Some(entry) = self.cache.store().get_manifest(&pinned)? {
                tracing::warn!(repo = %spec, %error, "the Hub can't be asked; going by its last listing");
                return Ok((pinned, entry));
            }
        }
        Err(error)
    }

    fn choose(&self, pinned: &PinnedRepo, entry: Arc<ManifestEntry>, globs: &Globs, paths: &[FilePath]) -> Result<Chosen> {
        let files = entry.tree_files()?;
        let listed = || entry.files.iter().map(|file| file.path.as_str());
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut chosen = Chosen { files: Vec::new(), quants: Vec::new(), missing: Vec::new(), entry: Arc::clone(&entry) };
        let mut take = |quant: &crate::record::QuantEntry, wanted: &mut BTreeSet<String>| {
            if !chosen.quants.contains(&quant.key) {
                wanted.extend(entry.files_of(quant));
                chosen.quants.push(quant.key.clone());
                chosen.missing.extend(quant.missing.iter().cloned());
            }
        };
        for quant in &self.quants {
            take(entry.find_quant(&pinned.repo, quant)?, &mut wanted);
        }
        globs.each_matches(&pinned.repo, pinned.commit.as_ref(), listed())?;
        wanted.extend(listed().filter(|path| globs.matches(path)).map(str::to_owned));
        for path in paths {
            if !listed().any(|listed| listed == path.as_str()) {
                let (repo, commit) = (pinned.repo.clone(), pinned.commit.clone());
                return Err(Error::FileNotFound { repo, commit, path: path.to_string() });
            }
            wanted.insert(path.to_string());
        }
        if self.all {
            wanted.extend(listed().map(str::to_owned));
            entry.quants.iter().for_each(|quant| take(quant, &mut wanted));
        } else if self.quants.is_empty() && globs.is_empty() && paths.is_empty() {
            match &entry.quants[..] {
                [only] => take(only, &mut wanted),
                several => return Err(not_chosen(pinned, &entry, several)),
            }
        }
        chosen.files = files.into_iter().filter(|file| wanted.contains(file.path.as_str())).collect();
        Ok(chosen)
    }

    async fn fetch(&self, placed: &Placed, chosen: &Chosen, working: Working) -> Result<PullReport> {
        let Placed { pinned, revision, reporter } = placed;
        let started = Instant::now();
        let inner = self.cache.inner();
        let commit = pinned
            .commit
            .clone()
            .ok_or_else(|| Error::NotInStore { repo: RepoSpec { repo: pinned.repo.clone(), revision: None } })?;
        // Held while the pull runs: other processes see the quants as downloading.
        let mut announced = Vec::new();
        for quant in &chosen.quants {
            announced.extend(inner.store.begin_activity(&activity(pinned, quant))?);
        }
        reporter.started(chosen.files.iter().map(|file| (file.path.as_str(), file.size_bytes)));
        let what = match &chosen.quants[..] {
            [] => pinned.repo.to_string(),
            quants => format!("{} {}", pinned.repo, quants.join(", ")),
        };
        download::check_space(&inner.store, &what, &chosen.files)?;
        self.note_failure(pinned, &chosen.quants, None).await;
        let means = inner.means()?;
        let gates = Gates::new(means.connections);
        let lane = Lane {
            store: &inner.store,
            hub: &inner.hub,
            repo: pinned,
            commit: &commit,
            reporter,
            gates: &gates,
            buffers: Buffers::new(means.buffers),
            seal_time: SealTime::default(),
            working,
        };
        let fetched_bytes = download::pull_files(&lane, &chosen.files).await?;
        let (store, repo, revision) = (Arc::clone(&inner.store), pinned.clone(), revision.clone());
        let entry = Arc::clone(&chosen.entry);
        let paths: Vec<FilePath> = chosen.files.iter().map(|file| file.path.clone()).collect();
        blocking::run(move || store.finish_pull(&repo, &revision, &entry, paths.iter())).await?;
        drop(announced);
        let total_bytes: u64 = chosen.files.iter().map(|file| file.size_bytes).sum();
        let (elapsed, seal_time) = (started.elapsed(), lane.seal_time.longest());
        reporter.done(fetched_bytes, elapsed);
        Ok(PullReport {
            repo: pinned.repo.clone(),
            commit,
            quants: chosen.quants.clone(),
            files: chosen.files.len() as u64,
            total_bytes,
            fetched_bytes,
            here_bytes: total_bytes.saturating_sub(fetched_bytes),
            elapsed,
            seal_time,
            missing: chosen.missing.clone(),
        })
    }

    /// Writes down, or clears, why these quants failed. That is for showing: not being able to must not hide the failure itself.
    async fn note_failure(&self, pinned: &PinnedRepo, quants: &[String], failure: Option<String>) {
        let (store, pinned, quants) = (Arc::clone(self.cache.store()), pinned.clone(), quants.to_vec());
        if let Err(error) = blocking::run(move || store.set_last_error(&pinned, &quants, failure.as_deref())).await {
            tracing::debug!(%error, "how the pull ended was not written down");
        }
    }
}

fn not_chosen(pinned: &PinnedRepo, entry: &ManifestEntry, quants: &[crate::record::QuantEntry]) -> Error {
    let size = |quant: &crate::record::QuantEntry| {
        let files = entry.files_of(quant);
        entry.files.iter().filter(|file| files.contains(&file.path)).map(|file| file.size_bytes).sum()
    };
    let offered = quants.iter().map(|quant| (quant.key.clone(), size(quant))).collect();
    Error::QuantNotChosen { repo: pinned.repo.clone(), offered }
}

fn tell_end(reporter: &Reporter, error: &Error) {
    match error {
        Error::Cancelled => reporter.cancelled(),
        error => reporter.failed(error),
    }
}
