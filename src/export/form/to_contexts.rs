//! Version 1 as version 2: an event about a user becomes one about a context of kind `user`.
//!
//! Does what SDKs that know contexts do with a user: custom attributes stand beside the built-in ones, unless they have
//! the name of one or of a reserved member; private attributes become redacted ones.

use serde_json::value::RawValue;

use super::{Object, given};
use crate::event::Kind;
use crate::export::Members;

/// What a context keeps for itself, whatever a user's custom attributes are called.
const RESERVED: [&str; 4] = ["kind", "key", "anonymous", "_meta"];

/// Why an event has no form in version 2.
const NOT_IN_SCHEMA_2: &str = "not_in_schema_2";

/// Returns the event in version 2, nothing where it already is in it, or why it cannot be.
pub(super) fn convert<'a>(kind: Kind, members: &Members<'a>) -> Result<Option<Object<'a>>, &'static str> {
    if kind == Kind::Alias {
        return Err(NOT_IN_SCHEMA_2);
    }
    let of_users = ["userKey", "user", "contextKind"];
    if !of_users.iter().any(|name| members.get(name).is_some()) {
        return Ok(None);
    }
    let mut converted = Object::default();
    let (mut keys, mut contexts) = (
        given(members, "userKey").filter(|_| members.get("contextKeys").is_none()),
        given(members, "user").filter(|_| members.get("context").is_none()),
    );
    for member in members.iter() {
        if member.is("userKey") {
            if let Some(key) = keys.take() {
                converted.push("\"contextKeys\"", format!("{{\"user\":{key}}}"));
            }
        } else if member.is("user") {
            if let Some(user) = contexts.take().and_then(Members::of) {
                converted.push("\"context\"", context(&user));
            }
        } else if !member.is("contextKind") {
            converted.copy(member);
        }
    }
    Ok(Some(converted))
}

fn context(user: &Members<'_>) -> String {
    let mut context = Object::default();
    context.push("\"kind\"", "\"user\"");
    let mut redacted = Vec::new();
    for member in user.iter().filter(|member| !(member.is("kind") || member.is("_meta"))) {
        let custom = Members::of(member.value).filter(|_| member.is("custom"));
        let private = serde_json::from_str::<Vec<&RawValue>>(member.value).ok();
        match (custom, private) {
            (Some(custom), _) => copy_custom(&mut context, user, &custom),
            // PHP writes an empty mapping as a list.
            (None, Some(list)) if member.is("custom") && list.is_empty() => {}
            (None, Some(names)) if member.is("privateAttrs") => {
                redacted = names.into_iter().map(|name| reference(name.get())).collect();
            }
            _ if (member.is("custom") || member.is("privateAttrs")) && member.value == "null" => {}
            _ => context.copy(member),
        }
    }
    if !redacted.is_empty() {
        context.push(
            "\"_meta\"",
            format!("{{\"redactedAttributes\":[{}]}}", redacted.join(",")),
        );
    }
    context.text()
}

fn copy_custom<'a>(context: &mut Object<'a>, user: &Members<'a>, custom: &Members<'a>) {
    for member in custom.iter() {
        let decoded: Option<String> = serde_json::from_str(member.name).ok();
        let taken = decoded.is_some_and(|name| match name.as_str() {
            // Not attributes of a context, so nothing stands in the way of one with such a name.
            "custom" | "privateAttrs" => false,
            name => RESERVED.contains(&name) || user.get(name).is_some(),
        });
        if !taken {
            context.copy(member);
        }
    }
}

/// Returns the reference to the attribute with this name: the name itself unless it looks like a path.
fn reference(name: &str) -> String {
    let decoded = match name.starts_with("\"/") {
        true => serde_json::from_str::<String>(name).ok(),
        false => None,
    };
    match decoded {
        Some(text) => {
            let escaped = text.replace('~', "~0").replace('/', "~1");
            serde_json::Value::from(format!("/{escaped}")).to_string()
        }
        None => name.to_owned(),
    }
}
