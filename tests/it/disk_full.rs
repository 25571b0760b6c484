//! The queue's volume is full: by the queue itself, by others from one moment to the next, or without a free inode.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::eventually::{patience, within};
use crate::support::export::markers;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::load::Load;
use crate::support::oracle;
use crate::support::relay::{keep_trying, marked};
use crate::support::volume::Volume;
use crate::support::{Relay, Setup, Upstream, eventually};

/// A relay whose queue has a small volume of its own, and a destination that takes nothing at first.
struct Rig {
    lake: Kinesis,
    setup: Setup,
    load: Load,
    upstream: Upstream,
    volume: Volume,
}

impl Rig {
    fn new(volume: Volume, on_failure: &str) -> Self {
        let upstream = Upstream::accepting();
        let lake = Kinesis::start(Mood::Fails);
        lake.tolerate_broken();
        let mut setup = Setup::new(upstream.address());
        lake.add_to(&mut setup, keep_trying("1s", "1s"));
        setup.config["queue"] = json!({
            "max_bytes": "1GiB", "headroom": "8MiB", "sled": { "path": volume.path().join("queue") },
        });
        setup.config["tee"]["on_failure"] = json!(on_failure);
        Self {
            lake,
            setup,
            load: Load::new(4, 12_000),
            upstream,
            volume,
        }
    }

    fn start(&self) -> Relay {
        let mut relay = Relay::start(&self.setup);
        // What a person has to be told.
        for expected in ["the queue cannot write", "cannot open the queue", "events are not kept"] {
            relay.tolerate(expected);
        }
        relay
    }

    /// Takes every byte that is left, as a neighbour on the volume can at any moment.
    fn fill(&self) -> PathBuf {
        let path = self.volume.path().join("neighbour");
        let mut file = File::create(&path).unwrap();
        let block = vec![1; 64 << 10];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[1; 512]).is_ok() {}
        assert!(self.volume.free_bytes() < 8192, "{}", self.volume.free_bytes());
        path
    }

    /// Takes every inode that is left; bytes stay free.
    fn fill_inodes(&self) -> PathBuf {
        let path = self.volume.path().join("neighbours");
        fs::create_dir(&path).unwrap();
        let made = (0..).take_while(|number| File::create(path.join(format!("{number}"))).is_ok());
        assert!(made.count() > 10);
        path
    }

    /// Posts one batch at a time until one is in the queue.
    fn resumes(&self, relay: &Relay, what: &str) {
        let queued = || relay.metrics().sum("flagtap_batches_queued_total", &[]);
        let before = queued();
        let mut number = 0;
        eventually("a batch to be kept again", || {
            number += 1;
            let marker = format!("{what}-{number}");
            let response = relay.post(&marker, &json!([marked(&marker)]));
            assert!([202, 503].contains(&response.status), "{}", response.status);
            (queued() > before).then_some(())
        });
        self.upstream.take();
    }

    /// Has both destinations take, waits for everything, and holds it against what was answered. `before`: so many events
    /// the stream had when this relay started.
    fn judge(&self, relay: Relay, before: usize, answered: &BTreeSet<String>) -> BTreeSet<String> {
        self.lake.be(Mood::Takes);
        let metrics = relay.settle();
        oracle::assert_delivered(&metrics, "lake", self.lake.lines().len() - before);
        relay.stop();
        for name in ["evicted", "corrupt", "dead"] {
            let name = format!("flagtap_destination_events_{name}_total");
            assert_eq!(metrics.sum(&name, &[]), 0.0, "{name}");
        }
        let [archive, lake] = [("archive", self.setup.exported()), ("lake", self.lake.lines())].map(|(name, lines)| {
            let exported: BTreeSet<String> = markers(&lines).into_iter().collect();
            // What was never sent shows against the counters, and against the other destination.
            let twice = oracle::judge(name, &lines, answered, &exported);
            assert!(twice.is_empty(), "{name}: more than once: {twice:?}");
            exported
        });
        assert!(archive == lake, "the destinations differ");
        lake
    }
}

/// Waits until batches find no room; to fill the volume takes a while where others need the processor too.
fn filled(mut is_full: impl FnMut() -> bool) {
    let waited = within(patience() * 3, || is_full().then_some(()));
    waited.expect("the volume to be full");
}

fn no_space(relay: &Relay) -> f64 {
    relay
        .metrics()
        .sum("flagtap_batches_not_teed_total", &[("reason", "no_space")])
}

/// Scenario: events come and none is delivered, until the volume has no more room than its headroom; then a destination
/// takes them, and room comes back. Then the same once more, with a restart while it is full.
/// Guarantees: every request is answered as upstream answered it; what is not kept is counted as `no_space`; the headroom
/// is left to others; the queue goes on by itself. Exactly what was counted as queued is delivered, once.
#[test]
fn a_volume_filled_by_the_queue_stops_the_copies_and_not_the_traffic() {
    let Some(volume) = Volume::tmpfs("disk_full", 32, 10_000) else {
        return;
    };
    let rig = Rig::new(volume, "pass");
    let relay = rig.start();
    let working = rig.load.start(relay.address());
    filled(|| no_space(&relay) > 20.0 && relay.metrics().sum("flagtap_queue_available", &[]) == 0.0);
    working.stop();
    assert!(rig.volume.free_bytes() > 4 << 20, "{}", rig.volume.free_bytes());
    rig.lake.be(Mood::Takes);
    rig.resumes(&relay, "first");
    let queued = |relay: &Relay| {
        let metrics = relay.settle();
        metrics.sum("flagtap_destination_events_queued_total", &[("destination", "lake")])
    };
    let mut expected = queued(&relay);

    rig.lake.be(Mood::Fails);
    let full = no_space(&relay) + 20.0;
    let before = relay
        .metrics()
        .sum("flagtap_destination_events_queued_total", &[("destination", "lake")]);
    let working = rig.load.start(relay.address());
    filled(|| no_space(&relay) > full);
    working.stop();
    let after = relay
        .metrics()
        .sum("flagtap_destination_events_queued_total", &[("destination", "lake")]);
    expected += after - before;
    relay.stop();
    let before = rig.lake.lines().len();
    let relay = rig.start();
    rig.lake.be(Mood::Takes);
    rig.resumes(&relay, "second");
    expected += queued(&relay);
    let exported = rig.judge(relay, before, &BTreeSet::new());
    assert_eq!(exported.len() as f64, expected);
    println!(
        "{} events of {} sent were kept and delivered",
        exported.len(),
        rig.load.sent().len()
    );
}

/// Scenario: while events come, somebody else fills the volume to the last byte, so that the headroom is gone and sled
/// meets the error within a write. Room comes back. Then it is filled again, and the relay is restarted on it.
/// Guarantees: a batch that cannot be kept is refused with 503 (`tee.on_failure: refuse`) and taken later; what was
/// answered 2xx is delivered, once. It goes on by itself, and also after the restart.
#[test]
fn a_volume_filled_by_others_at_once_costs_nothing_that_was_answered() {
    let Some(volume) = Volume::tmpfs("disk_full", 96, 10_000) else {
        return;
    };
    suddenly_full(volume, Rig::fill);
}

/// Scenario: the same with an ext4, where room for the journal and the directories runs out as well.
/// Guarantees: the same.
#[test]
fn an_ext4_filled_by_others_at_once_costs_nothing_that_was_answered() {
    let Some(volume) = Volume::ext4("disk_full", 96) else {
        return;
    };
    suddenly_full(volume, Rig::fill);
}

/// Scenario: the same, but it is the inodes that run out, which shows when the next generation is begun.
/// Guarantees: the same.
#[test]
fn a_volume_without_inodes_costs_nothing_that_was_answered() {
    let Some(volume) = Volume::tmpfs("disk_full", 96, 200) else {
        return;
    };
    suddenly_full(volume, Rig::fill_inodes);
}

fn make_room(neighbour: &Path) {
    match neighbour.is_dir() {
        true => fs::remove_dir_all(neighbour).unwrap(),
        false => fs::remove_file(neighbour).unwrap(),
    }
}

fn suddenly_full(volume: Volume, fill: fn(&Rig) -> PathBuf) {
    let mut rig = Rig::new(volume, "refuse");
    // Generations of 8 MiB: one begins every now and then.
    rig.setup.config["queue"]["max_bytes"] = json!("64MiB");
    rig.setup.config["queue"]["headroom"] = json!("1MiB");
    let relay = rig.start();
    let working = rig.load.start(relay.address());
    eventually("some batches to be kept", || (rig.load.answers() > 50).then_some(()));
    let neighbour = fill(&rig);
    let refused = rig.load.refusals();
    filled(|| rig.load.refusals() > refused + 50);
    make_room(&neighbour);
    let answers = rig.load.answers();
    eventually("batches to be kept again", || {
        (rig.load.answers() > answers + 50).then_some(())
    });

    let neighbour = fill(&rig);
    let refused = rig.load.refusals();
    filled(|| rig.load.refusals() > refused + 50);
    working.stop();
    relay.stop();
    let before = rig.lake.lines().len();
    let relay = rig.start();
    let response = relay.post("while-full", &json!([marked("while-full")]));
    assert_eq!(response.status, 503);
    make_room(&neighbour);
    rig.resumes(&relay, "afterwards");
    rig.load.finish(relay.address());
    rig.judge(relay, before, &rig.load.answered());
}
