//! The Event Hubs destination through the binary, against a hub that verifies every token and batch.

use std::collections::BTreeSet;

use serde_json::json;

use crate::replay::{self, BUILDS};
use crate::support::event_hubs::EventHubs;
use crate::support::export::{id, markers};
use crate::support::relay::marked;
use crate::support::{Answer, Relay, Setup, Upstream, eventually};

/// Scenario: the recordings of every SDK build, to a hub of the Basic tier; settings named as LaunchDarkly's API does.
/// Guarantees: the hub's events are the lines that a file would have, byte by byte.
#[test]
fn every_recorded_build_arrives_byte_for_byte() {
    for build in BUILDS {
        let hub = EventHubs::start();
        let mut expected = replay::deliver(build, json!({ "azure-event-hubs": hub.settings() }));
        let mut records = hub.records();
        records.sort();
        expected.sort();
        assert_eq!(records, expected, "{build}");
    }
}

/// Scenario: the hub is busy, fails, breaks off after it stored a batch, and finds one too large.
/// Guarantees: every event arrives, repeated only where the hub could not say that it has it, with the same ids.
#[test]
fn a_hub_that_fails_loses_nothing() {
    let upstream = Upstream::accepting();
    let hub = EventHubs::start();
    hub.then(Answer::close(), true);
    hub.then(Answer::status(413), false);
    hub.then(Answer::full(503, &[("Retry-After", "1")], b""), false);
    hub.then(Answer::status(500), false);
    let mut setup = Setup::new(upstream.address());
    let retry = json!({ "initial": "10ms", "max": "50ms" });
    setup.config["destinations"] = json!([{ "name": "archive", "azure_event_hubs": hub.settings(), "retry": retry }]);
    let relay = Relay::start(&setup);
    let sent: Vec<String> = (0..20).map(|number| format!("event-{number}")).collect();
    let events: Vec<_> = sent.iter().map(|marker| marked(marker)).collect();
    assert_eq!(relay.post("one", &json!(events)).status, 202);
    eventually("the script to end", || (hub.planned() == 0).then_some(()));
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &[]), 0.0);
    EventHubs::assert_no_secrets_in(&relay.log_text());
    relay.stop();
    let records = hub.records();
    let arrived: BTreeSet<String> = markers(&records).into_iter().collect();
    assert_eq!(arrived, sent.into_iter().collect());
    let ids: BTreeSet<String> = records.iter().map(|record| id(record)).collect();
    assert_eq!((ids.len(), records.len()), (20, 40), "once unheard, once acknowledged");
}

/// Scenario: the hub does not know the policy's key.
/// Guarantees: the status says which setting to look at, without the key; the event waits.
#[test]
fn a_wrong_key_blocks_and_is_named() {
    let upstream = Upstream::accepting();
    let hub = EventHubs::start();
    let detail =
        b"<Error><Code>401</Code><Detail>InvalidSignature: The token has an invalid signature.</Detail></Error>";
    hub.then(Answer::full(401, &[], detail), false);
    let mut setup = Setup::new(upstream.address());
    setup.config["destinations"] = json!([{ "name": "archive", "azure_event_hubs": hub.settings() }]);
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("one", &json!([marked("kept")])).status, 202);
    let status = eventually("the status to say blocked", || {
        let text = String::from_utf8(relay.telemetry("/status")?.body).unwrap();
        text.contains("blocked").then_some(text)
    });
    assert!(status.contains("`policy_key` is not a key of the policy"), "{status}");
    EventHubs::assert_no_secrets_in(&status);
    assert_eq!(relay.metrics().sum("flagtap_destination_events_waiting", &[]), 1.0);
    relay.stop();
}
