#!/usr/bin/env python3
"""Judges tests/golden independently: computes from tests/traffic what has to be exported, and compares.

    oracle.py [BUILD...]

Shares no code with flagtap and works from the documented export format alone:

    {"project": ..., "environment": ..., "event": {"kind": ..., "id": <24 hex digits>, ...}, "version": 1 or 2}

What is exported: every event of a documented kind, except PHP's `feature` events without `trackEvents: true`, of every
batch that the events service accepted or gave no judgement on (5xx, 408, 429, no answer). A batch that arrives again, by
payload id or else by its bytes, is exported once. Kinds that the format documents with `contextKeys` have it derived from
`context` where the SDK sent only that. Numbers are compared as they are written, members with their order.

The same for what Segment and mParticle get (tests/golden/segment, tests/golden/mparticle): LaunchDarkly's documented
mappings, computed from the recordings with the settings of tests/it/mappings.rs. Only the event ids are taken over.
"""
import base64
import collections
import datetime
import gzip
import hashlib
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


class Text:
    """A string that holds this value's JSON."""

    def __init__(self, value):
        self.value = value


def same(got, wanted):
    """Compares with types, order and the digits of numbers."""
    if isinstance(wanted, Text):
        return type(got) is str and same(parse(got), wanted.value)
    if type(got) is not type(wanted):
        return False
    if isinstance(got, Members):
        return got.names() == wanted.names() and all(same(a[1], b[1]) for a, b in zip(got, wanted))
    if isinstance(got, list):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    return got == wanted


def as_text(value):
    """A value as the text that a string attribute has: a string as it is, anything else as its JSON."""
    if type(value) is str:
        return value
    return str(value) if isinstance(value, Number) else Text(value)


def identities(kind, event):
    """Whose event it is: kinds of context with their keys, in order. A user is of kind `user`."""
    user = event.get("user") or Members()
    key = event.get("userKey") or user.get("key") or (event.get("key") if kind == "alias" else None)
    if key:
        return None, {"user": str(key)}
    keys = event.get("contextKeys")
    keys = dict(keys) if keys else context_keys(event.get("context")) or {}
    return keys, {kind: str(key) for kind, key in keys.items() if key}


def is_anonymous(event):
    context = event.get("context") or Members()
    inner = {"user": context, "multi": context.get("user")}.get(context.get("kind"))
    return event.get("contextKind") == "anonymousUser" or any(
        who and who.get("anonymous") is True for who in (event.get("user"), inner)
    )


def given(*members):
    return Members((name, value) for name, value in members if value is not None)


def for_segment(event_id, version, kind, event):
    """The message of an event, None if it has none."""
    contexts, who = identities(kind, event)
    user, anonymous = who.get("user"), who.get("organization") if contexts else None
    if kind not in ("feature", "click", "custom", "pageview", "alias") or not (user or anonymous):
        return None
    alias, date = kind == "alias", int(float(event.get("creationDate")))
    second = datetime.datetime.fromtimestamp(date // 1000, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    source = hashlib.sha256(b"wk-0123456789abcdef0123456789abcd").hexdigest()[:12]
    message = given(
        ("type", {"pageview": "page", "alias": "alias"}.get(kind, "track")),
        ("event", kind if kind in ("feature", "click", "custom") else None),
        ("messageId", f"{ENVIRONMENT}-{event_id}-{source}"),
        ("userId", user),
        ("anonymousId", anonymous),
        ("previousId", event.get("previousKey") if alias else None),
        ("integrations", Members()),
        ("timestamp", f"{second}.{date % 1000:03}Z"),
        ("project", PROJECT if alias else None),
        ("environment", ENVIRONMENT if alias else None),
    )
    if alias:
        return message
    reason = event.get("reason") or Members()
    feature, names = kind == "feature", event.names()
    properties = given(
        ("project", PROJECT),
        ("environment", ENVIRONMENT),
        ("eventId", event_id),
        ("key", event.get("key")),
        ("version", Number(version)),
        ("contextKeys", Members(contexts.items()) if contexts else None),
        ("value", as_text(event.get("value")) if feature and "value" in names else None),
        ("flagVersion", event.get("version") if feature else None),
        ("default", as_text(event.get("default")) if feature and "default" in names else None),
        ("reasonKind", reason.get("kind") if feature else None),
        ("inExperiment", reason.get("inExperiment") if feature else None),
        ("prereqOf", event.get("prereqOf") if feature else None),
        ("variation", event.get("variation") if feature else None),
        ("url", event.get("url") if kind in ("click", "pageview") else None),
        ("selector", event.get("selector") if kind == "click" else None),
        ("metricValue", event.get("metricValue") if kind == "custom" else None),
    )
    return Members([*message, ("properties", properties)])


def for_mparticle(event_id, version, kind, event):
    """What a line of the golden file has of an event and its batch, None if mParticle does not get it."""
    _, who = identities(kind, event)
    users = given(
        ("other" if is_anonymous(event) else "customer_id", who.get("user")),
        ("other_id_2", who.get("organization")),
        ("other_id_3", who.get("device")),
    )
    if kind not in ("feature", "click", "custom", "pageview") or not users:
        return None
    feature, names, reason = kind == "feature", event.names(), event.get("reason") or Members()
    attributes = given(
        ("project", PROJECT),
        ("environment", ENVIRONMENT),
        ("version", str(version)),
        ("key", event.get("key")),
        ("value", as_text(event.get("value")) if feature and "value" in names else None),
        ("flag_version", str(event.get("version")) if feature and event.get("version") else None),
        ("default", as_text(event.get("default")) if feature and "default" in names else None),
        ("reason_kind", reason.get("kind") if feature else None),
        ("prerequisite_of", event.get("prereqOf") if feature else None),
        ("url", event.get("url") if kind in ("click", "pageview") else None),
        ("selector", event.get("selector") if kind == "click" else None),
        ("metric_value", str(event.get("metricValue")) if kind == "custom" and event.get("metricValue") else None),
    )
    screen = kind == "pageview"
    data = given(
        ("source_message_id", event_id),
        ("event_name", None if screen else kind),
        ("custom_event_type", None if screen else "navigation" if kind == "click" else "other"),
        ("screen_name", re.sub(r"\?[^#]*", "", event.get("url"), count=1) if screen else None),
        ("timestamp_unixtime_ms", Number(int(float(event.get("creationDate"))))),
        ("custom_attributes", attributes),
    )
    whole = Members([("event_type", "screen_view" if screen else "custom_event"), ("data", data)])
    return Members([("user_identities", users), ("environment", "production"), ("event", whole)])


def judge_mapping(name, mapping, build, exported):
    """Returns the problems of what a destination of another form got, and how many events those were."""
    golden = gzip.open(ROOT / "golden" / name / f"{build}.ndjson.gz", "rt", encoding="utf-8", newline="\n")
    lines = golden.read().split("\n")[:-1]
    wanted = [mapped for mapped in (mapping(*event) for event in exported) if mapped is not None]
    problems = [] if len(lines) == len(wanted) else [f"{name}: {len(lines)} events, not {len(wanted)}"]
    for number, (line, mapped) in enumerate(zip(lines, wanted), 1):
        if not same(parse(line), mapped):
            problems.append(f"{name}, line {number}: {line[:400]}\n        is not {mapped}")
    return problems, len(lines)


def judge(build):
    """Returns the problems of a build's golden files and the export's counts by kind."""
    problems, kinds, ids, exported = [], collections.Counter(), set(), []
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
        exported.append((event_id, version, event.get("kind"), Members(members)))
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
    for name, mapping in (("segment", for_segment), ("mparticle", for_mparticle)):
        wrong, kinds[f"to {name}"] = judge_mapping(name, mapping, build, exported)
        problems += wrong
    return problems, kinds


def main():
    builds = sys.argv[1:] or sorted(p.name.removesuffix(".jsonl.gz") for p in (ROOT / "traffic").glob("*.jsonl.gz"))
    failed = 0
    for build in builds:
        problems, kinds = judge(build)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        events = sum(count for kind, count in kinds.items() if kind in KINDS)
        print(f"{'FAILED' if problems else 'ok    '} {build}: {events} events ({counts})")
        for problem in problems[:10]:
            print("      ", problem)
        failed += bool(problems)
    print(f"oracle: {len(builds) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
