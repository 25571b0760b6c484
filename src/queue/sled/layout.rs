//! What a generation holds: keys and values, format 2. Numbers in keys are big-endian, so that keys sort by them; in
//! values little-endian. A string or byte string is its length (u32) and its bytes.
//!
//! ```text
//! key                        value
//! a                          crc, the state at the last write: 8 tail, 8 newest receipt (ms), 8 payload bytes,
//!                            totals; then a count (u32) of (destination, 8 oldest waiting receipt)
//! b                          what the generation's file `start` says, should that be damaged
//! c <name>                   crc, a cursor: 8 position, counts of what is settled, counts of what is known to be lost behind it,
//!                            4 note length, 4 CRC-32 of the note
//! d <name> <part u32>        a piece of the cursor's note
//! m <block u32>              crc, duplicate marks in order: each 16 key, 8 end of its window (ms)
//! r <position u64> <part u32>  a piece of an encoded record, at most CHUNK bytes; parts count from 0
//! ```
//!
//! The order of the keys matters: sled rewrites a leaf, neighbours and all, after every tenth write to it. What is written again
//! and again (a, c, d) stands together at the beginning, beside small blocks of marks and away from the records.
//!
//! `crc` is the CRC-32 (4 bytes) of the rest of the value. Counts are a count (u32) of (environment, 8 events); totals a
//! count of (destination, counts). sled checks its pages too, but what it recovers after damage can be older than what
//! is around it: so nothing is believed that does not check.

use std::collections::BTreeMap;

use ::sled::Batch;

use crate::queue::{Counts, Cursor, Seen, Totals};
use crate::record::wire::{Malformed, Put, Take};

/// The most bytes in one value. sled rewrites leaves of up to 17 items as one message, and a message over a quarter of a
/// segment (2 MiB) goes to a separate file that sled never syncs: 17 × 24 000 stays below that.
pub(super) const CHUNK: usize = 24_000;

/// The key of the state, and that of the copy of `start`.
pub(super) const STATE: &[u8] = b"a";
pub(super) const START: &[u8] = b"b";

/// Small, since the first blocks are in the leaf that is rewritten most: a kilobyte.
const MARKS_PER_BLOCK: usize = 40;

/// The state of the whole queue at a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) tail: u64,
    pub(super) newest_ms: u64,
    /// Bytes written to this generation.
    pub(super) payload: u64,
    pub(super) totals: Totals,
    pub(super) oldest_ms: Vec<(String, u64)>,
}

/// A sled batch under construction, and its size.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) batch: Batch,
    pub(super) bytes: u64,
}

impl Writes {
    /// Adds an encoded record.
    pub(super) fn record(&mut self, position: u64, encoded: &[u8]) {
        for (part, chunk) in (0..).zip(encoded.chunks(CHUNK)) {
            self.put(record_key(position, part).to_vec(), chunk.to_vec());
        }
    }

    /// Adds the state; `payload` is set to what is written to the generation with this batch.
    pub(super) fn state(&mut self, state: &State) {
        let mut value = Vec::new();
        value.put_u64(state.tail);
        value.put_u64(state.newest_ms);
        value.put_u64(state.payload);
        put_totals(&mut value, &state.totals);
        value.put_u32(state.oldest_ms.len() as u32);
        for (name, oldest_ms) in &state.oldest_ms {
            value.put_str(name);
            value.put_u64(*oldest_ms);
        }
        self.put(STATE.to_vec(), seal(&value));
    }

    /// Adds a copy of the generation's `start`.
    pub(super) fn start(&mut self, sealed: &[u8]) {
        self.put(START.to_vec(), sealed.to_vec());
    }

    /// Adds a cursor and its note.
    pub(super) fn cursor(&mut self, name: &str, cursor: &Cursor) {
        let mut value = Vec::new();
        value.put_u64(cursor.position);
        put_counts(&mut value, &cursor.settled);
        put_counts(&mut value, &cursor.lost);
        value.put_u32(cursor.note.len() as u32);
        value.put_u32(crc32fast::hash(&cursor.note));
        self.put(cursor_key(name), seal(&value));
        for (part, chunk) in (0..).zip(cursor.note.chunks(CHUNK)) {
            self.put(note_key(name, part), chunk.to_vec());
        }
    }

    /// Adds marks from `block` on and returns the next free block.
    pub(super) fn marks(&mut self, mut block: u32, marks: &[Seen]) -> u32 {
        for marks in marks.chunks(MARKS_PER_BLOCK) {
            let mut value = Vec::with_capacity(marks.len() * 24);
            for seen in marks {
                value.extend_from_slice(&seen.key);
                value.put_u64(seen.until_ms);
            }
            self.put(mark_key(block), seal(&value));
            block += 1;
        }
        block
    }

    /// Takes a cursor away.
    pub(super) fn remove_cursor(&mut self, name: &str) {
        self.batch.remove(cursor_key(name));
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += (key.len() + value.len()) as u64;
        self.batch.insert(key, value);
    }
}

pub(super) fn record_key(position: u64, part: u32) -> [u8; 13] {
    let mut key = [b'r'; 13];
    key[1..9].copy_from_slice(&position.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Returns the position and the part of a record's key.
pub(super) fn parse_record_key(key: &[u8]) -> Option<(u64, u32)> {
    let key: &[u8; 13] = key.try_into().ok()?;
    let (position, part) = key[1..].split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*position), u32::from_be_bytes(part.try_into().ok()?)))
}

pub(super) fn cursor_key(name: &str) -> Vec<u8> {
    [b"c", name.as_bytes()].concat()
}

pub(super) fn note_key(name: &str, part: u32) -> Vec<u8> {
    [b"d", name.as_bytes(), &part.to_be_bytes()].concat()
}

fn mark_key(block: u32) -> Vec<u8> {
    [b"m", &block.to_be_bytes()[..]].concat()
}

/// Returns the block of a mark's key.
pub(super) fn parse_mark_key(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

/// Returns the value with its checksum in front.
pub(super) fn seal(value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(value.len() + 4);
    sealed.put_u32(crc32fast::hash(value));
    sealed.extend_from_slice(value);
    sealed
}

/// Returns what is left to read of a sealed value whose checksum is right.
pub(super) fn unseal(sealed: &[u8]) -> Result<Take<'_>, Malformed> {
    let mut take = Take::new(sealed);
    let checksum = take.u32()?;
    if crc32fast::hash(take.rest()) != checksum {
        return Err(Malformed);
    }
    Ok(take)
}

pub(super) fn read_state(value: &[u8]) -> Result<State, Malformed> {
    let mut take = unseal(value)?;
    let (tail, newest_ms, payload) = (take.u64()?, take.u64()?, take.u64()?);
    let totals = take_totals(&mut take)?;
    let count = take.count(12)?;
    let oldest_ms = (0..count)
        .map(|_| Ok((take.str()?, take.u64()?)))
        .collect::<Result<_, Malformed>>()?;
    take.end()?;
    Ok(State {
        tail,
        newest_ms,
        payload,
        totals,
        oldest_ms,
    })
}

/// Returns the cursor without its note, the note's length and the note's checksum.
pub(super) fn read_cursor(value: &[u8]) -> Result<(Cursor, usize, u32), Malformed> {
    let mut take = unseal(value)?;
    let position = take.u64()?;
    let (settled, lost) = (take_counts(&mut take)?, take_counts(&mut take)?);
    let (length, checksum) = (take.u32()?, take.u32()?);
    take.end()?;
    let cursor = Cursor {
        position,
        settled,
        lost,
        note: Vec::new(),
    };
    Ok((cursor, length as usize, checksum))
}

pub(super) fn read_marks(value: &[u8]) -> Result<Vec<Seen>, Malformed> {
    let mut take = unseal(value)?;
    let mut marks = Vec::with_capacity(take.rest().len() / 24);
    while !take.rest().is_empty() {
        marks.push(Seen {
            key: take.array()?,
            until_ms: take.u64()?,
        });
    }
    Ok(marks)
}

pub(super) fn put_totals(value: &mut Vec<u8>, totals: &Totals) {
    value.put_u32(totals.0.len() as u32);
    for (destination, counts) in &totals.0 {
        value.put_str(destination);
        put_counts(value, counts);
    }
}

pub(super) fn take_totals(take: &mut Take<'_>) -> Result<Totals, Malformed> {
    let mut totals = BTreeMap::new();
    for _ in 0..take.count(8)? {
        totals.insert(take.str()?, take_counts(take)?);
    }
    Ok(Totals(totals))
}

fn put_counts(value: &mut Vec<u8>, counts: &Counts) {
    value.put_u32(counts.len() as u32);
    for (environment, events) in counts {
        value.put_str(environment);
        value.put_u64(*events);
    }
}

fn take_counts(take: &mut Take<'_>) -> Result<Counts, Malformed> {
    let mut counts = Counts::new();
    for _ in 0..take.count(12)? {
        counts.insert(take.str()?, take.u64()?);
    }
    Ok(counts)
}
