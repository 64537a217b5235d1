//! For this module's tests: an environment of pairs, and a server that answers from a script, byte for byte.

use crate::hub::{HubClient, HubConfig, Token, retry::RetryPolicy};
use std::{
    collections::HashMap,
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// An environment that has these variables alone.
pub(in crate::hub) fn vars(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
    let pairs: HashMap<String, OsString> = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    move |name| pairs.get(name).cloned()
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(in crate::hub) struct Seen {
    pub(in crate::hub) method: String,
    /// Path and query.
    pub(in crate::hub) target: String,
    /// Names in lower case.
    pub(in crate::hub) headers: HashMap<String, String>,
}

/// A server on a port of its own; its threads end with the test process.
pub(in crate::hub) struct Scripted {
    pub(in crate::hub) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    /// Answers each request with the bytes `script` gives for it, then closes the connection.
    pub(in crate::hub) fn start(script: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                thread::spawn(move || serve(stream, &*script, &log));
            }
        });
        Self { url, seen }
    }

    pub(in crate::hub) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, script: &dyn Fn(&Seen) -> Vec<u8>, log: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut words = request.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let seen = Seen { method, target, headers };
    log.lock().unwrap().push(seen.clone());
    let answer = script(&seen);
    let mut stream = stream;
    if answer.is_empty() {
        // An empty answer means silence, for longer than any test's timeout.
        thread::sleep(Duration::from_secs(5));
    }
    stream.write_all(&answer).ok()
}

/// An answer with a `Content-Length` that is true (also for a HEAD, whose body is left out).
pub(in crate::hub) fn answer(to: &Seen, status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    let mut out = (out + "\r\n").into_bytes();
    if to.method != "HEAD" {
        out.extend_from_slice(body);
    }
    out
}

/// A client of this endpoint that hardly waits before it tries again; `hf_secret` is its token if it has one.
pub(in crate::hub) fn client(endpoint: &str, with_token: bool) -> HubClient {
    HubClient::new(config(endpoint, with_token))
}

/// Its settings.
pub(in crate::hub) fn config(endpoint: &str, with_token: bool) -> HubConfig {
    let mut config = HubConfig::from_env(&vars(&[("HF_ENDPOINT", endpoint)])).unwrap();
    config.token = with_token.then(|| Token::new("hf_secret", "token", "the test").unwrap());
    // Longer than a busy machine takes for an answer, shorter than a person waits.
    config.metadata_timeout = Duration::from_secs(10);
    config.read_timeout = Duration::from_secs(10);
    config.retry = RetryPolicy { first_wait: Duration::from_millis(1), max_wait: Duration::from_millis(2), ..Default::default() };
    config
}
