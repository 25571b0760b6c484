//! How the settings are read from the configuration.

use super::{Attribute, Ordering, Settings, read};
use crate::section;

fn settings(yaml: &str) -> Result<Settings, String> {
    let reading = section::read(&format!("google_pubsub: {yaml}"), &|_| None, |root| {
        root.section("google_pubsub", |section| {
            section.take_camel_case();
            read(section)
        })
        .flatten()
    });
    match reading.value.flatten() {
        Some(settings) if !reading.problems.has_errors() => Ok(settings),
        _ => Err(reading.problems.render("config.yaml")),
    }
}

fn with(rest: &str) -> Result<Settings, String> {
    settings(&format!("{{ project: my-project, topic: ld-events, {rest} }}"))
}

#[test]
fn project_and_topic_are_enough() {
    let expected = Settings::to("my-project", "ld-events");
    assert_eq!(with(""), Ok(expected.clone()));
    assert_eq!(expected.topic_name(), "projects/my-project/topics/ld-events");
    assert!(
        settings("{ topic: ld-events }")
            .unwrap_err()
            .contains("needs `project`")
    );
    assert!(
        settings("{ project: my-project }")
            .unwrap_err()
            .contains("needs `topic`")
    );
}

#[test]
fn a_topic_that_pubsub_would_refuse_for_every_event_is_refused_here() {
    for topic in [
        "projects/my-project/topics/ld-events",
        "ld",
        "1-events",
        "google-events",
        "ld events",
        "é-events",
    ] {
        let problems = settings(&format!("{{ project: my-project, topic: '{topic}' }}")).unwrap_err();
        assert!(problems.contains("must be a topic's id"), "{topic}: {problems}");
    }
    for project in ["my project", "projects/my-project", "a/b"] {
        let problems = settings(&format!("{{ project: '{project}', topic: ld-events }}")).unwrap_err();
        assert!(problems.contains("must be a project's id"), "{project}: {problems}");
    }
    for project in ["my-project", "123456789012", "example.com:my-project"] {
        assert!(
            settings(&format!("{{ project: '{project}', topic: ld-events }}")).is_ok(),
            "{project}"
        );
    }
}

#[test]
fn all_else_is_optional() {
    let settings = with(
        "endpoint: 'https://europe-west1-pubsub.googleapis.com', credentialsFile: /run/google.json, ordering: context_key, \
         attributes: [kind, event_id, environment], max_messages: 500, maxRequestBytes: 1MiB, newline: true",
    )
    .unwrap();
    assert_eq!(
        settings.endpoint.as_deref(),
        Some("https://europe-west1-pubsub.googleapis.com")
    );
    assert_eq!(settings.credentials_file, Some("/run/google.json".into()));
    assert_eq!(settings.ordering, Ordering::ContextKey);
    assert_eq!(
        settings.attributes,
        [Attribute::Environment, Attribute::EventId, Attribute::Kind]
    );
    assert_eq!((settings.max_messages, settings.max_request_bytes), (500, 1 << 20));
    assert!(settings.newline && !settings.is_anonymous());
}

#[test]
fn only_plain_http_on_loopback_goes_without_credentials() {
    assert!(with("endpoint: 'http://127.0.0.1:8085'").unwrap().is_anonymous());
    let with_file = with("endpoint: 'http://127.0.0.1:8085', credentials_file: a.json");
    assert!(!with_file.unwrap().is_anonymous());
    assert!(!with("").unwrap().is_anonymous());
    assert!(
        with("endpoint: 'http://pubsub.example.com'")
            .unwrap_err()
            .contains("must be https")
    );
    assert!(
        with("endpoint: 'https://example.com/v1'")
            .unwrap_err()
            .contains("a scheme and a host")
    );
}

#[test]
fn limits_go_up_to_those_of_pubsub() {
    for wrong in [
        "max_messages: 0",
        "max_messages: 1001",
        "max_request_bytes: 10MiB",
        "max_request_bytes: 1B",
        "attributes: [kind, kind]",
        "attributes: [flag]",
        "ordering: event_id",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}
