//! How many waiting events go into the next request. Pure.
//!
//! Promises: a request is a run of the events offered, in their order, none left out; it never holds more items or
//! bytes than the limits, and never none while one waits. An event that fits into no request is told apart by
//! [`oversize`] before it is offered.

use crate::destination::Limits;

/// What an event weighs in a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Bytes against [`Limits::bytes`].
    pub(super) size: usize,
    /// The most items a request with this event may hold; below the limit after the service asked for a split.
    pub(super) most: usize,
}

/// Returns how many of the first events make up the next request.
pub(super) fn fill(loads: impl IntoIterator<Item = Load>, limits: Limits) -> usize {
    let mut count = 0;
    let mut bytes = 0_usize;
    let mut most = limits.items.max(1);
    for load in loads {
        most = most.min(load.most).max(1);
        let sum = bytes.saturating_add(load.size);
        if count > 0 && (count >= most || sum > limits.bytes) {
            break;
        }
        count += 1;
        bytes = sum;
        if count >= most {
            break;
        }
    }
    count
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

    fn load(size: usize) -> Load {
        Load { size, most: usize::MAX }
    }

    fn requests(loads: &[Load], limits: Limits) -> Vec<Vec<Load>> {
        let mut rest = loads;
        let mut requests = Vec::new();
        while !rest.is_empty() {
            let (request, after) = rest.split_at(fill(rest.iter().copied(), limits));
            requests.push(request.to_vec());
            rest = after;
        }
        requests
    }

    #[test]
    fn nothing_makes_no_request() {
        assert_eq!(fill([], LIMITS), 0);
    }

    #[test]
    fn a_request_ends_at_the_limit_of_items_and_at_the_limit_of_bytes() {
        assert_eq!(fill([load(1), load(1), load(1), load(1)], LIMITS), 3);
        assert_eq!(fill([load(50), load(50), load(1)], LIMITS), 2);
        assert_eq!(fill([load(50), load(51)], LIMITS), 1);
    }

    #[test]
    fn an_event_of_a_split_request_is_never_again_among_as_many() {
        let halved = Load { size: 1, most: 1 };
        assert_eq!(fill([halved, load(1)], LIMITS), 1);
        assert_eq!(fill([load(1), halved], LIMITS), 1);
        assert_eq!(fill([Load { size: 1, most: 2 }, load(1), load(1)], LIMITS), 2);
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
            loads in prop::collection::vec((0usize..=60, 1usize..6), 0..200),
            items in 1usize..20,
            bytes in 60usize..400,
        ) {
            let limits = Limits { items, bytes, ..LIMITS };
            let loads: Vec<Load> = loads.into_iter().map(|(size, most)| Load { size, most }).collect();
            let requests = requests(&loads, limits);
            let sizes: Vec<usize> = requests.iter().flatten().map(|load| load.size).collect();
            prop_assert_eq!(sizes, loads.iter().map(|load| load.size).collect::<Vec<_>>());
            for request in &requests {
                prop_assert!(!request.is_empty());
                prop_assert!(request.len() <= items);
                prop_assert!(request.iter().all(|load| request.len() <= load.most));
                prop_assert!(request.iter().map(|load| load.size).sum::<usize>() <= bytes);
                prop_assert!(request.iter().all(|load| oversize(load.size, limits).is_none()));
            }
        }

        #[test]
        fn the_next_event_would_not_have_fitted(sizes in prop::collection::vec(0usize..=60, 1..200)) {
            let loads: Vec<Load> = sizes.into_iter().map(load).collect();
            let count = fill(loads.iter().copied(), LIMITS);
            let bytes: usize = loads.iter().take(count + 1).map(|load| load.size).sum();
            prop_assert!(count == loads.len() || count == LIMITS.items || bytes > LIMITS.bytes);
        }
    }
}
