//! What a destination is benched against: a service in a process of its own that reads, counts and acknowledges.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::net::TcpListener;

use super::cpu_seconds;

/// A counterpart that runs.
pub(crate) struct Counterpart {
    pub(crate) port: u16,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Counterpart {
    /// Starts the counterpart of a kind of destination.
    pub(crate) fn start(kind: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["serve", kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the counterpart starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its port");
        let port = line.trim().parse().expect("its port");
        Self { port, child, output }
    }

    /// Ends it; returns how many events it received and what CPU seconds it took.
    pub(crate) fn end(mut self) -> (u64, f64) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its result");
        self.child.wait().expect("it ends");
        let (events, cpu) = text.trim().split_once(' ').expect("two numbers");
        (events.parse().expect("a number"), cpu.parse().expect("a number"))
    }
}

/// How a kind of service counts the events of a request, and what it answers.
type Answer = fn(&Bytes) -> (u64, Response<Body>);

type Body = BoxBody<Bytes, Infallible>;

/// Serves until the standard input ends, then prints what was received and the CPU seconds taken.
pub(crate) fn serve(kind: &str) {
    let answer: Answer = match kind {
        "kinesis" => kinesis,
        "google_pubsub" => google_pubsub,
        "webhook" => webhook,
        "segment" => segment,
        "mparticle" => mparticle,
        "azure_event_hubs" => azure_event_hubs,
        _ => panic!("no counterpart of {kind}"),
    };
    let received = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&received);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(accept(answer, &counting));
    });
    let mut end = Vec::new();
    std::io::stdin().read_to_end(&mut end).expect("the end");
    println!("{} {}", received.load(Ordering::SeqCst), cpu_seconds());
}

async fn accept(answer: Answer, received: &Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("{}", listener.local_addr().expect("its address").port());
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        // Else an answer of several writes waits 40 ms for the client's delayed acknowledgement.
        stream.set_nodelay(true).expect("an open socket");
        let received = Arc::clone(received);
        tokio::spawn(async move {
            let service = service_fn(move |request| respond(request, answer, Arc::clone(&received)));
            // A client that hangs up is the end of the run.
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Answer,
    received: Arc<AtomicU64>,
) -> Result<Response<Body>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .expect("the whole request")
        .to_bytes();
    let (events, response) = answer(&body);
    received.fetch_add(events, Ordering::SeqCst);
    Ok(response)
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// `PutRecords`: one object per record within the request's own, none of whose texts holds a brace.
fn kinesis(body: &Bytes) -> (u64, Response<Body>) {
    let records = body.iter().filter(|byte| **byte == b'{').count() - 1;
    let record = r#"{"SequenceNumber":"49590338271490256608559692538361571095921575989136588898","ShardId":"shardId-000000000000"}"#;
    let records_json = vec![record; records].join(",");
    let answer = format!(r#"{{"FailedRecordCount":0,"Records":[{records_json}]}}"#);
    (records as u64, Response::new(full(answer)))
}

/// One line per event.
fn webhook(body: &Bytes) -> (u64, Response<Body>) {
    let lines = body.iter().filter(|byte| **byte == b'\n').count();
    (lines as u64, Response::new(full("")))
}

/// `/v1/batch`.
fn segment(body: &Bytes) -> (u64, Response<Body>) {
    #[derive(Deserialize)]
    struct Batch {
        batch: Vec<IgnoredAny>,
    }
    let batch: Batch = serde_json::from_slice(body).expect("a batch");
    (batch.batch.len() as u64, Response::new(full(r#"{"success":true}"#)))
}

/// `/v2/bulkevents`.
fn mparticle(body: &Bytes) -> (u64, Response<Body>) {
    #[derive(Deserialize)]
    struct Batch {
        events: Vec<IgnoredAny>,
    }
    let batches: Vec<Batch> = serde_json::from_slice(body).expect("batches");
    let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::ACCEPTED;
    (events as u64, response)
}

/// A batch publication: a JSON array of messages.
fn azure_event_hubs(body: &Bytes) -> (u64, Response<Body>) {
    let messages: Vec<IgnoredAny> = serde_json::from_slice(body).expect("an array");
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::CREATED;
    (messages.len() as u64, response)
}

/// `google.pubsub.v1.PublishRequest`, as far as counting goes.
#[derive(Clone, PartialEq, Message)]
struct PublishRequest {
    #[prost(message, repeated, tag = "2")]
    messages: Vec<Unread>,
}

#[derive(Clone, PartialEq, Message)]
struct Unread {}

/// `google.pubsub.v1.PublishResponse`.
#[derive(Clone, PartialEq, Message)]
struct PublishResponse {
    #[prost(string, repeated, tag = "1")]
    message_ids: Vec<String>,
}

/// `Publish`, a unary gRPC call: each message has five bytes before it, a flag and its length.
fn google_pubsub(body: &Bytes) -> (u64, Response<Body>) {
    let request = PublishRequest::decode(&body[5..]).expect("a publish request");
    let answer = PublishResponse {
        message_ids: vec!["19916711285".to_owned(); request.messages.len()],
    };
    let mut frame = BytesMut::with_capacity(5 + answer.encoded_len());
    frame.put_u8(0);
    frame.put_u32(answer.encoded_len() as u32);
    answer.encode(&mut frame).expect("there is room");
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(frame.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    (request.messages.len() as u64, response)
}
