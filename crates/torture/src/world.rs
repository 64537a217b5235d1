//! What there is to pull and to import: [`World`], all of it following from a seed.

use crate::numbers::Numbers;
use hub_fixture::{Content, Hub, HubBuilder, Repo};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The repo that pushes move.
pub const MOVING: &str = "org/moving";
/// The repo whose file is larger than a chunk, where there is one.
pub const LARGE: &str = "org/large";

/// Repos at the Hub, commit by commit, and files to import. A content is told by the SHA-256 of its bytes.
#[derive(Debug)]
pub struct World {
    contents: BTreeMap<String, Content>,
    /// The Hub's repos, and the revisions each has.
    revisions: BTreeMap<String, Vec<String>>,
    /// By repo, then commit: path and content's SHA-256.
    commits: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>,
    /// By repo of an import: a folder for each variant, and its one or more files.
    imports: BTreeMap<String, Vec<(PathBuf, BTreeMap<String, String>)>>,
    numbers: Numbers,
    pushes: u64,
}

/// A name in the store: `<repo>@<commit>:<path>`, or `<repo>:<path>` of an import.
pub fn name(repo: &str, commit: Option<&str>, path: &str) -> String {
    match commit {
        Some(commit) => format!("{repo}@{commit}:{path}"),
        None => format!("{repo}:{path}"),
    }
}

/// SHA-256 as 64 hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl World {
    /// The world of `seed`, its files to import written below `folder`, and the Hub that serves the rest.
    ///
    /// # Errors
    /// Those of writing the files, and of starting the Hub.
    pub fn new(seed: u64, folder: &Path) -> io::Result<(Self, Hub)> {
        let mut numbers = Numbers::new(seed ^ 0x0057_4F52_4C44);
        let mut world = Self {
            contents: BTreeMap::new(),
            revisions: BTreeMap::new(),
            commits: BTreeMap::new(),
            imports: BTreeMap::new(),
            numbers: numbers.fork(),
            pushes: 0,
        };
        let mut content = |bytes: u64| world.add(Content::seeded(numbers.draw(), bytes));
        let sizes = |numbers: &mut Numbers, range: std::ops::Range<u64>| numbers.within(range);
        let mut draw = Numbers::new(seed);
        // Inline files, files of one block and less, of several, of whole blocks alone, and now and then of two chunks.
        let config = content(sizes(&mut draw, 2..300));
        let tokenizer = content(sizes(&mut draw, 30 * KIB..64 * KIB + 1));
        let small = content(sizes(&mut draw, 64 * KIB + 1..400 * KIB));
        let middling = content(sizes(&mut draw, MIB..5 * MIB));
        let exact = content(5 * MIB * draw.within(1..3));
        let several = content(sizes(&mut draw, 6 * MIB..25 * MIB));
        let other = content(sizes(&mut draw, 3 * MIB..12 * MIB));
        let local = content(sizes(&mut draw, 2 * MIB..9 * MIB));
        let changed = content(sizes(&mut draw, 2 * MIB..9 * MIB));
        let notes = content(sizes(&mut draw, 1..1000));
        let mut repos: Vec<(&str, Vec<(&str, &String)>, Vec<(&str, &String)>)> = vec![
            // Two revisions of which only the small files differ.
            (
                MOVING,
                vec![("config.json", &config), ("model.gguf", &several), ("tokenizer.json", &tokenizer)],
                vec![("config.json", &notes), ("model.gguf", &several), ("extra.safetensors", &middling)],
            ),
            ("org/shares", vec![("a/same.gguf", &several), ("b.safetensors", &small), ("config.json", &config)], vec![]),
            ("org/exact", vec![("blocks.bin", &exact), ("other.gguf", &other)], vec![]),
        ];
        let large = draw.once_in(6).then(|| content(100 * MIB + draw.within(1..6 * MIB)));
        if let Some(large) = &large {
            repos.push((LARGE, vec![("large.gguf", large)], vec![]));
        }
        let variants: [(&str, Vec<(&str, &String)>); 5] = [
            ("me/local", vec![("weights.bin", &local)]),
            ("me/local", vec![("weights.bin", &changed)]),
            // What the Hub has too.
            ("me/local", vec![("weights.bin", &exact)]),
            ("me/folder", vec![("notes.txt", &notes), ("deep/weights.bin", &middling), ("same.bin", &local)]),
            ("me/folder", vec![("notes.txt", &config), ("deep/weights.bin", &small)]),
        ];
        let mut hub = Hub::builder();
        for (repo, main, next) in repos {
            hub = world.serve(hub, repo, &main, &next);
        }
        for (number, (repo, files)) in variants.into_iter().enumerate() {
            let below = folder.join(number.to_string());
            for (path, digest) in &files {
                let target = below.join(path);
                fs::create_dir_all(target.parent().unwrap_or(&below))?;
                fs::write(target, world.bytes(digest)?)?;
            }
            let files = files.into_iter().map(|(path, digest)| (path.to_owned(), digest.clone())).collect();
            world.imports.entry(repo.to_owned()).or_default().push((below, files));
        }
        let hub = hub.start()?;
        for (repo, revisions) in world.revisions.clone() {
            for revision in revisions {
                let commit = hub.commit(&repo, &revision).ok_or_else(|| io::Error::other(format!("{repo} has no {revision}")))?;
                let files = world.commits.get_mut(&repo).and_then(|commits| commits.remove(&revision));
                world.commits.entry(repo.clone()).or_default().insert(commit, files.unwrap_or_default());
            }
        }
        Ok((world, hub))
    }

    fn add(&mut self, content: Content) -> String {
        let bytes = content.read(0..content.size_bytes().unwrap_or(0)).unwrap_or_default();
        let digest = sha256(&bytes);
        // In memory: computed anew for each request they would be much of a run's time.
        self.contents.insert(digest.clone(), Content::Bytes(bytes));
        digest
    }

    fn bytes(&self, digest: &str) -> io::Result<Vec<u8>> {
        let content = self.contents.get(digest).ok_or_else(|| io::Error::other("no such content"))?;
        Ok(content.read(0..content.size_bytes()?)?.to_vec())
    }

    /// Adds a repo; until the Hub runs its revisions stand for its commits.
    fn serve(&mut self, hub: HubBuilder, repo: &str, main: &[(&str, &String)], next: &[(&str, &String)]) -> HubBuilder {
        let mut served = Repo::new(repo);
        let mut commits = BTreeMap::new();
        let listed = |files: &[(&str, &String)]| -> BTreeMap<String, String> {
            files.iter().map(|(path, digest)| ((*path).to_owned(), (*digest).clone())).collect()
        };
        for (path, digest) in main {
            served = served.file(*path, self.contents[*digest].clone());
        }
        commits.insert("main".to_owned(), listed(main));
        let mut revisions = vec!["main".to_owned()];
        if !next.is_empty() {
            served = served.branch("next", next.iter().map(|(path, digest)| (*path, self.contents[*digest].clone())));
            commits.insert("next".to_owned(), listed(next));
            revisions.push("next".to_owned());
        }
        self.revisions.insert(repo.to_owned(), revisions);
        self.commits.insert(repo.to_owned(), commits);
        hub.repo(served)
    }

    /// Moves `main` of [`MOVING`]: its config is another, the rest stays.
    pub fn push(&mut self, hub: &Hub) {
        self.pushes += 1;
        let text = format!("{{\"push\":{},\"salt\":{}}}", self.pushes, self.numbers.draw());
        let digest = self.add(Content::Bytes(text.into_bytes().into()));
        let Some(before) = hub.commit(MOVING, "main") else { return };
        let commit = hub.push(MOVING, "main", [("config.json", self.contents[&digest].clone())]);
        let commits = self.commits.entry(MOVING.to_owned()).or_default();
        let mut files = commits.get(&before).cloned().unwrap_or_default();
        files.insert("config.json".to_owned(), digest);
        commits.insert(commit, files);
    }

    /// The Hub's repos.
    pub fn repos(&self) -> Vec<&str> {
        self.revisions.keys().map(String::as_str).collect()
    }

    /// The revisions of a repo at the Hub.
    pub fn revisions(&self, repo: &str) -> &[String] {
        self.revisions.get(repo).map_or(&[], Vec::as_slice)
    }

    /// The repos imports go to.
    pub fn import_repos(&self) -> Vec<&str> {
        self.imports.keys().map(String::as_str).collect()
    }

    /// The folders that can be imported into `repo`.
    pub fn import_folders(&self, repo: &str) -> Vec<&Path> {
        self.imports.get(repo).into_iter().flatten().map(|(folder, _)| folder.as_path()).collect()
    }

    /// Every path a repo of either kind may have.
    pub fn paths(&self, repo: &str) -> Vec<&str> {
        let pulled = self.commits.get(repo).into_iter().flat_map(BTreeMap::values);
        let imported = self.imports.get(repo).into_iter().flatten().map(|(_, files)| files);
        let mut paths: Vec<_> = pulled.chain(imported).flat_map(BTreeMap::keys).map(String::as_str).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The names a pull of `commit` (of any commit, where it is not known) may make, and the content of each.
    pub fn names_of_pull(&self, repo: &str, commit: Option<&str>) -> Vec<(String, String)> {
        let commits = self.commits.get(repo).into_iter().flatten();
        let chosen = commits.filter(|(id, _)| commit.is_none_or(|commit| commit == *id));
        chosen
            .flat_map(|(id, files)| files.iter().map(move |(path, digest)| (name(repo, Some(id), path), digest.clone())))
            .collect()
    }

    /// The names an import of `folder` makes, and the content of each.
    pub fn names_of_import(&self, repo: &str, folder: &Path) -> Vec<(String, String)> {
        let variants = self.imports.get(repo).into_iter().flatten().filter(|(variant, _)| variant == folder);
        variants.flat_map(|(_, files)| files.iter().map(|(path, digest)| (name(repo, None, path), digest.clone()))).collect()
    }

    /// Bytes of a content.
    pub fn size_bytes(&self, digest: &str) -> u64 {
        self.contents.get(digest).and_then(|content| content.size_bytes().ok()).unwrap_or(0)
    }
}
