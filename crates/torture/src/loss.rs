//! A power loss, played on the files of a store nobody has open: [`lose`].
//!
//! What was written in place and not synced since may be on the disk, or what was there before, or part of either, or neither. The log of writes
//! (storage, `write_log`) says which ranges these are, over all processes: a write is left alone as soon as a sync began after it that succeeded,
//! whoever asked for it. It is left alone, too, where its extent was given up since: those pages are libmdbx's, and may be its own by now.
//!
//! libmdbx writes the pages of its environment through a mapping and makes them durable at a sync, which ends with a meta page that says so
//! ("steady"). After a power loss it goes back to the last of those: pages that one leads to are not written again before the next, and any other
//! may hold anything. It tells a power loss from a kill by the system's boot number in its meta pages; so all that has to be done is to make that
//! another one. The records' environment is durable with each commit.

use crate::numbers::Numbers;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};
use storage::{Extent, WriteEvent, read_write_log};

/// What a loss took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Writes in place that were not synced.
    pub unsynced: u64,
    /// Of these, those that were replaced by what was there before.
    pub old: u64,
    /// By zeros.
    pub zero: u64,
    /// In part.
    pub torn: u64,
    /// By anything.
    pub random: u64,
    /// Bytes replaced.
    pub bytes: u64,
    /// Meta pages that libmdbx may not trust any more, since they were not made durable.
    pub weak_metas: u64,
}

impl Lost {
    /// Adds what another loss took away.
    pub fn add(&mut self, other: &Self) {
        self.unsynced += other.unsynced;
        self.old += other.old;
        self.zero += other.zero;
        self.torn += other.torn;
        self.random += other.random;
        self.bytes += other.bytes;
        self.weak_metas += other.weak_metas;
    }
}

/// Takes away what a power loss could of the store whose extents' data file this is, and of whose writes `log` tells. The log is
/// empty afterwards: what is in the file now is on the disk.
///
/// # Errors
/// Those of reading and writing, and for meta pages that are none.
pub fn lose(data_file: &Path, log: &Path, numbers: &mut Numbers) -> io::Result<Lost> {
    let mut lost = Lost::default();
    let file = match File::options().read(true).write(true).open(data_file) {
        // It may have been killed before it made one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lost),
        opened => opened?,
    };
    let events = read_write_log(log)?;
    let writes: Vec<_> = at_risk(&events).into_iter().filter(|write| owns(&file, write.extent)).collect();
    lost.unsynced = writes.len() as u64;
    // All of it, half of it, or a little; data and journal alike, or one of them alone.
    let times = *numbers.pick(&[1, 1, 2, 10]);
    let (data, journal) = *numbers.pick(&[(true, true), (true, true), (true, false), (false, true)]);
    // The last first: what was there before the first of two writes to a place is what is left.
    for write in writes.iter().rev() {
        let is_journal = write.offset < write.extent.data_offset();
        if (if is_journal { journal } else { data }) && numbers.once_in(times) {
            replace(&file, write, is_journal, numbers, &mut lost)?;
        }
    }
    let boot = u128::from(numbers.draw()) << 64 | u128::from(numbers.draw());
    lost.weak_metas = storage::forget_boot(&file, boot)?;
    clear(log)?;
    Ok(lost)
}

/// Removes the log and what belongs to it.
///
/// # Errors
/// Those of removing.
pub fn clear(log: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(()) };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&*name.to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A write that no sync covered.
struct AtRisk<'a> {
    extent: Extent,
    offset: u64,
    before: &'a [u8],
}

fn at_risk(events: &[WriteEvent]) -> Vec<AtRisk<'_>> {
    let covered = covered(events);
    let mut gone: HashSet<u32> = HashSet::new();
    let mut found = Vec::new();
    for event in events[covered..].iter().rev() {
        match event {
            WriteEvent::Freed { extent } => _ = gone.insert(extent.page),
            WriteEvent::Write { extent, offset, before } if !gone.contains(&extent.page) && !is_header(extent, *offset) => {
                found.push(AtRisk { extent: *extent, offset: *offset, before });
            }
            _ => {}
        }
    }
    found.reverse();
    found
}

/// A header is written before its extent's reservation is committed, and the sync that makes that commit durable makes it durable too: where it is
/// lost, so is the extent.
fn is_header(extent: &Extent, offset: u64) -> bool {
    offset == extent.page_offset() + 64
}

/// How many of the events, from the first, are surely covered by a sync.
fn covered(events: &[WriteEvent]) -> usize {
    let mut covered = 0;
    let mut syncing: HashMap<(u32, u64), (usize, bool)> = HashMap::new();
    // Commits that may be pending still: whether surely committed, and when.
    let mut pending: HashMap<(u32, u64), Option<usize>> = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            WriteEvent::Committing { number } => _ = pending.insert(*number, None),
            WriteEvent::Committed { number } => _ = pending.insert(*number, Some(at)),
            WriteEvent::Syncing { number, is_engines } => _ = syncing.insert(*number, (at, *is_engines)),
            WriteEvent::Synced { number } => {
                let Some((begun, is_engines)) = syncing.remove(number) else { continue };
                // libmdbx writes nothing where nothing is pending.
                if !is_engines || !pending.is_empty() {
                    covered = covered.max(begun);
                }
                if is_engines {
                    pending.retain(|_, committed| committed.is_none_or(|committed| committed > begun));
                }
            }
            WriteEvent::Write { .. } | WriteEvent::Freed { .. } => {}
        }
    }
    covered
}

/// Whether the file still has the header of this extent at its page.
fn owns(file: &File, extent: Extent) -> bool {
    let mut header = [0; 64];
    let read = file.read_exact_at(&mut header, extent.page_offset() + 64);
    read.is_ok() && header[..8] == *b"MDXEXTNT" && header[24..32] == extent.data_bytes.to_le_bytes()
}

fn replace(file: &File, write: &AtRisk<'_>, is_journal: bool, numbers: &mut Numbers, lost: &mut Lost) -> io::Result<()> {
    let bytes = write.before.len();
    let mut now = vec![0; bytes];
    file.read_exact_at(&mut now, write.offset)?;
    let kind = numbers.within(0..4);
    match kind {
        0 => {
            lost.old += 1;
            now.copy_from_slice(write.before);
        }
        1 => {
            lost.zero += 1;
            now.fill(0);
        }
        // A sector is written whole or not at all, and the 8 bytes of a journal's entry lie in one.
        2 if !is_journal && bytes > 512 => {
            lost.torn += 1;
            let at = (numbers.within(1..bytes.div_ceil(512) as u64) * 512) as usize;
            let range = if numbers.once_in(2) { 0..at } else { at..bytes };
            now[range.clone()].copy_from_slice(&write.before[range]);
        }
        _ => {
            lost.random += 1;
            for piece in now.chunks_mut(8) {
                piece.copy_from_slice(&numbers.draw().to_le_bytes()[..piece.len()]);
            }
        }
    }
    lost.bytes += bytes as u64;
    file.write_all_at(&now, write.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent { page: 7, data_bytes: 1 << 20 };

    fn write(offset: u64) -> WriteEvent {
        WriteEvent::Write { extent: EXTENT, offset: EXTENT.data_offset() + offset, before: vec![0; 8] }
    }

    fn sync(process: u32, is_engines: bool) -> [WriteEvent; 2] {
        let number = (process, 1);
        [WriteEvent::Syncing { number, is_engines }, WriteEvent::Synced { number }]
    }

    fn risked(events: &[WriteEvent]) -> Vec<u64> {
        at_risk(events).iter().map(|write| write.offset - EXTENT.data_offset()).collect()
    }

    #[test]
    fn what_another_process_synced_is_not_at_risk() {
        let [begin, end] = sync(2, false);
        assert_eq!(risked(&[write(0), begin.clone(), write(8), end, write(16)]), [8, 16]);
        // One that did not come to its end promises nothing.
        assert_eq!(risked(&[write(0), begin, write(8)]), [0, 8]);
    }

    #[test]
    fn the_engines_sync_covers_what_is_written_in_place_only_where_a_commit_is_pending() {
        let [begin, end] = sync(2, true);
        let number = (3, 1);
        let (committing, committed) = (WriteEvent::Committing { number }, WriteEvent::Committed { number });
        let second = [WriteEvent::Syncing { number: (2, 2), is_engines: true }, WriteEvent::Synced { number: (2, 2) }];
        assert_eq!(risked(&[write(0), begin.clone(), end.clone()]), [0]);
        assert_eq!(risked(&[write(0), committing.clone(), committed.clone(), begin.clone(), end.clone()]), [0; 0]);
        let [again, over] = second;
        let both = [committing.clone(), committed.clone(), begin.clone(), end.clone(), write(0), again.clone(), over.clone()];
        assert_eq!(risked(&both), [0]);
        // Committed while the first sync ran, it may still be pending.
        assert_eq!(risked(&[committing, begin, committed, end, write(0), again, over]), [0; 0]);
    }

    #[test]
    fn pages_that_were_given_up_are_libmdbxs_until_they_are_an_extents_again() {
        let freed = WriteEvent::Freed { extent: EXTENT };
        assert_eq!(risked(&[write(0), freed.clone()]), [0; 0]);
        assert_eq!(risked(&[write(0), freed, write(8)]), [8]);
    }
}
