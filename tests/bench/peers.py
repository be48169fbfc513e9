"""The peers of the routed-AMQP benchmarks: load and sink over libqpid-proton, compiled here, haproxy as the floor, and
gateways."""

import json
import os
import shutil

from fieldgate import Role, free_port
from processes import Failure, Process, run

HOST = "hub.example.net"
"""The name that the load puts into its open; the sink's certificate has it too."""

SINK_CREDIT = 500
PATIENCE = 300
LIBRARIES = ["-l:libqpid-proton-core.so.10", "-l:libqpid-proton-proactor.so.1", "-lpthread"]

HAPROXY = """\
global
    maxconn 7000
defaults
    mode tcp
    timeout connect 10s
    timeout client 300s
    timeout server 300s
frontend devices
    bind 127.0.0.1:{port}
    default_backend hub
backend hub
    server sink 127.0.0.1:{tls_port} ssl verify required ca-file {ca} sni str({host}) verifyhost {host}
"""


def must(argv):
    """Runs a command that has to succeed."""
    done = run(argv, PATIENCE)
    if done.status != 0:
        raise Failure(str(done))
    return done


def gateway_sections(port, hub_port, ca_file, mode=None, **upstream):
    """The configuration of a gateway that routes every AMQP device to a hub over TLS: the one place that writes it.

    Without a mode the gateway does what it does by itself.
    """
    off = {"listen": []}
    modes = {"mode": mode} if mode else {}
    return {
        "amqp": {"listen": [f"127.0.0.1:{port}"], "authorise": "any"},
        "mqtt": off,
        "coap": off,
        "http": off,
        "upstream": {"url": f"amqps://localhost:{hub_port}", "ca_file": ca_file} | modes | upstream,
    }


class Gateway:
    """A gateway of its own in front of a hub."""

    numbered = 0

    def __init__(self, directory, hub_port, ca_file, mode=None, **upstream):
        Gateway.numbered += 1
        name = f"gateway-{Gateway.numbered}"
        self.port = free_port()
        sections = gateway_sections(self.port, hub_port, ca_file, mode, **upstream)
        self.role = Role("run", directory, f"{name}-state", sections, name).start().ready()

    @property
    def pid(self):
        return self.role.process.pid

    def stop(self):
        self.role.stop()


class Peers:
    """Sink (TLS and plain) and haproxy (plain in, TLS out to the sink), running; and the load to start."""

    def __init__(self, tools, directory):
        if not tools:
            raise Failure("routed AMQP wants --tools DIR with load.c and sink.c")
        self._directory = directory
        for program in ("gcc", "haproxy", "openssl"):
            if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin"):
                raise Failure(f"{program} is missing: apt-get install gcc libqpid-proton11-dev haproxy openssl")
        for name in ("load", "sink"):
            must(["gcc", "-O2", "-Wall", "-o", directory.sub(name), os.path.join(tools, f"{name}.c"), *LIBRARIES])
        self._certificates()
        self.tls_port, self.plain_port, self.haproxy_port = free_port(), free_port(), free_port()
        self._sink = Process(
            [
                directory.sub("sink"),
                *("-p", str(self.tls_port), "-P", str(self.plain_port), "-c", str(SINK_CREDIT)),
                *("-k", directory.sub("hub-key.pem"), "-C", directory.sub("hub.pem")),
            ],
            name="sink",
        )
        self._sink.wait_for_line("listening", times=2)
        self.haproxy = None
        self.restart_haproxy()

    def restart_haproxy(self):
        """A fresh haproxy, whose memory is that of no connection."""
        if self.haproxy:
            self.haproxy.kill()
        configuration = self._directory.file(
            "haproxy.cfg",
            HAPROXY.format(port=self.haproxy_port, tls_port=self.tls_port, ca=self.ca_file, host=HOST),
        )
        program = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
        must([program, "-c", "-f", configuration])
        self.haproxy = Process([program, "-db", "-V", "-f", configuration], name="haproxy")
        self.haproxy.wait_for_line("Using epoll")

    @property
    def ca_file(self):
        return self._directory.sub("ca.pem")

    def _certificates(self):
        path = self._directory.sub
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        must(["openssl", "req", "-x509", *key, "-subj", "/CN=bench ca", "-keyout", path("ca-key.pem"), "-out", self.ca_file])
        must(["openssl", "req", *key[:-2], "-subj", "/CN=hub", "-keyout", path("hub-key.pem"), "-out", path("hub.csr")])
        names = self._directory.file("names", f"subjectAltName=DNS:localhost,DNS:{HOST},IP:127.0.0.1\n")
        must(
            [
                *("openssl", "x509", "-req", "-days", "2", "-in", path("hub.csr"), "-extfile", names, "-CAcreateserial"),
                *("-CA", self.ca_file, "-CAkey", path("ca-key.pem"), "-out", path("hub.pem")),
            ]
        )

    def direct(self):
        """The paths without anything between: name -> (port, no process)."""
        return {"plain, direct": (self.plain_port, None), "tls, direct": (self.tls_port, None)}

    def floor(self):
        """The path through haproxy."""
        return {"haproxy": (self.haproxy_port, self.haproxy.pid)}

    def gateway(self, mode=None):
        """A gateway in front of the sink."""
        return Gateway(self._directory, self.tls_port, self.ca_file, mode)

    def _command(self, port, links, *arguments):
        trust = ["-T", self.ca_file] if port == self.tls_port else []
        given = map(str, arguments)
        return [self._directory.sub("load"), "-p", str(port), "-n", str(links), "-H", HOST, "-x", str(PATIENCE), *given, *trust]

    def load(self, port, links, size, messages, rate=None):
        """One run of the load to a port: what it says; every message must have been accepted."""
        paced = ["-r", rate] if rate else []
        done = run(self._command(port, links, "-m", messages, "-s", size, *paced), PATIENCE + 10)
        answer = json.loads(done.out) if done.out.startswith("{") else {}
        if done.status != 0 or answer.get("acc") != messages:
            raise Failure(f"the load failed: {done}\n{self._sink.tail()}")
        return answer

    def hold(self, port, links, size=0, messages=0, first_id=1_000_000):
        """Devices that are attached, have sent so many messages each, and stay until the process is killed."""
        arguments = ["-i", PATIENCE, "-W", messages, "-s", size, "-I", first_id]
        process = Process(self._command(port, links, *arguments), name="held devices")
        process.wait_for_line("READY", deadline=PATIENCE)
        return process

    def stop(self):
        """Ends haproxy and the sink."""
        self.haproxy.kill()
        self._sink.stop()
