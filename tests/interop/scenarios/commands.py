"""The hub sends; the device takes or refuses it; the sender sees which."""

from amqp_device import AmqpDevice, body_text
from clients import MQTT_3, MQTT_5, mqtt_subscriber
from fieldgate import COMMANDS
from scenario import expect_equal, scenario


def expect_feedback(done, word, success):
    """The feedback's own word is printed, and the exit status says whether it is Success."""
    if word not in done.out or (done.status == 0) != success:
        raise AssertionError(f"the feedback should be {word}: {done}")


def mqtt(site, device, version):
    subscriber = mqtt_subscriber(site, device, COMMANDS.format(device) + "/#", version)
    expect_feedback(site.hub.send(device, "open the valve"), "Success", success=True)
    expect_equal("exit status", subscriber.wait(), 0)
    lines = [line for line in subscriber.text("out").splitlines() if line.startswith("command ")]
    expect_equal("commands", len(lines), 1)
    _, topic, text = lines[0].split(" ", 2)
    expect_equal("text", text, "open the valve")
    if not topic.lower().startswith(COMMANDS.format(device) + "/"):
        raise AssertionError(f"the command came on {topic}")


@scenario("commands: mosquitto_sub, MQTT 3.1.1, QoS 1: feedback Success")
def mqtt_3(site, _watch):
    mqtt(site, "down-mqtt-3", MQTT_3)


@scenario("commands: mosquitto_sub, MQTT 5, QoS 1: feedback Success")
def mqtt_5(site, _watch):
    mqtt(site, "down-mqtt-5", MQTT_5)


@scenario("commands: sent while the MQTT device is away, taken when it comes back")
def mqtt_queued(site, _watch):
    device = "down-mqtt-away"
    first = mqtt_subscriber(site, device, COMMANDS.format(device) + "/#", MQTT_3)
    expect_feedback(site.hub.send(device, "one"), "Success", success=True)
    first.wait()
    sender = site.hub.start_send(device, "two")
    second = mqtt_subscriber(site, device, COMMANDS.format(device) + "/#", MQTT_3)
    second.wait_for_line("command ")
    if not second.text("out").count(" two"):
        raise AssertionError(f"another command came:\n{second.tail()}")
    expect_equal("exit status of hub send", sender.wait(), 0)


def amqp(site, device, settle, word, success):
    with AmqpDevice(site, device) as peer:
        peer.authorise(site.hub.token(device))
        receiver = peer.commands()
        sender = site.hub.start_send(device, "open the valve")
        expect_equal("text", body_text(receiver.receive()), "open the valve")
        settle(receiver)
        # Closing the receiver waits for the peer's answer, which stands behind the disposition on the wire.
        receiver.close()
        expect_equal("success", sender.wait() == 0, success)
        if word not in sender.text("out"):
            raise AssertionError(f"the feedback should be {word}:\n{sender.tail()}")


@scenario("commands: Qpid Proton accepts: feedback Success")
def amqp_accepts(site, _watch):
    amqp(site, "down-amqp-accept", lambda receiver: receiver.accept(), "Success", success=True)


@scenario("commands: Qpid Proton rejects: feedback Rejected")
def amqp_rejects(site, _watch):
    amqp(site, "down-amqp-reject", lambda receiver: receiver.reject(), "Rejected", success=False)


@scenario("commands: Qpid Proton releases once, then accepts what comes again: feedback Success")
def amqp_releases(site, _watch):
    device = "down-amqp-release"

    def settle(receiver):
        receiver.release(delivered=False)
        expect_equal("text", body_text(receiver.receive()), "open the valve")
        receiver.accept()

    amqp(site, device, settle, "Success", success=True)
