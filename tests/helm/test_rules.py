"""Alerts and dashboard: they parse, fire when they should, use metrics that exist, and lead to a page that helps."""
import json
import re
import tempfile
import unittest

import yaml

import support
from support import CHART, FLAGTAP, HERE, PROMTOOL, ROOT, run

# The kubelet's own.
FOREIGN = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}


def setUpModule():
    support.need(PROMTOOL, FLAGTAP)


def named(expression):
    """Returns the metrics that an expression names, those of a regular expression of names included."""
    names = set(re.findall(r"\b(?:flagtap|kubelet)_[a-z_]+", re.sub(r"__name__=~?\"[^\"]*\"", "", expression)))
    for pattern in re.findall(r"__name__=~?\"([^\"]*)\"", expression):
        head, alternatives, tail = re.fullmatch(r"([a-z_]*)(?:\(([a-z_|]*)\))?([a-z_]*)", pattern).groups()
        names |= {f"{head}{each}{tail}" for each in (alternatives or "").split("|")}
    return names


class Alerts(unittest.TestCase):
    def setUp(self):
        self.rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]

    def test_every_alert_fires_in_its_example_and_none_in_good_health(self):
        run(PROMTOOL, "test", "rules", HERE / "alerts-test.yaml")
        examples = yaml.safe_load((HERE / "alerts-test.yaml").read_text())["tests"]
        fires = {test["alertname"] for each in examples for test in each["alert_rule_test"] if test["exp_alerts"]}
        quiet = {test["alertname"] for test in examples[0]["alert_rule_test"]}
        self.assertEqual(fires, {rule["alert"] for rule in self.rules})
        self.assertEqual(quiet, fires)

    def test_the_rendered_rules_are_rules(self):
        for each in support.objects(CHART, CHART / "ci/everything-values.yaml"):
            if each["kind"] == "PrometheusRule":
                with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                    yaml.safe_dump(each["spec"], file)
                    file.flush()
                    self.assertIn(f"{len(self.rules)} rules found", run(PROMTOOL, "check", "rules", file.name))
                # The claims are named by the release.
                claims = [claim for rule in each["spec"]["groups"][0]["rules"] for claim in re.findall(r"flagtap-data-[a-z-]+", rule["expr"])]
                self.assertEqual(set(claims), {"flagtap-data-relay-"})
                return
        self.fail("no PrometheusRule")

    def test_every_metric_exists(self):
        known = support.metrics() | FOREIGN
        for rule in self.rules:
            with self.subTest(rule["alert"]):
                self.assertTrue(named(rule["expr"]))
                self.assertEqual(named(rule["expr"]) - known, set())
        self.assertEqual(named('sum({__name__=~"flagtap_(a|b)_total"}) + flagtap_c'), {"flagtap_a_total", "flagtap_b_total", "flagtap_c"})

    def table(self, title):
        """Returns the rows of the table in a section of docs/operations.md."""
        section = (ROOT / "docs/operations.md").read_text().split(f"\n### {title}\n")[1].split("\n### ")[0]
        rows = section.split("---|\n")[1].split("\n\n")[0].splitlines()
        return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]

    def reasons_of_the_page(self):
        """Returns the reasons not to tee a batch that the page has, and whether the export lacks such a batch."""
        rows = self.table("Batches not teed")
        return {reason: row[2] for row in rows for reason in re.findall(r"`([a-z_]+)`", row[0])}

    def test_the_page_has_every_reason_not_to_tee_a_batch(self):
        read = lambda path: (ROOT / "src" / path).read_text()
        labels = r"fn metric_label\(&?self\) -> &'static str \{.*?\n    \}"
        of_errors = "".join("".join(re.findall(labels, read(path), re.DOTALL)) for path in ("platform/mod.rs", "queue/mod.rs"))
        reasons = re.findall(r'=> "([a-z_]+)"', of_errors)
        self.assertEqual(len(reasons), 10)
        reasons += re.findall(r'Err\("([a-z_]+)"\)', read("proxy/tee/mod.rs"))
        reasons += re.findall(r'\bpassing\(.*, "([a-z_]+)"\)', read("proxy/capture.rs"))
        self.assertEqual(set(self.reasons_of_the_page()), set(reasons))

    def test_the_alert_has_the_reasons_that_are_holes(self):
        rule = next(each for each in self.rules if each["alert"] == "FlagtapBatchesNotTeed")
        (reasons,) = re.findall(r'reason=~"([^"]*)"', rule["expr"])
        holes = sorted(reason for reason, hole in self.reasons_of_the_page().items() if hole == "**yes**")
        self.assertEqual(reasons.split("|"), holes)
        # Those that are shown with 0 from the start.
        text = (ROOT / "src/proxy/tee/mod.rs").read_text()
        (count, listed), = re.findall(r"\bconst HOLES: \[&str; (\d+)\] = \[(.*?)\];", text, re.DOTALL)
        shown = re.findall(r'"([a-z_]+)"', listed)
        self.assertEqual(len(shown), int(count))
        self.assertEqual(sorted(shown), sorted(holes))

    def test_the_page_has_every_answer_of_the_relays_own(self):
        text = (ROOT / "src/proxy/failure.rs").read_text().split("pub fn reason(")[1]
        shown = [reason for row in self.table("SDKs get 502, 503 or 504") for reason in re.findall(r"`([a-z_]+)`", row[1])]
        self.assertEqual(set(shown), set(re.findall(r'=> "([a-z_]+)"', text)))

    def test_every_alert_has_its_section(self):
        text = (ROOT / "docs/operations.md").read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        for rule in self.rules:
            page, anchor = rule["annotations"]["runbook_url"].split("#")
            with self.subTest(rule["alert"]):
                self.assertTrue(page.endswith("/docs/operations.md"))
                self.assertIn(anchor, anchors)
                self.assertTrue(f"| `{rule['alert']}` | [" in text and f"(#{anchor})" in text, "the table lacks the alert")


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]

    def test_panels_say_what_they_show_and_do_not_overlap(self):
        taken = {}
        for panel in self.panels:
            with self.subTest(panel.get("title")):
                for said in panel["title"], panel["description"], panel["fieldConfig"]["defaults"]["unit"]:
                    self.assertTrue(said)
                self.assertTrue(all(target["legendFormat"] for target in panel["targets"]))
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], 24)
                for x in range(place["x"], place["x"] + place["w"]):
                    for y in range(place["y"], place["y"] + place["h"]):
                        self.assertIsNone(taken.setdefault((x, y), None), f"overlaps {taken[x, y]}")
                        taken[x, y] = panel["title"]
        for key in "id", "title":
            self.assertEqual(len({panel[key] for panel in self.panels}), len(self.panels))
        # Grafana moves panels up, so a hole would be another layout than this one.
        self.assertEqual(len(taken), 24 * (max(y for _, y in taken) + 1))

    def test_what_an_operator_is_woken_for_can_be_seen(self):
        shown = {name for panel in self.panels for target in panel["targets"] for name in named(target["expr"])}
        wanted = {f"flagtap_{name}" for name in [
            "request_errors_total", "queue_available", "queue_quarantine_bytes", "queue_dead_letters", "batches_not_teed_total", "events_not_teed_total",
            "destination_oldest_waiting_seconds", "destination_breaker", "destination_paused", "destination_blocked",
            "destination_events_evicted_total", "destination_events_dropped_total", "destination_events_corrupt_total",
            "destination_events_skipped_total", "injector_reviews_total", "injector_certificate_failures_total",
        ]}
        self.assertEqual(wanted - shown, set())

    def test_every_metric_of_the_dashboard_exists(self):
        known = support.metrics()
        expressions = [target["expr"] for panel in self.panels for target in panel["targets"]]
        self.assertGreater(len(expressions), 12)
        for expression in expressions:
            with self.subTest(expression):
                self.assertTrue(named(expression))
                self.assertEqual(named(expression) - known, set())
        plain = [each.replace("$__rate_interval", "5m") for each in expressions]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(plain)]
            yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
            file.flush()
            run(PROMTOOL, "check", "rules", file.name)


if __name__ == "__main__":
    unittest.main()
