use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::units::ByteSize;

fn nothing_set(_: &str) -> Option<String> {
    None
}

fn environment(name: &str) -> Option<String> {
    match name {
        "KEY" => Some("sdk-from-environment".to_owned()),
        "EMPTY" => Some(String::new()),
        "YAML" => Some("a: b\n- c".to_owned()),
        _ => None,
    }
}

/// Reads `text` and returns the value and the rendered problems.
fn reading<T>(text: &str, reader: impl FnOnce(&mut Section<'_>) -> T) -> (Option<T>, String) {
    let reading = read(text, &environment, reader);
    (reading.value, reading.problems.render("f"))
}

fn said<T>(text: &str, reader: impl FnOnce(&mut Section<'_>) -> T) -> String {
    reading(text, reader).1
}

#[test]
fn reads_typed_values_and_defaults() {
    let (value, problems) = reading("name: lake\nwait: 30s\nsizes: [1KiB, 2MiB]\n", |section| {
        (
            section.required::<String>("name"),
            section.or("wait", Duration::ZERO),
            section.or("size", ByteSize::mib(1)),
            section.optional::<u16>("port"),
            section.list::<ByteSize>("sizes"),
        )
    });
    assert_eq!(problems, "");
    let sizes = vec![ByteSize::kib(1), ByteSize::mib(2)];
    let expected = (
        Some("lake".to_owned()),
        Duration::from_secs(30),
        ByteSize::mib(1),
        None,
        Some(sizes),
    );
    assert_eq!(value, Some(expected));
}

#[test]
fn reports_all_problems_in_the_order_of_the_file() {
    let text = "wait: 30\nsize: 16MB2\nnmae: x\ninner:\n  flag: maybe\n  list: 5\n";
    let problems = said(text, |section| {
        section.section("inner", |inner| {
            inner.or("flag", true);
            inner.list::<String>("list");
            inner.required::<String>("host");
        });
        section.or("size", ByteSize(0));
        section.or("wait", Duration::ZERO);
        section.required::<String>("name");
    });
    assert_eq!(
        problems,
        "f:1:1: needs `name`: text\n\
         f:1:7: wait: has no unit, expected a duration with its unit, such as 500ms, 30s, 5m, 12h or 7d\n\
         f:2:7: size: has an unknown unit, expected a size with its unit, such as 512KiB, 16MiB or 1GiB\n\
         f:3:1: nmae: is not a known key, did you mean `name`? (known here: inner, name, size, wait)\n\
         f:4:1: inner: needs `host`: text\n\
         f:5:9: inner.flag: is neither true nor false, expected true or false\n\
         f:6:9: inner.list: is a single value, expected a list, each text\n"
    );
}

#[test]
fn suggests_the_key_that_was_meant() {
    for (written, meant) in [
        ("maxBody", "max_body"),
        ("max-body", "max_body"),
        ("max_bdoy", "max_body"),
        ("wehn", "when"),
    ] {
        let problems = said(&format!("{written}: 1\n"), |section| {
            section.optional::<String>("max_body");
            section.optional::<String>("when");
        });
        assert!(problems.contains(&format!("did you mean `{meant}`?")), "{problems}");
    }
    let problems = said("colour: 1\n", |section| section.optional::<String>("when"));
    assert!(!problems.contains("did you mean"), "{problems}");
}

#[test]
fn a_key_that_could_be_a_secret_is_not_shown() {
    let problems = said("sdk-0123456789-0123456789-0123456789: x\n\"two words\": y\n", |_| ());
    assert_eq!(
        problems,
        "f:1:1: <key of 36 characters>: is not a known key (known here: none)\n\
         f:2:1: <key of 9 characters>: is not a known key (known here: none)\n"
    );
}

#[test]
fn duplicate_keys_are_errors_at_the_second_one() {
    let problems = said("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", |section| {
        section.optional::<u64>("a");
        section.section("b", |inner| inner.optional::<u64>("c"));
    });
    assert_eq!(
        problems,
        "f:4:3: b.c: is given twice, first in line 3; keep one\nf:5:1: a: is given twice, first in line 1; keep one\n"
    );
}

#[test]
fn variables_are_substituted_after_parsing() {
    let (value, problems) = reading("a: \"${KEY}\"\nb: x-${KEY}-$${KEY}-$KEY\nc: ${YAML}\n", |section| {
        let text = section.secret("a").map(|secret| secret.expose().to_owned());
        section.optional::<String>("c");
        (text, section.optional::<String>("b"))
    });
    let expected = (
        Some("sdk-from-environment".to_owned()),
        Some("x-sdk-from-environment-${KEY}-$KEY".to_owned()),
    );
    assert_eq!(value, Some(expected));
    assert_eq!(
        problems,
        "f:3:4: c: has a line break or another control character, expected text\n"
    );
}

#[test]
fn an_unset_variable_is_named_once_with_its_place() {
    let problems = said("keys:\n  - ${NOT_SET}\nopen: ${KEY\n", |section| {
        section.secrets("keys");
        section.optional::<String>("open");
    });
    assert_eq!(
        problems,
        "f:2:5: keys[0]: needs the environment variable NOT_SET, which is not set; set it or write `$${` for a plain `${`\n\
         f:3:7: open: has a `${` that does not begin `${NAME}`; write `$${` for the characters themselves\n"
    );
}

#[test]
fn secrets_come_from_the_file_that_a_key_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let text = format!(
        "token_file: {}\nkeys_file: {}\nempty_file: {}\nodd_file: {}\ngone_file: /does/not/exist\n",
        path("token", "sdk-12345\n"),
        path("keys", "one-1\r\n\n two-2\n"),
        path("empty", "\n"),
        path("odd", "two words\n"),
    );
    let (value, problems) = reading(&text, |section| {
        let token = section.secret("token").unwrap().expose().to_owned();
        let keys: Vec<_> = section
            .secrets("keys")
            .iter()
            .map(|(key, _)| key.expose().to_owned())
            .collect();
        assert!(section.secret("empty").is_none());
        assert!(section.secret("odd").is_none());
        assert!(section.secret("gone").is_none());
        (token, keys)
    });
    assert_eq!(
        value,
        Some(("sdk-12345".to_owned(), vec!["one-1".to_owned(), "two-2".to_owned()]))
    );
    let messages: Vec<&str> = problems.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(messages, ["empty_file", "odd_file", "gone_file"]);
    assert!(problems.contains("cannot be read: entity not found"), "{problems}");
    assert!(!problems.contains("two words"));
}

#[test]
fn a_secret_is_given_once_and_not_empty() {
    let problems = said("a: ${EMPTY}\nb: x\nb_file: /x\nc:\n", |section| {
        section.secret("a");
        section.secret("b");
        section.secret("c");
    });
    assert_eq!(
        problems,
        "f:1:4: a: is an empty secret; give a value or remove the key\n\
         f:3:9: b_file: is given together with `b`; keep one\n\
         f:4:2: c: is an empty secret; give a value or remove the key\n"
    );
}

#[test]
fn the_kind_is_the_key() {
    let kinds = ["kinesis", "file"];
    let read_kind = |section: &mut Section<'_>| {
        let kind = section.kind(&kinds);
        for known in kinds {
            section.section(known, |_| ());
        }
        kind
    };
    assert_eq!(reading("file: {}\n", read_kind), (Some(Some("file")), String::new()));
    assert_eq!(reading("file:\n", read_kind), (Some(Some("file")), String::new()));
    assert_eq!(said("{}\n", read_kind), "f:1:1: needs one of `kinesis`, `file`\n");
    assert_eq!(
        said("kinesis: {}\nfile: {}\n", read_kind),
        "f:2:7: file: is one too many: give exactly one of `kinesis`, `file`\n"
    );
}

#[test]
fn lists_of_mappings_carry_their_index() {
    let text = "list:\n  - { name: a }\n  - b\n  - nam: c\n";
    let (value, problems) = reading(text, |section| {
        section.sections("list", |item| item.required::<String>("name"))
    });
    assert_eq!(value, Some(vec![Some("a".to_owned()), None]));
    assert_eq!(
        problems,
        "f:3:5: list[1]: is a single value, expected a mapping (`key: value` lines)\n\
         f:4:5: list[2]: needs `name`: text\n\
         f:4:5: list[2].nam: is not a known key, did you mean `name`? (known here: name)\n"
    );
}

#[test]
fn aliases_are_copies_of_what_they_name() {
    let (value, problems) = reading("a: &x [one, two]\nb: *x\n", |section| {
        (section.list::<String>("a"), section.list::<String>("b"))
    });
    assert_eq!(problems, "");
    let (a, b) = value.unwrap();
    assert_eq!(a, b);
}

#[test]
fn hostile_documents_end_with_a_problem() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        laughs.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    let deep = format!("a: {}", "[".repeat(100));
    let deep_block: String = (0..100).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
    let large = "#".repeat((1 << 20) + 1);
    for (text, expected) in [
        (laughs.as_str(), "once aliases are filled in"),
        (&deep, "is not valid YAML"),
        (&deep_block, "is not valid YAML"),
        (&large, "is larger than 1MiB"),
        ("a: &a [*a]\n", "inside its own anchor"),
        ("a: *nowhere\n", "is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "is a second document"),
        ("a: [1\nb: 2\n", "is not valid YAML"),
        ("a:\n\tb: 1\n", "is not valid YAML"),
        ("[1]: 2\n", "not a plain word"),
        ("- a\n", "is a list, expected a mapping"),
    ] {
        let reading = read(text, &nothing_set, |_| ());
        assert!(reading.value.is_none(), "{expected}");
        let problems = reading.problems.render("f");
        assert!(problems.contains(expected), "{problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn tags_are_refused() {
    let problems = said("a: !!str 5\n", |section| section.optional::<String>("a"));
    assert_eq!(
        problems,
        "f:1:10: a: has a YAML tag (`!…`); tags are not used here, remove it\n"
    );
}

#[test]
fn an_empty_document_is_an_empty_mapping() {
    for text in ["", "# only a comment\n", "---\n", "~\n"] {
        assert_eq!(
            reading(text, |section| section.keys().len()),
            (Some(0), String::new()),
            "{text:?}"
        );
    }
}

#[test]
fn notes_what_was_asked_for() {
    let reading = read("list: [{ inner: {} }]\n", &nothing_set, |section| {
        section.sections("list", |item| {
            item.required::<String>("name");
            item.section("inner", |inner| inner.or("wait", Duration::from_secs(90)))
        });
    });
    let keys: Vec<&str> = reading.known.keys().map(String::as_str).collect();
    assert_eq!(keys, ["list", "list[].inner", "list[].inner.wait", "list[].name"]);
    assert_eq!(reading.known["list[].inner.wait"].default.as_deref(), Some("90s"));
    assert!(reading.known["list[].name"].required);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[-a-c:{}\\[\\],&*!|>'\"#$ \n]{0,60}") {
        let _ = said(&text, |section| {
            section.optional::<String>("a");
            section.section("b", |inner| inner.list::<u64>("c"));
            section.secrets("c");
        });
    }
}

#[test]
fn keys_may_be_spelled_as_the_rest_api_does_where_a_reader_allows_it() {
    let text = "stream:\n  streamName: a\n  userIDContextKind: b\n  inner: { maxBytes: c }\n";
    let reading = read(text, &|_| None, |root| {
        root.section("stream", |section| {
            section.take_camel_case();
            let inner = section.section("inner", |inner| inner.optional::<String>("max_bytes"));
            (
                section.optional::<String>("stream_name"),
                section.required::<String>("user_id_context_kind"),
                inner.flatten(),
            )
        })
    });
    assert_eq!(reading.problems.render("f"), "");
    let texts = ["a", "b", "c"].map(|text| Some(text.to_owned()));
    assert_eq!(reading.value.flatten().unwrap(), texts.into());
}

#[test]
fn two_spellings_of_a_key_are_one_too_many() {
    let text = "stream:\n  stream_name: a\n  streamName: b\n  StreamName: c\n";
    let reading = read(text, &|_| None, |root| {
        root.section("stream", |section| {
            section.take_camel_case();
            section.optional::<String>("stream_name")
        })
    });
    let problems = reading.problems.render("f");
    assert!(
        problems.contains("f:3:3: stream.streamName: is another spelling of `stream_name`"),
        "{problems}"
    );
    assert!(
        problems.contains("f:4:3: stream.StreamName: is not a known key"),
        "{problems}"
    );
}

#[test]
fn a_kind_may_have_another_name() {
    let reading = read("google-pubsub: { topic: t }\n", &|_| None, |root| {
        root.take_aliases(&[("google-pubsub", "google_pubsub")]);
        let kind = root.kind(&["google_pubsub", "file"])?;
        root.section(kind, |section| section.required::<String>("topic"))?
    });
    assert_eq!(reading.problems.render("f"), "");
    assert_eq!(reading.value.flatten().as_deref(), Some("t"));
}

/// A reader that asks in every way there is.
fn read_everything(section: &mut Section<'_>) {
    section.required::<String>("name");
    section.or("on", true);
    section.or("count", 3_u32);
    section.or("wait", Duration::from_secs(5));
    section.list_or("words", vec!["a".to_owned(), "b".to_owned()]);
    section.required_secret("token");
    if section.is_scalar("either") {
        section.optional::<ByteSize>("either");
    } else {
        section.section("either", |section| section.optional::<String>("inner"));
    }
    section.sections("places", |section| {
        section.take_aliases(&[("old-kind", "new_kind")]);
        match section.kind(&["new_kind", "other"]) {
            Some("other") => section.section("other", |section| section.or("stream_id", String::from("x"))),
            _ => section.section("new_kind", |section| {
                section.take_camel_case();
                section.or("stream_id", String::from("y"))
            }),
        };
    });
    section.named("free", "text or a mapping", |entry| {
        if entry.is_mapping() {
            entry.section(|section| section.or("sure", false));
        } else {
            entry.value::<String>();
        }
    });
    section.secret_mapping("headers");
}

#[test]
fn the_schema_has_what_a_reader_asks_for_on_every_way() {
    let schema = schema(read_everything, &|path| (path == "wait").then(|| "a pause".to_owned()));
    let keys = |pointer: &str| -> Vec<String> {
        let mapping = schema
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} in {schema:#}"));
        assert_eq!(mapping["type"], serde_json::json!(["null", "object"]));
        mapping["properties"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(schema["required"], serde_json::json!(["name"]));
    assert_eq!(schema["properties"]["on"]["default"], true);
    assert_eq!(schema["properties"]["count"]["default"], 3);
    assert_eq!(schema["properties"]["wait"]["default"], "5s");
    assert_eq!(schema["properties"]["wait"]["description"], "a pause");
    assert_eq!(schema["properties"]["words"]["default"], serde_json::json!(["a", "b"]));
    assert_eq!(schema["properties"]["token"]["writeOnly"], true);
    assert!(schema["properties"]["token_file"].is_object());
    let either = &schema["properties"]["either"];
    assert_eq!(
        either["type"],
        serde_json::json!(["integer", "null", "object", "string"])
    );
    assert!(either["properties"]["inner"].is_object() && either["pattern"].is_string());
    assert_eq!(keys("/properties/places/items"), ["new_kind", "old-kind", "other"]);
    assert_eq!(
        keys("/properties/places/items/properties/old-kind"),
        ["streamID", "streamId", "stream_id"]
    );
    assert_eq!(keys("/properties/places/items/properties/other"), ["stream_id"]);
    let one_of = &schema["properties"]["places"]["items"]["allOf"][0]["oneOf"];
    assert_eq!(one_of.as_array().unwrap().len(), 2, "{one_of}");
    let free = &schema["properties"]["free"]["additionalProperties"];
    assert_eq!(free["type"], serde_json::json!(["null", "object", "string"]));
    assert!(free["properties"]["sure"].is_object());
    assert_eq!(
        schema["properties"]["headers"]["additionalProperties"]["writeOnly"],
        true
    );
    assert_eq!(schema["additionalProperties"], false);
}

/// Asserts that whatever the schema of `T` takes is read, but for its size.
fn takes<T: Leaf>(text: &str) {
    if let Err(why) = T::parse(text) {
        assert_eq!(why, "is too large", "{text:?}");
    }
}

macro_rules! what_the_schema_takes_is_read {
    ($($name:ident: $type:ty = $pattern:literal),+ $(,)?) => {$(
        #[test]
        fn $name() {
            assert_eq!(<$type>::schema()["pattern"], concat!("^(?:", $pattern, r")$|\$\{"));
            proptest!(|(text in $pattern)| takes::<$type>(&text));
        }
    )+};
}

what_the_schema_takes_is_read! {
    a_boolean_of_the_schema_is_read: bool = "true|false",
    a_duration_of_the_schema_is_read: Duration = "0|[0-9]+(?:ms|[smhd])",
    a_size_of_the_schema_is_read: ByteSize = "0|[0-9]+(?:[KMGT]iB|[kMGT]?B)",
    a_number_of_the_schema_is_read: u16 = "[0-9]+",
}
