"""Every template, for the whole matrix of values: as it was, valid for Kubernetes, the same with either line of Helm."""
import pathlib
import shutil
import tempfile
import unittest

import jsonschema
import kubernetes_validate
import yaml

import support
from support import CHART, FLAGTAP, HELM, HERE, UPDATE, cases, helm, objects, rendered

# Every release whose schemas kubernetes-validate has. Native sidecars are on from 1.29 on.
VERSIONS = ["1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]

# What is no part of Kubernetes: the fields that are used, written from the projects' own API pages.
CUSTOM = {
    kind: schema
    for kind, schema in yaml.safe_load((HERE / "custom-resources.yaml").read_text()).items()
    if kind != "definitions"
}


def setUpModule():
    support.need(*HELM.values(), FLAGTAP)


class Renders(unittest.TestCase):
    maxDiff = None

    def test_every_template_renders_as_it_did(self):
        golden = HERE / "golden"
        for case, chart, values in cases():
            with self.subTest(case):
                path = golden / f"{case}.yaml"
                if UPDATE:
                    path.write_text(rendered(chart, values))
                self.assertEqual(path.read_text(), rendered(chart, values), "run `make golden` and read the difference")
        names = {f"{case}.yaml" for case, _, _ in cases()}
        self.assertEqual({path.name for path in golden.iterdir()}, names, "no golden file is without its values")

    def test_both_lines_of_helm_render_the_same(self):
        for case, chart, values in cases():
            with self.subTest(case):
                both = [sorted(map(support.as_json, objects(chart, values, line))) for line in HELM]
                self.assertEqual(both[0], both[1])

    def test_every_template_is_in_the_matrix(self):
        seen = "".join(rendered(chart, values) for _, chart, values in cases())
        for path in sorted((CHART / "templates").glob("[!_]*.yaml")):
            self.assertIn(f"# Source: flagtap/templates/{path.name}", seen)

    def test_both_lines_of_helm_find_nothing_to_complain_of(self):
        for line in HELM:
            for case, chart, values in cases():
                with self.subTest(case, helm=line):
                    helm(line, "lint", chart, "--strict", "--values", values)

    def test_every_object_is_valid_in_every_release_of_kubernetes(self):
        kinds = set()
        for case, chart, values in cases():
            for each in objects(chart, values):
                kinds.add(each["kind"])
                if each["kind"] in CUSTOM:
                    continue
                for version in VERSIONS:
                    with self.subTest(case, kind=each["kind"], kubernetes=version):
                        kubernetes_validate.validate(each, version, strict=True)
        self.assertGreater(len(kinds - set(CUSTOM)), 12)

    def test_an_object_with_a_wrong_field_is_noticed(self):
        each = next(each for each in objects(CHART, CHART / "ci/statefulset-values.yaml") if each["kind"] == "StatefulSet")
        each["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(each, "1.29", strict=True)

    def test_every_custom_resource_has_the_fields_of_its_project(self):
        kinds = set()
        for case, chart, values in cases():
            for each in objects(chart, values):
                if each["kind"] in CUSTOM:
                    kinds.add(each["kind"])
                    with self.subTest(case, kind=each["kind"]):
                        jsonschema.Draft7Validator(CUSTOM[each["kind"]]).validate(each)
        self.assertEqual(kinds, set(CUSTOM))

    def test_an_injected_pod_is_valid(self):
        for case, name, spec, metadata in support.pods():
            if name != "injected":
                continue
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **metadata}, "spec": spec}
            for version in VERSIONS:
                with self.subTest(case, kubernetes=version):
                    kubernetes_validate.validate(pod, version, strict=True)

    def test_what_is_lost_without_volumes_is_said_at_the_end(self):
        # `helm template` leaves NOTES.txt out, and `helm install` wants a cluster.
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        copy = shutil.copytree(CHART, folder / "flagtap")
        (copy / "templates/NOTES.txt").rename(copy / "notes")
        (copy / "templates/notes.yaml").write_text('kind: Notes\ntext: |\n{{ tpl (.Files.Get "notes") . | indent 2 }}')

        def notes(case, *given):
            values = CHART / f"ci/{case}-values.yaml"
            return helm("4", "template", copy, "--show-only", "templates/notes.yaml", "--values", values, *given)

        self.assertIn("LOST when its pod is deleted", notes("deployment"))
        self.assertNotIn("LOST", notes("statefulset"))
        self.assertIn("http://flagtap.events.svc:8030", notes("statefulset"))
        self.assertIn("https://flagtap.events.svc:8030", notes("deployment"))
        self.assertIn("leaves its volume", notes("everything"))
        self.assertIn("flagtap.dev/inject", notes("injector"))
        self.assertNotIn("WARNING", notes("injector", "--set-json", 'sidecar.dataVolume={"emptyDir":{}}'))
        self.assertIn("without an fsGroup", notes("injector-self-signed"))
        self.assertIn("the namespace events only", notes("drain", "--set", "injector.enabled=true"))

        # What is opened to the outside and closed again by the policy.
        policy, ingress = ("--set", "networkPolicy.enabled=true"), ("--set", "ingress.enabled=true,ingress.hosts={a.example}")
        route = ("--set", "httpRoute.enabled=true,httpRoute.parentRefs[0].name=a")
        outside = ("--set-json", 'networkPolicy.clients=[{"podSelector":{}},{"namespaceSelector":{}}]')
        for given, said in [
            (policy, None), (ingress, None), (policy + outside + ingress, None), (policy + ingress, "(ingress)"),
            (policy + route + ("--set", "service.type=LoadBalancer"), "(httpRoute, service.type LoadBalancer)"),
            (policy + ingress + ("--set-json", "networkPolicy.clients=[]"), "(ingress)"),
        ]:
            with self.subTest(given):
                text = notes("statefulset", *given)
                self.assertIn(said, text) if said else self.assertNotIn("WARNING", text)
        self.assertNotIn("shut out", notes("everything"))
        # Sidecars are not under the policy.
        notes("statefulset", *policy, "--set", "metrics.podMonitor=true")


if __name__ == "__main__":
    unittest.main()
