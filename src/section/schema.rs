//! The JSON Schema (draft 7) of what a reader reads, so that editors and Helm know the configuration.
//!
//! There is no second description of the configuration that could fall behind. The reader itself is run on a section that
//! has every key it asks for, and each question is noted: the key, what its value can be, its default. Where a reader goes
//! one of several ways (a scalar or a mapping, one kind of several), it is run once for each.
//!
//! What the schema takes, the reader takes key by key; rules across keys and ranges are the reader's alone. The schema is
//! stricter in one thing: text that YAML would read as a number, a boolean or a date has to be quoted, because a tool
//! that is not flagtap may change it on its way (`1e10` becomes `10000000000`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::spelling::camel_case_of;
use super::tree::{self, Node, Value as YamlValue};
use super::{Context, Leaf, Section};
use crate::problems::{Place, Problems};

/// A value that is there, with nothing in it.
pub(super) static NOTHING: Node = Node {
    line: 0,
    column: 0,
    value: YamlValue::Null,
};

/// Which way a reader is sent at each question: by question, the number of the answer. The first answer is 0.
type Ways = BTreeMap<String, usize>;

/// What a reader asked for.
#[derive(Default)]
pub(super) struct Recorder {
    ways: Ways,
    /// Questions with more than one answer, and how many they have.
    questions: RefCell<Vec<(String, usize)>>,
    shapes: RefCell<BTreeMap<String, Shape>>,
}

/// What the value at a path can be. Several at once are alternatives.
#[derive(Default)]
struct Shape {
    /// Schemas of scalars.
    scalars: Vec<Value>,
    /// A list, whose items' shape is at this path with `[]`.
    list: bool,
    /// A mapping.
    mapping: Option<Mapping>,
}

#[derive(Default)]
struct Mapping {
    keys: BTreeMap<String, Key>,
    /// The keys are the user's own; their shape is at this path with `.*`.
    free: bool,
    camel_case: bool,
    aliases: BTreeSet<(&'static str, &'static str)>,
    /// Of these keys exactly one must be given.
    one_of: BTreeSet<Vec<&'static str>>,
    /// Of these keys at least one must be given.
    any_of: BTreeSet<[String; 2]>,
}

struct Key {
    default: Option<String>,
    required: bool,
}

/// Returns the schema of what `reader` reads from the root mapping. `meaning` gives the description of a path, written as
/// in [`Reading::known`](super::Reading::known).
pub fn schema<T>(mut reader: impl FnMut(&mut Section<'_>) -> T, meaning: &dyn Fn(&str) -> Option<String>) -> Value {
    let mut shapes = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut left = vec![Ways::new()];
    while let Some(ways) = left.pop() {
        let context = Context {
            problems: RefCell::new(Problems::default()),
            known: RefCell::default(),
            files: RefCell::default(),
            recorder: Some(Recorder {
                ways: ways.clone(),
                questions: RefCell::default(),
                shapes: RefCell::new(shapes),
            }),
        };
        if let Some(mut root) = Section::open(&NOTHING, Place::default(), String::new(), &context) {
            reader(&mut root);
            root.close();
        }
        let recorder = context.recorder.unwrap_or_default();
        shapes = recorder.shapes.into_inner();
        for (question, answers) in recorder.questions.into_inner() {
            if seen.insert(question.clone()) {
                left.extend((1..answers).map(|answer| {
                    let mut other = ways.clone();
                    other.insert(question.clone(), answer);
                    other
                }));
            }
        }
    }
    let mut root = Writer { shapes, meaning }.write("");
    root.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
    Value::Object(root)
}

/// Returns the schema of a scalar of this type: text that matches `pattern` (a regular expression for the whole of it), or
/// that names a variable. `other` is another type of JSON's that it can be, such as `integer`.
pub fn scalar(pattern: &str, other: Option<&str>) -> Value {
    let kind = other.map_or(json!("string"), |other| json!([other, "string"]));
    json!({ "type": kind, "pattern": format!("^(?:{pattern})$|\\$\\{{") })
}

/// Returns the schema of one of these words.
pub fn words(words: &[&str]) -> Value {
    let is_number = |word: &&str| word.bytes().all(|byte| byte.is_ascii_digit());
    let other = words.iter().any(is_number).then_some("integer");
    scalar(&words.join("|"), other)
}

pub(super) fn secret() -> Value {
    json!({ "type": "string", "minLength": 1, "writeOnly": true })
}

impl Recorder {
    /// Returns the answer to a question that has so many.
    pub(super) fn way(&self, question: String, answers: usize) -> usize {
        let answer = self.ways.get(&question).copied().unwrap_or_default();
        self.questions.borrow_mut().push((question, answers));
        answer
    }

    fn with<R>(&self, path: String, change: impl FnOnce(&mut Shape) -> R) -> R {
        change(self.shapes.borrow_mut().entry(path).or_default())
    }

    fn with_mapping<R>(&self, path: &str, change: impl FnOnce(&mut Mapping) -> R) -> R {
        self.with(path.to_owned(), |shape| change(shape.mapping.get_or_insert_default()))
    }

    pub(super) fn scalar(&self, path: String, schema: Value) {
        self.with(path, |shape| {
            if !shape.scalars.contains(&schema) {
                shape.scalars.push(schema);
            }
        });
    }
}

impl Section<'_> {
    pub(super) fn record_key(&self, key: &str, default: Option<&str>, required: bool) {
        let Some(recorder) = &self.context.recorder else { return };
        recorder.with_mapping(&self.pattern, |mapping| {
            let key = mapping.keys.entry(key.to_owned()).or_insert(Key {
                default: None,
                required,
            });
            key.default = default.map(str::to_owned).or(key.default.take());
        });
    }

    pub(super) fn record_scalar<T: Leaf>(&self, key: &str) {
        self.record_schema(key, T::schema());
    }

    pub(super) fn record_schema(&self, key: &str, schema: Value) {
        if let Some(recorder) = &self.context.recorder {
            recorder.scalar(tree::join(&self.pattern, key), schema);
        }
    }

    /// Notes that a key holds a list; `item` is the schema of its items where they are scalars.
    pub(super) fn record_list(&self, key: &str, item: Option<Value>) {
        let Some(recorder) = &self.context.recorder else { return };
        let path = tree::join(&self.pattern, key);
        recorder.with(path.clone(), |shape| shape.list = true);
        if let Some(item) = item {
            recorder.scalar(format!("{path}[]"), item);
        }
    }

    pub(super) fn record_mapping(&self) {
        if let Some(recorder) = &self.context.recorder {
            recorder.with_mapping(&self.pattern, |_| ());
        }
    }

    /// Notes that the names of a key's mapping are the user's own; `value` is the schema of their values where they are
    /// scalars.
    pub(super) fn record_free(&self, key: &str, value: Option<Value>) {
        let Some(recorder) = &self.context.recorder else { return };
        let path = tree::join(&self.pattern, key);
        recorder.with_mapping(&path, |mapping| mapping.free = true);
        if let Some(value) = value {
            recorder.scalar(format!("{path}.*"), value);
        }
    }

    pub(super) fn record_spellings(&self) {
        let Some(recorder) = &self.context.recorder else { return };
        recorder.with_mapping(&self.pattern, |mapping| {
            mapping.camel_case |= self.camel_case;
            mapping.aliases.extend(self.aliases);
        });
    }

    pub(super) fn record_one_of(&self, kinds: &[&'static str]) {
        let Some(recorder) = &self.context.recorder else { return };
        recorder.with_mapping(&self.pattern, |mapping| mapping.one_of.insert(kinds.to_vec()));
    }

    pub(super) fn record_any_of(&self, keys: [String; 2]) {
        let Some(recorder) = &self.context.recorder else { return };
        recorder.with_mapping(&self.pattern, |mapping| mapping.any_of.insert(keys));
    }

    /// Returns the answer of this run to a question of several answers about `key`; nothing if a file is read.
    pub(super) fn way(&self, key: &str, answers: usize) -> Option<usize> {
        let recorder = self.context.recorder.as_ref()?;
        Some(recorder.way(tree::join(&self.pattern, key), answers))
    }
}

struct Writer<'a> {
    shapes: BTreeMap<String, Shape>,
    meaning: &'a dyn Fn(&str) -> Option<String>,
}

impl Writer<'_> {
    /// Returns the schema of the value at a path. Keywords of JSON Schema that are about one type say nothing of others,
    /// so that alternatives of different types stand side by side.
    fn write(&self, path: &str) -> Map<String, Value> {
        let mut schema = Map::new();
        let Some(shape) = self.shapes.get(path) else {
            return schema;
        };
        let mut types = BTreeSet::new();
        let mut patterns = Vec::new();
        for (name, value) in shape.scalars.iter().filter_map(Value::as_object).flatten() {
            match (name.as_str(), value) {
                ("type", Value::Array(names)) => types.extend(names.iter().filter_map(Value::as_str)),
                ("type", Value::String(name)) => _ = types.insert(name.as_str()),
                ("pattern", Value::String(pattern)) => patterns.push(pattern.as_str()),
                _ => _ = schema.insert(name.clone(), value.clone()),
            }
        }
        // A scalar without a pattern may be any text.
        if !patterns.is_empty() && patterns.len() == shape.scalars.len() {
            schema.insert("pattern".to_owned(), json!(patterns.join("|")));
        }
        if shape.list {
            types.extend(["array", "null"]);
            schema.insert("items".to_owned(), Value::Object(self.write(&format!("{path}[]"))));
        }
        if let Some(mapping) = &shape.mapping {
            types.extend(["null", "object"]);
            self.write_mapping(path, mapping, &mut schema);
        }
        let types: Vec<&str> = types.into_iter().collect();
        match types[..] {
            [] => {}
            [one] => _ = schema.insert("type".to_owned(), json!(one)),
            _ => _ = schema.insert("type".to_owned(), json!(types)),
        }
        if let Some(meaning) = (self.meaning)(path) {
            schema.insert("description".to_owned(), json!(meaning));
        }
        schema
    }

    fn write_mapping(&self, path: &str, mapping: &Mapping, schema: &mut Map<String, Value>) {
        let mut properties = Map::new();
        let mut required = Vec::new();
        let mut all_of = Vec::new();
        for (name, key) in &mapping.keys {
            let mut property = self.write(&tree::join(path, name));
            if let Some(default) = &key.default {
                let default = typed(default, &property);
                property.insert("default".to_owned(), default);
            }
            let spellings = mapping.spellings(name);
            match &spellings[..] {
                [only] if key.required => required.push(json!(only)),
                _ if key.required => all_of.push(any_given(&spellings)),
                _ => {}
            }
            properties.extend(
                spellings
                    .into_iter()
                    .map(|name| (name, Value::Object(property.clone()))),
            );
        }
        for keys in &mapping.any_of {
            let spellings: Vec<String> = keys.iter().flat_map(|key| mapping.spellings(key)).collect();
            all_of.push(any_given(&spellings));
        }
        for kinds in &mapping.one_of {
            let given = kinds.iter().map(|kind| any_given(&mapping.spellings(kind)));
            all_of.push(json!({ "oneOf": given.collect::<Vec<_>>() }));
        }
        let others = if mapping.free {
            Value::Object(self.write(&format!("{path}.*")))
        } else {
            json!(false)
        };
        schema.insert("properties".to_owned(), Value::Object(properties));
        schema.insert("additionalProperties".to_owned(), others);
        if !required.is_empty() {
            schema.insert("required".to_owned(), Value::Array(required));
        }
        if !all_of.is_empty() {
            // Nothing at all counts as an empty mapping, which lacks the key as well.
            schema.insert("allOf".to_owned(), Value::Array(all_of));
        }
    }
}

impl Mapping {
    /// Returns a key with its other names: aliases, and LaunchDarkly's own spelling of it.
    fn spellings(&self, key: &str) -> Vec<String> {
        let mut names = vec![key.to_owned()];
        names.extend(
            self.aliases
                .iter()
                .filter(|(_, of)| *of == key)
                .map(|(alias, _)| (*alias).to_owned()),
        );
        if self.camel_case {
            names.extend(camel_case_of(key));
        }
        names.sort();
        names.dedup();
        names
    }
}

fn any_given(keys: &[String]) -> Value {
    match keys {
        [only] => json!({ "required": [only] }),
        _ => json!({ "anyOf": keys.iter().map(|key| json!({ "required": [key] })).collect::<Vec<_>>() }),
    }
}

/// Returns a default in the type of JSON's that its property has.
fn typed(default: &str, property: &Map<String, Value>) -> Value {
    let is = |name: &str| match property.get("type") {
        Some(Value::String(kind)) => kind == name,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == name),
        _ => false,
    };
    if let Some(items) = default
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .filter(|_| is("array"))
    {
        return items.split(", ").filter(|item| !item.is_empty()).collect();
    }
    if is("boolean") || is("integer") {
        return serde_json::from_str(default).unwrap_or_else(|_| json!(default));
    }
    json!(default)
}
