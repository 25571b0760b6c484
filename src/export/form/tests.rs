//! The record's forms, by example and by property.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const ID: &str = "63843c40b7e9d4001f0a9c11";

fn event(version: u8, json: &str) -> ExportEvent<'_> {
    let kind = Members::of(json).and_then(|members| members.get("kind"));
    ExportEvent {
        project_id: "5744c96707c9900708000004",
        environment_id: "578d1e02d2943862c52b9686",
        environment: "production",
        version,
        strip_private: false,
        id: ID,
        kind: Kind::of(kind.unwrap_or_default().trim_matches('"')),
        json: json.as_bytes(),
    }
}

fn with(schema: Schema) -> Form {
    Form {
        schema,
        ..Form::default()
    }
}

fn rendered(form: &Form, version: u8, json: &str) -> Result<String, &'static str> {
    form.render(&event(version, json))
        .map(|record| String::from_utf8(record).unwrap())
}

/// Returns the event without its envelope and id, and the version.
fn written(form: &Form, version: u8, json: &str) -> Result<(String, u8), &'static str> {
    let record = rendered(form, version, json)?;
    let members = Members::of(&record).unwrap();
    let id = format!("\"id\":\"{ID}\"");
    let event = members.get("event").unwrap();
    assert!(event.contains(&id), "{record}");
    let event = event
        .replacen(&format!("{id},"), "", 1)
        .replacen(&format!(",{id}"), "", 1);
    Ok((event, members.get("version").unwrap().parse().unwrap()))
}

fn becomes(form: &Form, version: u8, json: &str, expected: &str) {
    let other = match form.schema {
        Schema::Auto => version,
        Schema::One => 1,
        Schema::Two => 2,
    };
    assert_eq!(written(form, version, json), Ok((expected.to_owned(), other)), "{json}");
}

#[test]
fn an_evaluation_about_contexts_names_its_user_in_version_1() {
    let form = with(Schema::One);
    for (json, expected) in [
        (
            r#"{"kind":"feature","contextKeys":{"org":"o","user":"u\u002d1"},"key":"f"}"#,
            r#"{"kind":"feature","userKey":"u\u002d1","key":"f"}"#,
        ),
        (
            r#"{"kind":"feature","context":{"kind":"user","key":"u","name":"n","a":1e-07},"key":"f"}"#,
            r#"{"kind":"feature","userKey":"u","user":{"key":"u","name":"n","custom":{"a":1e-07}},"key":"f"}"#,
        ),
        (
            r#"{"kind":"feature","contextKeys":{"user":"u"},"key":"f","context":{"kind":"multi","org":{"key":"o"},"user":{"key":"u","anonymous":true}}}"#,
            r#"{"kind":"feature","userKey":"u","user":{"key":"u","anonymous":true},"key":"f","contextKind":"anonymousUser"}"#,
        ),
        (
            r#"{"kind":"debug","context":{"kind":"user","key":"u"}}"#,
            r#"{"kind":"debug","user":{"key":"u"}}"#,
        ),
        (
            r#"{"kind":"custom","context":{"kind":"user","key":"u","anonymous":true},"data":[1.0]}"#,
            r#"{"kind":"custom","user":{"key":"u","anonymous":true},"data":[1.0],"contextKind":"anonymousUser"}"#,
        ),
        (
            r#"{"kind":"click","contextKeys":{"user":"u"},"selector":"a > b"}"#,
            r#"{"kind":"click","userKey":"u","selector":"a > b"}"#,
        ),
    ] {
        becomes(&form, 2, json, expected);
    }
}

#[test]
fn a_context_becomes_the_user_that_it_was_made_of() {
    let form = with(Schema::One);
    let json = concat!(
        r#"{"kind":"identify","key":"org:o:user:u","context":{"kind":"multi","org":{"key":"o"},"user":{"#,
        r#""key":"u","email":"e","firstName":5,"groups":["a"],"custom":{"x":1},"_meta":"#,
        r#"{"redactedAttributes":["name","/a~1b","/~1c","/address/street","\u0041"]}}}}"#,
    );
    let expected = concat!(
        r#"{"kind":"identify","key":"u","user":{"key":"u","email":"e","firstName":5,"#,
        r#""custom":{"groups":["a"],"custom":{"x":1}},"#,
        r#""privateAttrs":["name","a/b","/c","/address/street","\u0041"]}}"#,
    );
    becomes(&form, 2, json, expected);
}

#[test]
fn without_a_user_there_is_no_version_1() {
    let form = with(Schema::One);
    for json in [
        r#"{"kind":"feature","contextKeys":{"org":"o"}}"#,
        r#"{"kind":"feature","contextKeys":{"user":null}}"#,
        r#"{"kind":"custom","context":{"kind":"org","key":"o"}}"#,
        r#"{"kind":"index","context":{"kind":"multi","org":{"key":"o"}}}"#,
        r#"{"kind":"index","context":{"kind":"user"}}"#,
        r#"{"kind":"index","context":[]}"#,
        r#"{"kind":"custom"}"#,
    ] {
        assert_eq!(written(&form, 2, json), Err("no_user"), "{json}");
    }
}

#[test]
fn a_summary_loses_what_only_contexts_have() {
    let json = concat!(
        r#"{"kind":"summary","context":{"kind":"org","key":"o"},"features":{"f":{"default":1.0,"contextKinds":["org"],"#,
        r#""counters":[{"value":"v","count":2}]},"g":3}}"#,
    );
    let expected = r#"{"kind":"summary","features":{"f":{"default":1.0,"counters":[{"value":"v","count":2}]},"g":3}}"#;
    becomes(&with(Schema::One), 2, json, expected);
}

#[test]
fn an_event_about_a_user_is_about_a_context_in_version_2() {
    let form = with(Schema::Two);
    for (json, expected) in [
        (
            r#"{"kind":"feature","userKey":"u\u002d1","contextKind":"anonymousUser","key":"f","value":1.0}"#,
            r#"{"kind":"feature","contextKeys":{"user":"u\u002d1"},"key":"f","value":1.0}"#,
        ),
        (
            r#"{"kind":"custom","userKey":null,"user":{"key":"u","custom":{"a":[1e-07]}}}"#,
            r#"{"kind":"custom","context":{"kind":"user","key":"u","a":[1e-07]},"contextKeys":{"user":"u"}}"#,
        ),
        (
            r#"{"kind":"index","user":{"key":"u","name":null,"custom":[],"privateAttrs":["a/b","/c","~"]}}"#,
            r#"{"kind":"index","context":{"kind":"user","key":"u","name":null,"_meta":{"redactedAttributes":["a/b","/~1c","~"]}}}"#,
        ),
        (
            r#"{"kind":"identify","key":"u","user":{"custom":{"key":1,"kind":2,"anonymous":3,"_meta":4,"email":5,"ok":6,"custom":7},"key":"u","email":"e"}}"#,
            r#"{"kind":"identify","key":"u","context":{"kind":"user","ok":6,"custom":7,"key":"u","email":"e"}}"#,
        ),
        (
            r#"{"kind":"summary","features":{}}"#,
            r#"{"kind":"summary","features":{}}"#,
        ),
        (r#"{"kind":"feature","user":null}"#, r#"{"kind":"feature"}"#),
    ] {
        becomes(&form, 1, json, expected);
    }
    let alias = r#"{"kind":"alias","key":"u","contextKind":"user","previousKey":"a"}"#;
    assert_eq!(written(&form, 1, alias), Err("not_in_schema_2"));
}

#[test]
fn what_has_the_version_already_keeps_every_byte() {
    let of_users = r#"{ "kind" : "feature","userKey":"u", "value" : [ 1 ] }"#;
    let of_contexts = r#"{ "kind" : "feature","contextKeys":{"user":"u"}, "value" : [ 1 ] }"#;
    let alias = r#"{"kind":"alias" ,"key":"u"}"#;
    for (schema, version, json) in [
        (Schema::One, 1, of_users),
        (Schema::One, 1, alias),
        (Schema::Two, 2, of_contexts),
    ] {
        assert_eq!(
            rendered(&with(schema), version, json),
            rendered(&Form::default(), version, json)
        );
    }
}

#[test]
fn an_early_php_sdks_context_is_a_user_in_version_1() {
    // Schema 2 with contexts: version 1 by its schema, without a user.
    let json = r#"{"kind":"feature","context":{"kind":"user","key":"u"},"key":"f"}"#;
    let expected = r#"{"kind":"feature","userKey":"u","user":{"key":"u"},"key":"f"}"#;
    becomes(&with(Schema::One), 1, json, expected);
}

#[test]
fn default_can_say_that_the_fallback_was_used() {
    let form = Form {
        default_means: DefaultMeans::FallbackUsed,
        ..Form::default()
    };
    for (json, expected) in [
        (
            r#"{"kind":"feature","default":false,"variation":1,"value":true}"#,
            r#"{"kind":"feature","variation":1,"value":true}"#,
        ),
        (
            r#"{"kind":"feature","default":7,"variation":null}"#,
            r#"{"kind":"feature","variation":null,"default":true}"#,
        ),
        (r#"{"kind":"debug"}"#, r#"{"kind":"debug","default":true}"#),
        (
            r#"{"kind":"feature","variation":1,"reason":{"kind":"ERROR","errorKind":"WRONG_TYPE"},"default":"d"}"#,
            r#"{"kind":"feature","variation":1,"reason":{"kind":"ERROR","errorKind":"WRONG_TYPE"},"default":true}"#,
        ),
        (r#"{"kind":"custom","default":1}"#, r#"{"kind":"custom","default":1}"#),
    ] {
        becomes(&form, 1, json, expected);
    }
}

#[test]
fn the_user_of_an_action_can_be_an_object() {
    let form = Form {
        legacy_user: LegacyUser::Object,
        ..Form::default()
    };
    for (json, expected) in [
        (
            r#"{"kind":"custom","userKey":"\u0075","key":"k"}"#,
            r#"{"kind":"custom","key":"k","user":{"key":"\u0075"}}"#,
        ),
        (
            r#"{"kind":"click","userKey":"u","user":null}"#,
            r#"{"kind":"click","user":{"key":"u"}}"#,
        ),
        (
            r#"{"kind":"pageview","user":{"key":"u","name":"n"}}"#,
            r#"{"kind":"pageview","user":{"key":"u","name":"n"}}"#,
        ),
        (
            r#"{"kind":"feature","userKey":"u"}"#,
            r#"{"kind":"feature","userKey":"u"}"#,
        ),
    ] {
        becomes(&form, 1, json, expected);
    }
    let of_contexts = r#"{"kind":"custom","userKey":"u"}"#;
    becomes(&form, 2, of_contexts, of_contexts);
}

#[test]
fn what_is_no_object_is_enveloped_as_it_is() {
    for schema in [Schema::One, Schema::Two] {
        let record = with(schema).render(&event(2, "[]")).unwrap();
        assert!(String::from_utf8(record).unwrap().contains(r#""event":[],"version":"#));
    }
}

/// Events for the page on records: the version of their SDK, and what it sent.
const EXAMPLES: [(u8, &str); 17] = [
    (
        1,
        r#"{"kind":"feature","creationDate":1705111746120,"key":"new-checkout","userKey":"u-17","value":true,"default":false,"version":12,"variation":0,"reason":{"kind":"RULE_MATCH","ruleIndex":0,"ruleId":"1f3c"}}"#,
    ),
    (
        1,
        r#"{"kind":"debug","creationDate":1705111746120,"key":"new-checkout","user":{"key":"u-17","email":"ada@example.com","custom":{"plan":"pro"}},"value":true,"default":false,"version":12,"variation":0}"#,
    ),
    (
        1,
        r#"{"kind":"index","creationDate":1705111746100,"user":{"key":"u-17","name":"Ada","custom":{"plan":"pro"},"privateAttrs":["email"]}}"#,
    ),
    (
        1,
        r#"{"kind":"identify","creationDate":1705111746100,"key":"u-17","user":{"key":"u-17","name":"Ada"}}"#,
    ),
    (
        1,
        r#"{"kind":"custom","creationDate":1705111746999,"key":"checkout-done","userKey":"u-17","data":{"items":3},"metricValue":41.5}"#,
    ),
    (
        1,
        r#"{"kind":"click","creationDate":1705111747000,"key":"buy","url":"https://shop.example/cart","selector":".buy","userKey":"u-17"}"#,
    ),
    (
        1,
        r#"{"kind":"pageview","creationDate":1705111747000,"key":"cart","url":"https://shop.example/cart","userKey":"u-17"}"#,
    ),
    (
        1,
        r#"{"kind":"alias","creationDate":1600376029000,"key":"u-17","contextKind":"user","previousKey":"anon-9","previousContextKind":"anonymousUser"}"#,
    ),
    (
        1,
        r#"{"kind":"summary","startDate":1705111740000,"endDate":1705111746000,"features":{"new-checkout":{"default":false,"counters":[{"variation":0,"version":12,"value":true,"count":3}]}}}"#,
    ),
    (
        2,
        r#"{"kind":"feature","creationDate":1705111746120,"key":"new-checkout","context":{"kind":"multi","user":{"key":"u-17","plan":"pro"},"org":{"key":"o-2"}},"value":true,"default":false,"version":12,"variation":0,"reason":{"kind":"FALLTHROUGH","inExperiment":true}}"#,
    ),
    (
        2,
        r#"{"kind":"debug","creationDate":1705111746120,"key":"new-checkout","context":{"kind":"user","key":"u-17","plan":"pro"},"value":true,"default":false,"version":12,"variation":0}"#,
    ),
    (
        2,
        r#"{"kind":"index","creationDate":1705111746100,"context":{"kind":"user","key":"u-17","name":"Ada","plan":"pro","_meta":{"redactedAttributes":["email"]}}}"#,
    ),
    (
        2,
        r#"{"kind":"identify","creationDate":1705111746100,"context":{"kind":"user","key":"u-17","name":"Ada"}}"#,
    ),
    (
        2,
        r#"{"kind":"custom","creationDate":1705111746999,"key":"checkout-done","contextKeys":{"user":"u-17","org":"o-2"},"data":{"items":3},"metricValue":41.5}"#,
    ),
    (
        2,
        r#"{"kind":"click","creationDate":1705111747000,"key":"buy","url":"https://shop.example/cart","selector":".buy","contextKeys":{"user":"u-17"}}"#,
    ),
    (
        2,
        r#"{"kind":"pageview","creationDate":1705111747000,"key":"cart","url":"https://shop.example/cart","contextKeys":{"user":"u-17"}}"#,
    ),
    (
        2,
        r#"{"kind":"summary","startDate":1705111740000,"endDate":1705111746000,"features":{"new-checkout":{"default":false,"contextKinds":["user"],"counters":[{"variation":0,"version":12,"value":true,"count":3}]}}}"#,
    ),
];

fn examples() -> String {
    let mut text = String::new();
    for (version, title) in [(1, "SDKs that know users"), (2, "SDKs that know contexts")] {
        text.push_str(&format!("\n### Version {version}: {title}\n"));
        for (_, json) in EXAMPLES.iter().filter(|(of, _)| *of == version) {
            let kind = event(version, json).kind;
            let other = if version == 1 { Schema::Two } else { Schema::One };
            let own = rendered(&Form::default(), version, json).unwrap();
            text.push_str(&format!("\n`{kind}`:\n\n```json\n{own}\n```\n\n"));
            match rendered(&with(other), version, json) {
                Ok(record) => text.push_str(&format!(
                    "with `schema: {}`:\n\n```json\n{record}\n```\n",
                    other.as_str()
                )),
                Err(why) => text.push_str(&format!("with `schema: {}`: skipped, `{why}`.\n", other.as_str())),
            }
        }
    }
    text
}

#[test]
fn the_page_on_records_shows_what_is_written() {
    const MARK: &str = "<!-- The examples below are written by a test. -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/destinations/records.md");
    let page = fs::read_to_string(&path).unwrap();
    let (head, shown) = page.split_once(MARK).unwrap();
    if env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
        fs::write(&path, format!("{head}{MARK}{}", examples())).unwrap();
        return;
    }
    assert_eq!(shown, examples(), "FLAGTAP_UPDATE_GOLDEN=1 writes them");
}

fn value() -> impl Strategy<Value = &'static str> {
    let values = [
        "1",
        "-0.0",
        "1e-07",
        "9007199254740993",
        "\"\\u00e9\\ud800\"",
        "\"é\"",
        "[ 1, {\"a\" : null}]",
        "null",
        "true",
        "{ }",
        "\"\"",
    ];
    prop::sample::select(values.to_vec())
}

/// Attributes by name: built-in ones, free ones, and names that mean something elsewhere.
fn attributes() -> impl Strategy<Value = BTreeMap<&'static str, &'static str>> {
    let names = [
        "name",
        "email",
        "avatar",
        "secondary",
        "plan",
        "groups",
        "custom",
        "privateAttrs",
        "user",
        "contextKeys",
        "a/b",
    ];
    prop::collection::btree_map(prop::sample::select(names.to_vec()), value(), 0..6)
}

fn context_text(attributes: &BTreeMap<&str, &str>) -> String {
    let rest: String = attributes
        .iter()
        .map(|(name, value)| format!(",\"{name}\":{value}"))
        .collect();
    format!("{{\"kind\":\"user\",\"key\":\"u\"{rest}}}")
}

fn sorted(json: &str) -> Vec<(String, String)> {
    let members = Members::of(json).unwrap();
    let mut pairs: Vec<_> = members
        .iter()
        .map(|member| (member.name.to_owned(), member.value.to_owned()))
        .collect();
    pairs.sort();
    pairs
}

proptest! {
    #[test]
    fn auto_is_the_envelope(
        version in 1u8..3, data in value(), kind in prop::sample::select(Kind::EXPORTABLE.to_vec()), space in "[ \n]{0,3}",
    ) {
        let json = format!("{{{space}\"kind\":\"{kind}\",{space}\"userKey\":\"u\",\"data\":{data}{space}}}");
        let event = event(version, &json);
        prop_assert_eq!(Form::default().render(&event), Ok(envelope::render(&event)));
    }

    #[test]
    fn a_context_survives_version_1_byte_by_byte(attributes in attributes(), data in value(), multi: bool) {
        let context = context_text(&attributes);
        let sent = match multi {
            false => context.clone(),
            true => {
                let user = context.replacen("\"kind\":\"user\",", "", 1);
                format!("{{\"kind\":\"multi\",\"org\":{{\"key\":\"o\"}},\"user\":{user}}}")
            }
        };
        let json = format!("{{\"kind\":\"index\",\"context\":{sent},\"data\":{data}}}");
        let (as_user, _) = written(&with(Schema::One), 2, &json).unwrap();
        let (back, _) = written(&with(Schema::Two), 1, &as_user).unwrap();
        let members = Members::of(&back).unwrap();
        prop_assert_eq!(members.get("data"), Some(data));
        prop_assert_eq!(sorted(members.get("context").unwrap()), sorted(&context));
        prop_assert_eq!(members.iter().count(), 4 - 1, "kind, context and data, nothing invented");
    }

    #[test]
    fn a_key_is_never_invented(
        kind in prop::sample::select(Kind::EXPORTABLE.to_vec()),
        subject in prop::sample::select(vec![
            "", r#","userKey":"u""#, r#","user":{"key":"u"}"#, r#","user":{}"#, r#","userKey":null"#, r#","user":[]"#,
            r#","contextKeys":{"org":"o"}"#, r#","contextKeys":{}"#, r#","context":{"kind":"org","key":"o"}"#,
            r#","context":{"kind":"multi","user":"u"}"#, r#","context":{"kind":"multi","user":{"key":null}}"#,
        ]),
        version in 1u8..3, schema in prop::sample::select(vec![Schema::One, Schema::Two]),
    ) {
        let json = format!("{{\"kind\":\"{kind}\"{subject}}}");
        if let Ok((event, _)) = written(&with(schema), version, &json) {
            let keyed = |text: &str| [r#":"u""#, r#":"o""#].map(|key| text.contains(key));
            for (had, has) in keyed(&json).into_iter().zip(keyed(&event)) {
                prop_assert!(had || !has, "{} became {}", json, event);
            }
            let shown = Members::of(&event).unwrap();
            prop_assert!(!(shown.get("userKey").is_some() && shown.get("contextKeys").is_some()), "{}", event);
        }
    }
}
