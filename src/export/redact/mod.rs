//! Redaction: removes or hashes attributes of users and contexts in an event before it is sent.
//!
//! Pure. Attributes are named by reference ([`reference`]). `key`, `kind` and `anonymous` stay: without them an event is about
//! nobody. What was redacted is listed where SDKs list private attributes: `_meta.redactedAttributes` of a context,
//! `privateAttrs` of a user; every other byte stays. An event whose user or context has no shape that an SDK sends is not
//! sent at all: a redacted value must not leave for being misplaced.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::export::{Member, Members};
use crate::secret::Secret;
use crate::section::{Leaf, Section};
use crate::units::hex;

mod object;
mod reference;

use object::{Fate, rewrite};
use reference::{Reference, written};

/// Why an event is not sent: a value of the metric label `reason`.
pub const NOT_REDACTABLE: &str = "not_redactable";

/// Members of an event that are keys or kinds of contexts, and nothing else.
const KEYS: [&str; 6] = ["key", "userKey", "previousKey", "contextKind", "previousKind", "kind"];

/// The attribute of users that contexts have in `_meta`.
const SECONDARY: &str = "secondary";

/// A shorter key can be tried out.
const KEY_CHARACTERS: usize = 16;

crate::choices! {
    /// What becomes of an attribute.
    pub enum Action {
        /// It is removed.
        Drop = "drop",
        /// Its value becomes HMAC-SHA256 of it in hexadecimal digits: of a string's text in UTF-8, else of the JSON text.
        Hash = "hash",
    }
}

/// What a destination does not get of contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redact {
    /// What is said of single attributes.
    named: Node,
    /// What becomes of all others.
    others: Option<Action>,
    hash_key: Option<Secret>,
}

/// What is said of an attribute and of those within it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    rule: Option<Rule>,
    within: BTreeMap<String, Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Allow,
    Redact(Action),
}

impl Redact {
    /// Reads the keys of `redact`.
    pub fn read(section: &mut Section<'_>) -> Self {
        let mut redact = Self::default();
        if section.is_scalar("attributes") {
            redact.others = section.optional("attributes");
        } else {
            let named = section.named("attributes", &Action::noun(), |entry| {
                let reference = Reference::parse(entry.name).map_err(|why| entry.problem(why)).ok()?;
                Some((reference, entry.value::<Action>()?))
            });
            for (reference, action) in named.into_iter().flatten() {
                redact.named.put(&reference, Rule::Redact(action));
            }
        }
        if let Some(allowed) = section.list::<Reference>("allow") {
            // A list of what may leave would mean nothing if everything else could too.
            redact.others = redact.others.or(Some(Action::Drop));
            for reference in allowed {
                redact.named.put(&reference, Rule::Allow);
            }
        }
        redact.hash_key = section.secret("hash_key");
        let hashes = redact.others == Some(Action::Hash) || redact.named.hashes();
        if hashes && !section.has("hash_key") && !section.has("hash_key_file") {
            section.problem(
                None,
                "needs `hash_key` or `hash_key_file`: hashes without a key can be tried out",
            );
        }
        if let Some(key) = &redact.hash_key
            && key.expose().chars().count() < KEY_CHARACTERS
        {
            let message = format!("is shorter than {KEY_CHARACTERS} characters and can be tried out");
            section.problem(section.has("hash_key").then_some("hash_key"), message);
        }
        if !section.has("attributes") && !section.has("allow") {
            section.problem(None, "redacts nothing: give `attributes`, `allow` or both");
        }
        redact
    }

    /// Returns an event's JSON without what is to be redacted. The error is [`NOT_REDACTABLE`].
    pub fn apply<'a>(&self, json: &'a [u8]) -> Result<Cow<'a, [u8]>, &'static str> {
        let text = std::str::from_utf8(json).map_err(|_| NOT_REDACTABLE)?;
        let members = Members::of(text).ok_or(NOT_REDACTABLE)?;
        let fates: Vec<Fate> = members
            .iter()
            .map(|member| match member.value {
                "null" => Ok(Fate::Keep),
                value if member.is("context") => self.context(value),
                value if member.is("user") => self.user(value),
                value if member.is("contextKeys") => keys(value),
                value if KEYS.iter().any(|key| member.is(key)) => plain(value),
                _ if name(member).is_ok_and(|name| resembles(&name)) => Err(NOT_REDACTABLE),
                _ => Ok(Fate::Keep),
            })
            .collect::<Result<_, &'static str>>()?;
        let redacted = rewrite(text, &members, &fates, None);
        Ok(redacted.map_or(Cow::Borrowed(json), |text| Cow::Owned(text.into_bytes())))
    }

    fn context(&self, json: &str) -> Result<Fate, &'static str> {
        let members = Members::of(json).ok_or(NOT_REDACTABLE)?;
        if members.get("kind").and_then(text).as_deref() != Some("multi") {
            return self.single(json, &members);
        }
        let fates: Vec<Fate> = members
            .iter()
            .map(|member| {
                if member.is("kind") {
                    return plain(member.value);
                }
                let inner = Members::of(member.value).ok_or(NOT_REDACTABLE)?;
                self.single(member.value, &inner)
            })
            .collect::<Result<_, &'static str>>()?;
        Ok(replaced(rewrite(json, &members, &fates, None)))
    }

    /// Redacts the attributes of a context of one kind.
    fn single(&self, json: &str, members: &Members<'_>) -> Result<Fate, &'static str> {
        let mut redacted = Vec::new();
        let mut fates: Vec<Fate> = members
            .iter()
            .map(|member| match name(member)? {
                name if name == "_meta" => Ok(Fate::Keep),
                name if ["key", "kind", "anonymous"].contains(&name.as_str()) => plain(member.value),
                name => Ok(self.attribute(name, member.value, &mut redacted)),
            })
            .collect::<Result<_, &'static str>>()?;
        // Here, so that it is listed before the list is written.
        for member in members.iter().filter(|member| member.is("_meta")) {
            let meta = Members::of(member.value);
            let secondary = meta.iter().flat_map(Members::iter).find(|member| member.is(SECONDARY));
            if let Some(secondary) = secondary.filter(|_| self.named.within.contains_key(SECONDARY)) {
                self.attribute(SECONDARY.to_owned(), secondary.value, &mut redacted);
            }
        }
        let added = |list: &str| format!("\"_meta\":{{\"redactedAttributes\":{list}}}");
        let last = members.iter().rposition(|member| member.is("_meta"));
        let mut new = None;
        for (index, member) in members.iter().enumerate().filter(|(_, member)| member.is("_meta")) {
            let more = if Some(index) == last { &redacted[..] } else { &[] };
            if let Some(fate) = fates.get_mut(index) {
                *fate = self.meta(member.value, more)?;
            }
        }
        if last.is_none() && !redacted.is_empty() {
            new = Some(added(&list(&redacted)));
        }
        Ok(replaced(rewrite(json, members, &fates, new.as_deref())))
    }

    /// Adds to the list in `_meta`. Where only what is allowed may leave, that list is all of it.
    fn meta(&self, json: &str, redacted: &[String]) -> Result<Fate, &'static str> {
        if json == "null" && redacted.is_empty() {
            return Ok(Fate::Keep);
        }
        let Some(members) = Members::of(json) else {
            return if json == "null" {
                Ok(Fate::Replace(format!("{{\"redactedAttributes\":{}}}", list(redacted))))
            } else {
                Err(NOT_REDACTABLE)
            };
        };
        let is_list = |member: &Member<'_>| member.is("redactedAttributes");
        let mut fates: Vec<Fate> = members
            .iter()
            .map(|member| match self.others {
                _ if is_list(member) => names(member.value),
                _ if member.is(SECONDARY) && self.named.within.contains_key(SECONDARY) => {
                    Ok(self.attribute(SECONDARY.to_owned(), member.value, &mut Vec::new()))
                }
                Some(_) => Ok(Fate::Drop),
                None => Ok(Fate::Keep),
            })
            .collect::<Result<_, &'static str>>()?;
        let added = extend(&members, &mut fates, "redactedAttributes", redacted);
        Ok(replaced(rewrite(json, &members, &fates, added.as_deref())))
    }

    /// Redacts the attributes of a user, built-in and custom.
    fn user(&self, json: &str) -> Result<Fate, &'static str> {
        let members = Members::of(json).ok_or(NOT_REDACTABLE)?;
        let mut redacted = Vec::new();
        let mut fates: Vec<Fate> = members
            .iter()
            .map(|member| match name(member)? {
                name if ["key", "anonymous"].contains(&name.as_str()) => plain(member.value),
                name if name == "privateAttrs" => names(member.value),
                name if name == "custom" => self.custom(member.value, &mut redacted),
                name => Ok(self.attribute(name, member.value, &mut redacted)),
            })
            .collect::<Result<_, &'static str>>()?;
        let added = extend(&members, &mut fates, "privateAttrs", &redacted);
        Ok(replaced(rewrite(json, &members, &fates, added.as_deref())))
    }

    fn custom(&self, json: &str, redacted: &mut Vec<String>) -> Result<Fate, &'static str> {
        if json == "null" {
            return Ok(Fate::Keep);
        }
        let members = Members::of(json).ok_or(NOT_REDACTABLE)?;
        let fates: Vec<Fate> = members
            .iter()
            .map(|member| Ok(self.attribute(name(member)?, member.value, redacted)))
            .collect::<Result<_, &'static str>>()?;
        Ok(replaced(rewrite(json, &members, &fates, None)))
    }

    fn attribute(&self, name: String, value: &str, redacted: &mut Vec<String>) -> Fate {
        let node = self.named.within.get(&name);
        self.treat(node, self.others, &mut vec![name], value, redacted)
    }

    /// Treats the attribute at `path`, of which `node` says something; `others` is what becomes of those of which none does.
    fn treat(
        &self,
        node: Option<&Node>,
        others: Option<Action>,
        path: &mut Vec<String>,
        value: &str,
        redacted: &mut Vec<String>,
    ) -> Fate {
        let (rule, others) = match node.and_then(|node| node.rule) {
            Some(Rule::Redact(action)) => (Some(action), others),
            Some(Rule::Allow) => (None, None),
            None => (None, others),
        };
        let members = node
            .filter(|node| rule.is_none() && !node.within.is_empty())
            .and_then(|node| Some((node, Members::of(value)?)));
        if let Some((node, members)) = members {
            let fates: Vec<Fate> = members
                .iter()
                .map(|member| {
                    // A name that is no valid Unicode is none that a reference can mean.
                    let name = text(member.name).unwrap_or_else(|| member.name.to_owned());
                    let within = node.within.get(&name);
                    path.push(name);
                    let fate = self.treat(within, others, path, member.value, redacted);
                    path.pop();
                    fate
                })
                .collect();
            return replaced(rewrite(value, &members, &fates, None));
        }
        // No reference reaches into a list. What it holds may be just what is to be redacted, so all of it is.
        let within = || node.and_then(Node::action).filter(|_| value.starts_with('['));
        let rule = rule.or_else(within);
        let fate = match rule.or(others) {
            None => return Fate::Keep,
            Some(Action::Hash) if value == "null" => return Fate::Keep,
            Some(Action::Hash) => self.hash(value).map_or(Fate::Drop, Fate::Replace),
            Some(Action::Drop) => Fate::Drop,
        };
        let reference = written(path);
        if !redacted.contains(&reference) {
            redacted.push(reference);
        }
        fate
    }

    /// Returns the hash of a JSON value, as JSON; `None` without a key.
    fn hash(&self, value: &str) -> Option<String> {
        let key = self.hash_key.as_ref()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).ok()?;
        match text(value) {
            Some(text) => mac.update(text.as_bytes()),
            None => mac.update(value.as_bytes()),
        }
        Some(format!("\"{}\"", hex(&mac.finalize().into_bytes())))
    }
}

impl Node {
    fn put(&mut self, reference: &Reference, rule: Rule) {
        let node = reference
            .0
            .iter()
            .fold(self, |node, name| node.within.entry(name.clone()).or_default());
        // What is named as an attribute to redact is redacted, also if it is allowed.
        node.rule = node.rule.filter(|rule| matches!(rule, Rule::Redact(_))).or(Some(rule));
    }

    /// Returns what is to become of the attribute, or else of one within it.
    fn action(&self) -> Option<Action> {
        match self.rule {
            Some(Rule::Redact(action)) => Some(action),
            _ => self.within.values().find_map(Self::action),
        }
    }

    fn hashes(&self) -> bool {
        matches!(self.rule, Some(Rule::Redact(Action::Hash))) || self.within.values().any(Self::hashes)
    }
}

/// Puts `redacted` into the list that is the last member with this name; returns the member to add if there is none.
fn extend(members: &Members<'_>, fates: &mut [Fate], name: &str, redacted: &[String]) -> Option<String> {
    if redacted.is_empty() {
        return None;
    }
    let Some(index) = members.iter().rposition(|member| member.is(name)) else {
        return Some(format!("\"{name}\":{}", list(redacted)));
    };
    let sent = members.iter().nth(index).map_or("", |member| member.value);
    let longer = match sent.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) if !inner.trim().is_empty() => {
            let more = list(redacted);
            format!("[{inner},{}", more.get(1..).unwrap_or("]"))
        }
        _ => list(redacted),
    };
    if let Some(fate) = fates.get_mut(index) {
        *fate = Fate::Replace(longer);
    }
    None
}

fn list(names: &[String]) -> String {
    serde_json::to_string(names).unwrap_or_else(|_| "[]".to_owned())
}

fn replaced(json: Option<String>) -> Fate {
    json.map_or(Fate::Keep, Fate::Replace)
}

/// Whether a member of an event looks as if it held a context, though no SDK names one so.
fn resembles(name: &str) -> bool {
    let name = name.to_lowercase();
    ["context", "contexts", "user", "users"].contains(&name.as_str())
}

/// Keeps a value that is never redacted, unless it holds others.
fn plain(json: &str) -> Result<Fate, &'static str> {
    match json.starts_with(['{', '[']) {
        true => Err(NOT_REDACTABLE),
        false => Ok(Fate::Keep),
    }
}

/// Keeps the keys of an event's contexts by kind, unless one is no key.
fn keys(json: &str) -> Result<Fate, &'static str> {
    let members = Members::of(json).ok_or(NOT_REDACTABLE)?;
    members.iter().try_for_each(|member| plain(member.value).map(drop))?;
    Ok(Fate::Keep)
}

/// Keeps a list of attributes' names, unless it holds anything else.
fn names(json: &str) -> Result<Fate, &'static str> {
    let names = serde_json::from_str::<Option<Vec<String>>>(json);
    names.map(|_| Fate::Keep).map_err(|_| NOT_REDACTABLE)
}

/// Returns a member's name; without valid Unicode nothing can say whether it is meant.
fn name(member: &Member<'_>) -> Result<String, &'static str> {
    text(member.name).ok_or(NOT_REDACTABLE)
}

/// Returns the text of a JSON string.
fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests;
