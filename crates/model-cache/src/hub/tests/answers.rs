//! The JSON endpoints, retries, redirects and refusals.

use super::*;

#[test]
fn every_call_can_move_between_threads() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let (hub, repo, commit, file, quiet) = (client("http://h", false), repo(), commit(), lfs_file(), |_: RetryNotice<'_>| {});
    drop(is_send(hub.model_info(&repo, &Revision::default(), &quiet)));
    drop(is_send(hub.list_tree(&repo, &commit, &quiet)));
    drop(is_send(hub.resolve(&repo, &commit, &file, &quiet)));
    fn range_is_send<'a>(hub: &'a HubClient, location: &'a Location) -> impl Future<Output = Result<RangeOutcome>> + Send + 'a {
        hub.get_range(location, 0..1)
    }
    let _ = range_is_send;
}

#[tokio::test]
async fn offline_nothing_is_asked() {
    let server = Scripted::start(|seen| answer(seen, "200 OK", &[], b"{}"));
    let mut config = config(&server.url, true);
    config.offline = true;
    let hub = HubClient::new(config);
    assert!(matches!(info(&hub).await, Err(Error::Offline { action }) if action == "look up org/name at main"));
    assert!(matches!(list(&hub).await, Err(Error::Offline { .. })));
    assert!(matches!(resolve(&hub, &lfs_file()).await, Err(Error::Offline { .. })));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_info_gives_the_commit_and_says_who_asked() {
    let server = Scripted::start(|seen| {
        let body = json!({"sha": COMMIT, "pipeline_tag": "text-gen\u{7}", "library_name": "gguf", "gated": "manual", "private": true, "x": {}});
        answer(seen, "200 OK", &[("X-HF-Warning", "topic; mind the gap")], body.to_string().as_bytes())
    });
    let found = info(&client(&server.url, true)).await.unwrap();
    let expected = ModelInfo {
        commit: commit(),
        task: Some("text-gen\\u{7}".into()),
        library: Some("gguf".into()),
        private: true,
        gated: true,
        disabled: false,
    };
    assert_eq!(found, expected);
    let seen = &server.seen()[0];
    assert_eq!(seen.target, "/api/models/org/name/revision/main");
    assert_eq!(seen.headers["authorization"], "Bearer hf_secret");
    assert_eq!(seen.headers["accept-encoding"], "identity");
    assert_eq!(seen.headers["user-agent"], concat!("model-cache/", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn an_info_that_cannot_be_is_refused() {
    for body in ["", "[]", "null", "{}", r#"{"sha":null}"#, r#"{"sha":"main"}"#, r#"{"sha":"1234"}"#, "<html>"] {
        let server = Scripted::start(move |seen| answer(seen, "200 OK", &[], body.as_bytes()));
        bad(info(&client(&server.url, false)).await);
        assert_eq!(server.seen().len(), 1, "a bad answer is not asked for again");
    }
    let body = json!({"sha": COMMIT}).to_string();
    let server = Scripted::start(move |seen| answer(seen, "200 OK", &[], body.as_bytes()));
    let asked = OTHER.parse().unwrap();
    let reason = bad(client(&server.url, false).model_info(&repo(), &asked, &|_| {}).await);
    assert!(reason.contains(OTHER) && reason.contains(COMMIT), "{reason}");
}

#[tokio::test]
async fn a_body_without_end_or_compressed_is_refused() {
    for announced in [true, false] {
        let server = Scripted::start(move |seen| match announced {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{".to_vec(),
            false => {
                let _ = seen;
                [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec(), vec![b' '; 9 << 20]].concat()
            }
        });
        assert!(bad(info(&client(&server.url, false)).await).contains("8388608 bytes"));
    }
    let server = Scripted::start(|seen| answer(seen, "200 OK", &[("Content-Encoding", "gzip")], b"{}"));
    assert!(bad(info(&client(&server.url, false)).await).contains("gzip"));
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_told() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let server = Scripted::start(move |seen| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => answer(seen, "503 Service Unavailable", &[], b"busy"),
        1 => answer(seen, "429 Too Many Requests", &[("Retry-After", "0")], b""),
        2 => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec(),
        3 => Vec::new(),
        _ => answer(seen, "200 OK", &[], json!({"sha": COMMIT}).to_string().as_bytes()),
    });
    let heard = Mutex::new(Vec::new());
    let observer = |notice: RetryNotice<'_>| heard.lock().unwrap().push((notice.attempt, notice.reason.to_string()));
    let mut config = config(&server.url, false);
    config.metadata_timeout = Duration::from_secs(1);
    let found = HubClient::new(config).model_info(&repo(), &Revision::default(), &observer).await.unwrap();
    assert_eq!(found.commit, commit());
    let url = format!("{}/api/models/org/name/revision/main", server.url);
    let heard = heard.into_inner().unwrap();
    assert_eq!(heard[0], (1, format!("{url} answered 503: busy")));
    assert_eq!(heard[1], (2, format!("{} limits the rate of requests; it asks to wait 0 s", server.url)));
    assert_eq!(heard[2], (3, format!("could not read from {url}")));
    assert_eq!(heard[3], (4, format!("{url} sent nothing for 1 s")));
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_a_network_error() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let result = info(&client(&format!("http://{closed}"), true)).await;
    assert!(matches!(&result, Err(Error::Network { action: "reach", .. })), "{result:?}");
    assert!(!format!("{result:?}").contains("secret"));
}

#[tokio::test]
async fn pages_are_followed_to_the_last_with_the_token() {
    let server = Scripted::start(|seen| {
        let page = |name: &str| json!([{"type": "file", "path": name, "size": 1, "oid": GIT}]).to_string();
        let host = &seen.headers["host"];
        match seen.target.split_once('?').unwrap().1 {
            "recursive=true&expand=false" => {
                let link = format!("<http://{host}/api/models/org/name/tree/x?cursor=a%3D>; rel=\"next\"");
                answer(seen, "200 OK", &[("Link", "</x>; rel=\"prev\""), ("Link", &link)], page("one").as_bytes())
            }
            "cursor=a%3D" => {
                answer(seen, "200 OK", &[("Link", "</api/models/org/name/tree/x?cursor=b>; rel=next")], page("two").as_bytes())
            }
            _ => answer(seen, "200 OK", &[], page("three").as_bytes()),
        }
    });
    let files = list(&client(&server.url, true)).await.unwrap();
    assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert!(server.seen().iter().all(bearer));
}

#[tokio::test]
async fn a_listing_that_leads_astray_is_refused() {
    let abroad = Scripted::start(|seen| answer(seen, "200 OK", &[], b"[]"));
    let elsewhere = abroad.url.clone();
    for (link, word) in [
        (format!("<{elsewhere}/next>; rel=\"next\""), "not at"),
        ("<http://u:p@HOST/next>; rel=\"next\"".to_owned(), "not at"),
        ("<http://[>; rel=\"next\"".to_owned(), "no address"),
        ("<?cursor=same>; rel=\"next\"".to_owned(), "already read"),
    ] {
        let server = Scripted::start(move |seen| {
            let link = link.replace("HOST", &seen.headers["host"]);
            answer(seen, "200 OK", &[("Link", &link)], b"[]")
        });
        let reason = bad(list(&client(&server.url, true)).await);
        assert!(reason.contains(word), "{reason}");
    }
    assert!(abroad.seen().is_empty());

    let endless = AtomicUsize::new(0);
    let server = Scripted::start(move |seen| {
        let link = format!("<?cursor={}>; rel=\"next\"", endless.fetch_add(1, Ordering::SeqCst));
        let path = format!("{}", endless.load(Ordering::SeqCst));
        let body = json!([{"type": "file", "path": path, "size": if path == "3" { -1 } else { 1 }, "oid": GIT}]);
        answer(seen, "200 OK", &[("Link", &link)], body.to_string().as_bytes())
    });
    assert!(bad(list(&client(&server.url, true)).await).contains("\"3\""), "the bad entry of page 3 ends an endless listing");
}

#[tokio::test]
async fn redirects_keep_the_token_at_home_and_lose_it_abroad_for_good() {
    let home = Scripted::start(|seen| answer(seen, "200 OK", &[], json!({"sha": COMMIT}).to_string().as_bytes()));
    // The endpoint sends the client abroad, and abroad sends it back: the token must not reappear.
    let back = home.url.clone();
    let abroad = Scripted::start(move |seen| answer(seen, "302 Found", &[("Location", &format!("{back}/back"))], b""));
    let away = abroad.url.clone();
    let endpoint = Scripted::start(move |seen| match seen.target.as_str() {
        "/api/models/org/name/revision/main" => {
            answer(seen, "307 Temporary Redirect", &[("Location", "/api/renamed?a=b")], b"moved")
        }
        "/home" => answer(seen, "200 OK", &[], json!({"sha": OTHER}).to_string().as_bytes()),
        _ => answer(seen, "302 Found", &[("Location", &format!("{away}/away"))], b""),
    });
    info(&client(&endpoint.url, true)).await.unwrap();
    assert!(endpoint.seen().iter().all(bearer) && endpoint.seen().len() == 2);
    assert!(!abroad.seen().iter().chain(&home.seen()).any(bearer));
    assert_eq!((abroad.seen().len(), home.seen().len()), (1, 1));

    let again = endpoint.url.clone();
    let boomerang = Scripted::start(move |seen| answer(seen, "302 Found", &[("Location", &format!("{again}/home"))], b""));
    let away = boomerang.url.clone();
    let hub = Scripted::start(move |seen| answer(seen, "302 Found", &[("Location", &away)], b""));
    info(&client(&hub.url, true)).await.unwrap();
    assert!(!bearer(endpoint.seen().last().unwrap()));
}

#[tokio::test]
async fn redirects_without_end_or_aim_are_refused() {
    let server = Scripted::start(|seen| answer(seen, "302 Found", &[("Location", "/again")], b""));
    assert!(bad(info(&client(&server.url, false)).await).contains("20th redirect"));
    assert_eq!(server.seen().len(), 21);
    bad(resolve(&client(&server.url, false), &lfs_file()).await);
    for location in ["file:///etc/passwd", "http://user:pass@127.0.0.1/", "http://[", "ftp://h/"] {
        let server = Scripted::start(move |seen| answer(seen, "302 Found", &[("Location", location)], b""));
        bad(info(&client(&server.url, true)).await);
        bad(resolve(&client(&server.url, true), &lfs_file()).await);
    }
    let server = Scripted::start(|seen| answer(seen, "302 Found", &[], b""));
    bad(info(&client(&server.url, true)).await);
}

#[tokio::test]
async fn what_the_hub_refuses_is_named() {
    let refused = |status: &'static str, headers: &'static [(&str, &str)]| async move {
        let hub = Scripted::start(move |seen| answer(seen, status, headers, b"no"));
        let client = client(&hub.url, true);
        (info(&client).await.unwrap_err(), resolve(&client, &lfs_file()).await.unwrap_err())
    };
    let (repo, file) = refused("404 Not Found", &[("X-Error-Code", "RevisionNotFound")]).await;
    assert!(matches!(repo, Error::RevisionNotFound { .. }) && matches!(file, Error::RevisionNotFound { .. }));
    let (_, file) = refused("404 Not Found", &[("X-Error-Code", "EntryNotFound")]).await;
    assert!(matches!(file, Error::FileNotFound { commit: Some(_), path, .. } if path == "a b.gguf"));
    let (repo, _) = refused("401 Unauthorized", &[("X-Error-Message", "Invalid credentials in Authorization header")]).await;
    assert!(matches!(repo, Error::BadToken { token_source, .. } if token_source == "the test"));
    let (_, file) = refused("403 Forbidden", &[("X-Error-Code", "GatedRepo")]).await;
    assert!(matches!(file, Error::Gated { token_source: Some(_), .. }));
}
