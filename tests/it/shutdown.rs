//! SIGTERM while a destination fails or hangs: what can be delivered is, what cannot waits for the next start.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::export::markers;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::relay::{keep_trying, marked};
use crate::support::upstream::Gate;
use crate::support::{Relay, Setup, Upstream, eventually};

const BATCHES: usize = 5;

fn post(relay: &Relay) -> Vec<String> {
    let markers = (0..BATCHES).map(|number| format!("waiting-{number}"));
    let post = |marker: String| {
        assert_eq!(relay.post(&marker, &json!([marked(&marker)])).status, 202);
        marker
    };
    markers.map(post).collect()
}

fn sorted(mut markers: Vec<String>) -> Vec<String> {
    markers.sort();
    markers
}

fn waiting_at_the_end(relay: &Relay) -> u64 {
    let ended = eventually("the last line of the log", || relay.find_log("ended"));
    ended["events_waiting"].as_u64().unwrap()
}

/// Scenario: a destination failed and would be tried again in an hour; it works again when SIGTERM comes.
/// Guarantees: everything that waits is tried once more at the end, so nothing is left for the next start.
#[test]
fn what_waits_for_a_retry_is_tried_once_more_at_the_end() {
    let upstream = Upstream::accepting();
    let lake = Kinesis::start(Mood::Fails);
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": "10s", "reserve": "8s" });
    lake.add_to(&mut setup, keep_trying("1h", "1h"));
    let mut relay = Relay::start(&setup);
    let expected = post(&relay);
    eventually("a refused delivery, and the other destination's", || {
        (lake.refused() > 0 && setup.exported().len() == BATCHES).then_some(())
    });
    lake.be(Mood::Takes);
    assert!(lake.lines().is_empty());
    relay.terminate();
    let status = relay.wait();
    assert!(status.success(), "{status}\n{}", relay.log_text());
    assert_eq!(sorted(markers(&lake.lines())), expected);
    assert_eq!(waiting_at_the_end(&relay), 0);
}

/// Scenario: SIGTERM while a destination neither answers nor refuses.
/// Guarantees: the relay ends with success within the grace period and says what waits; the other destination got
/// everything, and the next start delivers the rest, each event once.
#[test]
fn a_destination_that_hangs_does_not_outlast_the_grace_period() {
    const GRACE: Duration = Duration::from_secs(10);
    let upstream = Upstream::accepting();
    let gate = Gate::default();
    let lake = Kinesis::start(Mood::Hangs(gate.clone()));
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": "10s", "reserve": "8s" });
    lake.add_to(&mut setup, keep_trying("50ms", "50ms"));
    let mut relay = Relay::start(&setup);
    let expected = post(&relay);
    eventually("a delivery that hangs, and the other destination's", || {
        (lake.refused() > 0 && setup.exported().len() == BATCHES).then_some(())
    });
    let signalled = Instant::now();
    relay.terminate();
    let status = relay.wait();
    let took = signalled.elapsed();
    assert!(status.success(), "{status}\n{}", relay.log_text());
    assert!(took < GRACE, "{took:?}\n{}", relay.log_text());
    assert!(!relay.log_text().contains("the queue did not close in time"));
    assert_eq!(waiting_at_the_end(&relay), BATCHES as u64);
    drop(relay);
    gate.open();
    assert!(lake.lines().is_empty());
    lake.be(Mood::Takes);
    let relay = Relay::start(&setup);
    let metrics = relay.settle();
    let recovered = metrics.sum("flagtap_destination_events_recovered_total", &[("destination", "lake")]);
    assert_eq!(recovered, BATCHES as f64);
    relay.stop();
    assert_eq!(sorted(markers(&lake.lines())), expected);
    assert_eq!(markers(&setup.exported()), expected);
}
