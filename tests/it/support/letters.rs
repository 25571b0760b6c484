//! A relay whose destination `lake` gives up what is too large for it, until its limit is raised.

use serde_json::{Value, json};

use super::eventually::eventually;
use super::kinesis::{Kinesis, Mood};
use super::relay::marked;
use super::{Relay, Setup, Upstream};

/// The relay's surroundings.
pub(crate) struct Narrow {
    pub(crate) kinesis: Kinesis,
    pub(crate) setup: Setup,
}

impl Narrow {
    /// `lake` is the only destination, and takes records of up to 2 KiB.
    pub(crate) fn new(upstream: &Upstream) -> Self {
        let kinesis = Kinesis::start(Mood::Takes);
        let mut setup = Setup::new(upstream.address());
        kinesis.add_to(&mut setup, json!({ "initial": "100ms", "max": "1s" }));
        setup.config["environments"][0]["destinations"] = json!(["lake"]);
        setup.config["destinations"].as_array_mut().unwrap().remove(0);
        let mut narrow = Self { kinesis, setup };
        narrow.take_up_to("2KiB");
        narrow
    }

    /// Changes the limit for the next start.
    pub(crate) fn take_up_to(&mut self, size: &str) {
        self.setup.config["destinations"][0]["kinesis"]["max_record_bytes"] = json!(size);
    }

    /// Has the relay export an event that is too large, and one that is not; returns when the one is buried and the other
    /// delivered.
    pub(crate) fn bury_one(&self, relay: &Relay, payload_id: &str) {
        let large = large(payload_id);
        let small = marked(&format!("small-{payload_id}"));
        let before = relay.metrics().sum("flagtap_queue_dead_letters", &[]);
        assert_eq!(relay.post(payload_id, &json!([large, small])).status, 202);
        eventually("the large event to be given up", || {
            (relay.metrics().sum("flagtap_queue_dead_letters", &[]) > before).then_some(())
        });
        relay.settle();
    }
}

/// Returns an event that is too large, with the marker `large-…`.
pub(crate) fn large(payload_id: &str) -> Value {
    let mut event = marked(&format!("large-{payload_id}"));
    event["data"] = json!("x".repeat(4096));
    event
}
