//! The relay is transparent: what is not an event post streams through, and whatever passes is not changed.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::support::export::markers;
use crate::support::http1::Headers;
use crate::support::raw::chunked;
use crate::support::relay::{bulk, marked};
use crate::support::upstream::{DATE, Gate};
use crate::support::{Answer, CLIENT_SIDE_ID, Relay, SDK_KEY, Setup, Upstream, request};

fn start(upstream: &Upstream) -> (Setup, Relay) {
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    (setup, relay)
}

/// Scenario: an SDK opens the flag stream; the upstream sends one message and keeps the stream open.
/// Guarantees: the message arrives while the stream is open, and so does the next.
#[test]
fn a_stream_arrives_chunk_by_chunk() {
    let upstream = Upstream::start();
    let (first, last) = (Gate::default(), Gate::default());
    let stream = Answer::chunked(200, &[("Content-Type", "text/event-stream")])
        .then("c\r\nevent: put\n\n\r\n")
        .wait(&first)
        .then("e\r\nevent: patch\n\n\r\n")
        .wait(&last)
        .then("0\r\n\r\n");
    upstream.once("GET", "/all", stream);
    let (_setup, relay) = start(&upstream);
    let mut connection = relay.connect();
    connection
        .send(&request("GET", "/all", &[("Authorization", SDK_KEY)], b""))
        .unwrap();
    let head = connection.response_head().unwrap();
    assert_eq!(
        (head.status, head.headers.get("content-type")),
        (200, Some("text/event-stream"))
    );
    assert_eq!(connection.chunk().unwrap().unwrap(), b"event: put\n\n");
    first.open();
    assert_eq!(connection.chunk().unwrap().unwrap(), b"event: patch\n\n");
    last.open();
    assert_eq!(connection.chunk().unwrap(), None);
    relay.stop();
}

/// Scenario: an SDK that opened a stream goes away.
/// Guarantees: the relay lets go of the upstream too, so streams do not pile up there.
#[test]
fn a_stream_ends_at_the_upstream_when_the_client_leaves() {
    let upstream = Upstream::start();
    let silence = Gate::default();
    upstream.once(
        "GET",
        "/all",
        Answer::chunked(200, &[])
            .then("1\r\nx\r\n")
            .wait(&silence)
            .then("1\r\ny\r\n"),
    );
    let (_setup, relay) = start(&upstream);
    let mut connection = relay.connect();
    connection.send(&request("GET", "/all", &[], b"")).unwrap();
    connection.response_head().unwrap();
    assert_eq!(connection.chunk().unwrap().unwrap(), b"x");
    drop(connection);
    crate::support::eventually("the relay to close its client connections", || {
        (relay.metrics().sum("flagtap_connections", &[]) == 0.0).then_some(())
    });
    silence.open();
    relay.stop();
}

/// Scenario: unusual methods, odd bytes in path and query, no path at all.
/// Guarantees: the request line reaches the upstream byte by byte.
#[test]
fn the_request_line_is_not_touched() {
    let upstream = Upstream::start();
    upstream.plan(|_| Some(Answer::status(200)));
    let (_setup, relay) = start(&upstream);
    let lines = [
        ("REPORT", "/sdk/evalx/env/user"),
        ("GET", "/"),
        ("GET", "//double//slashes/"),
        ("GET", "/a/../b/./c"),
        ("GET", "/%2e%2E/%7Etilde/%c3%A9?q=%20+%2B&&empty=&=x?y#"),
        ("GET", "/sdk/goals/env?"),
        ("DELETE", "/anything;semi=colon,comma:colon@at!$'()*"),
        ("PATCH", "/x?d=eyJhIjoxfQ==&d=again"),
        ("PUT", "/bulk"),
    ];
    for (method, target) in lines {
        let target = target.trim_end_matches('#');
        let response = relay.exchange(&request(method, target, &[], b""));
        assert_eq!(response.status, 200, "{method} {target}");
        let received = upstream.next();
        assert_eq!((received.method.as_str(), received.target.as_str()), (method, target));
    }
    relay.stop();
}

/// Scenario: headers in mixed case, repeated, empty, and with bytes outside ASCII.
/// Guarantees: names keep their case, values and repetitions their order; nothing is added.
#[test]
fn headers_are_not_touched() {
    let upstream = Upstream::start();
    upstream.plan(|_| {
        let headers = [
            ("x-lower", "1"),
            ("X-UPPER", "2"),
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("X-Empty", ""),
        ];
        Some(Answer::full(200, &headers, b"{}"))
    });
    let (_setup, relay) = start(&upstream);
    let headers = [
        ("user-agent", "NodeJSClient/9.0.1"),
        ("x-launchDarkly-event-schema", "4"),
        ("X-Odd-CASE", "Value  with  spaces"),
        ("X-Repeat", "1"),
        ("x-repeat", "2"),
        ("X-REPEAT", "1"),
        ("X-Empty", ""),
        ("Accept-Encoding", "gzip, identity;q=0"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Cookie", "a=b; c=d"),
    ];
    for (method, target) in [("GET", "/sdk/latest-all"), ("POST", "/bulk")] {
        let body: &[u8] = if method == "POST" { b"[]" } else { b"" };
        let response = relay.exchange(&request(method, target, &headers, body));
        let sent = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let sent = Headers(sent.collect()).end_to_end();
        assert_eq!(upstream.next().headers.end_to_end(), sent, "{method} {target}");
        assert_eq!(response.headers.get("date"), Some(DATE));
        assert_eq!(response.headers.all("set-cookie"), ["a=1", "b=2"]);
        let names: Vec<&str> = response.headers.0.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["x-lower", "X-UPPER", "Set-Cookie", "X-Empty"] {
            assert!(names.contains(&name), "{name} of {names:?}");
        }
    }
    relay.stop();
}

/// Scenario: answers without a body: HEAD, 204 and 304.
/// Guarantees: they pass with their headers, and the connection is usable afterwards.
#[test]
fn answers_without_a_body_pass() {
    let upstream = Upstream::start();
    upstream.once(
        "HEAD",
        "/sdk/latest-all",
        Answer::raw(format!(
            "HTTP/1.1 200 OK\r\nDate: {DATE}\r\nContent-Length: 1234\r\n\r\n"
        )),
    );
    upstream.once("GET", "/empty", Answer::status(204));
    upstream.once("GET", "/same", Answer::full(304, &[("ETag", "\"x\"")], b""));
    upstream.once("GET", "/after", Answer::full(200, &[], b"after"));
    let (_setup, relay) = start(&upstream);
    let mut connection = relay.connect();
    let head = connection
        .exchange(&request("HEAD", "/sdk/latest-all", &[], b""))
        .unwrap();
    assert_eq!((head.status, head.headers.get("content-length")), (200, Some("1234")));
    assert_eq!(
        connection.exchange(&request("GET", "/empty", &[], b"")).unwrap().status,
        204
    );
    let same = connection.exchange(&request("GET", "/same", &[], b"")).unwrap();
    assert_eq!((same.status, same.headers.get("etag")), (304, Some("\"x\"")));
    assert_eq!(
        connection.exchange(&request("GET", "/after", &[], b"")).unwrap().body,
        b"after"
    );
    relay.stop();
}

/// Scenario: a chunked answer to an event post, with trailers.
/// Guarantees: its body passes; the trailers do no harm.
#[test]
fn a_chunked_answer_with_trailers_passes() {
    let upstream = Upstream::start();
    let answer =
        Answer::chunked(202, &[("Trailer", "X-Sum")]).then("5\r\nhello\r\n3;ext=1\r\n wo\r\n0\r\nX-Sum: 8\r\n\r\n");
    upstream.once("POST", "/bulk", answer);
    upstream.once("GET", "/after", Answer::status(200));
    let (setup, relay) = start(&upstream);
    let mut connection = relay.connect();
    let response = connection
        .exchange(&bulk("trailers", &json!([marked("trailers")])))
        .unwrap();
    assert_eq!(
        (response.status, response.body.as_slice()),
        (202, b"hello wo".as_slice())
    );
    assert_eq!(
        connection.exchange(&request("GET", "/after", &[], b"")).unwrap().status,
        200
    );
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["trailers"]);
}

/// Scenario: the upstream sends interim responses before its answer.
/// Guarantees: the SDK gets the final answer.
#[test]
fn interim_answers_do_no_harm() {
    let upstream = Upstream::start();
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 202 Accepted\r\nDate: {DATE}\r\nContent-Length: 0\r\n\r\n"
    );
    upstream.once("POST", "/bulk", Answer::raw(answer));
    let (_setup, relay) = start(&upstream);
    assert_eq!(relay.post("interim", &json!([marked("interim")])).status, 202);
    relay.stop();
}

/// Scenario: PHP's curl asks for `100-continue` before it sends the body.
/// Guarantees: it gets one, and the batch passes and is exported.
#[test]
fn expect_continue_is_answered() {
    let upstream = Upstream::accepting();
    let (setup, relay) = start(&upstream);
    let body = json!([marked("expected")]).to_string();
    let headers = [
        ("Authorization", SDK_KEY),
        ("Expect", "100-continue"),
        ("X-LaunchDarkly-Event-Schema", "4"),
    ];
    let head = format!("{}Content-Length: {}\r\n\r\n", head_of(&headers), body.len());
    let mut connection = relay.connect();
    connection.send(head.as_bytes()).unwrap();
    // curl waits a second for the interim answer; it must come before the body does.
    let interim = connection.interim_head().unwrap();
    assert_eq!(interim, 100);
    connection.send(body.as_bytes()).unwrap();
    assert_eq!(connection.response(false).unwrap().status, 202);
    assert_eq!(upstream.next().body, body.as_bytes());
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["expected"]);
}

/// Scenario: a browser's preflight.
/// Guarantees: the upstream answers it, not the relay.
#[test]
fn a_preflight_is_the_upstreams() {
    let upstream = Upstream::start();
    let path = format!("/events/bulk/{CLIENT_SIDE_ID}");
    let cors = [
        ("Access-Control-Allow-Origin", "https://shop.example"),
        ("Access-Control-Max-Age", "300"),
    ];
    upstream.once("OPTIONS", &path, Answer::full(200, &cors, b""));
    let (_setup, relay) = start(&upstream);
    let headers = [
        ("Origin", "https://shop.example"),
        ("Access-Control-Request-Method", "POST"),
    ];
    let response = relay.exchange(&request("OPTIONS", &path, &headers, b""));
    assert_eq!(response.status, 200);
    assert_eq!(
        response.headers.all("access-control-allow-origin"),
        ["https://shop.example"]
    );
    assert!(response.headers.get("date").is_some());
    relay.stop();
}

/// Scenario: a client speaks HTTP/2 without TLS and without asking first.
/// Guarantees: its events pass and are exported.
#[test]
fn http2_with_prior_knowledge_passes() {
    let upstream = Upstream::accepting();
    let (setup, relay) = start(&upstream);
    let address = relay.address();
    let status = tokio::runtime::Runtime::new().unwrap().block_on(async move {
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .build_http::<Full<Bytes>>();
        let request = http::Request::post(format!("http://{address}/bulk"))
            .header("authorization", SDK_KEY)
            .header("x-launchdarkly-event-schema", "4")
            .header("x-launchdarkly-payload-id", "h2")
            .body(Full::from(json!([marked("h2")]).to_string()))
            .unwrap();
        let response = client.request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    });
    assert_eq!(status, 202);
    let received = upstream.next();
    assert_eq!(received.headers.get("authorization"), Some(SDK_KEY));
    assert_eq!(
        received.headers.get("host"),
        Some(upstream.address().to_string().as_str())
    );
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["h2"]);
}

/// Scenario: an event post larger than the cap on captured bodies.
/// Guarantees: it passes unchanged; that it was not copied is counted.
#[test]
fn a_body_over_the_cap_passes_without_a_copy() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["tee"]["max_body"] = json!("64KiB");
    let relay = Relay::start(&setup);
    let padding = "x".repeat(300_000);
    let body = json!([{ "kind": "custom", "key": "large", "creationDate": 1, "data": padding }]).to_string();
    let headers = [("Authorization", SDK_KEY), ("X-LaunchDarkly-Event-Schema", "4")];
    assert_eq!(
        relay
            .exchange(&request("POST", "/bulk", &headers, body.as_bytes()))
            .status,
        202
    );
    assert!(upstream.next().body == body.as_bytes());
    let mut pieces = format!("{}Transfer-Encoding: chunked\r\n\r\n", head_of(&headers)).into_bytes();
    pieces.extend_from_slice(&chunked(body.as_bytes(), 16_000));
    assert_eq!(relay.exchange(&pieces).status, 202);
    assert!(upstream.next().body == body.as_bytes());
    let metrics = relay.settle();
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 2.0);
    relay.stop();
    assert!(setup.exported().is_empty());
}

/// Scenario: many requests over one connection, events and others in turn.
/// Guarantees: answers come in order and the connection stays open.
#[test]
fn a_connection_is_kept_for_many_requests() {
    let upstream = Upstream::accepting();
    let seen = Arc::new(Mutex::new(0));
    let counter = seen.clone();
    upstream.plan(move |request| {
        *counter.lock().unwrap() += 1;
        (request.method == "GET").then(|| Answer::full(200, &[], request.target.as_bytes()))
    });
    let (setup, relay) = start(&upstream);
    let mut connection = relay.connect();
    for number in 0..50 {
        let events = json!([marked(&format!("kept-{number}"))]);
        assert_eq!(
            connection
                .exchange(&bulk(&format!("kept-{number}"), &events))
                .unwrap()
                .status,
            202
        );
        let target = format!("/sdk/flags/{number}");
        assert_eq!(
            connection.exchange(&request("GET", &target, &[], b"")).unwrap().body,
            target.as_bytes()
        );
    }
    assert_eq!(*seen.lock().unwrap(), 50);
    relay.settle();
    relay.stop();
    assert_eq!(setup.exported().len(), 50);
}

fn head_of(headers: &[(&str, &str)]) -> String {
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("POST /bulk HTTP/1.1\r\nHost: relay\r\n{lines}")
}
