//! What is looked at while it soaks.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::support::Running;

/// One moment.
pub(crate) struct Sample {
    /// Since the start.
    pub(crate) seconds: f64,
    /// Posts that were answered so far.
    pub(crate) posts: f64,
    /// Resident, MB.
    pub(crate) memory: f64,
    /// The queue's folder, MB.
    pub(crate) disk: f64,
    pub(crate) files: f64,
    /// Age of the oldest event that waits for the file, the slow and the flapping receiver, s.
    pub(crate) lag: [f64; 3],
    /// Events that wait for the flapping one and for the dead one.
    pub(crate) waiting: [f64; 2],
    /// Events that the queue dropped, for the dead one.
    pub(crate) evicted: f64,
}

/// The text of `/metrics`.
pub(crate) struct Scrape(String);

impl Scrape {
    /// Returns a metric of a destination, summed over its environments.
    pub(crate) fn of(&self, name: &str, destination: &str) -> f64 {
        let label = format!("destination=\"{destination}\"");
        let samples = self.0.lines().filter(|line| {
            let labels = line.strip_prefix(name).filter(|rest| rest.starts_with('{'));
            labels.is_some_and(|labels| labels.contains(&label))
        });
        samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

pub(crate) fn scrape(telemetry: u16) -> Scrape {
    let mut stream = TcpStream::connect(("127.0.0.1", telemetry)).expect("the telemetry port accepts");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("the request is written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the metrics are read");
    Scrape(text)
}

pub(crate) fn take(started: Instant, process: &Running, telemetry: u16, dir: &Path, posts: &AtomicU64) -> Sample {
    let metrics = scrape(telemetry);
    let files = fs::read_dir(format!("/proc/{}/fd", process.0.id())).expect("the process lives");
    Sample {
        seconds: started.elapsed().as_secs_f64(),
        posts: posts.load(Ordering::SeqCst) as f64,
        memory: process.memory_kb("VmRSS") as f64 / 1024.0,
        disk: bytes(&dir.join("data")) as f64 / 1e6,
        files: files.count() as f64,
        lag: ["file", "slow", "flapping"].map(|name| metrics.of("flagtap_destination_oldest_waiting_seconds", name)),
        waiting: ["flapping", "dead"].map(|name| metrics.of("flagtap_destination_events_waiting", name)),
        evicted: metrics.of("flagtap_destination_events_evicted_total", "dead"),
    }
}

/// Returns what a folder takes on disk. Files come and go meanwhile.
fn bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
