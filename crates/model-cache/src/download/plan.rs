//! Which blocks of a file to fetch next, and how many at once: values and arithmetic, no I/O.

use crate::record::BLOCK_BYTES;
use std::{collections::BTreeMap, ops::Range, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Missing,
    /// Some connection has asked for it.
    Taken,
    /// Its bytes arrive at one connection.
    Arriving,
    Landed,
}

/// What is written of a block whose connection broke: another one goes on there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// Bytes from the block's start.
    pub(crate) bytes: u64,
    /// CRC32C of them.
    pub(crate) crc: u32,
}

/// The blocks of one file.
#[derive(Debug)]
pub(crate) struct Plan {
    blocks: Vec<Block>,
    /// All blocks before this one have landed.
    prefix: usize,
    /// No block before this one is to be taken.
    first_missing: usize,
    /// Connections that have not left. Counted here, so that who leaves and what is left to do are known in one look.
    connections: usize,
    /// Of blocks that have not landed and that no connection writes from the start.
    begun: BTreeMap<u64, Begun>,
    landed: u64,
    most_here: u64,
}

impl Plan {
    /// The plan of a file for at most `connections`, fewer where there is less to do.
    pub(crate) fn new(landed: &[bool], connections: usize) -> Self {
        let blocks = landed.iter().map(|landed| if *landed { Block::Landed } else { Block::Missing }).collect();
        let landed = landed.iter().filter(|landed| **landed).count() as u64;
        let (begun, most_here) = (BTreeMap::new(), landed * BLOCK_BYTES);
        let mut plan = Self { blocks, prefix: 0, first_missing: 0, connections: 0, begun, landed, most_here };
        plan.connections = connections.min(plan.missing_blocks());
        plan.advance();
        plan
    }

    /// Takes the next run of missing blocks, at most `most` of them, from the front: the digest follows the front.
    pub(crate) fn take(&mut self, most: usize) -> Option<Range<u64>> {
        let start = (self.first_missing..self.blocks.len()).find(|&block| self.blocks[block] == Block::Missing)?;
        // A begun block only as the first: bytes of it that come after another's end would be written anew.
        let goes_on = |block: &usize| {
            self.blocks[*block] == Block::Missing && (*block == start || !self.begun.contains_key(&(*block as u64)))
        };
        let run = (start..self.blocks.len()).take(most).take_while(goes_on).count();
        self.blocks[start..start + run].fill(Block::Taken);
        self.first_missing = start + run;
        Some(start as u64..(start + run) as u64)
    }

    /// As [`take`](Self::take), but no more than an equal share of what is left among so many, so that all end together; a connection
    /// that gets none has left.
    pub(crate) fn take_or_leave(&mut self, most: usize, among: usize) -> Option<Range<u64>> {
        let unasked = self.blocks[self.first_missing..].iter().filter(|block| **block == Block::Missing).count();
        let taken = self.take(most.min(unasked.div_ceil(among.max(1))).max(1));
        if taken.is_none() {
            self.leave();
        }
        taken
    }

    /// A connection leaves because another does the rest.
    pub(crate) fn leave(&mut self) {
        self.connections -= 1;
    }

    /// Lets a connection that can't go on leave, unless it is the last: what it gave back is the others' to take.
    pub(crate) fn retire(&mut self) -> bool {
        let others = self.connections > 1;
        if others {
            self.leave();
        }
        others
    }

    /// Connections that have not left.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Gives back what of `range` was taken and has not been claimed.
    pub(crate) fn give_back(&mut self, range: Range<u64>) {
        for block in range.start as usize..range.end as usize {
            if self.blocks[block] == Block::Taken {
                self.blocks[block] = Block::Missing;
                self.first_missing = self.first_missing.min(block);
            }
        }
    }

    pub(crate) fn land(&mut self, block: u64) {
        self.blocks[block as usize] = Block::Landed;
        self.landed += 1;
        self.begun.remove(&block);
        self.count();
        self.advance();
    }

    /// Lets one connection, at which `block` arrives from its start, write it; none if another does or did. Gives the bytes that were
    /// begun and are now written anew.
    ///
    /// No block is written by two at once: what the later one writes is not what the digest is made of.
    pub(crate) fn claim(&mut self, block: u64) -> Option<u64> {
        self.arrive(block).then(|| self.begun.remove(&block).map_or(0, |begun| begun.bytes))
    }

    /// Lets one connection write the rest of a begun block; false if another does or did, or began it anew meanwhile.
    pub(crate) fn claim_rest(&mut self, block: u64, begun: Begun) -> bool {
        self.begun(block) == Some(begun) && self.arrive(block)
    }

    /// What was begun of a block.
    pub(crate) fn begun(&self, block: u64) -> Option<Begun> {
        self.begun.get(&block).copied()
    }

    /// Gives back a claimed block of which so much is written, unless it has landed; whether it did.
    pub(crate) fn unclaim(&mut self, block: u64, begun: Option<Begun>) -> bool {
        let broken = self.blocks[block as usize] == Block::Arriving;
        if broken {
            self.blocks[block as usize] = Block::Missing;
            self.first_missing = self.first_missing.min(block as usize);
            self.begun.remove(&block);
            self.begun.extend(begun.filter(|begun| begun.bytes > 0).map(|begun| (block, begun)));
            self.count();
        }
        broken
    }

    /// The most bytes that were ever here, begun blocks' included. It never falls, so who waits for it to rise waits for progress.
    pub(crate) fn most_here(&self) -> u64 {
        self.most_here
    }

    fn arrive(&mut self, block: u64) -> bool {
        let free = matches!(self.blocks[block as usize], Block::Missing | Block::Taken);
        if free {
            self.blocks[block as usize] = Block::Arriving;
        }
        free
    }

    fn count(&mut self) {
        let begun: u64 = self.begun.values().map(|begun| begun.bytes).sum();
        self.most_here = self.most_here.max(self.landed * BLOCK_BYTES + begun);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.prefix == self.blocks.len()
    }

    fn missing_blocks(&self) -> usize {
        self.blocks.iter().filter(|block| **block != Block::Landed).count()
    }

    fn advance(&mut self) {
        while self.blocks.get(self.prefix) == Some(&Block::Landed) {
            self.prefix += 1;
        }
    }
}

/// Most blocks asked for in one request.
const MOST_BLOCKS: usize = 8;
/// The share of a request's time its first byte may take before longer requests pay.
const FIRST_BYTE_SHARE: f64 = 0.05;

/// How many blocks the next request should ask for, given how long the last one took to its first byte and for each block.
///
/// One block a request loses least when a connection dies, and is all a near server needs; where the way to the server is
/// long, the request grows until waiting for its first byte is 5 % of it, or 8 blocks.
pub(crate) fn blocks_per_request(first_byte: Duration, per_block: Duration) -> usize {
    if per_block.is_zero() {
        return 1;
    }
    let wanted = first_byte.as_secs_f64() / (FIRST_BYTE_SHARE * per_block.as_secs_f64());
    (wanted.ceil() as usize).clamp(1, MOST_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_far_server_is_asked_for_more_at_once_than_a_near_one() {
        let ms = Duration::from_millis;
        assert_eq!(blocks_per_request(ms(0), ms(5)), 1);
        assert_eq!(blocks_per_request(ms(100), ms(2000)), 1);
        assert_eq!(blocks_per_request(ms(100), ms(500)), 4);
        assert_eq!(blocks_per_request(ms(300), ms(10)), 8);
        assert_eq!(blocks_per_request(ms(300), ms(0)), 1);
    }

    #[test]
    fn the_last_connection_may_not_retire_and_one_that_found_nothing_has_left() {
        let mut plan = Plan::new(&[false, false], 8);
        assert_eq!(plan.connections(), 2);
        let all = plan.take_or_leave(2, 1).unwrap();
        assert_eq!(plan.take_or_leave(2, 1), None);
        plan.give_back(all);
        assert!(!plan.retire());
        assert_eq!(plan.connections(), 1);
    }

    #[test]
    fn a_block_begun_anew_is_no_progress_until_there_is_more_of_it_and_goes_on_only_where_it_stands() {
        let begun = |bytes| Begun { bytes, crc: bytes as u32 };
        let mut plan = Plan::new(&[true, false], 1);
        assert_eq!(plan.claim(1), Some(0));
        assert!(plan.unclaim(1, Some(begun(100))));
        assert_eq!(plan.most_here(), BLOCK_BYTES + 100);
        // Another connection begins it anew and breaks sooner.
        assert_eq!(plan.claim(1), Some(100));
        assert!(plan.unclaim(1, Some(begun(60))));
        assert_eq!(plan.most_here(), BLOCK_BYTES + 100);
        assert!(!plan.claim_rest(1, begun(100)));
        assert!(plan.claim_rest(1, begun(60)) && !plan.claim_rest(1, begun(60)));
        plan.land(1);
        assert_eq!((plan.begun(1), plan.most_here()), (None, 2 * BLOCK_BYTES));
        assert!(!plan.unclaim(1, Some(begun(70))));
    }

    #[test]
    fn a_begun_block_is_the_first_of_a_request_or_none_of_it() {
        let mut plan = Plan::new(&[false; 4], 1);
        assert_eq!(plan.claim(2), Some(0));
        assert!(plan.unclaim(2, Some(Begun { bytes: 1, crc: 7 })));
        assert_eq!([(); 3].map(|()| plan.take(8)), [Some(0..2), Some(2..4), None]);
    }

    #[test]
    fn towards_the_end_each_connection_takes_its_share() {
        let mut plan = Plan::new(&[false; 20], 4);
        let taken: Vec<u64> = std::iter::from_fn(|| plan.take_or_leave(8, 4)).map(|range| range.end - range.start).collect();
        assert_eq!(taken, [5, 4, 3, 2, 2, 1, 1, 1, 1]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take(usize),
        /// The how-manieth range in flight, and how many of its blocks landed before it broke.
        Finish(prop::sample::Index, usize),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            (1usize..5).prop_map(Op::Take),
            (any::<prop::sample::Index>(), 0usize..5).prop_map(|(which, landed)| Op::Finish(which, landed)),
        ];
        prop::collection::vec(op, 0..80)
    }

    proptest! {
        #[test]
        fn no_block_is_taken_twice_at_once_and_every_block_lands_in_the_end(
            landed in prop::collection::vec(any::<bool>(), 1..40),
            ops in ops(),
        ) {
            let mut plan = Plan::new(&landed, 4);
            let mut model: Vec<bool> = landed.clone();
            let mut flying: Vec<Range<u64>> = Vec::new();
            for op in ops {
                match op {
                    Op::Take(most) => if let Some(range) = plan.take(most) {
                        prop_assert!(range.end - range.start <= most as u64 && range.start < range.end);
                        for block in range.clone() {
                            prop_assert!(!model[block as usize]);
                            prop_assert!(!flying.iter().any(|other| other.contains(&block)));
                        }
                        flying.push(range);
                    },
                    Op::Finish(which, count) => if !flying.is_empty() {
                        let range = flying.swap_remove(which.index(flying.len()));
                        for block in range.clone().take(count) {
                            prop_assert!(plan.claim(block).is_some());
                            prop_assert!(plan.claim(block).is_none());
                            plan.land(block);
                            model[block as usize] = true;
                        }
                        if let Some(broken) = range.clone().nth(count) {
                            let begun = Begun { bytes: 1 + count as u64, crc: 7 };
                            let before = plan.begun(broken);
                            prop_assert!(before.is_none_or(|before| plan.claim_rest(broken, before)) && before.is_some() || plan.claim(broken).is_some());
                            let most = plan.most_here();
                            prop_assert!(plan.unclaim(broken, Some(begun)));
                            prop_assert_eq!(plan.begun(broken), Some(begun));
                            prop_assert!(plan.most_here() >= most);
                        }
                        plan.give_back(range);
                    },
                }
                prop_assert_eq!(plan.missing_blocks(), model.iter().filter(|landed| !**landed).count());
            }
            for range in flying.drain(..) {
                plan.give_back(range);
            }
            while let Some(range) = plan.take(3) {
                range.for_each(|block| plan.land(block));
            }
            prop_assert!(plan.is_complete());
        }
    }
}
