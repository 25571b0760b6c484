//! Moving in: what `flagtap import` writes is what LaunchDarkly has, without a secret, and flagtap takes it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::json;

use crate::support::command::{self, Said};
use crate::support::launchdarkly_api::{Api, Mood, TOKEN};
use crate::support::recording::fixture;
use crate::support::{CLIENT_SIDE_ID, PROJECT_ID, SDK_KEY};

fn import(arguments: &[&str], token: Option<&str>, input: &str) -> Said {
    let mut command = command::binary();
    command.env_remove("LD_API_TOKEN");
    command.envs(token.map(|token| ("LD_API_TOKEN", token)));
    command::run(command.arg("import").args(arguments), input.as_bytes())
}

/// Checks a configuration with the variables that are listed at its end, each with a value of its own. Returns what is said.
fn check(config: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, config).unwrap();
    let listed = config.split("# Variables to set").nth(1).unwrap().lines().skip(1);
    let names: BTreeSet<&str> = listed.filter_map(|line| line.split_whitespace().nth(1)).collect();
    let used = config
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split("\"${").skip(1))
        .map(|rest| rest.split('}').next().unwrap());
    assert_eq!(names, used.collect(), "{config}");
    let output = Command::new(env!("CARGO_BIN_EXE_flagtap"))
        .arg("check")
        .arg(&path)
        .env_clear()
        .envs(names.iter().map(|name| (*name, name.to_lowercase())))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}\n{config}");
    said
}

/// Compares with a golden file; `FLAGTAP_UPDATE_GOLDEN=1` writes it anew. The time of the switch is now.
fn is_golden(name: &str, config: &str) {
    let lines = config.lines().map(|line| match line.split_once("since: ") {
        Some((head, _)) => format!("{head}since: 2026-11-22T00:00:00Z\n"),
        None => format!("{line}\n"),
    });
    let text: String = lines.collect();
    let path = fixture(&format!("golden/import/{name}.yaml"));
    if std::env::var_os("FLAGTAP_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), text);
}

/// Scenario: an account with two projects, every kind of destination that LaunchDarkly has, one that is off, one of a kind
/// that flagtap does not have, flags that are exported whole, by rule and not at all, and hostile names.
/// Guarantees: the configuration is the golden one; it passes `flagtap check` with the variables that it lists; no key and no
/// masked secret is in it; what could not be taken over is in comments and named.
#[test]
fn an_account_becomes_a_configuration_that_passes_the_check() {
    let api = Api::start();
    api.project(PROJECT_ID, "shop.web");
    api.environment(CLIENT_SIDE_ID, "production", SDK_KEY, true);
    api.environment("578d1e02d2943862c52b9601", "test", "sdk-of-test", false);
    let on_off = [("on", json!(true)), ("off", json!(false))];
    api.flag(
        "new-checkout",
        1_700_000_000_000,
        &on_off,
        &json!({ "trackEvents": true }),
    );
    api.flag("legacy-ui", 1_700_000_000_000, &on_off, &json!({}));
    let rules = json!([{ "_id": "r1", "description": "beta\n    users: all", "trackEvents": true }, { "_id": "r2" }]);
    let by_rule = json!({ "rules": rules, "trackEventsFallthrough": true });
    api.flag("pricing", 1_700_000_000_000, &on_off, &by_rule);
    api.flag(
        "odd.${HOME}\": key",
        1_700_000_000_000,
        &on_off,
        &json!({ "trackEvents": true }),
    );
    api.project("5744c96707c9900708000009", "app");
    api.environment("578d1e02d2943862c52b9602", "production", "sdk-of-app", false);
    let destinations = [
        (
            "shop.web/production",
            "Lake",
            "kinesis",
            json!({ "region": "eu-west-1", "roleArn": "arn:aws:iam::123456789012:role/ld", "streamName": "ld-events" }),
            true,
        ),
        (
            "shop.web/production",
            "bus\n  - name: forged",
            "google-pubsub",
            json!({ "project": "my-project", "topic": "ld-events" }),
            true,
        ),
        (
            "shop.web/production",
            "hub",
            "azure-event-hubs",
            json!({ "namespace": "ns", "name": "events", "policyName": "send", "policyKey": "********abcd" }),
            true,
        ),
        (
            "app/production",
            "Lake",
            "segment",
            json!({ "writeKey": "********wxyz", "userIDContextKind": "user", "anonymousIDContextKind": "device" }),
            true,
        ),
        (
            "app/production",
            "particle",
            "mparticle",
            json!({ "apiKey": "********1234", "secret": "********5678", "environment": "production", "userIdentity": "customer_id", "anonymousUserIdentity": "other",
            "userIdentities": [{ "ldContextKind": "org", "mparticleUserIdentity": "other_id_2" }] }),
            true,
        ),
        (
            "app/production",
            "warehouse",
            "snowflake-v2",
            json!({ "publicKey": "…", "snowflakeHostAddress": "…" }),
            true,
        ),
        (
            "app/production",
            "paused",
            "kinesis",
            json!({ "region": "us-east-1", "roleArn": "", "streamName": "paused" }),
            false,
        ),
        (
            "app/production",
            "half",
            "kinesis",
            json!({ "region": "us-east-1" }),
            true,
        ),
    ];
    for (whose, name, kind, config, on) in &destinations {
        api.destination(whose, name, kind, config, *on);
    }
    let url = api.url();
    let said = import(&["launchdarkly", "--base-url", &url], Some(TOKEN), "");
    assert_eq!(said.code, Some(0), "{}", said.error);
    is_golden("launchdarkly", &said.out);
    for secret in [SDK_KEY, "sdk-of", "mob-of", "****", TOKEN] {
        assert!(
            !said.out.contains(secret) && !said.error.contains(secret),
            "{secret}: {}",
            said.out
        );
    }
    let checked = check(&said.out);
    assert!(checked.contains("2 environments, 5 destinations"), "{checked}");
    for left_out in ["warehouse", "paused", "half"] {
        assert!(
            said.error
                .lines()
                .any(|line| line.starts_with("left out") && line.contains(left_out)),
            "{}",
            said.error
        );
    }
    assert!(said.error.contains("LD_SDK_KEY_SHOP_WEB_PRODUCTION"), "{}", said.error);
    let said = import(
        &["launchdarkly", "--base-url", &url, "--environment", "shop.web/test"],
        Some(TOKEN),
        "",
    );
    let checked = check(&said.out);
    assert!(
        checked.contains("3 environments") && checked.contains("shop.web-test"),
        "{checked}"
    );
}

/// Scenario: `terraform show -json` of a state with every kind of destination, modules, data sources, and secrets in it, from
/// a file and from standard input.
/// Guarantees: the configuration is the golden one and passes the check; no secret of the state is in it.
#[test]
fn a_terraform_state_becomes_a_configuration_that_passes_the_check() {
    let path = fixture("golden/import/terraform.json");
    let state = fs::read_to_string(&path).unwrap();
    let said = import(&["terraform", path.to_str().unwrap()], None, "");
    assert_eq!(said.code, Some(0), "{}", said.error);
    is_golden("terraform", &said.out);
    let piped = import(&["terraform", "-"], None, &state);
    assert_eq!((piped.code, &piped.out), (Some(0), &said.out));
    assert!(state.matches("in-the-state").count() >= 6);
    assert!(
        !said.out.contains("in-the-state") && !said.error.contains("in-the-state"),
        "{}",
        said.out
    );
    let checked = check(&said.out);
    assert!(checked.contains("2 environments, 5 destinations"), "{checked}");
}

/// Scenario: no token, one that is refused, an account and a state without a destination, an environment that is not there,
/// files that are something else.
/// Guarantees: exit code 1, a reason with what to do, nothing on standard output, and no token anywhere.
#[test]
fn what_cannot_be_imported_is_said() {
    let api = Api::start();
    api.project(PROJECT_ID, "shop");
    api.environment(CLIENT_SIDE_ID, "production", SDK_KEY, true);
    let url = api.url();
    let base = ["launchdarkly", "--base-url", &url];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let refused = |arguments: &[&str], token: Option<&str>, input: &str, why: &str| {
        let said = import(arguments, token, input);
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(1), ""),
            "{arguments:?} {}",
            said.error
        );
        assert!(
            said.error.contains(why) && !said.error.contains(TOKEN),
            "{arguments:?} {}",
            said.error
        );
    };
    refused(&base, None, "", "LD_API_TOKEN");
    refused(&base, Some("two words"), "", "empty or holds something else");
    refused(&base, Some(TOKEN), "", "sees no Data Export destination");
    refused(&with(&["--token-file", "/no/such/file"]), None, "", "/no/such/file");
    refused(
        &with(&["--environment", "shop/tset"]),
        Some(TOKEN),
        "",
        "no environment shop/tset",
    );
    refused(
        &["launchdarkly", "--base-url", "http://example.com"],
        Some(TOKEN),
        "",
        "https",
    );
    refused(&["terraform", "/no/such/file"], None, "", "/no/such/file");
    for input in ["", "{}", "[1]", "resource {}", r#"{"values":7}"#] {
        refused(&["terraform", "-"], None, input, "terraform show -json");
    }
    let nothing = r#"{"values":{"root_module":{"resources":[7,{"type":"aws_instance"}]}}}"#;
    refused(&["terraform", "-"], None, nothing, "no launchdarkly_destination");
    api.be(Mood::Fails(1, 403, vec![]));
    refused(&base, Some(TOKEN), "", "refuses the API token");
}
