//! Several requests at once: how many, what a failure, a crash and the end mean for each of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{Answer, FakeDestination, FakeQueue, Running, eventually};
use super::{Settings, delivers, retry};
use crate::destination::Verdict;
use crate::drain::{Ending, LINGER};

const SECOND: Duration = Duration::from_secs(1);

fn at_once(concurrency: usize) -> Settings {
    Settings {
        concurrency,
        ..Settings::default()
    }
}

fn start(queue: &FakeQueue, concurrency: usize, destination: FakeDestination) -> Running {
    let destination = destination.with_requests(usize::MAX);
    Running::start_with(queue, Arc::new(destination), at_once(concurrency))
}

// Appends `events` batches of one event each, named so that they sort.
fn append(queue: &FakeQueue, events: usize) {
    for event in 0..events {
        queue.append(&[&format!("{event:03}")]);
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_requests_at_once_as_configured_and_no_more() {
    for concurrency in [1, 3, 8] {
        let queue = FakeQueue::default();
        append(&queue, 120);
        let started = Instant::now();
        let running = start(&queue, concurrency, delivers().with_latency(SECOND));
        eventually("delivery", || queue.is_settled()).await;
        assert_eq!(running.destination.most_under_way(), concurrency);
        let rounds = 12_usize.div_ceil(concurrency) as u32;
        assert!(started.elapsed() < rounds * SECOND + SECOND / 2);
        let sizes: Vec<usize> = running.destination.requests().iter().map(Vec::len).collect();
        assert_eq!(sizes, [10; 12]);
    }
}

#[tokio::test(start_paused = true)]
async fn never_more_at_once_than_the_destination_allows() {
    let queue = FakeQueue::default();
    append(&queue, 60);
    let destination = Arc::new(delivers().with_latency(SECOND).with_requests(2));
    let running = Running::start_with(&queue, destination, at_once(8));
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.most_under_way(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_are_begun_and_filled_in_the_order_of_the_queue() {
    let queue = FakeQueue::default();
    append(&queue, 100);
    let latency = |first: &str| Duration::from_millis(if first < "050" { 700 } else { 20 });
    let running = start(&queue, 4, delivers().with_latency_of(latency));
    eventually("delivery", || queue.is_settled()).await;
    let sent: Vec<String> = running.destination.requests().concat();
    assert_eq!(sent.len(), 100);
    assert!(sent.is_sorted(), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_few_events_beside_a_request_under_way_wait_for_more_but_not_long() {
    let queue = FakeQueue::default();
    let latency = |first: &str| if first == "slow" { 30 * SECOND } else { Duration::ZERO };
    let running = start(&queue, 2, delivers().with_latency_of(latency));
    queue.append(&["slow"]);
    eventually("the slow request", || running.destination.requests().len() == 1).await;
    let appended = Instant::now();
    queue.append(&["a"]);
    tokio::time::sleep(LINGER / 2).await;
    queue.append(&["b"]);
    eventually("the others", || running.destination.requests().len() == 2).await;
    assert_eq!(running.destination.requests()[1], ["a", "b"]);
    assert_eq!(running.destination.times()[1] - appended, LINGER);
}

#[tokio::test(start_paused = true)]
async fn a_failing_destination_gets_one_request_at_a_time_until_it_recovers() {
    let queue = FakeQueue::default();
    append(&queue, 200);
    let outage = Duration::from_secs(3600);
    let start_of_test = Instant::now();
    let judge = move |_: &str| match start_of_test.elapsed() < outage {
        true => retry(),
        false => Verdict::Delivered,
    };
    let running = start(&queue, 4, FakeDestination::judging(judge).with_latency(SECOND));
    eventually("the first failures", || running.destination.requests().len() > 4).await;
    assert_eq!(running.destination.most_under_way(), 4);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(running.destination.most_under_way(), 1, "while it fails");
    let requests = running.destination.requests().len();
    assert!(requests < 4 + 3000 / 20, "{requests} requests");
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.most_under_way(), 4, "when it works again");
    let dead = queue.dead().len();
    assert!(dead < 40, "{dead} were out of tries: those it was tried with");
    assert_eq!(running.destination.delivered().len() + dead, 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_or_panics_touches_no_other() {
    let queue = FakeQueue::default();
    queue.append(&["hang"]);
    queue.append(&["crash"]);
    append(&queue, 30);
    let mut tries = 0;
    let destination = FakeDestination::new(move |names| {
        let bad = names.iter().any(|name| name == "hang" || name == "crash");
        tries += usize::from(bad);
        match names[0].as_str() {
            "hang" if tries <= 2 => Answer::Hang,
            "crash" if tries <= 2 => Answer::Panic,
            _ => Answer::Verdicts(vec![Verdict::Delivered; names.len()]),
        }
    });
    let started = Instant::now();
    let running = start(&queue, 4, destination.with_items(1).with_latency(SECOND));
    eventually("the others", || running.destination.delivered().len() == 31).await;
    assert!(
        started.elapsed() < Duration::from_secs(50),
        "not held up by the one that hangs"
    );
    assert_eq!(running.counter("flagtap_task_panics_total"), 1);
    eventually("delivery", || queue.is_settled()).await;
    assert!(started.elapsed() > Duration::from_secs(60));
    assert_eq!(running.destination.delivered().len(), 32, "each once");
}

#[tokio::test(start_paused = true)]
async fn what_is_answered_out_of_turn_is_not_sent_again_after_a_crash() {
    let queue = FakeQueue::default();
    append(&queue, 40);
    let latency = |first: &str| Duration::from_secs(if first < "020" { 50 } else { 1 });
    let first = start(&queue, 4, delivers().with_latency_of(latency));
    eventually("two answers", || first.destination.delivered().len() == 20).await;
    eventually("a commit", || queue.lock().commits > 0).await;
    first.crash().await;
    assert_eq!(queue.lock().cursor, None, "it waits for the first request");
    let second = start(&queue, 4, delivers());
    eventually("the rest", || queue.is_settled()).await;
    let expected: Vec<String> = (0..20).map(|event| format!("{event:03}")).collect();
    assert_eq!(second.destination.delivered(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_not_taken_again_until_the_queue_has_noted_what_came_of_it() {
    let queue = FakeQueue::default();
    append(&queue, 120);
    let running = start(&queue, 3, delivers().with_latency(SECOND));
    eventually("the first requests", || running.destination.requests().len() == 3).await;
    queue.lock().commit_fails = 30;
    eventually("the answers", || running.destination.delivered().len() == 30).await;
    eventually("the end of failed commits", || queue.lock().commit_fails == 0).await;
    assert_eq!(running.destination.requests().len(), 3);
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered().len(), 120);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_waits_for_all_that_is_under_way() {
    let queue = FakeQueue::default();
    append(&queue, 35);
    let running = start(&queue, 4, delivers().with_latency(20 * SECOND));
    eventually("requests", || running.destination.requests().len() >= 3).await;
    let destination = running.drained().await;
    assert_eq!(destination.delivered().len(), 35);
    assert!(queue.is_settled());
    assert!(destination.came_to_rest());
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_notes_the_answers_that_come_in_time_and_no_others() {
    let queue = FakeQueue::default();
    append(&queue, 30);
    let latency = |first: &str| match first {
        "000" => Duration::from_secs(50),
        "010" => Duration::from_millis(300),
        _ => Duration::from_millis(900),
    };
    let running = start(&queue, 3, delivers().with_latency_of(latency));
    eventually("the requests", || running.destination.requests().len() == 3).await;
    let stopped = Instant::now();
    running.stop.hard.cancel();
    assert_eq!(running.task.await.unwrap(), Ending::Stopped);
    assert!(stopped.elapsed() < 2 * SECOND);
    assert_eq!(running.destination.delivered().len(), 20);
    let rest = start(&queue, 3, delivers()).drained().await;
    assert_eq!(rest.delivered(), running.destination.requests()[0]);
}
