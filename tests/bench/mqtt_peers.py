"""What a user would pick instead of the gateway for MQTT: mosquitto, and RabbitMQ with its MQTT and AMQP 1.0 plugins."""

import os
import shutil
import time

from brokers import PASSWORD, USER, RabbitMq
from fieldgate import Directory, free_port, listens
from measure import Costs
from processes import Failure, Process, run

PATIENCE = 600.0
QUEUE = "/amq/queue/mqtt-subscription-bridgeqos1"
"""Where RabbitMQ keeps what the MQTT client `bridge` has subscribed to; it is durable, as that client's session is."""
MOSQUITTO = """listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 0
log_type error
"""


class Mosquitto:
    """The broker, in memory, without any subscriber: the least that MQTT takes."""

    name = "mosquitto, nobody subscribed"
    share = 1
    """What part of the messages is enough for a figure."""

    def __init__(self):
        program = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
        if not program:
            raise Failure("mosquitto is missing: apt-get install mosquitto")
        directory = Directory()
        self.port = free_port()
        config = directory.file("mosquitto.conf", MOSQUITTO.format(port=self.port))
        self._process = Process([program, "-c", config], name="mosquitto")
        self._process.wait_until(lambda: listens(self.port), "its listener")
        self.pid = self._process.pid
        self.costs = Costs(self.pid)

    def run(self, load, messages):
        """One round: messages a second."""
        return load(messages)["rate"]

    def stop(self):
        self._process.stop()


class MqttRabbit(RabbitMq):
    plugins = "rabbitmq_amqp1_0,rabbitmq_mqtt"

    def __init__(self):
        super().__init__()
        self.mqtt_port = free_port()
        self.settings = (
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt_port}\n"
            f"mqtt.allow_anonymous = true\nmqtt.default_user = {USER}\nmqtt.default_pass = {PASSWORD}\n"
        )


class Rabbit:
    """RabbitMQ: MQTT to a durable queue, from there by AMQP 1.0, without TLS, to a consumer that accepts each message."""

    name = "RabbitMQ, to an AMQP 1.0 consumer"
    share = 1 / 8

    def __init__(self, consumer):
        self._broker = MqttRabbit().launch()
        self._broker.ready()
        self.port = self._broker.mqtt_port
        self._broker.process.wait_until(lambda: listens(self.port), "its MQTT listener")
        self.pid = beam(self._broker.process.pid)
        self.costs = Costs(self.pid)
        # A session that stays, and its queue with it.
        argv = ["mosquitto_sub", "-p", str(self.port), "-h", "127.0.0.1", "-c", "-i", "bridge", "-q", "1", "-t", "devices/#", "-E"]
        done = run(argv)
        if done.status != 0:
            raise Failure(str(done))
        self._consumer = Process(
            [consumer, "--port", str(self._broker.plain_port), "--address", QUEUE, "--user", USER, "--password", PASSWORD],
            name="consumer",
        )
        self._consumer.wait_for_line("READY")
        self._received = 0

    def run(self, load, messages):
        """One round: messages a second, from the first PUBLISH until the consumer has the last."""
        begun = time.monotonic()
        self._received += load(messages)["messages"]
        self._consumer.wait_for_line(f"RECEIVED {self._received}", deadline=PATIENCE)
        return messages / (time.monotonic() - begun)

    def stop(self):
        self._consumer.stop()
        self._broker.stop()


def beam(pid):
    """The process of Erlang's machine below `pid`, which a script has started."""
    pids = [pid]
    for parent in pids:
        with open(f"/proc/{parent}/comm", encoding="ascii") as file:
            if file.read().startswith("beam"):
                return parent
        with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            pids += [int(child) for child in file.read().split()]
    raise Failure(f"no Erlang below process {pid}")
