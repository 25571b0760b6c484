//! The file of dead letters: events that were given up, kept until a person removes them.
//!
//! Append-only: `length u32, CRC-32 u32, letter` per dead letter, little-endian; a letter is its destination (string), 8 position,
//! 4 index, 8 time of death (ms), why (string), record (byte string, see [`codec`]). A torn end is cut off when the
//! file is opened and kept in the quarantine; a letter that does not check is passed over. Removal writes a new file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::directory::{disk_bytes, open_file, sync_directory};
use crate::queue::{DeadLetter, Position};
use crate::record::codec::{self, Encoder};
use crate::record::wire::{Malformed, Put, Take};

/// No letter is near this; a larger length is damage.
const MAX_LETTER: u32 = 512 << 20;

/// The dead letters of all destinations.
pub(super) struct DeadLetters {
    path: PathBuf,
    file: File,
    /// The end of what was acknowledged.
    end: u64,
    counts: BTreeMap<String, u64>,
    damaged: u64,
}

impl DeadLetters {
    /// Opens or makes the file. A torn end is moved to `torn`.
    pub(super) fn open(path: PathBuf, torn: &Path) -> io::Result<Self> {
        let mut file = open_file(
            &path,
            OpenOptions::new().create(true).read(true).write(true).truncate(false),
        )?;
        if let Some(parent) = path.parent() {
            sync_directory(parent)?;
        }
        let mut counts = BTreeMap::new();
        let mut damaged = 0;
        let end = scan(&file, |frame| match frame {
            Some(frame) => {
                if let Ok(name) = Take::new(frame).str() {
                    *counts.entry(name).or_default() += 1;
                }
                true
            }
            None => {
                damaged += 1;
                true
            }
        })?;
        let mut rest = Vec::new();
        file.seek(SeekFrom::Start(end))?;
        file.read_to_end(&mut rest)?;
        if !rest.is_empty() {
            fs::write(torn, &rest)?;
            file.set_len(end)?;
            file.sync_all()?;
        }
        Ok(Self {
            path,
            file,
            end,
            counts,
            damaged,
        })
    }

    /// Returns the number of letters by destination.
    pub(super) fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// Returns the number of letters that cannot be read.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.path)
    }

    /// Keeps letters; durable when this returns.
    pub(super) fn append(&mut self, name: &str, letters: &[DeadLetter], encoder: &mut Encoder) -> io::Result<()> {
        let mut bytes = Vec::new();
        for letter in letters {
            let record = encoder.encode(&letter.record).map_err(io::Error::other)?;
            put_frame(&mut bytes, &encode(name, letter, &record));
        }
        let outcome = self
            .file
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_data());
        if let Err(error) = outcome {
            // What got half way must not stand in front of the next letter; if this fails too, the next write is over it.
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.end += bytes.len() as u64;
        *self.counts.entry(name.to_owned()).or_default() += letters.len() as u64;
        Ok(())
    }

    /// Returns up to `limit` letters of a destination, oldest first.
    pub(super) fn list(&self, name: &str, limit: usize) -> io::Result<Vec<DeadLetter>> {
        let mut letters = Vec::new();
        scan(&self.file, |frame| {
            if let Some(Ok((destination, letter))) = frame.map(decode)
                && destination == name
                && letters.len() < limit
            {
                letters.push(letter);
            }
            letters.len() < limit
        })?;
        Ok(letters)
    }

    /// Removes letters of a destination; durable when this returns.
    pub(super) fn remove(&mut self, name: &str, letters: &[(Position, u32)]) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = open_file(
            &draft,
            OpenOptions::new().create(true).read(true).write(true).truncate(true),
        )?;
        let mut outcome = Ok(());
        let mut counts = BTreeMap::new();
        let mut end = 0;
        scan(&self.file, |frame| {
            let Some(frame) = frame else {
                return true;
            };
            let known = key(frame);
            if known
                .as_ref()
                .is_ok_and(|(destination, at)| destination == name && letters.contains(at))
            {
                return true;
            }
            let mut bytes = Vec::new();
            put_frame(&mut bytes, frame);
            outcome = file.write_all(&bytes);
            end += bytes.len() as u64;
            if let Ok((destination, _)) = known {
                *counts.entry(destination).or_default() += 1;
            }
            outcome.is_ok()
        })?;
        outcome?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        if let Some(parent) = self.path.parent() {
            sync_directory(parent)?;
        }
        self.file = file;
        self.end = end;
        self.counts = counts;
        Ok(())
    }
}

/// Hands every letter to `visit`, `None` for one that does not check, until it returns false. Returns the end of the last whole
/// one.
fn scan(mut file: &File, mut visit: impl FnMut(Option<&[u8]>) -> bool) -> io::Result<u64> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut end = 0;
    let mut frame = Vec::new();
    while length - end >= 8 {
        let mut head = [0; 8];
        reader.read_exact(&mut head)?;
        let mut take = Take::new(&head);
        let (Ok(size), Ok(checksum)) = (take.u32(), take.u32()) else {
            break;
        };
        if size > MAX_LETTER || u64::from(size) > length - end - 8 {
            break;
        }
        frame.resize(size as usize, 0);
        reader.read_exact(&mut frame)?;
        end += 8 + u64::from(size);
        let whole = crc32fast::hash(&frame) == checksum;
        if !visit(whole.then_some(&frame)) {
            break;
        }
    }
    Ok(end)
}

fn put_frame(bytes: &mut Vec<u8>, letter: &[u8]) {
    bytes.put_u32(letter.len() as u32);
    bytes.put_u32(crc32fast::hash(letter));
    bytes.extend_from_slice(letter);
}

fn encode(name: &str, letter: &DeadLetter, record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(record.len() + 64);
    bytes.put_str(name);
    bytes.put_u64(letter.position.0);
    bytes.put_u32(letter.index);
    bytes.put_u64(letter.dead_ms);
    bytes.put_str(&letter.why);
    bytes.put_bytes(record);
    bytes
}

fn key(bytes: &[u8]) -> Result<(String, (Position, u32)), Malformed> {
    let mut take = Take::new(bytes);
    Ok((take.str()?, (Position(take.u64()?), take.u32()?)))
}

fn decode(bytes: &[u8]) -> Result<(String, DeadLetter), Malformed> {
    let mut take = Take::new(bytes);
    let name = take.str()?;
    let letter = DeadLetter {
        position: Position(take.u64()?),
        index: take.u32()?,
        dead_ms: take.u64()?,
        why: take.str()?,
        record: codec::decode(take.bytes()?).map_err(|_| Malformed)?,
    };
    take.end()?;
    Ok((name, letter))
}
