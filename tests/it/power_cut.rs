//! The node loses power: what the disk was not made to keep is gone, and nothing that was answered may be among it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::kinesis::{Kinesis, Mood};
use crate::support::load::Load;
use crate::support::oracle;
use crate::support::relay::keep_trying;
use crate::support::volume::Volume;
use crate::support::{Relay, Setup, Upstream, eventually};

const ROUNDS: usize = 20;

/// Scenario: the queue is on an ext4 of its own, on a loop device. Senders post batches; one destination takes them, another
/// takes nothing. At a random moment, in every other round just as a generation is begun, the relay and the device lose power:
/// everything that was not synced is gone. The device is mounted and the relay started again, and now both destinations
/// take. Twenty times.
/// Guarantees: every event of a batch that was answered 2xx is in both destinations, once; none that was never sent.
/// Nothing is damaged or evicted, and the counters add up.
#[test]
fn what_was_answered_survives_a_power_cut() {
    let Some(volume) = Volume::ext4("power_cut", 512) else {
        return;
    };
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let lake = Kinesis::start(Mood::Fails);
    lake.tolerate_broken();
    let mut setup = Setup::new(upstream.address());
    lake.add_to(&mut setup, keep_trying("200ms", "400ms"));
    setup.config["queue"]["sled"]["path"] = json!(volume.path().join("queue"));
    // Generations of 4 MiB, so that some rounds are cut as a new one begins.
    setup.config["queue"]["max_bytes"] = json!("32MiB");
    let load = Load::new(6, 4_000);
    let started = Instant::now();
    let mut delivered = 0;
    for round in 0..ROUNDS {
        lake.be(Mood::Fails);
        let relay = Relay::start(&setup);
        let before = load.answers();
        let working = load.start(relay.address());
        eventually("the first answers of the round", || {
            (load.answers() > before + 5).then_some(())
        });
        let moment = match round % 2 {
            0 => fastrand::u64(..800_000),
            _ => {
                a_generation_is_begun(&volume.path().join("queue/generations"));
                fastrand::u64(..30_000)
            }
        };
        thread::sleep(Duration::from_micros(moment));
        let answered = load.answers() - before;
        volume.cut_power(relay);
        working.stop();
        upstream.take();

        lake.be(Mood::Takes);
        let relay = Relay::start(&setup);
        load.finish(relay.address());
        let metrics = relay.settle();
        relay.stop();
        for name in ["evicted", "corrupt"] {
            let name = format!("flagtap_destination_events_{name}_total");
            assert_eq!(metrics.sum(&name, &[]), 0.0, "round {round}: {name}");
        }
        assert_eq!(
            metrics.sum("flagtap_queue_quarantined_total", &[]),
            0.0,
            "round {round}"
        );
        println!("round {round}: {answered} batches answered before the cut");
        let (expected, sent) = (load.answered(), load.sent());
        let lines = lake.lines();
        for (name, lines) in [("archive", &setup.exported()), ("lake", &lines)] {
            let twice = oracle::judge(name, lines, &expected, &sent);
            assert!(twice.is_empty(), "round {round}, {name}: more than once: {twice:?}");
        }
        oracle::assert_delivered(&metrics, "lake", lines.len() - delivered);
        delivered = lines.len();
    }
    println!("{ROUNDS} power cuts in {:?}", started.elapsed());
}

/// Waits until a generation is begun in the folder. With all the load that comes within a second or two; longer, and the round is
/// cut at any other moment.
fn a_generation_is_begun(folder: &Path) {
    let newest = || {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .max()
    };
    let (before, waiting) = (newest(), Instant::now());
    while newest() == before && waiting.elapsed() < Duration::from_secs(3) {
        // Finer than `eventually` looks: a beginning takes some milliseconds, and the cut is to come within it.
        thread::sleep(Duration::from_micros(500));
    }
}
