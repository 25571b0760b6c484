//! The requests under way, and the answers that nobody has looked at yet.
//!
//! Owns their futures: they are polled with the drain and end with it. Promises that no answer is lost while the drain
//! waits for something else, and that a request counts until its answer is taken. Knows nothing of the window.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::breaker::Known;
use super::fate::Tries;
use super::window::Place;
use crate::destination::{Item, Verdict};

/// A request and its answer.
pub(super) struct Landed {
    pub(super) places: Vec<Origin>,
    pub(super) items: Vec<Item>,
    pub(super) tries: Vec<Tries>,
    pub(super) sent: Instant,
    /// What was known of the destination when it was sent.
    pub(super) known: Known,
    /// One per item; `None` if a hard stop came before the answer.
    pub(super) verdicts: Option<Vec<Verdict>>,
}

/// Where an item comes from, and what it was there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) place: Place,
    pub(super) most: usize,
    pub(super) due: Instant,
}

type Flight = Pin<Box<dyn Future<Output = Landed> + Send>>;

/// The requests of one drain.
#[derive(Default)]
pub(super) struct Flights {
    under_way: FuturesUnordered<Flight>,
    landed: VecDeque<Landed>,
    /// What was known when each of them was sent.
    known: Vec<Known>,
}

impl Flights {
    /// Returns how many requests there are, answered ones included.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Returns how many of them were sent with this knowledge.
    pub(super) fn sent_knowing(&self, known: Known) -> usize {
        self.known.iter().filter(|other| **other == known).count()
    }

    /// Takes a request along; it is sent when this is next waited on.
    pub(super) fn start(&mut self, known: Known, request: impl Future<Output = Landed> + Send + 'static) {
        self.known.push(known);
        self.under_way.push(Box::pin(request));
    }

    /// Waits until an answer can be taken; for ever if there is no request. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        if !self.landed.is_empty() {
            return;
        }
        match self.under_way.next().await {
            Some(landed) => self.landed.push_back(landed),
            None => std::future::pending().await,
        }
    }

    /// Waits until every request is answered.
    pub(super) async fn all_answered(&mut self) {
        while let Some(landed) = self.under_way.next().await {
            self.landed.push_back(landed);
        }
    }

    /// Does something else while requests go on.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(landed) = self.under_way.next() => self.landed.push_back(landed),
            }
        }
    }

    /// Takes an answer, in the order they came.
    pub(super) fn take(&mut self) -> Option<Landed> {
        let landed = self.landed.pop_front()?;
        if let Some(at) = self.known.iter().position(|known| *known == landed.known) {
            self.known.swap_remove(at);
        }
        Some(landed)
    }
}
