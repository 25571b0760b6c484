"""Values: explained, tried, generated from, and refused where they are wrong."""
import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import jsonschema
import kubernetes_validate
import yaml

import support
from chart import Chart, printed_by
from support import CHART, EXAMPLE, FLAGTAP, HELM, ROOT, refused

CURRENT = "is not current: run `make chart`"

TLS = 'config.listen={"tls":{"certificate":"/etc/a.crt","key":"/etc/a.key"}}'


def setUpModule():
    support.need(*HELM.values(), FLAGTAP)


def found(values, path):
    """Returns the value at a path as a list of one, or an empty list."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return []
        values = values[key]
    return [values]


class Values(unittest.TestCase):
    def setUp(self):
        self.chart = Chart()

    def given(self):
        """Returns the values of every file of the matrix, as flagtap's chart gets them."""
        for _, chart, path in support.cases():
            values = yaml.safe_load(path.read_text()) or {}
            if chart == EXAMPLE:
                own = yaml.safe_load((EXAMPLE / "values.yaml").read_text())["flagtap"]
                yield {**own, **values.get("flagtap", {})}
            else:
                yield values

    def test_every_value_is_explained(self):
        for value in self.chart.leaves():
            with self.subTest(value.path):
                self.assertIsNotNone(value.comment, f"{value.path} has no comment that begins with `# -- `")
                self.assertGreater(len(value.meaning), 10)

    def test_every_value_is_tried_with_another_than_its_default(self):
        everything = list(self.given())
        for value in self.chart.leaves():
            tried = [each for values in everything for each in found(values, value.path)]
            with self.subTest(value.path):
                self.assertTrue(any(each != value.default for each in tried), f"no file of ci/ sets {value.path}")
                for choice in value.choices or []:
                    self.assertIn(choice, [*tried, value.default], f"no file of ci/ sets {value.path} to {choice}")

    # What decides whether anything is rendered, and nothing of it.
    ONLY_REFUSES = {"ingress.tlsToService": "test_only_what_makes_a_controller_speak_tls_lets_an_ingress_lead_to_tls"}

    def test_every_value_is_read_by_a_template(self):
        cases = list(zip(support.cases(), self.given(), strict=True))
        for value in self.chart.leaves():
            tried = [(case, each) for case, values in cases for each in found(values, value.path)]
            # Where a file sets it, what it belongs to is switched on: so those first, and there the default.
            order = [*dict.fromkeys(case for case, _ in tried), *(case for case, _ in cases if case not in dict(tried))]
            others = [value.default, *(each for _, each in tried)]
            # Of a list that may not be empty, a longer one.
            others += [each * 2 for each in others if isinstance(each, list)]
            with self.subTest(value.path):
                read = any(self.changes(chart, file, value.path, other) for _, chart, file in order for other in others)
                self.assertEqual(read, value.path not in self.ONLY_REFUSES, f"no template reads {value.path}")
        for path, test in self.ONLY_REFUSES.items():
            self.assertTrue(hasattr(self, test), path)

    def changes(self, chart, file, path, value):
        """Returns whether a file of values is rendered differently with this value at a path."""
        path = f"flagtap.{path}" if chart == EXAMPLE else path
        done = support.helm("4", "template", chart, "--values", file, "--set-json", f"{path}={json.dumps(value)}", check=False)
        return done.returncode == 0 and done.stdout != support.rendered(chart, file)

    def test_no_comment_is_taken_for_a_value_that_it_does_not_stand_above(self):
        values = Chart("# -- first\na: 1\nb: 2\n# -- third\n\nc: 3\n# prose\n# -- fourth,\n# still\nd: { e: {} }\n").values
        self.assertEqual([each.comment for each in values], ["first", None, None, "fourth, still"])

    def test_the_generated_files_are_current(self):
        readme = (CHART / "README.md").read_text()
        self.assertEqual(readme, self.chart.readme(readme), f"helm/flagtap/README.md {CURRENT}")
        schema = (CHART / "values.schema.json").read_text()
        self.assertEqual(schema, self.chart.schema(printed_by(FLAGTAP)), f"helm/flagtap/values.schema.json {CURRENT}")

    def test_wrong_values_are_refused_with_their_names(self):
        for setting, said in [
            ("replicaCount=3", "replicaCount"),
            ("replicas=\"3\"", "replicas"),
            ("mode=\"daemonset\"", "mode"),
            ("config.queue.max_byte=\"1GiB\"", "max_byte"),
            ("config.queue.max_bytes=5", "max_bytes"),
            ("config.destinations=[{\"name\":\"a\",\"kinesis\":{\"region\":\"x\",\"stream\":\"y\"}}]", "stream"),
            ("config.destinations=[{\"name\":\"a\"}]", "destinations/0"),
            ("secrets={\"NOT-A-NAME\":\"x\"}", "NOT-A-NAME"),
            ("service.type=\"ExternalName\"", "service/type"),
            ("service.port=0", "service/port"),
            ("service.port=65536", "service/port"),
            ("service.annotations={\"a\":true}", "service/annotations/a"),
            ("persistence.size=\"4GiB\"", "persistence/size"),
            ("persistence.size=\"a lot\"", "persistence/size"),
            ("sidecar.dataSize=\"2 Gi\"", "sidecar/dataSize"),
            ("image.digest=\"sha256:12\"", "image/digest"),
            ("podLabels={\"a\":true}", "podLabels/a"),
            ("podLabels={\"a\":\"no label\"}", "podLabels/a"),
            ("podAnnotations={\"a\":1}", "podAnnotations/a"),
            ("nodeSelector={\"a\":1}", "nodeSelector/a"),
            ("ingress.hosts=[{\"host\":\"a.example\"}]", "ingress/hosts/0"),
            ("ingress.hosts=[\"https://a.example\"]", "ingress/hosts/0"),
            ("extraEnv=[\"A=b\"]", "extraEnv/0"),
            ("extraEnv=[{\"value\":\"b\"}]", "name"),
            ("extraEnv=[{\"name\":\"A\",\"value\":1}]", "extraEnv/0/value"),
            ("extraEnv=[{\"name\":\"A\",\"valueForm\":{}}]", "valueForm"),
            ("drainOrphans.ordinals=[-1]", "drainOrphans/ordinals/0"),
            ("drainOrphans.ordinals=[2.5]", "drainOrphans/ordinals/0"),
            ("drainOrphans.ordinals=[2147483648]", "drainOrphans/ordinals/0"),
            ("drainOrphans.ordinals=[3,3]", "drainOrphans/ordinals"),
            ("drainOrphans.within=\"1h30m\"", "drainOrphans/within"),
            ("autoscaling.minReplicas=0", "minReplicas"),
            ("fullnameOverride=\"123\"", "fullnameOverride"),
            ("injector.address=\"::\"", "injector/address"),
            ("injector.objectSelector={\"matchLabel\":{}}", "matchLabel"),
        ]:
            with self.subTest(setting):
                self.assertIn(said, refused(setting))

    def test_combinations_that_cannot_work_are_refused_with_the_remedy(self):
        for settings, said in [
            (["config.environments=[]"], "say whose events are exported"),
            (["config.shutdown={\"grace\":\"1m\"}"], "gracePeriodSeconds"),
            (["config.telemetry=\"0.0.0.0:9000\""], "probes, Services"),
            (["config.telemetry=\"127.0.0.1:8031\""], "probes, Services"),
            (["config.telemetry=\"[::1]:8031\""], "probes, Services"),
            (["config.listen=\"0.0.0.0:9000\""], "service.port"),
            (["config=null"], "say whose events are exported"),
            (["config.shutdown={\"reserve\":\"25s\"}"], "raise gracePeriodSeconds"),
            (["config.shutdown={\"reserve\":\"1m\"}"], "raise gracePeriodSeconds"),
            (["gracePeriodSeconds=100", "config.shutdown={\"reserve\":\"95000ms\"}"], "raise gracePeriodSeconds"),
            (["podSecurityContext=null"], "that your cluster chooses itself"),
            (["podSecurityContext=null", "mode=\"none\"", "injector.enabled=true"], "that your cluster chooses itself"),
            (["autoscaling={\"minReplicas\":7}"], "greater than autoscaling.maxReplicas"),
            (["podLabels={\"flagtap.dev/inject\":\"true\"}"], "podLabels has flagtap.dev/inject"),
            (["podLabels={\"app.kubernetes.io/component\":\"a\"}"], "podLabels has app.kubernetes.io/component"),
            (["podAnnotations={\"flagtap.dev/config-checksum\":\"a\"}"], "podAnnotations has flagtap.dev/config-checksum"),
            (["metrics.labels={\"app.kubernetes.io/name\":\"a\"}"], "metrics.labels has app.kubernetes.io/name"),
            (["networkPolicy.enabled=true", "metrics.serviceMonitor=true"], "networkPolicy.metrics is empty"),
            (["networkPolicy.enabled=true", "metrics.podMonitor=true", "injector.enabled=true"], "networkPolicy.metrics is empty"),
            (["networkPolicy.enabled=true", "metrics.serviceMonitor=true", "injector.enabled=true", "mode=\"none\""],
             "networkPolicy.metrics is empty"),
            (["extraEnv=[{\"name\":\"TMPDIR\",\"value\":\"/tmp\"}]"], "extraEnv has TMPDIR"),
            (["existingSecret=\"\"", "secrets={\"A\":\"b\"}", "extraEnv=[{\"name\":\"A\",\"value\":\"c\"}]"], "extraEnv has A, which"),
            (["extraVolumes=[{\"name\":\"flagtap-data\",\"emptyDir\":{}}]"], "extraVolumes has flagtap-data"),
            (["extraVolumes=[{\"name\":\"flagtap-secrets\",\"emptyDir\":{}}]"], "extraVolumes has flagtap-secrets"),
            (["extraVolumeMounts=[{\"name\":\"a\",\"mountPath\":\"/data/\"}]"], "extraVolumeMounts has /data/, where"),
            (["extraVolumeMounts=[{\"name\":\"a\",\"mountPath\":\"/etc/flagtap\"}]"], "extraVolumeMounts has /etc/flagtap, where"),
            (["enabled=false"], "no `condition: flagtap.enabled`"),
            (["gracePeriodSeconds=5"], "no time to deliver"),
            (["secrets={\"A\":\"b\"}"], "keep one"),
            (["drainOrphans.ordinals=[1]"], "replica 1 runs"),
            (["mode=\"deployment\"", "drainOrphans.ordinals=[3]"], "only its replicas leave volumes"),
            (["serviceAccount.create=false"], "serviceAccount.name is needed"),
            (["ingress.enabled=true"], "ingress.hosts is empty"),
            (["httpRoute.enabled=true"], "httpRoute.parentRefs is empty"),
            ([TLS, "ingress={\"enabled\":true,\"hosts\":[\"a.example\"]}"], "backend-protocol: HTTPS"),
            ([TLS, "httpRoute={\"enabled\":true,\"parentRefs\":[{\"name\":\"a\"}]}"], "End TLS at the Gateway"),
            (["injector.enabled=true", "config.listen=\"${IP}:8030\""], "write it out"),
        ]:
            with self.subTest(settings):
                self.assertIn(said, refused(*settings))

    def test_names_and_places_of_the_chart_are_refused_wherever_it_uses_them(self):
        """Of every volume, variable and mount that the chart gives to a container of flagtap's."""
        given = ("--values", CHART / "ci/injector-values.yaml", "--set", "mode=statefulset")
        objects = support.read_all(support.helm("4", "template", CHART, *given))
        sidecar = next(yaml.safe_load(each["data"]["sidecar.yaml"]) for each in objects if "sidecar.yaml" in each.get("data", {}))
        gateway = next(each for each in objects if each["kind"] == "StatefulSet")["spec"]["template"]["spec"]
        settings = set()
        for container, volumes in (sidecar["container"], sidecar["volumes"]), (gateway["containers"][0], gateway["volumes"]):
            settings |= {'extraVolumes=[{"name":"%s"}]' % each["name"] for each in volumes}
            settings |= {'extraEnv=[{"name":"%s"}]' % each["name"] for each in container["env"]}
            settings |= {'extraVolumeMounts=[{"name":"a","mountPath":"%s"}]' % each["mountPath"] for each in container["volumeMounts"]}
        self.assertEqual(len(settings), 7)
        for setting in settings:
            with self.subTest(setting):
                self.assertIn("the chart", refused(setting))

    def everything(self, changes, line="4"):
        """Renders the gateway and all that goes with it, with values changed by path: None is null, `...` leaves one out."""
        values = yaml.safe_load((CHART / "ci/everything-values.yaml").read_text())
        values |= {"injector": {"enabled": True}, "drainOrphans": {"ordinals": [9]}}
        for path, value in changes.items():
            *sections, key = path.split(".")
            section = values
            for each in sections:
                section = section.setdefault(each, {})
            section[key] = value
            if value is ...:
                del section[key]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            return support.helm(line, "template", CHART, "--values", file.name, check=False)

    def sections_and_leaves(self, values=None):
        for value in self.chart.values if values is None else values:
            yield value
            yield from self.sections_and_leaves(value.inner)

    # Whatever else they have, there is nothing of them unless they are switched on.
    OFF = ["autoscaling", "drainOrphans", "ingress", "httpRoute", "networkPolicy", "metrics", "injector", "injector.certManager"]

    def is_nothing(self, value):
        return value.path in self.OFF or not value.inner and value.default in ("", [], {}, False)

    def test_null_is_nothing_where_the_default_is(self):
        nothing = [each for each in self.sections_and_leaves() if self.is_nothing(each) and not each.path.startswith("config.")]
        switches = [each.path for each in nothing if each.default is False]
        # What these have to have while they are on.
        switches += ["ingress.hosts", "httpRoute.parentRefs", "networkPolicy.metrics"]
        leaves = [each.path for each in nothing if each.path not in switches + self.OFF]
        self.assertGreater(len(leaves), 25)
        for paths in leaves, switches, self.OFF[:-1], self.OFF[-1:]:
            expected = self.everything(dict.fromkeys(paths, ...)).stdout
            for line in HELM:
                done = self.everything(dict.fromkeys(paths, None), line)
                with self.subTest(paths, helm=line):
                    self.assertEqual(done.stderr, "")
                    objects = [sorted(map(support.as_json, support.read_all(text))) for text in (done.stdout, expected)]
                    self.assertEqual(*objects)

    def test_null_is_refused_with_the_remedy_where_it_could_mean_nothing(self):
        otherwise = {
            "config": "config.environments is empty: say whose",
            "config.environments": "config.environments is empty: say whose",
            "podSecurityContext": "podSecurityContext is null or empty; set those of its keys",
        }
        refused = 0
        for value in self.sections_and_leaves():
            # A cluster may have its own ideas of requests and limits.
            if "resources" in value.path or self.is_nothing(value) and value.path not in otherwise:
                continue
            said = otherwise.get(value.path, f"{value.path} is null, which takes its default away. Leave the key out")
            for line in HELM if value.inner else ["4"]:
                with self.subTest(value.path, helm=line):
                    self.assertIn(said, self.everything({value.path: None}, line).stderr)
                    refused += 1
        self.assertGreater(refused, 30)

    def test_only_what_makes_a_controller_speak_tls_lets_an_ingress_lead_to_tls(self):
        def rendered(name, value, of, **more):
            annotations = {"ingress": {}, "service": {}} | {of: {name: value}}
            return self.everything({
                "config.listen": {"tls": {"certificate": "/a.crt", "key": "/a.key"}}, "httpRoute.enabled": False,
                "ingress": {"enabled": True, "hosts": ["a.example"], "annotations": annotations["ingress"], **more},
                "service.annotations": annotations["service"],
            })

        table = (ROOT / "docs/kubernetes.md").read_text().split("| controller | in | annotation |\n|---|---|---|\n")[1].split("\n\n")[0]
        told = 0
        for row in table.splitlines():
            _, _, of, annotations, _ = row.split("|")
            for annotation in re.findall("`([^`]+)`", annotations):
                (name, value), = yaml.safe_load(annotation).items()
                with self.subTest(name, value=value):
                    self.assertEqual(rendered(name, value, of.strip(" `").removesuffix(".annotations")).stderr, "")
                    told += 1
        self.assertEqual(told, 10)
        no = "if your controller is told in another way, set ingress.tlsToService to true"
        for name, value, of in [
            ("nginx.ingress.kubernetes.io/backend-protocol", "HTTP", "ingress"),
            ("nginx.ingress.kubernetes.io/backend-protocol", "HTTPS", "service"),
            ("nginx.ingress.kubernetes.io/ssl-passthrough", "false", "ingress"),
            ("nginx.ingress.kubernetes.io/proxy-body-size", "16m", "ingress"),
            ("route.openshift.io/termination", "edge", "ingress"),
            ("cloud.google.com/app-protocols", '{"https":"HTTP"}', "service"),
            ("cloud.google.com/neg", '{"ingress": true}', "service"),
        ]:
            with self.subTest(name, value=value, of=of):
                self.assertIn(no, rendered(name, value, of).stderr)
                self.assertEqual(rendered(name, value, of, tlsToService=True).stderr, "")

    def test_requests_and_limits_can_be_taken_away(self):
        for path in "resources", "resources.limits", "resources.limits.memory":
            done = self.everything({f"{section}{path}": None for section in ("", "sidecar.", "injector.")})
            objects = support.read_all(done.stdout)
            specs = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("StatefulSet", "Deployment", "Job")]
            specs += [{"containers": [yaml.safe_load(each["data"]["sidecar.yaml"])["container"]]}
                      for each in objects if "sidecar.yaml" in each.get("data", {})]
            self.assertEqual(len(specs), 4)
            for spec in specs:
                with self.subTest(path):
                    self.assertFalse(spec["containers"][0]["resources"].get("limits"))

    def test_every_file_begins_with_the_checks(self):
        for path in sorted((CHART / "templates").glob("[!_]*")):
            with self.subTest(path.name):
                self.assertTrue(path.read_text().startswith('{{- include "flagtap.checks" . }}\n'))

    def test_a_null_section_of_a_dependency_is_no_riddle(self):
        for value in self.chart.values:
            for line in HELM if value.inner else []:
                done = support.helm(line, "template", EXAMPLE, "--set-json", f"flagtap.{value.path}=null", check=False)
                with self.subTest(value.path, helm=line):
                    self.assertNotIn("nil pointer", done.stderr)
                    self.assertTrue(done.returncode == 0 or value.path in done.stderr, done.stderr)

    def test_null_in_what_is_given_is_not_given(self):
        def rendered(case, *settings):
            given = [word for setting in settings for word in ("--set-json", setting)]
            return support.helm("4", "template", CHART, "--values", CHART / f"ci/{case}-values.yaml", *given)

        for setting in ["config.shutdown=null", "config.admin=null", "config.upstream=null", "config.queue.sled=null",
                        "config.listen.tls=null"]:
            for case in "injector", "statefulset":
                with self.subTest(setting, case=case):
                    self.assertEqual(rendered(case, setting), rendered(case))
        # Kubernetes takes a volume without a source for an emptyDir.
        for source in "emptyDir", "ephemeral":
            with self.subTest(source):
                null, empty = (rendered("injector", 'sidecar.dataVolume={"%s":%s}' % (source, each)) for each in ("null", "{}"))
                self.assertEqual(null.replace(f"{source}: null", f"{source}: {{}}"), empty)

    def test_a_native_sidecar_is_refused_where_kubernetes_does_not_know_it(self):
        def rendered(chart, values, kubernetes):
            given = ("--values", chart / f"ci/{values}-values.yaml", "--kube-version", kubernetes)
            return support.helm("4", "template", chart, *given, check=False)

        for old in ("1.28.0", "1.28.15-gke.100"):
            for chart, values in ((EXAMPLE, "native"), (CHART, "injector")):
                with self.subTest(values, kubernetes=old):
                    self.assertIn("Set sidecar.native to false", rendered(chart, values, old).stderr)
        # Ordinary sidecars, and a gateway, which has none; and the first release that knows them.
        for chart, values, kubernetes in [(EXAMPLE, "fallback", "1.28.0"), (CHART, "injector-cert-manager", "1.28.0"),
                                          (CHART, "statefulset", "1.28.0"), (EXAMPLE, "native", "1.29.0"),
                                          (EXAMPLE, "native", "1.29.0-eks-1")]:
            with self.subTest(values, kubernetes=kubernetes):
                self.assertEqual(rendered(chart, values, kubernetes).stderr, "")

    def test_a_volume_that_a_full_queue_would_fill_is_refused(self):
        def taken(*settings, values="statefulset"):
            given = [word for setting in settings for word in ("--set-json", setting)]
            text = support.helm("4", "template", CHART, "--values", CHART / f"ci/{values}-values.yaml", *given)
            return next(each for each in support.read_all(text) if each["kind"] == "ConfigMap")

        limit = 'config.queue={"max_bytes":"%s"}'
        claim = '{"spec":{"resources":{"requests":{"storage":"%s"}}}}'
        ephemeral = 'sidecar.dataVolume={"ephemeral":{"volumeClaimTemplate":%s}}' % claim
        for values, settings, small in [
            ("statefulset", ['persistence.size="2047Mi"'], "persistence.size (2047Mi)"),
            ("statefulset", ['persistence.size="2G"'], "persistence.size (2G)"),
            ("statefulset", [limit % "3GiB"], "persistence.size (4Gi)"),
            ("statefulset", [limit % "2148MB"], "persistence.size (4Gi)"),
            ("deployment", ['persistence.size="0.9Gi"'], "persistence.size (0.9Gi)"),
            ("injector", ['sidecar.dataSize="1023Mi"'], "sidecar.dataSize (1023Mi)"),
            ("injector", [limit % "1025MiB"], "sidecar.dataSize (2Gi)"),
            ("injector", [ephemeral % "1000Mi"], "the claim of sidecar.dataVolume (1000Mi)"),
            ("injector", ['sidecar.dataVolume={"emptyDir":{"sizeLimit":"1Gi"}}', limit % "1GiB"], "sizeLimit (1Gi)"),
        ]:
            with self.subTest(values, settings=settings):
                self.assertIn(f"{small} is less than twice", refused(*settings, values=values))
        for values, settings in [
            ("statefulset", ['persistence.size="2Gi"']),
            ("statefulset", ['persistence.size="2147483648"']),
            ("statefulset", [limit % "2147MB"]),
            ("statefulset", [limit % "${MAX_BYTES}"]),
            ("statefulset", ['config.queue="memory"', 'persistence.size="1Mi"']),
            ("deployment", ['persistence.size="1Gi"']),
            ("injector", [ephemeral % "1Gi"]),
            ("injector", ['sidecar.dataVolume={"emptyDir":{}}']),
            ("injector", ['sidecar.dataVolume={"persistentVolumeClaim":{"claimName":"a"}}', limit % "1TiB"]),
        ]:
            with self.subTest(values, settings=settings):
                taken(*settings, values=values)
        # Null is not given.
        self.assertIn("path: /data/queue", taken("config.queue=null")["data"]["config.yaml"])

    def test_a_queue_beside_the_volume_is_refused(self):
        for path in ("/var/queue", "/data", "/database", "/data/../queue", "../queue"):
            with self.subTest(path):
                self.assertIn("is not below /data", refused('config.queue={"sled":{"path":"%s"}}' % path))
                self.assertIn("is not below /data", refused('config.queue={"sled":{"path":"%s"}}' % path, values="injector"))
        for path in ("/data/a/b", "queue", "./queue", "${QUEUE}"):
            with self.subTest(path):
                support.helm("4", "template", CHART, "--values", CHART / "ci/statefulset-values.yaml",
                             "--set-json", 'config.queue={"sled":{"path":"%s"}}' % path)

    def test_what_the_cluster_chooses_can_be_left_to_it(self):
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            values = ("--values", CHART / "ci/statefulset-values.yaml", "--set", f"podSecurityContext.{key}=null")
            objects = support.read_all(support.helm("4", "template", CHART, *values))
            spec = next(each for each in objects if each["kind"] == "StatefulSet")["spec"]["template"]["spec"]
            with self.subTest(key):
                self.assertNotIn(key, spec["securityContext"])
                self.assertNotIn(key, spec["containers"][0]["securityContext"])

    def test_text_stays_text_where_yaml_takes_it_for_something_else(self):
        for odd in ("1234", "true", "1e3"):
            texts = {"priorityClassName": odd, "existingSecret": odd, "persistence.storageClass": odd, "serviceAccount.name": odd,
                     "ingress.className": odd, "podLabels.odd": odd}
            given = [word for path, value in texts.items() for word in ("--set-string", f"{path}={value}")]
            more = ("--set", "ingress.enabled=true,ingress.hosts={a.example}")
            text = support.run(HELM["4"], "template", odd, CHART, "--namespace", "123",
                               "--values", CHART / "ci/statefulset-values.yaml", *given, *more, "--set", "fullnameOverride=relay")
            for each in support.read_all(text):
                with self.subTest(odd, kind=each["kind"]):
                    kubernetes_validate.validate(each, "1.37", strict=True)

    def test_a_name_stays_text_where_yaml_takes_it_for_something_else(self):
        def forms(value):
            """Returns the types of all that is in a value, in its place."""
            if isinstance(value, dict):
                return {key: forms(each) for key, each in value.items()}
            return [forms(each) for each in value] if isinstance(value, list) else type(value).__name__

        for odd in "true", "null", "off":
            texts = [self.everything({"fullnameOverride": name, "nameOverride": name}).stdout for name in (odd, "relay")]
            for found, expected in zip(*map(support.read_all, texts), strict=True):
                with self.subTest(odd, kind=found["kind"]):
                    self.assertEqual(forms(found), forms(expected))
        for chart, values in [
            (CHART, ("--values", CHART / "ci/drain-values.yaml", "--set-string", "nameOverride=true")), (support.example("4"), ()),
        ]:
            for each in support.read_all(support.run(HELM["4"], "template", "true", chart, *values)):
                with self.subTest("a release", kind=each["kind"]):
                    kubernetes_validate.validate(each, "1.37", strict=True)

    def release(self, name, *given, case="injector-cert-manager", chart=CHART):
        """Renders a release of this name; a gateway and an injector unless told otherwise."""
        values = () if chart != CHART else ("--values", CHART / f"ci/{case}-values.yaml")
        return support.run(HELM["4"], "template", name, chart, "--namespace", "events", *values, *given, check=False)

    def test_a_release_whose_name_no_service_can_have_is_refused(self):
        for name in "1st", "my.app", "a" * 20 + "." + "b" * 30:
            for case in "statefulset", "injector":
                with self.subTest(name, case=case):
                    self.assertIn("Set fullnameOverride", self.release(name, case=case).stderr)
                    self.assertEqual(self.release(name, "--set", "fullnameOverride=relay", case=case).stderr, "")
            # Sidecars alone have no Service.
            done = self.release(name, chart=support.example("4"))
            self.assertEqual(done.stderr, "")
            for each in support.read_all(done.stdout):
                with self.subTest(name, kind=each["kind"]):
                    self.assertRegex(each["metadata"]["name"], r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")

    def test_long_names_that_begin_alike_are_different_names(self):
        def names(release, *given):
            objects = support.read_all(self.release(release, *given).stdout)
            self.assertGreater(len(objects), 10)
            found = {(each["kind"], each["metadata"]["name"]) for each in objects}
            for kind, name in found:
                self.assertLessEqual(len(name), 63)
            return found

        # As long as Helm lets them be, and as the value may be.
        for first, second in [(("r" * 52 + "a",), ("r" * 52 + "b",)), (("r" * 30 + "-" * 3 + "a" * 20,), ("r" * 30 + "-" * 3 + "a" * 19,)),
                              (("x", "--set", "fullnameOverride=" + "f" * 60), ("x", "--set", "fullnameOverride=" + "f" * 61))]:
            with self.subTest(first):
                self.assertEqual(names(*first) & names(*second), set())
        # What is short enough stays as it is.
        self.assertIn(("Service", "r" * 32 + "-flagtap"), names("r" * 32))

    def test_an_injector_alone_has_no_secrets_of_its_own(self):
        taken = 'existingSecret=""', 'secrets={"LD_SDK_KEY":"x"}'
        self.assertIn("name it with existingSecret", refused(*taken, values="injector"))


class Secrets(unittest.TestCase):
    def test_a_written_secret_is_refused_wherever_the_configuration_takes_one(self):
        sdk = 'config.environments=[{"name":"a","destinations":["b"],"credentials":{"%s":["%s"]}}]'
        segment = 'config.destinations=[{"name":"a","segment":{"write_key":"%s"}}]'
        webhook = 'config.destinations=[{"name":"a","webhook":{"url":"https://x","headers":{"authorization":"%s"}}}]'
        for form in [sdk.replace("%s", "sdk_keys", 1), sdk.replace("%s", "mobile_keys", 1), segment, webhook,
                     'config.admin={"token":"%s"}']:
            with self.subTest(form):
                self.assertIn("does not match pattern", refused(form % "in-plain-text"))

    def test_nothing_is_written_beside_a_variable(self):
        form = 'config.destinations=[{"name":"a","webhook":{"url":"https://x","headers":{"authorization":"%s"}}}]'
        for secret in ["written${A}", "${A}written", "$${A}", "Bearer written${A}", "Bearer written", "${A} ${B}", "${A}\\n"]:
            with self.subTest(secret):
                self.assertIn("does not match pattern", refused(form % secret))

    def test_a_url_has_no_password(self):
        for destination in ("kinesis", "google_pubsub", "azure_event_hubs", "segment", "mparticle"):
            form = 'config.destinations=[{"name":"a","%s":{"endpoint":"https://u:p@x"}}]' % destination
            with self.subTest(destination):
                self.assertIn("does not match pattern", refused(form))
        for key in ('upstream={"url":"%s"}', 'launchdarkly={"base_url":"%s"}',
                    'destinations=[{"name":"a","webhook":{"url":"%s"}}]'):
            for url in ("https://user:written@x", "https://user@x/", "https://u:${A}@x", "${A}@x", "$${A}"):
                with self.subTest(key, url=url):
                    self.assertIn("does not match pattern", refused(f"config.{key % url}"))

    def test_what_names_variables_alone_is_taken(self):
        form = 'config.destinations=[{"name":"lake","webhook":{"url":"%s","headers":{"authorization":"%s"}}}]'
        values = ("--values", CHART / "ci/statefulset-values.yaml")
        for url, secret in [("https://x:8443/a@b?c=${D}", "Bearer ${A}"), ("${URL}", "Basic ${A}"), ("${URL}/v1", "${A}"),
                            ("https://${HOST}", "${A}"), ("https://[::1]:80/", "${A}")]:
            with self.subTest(url):
                support.helm("4", "template", CHART, *values, "--set-json", form % (url, secret))

    def test_no_secret_is_rendered_but_into_a_secret(self):
        secrets = {"sdk-from-values", "from-values"}
        for case, chart, values in support.cases():
            for each in support.objects(chart, values):
                if each["kind"] != "Secret":
                    with self.subTest(case, kind=each["kind"]):
                        self.assertFalse(any(secret in json.dumps(each) for secret in secrets))


class Configuration(unittest.TestCase):
    """The configurations that are rendered, and the schema that the binary prints."""

    def setUp(self):
        self.schema = json.loads(support.printed("schema"))
        self.validator = jsonschema.Draft7Validator(self.schema)

    def check(self, text):
        """Runs `flagtap check` on a text, with a value for every variable and with the files that it names."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("/run/secrets/flagtap/sdk-keys", "/etc/flagtap-tls/tls.crt", "/etc/flagtap-tls/tls.key"):
                there = pathlib.Path(folder, pathlib.Path(name).name)
                there.write_text("sdk-0\n")
                text = text.replace(name, str(there))
            file = pathlib.Path(folder, "config.yaml")
            file.write_text(text)
            environment = {name: f"secret-{name}" for name in re.findall(r"\$\{(\w+)\}", text)}
            environment |= {name: "http://127.0.0.1:9" for name in environment if name.endswith("_URL")}
            return subprocess.run([FLAGTAP, "check", file], capture_output=True, text=True, env=environment)

    def test_every_rendered_configuration_is_taken_by_the_binary(self):
        texts = list(support.configurations())
        self.assertGreater(len(texts), 8)
        for case, text in texts:
            with self.subTest(case):
                done = self.check(text)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.validator.validate(yaml.safe_load(text))

    def test_the_example_and_all_defaults_are_valid(self):
        example = yaml.safe_load((ROOT / "config.example.yaml").read_text())
        self.validator.validate(example)
        checked = 0
        stack = [self.schema]
        while stack:
            schema = stack.pop()
            if isinstance(schema, dict):
                if "default" in schema and "type" in schema and isinstance(schema["type"], (str, list)):
                    jsonschema.Draft7Validator(schema).validate(schema["default"])
                    checked += 1
                stack += schema.values()
            elif isinstance(schema, list):
                stack += schema
        self.assertGreater(checked, 80)

    def test_the_schema_is_one_and_describes_every_key(self):
        jsonschema.Draft7Validator.check_schema(self.schema)
        self.assertEqual(self.schema["properties"]["queue"]["properties"]["max_bytes"]["default"], "1GiB")
        self.assertIn("space", self.schema["properties"]["queue"]["properties"]["max_bytes"]["description"])

    def test_broken_files_are_refused_where_the_schema_can_know(self):
        for name in ("unknown-keys", "wrong-types", "units-missing"):
            with self.subTest(name):
                errors = list(self.validator.iter_errors(yaml.safe_load((ROOT / f"tests/config/{name}.yaml").read_text())))
                self.assertTrue(errors)


if __name__ == "__main__":
    unittest.main()
