//! The relay's `/metrics` as numbers, and the equations that they have to satisfy (`src/metrics.rs`).

use std::collections::{BTreeMap, BTreeSet};

/// One scrape: the sample's name with its labels as printed, and its value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads the Prometheus text format.
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pairs = samples.filter_map(|line| line.rsplit_once(' '));
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
                .collect(),
        )
    }

    /// Returns the sum of a metric's samples that have all of `labels`; 0 if there are none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |sample: &str| {
            sample.split('{').next() == Some(name)
                && labels
                    .iter()
                    .all(|(key, value)| sample.contains(&format!("{key}=\"{value}\"")))
        };
        self.0
            .iter()
            .filter(|(sample, _)| wanted(sample))
            .map(|(_, value)| value)
            .sum()
    }

    /// Returns the values that a label has anywhere.
    fn label_values(&self, label: &str) -> BTreeSet<String> {
        let start = format!("{label}=\"");
        let values = self
            .0
            .keys()
            .filter_map(|sample| Some(sample.split_once(&start)?.1.split('"').next()?.to_owned()));
        values.collect()
    }

    /// Returns the first conservation equation that does not hold, written out with its numbers.
    pub(crate) fn imbalance(&self) -> Option<String> {
        let environments = self.label_values("environment");
        for environment in &environments {
            let here = [("environment", environment.as_str())];
            for what in ["batches", "events"] {
                let term = |outcome: &str| self.sum(&format!("flagtap_{what}_{outcome}_total"), &here);
                let parts = ["filtered", "duplicate", "queued", "not_teed"].map(term);
                if term("received") != parts.iter().sum::<f64>() {
                    return Some(format!(
                        "{environment}: {what} received {} but filtered, duplicate, queued, not_teed {parts:?}",
                        term("received")
                    ));
                }
            }
            for destination in &self.label_values("destination") {
                let here = [
                    ("environment", environment.as_str()),
                    ("destination", destination.as_str()),
                ];
                let term = |outcome: &str| self.sum(&format!("flagtap_destination_events_{outcome}"), &here);
                let before = ["recovered_total", "queued_total", "requeued_total"].map(term);
                let after = [
                    "delivered_total",
                    "skipped_total",
                    "dead_total",
                    "dropped_total",
                    "evicted_total",
                    "corrupt_total",
                    "waiting",
                ]
                .map(term);
                if before.iter().sum::<f64>() != after.iter().sum::<f64>() {
                    return Some(format!(
                        "{environment} to {destination}: recovered, queued, requeued {before:?} but delivered, skipped, dead, \
                         dropped, evicted, corrupt, waiting {after:?}"
                    ));
                }
            }
        }
        None
    }
}
