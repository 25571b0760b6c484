//! A folder of our own for copies of generations. sled writes to whatever it opens and cannot open a database twice, so
//! whoever looks into a queue from outside looks at copies.
//!
//! One copy at a time, of mode 0700, removed when it is dropped.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::directory::{disk_bytes, free_bytes};
use super::generation::{Failure, Generation, Start};

const PREFIX: &str = "flagtap-queue-";

/// A folder of this age is one that a command left which was ended in the middle.
const LEFT_OVER: Duration = Duration::from_secs(24 * 3600);

/// Beside a process that writes a copy can catch files that do not fit together; a later one will.
const TRIES: usize = 3;

/// The folder for copies.
pub(super) struct Scratch {
    path: PathBuf,
}

/// An open copy of a generation.
pub(super) struct Copied {
    path: PathBuf,
    generation: Option<Generation>,
}

impl Scratch {
    /// Makes the folder where the system keeps what is temporary (`TMPDIR`).
    pub(super) fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        remove_leftovers(&parent);
        let path = parent.join(format!("{PREFIX}{}-{:016x}", std::process::id(), fastrand::u64(..)));
        // Fails for a name that is taken, so that nobody can put a folder of theirs in the way.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    /// Returns a copy of the generation at `from`. `is_changing`: somebody else may be writing to it.
    pub(super) fn open(&self, from: &Path, is_changing: bool) -> Result<Copied, Failure> {
        let mut tries = if is_changing { TRIES } else { 1 };
        loop {
            tries -= 1;
            match self.copy(from) {
                Err(Failure::Damaged(_) | Failure::Stateless) if tries > 0 => {}
                Err(_) if !from.exists() => return Err(Failure::Removed),
                outcome => return outcome,
            }
        }
    }

    /// Returns the start of a generation whose `start` file is damaged, from the copy in its database.
    pub(super) fn start(&self, from: &Path, first: u64) -> Result<Start, Failure> {
        let copied = Copied {
            path: self.path.join("start"),
            generation: None,
        };
        copy_directory(from, &copied.path).map_err(|error| Failure::Passing(error.to_string()))?;
        Start::restore(&copied.path, first)
    }

    fn copy(&self, from: &Path) -> Result<Copied, Failure> {
        let mut copied = Copied {
            path: self.path.join(from.file_name().unwrap_or_default()),
            generation: None,
        };
        let to = &copied.path;
        let (size, free) = (disk_bytes(from), free_bytes(&self.path).unwrap_or(u64::MAX));
        // The volume may be the queue's own, which the relay has to go on with.
        if free < size.saturating_mul(2) {
            return Err(Failure::Passing(format!(
                "a copy takes {size} bytes, and the volume of {} has {free} left: give a larger one with TMPDIR",
                self.path.display()
            )));
        }
        copy_directory(from, to)
            .map_err(|error| Failure::Passing(format!("cannot copy to {} (see TMPDIR): {error}", to.display())))?;
        copied.generation = Some(Generation::open(to)?);
        Ok(copied)
    }
}

impl Copied {
    /// Returns the generation.
    pub(super) fn generation(&self) -> Result<&Generation, Failure> {
        self.generation
            .as_ref()
            .ok_or_else(|| Failure::Passing("the copy is closed".to_owned()))
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // Closed before its files go: sled writes as it closes.
        drop(self.generation.take());
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes old folders for copies. Best effort: they only take room.
fn remove_leftovers(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = changed.and_then(|changed| changed.elapsed().ok());
        if age.is_some_and(|age| age > LEFT_OVER) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies what is there now. Snapshots before the database that they speak of, so that they never speak of more than was
/// copied.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    let mut entries = fs::read_dir(from)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
            continue;
        }
        match fs::copy(entry.path(), &target) {
            Ok(_) => {}
            // A draft gets its name, a snapshot its successor meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
