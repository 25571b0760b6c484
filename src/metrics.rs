//! Every metric flagtap has, declared once: name, labels and help text. `docs/metrics.md` is generated from here.
//!
//! There is no global recorder: a [`Metrics`] is passed to whoever counts, so tests have their own. Label values are
//! enums, route templates or configured names, never anything from traffic but the versions of known SDKs, which are
//! digits and bounded in number.
//!
//! The counters satisfy, per environment and once no request is in flight,
//! `received = filtered + duplicate + queued + not_teed`, and per environment and destination
//! `recovered + queued + requeued = delivered + skipped + dead + dropped + evicted + corrupt + waiting`.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// What kind of value a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution in buckets, in seconds.
    Histogram,
}

/// One metric's declaration.
#[derive(Debug)]
pub struct Definition {
    /// Full name, base unit included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Type,
    /// Label names, in the order in which values are passed.
    pub labels: &'static [&'static str],
    /// One sentence for `# HELP` and `docs/metrics.md`.
    pub help: &'static str,
}

macro_rules! inventory {
    ($($ident:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $ident: Definition = Definition {
            name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help,
        };)*
        /// Every metric, in the order of the documentation.
        pub const INVENTORY: &[&Definition] = &[$(&$ident),*];
    };
}

inventory! {
    BUILD_INFO: Gauge "flagtap_build_info" ["version"] "Always 1; the label says which version runs.";
    TASK_PANICS: Counter "flagtap_task_panics_total" ["task"] "Panics of a task that was started again.";
    LOG_LINES_LOST: Counter "flagtap_log_lines_lost_total" [] "Lines of the log that nobody took in time, or that standard error could not be given.";
    CONFIGURATION_RELOADS: Counter "flagtap_configuration_reloads_total" ["outcome"] "Times the configuration file was read again: `applied`, `refused`, or `unchanged` although somebody asked.";
    CONFIGURATION_REFUSED: Gauge "flagtap_configuration_refused" [] "1 while the configuration file cannot be used as it is now and an earlier one is in force, else 0.";
    CONFIGURATION_RESTART: Gauge "flagtap_configuration_waits_for_restart" [] "1 while the configuration file has values that only a restart brings into force, else 0.";
    CONNECTIONS: Gauge "flagtap_connections" [] "Open client connections.";
    CONNECTIONS_ACCEPTED: Counter "flagtap_connections_accepted_total" [] "Client connections accepted.";
    REQUESTS: Counter "flagtap_requests_total" ["route", "status"] "Requests by route template and class of their answer (`2xx` …); `none` if the client left before it had one. Shed requests are in `flagtap_request_errors_total` only.";
    REQUEST_SECONDS: Histogram "flagtap_request_seconds" ["route"] "Time from the request's head to the answer's head.";
    REQUEST_ERRORS: Counter "flagtap_request_errors_total" ["fault", "reason"] "Answers that flagtap made up itself, by whose fault it was (`client`, `upstream`, `relay`).";
    IN_FLIGHT_BYTES: Gauge "flagtap_in_flight_bytes" [] "Bytes of captured bodies held in memory.";
    BATCHES_RECEIVED: Counter "flagtap_batches_received_total" ["environment"] "Requests on event routes. Every one is in exactly one of the next four.";
    BATCHES_FILTERED: Counter "flagtap_batches_filtered_total" ["environment"] "Batches with nothing to export.";
    BATCHES_DUPLICATE: Counter "flagtap_batches_duplicate_total" ["environment"] "Batches recognised as an SDK's retry.";
    BATCHES_QUEUED: Counter "flagtap_batches_queued_total" ["environment"] "Batches appended to the queue.";
    BATCHES_NOT_TEED: Counter "flagtap_batches_not_teed_total" ["environment", "reason"] "Batches that passed through without a copy, by reason.";
    EVENTS_RECEIVED: Counter "flagtap_events_received_total" ["environment"] "Events in decoded batches. Every one is in exactly one of filtered, duplicate, queued and not teed.";
    EVENTS_BY_SDK: Counter "flagtap_events_received_by_sdk_total" ["sdk", "version", "support"] "The same events by who sent them; `support` is `too_old` for SDKs older than Data Export asks for. At most 64 pairs of SDK and version, then `other`.";
    EVENTS_FILTERED: Counter "flagtap_events_filtered_total" ["environment", "reason"] "Events that the export settings leave out, by reason.";
    EVENTS_DUPLICATE: Counter "flagtap_events_duplicate_total" ["environment"] "Selected events of batches recognised as an SDK's retry.";
    EVENTS_QUEUED: Counter "flagtap_events_queued_total" ["environment"] "Events appended to the queue.";
    EVENTS_NOT_TEED: Counter "flagtap_events_not_teed_total" ["environment", "reason"] "Selected events that could not be appended, by reason.";
    DESTINATION_QUEUED: Counter "flagtap_destination_events_queued_total" ["environment", "destination"] "Events appended to the queue for this destination.";
    DESTINATION_REQUEUED: Counter "flagtap_destination_events_requeued_total" ["environment", "destination"] "Dead letters appended to the queue again for this destination.";
    DESTINATION_RECOVERED: Counter "flagtap_destination_events_recovered_total" ["environment", "destination"] "Events found waiting in the queue when it was opened.";
    DESTINATION_DELIVERED: Counter "flagtap_destination_events_delivered_total" ["environment", "destination"] "Events the destination acknowledged.";
    DESTINATION_SKIPPED: Counter "flagtap_destination_events_skipped_total" ["environment", "destination", "reason"] "Events that are not for this kind of destination.";
    DESTINATION_DEAD: Counter "flagtap_destination_events_dead_total" ["environment", "destination"] "Events kept as dead letters.";
    DESTINATION_DROPPED: Counter "flagtap_destination_events_dropped_total" ["environment", "destination"] "Events that were out of tries and are gone, as `retry: { then: drop }` says. Data loss.";
    DESTINATION_EVICTED: Counter "flagtap_destination_events_evicted_total" ["environment", "destination"] "Events that a limit of the queue removed before they were settled. Data loss.";
    DESTINATION_LIMITED: Counter "flagtap_destination_events_limited_total" ["destination", "limit"] "The same events, by the limit that removed them: `max_bytes`, `max_age`, `unknown` if that was in an earlier run.";
    DESTINATION_CORRUPT: Counter "flagtap_destination_events_corrupt_total" ["environment", "destination"] "Events lost to corruption before they were settled. Data loss.";
    DESTINATION_WAITING: Gauge "flagtap_destination_events_waiting" ["environment", "destination"] "Events in the queue that are not settled.";
    DESTINATION_OLDEST_WAITING: Gauge "flagtap_destination_oldest_waiting_seconds" ["destination"] "Age of the oldest event that is not settled; 0 when nothing waits.";
    DESTINATION_REQUESTS: Counter "flagtap_destination_requests_total" ["destination", "outcome"] "Requests to the destination: `delivered` (all items), `partial`, `retry`, `blocked`, `split` or `rejected`.";
    DESTINATION_REQUEST_SECONDS: Histogram "flagtap_destination_request_seconds" ["destination"] "Duration of a request to the destination.";
    DESTINATION_RETRIED: Counter "flagtap_destination_events_retried_total" ["destination"] "Events sent again after a failed try.";
    DESTINATION_BLOCKED: Gauge "flagtap_destination_blocked" ["destination"] "1 while the destination refuses flagtap's configuration (credentials, name), else 0.";
    DESTINATION_BREAKER: Gauge "flagtap_destination_breaker" ["destination"] "2 while the destination is down and only single events are tried (open), 1 while it comes back in growing requests (half open), else 0 (closed).";
    DESTINATION_PAUSED: Gauge "flagtap_destination_paused" ["destination"] "1 while delivery is paused by `paused: true`, else 0.";
    CATALOGUE_READS: Counter "flagtap_catalogue_reads_total" ["outcome"] "Reads of LaunchDarkly's REST API: `read`, `refused` (the token), `unreachable` or `strange` (not what is documented).";
    CATALOGUE_READ_TIME: Gauge "flagtap_catalogue_read_timestamp_seconds" [] "When LaunchDarkly's REST API was last read, Unix time; 0 before that.";
    QUEUE_AVAILABLE: Gauge "flagtap_queue_available" [] "1 while the queue takes appends, 0 while the tee is off.";
    QUEUE_BYTES: Gauge "flagtap_queue_bytes" [] "Bytes the queue uses on disk.";
    QUEUE_APPEND_SECONDS: Histogram "flagtap_queue_append_seconds" [] "Time until an append was durable.";
    QUEUE_CORRUPT_RECORDS: Counter "flagtap_queue_corrupt_records_total" [] "Records that could not be read any more.";
    QUEUE_QUARANTINED: Counter "flagtap_queue_quarantined_total" [] "Parts of the queue set aside because they could not be opened.";
    QUEUE_QUARANTINE_BYTES: Gauge "flagtap_queue_quarantine_bytes" [] "Bytes on disk of the parts of the queue that were set aside.";
    QUEUE_DEAD_LETTERS: Gauge "flagtap_queue_dead_letters" ["destination"] "Dead letters kept.";
    QUEUE_UNCONFIGURED_CURSORS: Gauge "flagtap_queue_unconfigured_cursors" [] "Cursors whose destination is not in the configuration; what waits for them holds disk space until a limit removes it.";
    INJECTOR_REVIEWS: Counter "flagtap_injector_reviews_total" ["outcome"] "Admission reviews that the injector answered: `injected`, `not_asked`, `present` (the pod has the sidecar), `refused` (the pod cannot have it) or `failed` (not a review of a new pod).";
    INJECTOR_CERTIFICATE_FAILURES: Counter "flagtap_injector_certificate_failures_total" [] "Times that the injector could not look after its certificate: read or write the Secret, or tell the API server of its authority.";
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

// Requests take from a tenth of a millisecond (a relay on loopback) to half a minute (an upstream's timeout).
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The process's metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Metrics {
    /// Returns a fresh set with every declaration registered.
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for definition in INVENTORY.iter().filter(|d| d.kind == Type::Histogram) {
            // Fails only for an empty bucket list.
            if let Ok(with) =
                std::mem::take(&mut builder).set_buckets_for_metric(Matcher::Full(definition.name.to_owned()), BUCKETS)
            {
                builder = with;
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        for definition in INVENTORY {
            let name = KeyName::from_const_str(definition.name);
            let help = SharedString::const_str(definition.help);
            let unit: Option<Unit> = None;
            match definition.kind {
                Type::Counter => recorder.describe_counter(name, unit, help),
                Type::Gauge => recorder.describe_gauge(name, unit, help),
                Type::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
        Self { recorder, handle }
    }

    /// Returns the counter with these label values (one per declared label, in order).
    pub fn counter(&self, definition: &'static Definition, values: &[&str]) -> Counter {
        debug_assert_eq!(definition.kind, Type::Counter, "{}", definition.name);
        self.recorder.register_counter(&key(definition, values), &METADATA)
    }

    /// Returns the gauge with these label values.
    pub fn gauge(&self, definition: &'static Definition, values: &[&str]) -> Gauge {
        debug_assert_eq!(definition.kind, Type::Gauge, "{}", definition.name);
        self.recorder.register_gauge(&key(definition, values), &METADATA)
    }

    /// Returns the histogram with these label values; record seconds.
    pub fn histogram(&self, definition: &'static Definition, values: &[&str]) -> Histogram {
        debug_assert_eq!(definition.kind, Type::Histogram, "{}", definition.name);
        self.recorder.register_histogram(&key(definition, values), &METADATA)
    }

    /// Returns everything in the Prometheus text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds histogram samples into their buckets; called at intervals so that memory stays flat without scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn key(definition: &'static Definition, values: &[&str]) -> Key {
    debug_assert_eq!(definition.labels.len(), values.len(), "labels of {}", definition.name);
    let labels: Vec<Label> = definition
        .labels
        .iter()
        .zip(values)
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(definition.name, labels)
}

/// Returns `docs/metrics.md`: the whole inventory as a table.
pub fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n<!-- Generated by `flagtap metrics`; `make docs` writes it and a test compares. -->\n\n\
         Served by the telemetry port at `/metrics`. Counters start at 0 with the process.\n\n\
         | metric | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for definition in INVENTORY {
        let kind = match definition.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let labels: Vec<String> = definition.labels.iter().map(|label| format!("`{label}`")).collect();
        text.push_str(&format!(
            "| `{}` | {kind} | {} | {} |\n",
            definition.name,
            labels.join(", "),
            definition.help
        ));
    }
    text.push_str(
        "\n## The conservation equations\n\n\
         Once no request is in flight, for every environment\n\n\
         ```text\nbatches_received = batches_filtered + batches_duplicate + batches_queued + batches_not_teed\n\
         events_received  = events_filtered + events_duplicate + events_queued + events_not_teed\n```\n\n\
         and for every environment and destination\n\n\
         ```text\nrecovered + queued + requeued = delivered + skipped + dead + dropped + evicted + corrupt + waiting\n```\n\n\
         A dead letter that goes out again counts as `requeued` when it is appended again, beside the `dead` of its first end.\n\n\
         A batch that could not be decoded (too large, broken, an unknown encoding) counts as a batch that was not teed; \
         its events cannot be counted.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for definition in INVENTORY {
            assert!(definition.name.starts_with("flagtap_"), "{}", definition.name);
            assert_eq!(
                definition.name.ends_with("_total"),
                definition.kind == Type::Counter,
                "{}",
                definition.name
            );
            assert!(definition.help.ends_with('.'), "{}", definition.name);
        }
    }

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::new();
        metrics.counter(&EVENTS_QUEUED, &["production"]).increment(3);
        metrics.histogram(&QUEUE_APPEND_SECONDS, &[]).record(0.002);
        let text = metrics.render();
        assert!(
            text.contains("flagtap_events_queued_total{environment=\"production\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("flagtap_queue_append_seconds_bucket{le=\"0.0025\"} 1"),
            "{text}"
        );
    }
}
