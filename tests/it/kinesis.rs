//! The Kinesis destination against moto's Kinesis, with a proxy between them that fails in every way Kinesis does.
//!
//! moto never throttles and never fails, so the proxy takes that part: per-record failures inside a 200, throttled
//! calls, 500s, answers that come late or not at all, with the records stored or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::replay;
use crate::support::export::{event, id};
use crate::support::moto::{Caller, Moto, decode, forward};
use crate::support::relay::marked;
use crate::support::upstream::Received;
use crate::support::{Answer, Relay, Setup, Upstream};

const STREAM: &str = "ld-events";
/// Every fault of the cycle comes up at least three times.
const LEAST_CALLS: usize = 3 * CYCLE;
const CYCLE: usize = 12;
const LEAST_BATCHES: usize = 120;

/// Scenario: batches are exported to Kinesis and to a file; every fault of the list happens three times or
/// more.
/// Guarantees: the stream holds every event, each record is the file's line byte by byte, and nothing that Kinesis
/// acknowledged and the relay heard of is sent again.
#[test]
fn every_event_reaches_kinesis_whatever_it_answers() {
    let Some(moto) = Moto::start("kinesis") else { return };
    let caller = Caller::default();
    moto.make_stream(&caller, STREAM, 3);
    // Event ids that the relay was told are stored, and those it could not know of.
    let acknowledged = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let unheard = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let calls = Arc::new(AtomicUsize::new(0));
    let proxy = faulty_proxy(moto.address, calls.clone(), acknowledged.clone(), unheard.clone());

    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["environments"][0]["destinations"] = json!(["archive", "lake"]);
    setup.config["destinations"].as_array_mut().unwrap().push(json!({
        "name": "lake",
        "kinesis": {
            "region": "eu-west-1", "stream_name": STREAM, "endpoint": format!("http://{}", proxy.address()),
        },
        "retry": { "initial": "20ms", "max": "200ms", "over": "500ms", "then": "keep" },
    }));
    setup.variables = caller.variables();
    let relay = Relay::start(&setup);
    let mut batches = 0;
    while batches < LEAST_BATCHES || calls.load(Ordering::SeqCst) < LEAST_CALLS {
        assert!(batches < 5_000, "the relay made only {calls:?} calls");
        let events: Value = (0..10)
            .map(|index| marked(&format!("k-{batches}-{index} ☃ é")))
            .collect();
        assert_eq!(relay.post(&format!("kinesis-{batches}"), &events).status, 202);
        batches += 1;
    }
    let total = 10 * batches;
    let metrics = relay.settle();
    assert_eq!(
        metrics.sum("flagtap_destination_events_delivered_total", &[("destination", "lake")]),
        total as f64
    );
    assert_eq!(metrics.sum("flagtap_destination_events_dead_total", &[]), 0.0);
    relay.stop();

    let lines = setup.exported();
    let expected: BTreeSet<String> = lines.iter().cloned().collect();
    let records: Vec<String> = moto
        .read_all(&caller, STREAM)
        .into_iter()
        .map(|record| record.data)
        .collect();
    let stored: BTreeSet<String> = records.iter().cloned().collect();
    assert_eq!(lines.len(), total);
    assert!(
        stored == expected,
        "the records differ from the file's lines: {:?}",
        stored.symmetric_difference(&expected).take(4).collect::<Vec<_>>()
    );
    let acknowledged = acknowledged.lock().unwrap();
    let unheard: usize = unheard.lock().unwrap().values().sum();
    let again: Vec<_> = acknowledged.iter().filter(|(_, count)| **count > 1).collect();
    println!(
        "{calls:?} calls, {} records for {total} events; {unheard} were stored without the relay hearing of it",
        records.len(),
    );
    assert!(again.is_empty(), "acknowledged and yet sent again: {again:?}");
    assert_eq!(records.len(), total + unheard);
}

/// Scenario: every recording is replayed through a relay whose only destination is a stream of one shard.
/// Guarantees: the records are the golden export lines byte by byte, each once, under the key of the event's user or
/// context.
#[test]
fn every_recorded_build_reaches_kinesis_byte_by_byte() {
    let Some(moto) = Moto::start("kinesis") else { return };
    let caller = Caller::default();
    // A replay waits more than it works.
    thread::scope(|scope| {
        for builds in replay::BUILDS.chunks(5) {
            let (moto, caller) = (&moto, &caller);
            scope.spawn(move || builds.iter().for_each(|build| assert_golden(moto, caller, build)));
        }
    });
}

fn assert_golden(moto: &Moto, caller: &Caller, build: &str) {
    let stream = build.replace('.', "_");
    moto.make_stream(caller, &stream, 1);
    let kinesis = json!({ "region": "eu-west-1", "stream_name": stream, "endpoint": moto.url() });
    let mut expected = replay::deliver_as(build, json!({ "kinesis": kinesis }), caller.variables());
    let records = moto.read_all(caller, &stream);
    for record in &records {
        assert_eq!(record.key, key_of(&record.data), "{build}: {}", record.data);
    }
    let mut stored: Vec<String> = records.into_iter().map(|record| record.data).collect();
    // Requests that are under way at the same time arrive in any order.
    stored.sort();
    expected.sort();
    assert!(!expected.is_empty());
    assert_eq!(stored.len(), expected.len(), "{build}");
    for (stored, expected) in stored.iter().zip(&expected) {
        assert_eq!(stored, expected, "{build}");
    }
}

/// Scenario: another region, the stream by its ARN, `newline` and `partition_by: event_id`.
/// Guarantees: the records are in that region's stream, each ends with a line feed, and its key is the event's id.
#[test]
fn a_stream_by_arn_in_another_region_gets_lines_under_event_ids() {
    let Some(moto) = Moto::start("kinesis") else { return };
    let caller = Caller {
        region: "us-east-2".to_owned(),
        ..Caller::default()
    };
    moto.make_stream(&caller, STREAM, 2);
    let build = "python-9.18.2";
    let settings = json!({
        "region": "us-east-2",
        "stream_arn": format!("arn:aws:kinesis:us-east-2:123456789012:stream/{STREAM}"),
        "endpoint": moto.url(),
        "newline": true,
        "partition_by": "event_id",
    });
    let expected: BTreeSet<String> = replay::deliver_as(build, json!({ "kinesis": settings }), caller.variables())
        .into_iter()
        .map(|line| line + "\n")
        .collect();
    let records = moto.read_all(&caller, STREAM);
    for record in &records {
        assert_eq!(record.key, id(&record.data));
    }
    let stored: BTreeSet<String> = records.iter().map(|record| record.data.clone()).collect();
    assert_eq!(stored.len(), records.len());
    assert!(stored == expected, "{} records, {} lines", stored.len(), expected.len());
}

/// Returns what a record's partition key has to be: the key of the user, of the context of kind `user` or of the
/// lowest kind, else the event's id.
fn key_of(line: &str) -> String {
    let event = event(line);
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    };
    let of_context = |context: &Value| {
        let kinds = context.as_object()?;
        if kinds.get("kind")? != "multi" {
            return text(kinds.get("key")?);
        }
        let mut kinds: Vec<_> = kinds.iter().filter(|(kind, _)| *kind != "kind").collect();
        kinds.sort_by_key(|(kind, _)| (*kind != "user", kind.as_str()));
        text(&kinds.first()?.1["key"])
    };
    let of_keys = |keys: &Value| {
        let mut kinds: Vec<_> = keys.as_object()?.iter().collect();
        kinds.sort_by_key(|(kind, _)| (*kind != "user", kind.as_str()));
        text(kinds.first()?.1)
    };
    let of_alias = || (event["kind"] == "alias").then(|| text(&event["key"])).flatten();
    text(&event["userKey"])
        .or_else(|| text(&event["user"]["key"]))
        .or_else(of_alias)
        .or_else(|| of_keys(&event["contextKeys"]))
        .or_else(|| of_context(&event["context"]))
        .unwrap_or_else(|| id(line))
}

/// Returns a proxy before moto that goes through its faults in turn, with calls that work in between.
fn faulty_proxy(
    moto: SocketAddr,
    calls: Arc<AtomicUsize>,
    acknowledged: Arc<Mutex<BTreeMap<String, usize>>>,
    unheard: Arc<Mutex<BTreeMap<String, usize>>>,
) -> Upstream {
    let proxy = Upstream::start();
    proxy.tolerate_broken();
    let answer_json = |status, body: &Value| {
        Answer::full(
            status,
            &[("Content-Type", "application/x-amz-json-1.1")],
            body.to_string().as_bytes(),
        )
    };
    proxy.plan(move |call| {
        if call.headers.get("x-amz-target") != Some("Kinesis_20131202.PutRecords") {
            return forward(moto, call, &call.body).map(|response| Answer::full(response.status, &[], &response.body));
        }
        let turn = (calls.fetch_add(1, Ordering::SeqCst) + 1) % CYCLE;
        let records = record_ids(&call.body);
        let whole_fault = |kind: &str| json!({ "__type": kind, "message": "made up" });
        Some(match turn {
            1 => answer_json(400, &whole_fault("ProvisionedThroughputExceededException")),
            2 => answer_json(500, &whole_fault("InternalFailure")),
            3 => partial(moto, call, &acknowledged, "ProvisionedThroughputExceededException"),
            4 => Answer::close(),
            5 => partial(moto, call, &acknowledged, "InternalFailure"),
            6 => answer_json(503, &whole_fault("ServiceUnavailable")),
            7 => {
                // Stored, but the answer is lost: the relay has to send these again.
                forward(moto, call, &call.body)?;
                count(&unheard, records);
                Answer::close()
            }
            8 => answer_json(400, &whole_fault("LimitExceededException")),
            9 => Answer::full(502, &[], b"<html>not JSON</html>"),
            _ => {
                let response = forward(moto, call, &call.body)?;
                count(&acknowledged, records);
                if turn == 10 {
                    thread::sleep(Duration::from_millis(300)); // a slow answer is a good answer
                }
                Answer::full(
                    response.status,
                    &[("Content-Type", "application/x-amz-json-1.1")],
                    &response.body,
                )
            }
        })
    });
    proxy
}

/// Stores every other record and answers 200 with a failure for the rest.
fn partial(moto: SocketAddr, call: &Received, acknowledged: &Mutex<BTreeMap<String, usize>>, error: &str) -> Answer {
    let mut body: Value = serde_json::from_slice(&call.body).unwrap();
    let all = body["Records"].as_array().unwrap().clone();
    let kept: Vec<Value> = all.iter().skip(1).step_by(2).cloned().collect();
    let mut stored = Vec::new().into_iter();
    if !kept.is_empty() {
        body["Records"] = json!(kept);
        let kept_body = body.to_string().into_bytes();
        let response = forward(moto, call, &kept_body).expect("moto answers");
        let response: Value = serde_json::from_slice(&response.body).unwrap();
        stored = response["Records"].as_array().unwrap().clone().into_iter();
        count(acknowledged, record_ids(&kept_body));
    }
    let failed = json!({ "ErrorCode": error, "ErrorMessage": "made up" });
    let results = (0..all.len()).map(|index| {
        if index % 2 == 1 {
            stored.next().unwrap()
        } else {
            failed.clone()
        }
    });
    let results: Vec<Value> = results.collect();
    let answer = json!({ "FailedRecordCount": all.len().div_ceil(2), "Records": results });
    Answer::full(
        200,
        &[("Content-Type", "application/x-amz-json-1.1")],
        answer.to_string().as_bytes(),
    )
}

fn count(acknowledged: &Mutex<BTreeMap<String, usize>>, ids: Vec<String>) {
    let mut acknowledged = acknowledged.lock().unwrap();
    ids.into_iter().for_each(|id| *acknowledged.entry(id).or_default() += 1);
}

fn record_ids(body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap();
    let records = body["Records"].as_array().unwrap();
    records.iter().map(|record| id(&decode(&record["Data"]))).collect()
}
