//! The sidecar as the chart renders it, run as a kubelet would: its arguments, environment, configuration, user, paths.
//!
//! `tests/helm/golden` is what the chart renders; `tests/helm` compares. Each pod gets a network namespace of its own, because
//! the ports are those of the chart, and a mount namespace for its file system. The binary is the one of the other tests, so
//! `/usr` and the libraries are there too, read-only; the image's own file system has a test of its own.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::export::{event, read_lines};
use crate::support::recording::fixture;
use crate::support::{Connection, SDK_KEY, Upstream, eventually, request, tools};

/// Scenario: a pod with the native sidecar ends: TERM to the application, which flushes; when it has ended, TERM to flagtap.
/// Guarantees: flagtap runs as its user, without capabilities, writes below /data alone, and ends in time; every event
/// arrives at the destination, those after TERM too.
#[test]
fn the_last_events_of_an_application_arrive_through_the_native_sidecar() {
    in_a_pod(
        "sidecar: native",
        "the_last_events_of_an_application_arrive_through_the_native_sidecar",
        || {
            let pod = Pod::start("application-tried");
            assert_eq!(pod.spec["initContainers"][0]["restartPolicy"], "Always");
            pod.assert_confined();
            pod.application(0.0).end();
            pod.end_and_count();
        },
    );
}

/// Scenario: the same with an ordinary container: TERM to the application and the preStop hook of flagtap at once; the
/// application takes two seconds to flush.
/// Guarantees: the same; the hook outlasts the application.
#[test]
fn the_last_events_of_an_application_arrive_through_an_ordinary_container() {
    in_a_pod(
        "sidecar: ordinary",
        "the_last_events_of_an_application_arrive_through_an_ordinary_container",
        || {
            let pod = Pod::start("application-tried-fallback");
            pod.assert_confined();
            let application = pod.application(2.0);
            let hook = texts(&pod.container["lifecycle"]["preStop"]["exec"]["command"]);
            let mut hook = pod.inside(&hook).spawn().unwrap();
            application.end();
            assert!(
                hook.try_wait().unwrap().is_none(),
                "the hook ended before the application"
            );
            assert!(hook.wait().unwrap().success());
            pod.end_and_count();
        },
    );
}

/// Says in the inner process that it is in its namespaces.
const INNER: &str = "FLAGTAP_TEST_IN_A_POD";

/// Runs `test` in namespaces of its own: by running the test with this name once more, below `unshare`.
fn in_a_pod(label: &str, name: &str, test: impl FnOnce()) {
    if std::env::var_os(INNER).is_some() {
        return test();
    }
    if tools::find(label, "python-sdk/bin/python").is_none() {
        return;
    }
    let unshare = ["--net", "--mount", "--propagation", "private"];
    let possible = Command::new("unshare")
        .args(unshare)
        .args(["ip", "link", "set", "lo", "up"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        tools::skip(label, "namespaces need root, and the commands unshare and ip");
        return;
    }
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([&format!("sidecar::{name}"), "--exact", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// A pod of the example chart: its spec, flagtap's container in it, and the process that this is.
struct Pod {
    spec: Value,
    container: Value,
    folder: TempDir,
    flagtap: Child,
    upstream: Upstream,
}

impl Pod {
    fn start(case: &str) -> Self {
        let text = fs::read_to_string(fixture(&format!("helm/golden/{case}.yaml"))).unwrap();
        let objects: Vec<Value> = text
            .split("\n---\n")
            .map(|each| serde_saphyr::from_str(each).unwrap())
            .collect();
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let spec = of("Deployment")["spec"]["template"]["spec"].clone();
        let lists = ["initContainers", "containers"].map(|list| spec[list].as_array().cloned().unwrap_or_default());
        let container = lists
            .concat()
            .into_iter()
            .find(|each| each["name"] == "flagtap")
            .unwrap();

        let upstream = Upstream::accepting();
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        // What a kubelet makes of the pod's volumes.
        for (name, mode) in [
            ("flagtap-config", 0o755),
            ("flagtap-secrets", 0o755),
            ("flagtap-data", 0o777),
            ("root", 0o755),
        ] {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        let secret = BTreeMap::from([
            ("LD_SDK_KEY", SDK_KEY.to_owned()),
            ("UPSTREAM_URL", format!("http://{}", upstream.address())),
        ]);
        for (name, value) in &secret {
            fs::write(folder.path().join("flagtap-secrets").join(name), value).unwrap();
        }
        let config = of("ConfigMap")["data"]["config.yaml"].as_str().unwrap();
        fs::write(folder.path().join("flagtap-config/config.yaml"), config).unwrap();
        make_root(folder.path(), &container);

        let log = File::create(folder.path().join("log")).unwrap();
        let arguments = [vec!["/flagtap".to_owned()], texts(&container["args"])].concat();
        let mut command = inside(folder.path(), &container, &secret, &arguments);
        let flagtap = command.stderr(log).spawn().unwrap();
        let pod = Self {
            spec,
            container,
            folder,
            flagtap,
            upstream,
        };
        let probe = &pod.container["startupProbe"]["httpGet"];
        eventually("the startup probe to succeed", || {
            let head = request("GET", probe["path"].as_str().unwrap(), &[], b"");
            let mut connection = Connection::try_open(pod.port(&probe["port"])).ok()?;
            (connection.exchange(&head).ok()?.status == 200).then_some(())
        });
        pod
    }

    /// Returns the address of a port that has this name.
    fn port(&self, name: &Value) -> std::net::SocketAddr {
        let ports = self.container["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == *name).unwrap();
        let number = u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap();
        std::net::SocketAddr::from(([127, 0, 0, 1], number))
    }

    /// Returns what runs a command in flagtap's container.
    fn inside(&self, arguments: &[String]) -> Command {
        inside(self.folder.path(), &self.container, &BTreeMap::new(), arguments)
    }

    /// Asserts that the process has no more rights than the container gives it.
    fn assert_confined(&self) {
        let security = &self.container["securityContext"];
        let process = fs::read_to_string(format!("/proc/{}/status", self.flagtap.id())).unwrap();
        let line = |name: &str| process.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let four = |id: &Value| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t");
        assert_eq!(line("Uid:"), format!("Uid:\t{}", four(&security["runAsUser"])));
        assert_eq!(line("Gid:"), format!("Gid:\t{}", four(&security["runAsGroup"])));
        assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
        assert_eq!(line("CapBnd:"), "CapBnd:\t0000000000000000");
        assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
        let touch = |path: &str| {
            self.inside(&["/usr/bin/touch".to_owned(), path.to_owned()])
                .stderr(Stdio::null())
                .status()
        };
        for path in ["/x", "/etc/flagtap/x", "/run/secrets/flagtap/x", "/usr/x"] {
            assert!(!touch(path).unwrap().success(), "{path} can be written");
        }
        assert!(touch("/data/x").unwrap().success());
    }

    /// Starts an application with a real SDK, which knows its events URI as the pod gives it.
    fn application(&self, delay: f64) -> Application {
        let containers = self.spec["containers"].as_array().unwrap();
        let application = containers.iter().find(|each| each["name"] == "application").unwrap();
        let variables = application["env"].as_array().unwrap();
        let events = variables.iter().find(|each| each["name"] == "LD_EVENTS_URI").unwrap()["value"].as_str();
        let mut child = Command::new(tools::find("sidecar", "python-sdk/bin/python").unwrap())
            .arg(fixture("sdks/python/ends_on_term.py"))
            .args([events.unwrap(), SDK_KEY, &delay.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "running\n");
        Application(child)
    }

    /// Sends TERM to flagtap and compares what the destination has with what the application sent.
    fn end_and_count(mut self) {
        let grace = self.spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        let told = Instant::now();
        terminate(&self.flagtap);
        let status = self.flagtap.wait().unwrap();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert!(status.success() && !log.contains("\"ERROR\""), "{status}: {log}");
        assert!(told.elapsed() < Duration::from_secs(grace), "{:?}", told.elapsed());
        let lines = read_lines(&self.folder.path().join("flagtap-data/export"));
        let custom = lines
            .iter()
            .map(|line| event(line))
            .filter(|event| event["kind"] == "custom");
        let mut keys: Vec<String> = custom.map(|event| event["key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        assert_eq!(keys, ["first", "last", "second"], "{log}");
        assert!(self.upstream.take().len() >= 2);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.flagtap.kill();
        let _ = self.flagtap.wait();
    }
}

struct Application(Child);

impl Application {
    /// Sends TERM and waits for the end.
    fn end(mut self) {
        terminate(&self.0);
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn terminate(child: &Child) {
    let sent = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// Makes the container's file system below `folder/root`: read-only but for what its mounts leave writable. It ends with the
/// mount namespace.
fn make_root(folder: &Path, container: &Value) {
    let root = folder.join("root");
    mount(&["-t", "tmpfs", "tmpfs"], &root);
    fs::copy(env!("CARGO_BIN_EXE_flagtap"), root.join("flagtap")).unwrap();
    fs::create_dir(root.join("usr")).unwrap();
    mount(&["--bind", "/usr"], &root.join("usr"));
    mount(&["-o", "remount,bind,ro"], &root.join("usr"));
    for link in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).unwrap();
    }
    for volume in container["volumeMounts"].as_array().unwrap() {
        let source = folder.join(volume["name"].as_str().unwrap());
        let point: PathBuf = root.join(volume["mountPath"].as_str().unwrap().trim_start_matches('/'));
        fs::create_dir_all(&point).unwrap();
        mount(&["--bind", source.to_str().unwrap()], &point);
        if volume["readOnly"] == true {
            mount(&["-o", "remount,bind,ro"], &point);
        }
    }
    if container["securityContext"]["readOnlyRootFilesystem"] == true {
        mount(&["-o", "remount,ro"], &root);
    }
}

fn mount(arguments: &[&str], point: &Path) {
    let output = Command::new("mount").args(arguments).arg(point).output().unwrap();
    assert!(
        output.status.success(),
        "{point:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns what runs a command in the container: in its file system, with its environment and nothing else of it, as its user.
fn inside(folder: &Path, container: &Value, secret: &BTreeMap<&str, String>, arguments: &[String]) -> Command {
    let security = &container["securityContext"];
    let mut command = Command::new("chroot");
    command.arg(folder.join("root")).arg("/usr/bin/setpriv");
    command.arg(format!("--reuid={}", security["runAsUser"]));
    command.arg(format!("--regid={}", security["runAsGroup"]));
    command.arg("--clear-groups");
    if security["allowPrivilegeEscalation"] == false {
        command.arg("--no-new-privs");
    }
    if security["capabilities"]["drop"][0] == "ALL" {
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    // The image's working directory.
    command.args(["/usr/bin/env", "--chdir=/data", "-i"]);
    for variable in container["env"].as_array().unwrap() {
        let [name, value] = ["name", "value"].map(|key| variable[key].as_str().unwrap());
        command.arg(format!("{name}={value}"));
    }
    command.args(secret.iter().map(|(name, value)| format!("{name}={value}")));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command
}
