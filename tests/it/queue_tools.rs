//! `flagtap queue`: what it says of a stopped queue and beside a running relay, and what it does to dead letters and
//! damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::support::command::flagtap;
use crate::support::export::{id, markers, read_lines};
use crate::support::letters::{Narrow, large};
use crate::support::relay::marked;
use crate::support::{Connection, NOBODY, Relay, Setup, Upstream, eventually};

/// Scenario: a destination that is not there.
/// Guarantees: `inspect` says how many events failed and when the first is due again, beside the relay and after it.
#[test]
fn what_is_to_be_tried_again_is_shown() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    setup.config["destinations"][0] =
        json!({ "name": "archive", "webhook": { "url": format!("http://{NOBODY}/hook") } });
    let relay = Relay::start(&setup);
    let config = setup.write();
    relay.post("one", &json!([marked("one"), marked("two")]));
    let shown = || flagtap("queue inspect --json", &config).json()["destinations"]["archive"].clone();
    let beside = eventually("both to have failed", || {
        Some(shown()).filter(|shown| shown["failed"] == 2)
    });
    assert!(beside["next_try"].is_string(), "{beside}");
    let table = flagtap("queue inspect", &config).out;
    assert!(
        table.contains("to be tried again") && table.contains("2, first in "),
        "{table}"
    );
    relay.kill();
    assert_eq!(shown()["failed"], 2);
}

/// Scenario: one event is out of tries at a destination that is not there, another waits to be tried again, and something was
/// set aside; a destination left the configuration.
/// Guarantees: `/api/status` has every fact that `inspect --json` shows beside the running relay.
#[test]
fn the_status_has_every_fact_that_inspect_shows() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let webhook = |attempts: u64, over: &str| {
        let retry = json!({ "attempts": attempts, "over": over });
        json!({ "name": "hook", "webhook": { "url": format!("http://{NOBODY}/hook") }, "retry": retry })
    };
    setup.config["environments"][0]["destinations"] = json!(["archive", "hook"]);
    let both = setup.config["destinations"].as_array().unwrap().clone();
    setup.config["destinations"] = json!([both[0], webhook(1, "1s")]);
    let relay = Relay::start(&setup);
    relay.post("one", &json!([marked("one")]));
    eventually("the event to be given up", || {
        (relay.metrics().sum("flagtap_queue_dead_letters", &[]) == 1.0).then_some(())
    });
    relay.stop();
    let set_aside = setup.queue().join("quarantine/generation-00000000000000000007");
    fs::create_dir_all(&set_aside).unwrap();
    fs::write(set_aside.join("db"), vec![0; 9_000]).unwrap();
    // `archive` goes.
    setup.config["environments"][0]["destinations"] = json!(["hook"]);
    setup.config["destinations"] = json!([webhook(5, "30m")]);
    let relay = Relay::start(&setup);
    relay.post("two", &json!([marked("two"), marked("three")]));
    let config = setup.write();
    let asked = |relay: &Relay| {
        let request = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let answer = Connection::open(relay.admin_address()).exchange(request).unwrap();
        serde_json::from_slice::<Value>(&answer.body).unwrap()
    };
    // What a try changed between the two is the same a moment later, and what files take is looked at once a second.
    let sizes = |parts: &Value| -> Vec<Value> {
        parts
            .as_array()
            .unwrap()
            .iter()
            .map(|part| part["bytes"].clone())
            .collect()
    };
    let (shown, status) = eventually("the two to be of one moment", || {
        let before = asked(&relay);
        let shown = flagtap("queue inspect --json", &config).json();
        let failed = shown["destinations"]["hook"]["failed"].as_u64() > Some(0);
        let queue = &before["queue"];
        let same = *queue == asked(&relay)["queue"] && sizes(&queue["parts"]) == sizes(&shown["parts"]);
        (same && failed).then_some((shown, before))
    });
    assert_eq!(shown["in_use"], true);
    let status = &status["queue"];
    for fact in ["next_position", "dead_letters", "damaged_dead_letters", "quarantine"] {
        assert_eq!(status[fact], shown[fact], "{fact}");
    }
    assert_eq!(status["dead_letters"], json!({ "hook": 1 }));
    assert_eq!(status["quarantine"][0]["name"], "generation-00000000000000000007");
    let parts = status["parts"].as_array().unwrap();
    assert!(!parts.is_empty());
    for (part, shown) in parts.iter().zip(shown["parts"].as_array().unwrap()) {
        for (fact, value) in part.as_object().unwrap() {
            assert_eq!(*value, shown[fact], "{fact}");
        }
    }
    assert_eq!(status["cursors_without_destination"], json!(["archive"]));
    let cursors = status["cursors"].as_array().unwrap();
    assert_eq!(cursors.len(), 2);
    for cursor in cursors {
        let name = cursor["destination"].as_str().unwrap();
        let of = |fact: &str| status[fact].get(name).cloned().unwrap_or(json!(0));
        let mut said = cursor.clone();
        said["cursor"] = said["position"].take();
        said["dead_letters"] = of("dead_letters");
        said["transient_dead_letters"] = of("transient_dead_letters");
        for (fact, value) in shown["destinations"][name].as_object().unwrap() {
            assert_eq!(said[fact], *value, "{name}: {fact}");
        }
    }
    assert_eq!(status["transient_dead_letters"], json!({ "hook": 1 }));
    relay.kill();
}

/// Scenario: an event is given up; it is listed and shown beside the running relay and on the stopped folder, replayed on
/// the stopped folder, exported, and delivered by the next start.
/// Guarantees: the commands say the same in both; the folder is not changed by looking; the event is delivered once, with
/// the id it was given up with; the equations hold.
#[test]
fn a_dead_letter_is_replayed_on_a_stopped_queue_with_its_id() {
    let upstream = Upstream::accepting();
    let mut narrow = Narrow::new(&upstream);
    let relay = Relay::start(&narrow.setup);
    narrow.bury_one(&relay, "one");
    let config = narrow.setup.write();
    let beside = flagtap("queue dead-letters list --json", &config);
    assert_eq!(beside.code, Some(0), "{beside:?}");
    let running = flagtap("queue inspect --json", &config).json();
    assert_eq!(running["in_use"], true);
    relay.stop();

    let before = listing(&narrow.setup.queue());
    let stopped = flagtap("queue dead-letters list --json", &config);
    assert_eq!(stopped.lines(), beside.lines());
    let letter = &stopped.lines()[0];
    assert_eq!(
        (&letter["destination"], &letter["kind"], &letter["flag"]),
        (&json!("lake"), &json!("custom"), &Value::Null)
    );
    let shown = flagtap("queue dead-letters show --kind custom --reason bytes", &config).json();
    assert_eq!(shown["event"], large("one"));
    let table = flagtap("queue dead-letters list", &config).out;
    assert!(table.contains(letter["id"].as_str().unwrap()), "{table}");
    let none = flagtap("queue dead-letters list --flag other --json", &config);
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    let inspected = flagtap("queue inspect --json", &config).json();
    assert_eq!(
        (&inspected["in_use"], &inspected["dead_letters"]),
        (&json!(false), &json!({ "lake": 1 }))
    );
    assert_eq!(inspected["destinations"]["lake"]["waiting"], json!({}));
    let verified = flagtap("queue verify --json", &config);
    assert_eq!((verified.code, &verified.json()["damaged"]), (Some(0), &json!(0)));
    assert_eq!(verified.json()["dead_letters"], 1);
    assert_eq!(listing(&narrow.setup.queue()), before, "looking changed the folder");

    let replayed = flagtap("queue dead-letters replay --destination lake", &config);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    assert!(replayed.error.contains("replayed 1 dead letters"), "{replayed:?}");
    let inspected = flagtap("queue inspect --json", &config).json();
    assert_eq!(inspected["destinations"]["lake"]["waiting"], json!({ "production": 1 }));
    assert_eq!(inspected["dead_letters"], json!({}));
    let exported = flagtap("queue export --destination lake", &config);
    assert_eq!(exported.code, Some(0), "{exported:?}");
    let waiting: Vec<String> = exported.out.lines().map(str::to_owned).collect();
    assert_eq!(markers(&waiting), ["large-one"]);
    assert_eq!(id(&waiting[0]), letter["id"].as_str().unwrap());

    narrow.take_up_to("1MiB");
    let relay = Relay::start(&narrow.setup);
    relay.settle();
    let delivered: Vec<String> = narrow.kinesis.lines();
    assert_eq!(markers(&delivered), ["small-one", "large-one"]);
    assert_eq!(id(&delivered[1]), letter["id"].as_str().unwrap());
    assert_eq!(delivered[1], waiting[0]);
    relay.stop();
}

/// Scenario: an event is given up, the limit is raised, and it is replayed and another discarded while the relay runs.
/// Guarantees: the commands go through the admin port; `discard` does nothing without `--yes`; counters and equations
/// hold with `requeued`; the replayed event is delivered once with its id.
#[test]
fn dead_letters_are_replayed_and_discarded_beside_a_running_relay() {
    let upstream = Upstream::accepting();
    let mut narrow = Narrow::new(&upstream);
    narrow.setup.config["admin"] = json!({ "listen": "127.0.0.1:0", "token": "a-token-for-this-test" });
    let relay = Relay::start(&narrow.setup);
    narrow.bury_one(&relay, "one");
    narrow.bury_one(&relay, "two");
    relay.stop();
    narrow.take_up_to("1MiB");
    let relay = Relay::start(&narrow.setup);
    // The file still says port 0.
    let config = narrow.setup.write();
    let token = config.with_file_name("token");
    fs::write(&token, "a-token-for-this-test\n").unwrap();
    let admin = format!(
        "--admin {} --admin-token-file {}",
        relay.admin_address(),
        token.display()
    );
    let letters = flagtap("queue dead-letters list --json", &config).lines();
    let ids: Vec<&str> = letters.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2);

    let replay = format!("queue dead-letters replay {admin} --id {}", ids[0]);
    let replayed = flagtap(&replay, &config);
    assert!(replayed.error.contains("replayed 1 dead letters"), "{replayed:?}");
    let again = flagtap(&replay, &config);
    assert!(again.error.contains("replayed 0 dead letters"), "{again:?}");
    fs::write(&token, "another").unwrap();
    let refused = flagtap(&replay, &config);
    assert_eq!(refused.code, Some(1));
    assert!(refused.error.contains("the token is missing or wrong"), "{refused:?}");
    fs::write(&token, "a-token-for-this-test").unwrap();
    let scrape = relay.settle();
    assert_eq!(
        scrape.sum("flagtap_destination_events_requeued_total", &[("destination", "lake")]),
        1.0
    );
    assert_eq!(scrape.sum("flagtap_queue_dead_letters", &[]), 1.0);
    let delivered = narrow.kinesis.lines();
    assert_eq!(delivered.iter().filter(|line| id(line) == ids[0]).count(), 1);

    let asked = flagtap(&format!("queue dead-letters discard {admin}"), &config);
    assert_eq!(asked.code, Some(1));
    assert!(asked.error.contains("1 dead letters would be removed"), "{asked:?}");
    let discarded = flagtap(&format!("queue dead-letters discard --yes {admin}"), &config);
    assert!(discarded.error.contains("discarded 1 dead letters"), "{discarded:?}");
    assert_eq!(flagtap("queue dead-letters list --json", &config).out, "");
    relay.stop();
}

/// Scenario: dead letters are to be replayed while a relay without an admin port has the queue open.
/// Guarantees: nothing is changed, and the message says what is missing.
#[test]
fn without_an_admin_port_a_running_relay_is_left_alone() {
    let upstream = Upstream::accepting();
    let mut narrow = Narrow::new(&upstream);
    narrow.setup.config["admin"] = json!("off");
    let relay = Relay::start(&narrow.setup);
    narrow.bury_one(&relay, "one");
    let config = narrow.setup.write();
    for command in ["queue dead-letters replay", "queue dead-letters discard --yes"] {
        let said = flagtap(command, &config);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.error.contains("open in a running relay"), "{said:?}");
        assert!(said.error.contains("--admin ADDRESS"), "{said:?}");
    }
    let repair = flagtap("queue repair", &config);
    assert_eq!(repair.code, Some(1));
    assert!(repair.error.contains("open in another process"), "{repair:?}");
    assert_eq!(flagtap("queue dead-letters list --json", &config).lines().len(), 1);
    relay.stop();
}

/// Scenario: events wait for a destination that cannot take them; the database that holds them is damaged.
/// Guarantees: `verify` says so with exit code 1 and names the part; `repair` moves it aside, byte by byte; after it
/// `verify` is content and the relay goes on.
#[test]
fn damage_is_named_and_set_aside() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let export = setup.queue().with_file_name("export");
    fs::write(&export, "in the way of the folder").unwrap();
    let relay = Relay::start(&setup);
    relay.post("one", &json!([marked("lost"), marked("lost too")]));
    eventually("the events to wait", || {
        (relay.metrics().sum("flagtap_destination_events_waiting", &[]) == 2.0).then_some(())
    });
    relay.stop();
    let config = setup.write();
    assert_eq!(flagtap("queue verify", &config).code, Some(0));
    let waiting = flagtap("queue export", &config).out;
    assert_eq!(waiting.lines().count(), 2);

    let part = fs::read_dir(setup.queue().join("generations"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    fs::write(part.path().join("db"), vec![0xff; 100_000]).unwrap();
    fs::write(part.path().join("conf"), "not the configuration of a database").unwrap();
    let verified = flagtap("queue verify --json", &config);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert_eq!(verified.json()["damage"][0]["part"], 0);
    let lost = json!([{ "destination": "archive", "environment": "production", "events": 2 }]);
    assert_eq!(
        (&verified.json()["lost"], &verified.json()["lost_may_be_more"]),
        (&lost, &json!(false))
    );
    let repaired = flagtap("queue repair --json", &config);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    let moved = repaired.json()["moved"][0]["name"].as_str().unwrap().to_owned();
    let as_found = repaired.json()["moved"][1]["name"].as_str().unwrap().to_owned();
    let bytes = fs::read(setup.queue().join("quarantine").join(&as_found).join("db")).unwrap();
    assert_eq!(bytes, vec![0xff; 100_000]);
    assert_eq!(flagtap("queue verify", &config).code, Some(0));
    assert!(flagtap("queue inspect", &config).out.contains(&moved));

    fs::remove_file(&export).unwrap();
    setup.config["log"]["level"] = json!("info");
    let relay = Relay::start(&setup);
    relay.post("two", &json!([marked("kept")]));
    relay.settle();
    relay.stop();
    assert_eq!(markers(&read_lines(&export)), ["kept"]);
}

/// Scenario: commands on a folder without a queue, on none, and with filters that mean nothing.
/// Guarantees: each says what is wrong, and no folder is made.
#[test]
fn what_cannot_be_done_is_said() {
    let upstream = Upstream::start();
    let mut setup = Setup::new(upstream.address());
    let config = setup.write();
    for command in [
        "inspect",
        "verify",
        "repair",
        "export",
        "dead-letters list",
        "dead-letters replay",
    ] {
        let said = flagtap(&format!("queue {command}"), &config);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.error.contains("there is no queue at"), "{said:?}");
    }
    assert!(!setup.queue().exists());
    let wrong = flagtap("queue dead-letters list --since yesterday", &config);
    assert!(wrong.error.contains("`since` is no time"), "{wrong:?}");
    setup.config["queue"] = json!("memory");
    let config = setup.write();
    let memory = flagtap("queue inspect", &config);
    assert!(memory.error.contains("in memory"), "{memory:?}");
}

fn listing(path: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        files.push((entry.path(), metadata.len(), metadata.modified().unwrap()));
        if metadata.is_dir() {
            files.extend(listing(&entry.path()));
        }
    }
    files.sort();
    files
}
