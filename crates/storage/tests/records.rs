//! Records: what is put is got, damage is told by name, and a commit is seen by every thread and process.

mod common;

use common::*;
use proptest::{collection::vec, prelude::*, test_runner::Config};
use rkyv::{Archive, Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, sync::Arc, thread};
use storage::*;

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Note {
    text: String,
    numbers: Vec<u64>,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Count {
    count: u64,
}

const NOTES: Table<Note> = Table::new("notes");
const NOTES_BYTES: Table<[u8]> = Table::new("notes");
const NOTES_AS_COUNTS: Table<Count> = Table::new("notes");
const COUNTS: Table<Count> = Table::new("counts");
const TABLES: [&str; 2] = ["notes", "counts"];

fn open(folder: &Path) -> Arc<Shared<Records>> {
    StorageRegistry::new(folder).records(folder, &TABLES).unwrap()
}

fn note(seed: u64) -> Note {
    Note { text: format!("note {seed}"), numbers: (0..seed % 900).collect() }
}

#[derive(Clone, Debug)]
enum Step {
    Put(String, u64),
    Delete(String),
    Commit,
    Abort,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => ("[ab]{0,3}:[a-c]{0,3}", any::<u64>()).prop_map(|(key, seed)| Step::Put(key, seed)),
        3 => "[ab]{0,3}:[a-c]{0,3}".prop_map(Step::Delete),
        2 => Just(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Reopen),
    ]
}

/// Both kinds of transaction read by the same methods, which no trait ties together.
macro_rules! check {
    ($txn:expr, $model:expr) => {
        for prefix in ["", "a", "aa:", "b", "bb:c", "zz"] {
            let mut found = Vec::new();
            $txn.scan(&NOTES, prefix, |key, note| {
                found.push((key.to_owned(), note));
                Ok::<_, Error>(())
            })
            .unwrap();
            let expected: Vec<_> = $model.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            assert!(found.iter().map(|(key, note)| (key, note)).eq(expected), "scan of {prefix:?}");
        }
        for key in ["a:a", "ab:", ":"] {
            assert_eq!($txn.get(&NOTES, key).unwrap().as_ref(), $model.get(key));
        }
    };
}

proptest! {
    #![proptest_config(Config { cases: 12, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Config::default() })]

    #[test]
    fn records_hold_what_the_model_holds(steps in vec(step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut records = open(folder.path());
        let mut committed: BTreeMap<String, Note> = BTreeMap::new();
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            let mut model = committed.clone();
            let txn = records.begin_write().unwrap();
            let mut last = None;
            for step in steps.by_ref() {
                match step {
                    Step::Put(key, seed) => {
                        txn.put(&NOTES, &key, &note(seed)).unwrap();
                        model.insert(key, note(seed));
                    }
                    Step::Delete(key) => prop_assert_eq!(txn.delete(&NOTES, &key).unwrap(), model.remove(&key).is_some()),
                    end => {
                        last = Some(end);
                        break;
                    }
                }
            }
            check!(txn, model);
            // Others still see what was committed last.
            check!(records.begin_read().unwrap(), committed);
            if matches!(last, Some(Step::Abort)) {
                drop(txn);
            } else {
                txn.commit().unwrap();
                committed = model;
            }
            if matches!(last, Some(Step::Reopen)) {
                drop(records);
                records = open(folder.path());
            }
            check!(records.begin_read().unwrap(), committed);
        }
    }
}

#[test]
fn a_damaged_record_is_named_by_table_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let txn = records.begin_write().unwrap();
    txn.put(&NOTES, "whole", &note(5)).unwrap();
    txn.commit().unwrap();
    let whole = records.begin_read().unwrap().get_bytes(&NOTES_BYTES, "whole").unwrap().unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let txn = records.begin_write().unwrap();
        assert!(txn.insert_bytes(&NOTES_BYTES, "damaged", &damaged).unwrap());
        let result = txn.get(&NOTES, "damaged");
        assert!(
            matches!(&result, Err(Error::BadRecord { table: "notes", key, .. }) if key == "damaged"),
            "byte {at} damaged: {result:?}"
        );
        assert!(result.unwrap_err().is_corruption());
        let scanned = txn.scan(&NOTES, "d", |_, _| Ok::<_, Error>(()));
        assert!(matches!(scanned, Err(Error::BadRecord { table: "notes", key, .. }) if key == "damaged"));
    }
    for short in 0..whole.len() {
        let txn = records.begin_write().unwrap();
        assert!(txn.insert_bytes(&NOTES_BYTES, "short", &whole[..short]).unwrap());
        assert!(matches!(txn.get(&NOTES, "short"), Err(Error::BadRecord { .. })), "cut to {short}");
    }
}

#[test]
fn a_record_of_another_type_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let txn = records.begin_write().unwrap();
    txn.put(&NOTES, "note", &note(3)).unwrap();
    assert!(matches!(txn.get(&NOTES_AS_COUNTS, "note"), Err(Error::BadRecord { table: "notes", .. })));
    txn.put(&COUNTS, "count", &Count { count: 1 }).unwrap();
    assert_eq!(txn.get(&COUNTS, "count").unwrap(), Some(Count { count: 1 }));
}

#[test]
fn a_key_that_is_taken_is_left_alone_by_insert() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let txn = records.begin_write().unwrap();
    assert!(txn.insert_bytes(&NOTES_BYTES, "a", b"first").unwrap());
    assert!(!txn.insert_bytes(&NOTES_BYTES, "a", b"second").unwrap());
    txn.commit().unwrap();
    assert_eq!(records.begin_read().unwrap().get_bytes(&NOTES_BYTES, "a").unwrap().unwrap(), b"first");
}

#[test]
fn a_key_the_engine_can_not_hold_is_an_error_and_the_rest_of_the_transaction_lives() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let txn = records.begin_write().unwrap();
    txn.put(&NOTES, "short", &note(1)).unwrap();
    assert!(matches!(txn.put(&NOTES, &"x".repeat(5000), &note(2)), Err(Error::Engine { .. })));
    // Whatever libmdbx makes of it, `Ok` means that it is there.
    let result = txn.commit();
    let found = records.begin_read().unwrap().get(&NOTES, "short").unwrap();
    assert_eq!(result.is_ok(), found.is_some(), "{result:?}");
}

#[test]
fn a_table_nobody_created_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let missing: Table<Count> = Table::new("missing");
    assert!(matches!(records.begin_read().unwrap().get(&missing, "a"), Err(Error::Engine { .. })));
}

#[test]
fn a_second_opener_gets_the_tables_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let registry = StorageRegistry::new(folder.path());
    let first = registry.records(folder.path(), &["notes"]).unwrap();
    let second = registry.records(folder.path(), &TABLES).unwrap();
    let txn = first.begin_write().unwrap();
    txn.put(&COUNTS, "a", &Count { count: 1 }).unwrap();
    txn.commit().unwrap();
    assert!(second.begin_read().unwrap().get(&COUNTS, "a").unwrap().is_some());
}

#[test]
fn a_commit_is_seen_by_other_threads_and_a_snapshot_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let before = records.begin_read().unwrap();
    let txn = records.begin_write().unwrap();
    txn.put(&COUNTS, "a", &Count { count: 1 }).unwrap();
    txn.commit().unwrap();
    thread::scope(|scope| {
        let seen = scope.spawn(|| records.begin_read().unwrap().get(&COUNTS, "a").unwrap());
        assert_eq!(seen.join().unwrap(), Some(Count { count: 1 }));
        // A snapshot may move between threads.
        let snapshot = scope.spawn(move || before.get(&COUNTS, "a").unwrap());
        assert_eq!(snapshot.join().unwrap(), None);
    });
}

fn count_up(records: &Records, rounds: u64, own: &str) {
    for _ in 0..rounds {
        let txn = records.begin_write().unwrap();
        for key in ["shared", own] {
            let count = txn.get(&COUNTS, key).unwrap().map_or(0, |count| count.count);
            txn.put(&COUNTS, key, &Count { count: count + 1 }).unwrap();
        }
        txn.commit().unwrap();
    }
}

fn count(records: &Records, key: &str) -> u64 {
    records.begin_read().unwrap().get(&COUNTS, key).unwrap().map_or(0, |count| count.count)
}

#[test]
fn writers_on_four_threads_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    thread::scope(|scope| {
        for n in 0..4 {
            let records = &records;
            scope.spawn(move || count_up(records, 50, &n.to_string()));
        }
    });
    assert_eq!(count(&records, "shared"), 200);
    assert_eq!(count(&records, "3"), 50);
}

#[test]
fn two_processes_share_one_environment() {
    const NAME: &str = "two_processes_share_one_environment";
    if let Some(folder) = child_argument() {
        count_up(&open(&folder), 50, &std::process::id().to_string());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path());
    let children: Vec<_> = (0..2).map(|_| child(NAME, folder.path()).spawn().unwrap()).collect();
    count_up(&records, 50, "parent");
    for mut child in children {
        let id = child.id();
        assert!(child.wait().unwrap().success());
        assert_eq!(count(&records, &id.to_string()), 50);
    }
    assert_eq!(count(&records, "shared"), 150);
}
