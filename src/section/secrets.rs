//! How a section reads secrets: inline, best as `${NAME}`, or from the file that `<key>_file` names.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::tree::{Node, Value};
use super::{Section, describe, schema};
use crate::problems::Place;
use crate::secret::Secret;

/// Largest file behind a `…_file` key, bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

impl Section<'_> {
    /// Returns the secret under `key`, or in the file named by `<key>_file`; nothing if neither is given or it was
    /// reported.
    pub fn secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        self.note(key, "secret", None, false);
        self.note(&file_key, "path", None, false);
        self.record_schema(key, schema::secret());
        self.record_scalar::<PathBuf>(&file_key);
        self.not_both(key, &file_key);
        if let Some(entry) = self.find(key) {
            return self.checked_secret(&entry.node, self.place_below(key));
        }
        let (text, place) = self.secret_file(&file_key)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        self.secret_text(text, place)
    }

    /// Returns the secret like [`Section::secret`], and reports if neither key is given.
    pub fn required_secret(&mut self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let secret = self.secret(key);
        self.record_any_of([key.to_owned(), file_key.clone()]);
        if !self.has(key) && !self.has(&file_key) {
            self.problem(None, format!("needs `{key}` or `{file_key}`"));
        }
        secret
    }

    /// Returns the secrets listed under `key`, or in the file named by `<key>_file` (one per line, empty lines left
    /// out), with their places.
    pub fn secrets(&mut self, key: &str) -> Vec<(Secret, Place)> {
        let file_key = format!("{key}_file");
        self.note(key, "list of secrets", None, false);
        self.note(&file_key, "path", None, false);
        self.record_list(key, Some(schema::secret()));
        self.record_scalar::<PathBuf>(&file_key);
        self.not_both(key, &file_key);
        let mut secrets = Vec::new();
        if self.find(key).is_some() {
            for (index, item) in self
                .items(key, "a list of secrets")
                .unwrap_or_default()
                .iter()
                .enumerate()
            {
                let place = self.place_of_item(key, index, item);
                secrets.extend(self.checked_secret(item, place.clone()).map(|secret| (secret, place)));
            }
        } else if let Some((text, place)) = self.secret_file(&file_key) {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            for line in lines {
                secrets.extend(
                    self.secret_text(line, place.clone())
                        .map(|secret| (secret, place.clone())),
                );
            }
            if secrets.is_empty() {
                self.problem(Some(&file_key), "names a file without a secret in it");
            }
        }
        secrets
    }

    /// Returns the secrets of a mapping whose names are free, with their names and places. A name that ends with `_file`
    /// stands for the name before it, and its value for that file's content. Values may hold spaces: `Bearer …`.
    pub fn secret_mapping(&mut self, key: &str) -> Vec<(String, Secret, Place)> {
        let read = |section: &mut Section<'_>| {
            section.camel_case = false;
            // No name is unknown here.
            section.asked = section.keys().into_iter().map(str::to_owned).collect();
            let names = section.asked.clone();
            let secrets = names.iter().filter_map(|name| section.named_secret(name));
            secrets.collect()
        };
        let secrets = self.section(key, read).unwrap_or_default();
        self.record_free(key, Some(schema::secret()));
        secrets
    }

    fn named_secret(&self, name: &str) -> Option<(String, Secret, Place)> {
        let (name, text, place) = match (name.strip_suffix("_file"), &self.find(name)?.node.value) {
            (Some(header), _) => {
                let (text, place) = self.secret_file(name)?;
                (header, text, place)
            }
            (None, Value::Text(text)) => (name, text.clone(), self.place_below(name)),
            (None, Value::Broken) => return None,
            (None, other) => {
                self.problem(Some(name), format!("is {}, expected a secret", describe(other)));
                return None;
            }
        };
        let text = text.trim();
        if text.is_empty() || text.chars().any(char::is_control) {
            self.problem_at(
                place,
                "is an empty secret, or one with a line break or control character in it",
            );
            return None;
        }
        Some((name.to_owned(), Secret::new(text.to_owned()), place))
    }

    fn checked_secret(&self, node: &Node, place: Place) -> Option<Secret> {
        match &node.value {
            Value::Broken => None,
            Value::Text(text) => self.secret_text(text, place),
            Value::Null => self.secret_text("", place),
            other => {
                self.problem_at(place, format!("is {}, expected a secret", describe(other)));
                None
            }
        }
    }

    fn secret_text(&self, text: &str, place: Place) -> Option<Secret> {
        if text.is_empty() {
            self.problem_at(place, "is an empty secret; give a value or remove the key");
            return None;
        }
        // Secrets go into HTTP headers: what cannot stand there is a mistake in the file or in the mount.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.problem_at(place, "is a secret with a space, line break or control character in it");
            return None;
        }
        Some(Secret::new(text.to_owned()))
    }

    fn not_both(&self, key: &str, file_key: &str) {
        if self.has(key) && self.has(file_key) {
            self.problem(Some(file_key), format!("is given together with `{key}`; keep one"));
        }
    }

    fn secret_file(&self, file_key: &str) -> Option<(String, Place)> {
        let entry = self.find(file_key)?;
        let place = self.place_below(file_key);
        let path: PathBuf = self.leaf(&entry.node, place.clone())?;
        self.context.files.borrow_mut().push(path.clone());
        let mut text = String::new();
        let outcome = plain_file(&path).and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text));
        match outcome {
            Ok(length) if length as u64 <= MAX_SECRET_BYTES => Some((text, place)),
            Ok(_) => {
                self.problem_at(place, "names a file of more than 64KiB, which is no secret");
                None
            }
            Err(error) => {
                self.problem_at(place, format!("names a file that cannot be read: {}", error.kind()));
                None
            }
        }
    }
}

/// Opens a file. A pipe is refused: reading it again, as a reload does, would wait for somebody to write.
fn plain_file(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::open(path)
}
