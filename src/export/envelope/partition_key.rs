//! The key that events of one user or context share, for services that partition or order by key.

use crate::event::Kind;
use crate::export::{ExportEvent, Members, contexts};

/// Returns the key that all events of one user or context share; empty if the event has none (a summary).
///
/// LaunchDarkly's Kinesis page says "the user key sent with the event": `userKey`, or `user.key`, or the `key` of an
/// alias. For contexts no rule is published: it is the key of the kind `user`, else that of the kind that sorts lowest.
/// A key that is not a string counts as its JSON text.
pub fn partition_key(event: &ExportEvent<'_>) -> String {
    let Some(members) = std::str::from_utf8(event.json).ok().and_then(Members::of) else {
        return String::new();
    };
    user_key(event.kind, &members)
        .or_else(|| context_key(contexts_by_key(members.get("contextKeys")?)?))
        .or_else(|| context_key(contexts(members.get("context")?)?))
        .unwrap_or_default()
}

fn contexts_by_key(json: &str) -> Option<Vec<(&str, &str)>> {
    Some(
        Members::of(json)?
            .iter()
            .map(|member| (member.name, member.value))
            .collect(),
    )
}

fn user_key(kind: Kind, members: &Members<'_>) -> Option<String> {
    let inline = || Members::of(members.get("user")?)?.get("key").and_then(text);
    let alias = || members.get("key").filter(|_| kind == Kind::Alias).and_then(text);
    members.get("userKey").and_then(text).or_else(inline).or_else(alias)
}

fn context_key(contexts: Vec<(&str, &str)>) -> Option<String> {
    contexts
        .into_iter()
        .filter_map(|(kind, key)| Some((text(kind)?, text(key)?)))
        .min_by_key(|(kind, _)| (kind != "user", kind.clone()))
        .map(|(_, key)| key)
}

// A JSON string's text, any other value's JSON; `None` for null.
fn text(json: &str) -> Option<String> {
    (json != "null").then(|| serde_json::from_str(json).unwrap_or_else(|_| json.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_key_is_the_user_or_contexts_key() {
        for (kind, json, expected) in [
            (Kind::Feature, r#"{"userKey":"u-\u00e9"}"#, "u-é"),
            (Kind::Index, r#"{"user":{"key":"u","name":"n"}}"#, "u"),
            (Kind::Feature, r#"{"userKey":17}"#, "17"),
            (Kind::Feature, r#"{"userKey":null,"user":{"key":"u"}}"#, "u"),
            (Kind::Alias, r#"{"key":"u","previousKey":"anonymous"}"#, "u"),
            (Kind::Custom, r#"{"key":"order"}"#, ""),
            (
                Kind::Identify,
                r#"{"key":"org:o","context":{"kind":"org","key":"o"}}"#,
                "o",
            ),
            (Kind::Custom, r#"{"contextKeys":{"org":"o","user":"u"}}"#, "u"),
            (Kind::Custom, r#"{"contextKeys":{"org":"o","device":"d"}}"#, "d"),
            (
                Kind::Custom,
                r#"{"contextKeys":{},"context":{"kind":"org","key":"o"}}"#,
                "o",
            ),
            (
                Kind::Custom,
                r#"{"context":{"kind":"multi","org":{"key":"o"},"user":{"key":"u"}}}"#,
                "u",
            ),
            (
                Kind::Custom,
                r#"{"context":{"kind":"multi","org":{"key":"o"},"device":{"key":"d"}}}"#,
                "d",
            ),
            (Kind::Feature, r#"{"userKey":"\ud800"}"#, r#""\ud800""#),
            (Kind::Summary, r#"{"features":{},"context":{"kind":"multi"}}"#, ""),
            (Kind::Other, "[]", ""),
        ] {
            assert_eq!(partition_key(&event(kind, json)), expected, "{json}");
        }
    }

    fn event(kind: Kind, json: &str) -> ExportEvent<'_> {
        ExportEvent {
            project_id: "",
            environment_id: "",
            environment: "",
            version: 2,
            strip_private: false,
            id: "",
            kind,
            json: json.as_bytes(),
        }
    }
}
