//! Each fault does what it says, as often as it was told to.

mod common;

use common::{Answer, ask, get, head, wait_until};
use hub_fixture::{Content, Fault, Hub, Repo, Server, Target};
use std::time::{Duration, Instant};

const SIZE: u64 = 500_000;

fn content() -> Content {
    Content::seeded(4, SIZE)
}

fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    content().read(range).unwrap().to_vec()
}

fn hub() -> Hub {
    Hub::start(vec![Repo::new("o/n").file("m.gguf", content()).file("c.json", "{\"a\":1}")])
}

fn resolve_url(hub: &Hub) -> String {
    hub.endpoint() + "/o/n/resolve/main/m.gguf"
}

fn cdn_url(hub: &Hub) -> String {
    get(resolve_url(hub)).expect("location").to_owned()
}

fn tree_url(hub: &Hub) -> String {
    hub.endpoint() + "/api/models/o/n/tree/main"
}

fn is_whole(answer: &Answer) -> bool {
    answer.status == 200 && answer.complete && answer.body == bytes(0..SIZE)
}

#[test]
fn a_cut_body_ends_at_the_byte_and_heals() {
    let hub = hub();
    for after in [0, 1, 65_536, 100_000, SIZE - 1] {
        hub.faults().once("m.gguf", Fault::CutBody { after_bytes: after });
        let answer = get(cdn_url(&hub));
        assert_eq!((answer.status, answer.complete, answer.expect("content-length")), (200, false, "500000"));
        assert_eq!(answer.body.len() as u64, after);
        assert_eq!(answer.body, bytes(0..after));
        assert_eq!(hub.requests().pop().unwrap().body_bytes_sent, after);
        assert!(is_whole(&get(cdn_url(&hub))));
    }
}

#[test]
fn a_cut_waits_for_a_slow_reader_to_take_every_byte() {
    use std::io::{Read, Write};
    let huge = Content::seeded(5, 64 << 20);
    let hub = Hub::start(vec![Repo::new("o/n").file("m.gguf", huge.clone())]);
    let cut = 48 << 20;
    hub.faults().once("m.gguf", Fault::CutBody { after_bytes: cut });
    let url = cdn_url(&hub);
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let head = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert_eq!((all.len() - head) as u64, cut);
    assert!(all[head..] == huge.read(0..cut).unwrap()[..]);
}

#[test]
fn a_cut_can_hit_a_listing() {
    let hub = hub();
    hub.faults().once("/tree/", Fault::CutBody { after_bytes: 10 });
    let answer = get(tree_url(&hub));
    assert_eq!((answer.status, answer.complete, answer.body.len()), (200, false, 10));
    assert_eq!(get(tree_url(&hub)).json().as_array().unwrap().len(), 2);
}

#[test]
fn redirects_and_heads_do_not_use_up_a_body_fault() {
    let hub = hub();
    let id = hub.faults().once("m.gguf", Fault::CutBody { after_bytes: 5 });
    head(resolve_url(&hub));
    let url = cdn_url(&hub);
    head(&url);
    assert_eq!(hub.faults().fired(id), 0);
    assert!(!get(&url).complete);
    assert_eq!(hub.faults().fired(id), 1);
}

#[test]
fn a_stall_goes_silent_with_the_connection_open() {
    let hub = hub();
    hub.faults().once("m.gguf", Fault::Stall { after_bytes: 70_000 });
    let url = cdn_url(&hub);
    let patience = Duration::from_millis(300);
    let begun = Instant::now();
    let answer = ask("GET", &url).patience(patience).send();
    assert_eq!(answer.body, bytes(0..70_000));
    assert!(begun.elapsed() >= patience, "the connection was closed instead");
    wait_until(|| hub.requests()[1].finished);
    assert!(is_whole(&get(&url)));
}

#[test]
fn a_status_is_answered_n_times_with_its_headers() {
    let hub = hub();
    hub.faults().times(2, Target::path("m.gguf").hub(), Fault::rate_limited(3));
    for _ in 0..2 {
        let answer = get(resolve_url(&hub));
        assert_eq!((answer.status, answer.expect("retry-after")), (429, "3"));
        assert_eq!(answer.expect("ratelimit"), "\"resolvers\";r=0;t=3");
    }
    let url = cdn_url(&hub);
    hub.faults().always(Target::any().cdn(), Fault::status(503));
    assert_eq!((get(&url).status, get(&url).status, get(tree_url(&hub)).status), (503, 503, 200));
    hub.faults().clear();
    assert!(is_whole(&get(&url)));
}

#[test]
fn an_ignored_range_gives_the_whole_file() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("m.gguf", Fault::IgnoreRange);
    assert!(is_whole(&get(&url)), "no range asked, nothing ignored");
    let answer = ask("GET", &url).range("100-199").send();
    assert!(is_whole(&answer));
    assert_eq!(answer.header("content-range"), None);
    assert_eq!(ask("GET", &url).range("100-199").send().status, 206);
}

#[test]
fn corrupt_bytes_are_at_their_place_in_the_file_whatever_the_range() {
    let hub = hub();
    let url = cdn_url(&hub);
    let id = hub.faults().always("m.gguf", Fault::CorruptBytes { offset: 65_530, len: 10 });
    let mut expected = bytes(0..SIZE);
    expected[65_530..65_540].iter_mut().for_each(|byte| *byte = !*byte);
    assert!(get(&url).body == expected);
    assert_eq!(ask("GET", &url).range("65535-65545").send().body, expected[65_535..65_546]);
    assert_eq!(ask("GET", &url).range("0-65529").send().body, bytes(0..65_530));
    assert_eq!(hub.faults().fired(id), 2);
}

#[test]
fn expired_urls_are_refused_and_fresh_ones_work() {
    let hub = hub();
    let (one, two) = (cdn_url(&hub), cdn_url(&hub));
    hub.faults().once("m.gguf", Fault::ExpireUrls);
    assert_eq!((get(&one).status, get(&two).status, get(&one).status), (403, 403, 403));
    assert!(is_whole(&get(cdn_url(&hub))));
    assert_eq!(hub.requests()[2].file.as_deref(), Some("o/n/m.gguf"), "a refused request is still known by its file");
}

#[test]
fn a_wrong_content_range_lies_about_start_or_total() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("m.gguf", Fault::WrongContentRange { start: None, total: Some(7) });
    let answer = ask("GET", &url).range("100-199").send();
    assert_eq!((answer.status, answer.expect("content-range")), (206, "bytes 100-199/7"));
    assert_eq!(answer.body, bytes(100..200));
    hub.faults().once("m.gguf", Fault::WrongContentRange { start: Some(0), total: None });
    let answer = ask("GET", &url).range("100-199").send();
    assert_eq!((answer.expect("content-range"), answer.body.clone()), ("bytes 0-99/500000", bytes(0..100)));
}

#[test]
fn a_short_length_looks_complete() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().times(2, "m.gguf", Fault::ShortLength { missing: 10 });
    let answer = get(&url);
    assert_eq!((answer.status, answer.complete, answer.body), (200, true, bytes(0..SIZE - 10)));
    let answer = ask("GET", &url).range("0-99").send();
    assert_eq!((answer.complete, answer.body.len(), answer.expect("content-range")), (true, 90, "bytes 0-99/500000"));
}

#[test]
fn a_slow_body_keeps_its_pace() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("m.gguf", Fault::SlowBytesPerSecond(1_000_000));
    let begun = Instant::now();
    assert!(is_whole(&get(&url)));
    let took = begun.elapsed().as_secs_f64();
    assert!((0.4..10.0).contains(&took), "{took} s");
}

#[test]
fn a_delay_comes_before_the_headers() {
    let hub = hub();
    hub.faults().once("/tree/", Fault::Delay(Duration::from_millis(200)));
    let begun = Instant::now();
    assert_eq!(get(tree_url(&hub)).status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_client_that_leaves_during_a_delay_is_logged_as_unanswered() {
    let hub = hub();
    hub.faults().once("/tree/", Fault::Delay(Duration::from_secs(60)));
    assert!(ask("GET", tree_url(&hub)).patience(Duration::from_millis(100)).try_send().is_none());
    wait_until(|| hub.requests()[0].finished);
    assert_eq!(hub.requests()[0].status, 0);
}

#[test]
fn redirects_can_loop_or_lead_elsewhere() {
    let hub = hub();
    hub.faults().once("m.gguf", Fault::RedirectLoop);
    let answer = head(resolve_url(&hub));
    assert_eq!((answer.status, answer.expect("location")), (302, "/o/n/resolve/main/m.gguf"));
    hub.faults().once("m.gguf", Fault::RedirectTo("http://127.0.0.1:1/evil".into()));
    let answer = head(resolve_url(&hub));
    assert_eq!((answer.status, answer.expect("location")), (302, "http://127.0.0.1:1/evil"));
    assert!(answer.header("x-linked-etag").is_some(), "the rest of a due redirect stays");
    hub.faults().once("/tree/", Fault::RedirectLoop);
    let answer = get(tree_url(&hub) + "?recursive=true");
    assert_eq!((answer.status, answer.expect("location")), (302, "/api/models/o/n/tree/main?recursive=true"));
}

#[test]
fn a_raw_body_replaces_any_answer() {
    let hub = hub();
    hub.faults().once("/tree/", Fault::json(200, r#"[{"type":"file","path":"../../etc/passwd","size":-1}]"#));
    assert_eq!(get(tree_url(&hub)).json()[0]["path"], "../../etc/passwd");
    let headers = vec![("X-Repo-Commit".to_owned(), "zzz".to_owned())];
    hub.faults().once(Target::path("m.gguf").head(), Fault::RawBody { status: 200, headers, body: "hi".into() });
    let answer = head(resolve_url(&hub));
    assert_eq!((answer.status, answer.expect("x-repo-commit"), answer.expect("content-length")), (200, "zzz", "2"));
}

#[test]
fn endless_paging_always_has_a_next_page() {
    let hub = hub();
    for fresh in [true, false] {
        hub.faults().clear();
        hub.faults().always("/tree/", Fault::EndlessPaging { fresh });
        let (mut url, mut pages, mut links) = (tree_url(&hub), Vec::new(), Vec::new());
        for _ in 0..5 {
            let answer = get(&url);
            url = answer.expect("link").trim_start_matches('<').split('>').next().unwrap().to_owned();
            pages.push(answer.json()[0]["path"].as_str().unwrap().to_owned());
            links.push(url.clone());
        }
        pages.dedup();
        assert_eq!(pages.len(), if fresh { 5 } else { 1 });
        links.sort();
        links.dedup();
        assert_eq!(links.len(), 5);
    }
}

#[test]
fn resolve_can_contradict_the_listing() {
    let hub = hub();
    hub.faults().once("m.gguf", Fault::WrongEtag("ab".repeat(32)));
    hub.faults().once("m.gguf", Fault::WrongLinkedSize(1));
    let answer = head(resolve_url(&hub));
    assert_eq!(answer.expect("x-linked-etag"), format!("\"{}\"", "ab".repeat(32)));
    assert_eq!(answer.expect("x-linked-size"), "1");
    assert_eq!(head(resolve_url(&hub)).expect("x-linked-size"), "500000");
}

#[test]
fn refused_connections_close_before_any_answer() {
    let hub = hub();
    let url = cdn_url(&hub);
    let id = hub.faults().always(Target::any().hub(), Fault::RefuseConnections);
    assert!(ask("GET", tree_url(&hub)).try_send().is_none());
    assert!(is_whole(&get(&url)), "the CDN is another server");
    hub.faults().remove(id);
    assert_eq!(get(tree_url(&hub)).status, 200);
}

#[test]
fn a_reset_is_no_orderly_end() {
    use std::io::{Read, Write};
    let hub = hub();
    hub.faults().once("m.gguf", Fault::Reset { after_bytes: 70_000 });
    let url = cdn_url(&hub);
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(is_whole(&get(url)));
}

#[test]
fn a_trickle_comes_byte_by_byte() {
    let hub = hub();
    hub.faults().once("m.gguf", Fault::Trickle { after_bytes: 1000, every: Duration::from_millis(20) });
    let begun = Instant::now();
    let answer = ask("GET", cdn_url(&hub)).range("0-1009").send();
    assert_eq!((answer.complete, answer.body), (true, bytes(0..1010)));
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn a_date_to_wait_for_is_in_the_future() {
    let hub = hub();
    hub.faults().once("/tree/", Fault::RetryAfterDate { code: 503, wait: Duration::from_secs(60) });
    let answer = get(tree_url(&hub));
    let date = httpdate::parse_http_date(answer.expect("retry-after")).unwrap();
    let left = date.duration_since(std::time::SystemTime::now()).unwrap().as_secs();
    assert!(answer.status == 503 && (30..=60).contains(&left), "{left}");
}

#[test]
fn lengths_and_ranges_can_be_wrong_or_missing() {
    let hub = hub();
    let url = cdn_url(&hub);
    let part = |fault| {
        hub.faults().once("m.gguf", fault);
        ask("GET", &url).range("100-199").send()
    };
    let answer = part(Fault::NotSatisfiable);
    assert_eq!((answer.status, answer.expect("content-range"), answer.body.len()), (416, "bytes */500000", 0));
    let answer = part(Fault::NoContentRange);
    assert_eq!((answer.status, answer.header("content-range"), answer.body.clone()), (206, None, bytes(100..200)));
    let answer = part(Fault::WrongLength { announced: 40 });
    assert_eq!((answer.expect("content-length"), answer.body.clone()), ("40", bytes(100..140)));
    let answer = part(Fault::WrongLength { announced: 400 });
    assert_eq!((answer.complete, answer.body.clone()), (false, bytes(100..200)));
    let answer = part(Fault::NoLength);
    assert_eq!((answer.header("content-length"), answer.expect("transfer-encoding")), (None, "chunked"));
    let answer = part(Fault::ExtraBytes { extra: 7 });
    assert_eq!((answer.expect("content-length"), answer.body.clone()), ("107", [&bytes(100..200)[..], &[0; 7]].concat()));
}

#[test]
fn a_body_can_be_called_gzip_or_be_another_of_the_same_length() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("m.gguf", Fault::Gzip);
    assert_eq!(get(&url).expect("content-encoding"), "gzip");
    let etag = get(&url).expect("etag").to_owned();
    hub.faults().once("m.gguf", Fault::OtherContent);
    let answer = ask("GET", &url).range("100-199").send();
    assert_ne!(answer.expect("etag"), etag);
    assert!(answer.body.iter().zip(&bytes(100..200)).all(|(other, byte)| *other == !*byte));
}

#[test]
fn pages_with_status_200_stand_in_a_servers_place() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("m.gguf", Fault::html_page());
    let answer = ask("GET", &url).range("100-199").send();
    assert_eq!((answer.status, answer.expect("content-type")), (200, "text/html; charset=utf-8"));
    hub.faults().once("/tree/", Fault::json_error());
    assert!(get(tree_url(&hub)).json()["error"].is_string());
}

#[test]
fn a_redirect_abroad_leads_to_a_host_that_serves_the_same_and_logs_a_token() {
    let hub = hub();
    for path in ["m.gguf", "c.json"] {
        hub.faults().once(Target::path(path).hub(), Fault::RedirectAbroad);
        let answer = get(format!("{}/o/n/resolve/main/{path}", hub.endpoint()));
        let location = answer.expect("location").to_owned();
        assert!(location.starts_with(&hub.abroad_endpoint()) && answer.header("x-linked-etag").is_some(), "{location}");
        assert_eq!(ask("GET", &location).token("hf_good").send().status, 200);
        let asked = hub.requests().pop().unwrap();
        assert_eq!((asked.server, asked.authorization.as_deref()), (Server::Abroad, Some("Bearer hf_good")));
        assert_eq!(asked.file.as_deref(), Some(format!("o/n/{path}").as_str()));
    }
    let url = cdn_url(&hub);
    hub.faults().once(Target::path("m.gguf").cdn(), Fault::RedirectAbroad);
    assert!(is_whole(&get(get(&url).expect("location"))));
}

#[test]
fn an_outage_ends_what_runs_and_what_comes_until_it_is_over() {
    let hub = hub();
    let url = cdn_url(&hub);
    hub.faults().once("/tree/", Fault::Outage(Duration::from_secs(2)));
    let begun = Instant::now();
    assert!(ask("GET", tree_url(&hub)).try_send().is_none());
    let back = || ask("GET", &url).try_send().is_some_and(|answer| is_whole(&answer));
    wait_until(back);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn random_faults_strike_their_share_of_requests_until_they_are_cleared() {
    let hub = hub();
    hub.faults().at_random(7, 0.5, Duration::from_millis(1));
    for _ in 0..60 {
        ask("GET", tree_url(&hub)).patience(Duration::from_millis(20)).try_send();
    }
    let struck: u64 = hub.faults().struck().values().sum();
    assert!((15..=45).contains(&struck), "{:?}", hub.faults().struck());
    hub.faults().clear();
    wait_until(|| ask("GET", tree_url(&hub)).try_send().is_some_and(|answer| answer.status == 200));
    assert!((0..20).all(|_| get(tree_url(&hub)).status == 200));
}

#[test]
fn dropped_connections_end_answers_under_way() {
    let hub = hub();
    hub.faults().once("m.gguf", Fault::Stall { after_bytes: 1000 });
    let url = cdn_url(&hub);
    let client = std::thread::spawn(move || ask("GET", url).send());
    wait_until(|| hub.requests().last().is_some_and(|request| request.body_bytes_sent == 1000));
    hub.drop_connections();
    let answer = client.join().unwrap();
    assert_eq!((answer.complete, answer.body.len()), (false, 1000));
    assert_eq!(get(tree_url(&hub)).status, 200);
}

#[test]
fn a_dropped_hub_does_not_wait_for_its_clients() {
    let hub = hub();
    hub.faults().always("m.gguf", Fault::Stall { after_bytes: 0 });
    hub.faults().always("/tree/", Fault::Delay(Duration::from_secs(60)));
    let urls = [cdn_url(&hub), tree_url(&hub)];
    let clients = urls.map(|url| std::thread::spawn(move || ask("GET", url).try_send()));
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    drop(hub);
    for client in clients {
        client.join().unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_hub_may_live_inside_another_runtime() {
    let hub = hub();
    let url = tree_url(&hub);
    assert_eq!(tokio::task::spawn_blocking(move || get(url).status).await.unwrap(), 200);
}
