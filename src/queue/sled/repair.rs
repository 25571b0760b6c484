//! Sets aside what cannot be read, on a stopped directory.
//!
//! What cannot be read is found on copies, copied to the quarantine as it was found (sled rewrites files when it opens
//! them), and then moved by the engine, which does the same when a reader meets it. So a repaired queue is as one that a
//! running relay has come across, and its losses are counted the same way. No limit of the configuration is applied:
//! what waits stays, however old or large.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::inspect::{InspectError, Inspection};
use super::{Message, SledQueue};
use crate::queue::{Queue, SetAside, Settings, system_clock};

pub use super::verify::{Damage, Verification};

/// How long an open may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What [`repair`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// What was found damaged before.
    pub verification: Verification,
    /// What is new in the folder `quarantine`: damaged parts as they were found, and what the engine moved there.
    pub moved: Vec<SetAside>,
}

/// Moves what cannot be read to `quarantine`. Does not open the queue if all of it can be.
pub async fn repair(root: &Path) -> Result<Repair, InspectError> {
    let inspection = Inspection::open(root)?;
    if inspection.in_use {
        return Err(InspectError::InUse {
            path: root.display().to_string(),
        });
    }
    let verification = inspection.verify()?;
    let before = inspection.quarantine().map_err(|error| inspection.failed(&error))?;
    if verification.damaged > 0 {
        keep_as_found(root, &verification).map_err(|error| inspection.failed(&error))?;
        let queue = open(root, 0).await?;
        for (first, why) in &verification.unreadable {
            let (first, why) = (*first, why.clone());
            let moved = queue.link.ask(|reply| Message::Quarantine { first, why, reply }).await;
            moved.map_err(|error| inspection.failed(&error))?;
        }
        queue.close().await;
    }
    let mut moved = inspection.quarantine().map_err(|error| inspection.failed(&error))?;
    moved.retain(|part| !before.contains(part));
    Ok(Repair { verification, moved })
}

/// Copies the parts that will not stay to the quarantine.
fn keep_as_found(root: &Path, verification: &Verification) -> io::Result<()> {
    for (first, _) in &verification.unreadable {
        let part = root.join("generations").join(format!("{first:020}"));
        let quarantine = root.join("quarantine");
        let kept = (1..)
            .map(|number| quarantine.join(format!("generation-{first:020}-as-found-{number}")))
            .find(|place| !place.exists());
        if let Some(place) = kept {
            copy_folder(&part, &place)?;
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &place)?;
        } else if entry.file_type()?.is_file() {
            // Permissions come along.
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Opens a stopped queue to change it: no limit removes anything, and every cursor stays as it is. `headroom_bytes` of the
/// volume are left free by what is appended.
pub async fn open(root: &Path, headroom_bytes: u64) -> Result<SledQueue, InspectError> {
    let path = root.display().to_string();
    // The engine would make a queue where none is.
    if Inspection::open(root)?.in_use {
        return Err(InspectError::InUse { path });
    }
    let settings = Settings {
        path: root.to_owned(),
        max_bytes: u64::MAX,
        max_age: Duration::MAX,
        headroom_bytes,
        mark_entries: usize::MAX,
        ..Settings::default()
    };
    let queue = SledQueue::start(settings, &[], system_clock());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Some(why) = queue.stats().unavailable else {
            return Ok(queue);
        };
        if Instant::now() >= deadline {
            queue.close().await;
            return Err(InspectError::Failed { path, why });
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::layout::record_key;
    use super::*;
    use crate::queue::contract::*;
    use crate::queue::sled::tests::open_sled;
    use crate::queue::{ConsumerStats, Position};

    const START: Start = |settings, destinations, clock| Arc::new(SledQueue::start(settings, destinations, clock));

    /// Nine records of two events each in three parts of three, of which `lake` has settled the first `settled`.
    async fn three_parts(settled: usize) -> (Rig, Vec<PathBuf>) {
        let mut rig = Rig::new(START);
        rig.settings.generation_bytes = 50_000;
        let queue = rig.open().await;
        let mut lake = consumer(&queue, LAKE).await;
        for stored in 1..=9 {
            store(&queue, rig.sized("a", &[LAKE, CDP], 2, 10_000)).await;
            // At once: a write after the ninth would begin a part of its own.
            if stored == settled {
                let last = take(&mut lake, settled).await[settled - 1].0;
                commit(&mut lake, last).await;
            }
        }
        drop(lake);
        queue.close().await;
        let parts = fs::read_dir(rig.path().join("generations")).unwrap();
        let mut parts: Vec<PathBuf> = parts.map(|part| part.unwrap().path()).collect();
        parts.sort();
        assert_eq!(parts.len(), 3);
        (rig, parts)
    }

    fn ruin(part: &Path) {
        fs::write(part.join("db"), vec![0xff; 100_000]).unwrap();
        fs::write(part.join("conf"), b"not the configuration of a database").unwrap();
    }

    fn cost(lake: u64, cdp: u64) -> Vec<(String, String, u64)> {
        let of = |name: &str, events| (name.to_owned(), "a".to_owned(), events);
        let mut cost = vec![of(CDP, cdp), of(LAKE, lake)];
        cost.retain(|(.., events)| *events > 0);
        cost
    }

    #[tokio::test]
    async fn a_whole_queue_is_not_touched() {
        let (rig, _) = three_parts(4).await;
        let verification = Inspection::open(rig.path()).unwrap().verify().unwrap();
        assert_eq!(
            (verification.parts, verification.records, verification.events),
            (3, 9, 18)
        );
        assert_eq!((verification.damaged, verification.cost.len()), (0, 0));
        let repaired = repair(rig.path()).await.unwrap();
        assert_eq!((repaired.verification, repaired.moved), (verification, vec![]));
    }

    #[tokio::test]
    async fn a_part_in_the_middle_costs_each_destination_what_it_had_not_settled() {
        let (rig, parts) = three_parts(4).await;
        ruin(&parts[1]);
        let repaired = repair(rig.path()).await.unwrap();
        assert_eq!(
            repaired.verification.cost,
            cost(4, 6),
            "two of three records, and three"
        );
        assert!(!repaired.verification.is_uncounted);
        assert_eq!(repaired.verification.damage[0].part, Some(3));
        assert_eq!(repaired.moved.len(), 2, "as it was found, and as the engine left it");
        let queue = rig.open().await;
        let mut lake = consumer(&queue, LAKE).await;
        assert_eq!(take(&mut lake, 3).await[0].0, Position(6));
        let stats = of(&queue.stats(), LAKE);
        assert_eq!(
            stats.waiting,
            counts("a", 6),
            "the loss was counted when the part was set aside"
        );
    }

    #[tokio::test]
    async fn a_start_file_that_is_damaged_is_known_by_its_neighbours() {
        let (rig, parts) = three_parts(0).await;
        fs::write(parts[1].join("start"), b"damage").unwrap();
        {
            let db = open_sled(&parts[1]);
            db.remove(crate::queue::sled::layout::START).unwrap();
            db.flush().unwrap();
        }
        let verification = Inspection::open(rig.path()).unwrap().verify().unwrap();
        assert_eq!(verification.cost, cost(6, 6));
        assert_eq!(verification.unreadable.len(), 1);
    }

    #[tokio::test]
    async fn a_start_file_that_the_database_knows_costs_nothing() {
        let (rig, parts) = three_parts(0).await;
        fs::write(parts[1].join("start"), b"damage").unwrap();
        let verification = Inspection::open(rig.path()).unwrap().verify().unwrap();
        assert_eq!((verification.damaged, verification.cost.len()), (1, 0));
        assert_eq!((verification.records, verification.unreadable.len()), (9, 0));
        assert_eq!(
            fs::read(parts[1].join("start")).unwrap(),
            b"damage",
            "looking mends nothing"
        );
    }

    #[tokio::test]
    async fn the_newest_part_is_counted_by_what_was_acknowledged() {
        let (rig, parts) = three_parts(4).await;
        ruin(&parts[2]);
        let repaired = repair(rig.path()).await.unwrap();
        assert_eq!(repaired.verification.cost, cost(6, 6));
        assert!(!repaired.verification.is_uncounted);
        assert_eq!(repaired.moved.len(), 2, "as it was found, and as the engine left it");
    }

    #[tokio::test]
    async fn a_damaged_record_is_named_and_its_part_stays() {
        let (rig, parts) = three_parts(0).await;
        {
            let db = open_sled(&parts[0]);
            let key = record_key(1, 0);
            let mut value = db.get(key).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            db.insert(key, value).unwrap();
            db.remove(record_key(2, 0)).unwrap();
            db.flush().unwrap();
        }
        let repaired = repair(rig.path()).await.unwrap();
        let damage = &repaired.verification.damage;
        let places: Vec<_> = damage.iter().map(|damage| (damage.part, damage.position)).collect();
        assert_eq!(places, [(Some(0), Some(1)), (Some(0), Some(2))], "{damage:?}");
        assert_eq!(repaired.verification.cost, cost(4, 4));
        assert_eq!(repaired.moved, []);
        assert!(parts[0].exists());
    }

    #[tokio::test]
    async fn an_open_queue_is_read_and_not_changed() {
        let mut rig = Rig::new(START);
        rig.settings.generation_bytes = 50_000;
        let queue = rig.open().await;
        for _ in 0..9 {
            store(&queue, rig.sized("a", &[LAKE], 2, 10_000)).await;
        }
        let inspection = Inspection::open(rig.path()).unwrap();
        assert!(inspection.in_use());
        let waiting = inspection.consumers();
        assert_eq!(of(&queue.stats(), LAKE).waiting, of_list(&waiting, LAKE));
        let mut events = 0;
        let unread = inspection.waiting(Some(LAKE), |record| {
            events += record.events.len();
            Ok(true)
        });
        assert_eq!((unread.unwrap(), events), (vec![], 18));
        assert_eq!(inspection.verify().unwrap().damaged, 0);
        assert!(matches!(repair(rig.path()).await, Err(InspectError::InUse { .. })));
        queue.close().await;
    }

    fn of_list(consumers: &[ConsumerStats], name: &str) -> Vec<(String, u64)> {
        let found = consumers.iter().find(|consumer| consumer.name == name);
        found.map(|consumer| consumer.waiting.clone()).unwrap_or_default()
    }
}
