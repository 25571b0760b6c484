//! Random operations against a model that is too simple to be wrong.
//!
//! The model is two lists of records, a note and a list of dead letters per destination. Whatever is asked of the engine
//! is asked of the model, and what both say is compared after every step. Steps that lose records by a limit are in a
//! model of their own, in which every event has to be delivered or counted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::env;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use super::*;

const NAMES: [&str; 2] = [LAKE, CDP];

/// Cases of each test in `make test`; `FLAGTAP_MODEL_CASES` says how many otherwise.
const CASES: u32 = 350;

#[derive(Clone, Debug)]
enum Step {
    /// To destinations by bit mask, with this many events of this size.
    Append(u8, u32, usize),
    /// The same batch as the last, as an SDK's retry.
    Repeat,
    /// Up to this many records.
    Next(usize, usize),
    /// The n-th of the records that were returned and not settled, with a note of this size.
    Commit(usize, usize, usize),
    /// A note alone: retry state.
    Park(usize, usize),
    /// The oldest record that was returned, as a dead letter; it is settled by a later commit.
    Bury(usize),
    /// The n-th dead letter, as after a replay.
    RemoveLetter(usize, usize),
    /// The n-th dead letter, to be delivered after all.
    Requeue(usize, usize),
    Reattach(usize),
    Reopen,
    /// The directory as it is at this moment, without a close.
    Crash,
    /// The clock goes on; nothing is as old as `max_age` yet.
    Pass(u64),
}

#[derive(Default)]
struct Model {
    waiting: Vec<(Position, Record)>,
    returned: usize,
    note: Vec<u8>,
    letters: Vec<DeadLetter>,
}

pub(crate) async fn does_what_the_model_does(rig: Rig) {
    run(rig, false, steps(false), check);
}

pub(crate) async fn does_what_the_model_does_across_reopens(rig: Rig) {
    run(rig, true, steps(true), check);
}

pub(crate) async fn loses_to_its_limits_only_what_it_counts(rig: Rig) {
    run(rig, false, squeezes(false), squeeze);
}

pub(crate) async fn loses_to_its_limits_only_what_it_counts_across_reopens(rig: Rig) {
    run(rig, true, squeezes(true), squeeze);
}

fn steps(durable: bool) -> BoxedStrategy<Vec<Step>> {
    let name = 0_usize..2;
    // A record over 48,000 bytes is stored in pieces.
    let bytes = prop_oneof![5 => 1_usize..100, 4 => 2_000_usize..8_000, 1 => 49_000_usize..60_000];
    let note = prop_oneof![0_usize..40, 40_000_usize..65_000];
    let step = prop_oneof![
        6 => (1_u8..4, 1_u32..4, bytes).prop_map(|(to, events, bytes)| Step::Append(to, events, bytes)),
        1 => Just(Step::Repeat),
        3 => (name.clone(), 1_usize..6).prop_map(|(name, records)| Step::Next(name, records)),
        2 => (name.clone(), 0_usize..6, note.clone()).prop_map(|(name, place, note)| Step::Commit(name, place, note)),
        1 => (name.clone(), note).prop_map(|(name, note)| Step::Park(name, note)),
        1 => name.clone().prop_map(Step::Bury),
        1 => (name.clone(), 0_usize..3).prop_map(|(name, letter)| Step::RemoveLetter(name, letter)),
        1 => (name.clone(), 0_usize..3).prop_map(|(name, letter)| Step::Requeue(name, letter)),
        1 => name.prop_map(Step::Reattach),
        1 => (1_u64..200).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(move |crash| ending(durable, crash)),
    ];
    vec(step, 1..40).boxed()
}

/// The end of a life, or for an engine without a disk the end of a consumer's.
fn ending(durable: bool, crash: bool) -> Step {
    match (durable, crash) {
        (true, true) => Step::Crash,
        (true, false) => Step::Reopen,
        (false, crash) => Step::Reattach(usize::from(crash)),
    }
}

/// Runs a case per list of steps. What failed once is kept in `src/queue/contract/regressions` and tried first.
fn run<F>(rig: Rig, durable: bool, steps: BoxedStrategy<Vec<Step>>, check: F)
where
    F: AsyncFn(&mut Rig, &[Step]),
{
    let mut rig = rig.in_memory();
    rig.settings.generation_bytes = 30_000;
    let cases = env::var("FLAGTAP_MODEL_CASES").ok().and_then(|text| text.parse().ok());
    let mut config = Config::with_cases(cases.unwrap_or(CASES));
    config.source_file = Some(file!());
    config.failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")));
    config.max_shrink_iters = 500;
    let started = Instant::now();
    let rig = std::cell::RefCell::new((rig, 0));
    let outcome = TestRunner::new(config.clone()).run(&steps, |steps| {
        let (rig, number) = &mut *rig.borrow_mut();
        *number += 1;
        let folder = rig.directory.path().join(format!("case-{number}"));
        rig.settings.path = folder.join("queue");
        let case = AssertUnwindSafe(check(rig, &steps)).catch_unwind();
        let ended = block_in_place(|| Handle::current().block_on(case));
        let _ = fs::remove_dir_all(folder);
        ended.map_err(|_| TestCaseError::fail("see the panic above"))
    });
    eprintln!("{} cases (durable: {durable}) in {:?}", config.cases, started.elapsed());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn check(rig: &mut Rig, steps: &[Step]) {
    let mut queue = rig.open().await;
    let mut models = [Model::default(), Model::default()];
    let mut consumers: BTreeMap<usize, Box<dyn Consumer>> = BTreeMap::new();
    let mut last: Option<Entry> = None;
    let mut tail = 0;
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Append(to, events, bytes) => {
                let entry = rig.sized("a", &addressed(to), events, bytes);
                let position = store(&queue, entry.clone()).await;
                for (index, model) in models.iter_mut().enumerate() {
                    if to & (1 << index) != 0 {
                        model.waiting.push((position, entry.record.clone()));
                    }
                }
                last = Some(entry);
                tail = position.0 + 1;
            }
            Step::Repeat => {
                if let Some(entry) = last.clone() {
                    assert_eq!(within(queue.append(entry)).await.unwrap(), Appended::Duplicate);
                }
            }
            Step::Next(index, records) => {
                attach(&queue, &mut consumers, index).await;
                let model = &mut models[index];
                let expected = &model.waiting[model.returned..];
                let count = records.min(expected.len());
                let reader = consumers.get_mut(&index).unwrap();
                assert_eq!(reader.note(), model.note);
                assert_eq!(take(reader, count).await, expected[..count], "{steps:?}");
                model.returned += count;
            }
            Step::Commit(index, place, bytes) => {
                let model = &mut models[index];
                if place < model.returned {
                    model.note = note(number, bytes);
                    let reader = consumers.get_mut(&index).unwrap();
                    let position = model.waiting[place].0;
                    within(reader.commit(Some(position), &model.note)).await.unwrap();
                    model.waiting.drain(..=place);
                    model.returned -= place + 1;
                }
            }
            Step::Park(index, bytes) => {
                attach(&queue, &mut consumers, index).await;
                let model = &mut models[index];
                model.note = note(number, bytes);
                let reader = consumers.get_mut(&index).unwrap();
                within(reader.commit(None, &model.note)).await.unwrap();
            }
            Step::Bury(index) => {
                let model = &mut models[index];
                if model.returned > 0 {
                    let buried = letter(model.waiting[0].0, number as u32);
                    let reader = consumers.get_mut(&index).unwrap();
                    within(reader.bury(vec![buried.clone()])).await.unwrap();
                    model.letters.push(buried);
                }
            }
            Step::RemoveLetter(index, place) => {
                let model = &mut models[index];
                if place < model.letters.len() {
                    let removed = model.letters.remove(place);
                    let key = [(removed.position, removed.index)];
                    within(queue.remove_dead_letters(NAMES[index], &key)).await.unwrap();
                }
            }
            Step::Requeue(index, place) => {
                let (model, name) = (&mut models[index], NAMES[index]);
                if place < model.letters.len() {
                    let letter = model.letters.remove(place);
                    let key = [(letter.position, letter.index)];
                    assert_eq!(within(queue.requeue_dead_letters(name, &key)).await.unwrap(), 1);
                    let mut record = letter.record;
                    record.destinations = vec![name.to_owned()];
                    model.waiting.push((Position(tail), record));
                    tail += 1;
                }
            }
            Step::Reattach(index) => {
                consumers.remove(&index);
                models[index].returned = 0;
            }
            Step::Reopen | Step::Crash => {
                consumers.clear();
                models.iter_mut().for_each(|model| model.returned = 0);
                if matches!(step, Step::Crash) {
                    // What lies there while nothing is asked is what a kill leaves.
                    let copy = rig.path().with_file_name(format!("crash-{number}"));
                    copy_directory(rig.path(), &copy);
                    queue.close().await;
                    rig.settings.path = copy;
                    queue = rig.open().await;
                } else {
                    queue = rig.reopen(queue).await;
                }
            }
            Step::Pass(seconds) => {
                // The window of a mark is five minutes.
                if seconds > 100 {
                    last = None;
                }
                rig.pass(Duration::from_secs(seconds.min(100)));
            }
        }
        let stats = queue.stats();
        for (model, name) in models.iter().zip(NAMES) {
            let expected: usize = model.waiting.iter().map(|(_, record)| record.events.len()).sum();
            let consumer = of(&stats, name);
            assert_eq!(sum(&consumer.waiting), expected as u64, "{step:?} of {steps:?}");
            assert_eq!(
                (consumer.evicted, consumer.corrupt),
                (vec![], vec![]),
                "{step:?} of {steps:?}"
            );
            let kept = stats.dead_letters.iter().find(|(of, _)| of == name);
            assert_eq!(kept.map_or(0, |(_, kept)| *kept), model.letters.len() as u64);
        }
        assert_eq!(
            (stats.quarantined, stats.corrupt_records),
            (0, 0),
            "{step:?} of {steps:?}"
        );
    }
    consumers.clear();
    for (index, model) in models.iter().enumerate() {
        let letters = within(queue.dead_letters(NAMES[index], usize::MAX)).await.unwrap();
        assert_eq!(letters, model.letters);
        attach(&queue, &mut consumers, index).await;
        let reader = consumers.get_mut(&index).unwrap();
        assert_eq!(reader.note(), model.note);
        assert_eq!(take(reader, model.waiting.len()).await, model.waiting);
    }
    queue.close().await;
}

fn squeezes(durable: bool) -> BoxedStrategy<Vec<Step>> {
    let name = 0_usize..2;
    let step = prop_oneof![
        8 => (1_u8..4, 1_u32..4, 5_000_usize..40_000).prop_map(|(to, events, bytes)| Step::Append(to, events, bytes)),
        2 => (name.clone(), 1_usize..6).prop_map(|(name, records)| Step::Next(name, records)),
        1 => (name.clone(), 0_usize..6, Just(0)).prop_map(|(name, place, note)| Step::Commit(name, place, note)),
        1 => (100_u64..900).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(move |crash| ending(durable, crash)),
    ];
    vec(step, 10..60).boxed()
}

/// A queue that is too small and forgets early: what it returns was written and comes in order, once; and what went in is
/// delivered, waits or was evicted.
async fn squeeze(rig: &mut Rig, steps: &[Step]) {
    rig.settings.max_bytes = 1_500_000;
    rig.settings.max_age = Duration::from_secs(1000);
    let mut queue = rig.open().await;
    let mut written: BTreeMap<Position, Record> = BTreeMap::new();
    let mut settled = [0; 2];
    let mut evicted = [0; 2];
    let mut appended = [0; 2];
    let mut returned: [Vec<(Position, u64)>; 2] = Default::default();
    let mut consumers: BTreeMap<usize, Box<dyn Consumer>> = BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Append(to, events, bytes) => {
                let entry = rig.sized("a", &addressed(to), events, bytes);
                let position = store(&queue, entry.clone()).await;
                assert!(
                    written.insert(position, entry.record).is_none(),
                    "{position} was given twice"
                );
                (0..2)
                    .filter(|index| to & (1 << index) != 0)
                    .for_each(|index| appended[index] += u64::from(events));
            }
            Step::Next(index, records) => {
                attach(&queue, &mut consumers, index).await;
                let limit = Limit {
                    records,
                    bytes: usize::MAX,
                };
                let reader = consumers.get_mut(&index).unwrap();
                let next = timeout(Duration::from_millis(5), reader.next(limit)).await;
                for (position, record) in next.map_or(vec![], |records| records.unwrap()) {
                    assert_eq!(written.get(&position), Some(&record), "{steps:?}");
                    assert!(
                        returned[index].last().is_none_or(|(before, _)| *before < position),
                        "{steps:?}"
                    );
                    returned[index].push((position, record.events.len() as u64));
                }
            }
            Step::Commit(index, place, _) => {
                if place < returned[index].len() {
                    commit(consumers.get_mut(&index).unwrap(), returned[index][place].0).await;
                    settled[index] += returned[index].drain(..=place).map(|(_, events)| events).sum::<u64>();
                }
            }
            Step::Pass(seconds) => rig.pass(Duration::from_secs(seconds)),
            Step::Reattach(index) => {
                consumers.remove(&index);
                returned[index].clear();
            }
            _ => {
                consumers.clear();
                returned = Default::default();
                let copy = rig.path().with_file_name(format!("crash-{number}"));
                if matches!(step, Step::Crash) {
                    // A limit may be at work after the last answer. What it counted in the moment of a kill counts twice: once
                    // here, and as what the next process delivers.
                    loop {
                        let before = queue.stats();
                        within(queue.configure(&rig.destinations)).await.unwrap();
                        copy_directory(rig.path(), &copy);
                        within(queue.configure(&rig.destinations)).await.unwrap();
                        if before == queue.stats() {
                            break;
                        }
                        fs::remove_dir_all(&copy).unwrap();
                    }
                } else {
                    queue.close().await;
                }
                // Counters begin again with each open.
                (0..2).for_each(|index| evicted[index] += sum(&of(&queue.stats(), NAMES[index]).evicted));
                if matches!(step, Step::Crash) {
                    queue.close().await;
                    rig.settings.path = copy;
                }
                queue = rig.open().await;
            }
        }
        let stats = queue.stats();
        for index in 0..2 {
            let stats = of(&stats, NAMES[index]);
            let lost = evicted[index] + sum(&stats.evicted);
            assert_eq!(
                settled[index] + lost + sum(&stats.waiting),
                appended[index],
                "{step:?} of {steps:?}: {stats:?}"
            );
            assert_eq!(stats.corrupt, [], "{step:?} of {steps:?}");
        }
    }
    consumers.clear();
    queue.close().await;
}

fn addressed(to: u8) -> Vec<&'static str> {
    (0..2)
        .filter(|index| to & (1 << index) != 0)
        .map(|index| NAMES[index])
        .collect()
}

fn note(number: usize, bytes: usize) -> Vec<u8> {
    vec![number as u8; bytes]
}

async fn attach(queue: &Arc<dyn Queue>, consumers: &mut BTreeMap<usize, Box<dyn Consumer>>, index: usize) {
    if let Place::Vacant(place) = consumers.entry(index) {
        place.insert(consumer(queue, NAMES[index]).await);
    }
}
