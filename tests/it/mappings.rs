//! Recorded traffic of real SDKs, as Segment and mParticle get it: to the byte, and in forms that their fakes take.
//!
//! `tests/golden/segment/<build>.ndjson.gz` has one message a line, `tests/golden/mparticle/<build>.ndjson.gz` one event a
//! line with what its batch says, both in the order of the build's export and masked nowhere. `scripts/oracle.py` computes
//! them anew from the recordings.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::replay::{BUILDS, compare_with_golden, deliver};
use crate::support::export;
use crate::support::mparticle::{self, API_KEY, Mparticle, SECRET};
use crate::support::segment::{self, Segment, WRITE_KEY};

macro_rules! builds {
    ($($test:ident: $build:literal,)*) => {
        $(
            /// Scenario: the recording of this SDK build, exported to both.
            /// Guarantees: every event that has a place there arrives once, with the bytes of the golden file.
            #[test]
            fn $test() {
                to_segment($build);
                to_mparticle($build);
            }
        )*

        const MAPPED: &[&str] = &[$($build),*];
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
fn every_recording_is_mapped() {
    assert_eq!(MAPPED, BUILDS);
}

fn to_segment(build: &str) {
    let fake = Segment::start(segment::Mood::Takes);
    let settings = json!({
        "write_key": WRITE_KEY, "endpoint": fake.url(), "anonymous_id_context_kind": "organization",
    });
    let exported = deliver(build, json!({ "segment": settings }));
    let mut messages = BTreeMap::new();
    for text in fake.taken().into_iter().flatten() {
        let message: Value = serde_json::from_str(&text).unwrap();
        // <environment id>-<event id>-<source>
        let id = message["messageId"]
            .as_str()
            .unwrap()
            .split('-')
            .nth(1)
            .unwrap()
            .to_owned();
        assert!(messages.insert(id, text).is_none(), "{build}: {message} came twice");
    }
    compare(&format!("segment/{build}"), &exported, messages);
}

fn to_mparticle(build: &str) {
    let fake = Mparticle::start(mparticle::Mood::Takes);
    let pair = |kind, identity| json!({ "ld_context_kind": kind, "mparticle_user_identity": identity });
    let settings = json!({
        "api_key": API_KEY, "secret": SECRET, "environment": "production", "endpoint": fake.url(),
        "user_identity": "customer_id", "anonymous_user_identity": "other",
        "user_identities": [pair("organization", "other_id_2"), pair("device", "other_id_3")],
    });
    let exported = deliver(build, json!({ "mparticle": settings }));
    let mut events = BTreeMap::new();
    for batch in fake.taken().into_iter().flatten() {
        for event in &batch.events {
            let text = format!(
                r#"{{"user_identities":{},"environment":"{}","event":{event}}}"#,
                batch.user_identities, batch.environment
            );
            let event: Value = serde_json::from_str(event.get()).unwrap();
            let id = event["data"]["source_message_id"].as_str().unwrap().to_owned();
            assert!(events.insert(id, text).is_none(), "{build}: {event} came twice");
        }
    }
    compare(&format!("mparticle/{build}"), &exported, events);
}

/// Compares what came, by event id, with the golden file, which has it in the order of the export.
fn compare(name: &str, exported: &[String], mut came: BTreeMap<String, String>) {
    let lines = exported.iter().filter_map(|line| came.remove(&export::id(line)));
    let lines: Vec<String> = lines.collect();
    assert!(came.is_empty(), "{name}: not in the export: {came:?}");
    compare_with_golden(name, &lines);
}
