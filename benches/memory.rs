//! What flagtap needs of memory: idle, under load, and with a 1 GB backlog on disk, waiting and being delivered.
//!
//! The backlog's bodies are random text that hardly compresses, so that 1 GB of queue is 1 GB of work. The destination
//! is a folder that cannot be written at first (a file stands in its place) and can later.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

mod support;

use std::fs;
use std::time::Duration;

use support::{KNOWN, body, flagtap, metric, need, post_script, upstream, wait_for, wait_until, wrk};

const BACKLOG: f64 = 1e9;

fn main() {
    need("nginx");
    need("wrk");
    let dir = tempfile::tempdir().expect("a folder");
    let (_upstream, upstream_port) = upstream(dir.path());
    wait_for(upstream_port);
    println!("| state | resident MB | peak MB |\n|---|---|---|");
    loaded(dir.path(), upstream_port);
    backlog(dir.path(), upstream_port);
}

fn loaded(dir: &std::path::Path, upstream_port: u16) {
    let queue = format!("  sled: {{ path: {} }}", dir.join("data").display());
    let out = format!("    file: {{ path: {} }}", dir.join("out").display());
    let (process, port, telemetry) = flagtap(dir, upstream_port, &queue, &out);
    wait_until("the queue opens", Duration::from_secs(20), || {
        metric(telemetry, "flagtap_queue_available") > 0.0
    });
    std::thread::sleep(Duration::from_secs(3));
    show("idle", &process);
    let script = post_script(dir, &body(), "/bulk", KNOWN);
    let load = wrk(port, 64, 15, &script);
    show(
        &format!("under load: 64 connections, {:.0} teed posts/s", load.rate),
        &process,
    );
    let delivered = || metric(telemetry, "flagtap_destination_events_waiting") == 0.0;
    wait_until("all is delivered", Duration::from_secs(120), delivered);
    show("after it, all delivered", &process);
}

fn backlog(dir: &std::path::Path, upstream_port: u16) {
    let (data, out) = (dir.join("backlog-data"), dir.join("backlog-out"));
    fs::write(&out, "in the way").expect("the file is written");
    let queue = format!("  sled: {{ path: {} }}", data.display());
    let to = format!(
        "    file: {{ path: {} }}\n    retry: {{ initial: 1s, max: 2s }}",
        out.join("export").display()
    );
    let (process, port, telemetry) = flagtap(dir, upstream_port, &queue, &to);
    while metric(telemetry, "flagtap_queue_bytes") < BACKLOG {
        let script = post_script(dir, &random_body(), "/bulk", KNOWN);
        wrk(port, 64, 5, &script);
    }
    show(
        &format!(
            "backlog of {:.0} MB on disk, waiting",
            metric(telemetry, "flagtap_queue_bytes") / 1e6
        ),
        &process,
    );
    drop(process);

    let (process, _, telemetry) = flagtap(dir, upstream_port, &queue, &to);
    wait_until("the queue opens", Duration::from_secs(60), || {
        metric(telemetry, "flagtap_queue_available") > 0.0
    });
    show("the same after a restart", &process);
    fs::remove_file(&out).expect("the way is cleared");
    wait_until("the backlog is delivered", Duration::from_secs(600), || {
        metric(telemetry, "flagtap_destination_events_waiting") == 0.0
    });
    show("after delivering it", &process);
    println!(
        "\nqueue on disk afterwards: {:.0} MB",
        metric(telemetry, "flagtap_queue_bytes") / 1e6
    );
}

fn random_body() -> Vec<u8> {
    let events: Vec<String> = (0..12)
        .map(|_| {
            let text: String = std::iter::repeat_with(fastrand::alphanumeric).take(500).collect();
            format!(r#"{{"kind":"custom","creationDate":1795337794698,"key":"k","contextKeys":{{"user":"u"}},"data":"{text}"}}"#)
        })
        .collect();
    format!("[{}]", events.join(",")).into_bytes()
}

fn show(state: &str, process: &support::Running) {
    let megabytes = |line| process.memory_kb(line) as f64 / 1024.0;
    println!("| {state} | {:.1} | {:.1} |", megabytes("VmRSS"), megabytes("VmHWM"));
}
