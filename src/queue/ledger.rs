//! The queue's bookkeeping: how many events went in, and how far each destination is. Pure: no disk, no clock.
//!
//! Owns the conservation of events. Counts are cumulative over the queue's life, per destination and environment, so
//! what waits is a difference of two numbers and never needs a scan. A reader that meets a place of the log whose
//! cumulative counts are known (the start of a generation, the end of the log) is compared with them: what it has not
//! seen by then is lost, and is counted as such even where the damaged bytes say nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::queue::{ConsumerStats, Counts, Position, Totals, add, difference, list, subtract};
use crate::record::Record;
use crate::record::codec::Header;

/// The durable state of one destination: everything before `position` is settled, and `settled` counts it. Of what is behind,
/// `lost` will not be delivered and is counted already, in this process or one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) position: u64,
    pub(crate) settled: Counts,
    pub(crate) lost: Counts,
    pub(crate) note: Vec<u8>,
}

/// A record addressed to a destination, behind its reader and not yet settled; or a loss at this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) position: u64,
    pub(crate) environment: String,
    pub(crate) events: u64,
    pub(crate) received_ms: u64,
    pub(crate) loss: Option<Loss>,
}

/// Why events will not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// This limit removed them.
    Evicted(&'static str),
    /// They could not be read.
    Corrupt,
}

/// The limit in [`Loss::Evicted`] where a reader comes upon a gap that was there before.
pub(crate) const UNKNOWN_LIMIT: &str = "unknown";

/// What one read of the log found.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Records for the destination, in order.
    pub(crate) records: Vec<(Position, Record)>,
    /// One entry per record of `records` and per corrupt record whose header is intact, in order.
    pub(crate) passed: Vec<Passed>,
    /// Positions at which no record could be read.
    pub(crate) corrupt: Vec<u64>,
    /// Where to read on.
    pub(crate) next: u64,
    /// Receipt of the record at which the read stopped for its limit.
    pub(crate) next_ms: Option<u64>,
}

/// A place of the log at which the cumulative counts are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) position: u64,
    pub(crate) counts: Counts,
    /// Receipt of the newest record before it: what lies behind it is younger.
    pub(crate) before_ms: u64,
}

#[derive(Debug, Default)]
struct Account {
    configured: bool,
    open: bool,
    /// Changed since the last write.
    dirty: bool,
    note: Vec<u8>,
    /// The next position to read, and what was counted before it.
    next: u64,
    read: Counts,
    passed: VecDeque<Passed>,
    /// Losses behind `next` that were counted when they were met before.
    known_lost: Counts,
    /// Receipt of the oldest record not read yet, or a lower bound of it.
    unread_ms: Option<u64>,
    /// What was counted at the end of the log when the account was restored or registered.
    opened: Counts,
    recovered: Counts,
    /// Dead letters appended again since then; `totals` has them too.
    requeued: Counts,
    evicted: Counts,
    /// The same events, by limit.
    limits: BTreeMap<&'static str, u64>,
    corrupt: Counts,
}

/// All accounts and the end of the log.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The position that the next record gets.
    pub(crate) tail: u64,
    /// Receipt of the newest record, Unix milliseconds.
    pub(crate) newest_ms: u64,
    totals: Totals,
    accounts: BTreeMap<String, Account>,
    corrupt: BTreeSet<u64>,
    corrupt_records: u64,
}

impl Ledger {
    /// Returns a ledger that ends at `tail`.
    pub(crate) fn new(tail: u64, newest_ms: u64, totals: Totals) -> Self {
        Self {
            tail,
            newest_ms,
            totals,
            ..Self::default()
        }
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Counts a record that is durable now, at the end of the log.
    pub(crate) fn append(&mut self, header: &Header) {
        for name in &header.destinations {
            if let Some(account) = self.accounts.get_mut(name)
                && !unread(&self.totals, name, account)
            {
                account.unread_ms = Some(header.received_ms);
            }
        }
        self.totals.add(header);
        self.newest_ms = self.newest_ms.max(header.received_ms);
        self.tail += 1;
    }

    /// Counts a dead letter that is in the log again, durable now, at its end. Its age begins anew: a limit on age must not
    /// take at once what a person wants delivered.
    pub(crate) fn requeue(&mut self, header: &Header, now_ms: u64) {
        self.append(header);
        self.newest_ms = self.newest_ms.max(now_ms);
        for name in &header.destinations {
            if let Some(account) = self.accounts.get_mut(name) {
                add(&mut account.requeued, &header.environment, u64::from(header.events));
            }
        }
    }

    /// Takes in a stored cursor. What waits for it counts as recovered.
    pub(crate) fn restore(&mut self, name: &str, cursor: Cursor, oldest_ms: Option<u64>) {
        let account = Account {
            note: cursor.note,
            next: cursor.position.min(self.tail),
            unread_ms: oldest_ms,
            recovered: difference(&difference(&self.totals.of(name), &cursor.settled), &cursor.lost),
            known_lost: cursor.lost,
            read: cursor.settled,
            opened: self.totals.of(name),
            ..Account::default()
        };
        self.accounts.insert(name.to_owned(), account);
    }

    /// Makes sure that the destination has an account: a new one starts at the end of the log.
    pub(crate) fn register(&mut self, name: &str, configured: bool) {
        let (tail, totals) = (self.tail, &self.totals);
        let account = self.accounts.entry(name.to_owned()).or_insert_with(|| Account {
            next: tail,
            read: totals.of(name),
            opened: totals.of(name),
            dirty: true,
            ..Account::default()
        });
        account.configured |= configured;
    }

    /// Makes `names`, and no others, the configured destinations.
    pub(crate) fn configure(&mut self, names: &[String]) {
        for account in self.accounts.values_mut() {
            account.configured = false;
        }
        for name in names {
            self.register(name, true);
        }
    }

    /// Opens the account for a reader. Returns false if it has none or is open already.
    pub(crate) fn open(&mut self, name: &str) -> bool {
        match self.accounts.get_mut(name) {
            Some(account) if !account.open => {
                account.open = true;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn is_open(&self, name: &str) -> bool {
        self.accounts.get(name).is_some_and(|account| account.open)
    }

    /// Closes the account; its reader starts again at what was settled.
    pub(crate) fn close(&mut self, name: &str) {
        let Some(account) = self.accounts.get_mut(name) else {
            return;
        };
        account.open = false;
        if account.passed.is_empty() {
            return;
        }
        let cursor = account.cursor();
        for passed in account.passed.drain(..).filter(|passed| passed.loss.is_none()) {
            let before = account.unread_ms.unwrap_or(passed.received_ms);
            account.unread_ms = Some(before.min(passed.received_ms));
        }
        account.next = cursor.position;
        account.read = cursor.settled;
        // The next reader meets them again.
        account.known_lost = cursor.lost;
    }

    /// Removes an account that is neither configured nor open. Returns whether there was one.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.is_removable(name) && self.accounts.remove(name).is_some()
    }

    pub(crate) fn is_removable(&self, name: &str) -> bool {
        let account = self.accounts.get(name);
        account.is_some_and(|account| !account.configured && !account.open)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.accounts.keys().cloned().collect()
    }

    /// Returns where the destination reads next.
    pub(crate) fn next(&self, name: &str) -> Option<u64> {
        self.accounts.get(name).map(|account| account.next)
    }

    /// Returns whether the destination's reader has counted all there is before the boundary.
    pub(crate) fn has_counted(&self, name: &str, boundary: &Boundary) -> bool {
        let account = self.accounts.get(name);
        account.is_some_and(|account| difference(&boundary.counts, &account.read).is_empty())
    }

    /// Takes in what a read from `from` found and returns its records; nothing if the reader's place was moved
    /// meanwhile (eviction, quarantine).
    pub(crate) fn advance(&mut self, name: &str, from: u64, progress: Progress) -> Vec<(Position, Record)> {
        let Some(account) = self.accounts.get_mut(name).filter(|account| account.next == from) else {
            return Vec::new();
        };
        for position in progress.corrupt {
            // Every destination meets a corrupt record; it is one record.
            if self.corrupt.insert(position) {
                self.corrupt_records += 1;
            }
        }
        for passed in progress.passed {
            add(&mut account.read, &passed.environment, passed.events);
            if let Some(loss) = passed.loss {
                account.lose(&passed.environment, passed.events, loss);
            }
            account.unread_ms = Some(passed.received_ms);
            account.passed.push_back(passed);
        }
        if progress.next_ms.is_some() {
            account.unread_ms = progress.next_ms;
        }
        account.next = progress.next;
        account.drop_settled_losses();
        if account.passed.is_empty() {
            account.dirty = true;
        }
        progress.records
    }

    /// Moves a reader forward to a boundary. What it has not counted by then is lost for `loss`; returns how many
    /// events of that were not counted before.
    pub(crate) fn reach(&mut self, name: &str, boundary: &Boundary, loss: Loss) -> u64 {
        let Some(account) = self
            .accounts
            .get_mut(name)
            .filter(|account| account.next <= boundary.position)
        else {
            return 0;
        };
        let lost = difference(&boundary.counts, &account.read);
        if account.next == boundary.position && lost.is_empty() {
            return 0;
        }
        let mut anew = 0;
        for (environment, events) in lost {
            anew += account.lose(&environment, events, loss);
            account.passed.push_back(Passed {
                position: boundary.position.saturating_sub(1),
                environment,
                events,
                received_ms: 0,
                loss: Some(loss),
            });
        }
        account.next = boundary.position;
        account.read.clone_from(&boundary.counts);
        account.unread_ms = account.unread_ms.map(|ms| ms.max(boundary.before_ms));
        account.drop_settled_losses();
        // A loss behind what is held is noted with the cursor.
        account.dirty = true;
        anew
    }

    /// Settles everything up to and including `up_to` that was returned to the reader.
    pub(crate) fn settle(&mut self, name: &str, up_to: Option<u64>, note: &[u8]) {
        let Some(account) = self.accounts.get_mut(name) else {
            return;
        };
        if let Some(up_to) = up_to {
            while account.passed.front().is_some_and(|passed| passed.position <= up_to) {
                account.passed.pop_front();
            }
            account.drop_settled_losses();
        }
        account.note = note.to_vec();
        account.dirty = true;
    }

    pub(crate) fn note(&self, name: &str) -> Vec<u8> {
        self.accounts
            .get(name)
            .map(|account| account.note.clone())
            .unwrap_or_default()
    }

    /// Returns the destination's cursor as it has to be stored.
    pub(crate) fn cursor(&self, name: &str) -> Option<Cursor> {
        self.accounts.get(name).map(Account::cursor)
    }

    /// Returns the names whose cursor changed since [`Ledger::written`].
    pub(crate) fn dirty(&self) -> Vec<String> {
        let dirty = self.accounts.iter().filter(|(_, account)| account.dirty);
        dirty.map(|(name, _)| name.clone()).collect()
    }

    /// Marks cursors as stored.
    pub(crate) fn written(&mut self, names: &[String]) {
        for name in names {
            if let Some(account) = self.accounts.get_mut(name) {
                account.dirty = false;
            }
        }
    }

    /// Returns whether a destination still has to settle something between `start` and `end` (position and totals).
    pub(crate) fn needs(&self, start: &Totals, end: (u64, &Totals)) -> bool {
        self.accounts
            .iter()
            .any(|(name, account)| account.position() < end.0 && start.grew(end.1, name))
    }

    /// Counts the records of `positions` that some destination had yet to read as corrupt.
    pub(crate) fn lose_records(&mut self, positions: std::ops::Range<u64>) {
        let from = self.accounts.values().map(|account| account.next).min();
        let from = from.unwrap_or(positions.end).max(positions.start);
        self.corrupt_records += positions.end.saturating_sub(from);
    }

    pub(crate) fn corrupt_records(&self) -> u64 {
        self.corrupt_records
    }

    /// Forgets which records before `position` were found corrupt; nobody reads there any more.
    pub(crate) fn forget_corrupt(&mut self, position: u64) {
        self.corrupt = self.corrupt.split_off(&position);
    }

    /// Returns the receipt of the oldest record not settled, by destination.
    pub(crate) fn oldest_ms(&self) -> Vec<(String, u64)> {
        let oldest = |(name, account): (&String, &Account)| Some((name.clone(), self.oldest_of(name, account)?));
        self.accounts.iter().filter_map(oldest).collect()
    }

    /// Returns every account as [`crate::queue::Stats`] shows it.
    pub(crate) fn stats(&self) -> Vec<ConsumerStats> {
        let accounts = self.accounts.iter();
        accounts
            .map(|(name, account)| ConsumerStats {
                name: name.clone(),
                attached: account.configured || account.open,
                position: account.position(),
                note: account.note.clone(),
                recovered: list(&account.recovered),
                queued: list(&difference(
                    &difference(&self.totals.of(name), &account.opened),
                    &account.requeued,
                )),
                requeued: list(&account.requeued),
                waiting: list(&self.waiting(name, account)),
                oldest_waiting_ms: self.oldest_of(name, account),
                evicted: list(&account.evicted),
                limits: (account.limits.iter().filter(|(_, events)| **events > 0))
                    .map(|(limit, events)| (*limit, *events))
                    .collect(),
                corrupt: list(&account.corrupt),
            })
            .collect()
    }

    fn waiting(&self, name: &str, account: &Account) -> Counts {
        let mut waiting = difference(&difference(&self.totals.of(name), &account.read), &account.known_lost);
        for passed in account.passed.iter().filter(|passed| passed.loss.is_none()) {
            add(&mut waiting, &passed.environment, passed.events);
        }
        waiting
    }

    fn oldest_of(&self, name: &str, account: &Account) -> Option<u64> {
        let returned = account.passed.iter().find(|passed| passed.loss.is_none());
        match returned {
            Some(passed) => Some(passed.received_ms),
            None if unread(&self.totals, name, account) => account.unread_ms,
            None => None,
        }
    }
}

impl Account {
    /// Everything before it is settled.
    fn position(&self) -> u64 {
        self.passed.front().map_or(self.next, |passed| passed.position)
    }

    fn cursor(&self) -> Cursor {
        let (mut settled, mut lost) = (self.read.clone(), self.known_lost.clone());
        for passed in &self.passed {
            subtract(&mut settled, &passed.environment, passed.events);
            if passed.loss.is_some() {
                add(&mut lost, &passed.environment, passed.events);
            }
        }
        Cursor {
            position: self.position(),
            settled,
            lost,
            note: self.note.clone(),
        }
    }

    /// Counts a loss, but for what was counted before. Returns how many events that is.
    fn lose(&mut self, environment: &str, events: u64, loss: Loss) -> u64 {
        let known = self.known_lost.get(environment).copied().unwrap_or(0).min(events);
        subtract(&mut self.known_lost, environment, known);
        let anew = events - known;
        match loss {
            Loss::Evicted(limit) if anew > 0 => {
                add(&mut self.evicted, environment, anew);
                *self.limits.entry(limit).or_default() += anew;
            }
            Loss::Corrupt if anew > 0 => add(&mut self.corrupt, environment, anew),
            _ => {}
        }
        anew
    }

    /// A loss needs no commit, once nothing before it does.
    fn drop_settled_losses(&mut self) {
        while self.passed.front().is_some_and(|passed| passed.loss.is_some()) {
            self.passed.pop_front();
            self.dirty = true;
        }
    }
}

fn unread(totals: &Totals, name: &str, account: &Account) -> bool {
    totals
        .0
        .get(name)
        .is_some_and(|counts| !difference(counts, &account.read).is_empty())
}
