//! How fast one connection is served. By hand: `cargo test --release -p hub-fixture --test throughput -- --ignored --nocapture`.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use common::get;
use hub_fixture::{Content, Hub, Repo};

fn gigabytes_per_second(hub: &Hub, path: &str) -> f64 {
    let url = get(format!("{}/o/n/resolve/main/{path}", hub.endpoint())).expect("location").to_owned();
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let begun = Instant::now();
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total as f64 / begun.elapsed().as_secs_f64() / 1e9,
            n => total += n,
        }
    }
}

#[test]
#[ignore = "a measurement; needs a quiet machine and --release"]
fn seeded_and_disk_content_exceed_a_gigabyte_per_second() {
    let size = 2 << 30;
    let path = std::env::temp_dir().join(format!("hub-fixture-throughput-{}.bin", std::process::id()));
    std::fs::write(&path, vec![7; size as usize]).unwrap();
    let begun = Instant::now();
    let hub = Hub::start(vec![Repo::new("o/n").file("seeded.bin", Content::seeded(1, size)).file("disk.bin", path.as_path())]);
    println!("hashed 2 x 2 GiB in {:?}", begun.elapsed());
    for name in ["seeded.bin", "disk.bin"] {
        let speeds = [(); 3].map(|()| gigabytes_per_second(&hub, name));
        println!("{name}: {speeds:.2?} GB/s");
        assert!(speeds.into_iter().fold(0.0, f64::max) > 1.0);
    }
    std::fs::remove_file(path).unwrap();
}
