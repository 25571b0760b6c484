#!/usr/bin/env python3
"""Prints the bill of materials of the image's binary: CycloneDX 1.5, JSON, the same bytes for the same Cargo.lock.

From `cargo metadata` for the target that the image is for: what the binary links, and what is run to build it (scope
`excluded`); tests' and benches' crates are not in it.
"""

import hashlib
import json
import pathlib
import platform
import subprocess
import uuid

ROOT = pathlib.Path(__file__).parent.parent
TARGET = f"{platform.machine()}-unknown-linux-gnu"


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def edges(node, kinds):
    """The packages that a node depends on in one of these ways; `None` is a normal dependency."""
    for dependency in node["deps"]:
        if any(kind["kind"] in kinds for kind in dependency["dep_kinds"]):
            yield dependency["pkg"]


def reach(nodes, start, kinds):
    found, left = set(), [start]
    while left:
        package = left.pop()
        if package not in found:
            found.add(package)
            left.extend(edges(nodes[package], kinds))
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums, kind="library", scope="required"):
    licence = package["license"]
    made = {
        "type": kind,
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "scope": scope,
        "purl": purl(package),
    }
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if licence:
        # The slash is an old spelling of OR.
        made["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    if package.get("repository"):
        made["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return made


def main():
    import tomllib

    data = metadata()
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    root = data["resolve"]["root"]
    lock_text = (ROOT / "Cargo.lock").read_bytes()
    lock = tomllib.loads(lock_text.decode())
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock["package"]}
    linked = reach(nodes, root, {None})
    all_of_it = reach(nodes, root, {None, "build"})
    ordered = sorted(all_of_it - {root}, key=lambda package: purl(packages[package]))
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # From the content, so that the same lock gives the same document.
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(lock_text).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {"component": component(packages[root], {}, kind="application")},
        "components": [
            component(packages[package], checksums, scope="required" if package in linked else "excluded")
            for package in ordered
        ],
        "dependencies": [
            {
                "ref": purl(packages[package]),
                "dependsOn": sorted({purl(packages[to]) for to in edges(nodes[package], {None, "build"})}),
            }
            for package in [root, *ordered]
        ],
    }
    # Without white space: half of the image's other files would be indentation.
    print(json.dumps(bom, separators=(",", ":"), sort_keys=True))


if __name__ == "__main__":
    main()
