//! The fail points there are, as the sources name them.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Crates whose fail points a worker passes.
const CRATES: [&str; 2] = ["storage", "model-cache"];

/// Every name given to `fail_point` in the sources this program was built from.
///
/// # Errors
/// Those of reading the sources, which have to be where they were.
pub fn all() -> io::Result<BTreeSet<String>> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> = CRATES.iter().map(|name| crates.join(name).join("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)?;
                // Lines of docs show the call too.
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                found.extend(code.flat_map(names_in));
            }
        }
    }
    Ok(found)
}

fn names_in(line: &str) -> Vec<String> {
    let mut calls = line.split("fail_point(\"").skip(1);
    let mut names = Vec::new();
    for call in calls.by_ref() {
        names.extend(call.split_once('"').map(|(name, _)| name.to_owned()));
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_sources_name_points_of_both_crates() {
        let points = super::all().unwrap();
        assert!(points.contains("reserve.committed") && points.contains("fill.data_synced"), "{points:?}");
    }
}
