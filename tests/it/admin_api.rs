//! The admin port: what it says, and whom it refuses.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::letters::Narrow;
use crate::support::raw::Response;
use crate::support::relay::marked;
use crate::support::{Connection, Relay, SDK_KEY, Setup, Upstream, request};

const TOKEN: &str = "a-token-for-this-test";

/// Sends a request with these headers and returns the answer and its JSON.
fn ask(relay: &Relay, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    let response = Connection::open(relay.admin_address()).exchange(&[bytes.as_bytes(), body].concat());
    let Response { status, body, .. } = response.unwrap();
    let text = String::from_utf8(body).unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")),
    )
}

/// Scenario: batches of an SDK that is too old, of one that is not and of no SDK; an event is given up; then the status is
/// asked for.
/// Guarantees: it names the old SDK, what waits, the dead letter and the parts on disk, and no credential.
#[test]
fn the_status_says_everything_but_secrets() {
    let upstream = Upstream::accepting();
    let narrow = Narrow::new(&upstream);
    let relay = Relay::start(&narrow.setup);
    narrow.bury_one(&relay, "one");
    for (agent, payload_id) in [("GoClient/4.10.3", "old"), ("curl/8.0 \"}", "odd")] {
        let headers = [
            ("Authorization", SDK_KEY),
            ("Content-Type", "application/json"),
            ("User-Agent", agent),
            ("X-LaunchDarkly-Event-Schema", "3"),
            ("X-LaunchDarkly-Payload-ID", payload_id),
        ];
        let body = json!([marked(payload_id)]).to_string();
        assert_eq!(
            relay
                .exchange(&request("POST", "/bulk", &headers, body.as_bytes()))
                .status,
            202
        );
    }
    let scrape = relay.settle();
    let too_old = [("sdk", "GoClient"), ("version", "4.10.3"), ("support", "too_old")];
    assert_eq!(scrape.sum("flagtap_events_received_by_sdk_total", &too_old), 1.0);
    assert_eq!(
        scrape.sum("flagtap_events_received_by_sdk_total", &[]),
        scrape.sum("flagtap_events_received_total", &[])
    );
    let (status, document) = ask(&relay, "GET", "/api/status", &[("Host", "localhost")], b"");
    assert_eq!(status, 200);
    assert_eq!(document["sdks_too_old"], json!(["GoClient 4.10.3"]));
    assert_eq!(document["sdks"].as_array().unwrap().len(), 3);
    assert_eq!(document["destinations"]["lake"]["dead_letters"], 1);
    assert_eq!(document["queue"]["cursors"][0]["destination"], "lake");
    assert!(document["queue"]["cursors"][0]["failed"].is_u64(), "{document}");
    assert!(document["queue"]["next_position"].as_u64() > Some(0), "{document}");
    assert_eq!(document["queue"]["damaged_dead_letters"], 0);
    assert_eq!(document["queue"]["parts"][0]["first"], 0);
    let keys = &document["environments"][0]["credentials"]["sdk_keys"];
    assert_eq!(keys, &json!([format!("***{}", &SDK_KEY[SDK_KEY.len() - 4..])]));
    assert!(!document.to_string().contains(SDK_KEY));
    let (status, listed) = ask(
        &relay,
        "GET",
        "/api/dead-letters?kind=custom&events=true",
        &[("Host", "[::1]:1")],
        b"",
    );
    assert_eq!(status, 200);
    assert_eq!(listed["dead_letters"][0]["event"]["key"], "large-one");
    relay.stop();
}

/// Scenario: requests without the token, from web pages, under foreign names, too large, of wrong types, to wrong paths,
/// and with filters that mean nothing or everything; then events are sent.
/// Guarantees: each is refused with its status and a remedy; no dead letter is touched; traffic goes on.
#[test]
fn whoever_has_no_business_is_refused() {
    let upstream = Upstream::accepting();
    let mut narrow = Narrow::new(&upstream);
    narrow.setup.config["admin"] = json!({ "listen": "127.0.0.1:0", "token": TOKEN });
    let relay = Relay::start(&narrow.setup);
    narrow.bury_one(&relay, "one");
    let (host, bearer) = (("Host", "127.0.0.1"), format!("Bearer {TOKEN}"));
    let token = ("Authorization", bearer.as_str());
    let kind = ("Content-Type", "application/json");
    let discard = "/api/dead-letters/discard";
    let all = br#"{"all": true}"#.as_slice();
    let huge = vec![b' '; 100_000];
    type Case<'a> = (u16, &'a str, &'a str, Vec<(&'a str, &'a str)>, &'a [u8]);
    let cases: Vec<Case<'_>> = vec![
        (401, "GET", "/api/status", vec![host], b""),
        (
            401,
            "POST",
            discard,
            vec![host, kind, ("Authorization", "Bearer a-token-for-this-tesT")],
            all,
        ),
        (
            403,
            "POST",
            discard,
            vec![host, token, kind, ("Origin", "http://127.0.0.1")],
            all,
        ),
        (403, "POST", discard, vec![token, kind, ("Host", "evil.example")], all),
        (403, "GET", "/api/status", vec![token], b""),
        (
            415,
            "POST",
            discard,
            vec![host, token, ("Content-Type", "text/plain")],
            all,
        ),
        (413, "POST", discard, vec![host, token, kind], &huge),
        (400, "POST", discard, vec![host, token, kind], b"{}"),
        (
            400,
            "POST",
            discard,
            vec![host, token, kind],
            br#"{"filter": {"destinatoin": "lake"}}"#,
        ),
        (
            400,
            "POST",
            discard,
            vec![host, token, kind],
            br#"{"filter": {"kind": "customs"}}"#,
        ),
        (
            400,
            "POST",
            discard,
            vec![host, token, kind],
            br#"{"all": true, "filter": {"kind": "custom"}}"#,
        ),
        (400, "POST", discard, vec![host, token, kind], b"not json"),
        (400, "GET", "/api/dead-letters?limit=many", vec![host, token], b""),
        (404, "GET", "/metrics", vec![host, token], b""),
        (405, "DELETE", "/api/dead-letters", vec![host, token], b""),
        (405, "GET", discard, vec![host, token], b""),
    ];
    for (expected, method, target, headers, body) in cases {
        let (status, answer) = ask(&relay, method, target, &headers, body);
        assert_eq!(status, expected, "{method} {target} {headers:?}: {answer}");
        let said = answer["error"].as_str().zip(answer["remedy"].as_str());
        assert!(
            said.is_some_and(|(error, remedy)| !error.is_empty() && !remedy.is_empty()),
            "{answer}"
        );
        assert!(!answer.to_string().contains(TOKEN), "{answer}");
    }
    let (status, listed) = ask(&relay, "GET", "/api/dead-letters", &[host, token], b"");
    assert_eq!((status, listed["dead_letters"].as_array().unwrap().len()), (200, 1));
    let half = b"POST /api/dead-letters/discard HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n";
    let mut half_open: Vec<Connection> = (0..64).map(|_| Connection::open(relay.admin_address())).collect();
    for connection in &mut half_open {
        connection.send(half).unwrap();
    }
    assert_eq!(relay.post("after", &json!([marked("after")])).status, 202);
    relay.settle();
    drop(half_open);
    let (status, done) = ask(&relay, "POST", discard, &[host, token, kind], all);
    assert_eq!((status, done), (200, json!({ "letters": 1 })));
    relay.stop();
}

/// Scenario: another process listens on the admin port when the relay starts.
/// Guarantees: the relay serves; the log says what is missing.
#[test]
fn a_taken_admin_port_does_not_stop_the_relay() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["admin"] = json!({ "listen": taken.local_addr().unwrap().to_string() });
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("one", &json!([marked("one")])).status, 202);
    relay.settle();
    relay.await_log("cannot listen on the admin port");
    relay.stop();
}
