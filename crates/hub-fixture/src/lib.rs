//! A Hub-compatible HTTP origin with faults on demand: what the Hugging Face Hub and its CDN would answer, on 127.0.0.1.
//!
//! For integration tests (in process) and for the demo (the program `hub-fixture`). It never leaves this workspace.
//!
//! It answers as the independent origin of the research notes does (`mkhf.py` behind nginx), ids included, except that it
//! refuses a garbage token on public repos too (as the Hub), signs its CDN URLs for one file and a while, gives the CDN an etag
//! that is not the SHA-256, filters paths-info, and answers unknown pages without an error code. It has no xet and no commits API,
//! and tells a rate limit without enforcing one.
//!
//! ```
//! use hub_fixture::{Content, Fault, Hub, Repo, Target};
//!
//! let hub = Hub::start(vec![Repo::new("org/name").file("config.json", "{}").file("m.gguf", Content::seeded(1, 1 << 20))]);
//! hub.faults().once(Target::path("m.gguf").cdn(), Fault::CutBody { after_bytes: 1000 });
//! // … let a client download from hub.endpoint() …
//! assert_eq!(hub.bytes_served(), 0);
//! ```
#![forbid(unsafe_code)]

mod access;
mod api;
mod body;
mod cdn;
mod chance;
mod content;
mod faults;
mod git;
mod log;
mod origin;
mod reply;
mod repo;
mod resolve;
mod route;
mod server;
mod store;
mod tls;

pub use access::{GOOD_TOKEN, UNLISTED_TOKEN};
pub use content::Content;
pub use faults::{Fault, FaultId, Faults, Target};
pub use log::{Request, Server};
pub use repo::{File, Repo};
pub use server::{FileInfo, Hub, HubBuilder};
pub use tls::{Tls, authority_pem};
