//! Whatever a service answers and whenever the process dies, every event ends exactly once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::fakes::{Answer, FakeDestination, FakeQueue, Running};
use crate::destination::Verdict;
use crate::drain::Settings;
use crate::export::event_ids;
use crate::queue::Limit;

fn verdict(number: u8) -> Verdict {
    match number {
        0..=4 => Verdict::Delivered,
        5..=6 => Verdict::Retry {
            after: None,
            why: "throttled".to_owned(),
        },
        7 => Verdict::Blocked {
            why: "forbidden".to_owned(),
        },
        8 => Verdict::Split,
        _ => Verdict::Reject { why: "bad".to_owned() },
    }
}

// The script: a verdict per event in turn, then only deliveries, so that every run comes to an end.
fn destination(mut script: Vec<u8>, latency: Duration) -> FakeDestination {
    script.reverse();
    FakeDestination::new(move |names| {
        let whole_request = script.len().is_multiple_of(5);
        let verdicts: Vec<Verdict> = names.iter().map(|_| verdict(script.pop().unwrap_or(0))).collect();
        match verdicts.first() {
            Some(first) if whole_request => Answer::Verdicts(vec![first.clone(); names.len()]),
            _ => Answer::Verdicts(verdicts),
        }
    })
    .with_latency(latency)
    .with_items(4)
    .with_keys(3)
    .with_requests(usize::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(100)
    })]
    #[test]
    fn every_event_is_settled_exactly_once(
        batches in prop::collection::vec(1usize..8, 1..12),
        script in prop::collection::vec(0u8..10, 0..120),
        crashes in prop::collection::vec(1u64..60_000, 0..4),
        window in 1usize..20,
        latency_ms in 0u64..50,
        concurrency in 1usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let queue = FakeQueue::default();
            for (batch, events) in batches.iter().enumerate() {
                let names: Vec<String> = (0..*events).map(|event| format!("{batch}.{event}")).collect();
                queue.append(&names.iter().map(String::as_str).collect::<Vec<_>>());
            }
            let window = Some(Limit { records: window, bytes: 1000 });
            let settings = Settings { window, concurrency, ..Settings::default() };
            let destination = Arc::new(destination(script, Duration::from_millis(latency_ms)));
            for crash in crashes {
                let running = Running::start_with(&queue, destination.clone(), settings.clone());
                tokio::time::sleep(Duration::from_millis(crash)).await;
                running.crash().await;
            }
            let running = Running::start_with(&queue, destination.clone(), settings);
            running.drained().await;

            let mut ended: BTreeMap<String, usize> = BTreeMap::new();
            for id in destination.delivered_ids() {
                *ended.entry(id).or_default() += 1;
            }
            for letter in &queue.lock().letters {
                *ended.entry(event_ids(&letter.record).remove(0)).or_default() += 1;
            }
            let expected: BTreeMap<String, usize> =
                queue.lock().records.iter().flat_map(|(_, record)| event_ids(record)).map(|id| (id, 1)).collect();
            assert_eq!(ended, expected);
            assert!(queue.is_settled());
            assert!(queue.lock().note.is_empty());
        });
    }
}
