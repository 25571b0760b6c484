//! Clients that are broken or mean: the relay refuses or outlives them, and never passes an ambiguous request on.

use std::io::Write;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::support::eventually::patience;
use crate::support::export::markers;
use crate::support::raw::Response;
use crate::support::relay::marked;
use crate::support::{CLIENT_SIDE_ID, Connection, Relay, SDK_KEY, Setup, Upstream, eventually, request};

/// Scenario: `Connection` names headers that matter, so that a naive proxy would strip them.
/// Guarantees: credentials, payload id and schema reach the upstream; real hop-by-hop headers do not.
#[test]
fn connection_cannot_strip_what_matters() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let headers = [
        ("Authorization", SDK_KEY),
        (
            "Connection",
            "Authorization, X-LaunchDarkly-Payload-ID, X-LaunchDarkly-Event-Schema, X-Private",
        ),
        ("X-LaunchDarkly-Payload-ID", "kept"),
        ("X-LaunchDarkly-Event-Schema", "4"),
        ("X-Private", "of this hop"),
        ("Proxy-Authorization", "Basic c2VjcmV0"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
    ];
    let body = json!([marked("kept")]).to_string();
    assert_eq!(
        relay
            .exchange(&request("POST", "/bulk", &headers, body.as_bytes()))
            .status,
        202
    );
    let received = upstream.next().headers;
    assert_eq!(received.get("authorization"), Some(SDK_KEY));
    assert_eq!(received.get("x-launchdarkly-payload-id"), Some("kept"));
    assert_eq!(received.get("x-launchdarkly-event-schema"), Some("4"));
    for name in ["x-private", "proxy-authorization", "keep-alive"] {
        assert_eq!(received.get(name), None, "{name}");
    }
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["kept"]);
}

/// Scenario: requests whose end two servers could see differently.
/// Guarantees: refused, or passed on with one framing; a smuggled second request never reaches the upstream.
#[test]
fn ambiguous_framing_smuggles_nothing() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let smuggled = "POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let framings = [
        format!("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("Content-Length: 2\r\nContent-Length: 60\r\n\r\n[]{smuggled}"),
        format!("Content-Length: 2, 60\r\n\r\n[]{smuggled}"),
        format!("Content-Length: +2\r\n\r\n[]{smuggled}"),
        format!("Content-Length: -1\r\n\r\n{smuggled}"),
        format!("Content-Length: 0x2\r\n\r\n[]{smuggled}"),
        format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n[]\r\n0\r\n\r\n".to_owned(),
        "Transfer-Encoding: chunked\r\n\r\n2\r\n[]zz0\r\n\r\n".to_owned(),
    ];
    for framing in &framings {
        let mut connection = relay.connect();
        let head = format!("POST /bulk HTTP/1.1\r\nHost: x\r\nAuthorization: {SDK_KEY}\r\n{framing}");
        let sent = connection.send(head.as_bytes());
        connection.finish_sending();
        if sent.is_ok()
            && let Ok(response) = connection.response(false)
        {
            assert!(
                is_refusal(&response) || response.status == 202,
                "{}: {framing:?}",
                response.status
            );
        }
    }
    // CL+TE as a chunked request followed by a second one is legal to serve as two requests: the fake then sees a
    // `/smuggled` of its own, which its rules do not expect, and fails this test. A refusal closes the connection.
    let mut one_zero = relay.connect();
    one_zero
        .send(format!("POST /bulk HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}").as_bytes())
        .unwrap();
    one_zero.finish_sending();
    let _ = one_zero.response(false);
    assert_alive(&relay);
    relay.stop();
}

/// Scenario: too many headers, too large headers, too long a request line.
/// Guarantees: refused or cut off, and the relay goes on.
#[test]
fn header_floods_are_refused() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let many: String = (0..2_000).map(|number| format!("X-{number}: y\r\n")).collect();
    let floods = [
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "y".repeat(1 << 20)),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(1 << 20)),
    ];
    for flood in &floods {
        let mut connection = relay.connect();
        let sent = connection.send(flood.as_bytes());
        connection.finish_sending();
        match connection.response(false) {
            Ok(response) => assert!(is_refusal(&response), "{}", response.status),
            Err(error) => assert!(
                sent.is_err() || error.kind() != std::io::ErrorKind::WouldBlock,
                "the relay hangs"
            ),
        }
    }
    assert_eq!(upstream.count(), 0);
    assert_alive(&relay);
    relay.stop();
}

/// Scenario: a client sends its headers, or its body, byte by byte or not at all.
/// Guarantees: the relay lets go of it after the configured time, and others are served meanwhile.
#[test]
fn slow_clients_are_let_go() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "header_timeout": "500ms", "body_timeout": "500ms", "idle_timeout": "500ms" });
    let relay = Relay::start(&setup);
    let head = format!("POST /bulk HTTP/1.1\r\nHost: x\r\nAuthorization: {SDK_KEY}\r\n");
    let started = [
        String::new(),
        head.clone(),
        format!("{head}Content-Length: 100\r\n\r\n[{{\"kind\""),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n[{{\"k"),
    ];
    let mut slow: Vec<Connection> = Vec::new();
    for bytes in &started {
        let mut connection = relay.connect();
        connection.send(bytes.as_bytes()).unwrap();
        slow.push(connection);
    }
    let since = Instant::now();
    assert_alive(&relay);
    for (mut connection, bytes) in slow.into_iter().zip(&started) {
        if let Ok(response) = connection.response(false) {
            // 408 is one of the answers after which SDKs repeat the batch, and never stop sending.
            assert!(matches!(response.status, 408 | 500..), "{}: {bytes:?}", response.status);
        }
        assert!(since.elapsed() < patience(), "the relay holds on to {bytes:?}");
    }
    eventually("the relay to let go of every client", || {
        (relay.metrics().sum("flagtap_connections", &[]) == 0.0).then_some(())
    });
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["alive"]);
}

/// Scenario: a gzip body of a few kilobytes that inflates to hundreds of megabytes.
/// Guarantees: it passes to the upstream as it came; it is not inflated beyond the limit, and that is counted.
#[test]
fn gzip_bombs_pass_without_a_copy() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(b"[\"").unwrap();
    let zeros = vec![b'0'; 1 << 20];
    for _ in 0..300 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.write_all(b"\"]").unwrap();
    let bomb = encoder.finish().unwrap();
    let headers = [("Authorization", SDK_KEY), ("Content-Encoding", "gzip")];
    assert_eq!(relay.exchange(&request("POST", "/bulk", &headers, &bomb)).status, 202);
    assert!(upstream.next().body == bomb);
    let metrics = relay.settle();
    assert_eq!(
        metrics.sum("flagtap_batches_not_teed_total", &[("reason", "inflates_too_far")]),
        1.0
    );
    let peak = relay.peak_memory_mib();
    assert!(peak < 200, "the relay used {peak} MiB");
    assert_alive(&relay);
    relay.stop();
}

/// Scenario: two bodies that inflate to some thirty megabytes each, made of the smallest parts that JSON has: counters in a summary,
/// members of an event; then two of the same sizes that are one text each.
/// Guarantees: reading the parts takes hardly more memory than reading the texts.
#[test]
fn bodies_of_a_million_parts_take_no_more_than_their_text() {
    const BYTES: usize = 30_000_000;
    // What does not compress keeps the bodies below the ratio at which nothing is inflated any more.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(500_000).collect();
    let summary = |counters: &str, text: &str| {
        format!(
            r#"[{{"kind":"summary","startDate":1,"endDate":2,"noise":"{noise}","text":"{text}","features":{{"a":{{"counters":[{counters}{{}}]}}}}}}]"#
        )
    };
    let custom = |members: &str, text: &str| {
        format!(r#"[{{"kind":"custom","creationDate":1,"noise":"{noise}","text":"{text}",{members}"key":"a"}}]"#)
    };
    let text = "x".repeat(BYTES);
    let of_parts = peak_memory([
        &summary(&"{},".repeat(BYTES / 3), ""),
        &custom(&r#""":1,"#.repeat(BYTES / 5), ""),
    ]);
    let of_texts = peak_memory([&summary("", &text), &custom("", &text)]);
    // The allocator keeps a text more or less; every part for itself would take ten times its text.
    assert!(
        of_parts < of_texts * 3 / 2,
        "{of_parts} MiB in parts, {of_texts} MiB as texts"
    );
}

/// Returns the peak of a relay's memory, MiB, that is sent the bodies, one after the other.
fn peak_memory(bodies: [&str; 2]) -> u64 {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "body_timeout": "60s" });
    let relay = Relay::start(&setup);
    let bodies = bodies.map(|body| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body.as_bytes()).unwrap();
        encoder.finish().unwrap()
    });
    for body in &bodies {
        let headers = [("Authorization", SDK_KEY), ("Content-Encoding", "gzip")];
        assert_eq!(relay.exchange(&request("POST", "/bulk", &headers, body)).status, 202);
        relay.settle();
    }
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 0.0);
    let peak = relay.peak_memory_mib();
    assert_alive(&relay);
    relay.stop();
    peak
}

/// Scenario: bytes that are no HTTP at all, and a flood of connections that send nothing.
/// Guarantees: the relay goes on.
#[test]
fn noise_does_no_harm() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    for noise in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM",
    ] {
        let mut connection = relay.connect();
        connection.send(noise).unwrap();
        connection.finish_sending();
        let _ = connection.response(false);
    }
    let idle: Vec<Connection> = (0..200).map(|_| relay.connect()).collect();
    assert_alive(&relay);
    drop(idle);
    relay.stop();
}

/// Scenario: requests that carry secrets, refused, accepted and malformed.
/// Guarantees: no credential, path id or event data is in the log, whatever happened.
#[test]
fn secrets_never_reach_the_log() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["log"]["level"] = json!("trace");
    let relay = Relay::start(&setup);
    let body = json!([marked("private-marker")]).to_string();
    relay.exchange(&request(
        "POST",
        "/bulk",
        &[("Authorization", SDK_KEY)],
        body.as_bytes(),
    ));
    relay.exchange(&request(
        "POST",
        "/bulk",
        &[("Authorization", SDK_KEY)],
        b"[{broken private-marker",
    ));
    relay.exchange(&request(
        "POST",
        &format!("/events/bulk/{CLIENT_SIDE_ID}"),
        &[],
        body.as_bytes(),
    ));
    relay.settle();
    let log = relay.log_text();
    for secret in [SDK_KEY, "private-marker", CLIENT_SIDE_ID] {
        let leak = log.lines().find(|line| line.contains(secret));
        assert!(leak.is_none(), "{secret} is in the log: {leak:?}");
    }
    relay.stop();
}

fn is_refusal(response: &Response) -> bool {
    (400..600).contains(&response.status) && response.status != 599
}

fn assert_alive(relay: &Relay) {
    assert_eq!(relay.post("alive", &json!([marked("alive")])).status, 202);
    relay.settle();
}

/// Scenario: an event with line breaks between its tokens, and among them what looks like an export record.
/// Guarantees: one event stays one line of the file, whatever its sender would like it to be.
#[test]
fn line_breaks_in_an_event_forge_no_record() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let forged = r#"{"project":"forged","environment":"forged","event":{"kind":"custom"},"version":2}"#;
    let body = format!("[{{\"kind\":\"custom\",\r\n\"key\":\"alive\",\"data\":[\n{forged}\n]}}]");
    let headers = [("Authorization", SDK_KEY), ("X-LaunchDarkly-Event-Schema", "4")];
    let answer = relay.exchange(&request("POST", "/bulk", &headers, body.as_bytes()));
    assert_eq!(answer.status, 202);
    assert!(
        upstream.next().body == body.as_bytes(),
        "the upstream gets the line breaks as they came"
    );
    relay.settle();
    relay.stop();
    assert_eq!(setup.exported().len(), 1);
}
