//! What becomes of each flag's events, from traffic alone: evaluated, received, exported, and why not.
//!
//! Owns one table per environment: counts since the start and, kept across restarts ([`file`]), when each flag was first
//! seen. Bounded whatever traffic does: [`MAX_FLAGS`] flags and [`MAX_SDKS`] SDKs an environment, and what is beyond is
//! only counted. Holds flag keys, SDK names and numbers; nothing about a context.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::catalogue::{Known, Place};
use crate::export::narrow::Narrow;
use crate::export::selection::{Creation, Settings};

pub mod file;
mod report;
mod summary;
mod tally;

pub use report::{Pieces, document};
pub use tally::Tally;

use file::Sightings;
use tally::Counts;

/// Flags followed in one environment.
pub const MAX_FLAGS: usize = 20_000;

/// SDKs told apart in one environment, with the two that stand for all others: bits of [`Flag::sdks`].
const MAX_SDKS: usize = 64;

/// What SDKs beyond those that are told apart are called: some that are too old, and some that are not.
const OTHER_SDKS: &str = "others";

/// The SDK that sent a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its name, and its version if known: `GoClient/7.0.0`.
    pub sdk: String,
    /// It is older than the platform's own export asks for.
    pub too_old: bool,
}

/// One environment's flags.
pub struct Environment {
    name: String,
    place: RwLock<Place>,
    aim: RwLock<Aim>,
    table: Mutex<Table>,
}

/// What the environment exports, and what its destinations take of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// What is exported.
    pub export: Settings,
    /// Where it goes: the destinations' names, and what each of them gets.
    pub destinations: Vec<(String, Narrow)>,
}

/// What is in force, shared with whoever reads.
#[derive(Clone, Default)]
struct Aim {
    goal: Option<Arc<Goal>>,
    /// When it came into force, Unix milliseconds: counting began then.
    since_ms: u64,
    /// Which of the goals since the start it is.
    number: u64,
}

#[derive(Default)]
struct Table {
    flags: HashMap<Box<str>, Flag>,
    /// Each SDK seen, by its bit in [`Flag::sdks`].
    sdks: Vec<Sender>,
    /// Flags that came after the table was full, or have no usable key, once per batch.
    untracked: u64,
    /// The log says that it is full.
    told: bool,
    /// A flag was seen for the first time since the table was last written.
    grown: bool,
    /// The number of the goal under which is counted.
    number: u64,
}

#[derive(Clone)]
struct Flag {
    first_seen_ms: u64,
    /// 0 if not since the start.
    last_seen_ms: u64,
    counts: Counts,
    sdks: u64,
}

impl Environment {
    /// Returns an environment with the flags that were seen before this start.
    pub fn new(name: &str, seen: Sightings) -> Self {
        let flags = seen.into_iter().take(MAX_FLAGS).map(|(key, first_seen_ms)| {
            let flag = Flag {
                first_seen_ms,
                last_seen_ms: 0,
                counts: Counts::default(),
                sdks: 0,
            };
            (key.into_boxed_str(), flag)
        });
        Self {
            name: name.to_owned(),
            place: RwLock::default(),
            aim: RwLock::default(),
            table: Mutex::new(Table {
                flags: flags.collect(),
                ..Table::default()
            }),
        }
    }

    /// Has the environment know what LaunchDarkly tells of it.
    pub fn told_by(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Returns what LaunchDarkly tells of the environment, if it does.
    pub fn known(&self) -> Option<Known> {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        place.known()
    }

    /// Has the environment know what it exports from now on. If that is something else than before, counting begins anew:
    /// reasons of before would contradict the settings that are shown with them. Returns the goal's number, for [`Self::add`].
    pub fn aims_at(&self, goal: Goal, now_ms: u64) -> u64 {
        let mut aim = self.aim.write().unwrap_or_else(PoisonError::into_inner);
        if aim.goal.as_deref() == Some(&goal) {
            return aim.number;
        }
        let mut table = self.lock();
        table.number = aim.number + 1;
        table.untracked = 0;
        table.sdks.clear();
        for flag in table.flags.values_mut() {
            (flag.counts, flag.sdks, flag.last_seen_ms) = (Counts::default(), 0, 0);
        }
        *aim = Aim {
            goal: Some(Arc::new(goal)),
            since_ms: now_ms,
            number: table.number,
        };
        aim.number
    }

    fn aim(&self) -> Aim {
        self.aim.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns when flags were first seen, for a batch that was received at `now_ms`. A flag that was never seen before,
    /// also one for which there is no room, is as old as the batch.
    pub fn first_sights(&self, now_ms: u64) -> FirstSights<'_> {
        FirstSights {
            environment: self,
            now_ms,
        }
    }

    /// Adds what a batch of this sender showed that was judged under the goal with this number. `kept`: its selected events are
    /// in the queue. Of a goal that is no longer in force only the sight of flags counts.
    pub fn add(&self, mut tally: Tally, sender: Sender, received_ms: u64, kept: bool, number: u64) {
        if tally.is_empty() {
            return;
        }
        let mut table = self.lock();
        if number != table.number {
            let unseen = |key: &String| !table.flags.contains_key(key.as_str());
            tally.flags.retain(|key, _| unseen(key));
            tally.flags.values_mut().for_each(|counts| *counts = Counts::default());
        }
        let bit = table.sdk(sender);
        table.untracked += tally.untracked;
        for (key, counts) in tally.flags {
            if let Some(flag) = table.flags.get_mut(key.as_str()) {
                flag.add(&counts, bit, received_ms, kept);
            } else if table.flags.len() < MAX_FLAGS {
                let mut flag = Flag {
                    first_seen_ms: received_ms,
                    last_seen_ms: 0,
                    counts: Counts::default(),
                    sdks: 0,
                };
                flag.add(&counts, bit, received_ms, kept);
                table.flags.insert(key.into_boxed_str(), flag);
                table.grown = true;
            } else {
                table.untracked += 1;
                if !std::mem::replace(&mut table.told, true) {
                    tracing::warn!(
                        environment = self.name,
                        followed = MAX_FLAGS,
                        "there are more flags than coverage follows, further ones are only counted; with \
                         `flags: {{ default: new }}` they are as new as their events"
                    );
                }
            }
        }
    }

    /// Returns when each flag was first seen if there are new ones since this was last asked.
    fn new_sights(&self) -> bool {
        std::mem::take(&mut self.lock().grown)
    }

    fn sights(&self) -> Sightings {
        let table = self.lock();
        let sights = table
            .flags
            .iter()
            .map(|(key, flag)| (key.to_string(), flag.first_seen_ms));
        sights.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Counts are whole after each statement, so a panic elsewhere left nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When flags were first seen, as their time of creation.
pub struct FirstSights<'a> {
    environment: &'a Environment,
    now_ms: u64,
}

impl Creation for FirstSights<'_> {
    fn created_ms(&self, flag: &str) -> Option<u64> {
        let table = self.environment.lock();
        Some(table.flags.get(flag).map_or(self.now_ms, |flag| flag.first_seen_ms))
    }
}

impl Table {
    /// Returns the bit of an SDK; where there is no room for it, that of the others.
    fn sdk(&mut self, mut sender: Sender) -> u64 {
        let place = |sdks: &[Sender], sender: &Sender| sdks.iter().position(|known| known == sender);
        let mut known = place(&self.sdks, &sender);
        if known.is_none() && self.sdks.len() >= MAX_SDKS - 2 {
            sender.sdk = OTHER_SDKS.to_owned();
            known = place(&self.sdks, &sender);
        }
        let index = known.unwrap_or_else(|| {
            self.sdks.push(sender);
            self.sdks.len() - 1
        });
        1 << index
    }
}

impl Flag {
    fn add(&mut self, counts: &Counts, sdk: u64, received_ms: u64, kept: bool) {
        self.last_seen_ms = self.last_seen_ms.max(received_ms);
        self.sdks |= sdk;
        self.counts.add(counts, kept);
    }
}

#[cfg(test)]
mod tests;
