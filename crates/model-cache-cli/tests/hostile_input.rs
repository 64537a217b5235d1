//! The targets of `fuzz/` for seconds: over what fuzzing found worth keeping, what it found wrong once, and mutations of both.
//!
//! `MODEL_CACHE_SEED=n` repeats the mutations of a run that failed; `MODEL_CACHE_MUTATIONS=n` makes so many of them a target.

#[path = "../../../fuzz/meter.rs"]
mod meter;

use model_cache_cli::fuzz::TARGETS;
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
};

/// Mutations of each target: a few seconds of CPU for all of them.
const MUTATIONS: u64 = 10_000;
/// What inputs grow to at most, here and in fuzz/corpus.
const MAX_BYTES: usize = 8192;

fn fuzz_folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz"))
}

/// The inputs of a target that are kept in `folder`, in the order of their names.
fn kept(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(fuzz_folder().join(folder).join(target)) else { return Vec::new() };
    let paths: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs a target, and says of what where something does not hold.
fn run(target: &str, input: &[u8], what: impl FnOnce() -> String) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| meter::run(target, input))) {
        eprintln!("target {target}, {}: {} bytes: b\"{}\"", what(), input.len(), input.escape_ascii());
        resume_unwind(panic);
    }
}

#[test]
fn every_target_has_a_corpus_and_a_fuzz_target_of_its_name() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let below = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz_folder().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(below("corpus"), names);
    assert_eq!(below("fuzz_targets"), names);
    assert!(below("regressions").is_subset(&names));
    for name in names {
        assert!(!kept("corpus", &name).is_empty(), "{name}");
    }
}

#[test]
fn what_was_wrong_once_and_what_is_worth_keeping_holds() {
    for target in TARGETS {
        for (path, input) in kept("regressions", target.name).into_iter().chain(kept("corpus", target.name)) {
            run(target.name, &input, || path.display().to_string());
        }
    }
}

#[test]
fn mutations_of_what_is_worth_keeping_hold() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")));
    let seed = number("MODEL_CACHE_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("MODEL_CACHE_SEED={seed}");
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> =
            kept("corpus", target.name).into_iter().chain(kept("regressions", target.name)).map(|(_, input)| input).collect();
        for n in 0..number("MODEL_CACHE_MUTATIONS").unwrap_or(MUTATIONS) {
            // Each by itself, so that the last one can be repeated without the rest.
            let mut random = Random(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let input = mutated(&inputs, &mut random);
            run(target.name, &input, || format!("MODEL_CACHE_SEED={seed}, mutation {n}"));
        }
    }
}

/// SplitMix64: <https://prng.di.unimi.it/splitmix64.c>
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// An input of the corpus with some of its bytes changed, moved, taken away, or those of another put in; or bytes at random.
fn mutated(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const NUMBERS: [u64; 10] = [0, 1, 7, 255, 1 << 16, 1 << 31, 1 << 32, i64::MAX as u64, u64::MAX - 31, u64::MAX];
    const SIGNS: &[u8] = b"{}[]\"\\:,/.%@~*?-\0\n\t <>=;0123456789";
    let mut input = inputs[random.below(inputs.len())].clone();
    if random.below(50) == 0 {
        input = (0..random.below(256)).map(|_| random.next() as u8).collect();
    }
    for _ in 0..1 + random.below(5) {
        let at = random.below(input.len());
        let end = at + random.below((input.len() - at).min(64) + 1);
        match random.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = random.next() as u8,
            2 if !input.is_empty() => input[at] = SIGNS[random.below(SIGNS.len())],
            3 => input.insert(at, SIGNS[random.below(SIGNS.len())]),
            4 => drop(input.drain(at..end)),
            5 => input.truncate(at),
            6 => {
                let piece = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            7 => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len());
                input.splice(at..end, other[from..].iter().take(64).copied());
            }
            _ => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let bytes = [1, 4, 8][random.below(3)].min(input.len() - at);
                input[at..at + bytes].copy_from_slice(&number[..bytes]);
            }
        }
    }
    input.truncate(MAX_BYTES);
    input
}
