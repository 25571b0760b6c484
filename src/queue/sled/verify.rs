//! Reads every byte that matters of a queue and says what is damaged and what that costs each destination.
//!
//! Counts by difference, as the engine does: what should lie between two known places, less what could be read there. So
//! a loss is known also where the damaged bytes say nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::dead_letters;
use super::generation::Failure;
use super::inspect::{Found, InspectError, Inspection, read_records};
use crate::queue::{Counts, Totals, add, difference};

/// Damaged places that are named; more are only counted.
const NAMED: usize = 1000;

/// What [`Inspection::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Parts read.
    pub parts: u64,
    /// Whole records in them.
    pub records: u64,
    /// Their events.
    pub events: u64,
    /// Dead letters read.
    pub dead_letters: u64,
    /// Everything damaged, up to a thousand places.
    pub damage: Vec<Damage>,
    /// Damaged places, also those not named.
    pub damaged: u64,
    /// Events that wait and cannot be delivered, by destination and environment.
    pub cost: Vec<(String, String, u64)>,
    /// A part is damaged whose events nothing counts.
    pub is_uncounted: bool,
    /// Parts that the engine would set aside, with the reason.
    pub unreadable: Vec<(u64, String)>,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First position of the part; `None` for what is in no part.
    pub part: Option<u64>,
    /// Position of the record.
    pub position: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// The log between two places whose cumulative counts are known.
struct Stretch {
    start: Totals,
    /// Events found behind each destination's cursor.
    found: BTreeMap<String, Counts>,
}

/// One destination's cursor.
struct Place {
    name: String,
    position: u64,
    settled: Counts,
}

impl Verification {
    fn report(&mut self, part: Option<u64>, position: Option<u64>, what: impl Into<String>) {
        self.damaged += 1;
        if self.damage.len() < NAMED {
            self.damage.push(Damage {
                part,
                position,
                what: what.into(),
            });
        }
    }

    fn unreadable(&mut self, part: u64, why: String) {
        self.report(Some(part), None, why.clone());
        self.unreadable.push((part, why));
    }
}

impl Inspection {
    /// Reads every record and checks every checksum.
    pub fn verify(&self) -> Result<Verification, InspectError> {
        let mut verification = Verification::default();
        let places = self.places();
        let mut costs: BTreeMap<String, Counts> = BTreeMap::new();
        // Unknown where the log begins with a part that is gone: what lay before it was counted when it went.
        let mut stretch: Option<Stretch> = None;
        for (first, start) in &self.starts {
            match start {
                Ok(start) => {
                    if let Some(stretch) = stretch.replace(Stretch::from(&start.totals)) {
                        stretch.end(&start.totals, &places, &mut costs);
                    }
                }
                Err(why) => {
                    verification.unreadable(*first, why.clone());
                    stretch.get_or_insert_with(|| Stretch::from(&Totals::default()));
                    continue;
                }
            }
            verification.parts += 1;
            match self.verify_part(*first, &places, stretch.as_mut(), &mut verification) {
                Ok(()) => {}
                // Settled meanwhile: not there any more, and not missed.
                Err(Failure::Removed) => stretch = None,
                Err(failure @ (Failure::Damaged(_) | Failure::Stateless)) => {
                    verification.unreadable(*first, failure.to_string());
                }
                Err(failure @ Failure::Passing(_)) => return Err(self.failed(&failure)),
            }
        }
        if let Some(stretch) = stretch {
            stretch.end(&self.loaded.state.totals, &places, &mut costs);
        }
        verification.is_uncounted = !self.broken.is_empty() && self.known.tail == 0;
        for (part, what) in &self.mended {
            verification.report(*part, None, what.clone());
        }
        for name in &self.loaded.broken {
            let what = format!("the cursor of {name} is damaged: what is left is delivered to it again");
            verification.report(self.newest, None, what);
        }
        let letters = dead_letters::summary(&self.dead_letters_path()).map_err(|error| self.failed(&error))?;
        verification.dead_letters = letters.letters.values().map(|count| count.letters).sum();
        for _ in 0..letters.damaged {
            verification.report(None, None, "a dead letter is damaged");
        }
        // A running process takes its word back before it removes letters; only a stopped one can have lost some.
        let gone = self
            .known
            .letters
            .saturating_sub(verification.dead_letters + letters.damaged);
        if gone > 0 && !self.in_use {
            verification.report(None, None, format!("{gone} dead letters are gone"));
        }
        if letters.torn_bytes > 0 && !self.in_use {
            let what = format!(
                "{} bytes at the end of the dead letters are cut short",
                letters.torn_bytes
            );
            verification.report(None, None, what);
        }
        verification.cost = (costs.into_iter())
            .flat_map(|(name, counts)| {
                let counts = counts.into_iter().filter(|(_, events)| *events > 0);
                counts.map(move |(environment, events)| (name.clone(), environment, events))
            })
            .collect();
        Ok(verification)
    }

    fn verify_part(
        &self,
        first: u64,
        places: &[Place],
        mut stretch: Option<&mut Stretch>,
        verification: &mut Verification,
    ) -> Result<(), Failure> {
        if let Some(why) = self.broken.get(&first) {
            return Err(Failure::Damaged(why.clone()));
        }
        let copied = self.scratch.open(&self.generation_path(first), self.in_use)?;
        let generation = copied.generation()?;
        let mut next = first;
        read_records(generation, 0, |found| {
            let position = match &found {
                Found::Record(position, _) | Found::Damaged { position, .. } => *position,
            };
            for missing in next..position {
                verification.report(Some(first), Some(missing), "the record is missing");
            }
            next = position.saturating_add(1);
            match found {
                Found::Record(position, record) => {
                    verification.records += 1;
                    verification.events += record.events.len() as u64;
                    let environment = &record.origin.environment;
                    if let Some(stretch) = &mut stretch {
                        stretch.count(position, &record.destinations, environment, record.events.len(), places);
                    }
                }
                Found::Damaged {
                    position,
                    header,
                    error,
                } => {
                    let events = header.map_or(String::new(), |header| format!(", {} events", header.events));
                    verification.report(Some(first), Some(position), format!("{error}{events}"));
                }
            }
            true
        })?;
        // A running process may have written more by now.
        if let Some(end) = self.end(first) {
            for missing in next..end {
                verification.report(Some(first), Some(missing), "the record is missing");
            }
        }
        Ok(())
    }

    fn places(&self) -> Vec<Place> {
        let known = self.loaded.cursors.iter().map(|(name, cursor)| Place {
            name: name.clone(),
            position: cursor.position,
            settled: cursor.settled.clone(),
        });
        // Everything that is left goes to a destination whose cursor is gone.
        let oldest = self.starts.values().find_map(|start| start.as_ref().ok());
        let lost = self.loaded.broken.iter().map(|name| Place {
            name: name.clone(),
            position: oldest.map_or(0, |start| start.first),
            settled: oldest.map_or_else(Counts::new, |start| start.totals.of(name)),
        });
        known.chain(lost).collect()
    }
}

impl Stretch {
    fn from(start: &Totals) -> Self {
        Self {
            start: start.clone(),
            found: BTreeMap::new(),
        }
    }

    fn count(&mut self, position: u64, names: &[String], environment: &str, events: usize, places: &[Place]) {
        let names: BTreeSet<&String> = names.iter().collect();
        for place in places {
            if place.position <= position && names.contains(&place.name) {
                let found = self.found.entry(place.name.clone()).or_default();
                add(found, environment, events as u64);
            }
        }
    }

    /// Adds what is missing before a place with these counts.
    fn end(&self, end: &Totals, places: &[Place], costs: &mut BTreeMap<String, Counts>) {
        for place in places {
            let mut before = self.start.of(&place.name);
            for (environment, settled) in &place.settled {
                let counted = before.entry(environment.clone()).or_default();
                *counted = (*counted).max(*settled);
            }
            let expected = difference(&end.of(&place.name), &before);
            let found = self.found.get(&place.name).cloned().unwrap_or_default();
            for (environment, events) in difference(&expected, &found) {
                add(costs.entry(place.name.clone()).or_default(), &environment, events);
            }
        }
    }
}
