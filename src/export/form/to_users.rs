//! Version 2 as version 1: an event about contexts becomes one about its user.
//!
//! The user is the context of kind `user`. Other kinds have no place in version 1 and are left out; an event without
//! a user is not exported. Reverses what SDKs do with a user that they are given (`to_contexts`).

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Object, given};
use crate::event::Kind;
use crate::export::Members;

/// The attributes that stand at the top level of a user; all others are below `custom`.
const BUILT_IN: [&str; 10] = [
    "key",
    "secondary",
    "ip",
    "country",
    "email",
    "firstName",
    "lastName",
    "avatar",
    "name",
    "anonymous",
];

/// Why an event has no form in version 1.
const NO_USER: &str = "no_user";

/// Returns the event in version 1, nothing where it already is in it, or why it cannot be.
pub(super) fn convert<'a>(kind: Kind, version: u8, members: &Members<'a>) -> Result<Option<Object<'a>>, &'static str> {
    let context = given(members, "context");
    let keys = given(members, "contextKeys");
    if kind == Kind::Summary {
        return Ok((version > 1).then(|| summary(members)));
    }
    if context.is_none() && keys.is_none() {
        let is_of_users = version == 1 || kind == Kind::Alias;
        let has_user = given(members, "user").is_some() || given(members, "userKey").is_some();
        return if is_of_users || has_user {
            Ok(None)
        } else {
            Err(NO_USER)
        };
    }
    let user = context.and_then(user_of);
    let key = match &user {
        Some(user) => given(user, "key"),
        None => keys.and_then(Members::of).and_then(|keys| given(&keys, "user")),
    };
    Ok(Some(event(kind, members, user.as_ref(), key.ok_or(NO_USER)?)))
}

fn event<'a>(kind: Kind, members: &Members<'a>, user: Option<&Members<'a>>, key: &'a str) -> Object<'a> {
    let mut converted = Object::default();
    let mut written = false;
    for member in members.iter() {
        if member.is("context") || member.is("contextKeys") {
            if written {
                continue;
            }
            written = true;
            // Consumers of version 1 find the user of an evaluation by `userKey`.
            if user.is_none() || kind == Kind::Feature {
                converted.push("\"userKey\"", key);
            }
            if let Some(user) = user {
                converted.push("\"user\"", user_object(user));
            }
        } else if kind == Kind::Identify && member.is("key") {
            // Of contexts some SDKs send all kinds and keys in one text here; of users it is the user's key.
            converted.push("\"key\"", key);
        } else if !(member.is("user") || member.is("userKey")) {
            converted.copy(member);
        }
    }
    let anonymous = user.is_some_and(|user| user.get("anonymous") == Some("true"));
    if anonymous && matches!(kind, Kind::Feature | Kind::Custom) && members.get("contextKind").is_none() {
        converted.push("\"contextKind\"", "\"anonymousUser\"");
    }
    converted
}

/// Returns a summary without what only contexts have.
fn summary<'a>(members: &Members<'a>) -> Object<'a> {
    let mut converted = Object::default();
    for member in members.iter().filter(|member| !member.is("context")) {
        match Members::of(member.value).filter(|_| member.is("features")) {
            Some(flags) => converted.push("\"features\"", features(&flags)),
            None => converted.copy(member),
        }
    }
    converted
}

fn features(flags: &Members<'_>) -> String {
    let mut features = Object::default();
    for flag in flags.iter() {
        let counts = Members::of(flag.value).map(|counts| {
            let mut kept = Object::default();
            let members = counts.iter().filter(|member| !member.is("contextKinds"));
            members.for_each(|member| kept.copy(member));
            kept.text()
        });
        let counts = counts.map_or(Cow::Borrowed(flag.value), Cow::Owned);
        features.0.push((flag.name.into(), counts));
    }
    features.text()
}

/// Returns the context of kind `user`.
fn user_of(context: &str) -> Option<Members<'_>> {
    let members = Members::of(context)?;
    let user = match members.get("kind")? {
        "\"user\"" => members,
        "\"multi\"" => Members::of(members.get("user")?)?,
        _ => return None,
    };
    given(&user, "key").is_some().then_some(user)
}

fn user_object(context: &Members<'_>) -> String {
    let (mut user, mut custom) = (Object::default(), Object::default());
    let mut removed = Vec::new();
    for member in context.iter() {
        if member.is("_meta") {
            removed = Members::of(member.value).map_or(removed, |meta| names(meta.get("redactedAttributes")));
        } else if BUILT_IN.iter().any(|name| member.is(name)) {
            user.copy(member);
        } else if !member.is("kind") {
            custom.copy(member);
        }
    }
    if !custom.is_empty() {
        user.push("\"custom\"", custom.text());
    }
    if !removed.is_empty() {
        user.push("\"privateAttrs\"", format!("[{}]", removed.join(",")));
    }
    user.text()
}

/// Returns the names, as JSON texts, of the attributes in a list of references.
fn names(references: Option<&str>) -> Vec<Cow<'_, str>> {
    let references = references.and_then(|json| serde_json::from_str::<Vec<&RawValue>>(json).ok());
    let references = references.unwrap_or_default();
    references.into_iter().map(|reference| name(reference.get())).collect()
}

/// Returns the name that a reference (`name`, `/name`, `/a~1b`) stands for. One into an object (`/address/street`) has
/// no name in version 1 and stays what it is.
fn name(reference: &str) -> Cow<'_, str> {
    let decoded = match reference.starts_with("\"/") {
        true => serde_json::from_str::<String>(reference).ok(),
        false => None,
    };
    let name = decoded.as_deref().and_then(|text| text.strip_prefix('/'));
    match name.filter(|name| !name.contains('/')) {
        Some(name) => serde_json::Value::from(name.replace("~1", "/").replace("~0", "~"))
            .to_string()
            .into(),
        None => reference.into(),
    }
}
