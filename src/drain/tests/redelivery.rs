//! Dead letters that go out again by themselves, with a queue that does all that a queue does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fakes::{FakeDestination, eventually, record};
use super::retry;
use crate::attempts::{Retry, Then};
use crate::destination::Verdict;
use crate::drain::{Drain, DrainStatus, Settings, Stop, redeliver};
use crate::metrics::Metrics;
use crate::queue::memory::MemoryQueue;
use crate::queue::{self, Clock, Entry, Mark, Queue};

const SECOND: Duration = Duration::from_secs(1);

/// The time at which the fakes' records were received: none is too old.
fn clock() -> Clock {
    Arc::new(|| 1_700_000_000_000)
}

/// Returns a destination that takes nothing for so long, and then everything.
fn down_for(outage: Duration) -> FakeDestination {
    let start = Instant::now();
    FakeDestination::judging(move |_: &str| match start.elapsed() < outage {
        true => retry(),
        false => Verdict::Delivered,
    })
}

struct Rig {
    queue: Arc<dyn Queue>,
    destination: Arc<FakeDestination>,
    tasks: tokio::task::JoinSet<()>,
    appended: u64,
}

impl Rig {
    /// Two more tries over ten seconds, so that an outage of a minute makes letters.
    async fn start(destination: FakeDestination) -> Self {
        let names = ["lake".to_owned()];
        let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::start(queue::Settings::default(), &names, clock()));
        let mut rig = Self {
            queue,
            destination: Arc::new(destination),
            tasks: tokio::task::JoinSet::new(),
            appended: 0,
        };
        rig.run().await;
        rig
    }

    async fn run(&mut self) {
        let status = Arc::new(DrainStatus::default());
        let drain = Drain {
            name: "lake".to_owned(),
            consumer: self.queue.consumer("lake").await.unwrap(),
            destination: self.destination.clone(),
            metrics: Arc::new(Metrics::new()),
            settings: Settings {
                retry: Retry {
                    attempts: 2,
                    over: 10 * SECOND,
                    then: Then::DeadLetter,
                    initial: SECOND,
                    max: 20 * SECOND,
                },
                ..Settings::default()
            },
            status: status.clone(),
            stop: Stop::default(),
            clock: clock(),
        };
        self.tasks.spawn(async move {
            let _ = drain.run().await;
        });
        let queue = self.queue.clone();
        self.tasks
            .spawn(async move { redeliver("lake", &*queue, &status).await });
    }

    async fn append(&mut self, names: &[&str]) {
        self.appended += 1;
        let entry = Entry {
            record: record(self.appended, names),
            mark: Mark {
                key: u128::from(self.appended).to_be_bytes(),
                window: SECOND,
            },
        };
        self.queue.append(entry).await.unwrap();
    }

    fn letters(&self) -> u64 {
        self.queue.stats().dead_letters.iter().map(|(_, letters)| letters).sum()
    }

    /// How often each event was acknowledged.
    fn delivered(&self) -> BTreeMap<String, usize> {
        let mut delivered = BTreeMap::new();
        self.destination
            .delivered()
            .into_iter()
            .for_each(|name| *delivered.entry(name).or_default() += 1);
        delivered
    }
}

#[tokio::test(start_paused = true)]
async fn letters_of_an_outage_go_out_again_with_their_ids_when_it_is_over() {
    let mut rig = Rig::start(down_for(300 * SECOND)).await;
    for batch in 0..5 {
        let names: Vec<String> = (0..10).map(|event| format!("{batch}{event}")).collect();
        rig.append(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    tokio::time::sleep(290 * SECOND).await;
    assert!(rig.letters() > 0, "the outage was long enough for some");
    eventually("all of them", || rig.delivered().len() == 50).await;
    assert!(rig.delivered().values().all(|times| *times == 1));
    assert_eq!(rig.letters(), 0);
    let ids = rig.destination.delivered_ids();
    let expected = (1..=5).flat_map(|seed| crate::export::event_ids(&record(seed, &["x"; 10])));
    assert!(expected.into_iter().all(|id| ids.contains(&id)));
}

#[tokio::test(start_paused = true)]
async fn letters_of_an_earlier_run_go_out_though_nothing_else_comes() {
    let mut rig = Rig::start(down_for(100 * SECOND)).await;
    rig.append(&["a"]).await;
    eventually("the letter", || rig.letters() == 1).await;
    rig.tasks.shutdown().await;
    tokio::time::sleep(200 * SECOND).await;
    rig.run().await;
    eventually("the letter", || rig.delivered().len() == 1).await;
    assert_eq!(rig.letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_gives_nothing_up_for_good() {
    let mut rig = Rig::start(down_for(20_000 * SECOND)).await;
    rig.append(&["a", "b", "c"]).await;
    tokio::time::sleep(10_000 * SECOND).await;
    let requests = rig.destination.requests().len();
    tokio::time::sleep(9_000 * SECOND).await;
    let more = rig.destination.requests().len() - requests;
    assert!(
        (100..700).contains(&more),
        "one event is tried, again and again: {more}"
    );
    eventually("all of them", || rig.delivered().len() == 3).await;
    assert_eq!(rig.letters(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_out_of_tries_again_waits_for_a_person() {
    let judge = |name: &str| if name == "never" { retry() } else { Verdict::Delivered };
    let mut rig = Rig::start(FakeDestination::judging(judge)).await;
    rig.append(&["never", "a"]).await;
    eventually("the letter", || rig.letters() == 1).await;
    rig.tasks.shutdown().await;
    rig.run().await;
    rig.append(&["b"]).await;
    eventually("its second round", || rig.letters() == 0).await;
    eventually("its second end", || rig.letters() == 1).await;
    let tries = |rig: &Rig| {
        rig.destination
            .requests()
            .concat()
            .iter()
            .filter(|name| *name == "never")
            .count()
    };
    assert_eq!(tries(&rig), 6, "three and three");
    for _ in 0..3 {
        rig.tasks.shutdown().await;
        rig.run().await;
        rig.append(&["c"]).await;
        tokio::time::sleep(1000 * SECOND).await;
    }
    assert_eq!((tries(&rig), rig.letters()), (6, 1));
    let letter = rig.queue.dead_letters("lake", 1).await.unwrap().remove(0);
    assert!(!letter.transient);
    // A person can.
    let key = [(letter.position, letter.index)];
    assert_eq!(rig.queue.requeue_dead_letters("lake", &key).await.unwrap(), 1);
    eventually("its third end", || tries(&rig) == 9 && rig.letters() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_for_itself_stays() {
    let judge = |name: &str| match name {
        "bad" => Verdict::Reject { why: "bad".to_owned() },
        _ => Verdict::Delivered,
    };
    let mut rig = Rig::start(FakeDestination::judging(judge)).await;
    rig.append(&["bad", "a"]).await;
    eventually("the letter", || rig.letters() == 1).await;
    tokio::time::sleep(1000 * SECOND).await;
    assert_eq!(rig.letters(), 1);
    assert_eq!(rig.destination.requests().concat().len(), 2);
}
