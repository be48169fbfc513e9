"""The peers of the routed-AMQP benchmark: load and sink over libqpid-proton, compiled here, and haproxy as the floor."""

import json
import os
import shutil

from fieldgate import free_port
from processes import Failure, Process, run

CASES = [
    (1, 100, 1_000_000),
    (1, 1024, 600_000),
    (1, 65536, 20_000),
    (100, 100, 1_000_000),
    (100, 1024, 600_000),
    (100, 65536, 20_000),
]
"""Links (one on each connection), bytes of the body, messages in a round: some seconds each."""

HOST = "hub.example.net"
"""The name that the load puts into its open; the sink's certificate has it too."""

SINK_CREDIT = 500
PATIENCE = 300
LIBRARIES = ["-l:libqpid-proton-core.so.10", "-l:libqpid-proton-proactor.so.1", "-lpthread"]

HAPROXY = """\
global
    maxconn 4000
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


class Peers:
    """Sink (TLS and plain) and haproxy (plain in, TLS out to the sink), running; and the load to start."""

    def __init__(self, tools, directory):
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
        configuration = directory.file(
            "haproxy.cfg",
            HAPROXY.format(port=self.haproxy_port, tls_port=self.tls_port, ca=directory.sub("ca.pem"), host=HOST),
        )
        haproxy = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
        must([haproxy, "-c", "-f", configuration])
        self.haproxy = Process([haproxy, "-db", "-V", "-f", configuration], name="haproxy")
        self.haproxy.wait_for_line("Using epoll")

    def _certificates(self):
        path = self._directory.sub
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        must(["openssl", "req", "-x509", *key, "-subj", "/CN=bench ca", "-keyout", path("ca-key.pem"), "-out", path("ca.pem")])
        must(["openssl", "req", *key[:-2], "-subj", "/CN=hub", "-keyout", path("hub-key.pem"), "-out", path("hub.csr")])
        names = self._directory.file("names", f"subjectAltName=DNS:localhost,DNS:{HOST},IP:127.0.0.1\n")
        must(
            [
                *("openssl", "x509", "-req", "-days", "2", "-in", path("hub.csr"), "-extfile", names, "-CAcreateserial"),
                *("-CA", path("ca.pem"), "-CAkey", path("ca-key.pem"), "-out", path("hub.pem")),
            ]
        )

    def direct(self):
        """The paths without anything between: name -> (port, no process)."""
        return {"plain, direct": (self.plain_port, None), "tls, direct": (self.tls_port, None)}

    def gateway_sections(self):
        """The port for devices, and the configuration of a gateway that routes each connection to the sink over TLS."""
        port = free_port()
        off = {"listen": []}
        return port, {
            "amqp": {"listen": [f"127.0.0.1:{port}"], "authorise": "any"},
            "mqtt": off,
            "coap": off,
            "http": off,
            "upstream": {"url": f"amqps://localhost:{self.tls_port}", "ca_file": self._directory.sub("ca.pem")},
        }

    def load(self, port, links, size, messages):
        """One run of the load to a port: what it says; every message must have been accepted."""
        argv = [self._directory.sub("load"), "-p", str(port), "-n", str(links), "-m", str(messages), "-s", str(size)]
        argv += ["-H", HOST, "-x", str(PATIENCE)]
        if port == self.tls_port:
            argv += ["-T", self._directory.sub("ca.pem")]
        done = run(argv, PATIENCE + 10)
        answer = json.loads(done.out) if done.out.startswith("{") else {}
        if done.status != 0 or answer.get("acc") != messages:
            raise Failure(f"the load failed: {done}\n{self._sink.tail()}")
        return answer

    def stop(self):
        """Ends haproxy and the sink."""
        self.haproxy.kill()
        self._sink.stop()
