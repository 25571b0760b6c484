//! Decisions, templates and certificates. The whole way, over TLS and through the binary, is in `tests/it/injector.rs`.

use std::fs;
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::certificate::{Identity, make};
use super::patch::{Change, Decision, decide};
use super::template::Template;
use super::*;

mod refusals;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn template_text(native: bool) -> String {
    let policy = if native { "  restartPolicy: Always\n" } else { "" };
    format!(
        "url: http://127.0.0.1:8030\ncontainer:\n  name: flagtap\n  image: flagtap:1\n{policy}  ports: [{{ containerPort: 8030 }}, \
         {{ containerPort: 8031 }}]\n  volumeMounts: [{{ name: flagtap-data, mountPath: /data }}]\nvolumes:\n  - \
         name: flagtap-data\n    emptyDir: {{}}\nannotations:\n  flagtap.dev/config: |\n    listen: \
         127.0.0.1:8030\nterminationGracePeriodSeconds: 45\n"
    )
}

fn native() -> Template {
    Template::parse(&template_text(true)).unwrap()
}

fn ordinary() -> Template {
    Template::parse(&template_text(false)).unwrap()
}

/// A pod that asks, with one container, as the API server completes it.
fn pod() -> Value {
    json!({
        "metadata": { "generateName": "shop-", "annotations": { INJECT: "true", ENV: "LD_EVENTS_URI" } },
        "spec": {
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{ "name": "app", "image": "shop:1" }],
        },
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod();
    change(&mut pod);
    pod
}

fn decided(template: &Template, pod: &Value) -> Decision {
    decide(template, &serde_json::from_value(pod.clone()).unwrap())
}

fn applied(pod: &Value, change: &Change) -> Value {
    let mut pod = pod.clone();
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(change.patch.clone())).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// Returns the pod with its sidecar and the notes; the second call must change nothing.
fn injected(template: &Template, pod: &Value) -> (Value, Vec<String>) {
    let Decision::Injected(change) = decided(template, pod) else {
        panic!("{:?}", decided(template, pod));
    };
    let after = applied(pod, &change);
    assert_eq!(decided(template, &after), Decision::Present);
    (after, change.notes)
}

fn refused(template: &Template, pod: &Value) -> String {
    let Decision::Refused(change) = decided(template, pod) else {
        panic!("{:?}", decided(template, pod));
    };
    // All that changes is what says so.
    let mut after = applied(pod, &change);
    let status = after["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .remove(STATUS)
        .unwrap();
    let mut before = pod.clone();
    if before["metadata"]["annotations"].is_null() {
        before["metadata"]["annotations"] = json!({});
    }
    assert_eq!(after, before);
    let why = status
        .as_str()
        .unwrap()
        .strip_prefix("not injected: ")
        .unwrap()
        .to_owned();
    assert_eq!(change.notes, [format!("flagtap is not injected: {why}")]);
    why
}

#[test]
fn a_native_sidecar_is_the_first_init_container_and_the_application_knows_its_address() {
    let before = changed(|pod| {
        pod["spec"]["initContainers"] = json!([{ "name": "migrate", "image": "shop:1" }]);
        pod["spec"]["containers"][0]["env"] = json!([{ "name": "PORT", "value": "80" }]);
        pod["spec"]["volumes"] = json!([{ "name": "tmp", "emptyDir": {} }]);
    });
    let (after, notes) = injected(&native(), &before);
    assert_eq!(notes, [""; 0]);
    let expected = changed(|pod| {
        let template = native();
        pod["spec"]["initContainers"] = json!([template.container, { "name": "migrate", "image": "shop:1" }]);
        pod["spec"]["containers"][0]["env"] = json!([
            { "name": "LD_EVENTS_URI", "value": "http://127.0.0.1:8030" }, { "name": "PORT", "value": "80" },
        ]);
        pod["spec"]["volumes"] = json!([{ "name": "tmp", "emptyDir": {} }, { "name": "flagtap-data", "emptyDir": {} }]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(45);
        let annotations = &mut pod["metadata"]["annotations"];
        annotations["flagtap.dev/config"] = json!("listen: 127.0.0.1:8030\n");
        annotations[STATUS] = json!("injected");
    });
    assert_eq!(after, expected);
}

#[test]
fn lists_that_are_missing_or_null_are_made() {
    for null in [false, true] {
        let before = changed(|pod| {
            if null {
                pod["spec"]["initContainers"] = Value::Null;
                pod["spec"]["volumes"] = Value::Null;
                pod["spec"]["containers"][0]["env"] = Value::Null;
            }
        });
        let (after, _) = injected(&native(), &before);
        assert_eq!(after["spec"]["initContainers"][0]["name"], "flagtap");
        assert_eq!(after["spec"]["volumes"][0]["name"], "flagtap-data");
        assert_eq!(after["spec"]["containers"][0]["env"][0]["name"], "LD_EVENTS_URI");
    }
}

#[test]
fn an_ordinary_sidecar_is_the_last_container() {
    let (after, _) = injected(&ordinary(), &pod());
    assert_eq!(after["spec"]["containers"][1]["name"], "flagtap");
    assert!(after["spec"]["initContainers"].is_null());
}

#[test]
fn a_label_asks_as_well_and_the_annotation_wins() {
    let by_label = changed(|pod| {
        pod["metadata"]["annotations"] = Value::Null;
        pod["metadata"]["labels"] = json!({ INJECT: "true" });
    });
    let (after, _) = injected(&native(), &by_label);
    assert_eq!(after["metadata"]["annotations"][STATUS], "injected");
    assert!(after["spec"]["containers"][0]["env"].is_null());
    let both = changed(|pod| {
        pod["metadata"]["annotations"][INJECT] = json!("false");
        pod["metadata"]["labels"] = json!({ INJECT: "true" });
    });
    assert_eq!(decided(&native(), &both), Decision::NotAsked);
}

#[test]
fn who_does_not_ask_gets_nothing_and_who_has_it_no_more() {
    let silent = changed(|pod| pod["metadata"]["annotations"] = json!({ ENV: "LD_EVENTS_URI" }));
    assert_eq!(decided(&native(), &silent), Decision::NotAsked);
    for list in ["containers", "initContainers"] {
        let by_hand = changed(|pod| pod["spec"][list] = json!([{ "name": "flagtap", "image": "mine" }]));
        assert_eq!(decided(&native(), &by_hand), Decision::Present);
    }
}

#[test]
fn variables_go_where_they_are_wanted_and_never_over_another() {
    let before = changed(|pod| {
        pod["metadata"]["annotations"][ENV] = json!("A, B ,A,,C");
        pod["metadata"]["annotations"][CONTAINERS] = json!("app,seed,nobody");
        pod["spec"]["containers"] = json!([
            { "name": "log" }, { "name": "app", "env": [{ "name": "B", "value": "mine" }] },
        ]);
        pod["spec"]["initContainers"] = json!([{ "name": "migrate" }, { "name": "seed" }]);
    });
    let names = |container: &Value| -> Vec<String> {
        let env = container["env"].as_array().into_iter().flatten();
        env.map(|variable| variable["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let (after, notes) = injected(&native(), &before);
    let (containers, inits) = (&after["spec"]["containers"], &after["spec"]["initContainers"]);
    assert_eq!(names(&containers[0]), [""; 0]);
    assert_eq!(names(&containers[1]), ["A", "C", "B"]);
    assert_eq!(containers[1]["env"][2]["value"], "mine");
    assert_eq!((&inits[1]["name"], names(&inits[1]).len()), (&json!("migrate"), 0));
    assert_eq!(
        (&inits[2]["name"], names(&inits[2])),
        (&json!("seed"), ["A", "B", "C"].map(str::to_owned).to_vec())
    );
    let said = [
        "flagtap.dev/containers names nobody, which is no container",
        "container app sets B itself",
    ];
    assert_eq!(notes, said);
    let status = format!("injected; {}", said.join("; "));
    assert_eq!(after["metadata"]["annotations"][STATUS], json!(status));

    let (after, notes) = injected(&ordinary(), &before);
    assert_eq!(names(&after["spec"]["initContainers"][1]), [""; 0]);
    assert!(
        notes.contains(&"init container seed runs before the sidecar".to_owned()),
        "{notes:?}"
    );
}

#[test]
fn names_that_would_make_the_pod_invalid_are_left_out() {
    let hostile = "1A,B C,D=E,\u{1b}[31m,GOOD,".to_owned() + &"X".repeat(200);
    let before = changed(|pod| {
        pod["metadata"]["annotations"][ENV] = json!(hostile);
        pod["metadata"]["annotations"][CONTAINERS] = json!("app,\u{1b}[31m");
    });
    let (after, notes) = injected(&native(), &before);
    let url = "http://127.0.0.1:8030";
    assert_eq!(
        after["spec"]["containers"][0]["env"],
        json!([{ "name": "GOOD", "value": url }])
    );
    let said = [
        "flagtap.dev/env has a name that no variable can have",
        "flagtap.dev/containers names something, which is no container",
    ];
    assert_eq!(notes, said);
    let many: Vec<String> = (0..1000).map(|n| format!("V{n}")).collect();
    let before = changed(|pod| pod["metadata"]["annotations"][ENV] = json!(many.join(",")));
    let (after, notes) = injected(&native(), &before);
    assert_eq!(after["spec"]["containers"][0]["env"].as_array().unwrap().len(), 64);
    assert_eq!(notes, ["flagtap.dev/env lists more than 64 names"]);
}

#[test]
fn annotations_never_become_more_than_kubernetes_takes() {
    let with = |bytes: usize| changed(|pod| pod["metadata"]["annotations"]["big"] = json!("x".repeat(bytes)));
    injected(&native(), &with(250 * 1024));
    let mut template = native();
    template.annotations.insert("config".to_owned(), "x".repeat(20 * 1024));
    assert!(refused(&template, &with(250 * 1024)).contains("256 KiB"));
    let Decision::Refused(change) = decided(&native(), &with(256 * 1024 - 500)) else {
        panic!("not refused");
    };
    assert!(change.patch.is_empty(), "not even a status fits");
    let unlimited = changed(|pod| pod["spec"]["resources"] = json!({}));
    injected(&native(), &unlimited);
}

#[test]
fn a_status_has_an_end() {
    let names: Vec<String> = (0..60).map(|n| format!("no-container-{n}")).collect();
    let before = changed(|pod| pod["metadata"]["annotations"][CONTAINERS] = json!(names.join(",")));
    let (after, _) = injected(&native(), &before);
    let status = after["metadata"]["annotations"][STATUS].as_str().unwrap();
    assert!(
        status.starts_with("injected; ") && status.ends_with('…') && status.len() <= 1024,
        "{status}"
    );
}

#[test]
fn what_no_pod_has_is_not_read() {
    let containers: Vec<Value> = (0..200).map(|n| json!({ "name": format!("c{n}") })).collect();
    let words: serde_json::Map<String, Value> = (0..2500).map(|n| (format!("w{n}"), json!(""))).collect();
    for (path, value) in [
        ("/spec/containers", json!(containers)),
        ("/metadata/annotations", json!(words)),
        ("/metadata/labels", json!(words)),
        ("/spec/nodeSelector", json!(words)),
    ] {
        let mut pod = changed(|pod| {
            pod["metadata"]["labels"] = json!({});
            pod["spec"]["nodeSelector"] = json!({});
        });
        *pod.pointer_mut(path).unwrap() = value;
        assert!(serde_json::from_value::<Pod>(pod).is_err(), "{path}");
    }
}

#[test]
fn what_the_pod_says_itself_stays() {
    let before = changed(|pod| {
        pod["metadata"]["annotations"]["flagtap.dev/config"] = json!("mine");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(600);
    });
    let (after, _) = injected(&native(), &before);
    assert_eq!(after["metadata"]["annotations"]["flagtap.dev/config"], "mine");
    assert_eq!(after["spec"]["terminationGracePeriodSeconds"], 600);
}

#[test]
fn a_template_that_would_break_pods_is_not_taken() {
    let good = template_text(true);
    for (from, to, says) in [
        ("url: http", "url: ftp", "http or https"),
        ("  name: flagtap\n", "  name: Flag_Tap\n", "`container` needs a `name`"),
        ("  image: flagtap:1\n", "", "`image`"),
        ("restartPolicy: Always", "restartPolicy: Never", "restartPolicy"),
        ("volumes:", "volume:", "unknown field"),
        ("name: flagtap-data\n", "name: flagtap-date\n", "volumeMounts"),
        ("containerPort: 8031", "containerPort: 80310", "container.ports"),
        ("flagtap.dev/config:", "flagtap.dev/status:", "`annotations`"),
        ("Seconds: 45", "Seconds: -1", "below 0"),
        ("image: flagtap:1", "image: [", ""),
    ] {
        assert!(good.contains(from), "{from}");
        let why = Template::parse(&good.replacen(from, to, 1)).unwrap_err();
        assert!(why.contains(says), "{from} -> {to}: {why}");
    }
}

#[test]
fn a_template_is_taken_anew_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.yaml");
    fs::write(&path, template_text(true)).unwrap();
    let templates = Templates::load(&path).unwrap();
    assert!(!templates.refresh().unwrap());
    fs::write(&path, "container: {}").unwrap();
    assert!(templates.refresh().is_err());
    assert!(templates.current().native);
    fs::write(&path, template_text(false)).unwrap();
    assert!(templates.refresh().unwrap());
    assert!(!templates.current().native);
    fs::write(&path, "#".repeat(2 << 20)).unwrap();
    assert!(templates.refresh().unwrap_err().to_string().contains("1MiB"));
}

#[test]
fn a_certificate_is_good_for_its_names_and_its_time() {
    let names = ["flagtap-injector.flagtap.svc".to_owned()];
    let now = SystemTime::now();
    let identity = make(&names, now).unwrap();
    assert_eq!(identity.unusable(&names, now), None);
    assert_eq!(identity.unusable(&names, now + 58 * DAY), None);
    assert!(identity.unusable(&names, now + 62 * DAY).unwrap().contains("expired"));
    assert!(identity.unusable(&["other.flagtap.svc".to_owned()], now).is_some());
    // Another authority of the same kind is not taken for its own.
    let other = make(&names, now).unwrap();
    let mixed = Identity {
        authorities: other.authorities.clone(),
        ..identity.clone()
    };
    assert!(mixed.unusable(&names, now).is_some());
    let next = other.after(&identity);
    assert_eq!(next.unusable(&names, now), None);
    assert_eq!(next.authorities.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(next.authorities.ends_with(&identity.authorities));
    // Of what came before, one stays.
    let last = make(&names, now).unwrap().after(&next);
    assert_eq!(last.authorities.matches("BEGIN CERTIFICATE").count(), 2);
    let broken = Identity {
        authorities: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----".to_owned(),
        ..last
    };
    assert_eq!(
        make(&names, now)
            .unwrap()
            .after(&broken)
            .authorities
            .matches("BEGIN")
            .count(),
        1
    );
}

#[tokio::test]
async fn bodies_are_bounded_together_and_who_waits_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.yaml");
    fs::write(&path, template_text(true)).unwrap();
    let injector = Injector::new(Arc::new(Templates::load(&path).unwrap()), Arc::new(Metrics::new()));
    let post = |bytes: usize| {
        Request::post(PATH)
            .body(Full::new(Bytes::from(vec![b' '; bytes])))
            .unwrap()
    };
    assert_eq!(
        injector.answer(post(MOST_BODY + 1)).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(injector.answer(post(MOST_BODY)).await.status(), StatusCode::BAD_REQUEST);
    let taken = injector
        .budget
        .try_acquire_many(u32::try_from(MOST_BODIES - 10).unwrap())
        .unwrap();
    assert_eq!(
        injector.answer(post(11)).await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(injector.answer(post(10)).await.status(), StatusCode::BAD_REQUEST);
    drop(taken);
    assert_eq!(injector.budget.available_permits(), MOST_BODIES);
    let text = injector.metrics.render();
    assert!(
        text.contains("flagtap_injector_reviews_total{outcome=\"failed\"} 4"),
        "{text}"
    );
}

#[tokio::test]
async fn a_list_without_end_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.yaml");
    fs::write(&path, template_text(true)).unwrap();
    let injector = Injector::new(Arc::new(Templates::load(&path).unwrap()), Arc::new(Metrics::new()));
    let many = changed(|pod| pod["spec"]["containers"] = json!(vec![json!({ "name": "a" }); 1001]));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "CREATE", "object": many,
            "resource": { "group": "", "version": "v1", "resource": "pods" },
        },
    });
    let request = Request::post(PATH)
        .body(Full::new(Bytes::from(review.to_string())))
        .unwrap();
    let answer = injector
        .answer(request)
        .await
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["patch"].is_null());
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("not of the documented form at line 1"), "{warning}");
}
