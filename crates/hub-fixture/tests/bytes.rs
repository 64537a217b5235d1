//! From `/resolve/` to the bytes: redirects, ranges, signatures, tokens, and the count of what was sent.

mod common;

use common::{ask, get, head, wait_until};
use hub_fixture::{Content, GOOD_TOKEN, Hub, Repo, Server};
use std::time::Duration;

const SIZE: u64 = 300_000;

fn content() -> Content {
    Content::seeded(9, SIZE)
}

fn hub() -> Hub {
    Hub::start(vec![Repo::new("o/n").file("m.gguf", content()).file("a dir/c+d é.json", "{\"a\":1}").file("empty.bin", "")])
}

fn cdn_url(hub: &Hub, path: &str) -> String {
    get(format!("{}/o/n/resolve/main/{path}", hub.endpoint())).expect("location").to_owned()
}

#[test]
fn an_lfs_file_redirects_to_the_cdn_with_its_metadata() {
    let hub = hub();
    let commit = hub.commit("o/n", "main").unwrap();
    let etag = format!("\"{}\"", content().sha256().unwrap());
    for method in ["HEAD", "GET"] {
        let answer = ask(method, hub.endpoint() + "/o/n/resolve/main/m.gguf").send();
        assert_eq!(answer.status, 302);
        assert_eq!(answer.expect("x-repo-commit"), commit);
        assert_eq!(answer.expect("x-linked-etag"), etag);
        assert_eq!(answer.expect("x-linked-size"), SIZE.to_string());
        assert_eq!(answer.header("x-xet-hash"), None);
        assert!(answer.expect("location").starts_with(&hub.cdn_endpoint()));
        assert!(answer.expect("location").contains("X-Amz-Signature="));
    }
}

#[test]
fn a_git_file_redirects_relatively_to_the_resolve_cache() {
    let hub = hub();
    let answer = head(hub.endpoint() + "/o/n/resolve/main/a%20dir/c%2Bd%20%C3%A9.json");
    let commit = hub.commit("o/n", "main").unwrap();
    let etag = Content::from("{\"a\":1}").git_blob_id().unwrap();
    assert_eq!(answer.status, 307);
    let location = format!("/api/resolve-cache/models/o/n/{commit}/a%20dir/c%2Bd%20%C3%A9.json?etag=%22{etag}%22");
    assert_eq!(answer.expect("location"), location);
    let quoted = format!("\"{etag}\"");
    assert_eq!((answer.expect("x-linked-etag"), answer.expect("x-linked-size")), (quoted.as_str(), "7"));
    let bytes = get(hub.endpoint() + &location);
    assert_eq!((bytes.status, bytes.text().as_str(), bytes.expect("etag")), (200, "{\"a\":1}", quoted.as_str()));
    assert_eq!(bytes.expect("x-repo-commit"), commit);
    let without_query = location.split('?').next().unwrap();
    assert_eq!(get(hub.endpoint() + without_query).status, 200);
}

#[test]
fn the_resolve_cache_wants_a_full_commit_id() {
    let hub = hub();
    assert_eq!(get(hub.endpoint() + "/api/resolve-cache/models/o/n/main/m.gguf").status, 400);
}

#[test]
fn a_missing_file_still_names_the_commit() {
    let hub = hub();
    let answer = head(hub.endpoint() + "/o/n/resolve/main/nope.txt");
    assert_eq!((answer.status, answer.expect("x-error-code")), (404, "EntryNotFound"));
    assert_eq!(answer.expect("x-repo-commit"), hub.commit("o/n", "main").unwrap());
}

#[test]
fn raw_gives_the_pointer_of_an_lfs_file() {
    let hub = hub();
    let pointer = get(hub.endpoint() + "/o/n/raw/main/m.gguf").text();
    assert!(pointer.starts_with("version https://git-lfs.github.com/spec/v1\noid sha256:"), "{pointer}");
    assert!(pointer.ends_with(&format!("size {SIZE}\n")));
}

#[test]
fn a_known_etag_is_answered_304() {
    let hub = hub();
    for path in ["m.gguf", "a%20dir/c%2Bd%20%C3%A9.json"] {
        let url = format!("{}/o/n/resolve/main/{path}", hub.endpoint());
        let etag = head(&url).expect("x-linked-etag").to_owned();
        let answer = ask("GET", &url).header("If-None-Match", &etag).send();
        assert_eq!((answer.status, answer.body.len(), answer.expect("etag")), (304, 0, etag.as_str()));
        assert!(ask("HEAD", &url).header("If-None-Match", "\"other\"").send().header("location").is_some());
    }
}

#[test]
fn the_cdn_serves_the_file_whole_and_in_ranges() {
    let hub = hub();
    let url = cdn_url(&hub, "m.gguf");
    let whole = content().read(0..SIZE).unwrap();
    let answer = get(&url);
    assert_eq!((answer.status, answer.complete, answer.body == whole[..]), (200, true, true));
    assert_eq!(answer.expect("accept-ranges"), "bytes");
    assert_eq!(answer.expect("content-disposition"), "inline; filename*=UTF-8''m.gguf");
    for (range, from, to) in
        [("0-0", 0, 1), ("100000-199999", 100_000, 200_000), ("299999-", SIZE - 1, SIZE), ("-10", SIZE - 10, SIZE)]
    {
        let answer = ask("GET", &url).range(range).send();
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.expect("content-range"), format!("bytes {from}-{}/{SIZE}", to - 1));
        assert_eq!(answer.body, whole[from as usize..to as usize]);
    }
    let answer = ask("GET", &url).range("300000-").send();
    assert_eq!((answer.status, answer.expect("content-range")), (416, "bytes */300000"));
    assert_eq!(ask("GET", &url).range("0-1,5-6").send().status, 200);
    let answer = ask("HEAD", &url).range("5-9").send();
    assert_eq!((answer.status, answer.expect("content-length"), answer.body.len()), (206, "5", 0));
}

#[test]
fn an_empty_file_has_no_range_to_give() {
    let hub = hub();
    let url = cdn_url(&hub, "empty.bin");
    assert_eq!((get(&url).status, get(&url).expect("content-length")), (200, "0"));
    let answer = ask("GET", &url).range("0-0").send();
    assert_eq!((answer.status, answer.expect("content-range")), (416, "bytes */0"));
}

#[test]
fn git_files_have_ranges_too() {
    let hub = hub();
    let location = cdn_url(&hub, "a%20dir/c%2Bd%20%C3%A9.json");
    let answer = ask("GET", hub.endpoint() + &location).range("2-4").send();
    assert_eq!((answer.status, answer.text().as_str(), answer.expect("content-range")), (206, "a\":", "bytes 2-4/7"));
}

#[test]
fn if_range_with_another_etag_gives_the_whole() {
    let hub = hub();
    let url = cdn_url(&hub, "m.gguf");
    let etag = head(&url).expect("etag").to_owned();
    assert_eq!(ask("GET", &url).range("0-9").header("If-Range", &etag).send().status, 206);
    assert_eq!(ask("GET", &url).range("0-9").header("If-Range", "\"old\"").send().status, 200);
}

#[test]
fn the_cdn_etag_looks_like_a_sha256_and_is_not_the_files() {
    let hub = hub();
    let answer = head(cdn_url(&hub, "m.gguf"));
    let etag = answer.expect("etag").trim_matches('"');
    assert_eq!(etag.len(), 64);
    assert_ne!(etag, content().sha256().unwrap());
}

#[test]
fn the_cdn_refuses_tokens_and_unsigned_urls() {
    let hub = hub();
    let url = cdn_url(&hub, "m.gguf");
    assert_eq!(ask("GET", &url).token(GOOD_TOKEN).send().status, 400);
    assert_eq!(get(url.split('?').next().unwrap()).status, 403);
    assert_eq!(get(url.replace("X-Amz-Signature=", "X-Amz-Signature=0")).status, 403);
    let other = cdn_url(&hub, "empty.bin");
    let swapped = format!("{}?{}", other.split('?').next().unwrap(), url.split('?').nth(1).unwrap());
    assert_eq!(get(swapped).status, 403, "a signature is for one file");
    assert_eq!(get(url).status, 200);
}

#[test]
fn signed_urls_expire_by_time_and_on_demand() {
    let repo = Repo::new("o/n").file("m.gguf", content());
    let hub = Hub::builder().repo(repo).url_lifetime(Duration::from_millis(200)).start().unwrap();
    let url = cdn_url(&hub, "m.gguf");
    assert_eq!(head(&url).status, 200);
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(head(&url).status, 403);
    let hub = self::hub();
    let url = cdn_url(&hub, "m.gguf");
    hub.expire_urls();
    assert_eq!(head(&url).status, 403);
    assert_eq!(head(cdn_url(&hub, "m.gguf")).status, 200);
}

#[test]
fn a_file_on_disk_is_served_from_disk() {
    let path = std::env::temp_dir().join(format!("hub-fixture-{}.bin", std::process::id()));
    let bytes = content().read(0..SIZE).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let hub = Hub::start(vec![Repo::new("o/n").file("disk.bin", path.as_path())]);
    assert_eq!(hub.file("o/n", "main", "disk.bin").unwrap().etag, content().sha256().unwrap());
    assert_eq!(get(cdn_url(&hub, "disk.bin")).body, bytes[..]);
    let url = cdn_url(&hub, "disk.bin");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(get(url).status, 500, "a file that went away is the fixture's own failure");
}

#[test]
fn the_log_tells_what_was_asked_and_how_much_was_sent() {
    let hub = hub();
    let url = hub.endpoint() + "/o/n/resolve/main/m.gguf";
    let location = ask("GET", &url).token(GOOD_TOKEN).header("User-Agent", "test/1").send().expect("location").to_owned();
    ask("GET", &location).range("10-19").send();
    ask("GET", &location).range("100-").send();
    head(&location);
    let log = hub.requests();
    assert_eq!(log.iter().map(|r| r.status).collect::<Vec<_>>(), [302, 206, 206, 200]);
    assert!(log.iter().all(|r| r.file.as_deref() == Some("o/n/m.gguf")));
    assert_eq!((log[0].server, log[0].user_agent.as_deref()), (Server::Hub, Some("test/1")));
    assert_eq!(log[0].authorization.as_deref(), Some("Bearer hf_good"));
    assert_eq!((log[1].server, log[1].range, log[1].body_bytes_sent), (Server::Cdn, Some((10, Some(19))), 10));
    assert_eq!((log[2].range, log[2].body_bytes_sent), (Some((100, None)), SIZE - 100));
    assert_eq!((log[3].method.as_str(), log[3].body_bytes_sent, log[3].authorization.clone()), ("HEAD", 0, None));
    assert_eq!(hub.bytes_served(), 10 + SIZE - 100);
    hub.clear_log();
    assert_eq!((hub.requests().len(), hub.bytes_served()), (0, 0));
}

#[test]
fn a_client_that_leaves_is_not_counted_as_served_in_full() {
    use std::io::{Read, Write};
    let huge = 256 << 20;
    let hub = Hub::start(vec![Repo::new("o/n").file("m.json", Content::seeded(1, huge))]);
    let url = cdn_url(&hub, "m.json");
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut some = vec![0; 1 << 20];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    let last = || hub.requests().pop().unwrap();
    wait_until(|| last().finished);
    // What the client's kernel took in unread counts as sent: Linux lets that grow to some MiB.
    let sent = last().body_bytes_sent;
    assert!((1 << 20..16 << 20).contains(&sent), "{sent}");
}

#[test]
fn the_ports_are_free_once_the_hub_is_dropped() {
    let hub = hub();
    let (endpoint, cdn) = (hub.endpoint(), hub.cdn_endpoint());
    assert_eq!(get(endpoint.clone() + "/api/models/o/n").status, 200);
    drop(hub);
    for url in [endpoint, cdn] {
        assert!(ask("GET", url + "/").try_send().is_none());
    }
}
