//! The promise itself: when the SDK has seen a 2xx, its events survive whatever happens to the process.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::export::markers;
use crate::support::kinesis::{Kinesis, Mood};
use crate::support::load::Load;
use crate::support::oracle::{self, Request};
use crate::support::relay::{keep_trying, marked};
use crate::support::webhook::{Shape, Webhook};
use crate::support::{Relay, Setup, Upstream, eventually};

const ROUNDS: usize = 100;

/// Scenario: senders post batches as fast as they are answered; the relay is killed with SIGKILL after a random number of
/// answers and started again on the same directory, a hundred times. Batches without an answer are sent again. Every
/// event goes to a file, to a Kinesis that takes a part, fails, throttles and loses answers, and to a webhook that does
/// the same: so at most kills a retry waits or is under way.
/// Guarantees: every event of a batch that was answered 2xx is in all three, none that was never sent; in the file none
/// twice. To the others nothing is repeated but what they took without saying so, and the last request before a kill,
/// which the relay could not note any more. The counters of the last process are what the test itself counted.
#[test]
fn what_was_answered_survives_being_killed() {
    let upstream = Upstream::accepting();
    upstream.tolerate_broken();
    let lake = Kinesis::start(Mood::Flaps);
    lake.tolerate_broken();
    let hook = Webhook::start(Shape {
        lines: true,
        gzip: false,
    });
    hook.tolerate_broken();
    hook.flap(true);
    let retry = keep_trying("20ms", "200ms");
    let mut setup = Setup::new(upstream.address());
    lake.add_to(&mut setup, retry.clone());
    setup.config["environments"][0]["destinations"] = json!(["archive", "lake", "hook"]);
    let live = |setup: &mut Setup, life: &str| {
        Kinesis::life(setup, life);
        let hook = json!({ "name": "hook", "webhook": hook.settings_in(life), "retry": retry });
        setup.config["destinations"][2] = hook;
        Relay::start(setup)
    };
    setup.config["destinations"].as_array_mut().unwrap().push(json!(null));
    let load = Load::new(6, 600);
    let started = Instant::now();
    for round in 0..ROUNDS {
        let relay = live(&mut setup, &format!("life-{round}"));
        let before = load.answers();
        let working = load.start(relay.address());
        // The random moment: some lives end at once, some deep in the work.
        let most = fastrand::usize(1..=60);
        eventually("the batches of this round to be answered", || {
            (load.answers() >= before + most).then_some(())
        });
        relay.kill();
        working.stop();
        upstream.take();
    }
    println!("{ROUNDS} kills in {:?}", started.elapsed());

    // Once everything is delivered and noted, a kill repeats nothing, and the next life counts from nothing.
    let relay = live(&mut setup, "settled");
    load.finish(relay.address());
    relay.settle();
    relay.kill();
    let relay = live(&mut setup, "last");
    let (answers, events) = (load.answers(), load.answered().len());
    let working = load.start(relay.address());
    eventually("some more batches to be answered", || {
        (load.answers() >= answers + 20).then_some(())
    });
    working.stop();
    let metrics = relay.settle();
    relay.stop();

    let (answered, sent) = (load.answered(), load.sent());
    let events = answered.len() - events;
    for (counter, expected) in [("events_received", events), ("destination_events_recovered", 0)] {
        let counted = metrics.sum(&format!("flagtap_{counter}_total"), &[]);
        assert_eq!(counted, expected as f64, "{counter}");
    }
    oracle::assert_delivered(&metrics, "archive", events);
    let lines = setup.exported();
    let twice = oracle::judge("archive", &lines, &answered, &sent);
    assert!(twice.is_empty(), "in the file more than once: {twice:?}");
    let mut in_retries = 0;
    for (name, requests) in [("lake", lake.requests()), ("hook", hook.requests())] {
        let lines: Vec<String> = requests.iter().flat_map(|request| request.lines.clone()).collect();
        oracle::judge(name, &lines, &answered, &sent);
        let unaccounted = oracle::unaccounted(&requests);
        assert!(unaccounted.is_empty(), "{name}: repeated though noted: {unaccounted:?}");
        oracle::assert_delivered(&metrics, name, oracle::acknowledged(&requests, "last"));
        oracle::assert_delivered(&metrics, name, events);
        let in_retry = cut_short_in_a_retry(&requests);
        println!(
            "{name}: {} requests, {in_retry} lives ended within a retry",
            requests.len()
        );
        in_retries += in_retry;
    }
    assert!(in_retries > ROUNDS / 10, "only {in_retries} lives ended within a retry");
}

/// Returns how many lives ended with events that had been refused, or whose answer was lost.
fn cut_short_in_a_retry(requests: &[Request]) -> usize {
    let lives: BTreeSet<&String> = requests.iter().map(|request| &request.life).collect();
    let last = |life: &String| requests.iter().rev().find(|request| request.life == *life);
    let failed = |request: &&Request| request.lines.is_empty() || !request.told;
    lives.into_iter().filter_map(last).filter(failed).count()
}

/// Scenario: made-up requests of two lives.
/// Guarantees: a repetition of what was noted is seen, one that nobody could avoid is not held against the relay.
#[test]
fn a_repetition_of_what_was_noted_is_seen() {
    let request = |life: &str, told: bool, names: &[&str]| Request {
        life: life.to_owned(),
        lines: names
            .iter()
            .map(|name| json!({ "event": { "id": name } }).to_string())
            .collect(),
        told,
    };
    let requests = [
        request("one", false, &["unheard"]),
        request("one", true, &["noted"]),
        request("one", true, &["in-flight"]),
        request("two", true, &["in-flight", "noted", "unheard"]),
    ];
    assert_eq!(
        oracle::unaccounted(&requests).into_iter().collect::<Vec<_>>(),
        ["noted"]
    );
    let refused_in_between = [
        request("one", true, &["noted"]),
        request("one", true, &[]),
        request("two", true, &["noted"]),
    ];
    assert_eq!(oracle::unaccounted(&refused_in_between).len(), 1);
    let twice_in_one_life = [request("one", true, &["noted"]), request("one", true, &["noted"])];
    assert_eq!(oracle::unaccounted(&twice_in_one_life).len(), 1);
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
