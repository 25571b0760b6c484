//! Damage to the files of a queue that is not running: flipped bytes, files cut short, gone, swapped or made up.
//!
//! One directory is prepared, and every case injures a copy of it in one place. What the queue then does is held against
//! what was written: it opens in bounded time, gives back nothing that was not written, keeps every record of the
//! generations that were not injured, counts the events of those it cannot give back, and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::*;
use crate::queue::Queue;
use crate::record::Record;

/// Cases in `make test`; `FLAGTAP_INJURIES` says how many otherwise.
const CASES: u32 = 2000;

/// How long a case may take: everything the engine does with damage is bounded.
const BOUND: Duration = Duration::from_secs(30);

/// Records of four generations, and of one alone.
const MANY: u32 = 24;
const FEW: u32 = 5;

const PAGE: usize = 4096;

/// A file as it was prepared: its length and what of it is not zero.
#[derive(Clone)]
struct Prepared {
    path: PathBuf,
    length: u64,
    pages: Vec<(u64, Vec<u8>)>,
}

/// The prepared directory, and what has to come out of it.
struct Template {
    files: Vec<Prepared>,
    /// First positions of the generations.
    firsts: Vec<u64>,
    /// What was written, by position.
    written: BTreeMap<u64, Record>,
    /// What each destination has not committed.
    waiting: BTreeMap<&'static str, BTreeSet<u64>>,
    letters: usize,
}

#[derive(Clone, Debug)]
enum Injury {
    /// One byte that is not zero, among those of all files or of the small ones.
    Flip(bool, Index, u8),
    /// One byte anywhere in a file.
    FlipAnywhere(Index, Index, u8),
    Truncate(Index, Index),
    Delete(Index),
    Swap(Index, Index),
    /// A file of these bytes where none belongs.
    Garbage(Index, Vec<u8>),
    /// Bytes behind the end.
    Grow(Index, Vec<u8>),
    EmptySnapshot(Index, bool),
}

fn injury() -> impl Strategy<Value = Injury> {
    let (file, place) = (any::<Index>, any::<Index>);
    prop_oneof![
        6 => (any::<bool>(), place(), 1_u8..).prop_map(|(small, place, mask)| Injury::Flip(small, place, mask)),
        2 => (file(), place(), 1_u8..).prop_map(|(file, place, mask)| Injury::FlipAnywhere(file, place, mask)),
        4 => (file(), place()).prop_map(|(file, place)| Injury::Truncate(file, place)),
        1 => file().prop_map(Injury::Delete),
        1 => (file(), file()).prop_map(|(one, other)| Injury::Swap(one, other)),
        1 => (file(), prop::collection::vec(any::<u8>(), 0..9000)).prop_map(|(file, bytes)| Injury::Garbage(file, bytes)),
        1 => (file(), prop::collection::vec(any::<u8>(), 1..9000)).prop_map(|(file, bytes)| Injury::Grow(file, bytes)),
        1 => (file(), any::<bool>()).prop_map(|(file, generating)| Injury::EmptySnapshot(file, generating)),
    ]
}

/// Scenario: one injury to one file of a queue that was closed, or killed, with records of several generations waiting.
/// Guarantees: see the head of this file.
#[test]
fn no_single_injury_stops_the_queue_or_costs_more_than_it_hit() {
    let runtime = Runtime::new().unwrap();
    let kinds = [(true, MANY), (false, MANY), (false, FEW)];
    let templates = kinds.map(|(closed, records)| runtime.block_on(Template::prepare(closed, records)));
    let cases = env::var("FLAGTAP_INJURIES").ok().and_then(|text| text.parse().ok());
    let mut config = Config::with_cases(cases.unwrap_or(CASES));
    config.source_file = Some(file!());
    config.failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")));
    config.max_shrink_iters = 0;
    let started = Instant::now();
    let mut runner = TestRunner::new(config.clone());
    let outcome = runner.run(&(any::<Index>(), injury()), |(kind, injury)| {
        let template = kind.get(&templates);
        let case = runtime.block_on(async { timeout(BOUND, template.survive(&injury)).await });
        match case {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(TestCaseError::fail(why)),
            Err(_) => Err(TestCaseError::fail("it hangs")),
        }
    });
    eprintln!("{} injuries in {:?}", config.cases, started.elapsed());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// Scenario: each byte of each small file, one at a time, is changed.
/// Guarantees: as above. What is random above is complete here, for the files whose every byte means something.
#[test]
fn no_byte_of_the_small_files_is_trusted_unchecked() {
    let runtime = Runtime::new().unwrap();
    let template = runtime.block_on(Template::prepare(false, MANY));
    let mut cases = 0;
    for (number, file) in template.files.iter().enumerate() {
        let name = file.path.file_name().unwrap().to_string_lossy();
        // One generation's stand for all; the places of the big files are drawn above.
        let other = file.path.starts_with("generations") && template.generation_of(file) != Some(template.firsts[1]);
        if other || name == "db" || file.length > 2048 {
            continue;
        }
        for place in 0..file.length {
            let injured = Injured {
                touched: BTreeSet::from([number]),
                what: format!("byte {place} of {}", file.path.display()),
            };
            let rig = rig();
            template.restore(rig.path());
            change(&rig.path().join(&file.path), place, 0x55);
            let case = runtime.block_on(async { timeout(BOUND, template.judge(rig, &injured)).await });
            case.expect("it hangs")
                .unwrap_or_else(|why| panic!("{}: {why}", injured.what));
            cases += 1;
        }
    }
    assert!(cases > 200, "{cases}");
}

/// What a case did, to say so and to know what may be lost.
struct Injured {
    touched: BTreeSet<usize>,
    what: String,
}

impl Template {
    /// Generations for two destinations, one of them half way; a note; dead letters. Closed, or as a kill leaves it.
    async fn prepare(closed: bool, records: u32) -> Self {
        let rig = rig();
        let queue = rig.open().await;
        let mut lake = consumer(&queue, LAKE).await;
        let mut written = BTreeMap::new();
        let mut waiting = BTreeMap::from([(LAKE, BTreeSet::new()), (CDP, BTreeSet::new())]);
        for number in 0..records {
            let to: &[&str] = match number % 4 {
                0 => &[LAKE],
                1 => &[CDP],
                _ => &[LAKE, CDP],
            };
            let environment = if number % 3 == 0 { "a" } else { "b" };
            let entry = rig.sized(environment, to, 1 + number % 3, 3_000);
            let record = entry.record.clone();
            let position = store(&queue, entry).await.0;
            written.insert(position, record);
            for (name, positions) in &mut waiting {
                if to.contains(name) {
                    positions.insert(position);
                }
            }
            if number == records / 2 {
                let settled = take(&mut lake, 2).await[1].0;
                within(lake.commit(Some(settled), &[7; 3_000])).await.unwrap();
                waiting.get_mut(LAKE).unwrap().retain(|position| *position > settled.0);
            }
        }
        let letters = vec![letter(Position(0), 0), letter(Position(1), 3), letter(Position(2), 0)];
        within(lake.bury(letters.clone())).await.unwrap();
        if closed {
            drop(lake);
            queue.close().await;
            // And opened once more, so that there are snapshots too.
            rig.open().await.close().await;
        }
        let files = read_files(rig.path());
        let template = Self {
            firsts: generations(&rig).iter().map(|path| first_of(path)).collect(),
            files,
            written,
            waiting,
            letters: letters.len(),
        };
        assert_eq!(template.firsts.len(), if records == MANY { 4 } else { 1 });
        template
    }

    fn restore(&self, root: &Path) {
        for folder in ["generations", "quarantine"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for first in &self.firsts {
            fs::create_dir_all(root.join("generations").join(format!("{first:020}")).join("blobs")).unwrap();
        }
        for file in &self.files {
            let target = File::create(root.join(&file.path)).unwrap();
            target.set_len(file.length).unwrap();
            for (offset, page) in &file.pages {
                target.write_all_at(page, *offset).unwrap();
            }
        }
    }

    async fn survive(&self, injury: &Injury) -> Result<(), String> {
        let rig = rig();
        self.restore(rig.path());
        let injured = self.injure(rig.path(), injury);
        self.judge(rig, &injured)
            .await
            .map_err(|why| format!("{}: {why}", injured.what))
    }

    fn injure(&self, root: &Path, injury: &Injury) -> Injured {
        let count = self.files.len();
        let path = |file: usize| root.join(&self.files[file].path);
        let name = |file: usize| self.files[file].path.display().to_string();
        let (touched, what) = match injury {
            Injury::Flip(small, place, mask) => {
                let of = |file: &Prepared| match small {
                    true if file.length > 100_000 => 0,
                    _ => file.pages.iter().map(|(_, page)| page.len()).sum::<usize>(),
                };
                let mut place = place.index(self.files.iter().map(of).sum());
                let mut file = 0;
                while place >= of(&self.files[file]) {
                    place -= of(&self.files[file]);
                    file += 1;
                }
                // Pages are whole but for a file's last.
                let offset = self.files[file].pages[place / PAGE].0 + (place % PAGE) as u64;
                change(&path(file), offset, *mask);
                (vec![file], format!("byte {offset} of {} changed by {mask}", name(file)))
            }
            Injury::FlipAnywhere(file, place, mask) => {
                let file = file.index(count);
                let length = self.files[file].length;
                if length == 0 {
                    return Injured::nothing();
                }
                let offset = place.index(length as usize) as u64;
                change(&path(file), offset, *mask);
                (vec![file], format!("byte {offset} of {} changed by {mask}", name(file)))
            }
            Injury::Truncate(file, place) => {
                let file = file.index(count);
                let length = place.index(self.files[file].length as usize + 1) as u64;
                let target = fs::OpenOptions::new().write(true).open(path(file)).unwrap();
                target.set_len(length).unwrap();
                (vec![file], format!("{} cut to {length}", name(file)))
            }
            Injury::Delete(file) => {
                let file = file.index(count);
                fs::remove_file(path(file)).unwrap();
                (vec![file], format!("{} deleted", name(file)))
            }
            Injury::Swap(one, other) => {
                let (one, other) = (one.index(count), other.index(count));
                let aside = root.join("generations").join("aside");
                fs::rename(path(one), &aside).unwrap();
                if one != other {
                    fs::rename(path(other), path(one)).unwrap();
                }
                fs::rename(&aside, path(other)).unwrap();
                (vec![one, other], format!("{} and {} swapped", name(one), name(other)))
            }
            Injury::Garbage(file, bytes) => {
                let file = file.index(count);
                let target = path(file).with_extension("garbage");
                fs::write(&target, bytes).unwrap();
                (vec![], format!("{} bytes in {}", bytes.len(), target.display()))
            }
            Injury::Grow(file, bytes) => {
                let file = file.index(count);
                let target = File::options().write(true).open(path(file)).unwrap();
                target.write_all_at(bytes, self.files[file].length).unwrap();
                (vec![file], format!("{} bytes behind {}", bytes.len(), name(file)))
            }
            Injury::EmptySnapshot(place, generating) => {
                let first = self.firsts[place.index(self.firsts.len())];
                let end = if *generating { ".generating" } else { "" };
                let target = root.join(format!("generations/{first:020}/snap.7FFFFFFFFFFFFFF0{end}"));
                fs::write(&target, b"").unwrap();
                (vec![], format!("an empty {}", target.display()))
            }
        };
        Injured {
            touched: touched.into_iter().collect(),
            what,
        }
    }

    /// Opens the injured queue, reads and commits everything, appends, and reopens.
    async fn judge(&self, rig: Rig, injured: &Injured) -> Result<(), String> {
        let touches = |name: &str| {
            injured
                .touched
                .iter()
                .any(|file| self.files[*file].path == Path::new(name))
        };
        let queue = rig.start();
        eventually(|| queue.stats().unavailable.as_deref() != Some(crate::queue::Stats::OPENING)).await;
        if let Some(why) = queue.stats().unavailable {
            // A number that this version does not know is the one thing that a person has to look at.
            let text = fs::read_to_string(rig.path().join("FORMAT")).unwrap_or_default();
            let other = text
                .strip_prefix("flagtap-queue ")
                .and_then(|rest| rest.strip_suffix('\n'));
            let number = other.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()));
            queue.close().await;
            return match touches("FORMAT") && number {
                true => Ok(()),
                false => Err(format!("does not open: {why}")),
            };
        }
        let newest = *self.firsts.last().unwrap();
        let hit: Vec<u64> = injured
            .touched
            .iter()
            .filter_map(|file| self.generation_of(&self.files[*file]))
            .collect();
        let mut last = 0;
        for name in [LAKE, CDP] {
            let returned = drain(&queue, name).await?;
            let stats = of(&queue.stats(), name);
            let mut positions = BTreeSet::new();
            for (position, record) in &returned {
                if self.written.get(&position.0) != Some(record) {
                    return Err(format!("{name} got at {position} what was not written there"));
                }
                if !positions.insert(position.0) {
                    return Err(format!("{name} got {position} twice"));
                }
                last = last.max(position.0);
            }
            let waiting = &self.waiting[name];
            let again = positions.difference(waiting).count();
            if again > 0 && !hit.contains(&newest) && !hit.is_empty() {
                return Err(format!("{name} got {again} settled records again"));
            }
            let missing: Vec<u64> = waiting.difference(&positions).copied().collect();
            let spared = missing.iter().find(|position| !hit.contains(&self.holder(**position)));
            if let Some(position) = spared {
                return Err(format!(
                    "{name} lost {position}, whose generation was not hit; {stats:?}"
                ));
            }
            let events = |positions: &mut dyn Iterator<Item = &u64>| -> u64 {
                positions
                    .map(|position| self.written[position].events.len() as u64)
                    .sum()
            };
            let (lost, counted) = (events(&mut missing.iter()), sum(&stats.corrupt) + sum(&stats.evicted));
            // Two files swapped can be both witnesses of what waited: then it is known that a part is gone, not what was
            // in it.
            let is_swap = injured.touched.len() > 1;
            let is_uncountable = is_swap && hit.contains(&newest) && queue.stats().quarantined > 0;
            if lost > counted && !is_uncountable {
                return Err(format!(
                    "{name} lost {lost} events at {missing:?} and counted {counted}; {stats:?}"
                ));
            }
            let delivered = events(&mut positions.iter());
            if sum(&stats.recovered) != delivered + counted {
                return Err(format!("{name}: {delivered} delivered, {counted} lost: {stats:?}"));
            }
        }
        self.judge_letters(&queue, touches("dead-letters")).await?;
        // The marks of what was written count no more.
        rig.pass(Duration::from_secs(600));
        let position = store(&queue, rig.entry("a", &[LAKE, CDP], 1)).await;
        if position.0 <= last {
            return Err(format!("{position} was given twice"));
        }
        let queue = rig.reopen(queue).await;
        for name in [LAKE, CDP] {
            let returned = drain(&queue, name).await?;
            if returned.len() != 1 || returned[0].0 != position {
                let positions: Vec<_> = returned.iter().map(|(position, _)| position.0).collect();
                return Err(format!("{name} got {positions:?} after reopening, not {position}"));
            }
        }
        queue.close().await;
        Ok(())
    }

    async fn judge_letters(&self, queue: &Arc<dyn Queue>, touched: bool) -> Result<(), String> {
        let letters = within(queue.dead_letters(LAKE, 9))
            .await
            .map_err(|error| error.to_string())?;
        if letters
            .iter()
            .any(|found| *found != letter(found.position, found.index))
        {
            return Err("a dead letter that was not buried".to_owned());
        }
        let stats = queue.stats();
        if letters.len() < self.letters && (!touched || stats.corrupt_records == 0) {
            return Err(format!("{} dead letters are left, and none is missed", letters.len()));
        }
        Ok(())
    }

    fn generation_of(&self, file: &Prepared) -> Option<u64> {
        let folder = file.path.strip_prefix("generations").ok()?.iter().next()?;
        folder.to_str()?.parse().ok()
    }

    fn holder(&self, position: u64) -> u64 {
        let first = self.firsts.iter().rfind(|first| **first <= position);
        *first.expect("a generation")
    }
}

impl Injured {
    fn nothing() -> Self {
        Self {
            touched: BTreeSet::new(),
            what: "nothing".to_owned(),
        }
    }
}

fn rig() -> Rig {
    let mut rig = Rig::new(START).in_memory();
    rig.settings.generation_bytes = 40_000;
    rig
}

/// Reads and commits until nothing waits.
async fn drain(queue: &Arc<dyn Queue>, name: &str) -> Result<Vec<(Position, Record)>, String> {
    let mut reader = consumer(queue, name).await;
    let mut all: Vec<(Position, Record)> = Vec::new();
    while !of(&queue.stats(), name).waiting.is_empty() {
        let few = Limit {
            records: 5,
            bytes: usize::MAX,
        };
        // What is left may be lost: then nothing comes, and nothing waits any more.
        if let Ok(records) = timeout(Duration::from_millis(20), reader.next(few)).await {
            let records = records.map_err(|error| error.to_string())?;
            commit(&mut reader, records.last().ok_or("an empty read")?.0).await;
            all.extend(records);
        }
    }
    match all.is_sorted_by_key(|(position, _)| *position) {
        true => Ok(all),
        false => Err(format!("{name} got records out of order")),
    }
}

fn change(path: &Path, offset: u64, mask: u8) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ mask], offset).unwrap();
}

fn first_of(path: &Path) -> u64 {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap()
        .parse()
        .unwrap()
}

fn read_files(root: &Path) -> Vec<Prepared> {
    let mut files = Vec::new();
    for (path, length) in listing(root) {
        if path.is_dir() || path.file_name() == Some(&OsString::from("lock")) {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let pages = bytes.chunks(PAGE).zip((0..).step_by(PAGE));
        let pages = pages.filter(|(page, _)| page.iter().any(|byte| *byte != 0));
        files.push(Prepared {
            path: path.strip_prefix(root).unwrap().to_owned(),
            length,
            pages: pages.map(|(page, offset)| (offset, page.to_vec())).collect(),
        });
    }
    files
}
