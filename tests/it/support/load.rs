//! Senders that post batches as fast as they are answered, and remember what was answered.
//!
//! A batch without an answer is sent again first thing, with the same payload id, as every SDK does. So what was answered
//! has to be exported, what was sent may be, and anything else was made up.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use super::relay::{bulk, marked};
use super::{Connection, eventually};

/// The senders, which keep their memory from one life of the relay to the next.
pub(crate) struct Load {
    senders: Arc<Vec<Mutex<Sender>>>,
    answers: Arc<AtomicUsize>,
    refusals: Arc<AtomicUsize>,
    breaks: Arc<AtomicUsize>,
}

/// Senders at work. Stop them after the relay they talk to has gone, or while it answers.
pub(crate) struct Working {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Sender {
    number: usize,
    event_bytes: usize,
    most_events: usize,
    next: usize,
    unanswered: Option<(String, Value)>,
    answered: Vec<String>,
    sent: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    Refused,
    Broken,
}

impl Load {
    /// Returns `senders` senders of batches of 1 to 19 events with up to `event_bytes` of text that does not compress well.
    pub(crate) fn new(senders: usize, event_bytes: usize) -> Self {
        let sender = |number| Sender {
            number,
            event_bytes,
            most_events: 19,
            next: 0,
            unanswered: None,
            answered: Vec::new(),
            sent: Vec::new(),
        };
        Self {
            senders: Arc::new((0..senders).map(|number| Mutex::new(sender(number))).collect()),
            answers: Arc::default(),
            refusals: Arc::default(),
            breaks: Arc::default(),
        }
    }

    /// Makes batches smaller: of 1 to `events` events.
    pub(crate) fn of_up_to(self, events: usize) -> Self {
        for number in 0..self.senders.len() {
            self.sender(number).most_events = events;
        }
        self
    }

    /// Sets the senders to work on the relay at `address`.
    pub(crate) fn start(&self, address: SocketAddr) -> Working {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..self.senders.len()).map(|number| {
            let (senders, stop) = (self.senders.clone(), stop.clone());
            let (answers, refusals, breaks) = (self.answers.clone(), self.refusals.clone(), self.breaks.clone());
            thread::spawn(move || {
                let mut sender = senders[number].lock().unwrap();
                while !stop.load(Ordering::SeqCst) {
                    match sender.round_trip(address) {
                        Outcome::Answered => drop(answers.fetch_add(1, Ordering::SeqCst)),
                        Outcome::Refused => drop(refusals.fetch_add(1, Ordering::SeqCst)),
                        Outcome::Broken => drop(breaks.fetch_add(1, Ordering::SeqCst)),
                    }
                }
            })
        });
        Working {
            threads: threads.collect(),
            stop,
        }
    }

    /// Returns the number of answers so far.
    pub(crate) fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    /// Returns the number of 503 answers so far. Only a relay with `tee.on_failure: refuse` gives them.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::SeqCst)
    }

    /// Returns how many requests got no answer so far.
    pub(crate) fn breaks(&self) -> usize {
        self.breaks.load(Ordering::SeqCst)
    }

    /// Sends again whatever was not answered, until it is.
    pub(crate) fn finish(&self, address: SocketAddr) {
        for number in 0..self.senders.len() {
            eventually("a batch to be answered", || {
                let mut sender = self.sender(number);
                (sender.unanswered.is_none() || sender.round_trip(address) == Outcome::Answered).then_some(())
            });
        }
    }

    /// Returns the markers of all events in batches that were answered 2xx.
    pub(crate) fn answered(&self) -> BTreeSet<String> {
        self.gather(|sender| &sender.answered)
    }

    /// Returns the markers of all events that were ever sent.
    pub(crate) fn sent(&self) -> BTreeSet<String> {
        self.gather(|sender| &sender.sent)
    }

    fn gather(&self, of: fn(&Sender) -> &Vec<String>) -> BTreeSet<String> {
        let numbers = 0..self.senders.len();
        numbers.flat_map(|number| of(&self.sender(number)).clone()).collect()
    }

    fn sender(&self, number: usize) -> MutexGuard<'_, Sender> {
        self.senders[number].lock().unwrap()
    }
}

impl Working {
    /// Lets the senders end after what they have under way.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

impl Sender {
    /// Posts one batch.
    fn round_trip(&mut self, address: SocketAddr) -> Outcome {
        let (payload_id, events) = self.unanswered.take().unwrap_or_else(|| self.batch());
        let answer =
            Connection::try_open(address).and_then(|mut connection| connection.exchange(&bulk(&payload_id, &events)));
        match answer {
            Ok(response) if response.status == 202 => {
                let keys = events.as_array().unwrap().iter().map(|event| &event["key"]);
                self.answered.extend(keys.map(|key| key.as_str().unwrap().to_owned()));
                Outcome::Answered
            }
            Ok(response) if response.status == 503 && response.headers.get("x-flagtap-error").is_some() => {
                self.unanswered = Some((payload_id, events));
                Outcome::Refused
            }
            Ok(response) => panic!("answered {} {:?}", response.status, response.headers),
            Err(_) => {
                self.unanswered = Some((payload_id, events));
                Outcome::Broken
            }
        }
    }

    fn batch(&mut self) -> (String, Value) {
        let payload_id = format!("load-{}-{}", self.number, self.next);
        self.next += 1;
        let keys: Vec<String> = (0..fastrand::usize(1..=self.most_events))
            .map(|index| format!("{payload_id}-{index}"))
            .collect();
        self.sent.extend(keys.iter().cloned());
        let events = keys.iter().map(|key| {
            let mut event = marked(key);
            let text = std::iter::repeat_with(fastrand::alphanumeric);
            event["data"] = json!(text.take(fastrand::usize(0..self.event_bytes)).collect::<String>());
            event
        });
        (payload_id, events.collect())
    }
}
