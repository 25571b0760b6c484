//! Recorded traffic of real SDKs through the relay: unchanged on the way there and back, and exported exactly.
//!
//! Every request is compared at the upstream with what the SDK sent, every response with what the upstream answered,
//! and the export with `tests/golden/<build>.ndjson.gz`, byte by byte. `FLAGTAP_UPDATE_GOLDEN=1` writes those files;
//! `scripts/oracle.py` judges them independently of any Rust code.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use crate::support::export::inflate;
use crate::support::http1::Headers;
use crate::support::raw::{Response, chunked};
use crate::support::recording::{Recorded, fixture, load};
use crate::support::upstream::Received;
use crate::support::{Answer, CLIENT_SIDE_ID, Connection, PROJECT_ID, Relay, Setup, Upstream};

/// What the fake upstream adds to every answer, in odd case and order and with a repetition.
const ANSWER_HEADERS: [(&str, &str); 5] = [
    ("access-control-allow-ORIGIN", "*"),
    ("Access-Control-Expose-Headers", "Date"),
    ("X-Repeated", "one"),
    ("x-server", "fake"),
    ("X-Repeated", "two"),
];

macro_rules! builds {
    ($($test:ident: $build:literal,)*) => {
        $(
            /// Scenario: every recorded request of this SDK build, in its order and with its answers.
            /// Guarantees: nothing changes in either direction, and the export is the golden one.
            #[test]
            fn $test() {
                replay_through_the_relay($build);
            }
        )*

        /// The builds with a recording of their own.
        pub(crate) const BUILDS: &[&str] = &[$($build),*];
    };
}

builds! {
    electron_1_7_0: "electron-1.7.0",
    javascript_2_15_0: "js-2.15.0",
    javascript_3_9_5: "js-3.9.5",
    javascript_4_10_3: "js-4.10.3",
    node_client_1_0_0: "node-client-1.0.0",
    node_client_2_2_2: "node-client-2.2.2",
    node_server_5_9_0: "node-server-5.9.0",
    node_server_6_4_3: "node-server-6.4.3",
    node_server_7_0_4: "node-server-7.0.4",
    node_server_9_13_7: "node-server-9.13.7",
    php_from_the_specification: "synthetic-php",
    python_6_10_0: "python-6.10.0",
    python_7_6_1: "python-7.6.1",
    python_8_3_0: "python-8.3.0",
    python_9_18_2: "python-9.18.2",
    react_native_10_9_0: "react-native-10.9.0",
    vercel_edge_1_3_55: "vercel-edge-1.3.55",
}

/// Scenario: a recording is added to or removed from the folder.
/// Guarantees: it cannot be forgotten here.
#[test]
fn every_recording_is_replayed() {
    let names = fs::read_dir(fixture("traffic"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".jsonl.gz")?.to_owned()));
    let found: BTreeSet<String> = names.collect();
    let replayed: BTreeSet<String> = BUILDS.iter().map(|build| (*build).to_owned()).collect();
    assert_eq!(found, replayed);
}

/// Replays a recording through a relay with this one destination (its settings without the name), until all that it
/// exports is delivered. Returns the export's golden lines, which the folder of files gets.
pub(crate) fn deliver(build: &str, destination: Value) -> Vec<String> {
    deliver_as(build, destination, Vec::new())
}

/// Does what [`deliver`] does, with these environment variables for the relay: a cloud's credentials.
pub(crate) fn deliver_as(build: &str, mut destination: Value, variables: Vec<(String, String)>) -> Vec<String> {
    let recording = load(build);
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    setup.variables = variables;
    destination["name"] = json!("archive");
    setup.config["environments"] = json!([environment(&recording)]);
    setup.config["destinations"] = json!([destination]);
    let relay = Relay::start(&setup);
    replay(&recording, &upstream, relay.address(), true);
    relay.settle();
    relay.stop();
    golden(build)
}

fn replay_through_the_relay(build: &str) {
    let recording = load(build);
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"] = json!([environment(&recording)]);
    let relay = Relay::start(&setup);
    replay(&recording, &upstream, relay.address(), true);
    relay.settle();
    relay.stop();
    compare_with_golden(build, &setup.exported());
}

/// Replays a recording at `address`. `relayed` is false where that is the upstream itself.
pub(crate) fn replay(recording: &[Recorded], upstream: &Upstream, address: SocketAddr, relayed: bool) {
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    for (index, sent) in recording.iter().enumerate() {
        let context = format!(
            "request {index}, scenario {}: {} {}",
            sent.scenario, sent.method, sent.target
        );
        let date = format!("Tue, 04 Aug 2020 10:{:02}:{:02} GMT", index / 60 % 60, index % 60);
        let answer = answer_to(sent, &date);
        let planned = answer.clone();
        upstream.forget_plans();
        upstream.plan(move |_| Some(planned.clone()));

        let connection = connections
            .entry(sent.connection)
            .or_insert_with(|| Connection::open(address));
        let response = connection.exchange(&on_the_wire(sent));
        let received = upstream.take();
        assert!(!received.is_empty(), "nothing reached the upstream: {context}");
        // A connection that closes unanswered may be tried again with the same bytes, an answered request never.
        assert!(
            received.len() == 1 || sent.answer.is_none(),
            "sent {} times: {context}",
            received.len()
        );
        for request in &received {
            assert_unchanged(sent, request, &context);
        }
        match (sent.answer, response) {
            (Some(status), response) => {
                let response = response.unwrap_or_else(|error| panic!("{error}: {context}"));
                assert_answer_unchanged(sent, status, &date, &response, &context);
                if response
                    .headers
                    .get("connection")
                    .is_some_and(|value| value.eq_ignore_ascii_case("close"))
                {
                    connections.remove(&sent.connection);
                }
            }
            (None, Ok(response)) if relayed => {
                assert_eq!(response.status, 502, "{context}");
                assert!(
                    response.headers.get("x-flagtap-error").is_some(),
                    "{context}: {:?}",
                    response.headers
                );
                assert!(
                    response.headers.get("date").is_some(),
                    "{context}: {:?}",
                    response.headers
                );
            }
            (None, response) => {
                assert!(!relayed && response.is_err(), "{response:?}: {context}");
                connections.remove(&sent.connection);
            }
        }
    }
    upstream.forget_plans();
}

fn answer_to(sent: &Recorded, date: &str) -> Answer {
    let Some(status) = sent.answer else {
        return Answer::close();
    };
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    let date = ("Date", date);
    for (name, value) in ANSWER_HEADERS.iter().chain([&date]) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = answer_body(sent);
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    Answer::raw(head).then(body)
}

fn answer_body(sent: &Recorded) -> &'static [u8] {
    match sent.answer {
        Some(200) if sent.method == "GET" => b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\xff\xff;",
        Some(400) => br#"{"message":"bad"}"#,
        _ => b"",
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        413 => "Payload Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        other => panic!("a recording has the answer {other}, whose reason phrase is not listed here"),
    }
}

/// Returns the request as the SDK wrote it. A chunked body is cut anew: recordings do not keep the cuts.
pub(crate) fn on_the_wire(sent: &Recorded) -> Vec<u8> {
    let mut bytes = format!("{} {} HTTP/1.1\r\n", sent.method, sent.target).into_bytes();
    for (name, value) in &sent.headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    match sent.header("transfer-encoding") {
        Some(_) => bytes.extend_from_slice(&chunked(&sent.body, 1460)),
        None => bytes.extend_from_slice(&sent.body),
    }
    bytes
}

fn assert_unchanged(sent: &Recorded, received: &Received, context: &str) {
    assert_eq!(received.method, sent.method, "method: {context}");
    assert_eq!(received.target, sent.target, "path and query: {context}");
    let expected = Headers(sent.headers.clone()).end_to_end();
    assert_eq!(received.headers.end_to_end(), expected, "headers: {context}");
    assert!(received.body == sent.body, "body: {context}");
}

fn assert_answer_unchanged(sent: &Recorded, status: u16, date: &str, response: &Response, context: &str) {
    assert_eq!(response.status, status, "{context}");
    assert_eq!(response.reason, reason(status), "{context}");
    let mut expected: Vec<_> = ANSWER_HEADERS.iter().map(|(name, value)| pair(name, value)).collect();
    expected.push(pair("Date", date));
    let expected = Headers(expected).end_to_end();
    assert_eq!(response.headers.end_to_end(), expected, "answer's headers: {context}");
    assert_eq!(response.body, answer_body(sent), "answer's body: {context}");
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Returns an environment that owns every credential of the recording: each scenario had its own.
pub(crate) fn environment(recording: &[Recorded]) -> Value {
    let (mut sdk_keys, mut mobile_keys, mut client_side_ids) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for request in recording {
        if let Some(id) = request.client_side_id() {
            client_side_ids.insert(id);
        } else if let Some(key) = request.header("authorization") {
            let mobile = request.target.starts_with("/mobile");
            if mobile {
                mobile_keys.insert(key)
            } else {
                sdk_keys.insert(key)
            };
        }
    }
    let mut credentials = json!({});
    for (name, values) in [
        ("sdk_keys", sdk_keys),
        ("mobile_keys", mobile_keys),
        ("client_side_ids", client_side_ids),
    ] {
        if !values.is_empty() {
            credentials[name] = json!(values);
        }
    }
    json!({
        "name": "recorded",
        "project_id": PROJECT_ID,
        "environment_id": CLIENT_SIDE_ID,
        "credentials": credentials,
        // Summaries are left out by default; here every kind that an export schema documents is wanted.
        "export": { "kinds": [
            "feature", "custom", "identify", "click", "pageview", "alias", "index", "debug", "summary",
        ] },
        "destinations": ["archive"],
    })
}

/// Returns the lines of a golden file.
pub(crate) fn golden(name: &str) -> Vec<String> {
    let path = fixture(&format!("golden/{name}.ndjson.gz"));
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let golden = String::from_utf8(inflate(&golden)).unwrap();
    golden.split_terminator('\n').map(str::to_owned).collect()
}

/// Compares lines with the golden file of this name: a build's for its export, `<kind>/<build>` for what is sent to a
/// destination of another form.
pub(crate) fn compare_with_golden(name: &str, lines: &[String]) {
    if env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
        let path = fixture(&format!("golden/{name}.ndjson.gz"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = GzBuilder::new().write(fs::File::create(&path).unwrap(), Compression::best());
        lines.iter().for_each(|line| writeln!(writer, "{line}").unwrap());
        writer.finish().unwrap();
        return;
    }
    let golden = golden(name);
    for (number, (line, expected)) in lines.iter().zip(&golden).enumerate() {
        assert_eq!(line, expected, "{name}: line {}", number + 1);
    }
    assert_eq!(lines.len(), golden.len(), "{name}: number of exported events");
}
