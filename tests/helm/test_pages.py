"""docs/kubernetes.md: what it shows works, and is what the chart renders. Commands for pods on all pages."""
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib
import unittest

import kubernetes_validate
import yaml

import support
from support import CHART, EXAMPLE, FLAGTAP, HELM, ROOT, flagtap_containers
from test_pods import violations
from test_renders import VERSIONS


def setUpModule():
    support.need(*HELM.values(), FLAGTAP)


def blocks():
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)


class Page(unittest.TestCase):
    def written_out(self):
        """Returns the objects of the section for those without Helm."""
        block = next(each for each in blocks() if each.startswith("apiVersion"))
        return {each["kind"]: each for each in support.read_all(block)}

    def test_the_sidecar_without_helm_is_valid(self):
        objects = self.written_out()
        for each in objects.values():
            for version in VERSIONS:
                with self.subTest(kind=each["kind"], kubernetes=version):
                    kubernetes_validate.validate(each, version, strict=True)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(objects["ConfigMap"]["data"]["config.yaml"])
            file.flush()
            done = subprocess.run([FLAGTAP, "check", file.name], env={"LD_SDK_KEY": "sdk-0"}, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_the_sidecar_without_helm_is_that_of_the_chart(self):
        ours = flagtap_containers(self.written_out()["Deployment"]["spec"]["template"]["spec"])[0]
        rendered = support.objects(EXAMPLE, EXAMPLE / "ci/native-values.yaml")
        pod = next(each for each in rendered if each["kind"] == "Deployment")["spec"]["template"]["spec"]
        theirs = flagtap_containers(pod)[0]
        # The Secret's name is the application's, and its files are not shown.
        theirs["volumeMounts"] = [each for each in theirs["volumeMounts"] if each["name"] != "flagtap-secrets"]
        theirs["envFrom"] = [{"secretRef": {"name": "flagtap"}}]
        del theirs["imagePullPolicy"]
        self.assertEqual(ours, theirs)
        config = yaml.safe_load(self.written_out()["ConfigMap"]["data"]["config.yaml"])
        chart = yaml.safe_load(dict(support.configurations())["application-native"])
        # What the chart says although it is the default.
        self.assertEqual(config | {"telemetry": "0.0.0.0:8031"}, chart)
        self.assertEqual(self.written_out()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
                         pod["terminationGracePeriodSeconds"])

    def parent(self, template, *given):
        """Renders a template of a chart that depends on flagtap's, which it knows as $flagtap."""
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        shutil.copytree(CHART, folder / "charts/flagtap")
        dependency = {"name": "flagtap", "version": yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]}
        chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
        (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
        own = yaml.safe_load((EXAMPLE / "values.yaml").read_text())["flagtap"]
        (folder / "values.yaml").write_text(yaml.safe_dump({"flagtap": own}))
        (folder / "templates").mkdir()
        (folder / "templates/parent.yaml").write_text("{{- $flagtap := .Subcharts.flagtap }}\n" + template)
        return support.read_all(support.helm("4", "template", folder, *given))[0]

    def test_the_sidecar_takes_ten_lines_and_a_changed_configuration_rolls_its_pod(self):
        block = next(each for each in blocks() if "include" in each)
        changed = ("--set-json", 'flagtap.config.queue={"max_age":"1d"}')
        pods = [self.parent("apiVersion: v1\nkind: Pod\n" + block, *given) for given in ((), changed)]
        for pod in pods:
            kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
            self.assertEqual([each["restartPolicy"] for each in flagtap_containers(pod["spec"])], ["Always"])
        self.assertNotEqual(*[pod["metadata"]["annotations"] for pod in pods])

    def test_annotations_of_the_sidecar_go_below_others_and_stand_alone(self):
        pod = 'apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:%s{{- include "flagtap.sidecar.annotations" $flagtap | nindent 4 }}\n'
        for change, ours in (("restart", {"flagtap.dev/config-checksum"}), ("reload", set())):
            for above, theirs in (("", set()), ("\n    team: payments\n", {"team"})):
                with self.subTest(change, above=above):
                    found = self.parent(pod % above, "--set", f"flagtap.configChange={change}")["metadata"]["annotations"]
                    self.assertEqual(set(found or {}), theirs | ours)

    def test_the_sidecar_takes_ten_lines_and_they_are_those_of_the_example(self):
        block = next(each for each in blocks() if "include" in each)
        self.assertLessEqual(len(block.splitlines()), 10)
        templates = re.compile(r"include \"(flagtap\.sidecar\.[^\"]*)\"")
        used = "".join(path.read_text() for path in sorted((EXAMPLE / "templates").glob("*.yaml")))
        # The ConfigMap is in a file of its own, and in the sentence below.
        self.assertEqual(set(templates.findall(block)) | {"flagtap.sidecar.config"}, set(templates.findall(used)))

    def test_the_chart_runs_the_version_that_it_lies_beside(self):
        with (ROOT / "Cargo.toml").open("rb") as file:
            version = tomllib.load(file)["package"]["version"]
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual(chart["appVersion"], version)
        self.assertIn(f"image: ghcr.io/flagtap/flagtap:{version}\n", (ROOT / "docs/kubernetes.md").read_text())
        example = yaml.safe_load((EXAMPLE / "Chart.yaml").read_text())
        self.assertEqual(example["dependencies"][0]["version"], chart["version"])

    def test_the_image_has_the_labels_of_the_page(self):
        labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", (ROOT / "Dockerfile").read_text()))
        section = (ROOT / "docs/release.md").read_text().split("| label | what |")[1].split("\n\n")[0]
        rows = [row.split("|")[1] for row in section.strip().splitlines()[1:]]
        self.assertEqual({name for row in rows for name in re.findall(r"`(\w+)`", row)}, labels)

    def test_the_dependency_can_be_switched_off(self):
        dependency = next(yaml.safe_load(each) for each in blocks() if each.startswith("dependencies"))["dependencies"][0]
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((dependency["name"], dependency["version"]), (chart["name"], chart["version"]))
        with tempfile.TemporaryDirectory() as folder:
            parent = pathlib.Path(folder)
            shutil.copytree(CHART, parent / "charts/flagtap")
            del dependency["repository"]
            chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]}
            (parent / "Chart.yaml").write_text(yaml.safe_dump(chart))
            config = {"environments": [{"name": "a", "destinations": ["b"]}]}
            (parent / "values.yaml").write_text(yaml.safe_dump({"flagtap": {"mode": "none", "config": config}}))
            (parent / "templates").mkdir()
            template = '{{ with .Subcharts.flagtap }}{{ include "flagtap.sidecar.config" . }}{{ end }}'
            (parent / "templates/flagtap.yaml").write_text(template)
            for enabled, kinds in (("true", ["ConfigMap"]), ("false", [])):
                for line in HELM:
                    text = support.helm(line, "template", parent, "--set", f"flagtap.enabled={enabled}")
                    with self.subTest(enabled, helm=line):
                        self.assertEqual([each["kind"] for each in support.read_all(text)], kinds)

    def test_every_piece_of_values_is_taken(self):
        pieces = [yaml.safe_load(each) for each in blocks() if "include" not in each and not each.startswith("apiVersion")]
        values = [each for each in pieces if set(each) <= set(yaml.safe_load((CHART / "values.yaml").read_text()))]
        # Not values: the dependency, the injector's annotations, a piece of `config`, the application's security context.
        self.assertEqual(len(pieces) - len(values), 4)
        self.assertGreaterEqual(len(values), 3)
        for each in values:
            with self.subTest(each), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                yaml.safe_dump(each, file)
                file.flush()
                text = support.helm("4", "template", CHART, "--values", CHART / "ci/statefulset-values.yaml", "--values", file.name)
                for rendered in support.read_all(text):
                    kubernetes_validate.validate(rendered, VERSIONS[0], strict=True)

    def section(self, title):
        return (ROOT / "docs/kubernetes.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]

    def pods_with(self, text):
        """Returns (case, pod spec, flagtap's containers) of every pod of the matrix, rendered with further values."""
        values = yaml.safe_load(text)
        for case, chart, file in support.cases():
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as more:
                yaml.safe_dump({"flagtap": values} if chart == EXAMPLE else values, more)
                more.flush()
                rendered = support.read_all(support.helm("4", "template", chart, "--values", file, "--values", more.name))
            for each in rendered:
                if each["kind"] in ("StatefulSet", "Deployment", "Job"):
                    spec = each["spec"]["template"]["spec"]
                    # All are flagtap's where the pod is the chart's own.
                    yield case, spec, flagtap_containers(spec) or spec["containers"]
                elif "sidecar.yaml" in each.get("data", {}):
                    yield case, {}, [yaml.safe_load(each["data"]["sidecar.yaml"])["container"]]

    def test_openshift_chooses_users_and_groups_with_the_values_of_the_page(self):
        (block,) = re.findall(r"```yaml\n(.*?)```", self.section("OpenShift"), re.DOTALL)
        chosen = {"runAsUser", "runAsGroup", "fsGroup"}
        seen = 0
        for case, spec, containers in self.pods_with(block):
            contexts = [each["securityContext"] for each in containers]
            if not case.startswith("application"):
                contexts.append(spec.get("securityContext", {}))
            with self.subTest(case):
                for each in contexts:
                    self.assertEqual(chosen & set(each), set())
                self.assertEqual(violations({"containers": containers}), [])
                seen += 1
        self.assertGreater(seen, 15)
        for _, _, containers in self.pods_with("{}"):
            self.assertIn("runAsUser", containers[0]["securityContext"])

    def test_the_charts_own_pods_stay_on_linux_with_the_values_of_the_page(self):
        (block,) = re.findall(r"```yaml\n(.*?)```", self.section("Windows nodes"), re.DOTALL)
        own = [spec for case, spec, _ in self.pods_with(block) if spec and not case.startswith("application")]
        self.assertGreater(len(own), 8)
        for spec in own:
            self.assertEqual(spec["nodeSelector"]["kubernetes.io/os"], "linux")

    def test_commands_within_a_pod_are_of_an_image_without_a_shell(self):
        pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        commands = [line for path in pages for line in path.read_text().splitlines() if re.search(r"\bkubectl\b.* exec\b.* -- ", line)]
        self.assertGreater(len(commands), 6)
        for line in commands:
            with self.subTest(line):
                # The pod for work by hand has one.
                self.assertRegex(line, r" exec .*-- /flagtap | exec -it by-hand -- sh")

    def test_the_pod_for_work_by_hand_is_valid_and_restricted(self):
        (pod,) = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)]
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)
        self.assertEqual(violations(pod["spec"]), [])
        gateway = support.objects(CHART, CHART / "ci/statefulset-values.yaml")
        stateful = next(each["spec"] for each in gateway if each["kind"] == "StatefulSet")
        user = ("runAsUser", "runAsGroup", "fsGroup")
        contexts = [spec["securityContext"] for spec in (pod["spec"], stateful["template"]["spec"])]
        self.assertEqual(*[[context[key] for key in user] for context in contexts])
        claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        self.assertRegex(claim, f"^{stateful['volumeClaimTemplates'][0]['metadata']['name']}-flagtap-[0-9]+$")

    def test_the_readme_of_the_chart_shows_values_that_are_taken(self):
        block = re.search(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL).group(1)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(block)
            file.flush()
            for line in HELM:
                support.helm(line, "lint", CHART, "--strict", "--values", file.name)


if __name__ == "__main__":
    unittest.main()
