//! Times of what must be quick, printed; the few bounds are generous. Run alone, with the optimiser:
//! `cargo test --release -p storage --test timing -- --ignored --nocapture --test-threads=1`

mod common;

use common::*;
use std::{
    fs,
    time::{Duration, Instant},
};
use storage::*;

const CHUNK_BYTES: u64 = 100 << 20;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    println!("{what}: {took:.2?}");
    (result, took)
}

fn fill(writer: &DataFile, extents: &[Extent]) {
    let bytes = pattern(1, 4 << 20);
    for extent in extents {
        for at in (0..extent.data_bytes).step_by(bytes.len()) {
            writer.write_at(extent, at, &bytes).unwrap();
        }
    }
}

fn dirty_mib() -> u64 {
    let kib = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    meminfo.lines().filter(|line| line.starts_with("Dirty:") || line.starts_with("Writeback:")).map(kib).sum::<u64>() >> 10
}

#[test]
#[ignore = "moves gigabytes; see the head of the file"]
fn reserving_locating_and_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    timed("reserve 1 x 100 MiB", || reserve(&extents, 1, "one", &[CHUNK_BYTES]).unwrap());
    timed("reserve 20 x 100 MiB", || reserve(&extents, 2, "a", &[CHUNK_BYTES; 20]).unwrap());
    timed("reserve 41 x 100 MiB", || reserve(&extents, 3, "b", &[CHUNK_BYTES; 41]).unwrap());
    let (placed, took) =
        timed("locate 41", || -> Vec<Extent> { (0..41).map(|n| extents.locate(&format!("b:{n}")).unwrap().unwrap()).collect() });
    assert!(took < Duration::from_millis(50));
    let (mapping, took) = timed("map 41 side by side", || Mapping::side_by_side(extents.reader(), &placed).unwrap());
    assert_eq!(mapping.len() as u64, 41 * CHUNK_BYTES);
    assert!(took < Duration::from_millis(50));
    timed("unmap", || drop(mapping));
}

#[test]
#[ignore = "moves gigabytes; see the head of the file"]
fn a_cold_open_of_4_gib_reads_little() {
    const NAME: &str = "a_cold_open_of_4_gib_reads_little";
    if let Some(folder) = child_argument() {
        let read_bytes = || -> u64 {
            let io = fs::read_to_string("/proc/self/io").unwrap();
            io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse().unwrap()
        };
        let before = read_bytes();
        let (extents, _) = timed("cold open", || open_extents(&folder));
        println!("  read {} KiB", (read_bytes() - before) >> 10);
        timed("cold locate", || extents.locate("a:17").unwrap().unwrap());
        println!("  read {} KiB in all", (read_bytes() - before) >> 10);
        assert!(read_bytes() - before < 1 << 20);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let placed = reserve(&extents, 1, "a", &[CHUNK_BYTES; 41]).unwrap();
    let writer = extents.open_writer().unwrap();
    timed("write 4.1 GiB", || fill(&writer, &placed));
    timed("fdatasync of it", || writer.sync().unwrap());
    timed("environment sync", || extents.sync().unwrap());
    drop((extents, writer));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    run_child(NAME, folder.path());
}

#[test]
#[ignore = "moves gigabytes; see the head of the file"]
fn transactions_do_not_wait_for_dirty_data() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(&folder.path().join("extents"));
    let records = StorageRegistry::new(folder.path()).records(&folder.path().join("records"), &["t"]).unwrap();
    let big = reserve(&extents, 1, "big", &[CHUNK_BYTES; 20]).unwrap();
    for name in ["middle", "tail"] {
        reserve(&extents, 2, name, &[CHUNK_BYTES; 5]).unwrap();
    }
    extents.sync().unwrap();
    let writer = extents.open_writer().unwrap();
    let mut slowest = Duration::ZERO;
    let mut step = |what: &str, work: &dyn Fn()| {
        // Fresh dirt each time, since some steps may have written it back.
        fill(&writer, &big);
        println!("with {} MiB dirty:", dirty_mib());
        let took = timed(what, work).1;
        println!("  {} MiB dirty afterwards", dirty_mib());
        slowest = slowest.max(took);
    };
    let keys = |name: &str| (0..5).map(|n| format!("{name}:{n}")).collect::<Vec<_>>();
    step("reserve 1 x 100 MiB", &|| drop(reserve(&extents, 3, "new", &[CHUNK_BYTES]).unwrap()));
    step("reserve 20 x 100 MiB, growing the file", &|| drop(reserve(&extents, 4, "grow", &[CHUNK_BYTES; 20]).unwrap()));
    step("punch and delete 5 in the middle", &|| free(&extents, &keys("middle")).unwrap());
    step("reserve after the delete", &|| drop(reserve(&extents, 5, "after", &[CHUNK_BYTES; 3]).unwrap()));
    step("punch and delete 20 of the last", &|| {
        free(&extents, &(0..20).map(|n| format!("grow:{n}")).collect::<Vec<_>>()).unwrap();
    });
    step("punch and delete 8 more of the last", &|| {
        let mut keys = keys("tail");
        keys.extend((0..3).map(|n| format!("after:{n}")));
        free(&extents, &keys).unwrap();
    });
    step("a durable commit of a record", &|| {
        let txn = records.begin_write().unwrap();
        txn.put_bytes(&Table::new("t"), "k", &[1; 1000]).unwrap();
        txn.commit().unwrap();
    });
    println!("slowest: {slowest:.2?}");
    timed("sync of the data file", || writer.sync().unwrap());
    timed("sync of the environment", || extents.sync().unwrap());
    timed("reserve after the sync", || reserve(&extents, 6, "last", &[CHUNK_BYTES; 5]).unwrap());
    println!("file of {} MiB", fs::metadata(extents.folder().join("mdbx.dat")).unwrap().len() >> 20);
    assert!(slowest < Duration::from_millis(500));
}

#[test]
#[ignore = "moves gigabytes; see the head of the file"]
fn a_file_that_could_shrink_does_not_make_a_commit_wait_for_dirty_data() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let writer = extents.open_writer().unwrap();
    let big = reserve(&extents, 1, "big", &[CHUNK_BYTES; 20]).unwrap();
    let file_mib = || fs::metadata(extents.folder().join("mdbx.dat")).unwrap().len() >> 20;
    let mut slowest = Duration::ZERO;
    for n in 0..3 {
        // Steady, with a long tail that one transaction takes and gives back.
        extents.sync().unwrap();
        fill(&writer, &big);
        println!("file of {} MiB, {} MiB dirty:", file_mib(), dirty_mib());
        let name = format!("tail{n}");
        let took = timed("reserve 20 x 100 MiB, delete them, commit", || {
            let txn = extents.begin_reserve().unwrap();
            txn.reserve(&writer, 2, BLOCK_BYTES, &specs(&name, &[CHUNK_BYTES; 20])).unwrap();
            println!("  file of {} MiB in between", file_mib());
            for m in 0..20 {
                assert!(txn.delete(&format!("{name}:{m}")).unwrap());
            }
            txn.commit().unwrap();
        });
        println!("  file of {} MiB, {} MiB dirty afterwards", file_mib(), dirty_mib());
        slowest = slowest.max(took.1);
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[test]
#[ignore = "moves gigabytes; see the head of the file"]
fn what_is_left_after_many_extents_and_after_churn() {
    let report = |what: &str, folder: &std::path::Path| {
        let file = fs::metadata(folder.join("mdbx.dat")).unwrap().len();
        let allocated = allocated_bytes(folder).unwrap();
        println!("{what}: {:.2} MiB allocated, file of {} MiB", allocated as f64 / (1 << 20) as f64, file >> 20);
    };
    for count in [20, 60, 300] {
        let folder = tempfile::tempdir().unwrap();
        let extents = open_extents(folder.path());
        let names: Vec<_> = (0..count / 20).map(|n| format!("{n}")).collect();
        for name in &names {
            reserve(&extents, 1, name, &[CHUNK_BYTES; 20]).unwrap();
        }
        extents.sync().unwrap();
        for name in &names {
            free(&extents, &(0..20).map(|n| format!("{name}:{n}")).collect::<Vec<_>>()).unwrap();
        }
        extents.sync().unwrap();
        report(&format!("after {count} x 100 MiB"), folder.path());
    }
    for synced in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let extents = open_extents(folder.path());
        for round in 0..=200 {
            reserve(&extents, 1, "a", &[CHUNK_BYTES; 5]).unwrap();
            free(&extents, &(0..5).map(|n| format!("a:{n}")).collect::<Vec<_>>()).unwrap();
            if synced {
                extents.sync().unwrap();
            }
            if round % 100 == 0 {
                report(&format!("after {round} rounds of 5 x 100 MiB, synced {synced}"), folder.path());
            }
        }
    }
}

/// Files come and go until ten times what there is at most went through; nothing is written, and its space given back at once.
#[test]
#[ignore = "see the head of the file"]
fn ten_fold_turnover() {
    let gib = |n: u64| n << 30;
    // Log-uniform sizes to the byte, from 2^first to 2^end; which goes to make room: any, or the oldest.
    turn_over("1 MiB to 4 GiB, any", gib(20), 20..32, |random, count| random % count);
    turn_over("1 MiB to 4 GiB, the oldest", gib(20), 20..32, |_, _| 0);
    turn_over("1 MiB to 128 MiB, any", gib(20), 20..27, |random, count| random % count);
    turn_over("256 MiB to 8 GiB, any", gib(20), 28..33, |random, count| random % count);
    turn_over("1 MiB to 4 GiB, any, of 200 GiB", gib(200), 20..32, |random, count| random % count);
}

fn turn_over(what: &str, cap_bytes: u64, orders: std::ops::Range<u32>, which: impl Fn(u64, u64) -> u64) {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut live: Vec<(u64, Vec<u64>)> = Vec::new();
    let (mut live_bytes, mut peak_bytes, mut through_bytes, mut number) = (0, 0, 0, 0);
    let mut times = Vec::new();
    while through_bytes < 10 * cap_bytes {
        let order = orders.start + next() as u32 % (orders.end - orders.start);
        let size = (1_u64 << order) + next() % (1 << order);
        while live_bytes + size > cap_bytes {
            let (name, sizes) = live.remove(which(next(), live.len() as u64) as usize);
            free(&extents, &(0..sizes.len()).map(|n| format!("{name}:{n}")).collect::<Vec<_>>()).unwrap();
            extents.sync().unwrap();
            live_bytes -= sizes.iter().sum::<u64>();
        }
        number += 1;
        let sizes: Vec<u64> = (0..size.div_ceil(CHUNK_BYTES)).map(|n| (size - n * CHUNK_BYTES).min(CHUNK_BYTES)).collect();
        let begun = Instant::now();
        let placed = reserve(&extents, number, &number.to_string(), &sizes).unwrap();
        times.push(begun.elapsed());
        let writer = extents.open_writer().unwrap();
        placed.iter().for_each(|extent| writer.punch(extent).unwrap());
        live.push((number, sizes));
        live_bytes += size;
        through_bytes += size;
        peak_bytes = peak_bytes.max(live_bytes);
    }
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    let file_bytes = fs::metadata(extents.folder().join("mdbx.dat")).unwrap().len();
    println!(
        "{what}: {} reservations, p50 {:.2?}, p99 {:.2?}, worst {:.2?}; file {} MiB, live at most {} MiB: {:.3}; {:.1} MiB of disk",
        times.len(),
        at(50),
        at(99),
        times[times.len() - 1],
        file_bytes >> 20,
        peak_bytes >> 20,
        file_bytes as f64 / peak_bytes as f64,
        allocated_bytes(folder.path()).unwrap() as f64 / (1 << 20) as f64
    );
}
