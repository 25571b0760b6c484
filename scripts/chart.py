#!/usr/bin/env python3
"""Writes what is generated of the Helm chart: values.schema.json and the table of values in its README.

Both come from values.yaml, whose comments that begin with "# --" say what a value means, and the schema of `config` from
the binary (`flagtap schema`). Needs PyYAML: run it with .tools/helm-python/bin/python, as `make chart` does.

    scripts/chart.py FLAGTAP           writes the files
    from chart import Chart            for the tests, which compare
"""
import json
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm/flagtap"
START, END = "<!-- values: made by `make chart` from values.yaml -->", "<!-- end of values -->"

# Kubernetes' own objects with defaults: what is not in values.yaml is allowed too.
OPEN = {"resources", "requests", "limits"}
# What Kubernetes takes as a number or as text.
NUMBER_OR_TEXT = {"cpu", "memory", "maxUnavailable"}


def text(pattern):
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def all_of(schema):
    """Returns the schema of a mapping whose values are of one schema."""
    return {"additionalProperties": schema}


ANNOTATIONS = all_of({"type": "string"})
LABELS = all_of(text("(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"))
QUANTITY = text(r"[0-9]+(?:\.[0-9]+)?(?:[KMGTPE]i|[kMGTPE])?")
# A name of an object that is a label too, and begins with a letter as a Service's must.
NAME = text("|[a-z](?:[-a-z0-9]*[a-z0-9])?")
HOSTS = {"items": text(r"(?:\*\.)?[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?")}

# What the default of a value does not tell of its type.
FORMS = {
    "nameOverride": NAME,
    "fullnameOverride": NAME,
    "gracePeriodSeconds": {"maximum": 2**31 - 1},
    "image.digest": text("|sha256:[0-9a-f]{64}"),
    "persistence.size": QUANTITY,
    "sidecar.dataSize": QUANTITY,
    # As `flagtap drain --within` takes it.
    "drainOrphans.within": text("[0-9]+(?:ms|[smhd])"),
    "drainOrphans.ordinals": {"items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "uniqueItems": True},
    "autoscaling.minReplicas": {"minimum": 1},
    "service.port": {"minimum": 1, "maximum": 65535},
    "service.annotations": ANNOTATIONS,
    "serviceAccount.annotations": ANNOTATIONS,
    "ingress.annotations": ANNOTATIONS,
    "podAnnotations": ANNOTATIONS,
    "podLabels": LABELS,
    "metrics.labels": LABELS,
    "nodeSelector": LABELS,
    "ingress.hosts": HOSTS,
    "httpRoute.hostnames": HOSTS,
    "extraEnv": {
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}, "value": {"type": "string"}, "valueFrom": {"type": "object"}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "injector.address": text(r"[0-9.]+|\[[0-9A-Fa-f:.]+\]"),
    # Others would be left out without a word, because the chart puts its own expression beside them.
    "injector.objectSelector": {
        "properties": {"matchLabels": {"type": "object"}, "matchExpressions": {"type": "array"}},
        "additionalProperties": False,
    },
}
# A secret of `config` names a variable and has nothing written beside it, because a ConfigMap is no place for it; `$${` is
# no variable. The schemes are for a webhook's `authorization`.
VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
BY_NAME = rf"^(?:(?:Bearer|Basic) )?{VARIABLE}$"
# A URL has no user and password, for the same reason; all of it can be a variable.
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
URL = rf"^(?:{SCHEME}[^/?#@\s]+|{VARIABLE})(?:[/?#]\S*)?$"


class Value:
    """A key of values.yaml: its path, its default, and what its comment says."""

    def __init__(self, path, node, default, comment, inner):
        self.path, self.node, self.default, self.comment, self.inner = path, node, default, comment, inner

    @property
    def choices(self):
        found = re.search(r" \(one of: ([^)]*)\)", self.comment or "")
        return found and found.group(1).split(", ")

    @property
    def meaning(self):
        return re.sub(r" \(one of: [^)]*\)", "", self.comment or "")


class Chart:
    """values.yaml, read with its comments."""

    def __init__(self, text=None):
        self.text = text if text is not None else (CHART / "values.yaml").read_text()
        self.lines = self.text.splitlines()
        self.values = self._mapping(yaml.compose(self.text), yaml.safe_load(self.text), "")

    def _mapping(self, node, default, path):
        values = []
        for key, value in node.value:
            inner_path = f"{path}.{key.value}" if path else key.value
            inner = []
            if isinstance(value, yaml.MappingNode) and default[key.value]:
                inner = self._mapping(value, default[key.value], inner_path)
                # A mapping none of whose keys is explained is Kubernetes' own, and explained as a whole.
                if not any(each.comment or each.inner for each in inner):
                    inner = []
            values.append(Value(inner_path, value, default[key.value], self._comment(key.start_mark.line), inner))
        return values

    def _comment(self, line):
        """Returns the comment right above a line from its last "# --" on; None if there is none."""
        above = []
        for text in reversed(self.lines[:line]):
            if not text.strip().startswith("#"):
                return None
            above.insert(0, text.strip().removeprefix("#").strip())
            if above[0].startswith("-- "):
                return " ".join(above).removeprefix("-- ")
        return None

    def leaves(self, values=None):
        """Returns the values that are set by themselves, in the order of the file."""
        for value in self.values if values is None else values:
            if value.inner:
                yield from self.leaves(value.inner)
            else:
                yield value

    def table(self):
        rows = ["| value | default | meaning |", "|---|---|---|"]
        for value in self._explained(self.values):
            default = json.dumps(value.default) if not value.inner else ""
            meaning = value.meaning
            if value.choices:
                meaning += ": " + ", ".join(f"`{choice}`" for choice in value.choices)
            rows.append(f"| `{value.path}` | {f'`{default}`' if default else ''} | {meaning} |")
        return "\n".join(rows)

    def _explained(self, values):
        for value in values:
            if value.comment:
                yield value
            yield from self._explained(value.inner)

    def readme(self, old):
        head, rest = old.split(START)
        return f"{head}{START}\n{self.table()}\n{END}{rest.split(END)[1]}"

    def schema(self, configuration):
        """Returns values.schema.json, given the schema that the binary prints."""
        schema = self._object(self.values)
        schema["$schema"] = configuration.pop("$schema")
        schema["title"] = "Values of the flagtap chart"
        schema["properties"]["config"] = by_name(configuration)
        # What Helm and parent charts add.
        schema["properties"]["global"] = {"type": "object"}
        schema["properties"]["enabled"] = {"type": "boolean", "description": "For the `condition` of a parent chart's dependency"}
        return json.dumps(schema, indent=1, sort_keys=True) + "\n"

    def _object(self, values):
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {value.path.rsplit(".", 1)[-1]: self._value(value) for value in values},
        }

    def _value(self, value):
        name = value.path.rsplit(".", 1)[-1]
        if value.inner:
            schema = self._object(value.inner)
            schema["additionalProperties"] = name in OPEN
        elif isinstance(value.default, bool):
            schema = {"type": "boolean"}
        elif name in NUMBER_OR_TEXT:
            schema = {"type": ["integer", "number", "string"]}
        elif isinstance(value.default, int):
            schema = {"type": "integer", "minimum": 0}
        else:
            schema = {"type": {str: "string", list: "array", dict: "object"}[type(value.default)]}
        if value.path == "secrets":
            schema |= {"propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}, "additionalProperties": {"type": "string"}}
        schema |= FORMS.get(value.path, {})
        if value.choices:
            schema["enum"] = value.choices
        if value.comment:
            schema["description"] = value.meaning
        return schema


def by_name(schema):
    """Demands of every secret in a schema that it names a variable, and of every URL that it has no password."""
    if isinstance(schema, list):
        return [by_name(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: by_name(each) for key, each in schema.items()}
    if schema.pop("writeOnly", False):
        schema["pattern"] = BY_NAME
    elif SCHEME in str(schema.get("pattern")):
        schema["pattern"] = URL
    return schema


def printed_by(flagtap):
    return json.loads(subprocess.run([flagtap, "schema"], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    chart = Chart()
    (CHART / "values.schema.json").write_text(chart.schema(printed_by(sys.argv[1])))
    readme = CHART / "README.md"
    readme.write_text(chart.readme(readme.read_text()))
