//! Recorded traffic while upstream, relay and destinations fail and SDKs repeat what was not answered: each destination
//! gets each event once, and where an answer was lost the repetition has the same id.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::replay::{environment, golden, on_the_wire};
use crate::support::export::id;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::oracle;
use crate::support::recording::{Recorded, load};
use crate::support::relay::keep_trying;
use crate::support::upstream::{Gate, Received};
use crate::support::webhook::{Shape, Webhook};
use crate::support::{Answer, Connection, Relay, Setup, Upstream, eventually};

/// Users and contexts, payload ids and none, gzip, the gif beacon.
const BUILDS: [&str; 5] = [
    "node-server-5.9.0",
    "python-9.18.2",
    "js-2.15.0",
    "react-native-10.9.0",
    "synthetic-php",
];

/// Tells the upstream how the request was answered when it was recorded.
const ANSWER: &str = "X-Recorded-Answer";

/// The applications of the recordings, which send each request again until it is answered as it was recorded.
struct Applications {
    recordings: Vec<Vec<Recorded>>,
    relay: Mutex<SocketAddr>,
    sent: AtomicUsize,
}

/// An upstream in trouble, and a relay with a file, a stream that throttles single records, and a webhook that flaps.
struct Rig {
    applications: Arc<Applications>,
    upstream: Upstream,
    silence: Gate,
    lake: Kinesis,
    hook: Webhook,
    setup: Setup,
}

/// Scenario: recordings of five SDKs are sent by as many applications at once, in five pieces. One in three batches the
/// upstream takes without answering in time or at all, or says that it is busy, and the application sends it again. After
/// each piece, once everything is delivered, the relay is killed and started again, and the applications repeat their
/// last requests as if they had not heard the answer. The stream throttles single records; the webhook also takes
/// requests and breaks off.
/// Guarantees: file and stream have exactly the golden events, each once. The webhook has them too, and more than once
/// only what it took without saying so, with the same id. Each life's counters are what was acknowledged to it.
#[test]
fn each_event_is_delivered_once_if_its_delivery_is_acknowledged() {
    const PIECES: usize = 5;
    let mut rig = Rig::new();
    for piece in 0..PIECES {
        let life = format!("life-{piece}");
        let relay = rig.start(&life);
        let sending = rig.applications.send(move |requests| {
            let piece = requests.len() * piece / PIECES..requests.len() * (piece + 1) / PIECES;
            // Begins with what was answered last.
            piece.start.saturating_sub(2)..piece.end
        });
        sending.into_iter().for_each(|thread| thread.join().unwrap());
        let metrics = relay.settle();
        relay.kill();
        let recovered = metrics.sum("flagtap_destination_events_recovered_total", &[]);
        assert_eq!(recovered, 0.0, "{life}: what was delivered is noted");
        for (name, requests) in [("lake", rig.lake.requests()), ("hook", rig.hook.requests())] {
            oracle::assert_delivered(&metrics, name, oracle::acknowledged(&requests, &life));
        }
    }
    let repeated = rig.judge();
    assert!(repeated.is_empty(), "in the stream more than once: {repeated:?}");
}

/// Scenario: the same without pauses: the relay is killed every few hundred milliseconds.
/// Guarantees: the same, but that the stream may have the last request before a kill twice.
#[test]
fn kills_repeat_nothing_but_the_last_request() {
    let mut rig = Rig::new();
    let mut relay = rig.start("life-0");
    let mut sending = rig.applications.send(|requests| 0..requests.len());
    let mut kills = 0;
    while !sending.is_empty() {
        thread::sleep(Duration::from_millis(fastrand::u64(50..500)));
        relay.kill();
        kills += 1;
        relay = rig.start(&format!("life-{kills}"));
        let (done, others) = sending.into_iter().partition(JoinHandle::is_finished);
        sending = others;
        Vec::into_iter(done).for_each(|thread| thread.join().unwrap());
    }
    relay.settle();
    relay.stop();
    println!("{kills} kills");
    assert!(kills >= 5, "{kills}");
    rig.judge();
}

impl Rig {
    fn new() -> Self {
        let upstream = Upstream::start();
        upstream.tolerate_broken();
        let silence = Gate::default();
        let never = silence.clone();
        upstream.plan(move |request| Some(trouble(request, &never)));
        let lake = Kinesis::start(Mood::Picks);
        lake.tolerate_broken();
        let hook = Webhook::start(Shape {
            lines: true,
            gzip: true,
        });
        hook.tolerate_broken();
        hook.flap(true);
        let recordings = BUILDS.map(load);
        let mut environment = environment(&BUILDS.map(load).into_iter().flatten().collect::<Vec<_>>());
        environment["destinations"] = json!(["archive", "lake", "hook"]);
        let mut setup = Setup::new(upstream.address());
        lake.add_to(&mut setup, keep_trying("20ms", "100ms"));
        setup.config["destinations"].as_array_mut().unwrap().push(json!(null));
        setup.config["environments"] = json!([environment]);
        setup.config["upstream"]["connect_timeout"] = json!("1s");
        setup.config["upstream"]["timeout"] = json!("1s");
        // No two batches of the recordings have equal bodies, and between a kill and the repetition can be long.
        setup.config["dedupe"] = json!({ "body_window": "10m" });
        let applications = Applications {
            recordings: recordings.into(),
            relay: Mutex::new(upstream.address()),
            sent: AtomicUsize::new(0),
        };
        Self {
            applications: Arc::new(applications),
            upstream,
            silence,
            lake,
            hook,
            setup,
        }
    }

    fn start(&mut self, life: &str) -> Relay {
        Kinesis::life(&mut self.setup, life);
        self.setup.config["destinations"][2] = json!({
            "name": "hook", "webhook": self.hook.settings_in(life), "retry": keep_trying("20ms", "100ms"),
        });
        let relay = Relay::start(&self.setup);
        *self.applications.relay.lock().unwrap() = relay.address();
        relay
    }

    /// Holds what the destinations have against the golden files, and every repetition against what the relay was told.
    /// Returns the ids that the stream has more than once.
    fn judge(&self) -> BTreeSet<String> {
        self.silence.open();
        println!(
            "{} recorded requests, sent {} times, {} of which arrived upstream",
            self.applications.recordings.iter().map(Vec::len).sum::<usize>(),
            self.applications.sent.load(Ordering::SeqCst),
            self.upstream.count(),
        );
        let expected = BUILDS.iter().flat_map(|build| golden(build));
        let expected: BTreeSet<String> = expected.map(|line| id(&line)).collect();
        let check = |name: &str, lines: &[String]| {
            let ids: BTreeSet<String> = lines.iter().map(|line| id(line)).collect();
            let (lost, invented) = (expected.difference(&ids).count(), ids.difference(&expected).count());
            println!(
                "{name}: {} events expected, {lost} lost, {invented} made up",
                expected.len()
            );
            assert_eq!((lost, invented), (0, 0), "{name}");
            oracle::repeated(name, lines)
        };
        let twice = check("archive", &self.setup.exported());
        assert!(twice.is_empty(), "in the file more than once: {twice:?}");
        for (name, requests) in [("lake", self.lake.requests()), ("hook", self.hook.requests())] {
            let unaccounted = oracle::unaccounted(&requests);
            assert!(unaccounted.is_empty(), "{name}: repeated though noted: {unaccounted:?}");
        }
        check("hook", &self.hook.records());
        check("lake", &self.lake.lines())
    }
}

/// Returns the recorded answer, or, for a batch that was accepted, now and then something worse.
fn trouble(request: &Received, silence: &Gate) -> Answer {
    let recorded = request.headers.get(ANSWER).and_then(|answer| answer.parse().ok());
    let Some(status) = recorded else {
        return Answer::close();
    };
    let is_accepted_batch = status == 202 && !request.target.contains("diagnostic");
    match fastrand::u8(..9) {
        0 if is_accepted_batch => Answer::accepted().behind(silence),
        1 if is_accepted_batch => Answer::close(),
        2 if is_accepted_batch => Answer::status(503),
        _ => Answer::status(status),
    }
}

impl Applications {
    /// Has every application send a part of its requests, in order.
    fn send(
        self: &Arc<Self>,
        part: impl Fn(&[Recorded]) -> std::ops::Range<usize> + Copy + Send + 'static,
    ) -> Vec<JoinHandle<()>> {
        let threads = (0..self.recordings.len()).map(|number| {
            let applications = Arc::clone(self);
            thread::spawn(move || {
                let requests = &applications.recordings[number];
                let part = part(requests);
                requests[part].iter().for_each(|request| applications.deliver(request));
            })
        });
        threads.collect()
    }

    /// Sends a request until it is answered as it was recorded.
    fn deliver(&self, request: &Recorded) {
        let answer = request.answer.map_or("close".to_owned(), |status| status.to_string());
        let bytes = on_the_wire(request);
        let head = bytes.windows(2).position(|end| end == b"\r\n").unwrap() + 2;
        let header = format!("{ANSWER}: {answer}\r\n").into_bytes();
        let bytes = [&bytes[..head], &header, &bytes[head..]].concat();
        // What the relay makes of a connection that closes.
        let expected = request.answer.unwrap_or(502);
        eventually("a request to be answered", || {
            let relay = *self.relay.lock().unwrap();
            let mut connection = Connection::try_open(relay).ok()?;
            self.sent.fetch_add(1, Ordering::SeqCst);
            let response = connection.exchange(&bytes).ok()?;
            (response.status == expected).then_some(())
        });
    }
}
