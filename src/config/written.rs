//! Export settings as text: what `environments[].export` would say, as JSON or as YAML.
//!
//! What is written here is read by [`export`] as the same settings; a property test holds it.

use serde_json::{Map, Value, json};

use super::selection::{self, Moment};
use crate::export::selection::{Choice, Flag, FlagDefault, Settings};
use crate::problems::{Place, Problems};
use crate::section::{self, Leaf as _};

/// Reads export settings by themselves, as they stand under `export:`; JSON is YAML too. Variables are not known here.
/// Returns the settings and their warnings, or every problem.
pub fn export(text: &str) -> Result<(Settings, Problems), Problems> {
    // As a section of a file nothing means the defaults; sent by itself it is a slip that would export everything.
    let says_something =
        |line: &&str| !line.trim_start().starts_with('#') && !matches!(line.trim(), "" | "---" | "...");
    let said: Vec<&str> = text.lines().filter(says_something).map(str::trim).collect();
    if matches!(said[..], [] | ["null" | "Null" | "NULL" | "~"]) {
        return Err(Problems::one(
            Place::default(),
            "is empty: send `{}` if the defaults are meant",
        ));
    }
    let reading = section::read(text, &|_| None, selection::read);
    match reading.value {
        Some(settings) if !reading.problems.has_errors() => Ok((settings, reading.problems)),
        _ if reading.problems.has_errors() => Err(reading.problems),
        _ => Err(Problems::one(Place::default(), "is no mapping of export settings")),
    }
}

/// Returns settings as a document with every key.
pub fn document(settings: &Settings) -> Value {
    let mut flags = Map::new();
    let default = match settings.flags.default {
        FlagDefault::Export => "export",
        FlagDefault::Hold => "hold",
        FlagDefault::New { .. } => "new",
    };
    flags.insert("default".to_owned(), json!(default));
    if let FlagDefault::New { since_ms } = settings.flags.default {
        flags.insert("since".to_owned(), json!(Moment(since_ms).show()));
    }
    let named = settings.flags.named.iter();
    let named: Map<String, Value> = named.map(|(key, one)| (key.clone(), flag(one))).collect();
    flags.insert("named".to_owned(), Value::Object(named));
    let patterns = |patterns: &[crate::glob::Glob]| -> Value {
        patterns.iter().map(|pattern| json!(plain(pattern.as_str()))).collect()
    };
    let samples = settings.samples.iter();
    let samples: Map<String, Value> = samples.map(|(key, ratio)| (key.clone(), json!(ratio))).collect();
    json!({
        "kinds": settings.kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>(),
        "flags": flags,
        "custom_events": {
            "include": patterns(&settings.custom_events.include),
            "exclude": patterns(&settings.custom_events.exclude),
        },
        "sdks": { "exclude": patterns(&settings.excluded_sdks) },
        "experiments_only": settings.experiments_only,
        "sample": { "flags": samples },
    })
}

fn flag(flag: &Flag) -> Value {
    let short = |word: &str| match flag.experiments {
        true => json!(word),
        false => json!({ "export": word, "experiments": false }),
    };
    match &flag.choice {
        Choice::Export => short("export"),
        Choice::Hold => short("hold"),
        Choice::Rules { ids, fallthrough } => json!({
            "rules": ids.iter().map(|id| plain(id)).collect::<Vec<_>>(),
            "fallthrough": fallthrough,
            "experiments": flag.experiments,
        }),
    }
}

/// Keeps a value from being taken for a variable.
fn plain(text: &str) -> String {
    text.replace("${", "$${")
}

/// Returns a document as YAML lines, `indent` spaces in: mappings as blocks, lists in brackets.
pub fn yaml(document: &Value, indent: usize) -> String {
    let mut text = String::new();
    let Value::Object(entries) = document else {
        return format!("{:indent$}{}\n", "", flow(document));
    };
    for (key, value) in entries {
        let key = scalar(key);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push_str(&format!("{:indent$}{key}:\n{}", "", yaml(value, indent + 2)));
            }
            _ => text.push_str(&format!("{:indent$}{key}: {}\n", "", flow(value))),
        }
    }
    text
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        // An empty mapping, a number, a boolean: as in JSON.
        other => other.to_string(),
    }
}

/// Quotes whatever could be taken for something else, as JSON does: YAML reads it alike.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 8] = ["true", "false", "null", "yes", "no", "on", "off", "y"];
    let is_name = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.len() > 1
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    match is_name {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::event::Kind;
    use crate::export::selection::{Flags, Names};
    use crate::glob::Glob;

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z][a-z0-9._-]{0,20}",
            "[ -~]{1,12}",
            "\\PC{1,8}",
            Just("no".to_owned()),
            Just("${X}".to_owned())
        ]
        .prop_filter("what a flag's key can be", |key| !key.is_empty() && key.len() <= 256)
    }

    fn glob() -> impl Strategy<Value = Glob> {
        "[a-z*$:{}\"'# -]{1,12}".prop_filter_map("a pattern", |text| Glob::parse(&text).ok())
    }

    fn one_flag() -> impl Strategy<Value = Flag> {
        let rules = (prop::collection::btree_set("[a-f0-9$\\{]{1,9}", 0..3), any::<bool>());
        let rules = rules.prop_map(|(ids, fallthrough)| Choice::Rules { ids, fallthrough });
        let choice = prop_oneof![Just(Choice::Export), Just(Choice::Hold), rules];
        (choice, any::<bool>()).prop_map(|(choice, experiments)| Flag { choice, experiments })
    }

    prop_compose! {
        fn settings()(
            kinds in prop::collection::btree_set(prop::sample::select(Kind::EXPORTABLE.to_vec()), 1..6),
            default in prop_oneof![
                Just(FlagDefault::Export),
                Just(FlagDefault::Hold),
                (0u64..4_000_000_000_000).prop_map(|since_ms| FlagDefault::New { since_ms }),
            ],
            named in prop::collection::btree_map(key(), one_flag(), 0..5),
            include in prop::collection::vec(glob(), 0..3),
            exclude in prop::collection::vec(glob(), 0..3),
            excluded_sdks in prop::collection::vec(glob(), 0..3),
            experiments_only: bool,
            samples in prop::collection::btree_map(key(), 1u32..1_000_000, 0..3),
        ) -> Settings {
            let samples: BTreeMap<String, u32> = samples;
            Settings {
                kinds, flags: Flags { default, named }, custom_events: Names { include, exclude }, excluded_sdks,
                experiments_only, samples,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(settings in settings()) {
            let document = document(&settings);
            for text in [document.to_string(), serde_json::to_string_pretty(&document).unwrap(), yaml(&document, 0)] {
                let (read, _) = export(&text).map_err(|problems| TestCaseError::fail(format!("{problems}\n{text}")))?;
                prop_assert_eq!(&read, &settings, "{}", text);
            }
            let whole = format!(
                "environments:\n  - name: a\n    export:\n{}    destinations: []\n", yaml(&document, 6)
            );
            let (config, _) = crate::config::Config::parse(&whole, &|_| None).unwrap();
            prop_assert_eq!(&config.environments[0].export, &settings);
        }
    }

    #[test]
    fn yaml_is_for_reading() {
        let (settings, _) =
            export("flags: { default: hold, named: { new-ui: export, \"1\": { rules: [a1, 2] } } }").unwrap();
        let text = yaml(&document(&settings), 0);
        for part in [
            "flags:\n  default: hold\n  named:\n    \"1\":\n      ",
            "      rules: [\"2\", a1]\n",
            "    new-ui: export\n",
            "sdks:\n  exclude: []\n",
            "experiments_only: false\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn every_problem_is_named() {
        let problems = export("kinds: [features]\nflag: x\nexperiments_only: 1\n").unwrap_err();
        assert_eq!(problems.errors(), 3, "{problems}");
        assert!(export("- a").is_err() && export("${SECRET}").is_err());
    }
}
