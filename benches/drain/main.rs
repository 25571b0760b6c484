//! Delivery of a backlog: events a second, CPU and memory, for each kind of destination.
//!
//! The backlog is [`EVENTS`] events of recorded SDK traffic in the queue on disk (`FLAGTAP_BENCH_EVENTS` for another
//! number). Each run has a copy of it and a process of its own, so that no peak hides another; what it delivers to is a
//! counterpart in a further process that reads, counts and acknowledges, and does nothing else. A run is good only if
//! both sides counted every event.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

mod backlog;
mod counterpart;

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flagtap::config::Config;
use flagtap::drain::{self, Drain, DrainStatus, Ending, Stop};
use flagtap::metrics::Metrics;
use flagtap::queue::Queue;

use counterpart::Counterpart;

const EVENTS: u64 = 1_000_000;

/// A destination as it is benched.
struct Target {
    kind: &'static str,
    /// Its settings as a YAML flow mapping; `PORT` stands for the counterpart's port, `FOLDER` for a folder.
    settings: &'static str,
    concurrency: usize,
    /// It has a counterpart; else what it writes is read back.
    served: bool,
}

impl Target {
    const fn served(kind: &'static str, settings: &'static str, concurrency: usize) -> Self {
        Self {
            kind,
            settings,
            concurrency,
            served: true,
        }
    }
}

const TARGETS: &[Target] = &[
    Target {
        kind: "file",
        settings: "{ path: FOLDER }",
        concurrency: 1,
        served: false,
    },
    Target::served("webhook", WEBHOOK, 1),
    Target::served("webhook", WEBHOOK, 4),
    Target::served("segment", SEGMENT, 1),
    Target::served("segment", SEGMENT, 4),
    Target::served("mparticle", MPARTICLE, 1),
    Target::served("mparticle", MPARTICLE, 4),
    Target::served("azure_event_hubs", AZURE_EVENT_HUBS, 1),
    Target::served("azure_event_hubs", AZURE_EVENT_HUBS, 4),
    Target::served("kinesis", KINESIS, 1),
    Target::served("kinesis", KINESIS, 4),
    Target::served("google_pubsub", GOOGLE_PUBSUB, 1),
    Target::served("google_pubsub", GOOGLE_PUBSUB, 4),
];

const WEBHOOK: &str = "{ url: \"http://127.0.0.1:PORT/events\", format: ndjson }";
const SEGMENT: &str = "{ write_key: bench, endpoint: \"http://127.0.0.1:PORT\" }";
const MPARTICLE: &str = "{ api_key: bench, secret: bench, environment: development, user_identity: customer_id, \
                         anonymous_user_identity: other, endpoint: \"http://127.0.0.1:PORT\" }";
const AZURE_EVENT_HUBS: &str =
    "{ namespace: bench, name: bench, policy_name: bench, policy_key: bench, endpoint: \"http://127.0.0.1:PORT\" }";
const KINESIS: &str = "{ region: eu-west-1, stream_name: bench, endpoint: \"http://127.0.0.1:PORT\" }";
const GOOGLE_PUBSUB: &str = "{ project: bench-project, topic: bench, endpoint: \"http://127.0.0.1:PORT\" }";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", kind] => counterpart::serve(kind),
        ["drain", folder] => drain_in(Path::new(folder)),
        kinds => compare(kinds),
    }
}

fn compare(kinds: &[&str]) {
    let events = env::var("FLAGTAP_BENCH_EVENTS").map_or(EVENTS, |text| text.parse().expect("a number of events"));
    let dir = tempfile::tempdir().expect("a folder");
    let filled = backlog::fill(&dir.path().join("backlog"), events);
    println!(
        "{} events in {} batches, {:.0} bytes of JSON each\n",
        filled.events,
        filled.batches,
        filled.bytes as f64 / filled.events as f64
    );
    println!("| destination | at once | sent | events/s | CPU s | CPU µs an event | peak MB | counterpart's CPU s |");
    println!("|---|---|---|---|---|---|---|---|");
    let wanted = |target: &&Target| kinds.is_empty() || kinds.contains(&target.kind);
    for target in TARGETS.iter().filter(wanted) {
        run(target, &dir.path().join("backlog"), filled.events);
    }
}

fn run(target: &Target, backlog: &Path, events: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    backlog::copy(backlog, &dir.path().join("data"));
    let counterpart = target.served.then(|| Counterpart::start(target.kind));
    let port = counterpart.as_ref().map_or(0, |counterpart| counterpart.port);
    let out = dir.path().join("out");
    let settings = target
        .settings
        .replace("PORT", &port.to_string())
        .replace("FOLDER", &out.display().to_string());
    let config = format!(
        "environments: [{{ name: bench, destinations: [out] }}]\n\
         destinations: [{{ name: out, concurrency: {}, {}: {settings} }}]\n",
        target.concurrency, target.kind
    );
    fs::write(dir.path().join("config.yaml"), config).expect("the configuration is written");
    let output = Command::new(env::current_exe().expect("this program"))
        .arg("drain")
        .arg(dir.path())
        .envs([("AWS_ACCESS_KEY_ID", "bench"), ("AWS_SECRET_ACCESS_KEY", "bench")])
        // As `flagtap serve` gives them to itself.
        .envs([("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_ARENA_MAX", "2")])
        .stderr(Stdio::inherit())
        .output()
        .expect("the drain's process starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    let [seconds, cpu, peak_kb, delivered, skipped] = numbers[..] else {
        panic!("the drain's process ended with {}: {text}", output.status);
    };
    let (delivered, skipped) = (delivered as u64, skipped as u64);
    assert_eq!(delivered + skipped, events, "events the drain counted");
    let served = counterpart.map(Counterpart::end);
    let received = served.map_or_else(|| backlog::lines(&out), |(received, _)| received);
    assert_eq!(received, delivered, "events that arrived");
    println!(
        "| {} | {} | {:.0} % | {:.0} | {cpu:.2} | {:.2} | {:.0} | {} |",
        target.kind,
        target.concurrency,
        100.0 * delivered as f64 / events as f64,
        events as f64 / seconds,
        cpu * 1e6 / events as f64,
        peak_kb / 1000.0,
        served.map_or_else(String::new, |(_, cpu)| format!("{cpu:.2}")),
    );
}

/// Delivers the backlog in `folder` as its configuration says and prints seconds, CPU seconds, peak memory in kB,
/// and the events counted as delivered and as skipped.
fn drain_in(folder: &Path) {
    let text = fs::read_to_string(folder.join("config.yaml")).expect("the configuration is there");
    let (config, _) = Config::parse(&text, &|_| None).unwrap_or_else(|problems| panic!("{problems:?}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let queue = backlog::open(&folder.join("data")).await;
        let [destination] = &config.destinations[..] else {
            panic!("one destination");
        };
        let (metrics, stop) = (Arc::new(Metrics::new()), Stop::default());
        let drain = Drain {
            name: destination.name.clone(),
            consumer: queue.consumer(&destination.name).await.expect("its cursor"),
            destination: destination.settings.open().await,
            metrics: Arc::clone(&metrics),
            settings: drain::Settings {
                concurrency: destination.concurrency,
                ..drain::Settings::default()
            },
            status: Arc::new(DrainStatus::default()),
            stop: stop.clone(),
            clock: flagtap::queue::system_clock(),
        };
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let drain = tokio::spawn(drain.run());
        while waiting(&*queue) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(!drain.is_finished(), "the drain ended early");
        }
        let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        stop.soft.cancel();
        assert_eq!(drain.await.expect("no panic"), Ending::Drained);
        queue.close().await;
        let count = |what: &str| counted(&metrics, &format!("flagtap_destination_events_{what}_total{{"));
        println!(
            "{elapsed} {cpu} {} {} {}",
            peak_kb(),
            count("delivered"),
            count("skipped")
        );
    });
}

fn waiting(queue: &dyn Queue) -> u64 {
    let consumers = queue.stats().consumers.into_iter();
    consumers
        .flat_map(|consumer| consumer.waiting)
        .map(|(_, events)| events)
        .sum()
}

fn counted(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.render();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Returns the time that this process has been at work, in user and kernel mode.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, fields) = stat.rsplit_once(')').expect("the program's name in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // proc(5): utime and stime are the 14th and 15th fields, of 100 a second on every Linux.
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
    (ticks(14) + ticks(15)) / 100.0
}

fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("the line is there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
