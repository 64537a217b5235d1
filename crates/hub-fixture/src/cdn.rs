//! The content host: LFS bytes by digest, behind signed URLs that expire, closed to anyone who still shows a token.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::header;
use percent_encoding::utf8_percent_encode;
use sha2::{Digest, Sha256};

use crate::content::{hex, splitmix64};
use crate::faults::Fault;
use crate::log::Server;
use crate::origin::{Answer, Call, Origin};
use crate::reply::Reply;
use crate::resolve::SEGMENT;
use crate::route;

pub(crate) const PREFIX: &str = "/xet-bridge/";

/// What a signature was given for.
#[derive(Debug)]
struct Signed {
    sha256: String,
    /// The file asked for, as `org/name/path`.
    file: String,
    until: Instant,
}

/// Signatures given out, kept after they expire so that a late request is still logged under its file.
#[derive(Debug, Default)]
pub(crate) struct Signatures(Mutex<HashMap<String, Signed>>);

impl Signatures {
    fn issue(&self, sha256: &str, file: String, lifetime: Duration) -> String {
        let mut issued = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let count = issued.len() as u64;
        let signature = format!("{:016x}{:016x}", splitmix64(count), splitmix64(!count));
        issued.insert(signature.clone(), Signed { sha256: sha256.to_owned(), file, until: Instant::now() + lifetime });
        signature
    }

    /// Ends the validity of all signatures given out so far.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        self.0.lock().unwrap_or_else(|e| e.into_inner()).values_mut().for_each(|signed| signed.until = now);
    }

    fn file(&self, signature: &str) -> Option<String> {
        Some(self.0.lock().unwrap_or_else(|e| e.into_inner()).get(signature)?.file.clone())
    }

    fn is_valid(&self, signature: &str, sha256: &str) -> bool {
        let issued = self.0.lock().unwrap_or_else(|e| e.into_inner());
        issued.get(signature).is_some_and(|signed| signed.sha256 == sha256 && Instant::now() < signed.until)
    }
}

fn signature_in(query: &str) -> String {
    route::pairs(query).into_iter().find(|(key, _)| key == "X-Amz-Signature").map(|(_, value)| value).unwrap_or_default()
}

impl Origin {
    /// An absolute URL on the CDN for the content `sha256`, valid for a while.
    pub(crate) fn sign(&self, sha256: &str, repo: &str, path: &str) -> String {
        let signature = self.signatures.issue(sha256, format!("{repo}/{path}"), self.url_lifetime);
        let name = path.rsplit('/').next().unwrap_or_default();
        let disposition = format!("inline; filename*=UTF-8''{}", utf8_percent_encode(name, SEGMENT));
        format!(
            "{}{PREFIX}{sha256}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires={}&X-Amz-Signature={signature}\
             &response-content-disposition={}",
            self.cdn_base,
            self.url_lifetime.as_secs(),
            utf8_percent_encode(&disposition, SEGMENT),
        )
    }

    /// The file a CDN URL leads to, as `org/name/path`.
    pub(crate) fn cdn_file(&self, path: &str, query: &str) -> Option<String> {
        self.signatures.file(&signature_in(query)).or_else(|| {
            let store = self.store();
            let blob = store.blob(path.strip_prefix(PREFIX)?)?;
            Some(format!("{}/{}", blob.repo, blob.entry.path))
        })
    }

    pub(crate) fn cdn(&self, call: &Call<'_>) -> Answer {
        if call.server == Server::Cdn && call.headers.contains_key(header::AUTHORIZATION) {
            return Err(Reply::text(400, "Only one auth mechanism allowed").into());
        }
        let sha256 = call.path.strip_prefix(PREFIX).ok_or_else(|| Reply::text(404, "Not found"))?;
        if call.strike(|fault| (*fault == Fault::ExpireUrls).then_some(())).is_some() {
            self.signatures.expire();
        }
        if !self.signatures.is_valid(&signature_in(call.query), sha256) {
            let text = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
            return Err(Reply::new(403, "application/xml", text).into());
        }
        let store = self.store();
        let blob = store.blob(sha256).ok_or_else(|| Reply::text(404, "Not found"))?;
        let wanted = route::pairs(call.query).into_iter().find(|(key, _)| key == "response-content-disposition");
        let reply = Reply::file("application/octet-stream", blob.entry.content.clone());
        let reply = reply.with("content-disposition", wanted.as_ref().map_or("inline", |(_, value)| value));
        Ok(reply.with("etag", &format!("\"{}\"", other_digest(sha256))).with("cache-control", "public, max-age=31536000"))
    }
}

/// The CDN's etag: like the xet hash on the real one it has the looks of a SHA-256, and is not that of the content.
fn other_digest(sha256: &str) -> String {
    hex(&Sha256::digest(format!("xet:{sha256}")))
}
