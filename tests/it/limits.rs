//! The limits of `tee` and `limits`, each reached on purpose: what is shed, what waits, what passes without a copy.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join_all, select};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::support::eventually::patience;
use crate::support::export::markers;
use crate::support::relay::{bulk, marked};
use crate::support::upstream::Gate;
use crate::support::{Answer, NOBODY, Relay, SDK_KEY, Setup, Upstream, eventually, request};

/// What a busy machine may add to a time below.
const SLACK: Duration = Duration::from_secs(3);

/// An event of about 40 kB: two are over the budget of [`tight`], one is not.
fn large(marker: &str) -> Value {
    let mut event = marked(marker);
    event["data"] = json!("x".repeat(40_000));
    json!([event])
}

fn tight(upstream: &Upstream, on_failure: &str) -> Setup {
    let mut setup = Setup::new(upstream.address());
    for (key, value) in [
        ("max_body", "48KiB"),
        ("max_in_flight", "64KiB"),
        ("on_failure", on_failure),
    ] {
        setup.config["tee"][key] = json!(value);
    }
    setup
}

fn wait_for_room(relay: &Relay) {
    eventually("the held body to be given back", || {
        (relay.metrics().sum("flagtap_in_flight_bytes", &[]) == 0.0).then_some(())
    });
}

/// Scenario: a relay to which nothing has happened yet.
/// Guarantees: the counters of what must not happen are there with 0, so that a rate sees the first time that it does.
#[test]
fn holes_are_series_before_there_are_any() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let response = relay.telemetry("/metrics").unwrap();
    let text = String::from_utf8(response.body).unwrap();
    for reason in [
        "memory_budget",
        "no_space",
        "queue_full",
        "queue_unavailable",
        "record_too_large",
        "too_large",
    ] {
        let series = format!("flagtap_batches_not_teed_total{{environment=\"production\",reason=\"{reason}\"}} 0\n");
        assert!(text.contains(&series), "{series}{text}");
    }
    assert!(text.contains("flagtap_task_panics_total{task=\"drain\"} 0\n"), "{text}");
    relay.stop();
}

/// Scenario: a captured body waits for the upstream's answer; the next would go over `tee.max_in_flight`.
/// Guarantees: it passes unchanged without a copy, counted as `memory_budget`; with room again bodies are copied again.
#[test]
fn a_body_over_the_memory_budget_passes_without_a_copy() {
    let upstream = Upstream::accepting();
    let gate = Gate::default();
    upstream.once("POST", "/bulk", Answer::accepted().behind(&gate));
    let setup = tight(&upstream, "pass");
    let relay = Relay::start(&setup);
    let mut held = relay.connect();
    held.send(&bulk("held", &large("held"))).unwrap();
    upstream.next();
    let over = large("over");
    assert_eq!(relay.post("over", &over).status, 202);
    assert!(upstream.next().body == over.to_string().as_bytes());
    gate.open();
    assert_eq!(held.response(false).unwrap().status, 202);
    wait_for_room(&relay);
    assert_eq!(relay.post("after", &large("after")).status, 202);
    let metrics = relay.settle();
    assert_eq!(
        metrics.sum("flagtap_batches_not_teed_total", &[("reason", "memory_budget")]),
        1.0
    );
    assert_eq!(metrics.sum("flagtap_batches_not_teed_total", &[]), 1.0);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["held", "after"]);
}

/// Scenario: the same with `tee.on_failure: refuse`.
/// Guarantees: the SDK gets a 503 and the upstream nothing; sent again with room, the batch goes upstream and is exported.
#[test]
fn a_body_over_the_memory_budget_is_refused_if_so_configured() {
    let upstream = Upstream::accepting();
    let gate = Gate::default();
    upstream.once("POST", "/bulk", Answer::accepted().behind(&gate));
    let setup = tight(&upstream, "refuse");
    let relay = Relay::start(&setup);
    let mut held = relay.connect();
    held.send(&bulk("held", &large("held"))).unwrap();
    upstream.next();
    let response = relay.post("over", &large("over"));
    assert_eq!(response.status, 503);
    assert_eq!(response.headers.get("x-flagtap-error"), Some("relay; not_kept"));
    assert_eq!(upstream.count(), 0);
    gate.open();
    assert_eq!(held.response(false).unwrap().status, 202);
    wait_for_room(&relay);
    assert_eq!(relay.post("over", &large("over")).status, 202);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["held", "over"]);
}

/// Scenario: a client stops in the middle of its body, once of one that is captured and once of one over the cap.
/// Guarantees: after `limits.body_timeout` it gets a 503 that names the client; nothing of it is exported, and of the
/// captured one nothing goes upstream.
#[test]
fn a_body_that_stalls_is_given_up() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let mut setup = Setup::new(upstream.address());
    setup.config["tee"]["max_body"] = json!("64KiB");
    setup.config["limits"] = json!({ "body_timeout": "500ms" });
    let relay = Relay::start(&setup);
    for announced in [50_000, 300_000] {
        let head = format!("POST /bulk HTTP/1.1\r\nHost: x\r\nAuthorization: {SDK_KEY}\r\nContent-Length: {announced}");
        let started = Instant::now();
        let mut connection = relay.connect();
        connection.send(format!("{head}\r\n\r\n[").as_bytes()).unwrap();
        connection.send(" ".repeat(20_000).as_bytes()).unwrap();
        let response = connection.response(false).unwrap();
        let took = started.elapsed();
        assert_eq!(response.status, 503, "{announced}");
        assert_eq!(response.headers.get("x-flagtap-error"), Some("client; body_stalled"));
        assert!(took >= Duration::from_millis(500) && took < SLACK, "{took:?}");
        assert!(connection.closes_silently(), "{announced}");
    }
    assert_eq!(upstream.count(), 0);
    let metrics = relay.settle();
    assert_eq!(
        metrics.sum("flagtap_request_errors_total", &[("reason", "body_stalled")]),
        2.0
    );
    relay.stop();
    assert!(setup.exported().is_empty());
}

/// Scenario: as many clients are connected as `limits.connections` allows; one more comes.
/// Guarantees: it waits without an answer, neither refused nor served, and is served when another leaves.
#[test]
fn a_connection_over_the_cap_waits_for_a_place() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "connections": 2 });
    let relay = Relay::start(&setup);
    let mut seated = [relay.connect(), relay.connect()];
    let mut serve_seated = |round: usize| {
        for (number, connection) in seated.iter_mut().enumerate() {
            let marker = format!("seated-{round}-{number}");
            let response = connection.exchange(&bulk(&marker, &json!([marked(&marker)])));
            assert_eq!(response.unwrap().status, 202);
        }
    };
    serve_seated(0);
    let mut next = relay.connect();
    next.send(&bulk("next", &json!([marked("next")]))).unwrap();
    (1..6).for_each(&mut serve_seated);
    assert_eq!(upstream.take().len(), 12);
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("flagtap_connections_accepted_total", &[]), 2.0);
    assert_eq!(metrics.sum("flagtap_connections", &[]), 2.0);
    let [first, _second] = seated;
    drop(first);
    assert_eq!(next.response(false).unwrap().status, 202);
    relay.settle();
    relay.stop();
    assert_eq!(setup.exported().len(), 13);
}

/// Scenario: many HTTP/2 streams of one connection at once, to an upstream that does not answer yet.
/// Guarantees: what is over the limit is answered 503 at once, never 4xx; what was taken is answered and exported.
#[test]
fn requests_over_the_limit_are_shed() {
    const LIMIT: usize = 4;
    const STREAMS: usize = 24;
    let upstream = Upstream::start();
    let gate = Gate::default();
    upstream.always("POST", "/bulk", Answer::accepted().behind(&gate));
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "connections": LIMIT });
    let relay = Relay::start(&setup);
    let address = relay.address();
    let answers = Runtime::new().unwrap().block_on(async {
        let (sender, connection) = h2c(address).await;
        let connection = tokio::spawn(connection);
        let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let streams = (0..STREAMS).map(|number| {
            let (mut sender, answered) = (sender.clone(), answered.clone());
            tokio::spawn(async move {
                let response = sender.send_request(h2_bulk(number)).await.unwrap();
                let error = response.headers().get("x-flagtap-error").cloned();
                let answer = (response.status().as_u16(), error);
                response.into_body().collect().await.unwrap();
                answered.send(answer).unwrap();
            })
        });
        let streams: Vec<_> = streams.collect();
        let mut all = Vec::new();
        // The upstream answers nobody before every other request was shed.
        while all.len() < STREAMS - LIMIT {
            all.push(tokio::time::timeout(patience(), answers.recv()).await.unwrap().unwrap());
        }
        gate.open();
        join_all(streams).await.into_iter().for_each(Result::unwrap);
        drop(answered);
        while let Some(answer) = answers.recv().await {
            all.push(answer);
        }
        drop(sender);
        connection.await.unwrap().unwrap();
        all
    });
    let (shed, served) = answers.split_at(STREAMS - LIMIT);
    for (status, error) in shed {
        assert_eq!(*status, 503);
        assert_eq!(error.as_ref().unwrap(), "relay; overloaded");
    }
    assert_eq!(served, vec![(202, None); LIMIT]);
    let metrics = relay.settle();
    assert_eq!(
        metrics.sum("flagtap_request_errors_total", &[("reason", "overloaded")]),
        (STREAMS - LIMIT) as f64
    );
    relay.stop();
    assert_eq!(setup.exported().len(), LIMIT);
}

/// Scenario: `tee.when: accepted`; the upstream answers 503, or cannot be reached.
/// Guarantees: the SDK sees that; the batch is not exported unless a retry of it is accepted.
#[test]
fn only_accepted_batches_are_exported_if_so_configured() {
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    setup.config["tee"]["when"] = json!("accepted");
    let relay = Relay::start(&setup);
    for marker in ["never", "later"] {
        upstream.once("POST", "/bulk", Answer::status(503));
        assert_eq!(relay.post(marker, &json!([marked(marker)])).status, 503);
    }
    upstream.once("POST", "/bulk", Answer::accepted());
    assert_eq!(relay.post("later", &json!([marked("later")])).status, 202);
    assert_not_accepted(&relay, 2.0);
    relay.stop();
    setup.config["upstream"]["url"] = json!(format!("http://{NOBODY}"));
    let relay = Relay::start(&setup);
    let response = relay.post("unreachable", &json!([marked("unreachable")]));
    assert_eq!(
        (response.status, response.headers.get("x-flagtap-error")),
        (502, Some("upstream; unreachable"))
    );
    assert_not_accepted(&relay, 1.0);
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["later"]);
}

fn assert_not_accepted(relay: &Relay, batches: f64) {
    let reason = [("reason", "not_accepted_by_upstream")];
    assert_eq!(relay.settle().sum("flagtap_batches_not_teed_total", &reason), batches);
}

/// Scenario: a head of several times `limits.header_bytes` (up to twice that may pass), one with more than `limits.headers`, a target without an end, and heads that are no
/// HTTP; each on a connection of its own, and after a request that was answered 401 by the upstream.
/// Guarantees: each is answered 503 and says why, never a 4xx, after which SDKs stop; it is counted; the upstream gets none of
/// it, and its own 401 passes as it is.
#[test]
fn a_head_that_cannot_be_read_is_no_reason_for_an_sdk_to_stop() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(300_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-Many: 1\r\n".repeat(300));
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(300_000));
    let heads = [
        (large.as_str(), "relay; head_too_large"),
        (&many, "relay; head_too_large"),
        (&long, "relay; head_too_large"),
        ("GET / HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n", "client; head_malformed"),
        ("nonsense\r\n\r\n", "client; head_malformed"),
    ];
    let mut sent = 0.0;
    for (head, error) in heads {
        for is_first in [true, false] {
            let mut connection = relay.connect();
            if !is_first {
                upstream.once("POST", "/bulk", Answer::full(401, &[], b""));
                let refused = connection
                    .exchange(&bulk("refused", &json!([marked("refused")])))
                    .unwrap();
                assert_eq!((refused.status, refused.headers.get("x-flagtap-error")), (401, None));
            }
            // It may be answered before all of it is sent.
            let _ = connection.send(head.as_bytes());
            let response = connection.response(false).unwrap();
            assert_eq!(
                response.status,
                503,
                "{}, {is_first}: {response:?}",
                &head[..20.min(head.len())]
            );
            assert_eq!(response.headers.get("x-flagtap-error"), Some(error));
            assert!(response.headers.get("date").is_some(), "{response:?}");
            assert!(connection.closes_silently());
            sent += 1.0;
            let counted = |reason| {
                relay
                    .metrics()
                    .sum("flagtap_request_errors_total", &[("reason", reason)])
            };
            assert_eq!(counted("head_too_large") + counted("head_malformed"), sent);
        }
    }
    assert_eq!(upstream.take().len(), heads.len());
    // In one packet with a request: such as the rest of a body that is longer than it said.
    for rest in ["nonsense\r\n\r\n", "\"}]\r\n\r\n"] {
        let mut connection = relay.connect();
        let request = [&bulk("first", &json!([marked("first")]))[..], rest.as_bytes()].concat();
        connection.send(&request).unwrap();
        assert_eq!(connection.response(false).unwrap().status, 202);
        let response = connection.response(false).unwrap();
        assert_eq!(
            response.headers.get("x-flagtap-error"),
            Some("client; head_malformed"),
            "{response:?}"
        );
        assert_eq!(response.status, 503);
        assert!(connection.closes_silently());
    }
    relay.settle();
    relay.stop();
}

/// Scenario: an HTTP/2 client sends nothing but pings after its request, and takes the answers to them.
/// Guarantees: its connection is closed `limits.idle_timeout` after the request, not before.
#[test]
fn pings_do_not_keep_an_idle_http2_connection() {
    let idle = Duration::from_secs(1);
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "idle_timeout": "1s" });
    let relay = Relay::start(&setup);
    let address = relay.address();
    let lasted = Runtime::new().unwrap().block_on(async {
        let (mut sender, connection) = h2c(address).await;
        let connection = tokio::spawn(connection);
        let since = Instant::now();
        let response = sender.send_request(h2_bulk(0)).await.unwrap();
        assert_eq!(response.status(), 202);
        response.into_body().collect().await.unwrap();
        // The sender is kept: without it the client would close the connection by itself.
        let closed = select(connection, Box::pin(tokio::time::sleep(patience()))).await;
        assert!(matches!(closed, futures_util::future::Either::Left(_)), "still open");
        drop(sender);
        since.elapsed()
    });
    assert!(lasted > idle * 3 / 4 && lasted < idle + SLACK, "{lasted:?}");
    relay.settle();
    relay.stop();
}

/// Scenario: a stream is silent for several times `limits.idle_timeout`.
/// Guarantees: it goes on, while connections without a request are closed.
#[test]
fn a_silent_stream_is_not_idle() {
    const IDLE: Duration = Duration::from_millis(400);
    let upstream = Upstream::accepting();
    let gate = Gate::default();
    let stream = Answer::chunked(200, &[("Content-Type", "text/event-stream")])
        .then("5\r\nfirst\r\n")
        .wait(&gate)
        .then("6\r\nsecond\r\n0\r\n\r\n");
    upstream.once("GET", "/all", stream);
    let mut setup = Setup::new(upstream.address());
    setup.config["limits"] = json!({ "idle_timeout": "400ms" });
    let relay = Relay::start(&setup);
    let mut stream = relay.connect();
    stream.send(&request("GET", "/all", &[], b"")).unwrap();
    assert_eq!(stream.response_head().unwrap().status, 200);
    assert_eq!(stream.chunk().unwrap().unwrap(), b"first");
    for number in 0..3 {
        let mut idle = relay.connect();
        let marker = format!("idle-{number}");
        let since = Instant::now();
        let response = idle.exchange(&bulk(&marker, &json!([marked(&marker)]))).unwrap();
        assert_eq!(response.status, 202);
        assert!(idle.closes_silently());
        let rested = since.elapsed();
        assert!(rested > IDLE * 3 / 4 && rested < IDLE + SLACK, "{rested:?}");
    }
    gate.open();
    assert_eq!(stream.chunk().unwrap().unwrap(), b"second");
    assert_eq!(stream.chunk().unwrap(), None);
    relay.settle();
    relay.stop();
    assert_eq!(setup.exported().len(), 3);
}

/// Scenario: `upstream.url` has a base path; an SDK doubles the slash, as old ones do, or has a prefix of its own.
/// Guarantees: the upstream gets base and path as they are; the batches are recognised and exported.
#[test]
fn base_paths_and_doubled_slashes_are_kept() {
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    setup.config["upstream"]["url"] = json!(format!("http://{}/base/path/", upstream.address()));
    let relay = Relay::start(&setup);
    let targets = [
        "/bulk",
        "//bulk",
        "/sdk-prefix/bulk",
        "/sdk-prefix//mobile//events/bulk?x=%2F",
    ];
    for (number, target) in targets.into_iter().enumerate() {
        let expected = format!("/base/path{target}");
        let path = expected.split('?').next().unwrap();
        upstream.once("POST", path, Answer::accepted());
        let body = json!([marked(&format!("path-{number}"))]).to_string();
        let headers = [("Authorization", SDK_KEY), ("X-LaunchDarkly-Event-Schema", "4")];
        let response = relay.exchange(&request("POST", target, &headers, body.as_bytes()));
        assert_eq!(response.status, 202, "{target}");
        assert_eq!(upstream.next().target, expected);
    }
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), ["path-0", "path-1", "path-2", "path-3"]);
}

type H2 = http2::Connection<TokioIo<TcpStream>, Full<Bytes>, TokioExecutor>;

/// Opens an HTTP/2 connection without TLS that pings ten times a second, also while it is idle.
async fn h2c(address: SocketAddr) -> (http2::SendRequest<Full<Bytes>>, H2) {
    let stream = TcpStream::connect(address).await.unwrap();
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(100))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap()
}

fn h2_bulk(number: usize) -> http::Request<Full<Bytes>> {
    let marker = format!("h2-{number}");
    http::Request::post("http://relay/bulk")
        .header("authorization", SDK_KEY)
        .header("x-launchdarkly-event-schema", "4")
        .header("x-launchdarkly-payload-id", &marker)
        .body(Full::from(json!([marked(&marker)]).to_string()))
        .unwrap()
}
