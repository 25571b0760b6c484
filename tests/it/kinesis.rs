//! The Kinesis destination against moto's Kinesis, with a proxy between them that fails in every way Kinesis does.
//!
//! moto never throttles and never fails, so the proxy takes that part: per-record failures inside a 200, throttled
//! calls, 500s, answers that come late or not at all, with the records stored or not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::export::id;
use crate::support::raw::Response;
use crate::support::relay::marked;
use crate::support::upstream::Received;
use crate::support::{Answer, Connection, Relay, Setup, Upstream, eventually, request, tools};

const STREAM: &str = "ld-events";
/// Every fault of the cycle comes up at least three times.
const LEAST_CALLS: usize = 3 * CYCLE;
const CYCLE: usize = 12;
const LEAST_BATCHES: usize = 120;

struct Moto {
    child: Child,
    address: SocketAddr,
}

/// Scenario: batches are exported to Kinesis and to a file; every fault of the list happens three times or
/// more.
/// Guarantees: the stream holds every event, each record is the file's line byte by byte, and nothing that Kinesis
/// acknowledged and the relay heard of is sent again.
#[test]
fn every_event_reaches_kinesis_whatever_it_answers() {
    let Some(program) = tools::find("kinesis", "python/bin/moto_server") else {
        return;
    };
    let moto = Moto::start(&program);
    moto.call("CreateStream", &json!({ "StreamName": STREAM, "ShardCount": 3 }));
    eventually("the stream to be active", || {
        let stream = moto.call("DescribeStreamSummary", &json!({ "StreamName": STREAM }));
        (stream["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE").then_some(())
    });
    // Event ids that the relay was told are stored, and those it could not know of.
    let acknowledged = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let unheard = Arc::new(Mutex::new(BTreeSet::<String>::new()));
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
        "retry": { "initial": "20ms", "max": "200ms" },
    }));
    setup.variables = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        .map(|name| (name.to_owned(), "test".to_owned()))
        .into();
    setup
        .variables
        .push(("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()));
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
    let records = moto.read_all();
    let stored: BTreeSet<String> = records.iter().cloned().collect();
    assert_eq!(lines.len(), total);
    assert!(
        stored == expected,
        "the records differ from the file's lines: {:?}",
        stored.symmetric_difference(&expected).take(4).collect::<Vec<_>>()
    );
    let acknowledged = acknowledged.lock().unwrap();
    let again: Vec<_> = acknowledged.iter().filter(|(_, count)| **count > 1).collect();
    println!(
        "{calls:?} calls, {} records for {total} events; {} were stored without the relay hearing of it",
        records.len(),
        unheard.lock().unwrap().len()
    );
    assert!(again.is_empty(), "acknowledged and yet sent again: {again:?}");
    assert_eq!(records.len(), total + unheard.lock().unwrap().len());
}

/// Returns a proxy before moto that goes through its faults in turn, with calls that work in between.
fn faulty_proxy(
    moto: SocketAddr,
    calls: Arc<AtomicUsize>,
    acknowledged: Arc<Mutex<BTreeMap<String, usize>>>,
    unheard: Arc<Mutex<BTreeSet<String>>>,
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
                unheard.lock().unwrap().extend(records);
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

fn decode(data: &Value) -> String {
    String::from_utf8(STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap()
}

fn forward(moto: SocketAddr, call: &Received, body: &[u8]) -> Option<Response> {
    let mut headers = call.headers.end_to_end();
    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("expect"));
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Connection::open(moto)
        .exchange(&request(&call.method, &call.target, &headers, body))
        .ok()
}

impl Moto {
    fn start(program: &std::path::Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { child, address };
        eventually("moto to listen", || Connection::try_open(address).ok());
        moto
    }

    /// Calls a Kinesis operation. moto looks at the credential's scope and never at the signature.
    fn call(&self, operation: &str, input: &Value) -> Value {
        let target = format!("Kinesis_20131202.{operation}");
        let headers = [
            ("X-Amz-Target", target.as_str()),
            ("Content-Type", "application/x-amz-json-1.1"),
            (
                "Authorization",
                "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host, Signature=0",
            ),
        ];
        let body = input.to_string();
        let response = Connection::open(self.address)
            .exchange(&request("POST", "/", &headers, body.as_bytes()))
            .unwrap();
        assert_eq!(
            response.status,
            200,
            "{operation}: {}",
            String::from_utf8_lossy(&response.body)
        );
        serde_json::from_slice(&response.body).unwrap_or_default()
    }

    /// Returns the data of every record in the stream.
    fn read_all(&self) -> Vec<String> {
        let shards = self.call("ListShards", &json!({ "StreamName": STREAM }));
        let mut records = Vec::new();
        for shard in shards["Shards"].as_array().unwrap() {
            let start = json!({
                "StreamName": STREAM, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON",
            });
            let mut iterator = self.call("GetShardIterator", &start)["ShardIterator"].clone();
            loop {
                let page = self.call("GetRecords", &json!({ "ShardIterator": iterator, "Limit": 1_000 }));
                let found = page["Records"].as_array().unwrap();
                if found.is_empty() {
                    break;
                }
                records.extend(found.iter().map(|record| decode(&record["Data"])));
                iterator = page["NextShardIterator"].clone();
            }
        }
        records
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
