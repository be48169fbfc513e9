"""A native AMQP 1.0 device: Qpid Proton for Python, in plain AMQP, with a token put to `$cbs`.

Each call returns when the peer has answered; Proton's own loop runs while a call waits.
"""

import itertools
import uuid

from proton import Delivery, LinkException, Message
from proton.reactor import AtMostOnce
from proton.utils import BlockingConnection, LinkDetached

import fieldgate
from processes import DEADLINE, Failure

TOKEN_TYPE = "servicebus.windows.net:sastoken"
OUTCOMES = {
    Delivery.ACCEPTED: "accepted",
    Delivery.REJECTED: "rejected",
    Delivery.RELEASED: "released",
    Delivery.MODIFIED: "modified",
}


class AmqpDevice:
    """One connection of one device; with SASL ANONYMOUS, or with the bare AMQP header alone."""

    def __init__(self, site, device, sasl=True):
        self.device = device
        options = {"sasl_enabled": True, "allowed_mechs": "ANONYMOUS"} if sasl else {"sasl_enabled": False}
        self._connection = BlockingConnection(f"amqp://127.0.0.1:{site.ports['amqp']}", timeout=DEADLINE, **options)
        self._cbs = None
        self._numbers = itertools.count(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def _name(self):
        """A link name that this connection has not used; Proton's own choice repeats itself."""
        return f"{self.device}-{next(self._numbers)}"

    def put_token(self, token, device=None):
        """Puts a token and returns the status code; the answer must carry the request's own message id."""
        if self._cbs is None:
            self._cbs = (
                self._connection.create_sender("$cbs", name=self._name()),
                self._connection.create_receiver("$cbs", name=self._name(), credit=10),
            )
        sender, receiver = self._cbs
        request = Message(
            body=token,
            id=uuid.uuid4(),
            address="$cbs",
            reply_to="cbs",
            properties={
                "operation": "put-token",
                "type": TOKEN_TYPE,
                "name": f"{fieldgate.HUB_NAME}/devices/{device or self.device}",
            },
        )
        sender.send(request)
        answer = receiver.receive()
        receiver.accept()
        if answer.correlation_id != request.id:
            raise Failure(f"the answer of $cbs is to {answer.correlation_id!r}, not to {request.id!r}")
        return answer.properties["status-code"]

    def authorise(self, token):
        """Puts a token that must be taken."""
        status = self.put_token(token)
        if status != 200:
            raise Failure(f"$cbs answers {status} to the token of {self.device}")
        return self

    def sender(self, device=None):
        """A sender to the device's events, or to those of another."""
        return self._connection.create_sender(fieldgate.EVENTS.format(device or self.device), name=self._name())

    def send(self, body, properties=None, sender=None, **system):
        """Sends one message in a data section and returns the outcome that came back."""
        message = Message(body=body.encode(), inferred=True, properties=properties or {}, **system)
        delivery = (sender or self.sender()).send(message, error_states=[])
        return OUTCOMES.get(delivery.remote_state, str(delivery.remote_state))

    def send_settled(self, body):
        """Sends one message as settled: nothing comes back. Returns when the link is closed by both sides."""
        address = fieldgate.EVENTS.format(self.device)
        sender = self._connection.create_sender(address, name=self._name(), options=AtMostOnce())
        sender.send(Message(body=body.encode(), inferred=True))
        sender.close()

    def refusal(self, device):
        """The error condition with which a sender to that device's events is refused."""
        try:
            self.sender(device)
        except LinkDetached as detached:
            return detached.condition
        except LinkException as refused:
            raise Failure(f"the attach was refused, but no detach with an error followed: {refused}") from None
        raise Failure(f"{self.device} may send as {device}")

    def commands(self):
        """A receiver of the device's commands; the address is spelt as the cloud's own clients spell it."""
        address = f"devices/{self.device}/messages/deviceBound"
        return self._connection.create_receiver(address, name=self._name(), credit=5)


def body_text(message):
    """The text of a message that came in a data section or as an AMQP value."""
    body = message.body
    return bytes(body).decode() if isinstance(body, (bytes, memoryview)) else str(body)
