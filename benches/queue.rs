//! Durable appends a second: the queue beside a plain append-only file with the same group commit, in the same run.
//!
//! Each producer waits until its record is durable before it sends the next. The plain file is the floor of what any
//! engine on this disk can do: one thread writes everything pending and calls `fdatasync` once. Payloads are random
//! text that compression can shrink by a quarter only. What the SDKs send shrinks seven to fourteen times.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

mod support;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flagtap::event::{Kind, Schema};
use flagtap::queue::sled::SledQueue;
use flagtap::queue::{self, Entry, Mark, Queue, system_clock};
use flagtap::record::{Origin, Record, RecordEvent};
use support::{median, wait_until};
use tokio::sync::oneshot;

const SECONDS: u64 = 3;
const ROUNDS: usize = 3;

fn main() {
    println!("{ROUNDS} rounds of {SECONDS} s each, taken in turn, medians\n");
    println!("| record | producers | plain file/s | p50 ms | p99 ms | queue/s | p50 ms | p99 ms | ratio |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for kilobytes in [1, 16, 64] {
        for producers in [1, 16, 64] {
            let (mut file, mut sled) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                file.push(plain_file(kilobytes * 1024, producers));
                sled.push(queue(kilobytes * 1024, producers));
            }
            let middle = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of).collect());
            println!(
                "| {kilobytes} kB | {producers} | {:.0} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} |",
                middle(&file, |run| run.rate),
                middle(&file, |run| run.p50),
                middle(&file, |run| run.p99),
                middle(&sled, |run| run.rate),
                middle(&sled, |run| run.p50),
                middle(&sled, |run| run.p99),
                middle(&sled, |run| run.rate) / middle(&file, |run| run.rate),
            );
        }
    }
}

struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn run_of(mut latencies: Vec<f64>, elapsed: Duration) -> Run {
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Run {
        rate: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
    }
}

fn queue(bytes: usize, producers: usize) -> Run {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let run = runtime.block_on(async {
        let settings = queue::Settings {
            path: dir.path().join("data"),
            max_bytes: 8 << 30,
            ..queue::Settings::default()
        };
        let queue: Arc<dyn Queue> = Arc::new(SledQueue::start(settings, &["out".to_owned()], system_clock()));
        wait_until("the queue opens", Duration::from_secs(10), || {
            queue.stats().unavailable.is_none()
        });
        measure(producers, bytes, move |number, payload| {
            let queue = Arc::clone(&queue);
            async move {
                let appended = queue.append(entry(number, payload)).await;
                assert!(appended.is_ok(), "{appended:?}");
            }
        })
        .await
    });
    drop(runtime);
    run
}

fn plain_file(bytes: usize, producers: usize) -> Run {
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let sender = appender(dir.path());
    runtime.block_on(measure(producers, bytes, move |_, payload| {
        let sender = sender.clone();
        async move {
            let (done, wait) = oneshot::channel();
            sender.send((payload, done)).expect("the appender lives");
            wait.await.expect("the append is durable");
        }
    }))
}

fn appender(dir: &Path) -> mpsc::SyncSender<(Bytes, oneshot::Sender<()>)> {
    let mut file = File::create(dir.join("log")).expect("the file is created");
    let (sender, receiver) = mpsc::sync_channel::<(Bytes, oneshot::Sender<()>)>(1024);
    std::thread::spawn(move || {
        while let Ok(first) = receiver.recv() {
            let mut round = vec![first];
            round.extend(receiver.try_iter().take(1023));
            for (payload, _) in &round {
                let checksum = crc32fast::hash(payload);
                file.write_all(&checksum.to_le_bytes())
                    .and_then(|()| file.write_all(payload))
                    .expect("written");
            }
            file.sync_data().expect("durable");
            for (_, done) in round {
                let _ = done.send(());
            }
        }
    });
    sender
}

async fn measure<F, Fut>(producers: usize, bytes: usize, append: F) -> Run
where
    F: Fn(u64, Bytes) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let payload = Bytes::from(random(bytes));
    let started = Instant::now();
    let until = started + Duration::from_secs(SECONDS);
    let tasks: Vec<_> = (0..producers as u64)
        .map(|producer| {
            let (append, payload) = (append.clone(), payload.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut number = producer << 40;
                while Instant::now() < until {
                    let before = Instant::now();
                    append(number, payload.clone()).await;
                    latencies.push(before.elapsed().as_secs_f64() * 1000.0);
                    number += 1;
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.expect("the producer ends"));
    }
    run_of(latencies, started.elapsed())
}

fn random(bytes: usize) -> String {
    let text: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(bytes - 64)
        .collect();
    format!(r#"{{"kind":"custom","creationDate":1795337794698,"data":"{text}"}}"#)
}

fn entry(number: u64, json: Bytes) -> Entry {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    Entry {
        record: Record {
            received_ms: 1_795_337_794_698,
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
            events: vec![RecordEvent {
                index: 0,
                kind: Kind::Custom,
                json,
            }],
        },
        mark: Mark {
            key,
            window: Duration::from_secs(600),
        },
    }
}
