//! The drain against a queue in memory and a scripted destination, in paused time.

mod at_once;
mod fakes;
mod hostile;
mod outage;
mod random;
mod redelivery;
mod tries;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Ending, Settings, State};
use crate::attempts::{Retry, Then};
use crate::destination::Verdict;
use crate::export::event_ids;
use crate::queue::Limit;

use fakes::{Answer, FakeDestination, FakeQueue, Running, eventually};

fn retry() -> Verdict {
    Verdict::Retry {
        after: None,
        why: "throttled".to_owned(),
    }
}

fn delivers() -> FakeDestination {
    FakeDestination::judging(|_| Verdict::Delivered)
}

#[tokio::test(start_paused = true)]
async fn a_lone_event_is_delivered_at_once() {
    let queue = FakeQueue::default();
    let running = Running::start(&queue, delivers());
    eventually("the drain waits", || running.status.get().state == State::Idle).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let appended = Instant::now();
    queue.append(&["a"]);
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.times(), [appended]);
    assert!(running.status.get().last_delivered.is_some());
}

#[tokio::test(start_paused = true)]
async fn requests_fill_up_under_load() {
    let queue = FakeQueue::default();
    for _ in 0..30 {
        queue.append(&["a"]);
    }
    let destination = Running::start(&queue, delivers()).drained().await;
    let sizes: Vec<usize> = destination.requests().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn redelivers_nothing_acknowledged_after_a_crash_in_mid_window() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck", "b"]);
    queue.append(&["c", "d"]);
    queue.append(&["reject", "e"]);
    let judge = |name: &str| if name == "stuck" { retry() } else { Verdict::Delivered };
    let first = Running::start(&queue, FakeDestination::judging(judge));
    let destination = first.destination.clone();
    eventually("the others", || destination.delivered().len() == 5).await;
    eventually("a commit", || queue.lock().commits > 0).await;
    first.crash().await;
    assert_eq!(destination.delivered(), ["a", "b", "c", "d", "e"]);
    assert_eq!(
        queue.lock().cursor,
        None,
        "the cursor waits for the event that is stuck"
    );

    let second = Running::start(&queue, delivers());
    eventually("the rest", || queue.is_settled()).await;
    assert_eq!(second.destination.requests(), [["stuck"]]);
    assert_eq!(queue.dead(), ["reject"]);
    // The queue counts whole records as recovered, so all seven have to leave as something.
    assert_eq!(second.counter("flagtap_destination_events_delivered_total"), 6);
    assert_eq!(second.counter("flagtap_destination_events_dead_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_crash_before_everything_is_read_again_keeps_the_first_note() {
    let queue = FakeQueue::default();
    for name in ["stuck", "b", "c"] {
        queue.append(&[name]);
    }
    let judge = |name: &str| if name == "stuck" { retry() } else { Verdict::Delivered };
    let settings = Settings {
        window: Some(Limit {
            records: 1,
            bytes: 1000,
        }),
        ..Settings::default()
    };
    let first = Running::start(&queue, FakeDestination::judging(judge));
    eventually("the others", || first.destination.delivered().len() == 2).await;
    first.crash().await;
    // This one sees no more than the first record.
    let refusing = Arc::new(
        FakeDestination::judging(|_| Verdict::Reject { why: "bad".to_owned() }).with_latency(Duration::from_secs(1)),
    );
    let second = Running::start_with(&queue, refusing, settings);
    eventually("the refusal", || !queue.dead().is_empty()).await;
    second.crash().await;
    let destination = Running::start(&queue, delivers()).drained().await;
    assert_eq!(destination.requests(), Vec::<Vec<String>>::new());
    assert!(queue.is_settled());
}

#[tokio::test(start_paused = true)]
async fn partial_failures_are_retried_per_event() {
    let queue = FakeQueue::default();
    queue.append(&["a", "b", "c", "d"]);
    let mut throttled = vec!["b", "d", "d"];
    let destination = FakeDestination::judging(move |name| match throttled.iter().position(|other| *other == name) {
        Some(place) => {
            throttled.remove(place);
            retry()
        }
        None => Verdict::Delivered,
    });
    let running = Running::start(&queue, destination);
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(
        running.destination.requests(),
        [vec!["a", "b", "c", "d"], vec!["b", "d"], vec!["d"]]
    );
    assert_eq!(running.counter("flagtap_destination_events_retried_total"), 3);
    assert_eq!(running.counter("flagtap_destination_events_delivered_total"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_event_is_dead_lettered_alone_and_the_rest_delivered() {
    let queue = FakeQueue::default();
    queue.append(&["a", "bad", "b"]);
    let ids = event_ids(&queue.lock().records[0].1);
    let running = Running::start(
        &queue,
        FakeDestination::judging(|name| match name {
            "bad" => Verdict::Reject {
                why: "no such field".to_owned(),
            },
            _ => Verdict::Delivered,
        }),
    );
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered(), ["a", "b"]);
    assert_eq!(running.destination.delivered_ids(), [ids[0].as_str(), ids[2].as_str()]);
    let letter = queue.lock().letters[0].clone();
    assert_eq!((letter.index, letter.why.as_str()), (1, "no such field"));
    assert_eq!(letter.record.destinations, ["lake"]);
    assert_eq!(event_ids(&letter.record), [ids[1].as_str()], "a replay keeps the id");
    assert_eq!(running.counter("flagtap_destination_events_dead_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_encoded_is_skipped_or_kept_and_never_sent() {
    let queue = FakeQueue::default();
    let long = "x".repeat(51);
    queue.append(&["skip", "reject", "panic", &long, "a"]);
    let running = Running::start(&queue, delivers());
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.requests(), [["a"]]);
    let whys: Vec<String> = queue.lock().letters.iter().map(|letter| letter.why.clone()).collect();
    assert_eq!(whys[..2], ["cannot be written", "encoding panicked"]);
    assert!(whys[2].contains("51 bytes"), "{whys:?}");
    assert_eq!(running.counter("flagtap_destination_events_skipped_total"), 1);
    assert_eq!(running.counter("flagtap_destination_events_dead_total"), 3);
    assert_eq!(running.counter("flagtap_task_panics_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn throttled_with_retry_after_waits_that_long() {
    let queue = FakeQueue::default();
    queue.append(&["a"]);
    let mut answers = vec![Some(Duration::from_secs(42))];
    let destination = FakeDestination::judging(move |_| match answers.pop() {
        Some(after) => Verdict::Retry {
            after,
            why: "429".to_owned(),
        },
        None => Verdict::Delivered,
    });
    let running = Running::start(&queue, destination);
    eventually("delivery", || queue.is_settled()).await;
    let times = running.destination.times();
    assert_eq!(times.len(), 2);
    let waited = times[1] - times[0];
    assert!((42.0..42.1).contains(&waited.as_secs_f64()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_destination_is_asked_once_per_wait_however_much_waits() {
    let queue = FakeQueue::default();
    let running = Running::start(&queue, FakeDestination::judging(|_| retry()));
    let start = Instant::now();
    for _ in 0..600 {
        queue.append(&["a"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let requests = running.destination.requests().len();
    assert!(requests < 60, "{requests} requests in {:?}", start.elapsed());
    assert!(matches!(running.status.get().state, State::Retrying { why, .. } if why == "throttled"));
}

#[tokio::test(start_paused = true)]
async fn blocked_loses_nothing_and_recovers() {
    let queue = FakeQueue::default();
    queue.append(&["a", "b"]);
    let start = Instant::now();
    let destination = FakeDestination::judging(move |_| {
        if start.elapsed() < Duration::from_secs(7200) {
            Verdict::Blocked {
                why: "no such stream".to_owned(),
            }
        } else {
            Verdict::Delivered
        }
    });
    let running = Running::start(&queue, destination);
    let status = running.status.clone();
    eventually(
        "the status",
        || matches!(status.get().state, State::Blocked { why, .. } if why == "no such stream"),
    )
    .await;
    assert_eq!(running.counter("flagtap_destination_blocked"), 1);
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered(), ["a", "b"]);
    assert!(queue.dead().is_empty());
    // The last but one was tried with a single event.
    assert_eq!(running.destination.requests().len(), 7200 / 30 + 2);
    assert_eq!(running.counter("flagtap_destination_blocked"), 0);
    eventually("rest", || running.status.get().state == State::Idle).await;
}

#[tokio::test(start_paused = true)]
async fn younger_events_pass_one_that_fails_until_the_window_is_full() {
    let queue = FakeQueue::default();
    queue.append(&["stuck"]);
    for _ in 0..50 {
        queue.append(&["a", "b"]);
    }
    let judge = |name: &str| if name == "stuck" { retry() } else { Verdict::Delivered };
    let settings = Settings {
        retry: Retry {
            then: Then::Keep,
            ..Retry::DEFAULT
        },
        window: Some(Limit {
            records: 6,
            bytes: 1000,
        }),
        ..Settings::default()
    };
    let destination = Arc::new(FakeDestination::judging(judge).with_items(2));
    let running = Running::start_with(&queue, destination.clone(), settings);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    let delivered = destination.delivered().len();
    assert!((38..50).contains(&delivered), "{delivered} younger events passed");
    assert_eq!(queue.lock().cursor, None);
    running.crash().await;
    let destination = Running::start(&queue, delivers()).drained().await;
    assert_eq!(destination.delivered().len(), 101 - delivered);
    assert!(queue.is_settled());
}

#[tokio::test(start_paused = true)]
async fn a_request_too_large_is_halved_until_it_fits() {
    let queue = FakeQueue::default();
    queue.append(&["a", "b", "c", "fat", "d"]);
    let running = Running::start(
        &queue,
        FakeDestination::new(|names| {
            let fits = names.len() <= 2 && !names.contains(&"fat".to_owned());
            let verdict = if fits { Verdict::Delivered } else { Verdict::Split };
            Answer::Verdicts(vec![verdict; names.len()])
        }),
    );
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered(), ["a", "b", "c", "d"]);
    assert_eq!(queue.dead(), ["fat"]);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_hangs_panics_or_miscounts_loses_nothing() {
    let queue = FakeQueue::default();
    queue.append(&["a", "b"]);
    let mut answers = vec![
        Answer::Hang,
        Answer::Panic,
        Answer::Verdicts(vec![Verdict::Delivered]),
        Answer::Verdicts(vec![Verdict::Delivered; 3]),
    ];
    let destination = FakeDestination::new(move |names| {
        let honest = Answer::Verdicts(vec![Verdict::Delivered; names.len()]);
        answers.pop().unwrap_or(honest)
    });
    let running = Running::start(&queue, destination);
    eventually("delivery", || queue.is_settled()).await;
    // The first two answers said that three events and one were taken, and were not believed.
    assert_eq!(running.destination.delivered(), ["a", "b", "a", "a", "b"]);
    assert_eq!(running.counter("flagtap_task_panics_total"), 1);
    assert_eq!(running.counter("flagtap_destination_events_delivered_total"), 2);
    assert!(queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_sent_until_the_queue_has_noted_what_was_delivered() {
    let queue = FakeQueue::default();
    queue.append(&["reject", "a"]);
    queue.append(&["b"]);
    let running = Running::start_with(&queue, Arc::new(delivers().with_items(1)), Settings::default());
    {
        let mut state = queue.lock();
        (state.next_fails, state.bury_fails, state.commit_fails) = (2, 2, 2);
    }
    let failing = || running.status.get().queue_error.is_some();
    eventually("the queue's error in the status", failing).await;
    eventually("the end of failed commits", || queue.lock().commit_fails == 0).await;
    assert!(running.destination.requests().is_empty());
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered(), ["a", "b"]);
    assert_eq!(queue.dead(), ["reject"], "kept once");
    assert_eq!(running.status.get().queue_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_delivers_what_waits_and_tries_what_failed_once_more() {
    let queue = FakeQueue::default();
    queue.append(&["a"]);
    let mut fails = 1;
    let destination = FakeDestination::judging(move |_| {
        let after = Some(Duration::from_secs(200));
        let why = "throttled".to_owned();
        fails -= 1;
        if fails >= 0 {
            Verdict::Retry { after, why }
        } else {
            Verdict::Delivered
        }
    });
    let running = Running::start(&queue, destination);
    eventually("the failure", || running.destination.requests().len() == 1).await;
    queue.append(&["b"]);
    let start = Instant::now();
    let destination = running.drained().await;
    assert_eq!(destination.delivered(), ["a", "b"]);
    assert!(queue.is_settled());
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(destination.came_to_rest());
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_leaves_what_waits_in_the_queue() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let judge = |name: &str| if name == "stuck" { retry() } else { Verdict::Delivered };
    let running = Running::start(&queue, FakeDestination::judging(judge));
    running.stop.soft.cancel();
    eventually("the failure", || running.destination.requests().len() == 2).await;
    running.stop.hard.cancel();
    assert_eq!(running.task.await.unwrap(), Ending::Stopped);
    assert!(!queue.is_settled());
    assert_eq!(
        Running::start(&queue, delivers()).drained().await.delivered(),
        ["stuck"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_waits_for_the_answer_in_flight_but_not_for_long() {
    for (latency, delivered_again) in [(Duration::from_millis(900), 0), (Duration::from_secs(9), 1)] {
        let queue = FakeQueue::default();
        queue.append(&["a"]);
        let running = Running::start(&queue, delivers().with_latency(latency));
        eventually("the request", || running.destination.requests().len() == 1).await;
        let start = Instant::now();
        running.stop.hard.cancel();
        assert_eq!(running.task.await.unwrap(), Ending::Stopped);
        assert!(start.elapsed() < Duration::from_secs(2));
        let destination = Running::start(&queue, delivers()).drained().await;
        assert_eq!(destination.delivered().len(), delivered_again);
    }
}

#[tokio::test(start_paused = true)]
async fn ends_when_the_queue_is_closed() {
    let queue = FakeQueue::default();
    queue.lock().closed = true;
    let running = Running::start(&queue, delivers());
    assert_eq!(running.task.await.unwrap(), Ending::QueueClosed);
    assert_eq!(running.status.get().state, State::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_note_that_cannot_be_read_loses_nothing() {
    let queue = FakeQueue::default();
    queue.append(&["a"]);
    queue.lock().note = vec![99, 1, 2];
    assert_eq!(Running::start(&queue, delivers()).drained().await.delivered(), ["a"]);
    assert!(queue.is_settled());
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_delivers_what_a_full_window_kept_in_the_queue_also_to_a_slow_destination() {
    let queue = FakeQueue::default();
    (0..20).for_each(|event| queue.append(&[&format!("{event:02}")]));
    let settings = Settings {
        window: Some(Limit {
            records: 4,
            bytes: 1000,
        }),
        ..Settings::default()
    };
    let slow = delivers().with_items(4).with_latency(Duration::from_secs(3));
    let destination = Running::start_with(&queue, Arc::new(slow), settings).drained().await;
    assert_eq!(destination.delivered().len(), 20);
    assert!(queue.is_settled());
}
