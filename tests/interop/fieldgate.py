"""The product as seen from outside: its command line, its configuration, its state directory, its admin pages.

The one place of the harness that knows how these are spelt.
"""

import base64
import hashlib
import hmac
import json
import os
import random
import re
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from processes import DEADLINE, Failure, Process, run

HUB_NAME = "localhost"
CONNECTION_STRING_FILE = "service-connection-string"
CA_FILE = "ca.pem"
LISTENERS = {"amqp": socket.SOCK_STREAM, "mqtt": socket.SOCK_STREAM, "coap": socket.SOCK_DGRAM, "http": socket.SOCK_STREAM}
"""The sections that face devices, and the kind of their sockets."""

EVENTS = "devices/{}/messages/events"
COMMANDS = "devices/{}/messages/devicebound"


def free_port():
    """A port that is free for TCP and UDP, below the range that the kernel gives to outgoing connections."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind(("127.0.0.1", port))
            return port
        except OSError:
            continue
    raise Failure("found no free port")


def toml(sections):
    """A configuration file: strings, numbers, booleans and lists are written as JSON writes them.

    A section that is a list is an array of tables.
    """
    text = []
    for name, section in sections.items():
        many = isinstance(section, list)
        for one in section if many else [section]:
            text.append(f"[[{name}]]" if many else f"[{name}]")
            text += [f"{key} = {json.dumps(value)}" for key, value in one.items()]
    return "\n".join(text) + "\n"


class Directory:
    """A directory for one site, removed at the end unless it is to be kept."""

    keep = False
    made = []

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="fieldgate-interop-")
        Directory.made.append(self.path)

    def file(self, name, text):
        path = os.path.join(self.path, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return path

    def sub(self, name):
        return os.path.join(self.path, name)

    @staticmethod
    def remove_all():
        for path in Directory.made:
            if Directory.keep:
                print(f"kept: {path}")
            else:
                shutil.rmtree(path, ignore_errors=True)


class Program:
    """The binary under test."""

    path = None

    @classmethod
    def start(cls, name, *arguments):
        return Process([cls.path, *arguments], name=name)

    @classmethod
    def run(cls, *arguments, deadline=DEADLINE):
        return run([cls.path, *arguments], deadline)


def listens(port):
    """Whether somebody takes connections on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Role:
    """A running `fieldgate run` or `fieldgate hub`, ready when its /healthz says so."""

    def __init__(self, command, directory, state, sections, name):
        self.admin = free_port()
        self.state = directory.sub(state)
        sections = dict(sections, admin={"listen": f"127.0.0.1:{self.admin}"})
        self.arguments = [command, "--config", directory.file(f"{name}.toml", toml(sections)), "--state-dir", self.state]
        self.name = name
        self.process = None

    def start(self):
        self.process = Program.start(self.name, *self.arguments)
        return self

    def ready(self, deadline=DEADLINE):
        """Polls /healthz, again after each line that the process prints."""
        until = time.monotonic() + deadline
        said = "nothing"
        while time.monotonic() < until:
            if not self.process.running:
                raise Failure(f"{self.name} ended with {self.process.wait()} at its start\n{self.process.tail()}")
            try:
                status, said = self.page("/healthz")
                if status == 200:
                    return self
            except OSError as error:
                said = str(error)
            self.process.wait_for_change(0.05)
        raise Failure(f"{self.name}: /healthz is not 200 after {deadline:.0f} s ({said})\n{self.process.tail()}")

    def listening(self, port, deadline=DEADLINE):
        """Waits until a device can connect; the hub need not be there."""
        self.process.wait_until(lambda: listens(port), f"its port {port}", deadline)
        return self

    def page(self, path):
        """Status and text of a page of the admin listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        """The counters and gauges of /metrics: the series with its labels -> value."""
        status, text = self.page("/metrics")
        if status != 200:
            raise Failure(f"/metrics answers {status}")
        series = re.findall(r"^([A-Za-z_:][\w:]*(?:\{.*\})?) ([0-9.eE+-]+|NaN)(?: \d+)?$", text, re.MULTILINE)
        return {name: float(value) for name, value in series}

    def stop(self):
        return self.process.stop()


class Hub:
    """The hub's service side, by the tool's own commands and by tokens that the harness signs itself."""

    def __init__(self, state):
        self.state = state

    def watch(self):
        return Watch(self.state)

    def send(self, device, text):
        """`hub send`: ends when the feedback is there; exit status 0 only for Success."""
        return Program.run("hub", "send", device, text, "--state-dir", self.state)

    def start_send(self, device, text):
        return Program.start(f"send {device}", "hub", "send", device, text, "--state-dir", self.state)

    def token(self, device):
        """`hub token`: a token for one device."""
        done = Program.run("hub", "token", device, "--state-dir", self.state)
        token = done.out.strip()
        if done.status != 0 or not token.startswith("SharedAccessSignature "):
            raise Failure(f"no token: {done}")
        return token

    def signed_token(self, device, seconds):
        """A token signed here, with the policy's key, valid until so many seconds from now (or ago)."""
        with open(os.path.join(self.state, CONNECTION_STRING_FILE), encoding="utf-8") as file:
            parts = dict(part.split("=", 1) for part in file.read().strip().split(";") if part)
        resource = urllib.parse.quote(f"{HUB_NAME}/devices/{device}", safe="")
        expiry = int(time.time() + seconds)
        key = base64.b64decode(parts["SharedAccessKey"])
        digest = hmac.new(key, f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
        signature = urllib.parse.quote(base64.b64encode(digest), safe="")
        policy = parts["SharedAccessKeyName"]
        return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={policy}"


class Watch:
    """`hub watch --json --from start`: what the hub received, read while it arrives."""

    def __init__(self, state):
        self._process = Program.start("watch", "hub", "watch", "--json", "--from", "start", "--state-dir", state)

    def received(self, device):
        """The messages of one device so far, in the hub's order."""
        return [
            message
            for stream, line in list(self._process.lines)
            if stream == "out" and line.startswith("{") and (message := json.loads(line))["device"] == device
        ]

    def wait(self, device, count):
        """The messages of one device once there are so many."""
        try:
            self._process.wait_until(lambda: len(self.received(device)) >= count, f"{count} messages from {device}")
        except Failure as failure:
            raise Failure(f"{failure}\n    from {device} came: {self.received(device)}") from None
        return self.received(device)

    def expect(self, device, *expected):
        """Waits for as many messages as are expected of a device and compares each: body, properties, system properties."""
        got = self.wait(device, len(expected))
        if len(got) != len(expected):
            raise Failure(f"{device}: {len(expected)} messages were sent, the hub has {len(got)}: {got}")
        for found, wanted in zip(got, expected, strict=True):
            for field in ("body", "properties"):
                if found[field] != wanted[field]:
                    raise Failure(f"{device}: {field} is {found[field]!r}, not {wanted[field]!r}")
            for key, value in wanted["system"].items():
                if found["system"].get(key) != value:
                    raise Failure(f"{device}: {key} is {found['system'].get(key)!r}, not {value!r}, in {found['system']}")

    def stop(self):
        self._process.kill()


def message(body, properties=None, **system):
    """What `expect` compares with; system properties by their AMQP names, with `_` for `-`."""
    named = {key.replace("_", "-"): value for key, value in system.items()}
    return {"body": body, "properties": properties or {}, "system": named}


PER_CONNECTION, SHARED = "per-connection", "shared"
"""How a connector uses its hub connections."""


def routed_sections(
    port, hub_port, ca_file, mode, routes, credentials=None, tls=None, hold=None, connector=None, profile=None, **listener
):
    """A gateway that does nothing but route links to another hub: the one place that knows how this is written.

    Devices are not asked for tokens. `routes` are prefixes; `credentials` are what a shared connection proves itself with;
    `tls` is the listener's profile; `connector` and `profile` are other settings of the connector and of its profile, the
    rest are those of the listener.
    """
    off = {name: {"listen": []} for name in LISTENERS if name != "amqp"}
    login = dict(zip(("sasl_username", "sasl_password"), credentials or (), strict=False))
    secured = {"ssl_profile": "devices"} if tls else {}
    more = (connector or {}) | ({"hold": hold} if hold else {})
    connector = {"name": "broker", "host": "localhost", "port": hub_port, "ssl_profile": "broker", "mode": mode} | more
    trust = {"name": "broker", "ca_cert_file": ca_file} | (profile or {})
    return off | {
        "listener": [{"name": "devices", "host": "127.0.0.1", "port": port} | secured | listener],
        "ssl_profile": [trust, *([{"name": "devices"} | tls] if tls else [])],
        "connector": [connector | login],
        "link_route": [{"prefix": prefix, "direction": "both", "connector": "broker"} for prefix in routes],
    }


class RoutedGateway:
    """A gateway whose device links go to one broker, or to a hub that a scenario plays."""

    def __init__(self, *arguments, **more):
        """The arguments are those of `routed_sections` after the port."""
        self._configure(lambda port: routed_sections(port, *arguments, **more))

    def _configure(self, sections):
        self.port = free_port()
        self.role = Role("run", Directory(), "state", sections(self.port), "gateway")

    @classmethod
    def of_sections(cls, sections):
        """A gateway with sections of the scenario's own; they are made for the port of its listener."""
        gateway = cls.__new__(cls)
        gateway._configure(sections)
        return gateway

    @classmethod
    def of_qpid_dispatch(cls, text):
        """A gateway that runs a `qdrouterd.conf` as it is; `@PORT@` in it becomes the port of its listener."""
        gateway = cls.of_sections(lambda _port: {})
        file = Directory().file("qdrouterd.conf", text.replace("@PORT@", str(gateway.port)))
        gateway.role.arguments[gateway.role.arguments.index("--config") + 1] = file
        return gateway

    def start(self):
        """Starts it and waits until devices can connect; the hub need not be there."""
        self.role.start()
        self.role.listening(self.port)
        return self

    def stop(self):
        return self.role.stop()


class Site:
    """A gateway with its listeners: with the embedded hub in the same process, or with a hub process beside it."""

    def __init__(self, separate_hub=False, authorise=None, mode=None, more=None, proven=False):
        self.directory = Directory()
        self.ports = {name: free_port() for name in LISTENERS}
        self.hub_port = free_port()
        sections = {name: {"listen": [f"127.0.0.1:{port}"]} for name, port in self.ports.items()}
        if authorise:
            sections["amqp"]["authorise"] = authorise
        if proven:
            # Nobody's word is taken: devices prove themselves to the registry.
            for name in ("mqtt", "coap", "http"):
                sections[name]["allow_anonymous"] = False
        if mode:
            sections["upstream"] = {"mode": mode}
        for name, section in (more or {}).items():
            sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
        hub = {"hub": {"listen": [f"127.0.0.1:{self.hub_port}"]}}
        self.hub_role = None
        if separate_hub:
            self.hub_role = Role("hub", self.directory, "hub-state", hub, "hub")
            sections["upstream"] = sections.get("upstream", {}) | {
                "connection_string_file": os.path.join(self.hub_role.state, CONNECTION_STRING_FILE),
                "ca_file": os.path.join(self.hub_role.state, CA_FILE),
            }
            self.gateway = Role("run", self.directory, "gateway-state", sections, "gateway")
        else:
            self.gateway = Role("run", self.directory, "state", sections | hub, "gateway")
        self.hub = Hub((self.hub_role or self.gateway).state)

    def start(self):
        for role in (self.hub_role, self.gateway):
            if role:
                role.start().ready()
        return self

    def stop(self):
        """Ends gateway, then hub; gives their exit statuses."""
        return [role.stop() for role in (self.gateway, self.hub_role) if role]
