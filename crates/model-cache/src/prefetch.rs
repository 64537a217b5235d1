//! Bringing stored files into memory before they are used: [`ModelFile::prefetch`], [`ModelCache::prefetch`].

use crate::{
    cache::ModelCache,
    choice::Globs,
    error::{Error, Result},
    file::ModelFile,
    key::PinnedRepo,
    listing::FileState,
    name::{FilePath, RepoSpec},
    progress::{self, Paced, ProgressCallback},
    record::FileMetadata,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Threads that wait for the disk. One keeps it busy where the kernel reads far ahead; a disk with many queues has use for more.
const THREADS: usize = 4;
/// What each of them brings in at a time: two of the kernel's largest pages, so that it is soon told to stop, or has something to tell.
const PIECE_BYTES: usize = 4 << 20;

/// How to prefetch. The default is silent and goes on to the end.
#[derive(Clone, Default)]
pub struct PrefetchOptions {
    /// Called with bytes in memory and bytes in all, ten times a second at most. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends it early with [`Error::Cancelled`]; what was read by then stays in memory. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What a prefetch found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrefetchReport {
    /// Files asked for; each name counts.
    pub files: u64,
    /// Bytes of them; content with several names counts once.
    pub bytes: u64,
    /// Bytes that were in memory already.
    pub resident_bytes: u64,
    /// Bytes left on the disk, at the end of what was asked for: all of it is more than the memory available.
    pub left_bytes: u64,
    /// Memory that was available before, clean pages of files included; `None` where the system does not tell.
    pub available_bytes: Option<u64>,
    /// How long it took.
    pub elapsed: Duration,
}

impl PrefetchReport {
    /// Bytes that were read from the disk.
    pub fn read_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.left_bytes).saturating_sub(self.resident_bytes)
    }
}

impl ModelFile {
    /// How many of its bytes are in memory, so that reading them does not wait for the disk.
    ///
    /// Cost: about 12 ms a GiB. A file of at most 64 KiB is a copy in memory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resident_bytes(&self) -> Result<u64> {
        if self.placement().is_none() {
            return Ok(self.size_bytes());
        }
        self.slices().try_fold(0, |sum, slice| Ok(sum + storage::resident_bytes(slice).map_err(|source| self.io(source))?))
    }

    /// Reads all of it into memory, several pieces at once, and enters its pages into this process's page tables: whoever uses it then
    /// neither waits for the disk nor takes a page fault.
    ///
    /// Memory is the page cache's, which all processes share, and drops under pressure. Of a file larger than the memory available
    /// the end is left on the disk ([`PrefetchReport::left_bytes`]) and read as it is touched: to read it now would push out the
    /// beginning.
    ///
    /// Cost: one read of what is not there, at the disk's speed; 1 ms a GiB of what is.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Io`] where the disk can't deliver, which a read of the slice would be killed by.
    ///
    /// ```no_run
    /// # fn main() -> tabagent_model_cache::Result<()> {
    /// let cache = tabagent_model_cache::ModelCache::open("./models")?;
    /// let file = cache.open_file("org/name", "model.gguf")?;
    /// let report = file.prefetch(&Default::default())?;
    /// println!("{} bytes, of which {} were in memory already; {:?}", report.bytes, report.resident_bytes, report.elapsed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prefetch(&self, options: &PrefetchOptions) -> Result<PrefetchReport> {
        let mut prefetch = Prefetch::of(1, self.size_bytes(), options);
        prefetch.add(self)?;
        prefetch.end()
    }

    fn io(&self, source: std::io::Error) -> Error {
        let path = self.placement().map(|placement| placement.data_file().to_owned()).unwrap_or_default();
        Error::Io { action: "read", path, source }
    }
}

impl ModelCache {
    /// Reads files of `repo` into memory, as [`ModelFile::prefetch`] does: those of `quants`, with what their loaders need besides, and
    /// those that match any of `globs`; without either all that are here.
    ///
    /// What of `repo` is read is what [`get_file`](Self::get_file) finds. Nothing stays mapped: whoever opens a file next finds its pages.
    ///
    /// # Errors
    /// [`Error::NotInStore`]; [`Error::QuantNotFound`]; [`Error::NotHere`] for a quant, or a glob's file, that is not here or being
    /// pulled; [`Error::FileNotFound`] for a glob that matches nothing known of the repo; else as [`ModelFile::prefetch`].
    pub fn prefetch(&self, repo: &str, quants: &[String], globs: &[String], options: &PrefetchOptions) -> Result<PrefetchReport> {
        let spec: RepoSpec = repo.parse()?;
        let names = self.names_to_prefetch(&spec, quants, &Globs::new(globs)?)?;
        let mut contents = BTreeMap::new();
        for (path, (pinned, metadata)) in &names {
            contents.entry(metadata.blob_id).or_insert((path, pinned, metadata.size_bytes));
        }
        // As people read them, so that what is left, if anything is, is the end.
        let mut contents: Vec<_> = contents.into_values().collect();
        contents.sort_unstable_by_key(|(path, ..)| *path);
        let total_bytes = contents.iter().map(|(.., size_bytes)| size_bytes).sum();
        let mut prefetch = Prefetch::of(names.len() as u64, total_bytes, options);
        for (path, pinned, size_bytes) in contents {
            match self.open_pinned(pinned, path)? {
                Some(file) => prefetch.add(&file)?,
                // Removed since it was listed.
                None => prefetch.pass_over(size_bytes)?,
            }
        }
        prefetch.end()
    }

    /// What [`get_file`](Self::get_file) finds of `spec`, as far as it is wanted.
    fn names_to_prefetch(
        &self,
        spec: &RepoSpec,
        quants: &[String],
        globs: &Globs,
    ) -> Result<BTreeMap<FilePath, (PinnedRepo, FileMetadata)>> {
        let repos = self.store().local_repos(spec)?;
        let mut names = BTreeMap::new();
        for pinned in &repos {
            for (path, metadata) in self.store().files_of(pinned)? {
                names.entry(path).or_insert((pinned.clone(), metadata));
            }
        }
        if names.is_empty() {
            let Absent { begun, offered } = self.absent(spec)?;
            match begun.first() {
                Some(path) if quants.is_empty() && globs.is_empty() => return Err(self.why_not_here(spec, path)?),
                None if offered.is_empty() || (quants.is_empty() && globs.is_empty()) => {
                    return Err(Error::NotInStore { repo: spec.clone() });
                }
                _ => {}
            }
        }
        if let Some(glob) = globs.first_unmatched(names.keys().map(FilePath::as_str)) {
            let Absent { begun, offered } = self.absent(spec)?;
            return Err(match begun.iter().chain(&offered).find(|path| glob.matches(path.as_str())) {
                Some(path) => self.why_not_here(spec, path)?,
                None => Error::FileNotFound { repo: spec.repo.clone(), commit: None, path: glob.shown() },
            });
        }
        let mut of_quants: HashSet<String> = HashSet::new();
        for typed in quants {
            let mut not_found =
                Error::QuantNotFound { repo: spec.repo.clone(), quant: crate::name::printable(typed), offered: Vec::new() };
            let mut found = false;
            for pinned in &repos {
                let Some(entry) = self.store().get_manifest(pinned)? else { continue };
                match entry.find_quant(&spec.repo, typed) {
                    Ok(quant) => {
                        let missing =
                            quant.own.iter().filter_map(|path| path.parse().ok()).find(|path| !names.contains_key(path));
                        if let Some(path) = missing {
                            return Err(self.why_not_here(spec, &path)?);
                        }
                        of_quants.extend(entry.files_of(quant));
                        found = true;
                        break;
                    }
                    Err(error) => not_found = error,
                }
            }
            if !found {
                return Err(not_found);
            }
        }
        if !quants.is_empty() || !globs.is_empty() {
            names.retain(|path, _| of_quants.contains(path.as_str()) || globs.matches(path.as_str()));
        }
        Ok(names)
    }

    /// What is known of `spec` besides what is here.
    fn absent(&self, spec: &RepoSpec) -> Result<Absent> {
        let repo = spec.to_string();
        let commits = match self.files(&repo) {
            Err(Error::NotInStore { .. }) => Vec::new(),
            commits => commits?,
        };
        let files = commits.into_iter().flat_map(|commit| commit.files);
        let begun = files.filter(|file| file.state == FileState::Filling).map(|file| file.path).collect();
        let manifest = self.local_manifest(&repo)?;
        let offered = manifest.into_iter().flat_map(|manifest| manifest.files).map(|file| file.path).collect();
        Ok(Absent { begun, offered })
    }
}

/// Files that can't be read yet.
struct Absent {
    /// Those somebody began to pull.
    begun: Vec<FilePath>,
    /// All those the Hub offers.
    offered: Vec<FilePath>,
}

/// A prefetch under way.
struct Prefetch<'a> {
    report: PrefetchReport,
    /// Of the files added so far.
    passed_bytes: u64,
    /// How many bytes may be read before the memory is full.
    budget_bytes: u64,
    paced: Paced<'a>,
    cancel: Option<&'a CancellationToken>,
    started: Instant,
}

impl<'a> Prefetch<'a> {
    fn of(files: u64, bytes: u64, options: &'a PrefetchOptions) -> Self {
        let available_bytes = storage::available_memory_bytes();
        let cancel = options.cancel.as_ref();
        Self {
            report: PrefetchReport { files, bytes, available_bytes, ..PrefetchReport::default() },
            passed_bytes: 0,
            budget_bytes: available_bytes.unwrap_or(u64::MAX),
            paced: Paced::new(options.progress.as_ref(), cancel, bytes),
            cancel,
            started: Instant::now(),
        }
    }

    /// Reads one file, as much of it as there is memory for.
    fn add(&mut self, file: &ModelFile) -> Result<()> {
        self.paced.tell(self.passed_bytes)?;
        let resident_bytes = file.resident_bytes()?;
        self.report.resident_bytes += resident_bytes;
        let wanted_bytes = file.size_bytes().min(self.budget_bytes);
        if file.placement().is_some() {
            let (passed_bytes, paced) = (self.passed_bytes, &mut self.paced);
            let slices: Vec<&[u8]> = file.slices().collect();
            let told = populate(&slices, wanted_bytes, self.cancel, &mut |bytes| paced.tell(passed_bytes + bytes));
            told.map_err(|stop| match stop {
                Stop::Told(error) => error,
                Stop::Disk(source) => file.io(source),
            })?;
        }
        self.budget_bytes -= wanted_bytes;
        let left_bytes = file.size_bytes() - wanted_bytes;
        // What was there already was left by nobody.
        self.report.left_bytes += left_bytes.min(file.size_bytes() - resident_bytes);
        self.pass_over(file.size_bytes())
    }

    fn pass_over(&mut self, size_bytes: u64) -> Result<()> {
        self.passed_bytes += size_bytes;
        self.paced.tell(self.passed_bytes)
    }

    fn end(mut self) -> Result<PrefetchReport> {
        self.paced.tell(self.report.bytes)?;
        self.report.elapsed = self.started.elapsed();
        Ok(self.report)
    }
}

/// Why populating ended early.
enum Stop {
    Told(Error),
    Disk(std::io::Error),
}

/// Populates the first `wanted_bytes` of `slices`, which are one file, and tells from time to time how many bytes that are.
fn populate(
    slices: &[&[u8]],
    wanted_bytes: u64,
    cancel: Option<&CancellationToken>,
    tell: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(), Stop> {
    slices.iter().for_each(|slice| storage::read_in_large_pieces(slice));
    let pieces = pieces(slices, wanted_bytes);
    let (next, done_bytes, stopped) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let work = || {
        while !stopped.load(Ordering::Relaxed)
            && let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
        {
            match storage::populate(piece) {
                Ok(()) => _ = done_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed),
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    let told = if pieces.len() <= 1 {
        work();
        progress::go_on(cancel)
    } else {
        thread::scope(|scope| {
            let (working, ended) = mpsc::channel::<()>();
            for _ in 0..pieces.len().min(THREADS) {
                let (working, work) = (working.clone(), &work);
                scope.spawn(move || {
                    work();
                    drop(working);
                });
            }
            drop(working);
            // Until the last of them lets go of the line.
            while ended.recv_timeout(progress::INTERVAL / 4) == Err(RecvTimeoutError::Timeout) {
                let told = tell(done_bytes.load(Ordering::Relaxed));
                if told.is_err() {
                    stopped.store(true, Ordering::Relaxed);
                    return told;
                }
            }
            progress::go_on(cancel)
        })
    };
    told.map_err(Stop::Told)?;
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(Stop::Disk(error)),
        None => Ok(()),
    }
}

/// The first `wanted_bytes` of `slices`, in order, in pieces that lie in one slice each and begin on whole pieces of it.
fn pieces<'a>(slices: &[&'a [u8]], wanted_bytes: u64) -> Vec<&'a [u8]> {
    let mut left = usize::try_from(wanted_bytes).unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    for slice in slices {
        let taken = &slice[..slice.len().min(left)];
        left -= taken.len();
        pieces.extend(taken.chunks(PIECE_BYTES));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is populated is the beginning of the file: all of it, nothing twice, nothing beyond, in order.
        #[test]
        fn pieces_put_together_are_the_beginning_that_was_wanted(
            lengths in prop::collection::vec(0_usize..9 << 20, 0..5),
            wanted_bytes in prop_oneof![0_u64..40 << 20, Just(u64::MAX)],
        ) {
            let whole = vec![0_u8; lengths.iter().sum()];
            let mut rest = &whole[..];
            let slices: Vec<&[u8]> = lengths.iter().map(|length| {
                let (slice, behind) = rest.split_at(*length);
                rest = behind;
                slice
            }).collect();
            let mut end = whole.as_ptr();
            for piece in pieces(&slices, wanted_bytes) {
                prop_assert_eq!(piece.as_ptr(), end);
                prop_assert!((1..=PIECE_BYTES).contains(&piece.len()));
                end = piece.as_ptr_range().end;
            }
            let covered = end as usize - whole.as_ptr() as usize;
            prop_assert_eq!(covered as u64, wanted_bytes.min(whole.len() as u64));
        }
    }

    #[test]
    fn what_was_read_is_what_was_neither_there_nor_left() {
        let report = PrefetchReport { bytes: 10, resident_bytes: 4, left_bytes: 3, ..PrefetchReport::default() };
        assert_eq!(report.read_bytes(), 3);
    }
}
