//! The test harness proved against itself: what it cannot see, it cannot guard.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::json;

use crate::replay::{BUILDS, replay};
use crate::support::metrics::Scrape;
use crate::support::oracle;
use crate::support::recording::load;
use crate::support::{Answer, Connection, Upstream, request};

/// Scenario: recordings are replayed straight at the fake upstream, without a relay.
/// Guarantees: the fake sees exactly what was recorded, and the client exactly what was answered.
#[test]
fn a_replay_without_a_relay_is_unchanged() {
    for build in BUILDS {
        let upstream = Upstream::start();
        replay(&load(build), &upstream, upstream.address(), false);
    }
}

/// Scenario: a request comes that no plan has an answer for.
/// Guarantees: the test fails when the fake is dropped.
#[test]
fn the_fake_upstream_fails_on_an_unexpected_request() {
    let upstream = Upstream::accepting();
    let response = Connection::open(upstream.address())
        .exchange(&request("GET", "/what", &[], b""))
        .unwrap();
    assert_eq!(response.status, 599);
    assert_drop_panics(upstream);
}

/// Scenario: an answer was planned and nobody asked.
/// Guarantees: the test fails when the fake is dropped.
#[test]
fn the_fake_upstream_fails_on_an_answer_nobody_asked_for() {
    let upstream = Upstream::start();
    upstream.once("POST", "/bulk", Answer::accepted());
    assert_drop_panics(upstream);
}

/// Scenario: a request breaks off in its body.
/// Guarantees: the test fails when the fake is dropped.
#[test]
fn the_fake_upstream_fails_on_a_request_that_breaks_off() {
    let upstream = Upstream::accepting();
    let mut connection = Connection::open(upstream.address());
    connection
        .send(b"POST /bulk HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n[]")
        .unwrap();
    connection.finish_sending();
    assert!(connection.closes_silently());
    assert_drop_panics(upstream);
}

/// Scenario: counters that do not add up.
/// Guarantees: the conservation check names the equation.
#[test]
fn an_imbalance_of_the_metrics_is_seen() {
    let balanced = "flagtap_events_received_total{environment=\"a\"} 3\nflagtap_events_queued_total{environment=\"a\"} 3\n\
        flagtap_destination_events_queued_total{environment=\"a\",destination=\"d\"} 3\n\
        flagtap_destination_events_delivered_total{environment=\"a\",destination=\"d\"} 2\n\
        flagtap_destination_events_waiting{environment=\"a\",destination=\"d\"} 1\n";
    assert_eq!(Scrape::parse(balanced).imbalance(), None);
    let lost = balanced.replace(
        "delivered_total{environment=\"a\",destination=\"d\"} 2",
        "delivered_total{environment=\"a\",destination=\"d\"} 1",
    );
    assert!(Scrape::parse(&lost).imbalance().unwrap().contains("a to d"));
    let unseen = balanced.replace(
        "received_total{environment=\"a\"} 3",
        "received_total{environment=\"a\"} 4",
    );
    assert!(
        Scrape::parse(&unseen)
            .imbalance()
            .unwrap()
            .contains("events received 4")
    );
}

fn assert_drop_panics(upstream: Upstream) {
    assert!(
        catch_unwind(AssertUnwindSafe(|| drop(upstream))).is_err(),
        "the fake did not complain"
    );
}

/// Scenario: a destination lacks an event, has one that was never sent, has two ids for one, or counts wrongly.
/// Guarantees: the oracle fails on each, and on nothing else.
#[test]
fn the_oracle_sees_what_is_lost_or_made_up() {
    let line = |marker: &str, id: &str| json!({ "event": { "key": marker, "id": id } }).to_string();
    let set = |markers: &[&str]| {
        markers
            .iter()
            .map(|marker| (*marker).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let judged = |lines: &[String], answered: &[&str], sent: &[&str]| {
        catch_unwind(AssertUnwindSafe(|| {
            oracle::judge("it", lines, &set(answered), &set(sent))
        }))
    };
    let lines = [line("a", "1"), line("b", "2"), line("b", "2")];
    assert_eq!(judged(&lines, &["a"], &["a", "b"]).unwrap(), set(&["2"]));
    assert!(judged(&lines, &["a", "b", "c"], &["a", "b", "c"]).is_err(), "lost");
    assert!(judged(&lines, &["a"], &["a"]).is_err(), "made up");
    assert!(
        judged(&[line("a", "1"), line("a", "2")], &["a"], &["a"]).is_err(),
        "another id"
    );
    let counted = Scrape::parse("flagtap_destination_events_delivered_total{environment=\"a\",destination=\"it\"} 3");
    let held = |count| catch_unwind(AssertUnwindSafe(|| oracle::assert_delivered(&counted, "it", count)));
    assert!(held(3).is_ok() && held(2).is_err());
}
