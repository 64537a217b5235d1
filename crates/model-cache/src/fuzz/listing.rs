//! Manifests: what is made of a repo's listing.

use super::records::check_round_trip;
use crate::{
    digest::Hasher,
    hub::{ModelInfo, TreeFile},
    manifest,
    name::FilePath,
    record::ManifestEntry,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A listing, a file a line: its path, and behind a tab the number of binary digits of its size.
pub fn listing(input: &[u8]) {
    let mut paths = HashSet::new();
    let mut files = Vec::new();
    for line in super::lines(input) {
        let (path, digits) = line.split_once('\t').unwrap_or((&line, "30"));
        let Ok(path) = path.parse::<FilePath>() else { continue };
        let size_bytes = 1u64.checked_shl(digits.parse().unwrap_or(0)).unwrap_or(0);
        if paths.insert(path.clone()) {
            let mut hasher = Hasher::sha256();
            hasher.update(line.as_bytes());
            files.push(TreeFile { path, size_bytes, digest: hasher.finish() });
        }
    }
    let info = ModelInfo {
        commit: "0123456789abcdef0123456789abcdef01234567".parse().expect("a commit"),
        task: Some("text-generation".to_owned()),
        library: None,
        private: false,
        gated: false,
        disabled: false,
    };
    let mut entry = manifest::entry(&info, &files);
    entry.scanned_unix_ms = 0;
    check_entry(&entry, &files);
    files.reverse();
    let reversed = manifest::entry(&info, &files);
    assert_eq!(ManifestEntry { scanned_unix_ms: 0, ..reversed }, entry, "the order of a listing means nothing");
    check_round_trip(&entry);
}

/// Every path is in exactly one of own (of one quant), shared, extras, or is a companion of at least one quant.
fn check_entry(entry: &ManifestEntry, files: &[TreeFile]) {
    let mut listed = files.to_vec();
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(entry.tree_files().ok().as_ref(), Some(&listed));
    let mut placed: BTreeMap<&str, usize> = BTreeMap::new();
    for path in entry.quants.iter().flat_map(|quant| &quant.own).chain(&entry.shared).chain(&entry.extras) {
        *placed.entry(path).or_default() += 1;
    }
    let companions: BTreeSet<&str> = entry.quants.iter().flat_map(|quant| &quant.shared).map(String::as_str).collect();
    for file in files {
        let count = placed.remove(file.path.as_str()).unwrap_or(0);
        let path = &file.path;
        assert!(count == 1 || (count == 0 && companions.contains(path.as_str())), "{path} is placed {count} times");
    }
    assert!(placed.is_empty(), "unlisted: {placed:?}");
    assert!(companions.iter().all(|path| listed.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()));

    let repo = "o/n".parse().expect("a repo");
    let mut keys = HashSet::new();
    for quant in &entry.quants {
        assert!(keys.insert(quant.key.to_ascii_lowercase()), "{} is there in two cases", quant.key);
        assert!(!quant.own.is_empty());
        let found = entry.find_quant(&repo, &quant.key);
        assert!(found.is_ok_and(|found| found == quant), "{} is not found", quant.key);
        // What is told of absent files is short, however many there would have to be.
        assert!(quant.missing.len() <= 32 * (1 + quant.own.len() + quant.shared.len()));
        let all = entry.files_of(quant);
        assert!(all.is_sorted() && all.windows(2).all(|pair| pair[0] != pair[1]));
    }
    assert_eq!(entry.quants.is_empty(), files.is_empty());
}
