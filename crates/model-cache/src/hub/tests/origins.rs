//! Against whole Hubs: the fixture with its faults, and any real one the environment names.

use super::*;
use hub_fixture::{Content, Fault, GOOD_TOKEN, Hub, Repo, Server, Target, UNLISTED_TOKEN};

/// A client of the fixture, with the token if one is given.
fn client_of(hub: &Hub, token: Option<&str>) -> HubClient {
    let mut config = config(&hub.endpoint(), false);
    config.token = token.map(|token| Token::new(token, "token", "the test").unwrap());
    config.read_timeout = Duration::from_secs(2);
    HubClient::new(config)
}

/// Reads every file of `main` in three ranges and checks its digest; gives the paths.
async fn pull(hub: &HubClient, repo: &RepoId) -> Result<Vec<String>> {
    let info = hub.model_info(repo, &Revision::default(), &|_| {}).await?;
    let mut paths = Vec::new();
    for file in hub.list_tree(repo, &info.commit, &|_| {}).await? {
        let location = hub.resolve(repo, &info.commit, &file, &|_| {}).await?;
        let (third, size) = (file.size_bytes / 3, file.size_bytes);
        let mut hasher = file.digest.hasher(size);
        for range in [0..third, third..2 * third, 2 * third..size].into_iter().filter(|range| !range.is_empty()) {
            let body = open(hub, &location, range.clone()).await?;
            assert_eq!(body.range(), range);
            hasher.update(&read(body).await?);
        }
        assert_eq!(hasher.finish(), file.digest, "{}", file.path);
        paths.push(file.path.to_string());
    }
    Ok(paths)
}

const NAMES: [&str; 7] = ["a+b c%20.txt", "config.json", "empty.bin", "empty.txt", "m.gguf", "onnx/m?.onnx", "ü/#é.json"];

fn strange_repo() -> Repo {
    NAMES.into_iter().enumerate().fold(Repo::new("org/name"), |repo, (n, name)| {
        let size = if name.starts_with("empty") { 0 } else { 1000 * n as u64 + 1 };
        repo.file(name, Content::seeded(n as u64, size))
    })
}

#[tokio::test]
async fn a_whole_repo_arrives_page_by_page_and_the_cdn_never_sees_the_token() {
    for repo in [strange_repo(), strange_repo().private(), strange_repo().gated()] {
        let hub = Hub::builder().repo(repo).page_entries(2).start().unwrap();
        let mut paths = pull(&client_of(&hub, Some(GOOD_TOKEN)), &self::repo()).await.unwrap();
        paths.sort();
        assert_eq!(paths, NAMES);
        for request in hub.requests() {
            assert_eq!(request.authorization.is_some(), request.server == Server::Hub, "{request:?}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_revision_is_found_and_a_missing_one_named() {
    let repo = strange_repo().tag("v1.0").branch("feature/x", [("f", "x")]).pull_request(1, [("f", "y")]);
    let hub = Hub::start(vec![repo.renamed_from("old/name")]);
    let client = client_of(&hub, None);
    let main = hub.commit("org/name", "main").unwrap();
    for (asked, commit) in [
        ("main", main.clone()),
        ("v1.0", main.clone()),
        (main.as_str(), main.clone()),
        ("feature/x", hub.commit("org/name", "feature/x").unwrap()),
        ("refs/pr/1", hub.commit("org/name", "refs/pr/1").unwrap()),
    ] {
        let info = client.model_info(&self::repo(), &asked.parse().unwrap(), &|_| {}).await.unwrap();
        assert_eq!(info.commit.as_str(), commit, "{asked}");
    }
    let missing = client.model_info(&self::repo(), &"nowhere".parse().unwrap(), &|_| {}).await;
    assert!(matches!(missing, Err(Error::RevisionNotFound { .. })), "{missing:?}");
    let renamed = pull(&client, &"old/name".parse().unwrap()).await.unwrap();
    assert_eq!(renamed.len(), NAMES.len());
}

#[tokio::test]
async fn who_may_not_is_told_why() {
    let private = Repo::new("org/private").file("m.gguf", "x").private();
    let gated = Repo::new("org/gated").file("m.gguf", "x").file("README.md", "y").gated();
    let hub = Hub::start(vec![private, gated, Repo::new("org/off").file("m.gguf", "x").disabled()]);
    let tried = |repo: &'static str, token: Option<&'static str>| {
        let client = client_of(&hub, token);
        async move { pull(&client, &repo.parse().unwrap()).await.unwrap_err() }
    };
    let error = tried("org/gated", None).await;
    assert!(matches!(error, Error::Gated { token_source: None, .. }), "{error:?}");
    let error = tried("org/gated", Some(UNLISTED_TOKEN)).await;
    assert!(matches!(error, Error::Gated { token_source: Some(_), .. }), "{error:?}");
    for repo in ["org/private", "org/missing"] {
        let error = tried(repo, None).await;
        assert!(matches!(error, Error::RepoNotFound { token_source: None, .. }), "{error:?}");
        let error = tried(repo, Some(UNLISTED_TOKEN)).await;
        assert!(matches!(error, Error::RepoNotFound { token_source: Some(_), .. }), "{error:?}");
    }
    let error = tried("org/private", Some("hf_garbage")).await;
    assert!(matches!(error, Error::BadToken { .. }), "{error:?}");
    let error = tried("org/off", Some(GOOD_TOKEN)).await;
    assert!(matches!(error, Error::Disabled { .. }), "{error:?}");
}

#[tokio::test]
async fn passing_faults_are_outlasted() {
    let hub = Hub::start(vec![strange_repo()]);
    hub.faults().once(Target::path("/revision/").hub(), Fault::status(503));
    hub.faults().once(Target::path("/tree/").hub(), Fault::rate_limited(0));
    hub.faults().once(Target::path("/resolve/").hub(), Fault::CutBody { after_bytes: 0 });
    hub.faults().times(2, Target::path("m.gguf").hub(), Fault::status(500));
    let started = std::time::Instant::now();
    assert_eq!(pull(&client_of(&hub, None), &repo()).await.unwrap().len(), NAMES.len());
    assert!(started.elapsed() >= Duration::from_secs(1), "the exhausted window and its second were waited for");
}

#[tokio::test]
async fn an_expired_address_is_replaced_by_resolving_again() {
    let hub = Hub::start(vec![strange_repo()]);
    let client = client_of(&hub, Some(GOOD_TOKEN));
    let commit = hub.commit("org/name", "main").unwrap().parse().unwrap();
    let files = client.list_tree(&repo(), &commit, &|_| {}).await.unwrap();
    let file = files.iter().find(|file| file.path.as_str() == "m.gguf").unwrap();
    let location = client.resolve(&repo(), &commit, file, &|_| {}).await.unwrap();
    hub.expire_urls();
    assert!(matches!(client.get_range(&location, 0..9).await, Ok(RangeOutcome::Expired(_))));
    let location = client.resolve(&repo(), &commit, file, &|_| {}).await.unwrap();
    assert_eq!(read(open(&client, &location, 1..9).await.unwrap()).await.unwrap().len(), 8);
}

#[tokio::test]
async fn lies_about_a_file_are_noticed() {
    let hub = Hub::start(vec![strange_repo()]);
    let client = client_of(&hub, None);
    let target = || Target::path("m.gguf");
    for (fault, what) in [(Fault::WrongEtag("0".repeat(64)), "digest"), (Fault::WrongLinkedSize(7), "size")] {
        hub.faults().once(target().hub(), fault);
        let result = pull(&client, &repo()).await;
        assert!(matches!(&result, Err(Error::ContentChanged { what: found, .. }) if *found == what), "{what}: {result:?}");
    }
    hub.faults().once(target().cdn(), Fault::WrongContentRange { start: None, total: Some(1 << 20) });
    let result = pull(&client, &repo()).await;
    assert!(matches!(&result, Err(Error::ContentChanged { what: "size", .. })), "{result:?}");
    hub.faults().once(target().cdn(), Fault::WrongContentRange { start: Some(1), total: None });
    bad(pull(&client, &repo()).await);
    hub.faults().once(target().cdn(), Fault::Stall { after_bytes: 10 });
    assert!(matches!(pull(&client, &repo()).await, Err(Error::Stalled { .. })));
    hub.faults().once(target().cdn(), Fault::CutBody { after_bytes: 10 });
    assert!(matches!(pull(&client, &repo()).await, Err(Error::Network { .. })));
}

#[tokio::test]
async fn an_endless_listing_ends() {
    let hub = Hub::builder().repo(strange_repo()).page_entries(1000).start().unwrap();
    let id = hub.faults().always(Target::path("/tree/").hub(), Fault::EndlessPaging { fresh: false });
    let reason = bad(pull(&client_of(&hub, None), &repo()).await);
    assert!(reason.contains("twice"), "{reason}");
    hub.faults().remove(id);
    hub.faults().always(Target::path("/tree/").hub(), Fault::EndlessPaging { fresh: true });
    let reason = bad(pull(&client_of(&hub, None), &repo()).await);
    assert!(reason.contains("more than"), "{reason}");
}

#[tokio::test]
async fn redirect_loops_and_strangers_end() {
    let hub = Hub::start(vec![strange_repo()]);
    hub.faults().once(Target::path("/revision/").hub(), Fault::RedirectTo("file:///etc/passwd".to_owned()));
    bad(pull(&client_of(&hub, None), &repo()).await);
    let id = hub.faults().always(Target::path("m.gguf").cdn(), Fault::RedirectLoop);
    bad(pull(&client_of(&hub, None), &repo()).await);
    hub.faults().remove(id);
    hub.faults().always(Target::path("/resolve/").hub(), Fault::RedirectLoop);
    bad(pull(&client_of(&hub, None), &repo()).await);
}

/// Pulls a whole repo from a real origin, checking every digest: `MODEL_CACHE_TEST_ENDPOINT=http://127.0.0.1:18080
/// MODEL_CACHE_TEST_REPO=org/name`, with `HF_TOKEN` if it needs one. Reads each file in three ranges.
#[tokio::test]
async fn a_real_origin_gives_what_it_lists() {
    let (Ok(endpoint), Ok(repo)) = (std::env::var("MODEL_CACHE_TEST_ENDPOINT"), std::env::var("MODEL_CACHE_TEST_REPO")) else {
        return;
    };
    let mut config = HubConfig::from_env(&|name| std::env::var_os(name)).unwrap();
    config.endpoint = parse_endpoint("MODEL_CACHE_TEST_ENDPOINT", &endpoint).unwrap();
    let (hub, repo): (_, RepoId) = (HubClient::new(config), repo.parse().unwrap());
    assert!(!pull(&hub, &repo).await.unwrap().is_empty());
}
