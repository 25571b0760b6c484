//! How a section reads a mapping whose keys are the user's own: flag keys, attribute references.

use super::tree::{self, Node, Value};
use super::{Known, Leaf, Section, schema};
use crate::problems::Place;

/// One entry of such a mapping.
pub struct Named<'s, 'a> {
    /// The key as it stands in the file.
    pub name: &'a str,
    node: &'a Node,
    place: Place,
    pattern: String,
    section: &'s Section<'a>,
}

impl<'a> Section<'a> {
    /// Has `reader` read each entry of the mapping under a key; empty if the key is left out. `noun` is what an entry's
    /// value can be, for the documentation.
    pub fn named<R>(&mut self, key: &str, noun: &str, mut reader: impl FnMut(&Named<'_, 'a>) -> R) -> Vec<R> {
        self.note(key, "mapping", None, false);
        let pattern = format!("{}.*", tree::join(&self.pattern, key));
        let known = Known {
            noun: noun.to_owned(),
            default: None,
            required: false,
        };
        self.context.known.borrow_mut().insert(pattern.clone(), known);
        self.record_free(key, None);
        if self.context.recorder.is_some() {
            return vec![reader(&Named {
                name: "name",
                node: &schema::NOTHING,
                place: self.place(Some(key)),
                pattern,
                section: self,
            })];
        }
        let Some(entry) = self.find(key) else {
            return Vec::new();
        };
        let entries = match &entry.node.value {
            Value::Mapping(entries) => entries,
            Value::Null | Value::Broken => return Vec::new(),
            Value::Text(_) | Value::List(_) => {
                self.problem(Some(key), "is not a mapping (`name: value` lines)");
                return Vec::new();
            }
        };
        let path = tree::join(&self.place.path, key);
        let read = entries.iter().map(|entry| {
            reader(&Named {
                name: &entry.key,
                node: &entry.node,
                place: Place {
                    path: tree::join(&path, &tree::printable_key(&entry.key)),
                    line: entry.node.line,
                    column: entry.node.column,
                },
                pattern: pattern.clone(),
                section: self,
            })
        });
        read.collect()
    }
}

impl Named<'_, '_> {
    /// Returns the value, or nothing after reporting what is wrong with it.
    pub fn value<T: Leaf>(&self) -> Option<T> {
        if let Some(recorder) = &self.section.context.recorder {
            recorder.scalar(self.pattern.clone(), T::schema());
        }
        self.section.leaf(self.node, self.place.clone())
    }

    /// Returns true if the value is a mapping.
    pub fn is_mapping(&self) -> bool {
        match self.section.context.recorder.as_ref() {
            Some(recorder) => recorder.way(self.pattern.clone(), 2) == 1,
            None => matches!(self.node.value, Value::Mapping(_)),
        }
    }

    /// Has `reader` read the mapping that the value is; nothing if it is none, after reporting it.
    pub fn section<R>(&self, reader: impl FnOnce(&mut Section<'_>) -> R) -> Option<R> {
        let (place, pattern) = (self.place.clone(), self.pattern.clone());
        let mut section = Section::open(self.node, place, pattern, self.section.context)?;
        let value = reader(&mut section);
        section.close();
        Some(value)
    }

    /// Reports an error at this entry.
    pub fn problem(&self, message: impl Into<String>) {
        self.section.problem_at(self.place.clone(), message);
    }
}
