#!/usr/bin/env python3
"""Takes the image apart and runs what is in it: in a bare, read-only chroot, as its user, on a network of its own.

    sudo tests/image/check.py target/image/oci     (make image-test calls it; it needs root, umoci and .tools/image)

The chroot holds what the image holds, one writable folder, and the three files that a container runtime adds (hosts,
resolv.conf and a configuration): no shell, no libraries, neither /proc nor /dev. The network is a namespace with nothing but
loopback: a name server that knows two names, LaunchDarkly's events service and a webhook behind TLS.
"""

import contextlib
import datetime
import http.client
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / ".tools/image"
PATIENCE = float(os.environ.get("RUST_TEST_PATIENCE_MS", "20000")) / 1000
LARGEST_TO_PULL, LARGEST_UNPACKED = 20_000_000, 20_000_000
USER = 10001
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
FILES = {"flagtap", BUNDLE, "etc/passwd", "etc/group", "etc/nsswitch.conf", "usr/share/flagtap/LICENSE", "usr/share/flagtap/sbom.cdx.json"}
UPSTREAM = "events.flagtap.test"
# Found only by way of `search`, as Services are.
SERVICE, SEARCH = "collector.shop", "svc.cluster.local"
IN_HOSTS = "events.in-hosts.test"
SDK_KEY = "sdk-11111111-2222-4333-8444-555555555555"
EVENT = [{"kind": "custom", "creationDate": 1700000000000, "key": "bought", "context": {"kind": "user", "key": "u"}}]


def main():
    if os.environ.get("FLAGTAP_INSIDE") != "1":
        # A network and mounts of its own, which end with it.
        command = ["unshare", "--mount", "--net", TOOLS / "bin/python", __file__, *sys.argv[1:]]
        os.execvpe(command[0], [str(part) for part in command], {**os.environ, "FLAGTAP_INSIDE": "1"})
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Image(pathlib.Path(sys.argv[1]), pathlib.Path(folder))) as image:
        checks = [value for name, value in globals().items() if name.startswith("check_")]
        for check in checks:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            started = time.monotonic()
            try:
                check(image)
                print(f"ok      {name} ({time.monotonic() - started:.1f} s)")
            except Exception as why:  # a failed check must not hide the others
                failed += 1
                print(f"FAILED  {name}: {type(why).__name__}: {why}")
    print(f"image: {len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


class Image:
    """The image, unpacked."""

    def __init__(self, layout, folder):
        tag = json.loads((layout / "index.json").read_text())["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        self.folder = folder
        inspected = subprocess.run(["skopeo", "inspect", "--config", f"oci:{layout}:{tag}"], check=True, stdout=subprocess.PIPE)
        self.config = json.loads(inspected.stdout)["config"]
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", folder / "bundle"], check=True, stderr=subprocess.DEVNULL)
        self.root = folder / "bundle/rootfs"
        self.authority = Authority()
        self.mounted = []

    def chroot(self, config=None, bundle=True, hosts=""):
        """A read-only chroot with the image in it; `bundle` adds the test's authority to the image's."""
        root = self.folder / f"root-{len(self.mounted)}"
        shutil.copytree(self.root, root, symlinks=True)
        # What a container runtime and Kubernetes mount.
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (root / "etc/resolv.conf").write_text(f"search shop.{SEARCH} {SEARCH} cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n")
        if config is not None:
            (root / "etc/flagtap").mkdir()
            (root / "etc/flagtap/config.yaml").write_text(json.dumps(config))
        if bundle:
            with open(root / BUNDLE, "ab") as file:
                file.write(self.authority.pem)
        mount = lambda *arguments: subprocess.run(["mount", *map(str, arguments)], check=True)
        mount("--bind", root, root)
        self.mounted.append(root)
        mount("-o", "remount,bind,ro", root)
        mount("-t", "tmpfs", "-o", f"uid={USER},gid={USER},mode=0750,size=256m", "tmpfs", root / "data")
        return root

    def close(self):
        """Gives the folders back to be removed."""
        for root in self.mounted:
            subprocess.run(["umount", "--recursive", root], check=True)

    def command(self, root, arguments, **more):
        """Runs the image's entry point as its user, with the image's environment and nothing else."""
        user, group = (int(part) for part in self.config["User"].split(":"))

        def enter():
            os.chroot(root)
            os.chdir(self.config["WorkingDir"])
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)

        [program] = self.config["Entrypoint"]
        environment = dict(entry.split("=", 1) for entry in self.config.get("Env") or [])
        return subprocess.Popen([program, *arguments], executable=program, env=environment, preexec_fn=enter, stdin=subprocess.DEVNULL, **more)


class Authority:
    """An authority that only the test's bundle trusts."""

    def __init__(self):
        self.key, self.certificate = make("flagtap test", None, None)
        self.pem = pem(self.certificate)

    def server(self, name):
        key, certificate = make(name, self.key, self.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            from cryptography.hazmat.primitives import serialization as form

            text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
            file.write(text + pem(certificate))
            file.flush()
            context.load_cert_chain(file.name)
        return context


def pem(certificate):
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def make(name, issuer_key, issuer):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    if issuer is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return key, builder.sign(issuer_key or key, hashes.SHA256())


class NameServer:
    """Answers A queries for what it knows, says that other names do not exist, and keeps what it was asked."""

    def __init__(self, known):
        self.known, self.asked = known, []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.socket.settimeout(0.1)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while not self.over.is_set():
            try:
                query, client = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            labels, place = [], 12
            while query[place]:
                labels.append(query[place + 1 : place + 1 + query[place]].decode())
                place += 1 + query[place]
            end = place + 5
            name, (kind,) = ".".join(labels).lower(), struct.unpack("!H", query[place + 1 : place + 3])
            self.asked.append(name)
            known = name in self.known
            answers = 1 if known and kind == 1 else 0
            head = query[:2] + struct.pack("!HHHHH", 0x8580 if known else 0x8583, 1, answers, 0, 0)
            record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 30, 4) + socket.inet_aton("127.0.0.1")
            self.socket.sendto(head + query[12:end] + record * answers, client)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.socket.close()


class Service:
    """An HTTPS server that answers every POST with one status and keeps what came."""

    def __init__(self, context, status):
        service = self
        self.received = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                service.received.append((self.path, self.headers["host"], body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A refused certificate is what some checks are about."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Running:
    """The image's process; ends with the block, and must end well."""

    def __init__(self, image, root, arguments=None):
        self.log = tempfile.TemporaryFile("w+")
        self.process = image.command(root, image.config["Cmd"] if arguments is None else arguments, stderr=self.log)
        self.root = root

    def __enter__(self):
        until(lambda: ask("/readyz") == 200 or self.process.poll() is not None, "it to be ready", self)
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}: {self.text()}")
        return self

    def text(self):
        self.log.seek(0)
        return self.log.read()

    def end(self):
        """Ends it as Kubernetes does; returns how long that took, seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        assert code == 0, f"it ended with {code}: {self.text()}"
        return time.monotonic() - started

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def ask(path, port=8031):
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", path)
        return connection.getresponse().status


def post():
    """Posts one event as a Go SDK does; returns the status and whose fault an own answer is."""
    connection = http.client.HTTPConnection("127.0.0.1", 8030, timeout=PATIENCE)
    headers = {"authorization": SDK_KEY, "content-type": "application/json", "x-launchdarkly-event-schema": "4"}
    connection.request("POST", "/bulk", json.dumps(EVENT), headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.headers.get("x-flagtap-error")


def until(condition, what, running=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}: {running.text() if running else ''}")
        time.sleep(0.02)


def config(upstream, collector=None):
    destinations = [{"name": "archive", "file": {"path": "/data/export"}}]
    if collector:
        destinations.append({"name": "hook", "webhook": {"url": f"https://{SERVICE}:{collector}/take"}})
    return {
        "listen": "127.0.0.1:8030",
        "telemetry": "127.0.0.1:8031",
        "upstream": {"url": upstream, "connect_timeout": "5s"},
        "shutdown": {"grace": "5s", "reserve": "2s"},
        "queue": {"sled": {"path": "/data/queue"}},
        "environments": [
            {
                "name": "production",
                "project_id": "5744c96707c9900708000004",
                "environment_id": "578d1e02d2943862c52b9686",
                "credentials": {"sdk_keys": [SDK_KEY]},
                "destinations": [destination["name"] for destination in destinations],
            }
        ],
        "destinations": destinations,
    }


SERVE = ["serve", "--config", "/etc/flagtap/config.yaml"]


def exported(root):
    return [line for file in (root / "data/export").rglob("*") if file.is_file() for line in file.read_text().splitlines()]


# --- what is in it


def check_the_image_says_how_it_is_run(image):
    config = image.config
    wanted = {"User": "10001:10001", "WorkingDir": "/data", "Entrypoint": ["/flagtap"], "Cmd": ["serve"]}
    assert {key: config.get(key) for key in wanted} == wanted, config
    assert set(config["ExposedPorts"]) == {"8030", "8031"} or set(config["ExposedPorts"]) == {"8030/tcp", "8031/tcp"}, config
    assert set(config["Volumes"]) == {"/data"}, config
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "source", "documentation", "version", "revision", "created"):
        assert labels.get(f"org.opencontainers.image.{name}") not in (None, "", "unknown"), f"label {name}: {labels}"
    manifest = (ROOT / "Cargo.toml").read_text()
    assert f'\nversion = "{labels["org.opencontainers.image.version"]}"\n' in manifest
    # The queue's tools need a folder for temporary files, and /data is the one that can be written to.
    assert [entry for entry in config.get("Env") or [] if not entry.startswith("PATH=")] == ["TMPDIR=/data"], config


def check_it_holds_what_it_needs_and_nothing_else(image):
    paths = [path for path in image.root.rglob("*") if not path.is_dir()]
    assert {str(path.relative_to(image.root)) for path in paths} == FILES, paths
    for path in image.root.rglob("*"):
        mode, owner = path.lstat().st_mode, path.lstat().st_uid
        assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH), f"{path}: {stat.filemode(mode)}"
        assert owner == (USER if path == image.root / "data" else 0), f"{path} belongs to {owner}"
    assert f"x:{USER}:{USER}:" in (image.root / "etc/passwd").read_text()
    assert (image.root / BUNDLE).read_text().count("BEGIN CERTIFICATE") > 100


def check_the_binary_is_static_and_small(image):
    binary = (image.root / "flagtap").read_bytes()
    headers = subprocess.run(["readelf", "--program-headers", "--dynamic", image.root / "flagtap"], check=True, stdout=subprocess.PIPE)
    assert b"INTERP" not in headers.stdout and b"NEEDED" not in headers.stdout, headers.stdout
    for path in (str(ROOT), os.path.expanduser("~/.cargo")):
        assert path.encode() not in binary, f"the binary holds {path}"
    size = sum(path.stat().st_size for path in image.root.rglob("*") if path.is_file())
    pull = sum(path.stat().st_size for path in (pathlib.Path(sys.argv[1]) / "blobs/sha256").iterdir())
    print(f"        {len(binary)} bytes of binary, {size} bytes unpacked, {pull} bytes to pull")
    assert pull < LARGEST_TO_PULL and size < LARGEST_UNPACKED, f"{pull} bytes to pull, {size} unpacked"


def check_the_bill_of_materials_is_one(image):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (image.root / "usr/share/flagtap/sbom.cdx.json").read_text()
    problem = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    assert problem is None, problem
    components = {component["name"]: component for component in json.loads(text)["components"]}
    assert {"hyper", "rustls", "sled", "aws-sdk-kinesis"} <= set(components), "crates are missing"
    assert components["sled"]["scope"] == "required" and components["cc"]["scope"] == "excluded"
    assert not {"proptest", "tempfile", "windows-sys"} & set(components), "it names what is not in the image"
    assert all("licenses" in component and "hashes" in component for component in components.values())


def check_the_dockerfile_is_clean(image):
    subprocess.run([TOOLS / "bin/hadolint", ROOT / "Dockerfile"], check=True)
    version = next(line.split('"')[1] for line in (ROOT / "rust-toolchain.toml").read_text().splitlines() if "channel" in line)
    assert f"FROM rust:{version}-bookworm AS build" in (ROOT / "Dockerfile").read_text(), f"not Rust {version}"


# --- what it does


def check_it_starts_on_its_defaults_and_writes_below_data_alone(image):
    root = image.chroot()
    with Running(image, root) as running:
        assert ask("/livez") == 200
        for what in ("live", "ready"):
            assert image.command(root, ["probe", what]).wait(PATIENCE) == 0
        running.end()
        assert {path.name for path in (root / "data").iterdir()} >= {"flagtap-data"}, list((root / "data").iterdir())
        assert '"level":"ERROR"' not in running.text(), running.text()
    assert image.command(root, ["probe", "live"], stderr=subprocess.DEVNULL).wait(PATIENCE) == 1


def check_the_queues_tools_find_room_for_their_copies(image):
    with NameServer({UPSTREAM}), Service(image.authority.server(UPSTREAM), 202) as upstream:
        root = image.chroot(config(f"https://{UPSTREAM}:{upstream.port}"))
        with Running(image, root, SERVE) as running:
            assert post() == (202, None), running.text()
            for tool in ("inspect", "verify"):
                looking = image.command(root, ["queue", tool, "--config", "/etc/flagtap/config.yaml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                said = looking.communicate(timeout=PATIENCE)
                assert looking.returncode == 0, f"queue {tool} beside the running relay: {said}"
            running.end()
        assert not list((root / "data").glob("flagtap-queue-*")), list((root / "data").iterdir())


def check_names_are_resolved_and_tls_is_verified_on_every_way_out(image):
    known = {UPSTREAM, f"{SERVICE}.{SEARCH}"}
    authority = image.authority
    with NameServer(known) as names, Service(authority.server(UPSTREAM), 202) as upstream, Service(authority.server(SERVICE), 200) as hook:
        root = image.chroot(config(f"https://{UPSTREAM}:{upstream.port}", hook.port))
        with Running(image, root, SERVE) as running:
            assert post() == (202, None), running.text()
            [(path, host, body)] = upstream.received
            assert (path, host, json.loads(body)) == ("/bulk", f"{UPSTREAM}:{upstream.port}", EVENT)
            until(lambda: hook.received, "the webhook to get the event", running)
            assert json.loads(hook.received[0][2])[0]["event"]["key"] == "bought"
            until(lambda: exported(root), "the event in the archive", running)
            assert known <= set(names.asked), names.asked
            took = running.end()
            print(f"        ended in {took:.1f} s")
            assert took < 6, f"it took {took} s to end"
            assert "no CA certificates found" not in running.text(), running.text()


def check_a_certificate_that_the_bundle_does_not_know_is_refused(image):
    with NameServer({UPSTREAM, f"{SERVICE}.{SEARCH}"}), Service(image.authority.server(UPSTREAM), 202) as upstream, Service(image.authority.server(SERVICE), 200) as hook:
        root = image.chroot(config(f"https://{UPSTREAM}:{upstream.port}", hook.port), bundle=False)
        with Running(image, root, SERVE) as running:
            status, fault = post()
            assert status == 502 and fault.startswith("upstream;"), (status, fault)
            # No judgement of the upstream's, so the event is kept, and the other destination gets it.
            until(lambda: exported(root), "the event in the archive", running)
            until(lambda: "certificate" in running.text(), "the refusal to be said", running)
            assert not upstream.received and not hook.received
            assert "no CA certificates found" not in running.text(), running.text()


def check_a_certificate_for_another_name_is_refused(image):
    with NameServer({UPSTREAM}), Service(image.authority.server("other.flagtap.test"), 202) as upstream:
        root = image.chroot(config(f"https://{UPSTREAM}:{upstream.port}"))
        with Running(image, root, SERVE):
            assert post()[0] == 502
            assert not upstream.received


def check_etc_hosts_comes_before_the_name_server(image):
    with NameServer(set()) as names, Service(image.authority.server(IN_HOSTS), 202) as upstream:
        root = image.chroot(config(f"https://{IN_HOSTS}:{upstream.port}"), hosts=f"127.0.0.1 {IN_HOSTS}\n")
        with Running(image, root, SERVE) as running:
            assert post() == (202, None), running.text()
            assert not names.asked, names.asked


def check_a_name_that_does_not_exist_is_an_answer_and_no_end(image):
    with NameServer(set()) as names:
        root = image.chroot(config(f"https://{UPSTREAM}"))
        with Running(image, root, SERVE) as running:
            status, fault = post()
            assert status == 502 and fault.startswith("upstream;"), (status, fault)
            assert UPSTREAM in names.asked, names.asked
            running.end()


if __name__ == "__main__":
    sys.exit(main())
