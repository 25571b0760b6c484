//! YAML text as a tree of nodes that know where they stand.
//!
//! Only what a configuration needs: mappings with text keys, lists, scalars and aliases, one document, no tags, no
//! merge keys. Size, depth and the number of nodes (aliases counted in full) are limited, so that a hostile or broken
//! file costs little. `${VAR}` in a scalar is replaced after parsing: a variable can never add keys or structure.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span};

use crate::problems::{Place, Problems};

/// Largest configuration text, bytes. A hundred environments with comments take a twentieth of it.
const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting. The configuration's own shape needs 6.
const MAX_DEPTH: usize = 32;
/// Most nodes after aliases are replaced by copies.
const MAX_NODES: usize = 50_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text after substitution, whatever its quotes.
    Text(String),
    /// A scalar that has been reported; readers pass over it.
    Broken,
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) node: Node,
}

/// Returns the root of the document, or nothing if the text is no YAML (the problem is in `problems` then).
///
/// Duplicate keys, tags and unset variables are reported and leave a tree that can still be read.
pub(super) fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) -> Option<Node> {
    if text.len() > MAX_BYTES {
        problems.error(Place::default(), "is larger than 1MiB, which no configuration needs");
        return None;
    }
    let options = granit_parser::options! {
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
        emit_comments: false,
    };
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        environment,
        problems,
        anchors: HashMap::new(),
        nodes: 0,
        path: String::new(),
    };
    match builder.document() {
        Ok(node) => Some(node),
        Err(Stop(place, message)) => {
            builder.problems.error(place, message);
            None
        }
    }
}

/// Why the rest of the text is not read.
struct Stop(Place, String);

struct Builder<'a, 'text> {
    parser: Parser<'text, granit_parser::StrInput<'text>>,
    environment: &'a dyn Fn(&str) -> Option<String>,
    problems: &'a mut Problems,
    /// Finished anchored nodes and their size.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    /// Keys from the root to the node being built.
    path: String,
}

impl<'text> Builder<'_, 'text> {
    fn document(&mut self) -> Result<Node, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                event if root.is_none() => root = Some(self.node(event, &span, 0)?),
                _ => {
                    return Err(Stop(
                        self.place(&span),
                        "is a second document; a file holds one".to_owned(),
                    ));
                }
            }
        }
        Ok(root.unwrap_or(Node {
            line: 1,
            column: 1,
            value: Value::Null,
        }))
    }

    fn next(&mut self) -> Result<(Event<'text>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let place = Place {
                    path: self.path.clone(),
                    line: error.marker().line(),
                    column: error.marker().col() + 1,
                };
                let reason = error.info();
                Err(Stop(
                    place,
                    format!(
                        "is not valid YAML: {}",
                        if reason.is_empty() { "syntax error" } else { &reason }
                    ),
                ))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'text>, span: &Span, depth: usize) -> Result<Node, Stop> {
        let before = self.nodes;
        self.count(1, span)?;
        if depth > MAX_DEPTH {
            return Err(Stop(
                self.place(span),
                format!("is nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        if event.tag().is_some() {
            self.problems.error(
                self.place(span),
                "has a YAML tag (`!…`); tags are not used here, remove it",
            );
        }
        let anchor = event.anchor_id().unwrap_or(0);
        let value = match event {
            Event::Scalar(text, style, _, _) => self.scalar(&text, style, span),
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(..) => self.mapping(depth)?,
            Event::Alias(id) => return self.alias(id, span),
            _ => {
                return Err(Stop(
                    self.place(span),
                    "is not valid YAML: unexpected structure".to_owned(),
                ));
            }
        };
        let node = Node {
            line: span.start.line(),
            column: span.start.col() + 1,
            value,
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, span: &Span) -> Result<Node, Stop> {
        // Counted before the copy is made: a chain of aliases to aliases grows exponentially.
        let size = self.anchors.get(&id).map_or(0, |(_, size)| *size);
        self.count(size, span)?;
        match self.anchors.get(&id) {
            Some((node, _)) => Ok(node.clone()),
            None => Err(Stop(
                self.place(span),
                "is an alias (`*…`) inside its own anchor".to_owned(),
            )),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut items = Vec::new();
        let end = self.path.len();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::List(items));
            }
            self.path.push_str(&format!("[{}]", items.len()));
            items.push(self.node(event, &span, depth + 1)?);
            self.path.truncate(end);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        // A mapping can list thousands of flags.
        let mut lines: HashMap<String, usize> = HashMap::new();
        let end = self.path.len();
        loop {
            let (event, key_span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Value::Mapping(entries)),
                Event::Scalar(key, ..) => key.into_owned(),
                _ => {
                    return Err(Stop(
                        self.place(&key_span),
                        "has a key that is not a plain word".to_owned(),
                    ));
                }
            };
            self.path = join(&self.path, &printable_key(&key));
            match lines.get(&key) {
                Some(first) => {
                    let message = format!("is given twice, first in line {first}; keep one");
                    self.problems.error(self.place(&key_span), message);
                }
                None => drop(lines.insert(key.clone(), key_span.start.line())),
            }
            let (event, span) = self.next()?;
            let node = self.node(event, &span, depth + 1)?;
            self.path.truncate(end);
            let (line, column) = (key_span.start.line(), key_span.start.col() + 1);
            entries.push(Entry {
                key,
                line,
                column,
                node,
            });
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: &Span) -> Value {
        if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            return Value::Null;
        }
        match substitute(text, self.environment) {
            Ok(text) => Value::Text(text),
            Err(message) => {
                self.problems.error(self.place(span), message);
                Value::Broken
            }
        }
    }

    fn count(&mut self, nodes: usize, span: &Span) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(Stop(
                self.place(span),
                format!("has more than {MAX_NODES} values once aliases are filled in"),
            ));
        }
        Ok(())
    }

    fn place(&self, span: &Span) -> Place {
        Place {
            path: self.path.clone(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }
}

/// Returns the path of `key` below `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Returns a key from the file in a form that can be shown: a long or odd one may be a misplaced secret.
pub(super) fn printable_key(key: &str) -> String {
    let plain = key
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if plain && !key.is_empty() && key.len() <= 32 {
        key.to_owned()
    } else {
        format!("<key of {} characters>", key.chars().count())
    }
}

/// Replaces `${NAME}` by the variable's value and `$${` by `${`.
fn substitute(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = rest.split_at(start);
        rest = after.get(2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            done.push_str(before);
            done.push_str("${");
            continue;
        }
        done.push_str(before);
        let name = rest
            .split_once('}')
            .map(|(name, _)| name)
            .filter(|name| is_variable(name));
        let Some(name) = name else {
            return Err(
                "has a `${` that does not begin `${NAME}`; write `$${` for the characters themselves".to_owned(),
            );
        };
        let value = environment(name).ok_or_else(|| {
            format!("needs the environment variable {name}, which is not set; set it or write `$${{` for a plain `${{`")
        })?;
        done.push_str(&value);
        rest = rest.get(name.len() + 1..).unwrap_or_default();
    }
    done.push_str(rest);
    Ok(done)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
