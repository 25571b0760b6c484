//! What real SDKs of every generation sent, forced into each schema: `tests/golden` has their events as exported.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use super::*;

/// Calls with the event of every golden line, its kind, and what `form` makes of it.
fn converted(form: &Form, mut see: impl FnMut(&str, &ExportEvent<'_>, Result<String, &'static str>)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for entry in fs::read_dir(folder)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().is_file())
    {
        let mut text = String::new();
        MultiGzDecoder::new(fs::File::open(entry.path()).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        for line in text.lines() {
            let members = Members::of(line).unwrap();
            let json = members.get("event").unwrap();
            let inner = Members::of(json).unwrap();
            let text = |key: &str| inner.get(key).unwrap().trim_matches('"').to_owned();
            let (kind, id) = (text("kind"), text("id"));
            let event = ExportEvent {
                project_id: "",
                environment_id: "",
                environment: "",
                version: members.get("version").unwrap().parse().unwrap(),
                strip_private: false,
                id: &id,
                kind: Kind::of(&kind),
                json: json.as_bytes(),
            };
            let record = form.render(&event);
            see(json, &event, record.map(|record| String::from_utf8(record).unwrap()));
            seen += 1;
        }
    }
    assert!(seen > 2000, "{seen}");
}

/// Returns the event without what the schemas say in different words.
fn common(mut event: Value) -> Value {
    let is_identify = event["kind"] == "identify";
    let members = event.as_object_mut().unwrap();
    for name in ["user", "userKey", "context", "contextKeys", "contextKind"] {
        members.remove(name);
    }
    if is_identify {
        members.remove("key");
    }
    let flags = members.get_mut("features").and_then(Value::as_object_mut);
    for flag in flags.into_iter().flat_map(|flags| flags.values_mut()) {
        flag.as_object_mut().unwrap().remove("contextKinds");
    }
    event
}

/// Returns what is known of the user, whatever the schema: attributes by name, and removed ones under `_removed`.
fn user(event: &Value) -> BTreeMap<String, Value> {
    let context = &event["context"];
    let of_kind = if context["kind"] == "multi" {
        &context["user"]
    } else {
        context
    };
    let sources = [&event["user"], of_kind];
    let mut known = BTreeMap::new();
    let is_user = context.is_null() || context["kind"] == "user" || context["kind"] == "multi";
    let found = sources.into_iter().find_map(Value::as_object).filter(|_| is_user);
    for (name, value) in found.into_iter().flatten() {
        match (name.as_str(), value) {
            ("kind", _) => {}
            ("custom", Value::Object(custom)) => known.extend(custom.clone()),
            ("privateAttrs", value) => drop(known.insert("_removed".to_owned(), names(value))),
            ("_meta", meta) => drop(known.insert("_removed".to_owned(), names(&meta["redactedAttributes"]))),
            (name, value) => drop(known.insert(name.to_owned(), value.clone())),
        }
    }
    let keys = [&event["contextKeys"]["user"], &event["userKey"]];
    if let Some(key) = keys.into_iter().find(|key| !key.is_null()) {
        known.entry("key".to_owned()).or_insert_with(|| key.clone());
    }
    known.retain(|name, value| name != "_removed" || *value != json!([]));
    known
}

/// Returns a list of attributes with references (`/a~1b`) as the names (`a/b`) that they stand for.
fn names(list: &Value) -> Value {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    let name = |text: &str| match text.strip_prefix('/').filter(|name| !name.contains('/')) {
        Some(name) => name.replace("~1", "/").replace("~0", "~"),
        None => text.to_owned(),
    };
    texts.map(name).collect()
}

fn with(schema: Schema) -> Form {
    Form {
        schema,
        ..Form::default()
    }
}

#[test]
fn every_event_about_a_user_has_a_version_1() {
    converted(&with(Schema::One), |json, event, record| {
        let sent: Value = serde_json::from_str(json).unwrap();
        match record {
            Err(why) => {
                assert_eq!((why, event.version), ("no_user", 2), "{json}");
                assert!(!user(&sent).contains_key("key"), "{json}");
            }
            Ok(record) => {
                let record: Value = serde_json::from_str(&record).unwrap();
                let got = &record["event"];
                assert_eq!(record["version"], 1);
                assert!(got["context"].is_null() && got["contextKeys"].is_null(), "{got}");
                assert_eq!(common(got.clone()), common(sent.clone()));
                if got["kind"] != "summary" {
                    assert_eq!(user(got), user(&sent), "{json}");
                }
            }
        }
    });
}

#[test]
fn every_event_but_an_alias_has_a_version_2() {
    converted(&with(Schema::Two), |json, event, record| {
        let sent: Value = serde_json::from_str(json).unwrap();
        match record {
            Err(why) => assert_eq!((why, event.kind), ("not_in_schema_2", Kind::Alias), "{json}"),
            Ok(record) => {
                let record: Value = serde_json::from_str(&record).unwrap();
                let got = &record["event"];
                assert_eq!(record["version"], 2);
                assert!(got["user"].is_null() && got["userKey"].is_null(), "{got}");
                assert_eq!(common(got.clone()), common(sent.clone()));
                assert_eq!(user(got), user(&sent), "{json}");
            }
        }
    });
}

#[test]
fn what_needs_no_conversion_is_what_auto_writes() {
    for schema in [Schema::One, Schema::Two] {
        converted(&with(schema), |json, event, record| {
            let members = Members::of(json).unwrap();
            let theirs = match schema {
                Schema::One => ["context", "contextKeys", "features"],
                _ => ["user", "userKey", "contextKind"],
            };
            let own = if schema == Schema::One { 1 } else { 2 };
            if event.version == own
                && theirs.iter().all(|name| members.get(name).is_none())
                && event.kind != Kind::Alias
            {
                assert_eq!(record.unwrap().as_bytes(), envelope::render(event));
            }
        });
    }
}
