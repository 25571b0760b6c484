//! Random operations against a model that is too simple to be wrong.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

const NAMES: [&str; 2] = [LAKE, CDP];
const CASES: usize = 12;

#[derive(Clone, Debug)]
enum Step {
    /// To destinations by bit mask, with this many events of this size.
    Append(u8, u32, usize),
    /// Up to this many records.
    Next(usize, usize),
    /// The n-th of the records that were returned and not settled.
    Commit(usize, usize),
    Reattach(usize),
    Reopen,
}

#[derive(Default)]
struct Model {
    waiting: Vec<(Position, Record)>,
    returned: usize,
}

pub(crate) async fn does_what_the_model_does(rig: Rig) {
    run(rig, false).await;
}

pub(crate) async fn does_what_the_model_does_across_reopens(rig: Rig) {
    run(rig, true).await;
}

fn steps(reopens: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_u8..4, 1_u32..4, prop_oneof![1_usize..100, 20_000_usize..60_000]).prop_map(|(to, events, bytes)| Step::Append(to, events, bytes)),
        3 => (0_usize..2, 1_usize..6).prop_map(|(name, records)| Step::Next(name, records)),
        2 => (0_usize..2, 0_usize..6).prop_map(|(name, place)| Step::Commit(name, place)),
        1 => (0_usize..2).prop_map(Step::Reattach),
        u32::from(reopens) => Just(Step::Reopen),
    ];
    vec(step, 1..60)
}

async fn run(mut rig: Rig, reopens: bool) {
    rig.settings.generation_bytes = 150_000;
    let mut runner = TestRunner::deterministic();
    for case in 0..CASES {
        rig.settings.path = rig.directory.path().join(format!("case-{case}"));
        let steps = steps(reopens).new_tree(&mut runner).unwrap().current();
        check(&rig, &steps).await;
    }
}

async fn check(rig: &Rig, steps: &[Step]) {
    let mut queue = rig.open().await;
    let mut models = [Model::default(), Model::default()];
    let mut consumers: BTreeMap<usize, Box<dyn Consumer>> = BTreeMap::new();
    for step in steps {
        match *step {
            Step::Append(to, events, bytes) => {
                let names: Vec<&str> = (0..2).filter(|n| to & (1 << n) != 0).map(|n| NAMES[n]).collect();
                let entry = rig.sized("a", &names, events, bytes);
                let position = store(&queue, entry.clone()).await;
                for (index, model) in models.iter_mut().enumerate() {
                    if names.contains(&NAMES[index]) {
                        model.waiting.push((position, entry.record.clone()));
                    }
                }
            }
            Step::Next(index, records) => {
                attach(&queue, &mut consumers, index).await;
                let model = &mut models[index];
                let expected = &model.waiting[model.returned..];
                let count = records.min(expected.len());
                assert_eq!(
                    take(consumers.get_mut(&index).unwrap(), count).await,
                    expected[..count],
                    "{steps:?}"
                );
                model.returned += count;
            }
            Step::Commit(index, place) => {
                let model = &mut models[index];
                if place < model.returned {
                    commit(consumers.get_mut(&index).unwrap(), model.waiting[place].0).await;
                    model.waiting.drain(..=place);
                    model.returned -= place + 1;
                }
            }
            Step::Reattach(index) => {
                consumers.remove(&index);
                models[index].returned = 0;
            }
            Step::Reopen => {
                consumers.clear();
                models.iter_mut().for_each(|model| model.returned = 0);
                queue = rig.reopen(queue).await;
            }
        }
        let stats = queue.stats();
        for (model, name) in models.iter().zip(NAMES) {
            let expected: usize = model.waiting.iter().map(|(_, record)| record.events.len()).sum();
            let stats = of(&stats, name);
            assert_eq!(sum(&stats.waiting), expected as u64, "{step:?} of {steps:?}");
            assert_eq!(
                (stats.evicted, stats.corrupt),
                (vec![], vec![]),
                "{step:?} of {steps:?}"
            );
        }
    }
    consumers.clear();
    for (index, Model { waiting, .. }) in models.iter().enumerate() {
        attach(&queue, &mut consumers, index).await;
        assert_eq!(&take(consumers.get_mut(&index).unwrap(), waiting.len()).await, waiting);
    }
    queue.close().await;
}

async fn attach(queue: &Arc<dyn Queue>, consumers: &mut BTreeMap<usize, Box<dyn Consumer>>, index: usize) {
    if let Entry::Vacant(place) = consumers.entry(index) {
        place.insert(consumer(queue, NAMES[index]).await);
    }
}
