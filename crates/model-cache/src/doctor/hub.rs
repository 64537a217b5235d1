//! The way to the Hub, the token, and the clock.

use super::Findings;
use crate::{
    error::ErrorKind,
    hub::{HubClient, HubConfig, Who},
};
use std::time::{Duration, SystemTime};

/// A clock that is off by more makes certificates and signed addresses look expired, or not yet valid.
const CLOCK_OFF: Duration = Duration::from_secs(120);

pub(super) async fn examine(config: Option<HubConfig>, findings: &mut Findings<'_>) {
    let Some(config) = config else {
        findings.note("the Hub was not asked: the settings can't be used");
        return;
    };
    if config.offline {
        findings.note("the Hub was not asked: offline");
        return;
    }
    let source = config.token.as_ref().map(|token| token.source().to_owned());
    let probe = match HubClient::new(config).probe().await {
        Ok(probe) => probe,
        Err(error) => {
            findings.error(&error);
            return;
        }
    };
    let ms = probe.latency.as_millis();
    findings.fine(format!("{} answers in {ms} ms ({})", probe.endpoint, probe.protocol));
    match (probe.who, source) {
        (Who::Known { name, role }, Some(source)) => {
            let role = role.map(|role| format!(", to {role}")).unwrap_or_default();
            findings.fine(format!("the token from {source} is {name}'s{role}"));
        }
        (Who::Refused, Some(source)) => findings.problem(
            ErrorKind::NotAllowed,
            format!("{} does not accept the token from {source}", probe.endpoint),
            format!("renew or remove the token in {source}"),
        ),
        (Who::Untold { status }, Some(source)) => {
            findings.note(format!("whose the token from {source} is can't be told: {} answered {status}", probe.endpoint));
        }
        (_, None) => {}
    }
    match probe.server_time {
        None => findings.note("the Hub does not tell the time, so the clock was not compared"),
        Some(there) => {
            let here = SystemTime::now();
            let off = here.duration_since(there).unwrap_or_else(|behind| behind.duration());
            let way = if here > there { "ahead of" } else { "behind" };
            if off > CLOCK_OFF + probe.latency {
                let what = format!("this machine's clock is {} s {way} the Hub's", off.as_secs());
                findings.warn(what, "timedatectl set-ntp true");
            } else {
                findings.fine("this machine's clock agrees with the Hub's");
            }
        }
    }
}
