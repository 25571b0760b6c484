//! Real SDKs through the relay: flags and events both, with the published packages and their own transports.
//!
//! `tests/sdks` has the drivers, `scripts/setup-tests.sh` installs the packages. The fake upstream serves a few flags.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::export::{id, inflate};
use crate::support::recording::fixture;
use crate::support::upstream::{Gate, Received};
use crate::support::{Answer, CLIENT_SIDE_ID, Relay, SDK_KEY, Setup, Upstream, eventually, tools};

/// Scenario: a Node server application with its flags by stream.
/// Guarantees: every exportable event that reached the upstream is in the export, byte for byte.
#[test]
fn the_node_server_sdk_works_through_the_relay() {
    let Some(packages) = tools::find("sdks: Node server", "node/node_modules") else {
        return;
    };
    drive(
        node("server.js", &packages),
        SDK_KEY,
        &["feature", "debug", "index", "identify", "custom"],
    );
}

/// Scenario: the same with gzipped bodies.
/// Guarantees: the same.
#[test]
fn the_node_server_sdk_works_with_compression() {
    let Some(packages) = tools::find("sdks: Node server, gzip", "node/node_modules") else {
        return;
    };
    let mut command = node("server.js", &packages);
    command.env("GZIP", "1");
    drive(command, SDK_KEY, &["feature", "debug", "index", "identify", "custom"]);
}

/// Scenario: a Node client application with its flags by polling and the id in the path.
/// Guarantees: the same.
#[test]
fn the_node_client_sdk_works_through_the_relay() {
    let Some(packages) = tools::find("sdks: Node client", "node/node_modules") else {
        return;
    };
    drive(
        node("client.js", &packages),
        CLIENT_SIDE_ID,
        &["feature", "debug", "identify", "custom"],
    );
}

/// Scenario: a Python application with its flags by polling, plain and gzipped.
/// Guarantees: the same.
#[test]
fn the_python_sdk_works_through_the_relay() {
    let Some(python) = tools::find("sdks: Python", "python-sdk/bin/python") else {
        return;
    };
    for gzip in ["0", "1"] {
        let mut command = Command::new(&python);
        command.arg(fixture("sdks/python/server.py")).env("GZIP", gzip);
        drive(command, SDK_KEY, &["feature", "debug", "index", "identify", "custom"]);
    }
}

fn node(script: &str, packages: &Path) -> Command {
    let mut command = Command::new("node");
    command
        .arg(fixture("sdks/node").join(script))
        .env("NODE_PATH", PathBuf::from(packages));
    command
}

/// Runs a driver against a relay, and compares what reached the upstream with what was exported.
fn drive(mut command: Command, credential: &str, kinds: &[&str]) {
    let upstream = Upstream::accepting();
    let stream_end = Gate::default();
    serve_flags(&upstream, &stream_end);
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let output = command
        .arg(format!("http://{}", relay.address()))
        .arg(credential)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    eventually("the driver's connections to end", || {
        (relay.metrics().sum("flagtap_connections", &[]) == 0.0).then_some(())
    });
    stream_end.open();
    relay.settle();
    relay.stop();

    let received = upstream.take();
    let batches = received
        .iter()
        .filter(|request| request.method == "POST" && request.path().contains("bulk"));
    let mut sent: Vec<String> = batches.flat_map(events).filter(|event| is_exported(event)).collect();
    let mut exported: Vec<String> = setup.exported().iter().map(|line| as_sent(line)).collect();
    for kind in kinds {
        assert!(
            sent.iter().any(|event| kind_of(event) == *kind),
            "the driver sent no {kind}:\n{said}"
        );
    }
    sent.sort();
    exported.sort();
    assert_eq!(exported, sent);
}

fn events(request: &Received) -> Vec<String> {
    let gzip = request.headers.get("content-encoding") == Some("gzip");
    let body = if gzip {
        inflate(&request.body)
    } else {
        request.body.clone()
    };
    let events: Vec<Box<RawValue>> = serde_json::from_slice(&body).unwrap();
    events.iter().map(|event| event.get().to_owned()).collect()
}

fn kind_of(event: &str) -> String {
    let event: Value = serde_json::from_str(event).unwrap();
    event["kind"].as_str().unwrap().to_owned()
}

fn is_exported(event: &str) -> bool {
    !["summary", "migration_op", "click_pageview"].contains(&kind_of(event).as_str())
}

/// Returns the event of an export line without what the export adds: the id, and `contextKeys` after a `context`.
fn as_sent(line: &str) -> String {
    let (_, rest) = line.split_once("\"event\":").unwrap();
    let event = &rest[..rest.rfind(",\"version\":").unwrap()];
    let id = id(line);
    let mut event = event
        .replacen(&format!(",\"id\":\"{id}\""), "", 1)
        .replacen(&format!("\"id\":\"{id}\","), "", 1);
    if event.contains("\"context\":")
        && let Some(start) = event.rfind(",\"contextKeys\":")
    {
        event.truncate(start);
        event.push('}');
    }
    event
}

/// Serves three flags in the forms of the server and client SDKs.
fn serve_flags(upstream: &Upstream, stream_end: &Gate) {
    let server = json!({ "flags": server_flags(), "segments": {} });
    let message = format!("event: put\ndata: {}\n\n", json!({ "path": "/", "data": server }));
    let stream = Answer::chunked(200, &[("Content-Type", "text/event-stream; charset=utf-8")])
        .then(format!("{:x}\r\n{message}\r\n", message.len()))
        .wait(stream_end)
        .then("0\r\n\r\n");
    let as_json = |body: &Value| {
        Answer::full(
            200,
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    };
    upstream.always("GET", "/all", stream);
    upstream.always("GET", "/sdk/latest-all", as_json(&server));
    let client = as_json(&client_flags());
    upstream.plan(move |request| {
        (request.method == "GET" && request.path().starts_with("/sdk/evalx/")).then(|| client.clone())
    });
}

/// A date in the far future: debugging stays on.
const DEBUG_UNTIL: u64 = 4_000_000_000_000;

fn server_flags() -> Value {
    let flag = |key: &str, variations: Value| {
        json!({
            "key": key, "version": 3, "on": true, "salt": "s", "sel": "s", "variations": variations,
            "fallthrough": { "variation": 0 }, "offVariation": 1, "targets": [], "contextTargets": [], "rules": [],
            "prerequisites": [], "trackEvents": false, "trackEventsFallthrough": false, "debugEventsUntilDate": null,
            "clientSide": true, "deleted": false,
        })
    };
    let mut tracked = flag("tracked", json!([true, false]));
    tracked["trackEvents"] = json!(true);
    let mut ruled = flag(
        "ruled",
        json!([{ "big": 9_007_199_254_740_993_u64, "exponent": 1e21 }, "off"]),
    );
    ruled["trackEventsFallthrough"] = json!(true);
    let mut debugged = flag("debugged", json!([0.1, 2]));
    debugged["debugEventsUntilDate"] = json!(DEBUG_UNTIL);
    json!({ "tracked": tracked, "ruled": ruled, "debugged": debugged })
}

fn client_flags() -> Value {
    json!({
        "tracked": { "value": true, "variation": 0, "version": 3, "flagVersion": 3, "trackEvents": true },
        "debugged": {
            "value": 0.1, "variation": 0, "version": 4, "flagVersion": 4, "trackEvents": false,
            "debugEventsUntilDate": DEBUG_UNTIL, "reason": { "kind": "FALLTHROUGH" },
        },
    })
}
