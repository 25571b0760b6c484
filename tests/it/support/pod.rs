//! Containers as the chart renders them, run as a kubelet would: their arguments, environment, configuration, user, paths.
//!
//! `tests/helm/golden` is what the chart renders; `tests/helm` compares. Each pod gets a network namespace of its own, because
//! the ports are those of the chart, and a mount namespace for its file system. The binary is the one of the other tests, so
//! `/usr` and the libraries are there too, read-only; the image's own file system has a test of its own.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::recording::fixture;
use super::{Connection, eventually, request, tools};

/// Returns the objects of a golden render.
pub(crate) fn golden(case: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixture(&format!("helm/golden/{case}.yaml"))).unwrap();
    text.split("\n---\n")
        .map(|each| serde_saphyr::from_str(each).unwrap())
        .collect()
}

/// Returns the one of `objects` with this kind, the first of several.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

/// Returns the address of a container's port, as the pod reaches itself.
pub(crate) fn port(container: &Value, name: &Value) -> std::net::SocketAddr {
    let ports = container["ports"].as_array().unwrap();
    let port = ports.iter().find(|port| port["name"] == *name).unwrap();
    let number = u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap();
    std::net::SocketAddr::from(([127, 0, 0, 1], number))
}

/// Waits until the container's startup probe succeeds.
pub(crate) fn started(container: &Value) {
    let probe = &container["startupProbe"]["httpGet"];
    eventually("the startup probe to succeed", || {
        let head = request("GET", probe["path"].as_str().unwrap(), &[], b"");
        let mut connection = Connection::try_open(port(container, &probe["port"])).ok()?;
        (connection.exchange(&head).ok()?.status == 200).then_some(())
    });
}

/// Says in the inner process that it is in its namespaces.
const INNER: &str = "FLAGTAP_TEST_IN_A_POD";

/// Runs `test` in namespaces of its own: by running the test with this full name once more, below `unshare`.
pub(crate) fn in_a_pod(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INNER).is_some() {
        return test();
    }
    let unshare = ["--net", "--mount", "--propagation", "private"];
    let possible = Command::new("unshare")
        .args(unshare)
        .args(["ip", "link", "set", "lo", "up"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        tools::skip(name, "namespaces need root, and the commands unshare and ip");
        return;
    }
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Returns a list of texts.
pub(crate) fn texts(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// Makes the pod's volumes as a kubelet does, below `folder`: secrets and configuration to be read, data to be written by anybody.
pub(crate) fn make_volumes(folder: &Path, config: &str, secret: &BTreeMap<&str, String>) {
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [
        ("flagtap-config", 0o755),
        ("flagtap-secrets", 0o755),
        ("flagtap-data", 0o777),
    ] {
        let path = folder.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    for (name, value) in secret {
        fs::write(folder.join("flagtap-secrets").join(name), value).unwrap();
    }
    fs::write(folder.join("flagtap-config/config.yaml"), config).unwrap();
}

/// Makes the container's file system at `root`: read-only but for what its mounts leave writable. It ends with the mount
/// namespace.
pub(crate) fn make_root(folder: &Path, root: &Path, container: &Value) {
    fs::create_dir(root).unwrap();
    mount(&["-t", "tmpfs", "tmpfs"], root);
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
        mount(&["-o", "remount,ro"], root);
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
pub(crate) fn inside(root: &Path, container: &Value, secret: &BTreeMap<&str, String>, arguments: &[String]) -> Command {
    let security = &container["securityContext"];
    let mut command = Command::new("chroot");
    command.arg(root).arg("/usr/bin/setpriv");
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
