//! SIGTERM in every bad state: within the grace period what was answered is on disk, and the next start goes on where
//! this one stopped.
//!
//! `shutdown.rs` and `ending.rs` look closer at the end of deliveries and of streams.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::export::id;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::metrics::Scrape;
use crate::support::oracle;
use crate::support::relay::{bulk, keep_trying, marked};
use crate::support::upstream::Gate;
use crate::support::volume::Volume;
use crate::support::{Answer, Connection, NOBODY, Relay, SDK_KEY, Setup, Upstream, eventually};

const GRACE: Duration = Duration::from_secs(14);

/// One bad state: how it comes about and how it ends.
struct State {
    name: &'static str,
    /// Before the start.
    before: fn(&mut Scene),
    /// While the relay runs, and after some batches were answered.
    during: fn(&mut Scene, &mut Relay),
    /// Between the end and the next start.
    after: fn(&mut Scene),
}

const STATES: [State; 12] = [
    State {
        name: "all is well",
        before: |_| {},
        during: |_, _| {},
        after: |_| {},
    },
    State {
        name: "destination dead",
        before: |scene| scene.endpoint(&format!("http://{}", NOBODY)),
        during: |scene, relay| scene.waits_at_the_stream(relay),
        after: |scene| scene.endpoint(&scene.lake.url()),
    },
    State {
        name: "destination slow",
        before: |scene| {
            scene.setup.config["destinations"][1]["kinesis"]["max_records"] = json!(4);
            scene.lake.be(Mood::Lingers(Duration::from_millis(900)));
        },
        during: |scene, _| scene.lake_is_asked(),
        after: |_| {},
    },
    State {
        name: "destination flapping",
        before: |scene| {
            scene.setup.config["destinations"][1]["kinesis"]["max_records"] = json!(2);
            scene.lake.be(Mood::Flaps);
        },
        during: |scene, _| scene.lake_is_asked(),
        after: |_| {},
    },
    State {
        name: "destination hanging",
        before: |scene| scene.lake.be(Mood::Hangs(scene.gate.clone())),
        during: |scene, relay| scene.waits_at_the_stream(relay),
        after: |_| {},
    },
    State {
        name: "retries waiting",
        before: |scene| {
            scene.setup.config["destinations"][1]["retry"] = keep_trying("3s", "3s");
            scene.lake.be(Mood::Fails);
        },
        during: |scene, relay| scene.waits_at_the_stream(relay),
        after: |_| {},
    },
    State {
        name: "upstream down",
        before: |scene| scene.setup.config["upstream"]["url"] = json!(format!("http://{}", NOBODY)),
        during: |_, _| {},
        after: |scene| scene.setup.config["upstream"]["url"] = json!(format!("http://{}", scene.upstream.address())),
    },
    State {
        name: "upstream slow",
        before: |_| {},
        during: |scene, relay| {
            let slow = Answer::accepted().after(Duration::from_secs(1));
            scene.upstream.once("POST", "/bulk", slow);
            scene.hold(relay, &bulk("slow", &json!([marked("slow")])));
            scene.answered.insert("slow".to_owned());
        },
        after: |scene| {
            let answer = scene.held.take().unwrap().response(false);
            assert_eq!(answer.unwrap().status, 202, "what came before the end is answered");
        },
    },
    State {
        name: "upstream hanging",
        before: |_| {},
        during: |scene, relay| {
            scene
                .upstream
                .once("POST", "/bulk", Answer::accepted().behind(&scene.gate));
            scene.hold(relay, &bulk("hanging", &json!([marked("hanging")])));
            scene.sent.insert("hanging".to_owned());
        },
        after: |scene| {
            assert!(scene.held.take().unwrap().response(false).is_err());
            // As SDKs do with what was not answered.
            scene.again = Some("hanging");
        },
    },
    State {
        name: "client within its body",
        before: |_| {},
        during: |scene, relay| {
            let head =
                format!("POST /bulk HTTP/1.1\r\nHost: x\r\nAuthorization: {SDK_KEY}\r\nContent-Length: 5000\r\n\r\n[");
            scene.hold(relay, head.as_bytes());
        },
        after: |scene| assert!(scene.held.take().unwrap().response(false).is_err()),
    },
    State {
        name: "disk full",
        before: |scene| {
            scene.volume = Volume::tmpfs("stopping", 64, 10_000);
            if let Some(volume) = &scene.volume {
                scene.setup.config["queue"]["sled"]["path"] = json!(volume.path().join("queue"));
                scene.setup.config["queue"]["headroom"] = json!("1MiB");
                scene.setup.config["tee"]["on_failure"] = json!("refuse");
            }
        },
        during: |scene, relay| {
            let Some(volume) = &scene.volume else { return };
            for expected in ["the queue cannot write", "cannot open the queue", "events are not kept"] {
                relay.tolerate(expected);
            }
            let mut neighbour = File::create(volume.path().join("neighbour")).unwrap();
            while neighbour.write_all(&[1; 4096]).is_ok() {}
            assert_eq!(relay.post("full", &json!([marked("full")])).status, 503);
            scene.again = Some("full");
        },
        after: |scene| {
            if let Some(volume) = &scene.volume {
                fs::remove_file(volume.path().join("neighbour")).unwrap();
            }
        },
    },
    State {
        name: "queue damaged",
        before: |scene| scene.damage_an_earlier_backlog(),
        during: |_, relay| {
            // What a person is told, and sled's panics, which are caught.
            for expected in ["was set aside", "are lost", "is lost", "panicked"] {
                relay.tolerate(expected);
            }
        },
        after: |_| {},
    },
];

/// Scenario: for each bad state: batches are answered in it, then SIGTERM. Then the state ends, and the relay is started again.
/// Guarantees: the relay ends with success within the grace period, its queue closed in time. The next start finds what the
/// log said was waiting, to the event. Every event that was answered is in both destinations, none was made up; in
/// the file none twice, in the stream none that was acknowledged and noted. The counters are what was acknowledged.
#[test]
fn in_whatever_state_the_next_start_goes_on_where_this_one_stopped() {
    // They wait most of the time.
    thread::scope(|scope| {
        for state in &STATES {
            let named = thread::Builder::new().name(state.name.to_owned());
            named.spawn_scoped(scope, || Scene::play(state)).unwrap();
        }
    });
}

struct Scene {
    upstream: Upstream,
    lake: Kinesis,
    gate: Gate,
    setup: Setup,
    volume: Option<Volume>,
    /// A client that waits.
    held: Option<Connection>,
    /// A batch to be posted once more after the next start.
    again: Option<&'static str>,
    answered: BTreeSet<String>,
    /// Not answered, so exported or not.
    sent: BTreeSet<String>,
}

impl Scene {
    fn play(state: &State) {
        let mut scene = Self::new();
        (state.before)(&mut scene);
        scene.live("ended");
        let mut relay = Relay::start(&scene.setup);
        for number in 0..6 {
            scene.post(&relay, &format!("batch-{number}"));
        }
        eventually("the file to have every event", || {
            let waiting = [("destination", "archive")];
            (relay.metrics().sum("flagtap_destination_events_waiting", &waiting) == 0.0).then_some(())
        });
        (state.during)(&mut scene, &mut relay);

        let signalled = Instant::now();
        relay.terminate();
        let status = relay.wait();
        let took = signalled.elapsed();
        assert!(status.success(), "{}: {status}\n{}", state.name, relay.log_text());
        assert!(took < GRACE, "{}: {took:?}\n{}", state.name, relay.log_text());
        assert!(!relay.log_text().contains("did not close in time"), "{}", state.name);
        let ended = eventually("the last line of the log", || relay.find_log("ended"));
        let waiting = ended["events_waiting"].as_f64().unwrap();
        println!("{}: ended after {took:?} with {waiting} events waiting", state.name);
        drop(relay);

        (state.after)(&mut scene);
        scene.gate.open();
        scene.lake.be(Mood::Takes);
        scene.live("next");
        let relay = Relay::start(&scene.setup);
        if let Some(again) = scene.again {
            assert_eq!(relay.post(again, &json!([marked(again)])).status, 202, "{}", state.name);
            scene.answered.insert(again.to_owned());
        }
        let metrics = relay.settle();
        relay.stop();
        let recovered = metrics.sum("flagtap_destination_events_recovered_total", &[]);
        assert_eq!(recovered, waiting, "{}: recovered, and said to wait", state.name);
        scene.judge(state.name);
        scene.assert_delivered(&metrics, state.name);
    }

    fn new() -> Self {
        let upstream = Upstream::accepting();
        upstream.tolerate_broken();
        let lake = Kinesis::start(Mood::Takes);
        lake.tolerate_broken();
        let mut setup = Setup::new(upstream.address());
        setup.config["shutdown"] = json!({ "grace": "14s", "reserve": "12s" });
        setup.config["limits"] = json!({ "body_timeout": "1m" });
        lake.add_to(&mut setup, keep_trying("100ms", "300ms"));
        Self {
            upstream,
            lake,
            gate: Gate::default(),
            setup,
            volume: None,
            held: None,
            again: None,
            answered: BTreeSet::new(),
            sent: BTreeSet::new(),
        }
    }

    fn live(&mut self, life: &str) {
        Kinesis::life(&mut self.setup, life);
    }

    fn endpoint(&mut self, url: &str) {
        self.setup.config["destinations"][1]["kinesis"]["endpoint"] = json!(url);
    }

    fn post(&mut self, relay: &Relay, name: &str) {
        let markers: Vec<String> = (0..5).map(|number| format!("{name}-{number}")).collect();
        let events: Value = markers.iter().map(|marker| marked(marker)).collect();
        // 502 where the upstream is down: no judgement, so its events are kept as well.
        assert!([202, 502].contains(&relay.post(name, &events).status));
        self.answered.extend(markers);
    }

    /// Sends bytes on a connection that stays open.
    fn hold(&mut self, relay: &Relay, bytes: &[u8]) {
        let before = self.upstream.count();
        let mut connection = relay.connect();
        connection.send(bytes).unwrap();
        if bytes.ends_with(b"]") {
            eventually("the request upstream", || {
                (self.upstream.count() > before).then_some(())
            });
        }
        self.held = Some(connection);
    }

    fn lake_is_asked(&self) {
        eventually("a request at the stream", || {
            (!self.lake.requests().is_empty()).then_some(())
        });
    }

    fn waits_at_the_stream(&self, relay: &Relay) {
        eventually("events that failed", || {
            let status = relay.telemetry("/status")?;
            let retrying = String::from_utf8(status.body).unwrap().contains("retrying");
            let hanging = !self.lake.requests().is_empty();
            (retrying || hanging).then_some(())
        });
    }

    /// Leaves a backlog of an earlier life with a byte changed in the middle of it.
    fn damage_an_earlier_backlog(&mut self) {
        self.lake.be(Mood::Fails);
        let relay = Relay::start(&self.setup);
        for number in 0..40 {
            let marker = format!("damaged-{number}");
            let mut event = marked(&marker);
            event["data"] = json!(
                std::iter::repeat_with(fastrand::alphanumeric)
                    .take(9_000)
                    .collect::<String>()
            );
            assert_eq!(relay.post(&marker, &json!([event])).status, 202);
            self.sent.insert(marker);
        }
        relay.kill();
        let generations = fs::read_dir(self.setup.queue().join("generations")).unwrap();
        let newest = generations.map(|entry| entry.unwrap().path()).max().unwrap();
        let path = newest.join("db");
        let bytes = fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[used / 2] ^ 0x20], used as u64 / 2).unwrap();
    }

    /// Holds what the second life counted as delivered to the stream against what the stream acknowledged to it, and, of
    /// what it had acknowledged before, at most what lay beyond the cursor.
    fn assert_delivered(&self, metrics: &Scrape, name: &str) {
        let requests = self.lake.requests();
        let ids = |life: &str| -> BTreeSet<String> {
            let told = requests.iter().filter(|request| request.told && request.life == life);
            told.flat_map(|request| &request.lines).map(|line| id(line)).collect()
        };
        let (before, now) = (ids("ended"), ids("next"));
        let delivered = metrics.sum("flagtap_destination_events_delivered_total", &[("destination", "lake")]) as usize;
        let possible = now.len()..=now.len() + before.difference(&now).count();
        assert!(
            possible.contains(&delivered),
            "{name}: {delivered} of {possible:?} counted"
        );
    }

    fn judge(&self, name: &str) {
        let sent = self.answered.union(&self.sent).cloned().collect();
        for (destination, lines) in [("archive", self.setup.exported()), ("lake", self.lake.lines())] {
            let named = format!("{name}, {destination}");
            let twice = oracle::judge(&named, &lines, &self.answered, &sent);
            assert!(
                destination == "lake" || twice.is_empty(),
                "{named}: more than once: {twice:?}"
            );
        }
        let unaccounted = oracle::unaccounted(&self.lake.requests());
        assert!(unaccounted.is_empty(), "{name}: repeated though noted: {unaccounted:?}");
    }
}
