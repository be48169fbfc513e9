"""What a listener asks of devices before their links are routed: TLS, a certificate, a login."""

import socket
import ssl
from contextlib import contextmanager

from proton import Message, SSLDomain

from brokers import Certificates
from fieldgate import Directory, Program, RoutedGateway, routed_sections, toml
from processes import Failure
from routed import MODES, World
from scenario import expect, expect_equal, scenario


@contextmanager
def world(mode, **listener):
    """A gateway with a listener as asked for."""
    here = World(mode, **listener)
    try:
        yield here
    except Failure as failure:
        raise Failure(f"{failure}\n{here.gateway.role.process.tail()}") from None
    finally:
        here.close()


def certificates():
    """A CA for all of them."""
    if World.certificates is None:
        World.certificates = Certificates(Directory())
    return World.certificates


def profile(**more):
    """The listener's TLS: the server's own certificate."""
    ours = certificates()
    return {"cert_file": ours.cert, "private_key_file": ours.key} | more


def trusting(cert=None):
    """A device that knows the CA, with a certificate of its own or without."""
    domain = SSLDomain(SSLDomain.MODE_CLIENT)
    domain.set_trusted_ca_db(certificates().ca)
    domain.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
    if cert:
        domain.set_credentials(*cert, None)
    return domain


def one_message(here, device, address="q/1"):
    up, at_hub = here.upstream(device, address)
    sent = up.send(Message(body="over TLS"))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(sent), "accepted")


def tls_version(port, version):
    """The version that a handshake with exactly this one ends in, or what went wrong."""
    context = ssl.create_default_context(cafile=certificates().ca)
    context.minimum_version = context.maximum_version = version
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as tcp:
            with context.wrap_socket(tcp, server_hostname="localhost") as secured:
                return secured.version()
    except OSError as error:
        return str(error)


def for_each_mode(name):
    """Lists a scenario for each mode."""

    def register(function):
        for mode in MODES:
            scenario(f"listeners, {mode}: {name}", own=True)(lambda mode=mode: function(mode))
        return function

    return register


@for_each_mode("devices over TLS are served, with 1.2 and with 1.3; plain ones are not")
def over_tls(mode):
    with world(mode, tls=profile(), require_ssl=True) as here:
        one_message(here, here.device("secured", tls=trusting()))
        expect_equal("1.2", tls_version(here.gateway.port, ssl.TLSVersion.TLSv1_2), "TLSv1.2")
        expect_equal("1.3", tls_version(here.gateway.port, ssl.TLSVersion.TLSv1_3), "TLSv1.3")
        plain = here.device("plain", wait=False)
        here.loop.wait(lambda: plain.over, "the end of a connection without TLS")
        expect("nothing was opened without TLS", not plain.opened)


@for_each_mode("a listener that does not require TLS takes both on one port")
def both(mode):
    with world(mode, tls=profile(), require_ssl=False) as here:
        one_message(here, here.device("secured", tls=trusting()))
        one_message(here, here.device("plain"), "q/2")


@for_each_mode("where certificates are required, only devices with one of the CA are served")
def client_certificates(mode):
    ours = certificates()
    asked = profile(ca_cert_file=ours.ca, client_certificates="required")
    with world(mode, tls=asked, require_ssl=True, authorise="any") as here:
        one_message(here, here.device("certified", tls=trusting(ours.issue("device-1"))))
        for name, domain in (
            ("nobody", trusting()),
            ("stranger", trusting(Certificates(Directory()).issue("device-1"))),
        ):
            device = here.device(name, wait=False, tls=domain)
            here.loop.wait(lambda device=device: device.over, f"the end of the connection of {name}")
            expect(f"nothing was opened for {name}", not device.opened)


@for_each_mode("a hub that another CA certifies gets nothing, and the device is told")
def hub_not_trusted(mode):
    with world(mode) as here:
        other = RoutedGateway(here.hub.port, Certificates(Directory()).ca, mode, ["q"]).start()
        device = here.loop.device(other.port, "deceived", wait=False)
        device.sender("q/secret", "up", wait=False)
        here.loop.wait(lambda: "certificate" in other.role.process.text(), "the gateway's word about the certificate")
        expect_equal("links at that hub", here.hub.links, [])
        other.role.process.kill()


@scenario("listeners: without TLS upstream, a password is not asked of devices", own=True)
def plain_without_tls():
    sections = routed_sections(0, 5672, certificates().ca, "per-connection", ["q"])
    del sections["connector"][0]["ssl_profile"], sections["ssl_profile"]
    sections["connector"][0] |= {"host": "127.0.0.1", "allow_plain_text": True}
    sections["listener"][0] |= {"port": 20_000, "sasl_mechanisms": ["PLAIN"]}
    done = Program.run("check", Directory().file("plain.toml", toml(sections)))
    expect(f"check should refuse: {done}", done.status != 0)
    for part in ("plain.toml", "PLAIN", "TLS"):
        expect(f"{part!r} should stand in: {done}", part in done.both)
