//! The Segment destination through the binary, against a fake that fails the test on whatever Segment would drop.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::relay::marked;
use crate::support::segment::{Mood, Segment};
use crate::support::upstream::Gate;
use crate::support::{Relay, Setup, Upstream, eventually};

const DELIVERED: &str = "flagtap_destination_events_delivered_total";
const DEAD: &str = "flagtap_destination_events_dead_total";
const SKIPPED: &str = "flagtap_destination_events_skipped_total";
const SEGMENT: (&str, &str) = ("destination", "segment");

fn setup(fake: &Segment) -> (Upstream, Setup) {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    fake.add_to(&mut setup);
    (upstream, setup)
}

fn post(relay: &Relay, batch: usize, keys: impl IntoIterator<Item = String>) {
    let events: Value = keys.into_iter().map(|key| marked(&key)).collect();
    assert_eq!(relay.post(&format!("batch-{batch}"), &events).status, 202);
}

fn keys(messages: &[Value]) -> Vec<&str> {
    let keys = messages.iter().map(|message| &message["properties"]["key"]);
    keys.map(|key| key.as_str().unwrap()).collect()
}

/// Scenario: answers get lost, then they are no HTTP, then Segment has trouble and throttles, then it works.
/// Guarantees: every event arrives, each with the same message on every try.
#[test]
fn what_is_sent_again_is_the_same_message() {
    let fake = Segment::start(Mood::LosesAnswers);
    fake.tolerate_broken();
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    post(&relay, 0, (0..20).map(|number| format!("again-{number}")));
    eventually("a message that was sent twice", || {
        (fake.taken().len() >= 2).then_some(())
    });
    for mood in [
        Mood::Garbles,
        Mood::Answers(500, Vec::new(), "<html>not JSON</html>"),
        Mood::Answers(429, vec![("Retry-After", "1")], "{}"),
    ] {
        let refused = fake.refused();
        fake.be(mood);
        eventually("an answer of this mood", || (fake.refused() > refused).then_some(()));
    }
    fake.be(Mood::Takes);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[SEGMENT]), 20.0);
    assert_eq!(metrics.sum(DEAD, &[]), 0.0);
    relay.stop();
    let texts: Vec<String> = fake.taken().into_iter().flatten().collect();
    let different: BTreeSet<&String> = texts.iter().collect();
    assert!(texts.len() > different.len(), "nothing was sent twice");
    assert_eq!(different.len(), 20);
}

/// Scenario: the process is killed after Segment took a request and before it heard so; another one takes over.
/// Guarantees: the new one repeats the messages byte for byte, ids included, so that Segment can drop them.
#[test]
fn a_kill_before_the_acknowledgement_repeats_the_same_messages() {
    let gate = Gate::default();
    let fake = Segment::start(Mood::Hangs(gate.clone()));
    fake.tolerate_broken();
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    post(&relay, 0, (0..10).map(|number| format!("killed-{number}")));
    eventually("the request", || (!fake.taken().is_empty()).then_some(()));
    relay.kill();
    gate.open();
    fake.be(Mood::Takes);
    let relay = Relay::start(&setup);
    relay.settle();
    relay.stop();
    let taken = fake.taken();
    assert_eq!(taken[0].len(), 10);
    assert_eq!(taken[1..].concat(), taken[0]);
}

/// Scenario: Segment refuses every request that holds one of fifty events.
/// Guarantees: that one ends as a dead letter, alone; the others arrive once.
#[test]
fn one_bad_event_ends_alone() {
    let fake = Segment::start(Mood::Dislikes("event-31"));
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    post(&relay, 0, (0..50).map(|number| format!("event-{number}")));
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[SEGMENT]), 49.0);
    assert_eq!(metrics.sum(DEAD, &[SEGMENT]), 1.0);
    relay.stop();
    let messages = fake.messages();
    let arrived: BTreeSet<&str> = keys(&messages).into_iter().collect();
    assert_eq!((messages.len(), arrived.len()), (49, 49));
    assert!(!arrived.contains("event-31"));
}

/// Scenario: events that Segment does not get, events of nobody, and one that is larger than Segment takes.
/// Guarantees: the first are skipped and counted by reason, the last is a dead letter; the fake sees none of them.
#[test]
fn what_segment_would_drop_is_not_sent() {
    let fake = Segment::start(Mood::Takes);
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let mut large = marked("large");
    large["key"] = json!("x".repeat(33_000));
    let events = json!([
        marked("good"),
        large,
        { "kind": "custom", "key": "org", "creationDate": 1, "contextKeys": { "org": "o" } },
        { "kind": "custom", "key": "nobody", "creationDate": 1 },
        { "kind": "custom", "key": "empty", "creationDate": 1, "contextKeys": { "user": "" } },
        { "kind": "identify", "creationDate": 1, "context": { "kind": "user", "key": "u" } },
        { "kind": "index", "creationDate": 1, "context": { "kind": "user", "key": "u" } },
    ]);
    assert_eq!(relay.post("filtered", &events).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(SKIPPED, &[SEGMENT, ("reason", "no_identity")]), 3.0);
    assert_eq!(metrics.sum(SKIPPED, &[SEGMENT, ("reason", "kind_not_in_segment")]), 2.0);
    assert_eq!(metrics.sum(DEAD, &[SEGMENT]), 1.0);
    relay.stop();
    assert_eq!(keys(&fake.messages()), ["good"]);
}
