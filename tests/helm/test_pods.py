"""Rendered pods: restricted, and in agreement with what the binary does."""
import re
import unittest

import yaml

import support
from chart import Chart
from support import CHART, EXAMPLE, HELM, flagtap_containers, pods


def setUpModule():
    support.need(*HELM.values())


# The volumes that the standard allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(spec):
    """Returns what of a pod the Pod Security Standard *restricted* forbids.

    Source: the table of Kubernetes' own page on Pod Security Standards; the baseline's rows are part of it.
    """
    found = []
    pod = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            found.append(field)
    for volume in spec.get("volumes", []):
        found += [f"volume {volume['name']} of {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
    if pod.get("sysctls") or pod.get("seLinuxOptions") or pod.get("windowsOptions"):
        found.append("sysctls, seLinuxOptions or windowsOptions")
    for container in spec.get("initContainers", []) + spec["containers"]:
        name, own = container["name"], container.get("securityContext", {})
        if own.get("privileged") or own.get("procMount", "Default") != "Default" or own.get("seLinuxOptions"):
            found.append(f"{name}: privileged, procMount or seLinuxOptions")
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: allowPrivilegeEscalation")
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            found.append(f"{name}: capabilities are not dropped")
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append(f"{name}: capabilities are added")
        if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            found.append(f"{name}: runAsNonRoot")
        if own.get("runAsUser", pod.get("runAsUser", 1)) == 0:
            found.append(f"{name}: runAsUser")
        if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name}: seccompProfile")
        if any(port.get("hostPort") for port in container.get("ports", [])):
            found.append(f"{name}: hostPort")
    return found


class Restricted(unittest.TestCase):
    def test_every_pod_satisfies_the_restricted_standard(self):
        seen = 0
        for case, name, spec, _ in pods():
            with self.subTest(case, pod=name):
                self.assertEqual(violations(spec), [])
                seen += 1
        self.assertGreater(seen, 10)

    def test_a_sidecar_satisfies_it_by_itself(self):
        for case, name, spec, _ in pods():
            with self.subTest(case, pod=name):
                alone = {"containers": flagtap_containers(spec) or spec["containers"]}
                self.assertEqual(violations(alone), [])

    def test_a_pod_that_does_not_is_noticed(self):
        bad = {"hostNetwork": True, "volumes": [{"name": "host", "hostPath": {"path": "/"}}], "containers": [{"name": "a"}]}
        self.assertEqual(len(violations(bad)), 6)

    def test_nothing_is_written_but_to_data(self):
        for case, name, spec, _ in pods():
            for container in flagtap_containers(spec):
                with self.subTest(case, pod=name):
                    self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
                    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
                    self.assertEqual(writable, ["/data"])
                    self.assertIn({"name": "TMPDIR", "value": "/data"}, container["env"])
                    given = {volume["name"] for volume in spec.get("volumes", [])} | {"flagtap-data"}
                    self.assertEqual({mount["name"] for mount in container["volumeMounts"]} - given, set())

    def test_flagtap_can_write_to_a_claim(self):
        claims = 0
        for case, name, spec, _ in pods():
            data = [each for each in spec.get("volumes", []) if each["name"] == "flagtap-data"]
            # A StatefulSet's claims stand beside its pod. An injected pod's security context is the application's.
            if name != "injected" and flagtap_containers(spec) and not any("emptyDir" in each for each in data):
                with self.subTest(case, pod=name):
                    self.assertGreater(spec["securityContext"]["fsGroup"], 0)
                    claims += 1
        self.assertGreater(claims, 4)


class Life(unittest.TestCase):
    def seconds(self, text):
        return int(re.fullmatch(r"(\d+)s", text).group(1))

    def test_the_pod_ends_after_flagtap(self):
        seen, gateways = 0, 0
        for case, chart, values in support.cases():
            configs = [yaml.safe_load(text) for name, text in support.configurations() if name == case]
            for of, name, spec, _ in pods():
                serving = [each for each in flagtap_containers(spec) if each["args"][0] == "serve"]
                if of != case or not serving:
                    continue
                wait = 0
                for hook in [each["lifecycle"]["preStop"]["exec"]["command"] for each in serving if "lifecycle" in each]:
                    self.assertEqual(hook[:2], ["/flagtap", "wait"])
                    wait = self.seconds(hook[2])
                if spec.get("serviceAccountName"):
                    # flagtap's port may close two seconds after TERM, and callers hear of it later than that.
                    self.assertGreaterEqual(wait, 5, "a gateway's pod leaves its Service before flagtap closes the port")
                    gateways += 1
                grace = max(self.seconds(config["shutdown"]["grace"]) for config in configs)
                with self.subTest(case, pod=name):
                    self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], wait + grace + 5)
                    seen += 1
        self.assertGreater(seen, 8)
        self.assertGreater(gateways, 3)

    def test_probes_and_services_go_to_ports_that_are_there(self):
        for case, name, spec, _ in pods():
            for container in spec.get("initContainers", []) + spec["containers"]:
                ports = {port["name"] for port in container.get("ports", [])}
                probes = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in container]
                with self.subTest(case, pod=name):
                    self.assertEqual({probe["httpGet"]["port"] for probe in probes} - ports, set())

    def test_a_sidecar_is_reached_from_its_pod_alone_and_does_not_decide_its_readiness(self):
        sidecars = 0
        for case, name, spec, _ in pods():
            for container in flagtap_containers(spec):
                # A gateway's pod and a drain's have an account of the chart's.
                if "serviceAccountName" not in spec:
                    sidecars += 1
                    with self.subTest(case, pod=name):
                        self.assertNotIn("readinessProbe", container)
        self.assertGreater(sidecars, 6)
        listens = {yaml.safe_load(text)["listen"] for case, text in support.configurations()
                   if case.startswith("application") or case in ("injector", "injector-self-signed")}
        self.assertEqual(listens, {"127.0.0.1:8030"})

    def scrapes(self, *given):
        """Returns how often each of a gateway, an injector and sidecars is scraped, where all of them are."""
        values = ("--values", CHART / "ci/statefulset-values.yaml", "--set", "injector.enabled=true", *given)
        objects = support.read_all(support.helm("4", "template", CHART, *values))
        pods = {"sidecar": {}, "sidecar of an application called gateway": {"app.kubernetes.io/component": "gateway"}}
        for each in objects:
            if each["kind"] in ("StatefulSet", "Deployment"):
                template = each["spec"]["template"]
                ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
                self.assertIn("flagtap-metrics", ports)
                pods["gateway" if each["kind"] == "StatefulSet" else "injector"] = template["metadata"]["labels"]

        def chosen(selector, labels):
            self.assertEqual({each["operator"] for each in selector.get("matchExpressions", [])} - {"NotIn"}, set())
            return selector.get("matchLabels", {}).items() <= labels.items() and not any(
                labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))

        found = []
        for monitor in objects:
            if monitor["kind"] == "PodMonitor":
                found += [name for name, labels in pods.items() if chosen(monitor["spec"]["selector"], labels)]
            if monitor["kind"] == "ServiceMonitor":
                port, = [each["port"] for each in monitor["spec"]["endpoints"]]
                for service in objects:
                    ports = [each["name"] for each in service["spec"]["ports"]] if service["kind"] == "Service" else []
                    if port in ports and chosen(monitor["spec"]["selector"], service["metadata"]["labels"]):
                        found += [name for name, labels in pods.items() if service["spec"]["selector"].items() <= labels.items()]
        return {name: found.count(name) for name in pods}

    def test_whatever_has_metrics_is_scraped_once(self):
        services, sidecars = ("--set", "metrics.serviceMonitor=true"), ("--set", "metrics.podMonitor=true")
        for given, gateway, injector, sidecar in [((), 0, 0, 0), (services, 1, 1, 0), (sidecars, 0, 1, 1), (services + sidecars, 1, 1, 1)]:
            with self.subTest(given):
                self.assertEqual(self.scrapes(*given), {
                    "gateway": gateway, "injector": injector, "sidecar": sidecar, "sidecar of an application called gateway": sidecar,
                })

    def test_applications_are_sent_to_where_the_sidecar_listens(self):
        tls = '"tls":{"certificate":"/etc/a.crt","key":"/etc/a.key"}'
        for listen, address, url in [
            ("null", "127.0.0.1:8030", "http://127.0.0.1:8030"),
            ('"[::]:8030"', "[::]:8030", "http://[::1]:8030"),
            ('{"address":"0.0.0.0:8030"}', "0.0.0.0:8030", "http://127.0.0.1:8030"),
            ("{%s}" % tls, "127.0.0.1:8030", "https://127.0.0.1:8030"),
            ('{"address":"[::1]:8030",%s}' % tls, "[::1]:8030", "https://[::1]:8030"),
        ]:
            values = ("--values", CHART / "ci/injector-values.yaml", "--set-json", f"config.listen={listen}")
            template = support.helm("4", "template", CHART, *values, "--show-only", "templates/injector.yaml")
            sidecar = next(yaml.safe_load(each["data"]["sidecar.yaml"]) for each in support.read_all(template) if "data" in each)
            found = yaml.safe_load(sidecar["annotations"]["flagtap.dev/config"])["listen"]
            values = ("--set-json", f"flagtap.config.listen={listen}", "--show-only", "templates/deployment.yaml")
            pod = support.read_all(support.helm("4", "template", EXAMPLE, *values))[0]["spec"]["template"]["spec"]
            with self.subTest(listen):
                self.assertEqual(found["address"] if "tls" in listen else found, address)
                self.assertEqual(sidecar["url"], url)
                self.assertEqual(pod["containers"][0]["env"][0], {"name": "LD_EVENTS_URI", "value": url})

    def test_probes_are_answered_where_there_is_ipv6_alone(self):
        def config(name, *given):
            values = ("--values", CHART / f"ci/{name}-values.yaml", "--set-json", 'config.telemetry="[::]:8031"', *given)
            for each in support.read_all(support.helm("4", "template", CHART, *values)):
                if each["kind"] == "ConfigMap":
                    text = each["data"].get("config.yaml")
                    return text or yaml.safe_load(each["data"]["sidecar.yaml"])["annotations"]["flagtap.dev/config"]

        gateway = yaml.safe_load(config("statefulset", "--set-json", 'config.listen="[::]:8030"'))
        self.assertEqual((gateway["listen"], gateway["telemetry"]), ("[::]:8030", "[::]:8031"))
        sidecar = yaml.safe_load(config("injector"))
        self.assertEqual((sidecar["listen"], sidecar["telemetry"]), ("127.0.0.1:8030", "[::]:8031"))
        for case, address in (("injector", "0.0.0.0"), ("injector-cert-manager", "[::]")):
            objects = support.objects(CHART, CHART / f"ci/{case}-values.yaml")
            deployments = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Deployment"}
            injector = deployments["flagtap-injector"]
            arguments = injector["spec"]["template"]["spec"]["containers"][0]["args"]
            self.assertEqual({f"--listen={address}:8443", f"--telemetry={address}:8031"} - set(arguments), set())

    def test_a_changed_configuration_restarts_or_does_not_as_chosen(self):
        def annotations(*settings):
            given = [word for setting in settings for word in ("--set-json", setting)]
            values = CHART / "ci/statefulset-values.yaml"
            text = support.helm("4", "template", CHART, "--values", values, *given)
            workload = next(each for each in support.read_all(text) if each["kind"] == "StatefulSet")
            return workload["spec"]["template"]["metadata"].get("annotations", {})

        self.assertNotEqual(annotations(), annotations('config.queue={"max_age":"1d"}'))
        reload = 'configChange="reload"'
        self.assertEqual(annotations(reload), annotations(reload, 'config.queue={"max_age":"1d"}'))
        secret = ('existingSecret=""', 'secrets={"LD_SDK_KEY":"%s"}')
        self.assertNotEqual(annotations(reload, secret[0], secret[1] % "a"), annotations(reload, secret[0], secret[1] % "b"))

    def test_a_drain_takes_the_volume_of_its_replica(self):
        case = CHART / "ci/drain-values.yaml"
        rendered = support.objects(CHART, case)
        workload = next(each for each in rendered if each["kind"] == "StatefulSet")
        claim = workload["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
        for job in [each for each in rendered if each["kind"] == "Job"]:
            ordinal = job["metadata"]["name"].split("-")[-2]
            volumes = job["spec"]["template"]["spec"]["volumes"]
            claims = [each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each]
            self.assertEqual(claims, [f"{claim}-{workload['metadata']['name']}-{ordinal}"])
            # Services must not send to it.
            labels = job["spec"]["template"]["metadata"]["labels"]
            self.assertNotEqual(labels["app.kubernetes.io/component"], "gateway")

    def drains(self, *settings):
        """Returns the drain's Jobs of a release with these settings, by name."""
        given = [word for setting in settings for word in ("--set-json", setting)]
        text = support.helm("4", "template", CHART, "--values", CHART / "ci/drain-values.yaml", *given)
        return {each["metadata"]["name"]: each["spec"] for each in support.read_all(text) if each["kind"] == "Job"}

    def test_a_drain_tries_as_often_as_is_said(self):
        explained = {value.path: value.meaning for value in Chart().leaves()}
        for job in self.drains().values():
            self.assertEqual(job["backoffLimit"] + 1, 4)
        self.assertIn("A Job makes four", explained["drainOrphans.within"])

    def test_further_variables_and_volumes_are_in_gateways_drains_and_sidecars(self):
        given = ("--set-json", 'extraEnv=[{"name":"FURTHER","value":"x"}]', "--set-json", 'extraVolumes=[{"name":"further"}]',
                 "--set-json", 'extraVolumeMounts=[{"name":"further","mountPath":"/further"}]', "--set", "injector.enabled=true")
        text = support.helm("4", "template", CHART, "--values", CHART / "ci/drain-values.yaml", *given)
        found = {}
        for each in support.read_all(text):
            if each["kind"] in ("StatefulSet", "Deployment", "Job"):
                spec = each["spec"]["template"]["spec"]
                found[each["kind"]] = (spec["containers"][0], spec["volumes"])
            elif "sidecar.yaml" in each.get("data", {}):
                sidecar = yaml.safe_load(each["data"]["sidecar.yaml"])
                found["sidecar"] = (sidecar["container"], sidecar["volumes"])
        self.assertEqual(set(found), {"StatefulSet", "Deployment", "Job", "sidecar"})
        for name, (container, volumes) in found.items():
            names = [each["name"] for each in container.get("env", []) + container["volumeMounts"] + volumes]
            with self.subTest(name):
                # The Deployment is the injector's.
                self.assertEqual([each for each in names if each.lower() == "further"],
                                 [] if name == "Deployment" else ["FURTHER", "further", "further"])

    def test_an_upgrade_never_changes_a_drains_job(self):
        before = self.drains()
        self.assertEqual(len(before), 2)
        self.assertEqual(self.drains("replicas=1"), before, "what does not concern a Job leaves it")
        for setting in ('image.tag="0.2.0"', 'resources.limits.memory="1Gi"', 'drainOrphans.within="5h"', "gracePeriodSeconds=60",
                        'config.queue={"max_age":"1d"}', 'secrets={"EVENT_HUBS_KEY":"another"}'):
            with self.subTest(setting):
                self.assertEqual(set(self.drains(setting)) & set(before), set())
        # Also one whose number and name are as long as they may be.
        names = self.drains('fullnameOverride="%s"' % ("r" * 60), "drainOrphans.ordinals=[2147483647]")
        for name in names:
            self.assertRegex(name, "^r{31}-[0-9a-f]{8}-drain-2147483647-[0-9a-f]{5}$")
            self.assertLessEqual(len(name), 63)


if __name__ == "__main__":
    unittest.main()
