//! The tee's table of decisions and its outcomes with their counters, over LaunchDarkly's real protocol and a queue
//! that answers what the test wants.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Request};

use super::*;
use crate::event::Kind;
use crate::export::selection;
use crate::platform::Route;
use crate::platform::launchdarkly::{DecodeLimits, EnvironmentCredentials, LaunchDarkly};
use crate::proxy::OnFailure;
use crate::queue::{AppendError, ConsumeError, Consumer, Position, Stats};

const SDK_KEY: &str = "sdk-1";
const PATH_ID: &str = "0a8a7c4d049f77d84df36cdd";
const CUSTOM: &str = r#"{"kind":"custom","key":"a"}"#;
const SUMMARY: &str = r#"{"kind":"summary"}"#;

/// Keeps what is appended and gives the planned answers, then `Stored`.
#[derive(Default)]
struct FakeQueue {
    answers: Mutex<VecDeque<Result<Appended, AppendError>>>,
    entries: Mutex<Vec<Entry>>,
}

#[async_trait]
impl Queue for FakeQueue {
    async fn append(&self, entry: Entry) -> Result<Appended, AppendError> {
        self.entries.lock().unwrap().push(entry);
        let planned = self.answers.lock().unwrap().pop_front();
        planned.unwrap_or(Ok(Appended::Stored(Position(0))))
    }

    async fn consumer(&self, _: &str) -> Result<Box<dyn Consumer>, ConsumeError> {
        Err(ConsumeError::Closed)
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    async fn close(&self) {}
}

struct Bench {
    platform: Arc<dyn Platform>,
    queue: Arc<FakeQueue>,
    metrics: Arc<Metrics>,
    tee: Tee,
}

impl Bench {
    /// A tee over one environment, `production`, with an SDK key and the client-side id [`PATH_ID`].
    fn new(when: When, environment_id: &str) -> Self {
        let production = EnvironmentCredentials::new("production")
            .with_key(SDK_KEY)
            .with_client_side_id(PATH_ID);
        let platform: Arc<dyn Platform> = Arc::new(LaunchDarkly::new(vec![production], DecodeLimits::default()));
        let (queue, metrics) = (Arc::new(FakeQueue::default()), Arc::new(Metrics::new()));
        let environment = TeeEnvironment {
            name: "production".to_owned(),
            project_id: "project".to_owned(),
            environment_id: environment_id.to_owned(),
            selection: Selection::new(selection::Settings::default()),
            coverage: Arc::new(coverage::Environment::new("production", HashMap::new())),
            goal: 0,
            destinations: vec!["archive".to_owned(), "lake".to_owned()],
        };
        let settings = PolicySettings {
            when,
            on_failure: OnFailure::Pass,
            max_body: 16 * 1024,
            append_timeout: Duration::from_secs(3),
            payload_window: Duration::from_secs(1000),
            body_window: Duration::from_secs(10),
        };
        let policy = Policy::new(Arc::clone(&platform), vec![environment], settings, &metrics);
        let tee = Tee::new(
            policy,
            Arc::clone(&queue) as Arc<dyn Queue>,
            64 * 1024,
            Arc::clone(&metrics),
        );
        Self {
            platform,
            queue,
            metrics,
            tee,
        }
    }

    fn plan(&self, answer: Result<Appended, AppendError>) {
        self.queue.answers.lock().unwrap().push_back(answer);
    }

    /// Offers a post to `path` as the relay would, with the identity that its credential gives.
    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str, judgement: Judgement) -> Outcome {
        let request = headers.iter().fold(Request::post(path), |request, (name, value)| {
            request.header(*name, *value)
        });
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let Route::Events(route) = self.platform.classify(&Method::POST, path) else {
            panic!("{path} is no event route");
        };
        let identity = self.platform.identify(&route, &parts.headers);
        self.offer(parts, body, route, identity, judgement).await
    }

    async fn offer(
        &self,
        parts: Parts,
        body: &str,
        route: EventRoute,
        identity: Identity,
        judgement: Judgement,
    ) -> Outcome {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let fingerprint = match identity {
            Identity::Known(environment) | Identity::Lone(environment) => Some(self.platform.fingerprint(
                &Captured {
                    query: parts.uri.query(),
                    headers: &parts.headers,
                    body: &body,
                    route: &route,
                },
                environment,
            )),
            Identity::Unknown => None,
        };
        let offer = Offer {
            policy: self.tee.policy(),
            received_ms: 1_700_000_000_000,
            parts: Arc::new(parts),
            body,
            route,
            identity,
            fingerprint,
            judgement,
        };
        self.tee.offer(offer).await
    }

    /// Offers `body` on `/bulk` with the configured SDK key and a payload id, accepted by the upstream.
    async fn bulk(&self, body: &str) -> Outcome {
        let headers = [
            ("authorization", SDK_KEY),
            ("x-launchdarkly-event-schema", "4"),
            ("x-launchdarkly-payload-id", "payload"),
        ];
        self.post("/bulk", &headers, body, Judgement::Accepted).await
    }

    fn entries(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.queue.entries.lock().unwrap())
    }

    /// Returns a counter's value, summed over the label values that are not given.
    fn count(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics.render();
        let samples = text.lines().filter(|line| {
            line.split('{').next() == Some(&format!("flagtap_{name}_total"))
                && labels.iter().all(|label| line.contains(&format!("\"{label}\"")))
        });
        samples
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Checks both conservation equations of `environment` against what was received.
    fn assert_balance(&self, environment: &str, batches: u64, events: u64) {
        for (what, received) in [("batches", batches), ("events", events)] {
            let term = |outcome: &str| self.count(&format!("{what}_{outcome}"), &[environment]);
            assert_eq!(term("received"), received, "{what} received");
            let parts = ["filtered", "duplicate", "queued", "not_teed"].map(term);
            assert_eq!(parts.iter().sum::<u64>(), received, "{what}: {parts:?}");
        }
    }
}

#[tokio::test]
async fn credential_and_judgement_decide_who_is_admitted() {
    use Judgement::{Accepted, None, Rejected};
    let (known, lone, unknown) = (Identity::Known(0), Identity::Lone(0), Identity::Unknown);
    let rejected = Outcome::NotTeed("rejected_by_upstream");
    let stranger = Outcome::NotTeed("unknown_credential");
    let unjudged = Outcome::NotTeed("not_accepted_by_upstream");
    let table = [
        (Accepted, known, Outcome::Queued, Outcome::Queued),
        (Accepted, lone, Outcome::Queued, Outcome::Queued),
        (Accepted, unknown, stranger, stranger),
        (Rejected, known, rejected, rejected),
        (Rejected, lone, rejected, rejected),
        (Rejected, unknown, rejected, rejected),
        (None, known, Outcome::Queued, unjudged),
        (None, lone, unjudged, unjudged),
        (None, unknown, stranger, stranger),
    ];
    for (judgement, identity, not_rejected, accepted) in table {
        for (when, expected) in [(When::NotRejected, not_rejected), (When::Accepted, accepted)] {
            let bench = Bench::new(when, "environment");
            let (parts, ()) = Request::post("/bulk").body(()).unwrap().into_parts();
            let Route::Events(route) = bench.platform.classify(&Method::POST, "/bulk") else {
                panic!("no event route");
            };
            let body = format!("[{CUSTOM}]");
            let outcome = bench.offer(parts, &body, route, identity, judgement).await;
            let case = format!("{judgement:?}, {identity:?}, {when:?}");
            assert_eq!(outcome, expected, "{case}");
            let queued = expected == Outcome::Queued;
            assert_eq!(bench.entries().len(), usize::from(queued), "{case}");
            let environment = if identity == unknown { UNKNOWN } else { "production" };
            // What is not admitted is not decoded either, so its events are not counted.
            bench.assert_balance(environment, 1, u64::from(queued));
            if let Outcome::NotTeed(reason) = expected {
                assert_eq!(bench.count("batches_not_teed", &[environment, reason]), 1, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn selected_events_are_queued_as_they_came_and_the_rest_is_counted() {
    let bench = Bench::new(When::NotRejected, "environment");
    let spaced = r#"{ "kind" : "custom", "n": 1e2 }"#;
    let body = format!(r#"[{SUMMARY},{spaced},{{"kind":"migration_op"}},{CUSTOM}]"#);
    assert_eq!(bench.bulk(&body).await, Outcome::Queued);
    let [entry] = &bench.entries()[..] else {
        panic!("not one entry");
    };
    let kept: Vec<(u32, Kind, &[u8])> = entry
        .record
        .events
        .iter()
        .map(|event| (event.index, event.kind, event.json.as_ref()))
        .collect();
    assert_eq!(
        kept,
        [
            (1, Kind::Custom, spaced.as_bytes()),
            (3, Kind::Custom, CUSTOM.as_bytes())
        ]
    );
    assert_eq!(entry.record.destinations, ["archive", "lake"]);
    assert_eq!(entry.record.origin.environment, "production");
    assert_eq!(entry.record.origin.project_id, "project");
    assert_eq!(entry.record.received_ms, 1_700_000_000_000);
    assert_eq!(entry.mark.window, Duration::from_secs(1000));
    bench.assert_balance("production", 1, 4);
    assert_eq!(bench.count("events_queued", &[]), 2);
    assert_eq!(bench.count("events_filtered", &["kind_not_selected"]), 1);
    assert_eq!(bench.count("events_filtered", &["kind_not_exportable"]), 1);
}

#[tokio::test]
async fn a_batch_with_nothing_to_export_is_filtered() {
    let bench = Bench::new(When::NotRejected, "environment");
    for body in [format!("[{SUMMARY},{SUMMARY}]"), "[]".to_owned()] {
        assert_eq!(bench.bulk(&body).await, Outcome::Filtered);
    }
    assert!(bench.entries().is_empty());
    bench.assert_balance("production", 2, 2);
    assert_eq!(bench.count("batches_filtered", &[]), 2);
}

#[tokio::test]
async fn a_repetition_is_counted_as_a_duplicate() {
    let bench = Bench::new(When::NotRejected, "environment");
    bench.plan(Ok(Appended::Stored(Position(7))));
    bench.plan(Ok(Appended::Duplicate));
    let body = format!("[{CUSTOM},{SUMMARY},{CUSTOM}]");
    assert_eq!(bench.bulk(&body).await, Outcome::Queued);
    assert_eq!(bench.bulk(&body).await, Outcome::Duplicate);
    let entries = bench.entries();
    assert_eq!(entries[0].mark.key, entries[1].mark.key);
    assert_eq!(entries[0].record.id_seed, entries[1].record.id_seed);
    bench.assert_balance("production", 2, 6);
    assert_eq!(bench.count("batches_duplicate", &[]), 1);
    assert_eq!(bench.count("events_duplicate", &[]), 2);
}

#[tokio::test]
async fn a_queue_that_refuses_is_counted_by_its_reason() {
    let bench = Bench::new(When::NotRejected, "environment");
    let refusals = [
        AppendError::TooLarge { bytes: 2, limit: 1 },
        AppendError::Full { bytes: 2, limit: 1 },
        AppendError::NoSpace { free: 0, headroom: 1 },
        AppendError::Unavailable {
            why: "broken".to_owned(),
        },
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        let reason = refusal.metric_label();
        assert!(HOLES.contains(&reason), "{reason} is not shown from the start");
        bench.plan(Err(refusal));
        let body = format!("[{SUMMARY},{CUSTOM},{CUSTOM}]");
        assert_eq!(bench.bulk(&body).await, Outcome::Failed(reason));
        assert_eq!(bench.count("batches_not_teed", &["production", reason]), 1);
        assert_eq!(bench.count("events_not_teed", &["production", reason]), 2);
        let received = number as u64 + 1;
        bench.assert_balance("production", received, 3 * received);
    }
}

#[tokio::test]
async fn a_body_that_is_no_batch_is_counted_by_its_reason() {
    let bench = Bench::new(When::NotRejected, "environment");
    let bodies = [
        ("", "[{]", "broken_json"),
        ("", r#"{"kind":"diagnostic"}"#, "not_an_array"),
        ("gzip", "no gzip", "broken_encoding"),
        ("br", "[]", "unknown_encoding"),
    ];
    for (encoding, body, reason) in bodies {
        let mut headers = vec![("authorization", SDK_KEY)];
        headers.extend((!encoding.is_empty()).then_some(("content-encoding", encoding)));
        let outcome = bench.post("/bulk", &headers, body, Judgement::Accepted).await;
        assert_eq!(outcome, Outcome::NotTeed(reason));
        assert_eq!(bench.count("batches_not_teed", &["production", reason]), 1);
        // Only what may hold events that LaunchDarkly takes is a hole.
        assert_eq!(HOLES.contains(&reason), reason == "unknown_encoding", "{reason}");
    }
    for error in [DecodeError::InflatesTooFar, DecodeError::TooManyEvents] {
        assert!(HOLES.contains(&error.metric_label()), "{error}");
    }
    bench.assert_balance("production", 4, 0);
}

#[tokio::test]
async fn the_path_names_the_environment_where_the_configuration_does_not() {
    let path = format!("/events/bulk/{PATH_ID}");
    let body = format!("[{CUSTOM}]");
    for (configured, path, exported) in [
        ("", path.as_str(), PATH_ID),
        ("configured", &path, "configured"),
        ("", "/bulk", ""),
        ("configured", "/bulk", "configured"),
    ] {
        let bench = Bench::new(When::NotRejected, configured);
        let headers = [("authorization", SDK_KEY)];
        let outcome = bench.post(path, &headers, &body, Judgement::Accepted).await;
        assert_eq!(outcome, Outcome::Queued, "{path}");
        let record = &bench.entries()[0].record;
        assert_eq!(record.origin.environment_id, exported, "{configured:?} {path}");
    }
}

#[tokio::test]
async fn what_cannot_be_an_id_is_not_exported_as_one() {
    let bench = Bench::new(When::NotRejected, "");
    let path = "/events/bulk/a%2Fb";
    let (parts, ()) = Request::post(path).body(()).unwrap().into_parts();
    let Route::Events(route) = bench.platform.classify(&Method::POST, path) else {
        panic!("no event route");
    };
    assert_eq!(route.client_side_id.as_deref(), Some("a%2Fb"));
    let body = format!("[{CUSTOM}]");
    let outcome = bench
        .offer(parts, &body, route, Identity::Lone(0), Judgement::Accepted)
        .await;
    assert_eq!(outcome, Outcome::Queued);
    assert_eq!(bench.entries()[0].record.origin.environment_id, "");
}

#[tokio::test]
async fn a_batch_without_payload_id_is_remembered_for_the_short_window() {
    let bench = Bench::new(When::NotRejected, "environment");
    let body = format!("[{CUSTOM}]");
    let headers = [("authorization", SDK_KEY)];
    bench.post("/bulk", &headers, &body, Judgement::Accepted).await;
    assert_eq!(bench.entries()[0].mark.window, Duration::from_secs(10));
}

#[tokio::test]
async fn a_batch_heavier_than_the_memory_for_decoding_has_its_outcome_too() {
    let bench = Bench::new(When::NotRejected, "environment");
    let body = format!("[{}]", vec![CUSTOM; 3000].join(","));
    assert!(body.len() > DECODE_ON_THREAD);
    assert_eq!(bench.bulk(&body).await, Outcome::Queued);
    assert_eq!(bench.entries()[0].record.events.len(), 3000);
    bench.assert_balance("production", 1, 3000);
}

#[tokio::test]
async fn a_batch_that_was_not_captured_counts_for_its_environment() {
    let bench = Bench::new(When::NotRejected, "environment");
    bench.tee.pass_by(&bench.tee.policy(), Identity::Known(0), "too_large");
    bench
        .tee
        .pass_by(&bench.tee.policy(), Identity::Lone(0), "memory_budget");
    bench.tee.pass_by(&bench.tee.policy(), Identity::Unknown, "too_large");
    bench.assert_balance("production", 2, 0);
    bench.assert_balance(UNKNOWN, 1, 0);
    assert_eq!(bench.count("batches_not_teed", &["production", "memory_budget"]), 1);
}
