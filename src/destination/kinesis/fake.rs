//! A Kinesis on loopback that follows a script and fails the test on any request it does not expect.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// What is answered to one request.
#[derive(Clone)]
pub(super) enum Answer {
    /// 200 with one entry per record; `Some` is its error code.
    Records(Vec<Option<&'static str>>),
    /// 200 and a sequence number for every record.
    AllTaken,
    /// 200 and a summary of the stream with this status, encryption and record size (KiB).
    Summary(&'static str, &'static str, u32),
    /// This status, error code and message.
    Error(u16, &'static str, &'static str),
    /// This status and text.
    Text(u16, &'static str),
    /// A throttle with `Retry-After`, seconds.
    RetryAfter(u64),
    /// The connection is closed instead of an answer.
    Drop,
    /// Nothing, for ever.
    Hang,
}

/// A request as it was received.
pub(super) struct Received {
    pub(super) body: Value,
    /// Data and partition key of each record.
    pub(super) records: Vec<(String, String)>,
    pub(super) target: String,
}

#[derive(Default)]
struct State {
    script: VecDeque<Answer>,
    received: Vec<Received>,
    unexpected: Vec<String>,
}

/// The service.
pub(super) struct FakeKinesis {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
    _server: AbortOnDropHandle<()>,
}

impl FakeKinesis {
    pub(super) async fn answering(script: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            script: script.into_iter().collect(),
            ..State::default()
        }));
        let shared = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = shared.clone();
                let service = service_fn(move |request| answer(request, state.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            url,
            state,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// Returns the requests, after checking that they were all expected and all expected ones came.
    pub(super) fn received(&self) -> Vec<Received> {
        let mut state = self.state.lock().unwrap();
        assert!(state.script.is_empty(), "{} requests never came", state.script.len());
        std::mem::take(&mut state.received)
    }
}

impl Drop for FakeKinesis {
    fn drop(&mut self) {
        let state = self.state.lock().unwrap();
        if !std::thread::panicking() {
            assert!(
                state.unexpected.is_empty(),
                "unexpected requests: {:?}",
                state.unexpected
            );
        }
    }
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let target = target.unwrap_or_default().to_owned();
    let signed = head.headers.get("authorization").is_some_and(|value| {
        let value = value.to_str().unwrap();
        value.starts_with("AWS4-HMAC-SHA256") && value.contains("/eu-west-1/kinesis/aws4_request")
    });
    let parsed = serde_json::from_slice(&body).ok().and_then(records);
    let next = {
        let mut state = state.lock().unwrap();
        let expected = head.method == "POST" && target.starts_with("Kinesis_20131202.") && signed;
        match (expected, parsed, state.script.pop_front()) {
            (true, Some((body, records)), Some(answer)) => {
                let count = records.len();
                state.received.push(Received { body, records, target });
                Some((answer, count))
            }
            _ => {
                state.unexpected.push(format!("{} {} {target}", head.method, head.uri));
                None
            }
        }
    };
    let Some((answer, count)) = next else {
        return Ok(response(500, "{}"));
    };
    Ok(match answer {
        Answer::Records(codes) => taken(&codes),
        Answer::AllTaken => taken(&vec![None; count]),
        Answer::Summary(status, encryption, kib) => summary(status, encryption, kib),
        Answer::Error(status, code, message) => {
            response(status, &json!({"__type": code, "message": message}).to_string())
        }
        Answer::Text(status, text) => response(status, text),
        Answer::RetryAfter(seconds) => {
            let mut response = response(400, r#"{"__type":"ThrottlingException"}"#);
            response.headers_mut().insert("retry-after", seconds.into());
            response
        }
        Answer::Drop => return Err(io::ErrorKind::ConnectionReset.into()),
        Answer::Hang => pending().await,
    })
}

fn records(body: Value) -> Option<(Value, Vec<(String, String)>)> {
    let empty = Vec::new();
    let records = body.get("Records").and_then(Value::as_array).unwrap_or(&empty);
    let records = records
        .iter()
        .map(|record| {
            let data = STANDARD.decode(record["Data"].as_str()?).ok()?;
            Some((
                String::from_utf8(data).ok()?,
                record["PartitionKey"].as_str()?.to_owned(),
            ))
        })
        .collect::<Option<Vec<_>>>()?;
    Some((body, records))
}

fn taken(codes: &[Option<&str>]) -> Response<Full<Bytes>> {
    let entry = |code: &Option<&str>| match code {
        None => {
            json!({"SequenceNumber": "49543463076548007577105092703039560359975228518395012686", "ShardId": "shardId-000000000000"})
        }
        Some(code) => json!({"ErrorCode": code, "ErrorMessage": "Rate exceeded for shard shardId-000000000001"}),
    };
    let failed = codes.iter().filter(|code| code.is_some()).count();
    let entries: Vec<Value> = codes.iter().map(entry).collect();
    response(
        200,
        &json!({"FailedRecordCount": failed, "Records": entries}).to_string(),
    )
}

fn summary(status: &str, encryption: &str, kib: u32) -> Response<Full<Bytes>> {
    let summary = json!({
        "StreamName": "ld-events", "StreamARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/ld-events",
        "StreamStatus": status, "RetentionPeriodHours": 24, "StreamCreationTimestamp": 1_700_000_000,
        "EnhancedMonitoring": [], "EncryptionType": encryption, "OpenShardCount": 3, "MaxRecordSizeInKiB": kib,
    });
    response(200, &json!({ "StreamDescriptionSummary": summary }).to_string())
}

fn response(status: u16, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let json = http::HeaderValue::from_static("application/x-amz-json-1.1");
    response.headers_mut().insert("content-type", json);
    response
}
