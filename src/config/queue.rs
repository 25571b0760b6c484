//! The keys about what waits: `queue` and `dedupe`.

use std::path::PathBuf;
use std::time::Duration;

use super::positive;
use crate::section::Section;
use crate::units::ByteSize;

/// Where copies wait for their destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Space that the queue takes on its volume (in memory, for `memory`).
    pub max_bytes: ByteSize,
    /// Age at which an event that could not be delivered is given up.
    pub max_age: Duration,
    /// What gives way when `max_bytes` is used up.
    pub when_full: WhenFull,
    /// Free space of the volume that the queue leaves to others.
    pub headroom: ByteSize,
    /// Where the bytes are.
    pub engine: Engine,
}

/// Where the bytes of the queue are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The embedded database sled; survives a restart and a power cut.
    Sled {
        /// Its folder.
        path: PathBuf,
    },
    /// Memory: lost with the process.
    Memory,
}

crate::choices! {
    /// What gives way when the queue is full.
    pub enum WhenFull {
        /// The oldest records make room; their events count as evicted.
        DropOldest = "drop_oldest",
        /// New batches are not copied; they count as not teed.
        DropNewest = "drop_newest",
    }
}

/// How an SDK's retry is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dedupe {
    /// How long a payload id is remembered.
    pub window: Duration,
    /// How many batches are remembered.
    pub entries: usize,
    /// How long a batch without payload id is recognised by its bytes.
    pub body_window: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize::gib(1),
            max_age: Duration::from_secs(7 * 86_400),
            when_full: WhenFull::DropOldest,
            headroom: ByteSize::mib(64),
            engine: Engine::Sled {
                path: PathBuf::from(SLED_PATH),
            },
        }
    }
}

impl Default for Dedupe {
    fn default() -> Self {
        // An SDK retries within 16 s, but a proxy or a browser that was asleep may repeat a request much later. A
        // payload id is random and never used for two batches, so a long window costs nothing but `entries`. Equal
        // bytes can be two true batches, so they are trusted for no longer than a retry needs.
        Self {
            window: Duration::from_secs(86_400),
            entries: 65_536,
            body_window: Duration::from_secs(10),
        }
    }
}

const SLED_PATH: &str = "./flagtap-data";

/// Reads `queue`: a mapping, or the bare word `memory`.
pub(super) fn read_queue(root: &mut Section<'_>) -> Queue {
    crate::choices! {
        enum Bare { Memory = "memory" }
    }
    let queue = if root.is_scalar("queue") {
        let bare: Option<Bare> = root.optional("queue");
        let memory = |Bare::Memory| Queue {
            engine: Engine::Memory,
            ..Queue::default()
        };
        bare.map(memory).unwrap_or_default()
    } else {
        root.section("queue", read_mapping).unwrap_or_default()
    };
    if queue.engine == Engine::Memory {
        root.warn(
            Some("queue"),
            "is in memory: events that wait are lost when the process ends",
        );
    }
    queue
}

fn read_mapping(section: &mut Section<'_>) -> Queue {
    let default = Queue::default();
    Queue {
        max_bytes: section.or("max_bytes", default.max_bytes),
        max_age: positive(section, "max_age", default.max_age),
        when_full: section.or("when_full", default.when_full),
        headroom: section.or("headroom", default.headroom),
        engine: match section.kind_if_any(&["sled", "memory"]) {
            Some("memory") => section.section("memory", |_| Engine::Memory).unwrap_or(Engine::Memory),
            Some("sled") => section.section("sled", read_sled).unwrap_or(default.engine),
            _ => default.engine,
        },
    }
}

fn read_sled(section: &mut Section<'_>) -> Engine {
    Engine::Sled {
        path: section.or("path", PathBuf::from(SLED_PATH)),
    }
}

/// Reads `dedupe`.
pub(super) fn read_dedupe(section: &mut Section<'_>) -> Dedupe {
    let default = Dedupe::default();
    let dedupe = Dedupe {
        window: section.or("window", default.window),
        entries: section.or("entries", default.entries),
        body_window: section.or("body_window", default.body_window),
    };
    if dedupe.body_window > Duration::from_secs(60) {
        section.warn(
            Some("body_window"),
            "is long: two batches with equal bytes would be taken for one",
        );
    }
    dedupe
}
