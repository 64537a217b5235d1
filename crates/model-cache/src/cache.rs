//! The facade: [`ModelCache`]. Each call parses its names, then hands over to the part that does the work.

use crate::{
    builder::{BadVariable, Means, ModelCacheBuilder},
    choice::Globs,
    download::blocking,
    error::{Error, Result},
    file::ModelFile,
    hub::RetryNotice,
    key::PinnedRepo,
    listing::FileState,
    manifest::{self, Manifest, QuantStatus},
    name::{FilePath, RepoSpec},
    progress::ProgressCallback,
    pull::{Pull, PullReport},
    record::ManifestEntry,
    store::{Removed, Selection, Store},
};
use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use storage::StorageRegistry;

/// An open model cache. Cheap to clone; all clones are one.
///
/// Where a call takes `repo`, it is `org/name` or `org/name@revision`, the revision being a branch, a tag, a commit or
/// `refs/pr/n`; without one it is `main`. Calls that read the store never touch the network.
///
/// Threads, tasks and processes share a store. What is not `async` here may wait for the disk: milliseconds, but for
/// [`verify`](Self::verify), [`export`](Self::export) and [`import`](Self::import), which read or write whole files.
#[derive(Clone)]
pub struct ModelCache {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) hub: crate::hub::HubClient,
    /// What a pull works with, or the variable that can't be.
    pub(crate) means: std::result::Result<Means, BadVariable>,
    pub(crate) side_by_side: bool,
    /// Blobs that were checked since this was opened, if those that are opened are to be.
    pub(crate) checked: Option<Mutex<HashSet<u64>>>,
}

impl Inner {
    /// # Errors
    /// [`Error::InvalidOption`] for a variable of pulls that can't be.
    pub(crate) fn means(&self) -> Result<&Means> {
        self.means.as_ref().map_err(BadVariable::error)
    }
}

impl std::fmt::Debug for ModelCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelCache").field("store", &self.inner.store.folder()).finish_non_exhaustive()
    }
}

impl ModelCache {
    /// Opens the store in `store`, creating it where missing, with the defaults of [`ModelCacheBuilder`].
    ///
    /// # Errors
    /// As [`ModelCacheBuilder::open`].
    pub fn new(registry: Arc<StorageRegistry>, store: &Path) -> Result<Self> {
        Self::builder(store).registry(registry).open()
    }

    /// Opens the store in `store` with a registry of its own.
    ///
    /// # Errors
    /// As [`ModelCacheBuilder::open`].
    pub fn open(store: impl AsRef<Path>) -> Result<Self> {
        Self::builder(store).open()
    }

    /// The options a cache can be opened with.
    pub fn builder(store: impl AsRef<Path>) -> ModelCacheBuilder {
        ModelCacheBuilder::new(store.as_ref().to_owned())
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    // -- the Hub ---------------------------------------------------------------------------------------------------

    /// Asks the Hub what `repo` offers, and writes it down.
    ///
    /// Local reads of a revision go on to the commit that was last pulled; a scan does not move them. Offline: what the last scan
    /// wrote down.
    ///
    /// # Errors
    /// [`Error::RepoNotFound`], [`Error::RevisionNotFound`], [`Error::BadToken`] and those of the network;
    /// [`Error::BadAnswer`] for a listing that can't be trusted.
    pub async fn scan_repo(&self, repo: &str) -> Result<Manifest> {
        let spec: RepoSpec = repo.parse()?;
        let (pinned, entry) = self.listing(&spec, &|_| {}).await?;
        let store = Arc::clone(self.store());
        blocking::run(move || manifest::reconcile(&store, &pinned, &entry)).await
    }

    /// What `repo` offers and what of it is here: of the commit local reads go to, without the network; scans a repo never seen.
    ///
    /// # Errors
    /// As [`scan_repo`](Self::scan_repo).
    pub async fn get_manifest(&self, repo: &str) -> Result<Manifest> {
        match self.local_manifest(repo)? {
            Some(manifest) => Ok(manifest),
            None => self.scan_repo(repo).await,
        }
    }

    /// As [`get_manifest`](Self::get_manifest), but `None` for a repo never scanned.
    ///
    /// # Errors
    /// For a name that is none, and records that can't be read.
    pub fn local_manifest(&self, repo: &str) -> Result<Option<Manifest>> {
        let spec: RepoSpec = repo.parse()?;
        for pinned in self.store().local_repos(&spec)? {
            if let Some(entry) = self.store().get_manifest(&pinned)? {
                return manifest::reconcile(self.store(), &pinned, &entry).map(Some);
            }
        }
        Ok(None)
    }

    /// Pulls all files of one quant; done when every one is here, verified and durable.
    ///
    /// `quant` as [`Manifest::quants`] names it, case ignored. What is here already is not fetched again, also where it came under
    /// another name. Dropping the future cancels; what landed is kept, and the next pull goes on from there.
    ///
    /// # Errors
    /// [`Error::QuantNotFound`]; those of [`scan_repo`](Self::scan_repo); [`Error::Gated`]; [`Error::NoSpace`] before the first
    /// byte; [`Error::DigestMismatch`] if the bytes are not those the Hub promised.
    pub async fn download_quant(&self, repo: &str, quant: &str, progress: Option<ProgressCallback>) -> Result<PullReport> {
        self.pull(repo).quant(quant).on_progress(progress).run().await
    }

    /// Pulls one file.
    ///
    /// # Errors
    /// [`Error::FileNotFound`], else as [`download_quant`](Self::download_quant).
    pub async fn download_file(&self, repo: &str, path: &str, progress: Option<ProgressCallback>) -> Result<PullReport> {
        self.pull(repo).path(path).on_progress(progress).run().await
    }

    /// A pull to be described: quants, files, events, cancellation.
    pub fn pull(&self, repo: &str) -> Pull {
        Pull::new(self.clone(), repo)
    }

    /// The commit `spec` is at the Hub, and its listing: asked for once a commit.
    pub(crate) async fn listing(
        &self,
        spec: &RepoSpec,
        observer: &(dyn Fn(RetryNotice<'_>) + Sync),
    ) -> Result<(PinnedRepo, ManifestEntry)> {
        let hub = &self.inner.hub;
        let revision = spec.revision_or_main();
        let stored = |pinned: &PinnedRepo| self.store().get_manifest(pinned);
        // A commit never changes: what was listed once holds.
        if let Some(commit) = revision.as_commit() {
            let pinned = PinnedRepo::new(spec.repo.clone(), commit);
            if let Some(entry) = stored(&pinned)? {
                return Ok((pinned, entry));
            }
        }
        if hub.config().offline {
            for pinned in self.store().local_repos(spec)? {
                if let Some(entry) = stored(&pinned)? {
                    return Ok((pinned, entry));
                }
            }
            return Err(Error::Offline { action: format!("ask the Hub what {spec} offers") });
        }
        let info = hub.model_info(&spec.repo, &revision, observer).await?;
        if info.disabled {
            return Err(Error::Disabled { repo: spec.repo.clone() });
        }
        let pinned = PinnedRepo::new(spec.repo.clone(), info.commit.clone());
        let entry = match stored(&pinned)? {
            Some(entry) => entry,
            None => manifest::entry(&info, &hub.list_tree(&spec.repo, &info.commit, observer).await?),
        };
        let store = Arc::clone(self.store());
        blocking::run(move || {
            store.put_listing(&pinned, &revision, &entry)?;
            Ok((pinned, entry))
        })
        .await
    }

    // -- reading ---------------------------------------------------------------------------------------------------

    /// Opens a file of the store: one contiguous read-only slice, without a copy. `None` if it is not here.
    ///
    /// Cost: well under a millisecond, whatever the size; no network, no writer's lock.
    ///
    /// # Errors
    /// [`Error::InvalidRepo`] and [`Error::InvalidPath`]; [`Error::Damaged`] if the records contradict the bytes.
    pub fn get_file(&self, repo: &str, path: &str) -> Result<Option<ModelFile>> {
        let (spec, path) = (repo.parse()?, path.parse()?);
        for pinned in self.store().local_repos(&spec)? {
            if let Some(file) = self.open_pinned(&pinned, &path)? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// As [`get_file`](Self::get_file), for who can't go on without: what is not here is an error that says what brings it.
    ///
    /// # Errors
    /// [`Error::NotInStore`] if nothing of the repo is here, [`Error::NotHere`] for a file that is not here or not complete; else
    /// as [`get_file`](Self::get_file).
    pub fn open_file(&self, repo: &str, path: &str) -> Result<ModelFile> {
        match self.get_file(repo, path)? {
            Some(file) => Ok(file),
            None => Err(self.why_not_here(&repo.parse()?, &path.parse()?)?),
        }
    }

    pub(crate) fn why_not_here(&self, spec: &RepoSpec, path: &FilePath) -> Result<Error> {
        let repo = spec.to_string();
        let manifest = self.local_manifest(&repo)?;
        let commits = match self.files(&repo) {
            Err(Error::NotInStore { .. }) if manifest.is_some() => Vec::new(),
            commits => commits?,
        };
        let mut files = commits.iter().flat_map(|commit| &commit.files);
        let begun = files.find(|file| file.path == *path && file.state == FileState::Filling);
        let landed_percent = begun.map(|file| file.landed_bytes * 100 / file.size_bytes.max(1));
        let mut quants = manifest.iter().flat_map(|manifest| manifest.quants.values());
        let is_pulled =
            quants.any(|quant| quant.status == QuantStatus::Downloading && quant.files.iter().any(|file| file == path.as_str()));
        let is_at_hub = manifest.is_some_and(|manifest| manifest.files.iter().any(|file| file.path == *path));
        Ok(Error::NotHere { repo: spec.clone(), path: path.clone(), landed_percent, is_pulled, is_at_hub })
    }

    /// Whether a file is here, complete and verified.
    ///
    /// # Errors
    /// As [`get_file`](Self::get_file).
    pub fn has_file(&self, repo: &str, path: &str) -> Result<bool> {
        let (spec, path) = (repo.parse()?, path.parse()?);
        self.store().has_file(&spec, &path)
    }

    pub(crate) fn open_pinned(&self, repo: &PinnedRepo, path: &FilePath) -> Result<Option<ModelFile>> {
        let Some(file) = self.store().open_file(repo, path, self.inner.side_by_side)?.map(ModelFile::new) else {
            return Ok(None);
        };
        if let Some(checked) = &self.inner.checked
            && let Some(id) = file.stored().blob_id()
        {
            // Entries are single inserts, so the set is whole even if a holder panicked.
            let is_known = || checked.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
            if !is_known() {
                file.stored().check_all()?;
                checked.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
            }
        }
        Ok(Some(file))
    }

    // -- removing --------------------------------------------------------------------------------------------------

    /// Removes one file, at every commit of the repo unless a revision is given.
    ///
    /// The name is gone at once. The space returns at once, or, where somebody reads the file, when the last reader lets go,
    /// whichever process that is.
    ///
    /// # Errors
    /// [`Error::FileNotFound`] if it is not here.
    pub fn delete_file(&self, repo: &str, path: &str) -> Result<Removed> {
        let (spec, path): (RepoSpec, FilePath) = (repo.parse()?, path.parse()?);
        let removed = self.store().remove(&spec, &Selection::Paths(&|_, candidate| *candidate == path))?;
        if removed.files == 0 {
            return Err(Error::FileNotFound { repo: spec.repo, commit: None, path: path.to_string() });
        }
        Ok(removed)
    }

    /// Removes every file of a repo, finished or not, and what is known of it; at every commit unless a revision is given.
    ///
    /// # Errors
    /// [`Error::NotInStore`] if nothing of it is here.
    pub fn delete_model(&self, repo: &str) -> Result<Removed> {
        let spec: RepoSpec = repo.parse()?;
        if self.store().all_repos(&spec)?.is_empty() {
            return Err(Error::NotInStore { repo: spec });
        }
        self.store().remove(&spec, &Selection::All)
    }

    /// Removes the files that match any of `globs`, and those that are of the quants `quants` alone.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::QuantNotFound`]; [`Error::FileNotFound`] for a glob that matches nothing here.
    pub fn delete_files(&self, repo: &str, globs: &[String], quants: &[String]) -> Result<Removed> {
        let spec: RepoSpec = repo.parse()?;
        let globs = Globs::new(globs)?;
        let repos = self.store().all_repos(&spec)?;
        if repos.is_empty() {
            return Err(Error::NotInStore { repo: spec });
        }
        // A quant's own files, at each commit; its shared files stay for the others.
        let mut own: Vec<(PinnedRepo, String)> = Vec::new();
        for quant in quants {
            let mut not_found = None;
            let before = own.len();
            for pinned in &repos {
                let Some(entry) = self.store().get_manifest(pinned)? else { continue };
                match entry.find_quant(&spec.repo, quant) {
                    Ok(found) => own.extend(found.own.iter().map(|path| (pinned.clone(), path.clone()))),
                    Err(error) => not_found = Some(error),
                }
            }
            if own.len() == before {
                return Err(not_found.unwrap_or_else(|| Error::QuantNotFound {
                    repo: spec.repo.clone(),
                    quant: quant.clone(),
                    offered: Vec::new(),
                }));
            }
        }
        let mut names = Vec::new();
        for pinned in &repos {
            names.extend(self.store().files_of(pinned)?.into_iter().map(|(path, _)| path));
        }
        let fills = self.store().fills()?.into_iter();
        names.extend(fills.filter(|fill| repos.contains(&fill.repo)).map(|fill| fill.path));
        globs.each_matches(&spec.repo, None, names.iter().map(FilePath::as_str))?;
        let wanted = |pinned: &PinnedRepo, path: &FilePath| {
            globs.matches(path.as_str()) || own.iter().any(|(repo, own)| repo == pinned && own == path.as_str())
        };
        let mut removed = self.store().remove(&spec, &Selection::Paths(&wanted))?;
        self.store().remove_fills(&repos, &|repo, path| wanted(repo, path), &mut removed)?;
        Ok(removed)
    }

    /// Whether any file of `repo` was imported, so that the Hub can't give it again.
    ///
    /// # Errors
    /// For a name that is none.
    pub fn is_imported(&self, repo: &str) -> Result<bool> {
        let spec: RepoSpec = repo.parse()?;
        Ok(self.store().all_repos(&spec)?.iter().any(|pinned| pinned.commit.is_none()))
    }

    /// Frees what nothing uses: content without a name, downloads nobody continues, chunks no record knows.
    ///
    /// Downloads that were begun and not finished lose what had landed; those under way in any process are left alone.
    ///
    /// # Errors
    /// Those of the store.
    pub fn gc(&self) -> Result<Removed> {
        self.store().collect_garbage()
    }
}
