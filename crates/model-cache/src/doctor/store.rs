//! What is in the store, who uses it, and the disk it lies on: from a copy of its records, the places they name, and the kernel's locks.

use super::{Area, Finding, Findings, Severity, temporary::TemporaryFolder};
use crate::{
    error::{Attempted, Error, ErrorKind, FROM_BACKUP, Result},
    key,
    name::shell_word,
    record::*,
    store::{BALLAST_BYTES, CHUNKS_FOLDER, MANIFESTS_FOLDER, format_of},
    units::iec,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
};
use storage::{
    Ballast, DataFile, EnvironmentInfo, Extent, HEADER_REGION_BYTES, LeaseFile, Locked, Record, StorageRegistry, Table,
};

/// As much of the data file may belong to nothing: what libmdbx keeps for itself, and the first page of each extent that was freed.
const UNEXPLAINED_BYTES: u64 = 64 << 20;
/// With fewer files left on the disk, something else may soon take the last.
const FEW_FILES: u64 = 1000;
/// A reader that is so many transactions old keeps much from being used again.
const OLD_TRANSACTIONS: u64 = 10_000;
/// How many things of a kind are named one by one.
const NAMED: usize = 3;

pub(super) fn examine(folder: &Path, found: &mut Vec<Finding>) {
    let mut store = Findings { area: Area::Store, found };
    let chunks = environment(folder, CHUNKS_FOLDER, storage::PAGE_BYTES, &mut store);
    let records = environment(folder, MANIFESTS_FOLDER, RECORDS_PAGE_BYTES, &mut store);
    let records = records.and_then(|_| match Records::read(folder) {
        Ok(records) => Some(records),
        Err(error) => {
            store.error(&error);
            None
        }
    });
    let locks = LeaseFile::locks_in(&folder.join("leases"));
    if let Some(records) = &records {
        look_at_records(records, &locks, &mut store);
        if let Err(error) = look_at_headers(folder, records, &mut store) {
            store.error(&error);
        }
        tell_what_was_not_read(&mut store);
    }
    look_at_processes(folder, records.as_ref(), &locks, &mut Findings { area: Area::Processes, found });
    look_at_space(folder, chunks, records.as_ref(), &mut Findings { area: Area::Space, found });
}

/// Where damage was seen there may be more, which an examination does not look for.
fn tell_what_was_not_read(findings: &mut Findings<'_>) {
    if findings.found.iter().any(|finding| finding.kind == Some(ErrorKind::Integrity)) {
        findings.advise("what else is damaged was not looked for: names, listings and blocks of data", "model-cache verify");
    } else {
        findings.fine("blocks of data were not read; model-cache verify does");
    }
}

/// Bytes of a page of the records' environment.
const RECORDS_PAGE_BYTES: u64 = 4 << 10;

fn environment(folder: &Path, name: &str, page_bytes: u64, findings: &mut Findings<'_>) -> Option<EnvironmentInfo> {
    let folder = folder.join(name);
    match storage::environment_info(&folder).attempted(|| format!("{name} can't be opened")) {
        Ok(None) => {
            // Its absence as a whole was told with the files.
            if folder.is_dir() {
                let hint = format!("restore a backup:\n{FROM_BACKUP}");
                findings.add(Severity::Problem, format!("{name} has no data file"), Some(hint), Some(ErrorKind::Integrity));
            }
            None
        }
        Ok(Some(info)) if info.page_bytes != page_bytes => {
            let what = format!("{name} has pages of {} bytes, not {page_bytes}: it is of another program", info.page_bytes);
            findings.problem(
                ErrorKind::Integrity,
                what,
                format!("name another store, --store DIR, or restore a backup:\n{FROM_BACKUP}"),
            );
            None
        }
        Ok(Some(info)) => {
            findings.fine(format!(
                "{name}: {} on disk, {} in use, of at most {}; transaction {}",
                iec(info.disk_bytes),
                iec(info.used_bytes),
                iec(info.limit_bytes),
                info.last_transaction
            ));
            if info.used_bytes > info.limit_bytes / 10 * 9 {
                findings.warn(format!("{name} is almost as large as it may be"), "model-cache rm REPO && model-cache gc");
            }
            Some(info)
        }
        Err(error) => {
            findings.error(&error);
            None
        }
    }
}

/// The records of a store, as they were in one transaction.
struct Records {
    format: Option<Vec<u8>>,
    metadata: Vec<(String, FileMetadata)>,
    blobs: Vec<(String, BlobRecord)>,
    /// Markers of what is to be freed: ids.
    doomed: Vec<u64>,
    /// Records that can't be read: table, key, and why.
    bad: Vec<(&'static str, String, String)>,
    is_snapshot: bool,
}

impl Records {
    /// Reads a copy of them, which is removed again: in the folder for temporary files, or in memory where that has no room.
    fn read(folder: &Path) -> Result<Self> {
        let first = Self::read_in(&std::env::temp_dir(), folder);
        first.or_else(|error| Self::read_in(Path::new("/dev/shm"), folder).map_err(|_| error))
    }

    fn read_in(temporary: &Path, folder: &Path) -> Result<Self> {
        let reading = || format!("the records of the store {} can't be read", folder.display());
        let io = |source| Error::Io { action: "make a folder for a copy of the records in", path: temporary.to_owned(), source };
        let copy = TemporaryFolder::new_in(temporary).map_err(io)?;
        let is_snapshot = storage::copy_environment(&folder.join(MANIFESTS_FOLDER), copy.path()).attempted(reading)?;
        let registry = StorageRegistry::new(copy.path());
        // A table that is missing is made in the copy, and empty.
        let environment = registry.records(copy.path(), &TABLES).attempted(reading)?;
        let txn = environment.begin_read().attempted(reading)?;
        let mut bad = Vec::new();
        let metadata = all(&txn, &METADATA, &mut bad).attempted(reading)?;
        let blobs = all(&txn, &BLOBS, &mut bad).attempted(reading)?;
        all(&txn, &MANIFESTS, &mut bad).attempted(reading)?;
        all(&txn, &REFS, &mut bad).attempted(reading)?;
        all(&txn, &ACCESS, &mut bad).attempted(reading)?;
        let markers = txn.scan_bytes(&STORE, "doomed:").attempted(reading)?;
        let doomed = markers.iter().filter_map(|(marker, _)| marker.strip_prefix("doomed:")?.parse().ok()).collect();
        let format = txn.get_bytes(&STORE, "format").attempted(reading)?;
        Ok(Self { format, metadata, blobs, doomed, bad, is_snapshot })
    }
}

/// The id of the store in `folder`, from a copy of its records, in the folder for temporary files or else beside the store; `None` where it
/// has none, or none that can be read.
pub(crate) fn store_id(folder: &Path) -> Option<String> {
    let read_in = |temporary: &Path| -> Result<_> {
        let reading = || format!("the id of the store {} can't be read", folder.display());
        let io = |source| Error::Io { action: "make a folder for a copy of the records in", path: temporary.to_owned(), source };
        let copy = TemporaryFolder::new_in(temporary).map_err(io)?;
        storage::copy_environment(&folder.join(MANIFESTS_FOLDER), copy.path()).attempted(reading)?;
        let records = StorageRegistry::new(copy.path()).records(copy.path(), &TABLES).attempted(reading)?;
        records.begin_read().attempted(reading)?.get_bytes(&STORE, "id").attempted(reading)
    };
    let places = [std::env::temp_dir(), folder.parent().unwrap_or(folder).to_owned()];
    let read = places.iter().find_map(|temporary| {
        read_in(temporary).inspect_err(|error| tracing::debug!(error = %error.chain(), "no id of the store")).ok()
    });
    String::from_utf8(read??).ok()
}

fn all<R: Record>(
    txn: &storage::ReadTxn<'_>,
    table: &Table<R>,
    bad: &mut Vec<(&'static str, String, String)>,
) -> storage::Result<Vec<(String, R)>> {
    let mut found = Vec::new();
    txn.scan_all(table, "", |key, record| {
        match record {
            Ok(record) => found.push((key.to_owned(), record)),
            Err(error) => bad.push((table.name(), key.to_owned(), error.to_string())),
        }
        Ok::<_, storage::Error>(())
    })?;
    Ok(found)
}

fn look_at_records(records: &Records, locks: &[Locked], findings: &mut Findings<'_>) {
    match &records.format {
        // What a program that was killed while it made the store leaves.
        None => findings.note("the store has no format number yet: the next open gives it one"),
        Some(bytes) => match format_of(bytes) {
            Ok(found) if found == FORMAT => findings.fine(format!("format {found}")),
            Ok(found @ 1..FORMAT) => findings.note(format!(
                "format {found}, of an earlier version: it is read and written as it is; slices of a new store are mapped by larger pages"
            )),
            Ok(found) => findings.problem(
                ErrorKind::Other,
                format!("format {found}; this program reads format {FORMAT}"),
                "update model-cache, or name another store: --store DIR",
            ),
            Err(reason) => findings.problem(ErrorKind::Integrity, reason, from_backup()),
        },
    }
    if !records.is_snapshot {
        findings.note("other processes wrote records all the time: what is said of them may be of several moments");
    }
    for (table, key, reason) in records.bad.iter().take(NAMED) {
        findings.problem(ErrorKind::Integrity, reason.clone(), mending(table, key));
    }
    if let Some(more) = records.bad.len().checked_sub(NAMED).filter(|more| *more > 0) {
        findings.problem(ErrorKind::Integrity, format!("{more} more records can't be read"), "model-cache verify");
    }
    let rows: HashMap<String, &BlobRecord> = records.blobs.iter().map(|(key, blob)| (key.clone(), blob)).collect();
    // A row that can't be read was told; the names that lead to it need not be.
    let bad_rows: HashSet<&str> =
        records.bad.iter().filter(|(table, ..)| *table == BLOBS.name()).map(|(_, key, _)| key.as_str()).collect();
    let lost: Vec<&String> = records
        .metadata
        .iter()
        .filter(|(_, metadata)| {
            let blob_key = format!("blob:{}", metadata.digest);
            let row = rows.get(&blob_key);
            !bad_rows.contains(blob_key.as_str())
                && !row.is_some_and(|blob| blob.id == metadata.blob_id && blob.state == BlobState::Sealed)
        })
        .map(|(meta_key, _)| meta_key)
        .collect();
    for meta_key in lost.iter().take(NAMED) {
        findings.problem(ErrorKind::Integrity, format!("{meta_key} leads to content that is not here"), again(meta_key));
    }
    if let Some(more) = lost.len().checked_sub(NAMED).filter(|more| *more > 0) {
        findings.problem(
            ErrorKind::Integrity,
            format!("{more} more names lead to content that is not here"),
            "model-cache verify",
        );
    }
    findings.fine(format!("{} files of {} contents", records.metadata.len(), records.blobs.len()));
    look_at_leftovers(records, locks, findings);
}

/// What waits to be finished or freed.
fn look_at_leftovers(records: &Records, locks: &[Locked], findings: &mut Findings<'_>) {
    let is_held = |id| locks.iter().any(|lock| lock.holds(id));
    let of = |wanted: &dyn Fn(&str, &BlobRecord) -> bool| {
        let chosen = records.blobs.iter().filter(|(key, blob)| wanted(key, blob));
        chosen.fold((0, 0), |(count, bytes), (_, blob)| (count + 1, bytes + blob.size_bytes))
    };
    let is_pull = |key: &str| !key.starts_with(key::IMPORTS) && !key.starts_with(key::DERIVED);
    let is_idle_fill = |blob: &BlobRecord| blob.state == BlobState::Filling && !is_held(blob.id);
    let (count, bytes) = of(&|key, blob| is_idle_fill(blob) && is_pull(key));
    if count > 0 {
        let what = format!("{count} unfinished downloads that nobody is at, {} reserved", iec(bytes));
        findings.advise(what, "a pull of the same goes on with them; to free them:\nmodel-cache gc");
    }
    let (count, bytes) = of(&|key, blob| is_idle_fill(blob) && !is_pull(key));
    if count > 0 {
        let what = format!("{count} imports or derived values whose process died, {}", iec(bytes));
        findings.advise(what, "the next command that opens the store frees them:\nmodel-cache df");
    }
    let is_doomed = |blob: &BlobRecord| matches!(blob.state, BlobState::Doomed | BlobState::Freeing);
    let (count, bytes) = of(&|_, blob| is_doomed(blob) && !is_held(blob.id));
    if count > 0 {
        let what = format!("{count} removed contents that nobody reads and that were not freed yet, {}", iec(bytes));
        findings.advise(what, "model-cache gc");
    }
    let nameless =
        |key: &str, blob: &BlobRecord| blob.state == BlobState::Sealed && blob.names.is_empty() && !key.starts_with(key::DERIVED);
    let (count, bytes) = of(&nameless);
    if count > 0 {
        findings.advise(format!("{count} contents that no file leads to, {}", iec(bytes)), "model-cache gc");
    }
    let ids: HashSet<u64> = records.blobs.iter().map(|(_, blob)| blob.id).collect();
    let stray = records.doomed.iter().filter(|id| !ids.contains(id)).count();
    if stray > 0 {
        findings.note(format!("{stray} markers of content that was freed are left over; they do no harm"));
    }
}

/// Holds the header of each sealed extent against its row: another store's data file, or one that was put back older, has others.
fn look_at_headers(folder: &Path, records: &Records, findings: &mut Findings<'_>) -> Result<()> {
    let reading = || "the headers of the store's chunks can't be read".to_owned();
    let Some(file) = DataFile::open_to_read(&folder.join(CHUNKS_FOLDER)).attempted(reading)? else { return Ok(()) };
    let (mut chunks, mut bad) = (0_u64, Vec::new());
    for (blob_key, blob) in records.blobs.iter().filter(|(_, blob)| blob.state == BlobState::Sealed && !blob.is_inline()) {
        let layout = blob.layout();
        // A record that holds but contradicts itself must not be a panic.
        if blob.pages.len() != layout.chunks() as usize {
            bad.push((blob_key, blob));
            continue;
        }
        let is_sound = |(index, page): (u32, &u32)| -> Result<bool> {
            let extent = Extent { page: *page, data_bytes: layout.chunk_bytes(index) };
            let header = file.read_header(&extent).attempted(reading)?;
            Ok(header
                .is_some_and(|header| (header.owner, header.index, header.data_bytes) == (blob.id, index, extent.data_bytes)))
        };
        for chunk in (0..).zip(&blob.pages) {
            chunks += 1;
            if !is_sound(chunk)? {
                bad.push((blob_key, blob));
                break;
            }
        }
    }
    match bad.len() {
        0 if chunks == 0 => {}
        0 => findings.fine(format!("each of {chunks} chunks lies where its record says")),
        count => {
            let sealed = records.blobs.iter().filter(|(_, blob)| blob.state == BlobState::Sealed && !blob.is_inline()).count();
            if count == sealed {
                findings.problem(
                    ErrorKind::Integrity,
                    format!("no chunk lies where its record says: {CHUNKS_FOLDER} and {MANIFESTS_FOLDER} are of different stores, or moments"),
                    from_backup(),
                );
            } else {
                for (_, blob) in bad.iter().take(NAMED) {
                    let name = blob.names.first().map_or("a derived value", String::as_str);
                    findings.problem(
                        ErrorKind::Integrity,
                        format!("a chunk of {name} does not lie where its record says"),
                        again(name),
                    );
                }
                if count > NAMED {
                    let what = format!("chunks of {} more contents do not lie where their records say", count - NAMED);
                    findings.problem(ErrorKind::Integrity, what, "model-cache verify");
                }
            }
        }
    }
    Ok(())
}

fn look_at_processes(folder: &Path, records: Option<&Records>, locks: &[Locked], findings: &mut Findings<'_>) {
    let leases = folder.join("leases");
    match fs::symlink_metadata(&leases) {
        Ok(metadata) if metadata.is_file() => {}
        // A link was told with the files.
        Ok(_) => return,
        Err(_) => {
            findings.note("nobody has opened the store since it was put here");
            return;
        }
    }
    let (own, others) = match LeaseFile::namespaces_in(&leases) {
        Ok(found) => found,
        Err(source) => {
            findings.error(&Error::Storage { action: "who uses the store can't be told".to_owned(), source });
            return;
        }
    };
    if others {
        let source = storage::Error::OtherPidNamespace { path: folder.to_owned() };
        findings.error(&Error::Storage { action: "the store can't be opened here".to_owned(), source });
    }
    let blobs: HashMap<u64, &BlobRecord> =
        records.iter().flat_map(|records| &records.blobs).map(|(_, blob)| (blob.id, blob)).collect();
    let mut processes: BTreeMap<u32, (HashSet<u64>, HashSet<u64>)> = BTreeMap::new();
    for lock in locks {
        let (reads, fills) = processes.entry(lock.process).or_default();
        let held = blobs.keys().copied().filter(|id| lock.holds(*id));
        if lock.exclusive { fills.extend(held) } else { reads.extend(held) }
    }
    for (process, (reads, fills)) in &processes {
        let comm = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let comm = crate::name::printable(comm.trim());
        let mut what = format!("process {process} ({comm}) has the store open, reads {}, fills {}", reads.len(), fills.len());
        let is_doomed = |blob: &&BlobRecord| matches!(blob.state, BlobState::Doomed | BlobState::Freeing);
        let kept: u64 = reads.iter().map(|id| blobs[id]).filter(is_doomed).map(|blob| blob.size_bytes).sum();
        if kept > 0 {
            what += &format!("; {} that were removed return to the disk when it lets go", iec(kept));
        }
        findings.note(what);
    }
    match (own, processes.is_empty()) {
        (true, true) => findings.note("processes this one may not look at have the store open"),
        (false, true) if !others => findings.fine("nobody else uses the store"),
        _ => {}
    }
    if own {
        look_at_readers(folder, findings);
    }
}

/// Transactions that began long ago, or whose process is gone.
fn look_at_readers(folder: &Path, findings: &mut Findings<'_>) {
    // Refused where this process has it open itself.
    let Ok(slots) = storage::reader_slots(&folder.join(MANIFESTS_FOLDER)) else { return };
    for (process, lag) in slots {
        if !Path::new(&format!("/proc/{process}")).exists() {
            let what = format!("process {process} died while it read records: what was freed since is not used again yet");
            findings.advise(what, "the next command that writes clears it:\nmodel-cache gc");
        } else if lag > OLD_TRANSACTIONS {
            let what =
                format!("process {process} reads records as of {lag} transactions ago: what was freed since is not used again");
            findings.warn(what, format!("end it, if it hangs:\nkill {process}"));
        }
    }
}

fn look_at_space(folder: &Path, chunks: Option<EnvironmentInfo>, records: Option<&Records>, findings: &mut Findings<'_>) {
    let disk = match storage::file_system(folder) {
        Ok(disk) => disk,
        Err(source) => {
            findings.error(&Error::Io { action: "measure", path: folder.to_owned(), source });
            return;
        }
    };
    let free = format!("{} of {} free on {}", iec(disk.free_bytes), iec(disk.total_bytes), disk.kind);
    if disk.free_bytes < 2 * BALLAST_BYTES {
        let hint = "make room on that disk, or in the store:\nmodel-cache rm REPO\nmodel-cache gc";
        findings.problem(ErrorKind::NoSpace, format!("the disk is full: {free}"), hint);
    } else {
        findings.fine(free);
    }
    match disk.kind.as_str() {
        "tmpfs" => findings.warn("the store lies in memory (tmpfs) and is gone with the next reboot", "--store DIR on a disk"),
        "overlayfs" => findings.warn(
            "the store lies in a container's own layer, and is gone with the container",
            "mount a volume and name it: --store DIR or MODEL_CACHE_HOME",
        ),
        _ => {}
    }
    if let Some((files, left)) = disk.files.filter(|(_, left)| *left < FEW_FILES) {
        let what = format!("the disk can take {left} more files, of {files}: without any the store can't be opened");
        findings.warn(what, "remove some; where they are:\ndu --inodes -x /");
    }
    let ballast = Ballast::new(folder.join("ballast"), BALLAST_BYTES).taken_bytes();
    if ballast >= BALLAST_BYTES {
        findings.fine(format!("ballast of {} is kept back for a full disk", iec(ballast)));
    } else {
        let what =
            format!("of the ballast that is kept back for a full disk {} are there, not {}", iec(ballast), iec(BALLAST_BYTES));
        findings.advise(what, "the next command that opens the store takes it, with 32 MiB free:\nmodel-cache df");
    }
    let (Some(chunks), Some(records)) = (chunks, records) else { return };
    let large = records.blobs.iter().map(|(_, blob)| blob).filter(|blob| !blob.is_inline());
    let known_bytes: u64 = large.map(|blob| blob.size_bytes + u64::from(blob.layout().chunks()) * HEADER_REGION_BYTES).sum();
    let unexplained = chunks.disk_bytes.saturating_sub(known_bytes);
    // A record that can't be read explains nothing.
    if unexplained <= UNEXPLAINED_BYTES + known_bytes / 100 || !records.bad.is_empty() {
        return;
    }
    if storage::can_punch() {
        let what = format!(
            "{} of the store's data file belong to no file: left by a power loss, or by an older build",
            iec(unexplained)
        );
        findings.warn(what, "model-cache gc");
    } else {
        findings.note(format!("{} of the store's data file are free, and kept for what is pulled next", iec(unexplained)));
    }
}

/// What replaces the file of a metadata key.
fn again(meta_key: &str) -> String {
    match key::parse_meta(meta_key) {
        Some((repo, path)) => {
            let path = shell_word(path.as_str());
            match repo.commit {
                Some(_) => format!("model-cache rm {repo} {path} && model-cache pull {repo} --file {path}"),
                None => format!("remove it, then import it again:\nmodel-cache rm {repo} {path} --yes"),
            }
        }
        None => "model-cache verify".to_owned(),
    }
}

fn mending(table: &str, key: &str) -> String {
    match table {
        "metadata" => again(key),
        _ => "model-cache repair".to_owned(),
    }
}

fn from_backup() -> String {
    format!("restore a backup:\n{FROM_BACKUP}")
}
