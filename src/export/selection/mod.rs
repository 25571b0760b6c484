//! Which events are exported: an environment's settings and the judgement of each event by them.
//!
//! Pure. The first reason not to export an event wins, in the order of [`Reason::ALL`]. A flag's settings concern the
//! `feature` events of that flag and nothing else; an evaluation in an experiment is exported whatever they are, as
//! LaunchDarkly does, unless the flag's setting says otherwise.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::event::{Event, Kind, Schema};
use crate::export::Members;
use crate::glob::Glob;

mod reason;
mod sample;

pub use reason::{Grounds, Reason};

/// Longest key of a flag, bytes: what LaunchDarkly takes.
pub const MAX_FLAG_KEY: usize = 256;

/// What the environment's configuration says about its export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kinds to export.
    pub kinds: BTreeSet<Kind>,
    /// Which flags' evaluations are exported.
    pub flags: Flags,
    /// Which custom events are exported.
    pub custom_events: Names,
    /// SDKs whose events are not exported: patterns for `name/version`.
    pub excluded_sdks: Vec<Glob>,
    /// Of evaluations, only those in experiments.
    pub experiments_only: bool,
    /// Flags of which 1 in so many contexts is exported.
    pub samples: BTreeMap<String, u32>,
}

/// Which flags' evaluations are exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Of flags without a setting of their own.
    pub default: FlagDefault,
    /// The settings of single flags, by key.
    pub named: BTreeMap<String, Flag>,
}

/// Whether a flag without a setting of its own is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlagDefault {
    /// It is.
    #[default]
    Export,
    /// It is not.
    Hold,
    /// It is if it was created at this time or later, Unix milliseconds.
    New {
        /// The switch.
        since_ms: u64,
    },
}

/// A flag's own setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Which evaluations are exported.
    pub choice: Choice,
    /// Evaluations in experiments are exported whatever the choice is.
    pub experiments: bool,
}

/// Which of a flag's evaluations are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// All.
    Export,
    /// None.
    Hold,
    /// Those that matched chosen targeting rules.
    Rules {
        /// The rules' ids.
        ids: BTreeSet<String>,
        /// Also those that matched no rule.
        fallthrough: bool,
    },
}

/// Names by pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// A name must match one of these; none means that every name does.
    pub include: Vec<Glob>,
    /// A name must match none of these.
    pub exclude: Vec<Glob>,
}

impl Default for Settings {
    /// Returns every kind that LaunchDarkly exports without being asked: all but `summary`, which the documentation
    /// of every year names as exported on request only. Of these, every event.
    fn default() -> Self {
        Self {
            kinds: Kind::EXPORTABLE
                .into_iter()
                .filter(|kind| *kind != Kind::Summary)
                .collect(),
            flags: Flags::default(),
            custom_events: Names::default(),
            excluded_sdks: Vec::new(),
            experiments_only: false,
            samples: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Returns why an evaluation of this flag that is in no experiment would be left out, if that can be said without one.
    /// `created_ms`: when the flag was created, Unix milliseconds.
    pub fn holds(&self, flag: &str, created_ms: u64) -> Option<Reason> {
        if !self.kinds.contains(&Kind::Feature) {
            return Some(Reason::KindNotSelected);
        }
        if self.experiments_only {
            return Some(Reason::NotInExperiment);
        }
        let named = self.flags.named.get(flag).map(|flag| &flag.choice);
        match (named, self.flags.default) {
            (Some(Choice::Hold), _) => Some(Reason::FlagHeld),
            (Some(_), _) => None,
            (None, default) => default.judge(|| Some(created_ms)).err(),
        }
    }
}

impl FlagDefault {
    /// Judges an evaluation of a flag without a setting of its own. `created_ms` is asked for only where it can matter.
    fn judge(self, created_ms: impl FnOnce() -> Option<u64>) -> Result<Grounds, Reason> {
        match self {
            Self::Export => Ok(Grounds::Default),
            Self::Hold => Err(Reason::HeldByDefault),
            Self::New { since_ms } => match created_ms() {
                None => Err(Reason::FlagUnknown),
                Some(created) if created < since_ms => Err(Reason::FlagCreatedBefore),
                Some(_) => Ok(Grounds::New),
            },
        }
    }
}

/// Whether an event is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// To be exported.
    Keep {
        /// What decided it.
        by: Grounds,
        /// The event stands for so many more as it did before: what [`Judgement::json`] writes into it.
        ratio: u32,
    },
    /// Left out.
    Drop(Reason),
}

impl Judgement {
    /// Returns the judgement for an environment that exports to these destinations.
    #[must_use]
    pub fn to(self, destinations: &[String]) -> Self {
        match self {
            Self::Keep { .. } if destinations.is_empty() => Self::Drop(Reason::NoDestination),
            judgement => judgement,
        }
    }

    /// Returns what is to be kept of an event that is exported: its bytes, with `samplingRatio` set if it is one of a
    /// sample. `None` if the event is left out.
    pub fn json(self, event: &Event) -> Option<Bytes> {
        match self {
            Self::Keep { ratio: 0 | 1, .. } => Some(event.json.clone()),
            Self::Keep { ratio, .. } => Some(sample::stamp(&event.json, ratio)),
            Self::Drop(_) => None,
        }
    }
}

/// When flags were created.
pub trait Creation {
    /// Returns when the flag was created, Unix milliseconds; `None` if nobody can say.
    fn created_ms(&self, flag: &str) -> Option<u64>;
}

/// Everything about a flag that is listed by its key.
#[derive(Clone, Debug)]
struct Listed {
    flag: Option<Flag>,
    ratio: u32,
}

/// An environment's export settings, ready to judge events.
#[derive(Clone, Debug)]
pub struct Selection {
    settings: Settings,
    listed: HashMap<String, Listed>,
}

/// The judge of one batch's events.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    selection: &'a Selection,
    schema: Schema,
    excluded: bool,
    creation: &'a dyn Creation,
}

impl Selection {
    /// Returns the selection that these settings describe.
    pub fn new(settings: Settings) -> Self {
        let mut listed: HashMap<String, Listed> = HashMap::new();
        for (key, flag) in &settings.flags.named {
            let flag = Some(flag.clone());
            listed.insert(key.clone(), Listed { flag, ratio: 1 });
        }
        for (key, ratio) in &settings.samples {
            let entry = listed.entry(key.clone()).or_insert(Listed { flag: None, ratio: 1 });
            entry.ratio = *ratio;
        }
        Self { settings, listed }
    }

    /// Returns the judge of a batch with this schema, sent by `sdk` (`name/version`).
    pub fn judge<'a>(&'a self, schema: Schema, sdk: &str, creation: &'a dyn Creation) -> Judge<'a> {
        Judge {
            selection: self,
            schema,
            excluded: matches_any(&self.settings.excluded_sdks, sdk),
            creation,
        }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl Judge<'_> {
    /// Returns whether an event is exported, or the first reason why it is not.
    ///
    /// An SDK that sends every evaluation (PHP) marks those to be exported with `trackEvents: true`; no other kind of
    /// event carries that mark, so none is held to it. All other SDKs send a `feature` event only where LaunchDarkly's
    /// settings ask for one. Those of before 2018 (schema 1) send every evaluation with nothing to tell tracked ones
    /// apart; they are exported, since losing a tracked evaluation is worse than exporting one that was not.
    pub fn event(&self, event: &Event) -> Judgement {
        let settings = &self.selection.settings;
        if event.kind == Kind::Other {
            return Judgement::Drop(Reason::KindNotExportable);
        }
        if !settings.kinds.contains(&event.kind) {
            return Judgement::Drop(Reason::KindNotSelected);
        }
        if self.excluded {
            return Judgement::Drop(Reason::SdkExcluded);
        }
        match event.kind {
            Kind::Feature => self.evaluation(event),
            Kind::Custom => custom_event(&settings.custom_events, event),
            _ => Judgement::Keep {
                by: Grounds::Kind,
                ratio: 1,
            },
        }
    }

    fn evaluation(&self, event: &Event) -> Judgement {
        if self.schema.sends_every_evaluation() && !event.track_events {
            return Judgement::Drop(Reason::NotTracked);
        }
        let key = event.key();
        let listed = key.as_deref().and_then(|key| self.selection.listed.get(key));
        let flag = listed.and_then(|listed| listed.flag.as_ref());
        let by = match self.grounds(event, key.as_deref(), flag) {
            Ok(by) => by,
            Err(reason) => return Judgement::Drop(reason),
        };
        let ratio = listed.map_or(1, |listed| listed.ratio);
        match key.as_deref() {
            Some(key) if ratio > 1 && !sample::holds(key, event, ratio) => Judgement::Drop(Reason::Sampled),
            _ => Judgement::Keep { by, ratio },
        }
    }

    /// Returns why an evaluation is exported, before sampling. Its reason is looked into only where that can matter.
    fn grounds(&self, event: &Event, key: Option<&str>, flag: Option<&Flag>) -> Result<Grounds, Reason> {
        let settings = &self.selection.settings;
        let created_ms = || key.and_then(|key| self.creation.created_ms(key));
        let by_itself = || match flag {
            Some(flag) => chosen(&flag.choice, event),
            None => settings.flags.default.judge(created_ms),
        };
        if settings.experiments_only && !in_experiment(event) {
            return Err(Reason::NotInExperiment);
        }
        by_itself().or_else(|reason| {
            if flag.is_none_or(|flag| flag.experiments) && in_experiment(event) {
                Ok(Grounds::Experiment)
            } else {
                Err(reason)
            }
        })
    }
}

fn chosen(choice: &Choice, event: &Event) -> Result<Grounds, Reason> {
    let (ids, fallthrough) = match choice {
        Choice::Export => return Ok(Grounds::Named),
        Choice::Hold => return Err(Reason::FlagHeld),
        Choice::Rules { ids, fallthrough } => (ids, *fallthrough),
    };
    let reason = event.reason().and_then(Members::of).ok_or(Reason::NoReasonGiven)?;
    let text = |name: &str| {
        reason
            .get(name)
            .and_then(|json| serde_json::from_str::<String>(json).ok())
    };
    match text("kind").as_deref() {
        None => Err(Reason::NoReasonGiven),
        Some("RULE_MATCH") if text("ruleId").is_some_and(|id| ids.contains(&id)) => Ok(Grounds::Rule),
        Some("FALLTHROUGH") if fallthrough => Ok(Grounds::Fallthrough),
        Some(_) => Err(Reason::RuleNotSelected),
    }
}

fn in_experiment(event: &Event) -> bool {
    let reason = event.reason().and_then(Members::of);
    reason.is_some_and(|reason| reason.get("inExperiment") == Some("true"))
}

fn custom_event(names: &Names, event: &Event) -> Judgement {
    let name = event.key().unwrap_or_default();
    if !names.include.is_empty() && !matches_any(&names.include, &name) {
        Judgement::Drop(Reason::CustomEventNotIncluded)
    } else if matches_any(&names.exclude, &name) {
        Judgement::Drop(Reason::CustomEventExcluded)
    } else {
        Judgement::Keep {
            by: Grounds::Kind,
            ratio: 1,
        }
    }
}

fn matches_any(patterns: &[Glob], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

#[cfg(test)]
mod tests;
