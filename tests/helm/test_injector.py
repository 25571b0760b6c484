"""The injector: the binary takes the arguments and the template that the chart gives it."""
import pathlib
import re
import subprocess
import tempfile
import unittest

import yaml

import support
from chart import Chart
from support import CHART, FLAGTAP, HELM, ROOT


def setUpModule():
    support.need(*HELM.values(), FLAGTAP)


class Injector(unittest.TestCase):
    # 2 would be wrong arguments, 64 a template that cannot be used; there is no certificate and no cluster here.
    NO_CERTIFICATE = 1

    def start(self, objects, template=None):
        """Runs the injector as its Deployment does, but for where the template lies; returns exit code and log."""
        deployment = next(each for each in objects if each["kind"] == "Deployment" and each["metadata"]["name"].endswith("injector"))
        config = next(each for each in objects if each["kind"] == "ConfigMap" and "sidecar.yaml" in each["data"])
        arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "sidecar.yaml")
            file.write_text(template or config["data"]["sidecar.yaml"])
            arguments = [each.replace("/etc/flagtap/sidecar.yaml", str(file)) for each in arguments]
            # Any free port of the address.
            arguments = [re.sub(r"^(--listen|--telemetry)=(.*):\d+$", r"\1=\2:0", each) for each in arguments]
            done = subprocess.run([FLAGTAP, *arguments], capture_output=True, text=True, timeout=30, env={})
        return done.returncode, done.stderr

    def test_the_binary_takes_every_template_and_its_arguments(self):
        tried = 0
        for values in sorted((CHART / "ci").glob("injector*-values.yaml")):
            with self.subTest(values.name):
                code, log = self.start(support.objects(CHART, values))
                self.assertEqual(code, self.NO_CERTIFICATE, log)
                self.assertTrue("does not run in a cluster" in log or "TLS file /run/secrets/tls/tls.crt" in log, log)
                tried += 1
        self.assertEqual(tried, 3)

    def test_what_bodies_take_is_said_where_the_memory_is_given(self):
        shift, = re.findall(r"const MOST_BODIES: usize = (\d+) << 20;", (ROOT / "src/injector/mod.rs").read_text())
        explained = {value.path: value.meaning for value in Chart().leaves()}
        self.assertIn(f"{shift} MiB of bodies", explained["injector.resources.limits.memory"])

    def test_another_template_would_be_noticed(self):
        code, log = self.start(support.objects(CHART, CHART / "ci/injector-values.yaml"), "url: http://127.0.0.1:8030\n")
        self.assertEqual(code, 64, log)
        self.assertIn("container", log)

    def webhook(self, case, *given):
        text = support.helm("4", "template", CHART, "--values", CHART / f"ci/{case}-values.yaml", *given)
        return next(each for each in support.read_all(text) if each["kind"] == "MutatingWebhookConfiguration")["webhooks"][0]

    def test_only_pods_that_mention_it_are_looked_at(self):
        conditions = self.webhook("injector", "--kube-version", "1.30.0")["matchConditions"]
        # The few words of CEL that the condition has, in Python.
        words = {"&&": "and", "||": "or"}
        text = re.sub(r"has\(object\.metadata\.(\w+)\)", r"('\1' in metadata)", conditions[0]["expression"])
        text = re.sub(r"object\.metadata\.(\w+)", r"metadata['\1']", text)
        python = " ".join(words.get(word, word) for word in text.split())
        inject = {"flagtap.dev/inject": "true"}
        for metadata, called in [({}, False), ({"labels": {"a": "b"}, "annotations": {"c": "d"}}, False),
                                 ({"labels": inject}, True), ({"annotations": inject}, True),
                                 ({"labels": {"a": "b"}, "annotations": inject}, True)]:
            with self.subTest(metadata):
                self.assertEqual(eval(python, {"metadata": metadata}), called)
        # They are no part of the last release in which they were not for everybody.
        self.assertNotIn("matchConditions", self.webhook("injector", "--kube-version", "1.29.9"))

    def test_the_selector_of_pods_leaves_the_injectors_own_out(self):
        own = {"key": "flagtap.dev/inject", "operator": "NotIn", "values": ["false"]}
        self.assertEqual(self.webhook("injector")["objectSelector"], {"matchExpressions": [own]})
        given = {"key": "tier", "operator": "In", "values": ["backend"]}
        self.assertEqual(self.webhook("injector-cert-manager")["objectSelector"],
                         {"matchLabels": {"sdk": "server"}, "matchExpressions": [own, given]})

    def test_a_webhook_that_would_keep_every_pod_from_starting_is_refused(self):
        fail = 'injector.failurePolicy="Fail"'
        self.assertIn("leave it at Ignore", support.refused(fail, values="injector", kubernetes="1.29.0"))
        self.webhook("injector", "--set-json", fail, "--kube-version", "1.30.0")
        self.webhook("injector-cert-manager", "--set-json", fail, "--kube-version", "1.29.0")

    def test_the_page_shows_the_webhook_of_the_chart(self):
        page = (ROOT / "docs/injector.md").read_text()
        block = next(each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "MutatingWebhookConfiguration" in each)
        theirs, ours = yaml.safe_load(block)["webhooks"][0], self.webhook("injector")
        # The namespaces are an example.
        for each in theirs, ours:
            each["clientConfig"]["service"].pop("namespace")
            del each["namespaceSelector"]
        self.assertEqual(theirs, ours)

    def test_the_template_of_the_page_is_taken_and_its_sidecar_starts(self):
        page = (ROOT / "docs/injector.md").read_text().split("\n## The template\n")[1]
        block = re.search(r"```yaml\n(.*?)```", page, re.DOTALL).group(1)
        objects = support.objects(CHART, CHART / "ci/injector-values.yaml")
        self.assertEqual(self.start(objects, block)[0], self.NO_CERTIFICATE)
        chart = next(each for each in objects if each["kind"] == "ConfigMap" and "sidecar.yaml" in each["data"])
        ours, theirs = yaml.safe_load(block), yaml.safe_load(chart["data"]["sidecar.yaml"])
        data = [next(each for each in template["volumes"] if each["name"] == "flagtap-data") for template in (ours, theirs)]
        self.assertEqual(*data)
        self.assertEqual(*[(template["container"]["args"], template["container"]["env"]) for template in (ours, theirs)])
        text = ours["annotations"]["flagtap.dev/config"]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            done = subprocess.run([FLAGTAP, "check", file.name], env={"LD_SDK_KEY": "sdk-0"}, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        configs = [yaml.safe_load(template["annotations"]["flagtap.dev/config"]) for template in (ours, theirs)]
        self.assertEqual(*[(config["listen"], config["queue"], config["shutdown"]) for config in configs])

    def cluster_wide(self, release, namespace):
        """Returns the names of the cluster-wide objects of a release."""
        values = ("--values", CHART / "ci/injector-values.yaml", "--show-only", "templates/injector.yaml")
        text = support.run(HELM["4"], "template", release, CHART, "--namespace", namespace, *values)
        kinds = ("MutatingWebhookConfiguration", "ClusterRole", "ClusterRoleBinding")
        found = [each["metadata"]["name"] for each in support.read_all(text) if each["kind"] in kinds]
        self.assertEqual(len(found), 3)
        return set(found)

    def test_releases_of_one_name_do_not_share_what_is_cluster_wide(self):
        # As long as Kubernetes lets them be, different at the end alone; and two that read the same when put together.
        releases = [("r" * 50, "n" * 62 + end) for end in "ab"] + [("flagtap", "a-injector-b"), ("flagtap-injector-a", "b")]
        names = [self.cluster_wide(*each) for each in releases]
        self.assertEqual([len(each) for each in names], [1] * 4)
        self.assertEqual(len(set.union(*names)), 4)
        for name in set.union(*names):
            self.assertRegex(name, "^[a-z0-9][-a-z0-9]{,61}[a-z0-9]$")

    def test_what_the_injector_may_do_is_about_its_own_objects(self):
        objects = support.objects(CHART, CHART / "ci/injector-values.yaml")
        rules = [rule for each in objects if each["kind"] in ("Role", "ClusterRole") for rule in each["rules"]]
        names = {name for rule in rules for name in rule["resourceNames"]}
        self.assertEqual(names, {"flagtap-injector-tls", self.cluster_wide("flagtap", "events").pop()})
        self.assertEqual({verb for rule in rules for verb in rule["verbs"]}, {"get", "update", "patch"})
        others = support.objects(CHART, CHART / "ci/injector-cert-manager-values.yaml")
        self.assertFalse([each for each in others if each["kind"] in ("Role", "ClusterRole")])


if __name__ == "__main__":
    unittest.main()
