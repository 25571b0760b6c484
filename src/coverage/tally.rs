//! What one batch shows about its flags, gathered without a lock.

use std::collections::HashMap;

use super::summary;
use crate::event::{Event, Kind};
use crate::export::selection::{Judgement, MAX_FLAG_KEY, Reason};

/// What happened to one flag's evaluations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Counted in summaries.
    pub(super) evaluations: u64,
    /// Of those, of a flag that the SDK did not know.
    pub(super) unknown: u64,
    /// `feature` events.
    pub(super) received: u64,
    /// Of those, selected and in the queue.
    pub(super) exported: u64,
    /// Of those, selected and not kept.
    pub(super) lost: u64,
    /// Of those, not selected, by reason; few, in no order.
    pub(super) held: Vec<(Reason, u64)>,
}

impl Counts {
    /// Adds a batch's counts. Unless `kept`, its selected events were lost.
    pub(super) fn add(&mut self, more: &Self, kept: bool) {
        self.evaluations = self.evaluations.saturating_add(more.evaluations);
        self.unknown = self.unknown.saturating_add(more.unknown);
        self.received += more.received;
        *if kept { &mut self.exported } else { &mut self.lost } += more.exported;
        for (reason, events) in &more.held {
            self.hold(*reason, *events);
        }
    }

    fn hold(&mut self, reason: Reason, events: u64) {
        match self.held.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += events,
            None => self.held.push((reason, events)),
        }
    }
}

/// What one batch shows about its flags.
#[derive(Debug, Default)]
pub struct Tally {
    pub(super) flags: HashMap<String, Counts>,
    pub(super) untracked: u64,
}

impl Tally {
    /// Notes an event and what was made of it. Events that are about no flag say nothing.
    pub fn note(&mut self, event: &Event, judgement: Judgement) {
        match event.kind {
            Kind::Feature => {
                let Some(counts) = event.key().and_then(|key| self.flag(&key)) else {
                    return;
                };
                counts.received += 1;
                match judgement {
                    Judgement::Keep { .. } => counts.exported += 1,
                    Judgement::Drop(reason) => counts.hold(reason, 1),
                }
            }
            // Seen, and nothing more: it says nothing about the flag's export.
            Kind::Debug => drop(event.key().map(|key| self.flag(&key).is_some())),
            Kind::Summary => {
                summary::evaluations(&event.json, &mut |flag, count, unknown| {
                    if let Some(counts) = self.flag(flag) {
                        counts.evaluations = counts.evaluations.saturating_add(count);
                        counts.unknown = counts.unknown.saturating_add(unknown);
                    }
                });
            }
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flags.is_empty() && self.untracked == 0
    }

    /// Returns a flag's counts; `None`, after counting it, if its key is unusable or there are too many flags.
    fn flag(&mut self, key: &str) -> Option<&mut Counts> {
        let known = self.flags.contains_key(key);
        if !known && (key.is_empty() || key.len() > MAX_FLAG_KEY || self.flags.len() >= super::MAX_FLAGS) {
            self.untracked += 1;
            return None;
        }
        if !known {
            self.flags.insert(key.to_owned(), Counts::default());
        }
        self.flags.get_mut(key)
    }
}
