//! A repo's listing, checked: [`TreeFile`]s out of the tree pages' JSON, or the reason why the listing can't be used.

use super::field::Field;
use crate::{
    digest::Digest,
    error::Error,
    name::{FilePath, printable},
};
use serde::{
    Deserialize, Deserializer as _,
    de::{Error as _, SeqAccess, Visitor},
};
use std::{borrow::Cow, collections::HashSet, fmt};

/// Most entries accepted, folders and unknown kinds counted: ten times the largest repos known.
const MAX_ENTRIES: usize = 1_000_000;
/// Largest file accepted: 16 TiB, ext4's own limit.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 40;

/// A file as the Hub lists it at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TreeFile {
    /// Its path in the repo.
    pub(crate) path: FilePath,
    /// The real size, also of an LFS file.
    pub(crate) size_bytes: u64,
    /// SHA-256 of an LFS file, git's blob id of any other.
    pub(crate) digest: Digest,
}

/// An entry of a tree page. Fields other than the kind are left unread until the kind is known to be a file's.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    path: Field<'a>,
    #[serde(default, borrow)]
    size: Field<'a>,
    #[serde(default, borrow)]
    oid: Field<'a>,
    #[serde(default, borrow)]
    lfs: Field<'a>,
}

/// The pages read so far.
#[derive(Default)]
pub(super) struct Listing {
    files: Vec<TreeFile>,
    /// The paths of `files`, so that a listing which begins anew is noticed there and not at the end it never has.
    paths: HashSet<FilePath>,
    entries: usize,
}

impl Listing {
    /// Takes one page: a JSON array of entries, of which those of type `file` are kept.
    ///
    /// # Errors
    /// What is wrong with the page, in words that name the entry; also a path that was listed before.
    pub(super) fn add_page(&mut self, body: &[u8]) -> Result<(), String> {
        let mut refused = None;
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = json.deserialize_seq(Page { listing: self, refused: &mut refused }).and_then(|()| json.end());
        match (refused, read) {
            (Some(reason), _) => Err(reason),
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => Err(format!("it is not a JSON array of tree entries ({})", printable(&error.to_string()))),
        }
    }

    fn add(&mut self, entry: &Entry<'_>) -> Result<(), String> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(format!("it lists more than {MAX_ENTRIES} entries"));
        }
        if entry.kind != "file" {
            return Ok(());
        }
        let file = file(entry)?;
        if !self.paths.insert(file.path.clone()) {
            return Err(format!("it lists {:?} twice", file.path.as_str()));
        }
        self.files.push(file);
        Ok(())
    }

    /// All files, in the order listed.
    ///
    /// # Errors
    /// Words naming two files that cannot stand side by side: equal but for letter case (they would be one file on macOS and
    /// Windows), or one inside the other.
    pub(super) fn finish(self) -> Result<Vec<TreeFile>, String> {
        // '/' becomes the lowest byte, which no path contains, so that what lies inside a path follows directly after it and
        // looking at neighbours is enough.
        let mut sorted: Vec<(String, &FilePath)> =
            self.files.iter().map(|file| (file.path.as_str().to_lowercase().replace('/', "\0"), &file.path)).collect();
        sorted.sort();
        for pair in sorted.windows(2) {
            let [(first, first_path), (second, second_path)] = pair else { continue };
            let (one, other) = (first_path.as_str(), second_path.as_str());
            if first == second {
                return Err(format!("it lists {one:?} and {other:?}, which differ in letter case alone"));
            }
            if second.strip_prefix(first.as_str()).is_some_and(|rest| rest.starts_with('\0')) {
                return Err(format!("it lists {one:?} as a file and {other:?} as a file inside it"));
            }
        }
        Ok(self.files)
    }
}

/// Takes a page entry by entry: of the many small ones a page can have, none is kept that is no file.
struct Page<'l> {
    listing: &'l mut Listing,
    /// Why an entry was not taken, if one was not.
    refused: &'l mut Option<String>,
}

impl<'de> Visitor<'de> for Page<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry<'de>>()? {
            if let Err(reason) = self.listing.add(&entry) {
                *self.refused = Some(reason);
                return Err(A::Error::custom("an entry is refused"));
            }
        }
        Ok(())
    }
}

/// One entry, checked.
fn file(entry: &Entry<'_>) -> Result<TreeFile, String> {
    let Some(path) = entry.path.as_str() else {
        return Err("it lists a file without a path".to_owned());
    };
    let path: FilePath = path.parse().map_err(|error: Error| error.to_string())?;
    let refuse = |what: &str, field: &Field<'_>| {
        Err(format!("it lists {:?} with {what} {}", path.as_str(), printable(&field.to_string())))
    };
    let Some(size_bytes) = entry.size.as_u64().filter(|size| *size <= MAX_FILE_BYTES) else {
        return refuse("the size", &entry.size);
    };
    let Some(git_id) = entry.oid.as_str().and_then(Digest::git_sha1_from_hex) else {
        return refuse("the git id", &entry.oid);
    };
    if entry.lfs.is_null() {
        return Ok(TreeFile { path, size_bytes, digest: git_id });
    }
    // For an LFS file `oid` and `pointerSize` speak of the pointer in git, `lfs` of the content.
    let Some(digest) = entry.lfs.oid().and_then(Field::as_str).and_then(Digest::sha256_from_hex) else {
        return refuse("the LFS id", entry.lfs.oid().unwrap_or(&Field::Null));
    };
    match entry.lfs.size() {
        Some(size) if size.as_u64() != Some(size_bytes) => refuse(&format!("the size {size_bytes} and the LFS size"), size),
        _ => Ok(TreeFile { path, size_bytes, digest }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const GIT: &str = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad";
    const SHA: &str = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";

    fn listed(entries: Value) -> Result<Vec<TreeFile>, String> {
        let mut listing = Listing::default();
        listing.add_page(entries.to_string().as_bytes())?;
        listing.finish()
    }

    fn paths(paths: &[&str]) -> Result<Vec<TreeFile>, String> {
        listed(paths.iter().map(|path| json!({"type": "file", "path": path, "size": 1, "oid": GIT})).collect())
    }

    #[test]
    fn an_lfs_file_is_known_by_its_content_and_folders_and_strangers_are_left_out() {
        let files = listed(json!([
            {"type": "directory", "path": "onnx", "size": 0, "oid": GIT},
            {"type": "submodule", "path": 7},
            {"type": "file", "path": "config.json", "size": 12, "oid": GIT, "lfs": null, "new": {"x": [1]}},
            {"type": "file", "path": "onnx/m.onnx", "size": 99, "oid": GIT, "lfs": {"oid": SHA, "size": 99, "pointerSize": 130}, "xetHash": SHA},
        ]))
        .unwrap();
        let seen: Vec<_> = files.iter().map(|f| (f.path.as_str(), f.size_bytes, f.digest.to_string())).collect();
        assert_eq!(seen, [("config.json", 12, format!("git-sha1:{GIT}")), ("onnx/m.onnx", 99, format!("sha256:{SHA}"))]);
    }

    #[test]
    fn a_malformed_entry_is_refused_by_name() {
        let good = json!({"type": "file", "path": "a/model.gguf", "size": 5, "oid": GIT, "lfs": {"oid": SHA, "size": 5}});
        assert!(listed(json!([good])).is_ok());
        let with = |field: &str, value: Value| {
            let mut entry = good.clone();
            match field.strip_prefix("lfs.") {
                Some(field) => entry["lfs"][field] = value,
                None => entry[field] = value,
            }
            listed(json!([entry])).unwrap_err()
        };
        for (field, value) in [
            ("size", json!(-1)),
            ("size", json!(5.0)),
            ("size", json!("5")),
            ("size", json!(null)),
            ("size", json!((16u64 << 40) + 1)),
            ("size", json!(1e300)),
            ("size", json!(6)),
            ("oid", json!(SHA)),
            ("oid", json!("zz")),
            ("oid", json!(null)),
            ("lfs", json!("x")),
            ("lfs.oid", json!(GIT)),
            ("lfs.oid", json!(null)),
            ("lfs.size", json!(6)),
            ("lfs.size", json!("5")),
        ] {
            let reason = with(field, value.clone());
            assert!(reason.contains("a/model.gguf"), "{field} {value}: {reason}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../b", "C:\\x", "a\u{1b}[31m"] {
            let reason = with("path", json!(path));
            assert!(reason.contains("is not a file path") && !reason.contains('\u{1b}'), "{reason}");
        }
        with("path", json!(7));
    }

    #[test]
    fn what_is_wrong_with_a_page_is_told_in_few_words() {
        let long = "x".repeat(1 << 20);
        for body in [format!("[\"{long}\"]"), format!("\"{long}\""), json!([{"type": {"x": long}}]).to_string()] {
            let reason = Listing::default().add_page(body.as_bytes()).unwrap_err();
            assert!(reason.len() < 200, "{} bytes", reason.len());
        }
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        for body in ["", "{}", "null", "[1]", "[{}]", "[{\"type\":\"file\"", "<html>", &"[".repeat(100_000)] {
            assert!(Listing::default().add_page(body.as_bytes()).is_err());
        }
    }

    #[test]
    fn files_that_cannot_stand_side_by_side_are_both_named() {
        for (pair, word) in [
            (["x", "x"], "twice"),
            (["README.md", "readme.md"], "letter case"),
            (["dir/ÄB", "DIR/äb"], "letter case"),
            (["a", "a/b"], "inside"),
            (["A", "a/b/c"], "inside"),
            (["m/n", "m/n/o/p"], "inside"),
        ] {
            let others = ["a-", "a.b", "m/n-o", "m/na", "zz"];
            for order in [[pair[0], pair[1]], [pair[1], pair[0]]] {
                let all: Vec<&str> = order.into_iter().chain(others).collect();
                let reason = paths(&all).unwrap_err();
                assert!(reason.contains(word) && pair.iter().all(|path| reason.contains(path)), "{pair:?}: {reason}");
            }
        }
        assert!(paths(&["a", "a-", "a.b/c", "ab/c", "a b", "b/a", "b/a.c"]).is_ok());
    }

    proptest! {
        #[test]
        fn neighbours_find_what_comparing_all_pairs_finds(names in prop::collection::vec("[aAb]{1,2}(/[aAb.]b?){0,2}", 0..8)) {
            let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.parse::<FilePath>().is_ok()).collect();
            let clash = names.iter().enumerate().any(|(i, one)| {
                names.iter().enumerate().any(|(j, other)| {
                    let (one, other) = (one.to_lowercase(), other.to_lowercase());
                    i != j && (one == other || other.starts_with(&format!("{one}/")))
                })
            });
            prop_assert_eq!(paths(&names).is_err(), clash);
        }

        #[test]
        fn no_page_makes_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Listing::default().add_page(&body);
        }
    }
}
