//! The promise itself: when the SDK has seen a 2xx, its events survive whatever happens to the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::export::{id, markers};
use crate::support::kinesis::{Kinesis, Mood, Stored};
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

/// Scenario: senders post batches as fast as they are answered; the relay is killed with SIGKILL after a random number of
/// answers and started again on the same directory, two dozen times. Batches without an answer are sent again. Every
/// event goes to a file and to Kinesis.
/// Guarantees: every event of a batch that was answered 2xx is in both, none that was never sent; in the file none
/// twice. To Kinesis nothing is repeated but the last request before a kill, which the relay could not note any more.
/// The ids are unique and the counters of the last process add up.
#[test]
fn what_was_answered_survives_being_killed() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let lake = Kinesis::start(Mood::Takes);
    lake.tolerate_broken();
    let mut setup = Setup::new(upstream.address());
    lake.add_to(&mut setup, json!({ "initial": "20ms", "max": "200ms" }));
    let senders: Vec<Mutex<Sender>> = (0..SENDERS).map(|_| Mutex::default()).collect();
    let senders = Arc::new(senders);
    let answers = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    for round in 0..ROUNDS {
        Kinesis::life(&mut setup, &format!("life-{round}"));
        let relay = Relay::start(&setup);
        let before = answers.load(Ordering::SeqCst);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..SENDERS)
            .map(|number| {
                let (senders, stop, address) = (senders.clone(), stop.clone(), relay.address());
                let answers = answers.clone();
                thread::spawn(move || {
                    let mut sender = senders[number].lock().unwrap();
                    while !stop.load(Ordering::SeqCst) {
                        if sender.round_trips(number, address) {
                            answers.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        // The random moment: the first rounds are killed at once, later ones deep in the work.
        let most = fastrand::usize(1..10 + 10 * round);
        eventually("the batches of this round to be answered", || {
            (answers.load(Ordering::SeqCst) >= before + most).then_some(())
        });
        relay.kill();
        stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        upstream.take();
    }

    Kinesis::life(&mut setup, "life-last");
    let relay = Relay::start(&setup);
    for (number, sender) in senders.iter().enumerate() {
        let mut sender = sender.lock().unwrap();
        eventually("a last batch to be answered", || {
            sender.round_trips(number, relay.address()).then_some(())
        });
    }
    relay.settle();
    relay.stop();

    let gather = |of: fn(&Sender) -> &Vec<String>| -> BTreeSet<String> {
        senders
            .iter()
            .flat_map(|sender| of(&sender.lock().unwrap()).clone())
            .collect()
    };
    let (answered, sent) = (gather(|sender| &sender.answered), gather(|sender| &sender.sent));
    println!(
        "{ROUNDS} kills in {:?}: {} events answered",
        started.elapsed(),
        answered.len()
    );
    let lines = setup.exported();
    let twice = judge("archive", &lines, &answered, &sent);
    assert!(twice.is_empty(), "in the file more than once: {twice:?}");
    let repeated = judge("lake", &lake.lines(), &answered, &sent);
    let bound = repeatable(&lake.stored());
    let unbound: Vec<&String> = repeated.iter().filter(|id| !bound.contains(*id)).collect();
    assert!(unbound.is_empty(), "repeated though noted or noteworthy: {unbound:?}");
    let ids = |lines: &[String]| lines.iter().map(|line| id(line)).collect::<BTreeSet<_>>();
    assert_eq!(ids(&lines).len(), lines.len(), "event ids are not unique");
    assert!(ids(&lines) == ids(&lake.lines()), "the destinations differ");
}

/// Holds what a destination got against what was answered and sent; returns the ids of events it has more than once.
fn judge(name: &str, lines: &[String], answered: &BTreeSet<String>, sent: &BTreeSet<String>) -> Vec<String> {
    let exported: BTreeSet<String> = markers(lines).into_iter().collect();
    let lost: Vec<&String> = answered.difference(&exported).collect();
    let invented: Vec<&String> = exported.difference(sent).collect();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    lines.iter().for_each(|line| *times.entry(id(line)).or_default() += 1);
    times.retain(|_, times| *times > 1);
    println!(
        "{name}: {} exported, {} lost, {} invented, {} repeated",
        exported.len(),
        lost.len(),
        invented.len(),
        times.len()
    );
    assert!(lost.is_empty(), "{name}: answered but not exported: {lost:?}");
    assert!(invented.is_empty(), "{name}: exported but never sent: {invented:?}");
    times.into_keys().collect()
}

/// Returns the events that may be repeated: every time they were stored but the last was in the last request of a life,
/// so a kill came before it could be noted.
fn repeatable(stored: &[Stored]) -> BTreeSet<String> {
    let is_last_of_its_life = |place: usize| !stored[place + 1..].iter().any(|later| later.life == stored[place].life);
    let mut seen: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for (place, request) in stored.iter().enumerate() {
        let last = is_last_of_its_life(place);
        request
            .ids()
            .into_iter()
            .for_each(|id| seen.entry(id).or_default().push(last));
    }
    seen.retain(|_, last| last[..last.len() - 1].iter().all(|last| *last));
    seen.into_keys().collect()
}

/// Scenario: made-up requests of two lives.
/// Guarantees: the bound on repetitions can be broken.
#[test]
fn a_repetition_of_what_was_noted_is_seen() {
    let request = |life: &str, names: &[&str]| Stored {
        life: life.to_owned(),
        lines: names
            .iter()
            .map(|name| json!({ "event": { "id": name } }).to_string())
            .collect(),
    };
    let stored = [
        request("one", &["noted"]),
        request("one", &["in-flight"]),
        request("two", &["in-flight", "noted"]),
    ];
    assert_eq!(repeatable(&stored).into_iter().collect::<Vec<_>>(), ["in-flight"]);
    let twice_in_one_life = [request("one", &["acknowledged"]), request("one", &["acknowledged"])];
    assert!(repeatable(&twice_in_one_life).is_empty());
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
