//! How each kind's settings are read from the configuration.

use std::time::Duration;

use super::{KINDS, Settings, file, read, stdout};
use crate::export::form::Form;
use crate::section;

fn settings(kind: &'static str, yaml: &str) -> Result<Settings, String> {
    let reading = section::read(yaml, &|_| None, |root| {
        root.section(kind, |section| read(kind, section)).flatten()
    });
    match reading.value.flatten() {
        Some(settings) if !reading.problems.has_errors() => Ok(settings),
        _ => Err(reading.problems.render("config.yaml")),
    }
}

fn refused(kind: &'static str, yaml: &str, because: &str) {
    let problems = settings(kind, yaml).unwrap_err();
    assert!(problems.contains(because), "{yaml}: {problems}");
}

#[test]
fn stdout_has_nothing_to_set() {
    assert_eq!(
        settings("stdout", "stdout: {}"),
        Ok(Settings::Stdout(stdout::Settings::default()))
    );
}

#[test]
fn a_folder_needs_a_path_and_has_defaults_for_the_rest() {
    assert_eq!(
        settings("file", "file: { path: ./export }"),
        Ok(Settings::File(file::Settings::at("./export".into())))
    );
    assert_eq!(
        settings(
            "file",
            "file: { path: e, rotate_bytes: 1MiB, rotate_after: 5m, gzip: true }"
        ),
        Ok(Settings::File(file::Settings {
            path: "e".into(),
            rotate_bytes: 1 << 20,
            rotate_after: Duration::from_secs(300),
            gzip: true,
            form: Form::default(),
        }))
    );
    refused("file", "file: { gzip: true }", "needs `path`");
    refused("file", "file: { path: e, rotate_bytes: 0MiB }", "rotate_bytes");
    refused("file", "file: { path: e, rotate_after: 0s }", "rotate_after");
}

#[test]
fn every_kind_is_read_or_said_to_be_missing_from_the_build() {
    for kind in KINDS.iter().copied() {
        if let Ok(settings) = settings(kind, &format!("{kind}: {{ path: e }}")) {
            assert_eq!(settings.kind(), kind);
        }
    }
    #[cfg(not(feature = "kinesis"))]
    refused("kinesis", "kinesis: {}", "this build of flagtap does not have");
}

#[cfg(feature = "kinesis")]
mod kinesis {
    use super::super::kinesis::{PartitionBy, Settings, Stream};
    use super::*;

    fn kinesis(rest: &str) -> Result<Settings, String> {
        match settings("kinesis", &format!("kinesis: {{ region: eu-west-1, {rest} }}"))? {
            super::Settings::Kinesis(settings) => Ok(settings),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stream_is_given_by_name_or_by_arn() {
        let by_name = Stream::Name("ld-events".to_owned());
        assert_eq!(
            kinesis("stream_name: ld-events"),
            Ok(Settings::to("eu-west-1", by_name))
        );
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/ld-events";
        let by_arn = Stream::Arn(arn.to_owned());
        assert_eq!(
            kinesis(&format!("stream_arn: '{arn}'")),
            Ok(Settings::to("eu-west-1", by_arn))
        );
        refused("kinesis", "kinesis: { stream_name: a }", "needs `region`");
        refused(
            "kinesis",
            "kinesis: { region: eu-west-1 }",
            "needs `stream_name` or `stream_arn`",
        );
        for (wrong, because) in [
            (format!("stream_name: '{arn}'"), "stream_arn"),
            ("stream_arn: ld-events".to_owned(), "ARN"),
            (format!("stream_name: a, stream_arn: '{arn}'"), "together"),
        ] {
            assert!(kinesis(&wrong).unwrap_err().contains(because), "{wrong}");
        }
    }

    #[test]
    fn limits_go_up_to_those_of_kinesis() {
        let most =
            kinesis("stream_name: a, max_request_bytes: 10MiB, max_record_bytes: 10MiB, max_records: 1").unwrap();
        assert_eq!(
            (most.max_request_bytes, most.max_record_bytes, most.max_records),
            (10 << 20, 10 << 20, 1)
        );
        for wrong in [
            "max_records: 501",
            "max_records: 0",
            "max_request_bytes: 11MiB",
            "max_request_bytes: 20MiB, max_record_bytes: 11MiB",
            "max_record_bytes: 6MiB",
            "max_record_bytes: 0MiB",
        ] {
            let problems = kinesis(&format!("stream_name: a, {wrong}")).unwrap_err();
            assert!(problems.contains("must be"), "{wrong}: {problems}");
        }
    }

    #[test]
    fn role_endpoint_and_partitioning_are_optional() {
        let settings = kinesis(
            "stream_name: a, role_arn: 'arn:aws:iam::1:role/x', external_id: y, endpoint: 'http://127.0.0.1:15000', \
             partition_by: event_id, newline: true",
        )
        .unwrap();
        assert_eq!(settings.role_arn.as_deref(), Some("arn:aws:iam::1:role/x"));
        assert_eq!(settings.external_id.as_deref(), Some("y"));
        assert_eq!(settings.endpoint.as_deref(), Some("http://127.0.0.1:15000/"));
        assert_eq!((settings.partition_by, settings.newline), (PartitionBy::EventId, true));
        assert!(
            kinesis("stream_name: a, external_id: y")
                .unwrap_err()
                .contains("role_arn")
        );
        assert!(
            kinesis("stream_name: a, partition_by: random")
                .unwrap_err()
                .contains("context_key")
        );
    }
}
