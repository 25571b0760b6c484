//! `flagtap injector`: real AdmissionReviews over TLS, and clients that mean no good. `docs/injector.md` has the promises.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::raw::{Response, request};
use crate::support::tls::{Authority, TlsConnection, connect, shown_certificate};
use crate::support::{Relay, eventually, tools};

const HOST: &str = "127.0.0.1";

/// The template of `docs/injector.md`.
pub(crate) fn template(native: bool) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/injector.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("## The template").unwrap();
    let (_, rest) = rest.split_once("```yaml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let line = "  restartPolicy: Always ";
    assert!(text.contains(line));
    let kept = text.lines().filter(|text| native || !text.starts_with(line));
    kept.map(|line| format!("{line}\n")).collect()
}

/// A running injector with a certificate from files.
struct Webhook {
    relay: Relay,
    authority: Authority,
    folder: TempDir,
}

impl Webhook {
    fn start(native: bool) -> Self {
        let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
        authority.issue(HOST).write(folder.path());
        fs::write(folder.path().join("sidecar.yaml"), template(native)).unwrap();
        let mut relay = Relay::launch(command(folder.path()));
        relay.serves("webhook");
        Self {
            relay,
            authority,
            folder,
        }
    }

    fn connect(&self) -> TlsConnection {
        connect(self.relay.address(), self.authority.client()).unwrap()
    }

    fn post(&self, body: &[u8]) -> Response {
        self.connect().exchange(&posted(body)).unwrap()
    }

    /// Posts a review; returns the response in it.
    fn review(&self, review: &Value) -> Value {
        let answer = self.post(review.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.headers.get("content-type"), Some("application/json"));
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&review["apiVersion"], &review["kind"])
        );
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        assert_eq!(answer["response"]["allowed"], true);
        answer["response"].clone()
    }

    fn counted(&self, outcome: &str) -> f64 {
        self.relay
            .metrics()
            .sum("flagtap_injector_reviews_total", &[("outcome", outcome)])
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagtap"));
    command.args(["injector", "--listen", "127.0.0.1:0", "--telemetry", "127.0.0.1:0"]);
    command.args(["--interval", "200ms"]);
    for (argument, name) in [
        ("--template", "sidecar.yaml"),
        ("--certificate", "tls.crt"),
        ("--key", "tls.key"),
    ] {
        command.arg(argument).arg(folder.join(name));
    }
    command
}

fn posted(body: &[u8]) -> Vec<u8> {
    request(
        "POST",
        "/mutate?timeout=5s",
        &[("Content-Type", "application/json")],
        body,
    )
}

/// Returns the documents of `tests/admission` by name.
fn documents() -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/admission");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let json: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    let read = |path: &PathBuf| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    json.iter()
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), read(path)))
        .collect()
}

/// Applies a response's patch to the object that was reviewed.
fn applied(review: &Value, response: &Value) -> Value {
    let mut object = review["request"]["object"].clone();
    let Some(patch) = response["patch"].as_str() else {
        assert!(response["patchType"].is_null());
        return object;
    };
    assert_eq!(response["patchType"], "JSONPatch");
    let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|item| item["name"].as_str().unwrap())
        .collect()
}

/// Scenario: pods of a Deployment, a Job, a StatefulSet with a native sidecar of its own, a DaemonSet on the node's network, a
/// bare pod, one that does not ask, and a debug container for a running one, each as Kubernetes posts it; then every
/// changed pod once more.
/// Guarantees: each gets what the page says, the second call changes nothing, and Kubernetes' own schemas of three
/// versions take every pod that comes out.
#[test]
fn every_kind_of_pod_gets_what_it_should() {
    let Some(validator) = tools::find("injector::every_kind_of_pod", "helm-python/bin/kubernetes-validate") else {
        return;
    };
    let mut pods = Vec::new();
    for native in [true, false] {
        let webhook = Webhook::start(native);
        let mut status = BTreeMap::new();
        for (name, review) in documents() {
            let response = webhook.review(&review);
            let pod = applied(&review, &response);
            let said = pod["metadata"]["annotations"]["flagtap.dev/status"]
                .as_str()
                .unwrap_or("untouched")
                .to_owned();
            if said == "untouched" {
                assert_eq!(pod, review["request"]["object"], "{name}");
            }
            let (sidecar, list) = (template(native), if native { "initContainers" } else { "containers" });
            assert!(sidecar.contains("name: flagtap\n"));
            assert_eq!(
                names(&pod["spec"][list]).contains(&"flagtap"),
                said.starts_with("injected"),
                "{name}"
            );
            let mut again = review.clone();
            again["request"]["object"] = pod.clone();
            let second = applied(&again, &webhook.review(&again));
            assert_eq!(second, pod, "{name}: the second call changed it");
            if name == "deployment" {
                let spec = &pod["spec"];
                assert_eq!(
                    names(&spec["containers"][0]["env"]),
                    ["LD_EVENTS_URI", "POD_IP", "LOG_LEVEL"]
                );
                assert_eq!(spec["containers"][0]["env"][0]["value"], "http://127.0.0.1:8030");
                assert_eq!(names(&spec["containers"][1]["env"]), ["LD_EVENTS_URI"]);
                assert_eq!(
                    names(&spec["volumes"]),
                    ["tmp", "kube-api-access-x7k2p", "flagtap-config", "flagtap-data"]
                );
                assert_eq!(spec["terminationGracePeriodSeconds"], 45);
                let order = if native {
                    ["flagtap"].to_vec()
                } else {
                    ["web", "cache", "flagtap"].to_vec()
                };
                assert_eq!(names(&spec[list]), order);
            }
            if name == "statefulset" && native {
                assert_eq!(names(&pod["spec"]["initContainers"]), ["flagtap", "vault", "migrate"]);
                assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 120);
            }
            status.insert(name, said);
            pods.push(pod);
        }
        let expected: BTreeMap<String, String> = [
            ("bare", "injected"),
            ("daemonset-host-network", "not injected: the pod uses the node's network (hostNetwork), where its ports could collide"),
            ("deployment", "injected"),
            ("ephemeral-container", "untouched"),
            ("job", match native {
                true => "injected",
                false => "not injected: the pod would never complete (restartPolicy) beside a sidecar that is an ordinary container",
            }),
            ("not-asked", "untouched"),
            ("statefulset", "injected; container basket sets EVENTS itself"),
        ]
        .map(|(name, said)| (name.to_owned(), said.to_owned()))
        .into();
        assert_eq!(status, expected, "native: {native}");
        let injected = if native { 4.0 } else { 3.0 };
        let refused = 5.0 - injected;
        assert_eq!(webhook.counted("injected"), injected);
        assert_eq!(webhook.counted("present"), injected);
        assert_eq!(webhook.counted("refused"), 2.0 * refused);
        assert_eq!(webhook.counted("not_asked"), 2.0);
        assert_eq!(webhook.counted("failed"), 2.0, "the debug container, twice");
    }
    let before = pods.len();
    for (index, pod) in pods.iter_mut().enumerate() {
        // The API server makes the name after the webhooks; the validator wants one.
        pod["metadata"]["name"] = json!(format!("pod-{index}"));
    }
    let mut broken = pods[0].clone();
    broken["metadata"]["name"] = json!("broken");
    broken["spec"]["containers"][0]["environment"] = json!([]);
    pods.push(broken);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    let texts: Vec<String> = pods.iter().map(Value::to_string).collect();
    fs::write(&file, texts.join("\n---\n")).unwrap();
    thread::scope(|scope| {
        for version in ["1.29", "1.33", "1.37"] {
            let (validator, file) = (&validator, &file);
            scope.spawn(move || {
                let output = Command::new(validator)
                    .args(["--strict", "-k", version])
                    .arg(file)
                    .output()
                    .unwrap();
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                // One of them is wrong, so that the check is known to be one.
                assert_eq!(
                    said.matches(" passed for resource").count(),
                    before,
                    "{version}: {said}"
                );
                assert!(!said.contains("passed for resource pod/broken"), "{version}: {said}");
                assert!(!output.status.success(), "{version}");
            });
        }
    });
}

/// Scenario: bodies that are too large, no JSON, another kind, another version, nested without end, about something else than
/// a pod, a pod of another form, with the wrong method and path; then a good review.
/// Guarantees: what has a uid is admitted unchanged with a warning that repeats nothing of it, the rest is refused with
/// a 4xx, and the good one is served as ever.
#[test]
fn bodies_that_are_no_review_of_a_pod_do_no_harm() {
    let webhook = Webhook::start(true);
    let good = documents().remove("bare").unwrap();
    let changed = |change: fn(&mut Value)| {
        let mut review = good.clone();
        change(&mut review);
        review
    };
    // Refused for what its head says, before it is sent.
    let huge = format!(
        "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        (4 << 20) + 1
    );
    assert_eq!(webhook.connect().exchange(huge.as_bytes()).unwrap().status, 413);
    let deep = format!("{{\"request\":{}", "[".repeat(100_000));
    let wrong_kind = changed(|review| review["kind"] = json!("Pod")).to_string();
    let old_version = changed(|review| review["apiVersion"] = json!("admission.k8s.io/v1beta1")).to_string();
    let no_uid = changed(|review| review["request"]["uid"] = json!("")).to_string();
    let no_request = changed(|review| review["request"] = Value::Null).to_string();
    for (what, body, status) in [
        ("nothing", &b""[..], 400),
        ("not JSON", b"{\"kind\": secret", 400),
        ("deep", deep.as_bytes(), 400),
        ("another kind", wrong_kind.as_bytes(), 400),
        ("another version", old_version.as_bytes(), 400),
        ("no uid", no_uid.as_bytes(), 400),
        ("no request", no_request.as_bytes(), 400),
    ] {
        assert_eq!(webhook.post(body).status, status, "{what}");
    }
    let other = |method: &str, path: &str| {
        webhook
            .connect()
            .exchange(&request(method, path, &[], b""))
            .unwrap()
            .status
    };
    assert_eq!(
        (other("GET", "/mutate"), other("POST", "/"), other("GET", "/metrics")),
        (405, 404, 404)
    );

    let odd: [(&str, Value); 4] = [
        (
            "a pod of another form",
            changed(|review| review["request"]["object"]["spec"]["containers"] = json!("sesame")),
        ),
        ("no object", changed(|review| review["request"]["object"] = Value::Null)),
        (
            "a service",
            changed(|review| review["request"]["resource"]["resource"] = json!("services")),
        ),
        (
            "a deletion",
            changed(|review| review["request"]["operation"] = json!("DELETE")),
        ),
    ];
    for (what, review) in odd {
        let response = webhook.review(&review);
        assert!(response["patch"].is_null(), "{what}");
        let warnings = response["warnings"].to_string();
        assert!(
            warnings.contains("leaves it as it is") && !warnings.contains("sesame"),
            "{what}: {warnings}"
        );
    }
    assert_eq!(webhook.counted("failed"), 12.0);
    assert!(!webhook.relay.log_text().contains("sesame") && !webhook.relay.log_text().contains("secret"));
    assert!(webhook.review(&good)["patch"].is_string());
}

/// Scenario: a hundred clients that stop within the handshake, the head or the body, and one that sends as a stream
/// more than any review has.
/// Guarantees: reviews are answered at once all the while; who stops within a body is told after five seconds.
#[test]
fn slow_clients_hold_nobody_up() {
    let webhook = Webhook::start(true);
    let good = documents().remove("bare").unwrap();
    let body = good.to_string();
    let half = &posted(body.as_bytes())[..900];
    let mut slow: Vec<TlsConnection> = (0..60).map(|_| webhook.connect()).collect();
    for (index, connection) in slow.iter_mut().enumerate() {
        connection
            .send(if index % 2 == 0 { half } else { b"POST /mutate HTT" })
            .unwrap();
    }
    let silent: Vec<_> = (0..40).map(|_| webhook.relay.connect()).collect();
    let started = Instant::now();
    for _ in 0..20 {
        assert!(webhook.review(&good)["patch"].is_string());
    }
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    assert_eq!(slow[0].response(false).unwrap().status, 408);

    let mut stream = webhook.connect();
    stream
        .send(b"POST /mutate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [b"10000\r\n", &[b' '; 65536][..], b"\r\n"].concat();
    // It is cut off while it sends, or has an answer waiting.
    let sent = (0..80).take_while(|_| stream.send(&chunk).is_ok()).count();
    assert!(sent <= 80);
    if let Ok(answer) = stream.response(false) {
        assert_eq!(answer.status, 413);
    }
    assert!(webhook.review(&good)["patch"].is_string());
    drop(silent);
}

/// Scenario: template and certificate change under a running injector, the template first to a broken one; then TERM, and a
/// review after it.
/// Guarantees: new ones are taken without a restart, the broken one is said and not taken; after TERM it is not ready,
/// still answers, and ends with success.
#[test]
fn files_are_taken_anew_and_the_end_is_soft() {
    let webhook = Webhook::start(true);
    let path = webhook.folder.path().join("sidecar.yaml");
    let good = documents().remove("bare").unwrap();
    fs::write(&path, "url: nowhere").unwrap();
    eventually("the broken template to be said", || {
        let message = "the new template is not usable, keeping the old one";
        webhook.relay.find_log(message)
    });
    assert_eq!(
        names(&applied(&good, &webhook.review(&good))["spec"]["initContainers"]),
        ["flagtap"]
    );
    fs::write(&path, template(true).replace("  name: flagtap\n", "  name: relay\n")).unwrap();
    let new = webhook.authority.issue(HOST);
    new.write(webhook.folder.path());
    eventually("the new template", || {
        let pod = applied(&good, &webhook.review(&good));
        (names(&pod["spec"]["initContainers"]) == ["relay"]).then_some(())
    });
    let shown = || shown_certificate(webhook.relay.address(), webhook.authority.client());
    eventually("the new certificate", || (shown() == new.der()).then_some(()));

    webhook.relay.terminate();
    eventually("/readyz to say that it ends", || {
        (webhook.relay.telemetry("/readyz")?.status == 503).then_some(())
    });
    assert!(webhook.review(&good)["patch"].is_string());
    let Webhook { relay, .. } = webhook;
    let mut relay = relay;
    assert!(relay.wait().success());
}

/// Scenario: wrong arguments, a template that is none, a certificate that is none, no cluster.
/// Guarantees: the exit code and the message say which.
#[test]
fn a_start_that_cannot_work_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let said = |change: &dyn Fn(&mut Command)| {
        let mut command = command(folder.path());
        change(&mut command);
        let output = command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let nothing = |_: &mut Command| ();
    let (code, error) = said(&nothing);
    assert_eq!(code, Some(64), "{error}");
    assert!(error.contains("sidecar.yaml: No such file"), "{error}");
    fs::write(folder.path().join("sidecar.yaml"), template(true)).unwrap();
    let (code, error) = said(&nothing);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("tls.crt"), "{error}");
    let (code, error) = said(&|command| {
        command.args(["--secret", "both"]);
    });
    assert_eq!(code, Some(2), "{error}");
    let bare = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_flagtap"))
            .args(["injector", "--template"])
            .arg(folder.path().join("sidecar.yaml"))
            .args(["--listen", "127.0.0.1:0", "--telemetry", "127.0.0.1:0"])
            .args(arguments)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(bare(&[]).0, Some(2));
    assert_eq!(bare(&["--secret", "../x"]).0, Some(2));
    let (code, error) = bare(&["--secret", "flagtap-injector"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("KUBERNETES_SERVICE_HOST is not set"), "{error}");
}
