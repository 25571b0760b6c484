//! A start with a large backlog: how long until a batch is taken, and what it needs of memory, waiting and delivering.
//!
//! The backlog is written by the queue itself, in this process; then flagtap is started on it. First its destination is a
//! folder that cannot be written (a file stands in its place), then the process's standard output, which is thrown away.
//! `FLAGTAP_BENCH_BACKLOG_BYTES` is the size on disk, 10 GB by default. The last line says whether the aims were held: a
//! batch is taken within [`AIM_SECONDS`] of the start, and the peak stays under [`AIM_MEGABYTES`].

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flagtap::event::{Kind, Schema};
use flagtap::queue::sled::SledQueue;
use flagtap::queue::{self, Entry, Mark, Queue, system_clock};
use flagtap::record::{Origin, Record, RecordEvent};
use support::{KNOWN, Running, flagtap, metric, wait_until};

const EVENTS: u32 = 12;
const EVENT_BYTES: usize = 5_000;
const PRODUCERS: usize = 32;
const AIM_SECONDS: f64 = 1.0;
const AIM_MEGABYTES: f64 = 128.0;

fn main() {
    let bytes = std::env::var("FLAGTAP_BENCH_BACKLOG_BYTES").ok();
    let bytes = bytes.map_or(10_000_000_000, |text| text.parse().expect("bytes"));
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let started = Instant::now();
    let events = fill(&data, bytes);
    let generations = std::fs::read_dir(data.join("generations"))
        .expect("it is there")
        .count();
    println!(
        "{:.2} GB on disk, {events} events in {generations} generations, written in {:.0} s\n",
        bytes as f64 / 1e9,
        started.elapsed().as_secs_f64()
    );
    let upstream = accepting_upstream();
    let queue = format!("  sled: {{ path: {} }}", data.display());
    println!("| state | until a batch was taken, s | resident MB | peak MB |\n|---|---|---|---|");

    let way = dir.path().join("out");
    std::fs::write(&way, "in the way").expect("the file is written");
    let blocked = format!("    file: {{ path: {} }}", way.join("export").display());
    let (process, took, _) = start(dir.path(), upstream, &queue, &blocked);
    thread::sleep(Duration::from_secs(5));
    let waiting = show("waiting", took, &process);
    drop(process);

    let (process, took, telemetry) = start(dir.path(), upstream, &queue, "    stdout: {}");
    let delivering = Instant::now();
    wait_until("the backlog is delivered", Duration::from_secs(3600), || {
        metric(telemetry, "flagtap_destination_events_waiting") == 0.0
    });
    let rate = events as f64 / delivering.elapsed().as_secs_f64();
    let delivered = show(&format!("after delivering it at {rate:.0} events/s"), took, &process);
    println!(
        "\nqueue on disk afterwards: {:.0} MB",
        metric(telemetry, "flagtap_queue_bytes") / 1e6
    );
    let held = |held: bool| if held { "held" } else { "MISSED" };
    println!(
        "aims: a batch within {AIM_SECONDS} s of the start {}, under {AIM_MEGABYTES} MB {}",
        held(waiting.0.max(delivered.0) < AIM_SECONDS),
        held(waiting.1.max(delivered.1) < AIM_MEGABYTES)
    );
}

/// Starts flagtap and posts until a batch is in the queue. Returns how many seconds that took since before the start.
fn start(dir: &Path, upstream: u16, queue: &str, destination: &str) -> (Running, f64, u16) {
    let started = Instant::now();
    let (process, port, telemetry) = flagtap(dir, upstream, queue, destination);
    let mut number = 0;
    while metric(telemetry, "flagtap_batches_queued_total") == 0.0 {
        number += 1;
        post(port, &format!("{}-{number}", process.0.id()));
        assert!(started.elapsed() < Duration::from_secs(120), "no batch is taken");
    }
    (process, started.elapsed().as_secs_f64(), telemetry)
}

fn post(port: u16, payload_id: &str) {
    let body = r#"[{"kind":"custom","creationDate":1795337794698,"key":"k","context":{"kind":"user","key":"u"}}]"#;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the relay accepts");
    write!(
        stream,
        "POST /bulk HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {KNOWN}\r\nContent-Type: application/json\r\n\
         X-LaunchDarkly-Event-Schema: 4\r\nX-LaunchDarkly-Payload-ID: {payload_id}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("the request is written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

/// Prints a row; returns the seconds and the peak.
fn show(state: &str, took: f64, process: &Running) -> (f64, f64) {
    let [resident, peak] = ["VmRSS", "VmHWM"].map(|line| process.memory_kb(line) as f64 / 1024.0);
    println!("| {state} | {took:.2} | {resident:.1} | {peak:.1} |");
    (took, peak)
}

/// Answers every request with 202.
fn accepting_upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 64 << 10];
                while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                    if stream
                        .write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Writes until the queue takes so many bytes on disk. Returns the number of events.
fn fill(path: &Path, bytes: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let settings = queue::Settings {
        path: path.to_owned(),
        max_bytes: u64::MAX / 8,
        ..queue::Settings::default()
    };
    let queue: Arc<dyn Queue> = Arc::new(SledQueue::start(settings, &["out".to_owned()], system_clock()));
    wait_until("the queue opens", Duration::from_secs(10), || {
        queue.stats().unavailable.is_none()
    });
    let number = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let tasks: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let (queue, number) = (Arc::clone(&queue), Arc::clone(&number));
                tokio::spawn(async move {
                    while queue.stats().bytes < bytes {
                        let appended = queue.append(entry(number.fetch_add(1, Ordering::Relaxed))).await;
                        assert!(appended.is_ok(), "{appended:?}");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("the producer ends");
        }
        queue.close().await;
    });
    number.load(Ordering::Relaxed) * u64::from(EVENTS)
}

fn entry(number: u64) -> Entry {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    let event = |index: u32| {
        // Random, so that compression shrinks it by a quarter only.
        let mut random = fastrand::Rng::with_seed(number << 8 | u64::from(index));
        let text: String = std::iter::repeat_with(|| random.alphanumeric())
            .take(EVENT_BYTES)
            .collect();
        let json = format!(
            r#"{{"kind":"custom","creationDate":1795337794698,"key":"k","contextKeys":{{"user":"u"}},"data":"{text}"}}"#
        );
        RecordEvent {
            index,
            kind: Kind::Custom,
            json: json.into(),
        }
    };
    Entry {
        record: Record {
            received_ms: queue::now_ms(),
            origin: Origin {
                environment: "bench".to_owned(),
                project_id: String::new(),
                environment_id: String::new(),
                schema: Schema {
                    number: 4,
                    unsummarized: false,
                },
                sdk: String::new(),
                tags: String::new(),
            },
            destinations: vec!["out".to_owned()],
            id_seed: key,
            given_up: false,
            events: (0..EVENTS).map(event).collect(),
        },
        mark: Mark {
            key,
            window: Duration::from_secs(600),
        },
    }
}
