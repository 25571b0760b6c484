//! What destinations got, held against what was sent: as sets of ids, with every repetition counted and accounted for.
//!
//! A repetition is accounted for where nobody could have avoided it: the answer to the earlier request was lost, or the
//! relay was killed before it could note that request. It notes what a request came to before it sends another, so the
//! latter can be the last request of a life only.

use std::collections::{BTreeMap, BTreeSet};

use super::export::{id, markers};
use super::metrics::Scrape;

/// One request to a destination. A list of them is in the order they came.
#[derive(Clone)]
pub(crate) struct Request {
    /// The life of the relay that sent it.
    pub(crate) life: String,
    /// What the destination stored of it, as export lines; nothing if it refused.
    pub(crate) lines: Vec<String>,
    /// The answer that said so was sent.
    pub(crate) told: bool,
}

/// Returns the ids that were stored again though the relay had been told, and had had the time to note it.
pub(crate) fn unaccounted(requests: &[Request]) -> BTreeSet<String> {
    let mut last_of_life = BTreeMap::new();
    for (place, request) in requests.iter().enumerate() {
        last_of_life.insert(&request.life, place);
    }
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    let mut unaccounted = BTreeSet::new();
    for (place, request) in requests.iter().enumerate() {
        let noted = request.told && last_of_life[&request.life] != place;
        for id in request.lines.iter().map(|line| id(line)) {
            let was_noted = seen.entry(id.clone()).or_default();
            if *was_noted {
                unaccounted.insert(id);
            }
            *was_noted |= noted;
        }
    }
    unaccounted
}

/// Compares the markers a destination has with those that were answered and those that were sent, prints the counts, and
/// fails if any was lost or made up. Returns the ids that it has more than once.
pub(crate) fn judge(
    name: &str,
    lines: &[String],
    answered: &BTreeSet<String>,
    sent: &BTreeSet<String>,
) -> BTreeSet<String> {
    let exported: BTreeSet<String> = markers(lines).into_iter().collect();
    let lost: Vec<&String> = answered.difference(&exported).collect();
    let invented: Vec<&String> = exported.difference(sent).collect();
    let repeated = repeated(name, lines);
    println!(
        "{name}: {} events of {} answered, {} lost, {} made up",
        exported.len(),
        answered.len(),
        lost.len(),
        invented.len(),
    );
    assert!(lost.is_empty(), "{name}: answered and lost: {lost:?}");
    assert!(invented.is_empty(), "{name}: never sent: {invented:?}");
    let ids: BTreeSet<String> = lines.iter().map(|line| id(line)).collect();
    assert_eq!(
        ids.len(),
        exported.len(),
        "{name}: an event has one id, and an id one event"
    );
    repeated
}

/// Counts and prints how often a destination has which id; returns those that it has more than once.
pub(crate) fn repeated(name: &str, lines: &[String]) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    lines.iter().for_each(|line| *times.entry(id(line)).or_default() += 1);
    let distinct = times.len();
    let most = times.values().max().copied().unwrap_or(0);
    times.retain(|_, times| *times > 1);
    println!(
        "{name}: {} lines, {distinct} ids, {} of them more than once, at most {most} times",
        lines.len(),
        times.len()
    );
    times.into_keys().collect()
}

/// Holds what a process says it delivered against what the destination itself acknowledged to that process.
pub(crate) fn assert_delivered(metrics: &Scrape, destination: &str, acknowledged: usize) {
    let here = [("destination", destination)];
    let delivered = metrics.sum("flagtap_destination_events_delivered_total", &here);
    assert_eq!(
        delivered, acknowledged as f64,
        "{destination}: counted as delivered, and acknowledged"
    );
}

/// Returns how many lines a destination acknowledged to this life of the relay.
pub(crate) fn acknowledged(requests: &[Request], life: &str) -> usize {
    let told = requests.iter().filter(|request| request.told && request.life == life);
    told.map(|request| request.lines.len()).sum()
}
