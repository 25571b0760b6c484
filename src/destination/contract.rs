//! What every destination must do, whatever its service; each runs this against a service that works.

use std::time::Duration;

use super::{Destination, Encoded, Item, Verdict};
use crate::event::Kind;
use crate::export::ExportEvent;

const EVENTS: [&str; 5] = [
    r#"{"kind":"custom","creationDate":1669610559830,"key":"checkout","contextKeys":{"user":"ann"},"data":{"n":1e-07}}"#,
    r#"{"kind":"summary","startDate":1,"endDate":2,"features":{}}"#,
    r#"{"kind":"identify","context":{"kind":"user","key":"zoë \u00e9\ud83d\ude00"}}"#,
    r#"{"kind":"index"}"#,
    "{}",
];

/// What frames one event in a request at most, bytes.
const MOST_FRAMING: usize = 100;

/// Returns `count` different events as the destination would send them. One that maps events to records of its own
/// skips those that say too little.
pub(super) fn items(destination: &dyn Destination, count: usize) -> Vec<Item> {
    let skips = |json| matches!(destination.encode(&event(json, "")), Encoded::Skip(_));
    let taken: Vec<&str> = EVENTS.into_iter().filter(|json| !skips(json)).collect();
    assert!(!taken.is_empty(), "the destination skips every event");
    (0..count)
        .map(|number| {
            let id = format!("63843c40{number:016x}");
            encoded(destination, &event(taken[number % taken.len()], &id))
        })
        .collect()
}

/// Returns an event as the destination would send it.
pub(super) fn encoded(destination: &dyn Destination, event: &ExportEvent<'_>) -> Item {
    match destination.encode(event) {
        Encoded::Item(item) => item,
        other => panic!("{other:?} instead of an item"),
    }
}

/// Returns an event of a context-based SDK.
pub(super) fn event<'a>(json: &'a str, id: &'a str) -> ExportEvent<'a> {
    ExportEvent {
        project_id: "5744c96707c9900708000004",
        environment_id: "578d1e02d2943862c52b9686",
        environment: "production",
        version: 2,
        strip_private: false,
        id,
        kind: Kind::Custom,
        json: json.as_bytes(),
    }
}

/// The contract.
pub(super) async fn holds(destination: &dyn Destination) {
    let limits = destination.limits();
    assert!(limits.items > 0 && limits.bytes > 0 && limits.keys > 0 && limits.requests > 0);
    assert!(limits.item_bytes > 0 && limits.item_bytes <= limits.bytes);
    assert_eq!(limits, destination.limits());

    for item in items(destination, EVENTS.len()) {
        assert!(item.size >= item.body.len(), "what is packed is at least what is sent");
        assert!(
            item.size <= item.body.len() + item.key.len() + MOST_FRAMING,
            "and counts nothing twice"
        );
        assert_eq!(item.id.len(), 24);
    }
    let again = items(destination, 20);
    assert_eq!(again, items(destination, 20), "the same event is the same bytes");

    for count in [1, 2, limits.items.min(100)] {
        let items = items(destination, count);
        assert_eq!(destination.send(&items).await, vec![Verdict::Delivered; count]);
    }
    let same = &items(destination, 1);
    for _ in 0..2 {
        // An acknowledgement can get lost: the same event may come again and must not fail for it.
        assert_eq!(destination.send(same).await, [Verdict::Delivered]);
    }
    assert!(destination.probe().await.is_ok());
    destination.idle(false).await;
    assert_eq!(
        destination.send(same).await,
        [Verdict::Delivered],
        "idling ends nothing"
    );
    destination.idle(true).await;
}

/// A request to a service that hangs ends when the drain loses patience, and blocks nobody else meanwhile.
pub(super) async fn ends_with_the_request(hanging: &dyn Destination) {
    let items = items(hanging, 1);
    let patience = Duration::from_millis(200);
    assert!(tokio::time::timeout(patience, hanging.send(&items)).await.is_err());
}
