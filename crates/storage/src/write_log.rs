//! A log of what was written in place and what was made durable, for tests that take away what a power loss could: only with the feature
//! `fail-points`, and only where `MODEL_CACHE_WRITE_LOG` names a file.
//!
//! All processes that work on a store append to that one file, a record by one write, before what it tells of happens; so its order is one
//! over all of them. What a write replaces is kept beside it, in a file of each process.

#[cfg(feature = "fail-points")]
pub use told::{WriteEvent, read_write_log};
#[cfg(feature = "fail-points")]
pub(crate) use told::{committed, committing, freed, synced, writing};

#[cfg(not(feature = "fail-points"))]
mod untold {
    use crate::extent::Extent;
    use std::fs::File;

    pub(crate) fn writing(_: &File, _: &Extent, _: u64, _: usize) {}
    pub(crate) fn freed(_: &Extent) {}
    pub(crate) fn committing() {}
    pub(crate) fn committed() {}
    pub(crate) fn synced<T>(_: bool, sync: impl FnOnce() -> T) -> T {
        sync()
    }
}
#[cfg(not(feature = "fail-points"))]
pub(crate) use untold::{committed, committing, freed, synced, writing};

#[cfg(feature = "fail-points")]
mod told {
    use crate::extent::Extent;
    use std::{
        fs::File,
        io::{self, Write},
        os::unix::fs::FileExt,
        path::{Path, PathBuf},
        sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    };

    /// Bytes of a record. They divide a page, so that a process killed in the middle of its write leaves a whole one or none: the
    /// kernel looks for a fatal signal between pages.
    const RECORD_BYTES: usize = 64;

    /// One record of the log, in its order.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum WriteEvent {
        /// Bytes of an extent are about to be written.
        Write {
            /// The extent.
            extent: Extent,
            /// Where in the data file.
            offset: u64,
            /// What is there before.
            before: Vec<u8>,
        },
        /// An extent's pages are about to be given up: from here on they are libmdbx's.
        Freed {
            /// The extent.
            extent: Extent,
        },
        /// A transaction of the extents' environment is about to be committed, or the environment was opened.
        Committing {
            /// Tells which, together with the end's.
            number: (u32, u64),
        },
        /// It was.
        Committed {
            /// That of its beginning.
            number: (u32, u64),
        },
        /// A sync begins.
        Syncing {
            /// Tells which, together with the end's.
            number: (u32, u64),
            /// Whether it is libmdbx's, which does nothing where nothing was committed since the last one.
            is_engines: bool,
        },
        /// A sync has succeeded.
        Synced {
            /// That of its beginning.
            number: (u32, u64),
        },
    }

    struct State {
        log: File,
        images: File,
        /// Bytes of `images`.
        images_bytes: u64,
        /// Given to the last thing that has a beginning and an end.
        number: u64,
    }

    static STATE: OnceLock<Option<Mutex<State>>> = OnceLock::new();
    thread_local! {
        /// The commit this thread is at.
        static COMMIT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    const WRITE: u64 = 1;
    const FREED: u64 = 2;
    const COMMITTING: u64 = 3;
    const COMMITTED: u64 = 4;
    const SYNCING: u64 = 5;
    const SYNCED: u64 = 6;

    fn images(log: &Path, process: u32) -> PathBuf {
        let mut name = log.as_os_str().to_owned();
        name.push(format!(".{process}"));
        name.into()
    }

    fn open() -> Option<Mutex<State>> {
        let path = PathBuf::from(std::env::var_os("MODEL_CACHE_WRITE_LOG")?);
        let append = |path: &Path| {
            let opened = File::options().create(true).append(true).open(path);
            opened.unwrap_or_else(|error| panic!("MODEL_CACHE_WRITE_LOG: {}: {error}", path.display()))
        };
        let images = append(&images(&path, std::process::id()));
        let images_bytes = images.metadata().map_or(0, |metadata| metadata.len());
        Some(Mutex::new(State { log: append(&path), images, images_bytes, number: 0 }))
    }

    fn state() -> Option<MutexGuard<'static, State>> {
        let state = STATE.get_or_init(open).as_ref()?;
        Some(state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    impl State {
        fn append(&mut self, kind: u64, extent: Option<&Extent>, rest: [u64; 4]) {
            let (page, data_bytes) = extent.map_or((0, 0), |extent| (u64::from(extent.page), extent.data_bytes));
            let fields = [kind, u64::from(std::process::id()), page, data_bytes, rest[0], rest[1], rest[2], rest[3]];
            let mut record = [0; RECORD_BYTES];
            for (place, field) in record.chunks_exact_mut(8).zip(fields) {
                place.copy_from_slice(&field.to_le_bytes());
            }
            self.log.write_all(&record).expect("the log of writes can be written");
        }

        fn next_number(&mut self) -> u64 {
            self.number += 1;
            self.number
        }
    }

    pub(crate) fn writing(file: &File, extent: &Extent, offset: u64, bytes: usize) {
        let Some(mut state) = state() else { return };
        let mut before = vec![0; bytes];
        let mut read = 0;
        // Beyond the end of the file there is nothing, which is zeros.
        while let Ok(more @ 1..) = file.read_at(&mut before[read..], offset + read as u64) {
            read += more;
        }
        state.images.write_all(&before).expect("the log of writes can be written");
        let at = state.images_bytes;
        state.images_bytes += bytes as u64;
        state.append(WRITE, Some(extent), [offset, bytes as u64, at, 0]);
    }

    pub(crate) fn freed(extent: &Extent) {
        if let Some(mut state) = state() {
            state.append(FREED, Some(extent), [0; 4]);
        }
    }

    pub(crate) fn committing() {
        if let Some(mut state) = state() {
            let number = state.next_number();
            COMMIT.set(number);
            state.append(COMMITTING, None, [number, 0, 0, 0]);
        }
    }

    pub(crate) fn committed() {
        if let Some(mut state) = state() {
            state.append(COMMITTED, None, [COMMIT.get(), 0, 0, 0]);
        }
    }

    /// Runs `sync`; whoever it fails for has lost its process, or its fill.
    pub(crate) fn synced<T, E>(is_engines: bool, sync: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let number = state().map(|mut state| {
            let number = state.next_number();
            state.append(SYNCING, None, [number, u64::from(is_engines), 0, 0]);
            number
        });
        let synced = sync()?;
        if let (Some(number), Some(mut state)) = (number, state()) {
            state.append(SYNCED, None, [number, 0, 0, 0]);
        }
        Ok(synced)
    }

    /// The log at `path`, of which nobody writes any more.
    ///
    /// # Errors
    /// Those of reading it, and for a record that is none.
    pub fn read_write_log(path: &Path) -> io::Result<Vec<WriteEvent>> {
        let records = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut open_images = std::collections::HashMap::new();
        let mut events = Vec::new();
        for record in records.chunks(RECORD_BYTES) {
            let bad = || io::Error::other(format!("{record:?} is no record of the log of writes"));
            let fields: Vec<u64> =
                record.chunks_exact(8).map(|field| u64::from_le_bytes(field.try_into().expect("8 bytes"))).collect();
            let [kind, process, page, data_bytes, a, b, c, _] = fields[..] else { return Err(bad()) };
            let process = process as u32;
            let extent = Extent { page: page as u32, data_bytes };
            events.push(match kind {
                WRITE => {
                    let images = match open_images.entry(process) {
                        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                        std::collections::hash_map::Entry::Vacant(entry) => entry.insert(File::open(images(path, process))?),
                    };
                    let mut before = vec![0; b as usize];
                    images.read_exact_at(&mut before, c)?;
                    WriteEvent::Write { extent, offset: a, before }
                }
                FREED => WriteEvent::Freed { extent },
                COMMITTING => WriteEvent::Committing { number: (process, a) },
                COMMITTED => WriteEvent::Committed { number: (process, a) },
                SYNCING => WriteEvent::Syncing { number: (process, a), is_engines: b == 1 },
                SYNCED => WriteEvent::Synced { number: (process, a) },
                _ => return Err(bad()),
            });
        }
        Ok(events)
    }
}
