//! A process killed at any moment: what it had made durable is whole, its leases are free, and the store opens at once.

mod common;

use common::*;
use nix::sys::signal::{Signal, kill};
use rkyv::{Archive, Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};
use storage::*;

const KILLS: u64 = 25;

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
enum State {
    Filling,
    Sealed,
    Freeing,
}

/// What a store would write down of a blob.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Row {
    state: State,
    sizes: Vec<u64>,
    pages: Vec<u32>,
    crcs: Vec<u32>,
}

const ROWS: Table<Row> = Table::new("rows");

struct Store {
    records: Arc<Shared<Records>>,
    extents: Arc<Shared<Extents>>,
    leases: LeaseFile,
}

impl Store {
    fn open(folder: &Path) -> Self {
        let registry = StorageRegistry::new(folder);
        Self {
            leases: LeaseFile::open(folder.join("leases")).unwrap(),
            records: registry.records(&registry.folder("records"), &["rows"]).unwrap(),
            extents: registry.extents(&registry.folder("extents"), TABLE, storage::Alignment::LargePage).unwrap(),
        }
    }

    fn rows(&self) -> Vec<(u64, Row)> {
        let mut rows = Vec::new();
        let keep = |key: &str, row| {
            rows.push((key.parse().unwrap(), row));
            Ok::<_, Error>(())
        };
        self.records.begin_read().unwrap().scan(&ROWS, "", keep).unwrap();
        rows
    }

    fn put(&self, id: u64, row: &Row) {
        let txn = self.records.begin_write().unwrap();
        txn.put(&ROWS, &format!("{id:08}"), row).unwrap();
        txn.commit().unwrap();
    }

    fn remove(&self, id: u64) {
        let txn = self.records.begin_write().unwrap();
        txn.delete(&ROWS, &format!("{id:08}")).unwrap();
        txn.commit().unwrap();
    }

    fn fill(&self, id: u64, sizes: &[u64]) {
        let lease = self.leases.try_exclusive(id).unwrap().unwrap();
        let mut row = Row { state: State::Filling, sizes: sizes.to_vec(), pages: vec![], crcs: vec![] };
        self.put(id, &row);
        let writer = self.extents.open_writer().unwrap();
        let txn = self.extents.begin_reserve().unwrap();
        let placed = txn.reserve(&writer, id, BLOCK_BYTES, &specs(&format!("{id:08}"), sizes)).unwrap();
        txn.commit().unwrap();
        for (n, extent) in placed.iter().enumerate() {
            let bytes = pattern(id * 31 + n as u64, extent.data_bytes);
            let half = bytes.len() / 2;
            writer.write_at(extent, half as u64, &bytes[half..]).unwrap();
            writer.write_at(extent, 0, &bytes[..half]).unwrap();
            writer.journal(extent, 0, crc32c::crc32c(&bytes)).unwrap();
            row.pages.push(extent.page);
            row.crcs.push(crc32c::crc32c(&bytes));
        }
        // The one order a seal may have.
        writer.sync().unwrap();
        self.extents.sync().unwrap();
        row.state = State::Sealed;
        self.put(id, &row);
        drop(lease);
    }

    fn free(&self, id: u64, row: &Row) {
        let _lease = self.leases.try_exclusive(id).unwrap().unwrap();
        self.put(id, &Row { state: State::Freeing, ..row.clone() });
        let writer = self.extents.open_writer().unwrap();
        let keys: Vec<_> = (0..row.sizes.len()).map(|n| format!("{id:08}:{n}")).collect();
        for extent in keys.iter().filter_map(|key| self.extents.locate(key).unwrap()) {
            writer.punch(&extent).unwrap();
        }
        let txn = self.extents.begin_free().unwrap();
        for key in &keys {
            txn.delete(key).unwrap();
        }
        txn.commit().unwrap();
        self.remove(id);
    }

    /// Checks what must have survived and finishes what was left half done; gives how many sealed rows there were.
    fn check_and_recover(&self) -> usize {
        let mut sealed = 0;
        let mut keys = Vec::new();
        for (id, row) in self.rows() {
            assert!(!self.leases.is_held(id).unwrap(), "a lease on {id} outlived its process");
            if row.state != State::Sealed {
                self.free(id, &row);
                continue;
            }
            sealed += 1;
            for (n, &bytes) in row.sizes.iter().enumerate() {
                let key = format!("{id:08}:{n}");
                let extent = self.extents.locate(&key).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
                assert_eq!(extent, Extent { page: row.pages[n], data_bytes: bytes });
                let read = read(&self.extents, &extent);
                assert_eq!(crc32c::crc32c(&read), row.crcs[n], "{key} is damaged");
                assert!(*Mapping::side_by_side(self.extents.reader(), &[extent]).unwrap() == *read);
                let header = self.extents.reader().read_header(&extent).unwrap().unwrap();
                assert_eq!((header.owner, header.index, header.data_bytes), (id, n as u32, bytes));
                keys.push(key);
            }
        }
        // Rows come before reservations and go after deletions: there is no extent without one.
        assert_eq!(self.extents.begin_free().unwrap().keys().unwrap(), keys);
        sealed
    }
}

/// Fills and frees until it is killed.
fn work_until_killed(folder: &Path) {
    let store = Store::open(folder);
    println!("ready");
    let mut numbers = Numbers(u64::from(std::process::id()));
    for next in store.rows().last().map_or(1, |(id, _)| id + 1).. {
        let rows = store.rows();
        if rows.len() > 12 || (rows.len() > 3 && numbers.below(3) == 0) {
            let (id, row) = &rows[numbers.below(rows.len() as u64) as usize];
            store.free(*id, row);
        }
        let sizes: Vec<_> = (0..=numbers.below(3)).map(|_| 1 + numbers.below(400_000)).collect();
        store.fill(next, &sizes);
    }
}

#[test]
fn what_was_durable_survives_a_kill_at_any_moment() {
    const NAME: &str = "what_was_durable_survives_a_kill_at_any_moment";
    if let Some(folder) = child_argument() {
        return work_until_killed(&folder);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(5);
    let mut most = 0;
    let mut slowest = Duration::ZERO;
    for round in 0..KILLS {
        // Every other time this process has it open too, as a living neighbour would.
        let neighbour = (round % 2 == 1).then(|| Store::open(folder.path()));
        let mut worker = child(NAME, folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")), "the child did not start");
        sleep(Duration::from_micros(numbers.below(120_000)));
        assert!(worker.try_wait().unwrap().is_none(), "the child ended by itself");
        kill(nix::unistd::Pid::from_raw(worker.id() as i32), Signal::SIGKILL).unwrap();
        worker.wait().unwrap();
        let start = Instant::now();
        let path = folder.path().to_owned();
        let (store, took) = within(Duration::from_secs(20), move || {
            let store = neighbour.unwrap_or_else(|| Store::open(&path));
            let took = start.elapsed();
            most = most.max(store.check_and_recover());
            (most, took)
        });
        most = store;
        slowest = slowest.max(took);
    }
    println!("{KILLS} kills, up to {most} sealed blobs, slowest open {slowest:?}");
    assert!(most > 5, "the child should have got somewhere between the kills");
    assert!(slowest < Duration::from_secs(2));
}

#[test]
fn a_lease_of_a_killed_process_is_free_at_once() {
    const NAME: &str = "a_lease_of_a_killed_process_is_free_at_once";
    if let Some(folder) = child_argument() {
        let leases = LeaseFile::open(folder.join("leases")).unwrap();
        let _held = (leases.try_exclusive(1).unwrap().unwrap(), leases.try_shared(2).unwrap().unwrap());
        println!("ready");
        sleep(Duration::from_secs(60));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let leases = LeaseFile::open(folder.path().join("leases")).unwrap();
    let mut holder = child(NAME, folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")));
    assert!(leases.try_shared(1).unwrap().is_none());
    assert!(leases.try_exclusive(2).unwrap().is_none());
    assert!(leases.try_shared(2).unwrap().is_some());
    assert_eq!(leases.holders(1), [holder.id()]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(leases.try_exclusive(1).unwrap().is_some());
    assert!(leases.try_exclusive(2).unwrap().is_some());
}
