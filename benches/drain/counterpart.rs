//! What a destination is benched against: a service in a process of its own that reads, counts and acknowledges.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
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
type Answer = fn(&[u8]) -> (u64, Bytes);

/// Serves until the standard input ends, then prints what was received and the CPU seconds taken.
pub(crate) fn serve(kind: &str) {
    let answer: Answer = match kind {
        "kinesis" => kinesis,
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
        let received = Arc::clone(received);
        tokio::spawn(async move {
            let service = service_fn(move |request| respond(request, answer, Arc::clone(&received)));
            // A client that hangs up is the end of the run.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Answer,
    received: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .expect("the whole request")
        .to_bytes();
    let (events, answer) = answer(&body);
    received.fetch_add(events, Ordering::SeqCst);
    Ok(Response::new(Full::new(answer)))
}

/// `PutRecords`: one object per record within the request's own, none of whose texts holds a brace.
fn kinesis(body: &[u8]) -> (u64, Bytes) {
    let records = body.iter().filter(|byte| **byte == b'{').count() - 1;
    let record = r#"{"SequenceNumber":"49590338271490256608559692538361571095921575989136588898","ShardId":"shardId-000000000000"}"#;
    let answer = format!(
        r#"{{"FailedRecordCount":0,"Records":[{}]}}"#,
        vec![record; records].join(",")
    );
    (records as u64, Bytes::from(answer))
}
