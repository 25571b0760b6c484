//! The mParticle destination through the binary, against a fake that fails the test on whatever mParticle would refuse.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::mparticle::{Batch, Mood, Mparticle};
use crate::support::relay::marked;
use crate::support::segment::{self, Segment};
use crate::support::upstream::Gate;
use crate::support::{Relay, Setup, Upstream, eventually};

const DELIVERED: &str = "flagtap_destination_events_delivered_total";
const DEAD: &str = "flagtap_destination_events_dead_total";
const SKIPPED: &str = "flagtap_destination_events_skipped_total";
const MPARTICLE: (&str, &str) = ("destination", "mparticle");

fn setup(fake: &Mparticle) -> (Upstream, Setup) {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    fake.add_to(&mut setup);
    (upstream, setup)
}

fn by_user(user: &str, key: &str) -> Value {
    json!({ "kind": "custom", "creationDate": 1_700_000_000_000_u64, "key": key, "contextKeys": { "user": user } })
}

fn keys(events: &[Value]) -> Vec<&str> {
    let keys = events.iter().map(|event| &event["data"]["custom_attributes"]["key"]);
    keys.map(|key| key.as_str().unwrap()).collect()
}

/// Returns the batches of a request with all that is in them, to be compared.
fn texts(batches: &[Batch]) -> Vec<String> {
    let text = |batch: &Batch| {
        let events: Vec<&str> = batch.events.iter().map(|event| event.get()).collect();
        let (user, id) = (batch.user_identities.get(), &batch.source_request_id);
        format!("{user} {} {id} {events:?}", batch.environment)
    };
    batches.iter().map(text).collect()
}

/// Scenario: more users than a request has room for, some with many events, while mParticle hangs; then it works.
/// Guarantees: every event arrives once, in a batch with events of its user alone, and a user has one batch in a request.
#[test]
fn a_batch_is_one_users() {
    let gate = Gate::default();
    let fake = Mparticle::start(Mood::Hangs(gate.clone()));
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for batch in 0..10 {
        let events: Vec<Value> = (0..60)
            .map(|number| {
                // Two hundred users with an event each, and a few with many.
                let user = match number % 3 {
                    0 => format!("single-{batch}-{number}"),
                    _ => format!("busy-{}", number % 7),
                };
                let key = format!("{batch}-{number}");
                sent.entry(user.clone()).or_default().push(key.clone());
                by_user(&user, &key)
            })
            .collect();
        assert_eq!(relay.post(&format!("users-{batch}"), &json!(events)).status, 202);
        if batch == 0 {
            eventually("the first request", || (!fake.taken().is_empty()).then_some(()));
        }
    }
    fake.be(Mood::Takes);
    gate.open();
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[MPARTICLE]), 600.0);
    relay.stop();
    let mut arrived: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in fake.taken() {
        let mut users = BTreeSet::new();
        for batch in request {
            let user: Value = serde_json::from_str(batch.user_identities.get()).unwrap();
            let user = user["customer_id"].as_str().unwrap().to_owned();
            assert!(users.insert(user.clone()), "{user} has two batches in a request");
            assert_eq!(batch.environment, "development");
            let events: Vec<Value> = batch
                .events
                .iter()
                .map(|event| serde_json::from_str(event.get()).unwrap())
                .collect();
            let keys = keys(&events).into_iter().map(str::to_owned);
            arrived.entry(user).or_default().extend(keys);
        }
    }
    // Requests can be under way at once, so their order is not that of the events.
    arrived
        .values_mut()
        .chain(sent.values_mut())
        .for_each(|keys| keys.sort());
    assert_eq!(arrived, sent);
}

/// Scenario: answers get lost, then they are no HTTP, then mParticle has trouble and throttles, then it works.
/// Guarantees: every event arrives, each with the same `source_message_id` and content on every try.
#[test]
fn what_is_sent_again_is_the_same_event() {
    let fake = Mparticle::start(Mood::LosesAnswers);
    fake.tolerate_broken();
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let events: Value = (0..20).map(|number| marked(&format!("again-{number}"))).collect();
    assert_eq!(relay.post("again", &events).status, 202);
    eventually("a batch that was sent twice", || {
        (fake.taken().len() >= 2).then_some(())
    });
    let throttled = vec![("Retry-After", "1"), ("X-mp-rate-limit-exceeded", "batches")];
    for mood in [
        Mood::Garbles,
        Mood::Answers(503, Vec::new(), "<html>not JSON</html>"),
        Mood::Answers(429, throttled, "{}"),
    ] {
        let refused = fake.refused();
        fake.be(mood);
        eventually("an answer of this mood", || (fake.refused() > refused).then_some(()));
    }
    fake.be(Mood::Takes);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[MPARTICLE]), 20.0);
    assert_eq!(metrics.sum(DEAD, &[]), 0.0);
    relay.stop();
    let events: Vec<String> = fake.events().iter().map(Value::to_string).collect();
    let different: BTreeSet<&String> = events.iter().collect();
    assert!(
        events.len() >= 40 && different.len() == 20,
        "{} of {}",
        different.len(),
        events.len()
    );
}

/// Scenario: the process is killed after mParticle took a request and before it heard so; another one takes over.
/// Guarantees: the new one repeats the same batches, ids included.
#[test]
fn a_kill_before_the_acknowledgement_repeats_the_same_batches() {
    let gate = Gate::default();
    let fake = Mparticle::start(Mood::Hangs(gate.clone()));
    fake.tolerate_broken();
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let events: Vec<Value> = ["ann", "bob", "ann"].map(|user| by_user(user, "order")).into();
    assert_eq!(relay.post("killed", &json!(events)).status, 202);
    eventually("the request", || (!fake.taken().is_empty()).then_some(()));
    relay.kill();
    gate.open();
    fake.be(Mood::Takes);
    let relay = Relay::start(&setup);
    relay.settle();
    relay.stop();
    let taken = fake.taken();
    assert_eq!(taken[0].len(), 2);
    assert_eq!(texts(&taken[1]), texts(&taken[0]));
}

/// Scenario: mParticle refuses every request that holds one of fifty events of a dozen users.
/// Guarantees: that one ends as a dead letter, alone; the others arrive once.
#[test]
fn one_bad_event_ends_alone() {
    let fake = Mparticle::start(Mood::Dislikes("event-31"));
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let events: Value = (0..50)
        .map(|number| by_user(&format!("user-{}", number % 12), &format!("event-{number}")))
        .collect();
    assert_eq!(relay.post("bad", &events).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[MPARTICLE]), 49.0);
    assert_eq!(metrics.sum(DEAD, &[MPARTICLE]), 1.0);
    relay.stop();
    let events = fake.events();
    let arrived: BTreeSet<&str> = keys(&events).into_iter().collect();
    assert_eq!((events.len(), arrived.len()), (49, 49));
    assert!(!arrived.contains("event-31"));
}

/// Scenario: events that mParticle does not get, an event of nobody, and a page view without its name.
/// Guarantees: the first are skipped and counted by reason, the last is a dead letter; the fake sees none of them.
#[test]
fn what_mparticle_would_refuse_is_not_sent() {
    let fake = Mparticle::start(Mood::Takes);
    let (_upstream, setup) = setup(&fake);
    let relay = Relay::start(&setup);
    let events = json!([
        marked("good"),
        { "kind": "pageview", "key": "goal", "creationDate": 1, "contextKeys": { "user": "u" } },
        { "kind": "custom", "key": "org", "creationDate": 1, "contextKeys": { "org": "o" } },
        { "kind": "identify", "creationDate": 1, "context": { "kind": "user", "key": "u" } },
    ]);
    assert_eq!(relay.post("filtered", &events).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(SKIPPED, &[MPARTICLE, ("reason", "no_identity")]), 1.0);
    assert_eq!(
        metrics.sum(SKIPPED, &[MPARTICLE, ("reason", "kind_not_in_mparticle")]),
        1.0
    );
    assert_eq!(metrics.sum(DEAD, &[MPARTICLE]), 1.0);
    relay.stop();
    assert_eq!(keys(&fake.events()), ["good"]);
}

/// Scenario: mParticle and Segment refuse the credentials; after a while they take them, as if somebody had put that right
/// on their side.
/// Guarantees: the status says which setting to look at, nothing is given up, and delivery resumes by itself.
#[test]
fn refused_credentials_hold_events_back_until_they_are_taken() {
    let fake = Mparticle::start(Mood::Answers(403, Vec::new(), "{}"));
    let (_upstream, mut setup) = setup(&fake);
    let other = Segment::start(segment::Mood::Answers(401, Vec::new(), "{}"));
    other.add_to(&mut setup);
    let relay = Relay::start(&setup);
    let events: Value = (0..10).map(|number| marked(&format!("held-{number}"))).collect();
    assert_eq!(relay.post("held", &events).status, 202);
    for (name, setting) in [("mparticle", "`api_key`"), ("segment", "`write_key`")] {
        eventually("the destination to be blocked", || {
            let status: Value = serde_json::from_slice(&relay.telemetry("/status")?.body).ok()?;
            let now = &status["destinations"][name];
            let why = now["why"].as_str().unwrap_or_default();
            (now["state"] == "blocked" && why.contains(setting)).then_some(())
        });
    }
    fake.be(Mood::Takes);
    other.be(segment::Mood::Takes);
    let metrics = relay.settle();
    assert_eq!(metrics.sum(DELIVERED, &[MPARTICLE]), 10.0);
    assert_eq!(metrics.sum(DELIVERED, &[("destination", "segment")]), 10.0);
    assert_eq!(metrics.sum(DEAD, &[]), 0.0);
    relay.stop();
    assert_eq!((fake.events().len(), other.messages().len()), (10, 10));
}
