//! Extents under random operations, against the plainest model there is: a map from key to bytes.

mod common;

use common::*;
use proptest::{collection::vec, prelude::*, test_runner::Config};
use std::{collections::BTreeMap, sync::Arc};
use storage::*;

/// One step. Indices pick among what there is, modulo its number.
#[derive(Clone, Debug)]
enum Step {
    /// Reserve these sizes under a new name, fill them, and commit.
    Put {
        sizes: Vec<u64>,
        seed: u64,
    },
    /// Reserve and fill, then drop the transaction.
    Abort {
        sizes: Vec<u64>,
        seed: u64,
    },
    /// Reserve new keys and, last, one that is taken: all of it must come to nothing.
    Clash {
        sizes: Vec<u64>,
        taken: usize,
    },
    /// Write some bytes of one anew and journal them.
    Rewrite {
        which: usize,
        at: u64,
        bytes: u64,
        seed: u64,
    },
    /// Punch and delete one, or delete it alone.
    Free {
        which: usize,
        punch: bool,
    },
    /// Delete one, then drop the transaction.
    AbortFree {
        which: usize,
    },
    /// Make it durable: what was freed before may be reused from now on.
    Sync,
    Reopen,
}

fn size() -> impl Strategy<Value = u64> {
    // Around the edges of a page, a few pages, and around what is moved to a boundary of large pages.
    prop_oneof![
        5 => 1..200_u64,
        5 => 65_516..65_560_u64,
        5 => Just(65_536),
        5 => 1..600_000_u64,
        5 => Just(3 * 65_536),
        1 => (32 << 20) - 70_000..(32 << 20) + 70_000_u64,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = || vec(size(), 1..4);
    prop_oneof![
        4 => (sizes(), any::<u64>()).prop_map(|(sizes, seed)| Step::Put { sizes, seed }),
        2 => (sizes(), any::<u64>()).prop_map(|(sizes, seed)| Step::Abort { sizes, seed }),
        1 => (sizes(), any::<usize>()).prop_map(|(sizes, taken)| Step::Clash { sizes, taken }),
        2 => (any::<usize>(), any::<u64>(), 1..100_000_u64, any::<u64>())
            .prop_map(|(which, at, bytes, seed)| Step::Rewrite { which, at, bytes, seed }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, punch)| Step::Free { which, punch }),
        1 => any::<usize>().prop_map(|which| Step::AbortFree { which }),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

struct Run {
    folder: tempfile::TempDir,
    extents: Option<Arc<Shared<Extents>>>,
    model: BTreeMap<String, Vec<u8>>,
    names: u64,
}

impl Run {
    fn extents(&self) -> &Extents {
        self.extents.as_ref().unwrap()
    }

    fn nth(&self, which: usize) -> Option<String> {
        (!self.model.is_empty()).then(|| self.model.keys().nth(which % self.model.len()).unwrap().clone())
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        // Spread over the key space, so that neighbours in the tree are not neighbours in time.
        format!("{:02x}-{}", self.names.wrapping_mul(97) % 256, self.names)
    }

    /// Reserves and fills; gives what the model would hold after a commit.
    fn fill(&self, txn: &ExtentsWrite<'_>, name: &str, sizes: &[u64], seed: u64) -> Vec<(String, Vec<u8>)> {
        let writer = self.extents().open_writer().unwrap();
        let specs = specs(name, sizes);
        let placed = txn.reserve(&writer, seed, BLOCK_BYTES, &specs).unwrap();
        let mut filled = Vec::new();
        for (n, (spec, extent)) in specs.into_iter().zip(&placed).enumerate() {
            assert_eq!(txn.locate(&spec.key).unwrap(), Some(*extent));
            let bytes = pattern(seed ^ n as u64, spec.data_bytes);
            writer.write_at(extent, 0, &bytes).unwrap();
            writer.journal(extent, 0, crc32c::crc32c(&bytes)).unwrap();
            let header = writer.read_header(extent).unwrap().unwrap();
            assert_eq!((header.owner, header.index, header.data_bytes), (seed, n as u32, spec.data_bytes));
            filled.push((spec.key, bytes));
        }
        filled
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put { sizes, seed } => {
                let name = self.new_name();
                let txn = self.extents().begin_reserve().unwrap();
                let filled = self.fill(&txn, &name, &sizes, seed);
                txn.commit().unwrap();
                self.model.extend(filled);
            }
            Step::Abort { sizes, seed } => {
                let name = self.new_name();
                let txn = self.extents().begin_reserve().unwrap();
                self.fill(&txn, &name, &sizes, seed);
            }
            Step::Clash { sizes, taken } => {
                let Some(taken) = self.nth(taken) else { return };
                let mut specs = specs(&self.new_name(), &sizes);
                specs.push(ExtentSpec { key: taken, data_bytes: 70_000 });
                let writer = self.extents().open_writer().unwrap();
                let txn = self.extents().begin_reserve().unwrap();
                assert!(matches!(txn.reserve(&writer, 1, BLOCK_BYTES, &specs), Err(Error::BadExtent { .. })));
                // Even one who ignores the error can't commit half of it.
                assert!(matches!(txn.commit(), Err(Error::Engine { .. })));
            }
            Step::Rewrite { which, at, bytes, seed } => {
                let Some(key) = self.nth(which) else { return };
                let extent = self.extents().locate(&key).unwrap().unwrap();
                let writer = self.extents().open_writer().unwrap();
                let at = at % extent.data_bytes;
                let new = pattern(seed, bytes.min(extent.data_bytes - at));
                writer.write_at(&extent, at, &new).unwrap();
                let old = self.model.get_mut(&key).unwrap();
                old[at as usize..at as usize + new.len()].copy_from_slice(&new);
                writer.journal(&extent, 0, crc32c::crc32c(old)).unwrap();
                writer.sync().unwrap();
            }
            Step::Free { which, punch } => {
                let Some(key) = self.nth(which) else { return };
                if punch {
                    free(self.extents(), std::slice::from_ref(&key)).unwrap();
                } else {
                    let txn = self.extents().begin_free().unwrap();
                    assert!(txn.delete(&key).unwrap());
                    assert!(!txn.delete(&key).unwrap());
                    txn.commit().unwrap();
                }
                self.model.remove(&key);
            }
            Step::AbortFree { which } => {
                let Some(key) = self.nth(which) else { return };
                let txn = self.extents().begin_free().unwrap();
                assert!(txn.delete(&key).unwrap());
                assert_eq!(txn.locate(&key).unwrap(), None);
            }
            Step::Sync => self.extents().sync().unwrap(),
            Step::Reopen => {
                self.extents = None;
                self.extents = Some(open_extents(self.folder.path()));
            }
        }
    }

    /// Every extent is where it was, whole, apart from the others, and reads alike in each way.
    fn check(&self) {
        let extents = self.extents();
        let txn = extents.begin_free().unwrap();
        assert!(txn.keys().unwrap().iter().eq(self.model.keys()));
        drop(txn);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for (key, bytes) in &self.model {
            let extent = extents.locate(key).unwrap().unwrap();
            assert_eq!(extent.data_bytes, bytes.len() as u64);
            assert!(read(extents, &extent) == *bytes, "{key} has changed");
            assert!(*Mapping::side_by_side(extents.reader(), &[extent]).unwrap() == **bytes, "{key} maps to something else");
            let header = extents.reader().read_header(&extent).unwrap().unwrap();
            let journal = extents.reader().read_journal(&extent, &header).unwrap();
            assert_eq!(journal.len(), header.blocks());
            assert_eq!(journal[0], Some(crc32c::crc32c(bytes)));
            taken.push((extent.page_offset(), extent.data_offset() + extent.data_bytes));
        }
        taken.sort_unstable();
        assert!(taken.is_sorted_by(|a, b| a.1 <= b.0), "extents overlap: {taken:?}");
        assert_eq!(extents.locate("no such key").unwrap(), None);
    }
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Config::default() })]

    #[test]
    fn extents_hold_what_the_model_holds_after_every_step(steps in vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let extents = Some(open_extents(folder.path()));
        let mut run = Run { folder, extents, model: BTreeMap::new(), names: 0 };
        for step in steps {
            run.step(step);
            run.check();
        }
    }
}

#[test]
fn a_spec_that_can_not_be_an_extent_is_refused_and_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let writer = extents.open_writer().unwrap();
    let refused = [
        (0, BLOCK_BYTES),
        (u64::MAX, BLOCK_BYTES),
        (u64::MAX - 65_000, BLOCK_BYTES),
        (3 << 30, BLOCK_BYTES),
        (1 << 20, 0),
        // More blocks than the header region has journal entries.
        (1 << 30, 4096),
    ];
    for (data_bytes, block_bytes) in refused {
        let txn = extents.begin_reserve().unwrap();
        let specs =
            [ExtentSpec { key: "good".to_owned(), data_bytes: 1 << 20 }, ExtentSpec { key: "bad".to_owned(), data_bytes }];
        let result = txn.reserve(&writer, 1, block_bytes, &specs);
        assert!(matches!(result, Err(Error::BadExtent { .. })), "{data_bytes} in blocks of {block_bytes}: {result:?}");
        drop(txn);
        assert_eq!(extents.locate("good").unwrap(), None);
    }
}

#[test]
fn a_range_outside_the_extent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let extents = open_extents(folder.path());
    let writer = extents.open_writer().unwrap();
    let extent = reserve(&extents, 1, "a", &[1000]).unwrap()[0];
    for (offset, bytes) in [(0, 1001), (1000, 1), (1001, 0), (u64::MAX, 1), (u64::MAX, 0)] {
        assert!(writer.write_at(&extent, offset, &vec![1; bytes]).is_err());
        assert!(writer.read_at(&extent, offset, &mut vec![0; bytes]).is_err());
    }
    writer.write_at(&extent, 1000, &[]).unwrap();
    assert!(writer.journal(&extent, 8176, 0).is_err());
    assert!(writer.journal(&extent, usize::MAX, 0).is_err());
    // A refused range is the caller's error, not the disk's.
    writer.sync().unwrap();
}
