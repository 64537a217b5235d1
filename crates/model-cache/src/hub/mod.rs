//! The Hub client: what a repo holds, where a file's bytes are, and ranges of them. It stores nothing and knows no store.
//!
//! This module is the only one that names the HTTP client. [`wire`] reads headers and writes URLs, [`status`] turns answers
//! into errors, [`tree`] checks a listing, [`mod@retry`] decides how often and when; these are functions of values. [`client`]
//! sends, [`api`] asks the JSON endpoints, [`mod@file`] finds and reads files, [`mod@env`] and [`auth`] read the settings.
//!
//! What a server sends is hostile until checked: every body has a size limit, every name is parsed before it is used, and
//! text that reaches a person is cut and escaped. The token travels only as [`auth::may_see_token`] allows; it and the query
//! of a URL (where signed addresses carry secrets) are in no error and no log line.

mod api;
mod auth;
mod client;
mod env;
mod field;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod probe;
mod retry;
mod status;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

pub(crate) use api::ModelInfo;
pub(crate) use auth::Token;
pub(crate) use client::HubClient;
pub(crate) use env::{HubConfig, Vars, parse_endpoint, text as variable};
pub(crate) use file::{Location, RangeBody, RangeOutcome};
pub(crate) use probe::Who;
pub(crate) use retry::{RetryNotice, RetryPolicy, random_unit};
pub(crate) use tree::TreeFile;
