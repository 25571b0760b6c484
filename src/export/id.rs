//! The stable id of an exported event.
//!
//! Owns the derivation: 24 lower-case hex digits, shaped as LaunchDarkly's own ids (a BSON ObjectId: 4 bytes of Unix
//! seconds, big endian, then 8 bytes). Where an ObjectId has a counter, this has a hash of the batch's seed and the
//! event's place, so an SDK's retry, a crash replay and a replayed dead letter all give the same id. The seconds come
//! from the event itself wherever it has a date, for the same reason.

use sha2::{Digest, Sha256};

use crate::export::Members;

// 2000-01-01T00:00:00Z. Dates before it are clocks that were never set; the upper end is what 4 bytes hold (2106).
const EARLIEST_SECONDS: f64 = 946_684_800.0;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Returns the id of the event at `index` (its place in the SDK's payload) of the batch with this seed.
///
/// `seconds` is the date the id begins with, Unix seconds: see [`seconds`].
pub fn event_id(seed: &[u8; 16], index: u32, seconds: u32) -> String {
    let mut hash = Sha256::new();
    hash.update(b"flagtap event id\0");
    hash.update(seed);
    hash.update(index.to_be_bytes());
    let digest = hash.finalize();
    let mut id = String::with_capacity(24);
    for byte in seconds.to_be_bytes().iter().chain(digest.iter().take(8)) {
        id.push(char::from(HEX[usize::from(byte >> 4)]));
        id.push(char::from(HEX[usize::from(byte & 15)]));
    }
    id
}

/// Returns the date an event's id begins with, Unix seconds.
///
/// It is `creationDate`, else `endDate` (a summary), where that is a number of milliseconds between 2000 and 2106;
/// else the time of receipt. SDKs write the date as an integer or with a fraction (`1.7e12`): both count.
pub fn seconds(event: &Members<'_>, received_ms: u64) -> u32 {
    ["creationDate", "endDate"]
        .into_iter()
        .find_map(|name| date_seconds(event.get(name)?))
        .unwrap_or_else(|| u32::try_from(received_ms / 1000).unwrap_or(u32::MAX))
}

fn date_seconds(json: &str) -> Option<u32> {
    // A JSON number is a number to Rust's parser too; `"…"`, `null`, `true`, `[` and `{` are not.
    let seconds = (json.parse::<f64>().ok()? / 1000.0).floor();
    // The cast is exact: the range is that of u32.
    (EARLIEST_SECONDS..=f64::from(u32::MAX))
        .contains(&seconds)
        .then_some(seconds as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds_of(json: &str) -> u32 {
        seconds(&Members::of(json).unwrap(), 1_700_000_000_999)
    }

    #[test]
    fn is_shaped_as_launchdarklys_ids() {
        let id = event_id(&[7; 16], 3, 0x6384_3c40);
        assert_eq!(id.len(), 24);
        assert!(id.starts_with("63843c40"), "{id}");
        assert!(
            id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
            "{id}"
        );
    }

    #[test]
    fn never_changes_between_releases() {
        // Ids already delivered must be recognised when a dead letter is replayed after an update.
        assert_eq!(event_id(&[0; 16], 0, 0), "000000004a9969370cbf88bd");
    }

    #[test]
    fn differs_by_seed_and_by_place() {
        let id = event_id(&[7; 16], 3, 1);
        assert_ne!(id, event_id(&[8; 16], 3, 1));
        assert_ne!(id, event_id(&[7; 16], 4, 1));
        assert_eq!(id, event_id(&[7; 16], 3, 1));
    }

    #[test]
    fn begins_with_the_events_own_date() {
        assert_eq!(seconds_of(r#"{"creationDate":1669610559830}"#), 1_669_610_559);
        assert_eq!(seconds_of(r#"{"creationDate":1.669610559830e12}"#), 1_669_610_559);
        assert_eq!(seconds_of(r#"{"startDate":1,"endDate":1669610559830}"#), 1_669_610_559);
    }

    #[test]
    fn falls_back_to_the_time_of_receipt_for_a_date_that_cannot_be() {
        for date in [
            "null",
            "\"1669610559830\"",
            "-1",
            "0",
            "1e300",
            "1669610559",
            "5000000000000",
            "{}",
        ] {
            assert_eq!(
                seconds_of(&format!("{{\"creationDate\":{date}}}")),
                1_700_000_000,
                "{date}"
            );
        }
        assert_eq!(seconds_of("{}"), 1_700_000_000);
    }
}
