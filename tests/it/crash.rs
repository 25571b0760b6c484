//! The promise itself: when the SDK has seen a 2xx, its events survive whatever happens to the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::export::{id, markers};
use crate::support::relay::{bulk, marked};
use crate::support::{Connection, Relay, Setup, Upstream, eventually};

const ROUNDS: usize = 24;
const SENDERS: usize = 6;

/// What one sender did, over all rounds.
#[derive(Default)]
struct Sender {
    next: usize,
    /// A batch that got no answer: sent again first thing, with the same payload id, as every SDK does.
    unanswered: Option<(String, Value)>,
    answered: Vec<String>,
    sent: Vec<String>,
}

/// Scenario: senders post batches as fast as they are answered; the relay is killed with SIGKILL at a random moment and
/// started again on the same directory, two dozen times. Batches without an answer are sent again.
/// Guarantees: every event of a batch that was answered 2xx is exported, none twice, none that was never sent; the
/// ids are unique and the counters of the last process add up.
#[test]
fn what_was_answered_survives_being_killed() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let setup = Setup::new(upstream.address());
    let senders: Vec<Mutex<Sender>> = (0..SENDERS).map(|_| Mutex::default()).collect();
    let senders = Arc::new(senders);
    let started = Instant::now();
    let mut batches_at_kill = Vec::new();
    for round in 0..ROUNDS {
        let relay = Relay::start(&setup);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..SENDERS)
            .map(|number| {
                let (senders, stop, address) = (senders.clone(), stop.clone(), relay.address());
                thread::spawn(move || {
                    let mut sender = senders[number].lock().unwrap();
                    while !stop.load(Ordering::SeqCst) && sender.round_trips(number, address) {}
                })
            })
            .collect();
        // The random moment: the first rounds are killed at once, later ones deep in the work.
        let life = Duration::from_millis(fastrand::u64(20..200 + 20 * round as u64));
        thread::sleep(life);
        relay.kill();
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        upstream.take();
        batches_at_kill.push(
            senders
                .iter()
                .map(|sender| sender.lock().unwrap().answered.len())
                .sum::<usize>(),
        );
    }

    let relay = Relay::start(&setup);
    for (number, sender) in senders.iter().enumerate() {
        let mut sender = sender.lock().unwrap();
        eventually("a last batch to be answered", || {
            sender.round_trips(number, relay.address()).then_some(())
        });
    }
    relay.settle();
    relay.stop();

    let lines = setup.exported();
    let mut exported: BTreeMap<String, usize> = BTreeMap::new();
    markers(&lines)
        .into_iter()
        .for_each(|marker| *exported.entry(marker).or_default() += 1);
    let gather = |of: fn(&Sender) -> &Vec<String>| -> BTreeSet<String> {
        senders
            .iter()
            .flat_map(|sender| of(&sender.lock().unwrap()).clone())
            .collect()
    };
    let (answered, sent) = (gather(|sender| &sender.answered), gather(|sender| &sender.sent));
    let lost: Vec<&String> = answered
        .iter()
        .filter(|marker| !exported.contains_key(*marker))
        .collect();
    let invented: Vec<&String> = exported.keys().filter(|marker| !sent.contains(*marker)).collect();
    let twice: Vec<_> = exported.iter().filter(|(_, count)| **count > 1).collect();
    println!(
        "{ROUNDS} kills in {:?}: {} events answered, {} exported, {} lost, {} twice, {} invented",
        started.elapsed(),
        answered.len(),
        lines.len(),
        lost.len(),
        twice.len(),
        invented.len()
    );
    assert!(lost.is_empty(), "answered but not exported: {lost:?}");
    assert!(invented.is_empty(), "exported but never sent: {invented:?}");
    assert!(twice.is_empty(), "exported more than once: {twice:?}");
    let ids: BTreeSet<String> = lines.iter().map(|line| id(line)).collect();
    assert_eq!(ids.len(), lines.len(), "event ids are not unique");
    assert!(
        batches_at_kill.iter().any(|batches| *batches > 0),
        "no round did any work"
    );
}

impl Sender {
    /// Posts until the connection breaks or one batch was answered; returns true for an answer.
    fn round_trips(&mut self, number: usize, address: std::net::SocketAddr) -> bool {
        let (payload_id, events) = self.unanswered.take().unwrap_or_else(|| self.new_batch(number));
        let Ok(mut connection) = Connection::try_open(address) else {
            self.unanswered = Some((payload_id, events));
            return false;
        };
        match connection.exchange(&bulk(&payload_id, &events)) {
            Ok(response) if response.status == 202 => {
                let keys = events
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|event| event["key"].as_str().unwrap().to_owned());
                self.answered.extend(keys);
                true
            }
            Ok(response) => panic!("answered {} {:?}", response.status, response.headers),
            Err(_) => {
                self.unanswered = Some((payload_id, events));
                false
            }
        }
    }

    fn new_batch(&mut self, number: usize) -> (String, Value) {
        let payload_id = format!("crash-{number}-{}", self.next);
        self.next += 1;
        let keys: Vec<String> = (0..fastrand::usize(1..20))
            .map(|index| format!("{payload_id}-{index}"))
            .collect();
        self.sent.extend(keys.iter().cloned());
        let events = keys.iter().map(|key| {
            let mut event = marked(key);
            event["data"] = json!("x".repeat(fastrand::usize(0..2_000)));
            event
        });
        (payload_id, events.collect())
    }
}

/// Scenario: the relay is killed again and again while it starts, with a backlog in its queue.
/// Guarantees: an interrupted start loses nothing of what an earlier life acknowledged.
#[test]
fn being_killed_while_starting_loses_nothing() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let mut expected = Vec::new();
    for number in 0..50 {
        let marker = format!("early-{number}");
        assert_eq!(relay.post(&marker, &json!([marked(&marker)])).status, 202);
        expected.push(marker);
    }
    relay.kill();
    for milliseconds in [1, 5, 10, 20, 30, 50, 80, 120] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .args(["serve", "--config"])
            .arg(setup.write())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let relay = Relay::start(&setup);
    relay.settle();
    relay.stop();
    assert_eq!(markers(&setup.exported()), expected);
}
