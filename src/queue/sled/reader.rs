//! Reads one destination's records out of one generation. Runs on a blocking thread; changes nothing.
//!
//! A record that is missing or does not check is left out and named in the [`Progress`]; where its header is intact,
//! its events are counted at once, else when the reader reaches the next place with known counts.

use super::generation::{Failure, Generation};
use super::layout::parse_record_key;
use crate::queue::{Limit, Loss, Passed, Position, Progress};
use crate::record::codec::{self, Decoder};

/// After this many bytes of records for others a read returns with what it has, so that its caller can be dropped.
const SKIPPED_BYTES: usize = 8 << 20;

/// Where a read ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The position not to be read any more.
    pub(super) position: u64,
    /// There is a record at every position before it.
    pub(super) exact: bool,
}

/// Reads from `from` to `end`.
///
/// Fails only if nothing could be read at all: what was read before a failure is returned, and the next read meets it.
pub(super) fn read(
    generation: &Generation,
    name: &str,
    from: u64,
    end: End,
    limit: Limit,
) -> Result<Progress, Failure> {
    let mut reading = Reading {
        name,
        limit,
        json_bytes: 0,
        skipped_bytes: 0,
        decoder: Decoder::default(),
        progress: Progress {
            next: from,
            ..Progress::default()
        },
    };
    let mut encoded = Vec::new();
    let mut position = None;
    let mut next_part = 0;
    for piece in generation.pieces(from, end.position)? {
        let (key, value) = match piece {
            Ok(piece) => piece,
            Err(failure) if reading.progress.next == from => return Err(failure),
            Err(_) => return Ok(reading.progress),
        };
        let Some((at, part)) = parse_record_key(&key) else {
            continue;
        };
        if position != Some(at) {
            if let Some(position) = position.replace(at)
                && !reading.record(position, &encoded)
            {
                return Ok(reading.progress);
            }
            encoded.clear();
            next_part = 0;
        }
        if part == next_part {
            encoded.extend_from_slice(&value);
            next_part += 1;
        }
    }
    if let Some(position) = position
        && !reading.record(position, &encoded)
    {
        return Ok(reading.progress);
    }
    if end.exact {
        reading.missing(end.position);
    }
    reading.progress.next = end.position;
    Ok(reading.progress)
}

struct Reading<'a> {
    name: &'a str,
    limit: Limit,
    json_bytes: usize,
    skipped_bytes: usize,
    decoder: Decoder,
    progress: Progress,
}

impl Reading<'_> {
    /// Takes in a record. Returns false, and leaves the record for later, when the read has to end before it.
    fn record(&mut self, position: u64, encoded: &[u8]) -> bool {
        self.missing(position);
        let Ok(header) = codec::peek(encoded) else {
            self.missing(position + 1);
            return true;
        };
        if !header.destinations.iter().any(|destination| destination == self.name) {
            if self.skipped_bytes > SKIPPED_BYTES {
                return false;
            }
            self.skipped_bytes += encoded.len();
            self.progress.next = position + 1;
            return true;
        }
        let json_bytes = self.json_bytes.saturating_add(header.json_bytes as usize);
        let full = self.progress.records.len() >= self.limit.records.max(1) || json_bytes > self.limit.bytes;
        if full && !self.progress.records.is_empty() {
            self.progress.next_ms = Some(header.received_ms);
            return false;
        }
        let record = self.decoder.decode(encoded).ok();
        self.progress.passed.push(Passed {
            position,
            environment: header.environment,
            events: u64::from(header.events),
            received_ms: header.received_ms,
            loss: record.is_none().then_some(Loss::Corrupt),
        });
        match record {
            Some(record) => {
                self.json_bytes = json_bytes;
                self.progress.records.push((Position(position), record));
            }
            None => self.progress.corrupt.push(position),
        }
        self.progress.next = position + 1;
        true
    }

    /// Every position before `end` that was not met is a record that is gone.
    fn missing(&mut self, end: u64) {
        self.progress.corrupt.extend(self.progress.next..end);
        self.progress.next = self.progress.next.max(end);
    }
}
