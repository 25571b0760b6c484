//! What follows from a destination's verdicts: when each event is sent again, and when it is given up.
//!
//! The whole retry policy is here, as arithmetic on verdicts and instants. It tells two troubles apart. While the
//! destination as a whole fails (it delivered nothing of a request that held a new event) nothing is sent until a wait
//! is over. Where it takes some events and not others, only those wait, and the rest goes on. Of several requests under
//! way when trouble begins, the answers of the others tell nothing new: they neither end it nor count as more of it.
//! No event is given up for its age or its number of tries: it waits until it is delivered or refused for itself.

use std::time::Duration;

use tokio::time::Instant;

use super::Tries;
use crate::backoff::Backoff;
use crate::destination::Verdict;

/// How often a destination is tried that refuses flagtap's configuration: somebody has to change something first.
const BLOCKED_WAIT: Duration = Duration::from_secs(30);

/// The longest wait a service may ask for. More would make a slip of the service's into an outage of the export.
const LONGEST_WISH: Duration = Duration::from_secs(300);

/// What happens to an event after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is settled.
    Delivered,
    /// It is given up, for this reason.
    Dead(String),
    /// It is sent again at `due`.
    Again { tries: Tries, due: Instant },
    /// It is sent again at once, in a request of half the size.
    Halve,
}

/// The destination as a whole fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Failed requests in a row.
    pub(super) streak: u32,
    /// Nothing is sent before.
    pub(super) until: Instant,
    /// It refuses flagtap's configuration.
    pub(super) blocked: bool,
    /// What it said last.
    pub(super) why: String,
}

/// What was known of the destination when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known(u64);

/// The retry policy of one destination, with what it remembers between requests.
#[derive(Debug)]
pub(super) struct Schedule {
    backoff: Backoff,
    random: fastrand::Rng,
    trouble: Option<Trouble>,
    /// Requests so far that failed as a whole.
    failures: u64,
}

impl Schedule {
    pub(super) fn new(backoff: Backoff, random: fastrand::Rng) -> Self {
        Self {
            backoff,
            random,
            trouble: None,
            failures: 0,
        }
    }

    /// Returns what is known now; to be kept with a request and given to [`judge`](Self::judge) with its answer.
    pub(super) fn known(&self) -> Known {
        Known(self.failures)
    }

    /// Returns the trouble the destination as a whole is in.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Ends the wait that is under way, without forgetting the trouble.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.until = trouble.until.min(now);
        }
    }

    /// Returns what follows for each event of a request from the verdicts, one per event in the same order.
    pub(super) fn judge(&mut self, now: Instant, known: Known, tries: &[Tries], verdicts: Vec<Verdict>) -> Vec<Next> {
        let outdated = self.trouble.is_some() && known != self.known();
        let failed = verdicts.iter().filter(|verdict| failure(verdict).is_some()).count();
        let answered = verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Delivered | Verdict::Reject { .. }));
        let as_a_whole = failed > 0
            && failed == verdicts.len()
            && (self.trouble.is_some() || tries.iter().any(|tries| tries.sent == 0));
        if answered && !outdated {
            self.trouble = None;
        }
        let due = now + self.wait(tries, &verdicts, as_a_whole);
        if as_a_whole && !outdated {
            self.worsen(due, &verdicts);
        } else if as_a_whole && let Some(trouble) = &mut self.trouble {
            // It may have asked for a longer wait.
            trouble.until = trouble.until.max(due);
        }
        let alone = verdicts.len() == 1;
        tries
            .iter()
            .zip(verdicts)
            .map(|(tries, verdict)| match verdict {
                Verdict::Delivered => Next::Delivered,
                Verdict::Reject { why } => Next::Dead(why),
                Verdict::Split if alone => Next::Dead("the destination finds this event alone too large".to_owned()),
                Verdict::Split => Next::Halve,
                Verdict::Retry { .. } | Verdict::Blocked { .. } => Next::Again {
                    tries: Tries {
                        sent: tries.sent.saturating_add(1),
                        failed_alone: tries.failed_alone.saturating_add(u32::from(!as_a_whole)),
                    },
                    due,
                },
            })
            .collect()
    }

    // One wait for all failed events of a request, so that they stay together and do not become a request each.
    fn wait(&mut self, tries: &[Tries], verdicts: &[Verdict], as_a_whole: bool) -> Duration {
        if verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Blocked { .. }))
        {
            return BLOCKED_WAIT;
        }
        let failures = if as_a_whole {
            self.trouble.as_ref().map_or(0, |trouble| trouble.streak)
        } else {
            let failed = tries
                .iter()
                .zip(verdicts)
                .filter(|(_, verdict)| failure(verdict).is_some());
            failed.map(|(tries, _)| tries.failed_alone).max().unwrap_or(0)
        };
        let wish = verdicts.iter().filter_map(wish).max().unwrap_or(Duration::ZERO);
        let wait = self.backoff.wait(failures.saturating_add(1), &mut self.random);
        wait.max(wish.min(LONGEST_WISH))
    }

    fn worsen(&mut self, until: Instant, verdicts: &[Verdict]) {
        self.failures += 1;
        let blocked = verdicts
            .iter()
            .find(|verdict| matches!(verdict, Verdict::Blocked { .. }));
        let why = blocked.or(verdicts.first()).and_then(failure).unwrap_or_default();
        self.trouble = Some(Trouble {
            streak: self
                .trouble
                .as_ref()
                .map_or(0, |trouble| trouble.streak)
                .saturating_add(1),
            until,
            blocked: blocked.is_some(),
            why: why.to_owned(),
        });
    }
}

/// Returns verdicts that can be relied on: one per item, whatever the destination answered.
pub(super) fn one_per_item(verdicts: Vec<Verdict>, items: usize) -> Vec<Verdict> {
    if verdicts.len() == items {
        verdicts
    } else {
        retry_all(
            items,
            &format!("destination gave {} verdicts for {items} events", verdicts.len()),
        )
    }
}

/// Returns the verdicts of a request whose outcome is not known.
pub(super) fn retry_all(items: usize, why: &str) -> Vec<Verdict> {
    let verdict = Verdict::Retry {
        after: None,
        why: why.to_owned(),
    };
    vec![verdict; items]
}

/// Returns the metric label `outcome` of a request.
pub(super) fn outcome(verdicts: &[Verdict]) -> &'static str {
    let any = |is: fn(&Verdict) -> bool| verdicts.iter().any(is);
    if verdicts.iter().all(|verdict| *verdict == Verdict::Delivered) {
        "delivered"
    } else if any(|verdict| *verdict == Verdict::Delivered) {
        "partial"
    } else if any(|verdict| matches!(verdict, Verdict::Blocked { .. })) {
        "blocked"
    } else if any(|verdict| *verdict == Verdict::Split) {
        "split"
    } else if any(|verdict| matches!(verdict, Verdict::Retry { .. })) {
        "retry"
    } else {
        "rejected"
    }
}

/// Returns what a verdict says went wrong, if the event is to be sent again for it.
pub(super) fn failure(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Retry { why, .. } | Verdict::Blocked { why } => Some(why),
        Verdict::Delivered | Verdict::Split | Verdict::Reject { .. } => None,
    }
}

fn wish(verdict: &Verdict) -> Option<Duration> {
    match verdict {
        Verdict::Retry { after, .. } => *after,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Tries = Tries {
        sent: 0,
        failed_alone: 0,
    };
    const OLD: Tries = Tries {
        sent: 1,
        failed_alone: 0,
    };

    fn schedule() -> Schedule {
        let backoff = Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
        };
        Schedule::new(backoff, fastrand::Rng::with_seed(7))
    }

    // The answer of a request that was the only one under way.
    fn judge(schedule: &mut Schedule, now: Instant, tries: &[Tries], verdicts: Vec<Verdict>) -> Vec<Next> {
        let known = schedule.known();
        schedule.judge(now, known, tries, verdicts)
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

    fn due(next: &Next) -> Instant {
        match next {
            Next::Again { due, .. } => *due,
            other => panic!("{other:?} is not sent again"),
        }
    }

    #[test]
    fn waits_longer_with_every_failed_request_up_to_the_maximum() {
        let (mut schedule, mut now, mut waits) = (schedule(), Instant::now(), Vec::new());
        for _ in 0..200 {
            let next = judge(&mut schedule, now, &[NEW], vec![retry(None)]);
            let until = schedule.trouble().unwrap().until;
            assert_eq!(due(&next[0]), until);
            waits.push(until - now);
            now = until;
        }
        assert!(waits[0] <= Duration::from_secs(1));
        assert!(waits[1] <= Duration::from_secs(2));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(60)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(50)));
    }

    #[test]
    fn waits_as_long_as_the_service_asks_within_five_minutes() {
        let now = Instant::now();
        let next = judge(&mut schedule(), now, &[NEW], vec![retry(Some(17))]);
        assert_eq!(due(&next[0]) - now, Duration::from_secs(17));
        let next = judge(&mut schedule(), now, &[NEW], vec![retry(Some(86_400))]);
        assert_eq!(due(&next[0]) - now, LONGEST_WISH);
    }

    #[test]
    fn a_partial_failure_delays_its_own_events_only() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let next = judge(&mut schedule, now, &[NEW, NEW], vec![Verdict::Delivered, retry(None)]);
        assert_eq!(next[0], Next::Delivered);
        assert!(matches!(next[1], Next::Again { tries, .. } if tries == Tries { sent: 1, failed_alone: 1 }));
        assert_eq!(schedule.trouble(), None);
    }

    #[test]
    fn an_event_that_fails_again_does_not_stop_a_destination_that_delivers() {
        let (mut schedule, now) = (schedule(), Instant::now());
        judge(&mut schedule, now, &[OLD], vec![retry(None)]);
        assert_eq!(schedule.trouble(), None);
    }

    #[test]
    fn a_failing_destination_stays_so_until_it_takes_an_event() {
        let (mut schedule, now) = (schedule(), Instant::now());
        judge(&mut schedule, now, &[NEW], vec![retry(None)]);
        judge(&mut schedule, now, &[OLD], vec![retry(None)]);
        assert_eq!(schedule.trouble().unwrap().streak, 2);
        judge(&mut schedule, now, &[OLD, OLD], vec![retry(None), Verdict::Delivered]);
        assert_eq!(schedule.trouble(), None);
    }

    #[test]
    fn answers_of_requests_sent_before_the_trouble_neither_worsen_nor_end_it() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let known = schedule.known();
        schedule.judge(now, known, &[NEW], vec![retry(None)]);
        let next = schedule.judge(now, known, &[NEW], vec![retry(Some(100))]);
        let trouble = schedule.trouble().unwrap().clone();
        assert_eq!((trouble.streak, trouble.until), (1, now + Duration::from_secs(100)));
        assert!(matches!(next[0], Next::Again { tries, .. } if tries.failed_alone == 0));
        let next = schedule.judge(now, known, &[NEW], vec![Verdict::Delivered]);
        assert_eq!(next, [Next::Delivered]);
        assert_eq!(schedule.trouble(), Some(&trouble));
        judge(&mut schedule, now, &[OLD], vec![Verdict::Delivered]);
        assert_eq!(schedule.trouble(), None);
    }

    #[test]
    fn a_refused_configuration_is_tried_slowly_and_never_gives_up_an_event() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let next = judge(&mut schedule, now, &[NEW, NEW], vec![blocked(), blocked()]);
        let trouble = schedule.trouble().unwrap();
        assert!(trouble.blocked);
        assert_eq!(trouble.why, "no such stream");
        assert_eq!(due(&next[0]) - now, BLOCKED_WAIT);
        schedule.hurry(now);
        assert_eq!(schedule.trouble().unwrap().until, now);
    }

    #[test]
    fn halves_a_request_and_gives_up_an_event_too_large_alone() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let next = judge(&mut schedule, now, &[NEW, NEW], vec![Verdict::Split, Verdict::Split]);
        assert_eq!(next, [Next::Halve, Next::Halve]);
        let next = judge(&mut schedule, now, &[NEW], vec![Verdict::Split]);
        assert!(matches!(&next[0], Next::Dead(why) if why.contains("too large")));
        assert_eq!(schedule.trouble(), None);
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
}
