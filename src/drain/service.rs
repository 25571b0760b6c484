//! The destination as the drain uses it: encoding and sending, bounded in time, with panics caught, counted.
//!
//! Owns what requests under way share with the drain that started them. Trusts no destination. Decides nothing: what
//! follows from an answer is `retry`'s affair.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::error;

use super::counts::Counts;
use super::fate::{Fate, Tries};
use super::slot::{Death, Slot, Waiting};
use super::{LAST_ANSWER, Settings, Stop, pack, retry};
use crate::destination::{Destination, Encoded, Item, Limits, Verdict};
use crate::export;
use crate::record::{Record, RecordEvent};

/// One destination and how it is served.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) destination: Arc<dyn Destination>,
    pub(super) counts: Counts,
    pub(super) settings: Settings,
    pub(super) stop: Stop,
}

impl Service {
    /// Returns the state of an event that was read, to be sent at `due`.
    pub(super) fn prepare(
        &self,
        record: &Record,
        event: &RecordEvent,
        limits: Limits,
        tries: Tries,
        due: Instant,
    ) -> Slot {
        let refused = |why| Slot::Dying {
            why,
            death: Death::Refused,
        };
        let id = export::event_id(record, event);
        let event = export::export_event(record, event, &id);
        let encode = || match self.settings.narrow.apply(&event) {
            Ok(json) => self.destination.encode(&export::ExportEvent { json: &json, ..event }),
            Err(reason) => Encoded::Skip(reason),
        };
        let encoded = catch_unwind(AssertUnwindSafe(encode)).unwrap_or_else(|_| {
            self.panicked();
            Encoded::Reject("encoding panicked".to_owned())
        });
        match encoded {
            Encoded::Skip(reason) => Slot::Settled(Fate::Skipped(reason)),
            Encoded::Reject(why) => refused(why),
            Encoded::Item(item) => match pack::oversize(item.size, limits) {
                Some(why) => refused(why),
                None => Slot::Waiting(Waiting {
                    item,
                    tries,
                    most: usize::MAX,
                    due,
                }),
            },
        }
    }

    /// Sends one request; `None` if a hard stop came before the answer.
    pub(super) async fn send(&self, items: &[Item], tries: &[Tries]) -> Option<Vec<Verdict>> {
        let again = tries.iter().filter(|tries| tries.sent > 0).count();
        self.counts.retried(again);
        let started = Instant::now();
        let hard_stop = async {
            self.stop.hard.cancelled().await;
            tokio::time::sleep(LAST_ANSWER).await;
        };
        let verdicts = tokio::select! {
            biased;
            answer = self.guarded(async { self.destination.send(items).await }) => match answer {
                Ok(verdicts) => retry::one_per_item(verdicts, items.len()),
                Err(why) => retry::retry_all(items.len(), &why),
            },
            () = hard_stop => return None,
        };
        self.counts.request(retry::outcome(&verdicts), started.elapsed());
        Some(verdicts)
    }

    /// Bounds a destination's work in time and catches its panics.
    pub(super) async fn guarded<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let guarded = AssertUnwindSafe(work).catch_unwind();
        match tokio::time::timeout(self.settings.timeout, guarded).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => {
                self.panicked();
                Err("destination panicked".to_owned())
            }
            Err(_) => Err(format!("no answer within {:?}", self.settings.timeout)),
        }
    }

    fn panicked(&self) {
        self.counts.panic();
        error!(destination = self.name, "panic in a destination, delivery goes on");
    }
}
