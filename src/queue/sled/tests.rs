//! The contract, and what only this engine has: files, and everything that can happen to them.

mod backlog;
mod injuries;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::layout::record_key;
use crate::queue::contract::*;
use crate::queue::sled::SledQueue;
use crate::queue::{AppendError, Appended, Limit, Position};

const START: Start = |settings, destinations, clock| Arc::new(SledQueue::start(settings, destinations, clock));

crate::queue::contract::volatile!(START);
crate::queue::contract::durable!(START);

fn generations(rig: &Rig) -> Vec<PathBuf> {
    let entries = fs::read_dir(rig.path().join("generations")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Changes the database of a generation behind the engine's back.
fn with_database(path: &Path, change: impl FnOnce(&::sled::Db)) {
    let db = open_sled(path);
    change(&db);
    db.flush().unwrap();
}

/// Opens a generation's database as soon as sled has let go of it.
pub(crate) fn open_sled(path: &Path) -> ::sled::Db {
    let config = ::sled::Config::new()
        .path(path)
        .segment_size(2 << 20)
        .flush_every_ms(None);
    for _ in 0..400 {
        match config.open() {
            Err(error) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} is in use", path.display());
}

/// Fills several generations, nine records of one event each in all, and closes.
async fn several_generations(rig: &mut Rig) -> Vec<Position> {
    rig.settings.generation_bytes = 50_000;
    let queue = rig.open().await;
    let mut positions = Vec::new();
    for _ in 0..9 {
        positions.push(store(&queue, rig.sized("a", &[LAKE], 1, 20_000)).await);
    }
    queue.close().await;
    assert_eq!(generations(rig).len(), 3);
    positions
}

#[tokio::test]
async fn a_corrupt_record_is_left_out_and_counted_once() {
    let rig = Rig::new(START);
    let queue = rig.open().await;
    let mut positions = Vec::new();
    for _ in 0..5 {
        positions.push(store(&queue, rig.entry("a", &[LAKE, CDP], 2)).await);
    }
    queue.close().await;
    with_database(&generations(&rig)[0], |db| {
        // One with an intact header, one that is nothing any more, one that is gone.
        let body = record_key(positions[1].0, 0);
        let mut value = db.get(body).unwrap().unwrap().to_vec();
        *value.last_mut().unwrap() ^= 1;
        db.insert(body, value).unwrap();
        db.insert(record_key(positions[2].0, 0), vec![1, 2, 3]).unwrap();
        db.remove(record_key(positions[4].0, 0)).unwrap();
    });
    let queue = rig.open().await;
    for name in [LAKE, CDP] {
        let mut reader = consumer(&queue, name).await;
        let records = take(&mut reader, 2).await;
        assert_eq!([records[0].0, records[1].0], [positions[0], positions[3]]);
        nothing_comes(&mut reader).await;
        commit(&mut reader, records[1].0).await;
        let stats = of(&queue.stats(), name);
        assert_eq!((stats.corrupt, stats.waiting), (counts("a", 6), vec![]), "{name}");
    }
    assert_eq!(queue.stats().corrupt_records, 3);
}

#[tokio::test]
async fn a_damaged_generation_is_set_aside_and_the_rest_goes_on() {
    let mut rig = Rig::new(START);
    let positions = several_generations(&mut rig).await;
    let paths = generations(&rig);
    fs::write(paths[1].join("db"), vec![0xff; 100_000]).unwrap();
    fs::remove_file(paths[1].join("conf")).unwrap();
    fs::write(paths[1].join("conf"), b"not the configuration of a database").unwrap();
    let queue = rig.open().await;
    assert_eq!(queue.stats().quarantine_bytes(), 0);
    let mut lake = consumer(&queue, LAKE).await;
    let first: Vec<_> = take(&mut lake, 3)
        .await
        .into_iter()
        .map(|(position, _)| position)
        .collect();
    let last = take(&mut lake, 3).await;
    assert_eq!(first, positions[..3]);
    assert_eq!(last[0].0, positions[6]);
    commit(&mut lake, last[2].0).await;
    let stats = queue.stats();
    assert_eq!((stats.quarantined, stats.corrupt_records), (1, 3));
    assert!(stats.quarantine_bytes() >= 100_000, "{stats:?}");
    let lake = of(&stats, LAKE);
    assert_eq!(
        (lake.corrupt, lake.evicted, lake.waiting),
        (counts("a", 3), vec![], vec![])
    );
    assert_eq!(fs::read_dir(rig.path().join("quarantine")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_newest_generation_that_cannot_be_opened_is_set_aside() {
    let mut rig = Rig::new(START);
    let positions = several_generations(&mut rig).await;
    fs::remove_file(generations(&rig)[2].join("db")).unwrap();
    let queue = rig.open().await;
    assert_eq!(queue.stats().quarantined, 1);
    let position = store(&queue, rig.entry("a", &[LAKE], 1)).await;
    assert!(position > positions[8], "a position is never given twice");
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, 7).await;
    assert_eq!(records[5].0, positions[5]);
    assert_eq!(records[6].0, position);
    commit(&mut lake, position).await;
    assert_eq!(of(&queue.stats(), LAKE).waiting, []);
    // And once more, now that the settled ones have to be gone.
    drop(lake);
    let queue = rig.reopen(queue).await;
    nothing_comes(&mut consumer(&queue, LAKE).await).await;
}

#[tokio::test]
async fn start_files_that_are_damaged_are_written_anew() {
    let mut rig = Rig::new(START);
    several_generations(&mut rig).await;
    let paths = generations(&rig);
    let before = fs::read(paths[1].join("start")).unwrap();
    fs::write(paths[0].join("start"), b"damage").unwrap();
    fs::write(paths[1].join("start"), b"").unwrap();
    fs::remove_file(paths[2].join("start")).unwrap();
    let queue = rig.open().await;
    assert_eq!(take(&mut consumer(&queue, LAKE).await, 9).await.len(), 9);
    assert_eq!((queue.stats().quarantined, queue.stats().corrupt_records), (0, 0));
    assert_eq!(fs::read(paths[1].join("start")).unwrap(), before);
}

#[tokio::test]
async fn a_generation_without_a_start_costs_no_other() {
    let mut rig = Rig::new(START);
    let positions = several_generations(&mut rig).await;
    let path = &generations(&rig)[1];
    fs::write(path.join("start"), b"damage").unwrap();
    with_database(path, |db| drop(db.remove(crate::queue::sled::layout::START).unwrap()));
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, 6).await;
    assert_eq!([records[2].0, records[3].0], [positions[2], positions[6]]);
    commit(&mut lake, records[5].0).await;
    let stats = of(&queue.stats(), LAKE);
    assert_eq!((stats.corrupt, stats.waiting), (counts("a", 3), vec![]));
    assert_eq!(
        queue.stats().corrupt_records,
        0,
        "how many records it held is not known"
    );
}

/// A generation is begun file by file; a power cut can end that after each.
#[tokio::test]
async fn a_generation_that_was_never_used_is_removed() {
    let files: [&[(&str, usize)]; 7] = [
        &[],
        &[("conf", 0)],
        &[("conf", 0), ("db", 0)],
        &[("conf", 10), ("db", 0)],
        &[("conf", usize::MAX), ("db", usize::MAX)],
        &[("conf", usize::MAX), ("db", usize::MAX), ("start.new", 7)],
        &[("conf", usize::MAX), ("db", usize::MAX), ("start", usize::MAX)],
    ];
    for left in files {
        let mut rig = Rig::new(START);
        let positions = several_generations(&mut rig).await;
        let first = positions[8].0 + 1;
        let path = rig.path().join("generations").join(format!("{first:020}"));
        let start = super::generation::Start {
            first,
            ..Default::default()
        };
        drop(super::generation::Generation::create(&path, &start).unwrap());
        for name in ["start", "conf", "db"] {
            let bytes = fs::read(path.join(name)).unwrap();
            fs::remove_file(path.join(name)).unwrap();
            for (kept, length) in left.iter().filter(|(kept, _)| kept.trim_end_matches(".new") == name) {
                fs::write(path.join(kept), &bytes[..bytes.len().min(*length)]).unwrap();
            }
        }
        let seen = crate::queue::sled::inspect::Inspection::open(rig.path()).unwrap();
        let seen = seen.overview().unwrap();
        assert!(seen.parts.iter().all(|(_, problem)| problem.is_none()), "{left:?}");
        let queue = rig.open().await;
        assert_eq!(queue.stats().quarantined, 0, "{left:?}");
        assert_eq!(store(&queue, rig.entry("a", &[LAKE], 1)).await.0, first, "{left:?}");
        assert_eq!(take(&mut consumer(&queue, LAKE).await, 10).await.len(), 10, "{left:?}");
    }
}

#[tokio::test]
async fn snapshots_that_a_full_disk_left_empty_do_not_stop_an_open() {
    let mut rig = Rig::new(START);
    several_generations(&mut rig).await;
    for path in generations(&rig) {
        File::create(path.join("snap.00000000000F4240.generating")).unwrap();
        File::create(path.join("snap.0000000000000001")).unwrap();
    }
    let queue = rig.open().await;
    assert_eq!(take(&mut consumer(&queue, LAKE).await, 9).await.len(), 9);
    assert_eq!(queue.stats().quarantined, 0);
}

#[tokio::test]
async fn an_unknown_format_is_refused_untouched() {
    let mut rig = Rig::new(START);
    several_generations(&mut rig).await;
    fs::write(rig.path().join("FORMAT"), "flagtap-queue 3\n").unwrap();
    let before = listing(rig.path());
    let queue = rig.start();
    eventually(|| {
        queue
            .stats()
            .unavailable
            .is_some_and(|why| why.contains("unknown format"))
    })
    .await;
    let refused = within(queue.append(rig.entry("a", &[LAKE], 1))).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })));
    within(queue.close()).await;
    assert_eq!(listing(rig.path()), before);
}

#[tokio::test]
async fn a_queue_that_is_open_elsewhere_opens_when_it_is_free() {
    let rig = Rig::new(START);
    let holder = rig.open().await;
    let queue = rig.start();
    eventually(|| {
        queue
            .stats()
            .unavailable
            .is_some_and(|why| why.contains("another process"))
    })
    .await;
    assert!(queue.append(rig.entry("a", &[LAKE], 1)).await.is_err());
    holder.close().await;
    eventually(|| queue.stats().unavailable.is_none()).await;
    store(&queue, rig.entry("a", &[LAKE], 1)).await;
}

#[tokio::test]
async fn a_consumer_waits_for_the_open() {
    let rig = Rig::new(START);
    let holder = rig.open().await;
    let queue = rig.start();
    let waiting = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { queue.consumer(LAKE).await.is_ok() })
    };
    eventually(|| {
        queue
            .stats()
            .unavailable
            .is_some_and(|why| why.contains("another process"))
    })
    .await;
    assert!(!waiting.is_finished());
    holder.close().await;
    assert!(within(waiting).await.unwrap());
}

#[tokio::test]
async fn the_headroom_of_the_volume_is_kept() {
    let mut rig = Rig::new(START);
    rig.settings.headroom_bytes = u64::MAX;
    let queue = rig.open().await;
    let refused = within(queue.append(rig.entry("a", &[LAKE], 1))).await;
    assert!(
        matches!(refused, Err(AppendError::NoSpace { headroom: u64::MAX, .. })),
        "{refused:?}"
    );
    assert!(queue.stats().unavailable.is_some_and(|why| why.contains("headroom")));
}

#[tokio::test]
async fn it_writes_again_by_itself_when_the_disk_does() {
    let mut rig = Rig::new(START);
    rig.settings.generation_bytes = 50_000;
    let queue = rig.open().await;
    let (parts, away) = (rig.path().join("generations"), rig.path().join("away"));
    let kept = store(&queue, rig.sized("a", &[LAKE], 1, 60_000)).await;
    fs::rename(&parts, &away).unwrap();
    fs::write(&parts, b"in the way").unwrap();
    // The first generation is full, and no other can be begun.
    let lost = rig.entry("a", &[LAKE], 1);
    let refused = within(queue.append(lost.clone())).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })), "{refused:?}");
    assert!(queue.stats().unavailable.is_some());
    fs::remove_file(&parts).unwrap();
    fs::rename(&away, &parts).unwrap();
    eventually(|| queue.stats().unavailable.is_none()).await;
    let stored = store(&queue, lost).await;
    let mut lake = consumer(&queue, LAKE).await;
    let records = take(&mut lake, 2).await;
    assert_eq!([records[0].0, records[1].0], [kept, stored]);
    assert_eq!(queue.stats().corrupt_records, 0);
}

#[tokio::test]
async fn a_torn_end_of_the_dead_letters_is_cut_off() {
    let rig = Rig::new(START);
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    lake.bury(vec![letter(Position(1), 0), letter(Position(2), 0)])
        .await
        .unwrap();
    drop(lake);
    queue.close().await;
    let path = rig.path().join("dead-letters");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let queue = rig.open().await;
    assert_eq!(queue.dead_letters(LAKE, 9).await.unwrap(), [letter(Position(1), 0)]);
    consumer(&queue, LAKE)
        .await
        .bury(vec![letter(Position(3), 0)])
        .await
        .unwrap();
    let queue = rig.reopen(queue).await;
    assert_eq!(
        queue.dead_letters(LAKE, 9).await.unwrap(),
        [letter(Position(1), 0), letter(Position(3), 0)]
    );
}

#[tokio::test]
async fn a_damaged_dead_letter_is_passed_over_and_counted() {
    let rig = Rig::new(START);
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    lake.bury(vec![letter(Position(1), 0), letter(Position(2), 0)])
        .await
        .unwrap();
    drop(lake);
    queue.close().await;
    let path = rig.path().join("dead-letters");
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let queue = rig.open().await;
    assert_eq!(queue.dead_letters(LAKE, 9).await.unwrap(), [letter(Position(2), 0)]);
    assert_eq!(queue.stats().corrupt_records, 1);
    assert_eq!(queue.stats().dead_letters, [(LAKE.to_owned(), 1)]);
}

#[tokio::test]
async fn only_this_user_can_read_the_files() {
    let mut rig = Rig::new(START);
    several_generations(&mut rig).await;
    for (path, _) in listing(rig.path()) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} {mode:o}", path.display());
    }
}

/// sled writes such files without ever syncing them.
#[tokio::test]
async fn no_blob_is_ever_made() {
    let mut rig = Rig::new(START);
    rig.settings.generation_bytes = 8 << 20;
    let queue = rig.open().await;
    let mut lake = consumer(&queue, LAKE).await;
    for json_bytes in [100, 47_000, 48_000, 500_000, 3_000_000, 48_000, 47_500, 100, 96_000] {
        for _ in 0..3 {
            store(&queue, rig.sized("a", &[LAKE], 1, json_bytes)).await;
        }
        within(lake.commit(None, &[3; 64 << 10])).await.unwrap();
    }
    queue.close().await;
    for path in generations(&rig) {
        assert_eq!(fs::read_dir(path.join("blobs")).unwrap().count(), 0);
    }
}

/// Scenario: the directory is copied file by file while eight tasks append and a consumer commits.
/// Guarantees: the copy opens, and holds everything that was acknowledged before the copy began and not committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_while_writing_holds_what_was_acknowledged() {
    let mut rig = Rig::new(START);
    rig.settings.generation_bytes = 300_000;
    let rig = Arc::new(rig);
    let queue = rig.open().await;
    let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (rig, queue, stop, stored) = (rig.clone(), queue.clone(), stop.clone(), stored.clone());
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let outcome = queue.append(rig.sized("a", &[LAKE, CDP], 1, 2_000)).await.unwrap();
                if let Appended::Stored(position) = outcome {
                    stored.fetch_max(position.0 + 1, Ordering::SeqCst);
                }
            }
        }));
    }
    let mut cdp = consumer(&queue, CDP).await;
    for round in 1..=5 {
        eventually(|| stored.load(Ordering::SeqCst) > round * 150).await;
        let settled = take(&mut cdp, 60).await.last().unwrap().0;
        commit(&mut cdp, settled).await;
        let acknowledged = stored.load(Ordering::SeqCst);
        let mut copy = Rig::new(START);
        copy.settings.path = copy.directory.path().join("copy");
        // The newest generation first: what is older does not change any more.
        copy_directory(rig.path(), copy.path());
        let copied = copy.open().await;
        let stats = copied.stats();
        assert_eq!((stats.quarantined, stats.corrupt_records), (0, 0));
        let mut lake = consumer(&copied, LAKE).await;
        let records = take(&mut lake, acknowledged as usize).await;
        assert!(records.iter().map(|(position, _)| position.0).eq(0..acknowledged));
        let mut cdp = consumer(&copied, CDP).await;
        assert_eq!(take(&mut cdp, 1).await[0].0.0, settled.0 + 1);
        copied.close().await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        within(task).await.unwrap();
    }
    queue.close().await;
}

fn listing(path: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = vec![(path.to_owned(), 0)];
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(listing(&path));
        } else {
            files.push((path.clone(), fs::metadata(&path).unwrap().len()));
        }
    }
    files.sort();
    files
}
