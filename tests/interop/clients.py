"""Other people's device clients: mosquitto_pub and mosquitto_sub, rumqttc, libcoap's coap-client, curl.

Each function returns what the device was told: a reason code of MQTT, a response code of CoAP, a status of HTTP.
"""

import os
import re
import subprocess
import tempfile

from processes import Failure, Process, run

MQTT_3 = "mqttv311"
MQTT_5 = "mqttv5"


def mosquitto(program, site, device, version, *arguments):
    """The command line of a mosquitto client, its debug lines unbuffered."""
    return [
        *("stdbuf", "-oL", program, "-d", "-h", "127.0.0.1", "-p", str(site.ports["mqtt"])),
        *("-V", version, "-i", device, *arguments),
    ]


def mqtt_publish(site, device, topic, text, qos, version, *more):
    """Publishes once: the reason code of the PUBACK (always 0 in 3.1.1), or None where there was none."""
    done = run(mosquitto("mosquitto_pub", site, device, version, "-t", topic, "-q", str(qos), "-m", text, *more))
    acknowledged = re.search(r"received PUBACK \(Mid: \d+, RC:(\d+)\)", done.out)
    if qos == 0 and done.status != 0:
        raise Failure(str(done))
    return int(acknowledged[1]) if acknowledged else None


def mqtt_publisher(site, device, topic, version=MQTT_3):
    """A device that publishes a line with QoS 1 whenever one is written to it."""
    argv = mosquitto("mosquitto_pub", site, device, version, "-t", topic, "-q", "1", "-l")
    return Process(argv, name=device, stdin=subprocess.PIPE)


def mqtt_subscriber(site, device, topic_filter, version, count=1):
    """A device that waits for so many commands; subscribed when this returns. It prints `command TOPIC TEXT`."""
    argv = mosquitto("mosquitto_sub", site, device, version, "-t", topic_filter, "-q", "1")
    process = Process([*argv, "-C", str(count), "-F", "command %t %p"], name=device)
    process.wait_for_line("Subscribed (mid: 1): ")
    return process


class Rumqttc:
    """A device over rumqttc; `rumqttc_client.rs` says what it does and prints."""

    program = None

    @classmethod
    def start(cls, site, device, version, *arguments):
        common = ("--port", str(site.ports["mqtt"]), "--id", device, "--version", version)
        return Process([cls.program, *common, *arguments], name=device)


def coap_post(site, path, text, confirmable=True, content_format=None):
    """Posts: type and code of the response, such as ("ACK", "2.04")."""
    argv = ["coap-client-notls", "-v", "6", "-m", "post", "-e", text, "-B", "15"]
    argv += [] if confirmable else ["-N"]
    argv += ["-t", content_format] if content_format else []
    return coap_answer(run([*argv, f"coap://127.0.0.1:{site.ports['coap']}/{path}"]))


def coap_post_file(site, path, size):
    """Posts so many bytes, which libcoap cuts into blocks: the code of the first answer that is not 2.31."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * size)
        file.flush()
        url = f"coap://127.0.0.1:{site.ports['coap']}/{path}"
        return coap_answer(run(["coap-client-notls", "-v", "6", "-m", "post", "-f", file.name, "-B", "15", url]))


def coap_answer(done):
    """Type and code of the last response in the client's log (an empty ACK before a separate response is no response)."""
    answers = re.findall(r"t:(ACK|CON|NON|RST) c:([245]\.\d\d) ", done.both)
    if not answers:
        raise Failure(f"no response: {done}")
    return answers[-1]


def http_post(site, path, data, headers=(), deadline_seconds=30):
    """Posts with curl: the status and the answer's headers by lower-case name. `data` is text, or "@FILE"."""
    argv = ["curl", "-sS", "-i", "-m", str(deadline_seconds), "-X", "POST", "--data-binary", data]
    for header in headers:
        argv += ["-H", header]
    done = run([*argv, "-w", "\\nstatus=%{http_code}\\n", f"http://127.0.0.1:{site.ports['http']}/{path}"])
    status = re.search(r"^status=(\d+)$", done.out, re.MULTILINE)
    if not status or status[1] == "000":
        raise Failure(str(done))
    pairs = re.findall(r"^([A-Za-z0-9-]+): *(.*?)\r?$", done.out, re.MULTILINE)
    return int(status[1]), {name.lower(): value for name, value in pairs}


def http_post_bytes(site, path, size):
    """Posts so many bytes: the status."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.urandom(size))
        file.flush()
        return http_post(site, path, f"@{file.name}")[0]
