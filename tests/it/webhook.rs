//! The webhook destination through the binary: what real SDKs sent arrives byte by byte, and nothing that a receiver or a
//! network does loses an event or sends one where it must not go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::json;

use crate::egress::{Policy, Proxy};
use crate::replay::{self, BUILDS};
use crate::support::export::{id, markers};
use crate::support::relay::marked;
use crate::support::tls::{Authority, TlsFront};
use crate::support::webhook::{Shape, Webhook};
use crate::support::{Answer, Relay, Setup, Upstream, eventually};

const ARRAY: Shape = Shape {
    lines: false,
    gzip: false,
};
const SHAPES: [Shape; 3] = [
    ARRAY,
    Shape {
        lines: true,
        gzip: false,
    },
    Shape {
        lines: true,
        gzip: true,
    },
];

/// Returns a setup with the webhook as its one destination. Failures are repeated soon.
fn setup(upstream: &Upstream, settings: serde_json::Value) -> Setup {
    let mut setup = Setup::new(upstream.address());
    let retry = json!({ "initial": "10ms", "max": "50ms" });
    setup.config["destinations"] = json!([{ "name": "archive", "webhook": settings, "retry": retry }]);
    setup
}

/// Scenario: the recordings of every SDK build, in the three shapes of a body by turns; signed.
/// Guarantees: the receiver gets the records that a file would, byte by byte, in order within each request.
#[test]
fn every_recorded_build_arrives_byte_for_byte() {
    for (build, shape) in BUILDS.iter().zip(SHAPES.into_iter().cycle()) {
        let receiver = Webhook::start(shape);
        let mut expected = replay::deliver(build, json!({ "webhook": receiver.settings() }));
        let places: BTreeMap<&String, usize> = expected.iter().zip(0..).collect();
        for delivery in receiver.deliveries() {
            let order = delivery.records.iter().map(|record| places.get(record).copied());
            assert!(order.is_sorted(), "{build}");
        }
        let mut records = receiver.records();
        records.sort();
        expected.sort();
        assert_eq!(records, expected, "{build}");
    }
}

/// Scenario: a receiver that throttles, fails, answers garbage, breaks off within its answer (having stored the events or
/// not), finds requests too large, and then behaves.
/// Guarantees: every event arrives, those that the receiver took and could not say so again, with the same ids; requests
/// with the same events have the same idempotency key, and no others; no secret is in the log.
#[test]
fn a_receiver_that_fails_in_every_way_loses_nothing() {
    let upstream = Upstream::accepting();
    let receiver = Webhook::start(ARRAY);
    receiver.tolerate_broken();
    for (answer, takes, tells) in [
        (Answer::status(413), false, false),
        (Answer::full(429, &[("Retry-After", "1")], b""), false, false),
        (Answer::close(), true, false),
        (Answer::raw("HTTP/1.1 200 OK\r\ncontent-le").and_close(), true, false),
        (Answer::status(500), false, false),
        (Answer::raw("220 mail.example.com ESMTP\r\n").and_close(), false, false),
        (Answer::close(), false, false),
        (
            Answer::raw("HTTP/1.1 202 Accepted\r\ncontent-length: 99\r\n\r\nhalf").and_close(),
            true,
            true,
        ),
    ] {
        receiver.then(answer, takes, tells);
    }
    let mut setup = setup(&upstream, receiver.settings());
    // One request at a time, so that a failed one is followed by its repetition.
    setup.config["destinations"][0]["concurrency"] = json!(1);
    let relay = Relay::start(&setup);
    let sent: Vec<String> = (0..40).map(|number| format!("event-{number}")).collect();
    for markers in sent.chunks(10) {
        let events: Vec<_> = markers.iter().map(|marker| marked(marker)).collect();
        assert_eq!(relay.post(&markers[0], &json!(events)).status, 202);
    }
    eventually("the script to end", || (receiver.planned() == 0).then_some(()));
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &[]), 0.0);
    Webhook::assert_no_secrets_in(&relay.log_text());
    assert!(!relay.log_text().contains("from=flagtap"), "the URL can hold a token");
    relay.stop();

    let deliveries = receiver.deliveries();
    let mut told: Vec<String> = Vec::new();
    for delivery in deliveries.iter().filter(|delivery| delivery.told) {
        told.extend(delivery.records.iter().map(|record| id(record)));
    }
    assert_eq!(told.len(), 40, "what was acknowledged is not sent again");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>().len(), 40);
    let arrived: BTreeSet<String> = markers(&receiver.records()).into_iter().collect();
    assert_eq!(arrived, sent.into_iter().collect());
    let untold: Vec<_> = deliveries.iter().filter(|delivery| !delivery.told).collect();
    assert_eq!(untold.len(), 2);
    for (one, other) in deliveries
        .iter()
        .flat_map(|one| deliveries.iter().map(move |other| (one, other)))
    {
        assert_eq!(one.key == other.key, one.records == other.records);
    }
    assert!(receiver.refused() >= 5);
}

/// Scenario: a receiver that does not like one event of a batch.
/// Guarantees: that event alone becomes a dead letter, all others arrive.
#[test]
fn one_bad_event_does_not_hold_up_the_others() {
    let upstream = Upstream::accepting();
    let receiver = Upstream::start();
    receiver.plan(|request| {
        let bad = String::from_utf8_lossy(&request.body).contains("event-bad");
        Some(Answer::status(if bad { 422 } else { 200 }))
    });
    let settings = json!({ "url": format!("http://{}/", receiver.address()) });
    let kept = setup(&upstream, settings);
    let mut relay = Relay::start(&kept);
    relay.tolerate("dead letter");
    let events: Vec<_> = ["event-1", "event-2", "event-bad", "event-3"].map(marked).to_vec();
    assert_eq!(relay.post("one", &json!(events)).status, 202);
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &[]), 1.0);
    assert_eq!(metrics.sum("flagtap_destination_events_delivered_total", &[]), 3.0);
    assert!(!relay.log_text().contains("event-bad"));
    relay.stop();
}

/// Scenario: the receiver redirects to another host, then refuses the token; somebody corrects it.
/// Guarantees: the other host is never contacted, the status names the settings to look at, nothing is lost, and delivery
/// goes on by itself.
#[test]
fn a_wrong_setting_blocks_and_delivery_resumes_when_it_is_right() {
    let upstream = Upstream::accepting();
    let elsewhere = Upstream::start();
    let receiver = Webhook::start(ARRAY);
    let location = format!("http://{}/hook?from=flagtap", elsewhere.address());
    receiver.then(Answer::full(307, &[("Location", &location)], b""), false, false);
    let kept = setup(&upstream, receiver.settings());
    let relay = Relay::start(&kept);
    assert_eq!(relay.post("one", &json!([marked("kept")])).status, 202);
    let status = eventually("the status to say blocked", || {
        let answer = relay.telemetry("/status")?;
        let text = String::from_utf8(answer.body).unwrap();
        text.contains("redirects are not followed").then_some(text)
    });
    assert!(status.contains("blocked"), "{status}");
    Webhook::assert_no_secrets_in(&status);
    assert_eq!(elsewhere.count(), 0);
    relay.settle();
    assert_eq!(elsewhere.count(), 0);
    relay.stop();
    assert_eq!(markers(&receiver.records()), ["kept"]);
}

/// Scenario: the receiver's certificate is for another host, is over, or of an authority that nobody trusts.
/// Guarantees: no request is made, no byte is sent in plain text, the event waits.
#[test]
fn a_receiver_that_is_not_the_one_gets_nothing() {
    let ours = Authority::new("ours");
    for (what, identity) in [
        ("another host", ours.issue("other.invalid")),
        ("over", ours.issue_expired("127.0.0.1")),
        ("another authority", Authority::new("theirs").issue("127.0.0.1")),
    ] {
        let upstream = Upstream::accepting();
        let receiver = Webhook::start(ARRAY);
        let front = TlsFront::start(&identity, receiver.address());
        let mut setup = setup(&upstream, receiver.settings_at(&format!("https://{}", front.address())));
        trust(&mut setup, &ours);
        let relay = Relay::start(&setup);
        assert_eq!(relay.post("one", &json!([marked("kept")])).status, 202);
        eventually("some refused handshakes", || (front.refusals() >= 2).then_some(()));
        let metrics = relay.metrics();
        assert_eq!(metrics.sum("flagtap_destination_events_waiting", &[]), 1.0, "{what}");
        assert!(receiver.deliveries().is_empty() && receiver.refused() == 0, "{what}");
        relay.stop();
    }
}

/// Scenario: a receiver with a certificate of an authority in `SSL_CERT_FILE`, by a name that only the proxy in
/// `HTTPS_PROXY` can reach.
/// Guarantees: the event arrives through the tunnel; the proxy sees the name and no more.
#[test]
fn a_receiver_is_reached_through_an_egress_proxy() {
    let upstream = Upstream::accepting();
    let receiver = Webhook::start(SHAPES[2]);
    let authority = Authority::new("ours");
    let front = TlsFront::start(&authority.issue("hooks.invalid"), receiver.address());
    let proxy = Proxy::start(Policy::Tunnel(front.address()));
    let mut setup = setup(&upstream, receiver.settings_at("https://hooks.invalid"));
    trust(&mut setup, &authority);
    setup.variables.push(("HTTPS_PROXY".to_owned(), proxy.url()));
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("one", &json!([marked("through")])).status, 202);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&receiver.records()), ["through"]);
    let heads = proxy.heads();
    assert_eq!(heads[0].0, "CONNECT hooks.invalid:443 HTTP/1.1");
    for (line, headers) in heads {
        Webhook::assert_no_secrets_in(&format!("{line} {headers:?}"));
    }
}

fn trust(setup: &mut Setup, authority: &Authority) {
    let file = setup.queue().with_file_name("ca.crt");
    fs::write(&file, authority.pem()).unwrap();
    let file = file.display().to_string();
    setup.variables.push(("SSL_CERT_FILE".to_owned(), file));
}
