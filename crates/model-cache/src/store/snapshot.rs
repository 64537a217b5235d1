//! What a backup takes of the store, and what a restore gives back: [`Snapshot`], [`Restored`].

use super::{
    Store, View,
    read::{LEASE_PATIENCE, LEASE_PAUSE, check_inline, is_whole},
    writing,
};
use crate::{
    digest::Digest,
    error::{Attempted, Error, Result},
    key::{self, PinnedRepo},
    name::{FilePath, RepoId, Revision},
    record::*,
};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    thread,
    time::Duration,
};
use storage::{ReadTxn, SharedLeases};

/// How often a snapshot is begun anew because content it speaks of was freed before its lease was got.
const ATTEMPTS: usize = 100;

/// The names, refs and manifests of one moment, and leases on the content they lead to: it may lose its last name meanwhile, and is not
/// freed before it is let go.
///
/// Of fills nothing is in it, nor of derived values.
pub(crate) struct Snapshot {
    pub(crate) names: Vec<(PinnedRepo, FilePath, FileMetadata)>,
    /// What the names lead to, each content once, by digest.
    pub(crate) blobs: BTreeMap<Digest, BlobRecord>,
    pub(crate) refs: Vec<(RepoId, Revision, RefRecord)>,
    pub(crate) manifests: Vec<(PinnedRepo, ManifestEntry)>,
    /// By blob id.
    pub(crate) last_used_unix_ms: HashMap<u64, i64>,
    /// Names that lead nowhere, and records that can't be read.
    pub(crate) left_out: Vec<LeftOut>,
    store: Arc<Store>,
    /// `None` only while `drop` runs.
    leases: Option<SharedLeases>,
}

/// What of a store is not in a snapshot of it, because it is damaged.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// The repo, with its commit.
    pub repo: String,
    /// The file; none for what is known of a repo: a ref, a manifest.
    pub path: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl LeftOut {
    pub(crate) fn file(repo: &PinnedRepo, path: &FilePath, reason: String) -> Self {
        Self { repo: repo.to_string(), path: Some(path.to_string()), reason }
    }
}

impl Store {
    /// Takes a snapshot, and leases on those of its blobs that are `wanted`.
    ///
    /// `each_inline` is given the bytes of the wanted ones without extents, or what is wrong with them, in the very transaction the names were
    /// read in: such content needs no reader's leave to go. That transaction lives for as long as this takes.
    ///
    /// # Errors
    /// The first error of `each_inline`; [`Error::Busy`] if somebody holds wanted content exclusively for long.
    pub(crate) fn snapshot(
        self: &Arc<Self>,
        wanted: impl Fn(&Digest, &BlobRecord) -> bool,
        mut each_inline: impl FnMut(&Digest, &BlobRecord, std::result::Result<&[u8], String>) -> Result<()>,
    ) -> Result<Snapshot> {
        let reading = || "could not read the store's records".to_owned();
        for _ in 0..ATTEMPTS {
            let txn = self.begin_read()?;
            let snapshot = self.read_snapshot(&txn)?;
            let wanted: Vec<_> = snapshot.blobs.iter().filter(|(digest, blob)| wanted(digest, blob)).collect();
            let (inline, leased): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, blob)| blob.is_inline());
            if !snapshot.hold(&leased)? {
                continue;
            }
            for (digest, blob) in inline {
                let bytes = txn.get_bytes(&INLINE, &key::chunk(&blob.home, 0)).attempted(reading)?;
                let bytes = match &bytes {
                    None => Err("its bytes are gone, its name is not".to_owned()),
                    Some(bytes) => check_inline(bytes, blob).map(|()| bytes.as_slice()),
                };
                each_inline(digest, blob, bytes)?;
            }
            drop(txn);
            return Ok(snapshot);
        }
        Err(Error::Busy { what: "the store".to_owned(), reason: "its files are removed faster than they can be held" })
    }

    fn read_snapshot(self: &Arc<Self>, txn: &ReadTxn<'_>) -> Result<Snapshot> {
        let reading = || "could not read the store's records".to_owned();
        let mut rows = HashMap::new();
        txn.scan_all(&BLOBS, "blob:", |blob_key, row| {
            if let Some(digest) = blob_key.strip_prefix("blob:").and_then(|digest| digest.parse::<Digest>().ok()) {
                rows.insert(digest, row.map_err(|error| error.to_string()));
            }
            Ok::<_, storage::Error>(())
        })
        .attempted(reading)?;
        let leases = self.leases.shared().attempted(reading)?;
        let mut taken = Snapshot {
            names: Vec::new(),
            blobs: BTreeMap::new(),
            refs: Vec::new(),
            manifests: Vec::new(),
            last_used_unix_ms: self.last_used_unix_ms()?,
            left_out: Vec::new(),
            store: Arc::clone(self),
            leases: Some(leases),
        };
        txn.scan_all(&METADATA, "meta:", |meta_key, metadata| {
            let Some((repo, path)) = key::parse_meta(meta_key) else { return Ok(()) };
            match metadata.map_err(|error| error.to_string()).and_then(|metadata| find_row(&rows, metadata)) {
                Ok((digest, blob, metadata)) => {
                    taken.blobs.entry(digest).or_insert_with(|| blob.clone());
                    taken.names.push((repo, path, metadata));
                }
                Err(reason) => taken.left_out.push(LeftOut::file(&repo, &path, reason)),
            }
            Ok::<_, storage::Error>(())
        })
        .attempted(reading)?;
        txn.scan_all(&REFS, "ref:", |ref_key, record| {
            let Some((repo, revision)) = key::parse_reference(ref_key) else { return Ok(()) };
            match record {
                Ok(record) => taken.refs.push((repo, revision, record)),
                Err(error) => taken.leave_out(&repo, &error),
            }
            Ok::<_, storage::Error>(())
        })
        .attempted(reading)?;
        txn.scan_all(&MANIFESTS, "manifest:", |manifest_key, entry| {
            let Some(repo) = key::parse_manifest(manifest_key) else { return Ok(()) };
            match entry {
                Ok(entry) => taken.manifests.push((repo, entry)),
                Err(error) => taken.leave_out(&repo, &error),
            }
            Ok::<_, storage::Error>(())
        })
        .attempted(reading)?;
        Ok(taken)
    }

    /// What tells this store from any other, in backups of it: 32 hex digits, chosen when they are first asked for. A store that is restored
    /// has those of the one that was backed up.
    ///
    /// # Errors
    /// [`Error::Storage`] and [`Error::NoSpace`] where it has none yet and can't be written to.
    pub(crate) fn id(&self) -> Result<String> {
        let reading = || "could not read the store's id".to_owned();
        let stored = || self.begin_read()?.get_bytes(&STORE, "id").attempted(reading);
        if let Some(id) = stored()? {
            return Ok(String::from_utf8_lossy(&id).into_owned());
        }
        // Each has other keys of the system's giving, and SipHash spreads them.
        let random = || RandomState::new().hash_one(0u8);
        let id = format!("{:016x}{:016x}", random(), random());
        let txn = self.begin_write()?;
        let is_new = txn.insert_bytes(&STORE, "id", id.as_bytes()).attempted(writing)?;
        self.commit(txn)?;
        // Else another process was first.
        if is_new { Ok(id) } else { self.id() }
    }

    /// Writes down what a restore brings besides content, whose names are here by now: refs, manifests, and when what was made and used.
    pub(crate) fn put_restored(&self, restored: &Restored) -> Result<()> {
        let txn = self.begin_write()?;
        if let Some(id) = &restored.store {
            txn.put_bytes(&STORE, "id", id.as_bytes()).attempted(writing)?;
        }
        for (repo, path, created_unix_ms) in &restored.names {
            let meta_key = key::meta(repo, path);
            let Some(mut metadata) = txn.get(&METADATA, &meta_key).attempted(writing)? else { continue };
            metadata.created_unix_ms = *created_unix_ms;
            txn.put(&METADATA, &meta_key, &metadata).attempted(writing)?;
        }
        for (digest, created_unix_ms, last_used_unix_ms) in &restored.blobs {
            let blob_key = key::blob(digest);
            let Some(mut blob) = txn.get(&BLOBS, &blob_key).attempted(writing)? else { continue };
            blob.created_unix_ms = *created_unix_ms;
            txn.put(&BLOBS, &blob_key, &blob).attempted(writing)?;
            if let Some(last_used_unix_ms) = *last_used_unix_ms {
                txn.put(&ACCESS, &key::access(blob.id), &AccessRecord { last_used_unix_ms }).attempted(writing)?;
            }
        }
        for (repo, revision, record) in &restored.refs {
            txn.put(&REFS, &key::reference(repo, revision), record).attempted(writing)?;
        }
        for (repo, entry) in &restored.manifests {
            txn.put(&MANIFESTS, &key::manifest(repo), entry).attempted(writing)?;
        }
        self.commit(txn)
    }
}

/// What a restore brings besides content.
pub(crate) struct Restored {
    /// The id of the store that was backed up, if it had one.
    pub(crate) store: Option<String>,
    /// When each name was made.
    pub(crate) names: Vec<(PinnedRepo, FilePath, i64)>,
    /// When each content came, and was last used, if ever.
    pub(crate) blobs: Vec<(Digest, i64, Option<i64>)>,
    pub(crate) refs: Vec<(RepoId, Revision, RefRecord)>,
    pub(crate) manifests: Vec<(PinnedRepo, ManifestEntry)>,
}

impl Snapshot {
    /// Takes the leases of `blobs`; false if one of them was freed before its lease was ours.
    fn hold(&self, blobs: &[(&Digest, &BlobRecord)]) -> Result<bool> {
        for (digest, blob) in blobs {
            let mut waited = Duration::ZERO;
            while !self.leases().try_add(blob.id).attempted(|| format!("could not lease {digest}"))? {
                // A sealer about to let go, or a freer.
                if !self.is_whole(&self.store.begin_read()?, digest, blob)? {
                    return Ok(false);
                }
                if waited >= LEASE_PATIENCE {
                    return Err(Error::Busy { what: blob.home.clone(), reason: "somebody holds it exclusively" });
                }
                thread::sleep(LEASE_PAUSE);
                waited += LEASE_PAUSE;
            }
        }
        // Under the leases nothing is freed; before they were ours anything may have been.
        let now = self.store.begin_read()?;
        for (digest, blob) in blobs {
            if !self.is_whole(&now, digest, blob)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_whole(&self, txn: &ReadTxn<'_>, digest: &Digest, blob: &BlobRecord) -> Result<bool> {
        let row = txn.get(&BLOBS, &key::blob(digest)).attempted(|| format!("could not read {digest}"))?;
        Ok(row.is_some_and(|row| row.id == blob.id && is_whole(row.state)))
    }

    /// The extents of a blob whose lease this holds.
    pub(crate) fn open(&self, digest: &Digest, blob: &BlobRecord) -> Result<View> {
        let view = View::open_whole(&self.store, &key::blob(digest), blob.id)?;
        view.ok_or_else(|| Error::Damaged { what: digest.to_string(), reason: "its row changed under its lease".to_owned() })
    }

    /// Lets go of a blob: from now on it may be freed, and if no name leads to it any more, it is.
    pub(crate) fn release(&self, digest: &Digest, id: u64) -> Result<()> {
        self.leases().release(id).attempted(|| format!("could not let go of {digest}"))?;
        self.store.free_if_doomed(&key::blob(digest), id);
        Ok(())
    }

    fn leave_out(&mut self, repo: &impl ToString, error: &storage::Error) {
        self.left_out.push(LeftOut { repo: repo.to_string(), path: None, reason: error.to_string() });
    }

    fn leases(&self) -> &SharedLeases {
        self.leases.as_ref().expect("the leases are taken out by drop alone")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        drop(self.leases.take());
        // What lost its last name while this held it.
        self.store.free_replaced();
    }
}

/// The sealed row that `metadata` leads to, or what is wrong with it.
fn find_row(
    rows: &HashMap<Digest, std::result::Result<BlobRecord, String>>,
    metadata: FileMetadata,
) -> std::result::Result<(Digest, &BlobRecord, FileMetadata), String> {
    let digest = metadata.digest.parse::<Digest>().map_err(|error| error.to_string())?;
    match rows.get(&digest) {
        None => Err("its name leads to no blob".to_owned()),
        Some(Err(reason)) => Err(reason.clone()),
        Some(Ok(blob)) => {
            match blob.id == metadata.blob_id && blob.size_bytes == metadata.size_bytes && blob.state == BlobState::Sealed {
                true => Ok((digest, blob, metadata)),
                false => Err(format!(
                    "its name says blob {} of {} bytes, its row blob {} of {} bytes, {:?}",
                    metadata.blob_id, metadata.size_bytes, blob.id, blob.size_bytes, blob.state
                )),
            }
        }
    }
}
