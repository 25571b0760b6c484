//! The note beside a destination's cursor: which events after the cursor are settled already.
//!
//! With it a crash repeats at most the request that was in flight, though one event that has to wait holds the cursor
//! back. Losing a note loses nothing: its events are sent twice. Format, version 1 (an empty note has no bytes):
//!
//! ```text
//! u8      version, 1
//! then per record with settled events, in ascending order of positions:
//! LEB128  position, less the position of the entry before it (the first: less 0)
//! LEB128  n, the number of events in the record
//! [u8; ceil(n / 4)]  two bits per event, event i in bits 2 * (i % 4) of byte i / 4:
//!         0 not settled (also: skipped, which encoding finds again), 1 delivered, 2 dead-lettered
//! ```

use super::{Entry, Fate};
use crate::queue::Position;

/// The most a note may take, bytes: what [`crate::queue::Consumer::commit`] accepts.
pub(super) const MAX_BYTES: usize = 64 * 1024;

const VERSION: u8 = 1;

/// Returns the note for entries in ascending order of positions.
///
/// Entries that would make it longer than [`MAX_BYTES`] are left out: a crash would send their events again.
pub(super) fn encode<'a>(entries: impl IntoIterator<Item = (Position, &'a [Option<Fate>])>) -> Vec<u8> {
    let mut note = Vec::new();
    let mut previous = 0;
    for (Position(position), fates) in entries {
        let mut entry = Vec::new();
        push_number(&mut entry, position.saturating_sub(previous));
        push_number(&mut entry, fates.len() as u64);
        for four in fates.chunks(4) {
            let bits = |(place, fate): (usize, &Option<Fate>)| bits_of(*fate) << (2 * place);
            entry.push(four.iter().enumerate().map(bits).sum());
        }
        if 1 + note.len() + entry.len() <= MAX_BYTES {
            if note.is_empty() {
                note.push(VERSION);
            }
            note.extend_from_slice(&entry);
            previous = position;
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
    if *version != VERSION {
        return None;
    }
    let mut position = 0_u64;
    while !rest.is_empty() {
        position = position.checked_add(take_number(&mut rest)?)?;
        let count = usize::try_from(take_number(&mut rest)?).ok()?;
        // Checked against the bytes at hand before anything of this size is allocated.
        let (bits, after) = rest.split_at_checked(count.div_ceil(4))?;
        rest = after;
        let fates: Option<Vec<Option<Fate>>> = (0..count)
            .map(|event| fate_of(bits[event / 4] >> (2 * (event % 4)) & 3))
            .collect();
        entries.push(Entry {
            position: Position(position),
            fates: fates?,
        });
    }
    Some(entries)
}

fn bits_of(fate: Option<Fate>) -> u8 {
    match fate {
        None | Some(Fate::Skipped(_)) => 0,
        Some(Fate::Delivered) => 1,
        Some(Fate::Dead) => 2,
    }
}

fn fate_of(bits: u8) -> Option<Option<Fate>> {
    match bits {
        0 => Some(None),
        1 => Some(Some(Fate::Delivered)),
        2 => Some(Some(Fate::Dead)),
        _ => None,
    }
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

    fn encoded(entries: &[Entry]) -> Vec<u8> {
        encode(entries.iter().map(|entry| (entry.position, entry.fates.as_slice())))
    }

    fn entry(position: u64, fates: Vec<Option<Fate>>) -> Entry {
        Entry {
            position: Position(position),
            fates,
        }
    }

    #[test]
    fn the_format_of_version_1_never_changes() {
        let entries = [
            entry(300, vec![Some(Fate::Delivered), None, Some(Fate::Dead)]),
            entry(301, vec![None, None, None, None, Some(Fate::Delivered)]),
        ];
        assert_eq!(encoded(&entries), [1, 0xac, 2, 3, 0b10_00_01, 1, 5, 0, 1]);
        assert_eq!(decode(&encoded(&entries)).unwrap(), entries);
    }

    #[test]
    fn nothing_settled_is_no_bytes() {
        assert_eq!(encode([]), Vec::<u8>::new());
        assert_eq!(decode(&[]), Some(Vec::new()));
    }

    #[test]
    fn a_skipped_event_is_found_again_by_encoding() {
        let note = encoded(&[entry(1, vec![Some(Fate::Skipped("kind")), Some(Fate::Dead)])]);
        assert_eq!(decode(&note).unwrap(), [entry(1, vec![None, Some(Fate::Dead)])]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let fates = |events| vec![Some(Fate::Delivered); events];
        let entries = [entry(1, fates(8)), entry(2, fates(4 * MAX_BYTES)), entry(9, fates(8))];
        let note = encoded(&entries);
        assert!(note.len() <= MAX_BYTES);
        assert_eq!(
            decode(&note).unwrap(),
            [entries[0].clone(), entries[2].clone()],
            "the large one alone is left out"
        );
    }

    #[test]
    fn another_version_and_damage_are_refused() {
        for note in [
            &[2, 1, 1, 1][..],
            &[1, 1],
            &[1, 1, 5, 0],
            &[1, 1, 1, 3],
            &[1, 0xff, 0xff],
        ] {
            assert_eq!(decode(note), None, "{note:?}");
        }
        let huge = [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(decode(&huge), None);
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(
            records in prop::collection::vec((1u64..u64::MAX / 64, prop::collection::vec(0u8..3, 1..20)), 0..32),
        ) {
            let mut position = 0;
            let entries: Vec<Entry> = records
                .into_iter()
                .map(|(step, bits)| {
                    position += step;
                    entry(position, bits.into_iter().map(|bits| fate_of(bits).unwrap()).collect())
                })
                .collect();
            prop_assert_eq!(decode(&encoded(&entries)), Some(entries));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(note in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&note);
        }
    }
}
