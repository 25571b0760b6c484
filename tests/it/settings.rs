//! Export settings that are changed at run time through the admin port.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::support::command;
use crate::support::export::markers;
use crate::support::raw::Response;
use crate::support::relay::marked;
use crate::support::{Connection, Relay, Setup, Upstream, eventually};

const EXPORT: &str = "/api/environments/production/export";

/// Sends a request to the admin port.
fn ask(relay: &Relay, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut connection = Connection::open(relay.admin_address());
    connection.exchange(format!("{head}\r\n{body}").as_bytes()).unwrap()
}

fn document(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {:?}", response.body))
}

fn etag(response: &Response) -> String {
    response.headers.get("etag").expect("an ETag").to_owned()
}

fn get(relay: &Relay) -> (Value, String) {
    let response = ask(relay, "GET", EXPORT, &[], "");
    assert_eq!(response.status, 200);
    (document(&response), etag(&response))
}

fn put(relay: &Relay, etag: &str, settings: &Value) -> Response {
    let headers = [("If-Match", etag), ("Content-Type", "application/json")];
    ask(relay, "PUT", EXPORT, &headers, &settings.to_string())
}

fn without(pattern: &str) -> Value {
    json!({ "custom_events": { "exclude": [pattern] } })
}

/// Scenario: settings are read, changed, changed from what they no longer are, and without saying from what; the relay is
/// killed and started again; the configuration file's settings change meanwhile; then the file's are taken back.
/// Guarantees: a change concerns the next request, is there after the kill and holds over the file until it is taken back; a
/// stale change is refused with 412, one that does not say with 428, and neither does anything; each change is noted with
/// before and after.
#[test]
fn a_change_holds_over_the_file_and_survives_a_kill() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let (first, tag) = get(&relay);
    assert_eq!(first["flags"]["default"], "export");
    let changed = put(&relay, &tag, &without("a*"));
    assert_eq!(changed.status, 200, "{}", document(&changed));
    let second = etag(&changed);
    assert_ne!(second, tag);
    assert_eq!(document(&changed)["custom_events"]["exclude"], json!(["a*"]));
    relay.post("1", &json!([marked("a1"), marked("b1"), marked("c1")]));

    let stale = put(&relay, &tag, &without("*"));
    assert_eq!((stale.status, etag(&stale)), (412, second.clone()));
    let unsaid = ask(&relay, "PUT", EXPORT, &[("Content-Type", "application/json")], "{}");
    assert_eq!(unsaid.status, 428);
    assert!(document(&unsaid)["remedy"].as_str().unwrap().contains("If-Match"));
    assert_eq!(ask(&relay, "DELETE", EXPORT, &[], "").status, 428);
    assert_eq!(get(&relay).1, second);
    relay.kill();

    setup.config["environments"][0]["export"] = without("b*");
    let relay = Relay::start(&setup);
    assert_eq!(get(&relay).1, second, "the version goes on");
    relay.post("2", &json!([marked("a2"), marked("b2"), marked("c2")]));
    let status = ask(&relay, "GET", "/api/status", &[], "");
    assert_eq!(document(&status)["configuration"]["overridden"], json!(["production"]));

    let back = ask(&relay, "DELETE", EXPORT, &[("If-Match", &second)], "");
    assert_eq!(back.status, 200);
    assert_eq!(document(&back)["custom_events"]["exclude"], json!(["b*"]));
    relay.post("3", &json!([marked("a3"), marked("b3"), marked("c3")]));
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["b1", "c1", "b2", "c2", "a3", "c3"]);

    let changes = document(&ask(
        &relay,
        "GET",
        "/api/settings/changes?environment=production",
        &[],
        "",
    ));
    let changes = changes["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2);
    assert_eq!(
        (&changes[0]["version"], &changes[0]["back_to_file"]),
        (&json!(2), &json!(true))
    );
    assert_eq!(changes[1]["before"], first);
    assert_eq!(changes[1]["after"]["custom_events"]["exclude"], json!(["a*"]));
    assert!(changes[1]["time"].as_str().unwrap().ends_with('Z'));
    let text = fs::read_to_string(setup.queue().join("settings")).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("\"change\"")).count(), 2);
    relay.stop();
}

/// Scenario: the settings in force are fetched as YAML, for an environment and for the configuration file.
/// Guarantees: either says the same when it is put back, or into the file.
#[test]
fn settings_are_exported_as_yaml() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let named = json!({ "legacy-ui": "hold", "pricing": { "rules": ["1f3c"], "fallthrough": true } });
    let settings = json!({ "flags": { "default": "new", "since": "2026-11-22T00:00:00Z", "named": named } });
    assert_eq!(put(&relay, "*", &settings).status, 200);
    let (given, _) = get(&relay);
    let yaml = ask(&relay, "GET", &format!("{EXPORT}?format=yaml"), &[], "");
    assert_eq!(yaml.headers.get("content-type"), Some("application/yaml"));
    let yaml = String::from_utf8(yaml.body).unwrap();
    assert!(yaml.contains("legacy-ui: hold\n"), "{yaml}");
    let headers = [("If-Match", "*"), ("Content-Type", "application/yaml")];
    assert_eq!(ask(&relay, "PUT", EXPORT, &headers, &yaml).status, 200);
    assert_eq!(get(&relay).0, given);

    let whole = ask(&relay, "GET", "/api/environments?format=yaml", &[], "");
    let whole = String::from_utf8(whole.body).unwrap();
    assert!(
        whole.starts_with("environments:\n  - name: production\n    export:\n      "),
        "{whole}"
    );
    relay.stop();
    let tail = "    project_id: 5744c96707c9900708000004\n    environment_id: 578d1e02d2943862c52b9686\n    \
                destinations: [archive]\n";
    let rest = json!({
        "queue": "memory", "listen": "127.0.0.1:0", "telemetry": "127.0.0.1:0", "admin": { "listen": "127.0.0.1:0" },
        "destinations": setup.config["destinations"], "upstream": setup.config["upstream"],
    });
    let rest: String = rest
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("{key}: {value}\n"))
        .collect();
    let path = setup.write();
    fs::write(&path, format!("{whole}{tail}{rest}")).unwrap();
    setup.config = Value::Null;
    let relay = Relay::start_from(&setup, &path);
    assert_eq!(get(&relay).0, given);
    relay.stop();
}

/// Scenario: two writers change the settings as fast as they can, each from what it read last, and traffic goes on.
/// Guarantees: of two changes from the same settings one succeeds; no change is overwritten unseen.
#[test]
fn two_writers_do_not_overwrite_each_other() {
    const ROUNDS: usize = 10;
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let write = |name: &str| {
        let mut refusals = 0;
        for round in 0..ROUNDS {
            eventually("a change that succeeds", || {
                let (mut settings, tag) = get(&relay);
                settings["flags"]["named"][format!("{name}-{round}")] = json!("hold");
                let status = put(&relay, &tag, &settings).status;
                assert!(status == 200 || status == 412, "{status}");
                refusals += usize::from(status == 412);
                (status == 200).then_some(())
            });
        }
        refusals
    };
    let refusals = thread::scope(|scope| {
        let writers = ["one", "two"].map(|name| scope.spawn(move || write(name)));
        writers.map(|writer| writer.join().unwrap())
    });
    let (settings, tag) = get(&relay);
    assert_eq!(
        settings["flags"]["named"].as_object().unwrap().len(),
        2 * ROUNDS,
        "{refusals:?}"
    );
    assert!(tag.starts_with(&format!("\"{}-", 2 * ROUNDS)), "{tag}");
    relay.stop();
}

/// Scenario: settings that are wrong in three places, too large, of another type, hostile, for another environment, from a
/// web page; and with `mutable: false`, which comes by reload.
/// Guarantees: each is refused with its status and all of its problems, and nothing is changed. With `mutable: false` the
/// file alone decides.
#[test]
fn what_is_wrong_or_forbidden_changes_nothing() {
    let upstream = Upstream::accepting();
    let mut setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let (_, tag) = get(&relay);
    let wrong = json!({ "kinds": ["features"], "flag": {}, "sample": { "flags": { "a": 0 } } });
    let refused = put(&relay, &tag, &wrong);
    assert_eq!(refused.status, 422);
    assert_eq!(
        document(&refused)["problems"].as_array().unwrap().len(),
        3,
        "{}",
        document(&refused)
    );
    let (json, yaml) = (
        ("Content-Type", "application/json"),
        ("Content-Type", "application/yaml"),
    );
    let any = ("If-Match", "*");
    let many: String = (0..60_000).map(|n| format!("f{n}: hold, ")).collect();
    let laughs = (1..12).fold("a: &x0 [a, a]\n".to_owned(), |text, n| {
        format!(
            "{text}b{n}: &x{n} [*x{}, *x{}, *x{}, *x{}]\n",
            n - 1,
            n - 1,
            n - 1,
            n - 1
        )
    });
    let patterns = format!("custom_events: {{ exclude: [{}] }}", "\"*a*\", ".repeat(5000));
    for (status, headers, body) in [
        (413, &[any, json][..], &*"x".repeat((1 << 20) + 1)),
        (415, &[any, ("Content-Type", "text/plain")], "{}"),
        (403, &[any, json, ("Origin", "http://localhost")], "{}"),
        (422, &[any, json], "[]"),
        (422, &[any, json], ""),
        (422, &[any, json], "null"),
        (422, &[any, yaml], "---\n# nothing\n"),
        (422, &[any, json], "{\"kinds\": ${HOME}}"),
        (422, &[any, yaml], &format!("flags: {{ named: {{ {many} }} }}")),
        (422, &[any, yaml], &laughs),
        (422, &[any, yaml], &patterns),
        (422, &[any, yaml], &"[".repeat(100_000)),
    ] {
        let response = ask(&relay, "PUT", EXPORT, headers, body);
        assert_eq!(response.status, status, "{}", String::from_utf8_lossy(&response.body));
        assert!(document(&response)["remedy"].is_string());
    }
    let nobody = ask(&relay, "PUT", "/api/environments/nobody/export", &[any, json], "{}");
    assert_eq!(nobody.status, 404);
    assert!(document(&nobody)["error"].as_str().unwrap().contains("production"));
    assert_eq!(ask(&relay, "POST", EXPORT, &[any, json], "{}").status, 405);
    assert_eq!(get(&relay).1, tag);

    assert_eq!(put(&relay, &tag, &without("*")).status, 200);
    setup.config["settings"] = json!({ "mutable": false });
    setup.write();
    relay.signal("HUP");
    let immutable = eventually("the reload", || {
        let response = put(&relay, "*", &without("*"));
        (response.status == 403).then_some(response)
    });
    assert!(
        document(&immutable)["error"]
            .as_str()
            .unwrap()
            .contains("settings.mutable")
    );
    relay.post("one", &json!([marked("one")]));
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one"]);
    relay.stop();
}

/// Scenario: settings for 10,000 flags are put and taken back; the file with them is damaged while the relay is down.
/// Guarantees: they hold; the damaged file is put aside and said to be damaged, and the settings before the last change
/// hold.
#[test]
fn damaged_settings_are_put_aside() {
    let upstream = Upstream::accepting();
    let setup = Setup::new(upstream.address());
    let relay = Relay::start(&setup);
    let named: serde_json::Map<String, Value> = (0..10_000).map(|n| (format!("flag-{n}"), json!("hold"))).collect();
    assert_eq!(put(&relay, "*", &json!({ "flags": { "named": named } })).status, 200);
    assert_eq!(put(&relay, "*", &without("*")).status, 200);
    relay.stop();
    let path = setup.queue().join("settings");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut relay = Relay::start(&setup);
    relay.tolerate("settings made at run time cannot be read");
    relay.await_log("its checksum does not match");
    relay.post("one", &json!([marked("one")]));
    relay.settle();
    assert_eq!(markers(&setup.exported()), ["one"]);
    assert!(setup.queue().join("settings.damaged").exists() && !path.exists());
    let evaluation = |flag: &str| {
        let mut event = marked(flag);
        let more = json!({ "kind": "feature", "value": true, "default": false, "variation": 0 });
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    relay.post("two", &json!([evaluation("flag-7"), evaluation("other")]));
    relay.settle();
    let mut explain = command::binary();
    explain
        .args(["explain", "--config"])
        .arg(setup.queue().with_file_name("config.yaml"));
    let said = command::run(&mut explain, json!([evaluation("flag-7")]).to_string().as_bytes());
    assert!(
        said.out.contains("(flag_held)") && said.out.contains("set at run time"),
        "{said:?}"
    );
    assert_eq!(markers(&setup.exported()), ["one", "other"], "flag-7 is held again");
    assert_eq!(put(&relay, "*", &without("x*")).status, 200);
    assert!(path.exists());
    relay.stop();
}
