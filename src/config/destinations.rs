//! The key `destinations`: where exported events go, and how failed deliveries are repeated.

use std::path::PathBuf;

use super::{positive, read_name};
use crate::attempts::{Retry, Then};
use crate::destination::{self, ALIASES, KINDS, Settings, file};
use crate::export::narrow::Narrow;
use crate::problems::Place;
use crate::section::{Leaf as _, Section};

/// A place where exported events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The name of the durable cursor, in metrics and in logs.
    pub name: String,
    /// Its kind and that kind's settings.
    pub settings: Settings,
    /// How failed deliveries are repeated.
    pub retry: Retry,
    /// The most requests under way at a time; 1 to 32.
    pub concurrency: usize,
    /// What it gets of what environments export.
    pub narrow: Narrow,
    /// Nothing is delivered; what is exported to it waits in the queue.
    pub paused: bool,
}

/// One request at a time keeps the order, and a crash repeats no more than that one.
const CONCURRENCY: u16 = 1;

/// More than this many would only wait for the one task that writes them.
const MOST_CONCURRENCY: u16 = 32;

/// With this many tries hardly a wait is longer than the one before.
const MOST_ATTEMPTS: u32 = 100;

impl Destination {
    /// Returns the destination of a start without a file: NDJSON files in `./flagtap-export`.
    pub(super) fn archive() -> Self {
        Self {
            name: "archive".to_owned(),
            settings: Settings::File(file::Settings::at(PathBuf::from("./flagtap-export"))),
            retry: Retry::DEFAULT,
            concurrency: usize::from(CONCURRENCY),
            narrow: Narrow::default(),
            paused: false,
        }
    }
}

/// A destination as far as it could be read, with what the checks across the file need.
pub(super) struct ReadDestination {
    pub(super) name: Option<(String, Place)>,
    /// The destination, if all of it could be read.
    pub(super) value: Option<Destination>,
}

/// Reads `destinations`.
pub(super) fn read_all(root: &mut Section<'_>) -> Vec<ReadDestination> {
    root.sections("destinations", read)
}

fn read(section: &mut Section<'_>) -> ReadDestination {
    section.take_aliases(ALIASES);
    let name = read_name(section);
    let retry = section.section("retry", read_retry).unwrap_or(Retry::DEFAULT);
    let concurrency = section.or("concurrency", CONCURRENCY);
    if !(1..=MOST_CONCURRENCY).contains(&concurrency) {
        let message = format!("must be from 1 to {MOST_CONCURRENCY}");
        section.problem(Some("concurrency"), message);
    }
    let narrow = Narrow::read(section);
    let paused = section.or("paused", false);
    let settings = section
        .kind(KINDS)
        .and_then(|kind| {
            section.section(kind, |section| {
                section.take_camel_case();
                destination::read(kind, section)
            })
        })
        .flatten();
    let value = name.as_ref().zip(settings).map(|((name, _), settings)| Destination {
        name: name.clone(),
        settings,
        retry,
        concurrency: usize::from(concurrency),
        narrow,
        paused,
    });
    ReadDestination { name, value }
}

fn read_retry(section: &mut Section<'_>) -> Retry {
    let default = Retry::DEFAULT;
    let retry = Retry {
        attempts: section.or("attempts", default.attempts),
        over: positive(section, "over", default.over),
        then: section.or("then", default.then),
        initial: positive(section, "initial", default.initial),
        max: positive(section, "max", default.max),
    };
    if retry.attempts > MOST_ATTEMPTS {
        section.problem(Some("attempts"), format!("must be at most {MOST_ATTEMPTS}"));
    } else if retry.attempts == 0 && retry.then == Then::Keep {
        section.problem(Some("attempts"), "is 0, but `then: keep` tries on");
    }
    let given = |key: &'static str, other: &'static str| if section.has(key) { key } else { other };
    if retry.initial > retry.max && !retry.max.is_zero() {
        let (initial, max) = (retry.initial.show(), retry.max.show());
        let message = format!("makes the first wait ({initial}) longer than the longest one ({max})");
        section.problem(Some(given("initial", "max")), message);
    }
    if retry.initial.saturating_mul(retry.attempts) > retry.over && !retry.over.is_zero() {
        let over = retry.over.show();
        let message = format!("leaves no room for growing waits within {over}: they are all of the same length");
        section.warn(Some(given("initial", "over")), message);
    }
    retry
}
