//! Names are those of the variation that was given, dates are LaunchDarkly's where it knows.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::event::Kind;
use crate::export::made::event;

fn environment(variations: &[(Option<&str>, Value)]) -> Environment {
    let variations = variations
        .iter()
        .map(|(name, value)| Variation::new(name.map(str::to_owned), value));
    let flag = Flag {
        created_ms: 1_700_000_000_000,
        variations: variations.collect(),
        ..Flag::default()
    };
    Environment {
        id: "578d1e02d2943862c52b9686".to_owned(),
        keys: vec![digest("sdk-1")],
        flags: [("pricing".to_owned(), flag)].into(),
        ..Environment::default()
    }
}

fn exported(kind: Kind, json: &str, environment: &Environment) -> String {
    let event = event(kind, json);
    String::from_utf8(named(event.json.clone(), &event, environment).to_vec()).unwrap()
}

#[test]
fn an_evaluation_gets_its_variations_name_behind_the_variation() {
    let environment = environment(&[
        (Some("the \"old\" one"), json!({ "price": 10, "tags": ["a"] })),
        (None, json!(7)),
        (Some("on"), json!(true)),
    ]);
    let of = |kind, json| exported(kind, json, &environment);
    assert_eq!(
        of(
            Kind::Feature,
            r#"{"kind":"feature","key":"pricing","variation":0, "value":{"tags":["a"],"price":1e1}}"#
        ),
        r#"{"kind":"feature","key":"pricing","variation":0,"variationName":"the \"old\" one", "value":{"tags":["a"],"price":1e1}}"#
    );
    assert_eq!(
        of(Kind::Debug, r#"{"key":"pricing","value":true,"variation":2}"#),
        r#"{"key":"pricing","value":true,"variation":2,"variationName":"on"}"#
    );
    for (kind, same) in [
        // Another value: the variations were changed since.
        (Kind::Feature, r#"{"key":"pricing","value":false,"variation":2}"#),
        // Without a name, out of range, none, another flag, another kind, and one that has a name.
        (Kind::Feature, r#"{"key":"pricing","value":7,"variation":1}"#),
        (Kind::Feature, r#"{"key":"pricing","value":true,"variation":3}"#),
        (Kind::Feature, r#"{"key":"pricing","value":true,"variation":null}"#),
        (Kind::Feature, r#"{"key":"pricing","value":true,"variation":-1}"#),
        (Kind::Feature, r#"{"key":"pricing","variation":2}"#),
        (Kind::Feature, r#"{"key":"other","value":true,"variation":2}"#),
        (Kind::Custom, r#"{"key":"pricing","value":true,"variation":2}"#),
        (
            Kind::Feature,
            r#"{"key":"pricing","value":true,"variation":2,"variationName":"mine"}"#,
        ),
        (Kind::Feature, r#"{"key":"pricing","value":"\ud800","variation":2}"#),
    ] {
        assert_eq!(of(kind, same), same);
    }
}

#[test]
fn names_have_one_line_and_an_end() {
    let long = "é".repeat(2 * MAX_TEXT);
    let name = |name: &str| Variation::new(Some(name.to_owned()), &Value::Null).name;
    assert_eq!(name("a\n\u{1b}b"), Some("ab".to_owned()));
    assert_eq!(name(&long).unwrap().chars().count(), MAX_TEXT);
    assert_eq!(name(" \n"), None);
}

struct Never;

impl Creation for Never {
    fn created_ms(&self, _flag: &str) -> Option<u64> {
        None
    }
}

#[test]
fn dates_are_launchdarklys_where_it_knows_the_flag() {
    let environment = environment(&[]);
    let dates = Dates::new(Some(&environment), &Never);
    assert_eq!(dates.created_ms("pricing"), Some(1_700_000_000_000));
    assert_eq!(dates.created_ms("other"), None);
    let otherwise = Dates::new(Some(&environment), &dates);
    assert_eq!(otherwise.created_ms("pricing"), Some(1_700_000_000_000));
    assert_eq!(Dates::new(None, &dates).created_ms("pricing"), Some(1_700_000_000_000));
}

#[test]
fn an_environment_is_found_by_id_or_key() {
    let shelf = Arc::new(Shelf::default());
    let found = |ids: &[&str], keys: &[&str]| {
        let whose = Whose {
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            keys: keys.iter().map(|key| digest(key)).collect(),
        };
        Place::new(Arc::clone(&shelf), whose).known().is_some()
    };
    assert!(!found(&["578d1e02d2943862c52b9686"], &[]));
    shelf.put(Catalogue {
        read_ms: 1,
        environments: vec![Environment::default(), environment(&[])],
    });
    assert!(found(&["578d1e02d2943862c52b9686"], &[]));
    assert!(found(&[], &["mob-9", "sdk-1"]));
    assert!(!found(&["5744c96707c9900708000004"], &["sdk-2"]));
    assert!(!found(&[], &[]));
}

#[test]
fn the_copy_on_disk_holds_no_key_and_is_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let catalogue = Catalogue {
        read_ms: 7,
        environments: vec![environment(&[(Some("on"), json!(true))])],
    };
    stored::write(folder.path(), &catalogue).unwrap();
    assert_eq!(stored::load(folder.path()).content.as_ref(), Some(&catalogue));
    assert_eq!(stored::look(folder.path()), catalogue);
    let text = std::fs::read_to_string(folder.path().join("catalogue")).unwrap();
    assert!(!text.contains("sdk-1"), "{text}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..3).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]{0,1}", inner, 0..3).prop_map(|members| json!(members)),
        ]
    })
}

proptest! {
    /// A name is given exactly where the values are equal.
    #[test]
    fn a_name_is_given_where_the_value_is_the_variations(one in any_value(), other in any_value()) {
        let environment = environment(&[(Some("name"), one.clone())]);
        let json = json!({ "key": "pricing", "variation": 0, "value": other }).to_string();
        let got = exported(Kind::Feature, &json, &environment);
        prop_assert_eq!(got.contains("variationName"), one == other);
        prop_assert_eq!(got.replace(r#","variationName":"name""#, ""), json);
    }
}
