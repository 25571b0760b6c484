//! The key `destinations`: where exported events go, and how failed deliveries are repeated.

use std::path::PathBuf;
use std::time::Duration;

use super::{positive, read_name};
use crate::problems::Place;
use crate::section::{Leaf as _, Section};

/// A place where exported events go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The name of the durable cursor, in metrics and in logs.
    pub name: String,
    /// Its kind and that kind's settings.
    pub settings: Settings,
    /// How failed deliveries are repeated.
    pub retry: Retry,
}

/// How failed deliveries are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The longest first wait; each further failure doubles it.
    pub initial: Duration,
    /// The longest wait of all.
    pub max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(60),
        }
    }
}

impl Destination {
    /// Returns the destination of a start without a file: NDJSON files in `./flagtap-export`.
    pub(super) fn archive() -> Self {
        Self {
            name: "archive".to_owned(),
            settings: Settings::File {
                path: PathBuf::from("./flagtap-export"),
            },
            retry: Retry::default(),
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
    let name = read_name(section);
    let retry = section.section("retry", read_retry).unwrap_or_default();
    let settings = section
        .kind(&KINDS)
        .and_then(|kind| section.section(kind, |section| read_settings(kind, section)))
        .flatten();
    let value = name.as_ref().zip(settings).map(|((name, _), settings)| Destination {
        name: name.clone(),
        settings,
        retry,
    });
    ReadDestination { name, value }
}

fn read_retry(section: &mut Section<'_>) -> Retry {
    let default = Retry::default();
    let retry = Retry {
        initial: positive(section, "initial", default.initial),
        max: positive(section, "max", default.max),
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

/// TODO-JOIN
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// File.
    File {
        /// Folder.
        path: PathBuf,
    },
    /// Stdout.
    Stdout,
    /// Kinesis.
    Kinesis {
        /// Region.
        region: String,
        /// Stream.
        stream_name: Option<String>,
    },
}

impl Settings {
    /// Returns the kind as the configuration spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Stdout => "stdout",
            Self::Kinesis { .. } => "kinesis",
        }
    }
}

const KINDS: [&str; 3] = ["kinesis", "file", "stdout"];

fn read_settings(kind: &str, section: &mut Section<'_>) -> Option<Settings> {
    match kind {
        "file" => section.required("path").map(|path| Settings::File { path }),
        "stdout" => Some(Settings::Stdout),
        _ => {
            let region = section.required("region");
            let stream_name = section.optional("stream_name");
            Some(Settings::Kinesis {
                region: region?,
                stream_name,
            })
        }
    }
}
