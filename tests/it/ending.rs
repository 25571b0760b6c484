//! The end of the process while streams are open: the grace period bounds it, a second signal cuts it short.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::export::markers;
use crate::support::relay::{bulk, marked};
use crate::support::upstream::Gate;
use crate::support::{Answer, Connection, Relay, Setup, Upstream, eventually, request};

/// What a busy machine may add to any of the times below.
const SLACK: Duration = Duration::from_secs(2);

/// An upstream with one stream: a message, another when the gate opens, then silence.
fn streaming(gate: &Gate, silence: &Gate) -> Upstream {
    let upstream = Upstream::accepting();
    let stream = Answer::chunked(200, &[("Content-Type", "text/event-stream")])
        .then("5\r\nfirst\r\n")
        .wait(gate)
        .then("6\r\nsecond\r\n")
        .wait(silence);
    upstream.once("GET", "/all", stream);
    upstream
}

fn open_stream(relay: &Relay) -> Connection {
    let mut connection = relay.connect();
    connection.send(&request("GET", "/all", &[], b"")).unwrap();
    assert_eq!(connection.response_head().unwrap().status, 200);
    assert_eq!(connection.chunk().unwrap().unwrap(), b"first");
    connection
}

fn start(upstream: &Upstream, grace: &str, reserve: &str) -> (Setup, Relay) {
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": grace, "reserve": reserve });
    let relay = Relay::start(&setup);
    (setup, relay)
}

/// Scenario: SIGTERM while an SDK has a stream open that would go on for hours, and the upstream sits on a batch.
/// Guarantees: the stream goes on while the grace period lasts, and the relay ends with success when it is over.
#[test]
fn an_open_stream_does_not_outlast_the_grace_period() {
    let (gate, silence) = (Gate::default(), Gate::default());
    let upstream = streaming(&gate, &silence);
    upstream.once("POST", "/bulk", Answer::accepted().behind(&silence));
    let (_setup, mut relay) = start(&upstream, "8s", "6s");
    let mut stream = open_stream(&relay);
    let mut batch = relay.connect();
    batch.send(&bulk("unanswered", &json!([marked("unanswered")]))).unwrap();
    eventually("both requests at the upstream", || {
        (upstream.count() == 2).then_some(())
    });
    let signalled = Instant::now();
    relay.terminate();
    eventually("the signal to be seen", || {
        relay.find_log("ending: delivering what waits, a second signal ends at once")
    });
    gate.open();
    assert_eq!(stream.chunk().unwrap().unwrap(), b"second");
    let status = relay.wait();
    let took = signalled.elapsed();
    assert!(status.success(), "{status}\n{}", relay.log_text());
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    silence.open();
}

/// Scenario: a second SIGTERM long before the grace period ends.
/// Guarantees: the relay ends at once; what it had acknowledged is exported once, by the next start if need be.
#[test]
fn a_second_signal_ends_the_relay_at_once() {
    let (gate, silence) = (Gate::default(), Gate::default());
    let upstream = streaming(&gate, &silence);
    let (setup, mut relay) = start(&upstream, "10m", "1s");
    let _stream = open_stream(&relay);
    assert_eq!(relay.post("kept", &json!([marked("kept")])).status, 202);
    relay.terminate();
    eventually("the signal to be seen", || {
        relay.find_log("ending: delivering what waits, a second signal ends at once")
    });
    let signalled = Instant::now();
    relay.terminate();
    relay.wait();
    assert!(signalled.elapsed() < SLACK, "{:?}", signalled.elapsed());
    drop(relay);
    gate.open();
    silence.open();
    let relay = Relay::start(&setup);
    relay.settle();
    relay.stop();
    let mut exported = markers(&setup.exported());
    // Delivered, but perhaps not noted before the end: at least once is the promise.
    exported.dedup();
    assert_eq!(exported, ["kept"]);
}

/// Scenario: the second SIGTERM comes when the listener is closed already and the reserve is running.
/// Guarantees: the relay does not wait for the rest of the reserve either.
#[test]
fn a_second_signal_cuts_the_reserve_short() {
    let (gate, silence) = (Gate::default(), Gate::default());
    let upstream = streaming(&gate, &silence);
    let (_setup, mut relay) = start(&upstream, "10m", "599s");
    let _stream = open_stream(&relay);
    relay.terminate();
    eventually("the listener to close", || {
        Connection::try_open(relay.address()).is_err().then_some(())
    });
    let signalled = Instant::now();
    relay.terminate();
    relay.wait();
    assert!(signalled.elapsed() < SLACK, "{:?}", signalled.elapsed());
    gate.open();
    silence.open();
}
