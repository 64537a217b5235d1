//! Where a file is, and its bytes.

use super::*;

#[tokio::test]
async fn an_lfs_file_is_found_on_the_cdn_and_read_there_without_the_token() {
    let cdn = Scripted::start(plain_mirror);
    let address = format!("{}/blob?sig=s3cret", cdn.url);
    let hub = Scripted::start(move |seen| {
        let headers = [
            ("Location", address.as_str()),
            ("X-Repo-Commit", COMMIT),
            ("X-Linked-Etag", &format!("\"{SHA}\"")),
            ("X-Linked-Size", "12"),
        ];
        answer(seen, "302 Found", &headers, b"")
    });
    let client = client(&hub.url, true);
    let location = resolve(&client, &lfs_file()).await.unwrap();
    assert!(!location.is_on_hub() && !format!("{location:?}").contains("s3cret"), "{location:?}");
    let body = open(&client, &location, 3..9).await.unwrap();
    assert_eq!(body.range(), 3..9);
    assert_eq!(read(body).await.unwrap(), BYTES[3..9]);
    let (asked, fetched) = (&hub.seen()[0], &cdn.seen()[0]);
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        ("HEAD", format!("/org/name/resolve/{COMMIT}/a%20b.gguf").as_str())
    );
    assert!(bearer(asked) && !bearer(fetched));
    assert_eq!((fetched.target.as_str(), fetched.headers["range"].as_str()), ("/blob?sig=s3cret", "bytes=3-8"));
}

#[tokio::test]
async fn a_git_file_is_found_behind_relative_redirects_with_the_token() {
    let hub = Scripted::start(|seen| match seen.target.as_str() {
        target if target.contains("/org/name/") => answer(seen, "307 Temporary Redirect", &[("Location", "/canonical?x=1")], b""),
        "/canonical?x=1" => {
            let headers = [("Location", "/api/resolve-cache/f?etag=%22x%22"), ("X-Repo-Commit", COMMIT)];
            answer(seen, "307 Temporary Redirect", &headers, b"see there")
        }
        _ => {
            let headers = [("X-Repo-Commit", COMMIT), ("ETag", "W/\"3b18e512dba79e4c8300dd08aeb37f8e728b8dad\"")];
            answer(seen, "200 OK", &headers, BYTES)
        }
    });
    let client = client(&hub.url, true);
    let location = resolve(&client, &git_file()).await.unwrap();
    assert!(location.is_on_hub());
    // This server ignores ranges: the body says it is the whole file.
    let body = open(&client, &location, 3..9).await.unwrap();
    assert_eq!(body.range(), 0..12);
    assert_eq!(read(body).await.unwrap(), BYTES);
    assert!(hub.seen().iter().all(bearer));
}

#[tokio::test]
async fn a_plain_mirror_works_also_where_head_is_not_allowed() {
    for head_allowed in [true, false] {
        let mirror = Scripted::start(move |seen| match seen.method.as_str() {
            "HEAD" if !head_allowed => answer(seen, "405 Method Not Allowed", &[], b""),
            _ => plain_mirror(seen),
        });
        let client = client(&mirror.url, false);
        let location = resolve(&client, &lfs_file()).await.unwrap();
        let body = open(&client, &location, 0..12).await.unwrap();
        assert_eq!(read(body).await.unwrap(), BYTES);
    }
}

#[tokio::test]
async fn a_file_that_is_not_the_listed_one_is_refused() {
    let linked_other = format!("\"{}\"", "0".repeat(64));
    for (headers, what) in [
        (vec![("X-Repo-Commit", OTHER)], "commit"),
        (vec![("X-Repo-Commit", COMMIT), ("X-Linked-Etag", linked_other.as_str())], "digest"),
        (vec![("X-Repo-Commit", COMMIT), ("X-Linked-Etag", GIT)], "digest"),
        (vec![("X-Repo-Commit", COMMIT), ("ETag", linked_other.as_str())], "digest"),
        (vec![("X-Repo-Commit", COMMIT), ("X-Linked-Size", "13")], "size"),
    ] {
        let headers: Vec<(String, String)> = headers.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let hub = Scripted::start(move |seen| {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            answer(seen, "200 OK", &headers, BYTES)
        });
        let result = resolve(&client(&hub.url, false), &lfs_file()).await;
        assert!(matches!(&result, Err(Error::ContentChanged { what: found, .. }) if *found == what), "{what}: {result:?}");
    }
    let longer = Scripted::start(|seen| answer(seen, "200 OK", &[("X-Repo-Commit", COMMIT)], b"thirteen byte"));
    let result = resolve(&client(&longer.url, false), &lfs_file()).await;
    assert!(matches!(&result, Err(Error::ContentChanged { what: "size", .. })), "{result:?}");
    for headers in [&[][..], &[("X-Repo-Commit", "main")], &[("X-Repo-Commit", COMMIT), ("X-Linked-Size", "-1")]] {
        let hub = Scripted::start(move |seen| answer(seen, "200 OK", headers, BYTES));
        bad(resolve(&client(&hub.url, false), &lfs_file()).await);
    }
    let odd_etag = Scripted::start(|seen| answer(seen, "200 OK", &[("X-Repo-Commit", COMMIT), ("ETag", "\"abc-12\"")], BYTES));
    resolve(&client(&odd_etag.url, false), &lfs_file()).await.unwrap();
}

#[tokio::test]
async fn an_expired_address_is_told_apart_from_a_failure() {
    for status in ["401 U", "403 F", "404 N", "410 G"] {
        let (client, location) = on_cdn(move |seen| answer(seen, status, &[], b"Request has expired")).await;
        match client.get_range(&location, 0..12).await.unwrap() {
            RangeOutcome::Expired(error) => {
                assert!(matches!(error, Error::HubStatus { .. }) && !format!("{error} {error:?}").contains("s3cret"), "{error}")
            }
            RangeOutcome::Body(_) => panic!("{status} has no body"),
        }
    }
    for (status, transient) in [("400 B", false), ("500 I", true), ("429 T", true)] {
        let (client, location) = on_cdn(move |seen| answer(seen, status, &[], b"")).await;
        assert_eq!(client.get_range(&location, 0..12).await.err().unwrap().is_transient(), transient, "{status}");
    }
    // On the Hub itself a code is final; only an address a redirect gave, and no code, can have expired.
    let gated = Scripted::start(|seen| match seen.method.as_str() {
        "HEAD" => answer(seen, "200 OK", &[("X-Repo-Commit", COMMIT)], BYTES),
        _ => answer(seen, "403 Forbidden", &[("X-Error-Code", "GatedRepo")], b""),
    });
    let client = client(&gated.url, true);
    let location = resolve(&client, &lfs_file()).await.unwrap();
    assert!(matches!(client.get_range(&location, 0..12).await, Err(Error::Gated { .. })));
}

#[tokio::test]
async fn bytes_that_were_not_asked_for_are_refused() {
    for (status, content_range, body) in [
        ("206 Partial Content", None, &BYTES[3..9]),
        ("206 Partial Content", Some("bytes 2-7/12"), &BYTES[2..8]),
        ("206 Partial Content", Some("bytes 3-11/12"), &BYTES[3..12]),
        ("206 Partial Content", Some("bytes 3-8/*"), &BYTES[3..9]),
        ("206 Partial Content", Some("bytes 3-8/12"), &BYTES[3..8]),
        ("206 Partial Content", Some("nonsense"), &BYTES[3..9]),
        ("416 Range Not Satisfiable", Some("bytes */12"), b""),
    ] {
        let (client, location) = on_cdn(move |seen| {
            let headers: Vec<_> = content_range.map(|range| ("Content-Range", range)).into_iter().collect();
            answer(seen, status, &headers, body)
        })
        .await;
        bad(client.get_range(&location, 3..9).await);
    }
    for (status, content_range) in [("206 Partial Content", "bytes 3-8/13"), ("416 Range Not Satisfiable", "bytes */2")] {
        let (client, location) =
            on_cdn(move |seen| answer(seen, status, &[("Content-Range", content_range)], &BYTES[3..9])).await;
        assert!(matches!(client.get_range(&location, 3..9).await, Err(Error::ContentChanged { what: "size", .. })));
    }
    let (client, location) = on_cdn(|seen| answer(seen, "200 OK", &[], b"longer than it was")).await;
    assert!(matches!(client.get_range(&location, 3..9).await, Err(Error::ContentChanged { what: "size", .. })));
    for wrong in [3..3, 0..13, 13..14] {
        assert!(matches!(client.get_range(&location, wrong).await, Err(Error::InvalidRange { .. })));
    }
    let (client, location) = on_cdn(|seen| answer(seen, "200 OK", &[("Content-Encoding", "gzip")], BYTES)).await;
    bad(client.get_range(&location, 3..9).await);
}

#[tokio::test]
async fn a_part_may_end_early_and_says_so() {
    let (client, location) =
        on_cdn(|seen| answer(seen, "206 Partial Content", &[("Content-Range", "bytes 3-5/12")], &BYTES[3..6])).await;
    let body = open(&client, &location, 3..9).await.unwrap();
    assert_eq!(body.range(), 3..6);
    assert_eq!(read(body).await.unwrap(), BYTES[3..6]);
}

#[tokio::test]
async fn a_body_that_breaks_off_stalls_or_goes_on_is_an_error() {
    let head = |more: &str| format!("HTTP/1.1 206 P\r\nContent-Range: bytes 0-11/12\r\n{more}\r\n").into_bytes();
    let cut = move |_: &Seen| [head("Content-Length: 12\r\n"), BYTES[..5].to_vec()].concat();
    let (client, location) = on_cdn(cut).await;
    let result = read(open(&client, &location, 0..12).await.unwrap()).await;
    assert!(matches!(result, Err(Error::Network { action: "read from", .. })), "{result:?}");

    let until_close = move |_: &Seen| [head("Connection: close\r\n"), BYTES[..5].to_vec()].concat();
    let (client, location) = on_cdn(until_close).await;
    let result = read(open(&client, &location, 0..12).await.unwrap()).await;
    assert!(matches!(result, Err(Error::Network { action: "read from", .. })), "{result:?}");

    let too_long = move |_: &Seen| [head("Connection: close\r\n"), BYTES.to_vec(), BYTES.to_vec()].concat();
    let (client, location) = on_cdn(too_long).await;
    bad(read(open(&client, &location, 0..12).await.unwrap()).await);

    let (client, location) = on_cdn(|_| Vec::new()).await;
    let hurried = HubClient::new(HubConfig { read_timeout: Duration::from_millis(300), ..client.config().clone() });
    let result = hurried.get_range(&location, 0..12).await;
    assert!(matches!(result, Err(Error::Stalled { after, .. }) if after == Duration::from_millis(300)));
}
