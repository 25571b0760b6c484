//! One generation: a sled database with the records from one position on, opened so that damage is an answer.
//!
//! Owns every call into sled. What sled leaves open is closed here: its `flush` does not reach the disk on Linux, so a
//! write ends with our own `fdatasync`; its `open` panics on some damage and trips over its own empty snapshot files;
//! values are kept so small (`layout::CHUNK`) that it never makes a separate, unsynced file.
//!
//! Beside the database lies the file `start`: a CRC-32 (4 bytes) of the rest, then 8 first position, 8 first position and 8 end of
//! the generation before, 8 newest receipt before (ms), 8 time of creation (ms), totals before. It is never changed, and survives
//! when the database does not, so that what was lost can be counted. It gets its name when the database's files are durable, and
//! before the first write: a generation without it was never used, one with it and without a database is damaged.

use std::any::Any;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ::sled::{Config, Db, IVec, Mode};
use tracing::{error, warn};

use super::directory::{make_directory, replace_file, sync_directory};
use super::layout::{self, State, Writes};
use crate::queue::{Cursor, Seen, Totals};
use crate::record::wire::{Malformed, Put};

/// What sled writes in; it goes on with a new one wherever a database was opened again. Small, so that this costs little, and large
/// enough for [`layout::CHUNK`].
pub(super) const SEGMENT_BYTES: usize = 2 << 20;
const CACHE_BYTES: u64 = 8 << 20;

/// sled lets go of its file a moment after the last handle is dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a generation cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The surroundings refuse (disk full, permission, open elsewhere); the data may be fine.
    #[error("{0}")]
    Passing(String),
    /// The data is damaged.
    #[error("{0}")]
    Damaged(String),
    /// What its first write put there is not there: it never got to the disk, or all is lost.
    #[error("its state is missing")]
    Stateless,
    /// The generation was removed meanwhile.
    #[error("the generation was removed")]
    Removed,
}

/// What was known when a generation was begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) first: u64,
    /// The first position of the generation before; its own for the very first.
    pub(super) previous_first: u64,
    /// Where the generation before ends; below `first` if positions were skipped.
    pub(super) previous_end: u64,
    pub(super) newest_ms: u64,
    pub(super) created_ms: u64,
    pub(super) totals: Totals,
}

impl Start {
    /// Returns the content of the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        for number in [
            self.first,
            self.previous_first,
            self.previous_end,
            self.newest_ms,
            self.created_ms,
        ] {
            value.put_u64(number);
        }
        layout::put_totals(&mut value, &self.totals);
        layout::seal(&value)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = layout::unseal(bytes)?;
        let start = Self {
            first: take.u64()?,
            previous_first: take.u64()?,
            previous_end: take.u64()?,
            newest_ms: take.u64()?,
            created_ms: take.u64()?,
            totals: layout::take_totals(&mut take)?,
        };
        take.end()?;
        Ok(start)
    }

    /// Reads the file of the generation at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        match fs::read(path.join("start")) {
            Ok(bytes) => Self::decode(&bytes).map_err(|_| Failure::Damaged("its start file is damaged".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Failure::Damaged("its start file is missing".to_owned()))
            }
            Err(error) => Err(io_failure(&error)),
        }
    }

    /// Returns the start if it is that of the generation `first`.
    pub(super) fn check(self, first: u64) -> Result<Self, Failure> {
        match self.first == first {
            true => Ok(self),
            false => Err(Failure::Damaged("its start file is another's".to_owned())),
        }
    }

    /// Reads the copy in the generation's database, and writes the file anew.
    pub(super) fn restore(path: &Path, first: u64) -> Result<Self, Failure> {
        let generation = Slot::new(path.to_owned()).get()?;
        let db = generation.db()?;
        let bytes = guarded(|| db.get(layout::START))?.unwrap_or_default();
        let start = Self::decode(&bytes).ok().filter(|start| start.first == first);
        let start = start.ok_or_else(|| Failure::Damaged("its copy of the start file is damaged".to_owned()))?;
        replace_file(&path.join("start"), &bytes).map_err(|error| io_failure(&error))?;
        Ok(start)
    }

    /// Returns whether the generation at `path` was never used, by what is there: `failure` is why its start could not be restored.
    pub(super) fn never_written(path: &Path, failure: &Failure) -> bool {
        let has = |name| path.join(name).exists();
        !has("start") && (matches!(failure, Failure::Stateless) || !has("db"))
    }
}

/// What a generation knows of the whole queue.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) cursors: Vec<(String, Cursor)>,
    /// Names whose cursor cannot be read.
    pub(super) broken: Vec<String>,
    pub(super) marks: Vec<Seen>,
    pub(super) next_block: u32,
}

/// An open generation.
pub(super) struct Generation {
    db: Option<Db>,
    file: File,
}

impl Generation {
    /// Begins a generation: its files are durable when this returns, but for the first write.
    pub(super) fn create(path: &Path, start: &Start) -> Result<Self, Failure> {
        make_directory(path).map_err(|error| io_failure(&error))?;
        let generation = Self::open_database(path)?;
        let settled = generation.settle_files(path);
        // Last: where it is, a power cut has left all the others.
        let settled = settled.and_then(|()| replace_file(&path.join("start"), &start.encode()));
        settled.map_err(|error| io_failure(&error))?;
        Ok(generation)
    }

    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        // A database that is not there would be made anew, and look like an empty one.
        if !path.join("db").exists() {
            return Err(Failure::Damaged("its database file is missing".to_owned()));
        }
        remove_broken_snapshots(path).map_err(|error| io_failure(&error))?;
        match Self::open_database(path) {
            Err(Failure::Damaged(why)) if set_derived_aside(path).map_err(|error| io_failure(&error))? => {
                warn!(
                    error = why,
                    "a generation of the queue is opened without its derived files"
                );
                Self::open_database(path)
            }
            outcome => outcome,
        }
        .and_then(Self::with_state)
    }

    /// Returns the generation if there is a state in it. sled opens whatever it is given, if need be as an empty database.
    fn with_state(self) -> Result<Self, Failure> {
        let db = self.db()?;
        match guarded(|| db.contains_key(layout::STATE))? {
            true => Ok(self),
            false => Err(Failure::Stateless),
        }
    }

    fn open_database(path: &Path) -> Result<Self, Failure> {
        let config = Config::new()
            .path(path)
            .mode(Mode::HighThroughput)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .segment_size(SEGMENT_BYTES);
        let deadline = Instant::now() + LOCK_PATIENCE;
        let db = loop {
            match guarded(|| config.open()) {
                Err(Failure::Passing(why)) if why.contains("could not acquire lock") && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                other => break other?,
            }
        };
        let file = File::open(path.join("db")).map_err(|error| io_failure(&error))?;
        Ok(Self { db: Some(db), file })
    }

    fn settle_files(&self, path: &Path) -> io::Result<()> {
        for name in ["db", "conf"] {
            fs::set_permissions(path.join(name), Permissions::from_mode(0o600))?;
        }
        fs::set_permissions(path.join("blobs"), Permissions::from_mode(0o700))?;
        // sled never syncs its configuration, and without it opens with whatever it is given.
        File::open(path.join("conf"))?.sync_all()?;
        sync_directory(path)
    }

    /// Writes all of it or nothing; durable when this returns.
    pub(super) fn write(&self, writes: Writes) -> Result<(), Failure> {
        let db = self.db()?;
        guarded(|| {
            db.apply_batch(writes.batch)?;
            db.flush()
        })?;
        self.file.sync_data().map_err(|error| io_failure(&error))
    }

    /// Returns everything but the records.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        let db = self.db()?;
        let state = guarded(|| db.get(layout::STATE))?.ok_or(Failure::Stateless)?;
        let damaged = |_| Failure::Damaged("its state is damaged".to_owned());
        let mut loaded = Loaded {
            state: layout::read_state(&state).map_err(damaged)?,
            ..Loaded::default()
        };
        for (key, value) in guarded(|| db.scan_prefix(b"c").collect::<Result<Vec<_>, _>>())? {
            let Some(name) = key.get(1..).and_then(|name| std::str::from_utf8(name).ok()) else {
                continue;
            };
            match self.load_cursor(name, &value)? {
                Some(cursor) => loaded.cursors.push((name.to_owned(), cursor)),
                None => loaded.broken.push(name.to_owned()),
            }
        }
        for (key, value) in guarded(|| db.scan_prefix(b"m").collect::<Result<Vec<_>, _>>())? {
            // A mark that is lost costs a duplicate at the most.
            loaded.marks.extend(layout::read_marks(&value).unwrap_or_default());
            loaded.next_block = layout::parse_mark_key(&key).map_or(loaded.next_block, |block| block + 1);
        }
        Ok(loaded)
    }

    /// Returns the pieces of the records from `from` up to, not including, `end`, in order.
    pub(super) fn pieces(
        &self,
        from: u64,
        end: u64,
    ) -> Result<impl Iterator<Item = Result<(IVec, IVec), Failure>> + use<>, Failure> {
        let mut range = self
            .db()?
            .range(layout::record_key(from, 0)..layout::record_key(end, 0));
        Ok(std::iter::from_fn(move || match guarded(|| range.next().transpose()) {
            Ok(item) => item.map(Ok),
            Err(failure) => Some(Err(failure)),
        }))
    }

    /// Returns the bytes its database takes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    fn load_cursor(&self, name: &str, value: &[u8]) -> Result<Option<Cursor>, Failure> {
        let db = self.db()?;
        let Ok((mut cursor, length, checksum)) = layout::read_cursor(value) else {
            return Ok(None);
        };
        for part in 0..length.div_ceil(layout::CHUNK) {
            let piece = guarded(|| db.get(layout::note_key(name, part as u32)))?;
            cursor.note.extend_from_slice(piece.as_deref().unwrap_or_default());
        }
        cursor.note.truncate(length);
        let whole = cursor.note.len() == length && crc32fast::hash(&cursor.note) == checksum;
        Ok(whole.then_some(cursor))
    }

    fn db(&self) -> Result<&Db, Failure> {
        // Only `drop` takes it.
        self.db.as_ref().ok_or_else(|| Failure::Passing("closed".to_owned()))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // sled syncs as it closes and panics if that fails; what was acknowledged is durable without.
        let db = self.db.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(db))) {
            error!(
                error = panic_text(&*payload),
                "closing a generation of the queue failed"
            );
        }
    }
}

/// A generation's place, open while somebody uses it.
#[derive(Debug)]
pub(super) struct Slot {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    open: Weak<Generation>,
    gone: bool,
}

impl Slot {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Self::with(path, Weak::new())
    }

    /// Returns the slot of a generation that is open already.
    pub(super) fn opened(path: PathBuf, generation: &Arc<Generation>) -> Arc<Self> {
        Self::with(path, Arc::downgrade(generation))
    }

    fn with(path: PathBuf, open: Weak<Generation>) -> Arc<Self> {
        let inner = Mutex::new(Inner { open, gone: false });
        Arc::new(Self { path, inner })
    }

    /// Returns the generation, opened if it is not. Touches the disk.
    pub(super) fn get(&self) -> Result<Arc<Generation>, Failure> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.gone {
            return Err(Failure::Removed);
        }
        if let Some(generation) = inner.open.upgrade() {
            return Ok(generation);
        }
        let generation = Arc::new(Generation::open(&self.path)?);
        inner.open = Arc::downgrade(&generation);
        Ok(generation)
    }

    /// Lets nobody open the generation any more, or again: sled would make a new one where it was.
    pub(super) fn retire(&self, gone: bool) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).gone = gone;
    }
}

/// Calls into sled. A panic is an answer like any other error.
fn guarded<T>(call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Io(error))) => Err(io_failure(&error)),
        Ok(Err(error)) => Err(Failure::Damaged(error.to_string())),
        Err(payload) => Err(Failure::Damaged(format!("sled panicked: {}", panic_text(&*payload)))),
    }
}

/// Only an answer about the surroundings is passing; a read that cannot succeed is damage, or the queue would stand still.
fn io_failure(error: &io::Error) -> Failure {
    use io::ErrorKind as Kind;
    let text = error.to_string();
    let passing = matches!(
        error.kind(),
        Kind::PermissionDenied
            | Kind::WouldBlock
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::ReadOnlyFilesystem
            | Kind::OutOfMemory
            | Kind::Interrupted
    );
    // sled repeats an error of its writer as text; these have no kind of their own.
    let told = [
        "could not acquire lock",
        "Too many open files",
        "No space left",
        "StorageFull",
    ];
    if passing || told.iter().any(|phrase| text.contains(phrase)) {
        Failure::Passing(text)
    } else {
        Failure::Damaged(text)
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

/// Renames what sled can do without, so that damage to it costs nothing: snapshots, which only speed opening up, and its
/// configuration, which is always ours. Returns whether there was any.
fn set_derived_aside(path: &Path) -> io::Result<bool> {
    let mut any = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") || name == "conf" {
            fs::rename(entry.path(), path.join(format!("aside-{name}")))?;
            any = true;
        }
    }
    Ok(any)
}

/// A snapshot only speeds opening up. One that was being written when the disk was full stops every later open.
fn remove_broken_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") && (name.ends_with(".generating") || entry.metadata()?.len() == 0) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
