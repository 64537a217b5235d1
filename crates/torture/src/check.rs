//! What must hold of a store that nobody works on: [`check`], in a process of its own, so that a crash in it is a finding too.

use crate::{
    worker::{again_if_spoilt, open, runtime},
    world::{name, sha256},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::Path,
};
use storage::{Alignment, StorageRegistry};
use tabagent_model_cache::{CHUNK_BYTES, ErrorKind, FileState, INLINE_BYTES, ModelCache, VerifyOptions};

/// What to do besides checking.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Also {
    /// `verify` with digests, too.
    pub verify: bool,
    /// `gc`, and what must hold after it.
    pub gc: bool,
    /// To go on with every pull that was interrupted.
    pub resume: bool,
    /// That a power loss may have brought back what was freed, without a row, until `gc`.
    pub orphans: bool,
    /// That the Hub may have sent wrong bytes, which have landed and are found out once their file is whole.
    pub spoilt: bool,
    /// To remove these repos in the end, so that the next round has something to do.
    pub remove: Vec<String>,
}

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What is wrong.
    pub wrong: Vec<String>,
    /// Names before anything was resumed, each with the SHA-256 of what is read.
    pub names: BTreeMap<String, String>,
    /// Names in the end.
    pub names_in_the_end: BTreeMap<String, String>,
    /// Bytes landed in the end of what is begun.
    pub landed_in_the_end_bytes: u64,
    /// Repo and commit of pulls that are interrupted still in the end, and have something landed.
    pub begun_in_the_end: BTreeSet<(String, String)>,
    /// Pulls that were interrupted.
    pub fills: Vec<Begun>,
    /// Bytes hashed.
    pub hashed_bytes: u64,
    /// Length of the extents' data file, and its disk space.
    pub data_file_bytes: u64,
    /// Disk space of the extents' data file.
    pub data_file_allocated_bytes: u64,
    /// Bytes of complete content.
    pub live_bytes: u64,
}

/// A pull that was interrupted, and what came of it where it was resumed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// `org/name/path`, as the Hub's log has it.
    pub file: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes the journal says have landed.
    pub landed_bytes: u64,
    /// Bytes its resumption fetched.
    pub fetched_bytes: Option<u64>,
}

/// Bytes of the data file that may stay allocated with nothing in it: libmdbx's own pages.
const OWN_BYTES: u64 = 8 << 20;
/// What an extent that was freed keeps: the first 4 KiB of its header region, and in format 2 those of a first page that lies apart.
const KEPT_BYTES: u64 = 8 << 10;
/// How much less than what was freed may return at once.
const FREED_SLACK_BYTES: u64 = 4 << 20;
const PAGE_BYTES: u64 = storage::PAGE_BYTES;

/// Checks the store in `folder`.
///
/// # Errors
/// For what can't even be looked at; what is wrong is in the report.
pub fn check(folder: &Path, endpoint: &str, also: &Also) -> Result<Report, Box<dyn std::error::Error>> {
    let mut report = Report::default();
    let registry = StorageRegistry::new(folder);
    // Before the cache opens, which mends what a crash left.
    let structures = Structures::open(&registry, folder)?;
    structures.check("as it was left", &mut report.wrong);
    let cache = open(folder, endpoint)?;
    report.names = hash_all(&cache, &BTreeMap::new(), &mut report)?;
    count(&cache, &structures, &report.names.clone(), &mut report, Left { orphans: also.orphans, begun: true })?;
    if also.verify {
        let found = cache.verify(None, &[], &VerifyOptions { digest: true, ..VerifyOptions::default() })?;
        report.wrong.extend(found.bad.iter().map(|bad| format!("verify: {bad:?}")));
    }
    report.fills = fills(&cache)?;
    if also.resume {
        resume(&cache, also.spoilt, &mut report)?;
    }
    remove(&cache, &structures, also, &mut report)?;
    if also.gc {
        cache.gc()?;
        let again = cache.gc()?;
        if again.freed_bytes > 0 || again.busy_bytes > 0 || again.filling_bytes > 0 {
            report.wrong.push(format!("a second gc found something: {again:?}"));
        }
    }
    let known = report.names.clone();
    report.names_in_the_end = hash_all(&cache, &known, &mut report)?;
    if also.gc || also.resume || !also.remove.is_empty() {
        let left = Left { orphans: also.orphans && !also.gc, begun: !also.gc };
        count(&cache, &structures, &report.names_in_the_end.clone(), &mut report, left)?;
        structures.check("in the end", &mut report.wrong);
    }
    report.landed_in_the_end_bytes = fills(&cache)?.iter().map(|begun| begun.landed_bytes).sum();
    let with_blocks =
        listed(&cache)?.into_iter().filter(|(_, _, file)| file.state == FileState::Filling && file.landed_bytes > 0);
    report.begun_in_the_end = with_blocks.filter_map(|(repo, commit, _)| Some((repo, commit?))).collect();
    let metadata = std::fs::metadata(structures.extents.data_file_path())?;
    (report.data_file_bytes, report.data_file_allocated_bytes) = (metadata.len(), metadata.blocks() * 512);
    report.live_bytes = cache.stats()?.live_bytes;
    Ok(report)
}

struct Structures {
    records: std::sync::Arc<storage::Shared<storage::Records>>,
    extents: std::sync::Arc<storage::Shared<storage::Extents>>,
}

impl Structures {
    fn open(registry: &StorageRegistry, folder: &Path) -> storage::Result<Self> {
        Ok(Self {
            records: registry.records(&folder.join("model_cache_manifests"), &[])?,
            extents: registry.extents(&folder.join("model_cache_chunks"), "chunks", Alignment::LargePage)?,
        })
    }

    fn check(&self, when: &str, wrong: &mut Vec<String>) {
        for checked in [self.records.check_structure(), self.extents.check_structure()] {
            if let Err(error) = checked {
                wrong.push(format!(
                    "{when}: {error}: {}",
                    std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
                ));
            }
        }
    }
}

/// Every name with the SHA-256 of what is read; of those in `known` only that they are there.
fn hash_all(
    cache: &ModelCache,
    known: &BTreeMap<String, String>,
    report: &mut Report,
) -> Result<BTreeMap<String, String>, Box<dyn std::error::Error>> {
    let mut names = BTreeMap::new();
    // Content with several names is one mapping; a copy of its digest would do, were it not what is to be found out.
    let mut by_place: BTreeMap<(u64, String), String> = BTreeMap::new();
    for (repo, commit, file) in listed(cache)? {
        if file.state != FileState::Sealed {
            continue;
        }
        let name = name(&repo, commit.as_deref(), file.path.as_str());
        if let Some(digest) = known.get(&name) {
            names.insert(name, digest.clone());
            continue;
        }
        let spec = commit.map_or(repo.clone(), |commit| format!("{repo}@{commit}"));
        let Some(open) = cache.get_file(&spec, file.path.as_str())? else {
            report.wrong.push(format!("{name} is listed and does not open"));
            continue;
        };
        let place =
            open.placement().and_then(|placement| placement.offset_of(0..1)).map(|offset| (offset, open.digest().to_owned()));
        let digest = match place.as_ref().and_then(|place| by_place.get(place)) {
            Some(digest) => digest.clone(),
            None => {
                report.hashed_bytes += open.size_bytes();
                sha256(&open)
            }
        };
        if let Some(place) = place {
            by_place.insert(place, digest.clone());
        }
        if let Some(told) = open.digest().strip_prefix("sha256:")
            && told != digest
        {
            report.wrong.push(format!("{name} reads as {digest}, and is said to be {told}"));
        }
        names.insert(name, digest);
    }
    Ok(names)
}

type Listed = (String, Option<String>, tabagent_model_cache::FileInfo);

fn listed(cache: &ModelCache) -> tabagent_model_cache::Result<Vec<Listed>> {
    let mut found = Vec::new();
    let repos: BTreeSet<String> = cache.list()?.into_iter().map(|summary| summary.repo.to_string()).collect();
    for repo in repos {
        for commit in cache.files(&repo)? {
            let id = commit.commit.as_ref().map(ToString::to_string);
            found.extend(commit.files.into_iter().map(|file| (repo.clone(), id.clone(), file)));
        }
    }
    Ok(found)
}

fn fills(cache: &ModelCache) -> tabagent_model_cache::Result<Vec<Begun>> {
    let begun = listed(cache)?.into_iter().filter(|(_, _, file)| file.state == FileState::Filling);
    Ok(begun
        .map(|(repo, _, file)| Begun {
            file: format!("{repo}/{}", file.path),
            size_bytes: file.size_bytes,
            landed_bytes: file.landed_bytes,
            fetched_bytes: None,
        })
        .collect())
}

/// Removes repos, and sees that the space they took is free at once.
fn remove(
    cache: &ModelCache,
    structures: &Structures,
    also: &Also,
    report: &mut Report,
) -> Result<(), Box<dyn std::error::Error>> {
    let allocated = || std::fs::metadata(structures.extents.data_file_path()).map(|metadata| metadata.blocks() * 512);
    let complete = || cache.stats().map(|stats| stats.live_bytes + stats.derived_bytes);
    // What was begun may have had no space yet.
    let (before, complete_before) = (allocated()?, complete()?);
    for repo in &also.remove {
        match cache.delete_model(repo) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let (after, freed_bytes) = (allocated()?, complete_before - complete()?);
    // Small files take no space of this file, and libmdbx a little for what it did.
    // The space of a reservation that a power loss undid is for `gc` to find.
    if !also.orphans && after + freed_bytes > before + FREED_SLACK_BYTES {
        let repos = &also.remove;
        report.wrong.push(format!(
            "removing {repos:?} freed {freed_bytes} bytes, and the data file went from {before} allocated to {after}"
        ));
    }
    Ok(())
}

fn resume(cache: &ModelCache, spoilt: bool, report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = runtime()?;
    for (repo, commit, file) in listed(cache)? {
        if file.state != FileState::Filling {
            continue;
        }
        let Some(commit) = commit else {
            report.wrong.push(format!("an import of {repo} {} is still there after an open", file.path));
            continue;
        };
        let mut tries = 0;
        let pulled = again_if_spoilt(spoilt, || {
            tries += 1;
            runtime.block_on(cache.pull(&format!("{repo}@{commit}")).path(file.path.as_str()).run())
        });
        let name = format!("{repo}/{}", file.path);
        match pulled {
            // What a first try fetched is in no report.
            Ok(_) if tries > 1 => {}
            Ok(pulled) => {
                let begun = report.fills.iter_mut().find(|begun| begun.file == name && begun.size_bytes == file.size_bytes);
                if let Some(begun) = begun {
                    begun.fetched_bytes = Some(pulled.fetched_bytes);
                }
            }
            Err(error) => report.wrong.push(format!("the interrupted pull of {name} does not go on: {}", error.chain())),
        }
    }
    Ok(())
}

/// What may be there besides what is complete.
#[derive(Clone, Copy)]
struct Left {
    /// Extents without a row.
    orphans: bool,
    /// Pulls that were interrupted.
    begun: bool,
}

/// That nothing is counted twice, and, after `gc`, that nothing is left over.
fn count(
    cache: &ModelCache,
    structures: &Structures,
    names: &BTreeMap<String, String>,
    report: &mut Report,
    left: Left,
) -> Result<(), Box<dyn std::error::Error>> {
    let stats = cache.stats()?;
    let files = listed(cache)?;
    let mut wrong = |what: String| report.wrong.push(format!("{what}; {stats:?}"));
    let mut contents: BTreeMap<&str, u64> = BTreeMap::new();
    let mut filling: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, _, file) in &files {
        let of = if file.state == FileState::Sealed { &mut contents } else { &mut filling };
        of.insert(&file.digest, file.size_bytes);
    }
    let sum = |of: &BTreeMap<&str, u64>| of.values().sum::<u64>();
    let chunks_of = |bytes: u64| bytes.div_ceil(CHUNK_BYTES).max(1);
    if stats.files != names.len() as u64 {
        wrong(format!("{} names are counted, {} are there", stats.files, names.len()));
    }
    if stats.live_bytes != sum(&contents) {
        wrong(format!("{} live bytes are counted, {} are there", stats.live_bytes, sum(&contents)));
    }
    if stats.chunks != contents.values().map(|bytes| chunks_of(*bytes)).sum::<u64>() {
        wrong(format!("{} chunks are counted", stats.chunks));
    }
    if stats.filling_bytes != sum(&filling) {
        wrong(format!("{} filling bytes are counted, {} are there", stats.filling_bytes, sum(&filling)));
    }
    if stats.doomed_bytes > 0 {
        wrong("something is doomed, and nobody reads it".to_owned());
    }
    // What is really there.
    let txn = structures.extents.begin_free()?;
    let mut extents = Vec::new();
    for key in txn.keys()? {
        if let Some(extent) = txn.locate(&key)? {
            extents.push((key, extent));
        }
    }
    drop(txn);
    let is_derived = |key: &str| key.starts_with("file:~");
    let derived_bytes: u64 = extents.iter().filter(|(key, _)| is_derived(key)).map(|(_, extent)| extent.data_bytes).sum();
    if derived_bytes < stats.derived_bytes || (!left.orphans && derived_bytes != stats.derived_bytes) {
        wrong(format!("{} derived bytes are counted, {derived_bytes} are there", stats.derived_bytes));
    }
    let stored = contents.values().filter(|bytes| **bytes > INLINE_BYTES);
    let needed = stored.map(|bytes| chunks_of(*bytes)).sum::<u64>();
    let there = extents.iter().filter(|(key, _)| !is_derived(key)).count() as u64;
    let begun = filling.values().map(|bytes| chunks_of(*bytes)).sum::<u64>();
    let too_many = there > if left.begun { needed + begun } else { needed };
    if there < needed || (!left.orphans && too_many) {
        wrong(format!("{there} extents are there for {needed} chunks of complete files and {begun} of begun ones"));
    }
    let mut ends = extents.iter().map(|(_, extent)| (extent.page_offset(), extent.data_offset() + extent.data_bytes));
    let mut ranges: Vec<_> = ends.by_ref().collect();
    ranges.sort_unstable();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        wrong(format!("two extents share bytes of the data file: {pair:?}"));
    }
    if !left.begun {
        if stats.filling_bytes > 0 {
            wrong("gc left something begun".to_owned());
        }
        let metadata = std::fs::metadata(structures.extents.data_file_path())?;
        let allocated = metadata.blocks() * 512;
        let live: u64 = extents.iter().map(|(_, extent)| PAGE_BYTES + extent.data_bytes.next_multiple_of(PAGE_BYTES)).sum();
        // No extent is shorter than two pages, so there were no more than this many at once in the file's length.
        let kept = metadata.len() / (2 * PAGE_BYTES) * KEPT_BYTES / 4;
        if allocated > live + OWN_BYTES + kept {
            wrong(format!(
                "{allocated} bytes of the data file are allocated for {live} of extents, in {} bytes of length",
                metadata.len()
            ));
        }
    }
    Ok(())
}
