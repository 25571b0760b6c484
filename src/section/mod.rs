//! Reads a configuration mapping key by key and collects every problem with its place.
//!
//! [`read`] parses the text and hands the root [`Section`] to a reader. A reader asks for its keys by name and type;
//! whatever was not asked for is an unknown key and fatal. Nothing stops at the first problem: a reader asks for all
//! of its keys first and puts its value together afterwards. No message repeats a value of the file.
//!
//! Every key asked for is also noted with type and default ([`Known`]), which is what the tests compare
//! `config.example.yaml` and `docs/configuration.md` with.

mod leaf;
mod named;
mod schema;
mod secrets;
mod spelling;
mod suggest;
mod tree;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::problems::{Place, Problems};

pub use leaf::Leaf;
pub use named::Named;
pub use schema::{scalar, schema, words};
use suggest::closest;
pub use suggest::not_a_choice;
use tree::{Entry, Node, Value};

/// What [`read`] gives back.
#[derive(Debug)]
pub struct Reading<T> {
    /// What the reader made of the root; nothing if the text is no YAML mapping.
    pub value: Option<T>,
    /// Everything found wrong, in the order of the file.
    pub problems: Problems,
    /// Every key that was asked for, by path with `[]` for list items.
    pub known: BTreeMap<String, Known>,
    /// Every file that a `…_file` key names.
    pub files: Vec<PathBuf>,
}

/// What the reader asked for under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The type, in the words of [`Leaf::noun`].
    pub noun: String,
    /// The default in the configuration's spelling; nothing where there is none.
    pub default: Option<String>,
    /// The key must be given.
    pub required: bool,
}

/// Parses `text` and has `reader` read its root mapping. `environment` gives the values for `${NAME}`.
pub fn read<T>(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    reader: impl FnOnce(&mut Section<'_>) -> T,
) -> Reading<T> {
    let mut problems = Problems::default();
    let root = tree::parse(text, environment, &mut problems);
    let context = Context {
        problems: RefCell::new(problems),
        known: RefCell::default(),
        files: RefCell::default(),
        recorder: None,
    };
    let value = root.and_then(|node| {
        let place = Place {
            path: String::new(),
            line: node.line,
            column: node.column,
        };
        let mut section = Section::open(&node, place, String::new(), &context)?;
        let value = reader(&mut section);
        section.close();
        Some(value)
    });
    Reading {
        value,
        problems: context.problems.into_inner(),
        known: context.known.into_inner(),
        files: context.files.into_inner(),
    }
}

struct Context {
    problems: RefCell<Problems>,
    known: RefCell<BTreeMap<String, Known>>,
    files: RefCell<Vec<PathBuf>>,
    /// Present if no file is read, but what the reader asks for is noted.
    recorder: Option<schema::Recorder>,
}

/// One mapping of the configuration.
pub struct Section<'a> {
    entries: &'a [Entry],
    place: Place,
    /// The path with `[]` for list items.
    pattern: String,
    asked: Vec<String>,
    /// Keys may also be spelled in camelCase.
    camel_case: bool,
    /// Other names of keys, each with the key.
    aliases: &'static [(&'static str, &'static str)],
    context: &'a Context,
}

impl<'a> Section<'a> {
    /// Returns the value of a key that must be given, or nothing after reporting why there is none.
    pub fn required<T: Leaf>(&mut self, key: &str) -> Option<T> {
        self.note(key, &T::noun(), None, true);
        self.record_scalar::<T>(key);
        match self.find(key) {
            Some(entry) => self.leaf(&entry.node, self.place_below(key)),
            None => {
                self.problem(None, format!("needs `{key}`: {}", T::expected()));
                None
            }
        }
    }

    /// Returns the value of a key that may be left out.
    pub fn optional<T: Leaf>(&mut self, key: &str) -> Option<T> {
        self.note(key, &T::noun(), None, false);
        self.record_scalar::<T>(key);
        let entry = self.find(key)?;
        self.leaf(&entry.node, self.place_below(key))
    }

    /// Returns the value of a key, `default` if it is left out (or wrong, after reporting it).
    pub fn or<T: Leaf>(&mut self, key: &str, default: T) -> T {
        self.note(key, &T::noun(), Some(default.show()), false);
        self.record_scalar::<T>(key);
        self.find(key)
            .and_then(|entry| self.leaf(&entry.node, self.place_below(key)))
            .unwrap_or(default)
    }

    /// Returns the readable items of a list with their places; nothing if the key is left out or holds no list.
    pub fn placed_list<T: Leaf>(&mut self, key: &str) -> Option<Vec<(T, Place)>> {
        let expected = format!("a list, each {}", T::expected());
        self.note(key, &format!("list of {}", T::noun()), None, false);
        self.record_list(key, Some(T::schema()));
        let items = self.items(key, &expected)?;
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let place = self.place_of_item(key, index, item);
            list.extend(self.leaf(item, place.clone()).map(|value| (value, place)));
        }
        Some(list)
    }

    /// Returns the readable items of a list; nothing if the key is left out or holds no list.
    pub fn list<T: Leaf>(&mut self, key: &str) -> Option<Vec<T>> {
        self.placed_list(key)
            .map(|list| list.into_iter().map(|(value, _)| value).collect())
    }

    /// Returns the readable items of a list, `default` if the key is left out (or holds no list, after reporting it).
    pub fn list_or<T: Leaf>(&mut self, key: &str, default: Vec<T>) -> Vec<T> {
        let list = self.list(key);
        let shown: Vec<String> = default.iter().map(Leaf::show).collect();
        self.note(
            key,
            &format!("list of {}", T::noun()),
            Some(format!("[{}]", shown.join(", "))),
            false,
        );
        list.unwrap_or(default)
    }

    /// Has `reader` read the mapping under a key; nothing if the key is left out. A key with nothing below it counts
    /// as an empty mapping.
    pub fn section<R>(&mut self, key: &str, reader: impl FnOnce(&mut Section<'_>) -> R) -> Option<R> {
        self.note(key, "mapping", None, false);
        let (node, line, column) = match self.find(key) {
            Some(entry) => (&entry.node, entry.line, entry.column),
            None if self.context.recorder.is_some() => (&schema::NOTHING, 0, 0),
            None => return None,
        };
        let place = Place {
            line,
            column,
            ..self.place_below(key)
        };
        let pattern = tree::join(&self.pattern, key);
        let mut section = Section::open(node, place, pattern, self.context)?;
        section.camel_case = self.camel_case;
        let value = reader(&mut section);
        section.close();
        Some(value)
    }

    /// Has `reader` read each mapping of the list under a key; empty if the key is left out.
    pub fn sections<R>(&mut self, key: &str, mut reader: impl FnMut(&mut Section<'_>) -> R) -> Vec<R> {
        self.note(key, "list of mappings", None, false);
        self.record_list(key, None);
        let mut values = Vec::new();
        for (index, item) in self
            .items(key, "a list of mappings")
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            let place = self.place_of_item(key, index, item);
            let pattern = format!("{}[]", tree::join(&self.pattern, key));
            if let Some(mut section) = Section::open(item, place, pattern, self.context) {
                section.camel_case = self.camel_case;
                values.push(reader(&mut section));
                section.close();
            }
        }
        values
    }

    /// Returns which one of `kinds` this mapping has as a key (`kinesis: {…}`). None and more than one are reported.
    pub fn kind(&mut self, kinds: &[&'static str]) -> Option<&'static str> {
        self.record_one_of(kinds);
        let found = self.kind_if_any(kinds);
        if found.is_none() {
            self.problem(None, format!("needs one of {}", choices_text(kinds)));
        }
        found
    }

    /// Returns which one of `kinds` this mapping has as a key, if any. More than one is reported.
    pub fn kind_if_any(&mut self, kinds: &[&'static str]) -> Option<&'static str> {
        let mut found = None;
        for kind in kinds {
            self.note(kind, "mapping", None, false);
            if self.find(kind).is_some() {
                if found.is_some() {
                    self.problem(
                        Some(kind),
                        format!("is one too many: give exactly one of {}", choices_text(kinds)),
                    );
                }
                found = found.or(Some(*kind));
            }
        }
        let recorded = self.way("", kinds.len()).and_then(|way| kinds.get(way).copied());
        recorded.or(found)
    }

    /// Returns true if the key is given and holds a scalar. Does not count as asking for the key.
    pub fn is_scalar(&self, key: &str) -> bool {
        let found = self.find(key);
        match self.way(key, 2) {
            Some(way) => way == 1,
            None => found.is_some_and(|entry| matches!(entry.node.value, Value::Text(_) | Value::Broken)),
        }
    }

    /// Returns true if the key is given, also if its value is wrong. Does not count as asking for the key.
    pub fn has(&self, key: &str) -> bool {
        self.context.recorder.is_some() || self.find(key).is_some()
    }

    /// Returns true if the key is given with nothing or an empty list below it. Does not count as asking for the key.
    pub fn is_empty(&self, key: &str) -> bool {
        self.find(key).is_some_and(|entry| match &entry.node.value {
            Value::Null => true,
            Value::List(items) => items.is_empty(),
            _ => false,
        })
    }

    /// Returns the keys that the file gives here, in its order.
    pub fn keys(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.key.as_str()).collect()
    }

    /// Returns the place of a key's value (of the section itself for `None` or a key that is not given).
    pub fn place(&self, key: Option<&str>) -> Place {
        key.map_or_else(|| self.place.clone(), |key| self.place_below(key))
    }

    /// Returns the place of a key's value in the mapping under `section`, if both are given.
    pub fn inner_place(&self, section: &str, key: &str) -> Option<Place> {
        let Value::Mapping(entries) = &self.find(section)?.node.value else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        let path = tree::join(&tree::join(&self.place.path, section), key);
        Some(Place {
            path,
            line: entry.node.line,
            column: entry.node.column,
        })
    }

    /// Reports an error at a key, or at the section itself.
    pub fn problem(&self, key: Option<&str>, message: impl Into<String>) {
        self.problem_at(self.place(key), message);
    }

    /// Reports an error at a place that was noted before.
    pub fn problem_at(&self, place: Place, message: impl Into<String>) {
        self.context.problems.borrow_mut().error(place, message);
    }

    /// Reports a warning at a key, or at the section itself.
    pub fn warn(&self, key: Option<&str>, message: impl Into<String>) {
        self.warn_at(self.place(key), message);
    }

    /// Reports a warning at a place that was noted before.
    pub fn warn_at(&self, place: Place, message: impl Into<String>) {
        self.context.problems.borrow_mut().warning(place, message);
    }

    fn open(node: &'a Node, place: Place, pattern: String, context: &'a Context) -> Option<Self> {
        let entries: &[Entry] = match &node.value {
            Value::Mapping(entries) => entries,
            Value::Null => &[],
            Value::Broken => return None,
            Value::Text(_) | Value::List(_) => {
                let message = format!("is {}, expected a mapping (`key: value` lines)", describe(&node.value));
                context.problems.borrow_mut().error(place, message);
                return None;
            }
        };
        let section = Self {
            entries,
            place,
            pattern,
            asked: Vec::new(),
            camel_case: false,
            aliases: &[],
            context,
        };
        section.record_mapping();
        Some(section)
    }

    /// Reports the keys that nobody asked for.
    fn close(self) {
        self.record_spellings();
        let allowed: Vec<&str> = self.asked.iter().map(String::as_str).collect();
        self.report_two_spellings(&allowed);
        for entry in self
            .entries
            .iter()
            .filter(|entry| !allowed.iter().any(|key| self.names(entry, key)))
        {
            let hint = closest(&entry.key, &allowed).map_or(String::new(), |near| format!(", did you mean `{near}`?"));
            let path = tree::join(&self.place.path, &tree::printable_key(&entry.key));
            let place = Place {
                path,
                line: entry.line,
                column: entry.column,
            };
            let mut sorted = allowed.clone();
            sorted.sort_unstable();
            let known = if sorted.is_empty() {
                "none".to_owned()
            } else {
                sorted.join(", ")
            };
            self.problem_at(place, format!("is not a known key{hint} (known here: {known})"));
        }
    }

    fn note(&mut self, key: &str, noun: &str, default: Option<String>, required: bool) {
        if !self.asked.iter().any(|asked| asked == key) {
            self.asked.push(key.to_owned());
        }
        self.record_key(key, default.as_deref(), required);
        let known = Known {
            noun: noun.to_owned(),
            default,
            required,
        };
        self.context
            .known
            .borrow_mut()
            .insert(tree::join(&self.pattern, key), known);
    }

    fn find(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| self.names(entry, key))
    }

    fn place_below(&self, key: &str) -> Place {
        let path = tree::join(&self.place.path, key);
        match self.find(key) {
            Some(entry) => Place {
                path,
                line: entry.node.line,
                column: entry.node.column,
            },
            None => Place {
                path,
                ..self.place.clone()
            },
        }
    }

    fn place_of_item(&self, key: &str, index: usize, item: &Node) -> Place {
        let path = format!("{}[{index}]", tree::join(&self.place.path, key));
        Place {
            path,
            line: item.line,
            column: item.column,
        }
    }

    /// Returns the items of a list; a key with nothing below it is an empty list.
    fn items(&self, key: &str, expected: &str) -> Option<&'a [Node]> {
        let Some(entry) = self.find(key) else {
            return self
                .context
                .recorder
                .is_some()
                .then_some(std::slice::from_ref(&schema::NOTHING));
        };
        match &entry.node.value {
            Value::List(items) => Some(items),
            Value::Null => Some(&[]),
            Value::Broken => None,
            other => {
                self.problem(Some(key), format!("is {}, expected {expected}", describe(other)));
                None
            }
        }
    }

    fn leaf<T: Leaf>(&self, node: &Node, place: Place) -> Option<T> {
        let message = match &node.value {
            Value::Broken => return None,
            Value::Text(text) => match T::parse(text) {
                Ok(value) => return Some(value),
                Err(message) => message,
            },
            other => format!("is {}", describe(other)),
        };
        self.problem_at(place, format!("{message}, expected {}", T::expected()));
        None
    }
}

fn choices_text(choices: &[&str]) -> String {
    choices
        .iter()
        .map(|choice| format!("`{choice}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "given without a value",
        Value::Text(_) | Value::Broken => "a single value",
        Value::List(_) => "a list",
        Value::Mapping(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests;
