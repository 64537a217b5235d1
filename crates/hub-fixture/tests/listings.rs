//! The JSON endpoints, their paging and their refusals.

mod common;

use common::{ask, get};
use hub_fixture::{Content, File, GOOD_TOKEN, Hub, Repo, UNLISTED_TOKEN};
use serde_json::{Value, json};

fn repo() -> Repo {
    Repo::new("org/name")
        .file("README.md", "# hi\n")
        .file("onnx/model.onnx", "onnx bytes")
        .file("onnx/deep/extra.json", "{}")
        .file("model.gguf", Content::seeded(3, 5000))
        .pipeline_tag("text-generation")
}

fn paths(rows: &Value) -> Vec<String> {
    rows.as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn info_names_the_commit_and_the_files() {
    let hub = Hub::start(vec![repo()]);
    let info = get(hub.endpoint() + "/api/models/org/name").json();
    assert_eq!(info["id"], "org/name");
    assert_eq!(info["sha"].as_str(), hub.commit("org/name", "main").as_deref());
    assert_eq!(info["pipeline_tag"], "text-generation");
    assert_eq!(info["gated"], false);
    assert_eq!(info["siblings"][0], json!({"rfilename": "README.md"}));
    assert_eq!(info["siblings"].as_array().unwrap().len(), 4);
}

#[test]
fn info_with_blobs_says_lfs_sha256_where_the_tree_says_lfs_oid() {
    let hub = Hub::start(vec![repo()]);
    let sha256 = Content::seeded(3, 5000).sha256().unwrap();
    let info = get(hub.endpoint() + "/api/models/org/name/revision/main?blobs=true").json();
    let sibling = info["siblings"].as_array().unwrap().iter().find(|row| row["rfilename"] == "model.gguf").unwrap();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 5000\n");
    assert_eq!(sibling["lfs"], json!({"sha256": sha256, "size": 5000, "pointerSize": pointer.len()}));
    assert_eq!(sibling["blobId"], Content::from(pointer.as_str()).git_blob_id().unwrap());
    let tree = get(hub.endpoint() + "/api/models/org/name/tree/main").json();
    let row = tree.as_array().unwrap().iter().find(|row| row["path"] == "model.gguf").unwrap();
    assert_eq!(row["lfs"], json!({"oid": sha256, "size": 5000, "pointerSize": pointer.len()}));
    assert_eq!(row["oid"], sibling["blobId"]);
}

#[test]
fn info_expand_keeps_only_what_is_named() {
    let hub = Hub::start(vec![repo()]);
    let info = get(hub.endpoint() + "/api/models/org/name?expand=sha&expand=pipeline_tag").json();
    let keys: Vec<_> = info.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["_id", "id", "pipeline_tag", "sha"]);
}

#[test]
fn tree_lists_one_level_or_all_below_a_directory() {
    let hub = Hub::start(vec![repo()]);
    let tree = |rest: &str| paths(&get(format!("{}/api/models/org/name/tree/main{rest}", hub.endpoint())).json());
    assert_eq!(tree(""), ["onnx", "README.md", "model.gguf"]);
    assert_eq!(tree("/onnx"), ["onnx/deep", "onnx/model.onnx"]);
    assert_eq!(tree("/onnx%2Fdeep"), ["onnx/deep/extra.json"]);
    assert_eq!(
        tree("?recursive=True"),
        ["onnx", "onnx/deep", "README.md", "model.gguf", "onnx/deep/extra.json", "onnx/model.onnx"]
    );
    assert_eq!(get(hub.endpoint() + "/api/models/org/name/tree/main/nowhere").expect("x-error-code"), "EntryNotFound");
}

#[test]
fn expanded_rows_tell_commit_and_security() {
    let hub = Hub::start(vec![repo()]);
    let rows = get(hub.endpoint() + "/api/models/org/name/tree/main?expand=true").json();
    assert_eq!(rows[0]["lastCommit"]["id"].as_str(), hub.commit("org/name", "main").as_deref());
    assert_eq!(rows[0].get("securityFileStatus"), None);
    assert_eq!(rows[1]["securityFileStatus"]["status"], "safe");
}

#[test]
fn pages_are_linked_by_absolute_urls_until_the_last() {
    let many = (0..10).fold(Repo::new("o/n"), |repo, i| repo.file(format!("f{i}.txt"), i.to_string()));
    let hub = Hub::builder().repo(many).page_entries(4).start().unwrap();
    let mut url = hub.endpoint() + "/api/models/o/n/tree/main?recursive=true&expand=false";
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let page = get(url.as_str());
        let rows = paths(&page.json());
        sizes.push(rows.len());
        seen.extend(rows);
        let Some(link) = page.header("link") else { break };
        url = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap().to_owned();
        assert!(url.starts_with(&hub.endpoint()) && url.contains("recursive=true"), "{url}");
    }
    assert_eq!(sizes, [4, 4, 2]);
    assert_eq!(seen, (0..10).map(|i| format!("f{i}.txt")).collect::<Vec<_>>());
}

#[test]
fn refs_list_branches_tags_and_on_demand_pull_requests() {
    let hub = Hub::start(vec![repo().branch("dev/x", [("a", "1")]).tag("v1").pull_request(7, [("b", "2")])]);
    let refs = get(hub.endpoint() + "/api/models/org/name/refs").json();
    let names = |kind: &str| refs[kind].as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names("branches"), ["dev/x", "main"]);
    assert_eq!(names("tags"), ["v1"]);
    assert_eq!(refs["tags"][0]["ref"], "refs/tags/v1");
    assert_eq!(refs["tags"][0]["targetCommit"].as_str(), hub.commit("org/name", "main").as_deref());
    assert_eq!((names("converts").len(), names("pullRequests").len()), (0, 0));
    let refs = get(hub.endpoint() + "/api/models/org/name/refs?include_prs=1").json();
    assert_eq!(refs["pullRequests"][0]["ref"], "refs/pr/7");
}

#[test]
fn a_revision_is_a_branch_a_tag_a_full_ref_or_a_commit_id() {
    let hub = Hub::start(vec![repo().branch("dev/x", [("a", "1")]).tag_of("t", "dev/x").pull_request(1, [("b", "2")])]);
    let sha = |revision: &str| {
        get(format!("{}/api/models/org/name/revision/{revision}", hub.endpoint())).json()["sha"].as_str().unwrap().to_owned()
    };
    let dev = hub.commit("org/name", "dev/x").unwrap();
    assert_eq!(
        (sha("dev%2Fx"), sha("t"), sha("refs%2Fheads%2Fdev%2Fx"), sha(&dev)),
        (dev.clone(), dev.clone(), dev.clone(), dev)
    );
    assert_eq!(sha("refs%2Fpr%2F1"), sha("refs/pr/1"));
    assert_ne!(sha("main"), sha("refs%2Fpr%2F1"));
}

#[test]
fn paths_info_takes_forms_and_json_and_leaves_out_what_is_not_there() {
    let hub = Hub::start(vec![repo()]);
    let url = hub.endpoint() + "/api/models/org/name/paths-info/main";
    let form = ask("POST", &url).body("application/x-www-form-urlencoded", "paths=README.md&paths=no&paths=onnx&expand=false");
    assert_eq!(paths(&form.send().json()), ["onnx", "README.md"]);
    let json = ask("POST", &url).body("application/json", r#"{"paths":["onnx/model.onnx"],"expand":true}"#).send().json();
    assert_eq!(paths(&json), ["onnx/model.onnx"]);
    assert!(json[0]["lastCommit"].is_object());
    assert_eq!(ask("POST", &url).body("application/json", "{").send().status, 400);
    assert_eq!(get(url).status, 405);
}

#[test]
fn whoami_knows_two_tokens() {
    let hub = Hub::start(vec![]);
    let url = hub.endpoint() + "/api/whoami-v2";
    assert_eq!(ask("GET", &url).token(GOOD_TOKEN).send().json()["name"], "tester");
    assert_eq!(ask("GET", &url).token(UNLISTED_TOKEN).send().json()["name"], "stranger");
    assert_eq!(ask("GET", &url).token("hf_x").send().status, 401);
    assert_eq!(get(url).status, 401);
}

#[test]
fn a_missing_repo_and_a_private_one_look_the_same() {
    let hub = Hub::start(vec![Repo::new("org/secret").private().file("a", "b")]);
    for repo in ["org/secret", "org/missing"] {
        for url in [format!("/api/models/{repo}"), format!("/{repo}/resolve/main/a")] {
            let url = hub.endpoint() + &url;
            for (answer, status) in [(get(&url), 401), (ask("GET", &url).token(UNLISTED_TOKEN).send(), 404)] {
                assert_eq!((answer.status, answer.expect("x-error-code")), (status, "RepoNotFound"), "{url}");
                assert_eq!(answer.json(), json!({"error": "Repository not found"}));
                assert_eq!(answer.expect("x-error-message"), "Repository not found");
            }
        }
    }
    assert_eq!(ask("GET", hub.endpoint() + "/api/models/org/secret").token(GOOD_TOKEN).send().status, 200);
    assert_eq!(ask("GET", hub.endpoint() + "/api/models/org/missing").token(GOOD_TOKEN).send().status, 404);
}

#[test]
fn a_garbage_token_is_refused_even_for_public_repos() {
    let hub = Hub::start(vec![repo()]);
    let answer = ask("GET", hub.endpoint() + "/api/models/org/name").token("hf_typo").send();
    assert_eq!((answer.status, answer.header("x-error-code")), (401, None));
    assert_eq!(answer.expect("x-error-message"), "Invalid credentials in Authorization header");
}

#[test]
fn gating_closes_bytes_and_leaves_listings_open() {
    let hub = Hub::start(vec![Repo::new("o/gated").gated().file("m.bin", "x").file("c.json", "{}")]);
    assert_eq!(get(hub.endpoint() + "/api/models/o/gated").json()["gated"], "manual");
    assert_eq!(get(hub.endpoint() + "/api/models/o/gated/tree/main").status, 200);
    for path in ["m.bin", "c.json"] {
        let url = format!("{}/o/gated/resolve/main/{path}", hub.endpoint());
        for (token, status) in [(None, 401), (Some("hf_typo"), 401), (Some(UNLISTED_TOKEN), 403)] {
            let answer = token.map_or_else(|| ask("HEAD", &url), |token| ask("HEAD", &url).token(token)).send();
            assert_eq!((answer.status, answer.expect("x-error-code")), (status, "GatedRepo"), "{token:?}");
        }
        assert!(matches!(ask("HEAD", &url).token(GOOD_TOKEN).send().status, 302 | 307));
    }
}

#[test]
fn a_disabled_repo_says_so_without_a_code() {
    let hub = Hub::start(vec![Repo::new("o/off").disabled().file("a", "b")]);
    for url in ["/api/models/o/off", "/o/off/resolve/main/a"] {
        let answer = get(hub.endpoint() + url);
        assert_eq!((answer.status, answer.header("x-error-code")), (403, None));
        assert_eq!(answer.expect("x-error-message"), "Access to this resource is disabled.");
    }
}

#[test]
fn an_unknown_revision_is_named_in_the_refusal() {
    let hub = Hub::start(vec![repo()]);
    for url in ["/api/models/org/name/revision/no%2Fpe", "/api/models/org/name/tree/no%2Fpe", "/org/name/resolve/no%2Fpe/a"] {
        let answer = get(hub.endpoint() + url);
        assert_eq!((answer.status, answer.expect("x-error-code")), (404, "RevisionNotFound"));
        assert_eq!(answer.expect("x-error-message"), "Invalid rev id: no/pe");
    }
}

#[test]
fn every_answer_of_the_hub_has_a_request_id_and_a_budget() {
    let hub = Hub::start(vec![repo()]);
    for url in ["/api/models/org/name", "/org/name/resolve/main/README.md", "/nowhere"] {
        let answer = get(hub.endpoint() + url);
        assert!(answer.header("x-request-id").is_some());
        assert!(answer.expect("ratelimit").contains(";r="));
        assert!(answer.expect("ratelimit-policy").contains("w=300"));
    }
    assert_eq!(get(hub.endpoint() + "/api/agent-harnesses").status, 404);
}

#[test]
fn an_old_name_or_other_letter_case_redirects_to_the_canonical_one() {
    let hub = Hub::start(vec![repo().renamed_from("old/name").renamed_from("legacy")]);
    for (asked, location) in [
        ("/old/name/resolve/main/README.md", "/org/name/resolve/main/README.md"),
        ("/ORG/Name/resolve/main/README.md", "/org/name/resolve/main/README.md"),
        ("/api/models/old/name/tree/main?recursive=true", "/api/models/org/name/tree/main?recursive=true"),
        ("/api/models/legacy/revision/main", "/api/models/org/name/revision/main"),
    ] {
        let answer = get(hub.endpoint() + asked);
        assert_eq!((answer.status, answer.expect("location"), answer.header("etag")), (307, location, None));
    }
}

#[test]
fn a_push_moves_the_branch_and_keeps_the_old_commit() {
    let hub = Hub::start(vec![repo()]);
    let before = hub.commit("org/name", "main").unwrap();
    let after = hub.push("org/name", "main", [File::new("README.md", "new"), File::new("w.bin", "weights")]);
    assert_ne!(before, after);
    assert_eq!(hub.commit("org/name", "main").unwrap(), after);
    let size = |revision: &str, path: &str| hub.file("org/name", revision, path).map(|file| file.size);
    assert_eq!((size(&before, "README.md"), size("main", "README.md")), (Some(5), Some(3)));
    assert_eq!((size(&before, "w.bin"), size("main", "w.bin"), size("main", "model.gguf")), (None, Some(7), Some(5000)));
    hub.delete("org/name", "main", &["model.gguf"]);
    assert_eq!((size("main", "model.gguf"), size(&after, "model.gguf")), (None, Some(5000)));
    assert_eq!(hub.push("org/name", "fresh", [("only", "1")]), hub.commit("org/name", "fresh").unwrap());
    assert_eq!(size("fresh", "README.md"), None);
}
