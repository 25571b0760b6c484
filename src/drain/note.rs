//! The note beside a destination's cursor: what has become of events after the cursor.
//!
//! With it a crash repeats at most the request that was in flight, though one event that has to wait holds the cursor
//! back, and a restart neither gives an event new tries nor takes any. Losing a note loses nothing: its events are sent
//! twice, or more often. Format, version 2 (an empty note has no bytes):
//!
//! ```text
//! u8      version, 2
//! then per record with something to note, in ascending order of positions:
//! LEB128  position, less the position of the entry before it (the first: less 0)
//! LEB128  n, the number of events in the record
//! [u8; ceil(n / 2)]  four bits per event, event i in bits 4 * (i % 2) of byte i / 2:
//!         0 nothing (also: skipped, which encoding finds again), 1 delivered, 2 dead-lettered, 3 dropped, 4 failed
//! then per failed event
//! LEB128  failures
//! LEB128  when the next try is due, Unix milliseconds, less that of the failed event before it in the note (the
//!         first: less 0), zigzag
//! ```
//!
//! Version 1 is read: it has two bits per event (of byte i / 4, bits 2 * (i % 4)) and no failed events.

use super::fate::{Entry, Fate, Mark};
use crate::queue::Position;

/// The most a note may take, bytes: what [`crate::queue::Consumer::commit`] accepts.
pub(super) const MAX_BYTES: usize = 64 * 1024;

const VERSION: u8 = 2;

/// What a note says of a destination, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Events that failed and are to be tried again.
    pub failed: u64,
    /// When the first of them is due by its schedule, Unix milliseconds.
    pub next_ms: Option<u64>,
}

/// Returns what a note says of events that failed; nothing if it cannot be read.
pub fn noted(note: &[u8]) -> Option<Noted> {
    let mut noted = Noted::default();
    let entries = decode(note)?;
    for mark in entries.iter().flat_map(|entry| &entry.marks).flatten() {
        if let Mark::Failed { due_ms, .. } = mark {
            noted.failed += 1;
            noted.next_ms = Some(noted.next_ms.map_or(*due_ms, |next| next.min(*due_ms)));
        }
    }
    Some(noted)
}

/// Returns the note for entries in ascending order of positions.
///
/// Of entries that would make it longer than [`MAX_BYTES`], failures are left out first (a restart gives those events
/// new tries), then whole entries (a crash sends their events again).
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut note = Vec::new();
    let mut spare = MAX_BYTES.saturating_sub(1 + size_without_failures(entries));
    let (mut previous, mut previous_ms) = (0, 0);
    for Entry { position, marks } in entries {
        let mut failed = Vec::new();
        let mut last_ms = previous_ms;
        for mark in marks.iter().flatten() {
            if let Mark::Failed { failures, due_ms } = mark {
                push_number(&mut failed, u64::from(*failures));
                push_number(&mut failed, zigzag(due_ms.wrapping_sub(last_ms) as i64));
                last_ms = *due_ms;
            }
        }
        let with_failures = failed.len() <= spare;
        let bits = |mark: &Option<Mark>| match mark {
            Some(Mark::Failed { .. }) if !with_failures => 0,
            mark => bits_of(*mark),
        };
        let mut bytes = Vec::new();
        push_number(&mut bytes, position.0.saturating_sub(previous));
        push_number(&mut bytes, marks.len() as u64);
        for two in marks.chunks(2) {
            bytes.push(bits(&two[0]) | two.get(1).map_or(0, |mark| bits(mark) << 4));
        }
        if with_failures {
            spare -= failed.len();
            bytes.extend_from_slice(&failed);
        }
        if 1 + note.len() + bytes.len() > MAX_BYTES {
            continue;
        }
        if note.is_empty() {
            note.push(VERSION);
        }
        note.extend_from_slice(&bytes);
        previous = position.0;
        if with_failures {
            previous_ms = last_ms;
        }
    }
    note
}

/// Returns the entries of a note; `None` if it is of another version or damaged.
pub(super) fn decode(note: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let Some((version, mut rest)) = note.split_first() else {
        return Some(entries);
    };
    let per_byte = match *version {
        1 => 4,
        VERSION => 2,
        _ => return None,
    };
    let width = 8 / per_byte;
    let (mut position, mut due_ms) = (0_u64, 0_u64);
    while !rest.is_empty() {
        position = position.checked_add(take_number(&mut rest)?)?;
        let count = usize::try_from(take_number(&mut rest)?).ok()?;
        // Checked against the bytes at hand before anything of this size is allocated.
        let (bits, after) = rest.split_at_checked(count.div_ceil(per_byte))?;
        rest = after;
        let mut marks = Vec::with_capacity(count);
        for event in 0..count {
            let bits = bits[event / per_byte] >> (width * (event % per_byte)) & ((1 << width) - 1);
            marks.push(match bits {
                0 => None,
                1 => Some(Mark::Ended(Fate::Delivered)),
                2 => Some(Mark::Ended(Fate::Dead)),
                3 if *version > 1 => Some(Mark::Ended(Fate::Dropped)),
                4 => {
                    let failures = u32::try_from(take_number(&mut rest)?).ok()?;
                    due_ms = due_ms.wrapping_add(unzigzag(take_number(&mut rest)?) as u64);
                    Some(Mark::Failed { failures, due_ms })
                }
                _ => return None,
            });
        }
        entries.push(Entry {
            position: Position(position),
            marks,
        });
    }
    Some(entries)
}

fn size_without_failures(entries: &[Entry]) -> usize {
    let number = |number: u64| (u64::BITS - number.leading_zeros()).div_ceil(7).max(1) as usize;
    let (mut size, mut previous) = (0, 0);
    for Entry { position, marks } in entries {
        size += number(position.0.saturating_sub(previous)) + number(marks.len() as u64) + marks.len().div_ceil(2);
        previous = position.0;
    }
    size
}

fn bits_of(mark: Option<Mark>) -> u8 {
    match mark {
        None | Some(Mark::Ended(Fate::Skipped(_))) => 0,
        Some(Mark::Ended(Fate::Delivered)) => 1,
        Some(Mark::Ended(Fate::Dead)) => 2,
        Some(Mark::Ended(Fate::Dropped)) => 3,
        Some(Mark::Failed { .. }) => 4,
    }
}

/// Small numbers of either sign become small numbers.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELIVERED: Option<Mark> = Some(Mark::Ended(Fate::Delivered));
    const DEAD: Option<Mark> = Some(Mark::Ended(Fate::Dead));

    fn entry(position: u64, marks: Vec<Option<Mark>>) -> Entry {
        Entry {
            position: Position(position),
            marks,
        }
    }

    fn failed(failures: u32, due_ms: u64) -> Option<Mark> {
        Some(Mark::Failed { failures, due_ms })
    }

    #[test]
    fn the_format_of_version_2_never_changes() {
        let dropped = Some(Mark::Ended(Fate::Dropped));
        let entries = [
            entry(300, vec![DELIVERED, None, DEAD]),
            entry(301, vec![failed(5, 1000), dropped, failed(1, 1000), failed(200, 998)]),
        ];
        let bytes = [
            2, 0xac, 2, 3, 0x01, 0x02, 1, 4, 0x34, 0x44, 5, 0xd0, 0x0f, 1, 0, 0xc8, 1, 3,
        ];
        assert_eq!(encode(&entries), bytes);
        assert_eq!(decode(&bytes).unwrap(), entries);
    }

    #[test]
    fn a_note_of_version_1_is_read() {
        let entries = [
            entry(300, vec![DELIVERED, None, DEAD]),
            entry(301, vec![None, None, None, None, DELIVERED]),
        ];
        assert_eq!(decode(&[1, 0xac, 2, 3, 0b10_00_01, 1, 5, 0, 1]).unwrap(), entries);
        assert_eq!(decode(&[1, 1, 1, 3]), None);
    }

    #[test]
    fn nothing_to_note_is_no_bytes() {
        assert_eq!(encode(&[]), Vec::<u8>::new());
        assert_eq!(decode(&[]), Some(Vec::new()));
    }

    #[test]
    fn a_skipped_event_is_found_again_by_encoding() {
        let note = encode(&[entry(1, vec![Some(Mark::Ended(Fate::Skipped("kind"))), DEAD])]);
        assert_eq!(decode(&note).unwrap(), [entry(1, vec![None, DEAD])]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let entries = [
            entry(1, vec![DELIVERED; 8]),
            entry(2, vec![DELIVERED; 2 * MAX_BYTES]),
            entry(9, vec![DELIVERED; 8]),
        ];
        let note = encode(&entries);
        assert!(note.len() <= MAX_BYTES);
        assert_eq!(
            decode(&note).unwrap(),
            [entries[0].clone(), entries[2].clone()],
            "the large one alone is left out"
        );
    }

    #[test]
    fn failures_give_way_to_what_would_be_sent_twice() {
        let mut entries: Vec<Entry> = (0..20)
            .map(|at| entry(at, (0..2000).map(|ms| failed(3, ms << 20)).collect()))
            .collect();
        entries.extend((20..30).map(|at| entry(at, vec![DELIVERED; 2000])));
        let note = encode(&entries);
        assert!(note.len() <= MAX_BYTES);
        let read = decode(&note).unwrap();
        assert_eq!(read[20..], entries[20..]);
        assert_eq!(read[0], entries[0], "as many as fit");
        assert_eq!(read[19], entry(19, vec![None; 2000]));
    }

    #[test]
    fn the_failures_of_the_largest_window_fit_when_they_failed_together() {
        // Of 32 requests at once to Kinesis. Records of one event take most.
        for events in [2, 100] {
            let records = 16_500 / events as u64;
            let entries: Vec<Entry> = (0..records)
                .map(|at| entry(at, vec![failed(5, 1_700_000_000_000); events]))
                .collect();
            assert_eq!(decode(&encode(&entries)).unwrap(), entries);
        }
    }

    #[test]
    fn another_version_and_damage_are_refused() {
        for note in [
            &[3, 1, 1, 1][..],
            &[2, 1],
            &[2, 1, 3, 0],
            &[2, 1, 1, 5],
            &[2, 1, 1, 4],
            &[2, 0xff, 0xff],
        ] {
            assert_eq!(decode(note), None, "{note:?}");
        }
        let huge = [2, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(decode(&huge), None);
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(
            records in prop::collection::vec(
                (1u64..u64::MAX / 64, prop::collection::vec((0u8..5, any::<u32>(), any::<u64>()), 1..20)), 0..32,
            ),
        ) {
            let mut position = 0;
            let mark = |(bits, failures, due_ms)| match bits {
                0 => None,
                1 => DELIVERED,
                2 => DEAD,
                3 => Some(Mark::Ended(Fate::Dropped)),
                _ => failed(failures, due_ms),
            };
            let entries: Vec<Entry> = records
                .into_iter()
                .map(|(step, marks)| {
                    position += step;
                    entry(position, marks.into_iter().map(mark).collect())
                })
                .collect();
            prop_assert_eq!(decode(&encode(&entries)), Some(entries));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(note in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&note);
        }
    }

    #[test]
    fn people_are_told_how_many_failed_and_when_the_first_is_due() {
        let failed = |due_ms| Some(Mark::Failed { failures: 2, due_ms });
        let entries = [
            Entry {
                position: Position(3),
                marks: vec![failed(9000), None, Some(Mark::Ended(Fate::Delivered))],
            },
            Entry {
                position: Position(7),
                marks: vec![failed(7000)],
            },
        ];
        let expected = Noted {
            failed: 2,
            next_ms: Some(7000),
        };
        assert_eq!(noted(&encode(&entries)), Some(expected));
        assert_eq!(noted(b""), Some(Noted::default()));
        assert_eq!(noted(&[99]), None);
    }
}
