//! What an answer changes: the events of its request, and what people see of it.
//!
//! Decides nothing: [`retry`] does.

use std::time::Duration;

use tokio::time::Instant;

use super::fate::Fate;
use super::flights::{Landed, Origin};
use super::slot::{Death, Slot, Waiting};
use super::status::Failure;
use super::{Task, retry};
use crate::destination::Verdict;

impl Task {
    /// Brings the answers that have come into the window.
    pub(super) fn land(&mut self) {
        while let Some(landed) = self.flights.take() {
            let Landed {
                places,
                items,
                tries,
                sent,
                known,
                verdicts,
            } = landed;
            let now = Instant::now();
            let verdicts = verdicts.unwrap_or_default();
            let delivered = verdicts.contains(&Verdict::Delivered);
            let is_restricted = |origin: &Origin| origin.most < usize::MAX;
            let grows =
                verdicts.iter().all(|verdict| *verdict == Verdict::Delivered) && places.iter().any(is_restricted);
            let why = verdicts.iter().find_map(retry::failure).map(str::to_owned);
            let request = retry::Answered {
                sent,
                known,
                tries: &tries,
            };
            let (next, over) = self.policy.judge(now, request, verdicts, self.limits());
            let halved = items.len().div_ceil(2);
            let (mut next, mut dropped) = (next.into_iter(), 0);
            for ((Origin { place, most, due }, item), tries) in places.into_iter().zip(items).zip(tries) {
                let waiting = |tries, most, due| Slot::Waiting(Waiting { item, tries, most, due });
                let slot = match next.next() {
                    Some(retry::Next::Delivered) => Slot::Settled(Fate::Delivered),
                    Some(retry::Next::Dead(why)) => Slot::Dying {
                        why,
                        death: Death::Refused,
                    },
                    Some(retry::Next::GivenUp(why)) => Slot::Dying {
                        why,
                        death: Death::OutOfTries,
                    },
                    Some(retry::Next::Dropped) => {
                        dropped += 1;
                        Slot::Settled(Fate::Dropped)
                    }
                    Some(retry::Next::Again {
                        tries,
                        due,
                        most: repeated,
                    }) => waiting(tries, most.min(repeated), due),
                    Some(retry::Next::Halve) => waiting(tries, halved, now),
                    None => waiting(tries, most, due),
                };
                self.window.put(place, slot);
            }
            if over {
                self.window.hurry(now, |tries| tries.by_destination);
            }
            if grows {
                self.window.grow(self.limits().items);
            }
            self.reporter.dropped(dropped);
            self.report(now, delivered, why);
        }
    }

    fn report(&mut self, now: Instant, delivered: bool, why: Option<String>) {
        self.reporter.breaker(self.policy.gate.state());
        let trouble = (self.policy.gate.trouble()).map(|trouble| (trouble.why.clone(), trouble.blocked));
        if delivered {
            self.reporter.delivered();
        }
        if delivered || trouble.is_some() {
            self.reporter.works(trouble.is_none());
        }
        let events = self.window.failed();
        let wait = self.next_due(now).map_or(Duration::ZERO, |at| at.duration_since(now));
        match trouble.or(why.map(|why| (why, false))) {
            Some((why, blocked)) => self.reporter.failing(Failure {
                why,
                blocked,
                wait,
                events,
            }),
            None if events == 0 => self.reporter.recovered(),
            None => self.reporter.waiting(wait),
        }
    }
}
