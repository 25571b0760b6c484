//! Small files that are written as a whole and must survive a crash.
//!
//! ```text
//! <head> <CRC-32 of the rest, 8 hex digits> <length of the rest>\n
//! <the rest>
//! ```
//!
//! Written to `<name>.new`, synced, then the file so far becomes `<name>.previous` and the new one `<name>`. A crash at any
//! point leaves one of the two whole; damage to one leaves the other, which is a write older. The head names the content
//! and its version. Files are readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A kind of file that is kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The name in its folder.
    pub name: &'static str,
    /// The first words of the first line: what it is, and the version of its form.
    pub head: &'static str,
    /// More than any content has, bytes.
    pub most_bytes: u64,
}

/// What was found.
#[derive(Debug)]
pub struct Found<T> {
    /// The content of the newest file that can be read.
    pub content: Option<T>,
    /// Nothing was there at all.
    pub fresh: bool,
    /// What had to be passed over, for the log.
    pub damage: Vec<String>,
}

impl Kept {
    /// Reads what is kept in `folder` with `parse`, whose error is what is wrong with the content. What cannot be read is
    /// reported, and damage put aside as `<name>.damaged`.
    pub fn load<T>(&self, folder: &Path, parse: impl Fn(&str) -> Result<T, &'static str>) -> Found<T> {
        let mut found = Found {
            content: None,
            fresh: true,
            damage: Vec::new(),
        };
        for name in self.names() {
            let path = folder.join(&name);
            match self.read(&path, &parse) {
                Ok(None) => {}
                Ok(content) => {
                    found.fresh = false;
                    found.content = content;
                    return found;
                }
                Err(error) => {
                    found.fresh = false;
                    found.damage.push(format!("{}: {error}", path.display()));
                    // What cannot be read at all may be readable again. Not being able to put damage aside is no reason
                    // to stop: it is overwritten later.
                    if matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::InvalidData) {
                        let _ = fs::rename(&path, folder.join(format!("{name}.damaged")));
                    }
                }
            }
        }
        found
    }

    /// Reads like [`Kept::load`] in a folder that may belong to a running relay: changes nothing.
    pub fn look<T>(&self, folder: &Path, parse: impl Fn(&str) -> Result<T, &'static str>) -> Option<T> {
        let mut kept = self.names().into_iter();
        kept.find_map(|name| self.read(&folder.join(name), &parse).ok().flatten())
    }

    /// Replaces what is kept in `folder`. Blocks on the disk.
    pub fn write(&self, folder: &Path, body: &str) -> io::Result<()> {
        let [current, previous] = self.names().map(|name| folder.join(name));
        let new = folder.join(format!("{}.new", self.name));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(self.first_line(body).as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(body.as_bytes())?;
        file.sync_all()?;
        match fs::rename(&current, previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&new, &current)?;
        File::open(folder)?.sync_all()
    }

    fn names(&self) -> [String; 2] {
        [self.name.to_owned(), format!("{}.previous", self.name)]
    }

    fn first_line(&self, body: &str) -> String {
        format!("{} {:08x} {}", self.head, crc32fast::hash(body.as_bytes()), body.len())
    }

    /// Returns what a file holds; `None` if there is none.
    fn read<T>(&self, path: &Path, parse: impl Fn(&str) -> Result<T, &'static str>) -> io::Result<Option<T>> {
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => file.take(self.most_bytes).read_to_string(&mut text)?,
            // The queue says what is wrong with a folder that is none.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.body(&text).and_then(parse).map(Some).map_err(io::Error::other)
    }

    fn body<'a>(&self, text: &'a str) -> Result<&'a str, &'static str> {
        let (first, body) = text.split_once('\n').ok_or("has no first line")?;
        if !first.starts_with(self.head) {
            return Err("is of another version");
        }
        if first != self.first_line(body) {
            return Err("is damaged: its checksum does not match");
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEPT: Kept = Kept {
        name: "things",
        head: "flagtap-things 1",
        most_bytes: 1 << 20,
    };

    fn text(body: &str) -> Result<String, &'static str> {
        Ok(body.to_owned())
    }

    fn loaded(folder: &Path) -> (Option<String>, bool, usize) {
        let found = KEPT.load(folder, text);
        (found.content, found.fresh, found.damage.len())
    }

    #[test]
    fn damage_to_the_file_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(loaded(folder.path()), (None, true, 0));
        for body in ["first\n", "second\n"] {
            KEPT.write(folder.path(), body).unwrap();
            assert_eq!(loaded(folder.path()), (Some(body.to_owned()), false, 0));
        }
        let path = folder.path().join("things");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(KEPT.look(folder.path(), text).as_deref(), Some("first\n"));
        assert!(!folder.path().join("things.damaged").exists());
        assert_eq!(loaded(folder.path()), (Some("first\n".to_owned()), false, 1));
        assert!(folder.path().join("things.damaged").exists());
    }

    #[test]
    fn content_that_means_nothing_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        KEPT.write(folder.path(), "nonsense").unwrap();
        let found = KEPT.load(folder.path(), |_| Err::<(), _>("means nothing"));
        assert!(found.content.is_none() && !found.fresh);
        assert!(found.damage[0].ends_with("things: means nothing"), "{found:?}");
    }

    #[test]
    fn a_folder_that_is_none_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        fs::write(&path, "no folder").unwrap();
        assert_eq!(loaded(&path), (None, true, 0));
    }

    #[test]
    fn a_crash_between_the_renames_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        KEPT.write(folder.path(), "first").unwrap();
        fs::rename(folder.path().join("things"), folder.path().join("things.previous")).unwrap();
        fs::write(folder.path().join("things.new"), "flagtap-th").unwrap();
        assert_eq!(loaded(folder.path()), (Some("first".to_owned()), false, 0));
    }

    proptest! {
        /// Whatever one change does to the file, it is noticed.
        #[test]
        fn no_change_of_a_byte_goes_unnoticed(at in 0usize..200, byte: u8) {
            let body = "{\"a\":1700000000000,\"b\":[\"é\"]}";
            let mut bytes = format!("{}\n{body}", KEPT.first_line(body)).into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let read = String::from_utf8(bytes).ok().and_then(|text| KEPT.body(&text).ok().map(str::to_owned));
            prop_assert_eq!(read, None);
        }
    }
}
