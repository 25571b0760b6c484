//! The forms of the export record through the binary: each destination has its own, and what has no form is counted.

use serde_json::json;

use crate::support::export::{event, markers, read_lines};
use crate::support::relay::marked;
use crate::support::{Relay, Setup, Upstream};

/// Scenario: the same events to three destinations: by sender, all in schema 1, all in schema 2. One is about an
/// organisation alone, one is an alias.
/// Guarantees: each destination gets its form; what has none is skipped and counted with the reason, for that destination
/// alone.
#[test]
fn each_destination_has_its_own_form_and_counts_what_has_none() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, schema: &str| json!({ "name": name, "file": { "path": folder.path().join(name), "schema": schema } });
    setup.config["destinations"] = json!([file("own", "auto"), file("users", "1"), file("contexts", "2")]);
    setup.config["environments"][0]["destinations"] = json!(["own", "users", "contexts"]);
    let relay = Relay::start(&setup);
    let org = json!({ "kind": "custom", "creationDate": 1, "key": "org", "contextKeys": { "org": "o" } });
    let alias = json!({ "kind": "alias", "creationDate": 1, "key": "alias", "previousKey": "a" });
    assert_eq!(relay.post("one", &json!([marked("user"), org, alias])).status, 202);
    let metrics = relay.settle();
    relay.stop();

    let lines = |name: &str| read_lines(&folder.path().join(name));
    assert_eq!(markers(&lines("own")), ["user", "org", "alias"]);
    assert_eq!(markers(&lines("users")), ["user", "alias"]);
    assert_eq!(markers(&lines("contexts")), ["user", "org"]);
    assert_eq!(event(&lines("users")[0])["user"], json!({ "key": "test-user" }));
    assert_eq!(
        event(&lines("contexts")[0])["contextKeys"],
        json!({ "user": "test-user" })
    );
    for (destination, reason, count) in [
        ("users", "no_user", 1.0),
        ("contexts", "not_in_schema_2", 1.0),
        ("own", "no_user", 0.0),
        ("own", "not_in_schema_2", 0.0),
    ] {
        let labels = [("destination", destination), ("reason", reason)];
        let skipped = metrics.sum("flagtap_destination_events_skipped_total", &labels);
        assert_eq!(skipped, count, "{destination} {reason}");
    }
}
