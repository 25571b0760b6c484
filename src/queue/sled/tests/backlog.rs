//! A large backlog: an open touches the newest generation only, and a reader has one at a time.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

const RECORDS: usize = 150;

/// Scenario: fifty generations wait for two destinations; the queue is opened again and read by one of them.
/// Guarantees: it takes appends soon, with the newest generation's files open and no other's; a reader adds the
/// one that it reads, and closes it when it goes on. Everything is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_does_not_open_the_backlog() {
    let mut rig = Rig::new(START);
    rig.settings.generation_bytes = 50_000;
    rig.settings.max_bytes = 8 << 30;
    let queue = rig.open().await;
    for _ in 0..RECORDS {
        store(&queue, rig.sized("a", &[LAKE, CDP], 1, 20_000)).await;
    }
    queue.close().await;
    assert_eq!(generations(&rig).len(), RECORDS / 3);
    assert_eq!(open_generations(&rig), 0);

    let started = Instant::now();
    let queue = rig.open().await;
    store(&queue, rig.entry("a", &[LAKE, CDP], 1)).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(open_generations(&rig) <= 2, "{}", open_generations(&rig));
    let mut lake = consumer(&queue, LAKE).await;
    for round in 0..RECORDS / 5 {
        take(&mut lake, 5).await;
        let open = open_generations(&rig);
        assert!(open <= 4, "{open} in round {round}");
    }
    assert_eq!(take(&mut lake, 1).await.len(), 1);
    drop(lake);
    queue.close().await;
}

/// Returns how many generations this process has open.
fn open_generations(rig: &Rig) -> usize {
    let root = rig.path().join("generations");
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    let open = targets.filter_map(|path| Some(path.strip_prefix(&root).ok()?.iter().next()?.to_owned()));
    open.collect::<BTreeSet<_>>().len()
}
