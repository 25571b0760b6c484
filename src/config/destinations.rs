//! The key `destinations`: where exported events go, and how failed deliveries are repeated.

use std::path::PathBuf;
use std::time::Duration;

use super::{positive, read_name};
use crate::backoff::Backoff;
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
    pub retry: Backoff,
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

/// The waits between tries. Most failures are over within seconds, and a destination that was down for an hour is tried
/// again within a minute.
const RETRY: Backoff = Backoff {
    initial: Duration::from_secs(1),
    max: Duration::from_secs(60),
};

impl Destination {
    /// Returns the destination of a start without a file: NDJSON files in `./flagtap-export`.
    pub(super) fn archive() -> Self {
        Self {
            name: "archive".to_owned(),
            settings: Settings::File(file::Settings::at(PathBuf::from("./flagtap-export"))),
            retry: RETRY,
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
    let retry = section.section("retry", read_retry).unwrap_or(RETRY);
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

fn read_retry(section: &mut Section<'_>) -> Backoff {
    let retry = Backoff {
        initial: positive(section, "initial", RETRY.initial),
        max: positive(section, "max", RETRY.max),
    };
    if retry.initial > retry.max && !retry.max.is_zero() {
        let key = if section.has("initial") { "initial" } else { "max" };
        let (initial, max) = (retry.initial.show(), retry.max.show());
        section.problem(
            Some(key),
            format!("makes the first wait ({initial}) longer than the longest one ({max})"),
        );
    }
    retry
}
