//! A model of how blobs are filled, read, removed and freed, tried in every order there is.
//!
//! What several processes do to one store is coordinated by leases and by rows that are looked up again under them: hand-made, and over
//! processes, where no checker of threads sees it. So it is written down here once more, small: a step is one transaction, one lock call or one access to
//! pages, as in `fill.rs`, `read.rs` and `free.rs`. Every interleaving of five processes is walked through, and at every step each of
//! them may be killed. That the model is able to fail is shown by leaving out, one at a time, what the design's rules ask for.

use std::collections::{HashSet, VecDeque};

/// A blob's number; 0 is nobody's.
type Id = u8;
/// Which content: two of them share the pages.
type Key = usize;

const PAGES: usize = 2;
const IDS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum State {
    Filling,
    Sealed,
    Doomed,
    Freeing,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Row {
    id: Id,
    state: State,
    page: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Page {
    /// Whose extent it is part of.
    owner: Id,
    /// Whose bytes it has.
    bytes: Id,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Lease {
    shared: u8,
    exclusive: bool,
}

/// Where a process is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum At {
    Acquire(Key),
    LeaseFill(Key, Id),
    RecheckFill(Key, Id),
    Reserve(Key, Id),
    Write(Key, Id),
    Seal(Key, Id),
    EndFill(Id),
    LookUp(Key),
    LeaseRead(Key, Id, Option<usize>),
    RecheckRead(Key, Id, Option<usize>),
    Read(Key, Id, usize, u8),
    EndRead(Key, Id),
    FreeIfDoomed(Key, Id),
    Remove(Key),
    LeaseFree(Key, Id),
    RecheckFree(Key, Id),
    MarkFreeing(Key, Id),
    Punch(Key, Id),
    DeleteChunk(Key, Id),
    DeleteRow(Key, Id),
    EndFree(Id),
    Collect(Key),
    /// With the writer's place of the extents, or, where the rule is left out, without.
    LookForOrphans,
    FreeOrphans([Id; 2]),
    Over,
}

/// What a rule asks for, left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeftOut {
    Nothing,
    RecheckOfReader,
    RecheckOfFiller,
    RecheckOfFreer,
    LeaseUntilTheLastWrite,
    RowsAfterTheWritersPlace,
    PunchBeforeDelete,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    rows: [Option<Row>; 2],
    next_id: Id,
    /// The page of each blob's chunk.
    chunks: [Option<usize>; IDS],
    pages: [Page; PAGES],
    leases: [Lease; IDS],
    /// Which process has the writer's place of the extents.
    writer: Option<usize>,
    processes: [At; 5],
}

impl World {
    fn row(&self, key: Key, id: Id) -> Option<Row> {
        self.rows[key].filter(|row| row.id == id)
    }

    fn lease_exclusively(&mut self, id: Id) -> bool {
        let lease = &mut self.leases[id as usize];
        let free = lease.shared == 0 && !lease.exclusive;
        lease.exclusive |= free;
        free
    }

    fn let_go(&mut self, id: Id) {
        self.leases[id as usize].exclusive = false;
    }

    /// The world after process `n` has done its next step; `None` if it has to wait, or is over.
    fn step(&self, n: usize, left_out: LeftOut) -> Result<Option<Self>, String> {
        let mut world = self.clone();
        let next = match world.processes[n] {
            At::Over => return Ok(None),
            At::Acquire(key) => match world.rows[key] {
                None if world.next_id as usize == IDS => At::Over,
                None => {
                    let id = world.next_id;
                    world.next_id += 1;
                    world.rows[key] = Some(Row { id, state: State::Filling, page: None });
                    assert!(world.lease_exclusively(id), "a new number is leased");
                    At::Reserve(key, id)
                }
                Some(Row { id, state: State::Filling, .. }) => At::LeaseFill(key, id),
                Some(Row { id, state: State::Freeing, .. }) => At::LeaseFree(key, id),
                Some(row) => {
                    world.rows[key] = Some(Row { state: State::Sealed, ..row });
                    At::Over
                }
            },
            At::LeaseFill(key, id) => match world.lease_exclusively(id) {
                true if left_out == LeftOut::RecheckOfFiller => At::Reserve(key, id),
                true => At::RecheckFill(key, id),
                false => At::Over,
            },
            At::RecheckFill(key, id) => match world.row(key, id) {
                Some(Row { state: State::Filling, .. }) => At::Reserve(key, id),
                _ => {
                    world.let_go(id);
                    At::Acquire(key)
                }
            },
            At::Reserve(key, id) => {
                if world.writer.is_some() {
                    return Ok(None);
                }
                if world.chunks[id as usize].is_none() {
                    match world.pages.iter().position(|page| page.owner == 0) {
                        Some(page) => {
                            world.chunks[id as usize] = Some(page);
                            world.pages[page].owner = id;
                        }
                        // No space: its row goes, by the same steps.
                        None => {
                            world.processes[n] = At::MarkFreeing(key, id);
                            return Ok(Some(world));
                        }
                    }
                }
                if left_out == LeftOut::LeaseUntilTheLastWrite {
                    // The future is dropped, and with it the lease; the write is on its way.
                    world.let_go(id);
                }
                At::Write(key, id)
            }
            At::Write(key, id) => {
                let page = world.chunks[id as usize];
                let page = page
                    .filter(|page| world.pages[*page].owner == id)
                    .ok_or(format!("{id} writes into pages that are not its own"))?;
                if !matches!(world.row(key, id), Some(Row { state: State::Filling, .. })) {
                    return Err(format!("{id} writes, and its row is {:?}", world.rows[key]));
                }
                world.pages[page].bytes = id;
                At::Seal(key, id)
            }
            At::Seal(key, id) => {
                if let Some(Row { state: State::Filling, .. }) = world.row(key, id) {
                    world.rows[key] = Some(Row { id, state: State::Sealed, page: world.chunks[id as usize] });
                }
                At::EndFill(id)
            }
            At::EndFill(id) => {
                world.let_go(id);
                At::Over
            }
            At::LookUp(key) => match world.rows[key] {
                Some(Row { id, state: State::Sealed, page }) => At::LeaseRead(key, id, page),
                _ => At::Over,
            },
            At::LeaseRead(key, id, page) => match world.leases[id as usize].exclusive {
                true => At::Over,
                false => {
                    world.leases[id as usize].shared += 1;
                    At::RecheckRead(key, id, page)
                }
            },
            At::RecheckRead(key, id, before) => {
                let found = match world.row(key, id) {
                    _ if left_out == LeftOut::RecheckOfReader => before,
                    Some(Row { state: State::Sealed, page, .. }) => page,
                    _ => None,
                };
                match found {
                    Some(page) => At::Read(key, id, page, 2),
                    None => At::EndRead(key, id),
                }
            }
            At::Read(key, id, page, times) => {
                if world.pages[page] != (Page { owner: id, bytes: id }) {
                    return Err(format!("a reader of {id} sees {:?}", world.pages[page]));
                }
                if times == 1 { At::EndRead(key, id) } else { At::Read(key, id, page, times - 1) }
            }
            At::EndRead(key, id) => {
                world.leases[id as usize].shared -= 1;
                At::FreeIfDoomed(key, id)
            }
            At::FreeIfDoomed(key, id) => match world.row(key, id) {
                Some(Row { state: State::Doomed, .. }) => At::LeaseFree(key, id),
                _ => At::Over,
            },
            At::Remove(key) => match world.rows[key] {
                Some(row @ Row { id, state: State::Sealed, .. }) => {
                    world.rows[key] = Some(Row { state: State::Doomed, ..row });
                    At::LeaseFree(key, id)
                }
                _ => At::Over,
            },
            At::LeaseFree(key, id) => match world.lease_exclusively(id) {
                true => At::RecheckFree(key, id),
                false => At::Over,
            },
            At::RecheckFree(key, id) => match world.row(key, id) {
                _ if left_out == LeftOut::RecheckOfFreer => At::MarkFreeing(key, id),
                Some(row) if row.state != State::Sealed => At::MarkFreeing(key, id),
                _ => At::EndFree(id),
            },
            // The transaction looks once more: between the lease and it, a pull may have wanted the content again.
            At::MarkFreeing(key, id) => match world.row(key, id) {
                Some(Row { state: State::Sealed, .. }) if left_out == LeftOut::RecheckOfFreer => {
                    return Err(format!("{id} is freed, and has a name again"));
                }
                Some(row) if row.state != State::Sealed => {
                    world.rows[key] = Some(Row { state: State::Freeing, ..row });
                    if left_out == LeftOut::PunchBeforeDelete { At::DeleteChunk(key, id) } else { At::Punch(key, id) }
                }
                _ => At::EndFree(id),
            },
            At::Punch(key, id) => {
                if let Some(page) = world.chunks[id as usize] {
                    world.pages[page].bytes = 0;
                }
                At::DeleteChunk(key, id)
            }
            At::DeleteChunk(key, id) => {
                if world.writer.is_some() {
                    return Ok(None);
                }
                if let Some(page) = world.chunks[id as usize] {
                    world.pages[page].owner = 0;
                    if left_out != LeftOut::PunchBeforeDelete {
                        world.chunks[id as usize] = None;
                    }
                }
                At::DeleteRow(key, id)
            }
            At::DeleteRow(key, id) => {
                if left_out == LeftOut::PunchBeforeDelete
                    && let Some(page) = world.chunks[id as usize].take()
                {
                    // Punched where the pages were, whoever has them by now.
                    world.pages[page].bytes = 0;
                }
                if world.row(key, id).is_some() {
                    world.rows[key] = None;
                }
                At::EndFree(id)
            }
            At::EndFree(id) => {
                world.let_go(id);
                At::Over
            }
            At::Collect(key) => match world.rows[key] {
                Some(Row { id, state, .. }) if state != State::Sealed => At::LeaseFree(key, id),
                _ => At::Over,
            },
            At::LookForOrphans => {
                if world.writer.is_some() {
                    return Ok(None);
                }
                if left_out != LeftOut::RowsAfterTheWritersPlace {
                    world.writer = Some(n);
                }
                At::FreeOrphans(world.rows.map(|row| row.map_or(0, |row| row.id)))
            }
            At::FreeOrphans(known) => {
                for id in 1..IDS {
                    let lease = world.leases[id];
                    if let Some(page) = world.chunks[id]
                        && !known.contains(&(id as Id))
                        && lease == Lease::default()
                    {
                        world.pages[page] = Page::default();
                        world.chunks[id] = None;
                    }
                }
                world.writer = None;
                At::Over
            }
        };
        world.processes[n] = next;
        Ok(Some(world))
    }

    /// The world after process `n` was killed: the kernel drops its leases, and its place as a writer.
    fn kill(&self, n: usize) -> Self {
        let mut world = self.clone();
        match world.processes[n] {
            At::RecheckFill(_, id) | At::Reserve(_, id) | At::Write(_, id) | At::Seal(_, id) | At::EndFill(id) => {
                world.let_go(id)
            }
            At::RecheckRead(_, id, _) | At::Read(_, id, ..) | At::EndRead(_, id) => world.leases[id as usize].shared -= 1,
            At::RecheckFree(_, id) | At::MarkFreeing(_, id) | At::Punch(_, id) | At::DeleteChunk(_, id) => world.let_go(id),
            At::DeleteRow(_, id) | At::EndFree(id) => world.let_go(id),
            _ => {}
        }
        if world.writer == Some(n) {
            world.writer = None;
        }
        world.processes[n] = At::Over;
        world
    }

    /// What must hold at all times.
    fn check(&self) -> Result<(), String> {
        for row in self.rows.into_iter().flatten().filter(|row| row.state == State::Sealed) {
            let page = row.page.ok_or(format!("{} is sealed without pages", row.id))?;
            if self.pages[page] != (Page { owner: row.id, bytes: row.id }) || self.chunks[row.id as usize] != Some(page) {
                return Err(format!("{} is sealed, and its page is {:?}", row.id, self.pages[page]));
            }
        }
        Ok(())
    }

    /// That one who comes when all others are gone frees what no row speaks of, and what nobody goes on with.
    fn check_end(&self) -> Result<(), String> {
        let mut world = self.clone();
        for work in [At::Collect(0), At::Collect(1), At::LookForOrphans] {
            world.processes[0] = work;
            while let Some(next) = world.step(0, LeftOut::Nothing)? {
                world = next;
            }
        }
        let sealed = world.rows.into_iter().flatten().filter(|row| row.state == State::Sealed).count();
        let rows = world.rows.into_iter().flatten().count();
        let pages = world.pages.iter().filter(|page| page.owner != 0).count();
        if sealed == rows && pages == sealed && world.leases == [Lease::default(); IDS] {
            Ok(())
        } else {
            Err(format!("at the end {sealed} sealed of {rows} rows, {pages} pages in use, leases {:?}", world.leases))
        }
    }
}

/// Walks through every order of steps and kills; how many worlds there are, or what is wrong in one of them.
fn explore(start: World, left_out: LeftOut) -> Result<usize, String> {
    let mut seen = HashSet::from([start.clone()]);
    let mut waiting = VecDeque::from([start]);
    while let Some(world) = waiting.pop_front() {
        let mut next = Vec::new();
        for n in 0..world.processes.len() {
            next.extend(world.step(n, left_out)?);
            if world.processes[n] != At::Over {
                next.push(world.kill(n));
            }
        }
        if world.processes == [At::Over; 5] {
            world.check_end()?;
        } else if next.is_empty() {
            return Err("everybody waits".to_owned());
        }
        for world in next {
            world.check()?;
            if seen.insert(world.clone()) {
                waiting.push_back(world);
            }
        }
    }
    Ok(seen.len())
}

/// A store with one sealed file, and five processes about to do these.
fn start(processes: [At; 5]) -> World {
    let mut world = World {
        rows: [Some(Row { id: 1, state: State::Sealed, page: Some(0) }), None],
        next_id: 2,
        chunks: [None; IDS],
        pages: [Page::default(); PAGES],
        leases: [Lease::default(); IDS],
        writer: None,
        processes,
    };
    world.chunks[1] = Some(0);
    world.pages[0] = Page { owner: 1, bytes: 1 };
    world
}

/// Five processes at once: who reads, removes, pulls the same and other content again, and collects garbage.
const MIXES: [[At; 5]; 4] = [
    [At::LookUp(0), At::Remove(0), At::Acquire(0), At::Acquire(1), At::LookForOrphans],
    [At::LookUp(0), At::Remove(0), At::Acquire(1), At::Collect(1), At::Acquire(1)],
    [At::Acquire(1), At::Acquire(1), At::Collect(1), At::LookUp(1), At::Remove(1)],
    [At::LookUp(0), At::LookUp(0), At::Remove(0), At::Acquire(0), At::Collect(0)],
];

#[test]
fn no_order_of_steps_and_kills_shows_a_reader_other_bytes_or_loses_a_file_or_space() {
    for mix in MIXES {
        let worlds = explore(start(mix), LeftOut::Nothing).unwrap_or_else(|wrong| panic!("{mix:?}: {wrong}"));
        println!("{worlds} worlds of {mix:?}");
        assert!(worlds > 1000, "{worlds}");
    }
}

#[test]
fn every_rule_that_is_left_out_of_the_model_is_missed_in_some_order() {
    use LeftOut::*;
    for left_out in
        [RecheckOfReader, RecheckOfFiller, RecheckOfFreer, LeaseUntilTheLastWrite, RowsAfterTheWritersPlace, PunchBeforeDelete]
    {
        let wrong = MIXES.into_iter().find_map(|mix| explore(start(mix), left_out).err());
        println!("{left_out:?}: {wrong:?}");
        assert!(wrong.is_some(), "{left_out:?} is missed by nothing");
    }
}
