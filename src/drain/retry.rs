//! What follows from a destination's verdicts: when each event is tried again, and when it is given up.
//!
//! The whole retry policy is here, as arithmetic on verdicts and instants. It tells two troubles apart. While the
//! destination as a whole fails (it took nothing of a request that held a new event) [`breaker`](super::breaker) says
//! what it gets. Where it takes some events and not others, only those wait, and the rest goes on. A failed request
//! costs its events a try; not so if it was sent before their time (a probe, the end of an outage, the end of the
//! process), nor if flagtap's configuration is refused. Out of tries, an event goes the way that is configured.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Gate, Known};
use super::fate::Tries;
use crate::attempts::{Retry, Then, Waits};
use crate::destination::{Limits, Verdict};

/// How often a destination is tried that refuses flagtap's configuration: somebody has to change something first.
const BLOCKED_WAIT: Duration = Duration::from_secs(30);

/// The longest wait a service may ask for. More would make a slip of the service's into an outage of the export.
pub(super) const LONGEST_WISH: Duration = Duration::from_secs(3600);

/// After so many failures of an event it is repeated in smaller requests, if others get through. Not sooner: a receiver recognises a request that
/// it took and could not answer by its being the same.
const REPEATED_WHOLE: u32 = 2;

/// What part of a failed request its events are repeated in then: those beside an event that breaks every request it is
/// in get through soon, and so do all where a service only takes small requests. Success lets them grow again.
const REPEATED_IN: usize = 8;

/// What happens to an event after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is settled.
    Delivered,
    /// It is refused for itself.
    Dead(String),
    /// It is out of tries, and kept.
    GivenUp(String),
    /// It is out of tries, and gone.
    Dropped,
    /// It is sent again at `due`, in a request of at most so many.
    Again { tries: Tries, due: Instant, most: usize },
    /// It is sent again at once, in a request of half the size.
    Halve,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered<'a> {
    /// When it was sent.
    pub(super) sent: Instant,
    /// What was known of the destination then.
    pub(super) known: Known,
    /// What its events had been through before.
    pub(super) tries: &'a [Tries],
}

/// The retry policy of one destination, with what it remembers between requests.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) gate: Gate,
    waits: Waits,
    random: fastrand::Rng,
}

/// What all failed events of a request share.
#[derive(Clone, Copy)]
struct Failed {
    now: Instant,
    sent: Instant,
    /// One chance for all, so that they stay together and do not become a request each.
    chance: f64,
    as_a_whole: bool,
    most: usize,
    /// All events of the request, if they failed together.
    together: usize,
}

impl Policy {
    pub(super) fn new(retry: Retry, random: fastrand::Rng) -> Self {
        Self {
            gate: Gate::new(retry.pace()),
            waits: retry.waits(),
            random,
        }
    }

    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Returns what follows for each event of a request from the verdicts, one per event in the same order, and the
    /// true if an outage is over. `limits`: what the destination takes when it works.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        request: Answered<'_>,
        verdicts: Vec<Verdict>,
        limits: Limits,
    ) -> (Vec<Next>, bool) {
        let Answered { sent, known, tries } = request;
        let outdated = self.gate.is_outdated(known);
        let failed = verdicts.iter().filter(|verdict| failure(verdict).is_some()).count();
        let answered = verdicts
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Delivered | Verdict::Reject { .. }));
        let is_blocked = |verdict: &Verdict| matches!(verdict, Verdict::Blocked { .. });
        let blocked = verdicts.iter().find(|verdict| is_blocked(verdict));
        let together = failed > 0 && failed == verdicts.len();
        // Of an event that failed before, one more failure tells nothing; but those that end their tries come in halves.
        let is_last = |tries: &Tries| tries.planned.is_some_and(|at| at <= sent) && self.is_out_of_tries(tries);
        let tells = |tries: &Tries| tries.sent == 0 || (verdicts.len() > 1 && is_last(tries));
        let surprises = self.gate.trouble().is_none();
        let as_a_whole = together && (self.gate.is_suspicious() || blocked.is_some() || tries.iter().any(tells));
        let mut over = false;
        let wished = verdicts.iter().filter_map(wish).max();
        if as_a_whole {
            let wait = match blocked {
                Some(_) => BLOCKED_WAIT,
                None => self.gate.wait(&mut self.random).max(wished.unwrap_or_default()),
            };
            if outdated {
                self.gate.failed_too(now + wait);
            } else {
                let why = blocked.or(verdicts.first()).and_then(failure).unwrap_or_default();
                self.gate.failed(now, now + wait, blocked.is_some(), why);
            }
        } else if !outdated {
            over = answered && self.gate.answered(now);
            let taken = verdicts.iter().filter(|verdict| **verdict == Verdict::Delivered);
            if 2 * taken.count() < verdicts.len() {
                self.gate.slow_down();
            } else if !over {
                self.gate.took_most(limits);
            }
        }
        let often = tries.iter().any(|tries| tries.sent >= REPEATED_WHOLE);
        let repeated = if together && often && surprises && blocked.is_none() && wished.is_none() {
            verdicts.len().div_ceil(REPEATED_IN)
        } else {
            usize::MAX
        };
        let shared = Failed {
            now,
            sent,
            chance: self.random.f64(),
            as_a_whole,
            most: repeated,
            together: if together { verdicts.len() } else { 1 },
        };
        let alone = verdicts.len() == 1;
        let next = tries.iter().zip(verdicts).map(|(tries, verdict)| match verdict {
            Verdict::Delivered => Next::Delivered,
            Verdict::Reject { why } => Next::Dead(why),
            Verdict::Split if alone => Next::Dead("the destination finds this event alone too large".to_owned()),
            Verdict::Split => Next::Halve,
            Verdict::Blocked { .. } => Next::Again {
                tries: Tries {
                    sent: tries.sent.saturating_add(1),
                    by_destination: true,
                    ..*tries
                },
                due: now + BLOCKED_WAIT,
                most: usize::MAX,
            },
            Verdict::Retry { after, why } => self.failed(shared, *tries, honoured(after), why),
        });
        (next.collect(), over)
    }

    /// Returns true if the next failure is the event's last.
    fn is_out_of_tries(&self, tries: &Tries) -> bool {
        self.waits.base(tries.failures.saturating_add(1)).is_none()
    }

    fn failed(&self, shared: Failed, tries: Tries, after: Option<Duration>, why: String) -> Next {
        let asked = after.map(|wish| shared.now + wish);
        let later = |due: Instant| asked.map_or(due, |asked| asked.max(due));
        let again = |failures, planned, most| Next::Again {
            tries: Tries {
                sent: tries.sent.saturating_add(1),
                failures,
                by_destination: shared.as_a_whole,
                planned: Some(planned),
                asked,
            },
            due: planned,
            most,
        };
        if let Some(planned) = tries.planned.filter(|planned| *planned > shared.sent) {
            return again(tries.failures, later(planned), shared.most);
        }
        let failures = tries.failures.saturating_add(1);
        let counted = failures.min(self.waits.most_failures());
        match (self.waits.wait(failures, shared.chance), self.waits.then()) {
            (Some(wait), _) => again(counted, later(shared.now + wait), shared.most),
            // What failed together may be the fault of one: no event is given up for its neighbours.
            (None, _) if shared.together > 1 && failures > 1 => {
                again(counted, later(shared.now), shared.together.div_ceil(2))
            }
            (None, Then::Drop) => Next::Dropped,
            (None, Then::DeadLetter | Then::Keep) => {
                let tried = if counted == 1 { "once" } else { "the last time" };
                Next::GivenUp(format!("out of tries ({counted}), failed {tried} with: {why}"))
            }
        }
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
        Verdict::Retry { after, .. } => honoured(*after),
        _ => None,
    }
}

/// Returns the wait that a service asks for, as far as it is honoured.
fn honoured(after: Option<Duration>) -> Option<Duration> {
    after.map(|wish| wish.min(LONGEST_WISH))
}

#[cfg(test)]
mod tests;
