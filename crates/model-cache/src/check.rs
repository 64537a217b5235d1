//! Checking what is stored: every block against its CRC32C, on request every file against its digest.

use crate::{
    cache::ModelCache,
    choice::Globs,
    digest::Digest,
    error::{Error, Result},
    key::PinnedRepo,
    name::{FilePath, RepoSpec},
    progress::{self, Paced, ProgressCallback},
    record::*,
    store::BadRecord,
};
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;

/// How to verify. The default checks CRCs alone, silently.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// Whether to compute each file's whole digest too. Default: no.
    pub digest: bool,
    /// Whether bytes that are in memory are checked as they are there, as loaders see them, and left there, instead of read from the disk
    /// again. Default: no. A digest is always computed of what the disk has.
    pub cached: bool,
    /// Called with bytes checked and bytes in all, ten times a second at most. Default: nobody is.
    pub progress: Option<ProgressCallback>,
    /// Ends the check early with [`Error::Cancelled`]. Default: none.
    pub cancel: Option<CancellationToken>,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Files checked.
    pub files: u64,
    /// Blocks checked; those of content with several names once.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blocks, and chunks' headers, that are damaged.
    pub bad: Vec<BadBlock>,
    /// Records, their keys, and the engine's structures that are damaged; looked for where the whole store is verified, else only among
    /// the repo's names.
    pub bad_records: Vec<BadRecord>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.bad.is_empty() && self.bad_records.is_empty()
    }
}

/// A block that is not what was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadBlock {
    /// The repo, with its commit.
    pub repo: String,
    /// The file.
    pub path: String,
    /// The chunk, from 0.
    pub chunk: u32,
    /// The block within the chunk, from 0.
    pub block: u32,
    /// What was expected and found.
    pub reason: String,
}

/// A name in the store and what it promises.
pub(crate) type Name = (PinnedRepo, FilePath, FileMetadata);

impl ModelCache {
    /// Reads content from the disk and holds it against what was sealed: of the whole store, of one repo, or of the files `globs`
    /// match. Of the whole store also its records, their keys and the engine's structures.
    ///
    /// Files stay readable meanwhile. Cost: one read of everything checked, past the page cache unless
    /// [`cached`](VerifyOptions::cached), by several threads; 0.1 CPU-seconds a GiB, and half a second more for a digest.
    ///
    /// # Errors
    /// [`Error::NotInStore`], [`Error::FileNotFound`] for a glob that matches nothing here, [`Error::Cancelled`]. Damage is no
    /// error but a finding: see [`VerifyReport::bad`] and [`VerifyReport::bad_records`].
    pub fn verify(&self, repo: Option<&str>, globs: &[String], options: &VerifyOptions) -> Result<VerifyReport> {
        let globs = Globs::new(globs)?;
        let (names, bad_records) = self.names_to_verify(repo, &globs)?;
        // Content with several names is read once.
        let mut contents: BTreeMap<u64, Vec<&(PinnedRepo, FilePath, FileMetadata)>> = BTreeMap::new();
        for name in &names {
            contents.entry(name.2.blob_id).or_default().push(name);
        }
        let total_bytes = contents.values().map(|names| names[0].2.size_bytes).sum();
        let mut report = VerifyReport { files: names.len() as u64, bad_records, ..VerifyReport::default() };
        let cancel = options.cancel.as_ref();
        let mut paced = Paced::new(options.progress.as_ref(), cancel, total_bytes);
        for names in contents.values() {
            let (repo, path, metadata) = names[0];
            let mut findings = Vec::new();
            let before = report.bytes;
            let mut tell = |bytes: u64| {
                report.bytes = before + bytes;
                paced.tell(report.bytes)
            };
            match self.verify_one(repo, path, metadata, options, &mut findings, &mut tell) {
                Ok(()) => {}
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                // A file that can't even be opened is damaged as a whole, or in those chunks.
                Err(error) => match self.store().suspect(repo, path) {
                    Ok(Some(suspect)) if !suspect.bad_chunks.is_empty() => {
                        let first = |(chunk, reason): &(u32, String)| (suspect.layout().first_block(*chunk), reason.clone());
                        findings.extend(suspect.bad_chunks.iter().map(first));
                    }
                    _ => findings.push((0, error.chain())),
                },
            }
            // Also where it is gone by now, or can't be read.
            tell(metadata.size_bytes)?;
            report.blocks += blocks(metadata.size_bytes);
            match self.store().verify_derived(&metadata.digest, &|| progress::go_on(cancel)) {
                Ok(derived) => findings.extend(derived.into_iter().map(|reason| (0, reason))),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => findings.push((0, error.chain())),
            }
            for (repo, path, _) in names {
                report.bad.extend(findings.iter().map(|(block, reason)| BadBlock {
                    repo: repo.to_string(),
                    path: path.to_string(),
                    chunk: (block / BLOCKS_PER_CHUNK) as u32,
                    block: (block % BLOCKS_PER_CHUNK) as u32,
                    reason: reason.clone(),
                }));
            }
        }
        Ok(report)
    }

    /// The names to verify, and what of the records is damaged.
    fn names_to_verify(&self, repo: Option<&str>, globs: &Globs) -> Result<(Vec<Name>, Vec<BadRecord>)> {
        let mut names = self.names_of(repo)?;
        let Some(repo) = repo else { return Ok((names, self.store().bad_records()?)) };
        let spec: RepoSpec = repo.parse()?;
        let mut bad_records = Vec::new();
        for pinned in self.store().all_repos(&spec)? {
            bad_records.extend(self.store().bad_names(&pinned)?);
        }
        let bad_paths: Vec<FilePath> = bad_records.iter().filter_map(BadRecord::path).collect();
        if names.is_empty() && bad_records.is_empty() {
            return Err(Error::NotInStore { repo: spec });
        }
        let paths = names.iter().map(|(_, path, _)| path).chain(&bad_paths);
        globs.each_matches(&spec.repo, None, paths.map(FilePath::as_str))?;
        let wanted = |path: &FilePath| globs.is_empty() || globs.matches(path.as_str());
        names.retain(|(_, path, _)| wanted(path));
        bad_records.retain(|record| record.path().is_none_or(|path| wanted(&path)));
        Ok((names, bad_records))
    }

    /// Every name in the store, or at every commit of a repo, whose record can be read.
    pub(crate) fn names_of(&self, repo: Option<&str>) -> Result<Vec<Name>> {
        let Some(repo) = repo else { return self.store().all_files() };
        let mut names = Vec::new();
        for pinned in self.store().all_repos(&repo.parse()?)? {
            let files = self.store().files_of(&pinned)?;
            names.extend(files.into_iter().map(|(path, metadata)| (pinned.clone(), path, metadata)));
        }
        Ok(names)
    }

    fn verify_one(
        &self,
        repo: &PinnedRepo,
        path: &FilePath,
        metadata: &FileMetadata,
        options: &VerifyOptions,
        findings: &mut Vec<(u64, String)>,
        tell: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        // Removed since it was listed: nothing to say of it.
        let Some(file) = self.store().open_file(repo, path, false)? else { return Ok(()) };
        // As is one that was given another content.
        if file.digest != metadata.digest {
            return Ok(());
        }
        let mut done_bytes = 0;
        let mut check = |block, found: Result<u32>, sealed| {
            match found {
                Ok(found) if found == sealed => {}
                Ok(found) => findings.push((block, format!("its CRC32C is {found:08x}, {sealed:08x} was sealed"))),
                Err(error) => findings.push((block, error.chain())),
            }
            let range = block_range(metadata.size_bytes, block);
            done_bytes += range.end - range.start;
            tell(done_bytes)
        };
        if !options.digest {
            file.block_crcs(options.cached, check)?;
            findings.sort_unstable_by_key(|(block, _)| *block);
            return Ok(());
        }
        let expected: Digest = metadata.digest.parse()?;
        let mut hasher = Some(expected.hasher(metadata.size_bytes));
        file.read_blocks(|block, bytes, sealed| {
            match (&bytes, &mut hasher) {
                (Ok(bytes), Some(hasher)) => hasher.update(bytes),
                _ => hasher = None,
            }
            check(block, bytes.map(crc32c::crc32c), sealed)
        })?;
        if let Some(found) = hasher.map(crate::digest::Hasher::finish)
            && found != expected
            && findings.is_empty()
        {
            findings.push((0, format!("its digest is {found}, {expected} was promised, though every CRC32C holds")));
        }
        Ok(())
    }
}
