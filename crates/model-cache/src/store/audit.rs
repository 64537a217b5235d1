//! Whether what the store says agrees with itself: records, their keys, markers, counters, the pages of the extents, and libmdbx's
//! structures. Of content only where it should lie; its bytes are [`View`](super::View)'s business.
//!
//! A record's CRC32C says nothing of its key, and libmdbx has no checksums: what a flipped bit in a key makes of a name is told by the
//! row that counts this name among its own, and the other way round.

use super::{Store, read::sealed_extents};
use crate::{
    digest::Digest,
    error::{Attempted, Result},
    key::{self, PinnedRepo},
    name::{CommitId, FilePath},
    record::*,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use storage::ReadTxn;

/// Something of the store that is damaged: a record, a key, a chunk's place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct BadRecord {
    /// What: a record's key, a counter, an environment.
    pub what: String,
    /// What was expected and found.
    pub reason: String,
}

impl BadRecord {
    /// The path, if it is a name's record.
    pub(crate) fn path(&self) -> Option<FilePath> {
        key::parse_meta(&self.what).map(|(_, path)| path)
    }
}

/// What is damaged, and where it can be told, how.
#[derive(Default)]
pub(super) struct Audit {
    pub(super) found: Vec<BadRecord>,
    /// Rows that can be read, by their keys.
    pub(super) blobs: BTreeMap<String, BlobRecord>,
    pub(super) damaged_blobs: BTreeSet<String>,
    pub(super) names: BTreeMap<String, FileMetadata>,
    pub(super) damaged_names: BTreeSet<String>,
    pub(super) damaged_manifests: BTreeSet<String>,
    pub(super) damaged_refs: BTreeSet<String>,
    pub(super) damaged_accesses: BTreeSet<String>,
    /// Markers by their keys: the blob's key, if it is text.
    pub(super) markers: BTreeMap<String, Option<String>>,
    /// The next blob's id, if it was ever written down.
    pub(super) next_blob_id: Option<Option<u64>>,
    pub(super) manifests: BTreeSet<String>,
    /// Refs that can be read.
    pub(super) refs: BTreeMap<String, RefRecord>,
}

impl Audit {
    fn tell(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.found.push(BadRecord { what: what.into(), reason: reason.into() });
    }

    /// The least id that no row has.
    pub(super) fn free_id(&self) -> u64 {
        let ids = self.blobs.values().map(|blob| blob.id).chain(self.names.values().map(|name| name.blob_id));
        ids.max().map_or(1, |id| id + 1)
    }
}

impl Store {
    /// Everything that is damaged but content, in no certain order; empty where all is well.
    ///
    /// Cost: reads every record, every key and every page of libmdbx's trees.
    pub(crate) fn bad_records(&self) -> Result<Vec<BadRecord>> {
        let mut audit = self.audit()?;
        self.check_chunk_keys(&mut audit)?;
        for checked in [self.records.check_structure(), self.extents.check_structure()] {
            match checked {
                Ok(()) => {}
                Err(storage::Error::BadEnvironment { environment, source, .. }) => {
                    audit.tell(environment.to_string_lossy(), source.to_string());
                }
                Err(error) => return Err(error).attempted(|| "could not check the store's structure".to_owned()),
            }
        }
        audit.found.sort();
        audit.found.dedup();
        Ok(audit.found)
    }

    /// Names of `repo` whose record is damaged.
    pub(crate) fn bad_names(&self, repo: &PinnedRepo) -> Result<Vec<BadRecord>> {
        let damaged = self.each_name(&key::meta_prefix(repo), |_, _, _| {})?;
        let bad = |error| match error {
            storage::Error::BadRecord { key, reason, .. } => Some(BadRecord { what: key, reason }),
            _ => None,
        };
        Ok(damaged.into_iter().filter_map(bad).collect())
    }

    /// Reads every record, in one snapshot, and holds them against each other.
    pub(super) fn audit(&self) -> Result<Audit> {
        let mut audit = Audit::default();
        let txn = self.begin_read()?;
        let reading = || "could not read the store's records".to_owned();
        read_records(&txn, &mut audit).attempted(reading)?;
        check_names(&mut audit);
        check_blobs(&mut audit);
        check_markers(&mut audit);
        let inline = txn.scan_sizes(&INLINE, "").attempted(reading)?;
        let homes: BTreeSet<String> =
            audit.blobs.values().filter(|blob| blob.is_inline()).map(|blob| key::chunk(&blob.home, 0)).collect();
        if audit.damaged_blobs.is_empty() {
            for (chunk_key, _) in inline.iter().filter(|(chunk_key, _)| !homes.contains(chunk_key)) {
                audit.tell(chunk_key, "no row leads to these bytes of a small file");
            }
        }
        Ok(audit)
    }

    /// Whether the keys of sealed chunks lead where their rows say. Those of content that comes or goes meanwhile are passed over.
    fn check_chunk_keys(&self, audit: &mut Audit) -> Result<()> {
        let mut found = Vec::new();
        for (blob_key, blob) in &audit.blobs {
            // What has not a page for each chunk was told of as such.
            if blob.state != BlobState::Sealed || blob.is_inline() || blob.pages.len() != blob.layout().chunks() as usize {
                continue;
            }
            for (index, extent) in sealed_extents(blob).into_iter().enumerate() {
                let chunk_key = key::chunk(&blob.home, index as u32);
                let reason = match self.extents.locate(&chunk_key) {
                    Ok(Some(found)) if found == extent => continue,
                    Ok(Some(found)) => format!("it leads to {found:?}, its row to {extent:?}"),
                    Ok(None) => format!("it is gone; its chunk is at page {}", extent.page),
                    Err(error) => error.to_string(),
                };
                if self.blob(blob_key)?.is_some_and(|now| now.id == blob.id && now.state == BlobState::Sealed) {
                    found.push(BadRecord { what: chunk_key, reason });
                }
            }
        }
        audit.found.extend(found);
        Ok(())
    }
}

fn read_records(txn: &ReadTxn<'_>, audit: &mut Audit) -> storage::Result<()> {
    // Each closure borrows its own part: what is damaged is told afterwards.
    let mut damaged = txn.scan_sound(&METADATA, "", |key, record| _ = audit.names.insert(key.to_owned(), record))?;
    audit.damaged_names = keys_of(&damaged);
    let blobs = txn.scan_sound(&BLOBS, "", |key, record| _ = audit.blobs.insert(key.to_owned(), record))?;
    audit.damaged_blobs = keys_of(&blobs);
    let mut listed = Vec::new();
    let manifests = txn.scan_sound(&MANIFESTS, "", |key, record| {
        audit.manifests.insert(key.to_owned());
        let sound = record.tree_files().is_ok();
        listed.extend((!sound).then(|| key.to_owned()));
    })?;
    audit.damaged_manifests = keys_of(&manifests);
    let bad_refs = txn.scan_sound(&REFS, "", |key, record| _ = audit.refs.insert(key.to_owned(), record))?;
    audit.damaged_refs = keys_of(&bad_refs);
    let mut accesses = Vec::new();
    let bad_accesses = txn.scan_sound(&ACCESS, "", |key, _| accesses.push(key.to_owned()))?;
    audit.damaged_accesses = keys_of(&bad_accesses);
    for error in blobs.into_iter().chain(manifests).chain(bad_refs).chain(bad_accesses) {
        damaged.push(error);
    }
    for error in &damaged {
        if let storage::Error::BadRecord { key, reason, .. } = error {
            audit.tell(key, reason);
        }
    }
    for key in listed {
        audit.tell(key, "it lists a file that can't be");
    }
    for key in accesses.iter().filter(|key| key::parse_access(key).is_none()) {
        audit.tell(key, "no blob has such a key of its last use");
    }
    for (ref_key, record) in audit.refs.clone() {
        let repo = ref_key.strip_prefix("ref:").and_then(|rest| rest.split_once(':')).map(|(repo, _)| repo.to_owned());
        let Some(repo) = repo else {
            audit.tell(ref_key, "it names no revision");
            continue;
        };
        for commit in record.current.iter().chain([&record.latest]) {
            let manifest = format!("manifest:{repo}@{commit}");
            if commit.parse::<CommitId>().is_err() {
                audit.tell(&ref_key, format!("{commit:?} is no commit"));
            } else if !audit.manifests.contains(&manifest) && !audit.damaged_manifests.contains(&manifest) {
                audit.tell(manifest, format!("{ref_key} leads to it, and it is gone"));
            }
        }
    }
    for (key, value) in txn.scan_bytes(&STORE, "")? {
        match &key[..] {
            "format" => {}
            "next_blob_id" => {
                audit.next_blob_id = Some(<[u8; 8]>::try_from(&value[..]).ok().map(u64::from_le_bytes));
            }
            _ if key.starts_with("doomed:") => _ = audit.markers.insert(key, String::from_utf8(value).ok()),
            // A later version's.
            _ => {}
        }
    }
    Ok(())
}

fn keys_of(errors: &[storage::Error]) -> BTreeSet<String> {
    let key = |error: &storage::Error| match error {
        storage::Error::BadRecord { key, .. } => Some(key.clone()),
        _ => None,
    };
    errors.iter().filter_map(key).collect()
}

/// Whether each name leads to a row that counts it among its own.
fn check_names(audit: &mut Audit) {
    let mut found = Vec::new();
    for (meta_key, metadata) in &audit.names {
        let blob_key = format!("blob:{}", metadata.digest);
        let reason = match audit.blobs.get(&blob_key) {
            _ if key::parse_meta(meta_key).is_none() => "it names no file".to_owned(),
            // Told of the row.
            None if audit.damaged_blobs.contains(&blob_key) => continue,
            None => format!("it leads to {blob_key}, which is gone"),
            Some(blob) if blob.id != metadata.blob_id || blob.size_bytes != metadata.size_bytes => format!(
                "it leads to blob {} of {} bytes, its row is of blob {} of {} bytes",
                metadata.blob_id, metadata.size_bytes, blob.id, blob.size_bytes
            ),
            Some(blob) if blob.state != BlobState::Sealed => format!("it leads to {blob_key}, which is {:?}", blob.state),
            Some(blob) if !blob.names.contains(meta_key) => format!("{blob_key} has no such name"),
            Some(_) => continue,
        };
        found.push(BadRecord { what: meta_key.clone(), reason });
    }
    audit.found.extend(found);
}

/// Whether each row has the names it says, pages of its own, and a number of its own below the counter's.
fn check_blobs(audit: &mut Audit) {
    let mut found = Vec::new();
    let mut tell = |what: &str, reason: String| found.push(BadRecord { what: what.to_owned(), reason });
    let mut ids: HashMap<u64, &str> = HashMap::new();
    let mut pages: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    for (blob_key, blob) in &audit.blobs {
        if let Some(other) = ids.insert(blob.id, blob_key) {
            tell(blob_key, format!("it has the number {} of {other}", blob.id));
        }
        let is_known = blob_key.strip_prefix("blob:").map_or_else(
            || blob_key.starts_with(key::IMPORTS) || blob_key.starts_with(key::DERIVED),
            |digest| digest.parse::<Digest>().is_ok(),
        );
        if !is_known {
            tell(blob_key, "it is no blob's key".to_owned());
        }
        let marker = audit.markers.get(&key::doomed(blob.id));
        match blob.state {
            BlobState::Doomed | BlobState::Freeing if marker.is_none() => {
                tell(blob_key, format!("it is {:?} and has no marker of it", blob.state));
            }
            BlobState::Sealed => {
                let layout = blob.layout();
                let chunks = if blob.is_inline() { 0 } else { layout.chunks() as usize };
                if blob.pages.len() != chunks || blob.block_crcs.len() as u64 != layout.blocks() {
                    let found = (blob.pages.len(), blob.block_crcs.len());
                    tell(blob_key, format!("its row has {} pages and {} CRCs for {chunks} chunks", found.0, found.1));
                }
                for (index, page) in blob.pages.iter().enumerate().take(chunks) {
                    let bytes = storage::HEADER_REGION_BYTES + layout.chunk_bytes(index as u32);
                    let range = u64::from(*page)..u64::from(*page) + bytes.div_ceil(storage::PAGE_BYTES);
                    if let Some((_, (end, other))) = pages.range(..range.end).next_back()
                        && *end > range.start
                    {
                        tell(blob_key, format!("its chunk {index} at page {page} overlaps one of {other}"));
                    }
                    pages.insert(range.start, (range.end, blob_key));
                }
                let is_content = blob_key.starts_with("blob:");
                if is_content && blob.names.is_empty() {
                    tell(blob_key, "it is sealed and has no name".to_owned());
                }
                for name in blob.names.iter().filter(|name| !audit.damaged_names.contains(*name)) {
                    match audit.names.get(name) {
                        None => tell(name, format!("{blob_key} has this name, and it is gone")),
                        Some(metadata) if format!("blob:{}", metadata.digest) != *blob_key => {
                            tell(blob_key, format!("its name {name} leads to blob:{}", metadata.digest));
                        }
                        Some(_) => {}
                    }
                }
            }
            _ => {}
        }
    }
    let highest = ids.keys().max().copied();
    match (audit.next_blob_id, highest) {
        (None, None) => {}
        (Some(Some(next)), highest) if highest.is_none_or(|highest| next > highest) => {}
        (next, highest) => tell("next_blob_id", format!("it is {:?}, the highest number in use {highest:?}", next.flatten())),
    }
    audit.found.extend(found);
}

/// Whether each marker of what is to be freed leads to a blob that is.
fn check_markers(audit: &mut Audit) {
    let mut found = Vec::new();
    for (marker, blob_key) in &audit.markers {
        let id = marker.strip_prefix("doomed:").and_then(|id| id.parse().ok());
        let row = blob_key.as_ref().and_then(|blob_key| audit.blobs.get(blob_key));
        let is_damaged = blob_key.as_ref().is_some_and(|blob_key| audit.damaged_blobs.contains(blob_key));
        let leads = row.is_some_and(|blob| Some(blob.id) == id && matches!(blob.state, BlobState::Doomed | BlobState::Freeing));
        if !leads && !is_damaged {
            found.push(BadRecord { what: marker.clone(), reason: format!("it leads to {blob_key:?}, which is not to be freed") });
        }
    }
    audit.found.extend(found);
}
