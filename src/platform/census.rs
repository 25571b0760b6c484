//! Events received by SDK and version, so that SDKs too old for Data Export can be named.
//!
//! Bounded, because versions come from clients: at most eight versions of one SDK and sixty-four pairs are told apart;
//! what is beyond counts as version or SDK `other`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Counter;

use crate::metrics::{EVENTS_BY_SDK, Metrics};
use crate::platform::{Sdk, Support};

/// Pairs of SDK and version, `other` included.
const PAIRS: usize = 64;

/// Versions of one SDK.
const VERSIONS: usize = 8;

const OTHER: &str = "other";

type Key = (&'static str, String, Support);

/// Who sends events.
pub struct Census {
    metrics: Arc<Metrics>,
    seen: Mutex<BTreeMap<Key, (Counter, u64)>>,
}

/// One line of the census.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The SDK's name in its user agent, `unknown` or `other`.
    pub sdk: &'static str,
    /// Its version; empty if not known, `other` beyond the bound.
    pub version: String,
    /// Whether Data Export works with it.
    pub support: Support,
    /// Events received since the start.
    pub events: u64,
}

impl Census {
    /// Returns a census of nobody.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            seen: Mutex::default(),
        }
    }

    /// Counts events.
    pub fn count(&self, sdk: Sdk, events: u64) {
        let mut seen = self.lock();
        let key = place(&seen, (sdk.name, sdk.version, sdk.support));
        let (counter, total) = seen.entry(key).or_insert_with_key(|(name, version, support)| {
            let labels = [*name, version.as_str(), support.as_str()];
            (self.metrics.counter(&EVENTS_BY_SDK, &labels), 0)
        });
        counter.increment(events);
        *total += events;
    }

    /// Returns what was counted, by name and version.
    pub fn counted(&self) -> Vec<Counted> {
        let seen = self.lock();
        let lines = seen.iter().map(|((sdk, version, support), (_, events))| Counted {
            sdk,
            version: version.clone(),
            support: *support,
            events: *events,
        });
        lines.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (Counter, u64)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(seen: &BTreeMap<Key, (Counter, u64)>, key: Key) -> Key {
    if seen.contains_key(&key) {
        return key;
    }
    let (name, ..) = key;
    let versions = seen.keys().filter(|(known, ..)| *known == name).count();
    let key = if versions < VERSIONS {
        key
    } else {
        (name, OTHER.to_owned(), Support::Unknown)
    };
    // One place is left for all that do not find one.
    if seen.contains_key(&key) || seen.len() + 1 < PAIRS {
        key
    } else {
        (OTHER, OTHER.to_owned(), Support::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdk(name: &'static str, version: u32, support: Support) -> Sdk {
        Sdk {
            name,
            version: format!("{version}.0.0"),
            support,
        }
    }

    #[test]
    fn events_are_counted_by_sdk_and_version() {
        let metrics = Arc::new(Metrics::new());
        let census = Census::new(Arc::clone(&metrics));
        census.count(sdk("GoClient", 4, Support::TooOld), 2);
        census.count(sdk("GoClient", 4, Support::TooOld), 3);
        census.count(sdk("GoClient", 7, Support::Supported), 1);
        let counted: Vec<(String, u64)> = (census.counted().into_iter())
            .map(|line| (line.version, line.events))
            .collect();
        assert_eq!(counted, [("4.0.0".to_owned(), 5), ("7.0.0".to_owned(), 1)]);
        let line = "flagtap_events_received_by_sdk_total{sdk=\"GoClient\",version=\"4.0.0\",support=\"too_old\"} 5";
        assert!(metrics.render().contains(line), "{}", metrics.render());
    }

    #[test]
    fn invented_versions_stay_bounded_and_lose_no_count() {
        const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        let census = Census::new(Arc::new(Metrics::new()));
        for name in NAMES {
            for version in 0..100 {
                census.count(sdk(name, version, Support::Supported), 1);
            }
        }
        let counted = census.counted();
        assert!(counted.len() <= PAIRS, "{}", counted.len());
        assert_eq!(counted.iter().map(|line| line.events).sum::<u64>(), 1200);
        let of_a = counted.iter().filter(|line| line.sdk == "a");
        assert_eq!(of_a.clone().count(), VERSIONS + 1);
        assert_eq!(
            of_a.filter(|line| line.version == OTHER)
                .map(|line| line.events)
                .sum::<u64>(),
            92
        );
    }
}
