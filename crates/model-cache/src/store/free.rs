//! How content goes: names are removed at once, space when the last reader lets go.
//!
//! The steps, each leaving only work for the next open if a crash follows it (design.md, idea D): (1) a durable transaction
//! removes the names and marks the blob Doomed; (2) under its exclusive lease it becomes Freeing; (3) holes are punched over its
//! data while the pages are still its own; (4) its chunk keys are deleted; (5) its row is.

use super::{ANY_FILL_LEASE, Store, fill::extent_specs, writing};
use crate::{
    error::{Attempted, Result},
    key::{self, PinnedRepo},
    name::{FilePath, RepoSpec},
    record::*,
};
use std::collections::{HashMap, HashSet};
use storage::{DataFile, Extent, ReadTxn, WriteTxn, fail_point};

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Names that are gone.
    pub files: u64,
    /// Bytes those names had.
    pub bytes: u64,
    /// Bytes of content given back to the disk.
    pub freed_bytes: u64,
    /// Bytes of content no name leads to that somebody still reads; they return when the last reader lets go.
    pub busy_bytes: u64,
    /// Bytes of unfinished files that somebody is pulling or importing now: that goes on, and keeps them.
    pub filling_bytes: u64,
    /// Processes that read or fill it, as far as this one may look.
    pub busy_processes: Vec<u32>,
    /// Bytes of the removed names whose content other names still use.
    pub shared_bytes: u64,
}

impl Removed {
    fn add(&mut self, fate: Fate, size_bytes: u64) {
        match fate {
            Fate::Freed => self.freed_bytes += size_bytes,
            Fate::Busy => self.busy_bytes += size_bytes,
            Fate::Gone => {}
        }
    }
}

/// Which names of a repo to remove.
pub(crate) enum Selection<'a> {
    All,
    Paths(&'a dyn Fn(&PinnedRepo, &FilePath) -> bool),
}

/// What became of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Freed,
    /// Somebody holds a lease on it.
    Busy,
    /// It was not there to be freed, or is in use again.
    Gone,
}

impl Store {
    /// Removes names, then frees what no name leads to any more.
    ///
    /// With [`Selection::All`] the repo's listings, refs and unfinished fills go too.
    pub(crate) fn remove(&self, spec: &RepoSpec, selection: &Selection<'_>) -> Result<Removed> {
        // On a full disk this is what makes room.
        let _room = self.ballast.give_up_if_needed().attempted(writing)?;
        let mut removed = Removed::default();
        let mut doomed = Vec::new();
        // Of content that goes with the last of its names in this very removal nothing is shared.
        let mut shared: HashMap<String, u64> = HashMap::new();
        let txn = self.begin_write()?;
        // Asked with the writer's place held: no commit of the repo comes in between.
        let repos = self.all_repos(spec)?;
        for repo in &repos {
            for (meta_key, path, metadata) in names_in(&txn, repo)? {
                if let Selection::Paths(wanted) = selection
                    && !wanted(repo, &path)
                {
                    continue;
                }
                let (content, size_bytes) =
                    metadata.map_or_else(|| (meta_key.clone(), 0), |metadata| (metadata.digest, metadata.size_bytes));
                removed.files += 1;
                removed.bytes += size_bytes;
                match self.unlink(&txn, &meta_key)? {
                    Unlinked::Doomed(blobs) => {
                        shared.remove(&content);
                        doomed.extend(blobs);
                    }
                    Unlinked::Freed => {
                        shared.remove(&content);
                        removed.freed_bytes += size_bytes;
                    }
                    Unlinked::Shared => *shared.entry(content).or_default() += size_bytes,
                }
            }
            if matches!(selection, Selection::All) {
                txn.delete(&MANIFESTS, &key::manifest(repo)).attempted(writing)?;
            }
        }
        if matches!(selection, Selection::All) {
            delete_refs(&txn, spec, &repos)?;
        }
        removed.shared_bytes = shared.into_values().sum();
        fail_point("remove.names_deleted");
        self.commit(txn)?;
        fail_point("remove.doomed");
        for Doomed { blob_key, id, size_bytes } in doomed {
            let freed = self.free_blob(&blob_key, id)?;
            if freed == Fate::Busy {
                removed.busy_processes.extend(self.leases.holders(id));
            }
            removed.add(freed, size_bytes);
            fail_point("remove.one_freed");
        }
        match selection {
            Selection::All => self.remove_fills(&repos, &|_, _| true, &mut removed)?,
            Selection::Paths(_) => self.settle()?,
        }
        removed.busy_processes.sort_unstable();
        removed.busy_processes.dedup();
        Ok(removed)
    }

    /// Frees the unfinished fills of the files `wanted` of `repos`, and settles the store.
    pub(crate) fn remove_fills(
        &self,
        repos: &[PinnedRepo],
        wanted: &dyn Fn(&PinnedRepo, &FilePath) -> bool,
        removed: &mut Removed,
    ) -> Result<()> {
        let chosen = |blob: &BlobRecord| {
            let home = key::parse_home(&blob.home);
            home.is_some_and(|(repo, path)| repos.contains(&repo) && wanted(&repo, &path))
        };
        self.free_fills(self.all_blobs()?, chosen, removed)?;
        self.settle()
    }

    /// Frees what nothing uses: blobs without names, fills nobody continues, and extents no row knows.
    pub(crate) fn collect_garbage(&self) -> Result<Removed> {
        let _room = self.ballast.give_up_if_needed().attempted(writing)?;
        let mut removed = Removed::default();
        // By the rows, not by their markers: a marker may be damaged.
        let blobs = self.all_blobs()?;
        let keys: HashSet<&str> = blobs.iter().map(|(blob_key, _)| blob_key.as_str()).collect();
        // Every removal dooms what was derived of its content, but one by a program that knows of none.
        let has_lost_its_source =
            |blob_key| key::source_of_derived(blob_key).is_some_and(|source| !keys.contains(source.as_str()));
        for (blob_key, blob) in &blobs {
            let freed = match blob.state {
                BlobState::Doomed | BlobState::Freeing => self.free_blob(blob_key, blob.id)?,
                BlobState::Sealed if has_lost_its_source(blob_key) => self.drop_derived(blob_key, blob.id)?,
                BlobState::Sealed | BlobState::Filling => continue,
            };
            if freed == Fate::Busy {
                removed.busy_processes.extend(self.leases.holders(blob.id));
            }
            removed.add(freed, blob.size_bytes);
        }
        fail_point("gc.doomed_freed");
        self.free_fills(self.all_blobs()?, |_| true, &mut removed)?;
        fail_point("gc.fills_freed");
        removed.freed_bytes += self.free_orphans()?;
        fail_point("gc.orphans_freed");
        removed.freed_bytes += self.drop_strays(false)?.into_iter().map(|(_, bytes)| bytes).sum::<u64>();
        self.settle()?;
        fail_point("gc.settled");
        self.punch_free()?;
        fail_point("gc.free_pages_punched");
        Ok(removed)
    }

    /// Frees a fill of this content nobody is at, for one who knows better; whether it did.
    pub(super) fn free_unfinished(&self, blob_key: &str) -> Result<bool> {
        let Some(blob) = self.blob(blob_key)? else { return Ok(false) };
        if !matches!(blob.state, BlobState::Filling | BlobState::Freeing) {
            return Ok(false);
        }
        let lease = self.leases.try_exclusive(blob.id).attempted(|| format!("could not free {blob_key}"))?;
        if lease.is_some() { self.free_leased(blob_key, blob.id) } else { Ok(false) }
    }

    /// Finishes every free that was begun and can be finished now.
    pub(crate) fn free_doomed(&self) -> Result<()> {
        let doomed = self.doomed()?;
        if doomed.is_empty() {
            return Ok(());
        }
        let _room = self.ballast.give_up_if_needed().attempted(writing)?;
        let mut any_freed = false;
        let mut failed = None;
        for (blob_key, id) in doomed {
            // One that can't be freed must not keep the others.
            match self.free_blob(&blob_key, id) {
                Ok(fate) => any_freed |= fate == Fate::Freed,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if any_freed {
            self.settle()?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Frees what a new name took the place of. The name stands whatever comes of it: the next open tries again.
    pub(crate) fn free_replaced(&self) {
        if let Err(error) = self.free_doomed() {
            tracing::warn!(%error, "content without a name was not freed yet");
        }
    }

    /// Frees the blob if no name leads to it: what a reader does when it lets go.
    ///
    /// Cost where there is nothing to free: one read. Else a few durable commits; no sync of the extents, which whoever frees or
    /// seals next does. What fails is left to the next open.
    pub(super) fn free_if_doomed(&self, blob_key: &str, id: u64) {
        // Its marker came with the transaction that doomed it, and is quicker to find than its row is to read.
        let freed = self.doomed_at(id).and_then(|doomed| match doomed {
            // A repair gave its key to another.
            Some(blob_key) => self.free_blob(&blob_key, id).map(drop),
            None => Ok(()),
        });
        if let Err(error) = freed {
            tracing::debug!(%error, blob = %blob_key, "a blob nobody reads any more was not freed yet");
        }
    }

    /// Takes one name away from its content.
    pub(super) fn unlink(&self, txn: &WriteTxn<'_>, meta_key: &str) -> Result<Unlinked> {
        let found = match txn.get(&METADATA, meta_key) {
            // Where its record can't be read, the row that counts this name among its own knows.
            Err(storage::Error::BadRecord { .. }) => blob_of_name(txn, meta_key)?,
            metadata => match metadata.attempted(writing)? {
                Some(metadata) => blob_of(txn, meta_key, &metadata)?,
                None => None,
            },
        };
        txn.delete(&METADATA, meta_key).attempted(writing)?;
        let Some((blob_key, mut blob)) = found else { return Ok(Unlinked::Shared) };
        blob.names.retain(|name| name != meta_key);
        if !blob.names.is_empty() {
            txn.put(&BLOBS, &blob_key, &blob).attempted(writing)?;
            return Ok(Unlinked::Shared);
        }
        if blob.is_inline() {
            // Readers of small files have a copy: it can go at once.
            txn.delete(&INLINE, &key::chunk(&blob.home, 0)).attempted(writing)?;
            txn.delete(&BLOBS, &blob_key).attempted(writing)?;
            txn.delete(&ACCESS, &key::access(blob.id)).attempted(writing)?;
            return Ok(Unlinked::Freed);
        }
        let mut doomed = derived_of(txn, &blob_key)?;
        doomed.retain(|(_, derived)| derived.state == BlobState::Sealed);
        doomed.push((blob_key, blob));
        let doomed = doomed.into_iter().map(|(blob_key, blob)| doom(txn, blob_key, blob));
        Ok(Unlinked::Doomed(doomed.collect::<Result<_>>()?))
    }

    /// Marks the derived value at `blob_key` to be freed, and frees it if nobody reads it.
    pub(super) fn drop_derived(&self, blob_key: &str, id: u64) -> Result<Fate> {
        let txn = self.begin_write()?;
        let row = txn.get(&BLOBS, blob_key).attempted(writing)?;
        match row.filter(|blob| blob.id == id && blob.state == BlobState::Sealed) {
            Some(blob) => {
                doom(&txn, blob_key.to_owned(), blob)?;
                self.commit(txn)?;
                fail_point("derive.doomed");
            }
            // Somebody else was first. What follows writes too.
            None => drop(txn),
        }
        self.free_blob(blob_key, id)
    }

    /// Frees a blob no name leads to, unless somebody holds a lease on it.
    pub(super) fn free_blob(&self, blob_key: &str, id: u64) -> Result<Fate> {
        let freeing = || format!("could not free {blob_key}");
        let Some(_lease) = self.leases.try_exclusive(id).attempted(freeing)? else { return Ok(Fate::Busy) };
        let wait = |blob: &BlobRecord| blob.id == id && matches!(blob.state, BlobState::Doomed | BlobState::Freeing);
        if !self.blob(blob_key)?.as_ref().is_some_and(wait) {
            return Ok(Fate::Gone);
        }
        Ok(if self.free_leased(blob_key, id)? { Fate::Freed } else { Fate::Gone })
    }

    /// Frees a blob that is Filling, Doomed or Freeing; false if it is gone, or wanted again. The caller holds its exclusive lease.
    pub(super) fn free_leased(&self, blob_key: &str, id: u64) -> Result<bool> {
        let freeing = || format!("could not free {blob_key}");
        self.extents_may_be_written()?;
        let txn = self.begin_write()?;
        let Some(mut blob) = txn.get(&BLOBS, blob_key).attempted(writing)?.filter(|blob| blob.id == id) else { return Ok(false) };
        match blob.state {
            // A pull wanted it again before the lease was ours.
            BlobState::Sealed => return Ok(false),
            BlobState::Freeing => drop(txn),
            BlobState::Filling | BlobState::Doomed => {
                blob.state = BlobState::Freeing;
                txn.put(&BLOBS, blob_key, &blob).attempted(writing)?;
                txn.put_bytes(&STORE, &key::doomed(id), blob_key.as_bytes()).attempted(writing)?;
                self.commit(txn)?;
                fail_point("free.marked");
            }
        }
        let writer = self.extents.open_writer().attempted(freeing)?;
        // By its header; where that is damaged, by the page its row took down at the seal. What its key says of its length has to be true too: a
        // flipped bit there would have a neighbour's bytes punched.
        let owned = |index: u32, extent: &Extent| -> Result<bool> {
            Ok(match writer.read_header(extent).attempted(freeing)? {
                Some(header) => header.owner == id && header.data_bytes == extent.data_bytes,
                None => {
                    let is_page = blob.pages.get(index as usize) == Some(&extent.page);
                    is_page && extent.data_bytes == blob.layout().chunk_bytes(index)
                }
            })
        };
        let mut found = false;
        for index in 0..blob.layout().chunks() {
            if let Some(extent) = self.extents.locate(&key::chunk(&blob.home, index)).attempted(freeing)?
                && owned(index, &extent)?
            {
                writer.punch(&extent).attempted(freeing)?;
                fail_point("free.punched");
                found = true;
            }
        }
        if !found
            && blob.pages.is_empty()
            && let Err(error) = self.give_back_uncommitted(&blob, &writer)
        {
            tracing::debug!(%error, blob = %blob_key, "space a killed reservation may have taken was not looked for");
        }
        let txn = self.extents.begin_free().attempted(freeing)?;
        for index in 0..blob.layout().chunks() {
            let chunk_key = key::chunk(&blob.home, index);
            if let Some(extent) = txn.locate(&chunk_key).attempted(freeing)?
                && owned(index, &extent)?
            {
                txn.delete(&chunk_key).attempted(freeing)?;
                fail_point("free.chunk_deleted");
            }
        }
        txn.commit().attempted(freeing)?;
        fail_point("free.chunks_gone");
        let txn = self.begin_write()?;
        txn.delete(&BLOBS, blob_key).attempted(writing)?;
        txn.delete(&STORE, &key::doomed(id)).attempted(writing)?;
        txn.delete(&ACCESS, &key::access(id)).attempted(writing)?;
        fail_point("free.row_deleted");
        self.commit(txn)?;
        fail_point("free.done");
        Ok(true)
    }

    /// Gives back the disk space of a reservation that was killed between taking it and its commit, if there was one.
    ///
    /// No key leads to those pages. But the same reservation made again is given the same ones: they are punched while they are
    /// its own, and it is not committed.
    pub(super) fn give_back_uncommitted(&self, blob: &BlobRecord, writer: &DataFile) -> storage::Result<()> {
        let specs = extent_specs(blob);
        let txn = self.extents.begin_reserve()?;
        for extent in txn.reserve(writer, blob.id, BLOCK_BYTES as u32, &specs)? {
            writer.punch(&extent)?;
            fail_point("reserve.uncommitted_given_back");
        }
        Ok(())
    }

    /// Frees imports and derived values whose process died: nobody continues them, since an import's source may have changed.
    pub(super) fn free_abandoned(&self) -> Result<()> {
        let mut abandoned = self.blobs_below(key::IMPORTS)?;
        abandoned.extend(self.blobs_below(key::DERIVED)?);
        if abandoned.is_empty() { Ok(()) } else { self.free_fills(abandoned, |_| true, &mut Removed::default()) }
    }

    /// Frees those of `blobs` that are fills, are `chosen`, and have nobody at them.
    fn free_fills(
        &self,
        blobs: Vec<(String, BlobRecord)>,
        chosen: impl Fn(&BlobRecord) -> bool,
        removed: &mut Removed,
    ) -> Result<()> {
        let mut failed = None;
        for (blob_key, blob) in blobs {
            if blob.state != BlobState::Filling || !chosen(&blob) {
                continue;
            }
            let lease = self.leases.try_exclusive(blob.id).attempted(|| format!("could not free {blob_key}"))?;
            if lease.is_none() {
                removed.filling_bytes += blob.size_bytes;
                removed.busy_processes.extend(self.leases.holders(blob.id));
                continue;
            }
            // Under the lease it may turn out to be sealed, or gone. One that can't be freed must not keep the others.
            match self.free_leased(&blob_key, blob.id) {
                Ok(true) => removed.freed_bytes += blob.size_bytes,
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // One process may be at several.
        removed.busy_processes.sort_unstable();
        removed.busy_processes.dedup();
        failed.map_or(Ok(()), Err)
    }

    /// Frees extents no blob's row knows: what a power loss or a restored backup can leave.
    fn free_orphans(&self) -> Result<u64> {
        let freeing = || "could not free chunks that belong to no file".to_owned();
        self.extents_may_be_written()?;
        let writer = self.extents.open_writer().attempted(freeing)?;
        fail_point("gc.orphans_begun");
        let txn = self.extents.begin_free().attempted(freeing)?;
        // The snapshot of the rows begins after the writer's place was taken: rows come before their extents, so an extent
        // seen here whose row is not there has none.
        let mut pages = HashSet::new();
        let mut owners: HashMap<String, HashSet<u64>> = HashMap::new();
        let damaged = self.each_blob("", |_, blob| {
            pages.extend(blob.pages);
            owners.entry(blob.home).or_default().insert(blob.id);
        })?;
        if !damaged.is_empty() {
            // Any extent may be that row's.
            tracing::warn!(damaged_rows = damaged.len(), "chunks that belong to no file are not freed while a row can't be read");
            return Ok(0);
        }
        let mut freed_bytes = 0;
        for chunk_key in txn.keys().attempted(freeing)? {
            let Some(extent) = txn.locate(&chunk_key).attempted(freeing)? else { continue };
            let header = writer.read_header(&extent).attempted(freeing)?;
            let owners = key::home_of_chunk(&chunk_key).and_then(|home| owners.get(home));
            // The records are the truth: an extent a row speaks of stays, also where its header is damaged.
            let owner = match (header, owners) {
                _ if pages.contains(&extent.page) => continue,
                (None, Some(_)) => {
                    tracing::warn!(chunk = %chunk_key, "a chunk's header is damaged; model-cache verify shows whose it is");
                    continue;
                }
                (Some(header), Some(owners)) if owners.contains(&header.owner) => continue,
                (Some(header), _) if header.data_bytes != extent.data_bytes => {
                    tracing::warn!(chunk = %chunk_key, "a chunk's key is damaged; its space is not freed");
                    continue;
                }
                (header, _) => header.map_or(0, |header| header.owner),
            };
            // Nobody new can come to lease an owner without a row, but somebody may still be reading.
            if self.leases.is_held(owner).attempted(freeing)? {
                continue;
            }
            tracing::info!(chunk = %chunk_key, "freeing a chunk that belongs to no file");
            writer.punch(&extent).attempted(freeing)?;
            fail_point("gc.orphan_punched");
            txn.delete(&chunk_key).attempted(freeing)?;
            freed_bytes += extent.data_bytes;
        }
        txn.commit().attempted(freeing)?;
        Ok(freed_bytes)
    }

    /// Drops bytes of small files no row leads to, as a flipped bit in their key leaves them: keys, and how many bytes. None of them
    /// while they may be somebody's.
    ///
    /// Cost: one read of all rows and names.
    pub(crate) fn drop_strays(&self, dry_run: bool) -> Result<Vec<(String, u64)>> {
        let reading = || "could not look for bytes that belong to no file".to_owned();
        let look = || -> Result<Vec<(String, u64)>> {
            let found = strays(&self.begin_read()?).attempted(reading)?;
            Ok(if found.may_be_somebodys { Vec::new() } else { found.sizes })
        };
        // Hardly ever are there any: looked for without the writer's place first.
        let found = look()?;
        if found.is_empty() || dry_run {
            return Ok(found);
        }
        let txn = self.begin_write()?;
        let mut dropped = Vec::new();
        for (chunk_key, bytes) in look()? {
            // A key that is not UTF-8 is another than is shown of it, and stays.
            if txn.delete(&INLINE, &chunk_key).attempted(writing)? {
                tracing::info!(chunk = %chunk_key, "dropped bytes that belong to no file");
                dropped.push((chunk_key, bytes));
            }
        }
        self.commit(txn)?;
        Ok(dropped)
    }

    /// Gives back the space of pages that belong to nothing, as a power loss leaves them when it undoes a reservation.
    fn punch_free(&self) -> Result<()> {
        let punching = || "could not give the space of unused pages back".to_owned();
        let writer = self.extents.open_writer().attempted(punching)?;
        let txn = self.extents.begin_free().attempted(punching)?;
        txn.punch_free(&writer).attempted(punching)
    }

    /// Lets libmdbx reuse and cut off freed pages, unless that would write out somebody's fill.
    fn settle(&self) -> Result<()> {
        let settling = || "could not settle the store after a free".to_owned();
        if !self.leases.is_held(ANY_FILL_LEASE).attempted(settling)? {
            self.extents.sync().attempted(settling)?;
            fail_point("settle.synced");
        }
        Ok(())
    }

    /// The key of blob `id` if it waits to be freed, as its marker says.
    fn doomed_at(&self, id: u64) -> Result<Option<String>> {
        let marker = self.begin_read()?.get_bytes(&STORE, &key::doomed(id));
        let marker = marker.attempted(|| format!("could not look whether blob {id} is to be freed"))?;
        Ok(marker.and_then(|blob_key| String::from_utf8(blob_key).ok()))
    }

    /// Blobs that wait to be freed: key and id.
    fn doomed(&self) -> Result<Vec<(String, u64)>> {
        let found =
            self.begin_read()?.scan_bytes(&STORE, "doomed:").attempted(|| "could not list what is to be freed".to_owned())?;
        let blob_of = |(marker, blob_key): (String, Vec<u8>)| {
            let id = marker.strip_prefix("doomed:").and_then(|id| id.parse().ok());
            let found = String::from_utf8(blob_key).ok().zip(id);
            if found.is_none() {
                // It must not keep the others from being freed; its blob's row says Doomed still.
                tracing::warn!(%marker, "a marker of what is to be freed names no blob");
            }
            found
        };
        Ok(found.into_iter().filter_map(blob_of).collect())
    }
}

/// Bytes of small files no row leads to.
#[derive(Default)]
pub(super) struct Strays {
    /// Their keys, and how many bytes.
    pub(super) sizes: Vec<(String, u64)>,
    /// Whether a row can't be read, is gone, or misses its bytes: any of these may be its.
    may_be_somebodys: bool,
}

pub(super) fn strays(txn: &ReadTxn<'_>) -> storage::Result<Strays> {
    let mut found = Strays::default();
    let mut sizes: HashMap<String, usize> = txn.scan_sizes(&INLINE, "")?.into_iter().collect();
    let mut rows = HashSet::new();
    let damaged = txn.scan_sound(&BLOBS, "", |blob_key, blob| {
        // Small derived values have extents.
        if blob.is_inline() && sizes.remove(&key::chunk(&blob.home, 0)).is_none() {
            found.may_be_somebodys |= blob_key.starts_with("blob:");
        }
        rows.insert(blob_key.to_owned());
    })?;
    txn.scan_sound(&METADATA, "meta:", |_, name| {
        found.may_be_somebodys |= name.size_bytes <= INLINE_BYTES && !rows.contains(&format!("blob:{}", name.digest));
    })?;
    found.may_be_somebodys |= !damaged.is_empty();
    found.sizes = sizes.into_iter().map(|(chunk_key, bytes)| (chunk_key, bytes as u64)).collect();
    found.sizes.sort_unstable();
    Ok(found)
}

/// What became of a name's content.
pub(super) enum Unlinked {
    /// Other names use it, or it was gone.
    Shared,
    /// It was inline, and is gone.
    Freed,
    /// No name leads to it; it waits to be freed, and so does what was derived of it.
    Doomed(Vec<Doomed>),
}

/// A blob that waits to be freed.
pub(super) struct Doomed {
    blob_key: String,
    id: u64,
    size_bytes: u64,
}

pub(super) fn doom(txn: &WriteTxn<'_>, blob_key: String, mut blob: BlobRecord) -> Result<Doomed> {
    blob.state = BlobState::Doomed;
    txn.put(&BLOBS, &blob_key, &blob).attempted(writing)?;
    txn.put_bytes(&STORE, &key::doomed(blob.id), blob_key.as_bytes()).attempted(writing)?;
    Ok(Doomed { blob_key, id: blob.id, size_bytes: blob.size_bytes })
}

/// The blob a name leads to; `None` if there is no row of it, or one other names use that can't be read.
///
/// A damaged row whose last name this is becomes what the name knows of it: enough to free its extents by their headers.
fn blob_of(txn: &WriteTxn<'_>, meta_key: &str, metadata: &FileMetadata) -> Result<Option<(String, BlobRecord)>> {
    let blob_key = format!("blob:{}", metadata.digest);
    match txn.get(&BLOBS, &blob_key) {
        Err(storage::Error::BadRecord { .. }) => {
            let mut others = false;
            txn.scan_sound(&METADATA, "meta:", |other_key, other| {
                others |= other_key != meta_key && other.digest == metadata.digest
            })
            .attempted(writing)?;
            let home = meta_key.strip_prefix("meta:").unwrap_or(meta_key).to_owned();
            let known = || BlobRecord {
                id: metadata.blob_id,
                home,
                size_bytes: metadata.size_bytes,
                state: BlobState::Sealed,
                names: vec![meta_key.to_owned()],
                pages: Vec::new(),
                block_crcs: Vec::new(),
                created_unix_ms: metadata.created_unix_ms,
            };
            Ok((!others).then(|| (blob_key, known())))
        }
        blob => Ok(blob.attempted(writing)?.map(|blob| (blob_key, blob))),
    }
}

/// The blob that counts `meta_key` among its names.
pub(super) fn blob_of_name(txn: &WriteTxn<'_>, meta_key: &str) -> Result<Option<(String, BlobRecord)>> {
    let mut found = None;
    txn.scan_sound(&BLOBS, "blob:", |blob_key, blob| {
        if blob.names.iter().any(|name| name == meta_key) {
            found = Some((blob_key.to_owned(), blob));
        }
    })
    .attempted(writing)?;
    Ok(found)
}

/// What was derived of the blob at `source_key`: keys and rows.
fn derived_of(txn: &WriteTxn<'_>, source_key: &str) -> Result<Vec<(String, BlobRecord)>> {
    let mut found = Vec::new();
    txn.scan_sound(&BLOBS, &key::derived_prefix(source_key), |blob_key, blob| found.push((blob_key.to_owned(), blob)))
        .attempted(writing)?;
    Ok(found)
}

/// The names of `repo`, those whose record can't be read too.
fn names_in(txn: &WriteTxn<'_>, repo: &PinnedRepo) -> Result<Vec<(String, FilePath, Option<FileMetadata>)>> {
    let mut found = Vec::new();
    txn.scan_all(&METADATA, &key::meta_prefix(repo), |meta_key, metadata| {
        if let Some((_, path)) = key::parse_meta(meta_key) {
            found.push((meta_key.to_owned(), path, metadata.ok()));
        }
        Ok::<_, storage::Error>(())
    })
    .attempted(|| format!("could not list the files of {repo}"))?;
    Ok(found)
}

/// Deletes the refs of a repo, or, where a revision was named, those that lead to its commit.
fn delete_refs(txn: &WriteTxn<'_>, spec: &RepoSpec, repos: &[PinnedRepo]) -> Result<()> {
    let mut gone = Vec::new();
    txn.scan_all(&REFS, &key::reference_prefix(&spec.repo), |ref_key, record| {
        let leads_here = |commit: &str| repos.iter().any(|repo| repo.commit.as_ref().is_some_and(|own| own.as_str() == commit));
        let leads_here = |record: RefRecord| leads_here(&record.latest) || record.current.as_deref().is_some_and(leads_here);
        if spec.revision.is_none() || record.is_ok_and(leads_here) {
            gone.push(ref_key.to_owned());
        }
        Ok::<_, storage::Error>(())
    })
    .attempted(writing)?;
    for ref_key in gone {
        txn.delete(&REFS, &ref_key).attempted(writing)?;
    }
    Ok(())
}
