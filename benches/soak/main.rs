//! Minutes of load with destinations that flap, lag and are dead: memory, disk, file descriptors and lag stay bounded.
//!
//! `FLAGTAP_SOAK_SECONDS` (600) says how long. Samples are printed as a table and a plot, and written as an SVG to
//! `FLAGTAP_SOAK_PLOT` (`target/soak.svg`). In the end all destinations but the dead one take everything, and each must
//! have every event that was queued, by its id. It fails at the first bound that does not hold.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a soak stops at the first surprise and prints its result"
)]

mod plot;
mod receiver;
mod sample;
#[path = "../support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use receiver::{Conduct, Receiver};
use sample::{Sample, scrape};
use support::{KNOWN, Running, free_port, metric, wait_for, wait_until};

/// Clients that post at the same time, and how often each does.
const CLIENTS: u64 = 8;
const PACE: Duration = Duration::from_millis(80);

/// Events in the body of a post.
const EVENTS: u64 = 13;

/// Small, so that what waits for the dead destination reaches the limit within minutes.
const MAX_BYTES: u64 = 48 << 20;

/// Bounds. The first minute is left out of those on growth: caches and pools fill.
const MOST_MEMORY: f64 = 128.0;
const MOST_GROWTH: f64 = 1.3;
const MOST_FILES: f64 = 160.0;
const MOST_DISK: f64 = MAX_BYTES as f64 / 1e6 * 1.25;
/// Seconds: the file takes everything at once, the slow receiver nearly so, the flapping one is down for [`receiver::DOWN`].
const MOST_LAG: [(&str, f64); 3] = [("file", 10.0), ("slow", 30.0), ("flapping", 75.0)];

fn main() {
    let seconds = std::env::var("FLAGTAP_SOAK_SECONDS").map_or(600, |text| text.parse().expect("seconds"));
    let dir = tempfile::tempdir().expect("a folder");
    let upstream = Receiver::start(Conduct::Accepts);
    let receivers = [
        ("flapping", Receiver::start(Conduct::Flaps)),
        ("slow", Receiver::start(Conduct::Lags)),
        ("dead", Receiver::start(Conduct::Dies)),
    ];
    let (process, port, telemetry) = start(dir.path(), upstream.port, &receivers);
    println!(
        "{seconds} s, {CLIENTS} clients, {:.0} events/s offered\n",
        CLIENTS as f64 * EVENTS as f64 / PACE.as_secs_f64()
    );

    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            thread::spawn(move || client(number, port, &stop, &answered))
        })
        .collect();
    let started = Instant::now();
    // A hundred and twenty points make a plot.
    let every = Duration::from_secs_f64((seconds as f64 / 120.0).max(1.0));
    let mut samples: Vec<Sample> = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(every);
        samples.push(sample::take(started, &process, telemetry, dir.path(), &answered));
    }
    stop.store(true, Ordering::SeqCst);
    clients
        .into_iter()
        .for_each(|client| client.join().expect("a client ends"));

    println!("{}", plot::table(&samples));
    println!("{}", plot::text(&samples));
    let path = std::env::var("FLAGTAP_SOAK_PLOT").unwrap_or_else(|_| "target/soak.svg".to_owned());
    fs::write(&path, plot::svg(&samples)).expect("the plot is written");
    println!("The same as a picture: {path}\n");

    settle(telemetry, &receivers);
    conserve(
        telemetry,
        dir.path(),
        &receivers,
        answered.load(Ordering::SeqCst) * EVENTS,
    );
    bound(&samples);
    drop(process);
    println!("\nEvery bound held.");
}

fn start(dir: &Path, upstream: u16, receivers: &[(&str, Receiver)]) -> (Running, u16, u16) {
    let (port, telemetry) = (free_port(), free_port());
    let names: Vec<&str> = receivers.iter().map(|(name, _)| *name).collect();
    let mut config = format!(
        "listen: 127.0.0.1:{port}\ntelemetry: 127.0.0.1:{telemetry}\nadmin: off\nlog: {{ level: error }}\n\
         upstream: {{ url: \"http://127.0.0.1:{upstream}\" }}\n\
         queue: {{ max_bytes: {}MiB, sled: {{ path: {} }} }}\n\
         environments:\n  - name: soak\n    credentials: {{ sdk_keys: [{KNOWN}] }}\n    destinations: [file, {}]\n\
         destinations:\n  - name: file\n    file: {{ path: {}, rotate_bytes: 16MiB }}\n",
        MAX_BYTES >> 20,
        dir.join("data").display(),
        names.join(", "),
        dir.join("file").display(),
    );
    for (name, receiver) in receivers {
        config.push_str(&format!(
            "  - name: {name}\n    retry: {{ initial: 100ms, max: 5s, attempts: 5, over: 10s, then: keep }}\n    \
             webhook: {{ url: \"http://127.0.0.1:{}/hook\", format: ndjson }}\n",
            receiver.port
        ));
    }
    let path = dir.join("flagtap.yaml");
    fs::write(&path, config).expect("the configuration is written");
    let running = Running::start(
        Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .args(["serve", "--config"])
            .arg(path),
    );
    wait_for(port);
    wait_for(telemetry);
    (running, port, telemetry)
}

/// Posts at its pace until it is told to stop; a post without an answer is sent again.
fn client(number: u64, port: u16, stop: &AtomicBool, answered: &AtomicU64) {
    let body = support::body();
    let mut connection = None;
    let mut count = 0;
    let mut due = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let stream = connection.get_or_insert_with(|| TcpStream::connect(("127.0.0.1", port)).expect("it accepts"));
        match post(stream, &format!("{number}-{count}"), &body) {
            Ok(()) => {
                answered.fetch_add(1, Ordering::SeqCst);
                count += 1;
            }
            Err(_) => connection = None,
        }
        due += PACE;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn post(stream: &mut TcpStream, payload_id: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "POST /bulk HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: {KNOWN}\r\n\
         X-LaunchDarkly-Event-Schema: 4\r\nX-LaunchDarkly-Payload-ID: {payload_id}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 202"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Lets every receiver but the dead one take, and waits until they have everything.
fn settle(telemetry: u16, receivers: &[(&str, Receiver)]) {
    let recovering = Instant::now();
    for (name, receiver) in receivers {
        if *name != "dead" {
            receiver.be(Conduct::Accepts);
        }
    }
    let waiting = |name: &str| scrape(telemetry).of("flagtap_destination_events_waiting", name);
    wait_until(
        "everything is delivered but to the dead",
        Duration::from_secs(180),
        || ["file", "slow", "flapping"].iter().all(|name| waiting(name) == 0.0),
    );
    println!(
        "Delivered what waited within {:.1} s of the end.\n",
        recovering.elapsed().as_secs_f64()
    );
}

/// Holds the counters against each other and against what arrived.
fn conserve(telemetry: u16, dir: &Path, receivers: &[(&str, Receiver)], posted: u64) {
    let metrics = scrape(telemetry);
    let received = metric(telemetry, "flagtap_events_received_total");
    assert_eq!(received, posted as f64, "events received, and posted");
    assert_eq!(metric(telemetry, "flagtap_events_not_teed_total"), 0.0);
    println!("| destination | queued | delivered | dead letters | evicted | waiting | arrived, by id | repeated |");
    println!("|---|---|---|---|---|---|---|---|");
    for name in ["file", "flapping", "slow", "dead"] {
        let of = |term: &str| metrics.of(&format!("flagtap_destination_events_{term}"), name);
        let (queued, delivered) = (of("queued_total"), of("delivered_total"));
        let [dead, evicted, waiting] = ["dead_total", "evicted_total", "waiting"].map(of);
        let [skipped, corrupt] = ["skipped_total", "corrupt_total"].map(of);
        let (ids, repeated) = match receivers.iter().find(|(other, _)| *other == name) {
            Some((_, receiver)) => receiver.arrived(),
            None => in_files(&dir.join("file")),
        };
        println!("| {name} | {queued} | {delivered} | {dead} | {evicted} | {waiting} | {ids} | {repeated} |");
        assert_eq!(
            queued,
            delivered + dead + evicted + waiting + skipped + corrupt,
            "{name}: conservation"
        );
        if name == "dead" {
            assert_eq!((delivered, ids), (0.0, 0), "{name}");
        } else {
            assert_eq!(
                (delivered, ids as f64),
                (queued, queued),
                "{name}: every event, once as counted"
            );
        }
        if name == "file" {
            assert_eq!(repeated, 0, "a file never has an event twice");
        }
    }
}

/// Returns how many ids the folder's lines have, and how many lines more.
fn in_files(folder: &Path) -> (usize, usize) {
    let (mut ids, mut repeated) = (HashSet::new(), 0);
    for entry in fs::read_dir(folder).expect("the folder") {
        let text = fs::read_to_string(entry.expect("a file").path()).expect("its lines");
        for line in text.lines() {
            repeated += usize::from(!ids.insert(receiver::id(line)));
        }
    }
    (ids.len(), repeated)
}

/// Checks what must not grow without end.
fn bound(samples: &[Sample]) {
    let most = |value: fn(&Sample) -> f64| samples.iter().map(value).fold(0.0, f64::max);
    for (what, most, limit) in [
        ("memory, MB", most(|sample| sample.memory), MOST_MEMORY),
        ("disk, MB", most(|sample| sample.disk), MOST_DISK),
        ("file descriptors", most(|sample| sample.files), MOST_FILES),
    ] {
        println!("{what}: at most {most:.0}, bound {limit:.0}");
        assert!(most <= limit, "{what}: {most:.1} is over {limit:.1}");
    }
    for (place, (name, limit)) in MOST_LAG.iter().enumerate() {
        let most = samples.iter().map(|sample| sample.lag[place]).fold(0.0, f64::max);
        println!("lag of {name}, s: at most {most:.0}, bound {limit:.0}");
        assert!(most <= *limit, "lag of {name}: {most:.1} s is over {limit:.1} s");
    }
    let later: Vec<&Sample> = samples.iter().filter(|sample| sample.seconds > 60.0).collect();
    let (early, late) = later.split_at(later.len() / 2);
    if early.len() < 10 {
        println!("too short to tell growth");
        return;
    }
    for (what, value) in [
        ("memory", (|sample: &&Sample| sample.memory) as fn(&&Sample) -> f64),
        ("file descriptors", |sample| sample.files),
    ] {
        let [early, late] = [early, late].map(|half| support::median(half.iter().map(value).collect()));
        println!("{what}: median {early:.1} in the first half, {late:.1} in the second");
        assert!(late <= early * MOST_GROWTH, "{what} grows: {early:.1}, then {late:.1}");
    }
}
