//! Damage to the queue's files between two lives of the relay, seen from outside: what it serves, delivers and counts.
//!
//! Which damage there can be, and that none costs more than it hit, is gone through by the thousand in
//! `src/queue/sled/tests/injuries.rs`; this is the same with the real process and its metrics.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::export::markers;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::load::Load;
use crate::support::oracle;
use crate::support::relay::keep_trying;
use crate::support::{Relay, Setup, Upstream, eventually};

const ROUNDS: usize = 12;

/// Scenario: events wait for a destination; the relay is killed; a byte of one of the queue's files is changed, or the file
/// is cut short or deleted; the relay is started again and the destination takes. A dozen times on the same folder.
/// Guarantees: the relay serves and takes new batches; no event is made up; those that are gone are counted as corrupt,
/// and the counters add up.
#[test]
fn damage_between_two_lives_is_survived_and_counted() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let lake = Kinesis::start(Mood::Fails);
    lake.tolerate_broken();
    let mut setup = Setup::new(upstream.address());
    lake.add_to(&mut setup, keep_trying("1s", "1s"));
    setup.config["environments"][0]["destinations"] = json!(["lake"]);
    // Generations of 3 MiB.
    setup.config["queue"]["max_bytes"] = json!("24MiB");
    let load = Load::new(4, 4_000);
    let mut counted = 0.0;
    let mut evicted = 0.0;
    let mut delivered = 0;
    for round in 0..ROUNDS {
        lake.be(Mood::Fails);
        let mut relay = Relay::start(&setup);
        relay.tolerate("the queue dropped its oldest events");
        let before = load.answers();
        let working = load.start(relay.address());
        eventually("batches to be answered", || {
            (load.answers() > before + 60).then_some(())
        });
        evicted += relay.metrics().sum("flagtap_destination_events_evicted_total", &[]);
        relay.kill();
        working.stop();
        upstream.take();
        let what = injure(&setup.queue(), round);

        lake.be(Mood::Takes);
        let mut relay = Relay::start(&setup);
        // What a person is told, and sled's panics, which are caught.
        for expected in [
            "was set aside",
            "are lost",
            "is lost",
            "panicked",
            "the queue dropped its oldest events",
        ] {
            relay.tolerate(expected);
        }
        load.finish(relay.address());
        let metrics = relay.settle();
        counted += metrics.sum("flagtap_destination_events_corrupt_total", &[]);
        evicted += metrics.sum("flagtap_destination_events_evicted_total", &[]);
        oracle::assert_delivered(&metrics, "lake", lake.lines().len() - delivered);
        delivered = lake.lines().len();
        relay.stop();
        let exported: BTreeSet<String> = markers(&lake.lines()).into_iter().collect();
        let lost = load.answered().difference(&exported).count();
        println!(
            "{what}: {lost} of {} lost so far, {counted} counted",
            load.answered().len()
        );
        assert!(exported.is_subset(&load.sent()), "{what}: events that were never sent");
        assert!(
            lost as f64 <= counted + evicted,
            "{what}: {lost} lost, {counted} counted"
        );
    }
}

/// Injures one file, in turn and at random.
fn injure(queue: &Path, round: usize) -> String {
    let mut files = Vec::new();
    list(queue, &mut files);
    // The newest database first of all: that is where damage is hardest to notice.
    let databases = files.iter().filter(|file| file.ends_with("db")).max().cloned();
    let path = match round % 2 {
        0 => databases.unwrap(),
        _ => files.swap_remove(fastrand::usize(..files.len())),
    };
    let name = path.strip_prefix(queue).unwrap().display().to_string();
    let bytes = fs::read(&path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    let file = File::options().write(true).open(&path).unwrap();
    let place = fastrand::usize(..used);
    match round % 3 {
        _ if bytes.is_empty() => format!("nothing in {name}"),
        0 => {
            file.write_all_at(&[bytes[place] ^ 0x20], place as u64).unwrap();
            format!("byte {place} of {name} changed")
        }
        1 => {
            file.set_len(place as u64).unwrap();
            format!("{name} cut to {place}")
        }
        _ => {
            fs::remove_file(&path).unwrap();
            format!("{name} deleted")
        }
    }
}

/// Lists the files that mean something, but not FORMAT: what a wrong number in it does is another matter.
fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("quarantine") {
            list(&path, files);
        } else if path.is_file() && !path.ends_with("FORMAT") && !path.ends_with("lock") {
            files.push(path);
        }
    }
    files.sort();
}
