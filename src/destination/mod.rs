//! Destinations: where exported events go.
//!
//! Owns the trait, the values it exchanges and the registry. A destination is one file: it encodes an event (pure),
//! sends packed items and answers for each one. It holds no retry, batching or metrics code: [`crate::drain`] does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::export::{ExportEvent, envelope};
use crate::section::Section;

#[cfg(test)]
mod contract;
pub mod file;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(test)]
mod reading;
pub mod stdout;

/// The kinds of destination, as the configuration names them. `kinesis` is known also to a build without it, so that
/// its absence can be explained.
pub const KINDS: [&str; 3] = ["kinesis", "file", "stdout"];

/// A kind of destination and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// A Kinesis data stream.
    #[cfg(feature = "kinesis")]
    Kinesis(kinesis::Settings),
    /// A folder of NDJSON files.
    File(file::Settings),
    /// Standard output.
    Stdout(stdout::Settings),
}

impl Settings {
    /// Returns the kind as the configuration names it.
    pub fn kind(&self) -> &'static str {
        match self {
            #[cfg(feature = "kinesis")]
            Self::Kinesis(_) => "kinesis",
            Self::File(_) => "file",
            Self::Stdout(_) => "stdout",
        }
    }

    /// Returns the destination. Contacts nothing and touches no file: what is wrong there shows when it is used.
    pub async fn open(&self) -> Arc<dyn Destination> {
        match self {
            #[cfg(feature = "kinesis")]
            Self::Kinesis(settings) => Arc::new(kinesis::Kinesis::open(settings).await),
            Self::File(settings) => Arc::new(file::Files::new(settings.clone())),
            Self::Stdout(_) => Arc::new(stdout::Stdout::new(Box::new(std::io::stdout()))),
        }
    }
}

/// Reads the settings of a destination of this kind (one of [`KINDS`]); nothing after reporting why there are none.
pub fn read(kind: &str, section: &mut Section<'_>) -> Option<Settings> {
    match kind {
        #[cfg(feature = "kinesis")]
        "kinesis" => kinesis::read(section).map(Settings::Kinesis),
        "file" => file::read(section).map(Settings::File),
        "stdout" => stdout::read(section).map(Settings::Stdout),
        _ => {
            section.problem(
                None,
                "is a kind of destination that this build of flagtap does not have",
            );
            None
        }
    }
}

/// A service that receives exported events.
#[async_trait]
pub trait Destination: Send + Sync {
    /// Returns what one `send` may hold.
    fn limits(&self) -> Limits;

    /// Turns an event into what is sent. Pure: the same event gives the same bytes on every retry and replay.
    fn encode(&self, event: &ExportEvent<'_>) -> Encoded;

    /// Sends items and returns one verdict per item, in the same order.
    ///
    /// Never called with more than [`Destination::limits`] allow, never with an empty slice, never twice at once.
    async fn send(&self, items: &[Item]) -> Vec<Verdict>;

    /// Checks with the service's cheapest harmless call that delivery can work. Prefers a false pass.
    async fn probe(&self) -> Result<(), ProbeError>;

    /// Called at intervals when nothing is sent, and once before the end (`last`): a file rotates by age here.
    async fn idle(&self, last: bool) {
        let _ = last;
    }
}

/// What one request to a service may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Items in one request.
    pub items: usize,
    /// Sum of [`Item::size`] in one request, bytes.
    pub bytes: usize,
    /// [`Item::size`] of one item, bytes. Larger events are rejected with a reason, never sent.
    pub item_bytes: usize,
}

/// One event as a destination will send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The event's stable id, 24 hex digits.
    pub id: String,
    /// The bytes to send.
    pub body: Bytes,
    /// Partition or ordering key; empty where the service has none.
    pub key: String,
    /// What counts against the service's limits, bytes (Kinesis counts the partition key too).
    pub size: usize,
}

/// The outcome of [`Destination::encode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// To be sent.
    Item(Item),
    /// Not for this destination; counted with the reason as filtered.
    Skip(&'static str),
    /// Can never be sent; becomes a dead letter with the reason.
    Reject(String),
}

/// A service's answer for one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Acknowledged: the service is responsible now.
    Delivered,
    /// Throttled, 5xx, timeout, network.
    Retry {
        /// The service's own wish (`Retry-After`), if it had one.
        after: Option<Duration>,
        /// For the log and the status.
        why: String,
    },
    /// Our configuration is wrong (401, 403, 404): nothing is lost, the status says so, delivery waits.
    Blocked {
        /// For the log and the status.
        why: String,
    },
    /// The request was too large for the service: send it again in halves.
    Split,
    /// The service refuses this event for itself.
    Reject {
        /// Kept with the dead letter.
        why: String,
    },
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct ProbeError {
    /// What the service or the network said, without secrets.
    pub why: String,
}

/// Returns the item of a destination that writes lines: the export record and a newline.
fn line(event: &ExportEvent<'_>) -> Item {
    let body = on_one_line(envelope::render(event));
    Item {
        id: event.id.to_owned(),
        size: body.len(),
        body: body.into(),
        key: String::new(),
    }
}

/// Returns a record as one line. Line breaks that the SDK (or whoever posed as one) wrote between tokens become spaces:
/// otherwise the text between them would pass for records of its own. JSON has none within tokens.
fn on_one_line(mut record: Vec<u8>) -> Vec<u8> {
    for byte in record.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    record.push(b'\n');
    record
}

/// Returns the verdicts of a request whose items all had the same fate.
fn all(verdict: &Verdict, items: &[Item]) -> Vec<Verdict> {
    vec![verdict.clone(); items.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_of_the_sender_make_no_records() {
        let record = b"{\"event\":{\"data\":[\r\n{\"forged\":true}\n],\"text\":\"a\\nb\"}}".to_vec();
        let line = on_one_line(record);
        assert_eq!(
            line,
            b"{\"event\":{\"data\":[  {\"forged\":true} ],\"text\":\"a\\nb\"}}\n"
        );
    }
}
