//! The file `acknowledged`: how far the log got, known apart from the databases.
//!
//! sled repairs a damaged end of its log by leaving it out, and what it then holds looks whole. This file says what was
//! acknowledged, so that a log which ends before it is noticed, and what is gone is counted. It is written after a round
//! is durable and is not synced itself: that costs a microsecond, and after a power cut it can say less than is there,
//! never more.
//!
//! Two places, 64 KiB apart and written in turn, so that a torn write leaves the one before: length of the rest (u32),
//! CRC-32 of the rest (u32), then 8 number of the write, 8 end of the log, 8 newest receipt (ms), totals, a count (u32)
//! of names with a cursor, 8 number of dead letters. A place that does not check is ignored.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::directory::open_file;
use super::layout;
use crate::queue::Totals;
use crate::record::wire::{Malformed, Put, Take};

/// The file's name in the queue's directory.
pub(super) const FILE: &str = "acknowledged";

const PLACE: u64 = 64 << 10;

/// What was acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The end of the log.
    pub(super) tail: u64,
    pub(super) newest_ms: u64,
    pub(super) totals: Totals,
    /// Who has a cursor.
    pub(super) names: Vec<String>,
    /// Dead letters that have to be there, at the least.
    pub(super) letters: u64,
}

/// The open file.
pub(super) struct Acknowledged {
    file: File,
    /// The number of the last write.
    number: u64,
    known: Known,
    /// It held something, and nothing that checks.
    is_damaged: bool,
}

impl Acknowledged {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = open_file(path, options.create(true).read(true).write(true).truncate(false))?;
        let (number, known) = newest(&file);
        Ok(Self {
            is_damaged: number == 0 && file.metadata()?.len() > 0,
            file,
            number,
            known,
        })
    }

    /// Returns what the file says, without opening it for writing; nothing known if there is none.
    pub(super) fn look(path: &Path) -> io::Result<Known> {
        match File::open(path) {
            Ok(file) => Ok(newest(&file).1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(error),
        }
    }

    /// Returns what the file said when it was opened, or was told since.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// Returns whether a generation that begins at `first` may hold something that was acknowledged.
    pub(super) fn reaches_into(&self, first: u64) -> bool {
        self.is_damaged || self.known.tail > first
    }

    /// Keeps what is durable now. Does nothing if nothing changed.
    ///
    /// Fails if the disk does; the queue is as safe without, but damage may go unnoticed.
    pub(super) fn keep(&mut self, known: Known) -> io::Result<()> {
        if known == self.known {
            return Ok(());
        }
        let number = self.number + 1;
        let mut value = Vec::new();
        value.put_u64(number);
        value.put_u64(known.tail);
        value.put_u64(known.newest_ms);
        layout::put_totals(&mut value, &known.totals);
        value.put_u32(known.names.len() as u32);
        known.names.iter().for_each(|name| value.put_str(name));
        value.put_u64(known.letters);
        let mut bytes = Vec::with_capacity(value.len() + 8);
        bytes.put_u32(value.len() as u32);
        bytes.put_u32(crc32fast::hash(&value));
        bytes.extend_from_slice(&value);
        if bytes.len() as u64 > PLACE {
            return Err(io::Error::other("too many destinations and environments to remember"));
        }
        self.file.write_all_at(&bytes, number % 2 * PLACE)?;
        (self.number, self.known) = (number, known);
        Ok(())
    }

    /// Makes what was kept last durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn newest(file: &File) -> (u64, Known) {
    let places = [0, PLACE].map(|offset| read(file, offset));
    let newest = places.into_iter().flatten().max_by_key(|(number, _)| *number);
    newest.unwrap_or_default()
}

fn read(file: &File, offset: u64) -> Option<(u64, Known)> {
    let mut head = [0; 8];
    file.read_exact_at(&mut head, offset).ok()?;
    let mut take = Take::new(&head);
    let (length, checksum) = (take.u32().ok()?, take.u32().ok()?);
    if u64::from(length) > PLACE - 8 {
        return None;
    }
    let mut value = vec![0; length as usize];
    file.read_exact_at(&mut value, offset + 8).ok()?;
    if crc32fast::hash(&value) != checksum {
        return None;
    }
    decode(&value).ok()
}

fn decode(value: &[u8]) -> Result<(u64, Known), Malformed> {
    let mut take = Take::new(value);
    let number = take.u64()?;
    let known = Known {
        tail: take.u64()?,
        newest_ms: take.u64()?,
        totals: layout::take_totals(&mut take)?,
        names: (0..take.count(4)?).map(|_| take.str()).collect::<Result<_, _>>()?,
        letters: take.u64()?,
    };
    take.end()?;
    Ok((number, known))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn known(tail: u64) -> Known {
        let counts = BTreeMap::from([("production".to_owned(), tail)]);
        Known {
            tail,
            newest_ms: 5,
            totals: Totals(BTreeMap::from([("lake".to_owned(), counts)])),
            names: vec!["lake".to_owned(), "cdp".to_owned()],
            letters: 3,
        }
    }

    #[test]
    fn the_last_write_counts_and_a_torn_one_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acknowledged");
        let mut file = Acknowledged::open(&path).unwrap();
        assert_eq!(file.known(), &Known::default());
        for tail in 1..=3 {
            file.keep(known(tail)).unwrap();
        }
        assert_eq!(Acknowledged::open(&path).unwrap().known(), &known(3));
        // The third write went to the second place.
        file.file.write_all_at(b"torn", PLACE + 20).unwrap();
        let mut file = Acknowledged::open(&path).unwrap();
        assert_eq!(file.known(), &known(2));
        file.keep(known(4)).unwrap();
        assert_eq!(Acknowledged::open(&path).unwrap().known(), &known(4));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acknowledged");
        let mut file = Acknowledged::open(&path).unwrap();
        file.keep(known(1)).unwrap();
        let names = (0..10_000).map(|number| format!("destination-{number}")).collect();
        assert!(file.keep(Known { names, ..known(2) }).is_err());
        assert_eq!(Acknowledged::open(&path).unwrap().known(), &known(1));
    }
}
