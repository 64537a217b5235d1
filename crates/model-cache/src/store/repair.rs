//! How damage is mended, as far as the store goes: records from what other records say, content from what of it is sound.
//!
//! A sealed extent is never written: readers may have it mapped. Damaged content is filled once more, as a blob of its own, of the
//! blocks whose CRC32C holds and of those fetched again, and takes the damaged one's place in one transaction; that one waits for its
//! last reader, as removed content does.

use super::{
    Store,
    audit::Audit,
    fill::{Begun, Fill, Wanted, is_content_of},
    free::{doom, strays},
    link,
    read::{check_header, sealed_extents},
    writing,
};
use crate::{
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::{CommitId, FilePath, RepoId},
    record::*,
};
use std::sync::Arc;
use storage::{Extent, Lease, WriteTxn, fail_point};

/// A name, the promise it makes, and the blob it leads to, of which something may be damaged.
pub(crate) struct Suspect {
    store: Arc<Store>,
    /// Keeps what is read from being freed.
    _lease: Lease,
    /// The repo and file it was looked at for.
    name: String,
    pub(crate) metadata: FileMetadata,
    /// Its row; `None` if that is damaged or gone.
    row: Option<BlobRecord>,
    home: String,
    layout: Layout,
    /// Where each chunk is; `None` where it can't be told.
    extents: Vec<Option<Extent>>,
    /// What each block's CRC32C should be: by the row, else by the chunks' journals, which only the digest proves.
    crcs: Vec<Option<u32>>,
    /// Chunks whose header or key is damaged, and how.
    pub(crate) bad_chunks: Vec<(u32, String)>,
}

impl Suspect {
    /// The number of the blob in question.
    pub(crate) fn id(&self) -> u64 {
        self.metadata.blob_id
    }

    /// Whether its row can be read.
    pub(crate) fn has_row(&self) -> bool {
        self.row.is_some()
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Reads `block` from the disk into `buffer`: its bytes if its CRC32C holds, else what is wrong with it.
    pub(crate) fn read_block<'a>(&self, block: u64, buffer: &'a mut Vec<u8>) -> std::result::Result<(&'a [u8], u32), String> {
        let range = self.layout.block_range(block);
        let (chunk, within) = self.layout.place(range.start);
        let (Some(extent), Some(sealed)) = (self.extents[chunk as usize], self.crcs[block as usize]) else {
            return Err("where it lies, or its CRC32C, is lost".to_owned());
        };
        buffer.resize((range.end - range.start) as usize, 0);
        let reader = self.store.extents.reader();
        if within == 0 {
            reader.forget(&extent).map_err(|error| error.to_string())?;
        }
        reader.read_at(&extent, within, buffer).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })?;
        let found = crc32c::crc32c(buffer);
        if found == sealed { Ok((buffer, sealed)) } else { Err(format!("its CRC32C is {found:08x}, {sealed:08x} was sealed")) }
    }
}

/// Records that were mended without the network, and what only the Hub can tell.
#[derive(Default)]
pub(crate) struct MendedRecords {
    /// What was done: the record's key, and how.
    pub(crate) mended: Vec<(String, &'static str)>,
    /// Names whose content is known of no more: they are to be pulled again.
    pub(crate) lost: Vec<(PinnedRepo, FilePath)>,
    /// Commits whose listing is damaged or gone.
    pub(crate) unlisted: Vec<PinnedRepo>,
}

impl Store {
    /// Looks at what the name at `repo` and `path` leads to, without trust in anything but CRC32Cs. `None` if it has no extents, is
    /// gone, or leads elsewhere by now.
    ///
    /// # Errors
    /// [`Error::Busy`] while somebody holds it exclusively.
    pub(crate) fn suspect(self: &Arc<Self>, repo: &PinnedRepo, path: &FilePath) -> Result<Option<Suspect>> {
        let name = || format!("{} {path}", repo.repo);
        let reading = || format!("could not look at {} {path}", repo.repo);
        let meta_key = key::meta(repo, path);
        let look = || self.begin_read()?.get(&METADATA, &meta_key).attempted(reading);
        let Some(metadata) = look()?.filter(|metadata| metadata.size_bytes > INLINE_BYTES) else { return Ok(None) };
        let lease = self.leases.try_shared(metadata.blob_id).attempted(reading)?;
        let lease = lease.ok_or_else(|| Error::Busy { what: name(), reason: "somebody holds it exclusively" })?;
        // Before the lease was ours it may have been freed.
        if look()?.as_ref() != Some(&metadata) {
            return Ok(None);
        }
        let row = match self.blob(&format!("blob:{}", metadata.digest)) {
            Err(error) if error.is_corruption() => None,
            row => row?.filter(|row| row.id == metadata.blob_id && row.state == BlobState::Sealed),
        };
        Ok(Some(self.look_at(name(), key::home(repo, path), metadata, row, lease)))
    }

    /// What is here of the content `wanted` is, if it is damaged. Ends early with the first error of `go_on`, asked at each block.
    ///
    /// Cost: where it is here, one read of it from the disk.
    ///
    /// # Errors
    /// [`Error::Busy`] while somebody holds it exclusively, or has just freed it.
    pub(crate) fn find_damaged(self: &Arc<Self>, wanted: &Wanted, go_on: &dyn Fn() -> Result<()>) -> Result<Option<Suspect>> {
        let blob_key = key::blob(&wanted.digest);
        let suspect = match self.blob(&blob_key) {
            // Its number is known to its names.
            Err(error) if error.is_corruption() => match self.name_of(wanted)? {
                Some((repo, path)) => self.suspect(&repo, &path)?,
                None => None,
            },
            row => match row?.filter(|row| is_content_of(row, wanted)) {
                Some(row) => {
                    let lease = self.leases.try_shared(row.id).attempted(|| format!("could not look at {blob_key}"))?;
                    let now = self.blob(&blob_key)?.filter(|now| now.id == row.id && is_content_of(now, wanted));
                    let (Some(lease), Some(row)) = (lease, now) else {
                        return Err(Error::Busy { what: wanted.name(), reason: "the same content is being freed" });
                    };
                    let home = row.home.clone();
                    Some(self.look_at(wanted.name(), home, wanted.metadata(row.id), Some(row), lease))
                }
                None => None,
            },
        };
        let Some(suspect) = suspect else { return Ok(None) };
        let mut is_damaged = !suspect.has_row() || !suspect.bad_chunks.is_empty();
        let mut buffer = Vec::new();
        for block in 0..suspect.layout.blocks() {
            if is_damaged {
                break;
            }
            is_damaged = suspect.read_block(block, &mut buffer).is_err();
            go_on()?;
        }
        Ok(is_damaged.then_some(suspect))
    }

    /// A name that leads to the content `wanted` is.
    fn name_of(&self, wanted: &Wanted) -> Result<Option<(PinnedRepo, FilePath)>> {
        let digest = wanted.digest.to_string();
        let leads = |found: &FileMetadata| found.digest == digest && found.size_bytes == wanted.size_bytes;
        Ok(self.all_files()?.into_iter().find(|(_, _, found)| leads(found)).map(|(repo, path, _)| (repo, path)))
    }

    /// Looks at a blob: by its row, if that is whole, else by its chunks' headers.
    fn look_at(
        self: &Arc<Self>,
        name: String,
        home: String,
        metadata: FileMetadata,
        row: Option<BlobRecord>,
        lease: Lease,
    ) -> Suspect {
        let layout = Layout::of_file(metadata.size_bytes);
        let whole =
            |row: &BlobRecord| row.pages.len() == layout.chunks() as usize && row.block_crcs.len() as u64 == layout.blocks();
        let mut suspect = Suspect {
            store: Arc::clone(self),
            _lease: lease,
            name,
            home,
            layout,
            extents: vec![None; layout.chunks() as usize],
            crcs: vec![None; layout.blocks() as usize],
            bad_chunks: Vec::new(),
            row: row.filter(whole),
            metadata,
        };
        match suspect.row.clone() {
            Some(row) => self.look_by_row(&mut suspect, &row),
            None => self.look_by_headers(&mut suspect),
        }
        suspect
    }

    fn look_by_row(&self, suspect: &mut Suspect, row: &BlobRecord) {
        suspect.home.clone_from(&row.home);
        suspect.crcs = row.block_crcs.iter().copied().map(Some).collect();
        for (index, extent) in sealed_extents(row).into_iter().enumerate() {
            let index = index as u32;
            suspect.extents[index as usize] = Some(extent);
            let header = check_header(row, index, &extent, self.extents.reader());
            if let Err(reason) = header.unwrap_or_else(|error| Err(format!("chunk {index}'s header can't be read: {error}"))) {
                suspect.bad_chunks.push((index, reason));
                continue;
            }
            let reason = match self.extents.locate(&key::chunk(&row.home, index)) {
                Ok(Some(found)) if found == extent => continue,
                Ok(Some(found)) => format!("chunk {index}'s key leads to {found:?}, its row to {extent:?}"),
                Ok(None) => format!("chunk {index}'s key is gone"),
                Err(error) => format!("chunk {index}'s key is damaged: {error}"),
            };
            suspect.bad_chunks.push((index, reason));
        }
    }

    /// Where the row is lost, chunks still say whose they are, and their journals what was in them.
    fn look_by_headers(&self, suspect: &mut Suspect) {
        let (id, layout, reader) = (suspect.id(), suspect.layout, self.extents.reader());
        for home in [suspect.home.clone(), key::apart(&suspect.home, id)] {
            for index in 0..layout.chunks() {
                let Ok(Some(extent)) = self.extents.locate(&key::chunk(&home, index)) else { continue };
                let Ok(Some(header)) = reader.read_header(&extent) else { continue };
                if (header.owner, header.index, header.data_bytes) != (id, index, layout.chunk_bytes(index)) {
                    continue;
                }
                suspect.home.clone_from(&home);
                suspect.extents[index as usize] = Some(extent);
                let first = layout.first_block(index) as usize;
                for (block, crc) in reader.read_journal(&extent, &header).unwrap_or_default().into_iter().enumerate() {
                    suspect.crcs[first + block] = crc;
                }
            }
        }
    }

    /// Begins the blob that is to take the place of a damaged one, and fills it with what is sound; gives the blocks that are not.
    /// Ends early with the first error of `go_on`, asked at each block.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: both lie in the store for a while.
    pub(crate) fn begin_repair(
        self: &Arc<Self>,
        suspect: &Suspect,
        mut go_on: impl FnMut(u64) -> Result<()>,
    ) -> Result<(Arc<Fill>, Vec<u64>)> {
        let size_bytes = suspect.metadata.size_bytes;
        // An import's key: should this process die, the next open frees what it leaves.
        let begun = self.begin_blob(key::import, suspect.home.clone(), size_bytes)?;
        let (blob_key, blob, lease) = begun.ok_or_else(|| Error::Damaged {
            what: suspect.name.clone(),
            reason: "the store's counter of blobs gave a number that is in use".to_owned(),
        })?;
        fail_point("repair.row_written");
        let fill = self.prepare_fill(blob_key, blob, lease, Begun::Now);
        let fill = fill.map(Arc::new).map_err(|error| self.say_no_space(error, suspect.name.clone(), size_bytes))?;
        fail_point("repair.space_reserved");
        let mut damaged = Vec::new();
        let mut buffer = Vec::new();
        let copied = (0..suspect.layout.blocks()).try_for_each(|block| {
            let range = suspect.layout.block_range(block);
            match suspect.read_block(block, &mut buffer) {
                Ok((bytes, crc)) => {
                    fill.write(range.start, bytes)?;
                    fill.land(block, crc)?;
                }
                Err(_) => damaged.push(block),
            }
            go_on(range.end)
        });
        if let Err(error) = copied {
            discard(&fill);
            return Err(error);
        }
        fail_point("repair.sound_blocks_copied");
        Ok((fill, damaged))
    }

    /// Makes the content of `fill`, which is that promised, durable, and has it take the place of the damaged blob `suspect` is; false,
    /// with the fill dropped, if no name leads to that any more. `imported` is a name for it besides those it has.
    ///
    /// # Errors
    /// [`Error::Busy`] if something else is in the place an import is to take by now.
    pub(crate) fn end_repair(&self, suspect: &Suspect, fill: &Fill, imported: Option<&Wanted>) -> Result<bool> {
        let name = suspect.name.clone();
        let blob_key = format!("blob:{}", suspect.metadata.digest);
        // What the Hub gave may be what the digest says and not what was sealed only if one of the two lies.
        if suspect.has_row() {
            fill.check_crcs(&name, &suspect.crcs)?;
        }
        let mut blob = fill.make_sealed_row(&name)?;
        fail_point("repair.made_durable");
        let txn = self.begin_write()?;
        fill.check_row(&txn, &name)?;
        let imported = imported.map(|wanted| (key::meta(&wanted.repo, &wanted.path), wanted.metadata(blob.id)));
        if let Some((meta_key, _)) = &imported {
            if let Ok(row) = txn.get(&BLOBS, &blob_key)
                && row.is_none_or(|row| row.id != suspect.id())
            {
                return Err(Error::Busy { what: name, reason: "the same content is being mended or freed" });
            }
            self.replace_name(&txn, meta_key, &blob_key)?;
        }
        let mut names = Vec::new();
        txn.scan_sound(&METADATA, "meta:", |meta_key, metadata| {
            if metadata.digest == suspect.metadata.digest && metadata.blob_id == suspect.id() {
                names.push((meta_key.to_owned(), metadata));
            }
        })
        .attempted(writing)?;
        names.extend(imported);
        if names.is_empty() {
            drop(txn);
            fill.discard()?;
            return Ok(false);
        }
        txn.delete(&BLOBS, fill.blob_key()).attempted(writing)?;
        for (meta_key, metadata) in names {
            let metadata = FileMetadata { blob_id: blob.id, ..metadata };
            link(&txn, &mut blob, &blob_key, meta_key, &metadata)?;
        }
        if let Ok(Some(access)) = txn.get(&ACCESS, &key::access(suspect.id())) {
            txn.put(&ACCESS, &key::access(blob.id), &access).attempted(writing)?;
        }
        // The damaged one waits for its last reader under a key of its own. Where its row is lost, its headers say what is its.
        let old = suspect.row.clone().unwrap_or_else(|| BlobRecord {
            id: suspect.id(),
            home: suspect.home.clone(),
            size_bytes: suspect.metadata.size_bytes,
            state: BlobState::Sealed,
            names: Vec::new(),
            pages: Vec::new(),
            block_crcs: Vec::new(),
            created_unix_ms: suspect.metadata.created_unix_ms,
        });
        doom(&txn, key::import(old.id), BlobRecord { names: Vec::new(), ..old })?;
        self.commit(txn)?;
        fail_point("repair.took_its_place");
        fill.let_go();
        Ok(true)
    }

    /// Puts the bytes of a small file, which are those of its digest, where damaged ones of the same content are; whether there were any.
    pub(crate) fn mend_inline(&self, wanted: &Wanted, bytes: &[u8]) -> Result<bool> {
        let reading = || format!("could not look at {}", wanted.name());
        let is_sound = match self.blob(&key::blob(&wanted.digest)) {
            Err(error) if error.is_corruption() => false,
            row => match row?.filter(|row| is_content_of(row, wanted)) {
                Some(row) => {
                    let found = self.begin_read()?.get_bytes(&INLINE, &key::chunk(&row.home, 0)).attempted(reading)?;
                    found.as_deref() == Some(bytes)
                }
                None => true,
            },
        };
        if is_sound {
            return Ok(false);
        }
        let Some((repo, path)) = self.name_of(wanted)? else { return Ok(false) };
        self.repair_inline(&repo, &path, bytes)?;
        Ok(true)
    }

    /// Puts the bytes of a small file, which are those promised, where its damaged ones are, and its row in order.
    pub(crate) fn repair_inline(&self, repo: &PinnedRepo, path: &FilePath, bytes: &[u8]) -> Result<()> {
        let meta_key = key::meta(repo, path);
        let txn = self.begin_write()?;
        let Some(metadata) = txn.get(&METADATA, &meta_key).attempted(writing)? else { return Ok(()) };
        let blob_key = format!("blob:{}", metadata.digest);
        let row = match txn.get(&BLOBS, &blob_key) {
            Err(storage::Error::BadRecord { .. }) => None,
            row => row.attempted(writing)?.filter(|row| row.id == metadata.blob_id),
        };
        let home = match &row {
            Some(row) => row.home.clone(),
            None => inline_home(&txn, repo, path, metadata.blob_id)?,
        };
        let mut blob = row.unwrap_or_else(|| BlobRecord {
            id: metadata.blob_id,
            home,
            size_bytes: metadata.size_bytes,
            state: BlobState::Sealed,
            names: Vec::new(),
            pages: Vec::new(),
            block_crcs: Vec::new(),
            created_unix_ms: metadata.created_unix_ms,
        });
        blob.block_crcs = bytes.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
        // Readers of small files have copies.
        txn.put_bytes(&INLINE, &key::chunk(&blob.home, 0), bytes).attempted(writing)?;
        let mut names = Vec::new();
        txn.scan_sound(&METADATA, "meta:", |meta_key, other| {
            if other.digest == metadata.digest && other.blob_id == metadata.blob_id {
                names.push(meta_key.to_owned());
            }
        })
        .attempted(writing)?;
        blob.names = names;
        txn.put(&BLOBS, &blob_key, &blob).attempted(writing)?;
        fail_point("repair.small_file_put");
        self.commit(txn)
    }

    /// Bytes that are, or were, a small file's: under the keys it may have had, and those no row leads to.
    pub(crate) fn inline_candidates(&self, repo: &PinnedRepo, path: &FilePath) -> Result<Vec<Vec<u8>>> {
        let reading = || format!("could not look at {} {path}", repo.repo);
        let txn = self.begin_read()?;
        let Some(metadata) = txn.get(&METADATA, &key::meta(repo, path)).attempted(reading)? else { return Ok(Vec::new()) };
        let home = key::home(repo, path);
        let mut homes = vec![key::apart(&home, metadata.blob_id), home];
        match txn.get(&BLOBS, &format!("blob:{}", metadata.digest)) {
            Err(storage::Error::BadRecord { .. }) => {}
            row => homes.extend(row.attempted(reading)?.map(|row| row.home)),
        }
        let mut found = Vec::new();
        for home in homes {
            found.extend(txn.get_bytes(&INLINE, &key::chunk(&home, 0)).attempted(reading)?);
        }
        for (stray, _) in strays(&txn).attempted(reading)?.sizes {
            found.extend(txn.get_bytes(&INLINE, &stray).attempted(reading)?);
        }
        Ok(found)
    }

    /// Puts in order what the records can tell each other: names, rows, markers, the counter. All of it in one transaction.
    ///
    /// With `dry_run` nothing is written.
    pub(crate) fn mend_records(&self, dry_run: bool) -> Result<MendedRecords> {
        let txn = self.begin_write()?;
        // The snapshot begins with the writer's place held, so nothing comes between.
        let audit = self.audit()?;
        let mut mended = MendedRecords::default();
        mend_numbers(&txn, &audit, &mut mended)?;
        mend_names(&txn, &audit, &mut mended)?;
        mend_refs(&txn, &audit, &mut mended)?;
        let unlisted = audit.damaged_manifests.iter().filter_map(|key| parse_pinned(key.strip_prefix("manifest:")?));
        mended.unlisted.extend(unlisted);
        if !dry_run && !mended.mended.is_empty() {
            fail_point("repair.records_put");
            self.commit(txn)?;
        }
        Ok(mended)
    }

    /// Takes away a name whose record can't be read, and the row its listing says it leads to if that can't be read either and is nobody
    /// else's, so that a pull can bring both again.
    pub(crate) fn forget_damaged_name(&self, repo: &PinnedRepo, path: &FilePath) -> Result<()> {
        let listing = self.get_manifest(repo)?;
        let listed = listing.iter().flat_map(|listing| &listing.files).find(|file| file.path == path.as_str());
        let meta_key = key::meta(repo, path);
        let txn = self.begin_write()?;
        let Err(storage::Error::BadRecord { .. }) = txn.get(&METADATA, &meta_key) else { return Ok(()) };
        txn.delete(&METADATA, &meta_key).attempted(writing)?;
        if let Some(file) = listed {
            let blob_key = format!("blob:{}", file.digest);
            let mut is_anothers = false;
            txn.scan_sound(&METADATA, "meta:", |_, other| is_anothers |= other.digest == file.digest).attempted(writing)?;
            if let Err(storage::Error::BadRecord { .. }) = txn.get(&BLOBS, &blob_key)
                && !is_anothers
            {
                // Its chunks are nobody's then, and gc's.
                txn.delete(&BLOBS, &blob_key).attempted(writing)?;
                if file.size_bytes <= INLINE_BYTES {
                    txn.delete(&INLINE, &key::chunk(&key::home(repo, path), 0)).attempted(writing)?;
                }
            }
        }
        self.commit(txn)
    }

    /// Puts what the Hub says a commit offers.
    pub(crate) fn put_manifest(&self, repo: &PinnedRepo, manifest: &ManifestEntry) -> Result<()> {
        let txn = self.begin_write()?;
        txn.put(&MANIFESTS, &key::manifest(repo), manifest).attempted(writing)?;
        self.commit(txn)
    }
}

/// The home of a small file whose row is lost: where bytes lie that no other row has, else one of its own.
fn inline_home(txn: &WriteTxn<'_>, repo: &PinnedRepo, path: &FilePath, id: u64) -> Result<String> {
    let home = key::home(repo, path);
    let apart = key::apart(&home, id);
    let mut is_anothers = false;
    txn.scan_sound(&BLOBS, "", |_, blob| is_anothers |= blob.home == home).attempted(writing)?;
    let is_there = txn.get_bytes(&INLINE, &key::chunk(&home, 0)).attempted(writing)?.is_some();
    Ok(if is_there && !is_anothers { home } else { apart })
}

/// Drops a fill that came to nothing.
pub(crate) fn discard(fill: &Fill) {
    if let Err(error) = fill.discard() {
        tracing::warn!(%error, "what a repair began was not freed yet");
    }
}

fn parse_pinned(text: &str) -> Option<PinnedRepo> {
    let (repo, commit) = text.split_once('@')?;
    Some(PinnedRepo::new(repo.parse::<RepoId>().ok()?, commit.parse::<CommitId>().ok()?))
}

/// The counter, times of last use, markers, and rows of what can be made again.
fn mend_numbers(txn: &WriteTxn<'_>, audit: &Audit, mended: &mut MendedRecords) -> Result<()> {
    let free_id = audit.free_id();
    if !audit.blobs.is_empty() && audit.next_blob_id.flatten().is_none_or(|next| next < free_id) {
        txn.put_bytes(&STORE, "next_blob_id", &free_id.to_le_bytes()).attempted(writing)?;
        mended.mended.push(("next_blob_id".to_owned(), "set above every number in use"));
    }
    for access in &audit.damaged_accesses {
        txn.delete(&ACCESS, access).attempted(writing)?;
        mended.mended.push((access.clone(), "dropped: when it was last used is not known"));
    }
    for blob_key in &audit.damaged_blobs {
        if blob_key.starts_with(key::DERIVED) || blob_key.starts_with(key::IMPORTS) {
            txn.delete(&BLOBS, blob_key).attempted(writing)?;
            mended.mended.push((blob_key.clone(), "dropped: it can be made again; gc frees its chunks"));
        }
    }
    let waits = |blob: &&BlobRecord| matches!(blob.state, BlobState::Doomed | BlobState::Freeing);
    for (blob_key, blob) in audit.blobs.iter().filter(|(_, blob)| waits(blob)) {
        let marker = key::doomed(blob.id);
        if audit.markers.get(&marker).is_none_or(|found| found.as_ref() != Some(blob_key)) {
            txn.put_bytes(&STORE, &marker, blob_key.as_bytes()).attempted(writing)?;
            mended.mended.push((marker, "put: its blob waits to be freed"));
        }
    }
    for (marker, blob_key) in &audit.markers {
        let id = marker.strip_prefix("doomed:").and_then(|id| id.parse::<u64>().ok());
        if !audit.blobs.values().filter(waits).any(|blob| Some(blob.id) == id)
            && !blob_key.as_ref().is_some_and(|blob_key| audit.damaged_blobs.contains(blob_key))
        {
            txn.delete(&STORE, marker).attempted(writing)?;
            mended.mended.push((marker.clone(), "dropped: nothing waits to be freed by it"));
        }
    }
    Ok(())
}

/// Names and the rows they lead to: where one of the two is sound, the other follows it.
fn mend_names(txn: &WriteTxn<'_>, audit: &Audit, mended: &mut MendedRecords) -> Result<()> {
    // Rows whose own key a flipped bit changed: the names that lead to their number know it.
    let mut blobs = audit.blobs.clone();
    for metadata in audit.names.values() {
        let blob_key = format!("blob:{}", metadata.digest);
        if blobs.contains_key(&blob_key) || audit.damaged_blobs.contains(&blob_key) {
            continue;
        }
        let strays = |(other, blob): &(&String, &BlobRecord)| other.starts_with("blob") && blob.id == metadata.blob_id;
        let Some(stray) = blobs.iter().find(strays).map(|(other, _)| other.clone()) else { continue };
        if let Some(row) = blobs.remove(&stray).filter(|row| row.state == BlobState::Sealed) {
            txn.delete(&BLOBS, &stray).attempted(writing)?;
            txn.put(&BLOBS, &blob_key, &row).attempted(writing)?;
            mended.mended.push((blob_key.clone(), "put where its names lead to"));
            blobs.insert(blob_key, row);
        }
    }
    let mut names = audit.names.clone();
    for (blob_key, blob) in &blobs {
        let Some(digest) = blob_key.strip_prefix("blob:").filter(|_| blob.state == BlobState::Sealed) else { continue };
        for name in &blob.names {
            let leads = |metadata: &FileMetadata| {
                metadata.digest == digest && (metadata.blob_id, metadata.size_bytes) == (blob.id, blob.size_bytes)
            };
            // One of another row's, which has it too, stays: no flipped bit did that.
            let is_anothers = |metadata: &FileMetadata| {
                let other = blobs.get(&format!("blob:{}", metadata.digest));
                metadata.digest != digest && other.is_some_and(|other| other.names.contains(name))
            };
            if names.get(name).is_some_and(|found| leads(found) || is_anothers(found)) || key::parse_meta(name).is_none() {
                continue;
            }
            let content_type = content_type(name).to_owned();
            let (size_bytes, digest) = (blob.size_bytes, digest.to_owned());
            let metadata =
                FileMetadata { size_bytes, digest, content_type, blob_id: blob.id, created_unix_ms: blob.created_unix_ms };
            txn.put(&METADATA, name, &metadata).attempted(writing)?;
            mended.mended.push((name.clone(), "made again of its blob's row"));
            names.insert(name.clone(), metadata);
        }
    }
    for (meta_key, metadata) in &names {
        let blob = blobs.get(&format!("blob:{}", metadata.digest));
        if blob.is_some_and(|blob| blob.id == metadata.blob_id && !blob.names.contains(meta_key)) {
            txn.delete(&METADATA, meta_key).attempted(writing)?;
            mended.mended.push((meta_key.clone(), "dropped: its content has no such name"));
        }
    }
    for meta_key in audit.damaged_names.iter().filter(|meta_key| !names.contains_key(*meta_key)) {
        mended.lost.extend(key::parse_meta(meta_key));
    }
    Ok(())
}

/// Refs, from what is here: local reads go to the commit whose files came last.
fn mend_refs(txn: &WriteTxn<'_>, audit: &Audit, mended: &mut MendedRecords) -> Result<()> {
    for ref_key in &audit.damaged_refs {
        let Some((repo, _)) = ref_key.strip_prefix("ref:").and_then(|rest| rest.split_once(':')) else { continue };
        let of_repo = audit.names.iter().filter_map(|(meta_key, metadata)| {
            let (pinned, _) = key::parse_meta(meta_key)?;
            (pinned.repo.as_str() == repo).then_some((metadata.created_unix_ms, pinned.commit?))
        });
        match of_repo.max_by_key(|(created, _)| *created) {
            Some((_, commit)) => {
                let record = RefRecord { latest: commit.to_string(), checked_unix_ms: 0, current: Some(commit.to_string()) };
                txn.put(&REFS, ref_key, &record).attempted(writing)?;
                mended.mended.push((ref_key.clone(), "set to the commit whose files came last"));
            }
            None => {
                txn.delete(&REFS, ref_key).attempted(writing)?;
                mended.mended.push((ref_key.clone(), "dropped: no file of its repo is here"));
            }
        }
    }
    for record in audit.refs.iter() {
        let Some((repo, _)) = record.0.strip_prefix("ref:").and_then(|rest| rest.split_once(':')) else { continue };
        for commit in record.1.current.iter().chain([&record.1.latest]) {
            let pinned = format!("{repo}@{commit}");
            let manifest = format!("manifest:{pinned}");
            if !audit.manifests.contains(&manifest) && !audit.damaged_manifests.contains(&manifest) {
                mended.unlisted.extend(parse_pinned(&pinned));
            }
        }
    }
    Ok(())
}
