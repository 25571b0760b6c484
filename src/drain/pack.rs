//! How many waiting events go into the next request. Pure.
//!
//! Promises: a request is a run of the events offered, in their order, none left out; it never holds more items, bytes
//! or different keys than the limits, and never none while one waits. An event that fits into no request is told apart by
//! [`oversize`] before it is offered.

use std::collections::HashSet;

use crate::destination::Limits;

/// What an event weighs in a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    /// Bytes against [`Limits::bytes`].
    pub(super) size: usize,
    /// The most items a request with this event may hold; below the limit after the service asked for a split.
    pub(super) most: usize,
    /// Counts once against [`Limits::keys`] with all that have the same.
    pub(super) key: &'a str,
}

/// The next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// How many of the first events it holds.
    pub(super) count: usize,
    /// It holds as much as it may: waiting for more events would not make it larger.
    pub(super) full: bool,
}

/// Returns how many of the first events make up the next request.
pub(super) fn fill<'a>(loads: impl IntoIterator<Item = Load<'a>>, limits: Limits) -> Request {
    let mut count = 0;
    let mut bytes = 0_usize;
    let mut most = limits.items.max(1);
    let mut keys = HashSet::new();
    // Fewer items than keys cannot have more keys than are allowed.
    let counts_keys = limits.keys < limits.items;
    for load in loads {
        most = most.min(load.most).max(1);
        let sum = bytes.saturating_add(load.size);
        let another_key = counts_keys && !keys.contains(load.key);
        let over = count >= most || sum > limits.bytes || (another_key && keys.len() >= limits.keys);
        if count > 0 && over {
            return Request { count, full: true };
        }
        if another_key {
            keys.insert(load.key);
        }
        count += 1;
        bytes = sum;
        if count >= most {
            return Request { count, full: true };
        }
    }
    Request { count, full: false }
}

/// Returns why an event of `size` bytes can be in no request; `None` if it can.
pub(super) fn oversize(size: usize, limits: Limits) -> Option<String> {
    let limit = limits.item_bytes.min(limits.bytes);
    (size > limit).then(|| format!("event of {size} bytes is over the destination's limit of {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        items: 3,
        bytes: 100,
        item_bytes: 60,
        keys: usize::MAX,
        requests: 1,
    };

    fn load(size: usize) -> Load<'static> {
        Load {
            size,
            most: usize::MAX,
            key: "",
        }
    }

    fn keyed(key: &str) -> Load<'_> {
        Load { key, ..load(1) }
    }

    fn count(loads: &[Load<'_>], limits: Limits) -> usize {
        fill(loads.iter().copied(), limits).count
    }

    fn requests<'a, 'b>(loads: &'b [Load<'a>], limits: Limits) -> Vec<&'b [Load<'a>]> {
        let mut rest = loads;
        let mut requests = Vec::new();
        while !rest.is_empty() {
            let (request, after) = rest.split_at(count(rest, limits));
            requests.push(request);
            rest = after;
        }
        requests
    }

    fn different_keys(loads: &[Load<'_>]) -> usize {
        loads.iter().map(|load| load.key).collect::<HashSet<_>>().len()
    }

    #[test]
    fn nothing_makes_no_request() {
        assert_eq!(fill([], LIMITS), Request { count: 0, full: false });
    }

    #[test]
    fn a_request_ends_at_the_limit_of_items_and_at_the_limit_of_bytes() {
        assert_eq!(count(&[load(1), load(1), load(1), load(1)], LIMITS), 3);
        assert_eq!(count(&[load(50), load(50), load(1)], LIMITS), 2);
        assert_eq!(count(&[load(50), load(51)], LIMITS), 1);
    }

    #[test]
    fn a_request_ends_before_one_key_too_many() {
        let limits = Limits {
            keys: 2,
            items: 9,
            ..LIMITS
        };
        let loads = ["a", "b", "a", "b", "a", "c", "a"].map(keyed);
        assert_eq!(count(&loads, limits), 5);
        assert_eq!(count(&loads, Limits { keys: 3, ..limits }), 7);
        assert_eq!(count(&loads, Limits { keys: 0, ..limits }), 1, "never none");
    }

    #[test]
    fn a_request_is_full_when_no_further_event_could_join() {
        assert!(!fill([load(1), load(1)], LIMITS).full);
        assert!(fill([load(1), load(1), load(1)], LIMITS).full);
        assert!(fill([load(60), load(60)], LIMITS).full);
    }

    #[test]
    fn an_event_of_a_split_request_is_never_again_among_as_many() {
        let most = |most| Load { most, ..load(1) };
        assert_eq!(count(&[most(1), load(1)], LIMITS), 1);
        assert_eq!(count(&[load(1), most(1)], LIMITS), 1);
        assert_eq!(count(&[most(2), load(1), load(1)], LIMITS), 2);
    }

    #[test]
    fn says_how_large_an_event_is_and_what_the_limit_is() {
        assert_eq!(oversize(60, LIMITS), None);
        let why = oversize(61, LIMITS).unwrap();
        assert!(why.contains("61 bytes") && why.contains("60 bytes"), "{why}");
    }

    proptest! {
        #[test]
        fn requests_hold_every_event_once_in_order_within_the_limits(
            loads in prop::collection::vec((0usize..=60, 1usize..6, "[a-f]"), 0..200),
            items in 1usize..20,
            bytes in 60usize..400,
            keys in 1usize..8,
        ) {
            let limits = Limits { items, bytes, keys, ..LIMITS };
            let loads: Vec<Load<'_>> = loads.iter().map(|(size, most, key)| Load { size: *size, most: *most, key }).collect();
            let requests = requests(&loads, limits);
            let shape = |load: &Load<'_>| (load.size, load.key.to_owned());
            let sent: Vec<_> = requests.iter().copied().flatten().map(shape).collect();
            prop_assert_eq!(sent, loads.iter().map(shape).collect::<Vec<_>>());
            for request in requests {
                prop_assert!(!request.is_empty());
                prop_assert!(request.len() <= items);
                prop_assert!(request.iter().all(|load| request.len() <= load.most));
                prop_assert!(request.iter().map(|load| load.size).sum::<usize>() <= bytes);
                prop_assert!(different_keys(request) <= keys);
                prop_assert!(request.iter().all(|load| oversize(load.size, limits).is_none()));
            }
        }

        #[test]
        fn the_next_event_would_not_have_fitted(
            loads in prop::collection::vec((0usize..=60, "[a-f]"), 1..200),
            keys in 1usize..8,
        ) {
            let limits = Limits { keys, items: 20, ..LIMITS };
            let loads: Vec<Load<'_>> = loads.iter().map(|(size, key)| Load { key, ..load(*size) }).collect();
            let Request { count, full } = fill(loads.iter().copied(), limits);
            let more = &loads[..loads.len().min(count + 1)];
            let over = more.len() > 20
                || more.iter().map(|load| load.size).sum::<usize>() > limits.bytes
                || different_keys(more) > keys;
            prop_assert!(over || count == loads.len());
            prop_assert_eq!(full, over || count == 20);
        }
    }
}
