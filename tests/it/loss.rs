//! What is exported and what is not, when the upstream, the client or the relay has a bad day.

use serde_json::json;

use crate::support::export::markers;
use crate::support::relay::{bulk, marked};
use crate::support::upstream::Gate;
use crate::support::{Answer, CLIENT_SIDE_ID, NOBODY, Relay, SDK_KEY, Setup, Upstream, eventually, request};

/// Scenario: nothing listens at the upstream's address.
/// Guarantees: the SDK gets a 502 that says whose fault it is, with a `Date`; the events of a configured credential are
/// exported all the same, those of an unknown one never.
#[test]
fn events_are_exported_while_the_upstream_is_down() {
    let setup = Setup::new(NOBODY.parse().unwrap());
    let relay = Relay::start(&setup);
    let response = relay.post("down", &json!([marked("down")]));
    assert_eq!(response.status, 502);
    assert!(
        response.headers.get("x-flagtap-error").is_some(),
        "{:?}",
        response.headers
    );
    assert!(response.headers.get("date").is_some(), "{:?}", response.headers);
    let stranger = bulk("stranger", &json!([marked("stranger")]));
    let stranger = String::from_utf8(stranger)
        .unwrap()
        .replace(SDK_KEY, "sdk-99999999-0000-4000-8000-000000000000");
    assert_eq!(relay.exchange(stranger.as_bytes()).status, 502);
    assert_eq!(relay.exchange(&request("GET", "/sdk/latest-all", &[], b"")).status, 502);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["down"]);
}

/// Scenario: the upstream takes longer than `upstream.timeout`.
/// Guarantees: the SDK gets a 504 with a `Date`, and the batch is exported once although the SDK sends it again.
#[test]
fn events_are_exported_when_the_upstream_is_too_slow() {
    let upstream = Upstream::start();
    let never = Gate::default();
    upstream.once("POST", "/bulk", Answer::accepted().behind(&never));
    let mut setup = Setup::new(upstream.address());
    setup.config["upstream"]["timeout"] = json!("2s");
    let relay = Relay::start(&setup);
    let response = relay.post("slow", &json!([marked("slow")]));
    assert_eq!(response.status, 504);
    assert!(response.headers.get("x-flagtap-error").is_some() && response.headers.get("date").is_some());
    upstream.once("POST", "/bulk", Answer::accepted());
    assert_eq!(relay.post("slow", &json!([marked("slow")])).status, 202);
    never.open();
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["slow"]);
}

/// Scenario: the upstream refuses with each 4xx that judges the request.
/// Guarantees: the SDK sees that status; nothing is exported.
#[test]
fn refused_events_are_never_exported() {
    let upstream = Upstream::start();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    for status in [400, 401, 403, 404, 405, 411, 413, 415, 422] {
        upstream.once("POST", "/bulk", Answer::full(status, &[], b"{\"message\":\"no\"}"));
        let response = relay.post(&format!("refused-{status}"), &json!([marked("refused")]));
        assert_eq!(
            (response.status, response.body.as_slice()),
            (status, b"{\"message\":\"no\"}".as_slice())
        );
    }
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 9.0);
    relay.stop();
    assert!(setup.exported().is_empty());
}

/// Scenario: the upstream gives no judgement (408, 429, 5xx); a second later the SDK sends the same bytes again.
/// Guarantees: every answer reaches the SDK as it was given; the batch is exported once, with payload id or without.
#[test]
fn a_retry_after_no_judgement_is_exported_once() {
    let upstream = Upstream::start();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for status in [408, 429, 500, 502, 503, 504] {
        let marker = format!("retried-{status}");
        let with_id = bulk(&marker, &json!([marked(&marker)]));
        let without_id = request(
            "POST",
            "/bulk",
            &[("Authorization", SDK_KEY)],
            marked_body(&format!("{marker}-bare")).as_bytes(),
        );
        for bytes in [with_id, without_id] {
            upstream.once("POST", "/bulk", Answer::full(status, &[("Retry-After", "3")], b""));
            upstream.once("POST", "/bulk", Answer::accepted());
            let first = relay.exchange(&bytes);
            assert_eq!((first.status, first.headers.get("retry-after")), (status, Some("3")));
            assert_eq!(relay.exchange(&bytes).status, 202);
        }
        expected.extend([marker.clone(), format!("{marker}-bare")]);
    }
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_batches_duplicate_total", &[]), 12.0);
    relay.stop();
    assert_eq!(markers(&setup.exported()), expected);
}

/// Scenario: the first delivery is refused with 400; the SDK repeats it and the upstream accepts.
/// Guarantees: the refused delivery does not count as the first sight of the batch.
#[test]
fn a_batch_refused_first_and_accepted_then_is_exported() {
    let upstream = Upstream::start();
    upstream.once("POST", "/bulk", Answer::status(400));
    upstream.once("POST", "/bulk", Answer::accepted());
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("second-try", &json!([marked("second-try")])).status, 400);
    assert_eq!(relay.post("second-try", &json!([marked("second-try")])).status, 202);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["second-try"]);
}

/// Scenario: a batch is sent again after the relay has been restarted.
/// Guarantees: the duplicate window survives the restart.
#[test]
fn a_retry_across_a_restart_is_exported_once() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("again", &json!([marked("again")])).status, 202);
    relay.stop();
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("again", &json!([marked("again")])).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_events_duplicate_total", &[]), 1.0);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["again"]);
}

/// Scenario: the client hangs up after its last byte, before the upstream has answered.
/// Guarantees: the batch still goes upstream, and is exported once the upstream accepts it; the request counts as one without an
/// answer.
#[test]
fn a_client_that_hangs_up_after_the_body_loses_nothing() {
    let upstream = Upstream::start();
    let gate = Gate::default();
    upstream.once("POST", "/bulk", Answer::accepted().behind(&gate));
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut connection = relay.connect();
    connection.send(&bulk("gone", &json!([marked("gone")]))).unwrap();
    upstream.next();
    drop(connection);
    eventually("the relay to see that the client has gone", || {
        (relay.metrics().sum("flagtap_connections", &[]) == 0.0).then_some(())
    });
    gate.open();
    eventually("the batch to be queued", || {
        (relay.metrics().sum("flagtap_events_queued_total", &[]) == 1.0).then_some(())
    });
    let metrics = relay.settle();
    for (status, requests) in [("none", 1.0), ("2xx", 0.0), ("5xx", 0.0)] {
        let of_status = [("route", "/bulk"), ("status", status)];
        assert_eq!(metrics.sum("flagtap_requests_total", &of_status), requests, "{status}");
    }
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["gone"]);
}

/// Scenario: the client hangs up in the middle of its body.
/// Guarantees: half a batch is neither forwarded as a whole one nor exported, and the relay goes on.
#[test]
fn half_a_batch_is_not_exported() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let bytes = bulk("half", &json!([marked("half")]));
    let mut connection = relay.connect();
    connection.send(&bytes[..bytes.len() - 10]).unwrap();
    drop(connection);
    assert_eq!(relay.post("whole", &json!([marked("whole")])).status, 202);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["whole"]);
    assert_eq!(upstream.count(), 1);
}

/// Scenario: pooled upstream connections die between two posts, as behind a load balancer.
/// Guarantees: the SDK does not notice, or gets a 502; its events are exported either way.
#[test]
fn a_stale_upstream_connection_loses_nothing() {
    let upstream = Upstream::start();
    upstream.plan(|_| Some(Answer::accepted().and_close()));
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for number in 0..20 {
        let marker = format!("stale-{number}");
        assert_eq!(relay.post(&marker, &json!([marked(&marker)])).status, 202);
        expected.push(marker);
    }
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), expected);
}

/// Scenario: bodies that are no batch: broken JSON, a diagnostic on `/bulk`, broken gzip, an unknown encoding.
/// Guarantees: each passes unchanged and is counted; nothing is exported.
#[test]
fn what_is_no_batch_passes_and_is_counted() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let bodies: [(&str, &[u8]); 5] = [
        ("", b"[{\"kind\":\"custom\""),
        ("", b"{\"kind\":\"diagnostic-init\"}"),
        ("", b"\xff\xfe\x00"),
        ("gzip", b"\x1f\x8b\x08\x00broken"),
        ("br", b"[]"),
    ];
    for (encoding, body) in bodies {
        let mut headers = vec![("Authorization", SDK_KEY)];
        headers.extend((!encoding.is_empty()).then_some(("Content-Encoding", encoding)));
        assert_eq!(relay.exchange(&request("POST", "/bulk", &headers, body)).status, 202);
        assert_eq!(upstream.next().body, body);
    }
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 5.0);
    relay.stop();
    assert!(setup.exported().is_empty());
}

/// Scenario: the queue's path is a file, so that the queue can never open.
/// Guarantees: traffic passes; that nothing is kept is in the log as an ERROR, in the metrics and with each batch counted.
#[test]
fn a_queue_that_cannot_open_turns_the_copy_off_and_not_the_traffic() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    std::fs::write(setup.queue(), b"not a directory").unwrap();
    let mut relay = Relay::start(&setup);
    relay.tolerate("the queue");
    assert_eq!(relay.post("unkept", &json!([marked("unkept")])).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_queue_available", &[]), 0.0);
    assert_eq!(
        metrics.sum("flagtap_events_not_teed_total", &[("reason", "queue_unavailable")]),
        1.0
    );
    eventually("an ERROR about the queue", || {
        relay.log_text().contains("the queue is not available").then_some(())
    });
    relay.stop();
    assert_eq!(upstream.count(), 1);
}

/// Scenario: the same, with `tee.on_failure: refuse`.
/// Guarantees: the SDK gets a 503, after which it sends the batch again; never a 4xx, after which it would stop.
#[test]
fn refuse_answers_503_when_nothing_can_be_kept() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["tee"]["on_failure"] = json!("refuse");
    std::fs::write(setup.queue(), b"not a directory").unwrap();
    let mut relay = Relay::start(&setup);
    relay.tolerate("the queue");
    let response = relay.post("refused", &json!([marked("refused")]));
    assert_eq!(response.status, 503);
    assert!(response.headers.get("x-flagtap-error").is_some() && response.headers.get("date").is_some());
    relay.stop();
}

/// Scenario: SIGTERM arrives; the application sends its last flush afterwards, as in a sidecar.
/// Guarantees: the flush is answered and exported before the relay ends with success.
#[test]
fn the_last_flush_after_a_termination_signal_is_exported() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["shutdown"] = json!({ "grace": "4s", "reserve": "1s" });
    let mut relay = Relay::start(&setup);
    relay.terminate();
    assert_eq!(relay.post("last", &json!([marked("last")])).status, 202);
    let status = relay.wait();
    assert!(status.success(), "{status}\n{}", relay.log_text());
    drop(relay);
    assert_eq!(markers(&setup.exported()), ["last"]);
}

/// Scenario: two environments with a destination each.
/// Guarantees: events go to the destinations of the environment whose credential they came with.
#[test]
fn environments_do_not_mix() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let other = tempfile::tempdir().unwrap();
    let mut staging = setup.config["environments"][0].clone();
    staging["name"] = json!("staging");
    staging["environment_id"] = json!("aaaaaaaaaaaaaaaaaaaaaaaa");
    staging["credentials"] = json!({ "client_side_ids": ["aaaaaaaaaaaaaaaaaaaaaaaa"] });
    staging["destinations"] = json!(["elsewhere"]);
    setup.config["environments"].as_array_mut().unwrap().push(staging);
    let elsewhere = json!({ "name": "elsewhere", "file": { "path": other.path() } });
    setup.config["destinations"].as_array_mut().unwrap().push(elsewhere);
    let relay = Relay::start(&setup);
    for (marker, id) in [("ours", CLIENT_SIDE_ID), ("theirs", "aaaaaaaaaaaaaaaaaaaaaaaa")] {
        let target = format!("/events/bulk/{id}");
        let headers = [("X-LaunchDarkly-Event-Schema", "4")];
        let response = relay.exchange(&request("POST", &target, &headers, marked_body(marker).as_bytes()));
        assert_eq!(response.status, 202);
    }
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["ours"]);
    assert_eq!(markers(&crate::support::export::read_lines(other.path())), ["theirs"]);
}

fn marked_body(marker: &str) -> String {
    json!([marked(marker)]).to_string()
}
