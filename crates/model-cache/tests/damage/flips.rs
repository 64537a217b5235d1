//! Single bits flipped anywhere in a small store: none goes unnoticed when what it hit is read with its checks or verified, none makes a
//! wrong byte of a file, and none ends the process.
//!
//! A child process does the flipping, so that a crash is one more outcome and not the end.

use super::common::*;
use hub_fixture::{Content, Hub, Repo};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use storage::{Alignment, StorageRegistry, Table};
use tabagent_model_cache::*;

const EXTENTS: &str = "model_cache_chunks/mdbx.dat";
const RECORDS: &str = "model_cache_manifests/mdbx.dat";
const EXTENTS_PAGE: u64 = 64 << 10;
const RECORDS_PAGE: u64 = 4 << 10;

/// Where flips go, and of a hundred how many.
const PLACES: [(&str, u64); 9] = [
    ("records: meta pages", 10),
    ("records: other pages", 14),
    ("extents: meta pages", 8),
    ("extents: key pages", 4),
    ("extents: headers and journals", 12),
    ("data", 12),
    ("extents: the rest of header regions", 4),
    // Those written last, hence more likely to be in use than what they were copied from.
    ("records: newest pages", 24),
    ("extents: newest key pages", 12),
];

/// What came of a flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// The store does not open, or says that it is damaged.
    Open,
    /// A file's read is an error, or the file is not found.
    Read,
    /// `verify` names it.
    Verify,
    /// Nobody notices, and nothing is changed: bytes nobody uses.
    Unused,
    /// Nobody notices, and nothing of any file is changed: a meta page hit, libmdbx goes by the one before it, as after a crash before the
    /// last commit. What that deletion freed is an orphan again, and gc's.
    Older,
}

impl Verdict {
    const ALL: [(Self, &'static str); 5] =
        [(Self::Open, "OPEN"), (Self::Read, "READ"), (Self::Verify, "VERIFY"), (Self::Unused, "UNUSED"), (Self::Older, "OLDER")];
}

/// The store all flips begin with: two repos of a Hub, an import, content of several sizes with shared names, something removed. Gives
/// the names and contents it has.
fn make(store: &Path) -> Truth {
    let sizes = [("a.bin", 5 * MIB + 100_000), ("b.bin", 70_000), ("c.bin", 65_000), ("config.json", 900)];
    let files = |repo: Repo, seed| {
        sizes.iter().enumerate().fold(repo, |repo, (n, (path, size))| repo.file(*path, Content::seeded(seed + n as u64, *size)))
    };
    // b.bin is the same in both.
    let hub = Hub::start(vec![
        files(Repo::new("org/one"), 1),
        files(Repo::new("org/two"), 1).file("d.bin", Content::seeded(9, 80_000)),
    ]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cache = cache(store, &hub);
    for repo in ["org/one", "org/two"] {
        runtime.block_on(cache.pull(repo).all(true).run()).unwrap();
    }
    let sources = tempfile::tempdir().unwrap();
    for (name, size) in [("mine.bin", 300_000), ("gone.bin", 400_000), ("small.bin", 3_000)] {
        fs::write(sources.path().join(name), Content::seeded(size, size).read(0..size).unwrap()).unwrap();
    }
    cache.import("org/local", &[sources.path().to_owned()], &ImportOptions::default()).unwrap();
    cache.delete_file("org/local", "gone.bin").unwrap();
    let files = cache.readable().unwrap().into_iter().flat_map(|repo| {
        let name = repo.spec.to_string();
        let read = |path: &FilePath| cache.get_file(&name, path.as_str()).unwrap().unwrap().to_vec();
        repo.files.iter().map(|file| ((name.clone(), file.path.to_string()), read(&file.path))).collect::<Vec<_>>()
    });
    files.collect()
}

/// A file as it was, its empty pages left out.
struct Image {
    path: PathBuf,
    bytes: u64,
    pages: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn of(path: PathBuf) -> Self {
        let whole = fs::read(&path).unwrap();
        let pages = whole.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        Self { path, bytes: whole.len() as u64, pages: pages.map(|(n, page)| (n as u64 * 4096, page.to_vec())).collect() }
    }

    fn restore(&self) {
        let _ = fs::remove_file(self.path.with_file_name("mdbx.lck"));
        let file = File::options().write(true).open(&self.path).unwrap();
        // Down to nothing first: what was written elsewhere meanwhile is to be zeros again.
        file.set_len(0).unwrap();
        file.set_len(self.bytes).unwrap();
        self.pages.iter().for_each(|(at, page)| file.write_all_at(page, *at).unwrap());
    }

    fn byte(&self, at: u64) -> u8 {
        let page = self.pages.binary_search_by_key(&(at / 4096 * 4096), |(at, _)| *at);
        page.map_or(0, |page| self.pages[page].1[(at % 4096) as usize])
    }
}

/// Ranges of the two files, by what they are: see [`PLACES`].
struct Places([Vec<(usize, Range<u64>)>; PLACES.len()]);

impl Places {
    /// `live` are the extents there are: what freed ones held may be key pages by now.
    fn of(images: &[Image; 2], live: &BTreeMap<u64, u64>) -> Self {
        let mut places: [Vec<_>; PLACES.len()] = Default::default();
        let [records, extents] = images;
        for (at, _) in &records.pages {
            places[usize::from(*at >= 3 * RECORDS_PAGE)].push((0, *at..at + RECORDS_PAGE));
        }
        // A page begins with the number of the transaction that wrote it.
        let written = |image: &Image, at: u64| u64::from_le_bytes(std::array::from_fn(|n| image.byte(at + n as u64)));
        places[7] = places[1].clone();
        places[7].sort_by_key(|(_, range)| std::cmp::Reverse(written(records, range.start)));
        places[7].truncate((places[1].len() / 4).max(8));
        let (mut data_end, mut key_pages) = (0, Vec::new());
        for at in (0..extents.bytes).step_by(EXTENTS_PAGE as usize) {
            if at < 3 * EXTENTS_PAGE {
                places[2].push((1, at..at + 256));
            } else if at < data_end {
                places[5].push((1, at..(at + EXTENTS_PAGE).min(data_end)));
            } else if let Some(size) = live.get(&(at / EXTENTS_PAGE)) {
                data_end = at + EXTENTS_PAGE + size;
                places[4].push((1, at + 64..at + 128 + size.div_ceil(BLOCK) * 8));
                places[6].push((1, at..at + 64));
                places[6].push((1, at + 1024..at + EXTENTS_PAGE));
            } else {
                let used = (at..at + EXTENTS_PAGE).step_by(64).filter(|line| (0..64).any(|n| extents.byte(line + n) != 0));
                places[3].extend(used.map(|line| (1, line..line + 64)));
                // Of a page of a tree: its header with the places of its nodes, and the nodes at its end. Between them is what it held before.
                let number = |offset: u64, bytes: u64| {
                    (0..bytes).fold(0, |sum, n| sum | u64::from(extents.byte(at + offset + n)) << (8 * n))
                };
                if number(16, 4) == at / EXTENTS_PAGE && matches!(number(10, 2), 1 | 2) {
                    let (lower, upper) = (20 + number(12, 2), 20 + number(14, 2));
                    key_pages.push((written(extents, at), [(1, at..at + lower), (1, at + upper..at + EXTENTS_PAGE)]));
                }
            }
        }
        key_pages.sort_by_key(|(written, _)| std::cmp::Reverse(*written));
        places[8] = key_pages.into_iter().take(4).flat_map(|(_, used)| used).collect();
        assert!(!places[8].is_empty());
        Self(places)
    }

    /// A place: which kind, which file, where.
    fn pick(&self, numbers: &mut Numbers) -> (usize, usize, u64) {
        let mut among = numbers.within(0..100);
        let kind = PLACES.iter().position(|(_, share)| {
            let here = among < *share;
            among = among.saturating_sub(*share);
            here
        });
        let kind = kind.unwrap();
        let ranges = &self.0[kind];
        let mut at = numbers.within(0..ranges.iter().map(|(_, range)| range.end - range.start).sum());
        for (file, range) in ranges {
            if at < range.end - range.start {
                return (kind, *file, range.start + at);
            }
            at -= range.end - range.start;
        }
        unreachable!("the place lies in one of the ranges")
    }
}

/// All records and chunk keys there are, but for when files were last used.
pub(crate) fn everything(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let registry = StorageRegistry::new(store);
    let tables = ["chunks", "metadata", "blobs", "manifests", "refs", "access", "store"];
    let records = registry.records(&store.join("model_cache_manifests"), &tables).unwrap();
    let extents = registry.extents(&store.join("model_cache_chunks"), "chunks", Alignment::LargePage).unwrap();
    let txn = records.begin_read().unwrap();
    let mut found = BTreeMap::new();
    for table in tables.into_iter().filter(|table| *table != "access") {
        let entries = txn.scan_bytes(&Table::new(table), "").unwrap();
        found.extend(entries.into_iter().map(|(key, value)| (format!("{table} {key}"), value)));
    }
    for key in extents.begin_free().unwrap().keys().unwrap() {
        let extent = extents.locate(&key).unwrap().unwrap();
        found.insert(format!("extent {key}"), format!("{extent:?}").into_bytes());
    }
    // A number that is skipped is nobody's loss; one that is too low, verify tells.
    found.remove("store next_blob_id").unwrap();
    found
}

type Truth = BTreeMap<(String, String), Vec<u8>>;
type Name<'a> = (&'a String, &'a String, &'a Vec<u8>);

/// Says on stderr how far the child is, where FLIPS_TRACE asks for it: to find what ended it.
fn trace(step: &str) {
    if std::env::var_os("FLIPS_TRACE").is_some() {
        eprintln!("{step}");
    }
}

/// Where each extent of the store is, and how long its data.
fn live_extents(store: &Path) -> BTreeMap<u64, u64> {
    let registry = StorageRegistry::new(store);
    let extents = registry.extents(&store.join("model_cache_chunks"), "chunks", Alignment::LargePage).unwrap();
    let keys = extents.begin_free().unwrap().keys().unwrap();
    let extent = |key: &String| extents.locate(key).unwrap().unwrap();
    keys.iter().map(extent).map(|extent| (u64::from(extent.page), extent.data_bytes)).collect()
}

/// Looks at a store in which a bit was flipped: what came of it, and the files that are right still.
fn judge<'a>(cache: &ModelCache, store: &Path, truth: &'a Truth, whole: &BTreeMap<String, Vec<u8>>) -> (Verdict, Vec<Name<'a>>) {
    let mut noticed = false;
    let mut sound = Vec::new();
    for ((repo, path), bytes) in truth {
        let checked =
            cache.get_file(repo, path).map(|file| file.map(|file| file.checked(0..file.size_bytes()).map(<[u8]>::to_vec)));
        match checked {
            Ok(Some(Ok(found))) => {
                assert!(found == *bytes, "WRONG BYTES of {repo} {path}");
                sound.push((repo, path, bytes));
            }
            Ok(None) | Ok(Some(Err(_))) | Err(_) => noticed = true,
        }
    }
    trace("files read");
    // What else runs over all records: an error, if it likes, but no crash, and nobody loses what was sound.
    let _ = (cache.list(), cache.stats(), cache.readable());
    trace("listed");
    let verified = cache.verify(None, &[], &VerifyOptions::default());
    trace("verified");
    let told = verified.is_err() || verified.is_ok_and(|report| !report.is_sound());
    let verdict = match (noticed, told) {
        (true, _) => Verdict::Read,
        (false, true) => Verdict::Verify,
        (false, false) => {
            let now = everything(store);
            let differs: Vec<_> = now.iter().filter(|(key, value)| whole.get(*key) != Some(value)).map(|(key, _)| key).collect();
            let orphan = |key: &&String| key.starts_with("extent file:org/local:gone.bin:");
            if now == *whole {
                Verdict::Unused
            } else {
                let is_older = now.len() == whole.len() + differs.len() && differs.iter().all(orphan);
                assert!(is_older, "UNNOTICED: {differs:?}, {} entries of {}", now.len(), whole.len());
                Verdict::Older
            }
        }
    };
    (verdict, sound)
}

/// Frees and removes: an error, if it likes, but nobody loses what was right.
fn use_on(cache: &ModelCache, sound: &[Name<'_>]) {
    let _ = (cache.gc(), cache.delete_model("org/two"));
    for (repo, path, bytes) in sound.iter().filter(|(repo, ..)| !repo.starts_with("org/two")) {
        if let Ok(Some(file)) = cache.get_file(repo, path) {
            assert!(file.checked(0..file.size_bytes()).is_ok_and(|found| found == &bytes[..]), "gc or rm damaged {repo} {path}");
        }
    }
}

/// What the child does: flips `from..to` of the seed's sequence, each on the store as it was.
pub(crate) fn flip(store: &Path, seed: u64, from: u64, to: u64) -> Result<String> {
    let truth = truth_of(store);
    let images = [Image::of(store.join(RECORDS)), Image::of(store.join(EXTENTS))];
    let whole = everything(store);
    let places = Places::of(&images, &live_extents(store));
    for flip in from..to {
        images.iter().for_each(Image::restore);
        let mut numbers = Numbers(seed.wrapping_mul(1_000_003).wrapping_add(flip));
        let (kind, file, at) = places.pick(&mut numbers);
        let bit = numbers.within(0..8);
        say(format_args!("FLIP {flip} {kind} {} {at} {bit}", images[file].path.display()));
        let target = File::options().write(true).open(&images[file].path).unwrap();
        target.write_all_at(&[images[file].byte(at) ^ (1 << bit)], at).unwrap();
        drop(target);
        let opened = ModelCache::builder(store).offline(true).open();
        trace("opened");
        let (verdict, sound) = match &opened {
            Ok(cache) => judge(cache, store, &truth, &whole),
            Err(_) => (Verdict::Open, Vec::new()),
        };
        let word = Verdict::ALL.iter().find(|(one, _)| *one == verdict).unwrap().1;
        say(format_args!("CAME {word}"));
        if let Ok(cache) = opened {
            use_on(&cache, &sound);
        }
        say("USED");
    }
    images.iter().for_each(Image::restore);
    Ok(String::new())
}

fn truth_of(store: &Path) -> Truth {
    let cache = local(store);
    let mut truth = BTreeMap::new();
    for repo in cache.readable().unwrap() {
        let name = repo.spec.to_string();
        for file in &repo.files {
            let bytes = cache.get_file(&name, file.path.as_str()).unwrap().unwrap().to_vec();
            truth.insert((name.clone(), file.path.to_string()), bytes);
        }
    }
    truth
}

/// Flips bits, and gives for each kind of place how often each verdict came, and what ended the process.
fn run(seed: u64, flips: Range<u64>) -> (BTreeMap<usize, BTreeMap<String, u64>>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let pristine = dir.path().join("pristine");
    assert!(!make(&pristine).is_empty());
    let (mut table, mut bad) = (BTreeMap::<usize, BTreeMap<String, u64>>::new(), Vec::new());
    let Range { start: mut next, end } = flips;
    while next < end {
        // A fresh copy: a child that died may have left anything.
        let store = dir.path().join("store");
        let _ = fs::remove_dir_all(&store);
        let copied = std::process::Command::new("cp").args(["-r", "--sparse=always"]).args([&pristine, &store]).status().unwrap();
        assert!(copied.success());
        let mut child = start(&["flips", store.to_str().unwrap(), &seed.to_string(), &next.to_string(), &end.to_string()]);
        while let Some(line) = child.next_line() {
            if let Some(place) = line.strip_prefix("FLIP ") {
                let kind: usize = place.split(' ').nth(1).unwrap().parse().unwrap();
                next = place.split(' ').next().unwrap().parse::<u64>().unwrap() + 1;
                let came = child.next_line();
                let mut word = came.as_deref().and_then(|came| came.strip_prefix("CAME ")).map(str::to_owned);
                if word.is_none() || child.next_line().is_none() {
                    let status = child.end();
                    bad.push(format!("seed {seed}: {place}: {came:?}, {status}"));
                    word = Some("DIED".to_owned());
                }
                *table.entry(kind).or_default().entry(word.unwrap()).or_default() += 1;
            }
        }
    }
    (table, bad)
}

fn show(seed: u64, flips: Range<u64>) {
    println!("seed {seed}, flips {flips:?}");
    let (table, bad) = run(seed, flips);
    for (kind, verdicts) in &table {
        println!("{:38} {verdicts:?}", PLACES[*kind].0);
    }
    bad.iter().for_each(|bad| println!("{bad}"));
    assert!(bad.is_empty(), "{} flips ended the process, made wrong bytes or went unnoticed; seed {seed}", bad.len());
}

#[test]
fn no_flipped_bit_goes_unnoticed_makes_a_wrong_byte_or_ends_the_process() {
    let seed = std::env::var("FLIPS_SEED").ok().map_or(5, |seed| seed.parse().unwrap());
    show(seed, 0..150);
}

/// `FLIPS_SEED=7 FLIPS=10000 cargo test -p model-cache --test damage -- --ignored --nocapture many_flipped_bits`
#[test]
#[ignore = "minutes: ten thousand flips, or FLIPS_FROM to FLIPS of FLIPS_SEED"]
fn many_flipped_bits() {
    let number = |name: &str, default| std::env::var(name).ok().map_or(default, |number| number.parse().unwrap());
    show(number("FLIPS_SEED", std::process::id().into()), number("FLIPS_FROM", 0)..number("FLIPS", 10_000));
}
