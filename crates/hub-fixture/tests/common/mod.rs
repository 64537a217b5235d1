//! A bare HTTP client that sees everything: no redirects followed, no body checked, broken answers returned as they came.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// An answer as it came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended where `Content-Length` said.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(crate) fn expect(&self, name: &str) -> &str {
        self.header(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request: `ask("GET", url).header(..).send()`.
pub(crate) struct Ask {
    method: String,
    url: String,
    headers: String,
    body: String,
    patience: Duration,
}

pub(crate) fn ask(method: &str, url: impl Into<String>) -> Ask {
    Ask { method: method.into(), url: url.into(), headers: String::new(), body: String::new(), patience: Duration::from_secs(20) }
}

pub(crate) fn get(url: impl Into<String>) -> Answer {
    ask("GET", url).send()
}

pub(crate) fn head(url: impl Into<String>) -> Answer {
    ask("HEAD", url).send()
}

/// Waits for what another thread brings about.
#[track_caller]
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("waited five seconds in vain");
}

impl Ask {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    pub(crate) fn token(self, token: &str) -> Ask {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn range(self, range: &str) -> Ask {
        self.header("Range", &format!("bytes={range}"))
    }

    pub(crate) fn body(mut self, kind: &str, body: &str) -> Ask {
        self.body = body.into();
        self.header("Content-Type", kind).header("Content-Length", &body.len().to_string())
    }

    /// How long a silence is taken for the end of the answer.
    pub(crate) fn patience(mut self, patience: Duration) -> Ask {
        self.patience = patience;
        self
    }

    pub(crate) fn send(self) -> Answer {
        self.try_send().expect("an answer came")
    }

    /// `None` if the connection closed before any header.
    pub(crate) fn try_send(self) -> Option<Answer> {
        let rest = self.url.strip_prefix("http://").expect("a plain URL");
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mut stream = TcpStream::connect(host).ok()?;
        stream.set_read_timeout(Some(self.patience)).unwrap();
        let request =
            format!("{} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}\r\n{}", self.method, self.headers, self.body);
        stream.write_all(request.as_bytes()).ok()?;
        let mut raw = Vec::new();
        // Silence and resets end the answer; what came before them is what the test looks at.
        let _ = stream.read_to_end(&mut raw);
        let split = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = String::from_utf8(raw[..split].to_vec()).unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<_> =
            lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let body = raw[split + 4..].to_vec();
        let mut answer = Answer { status, headers, body, complete: false };
        let announced = answer.header("content-length").map_or(0, |len| len.parse::<usize>().unwrap());
        answer.complete = self.method == "HEAD" || answer.body.len() == announced;
        Some(answer)
    }
}
