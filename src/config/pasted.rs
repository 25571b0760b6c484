//! What people paste: the `config` of LaunchDarkly's Terraform resource and of its REST API, by their literal names.

use super::Config;

/// Kind by LaunchDarkly's name, `config` of Terraform, `config` of REST, and the same in our own words.
const PASTED: [(&str, &str, &str, &str); 3] = [
    (
        "kinesis",
        r#"{ "region": "eu-west-1", "role_arn": "arn:aws:iam::123456789012:role/ld", "stream_name": "ld-events" }"#,
        r#"{ "region": "eu-west-1", "roleArn": "arn:aws:iam::123456789012:role/ld", "streamName": "ld-events" }"#,
        "kinesis: { region: eu-west-1, role_arn: 'arn:aws:iam::123456789012:role/ld', stream_name: ld-events }",
    ),
    (
        "segment",
        r#"{ "write_key": "k", "user_id_context_kind": "user", "anonymous_id_context_kind": "device" }"#,
        r#"{ "writeKey": "k", "userIDContextKind": "user", "anonymousIDContextKind": "device" }"#,
        "segment: { write_key: k, anonymous_id_context_kind: device }",
    ),
    (
        "mparticle",
        r#"{ "api_key": "k", "secret": "s", "environment": "production", "user_identity": "customer_id", "user_identities": "[{\"ldContextKind\":\"org\",\"mparticleUserIdentity\":\"other\"}]" }"#,
        r#"{ "apiKey": "k", "secret": "s", "environment": "production", "userIdentity": "customer_id", "userIdentities": [{ "ldContextKind": "org", "mparticleUserIdentity": "other" }] }"#,
        "mparticle: { api_key: k, secret: s, environment: production, user_identity: customer_id, user_identities: [{ ld_context_kind: org, mparticle_user_identity: other }] }",
    ),
];

fn parse(destination: &str) -> Result<Config, String> {
    let text = format!(
        "environments: [{{ name: a, project_id: 5744c96707c9900708000004, environment_id: 578d1e02d2943862c52b9686, \
         destinations: [x] }}]\n\
         destinations: [{{ name: x, {destination} }}]\n"
    );
    match Config::parse(&text, &|_| None) {
        Ok((config, warnings)) if warnings.is_empty() => Ok(config),
        Ok((_, problems)) | Err(problems) => Err(problems.render("pasted")),
    }
}

#[test]
fn what_terraform_and_rest_call_it_means_the_same() {
    for (kind, terraform, rest, ours) in PASTED {
        let ours = parse(ours).unwrap().destinations.remove(0).settings;
        for pasted in [terraform, rest] {
            let config = parse(&format!("\"{kind}\": {pasted}")).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(config.destinations[0].settings, ours, "{pasted}");
        }
    }
}

#[test]
fn both_names_at_once_and_near_misses_are_problems() {
    let both = "kinesis: { region: r, stream_name: a, streamName: b }";
    assert!(parse(both).unwrap_err().contains("stream"), "{both}");
    for wrong in ["stream-name: a", "streamNames: a"] {
        let problems = parse(&format!("kinesis: {{ region: r, {wrong} }}")).unwrap_err();
        assert!(problems.contains("not a known key"), "{problems}");
    }
}
