//! Destinations that do everything but what they should, in simulated time; and what each answer of the tables leads to.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{Answer, FakeDestination, FakeQueue, Running, eventually};
use super::{delivers, retry};
use crate::destination::answers::Means;
use crate::destination::{self, Verdict};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn append(queue: &FakeQueue, events: usize) {
    (0..events).for_each(|event| queue.append(&[&format!("{event:03}")]));
}

/// Delivers 50 events to a service that answers in this way for an hour and then as it should. Returns how often each was
/// taken.
async fn after_an_hour_of(mut bad: impl FnMut(&[String]) -> Answer + Send + 'static) -> BTreeMap<String, usize> {
    let queue = FakeQueue::default();
    append(&queue, 50);
    let start = Instant::now();
    let destination = FakeDestination::new(move |names| match start.elapsed() < HOUR {
        true => bad(names),
        false => Answer::Verdicts(vec![Verdict::Delivered; names.len()]),
    });
    let running = Running::start(&queue, destination);
    eventually("the end", || queue.is_settled()).await;
    assert!(start.elapsed() < HOUR + 200 * SECOND, "{:?}", start.elapsed());
    running.assert_balance(&queue);
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    running
        .destination
        .delivered_ids()
        .into_iter()
        .for_each(|id| *taken.entry(id).or_default() += 1);
    // What ran out of tries was what the destination was tried with, one event at a time.
    let dead = queue.dead().len();
    let requests = (running.destination.times().iter())
        .filter(|at| **at - start < HOUR)
        .count();
    assert!(
        6 * dead <= requests + 10,
        "{dead} dead letters after {requests} requests"
    );
    assert!(queue.lock().letters.iter().all(|letter| letter.transient));
    taken
}

#[tokio::test(start_paused = true)]
async fn one_that_accepts_and_never_answers() {
    let taken = after_an_hour_of(|_| Answer::Hang).await;
    assert!(taken.values().all(|times| *times == 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_answers_after_the_timeout_gets_the_same_ids_again() {
    let taken = after_an_hour_of(|_| Answer::TakenUnheard).await;
    assert!(taken.values().any(|times| *times > 1), "nobody can know");
    assert!(taken.len() <= 50, "never as another event");
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_and_breaks_off_or_answers_garbage_gets_the_same_ids_again() {
    let taken = after_an_hour_of(|_| Answer::TakenGarbled).await;
    assert!(taken.len() <= 50, "never as another event");
}

#[tokio::test(start_paused = true)]
async fn one_that_answers_for_half_of_a_request() {
    let half = |names: &[String]| Answer::Verdicts(vec![Verdict::Delivered; names.len() / 2]);
    let taken = after_an_hour_of(half).await;
    // No half answer is believed, so what it took is sent again.
    assert!(taken.len() <= 50);
}

#[tokio::test(start_paused = true)]
async fn one_whose_client_panics() {
    let taken = after_an_hour_of(|_| Answer::Panic).await;
    assert!(taken.values().all(|times| *times == 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_slow_for_an_hour_fails_nothing() {
    let queue = FakeQueue::default();
    append(&queue, 1000);
    let start = Instant::now();
    let slow = move |_: &str| {
        if start.elapsed() < HOUR {
            55 * SECOND
        } else {
            SECOND / 100
        }
    };
    let running = Running::start(&queue, delivers().with_latency_of(slow));
    eventually("the end", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered().len(), 1000);
    assert_eq!(running.counter("flagtap_destination_events_retried_total"), 0);
    running.assert_balance(&queue);
}

/// What the page promises of an answer, by what it means; `bad` is the event that it is about.
async fn assert_promise(kind: &str, on: &str, means: Means) {
    let queue = FakeQueue::default();
    queue.append(&["a", "b", "bad", "c"]);
    queue.append(&["d", "e", "f", "g"]);
    let start = Instant::now();
    let destination = FakeDestination::new(move |names| {
        let about = names.iter().any(|name| name == "bad");
        let passes = matches!(means, Means::Retry | Means::PerEvent | Means::Blocked);
        let is_bad = about && !(passes && start.elapsed() > HOUR);
        let verdict = match is_bad {
            true => means.verdict(names.len(), "as the table says".to_owned(), None),
            false => Verdict::Delivered,
        };
        Answer::Verdicts(vec![verdict; names.len()])
    });
    let running = Running::start(&queue, destination);
    eventually("the end", || queue.is_settled()).await;
    running.assert_balance(&queue);
    let dead = queue.dead();
    let others = running
        .destination
        .delivered()
        .iter()
        .filter(|name| *name != "bad")
        .count();
    assert_eq!(others, 7, "{kind} {on}: the others are delivered");
    match means {
        Means::Delivered => assert!(dead.is_empty(), "{kind} {on}"),
        // It failed by itself for longer than its tries last.
        Means::Retry | Means::PerEvent => {
            assert_eq!(dead, ["bad"], "{kind} {on}");
            assert!(queue.lock().letters[0].transient, "{kind} {on}");
        }
        Means::Blocked => {
            assert!(dead.is_empty(), "{kind} {on}: no try is used up");
            assert!(start.elapsed() > HOUR, "{kind} {on}");
        }
        Means::Isolate => {
            assert_eq!(dead, ["bad"], "{kind} {on}: alone");
            let letter = queue.lock().letters[0].clone();
            assert_eq!(
                (letter.why.as_str(), letter.transient),
                ("as the table says", false),
                "{kind} {on}"
            );
            assert!(start.elapsed() < SECOND, "{kind} {on}: at once");
        }
    }
    // Its time would go on with that of the next.
    running.crash().await;
}

#[tokio::test(start_paused = true)]
async fn every_answer_of_every_table_leads_to_what_the_page_promises() {
    let mut seen = BTreeMap::<String, usize>::new();
    for (kind, table) in destination::tables() {
        for answer in table {
            assert_promise(kind, &format!("{:?}", answer.on), answer.means).await;
            *seen.entry(format!("{:?}", answer.means)).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_line_is_tried_again() {
    let queue = FakeQueue::default();
    queue.append(&["a"]);
    let mut answers = vec![retry()];
    let running = Running::start(
        &queue,
        FakeDestination::judging(move |_| answers.pop().unwrap_or(Verdict::Delivered)),
    );
    eventually("the end", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered(), ["a"]);
}
