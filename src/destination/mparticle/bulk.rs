//! A request: a JSON array of batches, one for each user and more where one would be too large.
//!
//! Owns mParticle's limits. Promises that items within [`LIMITS`] make a request within them, whatever users they are of,
//! that a batch holds one user's events in their order, and that the same events make the same batch.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::Environment;
use crate::destination::{Item, Limits};
use crate::export::json::Object;
use crate::units::hex;

/// Batches in one request.
const MOST_BATCHES: usize = 100;
/// Bytes in one request: 256 kB, in the smaller of the two readings.
const MOST_REQUEST_BYTES: usize = 256_000;
/// Bytes in one batch: 128 kB, in the smaller of the two readings.
const MOST_BATCH_BYTES: usize = 128_000;
/// Events in one request. mParticle has no such limit; a user with more of them gets a second request.
const MOST_EVENTS: usize = 1000;
/// What a batch has besides identities and events: the names, `environment` and `source_request_id`; 107 bytes.
const FRAME_BYTES: usize = 128;
/// A request within the limits has room for at most three batches of one user, and for a second one of no other: any two
/// batches of a user in turn are more than [`MOST_BATCH_BYTES`] together.
const FURTHER_BATCHES: usize = 2;

/// What a request may hold. Items are counted with their identities, as if each had a batch of its own; frames and commas
/// are taken off in advance.
pub(super) const LIMITS: Limits = Limits {
    items: MOST_EVENTS,
    bytes: MOST_REQUEST_BYTES - MOST_BATCHES * FRAME_BYTES - MOST_EVENTS,
    item_bytes: MOST_BATCH_BYTES - FRAME_BYTES,
    keys: MOST_BATCHES - FURTHER_BATCHES,
    requests: usize::MAX,
};

/// Returns the body of a request. Batches are in the order of their first events, events in that of the items.
pub(super) fn request(items: &[Item], environment: Environment) -> Vec<u8> {
    let mut body = Vec::with_capacity(MOST_REQUEST_BYTES);
    body.push(b'[');
    for (place, batch) in batches(items).iter().enumerate() {
        if place > 0 {
            body.push(b',');
        }
        push_batch(&mut body, batch, environment);
    }
    body.push(b']');
    body
}

fn batches(items: &[Item]) -> Vec<Vec<&Item>> {
    let mut batches: Vec<Vec<&Item>> = Vec::new();
    // The batch that a user's next event goes to, and its size so far.
    let mut open: HashMap<&str, (usize, usize)> = HashMap::new();
    for item in items {
        let alone = FRAME_BYTES + item.key.len() + item.body.len();
        match open.get_mut(item.key.as_str()) {
            Some((batch, size)) if *size + 1 + item.body.len() <= MOST_BATCH_BYTES => {
                batches[*batch].push(item);
                *size += 1 + item.body.len();
            }
            _ => {
                open.insert(&item.key, (batches.len(), alone));
                batches.push(vec![item]);
            }
        }
    }
    batches
}

fn push_batch(out: &mut Vec<u8>, items: &[&Item], environment: Environment) {
    let Some(first) = items.first() else { return };
    let mut events = Vec::with_capacity(items.iter().map(|item| item.body.len() + 1).sum::<usize>() + 1);
    for (place, item) in items.iter().enumerate() {
        events.push(if place > 0 { b',' } else { b'[' });
        events.extend_from_slice(&item.body);
    }
    events.push(b']');
    let mut batch = Object::open(out);
    batch.token("user_identities", &first.key);
    batch.text("environment", environment.as_str());
    batch.text("source_request_id", &request_id(items));
    batch.bytes("events", &events);
    batch.close();
}

// The same events make the same id, whatever else is in the request.
fn request_id(items: &[&Item]) -> String {
    let mut hash = Sha256::new();
    items.iter().for_each(|item| hash.update(item.id.as_bytes()));
    hex(&hash.finalize()[..12])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn item(user: usize, number: usize, size: usize) -> Item {
        let body = format!(r#"{{"n":"{number}","text":"{}"}}"#, "x".repeat(size));
        let key = format!(r#"{{"customer_id":"user-{user}"}}"#);
        Item {
            id: format!("63843c40{number:016x}"),
            size: body.len() + key.len(),
            body: body.into(),
            key,
        }
    }

    #[test]
    fn events_of_one_user_share_a_batch() {
        let items = [item(1, 0, 1), item(2, 1, 1), item(1, 2, 1)];
        let body: Value = serde_json::from_slice(&request(&items, Environment::Development)).unwrap();
        assert_eq!(body.as_array().unwrap().len(), 2);
        assert_eq!(body[0]["user_identities"]["customer_id"], "user-1");
        assert_eq!(body[0]["environment"], "development");
        assert_eq!(body[0]["events"][1]["n"], "2");
        assert_eq!(body[1]["events"][0]["n"], "1");
    }

    #[test]
    fn the_same_events_have_the_same_request_id_in_whatever_company() {
        let id = |items: &[Item], batch: usize| {
            let body: Value = serde_json::from_slice(&request(items, Environment::Production)).unwrap();
            body[batch]["source_request_id"].as_str().unwrap().to_owned()
        };
        let (one, two) = (item(1, 0, 1), item(2, 1, 1));
        let together = [one.clone(), two.clone()];
        assert_eq!(id(&together, 1), id(&[two], 0));
        assert_ne!(id(&together, 0), id(&together, 1));
        assert_ne!(id(&together, 0), id(&[one, item(1, 5, 1)], 0));
    }

    proptest! {
        /// Whatever keeps the limits that the drain knows keeps mParticle's, frames and further batches included.
        #[test]
        fn requests_keep_mparticles_limits_and_hold_every_event_once(
            offered in prop::collection::vec((0usize..120, prop_oneof![0usize..300, 0usize..127_000]), 1..1200),
        ) {
            let (mut items, mut bytes, mut users) = (Vec::new(), 0, std::collections::HashSet::new());
            for (number, (user, size)) in offered.into_iter().enumerate() {
                let item = item(user, number, size);
                users.insert(user);
                bytes += item.size;
                let full = items.len() == LIMITS.items || bytes > LIMITS.bytes || users.len() > LIMITS.keys;
                if full || item.size > LIMITS.item_bytes {
                    break;
                }
                items.push(item);
            }
            let body = request(&items, Environment::Development);
            prop_assert!(body.len() <= MOST_REQUEST_BYTES);
            let batches = batches(&items);
            prop_assert!(batches.len() <= MOST_BATCHES);
            for batch in &batches {
                let mut out = Vec::new();
                push_batch(&mut out, batch, Environment::Development);
                prop_assert!(out.len() <= MOST_BATCH_BYTES, "{}", out.len());
                prop_assert!(batch.iter().all(|item| item.key == batch[0].key));
                prop_assert!(batch.is_sorted_by_key(|item| &item.id), "reordered within a batch");
            }
            let mut sent: Vec<&str> = batches.iter().flatten().map(|item| item.id.as_str()).collect();
            sent.sort_unstable();
            prop_assert_eq!(sent, items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>());
        }
    }
}
