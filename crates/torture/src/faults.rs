//! What the Hub does wrong in a soak. To add a fault: a line in `draw`.

use crate::numbers::Numbers;
use hub_fixture::{Fault, FaultId, Hub, Target};
use std::time::Duration;

/// Faults of one round, and how often each struck.
#[derive(Debug, Default)]
pub struct Faults(Vec<FaultId>);

impl Faults {
    /// Switches some on.
    pub fn switch_on(hub: &Hub, numbers: &mut Numbers) -> Self {
        let faults = hub.faults();
        let added = (0..numbers.within(1..4)).map(|_| {
            let (target, fault) = draw(numbers);
            // A Hub that never recovers is refused in the end; mostly it does.
            if numbers.once_in(5) { faults.always(target, fault) } else { faults.times(numbers.within(1..6), target, fault) }
        });
        Self(added.collect())
    }

    /// How often they struck; switches them off.
    pub fn switch_off(self, hub: &Hub) -> u64 {
        let faults = hub.faults();
        let strikes = self.0.iter().map(|id| faults.fired(*id)).sum();
        self.0.into_iter().for_each(|id| faults.remove(id));
        strikes
    }
}

fn draw(numbers: &mut Numbers) -> (Target, Fault) {
    let bytes = numbers.within(0..12 << 20);
    let cdn = || Target::any().cdn();
    let any = Target::any;
    match numbers.within(0..16) {
        0 => (cdn(), Fault::CutBody { after_bytes: bytes }),
        1 => (cdn(), Fault::CutBody { after_bytes: bytes % 1000 }),
        2 => (cdn(), Fault::Stall { after_bytes: bytes }),
        3 => (any(), Fault::status(503)),
        4 => (any(), Fault::status(*numbers.pick(&[408, 500, 502, 504, 404, 403]))),
        5 => (any(), Fault::rate_limited(1)),
        6 => (cdn(), Fault::IgnoreRange),
        7 => (cdn(), Fault::CorruptBytes { offset: bytes, len: 1 }),
        8 => (cdn(), Fault::ExpireUrls),
        9 => (cdn(), Fault::WrongContentRange { start: Some(bytes), total: None }),
        10 => (cdn(), Fault::ShortLength { missing: 1 + bytes % 100_000 }),
        11 => (cdn(), Fault::SlowBytesPerSecond(1_000_000 + bytes)),
        12 => (any(), Fault::Delay(Duration::from_millis(bytes % 400))),
        13 => (any(), Fault::RedirectLoop),
        14 => {
            let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
            (any(), Fault::RawBody { status: 200, headers, body: "<html>try again later</html>".into() })
        }
        _ => (any(), Fault::RefuseConnections),
    }
}
