"""What the tests of the chart share: the tools, the matrix of values, and rendering.

The matrix is every file of helm/flagtap/ci, rendered by flagtap's chart, and every file of helm/examples/application/ci,
rendered by the example. A file that lacks its tool does not pass: it is skipped and counted, or fails with
FLAGTAP_REQUIRE_TOOLS=1.
"""
import atexit
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/flagtap"
EXAMPLE = ROOT / "helm/examples/application"
HERE = ROOT / "tests/helm"
TOOLS = ROOT / ".tools"
HELM = {line: TOOLS / f"helm/helm-{line}" for line in ("3", "4")}
PROMTOOL = TOOLS / "promtool/promtool"
FLAGTAP = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug/flagtap"
UPDATE = "FLAGTAP_UPDATE_GOLDEN" in os.environ

sys.path.insert(0, str(ROOT / "scripts"))


def need(*tools):
    """Skips the file of tests that calls it, or fails it where nothing may be skipped."""
    for tool in tools:
        if not tool.exists():
            why = f"{tool.relative_to(ROOT)} is missing; run scripts/setup-tests.sh"
            if "FLAGTAP_REQUIRE_TOOLS" in os.environ:
                raise RuntimeError(why)
            raise unittest.SkipTest(why)


def cases():
    """Returns (name, chart, values file) of the whole matrix."""
    found = [(path.name.removesuffix("-values.yaml"), CHART, path) for path in sorted((CHART / "ci").glob("*.yaml"))]
    found += [
        ("application-" + path.name.removesuffix("-values.yaml"), EXAMPLE, path)
        for path in sorted((EXAMPLE / "ci").glob("*.yaml"))
    ]
    return found


@functools.cache
def example(line):
    """Returns a copy of the example with its dependency in it, as `helm dependency update` puts it there."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="flagtap-helm-"))
    # Not at the end of a file of tests: the next one uses it too.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(CHART, folder / "flagtap")
    shutil.copytree(EXAMPLE, folder / "examples/application")
    copy = folder / "examples/application"
    run(HELM[line], "dependency", "update", copy)
    return copy


def run(*command, check=True):
    """Returns what a command printed; its whole output is the message where it fails."""
    environment = {"HOME": tempfile.gettempdir(), "PATH": os.environ["PATH"], "TMPDIR": tempfile.gettempdir()}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout if check else done


def helm(line, verb, chart, *arguments, check=True):
    chart = example(line) if chart == EXAMPLE else chart
    name = [] if verb == "lint" else ["flagtap"]
    return run(HELM[line], verb, *name, chart, "--namespace", "events", *arguments, check=check)


def read_all(text):
    """Returns the documents of a YAML text; by libyaml, which is ten times as fast."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


@functools.cache
def rendered(chart, values, line="4"):
    return helm(line, "template", chart, "--values", values)


def objects(chart, values, line="4"):
    return read_all(rendered(chart, values, line))


def refused(*settings, values="statefulset", kubernetes="1.37.0"):
    """Returns what Helm says of settings that it must refuse."""
    file = CHART / f"ci/{values}-values.yaml"
    given = [word for setting in settings for word in ("--set-json", setting)]
    done = helm("4", "template", CHART, "--values", file, "--kube-version", kubernetes, *given, check=False)
    if done.returncode == 0:
        raise AssertionError(f"{settings} was taken")
    return done.stderr


def pods():
    """Returns (case, name, pod spec, metadata) of every pod that is rendered, and of one with the injector's sidecar."""
    for case, chart, values in cases():
        for each in objects(chart, values):
            if each["kind"] in ("StatefulSet", "Deployment", "Job"):
                template = each["spec"]["template"]
                yield case, f"{each['kind']}/{each['metadata']['name']}", template["spec"], template["metadata"]
            if each["kind"] == "ConfigMap" and "sidecar.yaml" in each["data"]:
                sidecar = yaml.safe_load(each["data"]["sidecar.yaml"])
                native = sidecar["container"].get("restartPolicy") == "Always"
                application = {
                    "name": "application", "image": "application:1",
                    "securityContext": {
                        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }
                spec = {
                    "initContainers": [sidecar["container"]] if native else [],
                    "containers": [application] if native else [application, sidecar["container"]],
                    "volumes": sidecar["volumes"],
                    "terminationGracePeriodSeconds": sidecar["terminationGracePeriodSeconds"],
                }
                yield case, "injected", spec, {"annotations": sidecar["annotations"]}


def flagtap_containers(spec):
    """Returns flagtap's containers of a pod that serve a queue."""
    containers = spec.get("initContainers", []) + spec["containers"]
    return [each for each in containers if each["name"] == "flagtap"]


def configurations():
    """Returns (case, text) of every config.yaml that is rendered."""
    for case, chart, values in cases():
        for each in objects(chart, values):
            if each["kind"] == "ConfigMap":
                if "config.yaml" in each["data"]:
                    yield case, each["data"]["config.yaml"]
                if "sidecar.yaml" in each["data"]:
                    yield case, yaml.safe_load(each["data"]["sidecar.yaml"])["annotations"]["flagtap.dev/config"]


def printed(*arguments):
    return subprocess.run([str(FLAGTAP), *arguments], check=True, capture_output=True, text=True).stdout


def metrics():
    """Returns the names of the inventory, histograms' series included."""
    names = set()
    for line in printed("metrics").splitlines():
        if line.startswith("| `flagtap_"):
            name, kind = line.split("|")[1].strip(" `"), line.split("|")[2].strip()
            names |= {f"{name}_{suffix}" for suffix in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def as_json(value):
    return json.dumps(value, sort_keys=True)
