//! One destination's trouble is nobody else's: not that of the traffic, nor that of another destination.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::export::markers;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::relay::marked;
use crate::support::upstream::Gate;
use crate::support::{NOBODY, Relay, Setup, Upstream, eventually};

const BATCHES: usize = 100;
const EVENTS: usize = 10;

/// What the healthy destination and the SDK may wait: far less than any timeout, wait or limit of a destination.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Scenario: three destinations: one refuses connections, one takes requests and does not answer, one works. A hundred
/// batches come.
/// Guarantees: each is answered, and all of them reach the healthy destination, without waiting for the others; the breaker
/// of the dead one opens, its events and those of the slow one wait; when the slow one answers it gets each event once.
#[test]
fn a_dead_and_a_slow_destination_slow_neither_the_healthy_one_nor_the_traffic() {
    let upstream = Upstream::accepting();
    let gate = Gate::default();
    let slow = Kinesis::start(Mood::Hangs(gate.clone()));
    let mut setup = Setup::new(upstream.address());
    slow.add_to(&mut setup, json!({ "initial": "20ms", "max": "200ms" }));
    setup.config["environments"][0]["destinations"] = json!(["archive", "lake", "dead"]);
    setup.config["destinations"].as_array_mut().unwrap().push(json!({
        "name": "dead",
        "webhook": { "url": format!("http://{}/", NOBODY) },
        "retry": { "initial": "20ms", "max": "200ms" },
    }));
    let relay = Relay::start(&setup);
    let started = Instant::now();
    let mut longest = Duration::ZERO;
    for batch in 0..BATCHES {
        let events: Vec<Value> = (0..EVENTS)
            .map(|event| marked(&format!("{batch:03}-{event}")))
            .collect();
        let sent = Instant::now();
        assert_eq!(relay.post(&format!("batch-{batch}"), &json!(events)).status, 202);
        longest = longest.max(sent.elapsed());
    }
    eventually("the healthy destination's events", || {
        (setup.exported().len() == BATCHES * EVENTS).then_some(())
    });
    let took = started.elapsed();
    assert!(longest < AT_ONCE, "the slowest answer took {longest:?}");
    assert!(took < AT_ONCE * 2, "the healthy destination waited {took:?}");
    assert!(slow.lines().is_empty(), "the slow one still has it before it");

    let of = |metric: &str, destination: &str| {
        let metric = format!("flagtap_destination_{metric}");
        relay.metrics().sum(&metric, &[("destination", destination)])
    };
    eventually("the breaker of the dead one", || {
        (of("breaker", "dead") == 2.0).then_some(())
    });
    assert_eq!((of("breaker", "archive"), of("breaker", "lake")), (0.0, 0.0));
    let all = (BATCHES * EVENTS) as f64;
    assert_eq!((of("events_waiting", "dead"), of("events_waiting", "lake")), (all, all));
    assert!(of("oldest_waiting_seconds", "dead") > 0.0);
    let status: Value = serde_json::from_slice(&relay.telemetry("/status").unwrap().body).unwrap();
    let dead = &status["destinations"]["dead"];
    assert_eq!(
        (&dead["state"], &dead["breaker"]),
        (&json!("retrying"), &json!("open")),
        "{status}"
    );
    eventually("the equations to hold", || {
        relay.metrics().imbalance().is_none().then_some(())
    });

    slow.be(Mood::Takes);
    gate.open();
    eventually("the slow one's events", || {
        (of("events_waiting", "lake") == 0.0).then_some(())
    });
    let mut delivered = markers(&slow.lines());
    assert_eq!(delivered.len(), BATCHES * EVENTS, "each once");
    delivered.sort();
    let mut expected = markers(&setup.exported());
    expected.sort();
    assert_eq!(delivered, expected);
    eventually("the equations to hold", || {
        relay.metrics().imbalance().is_none().then_some(())
    });
    relay.stop();
}
