//! What every engine promises.

use std::time::Duration;

use super::*;
use crate::queue::{AppendError, ConsumeError, WhenFull};

pub(crate) async fn records_come_whole_and_in_order(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let entries = [
        rig.entry("a", &[LAKE], 1),
        rig.entry("b", &[LAKE], 3),
        rig.sized("a", &[LAKE], 2, 200_000),
    ];
    let mut expected = Vec::new();
    for entry in entries {
        expected.push((store(&queue, entry.clone()).await, entry.record));
    }
    assert!(expected.is_sorted_by_key(|(position, _)| *position));
    assert_eq!(take(&mut lake, 3).await, expected);
}

pub(crate) async fn a_lone_record_is_delivered_at_once(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let position = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    let records = within(lake.next(ALL)).await.unwrap();
    assert_eq!(
        records.iter().map(|(position, _)| *position).collect::<Vec<_>>(),
        [position]
    );
}

pub(crate) async fn next_waits_for_an_append(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    nothing_comes(&mut lake).await;
    let waiting = tokio::spawn(async move { lake.next(ALL).await.unwrap().len() });
    store(&queue, rig.entry("a", &[LAKE], 1)).await;
    assert_eq!(within(waiting).await.unwrap(), 1);
}

pub(crate) async fn next_is_cancel_safe(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    nothing_comes(&mut lake).await;
    for _ in 0..40 {
        store(&queue, rig.sized("a", &[LAKE], 1, 30_000)).await;
    }
    let one = Limit {
        records: 1,
        bytes: usize::MAX,
    };
    let mut positions = Vec::new();
    for patience in (0..).map(|round| Duration::from_micros(round % 60 * 10)) {
        match timeout(patience, lake.next(one)).await {
            Ok(records) => positions.extend(records.unwrap().into_iter().map(|(position, _)| position.0)),
            Err(_) if positions.len() == 40 => break,
            Err(_) => {}
        }
        if positions.len() == 40 {
            break;
        }
    }
    assert_eq!(positions, (positions[0]..positions[0] + 40).collect::<Vec<_>>());
}

pub(crate) async fn next_keeps_to_its_limit_but_gives_one_record(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for json_bytes in [500, 100, 100, 100] {
        store(&queue, rig.sized("a", &[LAKE], 1, json_bytes)).await;
    }
    let limit = |records, bytes| Limit { records, bytes };
    assert_eq!(
        within(lake.next(limit(10, 250))).await.unwrap().len(),
        1,
        "the large one alone"
    );
    assert_eq!(within(lake.next(limit(10, 250))).await.unwrap().len(), 2);
    assert_eq!(within(lake.next(limit(0, 0))).await.unwrap().len(), 1);
}

pub(crate) async fn consumers_are_independent(rig: Rig) {
    let queue = rig.open().await;
    let (mut lake, mut cdp) = (consumer(&queue, LAKE).await, consumer(&queue, CDP).await);
    let first = store(&queue, rig.entry("a", &[LAKE, CDP], 1)).await;
    let second = store(&queue, rig.entry("a", &[LAKE, CDP], 1)).await;
    take(&mut lake, 2).await;
    commit(&mut lake, second).await;
    let records = take(&mut cdp, 2).await;
    assert_eq!(records[0].0, first);
    assert_eq!(of(&queue.stats(), LAKE).waiting, []);
    assert_eq!(of(&queue.stats(), CDP).waiting, counts("a", 2));
}

pub(crate) async fn a_record_is_given_only_to_its_destinations(rig: Rig) {
    let queue = rig.open().await;
    let (mut lake, mut cdp) = (consumer(&queue, LAKE).await, consumer(&queue, CDP).await);
    store(&queue, rig.entry("a", &[CDP], 1)).await;
    let wanted = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    store(&queue, rig.entry("a", &[], 1)).await;
    assert_eq!(take(&mut lake, 1).await[0].0, wanted);
    nothing_comes(&mut lake).await;
    assert_eq!(take(&mut cdp, 1).await.len(), 1);
    nothing_comes(&mut cdp).await;
}

pub(crate) async fn a_new_consumer_starts_at_the_end(rig: Rig) {
    let queue = rig.open().await;
    store(&queue, rig.entry("a", &["late"], 1)).await;
    let mut late = consumer(&queue, "late").await;
    nothing_comes(&mut late).await;
    let position = store(&queue, rig.entry("a", &["late"], 1)).await;
    assert_eq!(take(&mut late, 1).await[0].0, position);
}

pub(crate) async fn a_configured_destination_gets_what_came_before_its_consumer(rig: Rig) {
    let queue = rig.open().await;
    let position = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 1).await[0].0, position);
}

pub(crate) async fn a_dropped_consumer_gives_back_what_was_not_committed(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for _ in 0..3 {
        store(&queue, rig.entry("a", &[LAKE], 1)).await;
    }
    let records = take(&mut lake, 3).await;
    commit(&mut lake, records[0].0).await;
    drop(lake);
    assert_eq!(of(&queue.stats(), LAKE).waiting, counts("a", 2));
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 2).await, records[1..]);
}

pub(crate) async fn a_name_is_open_only_once(rig: Rig) {
    let queue = rig.open().await;
    let lake = consumer(&queue, LAKE).await;
    let second = within(queue.consumer(LAKE)).await;
    assert!(matches!(second, Err(ConsumeError::Unavailable { .. })));
    drop(lake);
    consumer(&queue, LAKE).await;
}

pub(crate) async fn an_oversized_record_is_refused_alone(mut rig: Rig) {
    rig.settings.max_record_bytes = 10_000;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let (large, small) = (rig.sized("a", &[LAKE], 1, 20_000), rig.entry("a", &[LAKE], 1));
    let (large_again, both) = (large.clone(), tokio::join!(queue.append(large), queue.append(small)));
    assert!(
        matches!(both.0, Err(AppendError::TooLarge { limit: 10_000, .. })),
        "{both:?}"
    );
    assert!(matches!(both.1, Ok(Appended::Stored(_))), "{both:?}");
    assert_eq!(take(&mut lake, 1).await.len(), 1);
    // A refused record is not known as seen.
    assert!(matches!(
        within(queue.append(large_again)).await,
        Err(AppendError::TooLarge { .. })
    ));
}

pub(crate) async fn a_repetition_within_the_window_is_a_duplicate(rig: Rig) {
    let queue = rig.open().await;
    let entry = rig.entry("a", &[LAKE], 1);
    store(&queue, entry.clone()).await;
    rig.pass(Duration::from_secs(299));
    assert_eq!(within(queue.append(entry.clone())).await.unwrap(), Appended::Duplicate);
    rig.pass(Duration::from_secs(1));
    store(&queue, entry).await;
}

pub(crate) async fn a_repetition_at_the_same_moment_is_a_duplicate(rig: Rig) {
    let queue = rig.open().await;
    let entry = rig.entry("a", &[LAKE], 1);
    let outcomes = tokio::join!(
        queue.append(entry.clone()),
        queue.append(entry.clone()),
        queue.append(entry)
    );
    let outcomes = [outcomes.0.unwrap(), outcomes.1.unwrap(), outcomes.2.unwrap()];
    let stored = outcomes.iter().filter(|outcome| matches!(outcome, Appended::Stored(_)));
    assert_eq!(stored.count(), 1, "{outcomes:?}");
}

fn small(rig: &mut Rig) {
    rig.settings.max_bytes = 2 << 20;
    rig.settings.generation_bytes = 100_000;
}

pub(crate) async fn a_full_queue_drops_the_oldest_and_counts_them(mut rig: Rig) {
    small(&mut rig);
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for round in 0..300 {
        let environment = if round % 2 == 0 { "even" } else { "odd" };
        store(&queue, rig.sized(environment, &[LAKE, CDP], 2, 10_000)).await;
    }
    eventually(|| queue.stats().bytes <= 2 << 20).await;
    let stats = queue.stats();
    for name in [LAKE, CDP] {
        let stats = of(&stats, name);
        assert!(sum(&stats.evicted) > 0, "{stats:?}");
        assert!(sum(&stats.waiting) > 0, "{stats:?}");
        assert_eq!(sum(&stats.evicted) + sum(&stats.waiting), 600, "{stats:?}");
        assert_eq!(stats.evicted.len(), 2, "{stats:?}");
        assert_eq!(stats.limits, [("max_bytes", sum(&stats.evicted))], "{stats:?}");
        assert_eq!(stats.corrupt, [], "{stats:?}");
    }
    // Eviction may go on meanwhile, so what waits is asked for anew after each step.
    let mut records = Vec::new();
    within(async {
        while records.len() as u64 * 2 != sum(&of(&queue.stats(), LAKE).waiting) {
            let limit = Limit {
                records: 300,
                bytes: usize::MAX,
            };
            if let Ok(more) = timeout(Duration::from_millis(20), lake.next(limit)).await {
                records.extend(more.expect("next failed"));
            }
        }
    })
    .await;
    assert_eq!(records.last().unwrap().0.0 - records[0].0.0 + 1, records.len() as u64);
    commit(&mut lake, records.last().unwrap().0).await;
    assert_eq!(of(&queue.stats(), LAKE).waiting, []);
}

pub(crate) async fn what_waits_since_when_is_right_after_an_eviction(mut rig: Rig) {
    small(&mut rig);
    let queue = rig.open().await;
    let started = rig.now_ms();
    for _ in 0..300 {
        store(&queue, rig.sized("a", &[LAKE], 2, 10_000)).await;
        rig.pass(Duration::from_secs(1));
    }
    eventually(|| queue.stats().bytes <= 2 << 20).await;
    // Nobody reads it, as of a destination that is paused.
    let lake = of(&queue.stats(), LAKE);
    let first = 300 - sum(&lake.waiting) / 2;
    assert!(first > 0);
    let received = started + first * 1000;
    let shown = lake.oldest_waiting_ms.unwrap();
    assert!((received - 1000..=received).contains(&shown), "{shown}, not {received}");
}

pub(crate) async fn who_keeps_up_loses_nothing_to_who_lags(mut rig: Rig) {
    rig.settings.max_bytes = 12 << 20;
    let queue = rig.open().await;
    let (mut lake, mut cdp) = (consumer(&queue, LAKE).await, consumer(&queue, CDP).await);
    let mut most = 0;
    for round in 0..900 {
        store(&queue, rig.sized("a", &[LAKE, CDP], 1, 20_000)).await;
        if round % 3 == 2 {
            let records = take(&mut lake, 3).await;
            commit(&mut lake, records[2].0).await;
        }
        // What fails is noted again and again, which takes space too.
        cdp.commit(None, &[round as u8; 8000]).await.unwrap();
        most = most.max(queue.stats().bytes);
    }
    let stats = queue.stats();
    assert_eq!(of(&stats, LAKE).evicted, [], "{stats:?}");
    assert_eq!(of(&stats, LAKE).waiting, [], "{stats:?}");
    let lagging = of(&stats, CDP);
    assert!(sum(&lagging.evicted) > 0, "{stats:?}");
    assert_eq!(sum(&lagging.evicted) + sum(&lagging.waiting), 900, "{stats:?}");
    // An eviction takes a small part, and the limit is kept but for one round and what is closed just then.
    assert!(sum(&lagging.waiting) > 60, "{stats:?}");
    assert!(most < 14 << 20, "{most}");
}

pub(crate) async fn what_was_returned_is_not_counted_as_evicted(mut rig: Rig) {
    small(&mut rig);
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let first = store(&queue, rig.entry("a", &[LAKE], 5)).await;
    take(&mut lake, 1).await;
    for _ in 0..300 {
        store(&queue, rig.sized("a", &[LAKE], 1, 20_000)).await;
    }
    eventually(|| queue.stats().bytes <= 2 << 20).await;
    let stats = of(&queue.stats(), LAKE);
    assert!(sum(&stats.evicted) > 0);
    assert_eq!(sum(&stats.evicted) + sum(&stats.waiting), 305);
    commit(&mut lake, first).await;
    let after = of(&queue.stats(), LAKE);
    // Eviction may go on meanwhile; it takes from what waits, never from what was delivered.
    assert_eq!(sum(&after.evicted) + sum(&after.waiting), 300, "delivered, not evicted");
}

pub(crate) async fn a_full_queue_refuses_the_newest_if_told_so(mut rig: Rig) {
    small(&mut rig);
    rig.settings.max_bytes = 8 << 20;
    rig.settings.when_full = WhenFull::DropNewest;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let mut stored = Vec::new();
    let refused = loop {
        let entry = rig.sized("a", &[LAKE], 1, 20_000);
        match within(queue.append(entry.clone())).await {
            Ok(Appended::Stored(position)) => stored.push(position),
            Ok(Appended::Duplicate) => panic!("a new record was taken for a duplicate"),
            Err(error) => break (error, entry),
        }
    };
    assert!(matches!(refused.0, AppendError::Full { .. }), "{refused:?}");
    let records = take(&mut lake, stored.len()).await;
    assert_eq!(of(&queue.stats(), LAKE).evicted, []);
    commit(&mut lake, records[stored.len() - 1].0).await;
    within(async {
        // Space comes back, and the refused record was not taken for seen.
        while !matches!(queue.append(refused.1.clone()).await, Ok(Appended::Stored(_))) {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

pub(crate) async fn records_over_the_age_are_evicted(mut rig: Rig) {
    rig.settings.max_age = Duration::from_secs(1000);
    let queue = rig.open().await;
    store(&queue, rig.entry("a", &[LAKE], 3)).await;
    rig.pass(Duration::from_secs(1001));
    eventually(|| of(&queue.stats(), LAKE).evicted == counts("a", 3)).await;
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((stats.waiting, stats.oldest_waiting_ms), (vec![], None));
    assert_eq!(stats.limits, [("max_age", 3)]);
    let position = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 1).await[0].0, position);
}

pub(crate) async fn space_returns_after_commit(mut rig: Rig) {
    rig.settings.generation_bytes = 200_000;
    let queue = rig.open().await;
    let (mut lake, mut cdp) = (consumer(&queue, LAKE).await, consumer(&queue, CDP).await);
    for _ in 0..60 {
        store(&queue, rig.sized("a", &[LAKE, CDP], 1, 20_000)).await;
    }
    let full = queue.stats().bytes;
    assert!(full > 60 * 20_000, "{full}");
    let last = take(&mut lake, 60).await[59].0;
    commit(&mut lake, last).await;
    take(&mut cdp, 60).await;
    commit(&mut cdp, last).await;
    eventually(|| queue.stats().bytes < full / 4).await;
}

pub(crate) async fn a_destination_without_records_holds_nothing_back(mut rig: Rig) {
    rig.settings.generation_bytes = 200_000;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for _ in 0..60 {
        store(&queue, rig.sized("a", &[LAKE], 1, 20_000)).await;
    }
    let full = queue.stats().bytes;
    let last = take(&mut lake, 60).await[59].0;
    commit(&mut lake, last).await;
    eventually(|| queue.stats().bytes < full / 4).await;
    assert_eq!(of(&queue.stats(), CDP).evicted, []);
}

pub(crate) async fn the_note_is_kept_with_and_without_a_position(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(lake.note(), b"");
    let position = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    take(&mut lake, 1).await;
    let note = vec![9; 64 << 10];
    within(lake.commit(None, &note)).await.unwrap();
    assert_eq!(lake.note(), note);
    assert_eq!(
        of(&queue.stats(), LAKE).waiting,
        counts("a", 1),
        "the position did not move"
    );
    within(lake.commit(Some(position), b"done")).await.unwrap();
    drop(lake);
    assert_eq!(consumer(&queue, LAKE).await.note(), b"done");
}

pub(crate) async fn waiting_counts_what_is_not_settled(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let received = rig.now_ms();
    store(&queue, rig.entry("a", &[LAKE], 2)).await;
    rig.pass(Duration::from_secs(5));
    store(&queue, rig.entry("b", &[LAKE], 3)).await;
    let stats = || of(&queue.stats(), LAKE);
    assert_eq!(stats().waiting, [("a".to_owned(), 2), ("b".to_owned(), 3)]);
    assert_eq!(stats().queued, stats().waiting);
    assert_eq!(stats().oldest_waiting_ms, Some(received));
    let records = take(&mut lake, 2).await;
    assert_eq!(stats().waiting, [("a".to_owned(), 2), ("b".to_owned(), 3)]);
    commit(&mut lake, records[0].0).await;
    assert_eq!(stats().waiting, counts("b", 3));
    assert_eq!(stats().oldest_waiting_ms, Some(received + 5000));
    commit(&mut lake, records[1].0).await;
    assert_eq!((stats().waiting, stats().oldest_waiting_ms), (vec![], None));
    assert_eq!(sum(&stats().queued), 5);
}

pub(crate) async fn a_destination_configured_later_gets_what_comes_from_then_on(rig: Rig) {
    let queue = rig.open().await;
    store(&queue, rig.entry("a", &[LAKE, "late"], 1)).await;
    let names = [LAKE, CDP, "late"].map(str::to_owned);
    within(queue.configure(&names)).await.unwrap();
    let position = store(&queue, rig.entry("a", &[LAKE, "late"], 1)).await;
    assert!(of(&queue.stats(), "late").attached);
    let mut late = consumer(&queue, "late").await;
    assert_eq!(take(&mut late, 1).await[0].0, position);
}

pub(crate) async fn a_destination_that_left_keeps_its_cursor(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let first = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    let waiting = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    take(&mut lake, 2).await;
    commit(&mut lake, first).await;
    within(queue.configure(&[CDP.to_owned()])).await.unwrap();
    assert!(of(&queue.stats(), LAKE).attached, "its consumer is open");
    drop(lake);
    let left = of(&queue.stats(), LAKE);
    assert!(!left.attached);
    assert_eq!(left.waiting, counts("a", 1));
    within(queue.configure(&[LAKE.to_owned(), CDP.to_owned()]))
        .await
        .unwrap();
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 1).await[0].0, waiting);
}

pub(crate) async fn a_cursor_in_use_is_not_removed(rig: Rig) {
    let queue = rig.open().await;
    let guest = consumer(&queue, "guest").await;
    assert!(within(queue.remove_cursor("guest")).await.is_err(), "open");
    assert!(within(queue.remove_cursor(LAKE)).await.is_err(), "configured");
    assert!(within(queue.remove_cursor("stranger")).await.is_err(), "unknown");
    drop(guest);
    within(queue.remove_cursor("guest")).await.unwrap();
    assert!(queue.stats().consumers.iter().all(|consumer| consumer.name != "guest"));
}

pub(crate) async fn a_closed_queue_refuses(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let mut cdp = consumer(&queue, CDP).await;
    let waiting = tokio::spawn(async move { cdp.next(ALL).await });
    within(queue.close()).await;
    assert!(matches!(within(waiting).await.unwrap(), Err(ConsumeError::Closed)));
    assert!(matches!(within(lake.next(ALL)).await, Err(ConsumeError::Closed)));
    assert!(within(lake.commit(None, b"")).await.is_err());
    let refused = within(queue.append(rig.entry("a", &[LAKE], 1))).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })));
    assert!(queue.stats().unavailable.is_some());
    within(queue.close()).await;
}
