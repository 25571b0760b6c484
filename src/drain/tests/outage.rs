//! A destination that is down, and how it comes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{FakeDestination, FakeQueue, Running, eventually};
use super::{Settings, State, retry};
use crate::destination::Verdict;
use crate::drain::Breaker;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A service that is down between these times after now.
fn down(from: Duration, until: Duration) -> FakeDestination {
    let start = Instant::now();
    FakeDestination::judging(move |_| {
        let is_down = (from..until).contains(&start.elapsed());
        if is_down { retry() } else { Verdict::Delivered }
    })
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_only_the_tries_of_what_the_destination_is_tried_with() {
    let queue = FakeQueue::default();
    (0..500).for_each(|event| queue.append(&[&format!("{event:03}")]));
    let start = Instant::now();
    let running = Running::start(&queue, down(Duration::ZERO, 3 * HOUR));
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(running.status.get().breaker, Breaker::Open);
    assert_eq!(running.counter("flagtap_destination_breaker"), 2);
    let (sizes, times): (Vec<usize>, Vec<Instant>) = {
        let requests = running.destination.requests();
        (requests.iter().map(Vec::len).collect(), running.destination.times())
    };
    assert!(
        sizes[..3].iter().all(|size| *size > 1) && sizes[3..].iter().all(|size| *size == 1),
        "{sizes:?}"
    );
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 61 * SECOND));
    assert!(
        (120..600).contains(&times.len()),
        "{} requests in two hours",
        times.len()
    );
    let commits = queue.lock().commits;
    assert!(
        commits <= times.len() + 1,
        "{commits} commits for {} requests",
        times.len()
    );

    eventually("delivery", || queue.is_settled()).await;
    let after = running.destination.times().partition_point(|at| *at - start < 3 * HOUR);
    let sizes: Vec<usize> = running.destination.requests()[after..].iter().map(Vec::len).collect();
    assert_eq!(sizes[..4], [1, 2, 8, 10], "no herd: {sizes:?}");
    assert_eq!(sizes.iter().max(), Some(&10), "full size in the end");
    let dead = queue.dead().len();
    assert!(
        6 * dead <= after + 10,
        "{dead} were out of tries after {after} requests"
    );
    assert!(queue.lock().letters.iter().all(|letter| letter.transient));
    assert_eq!(running.counter("flagtap_destination_breaker"), 0);
    eventually("rest", || running.status.get().state == State::Idle).await;
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn a_lone_event_is_delivered_within_a_minute_of_the_end_of_an_outage() {
    for minutes in [2, 10, 25] {
        let queue = FakeQueue::default();
        queue.append(&["a"]);
        let (start, outage) = (Instant::now(), minutes * 60 * SECOND);
        let running = Running::start(&queue, down(Duration::ZERO, outage));
        eventually("delivery", || queue.is_settled()).await;
        let delivered = *running.destination.times().last().unwrap() - start;
        assert!(
            delivered < outage + 61 * SECOND,
            "{delivered:?} after {minutes} minutes"
        );
        assert_eq!(running.destination.delivered(), ["a"]);
        running.assert_balance(&queue);
    }
}

#[tokio::test(start_paused = true)]
async fn what_failed_in_an_outage_goes_out_at_its_end_and_not_a_schedule_later() {
    let queue = FakeQueue::default();
    (0..30).for_each(|event| queue.append(&[&format!("{event:03}")]));
    let (start, outage) = (Instant::now(), 20 * 60 * SECOND);
    let running = Running::start(&queue, down(Duration::ZERO, outage));
    eventually("delivery", || queue.is_settled()).await;
    let last = *running.destination.times().last().unwrap() - start;
    assert!(last < outage + 62 * SECOND, "{last:?}");
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_flaps_gets_everything_once() {
    let queue = FakeQueue::default();
    let start = Instant::now();
    let judge = move |_: &str| {
        let is_down = start.elapsed().as_secs() / 45 % 2 == 1;
        if is_down { retry() } else { Verdict::Delivered }
    };
    let destination = FakeDestination::judging(judge)
        .with_requests(4)
        .with_latency(SECOND / 5);
    let settings = Settings {
        concurrency: 4,
        ..Settings::default()
    };
    let running = Running::start_with(&queue, Arc::new(destination), settings);
    for event in 0..3000 {
        queue.append(&[&format!("{event:04}")]);
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    eventually("delivery", || queue.is_settled()).await;
    let mut delivered = running.destination.delivered();
    delivered.extend(queue.dead());
    delivered.sort();
    assert_eq!(delivered.len(), 3000, "each once");
    delivered.dedup();
    assert_eq!(delivered.len(), 3000, "each once");
    assert!(queue.dead().is_empty(), "no outage was as long as the tries");
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_destination_is_never_asked_before_it_wishes() {
    let queue = FakeQueue::default();
    (0..200).for_each(|event| queue.append(&[&format!("{event:03}")]));
    let (start, mut allowed) = (Instant::now(), Duration::ZERO);
    let mut answers = 0;
    let destination = FakeDestination::judging(move |_| {
        // Judged event by event: those of one request come at the same time.
        assert!(
            start.elapsed() >= allowed,
            "asked {:?} too soon",
            allowed - start.elapsed()
        );
        answers += 1;
        if answers % 40 < 25 {
            return Verdict::Delivered;
        }
        allowed = start.elapsed() + 100 * SECOND;
        answers = answers / 40 * 40 + 39;
        Verdict::Retry {
            after: Some(100 * SECOND),
            why: "over the rate".to_owned(),
        }
    });
    let running = Running::start(&queue, destination.with_items(1));
    eventually("delivery", || queue.is_settled()).await;
    assert_eq!(running.destination.delivered().len(), 200);
    assert!(start.elapsed() > 700 * SECOND);
    running.assert_balance(&queue);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_breaks_every_request_it_is_in_takes_no_other_along() {
    let queue = FakeQueue::default();
    (0..60).for_each(|event| {
        queue.append(&[&if event == 17 {
            "poison".to_owned()
        } else {
            format!("{event:03}")
        }])
    });
    let destination = FakeDestination::new(|names| {
        let verdict = if names.iter().any(|name| name == "poison") {
            retry()
        } else {
            Verdict::Delivered
        };
        super::Answer::Verdicts(vec![verdict; names.len()])
    });
    let running = Running::start(&queue, destination);
    eventually("the end", || queue.is_settled()).await;
    assert_eq!(queue.dead(), ["poison"]);
    assert_eq!(running.destination.delivered().len(), 59);
    running.assert_balance(&queue);
}
