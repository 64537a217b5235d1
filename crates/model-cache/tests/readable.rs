//! What is said to be readable is what reads find: each name, each path, the same content, and nothing else.

mod common;

use common::*;
use hub_fixture::{Content, File, Target};
use tabagent_model_cache::*;

/// That reads find what `repo` lists, and gives its paths.
fn assert_found(cache: &ModelCache, repo: &ReadableRepo) -> Vec<String> {
    let spec = repo.spec.to_string();
    for file in &repo.files {
        let open = cache.get_file(&spec, file.path.as_str()).unwrap().unwrap_or_else(|| panic!("{spec} {}", file.path));
        assert_eq!((open.digest(), open.len() as u64), (file.digest.as_str(), file.size_bytes), "{spec} {}", file.path);
    }
    assert_eq!(cache.readable_in(&spec).unwrap().files, repo.files, "{spec}");
    repo.files.iter().map(|file| file.path.to_string()).collect()
}

#[tokio::test]
async fn every_name_says_what_its_reads_find() {
    let hub = hub(1, MIB);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(&dir.path().join("store"), &hub);
    assert!(cache.readable().unwrap().is_empty());
    assert!(matches!(cache.readable_in(REPO), Err(Error::NotInStore { .. })));
    cache.pull(REPO).all(true).run().await.unwrap();
    let old = hub.commit(REPO, "main").unwrap();
    // A new commit of which one file comes, and the other does not.
    hub.push(REPO, "main", [File::new("config.json", "new"), File::new("other.bin", Content::seeded(2, MIB))]);
    let new = hub.commit(REPO, "main").unwrap();
    hub.faults().always(Target::path("other.bin"), hub_fixture::Fault::status(404));
    cache.pull(REPO).all(true).run().await.unwrap_err();
    std::fs::write(dir.path().join("mine.bin"), "mine").unwrap();
    cache.import("me/mine", &[dir.path().join("mine.bin")], &ImportOptions::default()).unwrap();
    let found = cache.readable().unwrap();
    let names: Vec<_> = found.iter().map(|repo| repo.spec.to_string()).collect();
    let mut expected = vec!["me/mine".to_owned(), REPO.to_owned(), format!("{REPO}@{old}"), format!("{REPO}@{new}")];
    expected[2..].sort();
    assert_eq!(names, expected);
    for repo in &found {
        let paths = assert_found(&cache, repo);
        match &repo.spec {
            spec if spec.repo.as_str() == "me/mine" => assert_eq!((paths, &repo.commit), (vec!["mine.bin".to_owned()], &None)),
            // Reads stay with the commit that was pulled whole.
            spec if spec.revision.is_none() => {
                assert_eq!(paths, ["config.json", "model.gguf"]);
                assert_eq!(repo.commit.as_ref().unwrap().as_str(), old);
                assert_eq!(repo.files[0].size_bytes, 2);
            }
            spec => assert_eq!(spec.revision.as_ref().unwrap().as_str(), repo.commit.as_ref().unwrap().as_str()),
        }
    }
    // Nothing of it takes a lease.
    assert!(cache.list().unwrap().iter().all(|repo| repo.readers.is_empty()));
}
