use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::destination::{Settings, kinesis};
use crate::export::selection::Settings as Selection;
use crate::section::Known;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example() -> String {
    fs::read_to_string(repository("config.example.yaml")).unwrap()
}

/// Gives every variable a secret that is easy to find.
fn hush(name: &str) -> Option<String> {
    Some(format!("hush-{name}-0123456789"))
}

/// Returns the example with its commented keys in force, and without those that they stand in for.
fn uncommented_example() -> String {
    let uncomment = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        match line.trim_start().strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => format!("{}{rest}\n", " ".repeat(indent)),
            _ => format!("{line}\n"),
        }
    };
    example()
        .lines()
        .map(uncomment)
        .collect::<String>()
        .replacen("listen: 0.0.0.0:8030\n", "", 1)
}

/// Returns every key that the readers know, by asking them to read the whole example.
fn known() -> BTreeMap<String, Known> {
    let text = uncommented_example();
    let reading = section::read(&text, &hush, read);
    let problems = reading.problems.render("example");
    assert!(
        !problems.contains("not a known key") && !problems.contains("not valid YAML"),
        "{problems}"
    );
    reading.known
}

/// Mappings whose keys are the user's own.
const NAMED: [&str; 3] = [
    "environments[].export.flags.named",
    "environments[].export.sample.flags",
    "destinations[].redact.attributes",
];

/// Returns the paths of all keys in a block-style document.
fn paths(text: &str) -> BTreeSet<String> {
    let mut stack: Vec<(usize, String)> = Vec::new();
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut indent = line.len() - line.trim_start().len();
        let mut rest = line.trim_start();
        if let Some(item) = rest.strip_prefix("- ") {
            indent += 2;
            rest = item;
        }
        let Some((key, _)) = rest.split_once(':') else { continue };
        stack.retain(|(outer, _)| *outer < indent);
        let parent = stack.last().map(|(_, path)| path.as_str()).unwrap_or_default();
        let parent = if ["environments", "destinations"].contains(&parent) || parent.ends_with(".user_identities") {
            format!("{parent}[]")
        } else {
            parent.to_owned()
        };
        let path = if NAMED.contains(&parent.as_str()) {
            format!("{parent}.*")
        } else if parent.is_empty() {
            key.to_owned()
        } else {
            format!("{parent}.{key}")
        };
        found.insert(path.clone());
        stack.push((indent, path));
    }
    found
}

#[test]
fn the_example_is_valid_without_a_warning_and_shows_the_defaults() {
    let (config, warnings) = Config::parse(&example(), &hush).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings.render("example"), "");
    let default = Config::embedded();
    assert_eq!(config.listen, default.listen);
    assert_eq!(config.telemetry, default.telemetry);
    assert_eq!(config.log, default.log);
    assert_eq!(config.upstream, default.upstream);
    assert_eq!(config.limits, default.limits);
    assert_eq!(config.tee, default.tee);
    assert_eq!(config.queue, default.queue);
    assert_eq!(config.dedupe, default.dedupe);
    assert_eq!(config.shutdown, default.shutdown);
    assert_eq!(config.environments[0].export, Selection::default());
    let stream = kinesis::Stream::Name("ld-events".to_owned());
    let lake = kinesis::Settings::to("eu-west-1", stream);
    assert_eq!(config.destinations[1].settings, Settings::Kinesis(lake));
    assert_eq!(config.destinations[0].retry, default.destinations[0].retry);
    assert_eq!(config.destinations[0].settings, default.destinations[0].settings);
}

#[test]
fn the_example_has_every_key_and_no_other() {
    let known: BTreeSet<String> = known().into_keys().collect();
    assert_eq!(paths(&uncommented_example()), known);
}

/// Adds the paths of a schema's properties, without other spellings of a key.
fn schema_paths(schema: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    let mut below = |schema: &serde_json::Value, path: String| {
        if !path.is_empty() && !path.ends_with("[]") {
            found.insert(path.clone());
        }
        schema_paths(schema, &path, found);
    };
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let is_ours = key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
        if is_ours {
            below(
                property,
                if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                },
            );
        }
    }
    // Headers of a webhook have no shape of their own.
    if schema["additionalProperties"].is_object() && !path.ends_with(".headers") {
        below(&schema["additionalProperties"], format!("{path}.*"));
    }
    if schema["items"].is_object() {
        below(&schema["items"], format!("{path}[]"));
    }
}

#[test]
fn the_schema_has_every_key_and_no_other() {
    let mut paths = BTreeSet::new();
    schema_paths(&Config::schema(&|_| None), "", &mut paths);
    // The example can show one key of several that exclude each other in one place, such as `headers`' names.
    let known: BTreeSet<String> = known().into_keys().filter(|path| !path.contains(".headers.")).collect();
    assert_eq!(paths, known);
}

#[test]
fn the_documentation_lists_every_key_with_type_and_default() {
    let cell = |known: &Known| {
        let default = match &known.default {
            Some(default) => format!("`{default}`"),
            None if known.required => "required".to_owned(),
            None => String::new(),
        };
        (known.noun.clone(), default)
    };
    let known = known();
    let has_inner = |path: &str| {
        known.keys().any(|other| {
            other
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        })
    };
    let expected: BTreeMap<String, (String, String)> = known
        .iter()
        .filter(|(path, _)| !has_inner(path))
        .map(|(path, known)| (path.clone(), cell(known)))
        .collect();
    let text = fs::read_to_string(repository("docs/configuration.md")).unwrap();
    let mut documented = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [path, kind, default, meaning] = cells[..] else {
            panic!("{line}")
        };
        assert!(meaning.len() > 10, "{line}");
        let fresh = documented.insert(path.trim_matches('`').to_owned(), (kind.to_owned(), default.to_owned()));
        assert!(fresh.is_none(), "twice: {line}");
    }
    let rows = |map: &BTreeMap<String, (String, String)>| -> Vec<String> {
        map.iter()
            .map(|(path, (kind, default))| format!("| `{path}` | {kind} | {default} |"))
            .collect()
    };
    assert_eq!(rows(&documented).join("\n"), rows(&expected).join("\n"));
}

#[test]
fn broken_files_are_answered_with_all_their_problems() {
    let environment = |name: &str| (name == "LD_SDK_KEY").then(|| "sdk-hush-from-environment".to_owned());
    let update = std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some();
    let mut files = 0;
    for entry in fs::read_dir(repository("tests/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        files += 1;
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Err(problems) = Config::load(&path, &environment) else {
            panic!("{name} is valid")
        };
        let said = problems.render(&name);
        assert!(!said.contains("hush"), "{said}");
        let golden = path.with_extension("txt");
        if update {
            fs::write(&golden, &said).unwrap();
        }
        assert_eq!(fs::read_to_string(&golden).unwrap_or_default(), said, "{name}");
    }
    assert!(files >= 12, "{files}");
}

#[test]
fn no_secret_is_in_the_debug_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs::write(&file, "mob-hush-from-file\n").unwrap();
    let text = example().replace(
        "      mobile_keys: [\"${LD_MOBILE_KEY}\"]\n",
        &format!("      mobile_keys_file: {}\n", file.display()),
    );
    let (config, _) = Config::parse(&text, &hush).unwrap_or_else(|problems| panic!("{problems}"));
    let credentials = config.environments[0].credentials.as_ref().unwrap();
    assert_eq!(credentials.sdk_keys[0].expose(), "hush-LD_SDK_KEY-0123456789");
    assert_eq!(credentials.mobile_keys[0].expose(), "mob-hush-from-file");
    assert!(!format!("{config:?} {config:#?}").contains("hush"));
}

#[test]
fn a_client_side_id_stands_in_for_the_environment_id() {
    let text = example().replace("    environment_id: 578d1e02d2943862c52b9686\n", "");
    let (config, warnings) = Config::parse(&text, &hush).unwrap();
    assert_eq!(config.environments[0].environment_id, "578d1e02d2943862c52b9686");
    assert!(warnings.is_empty(), "{warnings}");
}

#[test]
fn memory_can_be_given_as_a_bare_word() {
    let tail = "\nenvironments: [{ name: a, destinations: [b] }]\ndestinations: [{ name: b, stdout: {} }]\n";
    for queue in ["queue: memory", "queue: { memory: {} }", "queue:\n  memory:"] {
        let (config, _) = Config::parse(&format!("{queue}{tail}"), &hush).unwrap();
        assert_eq!(config.queue.engine, Engine::Memory, "{queue}");
    }
    assert!(Config::parse(&format!("queue: sled{tail}"), &hush).is_err());
}

#[test]
fn port_0_may_be_used_twice() {
    let text = "listen: 127.0.0.1:0\ntelemetry: 127.0.0.1:0\nupstream: { url: \"http://127.0.0.1:9\" }\n\
                environments: [{ name: a, destinations: [b] }]\ndestinations: [{ name: b, stdout: {} }]\n";
    assert!(Config::parse(text, &hush).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to a file in an editor, it is read or refused, and no answer shows a secret.
    #[test]
    fn a_damaged_file_never_shows_a_secret(at in 0usize..8_000, length in 0usize..200, insert in "[a-z{}:\\[\\]\"# \n-]{0,12}") {
        let mut text = example();
        let mut start = at.min(text.len());
        while !text.is_char_boundary(start) { start -= 1 }
        let mut end = (start + length).min(text.len());
        while !text.is_char_boundary(end) { end -= 1 }
        text.replace_range(start..end, &insert);
        let said = match Config::parse(&text, &hush) {
            Ok((config, warnings)) => format!("{config:?} {warnings}"),
            Err(problems) => problems.to_string(),
        };
        prop_assert!(!said.contains("hush"), "{said}");
    }
}
