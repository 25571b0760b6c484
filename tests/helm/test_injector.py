"""The injector: the binary takes the arguments and the template that the chart gives it."""
import pathlib
import subprocess
import tempfile
import unittest

import support
from support import CHART, FLAGTAP, HELM


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
            done = subprocess.run(
                [FLAGTAP, *arguments, "--listen", "127.0.0.1:0", "--telemetry", "127.0.0.1:0"],
                capture_output=True, text=True, timeout=30, env={})
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

    def test_another_template_would_be_noticed(self):
        code, log = self.start(support.objects(CHART, CHART / "ci/injector-values.yaml"), "url: http://127.0.0.1:8030\n")
        self.assertEqual(code, 64, log)
        self.assertIn("container", log)

    def test_what_the_injector_may_do_is_about_its_own_objects(self):
        objects = support.objects(CHART, CHART / "ci/injector-values.yaml")
        rules = [rule for each in objects if each["kind"] in ("Role", "ClusterRole") for rule in each["rules"]]
        names = {name for rule in rules for name in rule["resourceNames"]}
        self.assertEqual(names, {"flagtap-injector-tls", "flagtap-injector-events"})
        self.assertEqual({verb for rule in rules for verb in rule["verbs"]}, {"get", "update", "patch"})
        others = support.objects(CHART, CHART / "ci/injector-cert-manager-values.yaml")
        self.assertFalse([each for each in others if each["kind"] in ("Role", "ClusterRole")])


if __name__ == "__main__":
    unittest.main()
