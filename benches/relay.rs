//! What the relay costs: real event posts of 6.9 kB through nginx `proxy_pass` and through flagtap, in the same run.
//!
//! Same upstream (nginx answering 202), same load generator (wrk, two threads), rounds taken in turn, medians shown.
//! `direct` is the load generator at the upstream: what is added is the difference to it.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at the first surprise and prints its result"
)]

mod support;

use support::{
    KNOWN, Load, UNKNOWN, body, flagtap, median, metric, need, nginx_proxy, post_script, upstream, wait_for, wrk,
};

const ROUNDS: usize = 3;
const SECONDS: u64 = 5;

fn main() {
    need("nginx");
    need("wrk");
    let dir = tempfile::tempdir().expect("a folder");
    let body = body();
    let (_upstream, upstream_port) = upstream(dir.path());
    wait_for(upstream_port);
    let (_nginx, nginx_port) = nginx_proxy(dir.path(), upstream_port);
    let queue = format!("  sled: {{ path: {} }}", dir.path().join("data").display());
    let out = format!("    file: {{ path: {} }}", dir.path().join("out").display());
    let (_flagtap, port, telemetry) = flagtap(dir.path(), upstream_port, &queue, &out);

    println!(
        "body of {} bytes, {ROUNDS} rounds of {SECONDS} s each, medians\n",
        body.len()
    );
    println!("| connections | what | requests/s | of nginx | p50 ms | p99 ms | added p50 | added p99 | errors |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for connections in [16, 64] {
        let cases: [(&str, u16, &str, &str); 5] = [
            ("direct, no proxy", upstream_port, "/bulk", UNKNOWN),
            ("nginx proxy_pass", nginx_port, "/bulk", UNKNOWN),
            ("flagtap, other route (streamed)", port, "/other", UNKNOWN),
            ("flagtap, event post not teed", port, "/bulk", UNKNOWN),
            ("flagtap, event post teed", port, "/bulk", KNOWN),
        ];
        let mut loads: Vec<Vec<Load>> = vec![Vec::new(); cases.len()];
        for _ in 0..ROUNDS {
            for (index, (_, port, path, key)) in cases.iter().enumerate() {
                let script = post_script(dir.path(), &body, path, key);
                loads[index].push(wrk(*port, connections, SECONDS, &script));
            }
        }
        let middle = |index: usize, of: fn(&Load) -> f64| median(loads[index].iter().map(of).collect());
        for (index, (name, ..)) in cases.iter().enumerate() {
            let errors: u64 = loads[index].iter().map(|load| load.errors).sum();
            println!(
                "| {connections} | {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {errors} |",
                middle(index, |load| load.rate),
                middle(index, |load| load.rate) / middle(1, |load| load.rate),
                middle(index, |load| load.p50),
                middle(index, |load| load.p99),
                middle(index, |load| load.p50) - middle(0, |load| load.p50),
                middle(index, |load| load.p99) - middle(0, |load| load.p99),
            );
        }
    }
    println!(
        "\nteed batches {:.0}, duplicates {:.0}, not teed of the known key {:.0}",
        metric(telemetry, "flagtap_batches_queued_total"),
        metric(telemetry, "flagtap_batches_duplicate_total"),
        metric(telemetry, "flagtap_events_not_teed_total"),
    );
}
