//! One request that shows whether the Hub is there, and whose the token is: for who looks what is wrong.

use super::{
    client::HubClient,
    status,
    wire::{shown, whoami_url},
};
use crate::{error::Result, name::printable};
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime};

/// Largest answer read; real ones have a few KiB.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// What one request to the Hub showed.
#[derive(Debug)]
pub(crate) struct Probe {
    /// The Hub's address.
    pub(crate) endpoint: String,
    /// From the call to the answer's head: with the name looked up, and the connection made.
    pub(crate) latency: Duration,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub(crate) protocol: String,
    /// What its `Date` header says, to the second.
    pub(crate) server_time: Option<SystemTime>,
    pub(crate) who: Who,
}

/// Whose the token is.
#[derive(Debug)]
pub(crate) enum Who {
    /// Its owner's name, and what it is good for: `read`, `write`, `fineGrained`.
    Known { name: String, role: Option<String> },
    /// The Hub knows no such token, or none was sent.
    Refused,
    /// The server has no answer to that, as mirrors have none.
    Untold { status: u16 },
}

impl HubClient {
    /// Asks `/api/whoami-v2`, once.
    ///
    /// # Errors
    /// Those of the network; `BadAnswer` for redirects that lead nowhere. A server that refuses is no error.
    pub(crate) async fn probe(&self) -> Result<Probe> {
        self.need_network(|| "ask the Hub whose the token is".to_owned())?;
        let config = self.config();
        let begun = Instant::now();
        let answer = self.get(whoami_url(&config.endpoint), true, None, config.metadata_timeout).await?;
        let latency = begun.elapsed();
        let protocol = format!("{:?}", answer.response.version());
        let date = status::header(answer.response.headers(), "date");
        let date = date.and_then(|date| chrono::DateTime::parse_from_rfc2822(&date).ok()).map(SystemTime::from);
        let who = match answer.status() {
            200 => {
                let body = self.read_body(answer, MAX_BODY_BYTES).await?;
                owner(&body).unwrap_or(Who::Untold { status: 200 })
            }
            401 => Who::Refused,
            status => Who::Untold { status },
        };
        Ok(Probe { endpoint: shown(&config.endpoint), latency, protocol, server_time: date, who })
    }
}

fn owner(body: &[u8]) -> Option<Who> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let role = json.pointer("/auth/accessToken/role").and_then(Value::as_str).map(printable);
    Some(Who::Known { name: printable(json.get("name")?.as_str()?), role })
}
