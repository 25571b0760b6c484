//! The retry policy as arithmetic.

use proptest::prelude::*;

use super::*;
use crate::drain::breaker::Breaker;

const NEW: Tries = Tries {
    sent: 0,
    failures: 0,
    by_destination: false,
    planned: None,
    asked: None,
};
const OLD: Tries = Tries {
    sent: 1,
    failures: 1,
    ..NEW
};
const LIMITS: Limits = Limits {
    items: 500,
    bytes: 1 << 20,
    item_bytes: 1 << 20,
    keys: usize::MAX,
    requests: 1,
};
const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy::new(Retry::DEFAULT, fastrand::Rng::with_seed(7))
}

// The answer of a request that was the only one under way, and came at once.
fn judge(policy: &mut Policy, now: Instant, tries: &[Tries], verdicts: Vec<Verdict>) -> Vec<Next> {
    let known = policy.gate.known();
    let request = Answered {
        sent: now,
        known,
        tries,
    };
    policy.judge(now, request, verdicts, LIMITS).0
}

fn retry(after: Option<u64>) -> Verdict {
    Verdict::Retry {
        after: after.map(Duration::from_secs),
        why: "throttled".to_owned(),
    }
}

fn blocked() -> Verdict {
    Verdict::Blocked {
        why: "no such stream".to_owned(),
    }
}

fn again(next: &Next) -> (Tries, Instant) {
    match next {
        Next::Again { tries, due, .. } => (*tries, *due),
        other => panic!("{other:?} is not sent again"),
    }
}

#[test]
fn an_event_has_its_tries_and_is_then_given_up() {
    let (mut policy, mut now, mut tries) = (policy(), Instant::now(), NEW);
    let start = now;
    for failures in 1..=5 {
        let next = judge(&mut policy, now, &[tries], vec![retry(None)]);
        (tries, now) = again(&next[0]);
        assert_eq!(tries.failures, failures);
    }
    let took = (now - start).as_secs_f64();
    assert!((1600.0..2000.0).contains(&took), "{took}");
    let next = judge(&mut policy, now, &[tries], vec![retry(None)]);
    assert_eq!(
        next,
        [Next::GivenUp(
            "out of tries (6), failed the last time with: throttled".to_owned()
        )]
    );
}

#[test]
fn out_of_tries_an_event_goes_as_configured() {
    for (then, attempts) in [(Then::Drop, 0), (Then::DeadLetter, 0), (Then::Keep, 1)] {
        let retry_with = Retry {
            attempts,
            then,
            ..Retry::DEFAULT
        };
        let mut policy = Policy::new(retry_with, fastrand::Rng::with_seed(1));
        let (mut now, mut tries) = (Instant::now(), NEW);
        for _ in 0..3 {
            let next = judge(&mut policy, now, &[tries], vec![retry(None)]).remove(0);
            match (then, &next) {
                (Then::Drop, Next::Dropped) | (Then::DeadLetter, Next::GivenUp(_)) => break,
                (Then::Keep, _) => (tries, now) = again(&next),
                other => panic!("{other:?}"),
            }
            assert_eq!(tries.failures, 1, "more make no difference, and need not be noted");
        }
    }
}

#[test]
fn a_request_before_the_time_costs_no_try() {
    let (mut policy, now) = (policy(), Instant::now());
    let (tries, due) = again(&judge(&mut policy, now, &[NEW], vec![retry(None)])[0]);
    let early = due - SECOND / 2;
    let (after, again_due) = again(&judge(&mut policy, early, &[tries], vec![retry(None)])[0]);
    assert_eq!((after.failures, after.sent, again_due), (1, 2, due));
    // The service may put it off.
    let (after, again_due) = again(&judge(&mut policy, early, &[tries], vec![retry(Some(40))])[0]);
    assert_eq!((after.failures, again_due), (1, early + 40 * SECOND));
}

#[test]
fn waits_as_long_as_the_service_asks_within_an_hour() {
    let now = Instant::now();
    for (asked, waited) in [(17, 17 * SECOND), (86_400, LONGEST_WISH), (u64::MAX, LONGEST_WISH)] {
        let mut policy = policy();
        let next = judge(&mut policy, now, &[NEW], vec![retry(Some(asked))]);
        assert_eq!(again(&next[0]).1 - now, waited);
        assert_eq!(policy.gate.trouble().unwrap().until - now, waited);
    }
}

#[test]
fn waits_longer_with_every_failed_request_up_to_the_maximum() {
    let (mut policy, mut now, mut waits) = (policy(), Instant::now(), Vec::new());
    for _ in 0..200 {
        judge(&mut policy, now, &[NEW], vec![retry(None)]);
        let until = policy.gate.trouble().unwrap().until;
        waits.push(until - now);
        now = until;
    }
    assert!(waits[0] <= SECOND);
    assert!(waits[1] <= 2 * SECOND);
    assert!(waits.iter().all(|wait| *wait <= 60 * SECOND));
    assert!(waits.iter().any(|wait| *wait > 50 * SECOND));
}

#[test]
fn a_partial_failure_delays_its_own_events_only() {
    let (mut policy, now) = (policy(), Instant::now());
    let next = judge(&mut policy, now, &[NEW, NEW], vec![Verdict::Delivered, retry(None)]);
    assert_eq!(next[0], Next::Delivered);
    let (tries, _) = again(&next[1]);
    assert_eq!((tries.sent, tries.failures, tries.by_destination), (1, 1, false));
    assert_eq!(policy.gate.trouble(), None);
}

#[test]
fn an_event_that_fails_again_does_not_stop_a_destination_that_delivers() {
    let (mut policy, now) = (policy(), Instant::now());
    judge(&mut policy, now, &[OLD], vec![retry(None)]);
    assert_eq!(policy.gate.trouble(), None);
}

#[test]
fn a_failing_destination_stays_so_until_it_takes_an_event() {
    let (mut policy, now) = (policy(), Instant::now());
    judge(&mut policy, now, &[NEW], vec![retry(None)]);
    judge(&mut policy, now, &[OLD], vec![retry(None)]);
    assert_eq!(policy.gate.trouble().unwrap().streak, 2);
    judge(&mut policy, now, &[OLD, OLD], vec![retry(None), Verdict::Delivered]);
    assert_eq!(policy.gate.trouble(), None);
}

#[test]
fn answers_of_requests_sent_before_the_trouble_neither_worsen_nor_end_it() {
    let (mut policy, now) = (policy(), Instant::now());
    let known = policy.gate.known();
    let before = |tries| Answered {
        sent: now,
        known,
        tries,
    };
    policy.judge(now, before(&[NEW]), vec![retry(None)], LIMITS);
    let (next, _) = policy.judge(now, before(&[NEW]), vec![retry(Some(100))], LIMITS);
    let trouble = policy.gate.trouble().unwrap().clone();
    assert_eq!((trouble.streak, trouble.until), (1, now + 100 * SECOND));
    assert!(again(&next[0]).0.by_destination);
    let (next, _) = policy.judge(now, before(&[NEW]), vec![Verdict::Delivered], LIMITS);
    assert_eq!(next, [Next::Delivered]);
    assert_eq!(policy.gate.trouble(), Some(&trouble));
    judge(&mut policy, now, &[OLD], vec![Verdict::Delivered]);
    assert_eq!(policy.gate.trouble(), None);
}

#[test]
fn a_refused_configuration_is_tried_slowly_and_costs_no_try() {
    let (mut policy, mut now, mut tries) = (policy(), Instant::now(), [NEW, OLD]);
    for _ in 0..100 {
        let next = judge(&mut policy, now, &tries, vec![blocked(), blocked()]);
        let trouble = policy.gate.trouble().unwrap();
        assert!(trouble.blocked);
        assert_eq!(
            (trouble.why.as_str(), trouble.until),
            ("no such stream", now + BLOCKED_WAIT)
        );
        tries = [again(&next[0]).0, again(&next[1]).0];
        now += BLOCKED_WAIT;
    }
    assert_eq!(tries.map(|tries| tries.failures), [0, 1]);
}

#[test]
fn halves_a_request_and_gives_up_an_event_too_large_alone() {
    let (mut policy, now) = (policy(), Instant::now());
    let next = judge(&mut policy, now, &[NEW, NEW], vec![Verdict::Split, Verdict::Split]);
    assert_eq!(next, [Next::Halve, Next::Halve]);
    let next = judge(&mut policy, now, &[NEW], vec![Verdict::Split]);
    assert!(matches!(&next[0], Next::Dead(why) if why.contains("too large")));
    assert_eq!(policy.gate.trouble(), None);
}

#[test]
fn a_request_that_fails_again_and_again_is_repeated_in_smaller_ones_unless_it_is_throttled() {
    let most = |sent, verdicts: Vec<Verdict>| {
        let tries = vec![Tries { sent, ..NEW }; verdicts.len()];
        match judge(&mut policy(), Instant::now(), &tries, verdicts).pop() {
            Some(Next::Again { most, .. }) => most,
            other => panic!("{other:?}"),
        }
    };
    let mut sizes = vec![500];
    for sent in 0..5 {
        let size = sizes[sent];
        sizes.push(most(sent as u32, vec![retry(None); size]).min(size));
    }
    assert_eq!(sizes, [500, 500, 500, 63, 8, 1], "alone the sixth time");
    assert_eq!(most(9, vec![retry(Some(1)); 100]), usize::MAX);
    assert_eq!(most(9, vec![blocked(); 100]), usize::MAX);
    assert_eq!(most(9, vec![Verdict::Delivered, retry(None)]), usize::MAX);
}

#[test]
fn an_outage_ends_with_the_first_answer_and_not_before() {
    let (mut policy, now) = (policy(), Instant::now());
    for _ in 0..3 {
        judge(&mut policy, now, &[NEW], vec![retry(None)]);
    }
    assert_eq!(policy.gate.state(), Breaker::Open);
    // Long enough for a backlog that comes back in growing requests.
    let now = now + Duration::from_secs(10);
    let request = |known| Answered {
        sent: now,
        known,
        tries: &[OLD],
    };
    let known = policy.gate.known();
    let (_, over) = policy.judge(now, request(known), vec![Verdict::Delivered], LIMITS);
    assert!(over);
    assert_eq!(policy.gate.state(), Breaker::HalfOpen);
    let known = policy.gate.known();
    assert!(!policy.judge(now, request(known), vec![Verdict::Delivered], LIMITS).1);
    // On the way back even an event that failed before tells of the destination.
    judge(&mut policy, now, &[OLD], vec![retry(None)]);
    assert_eq!(policy.gate.trouble().unwrap().streak, 1);
}

#[test]
fn a_wrong_number_of_verdicts_is_an_unknown_outcome() {
    for verdicts in [vec![], vec![Verdict::Delivered; 3]] {
        let verdicts = one_per_item(verdicts, 2);
        assert_eq!(verdicts.len(), 2);
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Retry { .. })));
    }
}

#[test]
fn the_outcome_of_a_request_is_named_by_its_verdicts() {
    let rejected = || Verdict::Reject { why: "bad".to_owned() };
    assert_eq!(outcome(&[Verdict::Delivered, Verdict::Delivered]), "delivered");
    assert_eq!(outcome(&[Verdict::Delivered, rejected()]), "partial");
    assert_eq!(outcome(&[rejected(), blocked()]), "blocked");
    assert_eq!(outcome(&[rejected(), retry(None)]), "retry");
    assert_eq!(outcome(&[Verdict::Split, Verdict::Split]), "split");
    assert_eq!(outcome(&[rejected()]), "rejected");
}

proptest! {
    #[test]
    fn no_try_comes_too_soon_is_skipped_or_is_one_too_many(
        attempts in 0u32..20,
        over in 1u64..10_000,
        wishes in prop::collection::vec(prop::option::of(0u64..4000), 25),
        early in prop::collection::vec(any::<bool>(), 25),
        seed: u64,
    ) {
        let configured = Retry { attempts, over: Duration::from_secs(over), ..Retry::DEFAULT };
        let mut policy = Policy::new(configured, fastrand::Rng::with_seed(seed));
        let (mut now, mut tries, mut counted) = (Instant::now(), NEW, 0);
        for (wish, early) in wishes.into_iter().zip(early) {
            let before = tries.planned.is_some_and(|planned| planned > now);
            let next = judge(&mut policy, now, &[tries], vec![retry(wish)]).remove(0);
            counted += u32::from(!before);
            let Next::Again { tries: after, due, .. } = next else {
                prop_assert_eq!(counted, attempts + 1);
                return Ok(());
            };
            prop_assert_eq!(after.failures, counted);
            prop_assert!(counted <= attempts);
            let longest = wish.map_or(Duration::ZERO, |wish| Duration::from_secs(wish).min(LONGEST_WISH));
            prop_assert!(due >= now + longest);
            if !before {
                prop_assert!(due >= now + policy.waits().base(counted).unwrap().mul_f64(0.899));
            }
            tries = after;
            now = if early { now + (due - now) / 2 } else { due };
        }
    }
}
