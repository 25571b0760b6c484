//! Destinations: where exported events go.
//!
//! Owns the trait, the values it exchanges and the registry. A destination is one file: it encodes an event (pure),
//! sends packed items and answers for each one. It holds no retry, batching or metrics code: [`crate::drain`] does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::export::ExportEvent;
use crate::export::form::Form;
use crate::section::Section;
use crate::web;

pub mod answers;
pub mod azure_event_hubs;
#[cfg(test)]
mod contract;
pub mod file;
#[cfg(feature = "pubsub")]
pub mod google_pubsub;
#[cfg(feature = "kinesis")]
pub mod kinesis;
pub mod mparticle;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod receiver;
pub mod segment;
pub mod stdout;
pub mod webhook;

/// Declares the registry: one line per kind of destination, `Variant = "kind" as alias: module in field`. A kind behind
/// a feature is known also to a build without it, so that its absence can be explained. The field is the one of its
/// settings that names a folder, if the kind writes to one.
///
/// A module has `Settings`, `read(&mut Section) -> Option<Settings>`, `open(&Settings) -> Arc<dyn Destination>` (async)
/// and `ANSWERS`.
macro_rules! registry {
    ($($(#[$feature:meta])? $variant:ident = $kind:literal $(as $alias:literal)?: $module:ident $(in $folder:ident)?,)+) => {
        /// The kinds of destination, as the configuration names them.
        pub const KINDS: &[&str] = &[$($kind),+];

        /// The names that LaunchDarkly's API and Terraform provider have for some kinds, with ours.
        pub const ALIASES: &[(&str, &str)] = &[$($(($alias, $kind),)?)+];

        /// A kind of destination and its settings.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Settings {
            $(
                #[doc = concat!("`", $kind, "`")]
                $(#[$feature])?
                $variant($module::Settings),
            )+
        }

        impl Settings {
            /// Returns the kind as the configuration names it.
            pub fn kind(&self) -> &'static str {
                match self {
                    $($(#[$feature])? Self::$variant(_) => $kind,)+
                }
            }

            /// Returns the folder that this destination and nobody else may write to, if it needs one.
            pub fn folder(&self) -> Option<&Path> {
                match self {
                    $($(#[$feature])? Self::$variant(_settings) => {
                        let folders: &[&Path] = &[$(&_settings.$folder)?];
                        folders.first().copied()
                    })+
                }
            }

            /// Replaces [`Settings::folder`], if there is one.
            pub fn move_to(&mut self, _folder: &Path) {
                match self {
                    $($(#[$feature])? Self::$variant(_settings) => {
                        $(_settings.$folder = _folder.to_owned();)?
                    })+
                }
            }

            /// Returns the destination. Contacts nothing and touches no file: what is wrong there shows when it is
            /// used.
            pub async fn open(&self) -> Arc<dyn Destination> {
                match self {
                    $($(#[$feature])? Self::$variant(settings) => $module::open(settings).await,)+
                }
            }
        }

        /// Reads the settings of a destination of this kind (one of [`KINDS`]); nothing after reporting why there are
        /// none.
        pub fn read(kind: &str, section: &mut Section<'_>) -> Option<Settings> {
            match kind {
                $($(#[$feature])? $kind => $module::read(section).map(Settings::$variant),)+
                _ => {
                    section.problem(None, "is a kind of destination that this build of flagtap does not have");
                    None
                }
            }
        }

        /// Returns each kind's table of answers.
        #[cfg(test)]
        pub(crate) fn tables() -> Vec<(&'static str, &'static [answers::Answer])> {
            let mut tables: Vec<(&'static str, &'static [answers::Answer])> = Vec::new();
            $($(#[$feature])? {
                tables.push(($kind, $module::ANSWERS));
            })+
            tables
        }

        /// Returns what each kind's answers mean, as a Markdown page.
        pub fn document() -> String {
            let mut page = include_str!("answers.md").to_owned();
            $($(#[$feature])? {
                page.push_str(concat!("\n## `", $kind, "`\n\n"));
                page.push_str(&answers::document($module::ANSWERS));
            })+
            page
        }
    };
}

registry! {
    #[cfg(feature = "kinesis")] Kinesis = "kinesis": kinesis,
    #[cfg(feature = "pubsub")] GooglePubsub = "google_pubsub" as "google-pubsub": google_pubsub,
    AzureEventHubs = "azure_event_hubs" as "azure-event-hubs": azure_event_hubs,
    Webhook = "webhook": webhook,
    Segment = "segment": segment,
    Mparticle = "mparticle": mparticle,
    File = "file": file in path,
    Stdout = "stdout": stdout,
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
    /// Never called with more than [`Destination::limits`] allow, never with an empty slice, never more than
    /// [`Limits::requests`] times at once.
    async fn send(&self, items: &[Item]) -> Vec<Verdict>;

    /// Checks with the service's cheapest harmless call that delivery can work, without sending an event. Says what it
    /// found and what no such call can tell. Prefers a false pass.
    async fn probe(&self) -> Result<String, ProbeError>;

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
    /// Different [`Item::key`]s in one request.
    pub keys: usize,
    /// Requests at once, whatever is configured: 1 where the order of requests counts.
    pub requests: usize,
}

/// One event as a destination will send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The event's stable id, 24 hex digits.
    pub id: String,
    /// The bytes to send.
    pub body: Bytes,
    /// What the events of one partition, order or user share; empty where the service has no such thing.
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
    /// What to do: the setting to look at, the permission to grant.
    pub remedy: String,
}

/// Returns an event as a destination that writes lines sends it: the export record and a newline.
fn line(event: &ExportEvent<'_>, form: &Form) -> Encoded {
    match form.render(event) {
        Ok(record) => {
            let body = on_one_line(record);
            Encoded::Item(Item {
                id: event.id.to_owned(),
                size: body.len(),
                body: body.into(),
                key: String::new(),
            })
        }
        Err(reason) => Encoded::Skip(reason),
    }
}

/// Returns a record as one line. Line breaks that the SDK (or whoever posed as one) wrote between tokens become spaces:
/// otherwise the text between them would pass for records of its own. JSON has none within tokens.
fn on_one_line(mut record: Vec<u8>) -> Vec<u8> {
    // Asked first, because SDKs write none and a search is many times faster than a loop that may write.
    if record.contains(&b'\n') || record.contains(&b'\r') {
        for byte in record.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
    }
    record.push(b'\n');
    record
}

/// Asks whether a service's host answers at all, whatever it answers: what a probe can do where no call is harmless.
/// `look_at` names the settings that could be wrong.
async fn reach(base: &str, look_at: &str) -> Result<(), ProbeError> {
    match web::ask(|client| client.head(base)).await {
        Ok(_) => Ok(()),
        Err(why) => Err(ProbeError {
            why: format!("{base} cannot be reached: {why}"),
            remedy: format!("allow the way there (egress rules, `HTTPS_PROXY`), or look at {look_at}"),
        }),
    }
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
