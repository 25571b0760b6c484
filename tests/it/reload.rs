//! Another configuration while traffic goes on: on a signal, when the file changes, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::support::export::{markers, read_lines};
use crate::support::load::Load;
use crate::support::relay::marked;
use crate::support::{Relay, SDK_KEY, Setup, Upstream, eventually};

/// Returns how often a reload came to `outcome`.
fn reloads(relay: &Relay, outcome: &str) -> f64 {
    let labels = [("outcome", outcome)];
    relay.metrics().sum("flagtap_configuration_reloads_total", &labels)
}

/// Writes the configuration anew, as a whole.
fn rewrite(setup: &Setup) {
    let (path, next) = (folder(setup, "config.yaml"), folder(setup, "config.next"));
    fs::write(&next, setup.config.to_string()).unwrap();
    fs::rename(&next, &path).unwrap();
}

/// Writes the configuration anew, asks for it by signal, and waits until it is in force.
fn reload(relay: &Relay, setup: &Setup) {
    let before = reloads(relay, "applied");
    rewrite(setup);
    relay.signal("HUP");
    eventually("the reload", || (reloads(relay, "applied") > before).then_some(()));
}

fn status(relay: &Relay) -> Value {
    serde_json::from_slice(&relay.telemetry("/status").unwrap().body).unwrap()
}

fn file(setup: &Setup, name: &str) -> Value {
    json!({ "name": name, "file": { "path": folder(setup, name) } })
}

fn folder(setup: &Setup, name: &str) -> PathBuf {
    setup.queue().parent().unwrap().join(name)
}

/// Returns how often each marker is in the files of a destination.
fn counted(folder: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for marker in markers(&read_lines(folder)) {
        *counts.entry(marker).or_default() += 1;
    }
    counts
}

/// Scenario: senders post 10,000 batches while the configuration is reloaded 100 times: each time export settings (of one sender's events), retry
/// settings and limits change, one destination is paused and goes on, one is changed, and one leaves and comes back.
/// Guarantees: every answer is the upstream's; the destination that stays gets every event exactly once, the one that is
/// changed and the one that is paused too, and the one that leaves gets no event twice and none that was not sent.
#[test]
fn nothing_is_lost_or_doubled_by_100_reloads_under_10_000_requests() {
    const REQUESTS: usize = 10_000;
    const RELOADS: usize = 100;
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let others = ["changed", "paused", "leaves"].map(|name| file(&setup, name));
    setup.config["destinations"].as_array_mut().unwrap().extend(others);
    setup.config["environments"][0]["destinations"] = json!(["archive", "changed", "paused", "leaves"]);
    let relay = Relay::start(&setup);
    let load = Load::new(4, 64).of_up_to(2);
    let working = load.start(relay.address());
    let whole = setup.config.clone();
    for round in 0..RELOADS {
        // Evenly over the requests.
        let due = round * REQUESTS / RELOADS;
        eventually("the next requests", || (load.answers() >= due).then_some(()));
        setup.config = whole.clone();
        if round % 2 == 0 {
            setup.config["destinations"][1]["retry"] = json!({ "initial": "2s" });
            setup.config["destinations"][2]["paused"] = json!(true);
            setup.config["destinations"].as_array_mut().unwrap().pop();
            setup.config["environments"][0]["destinations"] = json!(["archive", "changed", "paused"]);
            setup.config["environments"][0]["export"] = json!({ "custom_events": { "exclude": ["load-3-*"] } });
            setup.config["tee"]["on_failure"] = json!("refuse");
            setup.config["tee"]["max_body"] = json!("8MiB");
        }
        reload(&relay, &setup);
    }
    eventually("the last requests", || (load.answers() >= REQUESTS).then_some(()));
    working.stop();
    load.finish(relay.address());
    assert_eq!((load.refusals(), load.breaks()), (0, 0));
    let scrape = relay.settle();
    assert_eq!(
        scrape.sum("flagtap_configuration_reloads_total", &[("outcome", "refused")]),
        0.0
    );
    assert_eq!(scrape.sum("flagtap_batches_not_teed_total", &[]), 0.0);
    relay.stop();
    let answered = load.answered();
    let (toggled, always): (BTreeSet<&String>, BTreeSet<&String>) =
        answered.iter().partition(|marker| marker.starts_with("load-3-"));
    let mut chosen = BTreeSet::new();
    for name in ["export", "changed", "paused"] {
        let counts = counted(&folder(&setup, name));
        assert!(counts.values().all(|count| *count == 1), "{name}: an event was doubled");
        let (some, all): (BTreeSet<&String>, BTreeSet<&String>) =
            counts.keys().partition(|marker| marker.starts_with("load-3-"));
        assert!(all == always, "{name}: {} of {}", all.len(), always.len());
        assert!(some.is_subset(&toggled), "{name}: an event was made up");
        chosen.insert(some.into_iter().cloned().collect::<BTreeSet<String>>());
    }
    // What was selected is decided once, when a request comes in.
    assert_eq!(chosen.len(), 1, "the destinations differ");
    let chosen = chosen.pop_first().unwrap();
    let filtered = scrape.sum("flagtap_events_filtered_total", &[("reason", "custom_event_excluded")]);
    assert_eq!((toggled.len() - chosen.len()) as f64, filtered);
    let least = toggled.len() / 10;
    assert!(
        chosen.len() > least && toggled.len() - chosen.len() > least,
        "{} of {}",
        chosen.len(),
        toggled.len()
    );
    let left = counted(&folder(&setup, "leaves"));
    assert!(left.values().all(|count| *count == 1) && left.keys().all(|marker| answered.contains(marker)));
    assert!(
        !left.is_empty() && left.len() < answered.len(),
        "{} of {}",
        left.len(),
        answered.len()
    );
}

/// Scenario: an environment's export settings are changed and the signal is sent; a new environment with a new key and a
/// new destination comes; then the first destination is paused, and goes on.
/// Guarantees: each concerns the requests that come after it; what is exported to a paused destination waits for it, and
/// the status says that it is paused.
#[test]
fn a_signal_brings_environments_destinations_and_pauses() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    assert_eq!(relay.post("one", &json!([marked("one")])).status, 202);
    setup.config["environments"][0]["export"] = json!({ "custom_events": { "exclude": ["tw*"] } });
    reload(&relay, &setup);
    assert_eq!(relay.post("two", &json!([marked("two"), marked("three")])).status, 202);

    setup.config["environments"][0]["credentials"]["sdk_keys"] = json!([]);
    let second = json!({ "name": "second", "credentials": { "sdk_keys": [SDK_KEY] }, "destinations": ["new"] });
    setup.config["environments"].as_array_mut().unwrap().push(second);
    let new = file(&setup, "new");
    setup.config["destinations"].as_array_mut().unwrap().push(new);
    reload(&relay, &setup);
    assert_eq!(relay.post("four", &json!([marked("four")])).status, 202);
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one", "three"]);
    assert_eq!(markers(&read_lines(&folder(&setup, "new"))), ["four"]);

    setup.config["destinations"][1]["paused"] = json!(true);
    reload(&relay, &setup);
    assert_eq!(relay.post("five", &json!([marked("five")])).status, 202);
    assert_eq!(status(&relay)["destinations"]["new"]["state"], "paused");
    assert_eq!(status(&relay)["destinations"]["new"]["waiting"], 1);
    assert_eq!(relay.metrics().sum("flagtap_destination_paused", &[]), 1.0);
    setup.config["destinations"][1]["paused"] = json!(false);
    reload(&relay, &setup);
    relay.settle();
    assert_eq!(markers(&read_lines(&folder(&setup, "new"))), ["four", "five"]);

    // It leaves, while something is exported elsewhere, and its cursor is listed.
    let new = setup.config["destinations"].as_array_mut().unwrap().pop().unwrap();
    setup.config["environments"][1]["destinations"] = json!(["archive"]);
    reload(&relay, &setup);
    assert_eq!(relay.post("six", &json!([marked("six")])).status, 202);
    eventually("the cursor to be listed", || {
        (status(&relay)["queue"]["cursors_without_destination"] == json!(["new"])).then_some(())
    });
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one", "three", "six"]);

    // Once more, with an event that waits for it.
    let mut paused = new;
    paused["paused"] = json!(true);
    setup.config["destinations"].as_array_mut().unwrap().push(paused);
    setup.config["environments"][1]["destinations"] = json!(["archive", "new"]);
    reload(&relay, &setup);
    assert_eq!(relay.post("seven", &json!([marked("seven")])).status, 202);
    setup.config["destinations"].as_array_mut().unwrap().pop();
    setup.config["environments"][1]["destinations"] = json!(["archive"]);
    reload(&relay, &setup);
    let said = eventually("a warning", || {
        relay.find_log(
            "events wait for a destination that is not in the configuration, until it is again or a limit removes them",
        )
    });
    assert_eq!((&said["destination"], &said["events"]), (&json!("new"), &json!(1)));
    relay.stop();
}

/// Scenario: the configuration and a key's file are mounted as Kubernetes mounts them, and `..data` is led elsewhere, once
/// with another configuration, once with another key.
/// Guarantees: both come into force without a signal.
#[test]
fn a_swapped_configmap_comes_into_force_by_itself() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let mount = folder(&setup, "mount");
    setup.config["environments"][0]["credentials"] = json!({ "sdk_keys_file": mount.join("keys") });
    let version = |name: &str, config: &Value, key: &str| {
        fs::create_dir_all(mount.join(name)).unwrap();
        fs::write(mount.join(name).join("config.yaml"), config.to_string()).unwrap();
        fs::write(mount.join(name).join("keys"), key).unwrap();
        symlink(name, mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    version("..1", &setup.config, "sdk-another\n");
    symlink("..data/keys", mount.join("keys")).unwrap();
    symlink("..data/config.yaml", mount.join("config.yaml")).unwrap();
    // The file that the relay is started with is a link to the mounted one.
    let path = setup.write();
    fs::remove_file(&path).unwrap();
    symlink(mount.join("config.yaml"), &path).unwrap();
    let relay = Relay::start_from(&setup, &path);
    relay.post("one", &json!([marked("one")]));
    version("..2", &setup.config, &format!("{SDK_KEY}\n"));
    eventually("the new key", || (reloads(&relay, "applied") == 1.0).then_some(()));
    relay.post("two", &json!([marked("two")]));
    setup.config["environments"][0]["export"] = json!({ "kinds": ["feature"] });
    version("..3", &setup.config, &format!("{SDK_KEY}\n"));
    eventually("the new settings", || (reloads(&relay, "applied") == 2.0).then_some(()));
    relay.post("three", &json!([marked("three")]));
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["two"]);
    relay.stop();
}

/// Scenario: the file is broken in two places; then it is right again, with a listen address that cannot change.
/// Guarantees: the broken one is refused as a whole, and log, metric and status say what is wrong; the old one goes on.
/// The right one is in force by itself, but for the address, which is named.
#[test]
fn a_broken_file_is_refused_as_a_whole() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let mut relay = Relay::start(&setup);
    relay.tolerate("is not a known key");
    relay.tolerate("the new configuration is refused");
    relay.tolerate("is no regular file");
    let whole = setup.config.clone();
    setup.config["environments"][0]["export"] = json!({ "custom_events": { "exclude": ["*"] } });
    setup.config["destinations"][0]["file"]["gzipp"] = json!(true);
    setup.config["telemetri"] = json!("127.0.0.1:1");
    // Only a warning.
    let environment = setup.config["environments"][0].as_object_mut().unwrap();
    environment.remove("project_id");
    rewrite(&setup);
    relay.signal("HUP");
    eventually("the refusal", || (reloads(&relay, "refused") >= 1.0).then_some(()));
    let problems = status(&relay)["configuration"]["refused"]["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");
    for part in ["telemetri", "gzipp"] {
        assert!(problems.to_string().contains(part), "{problems}");
        relay.await_log(part);
    }
    assert_eq!(relay.metrics().sum("flagtap_configuration_refused", &[]), 1.0);
    assert_eq!(relay.post("one", &json!([marked("one")])).status, 202);
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one"]);

    // A pipe, to which nobody writes.
    let path = folder(&setup, "config.yaml");
    let pipe = folder(&setup, "pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::rename(&pipe, &path).unwrap();
    eventually("the pipe to be refused", || {
        let refused = status(&relay)["configuration"]["refused"].to_string();
        refused.contains("is no regular file").then_some(())
    });
    fs::remove_file(&path).unwrap();

    setup.config = whole;
    setup.config["listen"] = json!("127.0.0.1:1");
    setup.config["queue"]["max_bytes"] = json!("2GiB");
    setup.config["environments"][0]["export"] = json!({ "custom_events": { "exclude": ["tw*"] } });
    rewrite(&setup);
    eventually("the right file", || (reloads(&relay, "applied") == 1.0).then_some(()));
    assert_eq!(status(&relay)["configuration"]["refused"], Value::Null);
    assert_eq!(
        status(&relay)["configuration"]["waits_for_restart"],
        json!(["listen.address", "queue.max_bytes"])
    );
    assert_eq!(relay.metrics().sum("flagtap_configuration_waits_for_restart", &[]), 1.0);
    assert_eq!(relay.metrics().sum("flagtap_configuration_refused", &[]), 0.0);
    assert_eq!(relay.post("two", &json!([marked("two"), marked("three")])).status, 202);
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one", "three"]);
    relay.stop();
}

/// Scenario: one of two destinations does not answer; the other is changed again and again.
/// Guarantees: the request under way to the first is neither broken off nor repeated.
#[test]
fn what_is_under_way_to_others_is_left_alone() {
    let upstream = Upstream::accepting();
    let receiver = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::new(upstream.address());
    let slow = json!({ "name": "slow", "webhook": { "url": format!("http://{}/", receiver.local_addr().unwrap()) } });
    setup.config["destinations"].as_array_mut().unwrap().push(slow);
    setup.config["environments"][0]["destinations"] = json!(["archive", "slow"]);
    let relay = Relay::start(&setup);
    let hold = thread::spawn(move || receiver.accept().unwrap());
    assert_eq!(relay.post("one", &json!([marked("one")])).status, 202);
    let (stream, _) = hold.join().unwrap();
    for round in 0..5 {
        setup.config["destinations"][0]["retry"] = json!({ "initial": format!("{}s", round + 2) });
        reload(&relay, &setup);
        assert_eq!(relay.post(&format!("r{round}"), &json!([marked("more")])).status, 202);
    }
    eventually("six events in the archive", || {
        (setup.exported().len() == 6).then_some(())
    });
    stream.set_nonblocking(true).unwrap();
    let mut request = Vec::new();
    let read = std::io::Read::read_to_end(&mut &stream, &mut request);
    // Still open: there is nothing to read now, and it has not ended.
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(String::from_utf8_lossy(&request).matches("POST /").count(), 1);
    assert_eq!(status(&relay)["destinations"]["slow"]["state"], "delivering");
    drop(stream);
    drop(relay);
}
