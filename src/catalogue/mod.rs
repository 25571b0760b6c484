//! What LaunchDarkly's REST API tells beyond traffic: names of variations, dates of creation, rules, ids.
//!
//! Owns a copy of the projects' environments that are configured here, their flags and rules: in memory ([`Shelf`]), on
//! disk ([`stored`]), read anew by [`rest`]. Everything works without it, and with an old one while LaunchDarkly cannot be
//! reached. Keys of SDKs are kept as SHA-256 digests, values of variations as digests of their meaning; of a size that is
//! bounded whatever the API answers.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::export::selection::Creation;
use crate::units::hex;

mod named;
pub mod rest;
pub mod stored;

pub use named::named;

/// Flags read of one environment; more are left out, and that is said.
pub const MAX_FLAGS: usize = 20_000;

/// Rules and variations read of one flag.
const MAX_PARTS: usize = 1_000;

/// Characters kept of a name or description.
const MAX_TEXT: usize = 500;

/// What is known of the configured environments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    /// When it was read, Unix milliseconds.
    pub read_ms: u64,
    /// The environments that were found, in LaunchDarkly's order.
    pub environments: Vec<Environment>,
}

/// An environment of a project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The project's id, 24 hex digits.
    pub project_id: String,
    /// The project's key, as in paths of the API.
    pub project_key: String,
    /// The environment's id, which is also its client-side id.
    pub id: String,
    /// The environment's key.
    pub key: String,
    /// Digests of its SDK key and mobile key, see [`digest`].
    pub keys: Vec<String>,
    /// Detailed events are on for new flags.
    pub tracks_new_flags: bool,
    /// There are more flags than are kept.
    pub has_more_flags: bool,
    /// Its flags, by their keys.
    pub flags: BTreeMap<String, Flag>,
}

/// A flag, as it is in one environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// When it was created, Unix milliseconds.
    pub created_ms: u64,
    /// Detailed events are on for the whole flag (`trackEvents`).
    pub tracked: bool,
    /// They are on for evaluations that match no rule (`trackEventsFallthrough`).
    pub tracks_fallthrough: bool,
    /// Its variations; an evaluation's `variation` is a place in here.
    pub variations: Vec<Variation>,
    /// Its targeting rules.
    pub rules: Vec<Rule>,
}

/// A variation of a flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variation {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// A digest of its value's meaning.
    value: u64,
}

/// A targeting rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its id: `reason.ruleId` of evaluations that matched it.
    pub id: String,
    /// What people call it.
    pub description: Option<String>,
    /// Detailed events are on for it.
    pub tracked: bool,
}

/// By what a configured environment is found in LaunchDarkly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whose {
    /// The configured id and client-side ids.
    pub ids: Vec<String>,
    /// Digests of the configured SDK keys and mobile keys, see [`digest`].
    pub keys: Vec<String>,
}

impl Whose {
    /// Returns true if this is that environment.
    pub fn is(&self, environment: &Environment) -> bool {
        self.ids.contains(&environment.id) || environment.keys.iter().any(|key| self.keys.contains(key))
    }
}

/// Returns what stands for an SDK's key: SHA-256, as hex digits. Keys are random, so nobody finds one by it.
pub fn digest(key: &str) -> String {
    hex(&Sha256::digest(key))
}

/// The catalogue as it is now, for whoever asks.
#[derive(Debug, Default)]
pub struct Shelf {
    current: RwLock<Arc<Catalogue>>,
}

impl Shelf {
    /// Returns the catalogue as it is now; empty before anything was read.
    pub fn current(&self) -> Arc<Catalogue> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the catalogue.
    pub fn put(&self, catalogue: Catalogue) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalogue);
    }
}

/// Where one configured environment looks itself up.
#[derive(Clone, Debug, Default)]
pub struct Place {
    shelf: Arc<Shelf>,
    whose: Whose,
}

impl Place {
    /// Returns the place of this environment.
    pub fn new(shelf: Arc<Shelf>, whose: Whose) -> Self {
        Self { shelf, whose }
    }

    /// Returns what is known of the environment now.
    pub fn known(&self) -> Option<Known> {
        let catalogue = self.shelf.current();
        let index = catalogue.environments.iter().position(|one| self.whose.is(one))?;
        Some(Known { catalogue, index })
    }

    /// Returns by what the environment is found.
    pub fn whose(&self) -> &Whose {
        &self.whose
    }
}

/// An environment of a catalogue that is kept alive by it.
#[derive(Clone, Debug)]
pub struct Known {
    catalogue: Arc<Catalogue>,
    /// Of an environment that is there.
    index: usize,
}

impl Deref for Known {
    type Target = Environment;

    fn deref(&self) -> &Environment {
        &self.catalogue.environments[self.index]
    }
}

/// Dates of creation: LaunchDarkly's where it is known, another source's where not (a flag that was created since the
/// catalogue was read).
pub struct Dates<'a> {
    known: Option<&'a Environment>,
    otherwise: &'a dyn Creation,
}

impl<'a> Dates<'a> {
    /// Returns the dates of an environment.
    pub fn new(known: Option<&'a Environment>, otherwise: &'a dyn Creation) -> Self {
        Self { known, otherwise }
    }
}

impl Creation for Dates<'_> {
    fn created_ms(&self, flag: &str) -> Option<u64> {
        let known = self.known.and_then(|environment| environment.flags.get(flag));
        known
            .map(|flag| flag.created_ms)
            .or_else(|| self.otherwise.created_ms(flag))
    }
}

/// Returns at most [`MAX_TEXT`] characters of a text without control characters, `None` if nothing is left.
fn short(text: Option<String>) -> Option<String> {
    let text: String = text?.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;
