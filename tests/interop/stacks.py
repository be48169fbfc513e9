"""Three AMQP 1.0 stacks behind the same words: Qpid Proton (C, here in Python), rhea (JavaScript), fe2o3-amqp (Rust).

A device is told one word at a time, and each word is answered when the other side has answered:

    open       port, container, user, password
    token      audience, token                  -> status
    sender     link, address, settled           (settled: True, False, or absent for both)
    send       link, body | size, properties, format -> outcome, condition, text
    receiver   link, address, second            (second: the sender settles first)
    credit     link, credit
    receive    link, then                       -> body, length, sha256, properties, format, delivery_count
    drain      link, credit                     -> received
    close      link

A word that fails is answered with `error`, the condition that the other side gave or `none`, and `text`.
"""

import hashlib
import json
import os
import subprocess

from proton import Condition, Delivery, Link, Message

from brokers import CACHE, HERE
from peers import Loop
from processes import Failure, Process

PATTERN = b"0123456789abcdefghijklmnopqrstuvwxyz"


def content(size):
    """So many bytes that each of the clients can make."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Refused(Failure):
    """The other side said no."""

    def __init__(self, word, answer):
        super().__init__(f"{word} fails: {answer['error']}: {answer['text']}")
        self.condition = answer["error"]
        self.text = answer["text"]


class Device:
    """What all stacks share: a word that fails raises."""

    def __init__(self, port, container, user=None, password=None, **more):
        login = {"user": user, "password": password} if user else {}
        try:
            self.ask("open", port=port, container=container, **login, **more)
        except Failure:
            self.leave()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def ask(self, word, **order):
        answer = self.answer({"do": word} | order)
        if "error" in answer:
            raise Refused(f"{self.name}: {word} {order.get('link', '')}".strip(), answer)
        return answer


class ProcessDevice(Device):
    """A client in a process of its own, which reads and writes JSON lines."""

    def __init__(self, *arguments, **more):
        self._process = Process(self.argv(), name=self.name, stdin=subprocess.PIPE)
        self._answers = 0
        super().__init__(*arguments, **more)

    def answer(self, order):
        self.tell(order.pop("do"), **order)
        return self.hear()

    def tell(self, word, **order):
        """Asks, and does not wait: the other side may have to be played meanwhile."""
        self._process.write_line(json.dumps({"do": word} | order))
        self._answers += 1

    def has_answered(self):
        """Whether the answer to what was told last is there."""
        return len(self._out()) >= self._answers

    def hear(self):
        """The answer to what was told last."""
        self._process.wait_until(self.has_answered, f"answer {self._answers}")
        return json.loads(self._out()[self._answers - 1])

    def _out(self):
        return [line for stream, line in self._process.lines if stream == "out"]

    def leave(self):
        """Closes the connection as the protocol says, and ends the client."""
        self._process.close_stdin()
        try:
            self._process.wait()
        finally:
            self._process.kill()


class Rhea(ProcessDevice):
    name = "rhea"
    drains, formats, mumbles = True, True, False

    @staticmethod
    def argv():
        return ["node", os.path.join(HERE, "rhea", "client.js"), os.path.join(CACHE, "rhea")]


class Fe2o3(ProcessDevice):
    """Built with the workspace's examples."""

    name = "fe2o3-amqp"
    drains, formats, mumbles = False, True, True
    """Its receiver does not say when a drain is over; a refusal may be told without the reason, as `IllegalState`."""

    program = None

    @classmethod
    def argv(cls):
        if not os.access(cls.program, os.X_OK):
            raise Failure(f"no client at {cls.program}: build it with `cargo build --release --example fe2o3_client`")
        return [cls.program]


class Proton(Device):
    """In this process."""

    name = "Qpid Proton"
    drains, formats, mumbles = True, False, False
    """Its Python side does not show the message format."""

    def __init__(self, *arguments, **more):
        self._loop = Loop()
        self._links = {}
        self._received = {}
        super().__init__(*arguments, **more)

    def leave(self):
        if self._loop.peers and not self._loop.peers[0].over:
            self._loop.peers[0].close()
        self._loop.stop()

    def answer(self, order):
        word = order.pop("do")
        try:
            return getattr(self, f"_{word}")(**order)
        except Failure as failure:
            link = self._links.get(order.get("link"))
            peer = self._loop.peers[0]
            ends = [peer.over, *peer.sessions_ended, link and link.error]
            name, text, _ = next((end for end in ends if isinstance(end, tuple)), ("none", str(failure), None))
            return {"error": name, "text": text}

    def _open(self, port, container, user=None, password=None):
        login = {"user": user, "password": password, "allowed_mechs": "PLAIN"} if user else {}
        self._peer = self._loop.device(port, container, **login)
        return {}

    def _token(self, audience, token):
        sender = self._peer.sender("$cbs", "cbs-sender")
        receiver = self._peer.receiver("$cbs", "cbs-receiver", credit=1)
        self._loop.wait(lambda: sender.link.credit, "credit of $cbs")
        properties = {"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": audience}
        sender.send(Message(body=token, id="token-1", reply_to="cbs", properties=properties))
        incoming = receiver.take()[0]
        answer = incoming.message()
        incoming.accept()
        if answer.correlation_id != "token-1":
            raise Failure(f"the answer of $cbs is to {answer.correlation_id!r}")
        return {"status": answer.properties["status-code"]}

    def _attach(self, role, link, address, prepare):
        self._links[link] = role(address, link, prepare=prepare, wait=False)
        self._loop.wait(lambda: self._links[link].attached or self._over(link), f"the attach of {link}")
        if self._over(link) or self._links[link].is_refused():
            self._loop.wait(lambda: self._over(link), f"the refusal of {link}")
            raise Failure("refused")
        return {}

    def _over(self, link):
        return self._links[link].ended or self._peer.sessions_ended or self._peer.over

    def _sender(self, link, address, settled=None):
        mode = {None: Link.SND_MIXED, True: Link.SND_SETTLED, False: Link.SND_UNSETTLED}[settled]

        def prepare(end):
            end.snd_settle_mode = mode

        return self._attach(self._peer.sender, link, address, prepare)

    def _send(self, link, body=None, size=None, properties=None, settled=False):
        end = self._links[link]
        data = content(size) if body is None else body.encode()
        self._loop.wait(lambda: end.link.credit > 0 or self._over(link), f"credit on {link}")
        message = Message(body=data, inferred=True, properties=properties or {})
        if settled:
            end.send(message, settled=True)
            self._loop.flush(self._peer)
            return {"outcome": "settled"}
        sent = end.send(message)
        self._loop.wait(lambda: sent.settled or self._over(link), f"the outcome on {link}")
        if not sent.settled:
            raise Failure("the link ended")
        condition = sent.remote.condition
        words = {"condition": condition.name, "text": condition.description} if condition else {}
        return {"outcome": end.outcome(sent)} | words

    def _receiver(self, link, address, second=False):
        def prepare(end):
            end.rcv_settle_mode = Link.RCV_SECOND if second else Link.RCV_FIRST

        self._received[link] = 0
        return self._attach(self._peer.receiver, link, address, prepare)

    def _credit(self, link, credit):
        self._links[link].link.drain_mode = False
        self._links[link].link.flow(credit)
        self._loop.flush(self._peer)
        return {}

    def _receive(self, link, then=None):
        end = self._links[link]
        self._received[link] += 1
        incoming = end.take(self._received[link])[self._received[link] - 1]
        message, body = incoming.message(), incoming.body()
        body = body if isinstance(body, bytes) else str(body).encode()
        second = end.link.rcv_settle_mode == Link.RCV_SECOND
        if then:
            states = {"accept": Delivery.ACCEPTED, "reject": Delivery.REJECTED, "release": Delivery.RELEASED}
            local = incoming.delivery.local
            if then == "reject":
                local.condition = Condition("fieldgate:test", "the device says no")
            if then == "modify":
                local.failed = True
            incoming.delivery.update(states.get(then, Delivery.MODIFIED))
            if second:
                # In the second mode the sender settles first: only then is the delivery over.
                self._loop.wait(lambda: incoming.delivery.settled, "the sender's settlement")
            incoming.delivery.settle()
            self._loop.flush(self._peer)
        return {
            "length": len(body),
            "sha256": digest(body),
            "body": body.decode() if len(body) <= 200 else None,
            "properties": message.properties or {},
            "delivery_count": message.delivery_count,
        }

    def _drain(self, link, credit):
        end = self._links[link]
        before = len(end.complete())
        end.link.drain(credit)
        self._loop.wait(lambda: not end.link.draining() or self._over(link), f"the end of the drain of {link}")
        end.link.drained()
        return {"received": len(end.complete()) - before}

    def ended(self, link):
        """Waits for the other side's detach."""
        return self._links[link].wait_ended()

    def _close(self, link):
        self._links[link].close()
        return {}


STACKS = (Proton, Rhea, Fe2o3)
