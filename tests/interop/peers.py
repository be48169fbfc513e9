"""Both ends of a routed link in one loop: devices and a hub, each of them Qpid Proton, the gateway between them.

Everything runs in the calling thread while `Loop.wait` asks its question, so a scenario reads as a dialogue: the device does
something, the hub sees it. The hub speaks TLS, as the gateway asks of every hub; it does only what a scenario tells it.
"""

import socket
import time

from proton import Delivery, Endpoint, Handler, Message, SSLDomain, Terminus
from proton.reactor import Container

from fieldgate import free_port
from processes import DEADLINE, Failure

OUTCOMES = {
    Delivery.ACCEPTED: "accepted",
    Delivery.REJECTED: "rejected",
    Delivery.RELEASED: "released",
    Delivery.MODIFIED: "modified",
}


def outcome(delivery):
    """The word for what the other side says of a delivery; None while it says nothing."""
    return OUTCOMES.get(delivery.remote_state)


def error(condition):
    """A condition as (name, description, info), or None."""
    return condition and (condition.name, condition.description, condition.info)


class Incoming:
    """A delivery on its way in: its bytes so far, and whether they are all there."""

    def __init__(self, delivery):
        self.delivery = delivery
        self.tag = delivery.tag
        self.data = bytearray()
        self.parts = 0
        self.complete = False
        self.aborted = False
        self.settled = False

    def message(self):
        """The decoded message."""
        message = Message()
        message.decode(bytes(self.data))
        return message

    def body(self):
        """The body as bytes or as the value that it is."""
        body = self.message().body
        return bytes(body) if isinstance(body, memoryview) else body

    def settle(self, state, **fields):
        """Says what became of it, and that this is the end."""
        for name, value in fields.items():
            setattr(self.delivery.local, name, value)
        self.delivery.update(state)
        self.delivery.settle()

    def accept(self):
        self.settle(Delivery.ACCEPTED)


class LinkEnd:
    """One end of a link."""

    def __init__(self, loop, link):
        self.loop = loop
        self.link = link
        self.name = link.name
        self.deliveries = []
        self.attached = False
        self.reads = True
        self.ended = None  # "closed" or "detached" by the other side
        self.error = None
        link.end = self

    @property
    def peer(self):
        """The connection of this end."""
        return self.link.connection.peer

    # What the other side did

    def complete(self):
        """The deliveries that are wholly here."""
        return [one for one in self.deliveries if one.complete]

    def take(self, count=1, what=None):
        """Waits for so many whole deliveries in all; gives them."""
        self.loop.wait(lambda: len(self.complete()) >= count or self.ended, what or f"{count} deliveries on {self.name}")
        if len(self.complete()) < count:
            raise Failure(f"{self.name} {self.ended} with {self.error} after {len(self.complete())} of {count} deliveries")
        return self.complete()

    def is_refused(self):
        """An attach without its terminus is a refusal: the error comes with the detach."""
        terminus = self.link.remote_target if self.link.is_sender else self.link.remote_source
        return terminus.type == Terminus.UNSPECIFIED

    def wait_attached(self):
        """Waits for the answer to the attach, which must not be a refusal."""
        self.loop.wait(lambda: self.attached or self.ended, f"the answer to the attach of {self.name}")
        if self.ended or self.is_refused():
            self.wait_ended()
            raise Failure(f"the attach of {self.name} is refused: {self.ended} with {self.error}")
        return self

    def wait_ended(self):
        """Waits for the other side's detach: ("closed" | "detached", error)."""
        self.loop.wait(lambda: self.ended, f"the detach of {self.name}")
        return self.ended, self.error

    def wait_credit(self, credit):
        """Waits until exactly so much credit is there."""
        try:
            self.loop.wait(lambda: self.link.credit == credit, f"credit {credit} on {self.name}")
        except Failure as failure:
            raise Failure(f"{failure}; it is {self.link.credit}") from None
        return self

    # What this side does

    def pause(self):
        """Reads nothing from now on; `go_on` reads it."""
        self.reads = False

    def go_on(self):
        """Reads what has come meanwhile, and goes on reading."""
        self.reads = True
        while (delivery := self.link.current) and (delivery.readable or not delivery.partial):
            self.loop.read(delivery)
            if delivery.partial:
                break

    def send(self, message, tag=None, settled=False):
        """Sends a whole message, or bytes as they are; gives the delivery."""
        delivery = self.link.delivery(tag or self.link.delivery_tag())
        data = message if isinstance(message, bytes) else message.encode()
        if data:
            self.link.stream(data)
        if settled:
            delivery.settle()
        else:
            self.link.advance()
        return delivery

    def begin(self, data, tag):
        """Sends the beginning of a message; `go_on` sends more, `link.advance()` ends it."""
        delivery = self.link.delivery(tag)
        self.link.stream(data)
        return delivery

    def outcome(self, delivery):
        """Waits for the outcome of a delivery of this link, settled by the other side; settles it as well."""
        self.loop.wait(lambda: delivery.settled or self.ended, f"the outcome of delivery {delivery.tag} on {self.name}")
        said = outcome(delivery)
        delivery.settle()
        return said

    def sent(self, message, **more):
        """Sends and gives the outcome."""
        return self.outcome(self.send(message, **more))

    def close(self):
        """Closes and waits for the other side's answer."""
        self.link.close()
        return self.wait_ended()

    def detach(self):
        """Detaches, not for good, and waits for the other side's answer."""
        self.link.detach()
        return self.wait_ended()


class Peer:
    """One connection."""

    def __init__(self, loop, connection):
        self.loop = loop
        self.connection = connection
        self.links = []
        self.sessions_ended = []
        self.opened = False
        self.over = None  # the error of the close, or what the transport said, or "closed"
        connection.peer = self
        loop.peers.append(self)
        self._session = None

    def session(self, capacity=None):
        """A new session."""
        session = self.connection.session()
        if capacity:
            session.incoming_capacity = capacity
        session.open()
        return session

    def _default_session(self):
        if self._session is None:
            self._session = self.session()
        return self._session

    def sender(self, address, name, session=None, **settings):
        """A sender to an address; `prepare(link)` is called before the attach, `wait=False` does not wait for the answer."""
        return self._attach((session or self._default_session()).sender(name), "target", address, **settings)

    def receiver(self, address, name, session=None, credit=0, **settings):
        """A receiver from an address."""
        end = self._attach((session or self._default_session()).receiver(name), "source", address, **settings)
        if credit:
            end.link.flow(credit)
        return end

    def _attach(self, link, node, address, prepare=None, wait=True):
        end = LinkEnd(self.loop, link)
        self.links.append(end)
        getattr(link, node).address = address
        if prepare:
            prepare(link)
        link.open()
        return end.wait_attached() if wait else end

    def close(self):
        """Closes the connection and waits for the other side's answer."""
        self.connection.close()
        self.loop.wait(lambda: self.over, "the close of the connection")

    def cut(self):
        """Takes the connection away without a word."""
        # The socket itself: Proton would say `close` first.
        selectable = self.connection.transport and getattr(self.connection.transport, "_selectable", None)
        if selectable:
            selectable._delegate.shutdown(socket.SHUT_RDWR)


class Loop(Handler):
    """Proton's reactor and what it tells."""

    def __init__(self):
        super().__init__()
        self.container = Container(self)
        self.container.timeout = 0.05
        self.container.start()
        self.hubs = []
        self.peers = []

    def wait(self, question, what, deadline=DEADLINE):
        """Works until the answer is true, and gives it."""
        until = time.monotonic() + deadline
        while not (answer := question()):
            if time.monotonic() > until:
                raise Failure(f"waited {deadline:.0f} s for {what}")
            self.container.process()
        return answer

    def flush(self, peer):
        """Until all that this peer says is written to its socket."""
        self.container.process()
        self.wait(lambda: peer.over or peer.connection.transport.pending() <= 0, "an empty output buffer")

    def round_trip(self, peer):
        """Until the gateway has answered to everything that this peer said: a session begun and ended."""
        session = peer.session()
        self.wait(lambda: session.state & Endpoint.REMOTE_ACTIVE, "the begin of a session")
        session.close()
        self.wait(lambda: session.state & Endpoint.REMOTE_CLOSED, "the end of a session")

    def device(self, port, container="device", wait=True, tls=None, **options):
        """A device's connection, opened by both sides; over TLS with an `SSLDomain`."""
        self.container.container_id = container
        options = {"allowed_mechs": "ANONYMOUS", "reconnect": False, "heartbeat": None} | options
        url = f"amqps://localhost:{port}" if tls else f"amqp://127.0.0.1:{port}"
        peer = Peer(self, self.container.connect(url, ssl_domain=tls, **options))
        if wait:
            self.wait(lambda: peer.opened or peer.over, "the open of the gateway")
            if peer.over:
                raise Failure(f"the connection of {container} is over: {peer.over}")
        return peer

    def stop(self):
        """Closes every socket, without a word."""
        for hub in self.hubs:
            hub.away()
        for peer in self.peers:
            peer.cut()
        self.container.stop_events()

    # Proton's events

    def on_connection_remote_open(self, event):
        connection = event.connection
        if not hasattr(connection, "peer"):
            hub = connection._acceptor.hub
            hub.connections.append(Peer(self, connection))
            connection.hub = hub
            connection.container = "hub"
            connection.open()
        connection.peer.opened = True

    def on_session_remote_open(self, event):
        session = event.session
        if session.state & Endpoint.LOCAL_UNINIT:
            session.incoming_capacity = event.connection.hub.incoming_capacity
            session.open()

    def on_link_remote_open(self, event):
        link = event.link
        if hasattr(link, "end"):
            link.end.attached = True
            return
        if not hasattr(event.connection, "hub"):
            return
        end = LinkEnd(self, link)
        end.attached = True
        event.connection.peer.links.append(end)
        hub = event.connection.hub
        hub.links.append(end)
        hub.on_attach(end)

    def on_link_remote_close(self, event):
        self._ended(event, "closed")

    def on_link_remote_detach(self, event):
        self._ended(event, "detached")

    def _ended(self, event, how):
        link = event.link
        if not hasattr(link, "end"):
            return
        link.end.ended, link.end.error = how, error(link.remote_condition)
        if hasattr(event.connection, "hub") and not event.connection.hub.answers_detach:
            return
        if link.state & Endpoint.LOCAL_ACTIVE:
            if how == "closed":
                link.close()
            else:
                link.detach()

    def on_session_remote_close(self, event):
        event.connection.peer.sessions_ended.append(error(event.session.remote_condition))
        if event.session.state & Endpoint.LOCAL_ACTIVE:
            event.session.close()

    def on_connection_remote_close(self, event):
        if hasattr(event.connection, "peer"):
            event.connection.peer.over = error(event.connection.remote_condition) or "closed"
        event.connection.close()

    def on_transport_closed(self, event):
        connection = event.connection
        if connection is not None and hasattr(connection, "peer"):
            connection.peer.over = connection.peer.over or error(event.transport.condition) or "cut"

    def on_delivery(self, event):
        delivery = event.delivery
        if event.link.is_receiver and event.link.end.reads:
            self.read(delivery)

    @staticmethod
    def read(delivery):
        """Takes what has come of an incoming delivery."""
        link = delivery.link
        incoming = getattr(delivery, "incoming", None)
        if incoming is None:
            incoming = delivery.incoming = Incoming(delivery)
            link.end.deliveries.append(incoming)
        if incoming.complete or incoming.aborted:
            return
        if delivery.aborted:
            incoming.aborted = True
            delivery.settle()
            return
        if delivery.pending:
            incoming.data += link.recv(delivery.pending)
            incoming.parts += 1
        if not delivery.partial:
            incoming.settled = delivery.settled
            incoming.complete = True
            link.advance()


class Hub:
    """A hub on a port of its own: takes connections and sessions, answers attaches, and leaves the rest to the scenario."""

    def __init__(self, loop, certificates, port=None):
        self.loop = loop
        self.port = port or free_port()
        self.connections = []
        self.links = []
        self.incoming_capacity = 1 << 20
        self.answers_detach = True
        self.on_attach = self.answer
        self._domain = SSLDomain(SSLDomain.MODE_SERVER)
        self._domain.set_credentials(certificates.cert, certificates.key, None)
        self._acceptor = None
        loop.hubs.append(self)

    def listen(self):
        """Takes connections from now on."""
        # The loop may still have to close the socket of the last time.
        self._acceptor = self.loop.wait(self._listener, f"port {self.port}")
        self._acceptor.hub = self
        return self

    def _listener(self):
        try:
            return self.loop.container.listen(f"amqps://127.0.0.1:{self.port}", ssl_domain=self._domain)
        except OSError:
            return None

    def away(self):
        """Takes no more connections."""
        if self._acceptor:
            self._acceptor.close()
            self._acceptor = None

    def answer(self, end):
        """The attach back as it came."""
        link = end.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.snd_settle_mode, link.rcv_settle_mode = link.remote_snd_settle_mode, link.remote_rcv_settle_mode
        link.open()

    def answer_as(self, end, address):
        """Makes a node of this address for an attach that asks for a dynamic one."""
        link = end.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        (link.source if link.is_sender else link.target).address = address
        link.open()

    def refuse(self, end, condition):
        """An attach without its terminus, then a detach with the error."""
        end.link.source.type = end.link.target.type = Terminus.UNSPECIFIED
        end.link.open()
        end.link.condition = condition
        end.link.close()

    def wait_link(self, address, count=1):
        """Waits for the link to or from an address; the `count`th, where there are several."""

        def found():
            named = [end for end in self.links if address in (self.address(end), end.name)]
            return named[count - 1] if len(named) >= count else None

        try:
            return self.loop.wait(found, f"an attach to {address} at the hub")
        except Failure as failure:
            raise Failure(f"{failure}; there were {[self.address(end) for end in self.links]}") from None

    @staticmethod
    def address(end):
        """The address that the device asked for."""
        link = end.link
        return link.remote_target.address if link.is_receiver else link.remote_source.address
