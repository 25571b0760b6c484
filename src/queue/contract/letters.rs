//! What every engine promises of dead letters.

use std::time::Duration;

use super::*;
use crate::queue::ConsumeError;
use crate::record::Record;

pub(crate) async fn dead_letters_are_kept_until_removed(rig: Rig) {
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let letters = vec![letter(Position(1), 0), letter(Position(1), 4), letter(Position(2), 0)];
    within(lake.bury(letters.clone())).await.unwrap();
    assert_eq!(queue.stats().dead_letters, [(LAKE.to_owned(), 3)]);
    assert_eq!(within(queue.dead_letters(LAKE, 10)).await.unwrap(), letters);
    assert_eq!(within(queue.dead_letters(LAKE, 2)).await.unwrap(), letters[..2]);
    assert_eq!(within(queue.dead_letters(CDP, 10)).await.unwrap(), []);
    within(queue.remove_dead_letters(LAKE, &[(Position(1), 4)]))
        .await
        .unwrap();
    within(lake.bury(vec![letter(Position(9), 9)])).await.unwrap();
    let left = [letters[0].clone(), letters[2].clone(), letter(Position(9), 9)];
    assert_eq!(within(queue.dead_letters(LAKE, 10)).await.unwrap(), left);
    assert_eq!(queue.stats().dead_letters, [(LAKE.to_owned(), 3)]);
}

/// Buries one letter per index of a stored record, and settles the record.
async fn bury(queue: &Arc<dyn Queue>, rig: &Rig, count: u32) -> (Vec<DeadLetter>, Entry) {
    let entry = rig.entry("a", &[LAKE, CDP], count);
    let position = store(queue, entry.clone()).await;
    let mut lake = consumer(queue, LAKE).await;
    take(&mut lake, 1).await;
    let letters: Vec<DeadLetter> = (entry.record.events.iter())
        .map(|event| DeadLetter {
            index: event.index,
            record: Record {
                events: vec![event.clone()],
                ..entry.record.clone()
            },
            ..letter(position, event.index)
        })
        .collect();
    within(lake.bury(letters.clone())).await.unwrap();
    commit(&mut lake, position).await;
    (letters, entry)
}

pub(crate) fn keys(letters: &[DeadLetter]) -> Vec<(Position, u32)> {
    letters.iter().map(|letter| (letter.position, letter.index)).collect()
}

pub(crate) async fn dead_letters_are_found_by_what_they_are(rig: Rig) {
    let queue = rig.open().await;
    let (letters, _) = bury(&queue, &rig, 5).await;
    let find = |limit, wanted| within(queue.find_dead_letters(LAKE, limit, wanted));
    assert_eq!(
        find(9, Arc::new(|letter: &DeadLetter| letter.transient)).await.unwrap(),
        [letters[1].clone(), letters[3].clone()]
    );
    assert_eq!(
        find(1, Arc::new(|letter: &DeadLetter| letter.index > 1)).await.unwrap(),
        letters[2..3]
    );
}

pub(crate) async fn a_requeued_dead_letter_is_delivered_again_with_its_id(rig: Rig) {
    let queue = rig.open().await;
    let (letters, entry) = bury(&queue, &rig, 3).await;
    let wanted = keys(&letters[1..]);
    assert_eq!(within(queue.requeue_dead_letters(LAKE, &wanted)).await.unwrap(), 2);
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, 2).await;
    for ((position, record), letter) in records.iter().zip(&letters[1..]) {
        assert!(*position > letter.position);
        assert_eq!(record.destinations, [LAKE]);
        assert_eq!(record.id_seed, entry.record.id_seed);
        assert_eq!(record.received_ms, entry.record.received_ms);
        assert_eq!(record.events, letter.record.events);
    }
    assert_eq!(within(queue.dead_letters(LAKE, 9)).await.unwrap(), letters[..1]);
    let mut cdp = consumer(&queue, CDP).await;
    assert_eq!(take(&mut cdp, 1).await[0].1, entry.record);
    nothing_comes(&mut cdp).await;
}

pub(crate) async fn a_requeued_dead_letter_is_counted_apart(rig: Rig) {
    let queue = rig.open().await;
    let (letters, _) = bury(&queue, &rig, 3).await;
    within(queue.requeue_dead_letters(LAKE, &keys(&letters))).await.unwrap();
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((&stats.queued, &stats.requeued), (&counts("a", 3), &counts("a", 3)));
    assert_eq!(stats.waiting, counts("a", 3));
    assert_eq!(queue.stats().dead_letters, []);
    assert_eq!(of(&queue.stats(), CDP).requeued, []);
    let mut lake = consumer(&queue, LAKE).await;
    let last = take(&mut lake, 3).await[2].0;
    commit(&mut lake, last).await;
    assert_eq!(of(&queue.stats(), LAKE).waiting, []);
}

pub(crate) async fn requeueing_what_is_not_there_does_nothing(rig: Rig) {
    let queue = rig.open().await;
    let (letters, _) = bury(&queue, &rig, 1).await;
    let others = [(letters[0].position, 7), (Position(900), 0)];
    assert_eq!(within(queue.requeue_dead_letters(LAKE, &others)).await.unwrap(), 0);
    assert_eq!(
        within(queue.requeue_dead_letters(CDP, &keys(&letters))).await.unwrap(),
        0
    );
    let unknown = within(queue.requeue_dead_letters("unknown", &keys(&letters))).await;
    assert!(matches!(unknown, Err(ConsumeError::Unavailable { .. })));
    assert_eq!(
        within(queue.requeue_dead_letters(LAKE, &keys(&letters))).await.unwrap(),
        1
    );
    assert_eq!(
        within(queue.requeue_dead_letters(LAKE, &keys(&letters))).await.unwrap(),
        0
    );
    let mut lake = consumer(&queue, LAKE).await;
    take(&mut lake, 1).await;
    nothing_comes(&mut lake).await;
}

pub(crate) async fn a_letter_that_is_requeued_twice_at_once_is_delivered_once(rig: Rig) {
    let queue = rig.open().await;
    let (letters, _) = bury(&queue, &rig, 20).await;
    let keys = keys(&letters);
    let (all, half) = tokio::join!(
        queue.requeue_dead_letters(LAKE, &keys),
        queue.requeue_dead_letters(LAKE, &keys[..10])
    );
    assert_eq!(all.unwrap() + half.unwrap(), 20);
    let mut lake = consumer(&queue, LAKE).await;
    take(&mut lake, 20).await;
    nothing_comes(&mut lake).await;
    assert_eq!(queue.stats().dead_letters, []);
}

pub(crate) async fn a_requeued_dead_letter_is_not_too_old_at_once(mut rig: Rig) {
    rig.settings.max_age = Duration::from_secs(1000);
    let queue = rig.open().await;
    let (letters, _) = bury(&queue, &rig, 1).await;
    rig.pass(Duration::from_secs(5000));
    within(queue.requeue_dead_letters(LAKE, &keys(&letters))).await.unwrap();
    // An eighth of the age later an engine on disk begins a part, having looked for what is too old; one in memory looks
    // with every call.
    rig.pass(Duration::from_secs(200));
    eventually(|| queue.stats().parts.len() != 1).await;
    assert_eq!(of(&queue.stats(), LAKE).evicted, []);
    let mut lake = consumer(&queue, LAKE).await;
    assert_eq!(take(&mut lake, 1).await[0].1.events, letters[0].record.events);
}
