#!/usr/bin/env python3
"""Judges tests/golden independently: computes from tests/traffic what has to be exported, and compares.

    oracle.py [BUILD...]

Shares no code with flagtap and works from the documented export format alone:

    {"project": ..., "environment": ..., "event": {"kind": ..., "id": <24 hex digits>, ...}, "version": 1 or 2}

What is exported: every event of a documented kind, except PHP's `feature` events without `trackEvents: true`, of every
batch that the events service accepted or gave no judgement on (5xx, 408, 429, no answer). A batch that arrives again, by
payload id or else by its bytes, is exported once. Kinds that the format documents with `contextKeys` have it derived from
`context` where the SDK sent only that. Numbers are compared as they are written, members with their order.
"""
import base64
import collections
import gzip
import json
import pathlib
import re
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests"
PROJECT, ENVIRONMENT = "5744c96707c9900708000004", "578d1e02d2943862c52b9686"
KINDS = {"feature", "custom", "identify", "click", "pageview", "alias", "index", "debug", "summary"}
WITH_CONTEXT_KEYS = {"feature", "debug", "custom", "click", "pageview"}
EVENT_PATH = re.compile(r"^/(bulk|mobile|mobile/events|mobile/events/bulk|events/bulk/[^/]+)$")
BEACON_PATH = re.compile(r"^(/events/bulk/[^/]+)?/a/[^/]+\.gif$")
PRIVATE_TO_PHP = {"trackEvents", "debugEventsUntilDate", "excludeFromSummaries"}


class Number(str):
    """A number as it is written."""


class Members(list):
    """An object as its list of (name, value), in order and with repetitions."""

    def get(self, name):
        return next((value for key, value in reversed(self) if key == name), None)

    def names(self):
        return [key for key, _ in self]


def parse(text):
    return json.loads(text, object_pairs_hook=Members, parse_int=Number, parse_float=Number)


def context_keys(context):
    """The derived contextKeys of a context, None where it is malformed."""
    if not isinstance(context, Members):
        return None
    kind = context.get("kind")
    if kind == "multi":
        inner = [(name, value) for name, value in context if name != "kind"]
        if not all(isinstance(value, Members) and value.get("key") is not None for _, value in inner):
            return None
        return {name: value.get("key") for name, value in inner}
    if not isinstance(kind, str) or context.get("key") is None:
        return None
    return {kind: context.get("key")}


def batches(lines):
    """The deliveries that count: (credential, schema, unsummarized, events)."""
    seen = set()
    for line in lines:
        request = json.loads(line)
        headers = {name.lower(): value for name, value in request["headers"]}
        url = urllib.parse.urlsplit(request["path"])
        posted = request["method"] == "POST" and EVENT_PATH.match(url.path)
        beacon = request["method"] == "GET" and BEACON_PATH.match(url.path)
        if not posted and not beacon:
            continue
        answer = request["answer"]
        if isinstance(answer, int) and 400 <= answer < 500 and answer not in (408, 429):
            continue
        if beacon:
            encoded = urllib.parse.parse_qs(url.query)["d"][0]
            wire = encoded.encode()
            body = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        else:
            wire = request["body"].encode() if "body" in request else base64.b64decode(request["body_b64"])
            body = gzip.decompress(wire) if headers.get("content-encoding") == "gzip" else wire
        payload_id = headers.get("x-launchdarkly-payload-id")
        # Each scenario has a credential of its own, in the header or in the path.
        identity = ("id", payload_id) if payload_id else (headers.get("authorization"), url.path, wire)
        if identity in seen:
            continue
        seen.add(identity)
        events = parse(body.decode())
        if not isinstance(events, list) or isinstance(events, Members):
            continue
        if beacon:
            schema = 4 if any(e.get("context") or e.get("contextKeys") for e in events) else 3
        else:
            schema = int(headers.get("x-launchdarkly-event-schema", "1"))
        yield schema, "x-launchdarkly-unsummarized" in headers, events


def expected(lines):
    for schema, unsummarized, events in batches(lines):
        php = schema == 2 or unsummarized
        for event in events:
            kind = event.get("kind")
            if kind not in KINDS or (php and kind == "feature" and event.get("trackEvents") is not True):
                continue
            members = [(k, v) for k, v in event if not (php and k in PRIVATE_TO_PHP)]
            derived = None
            missing = event.get("context") is not None and event.get("contextKeys") is None
            if schema == 4 and kind in WITH_CONTEXT_KEYS and missing:
                derived = context_keys(event.get("context"))
            yield 2 if schema == 4 else 1, members, derived


def judge(build):
    """Returns the problems of one golden file and its counts by kind."""
    problems, kinds, ids = [], collections.Counter(), set()
    recording = gzip.open(ROOT / "traffic" / f"{build}.jsonl.gz", "rt", encoding="utf-8", newline="\n")
    golden = gzip.open(ROOT / "golden" / f"{build}.ndjson.gz", "rt", encoding="utf-8", newline="\n")
    wanted = list(expected(recording))
    lines = golden.read().split("\n")
    if lines.pop() != "":
        problems.append("the last line is not complete")
    if len(lines) != len(wanted):
        problems.append(f"{len(lines)} events, not {len(wanted)}")
    for number, (line, (version, members, derived)) in enumerate(zip(lines, wanted), 1):
        envelope = parse(line)
        event = envelope.get("event")
        kinds[event.get("kind")] += 1

        def wrong(what):
            problems.append(f"line {number}: {what}: {line[:300]}")

        if envelope.names() != ["project", "environment", "event", "version"]:
            wrong(f"envelope has {envelope.names()}")
        if (envelope.get("project"), envelope.get("environment")) != (PROJECT, ENVIRONMENT):
            wrong("project or environment")
        if envelope.get("version") != Number(version):
            wrong(f"version is not {version}")
        event_id = event.get("id")
        if not isinstance(event_id, str) or not re.fullmatch("[0-9a-f]{24}", event_id):
            wrong("id is not 24 hex digits")
            continue
        if event_id in ids:
            wrong("id is not unique")
        ids.add(event_id)
        moment = dict(members).get("creationDate") or dict(members).get("endDate")
        if moment is not None and int(event_id[:8], 16) != int(float(moment)) // 1000:
            wrong("id does not begin with the event's second")
        rest = Members((key, value) for key, value in event if key != "id")
        if derived is not None:
            last, keys = rest.pop()
            if last != "contextKeys" or dict(keys) != derived or len(keys) != len(derived):
                wrong(f"derived contextKeys are not {derived}")
        if list(rest) != members:
            wrong("members are not the ones that were sent")
    return problems, kinds


def main():
    builds = sys.argv[1:] or sorted(p.name.removesuffix(".jsonl.gz") for p in (ROOT / "traffic").glob("*.jsonl.gz"))
    failed = 0
    for build in builds:
        problems, kinds = judge(build)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        print(f"{'FAILED' if problems else 'ok    '} {build}: {sum(kinds.values())} events ({counts})")
        for problem in problems[:10]:
            print("      ", problem)
        failed += bool(problems)
    print(f"oracle: {len(builds) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
