//! The file of dead letters: events that were given up, kept until they are delivered after all or a person removes them.
//!
//! Append-only: `length u32, CRC-32 u32, letter` per dead letter, little-endian. A letter is `u32::MAX`, its format version
//! (u8, 2), its destination (string), 8 position, 4 index, 8 time of death (ms), 1 transient (0 or 1), why (string),
//! record (byte string, see [`codec`]). Version 1 has neither the first two nor `transient`: it begins with the length of
//! the destination's name. A torn end is cut off when the file is opened and kept in the quarantine; a letter that does
//! not check is passed over and stays. Where it is its length that is damaged, reading goes on at the next letter (of version
//! 2) that checks. Removal writes a new file, so whoever reads beside the writer sees one or the other.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::directory::{disk_bytes, open_file, sync_directory};
use crate::queue::{DeadLetter, Position};
use crate::record::codec::{self, Encoder};
use crate::record::wire::{Malformed, Put, Take};

/// The file's name in the queue's directory.
pub(super) const FILE: &str = "dead-letters";

const VERSION: u8 = 2;

/// Stands where a letter of version 1 has a length; no name is so long.
const VERSIONED: u32 = u32::MAX;

/// No letter is near this; a larger length is damage.
const MAX_LETTER: u32 = 512 << 20;

/// Length and checksum before a letter, bytes.
const HEAD: usize = 8;

/// How much is looked through at a time for the next letter.
const SEARCHED: usize = 64 << 10;

/// The dead letters of all destinations.
pub(super) struct DeadLetters {
    path: PathBuf,
    file: File,
    /// The end of what was acknowledged.
    end: u64,
    counts: BTreeMap<String, Count>,
    damaged: u64,
}

/// How many letters a destination has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// All of them.
    pub(super) letters: u64,
    /// Those that go out again by themselves.
    pub(super) transient: u64,
}

impl Count {
    fn add(&mut self, transient: bool) {
        self.letters += 1;
        self.transient += u64::from(transient);
    }
}

/// One letter with its head, and whether the bytes are those that were written. Where not, there may be no head.
struct Frame<'a> {
    bytes: &'a [u8],
    is_whole: bool,
}

/// What the file holds, as somebody beside the writer sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Letters by destination.
    pub(super) letters: BTreeMap<String, Count>,
    /// Letters that cannot be read.
    pub(super) damaged: u64,
    /// Bytes behind the last whole letter.
    pub(super) torn_bytes: u64,
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
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        let mut damaged = 0;
        let end = scan(&file, |frame| {
            match key(&frame) {
                Ok((name, _, transient)) => counts.entry(name).or_default().add(transient),
                Err(Malformed) => damaged += 1,
            }
            Ok(true)
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
    pub(super) fn counts(&self) -> &BTreeMap<String, Count> {
        &self.counts
    }

    /// Returns the number of letters of all destinations.
    pub(super) fn count(&self) -> u64 {
        self.counts.values().map(|count| count.letters).sum()
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
            let letter = encode(name, letter, &record);
            put_frame(&mut bytes, &letter);
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
        let count = self.counts.entry(name.to_owned()).or_default();
        letters.iter().for_each(|letter| count.add(letter.transient));
        Ok(())
    }

    /// Returns those of `letters` that are there, oldest first, and stops behind `bytes` of event JSON.
    pub(super) fn take(&self, name: &str, letters: &[(Position, u32)], bytes: u64) -> io::Result<Vec<DeadLetter>> {
        let wanted: HashSet<&(Position, u32)> = letters.iter().collect();
        let (mut found, mut taken) = (Vec::new(), 0);
        scan(&self.file, |frame| {
            if let Ok((destination, at, _)) = key(&frame)
                && destination == name
                && wanted.contains(&at)
                && let Ok((_, letter)) = decode(&frame)
            {
                taken += letter.record.json_bytes();
                found.push(letter);
            }
            Ok(taken < bytes)
        })?;
        Ok(found)
    }

    /// Removes letters of a destination; durable when this returns.
    pub(super) fn remove(&mut self, name: &str, letters: &[(Position, u32)]) -> io::Result<()> {
        let removed: HashSet<&(Position, u32)> = letters.iter().collect();
        let draft = self.path.with_extension("new");
        let mut file = open_file(
            &draft,
            OpenOptions::new().create(true).read(true).write(true).truncate(true),
        )?;
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        let mut end = 0;
        scan(&self.file, |frame| {
            let known = key(&frame).ok();
            if let Some((destination, at, _)) = &known
                && destination == name
                && removed.contains(at)
            {
                return Ok(true);
            }
            file.write_all(frame.bytes)?;
            end += frame.bytes.len() as u64;
            if let Some((destination, _, transient)) = known {
                counts.entry(destination).or_default().add(transient);
            }
            Ok(true)
        })?;
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

/// Returns up to `limit` letters of a destination for which `wanted` is true, oldest first; none if there is no file.
pub(super) fn find(
    path: &Path,
    name: &str,
    limit: usize,
    wanted: &dyn Fn(&DeadLetter) -> bool,
) -> io::Result<Vec<DeadLetter>> {
    let mut letters = Vec::new();
    visit(path, |frame| {
        if let Ok((destination, ..)) = key(frame)
            && destination == name
            && letters.len() < limit
            && let Ok((_, letter)) = decode(frame)
            && wanted(&letter)
        {
            letters.push(letter);
        }
        letters.len() < limit
    })?;
    Ok(letters)
}

/// Hands every letter that can be read, with its destination, to `visit` until it returns false; none if there is no
/// file.
pub(super) fn read(path: &Path, mut each: impl FnMut(String, DeadLetter) -> bool) -> io::Result<()> {
    visit(path, |frame| match decode(frame) {
        Ok((name, letter)) => each(name, letter),
        Err(Malformed) => true,
    })
    .map(drop)
}

/// Returns what the file holds; every letter is decoded.
pub(super) fn summary(path: &Path) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let end = visit(path, |frame| {
        match decode(frame) {
            Ok((name, letter)) => summary.letters.entry(name).or_default().add(letter.transient),
            Err(Malformed) => summary.damaged += 1,
        }
        true
    })?;
    let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
    summary.torn_bytes = length.saturating_sub(end);
    Ok(summary)
}

fn visit(path: &Path, mut visit: impl FnMut(&Frame<'_>) -> bool) -> io::Result<u64> {
    match File::open(path) {
        Ok(file) => scan(&file, |frame| Ok(visit(&frame))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Hands every letter to `visit` until it returns false. Returns the end of the last one.
fn scan(mut file: &File, mut visit: impl FnMut(Frame<'_>) -> io::Result<bool>) -> io::Result<u64> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let mut end = 0;
    let mut bytes = Vec::new();
    while length - end >= HEAD as u64 {
        bytes.resize(HEAD, 0);
        reader.read_exact(&mut bytes)?;
        let size = size_of_letter(&bytes).filter(|size| *size <= length - end - HEAD as u64);
        if let Some(size) = size {
            bytes.resize(HEAD + size as usize, 0);
            reader.read_exact(&mut bytes[HEAD..])?;
        }
        let is_whole = size.is_some() && checks(&bytes);
        if !is_whole && (size.is_none() || !begins_letter(file, end + bytes.len() as u64, length)?) {
            match next_letter(file, end + 1, length)? {
                Some(next) => {
                    bytes.resize((next - end) as usize, 0);
                    reader.seek(SeekFrom::Start(end))?;
                    reader.read_exact(&mut bytes)?;
                }
                // Nothing behind it tells otherwise, so its length is believed.
                None if size.is_some() => {}
                None => break,
            }
        }
        end += bytes.len() as u64;
        let frame = Frame {
            bytes: &bytes,
            is_whole,
        };
        if !visit(frame)? {
            break;
        }
    }
    Ok(end)
}

/// Returns the length that a head gives, if a letter can have it.
fn size_of_letter(head: &[u8]) -> Option<u64> {
    let size = Take::new(head).u32().ok()?;
    (size <= MAX_LETTER).then_some(u64::from(size))
}

fn checks(frame: &[u8]) -> bool {
    let (head, letter) = frame.split_at(HEAD);
    Take::new(&head[4..]).u32() == Ok(crc32fast::hash(letter))
}

/// Returns whether the file ends at `at`, or a letter begins there, itself damaged or not.
fn begins_letter(file: &File, at: u64, length: u64) -> io::Result<bool> {
    let mut marker = [0; 4];
    if at == length {
        return Ok(true);
    }
    if length - at >= (HEAD + marker.len()) as u64 {
        file.read_exact_at(&mut marker, at + HEAD as u64)?;
    }
    Ok(marker == VERSIONED.to_le_bytes() || checks_at(file, at, length)?)
}

/// Returns whether a letter at `at` is as it was written.
fn checks_at(file: &File, at: u64, length: u64) -> io::Result<bool> {
    let mut bytes = vec![0; HEAD];
    if length - at < HEAD as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut bytes, at)?;
    let size = size_of_letter(&bytes).filter(|size| *size <= length - at - HEAD as u64);
    let Some(size) = size else { return Ok(false) };
    bytes.resize(HEAD + size as usize, 0);
    file.read_exact_at(&mut bytes[HEAD..], at + HEAD as u64)?;
    Ok(checks(&bytes))
}

/// Returns where the first letter from `from` on begins that is as it was written. Letters of version 1 have nothing to
/// know them by.
fn next_letter(file: &File, from: u64, length: u64) -> io::Result<Option<u64>> {
    let marker = VERSIONED.to_le_bytes();
    let mut searched = vec![0; SEARCHED];
    let mut at = from + HEAD as u64;
    while at + marker.len() as u64 <= length {
        let size = searched.len().min((length - at) as usize);
        file.read_exact_at(&mut searched[..size], at)?;
        let windows = searched[..size].windows(marker.len());
        for (offset, _) in windows.enumerate().filter(|(_, window)| *window == marker) {
            let begin = at + offset as u64 - HEAD as u64;
            if checks_at(file, begin, length)? {
                return Ok(Some(begin));
            }
        }
        // A marker may lie across the end of what was searched.
        at += (size - (marker.len() - 1)) as u64;
    }
    Ok(None)
}

fn put_frame(bytes: &mut Vec<u8>, letter: &[u8]) {
    bytes.put_u32(letter.len() as u32);
    bytes.put_u32(crc32fast::hash(letter));
    bytes.extend_from_slice(letter);
}

fn encode(name: &str, letter: &DeadLetter, record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(record.len() + 64);
    bytes.put_u32(VERSIONED);
    bytes.put_u8(VERSION);
    bytes.put_str(name);
    bytes.put_u64(letter.position.0);
    bytes.put_u32(letter.index);
    bytes.put_u64(letter.dead_ms);
    bytes.put_u8(u8::from(letter.transient));
    bytes.put_str(&letter.why);
    bytes.put_bytes(record);
    bytes
}

/// Returns the version of a letter that checks, and what is to be read behind it.
fn open<'a>(frame: &Frame<'a>) -> Result<(u8, Take<'a>), Malformed> {
    if !frame.is_whole {
        return Err(Malformed);
    }
    let mut take = Take::new(&frame.bytes[HEAD..]);
    let mut versioned = take;
    if versioned.u32()? != VERSIONED {
        return Ok((1, take));
    }
    take = versioned;
    match take.u8()? {
        VERSION => Ok((VERSION, take)),
        // A later flagtap wrote it: it is kept, and left to that.
        _ => Err(Malformed),
    }
}

/// Returns a letter's destination, its position and index, and whether it is transient.
fn key(frame: &Frame<'_>) -> Result<(String, (Position, u32), bool), Malformed> {
    let (version, mut take) = open(frame)?;
    let (name, position, index) = (take.str()?, Position(take.u64()?), take.u32()?);
    let _dead_ms = take.u64()?;
    Ok((name, (position, index), version >= 2 && take.u8()? != 0))
}

fn decode(frame: &Frame<'_>) -> Result<(String, DeadLetter), Malformed> {
    let (version, mut take) = open(frame)?;
    let name = take.str()?;
    let (position, index, dead_ms) = (Position(take.u64()?), take.u32()?, take.u64()?);
    let transient = version >= 2 && take.u8()? != 0;
    let letter = DeadLetter {
        position,
        index,
        dead_ms,
        transient,
        why: take.str()?,
        record: codec::decode(take.bytes()?).map_err(|_| Malformed)?,
    };
    take.end()?;
    Ok((name, letter))
}

#[cfg(test)]
mod tests;
