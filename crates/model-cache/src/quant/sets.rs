//! Paths taken apart: folder and name, shard marks, and the sets that shards form.

use std::collections::{BTreeMap, BTreeSet};

/// Most absent shards spelled out per set; a hostile `-of-999999` costs one line, not a million.
const MISSING_SHOWN: usize = 8;

/// Splits a path into its folder (empty at the root) and its file name.
pub(super) fn split_dir(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The path of `name` inside `dir`.
pub(super) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Removes `suffix` from the end of `text`, ASCII case ignored.
pub(super) fn strip_suffix_nocase<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    text.get(at..)?.eq_ignore_ascii_case(suffix).then(|| &text[..at])
}

/// Splits a file name at its last dot; the extension is what follows it, empty if there is none.
pub(super) fn split_ext(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

/// What one model is stored as: a file, or all the shards of it.
#[derive(Debug)]
pub(super) struct FileSet<'a> {
    /// Folder of the files.
    pub(super) dir: &'a str,
    /// File name with the shard's number and total left out: `model.fp16.safetensors`.
    pub(super) name: String,
    /// What tells this set from another of the same name: `-of-00003`, or empty for a single file.
    pub(super) mark: String,
    /// The files, in order of path.
    pub(super) files: Vec<&'a str>,
    /// Paths of shards the total promises but the listing lacks.
    pub(super) missing: Vec<String>,
}

impl FileSet<'_> {
    /// Whether the model is cut into shards.
    pub(super) fn is_sharded(&self) -> bool {
        !self.mark.is_empty()
    }

    /// The exact names of the set, each more exact than the one before: `stem`, `dir/stem`, `dir/stem-of-00003`.
    pub(super) fn exact_names(&self, stem: &str) -> [String; 3] {
        let path = join(self.dir, stem);
        let marked = format!("{path}{}", self.mark);
        [stem.to_owned(), path, marked]
    }
}

/// A shard's place in its set: the path is `before`, the number, `after`.
#[derive(Clone, Copy, Debug)]
struct Shard<'a> {
    before: &'a str,
    number: &'a str,
    after: &'a str,
    /// Length in `after` of the part that gives the total.
    mark_bytes: usize,
    /// Absent for formats that number shards without saying how many there are.
    total: Option<u32>,
}

impl<'a> Shard<'a> {
    /// Reads the shard mark of `path`, if it has one.
    ///
    /// Marks are `-00001-of-00003` with five or six digits on either side (safetensors, GGUF, and variants before or after
    /// it), `.gguf.part1of2` and `.gguf-split-a` (files cut with `split`, to be joined by hand), and `consolidated.00.pth`.
    fn of(path: &'a str) -> Option<Self> {
        let name_at = path.len() - split_dir(path).1.len();
        let name = &path[name_at..];
        let shard = |number_at: usize, number_end: usize, mark_bytes, total| {
            let (number_at, number_end) = (name_at + number_at, name_at + number_end);
            Self {
                before: &path[..number_at],
                number: &path[number_at..number_end],
                after: &path[number_end..],
                mark_bytes,
                total,
            }
        };
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        if let Some(of) = name.rfind("-of-") {
            let total = &name[of + 4..][..digits(&name[of + 4..])];
            let number_at = name[..of].rfind('-').map_or(0, |dash| dash + 1);
            let number = &name[number_at..of];
            let plausible = |text: &str| matches!(text.len(), 5 | 6) && digits(text) == text.len();
            if number_at > 0 && plausible(number) && plausible(total) {
                return Some(shard(number_at, of, 4 + total.len(), total.parse().ok()));
            }
        }
        if let Some(part) = name.rfind(".part") {
            let number_at = part + 5;
            let number_end = number_at + digits(&name[number_at..]);
            let total = name[number_end..].strip_prefix("of").unwrap_or("");
            let short = |text: &str| matches!(text.len(), 1..=3) && digits(text) == text.len();
            if short(&name[number_at..number_end]) && short(total) && strip_suffix_nocase(&name[..part], ".gguf").is_some() {
                return Some(shard(number_at, number_end, 2 + total.len(), total.parse().ok()));
            }
        }
        if let Some((whole, letters)) = name.rsplit_once("-split-") {
            let letters_only = matches!(letters.len(), 1 | 2) && letters.bytes().all(|b| b.is_ascii_lowercase());
            if letters_only && strip_suffix_nocase(whole, ".gguf").is_some() {
                return Some(shard(name.len() - letters.len(), name.len(), 0, None));
            }
        }
        let number = name.strip_prefix("consolidated.")?.strip_suffix(".pth")?;
        (number.len() == 2 && digits(number) == 2).then(|| shard(13, 15, 0, None))
    }

    /// Name of the whole without number and total, and the total's mark.
    fn whole(&self) -> (String, String) {
        let name = split_dir(self.before).1;
        let (mark, tail) = self.after.split_at(self.mark_bytes);
        // "consolidated." and "x.gguf.part" end in what only served the number.
        let stem = name.strip_suffix('-').or(name.strip_suffix('.')).unwrap_or(name);
        let stem = stem.strip_suffix(".part").or(stem.strip_suffix("-split")).unwrap_or(stem);
        let mark = if mark.is_empty() { "-split" } else { mark };
        (format!("{stem}{tail}"), mark.to_owned())
    }
}

/// A path of a set, and its place if the set has shards.
type Member<'a> = (&'a str, Option<Shard<'a>>);

/// Gathers paths into sets: shards of one model together, every other file alone.
///
/// `paths` are sorted and distinct; so are the sets, by folder and name. Two sets of one name with different totals are two sets.
pub(super) fn collect<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<FileSet<'a>> {
    let mut sets: BTreeMap<(&str, &str), Vec<Member<'a>>> = BTreeMap::new();
    for path in paths {
        let shard = Shard::of(path);
        let identity = shard.map_or((path, ""), |shard| (shard.before, shard.after));
        sets.entry(identity).or_default().push((path, shard));
    }
    let mut sets: Vec<FileSet<'a>> = sets.into_values().map(|members| file_set(&members)).collect();
    sets.sort_by(|a, b| (a.dir, &a.name, &a.mark).cmp(&(b.dir, &b.name, &b.mark)));
    sets
}

fn file_set<'a>(members: &[Member<'a>]) -> FileSet<'a> {
    let (dir, file) = split_dir(members[0].0);
    let (name, mark) = members[0].1.map_or_else(|| (file.to_owned(), String::new()), |shard| shard.whole());
    let files = members.iter().map(|(path, _)| *path).collect();
    let shards: Vec<Shard<'a>> = members.iter().filter_map(|(_, shard)| *shard).collect();
    FileSet { dir, name, mark, files, missing: missing_shards(&shards) }
}

/// Paths of the shards that should stand between those that do.
fn missing_shards(shards: &[Shard<'_>]) -> Vec<String> {
    let present: BTreeSet<u32> = shards.iter().filter_map(|shard| shard.number.parse().ok()).collect();
    let (Some(&first), Some(&last)) = (present.first(), present.last()) else {
        return Vec::new(); // no shards, or lettered ones, which promise no number
    };
    // Some exporters count from zero; a set whose first shard is absent must not be taken for one of them.
    let wanted = match shards[0].total {
        Some(total) if first == 0 => 0..total,
        Some(total) => 1..total.saturating_add(1),
        None => 0..last,
    };
    let absent = wanted.len() - present.range(wanted.clone()).count();
    let Shard { before, number, after, .. } = shards[0];
    let width = number.len();
    let mut missing: Vec<String> = wanted
        .filter(|n| !present.contains(n))
        .take(absent.min(MISSING_SHOWN))
        .map(|n| format!("{before}{n:0width$}{after}"))
        .collect();
    if absent > MISSING_SHOWN {
        missing.push(format!("and {} more shards of {before}*{after}", absent - MISSING_SHOWN));
    }
    missing
}
