//! A disk that another program fills between two steps of ours: a process is stopped at each of them, and goes on with a full disk.

use super::*;
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use std::{
    os::unix::process::ExitStatusExt,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

const NAME: &str = "steps::a_disk_filled_by_another_between_any_two_steps_is_an_error_and_nothing_is_lost";
const KEPT: &str = "kept:0";
/// Before and after each of libmdbx's writes through its mapping.
const POINTS: [&str; 8] = [
    "open.lock_file_made",
    "environment.opened",
    "open.tables_begun",
    "extents.write_begun",
    "reserve.room_checked",
    "reserve.put",
    "extents.deleted",
    "extents.ready_to_commit",
];

/// What the process does that is stopped: every kind of write there is. Each works, or is refused for lack of space.
fn work(folder: &Path) {
    let done = |what: &str, result: Result<()>| match result {
        Ok(()) => println!("{what}: done"),
        Err(error) => {
            assert!(error.is_no_space(), "{what}: {error:?}");
            println!("{what}: {error}");
        }
    };
    for round in 0..2 {
        let registry = StorageRegistry::new(folder);
        let extents = match registry.extents(&folder.join("extents"), TABLE, Alignment::LargePage) {
            Ok(extents) => extents,
            Err(error) => return done("open", Err(error)),
        };
        let prefix = format!("new{round}");
        let reserved = reserve(&extents, 2, &prefix, &[5 << 20, 3 << 20, 1 << 20]).map(drop);
        let is_here = reserved.is_ok();
        done("reserve", reserved);
        // What is here from before, and, where there is, from above.
        done("free", free(&extents, &[format!("old{round}:0"), format!("old{round}:1")]));
        if is_here {
            done("free what was reserved", free(&extents, &[format!("{prefix}:1")]));
        }
        done("sync", extents.sync());
        let made = registry.extents(&folder.join(format!("made{round}")), TABLE, Alignment::LargePage);
        done("make an environment", made.map(drop));
        match registry.records(&folder.join("records"), &["t"]) {
            Ok(records) => done("put a record", put(&records, "key", 100_000)),
            Err(error) => done("open the records", Err(error)),
        }
    }
}

/// Waits until the child stops or ends; whether it stopped.
fn wait_for_stop(pid: Pid) -> bool {
    // Its end is left for who started it to see.
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::Pid(pid), flags).unwrap(), WaitStatus::Stopped(..))
}

#[test]
fn a_disk_filled_by_another_between_any_two_steps_is_an_error_and_nothing_is_lost() {
    if let Some(store) = child_argument().filter(|argument| argument.ends_with("store")) {
        work(&store);
        return;
    }
    // Smaller than the others': it is filled 70 times.
    on_disks_of(112 << 20, NAME, |disk| {
        let data = pattern(7, 4 << 20);
        let mut stops = 0;
        for point in POINTS {
            for nth in 1.. {
                // In turns: a neighbour that filled the disk once, and one that takes whatever is given back.
                let is_greedy = nth % 2 == 0;
                let store = disk.join("store");
                make_store(&store, &data);
                let mut process = child(NAME, &store)
                    .env("MODEL_CACHE_FAIL_AT", format!("{point}:{nth}=stop"))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let pid = Pid::from_raw(process.id() as i32);
                let has_stopped = wait_for_stop(pid);
                if has_stopped {
                    fill_disk(disk, 0);
                    let ended = AtomicBool::new(false);
                    thread::scope(|scope| {
                        if is_greedy {
                            scope.spawn(|| {
                                while !ended.load(Ordering::Relaxed) {
                                    fill_disk(disk, 0);
                                }
                            });
                        }
                        kill(pid, Signal::SIGCONT).unwrap();
                        process.wait().unwrap();
                        ended.store(true, Ordering::Relaxed);
                    });
                    stops += 1;
                }
                let output = process.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(
                    output.status.success(),
                    "stopped at {point}:{nth}: {} (signal {:?})\n{said}\n{}",
                    output.status,
                    output.status.signal(),
                    String::from_utf8_lossy(&output.stderr)
                );
                println!("{point}:{nth}, a greedy neighbour {is_greedy}:\n{said}");
                empty_filler(disk);
                check_store(&store, &data);
                fs::remove_dir_all(&store).unwrap();
                if !has_stopped {
                    assert!(nth > 1, "{point} is never reached");
                    break;
                }
            }
        }
        println!("{stops} stops");
    });
}

fn make_store(store: &Path, data: &[u8]) {
    let extents = open_extents(&store.join("extents"));
    let placed = reserve(&extents, 1, "kept", &[data.len() as u64]).unwrap();
    let writer = extents.open_writer().unwrap();
    writer.write_at(&placed[0], 0, data).unwrap();
    writer.sync().unwrap();
    for round in 0..2 {
        reserve(&extents, 1, &format!("old{round}"), &[4 << 20, 4 << 20]).unwrap();
    }
    extents.sync().unwrap();
    put(&open_records(&store.join("records")), "before", 1000).unwrap();
}

/// That what was sealed is here, that every extent there is says it is its owner's, and that all goes on.
fn check_store(store: &Path, data: &[u8]) {
    let extents = open_extents(&store.join("extents"));
    assert!(read(&extents, &extents.locate(KEPT).unwrap().unwrap()) == data);
    let txn = extents.begin_free().unwrap();
    for key in txn.keys().unwrap() {
        let extent = txn.locate(&key).unwrap().unwrap();
        let header = extents.reader().read_header(&extent).unwrap().unwrap_or_else(|| panic!("{key} has no header"));
        assert_eq!(header.owner, if key.starts_with("new") { 2 } else { 1 }, "{key}");
        assert_eq!(header.data_bytes, extent.data_bytes, "{key}");
    }
    drop(txn);
    reserve(&extents, 3, "after", &[20 << 20]).unwrap();
    free(&extents, &["after:0".to_owned()]).unwrap();
    let records = open_records(&store.join("records"));
    assert!(records.begin_read().unwrap().get_bytes(&BYTES, "before").unwrap().is_some());
    put(&records, "after", 100_000).unwrap();
}
