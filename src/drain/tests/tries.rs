//! The tries of an event: how many, when, over restarts and jumps of the clock, and what comes after the last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{FakeDestination, FakeQueue, Running, eventually};
use super::{Settings, retry};
use crate::attempts::{Retry, Then};
use crate::destination::Verdict;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;

fn refusing_one() -> FakeDestination {
    FakeDestination::judging(|name| if name == "stuck" { retry() } else { Verdict::Delivered })
}

fn then(then: Then) -> Settings {
    Settings {
        retry: Retry { then, ..Retry::DEFAULT },
        ..Settings::default()
    }
}

/// When the event `stuck` was in a request, from its first on.
fn tries(destination: &FakeDestination) -> Vec<Duration> {
    let with = destination.times().into_iter().zip(destination.requests());
    let times: Vec<Instant> = with
        .filter(|(_, names)| names.iter().any(|name| name == "stuck"))
        .map(|(at, _)| at)
        .collect();
    times.iter().map(|at| *at - times[0]).collect()
}

fn assert_schedule(tries: &[Duration]) {
    let seconds: Vec<f64> = tries.iter().map(Duration::as_secs_f64).collect();
    let expected = [0.0, 1.0, 7.2, 46.1, 288.5, 1800.0];
    assert_eq!(seconds.len(), expected.len(), "{seconds:?}");
    for (is, due) in seconds.iter().zip(expected) {
        assert!((due * 0.9 - 0.1..due * 1.1 + 0.2).contains(is), "{seconds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_five_times_more_over_thirty_minutes_is_a_dead_letter() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let running = Running::start(&queue, refusing_one());
    eventually("the end", || queue.is_settled()).await;
    assert_schedule(&tries(&running.destination));
    let letter = queue.lock().letters[0].clone();
    assert!(letter.transient && letter.record.given_up);
    assert_eq!(letter.why, "out of tries (6), failed the last time with: throttled");
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn dropped_it_is_gone_and_counted() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let running = Running::start_with(&queue, Arc::new(refusing_one()), then(Then::Drop));
    eventually("the end", || queue.is_settled()).await;
    assert_schedule(&tries(&running.destination));
    assert!(queue.lock().letters.is_empty());
    assert_eq!(running.counter("flagtap_destination_events_dropped_total"), 1);
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn kept_it_is_tried_on_at_the_last_wait() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let running = Running::start_with(&queue, Arc::new(refusing_one()), then(Then::Keep));
    tokio::time::sleep(24 * HOUR).await;
    let tries = tries(&running.destination);
    assert_schedule(&tries[..6]);
    let later = tries.len() - 6;
    assert!((50..65).contains(&later), "{later} tries in a day");
    assert!(!queue.is_settled() && queue.lock().letters.is_empty());
    let commits = queue.lock().commits;
    assert!(commits <= 7, "{commits}: what makes no difference is not noted");
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn a_restart_neither_resets_nor_skips_tries() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let destination = Arc::new(refusing_one());
    for run_seconds in [0, 3, 1, 20, 60, 100, 1000, 200] {
        let running = Running::start_with(&queue, destination.clone(), Settings::default());
        tokio::time::sleep(run_seconds * SECOND + SECOND / 2).await;
        running.crash().await;
    }
    let running = Running::start_with(&queue, destination.clone(), Settings::default());
    eventually("the end", || queue.is_settled()).await;
    assert_schedule(&tries(&destination));
    assert_eq!(queue.dead(), ["stuck"]);
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_only_ends_tries_at_once_what_failed_in_another() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let running = Running::start(&queue, refusing_one());
    eventually("the third failure", || tries(&running.destination).len() == 3).await;
    running.stop.hard.cancel();
    running.task.await.unwrap();
    // It would be due in half a minute.
    let started = Instant::now();
    let works = FakeDestination::judging(|_| Verdict::Delivered);
    let destination = Running::start(&queue, works).drained().await;
    assert_eq!(destination.delivered(), ["stuck"]);
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    assert!(queue.is_settled());
}

#[tokio::test(start_paused = true)]
async fn jumps_of_the_clock_over_restarts_lose_no_try_and_stall_nothing() {
    for jump_ms in [-6 * HOUR_MS, 6 * HOUR_MS] {
        let queue = FakeQueue::default();
        queue.append(&["a", "stuck"]);
        let destination = Arc::new(refusing_one());
        let start = Instant::now();
        while !queue.is_settled() {
            let running = Running::start_with(&queue, destination.clone(), Settings::default());
            let before = destination.requests().len();
            eventually("a try", || destination.requests().len() > before || queue.is_settled()).await;
            running.crash().await;
            queue.lock().clock_ahead_ms += jump_ms;
        }
        assert_eq!(tries(&destination).len(), 6, "none lost, none too many");
        assert!(start.elapsed() < HOUR, "{:?}", start.elapsed());
        assert_eq!(queue.dead(), ["stuck"]);
    }
}

#[tokio::test(start_paused = true)]
async fn jumps_of_the_clock_mean_nothing_to_a_drain_that_runs() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    let running = Running::start(&queue, refusing_one());
    for jump_ms in [-5 * HOUR_MS, 11 * HOUR_MS, -20 * HOUR_MS] {
        tokio::time::sleep(30 * SECOND).await;
        queue.lock().clock_ahead_ms += jump_ms;
    }
    eventually("the end", || queue.is_settled()).await;
    assert_schedule(&tries(&running.destination));
    running.assert_balance(&queue);
}

fn small_window(then: Then) -> Settings {
    Settings {
        retry: Retry { then, ..Retry::DEFAULT },
        window: Some(crate::queue::Limit {
            records: 6,
            bytes: 1000,
        }),
        ..Settings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_window_has_what_fails_tried_more_often_without_counting_it() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck"]);
    (0..50).for_each(|_| queue.append(&["b"]));
    let running = Running::start_with(&queue, Arc::new(refusing_one()), small_window(Then::Drop));
    eventually("the end", || queue.is_settled()).await;
    let tries = tries(&running.destination);
    let last = tries[tries.len() - 1];
    assert!((1600.0..2000.0).contains(&last.as_secs_f64()), "{last:?}");
    assert!((20..45).contains(&tries.len()), "{} tries, one a minute", tries.len());
    assert_eq!(running.counter("flagtap_destination_events_dropped_total"), 1);
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn what_fails_holds_up_some_younger_events_and_is_then_set_aside() {
    let queue = FakeQueue::default();
    queue.append(&["a", "stuck", "c"]);
    (0..20).for_each(|_| queue.append(&["b"]));
    let start = Instant::now();
    let running = Running::start_with(&queue, Arc::new(refusing_one()), small_window(Then::DeadLetter));
    eventually("delivery past it", || running.destination.delivered().len() == 22).await;
    tokio::time::sleep(SECOND * 20).await;
    assert!(queue.dead().is_empty(), "it has its tries while there is room");
    (0..980).for_each(|_| queue.append(&["b"]));
    eventually("the end", || queue.is_settled()).await;
    assert!(start.elapsed() < 60 * SECOND, "{:?}", start.elapsed());
    assert_eq!(running.destination.delivered().len(), 1002);
    assert_eq!(queue.dead(), ["stuck"]);
    let letter = queue.lock().letters[0].clone();
    assert_eq!(letter.why, "failed 3 times and held up the events after it");
    assert!(letter.transient && !letter.record.given_up, "it has not had its tries");
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn many_that_fail_are_not_set_aside_for_a_few() {
    let queue = FakeQueue::default();
    (0..4).for_each(|_| queue.append(&["stuck"]));
    (0..50).for_each(|_| queue.append(&["b"]));
    let running = Running::start_with(&queue, Arc::new(refusing_one()), small_window(Then::DeadLetter));
    tokio::time::sleep(20 * 60 * SECOND).await;
    assert!(
        queue.dead().is_empty(),
        "what most of them wait for is no trouble of one event"
    );
    eventually("the end", || queue.is_settled()).await;
    assert_eq!(queue.dead().len(), 4);
    running.assert_balance(&queue);
}
