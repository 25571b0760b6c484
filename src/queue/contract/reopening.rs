//! What engines with a disk promise across a reopening.

use std::time::Duration;

use super::*;

pub(crate) async fn what_was_stored_is_there_after_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let entries: Vec<Entry> = [20, 100_000, 5]
        .map(|json_bytes| rig.sized("a", &[LAKE], 2, json_bytes))
        .to_vec();
    for entry in &entries {
        store(&queue, entry.clone()).await;
    }
    queue = rig.reopen(queue).await;
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, 3).await;
    assert!(
        records
            .iter()
            .map(|(_, record)| record)
            .eq(entries.iter().map(|entry| &entry.record))
    );
}

pub(crate) async fn the_uncommitted_is_redelivered_after_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for _ in 0..5 {
        store(&queue, rig.entry("a", &[LAKE], 1)).await;
    }
    let records = take(&mut lake, 5).await;
    commit(&mut lake, records[1].0).await;
    drop(lake);
    queue = rig.reopen(queue).await;
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 3).await, records[2..]);
}

pub(crate) async fn the_committed_is_never_redelivered(mut rig: Rig) {
    rig.settings.generation_bytes = 100_000;
    let mut queue = rig.open().await;
    for round in 0..4 {
        let mut lake = consumer(&queue, LAKE).await;
        for _ in 0..9 {
            store(&queue, rig.sized("a", &[LAKE, CDP], 1, 15_000)).await;
        }
        let records = take(&mut lake, 9).await;
        assert!(records.is_sorted_by_key(|(position, _)| *position), "round {round}");
        commit(&mut lake, records[8].0).await;
        drop(lake);
        queue = rig.reopen(queue).await;
        let mut lake = consumer(&queue, LAKE).await;
        nothing_comes(&mut lake).await;
    }
}

pub(crate) async fn stats_equal_the_contents_after_reopening(mut rig: Rig) {
    rig.settings.generation_bytes = 100_000;
    let mut queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let received = rig.now_ms();
    for round in 0..30 {
        rig.pass(Duration::from_secs(1));
        let environment = if round % 3 == 0 { "a" } else { "b" };
        store(&queue, rig.sized(environment, &[LAKE, CDP], 2, 10_000)).await;
    }
    let records = take(&mut lake, 20).await;
    commit(&mut lake, records[9].0).await;
    let before = queue.stats();
    drop(lake);
    queue = rig.reopen(queue).await;
    let after = queue.stats();
    for (name, oldest_ms) in [(LAKE, received + 11_000), (CDP, received + 1000)] {
        assert_eq!(of(&after, name).waiting, of(&before, name).waiting);
        assert_eq!(of(&after, name).oldest_waiting_ms, Some(oldest_ms), "{name}");
    }
    assert_eq!(sum(&of(&after, LAKE).waiting), 40);
}

pub(crate) async fn recovered_is_what_waited_at_the_open(rig: Rig) {
    let mut queue = rig.open().await;
    store(&queue, rig.entry("a", &[LAKE], 4)).await;
    assert_eq!(of(&queue.stats(), LAKE).recovered, []);
    queue = rig.reopen(queue).await;
    store(&queue, rig.entry("a", &[LAKE], 1)).await;
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((stats.recovered, stats.queued), (counts("a", 4), counts("a", 1)));
    assert_eq!(stats.waiting, counts("a", 5));
}

pub(crate) async fn positions_go_on_after_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let first = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    queue = rig.reopen(queue).await;
    assert_eq!(store(&queue, rig.entry("a", &[LAKE], 1)).await.0, first.0 + 1);
}

pub(crate) async fn a_smaller_cap_still_opens(mut rig: Rig) {
    rig.settings.generation_bytes = 100_000;
    let queue = rig.open().await;
    for _ in 0..400 {
        store(&queue, rig.sized("a", &[LAKE], 1, 30_000)).await;
    }
    queue.close().await;
    drop(queue);
    rig.settings.max_bytes = 8 << 20;
    let queue = rig.open().await;
    eventually(|| queue.stats().bytes <= 8 << 20).await;
    let stats = of(&queue.stats(), LAKE);
    assert!(sum(&stats.evicted) > 0 && sum(&stats.waiting) > 0, "{stats:?}");
    assert_eq!(sum(&stats.evicted) + sum(&stats.waiting), sum(&stats.recovered));
    store(&queue, rig.entry("a", &[LAKE], 1)).await;
}

pub(crate) async fn a_repetition_is_a_duplicate_after_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let entry = rig.entry("a", &[LAKE], 1);
    store(&queue, entry.clone()).await;
    queue = rig.reopen(queue).await;
    assert_eq!(within(queue.append(entry.clone())).await.unwrap(), Appended::Duplicate);
    rig.pass(Duration::from_secs(301));
    store(&queue, entry).await;
}

pub(crate) async fn a_repetition_is_a_duplicate_after_rotation(mut rig: Rig) {
    rig.settings.generation_bytes = 50_000;
    let mut queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let entry = rig.entry("a", &[LAKE], 1);
    store(&queue, entry.clone()).await;
    for _ in 0..20 {
        let position = store(&queue, rig.sized("a", &[LAKE], 1, 20_000)).await;
        commit_all(&mut lake, position).await;
    }
    assert_eq!(within(queue.append(entry.clone())).await.unwrap(), Appended::Duplicate);
    drop(lake);
    queue = rig.reopen(queue).await;
    assert_eq!(within(queue.append(entry)).await.unwrap(), Appended::Duplicate);
}

pub(crate) async fn the_note_survives_reopening_and_rotation(mut rig: Rig) {
    rig.settings.generation_bytes = 50_000;
    let mut queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for note in [vec![1; 64 << 10], vec![2; 50_000], b"short".to_vec(), vec![]] {
        within(lake.commit(None, &note)).await.unwrap();
        for _ in 0..4 {
            store(&queue, rig.sized("a", &[CDP], 1, 20_000)).await;
        }
        drop(lake);
        queue = rig.reopen(queue).await;
        lake = consumer(&queue, LAKE).await;
        assert_eq!(lake.note(), note);
    }
}

pub(crate) async fn dead_letters_survive_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    within(lake.bury(vec![letter(Position(3), 1), letter(Position(4), 0)]))
        .await
        .unwrap();
    within(queue.remove_dead_letters(LAKE, &[(Position(3), 1)]))
        .await
        .unwrap();
    drop(lake);
    queue = rig.reopen(queue).await;
    assert_eq!(queue.stats().dead_letters, [(LAKE.to_owned(), 1)]);
    assert_eq!(
        within(queue.dead_letters(LAKE, 5)).await.unwrap(),
        [letter(Position(4), 0)]
    );
}

pub(crate) async fn a_cursor_without_a_destination_is_listed_and_kept(mut rig: Rig) {
    let mut queue = rig.open().await;
    let position = store(&queue, rig.entry("a", &[LAKE, CDP], 2)).await;
    rig.destinations = vec![LAKE.to_owned()];
    queue = rig.reopen(queue).await;
    let stats = of(&queue.stats(), CDP);
    assert!(!stats.attached);
    assert!(of(&queue.stats(), LAKE).attached);
    assert_eq!(stats.waiting, counts("a", 2));
    rig.destinations.push(CDP.to_owned());
    queue = rig.reopen(queue).await;
    assert!(of(&queue.stats(), CDP).attached);
    let mut cdp = consumer(&queue, CDP).await;
    assert_eq!(take(&mut cdp, 1).await[0].0, position);
}

pub(crate) async fn an_unconfigured_cursor_can_be_removed(mut rig: Rig) {
    let mut queue = rig.open().await;
    store(&queue, rig.entry("a", &[CDP], 2)).await;
    rig.destinations = vec![LAKE.to_owned()];
    queue = rig.reopen(queue).await;
    within(queue.remove_cursor(CDP)).await.unwrap();
    queue = rig.reopen(queue).await;
    assert!(queue.stats().consumers.iter().all(|consumer| consumer.name != CDP));
}

async fn commit_all(consumer: &mut Box<dyn Consumer>, last: Position) {
    loop {
        let records = within(consumer.next(ALL)).await.unwrap();
        let position = records.last().unwrap().0;
        commit(consumer, position).await;
        if position == last {
            return;
        }
    }
}

pub(crate) async fn what_was_requeued_is_there_after_reopening(rig: Rig) {
    let mut queue = rig.open().await;
    let entry = rig.entry("a", &[LAKE], 1);
    let position = store(&queue, entry.clone()).await;
    let mut lake = consumer(&queue, LAKE).await;
    take(&mut lake, 1).await;
    let dead = DeadLetter {
        record: entry.record.clone(),
        ..letter(position, 0)
    };
    within(lake.bury(vec![dead.clone()])).await.unwrap();
    commit(&mut lake, position).await;
    drop(lake);
    queue = rig.reopen(queue).await;
    within(queue.requeue_dead_letters(LAKE, &keys(&[dead]))).await.unwrap();
    queue = rig.reopen(queue).await;
    assert_eq!(queue.stats().dead_letters, []);
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((stats.recovered, stats.requeued), (counts("a", 1), vec![]));
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 1).await[0].1, entry.record);
}

pub(crate) async fn restarts_alone_evict_nothing(mut rig: Rig) {
    rig.settings.max_bytes = 16 << 20;
    let mut queue = rig.open().await;
    for _ in 0..5 {
        store(&queue, rig.sized("a", &[LAKE, CDP], 5, 1000)).await;
        // Somebody reads, which opens what is there once more.
        take(&mut consumer(&queue, CDP).await, 1).await;
        // An open looks at the limits.
        queue = rig.reopen(queue).await;
    }
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((sum(&stats.waiting), stats.evicted), (25, vec![]));
}

pub(crate) async fn what_was_evicted_is_not_counted_again_after_reopening(mut rig: Rig) {
    rig.settings.max_bytes = 8 << 20;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    store(&queue, rig.entry("a", &[LAKE], 5)).await;
    // Held by its reader all the time, so that the cursor stays before what goes.
    take(&mut lake, 1).await;
    for _ in 0..500 {
        store(&queue, rig.sized("a", &[LAKE], 1, 30_000)).await;
    }
    // More do not fit, so that nothing goes from here on.
    eventually(|| queue.stats().parts.len() <= 3).await;
    let before = of(&queue.stats(), LAKE);
    assert!(sum(&before.evicted) > 100, "{before:?}");
    assert_eq!(sum(&before.evicted) + sum(&before.waiting), 505);
    drop(lake);
    let queue = rig.reopen(queue).await;
    let after = of(&queue.stats(), LAKE);
    // The five were only in memory, behind the part that went.
    assert_eq!(sum(&after.evicted), 5, "{after:?}");
    assert_eq!(sum(&after.recovered), sum(&after.waiting) + 5);
    assert_eq!(sum(&after.waiting) + 5, sum(&before.waiting));
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, sum(&after.waiting) as usize).await;
    commit(&mut lake, records.last().unwrap().0).await;
    let done = of(&queue.stats(), LAKE);
    assert_eq!((done.waiting, sum(&done.evicted)), (vec![], 5));
}

pub(crate) async fn letters_that_find_no_room_stay_where_they_are(mut rig: Rig) {
    rig.settings.max_bytes = 8 << 20;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let first = store(&queue, rig.entry("a", &[LAKE], 3)).await;
    take(&mut lake, 1).await;
    let letters: Vec<DeadLetter> = (0..3).map(|index| letter(first, index)).collect();
    within(lake.bury(letters.clone())).await.unwrap();
    commit(&mut lake, first).await;
    let mut last = first;
    while queue.stats().bytes < 5 << 20 {
        last = store(&queue, rig.sized("a", &[LAKE], 1, 30_000)).await;
    }
    let refused = within(queue.requeue_dead_letters(LAKE, &keys(&letters)))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("no room"), "{refused}");
    let stats = queue.stats();
    assert_eq!(stats.dead_letters, [(LAKE.to_owned(), 3)]);
    assert_eq!(of(&stats, LAKE).evicted, []);
    let count = last.0 - first.0;
    let records = take(&mut lake, count as usize).await;
    commit(&mut lake, records.last().unwrap().0).await;
    eventually(|| queue.stats().bytes < 4 << 20).await;
    let requeued = within(queue.requeue_dead_letters(LAKE, &keys(&letters))).await.unwrap();
    assert_eq!(requeued, 3);
}
