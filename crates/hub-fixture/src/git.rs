//! Git's object ids, computed from names and contents: blobs, trees and commits have the ids git itself would give them.

use std::collections::BTreeMap;

use sha1::{Digest, Sha1};

use crate::content::hex;

/// The text git stores in place of an LFS file (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
pub(crate) fn lfs_pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// Id of a git object of `kind` ("blob", "tree", "commit") holding `data`.
pub(crate) fn object_id(kind: &str, data: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("{kind} {}\0", data.len()));
    hasher.update(data);
    hex(&hasher.finalize())
}

/// Tree ids of every directory, from `(path, blob id)` pairs; the root is the empty string.
pub(crate) fn tree_ids<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    // directory -> name -> blob id, or None for a sub-directory
    let mut children: BTreeMap<&str, BTreeMap<&str, Option<&str>>> = BTreeMap::from([("", BTreeMap::new())]);
    for (path, blob) in files {
        let mut parent = "";
        let mut start = 0;
        for (slash, _) in path.match_indices('/') {
            let directory = &path[..slash];
            children.entry(parent).or_default().insert(&path[start..slash], None);
            children.entry(directory).or_default();
            parent = directory;
            start = slash + 1;
        }
        children.entry(parent).or_default().insert(&path[start..], Some(blob));
    }
    let mut deepest_first: Vec<&str> = children.keys().copied().collect();
    deepest_first.sort_by_key(|path| std::cmp::Reverse(if path.is_empty() { 0 } else { path.split('/').count() }));
    let mut ids = BTreeMap::<String, String>::new();
    for directory in deepest_first {
        // Git sorts a sub-directory as if its name ended in a slash.
        let mut rows: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, blob) in &children[directory] {
            let child = if directory.is_empty() { (*name).to_owned() } else { format!("{directory}/{name}") };
            let (key, mode, id) = match blob {
                Some(blob) => ((*name).to_owned(), "100644", *blob),
                None => (format!("{name}/"), "40000", ids.get(&child).map_or("", String::as_str)),
            };
            let mut row = format!("{mode} {name}\0").into_bytes();
            row.extend(unhex(id));
            rows.push((key, row));
        }
        rows.sort();
        let data: Vec<u8> = rows.into_iter().flat_map(|(_, row)| row).collect();
        ids.insert(directory.to_owned(), object_id("tree", &data));
    }
    ids
}

/// Id of a commit of `tree`. Author, date and message are those of mkhf.py, so that both origins name a commit alike.
pub(crate) fn commit_id(tree: &str, parent: Option<&str>) -> String {
    let who = "mkhf <mkhf@localhost> 1767323045 +0000";
    let parent = parent.map(|id| format!("parent {id}\n")).unwrap_or_default();
    object_id("commit", format!("tree {tree}\n{parent}author {who}\ncommitter {who}\n\nimport\n").as_bytes())
}

fn unhex(text: &str) -> impl Iterator<Item = u8> + '_ {
    let digit = |at: usize| (text.as_bytes()[at] as char).to_digit(16).unwrap_or(0) as u8;
    (0..text.len() / 2).map(move |i| digit(2 * i) << 4 | digit(2 * i + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_tree_has_its_well_known_id() {
        assert_eq!(tree_ids([])[""], "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
    }
}
