//! Numbers of events: by environment, and by destination and environment. Pure arithmetic, shared by the ledger, the
//! engines and what looks into a queue from outside. Nothing here goes below zero.

use std::collections::BTreeMap;

use crate::record::codec::Header;

/// Events by environment.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Cumulative events by destination and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals(pub(crate) BTreeMap<String, Counts>);

impl Totals {
    /// Returns the counts of one destination.
    pub(crate) fn of(&self, name: &str) -> Counts {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Returns whether the destination got anything between `self` and the later `end`.
    pub(crate) fn grew(&self, end: &Self, name: &str) -> bool {
        end.0.get(name) != self.0.get(name)
    }

    /// Counts a record.
    pub(crate) fn add(&mut self, header: &Header) {
        for (index, name) in header.destinations.iter().enumerate() {
            if header.destinations[..index].contains(name) {
                continue;
            }
            let counts = self.0.entry(name.clone()).or_default();
            *counts.entry(header.environment.clone()).or_default() += u64::from(header.events);
        }
    }
}

/// Adds events of an environment.
pub(crate) fn add(counts: &mut Counts, environment: &str, events: u64) {
    match counts.get_mut(environment) {
        Some(count) => *count += events,
        None if events > 0 => drop(counts.insert(environment.to_owned(), events)),
        None => {}
    }
}

/// Takes events of an environment away, down to none.
pub(crate) fn subtract(counts: &mut Counts, environment: &str, events: u64) {
    if let Some(count) = counts.get_mut(environment) {
        *count = count.saturating_sub(events);
    }
}

/// Returns what `of` has beyond `less`; environments without any are left out.
pub(crate) fn difference(of: &Counts, less: &Counts) -> Counts {
    of.iter()
        .map(|(environment, count)| {
            (
                environment.clone(),
                count.saturating_sub(less.get(environment).copied().unwrap_or(0)),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Returns the counts as [`crate::queue::Stats`] shows them.
pub(crate) fn list(counts: &Counts) -> Vec<(String, u64)> {
    let counts = counts.iter().filter(|(_, count)| **count > 0);
    counts
        .map(|(environment, count)| (environment.clone(), *count))
        .collect()
}
