//! The folder on disk: the part being written, its recovery after a crash, its completion. Blocking.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::Settings;
use crate::destination::Item;
use crate::export::Members;

const LOCK: &str = ".flagtap.lock";
const TRIAL: &str = ".flagtap.probe";
const PREFIX: &str = "flagtap-";
const PART: &str = ".ndjson.part";
const COMPLETE: &str = ".ndjson";
const GZIPPED: &str = ".ndjson.gz";
const GZIPPING: &str = ".ndjson.gz.part";
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// Ids of the latest lines that are remembered. Only events of requests whose outcome the drain does not know come
/// again: the last one before a crash, or one that took longer than the drain waits. This is four requests.
const REMEMBERED: usize = 4 * super::LIMITS.items;

/// Why something could not be done.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    pub(super) why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A full disk, a failing device: it may pass.
    Passing,
    /// A path or a permission that somebody has to correct.
    Lasting,
    /// Another process writes to the folder.
    Locked,
}

impl Trouble {
    pub(super) fn passing(why: &str) -> Self {
        Self {
            cause: Cause::Passing,
            why: why.to_owned(),
        }
    }

    fn at<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |error| Self {
            cause: match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
                    Cause::Lasting
                }
                _ => Cause::Passing,
            },
            why: format!("cannot {what} {}: {error}", path.display()),
        }
    }
}

/// An open folder.
pub(super) struct Folder {
    settings: Settings,
    part: Option<Part>,
    written: Written,
    /// Held as long as the folder is open.
    _lock: File,
}

/// The file being written.
struct Part {
    file: File,
    path: PathBuf,
    began: Timestamp,
    /// Bytes that are lines and on disk.
    bytes: u64,
    /// A write failed: there may be more in the file than `bytes`.
    untidy: bool,
}

/// The ids of the latest lines.
#[derive(Default)]
struct Written {
    ids: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Folder {
    /// Makes the folder if need be, locks it and takes up what an earlier run left.
    pub(super) fn open(settings: &Settings) -> Result<Self, Trouble> {
        let path = &settings.path;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o750);
        builder.create(path).map_err(Trouble::at("make", path))?;
        let mut folder = Self {
            settings: settings.clone(),
            part: None,
            written: Written::default(),
            _lock: lock(&path.join(LOCK))?,
        };
        folder.recover()?;
        Ok(folder)
    }

    /// Appends the lines that are not there yet; they are on disk when this returns. All or none.
    pub(super) fn append(&mut self, lines: &[Item]) -> Result<(), Trouble> {
        let new: Vec<&Item> = lines
            .iter()
            .filter(|line| !self.written.ids.contains(line.id.as_str()))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        // Not earlier: `lines` may be a repetition of what the part holds, and only the part tells.
        self.rest(false)?;
        if self.part.as_ref().is_none_or(Part::has_vanished) {
            self.part = Some(self.begin()?);
        }
        let text = new.iter().map(|line| line.body.as_ref()).collect::<Vec<_>>().concat();
        if let Some(part) = &mut self.part {
            part.append(&text).map_err(Trouble::at("write to", &part.path))?;
        }
        new.iter().for_each(|line| self.written.push(&line.id));
        Ok(())
    }

    /// Completes the part if it is large or old enough, or at the end (`last`).
    pub(super) fn rest(&mut self, last: bool) -> Result<(), Trouble> {
        if let Some(part) = &self.part
            && (last || part.is_complete(&self.settings))
        {
            if !part.has_vanished() {
                part.complete(self.settings.gzip)?;
            }
            self.part = None;
        }
        Ok(())
    }

    /// Makes a file and removes it.
    pub(super) fn try_out(&mut self) -> Result<(), Trouble> {
        let path = self.settings.path.join(TRIAL);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o640);
        options.open(&path).map_err(Trouble::at("make", &path))?;
        fs::remove_file(&path).map_err(Trouble::at("remove", &path))
    }

    fn recover(&mut self) -> Result<(), Trouble> {
        let folder = &self.settings.path;
        let mut parts = Vec::new();
        for entry in fs::read_dir(folder).map_err(Trouble::at("read", folder))? {
            let path = entry.map_err(Trouble::at("read", folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(PREFIX) && name.ends_with(GZIPPING) {
                // Compressing was not finished; the part it came from is still there.
                fs::remove_file(&path).map_err(Trouble::at("remove", &path))?;
            } else if let Some(place) = place_in_time(&name) {
                parts.push((place, path));
            }
        }
        parts.sort();
        for ((began, _), path) in parts {
            if sibling(&path, GZIPPED).exists() {
                // The compressed file was complete, only this one not yet removed.
                fs::remove_file(&path).map_err(Trouble::at("remove", &path))?;
                continue;
            }
            let part = Part::reopen(path.clone(), began, &mut self.written).map_err(Trouble::at("recover", &path))?;
            // More than one is none of our doing, but their lines are as good.
            if let Some(older) = self.part.replace(part) {
                older.complete(self.settings.gzip)?;
            }
        }
        Ok(())
    }

    fn begin(&self) -> Result<Part, Trouble> {
        let folder = &self.settings.path;
        let began = Timestamp::now();
        let mut number = 0;
        loop {
            let path = folder.join(format!("{PREFIX}{}-{number}{PART}", began.strftime(TIME)));
            number += 1;
            if sibling(&path, COMPLETE).exists() || sibling(&path, GZIPPED).exists() {
                continue;
            }
            let mut options = OpenOptions::new();
            let file = match options.append(true).create_new(true).mode(0o640).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                file => file.map_err(Trouble::at("make", &path))?,
            };
            sync_folder(folder).map_err(Trouble::at("sync", folder))?;
            return Ok(Part {
                file,
                path,
                began,
                bytes: 0,
                untidy: false,
            });
        }
    }
}

impl Part {
    /// Takes up a part that a crash left: cuts off a torn line and remembers the ids.
    fn reopen(path: PathBuf, began: Timestamp, written: &mut Written) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).open(&path)?;
        let mut lines = BufReader::new(&file);
        let (mut bytes, mut line) = (0, Vec::new());
        while lines.read_until(b'\n', &mut line)? > 0 && line.last() == Some(&b'\n') {
            bytes += line.len() as u64;
            if let Some(id) = id_of(&line) {
                written.push(id);
            }
            line.clear();
        }
        file.set_len(bytes)?;
        // What is taken for written from here on has to be on disk.
        file.sync_all()?;
        Ok(Self {
            file,
            path,
            began,
            bytes,
            untidy: false,
        })
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.untidy {
            self.file.set_len(self.bytes)?;
        }
        self.untidy = true;
        let written = self.file.write_all(text).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // After a failed sync the kernel forgets what it could not write: only writing all of it again helps.
            self.untidy = self.file.set_len(self.bytes).is_err();
            return Err(error);
        }
        self.untidy = false;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn is_complete(&self, settings: &Settings) -> bool {
        let age = Duration::try_from(Timestamp::now() - self.began).unwrap_or_default();
        self.bytes >= settings.rotate_bytes || age >= settings.rotate_after
    }

    /// Returns true if somebody removed or replaced the file: what is written to it would be lost.
    fn has_vanished(&self) -> bool {
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(open)) => !same(there, open),
            _ => true,
        }
    }

    fn complete(&self, gzip: bool) -> Result<(), Trouble> {
        let path = &self.path;
        let folder = path.parent().unwrap_or(Path::new("."));
        if self.untidy {
            self.file.set_len(self.bytes).map_err(Trouble::at("write to", path))?;
        }
        if self.bytes == 0 {
            fs::remove_file(path).map_err(Trouble::at("remove", path))?;
        } else if gzip {
            self.compress().map_err(Trouble::at("compress", path))?;
            sync_folder(folder).map_err(Trouble::at("sync", folder))?;
            // If this fails the next start sees that the compressed file is there.
            let _ = fs::remove_file(path);
        } else {
            fs::rename(path, sibling(path, COMPLETE)).map_err(Trouble::at("rename", path))?;
        }
        // The name is a matter of order, not of loss: the lines are on disk under either.
        let _ = sync_folder(folder);
        Ok(())
    }

    fn compress(&self) -> io::Result<()> {
        let unfinished = sibling(&self.path, GZIPPING);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o640);
        let mut encoder = GzEncoder::new(BufWriter::new(options.open(&unfinished)?), Compression::default());
        let mut source = File::open(&self.path)?;
        source.seek(SeekFrom::Start(0))?;
        io::copy(&mut source, &mut encoder)?;
        let file = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&unfinished, sibling(&self.path, GZIPPED))
    }
}

impl Written {
    fn push(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        if self.ids.insert(Arc::clone(&id)) {
            self.order.push_back(id);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

fn lock(path: &Path) -> Result<File, Trouble> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o640);
    let file = options.open(path).map_err(Trouble::at("make", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Trouble {
            cause: Cause::Locked,
            why: format!("{} is locked: another flagtap writes to this folder", path.display()),
        }),
        // Some network file systems have no locks. One writer per folder is then the user's affair.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(error)) => Err(Trouble::at("lock", path)(error)),
    }
}

/// Returns when the part with this name began, and its number; `None` if it is not a part of ours.
fn place_in_time(name: &str) -> Option<(Timestamp, u64)> {
    let (time, number) = name.strip_prefix(PREFIX)?.strip_suffix(PART)?.split_once('-')?;
    let time = DateTime::strptime(TIME, time).ok()?;
    Some((TimeZone::UTC.to_timestamp(time).ok()?, number.parse().ok()?))
}

fn sibling(part: &Path, suffix: &str) -> PathBuf {
    let name = part.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(PART).unwrap_or(&name);
    part.with_file_name(format!("{stem}{suffix}"))
}

/// Returns the event's id in a line of ours.
fn id_of(line: &[u8]) -> Option<&str> {
    let event = Members::of(std::str::from_utf8(line).ok()?)?.get("event")?;
    let id = Members::of(event)?.get("id")?;
    id.strip_prefix('"')?.strip_suffix('"')
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
