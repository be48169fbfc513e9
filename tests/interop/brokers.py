"""Two real brokers, ActiveMQ Artemis and RabbitMQ, each with one AMQP 1.0 listener over TLS on a free port.

`install` beside this file has put their programs into the cache; data, certificates and logs live in a directory of the run.
"""

import os
import re
import socket
import time

from fieldgate import PER_CONNECTION, Directory, RoutedGateway, free_port
from processes import Failure, Process, run

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fieldgate-interop")
ROUTES = ["q", "topic", "closed", "forbidden"]
"""The prefixes that gateways route."""

START_DEADLINE = 90.0
"""Both are up after some seconds; on a machine that compiles meanwhile it may take longer."""

USER, PASSWORD = "device", "correct horse"


KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


class Certificates:
    """A CA and a server certificate for localhost, made with openssl."""

    def __init__(self, directory):
        self._directory = directory
        self.ca, self._ca_key = directory.sub("ca.pem"), directory.sub("ca-key.pem")
        self._openssl("req", "-x509", *KEY, "-subj", "/CN=Fieldgate interop", "-keyout", self._ca_key, "-out", self.ca)
        self.cert, self.key = self.issue("localhost", "serverAuth", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.store, self.store_password = directory.sub("server.p12"), "interop"
        bundle = ["-inkey", self.key, "-in", self.cert, "-out", self.store, "-passout", f"pass:{self.store_password}"]
        self._openssl("pkcs12", "-export", *bundle)

    def issue(self, name, use="clientAuth", *extensions):
        """A certificate of the CA, and its key: the paths of both."""
        cert, key = self._directory.sub(f"{name}.pem"), self._directory.sub(f"{name}-key.pem")
        more = ("basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={use}", *extensions)
        added = [part for one in more for part in ("-addext", one)]
        signed = ["-CA", self.ca, "-CAkey", self._ca_key]
        self._openssl("req", "-x509", *KEY, "-subj", f"/CN={name}", *added, *signed, "-keyout", key, "-out", cert)
        return cert, key

    @staticmethod
    def _openssl(*arguments):
        done = run(["openssl", *arguments])
        if done.status != 0:
            raise Failure(str(done))


class Broker:
    """What both have in common: a directory, certificates, a port, a process, and an end."""

    name = None
    credentials = (USER, PASSWORD)
    knows_modified = True
    refuses_slowly = False

    def __init__(self, certificates=None):
        self.directory = Directory()
        self.certificates = certificates or Certificates(self.directory)
        self.port = free_port()
        self.process = None

    def launch(self):
        """Starts it and returns at once."""
        raise NotImplementedError

    def ready(self):
        """Waits until its port answers."""
        until = time.monotonic() + START_DEADLINE
        while time.monotonic() < until:
            if not self.process.running:
                raise Failure(f"{self.name} ended at its start\n{self.process.tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                self.process.wait_for_change(0.1)
        raise Failure(f"{self.name}: port {self.port} is closed after {START_DEADLINE:.0f} s\n{self.process.tail()}")

    def stop(self):
        """Ends it at once; its data is thrown away anyway."""
        if self.process:
            self.process.kill()
            self.process = None

    def address(self, name):
        """How a link names the queue `name` there."""
        return name


def cached(*parts):
    """A path in the cache, which must be there."""
    path = os.path.join(CACHE, *parts)
    if not os.path.exists(path):
        raise Failure(f"{path} is missing: start tests/interop/run, which installs it")
    return path


def artemis_version():
    """The version that the installer pins."""
    with open(os.path.join(HERE, "install"), encoding="utf-8") as file:
        return re.search(r"^ARTEMIS_VERSION=(\S+)$", file.read(), re.MULTILINE)[1]


class Artemis(Broker):
    """ActiveMQ Artemis, in memory, with SASL ANONYMOUS and PLAIN; on a port of its own EXTERNAL for `gateway`.

    Addresses are created on attach, except below `closed.`; `forbidden.` may not be used by anybody.
    """

    name = "Artemis"

    def __init__(self, certificates=None):
        super().__init__(certificates)
        self.external_port = free_port()

    def launch(self):
        home = cached(f"apache-artemis-{artemis_version()}")
        self.directory.file("broker.xml", self._broker())
        self.directory.file("artemis-users.properties", f"{USER} = {PASSWORD}\n")
        self.directory.file("artemis-roles.properties", f"amq = {USER}\n")
        self.directory.file("cert-users.properties", "gateway=/CN=gateway/\n")
        self.directory.file("cert-roles.properties", "amq = gateway\n")
        login = self.directory.file("login.config", LOGIN)
        self.directory.file("management.xml", '<management-context xmlns="http://activemq.apache.org/schema"/>\n')
        bootstrap = BOOTSTRAP.replace("@BROKER@", self.directory.sub("broker.xml"))
        logging = self.directory.file("log4j2.properties", LOGGING)
        options = {
            "java.security.auth.login.config": login,
            "log4j2.configurationFile": logging,
            "log4j2.disableJmx": "true",
            "artemis.home": home,
            "artemis.instance": self.directory.path,
            "artemis.instance.etc": self.directory.path,
            "data.dir": self.directory.sub("data"),
            "java.io.tmpdir": self.directory.path,
        }
        # The first compiler's code is good enough, and this way the broker is up in a third of the time.
        memory = ["-Xms64M", "-Xmx512M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        argv = ["java", *memory, *(f"-D{key}={value}" for key, value in options.items())]
        argv += ["-cp", os.path.join(home, "lib", "artemis-boot.jar"), "org.apache.activemq.artemis.boot.Artemis"]
        argv += ["run", "xml:" + self.directory.file("bootstrap.xml", bootstrap)]
        self.process = Process(argv, name=self.name)
        return self

    def _broker(self):
        store = f"keyStoreType=PKCS12;keyStorePath={self.certificates.store};keyStorePassword={self.certificates.store_password}"
        amqp = "protocols=AMQP;useEpoll=false;amqpCredits=100;amqpLowCredits=30;amqpMinLargeMessageSize=102400"
        acceptor = f"tcp://127.0.0.1:{self.port}?sslEnabled=true;{store};{amqp}"
        trust = f"needClientAuth=true;trustStoreType=PEM;trustStorePath={self.certificates.ca};saslMechanisms=EXTERNAL"
        external = f"tcp://127.0.0.1:{self.external_port}?sslEnabled=true;{store};{amqp};{trust}"
        broker = BROKER.replace("@ACCEPTOR@", acceptor).replace("@EXTERNAL@", external)
        return broker.replace("@DIRECTORY@", self.directory.path)


class RabbitMq(Broker):
    """RabbitMQ with its AMQP 1.0 plugin and SASL PLAIN: Debian's package, unpacked, with a node and an epmd of its own."""

    name = "RabbitMQ"
    knows_modified = False
    """The session is ended with `amqp:invalid-field`, "Unrecognised state"."""
    refuses_slowly = True
    """A wrong password is answered after three seconds."""
    plugins = "rabbitmq_amqp1_0"
    settings = ""
    """More lines of its configuration."""

    def __init__(self, certificates=None):
        super().__init__(certificates)
        self.plain_port = free_port()
        self._epmd = None

    def launch(self):
        base = cached("rabbitmq", "usr", "lib", "rabbitmq", "lib")
        program = os.path.join(base, os.listdir(base)[0], "sbin", "rabbitmq-server")
        epmd_port = free_port()
        config = RABBIT.replace("@PORT@", str(self.port)).replace("@PLAIN@", str(self.plain_port)) + self.settings
        for key in ("ca", "cert", "key"):
            config = config.replace(f"@{key}@", getattr(self.certificates, key))
        environment = {
            "HOME": self.directory.path,
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"fieldgate-interop-{os.getpid()}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": self.directory.sub("none"),
            "RABBITMQ_CONFIG_FILE": self.directory.file("rabbitmq.conf", config),
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.directory.sub("none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.directory.file("enabled_plugins", f"[{self.plugins}]."),
            "RABBITMQ_MNESIA_BASE": self.directory.sub("mnesia"),
            "RABBITMQ_LOG_BASE": self.directory.sub("log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": self.directory.sub("generated"),
            "RABBITMQ_PID_FILE": self.directory.sub("pid"),
            "RABBITMQ_LOGS": "-",
        }
        # In the foreground and as a child of ours: left to itself it would stay behind as a daemon.
        self._epmd = Process(["epmd", "-port", str(epmd_port), "-address", "127.0.0.1"], name="epmd")
        argv = ["env", *(f"{key}={value}" for key, value in environment.items()), program]
        self.process = Process(argv, name=self.name)
        return self

    def stop(self):
        super().stop()
        if self._epmd:
            self._epmd.kill()

    def address(self, name):
        return f"/queue/{name}"


class Brokers:
    """Both brokers are started at the first need, side by side; a gateway for each mode in front of each."""

    running = {}
    gateways = {}

    @classmethod
    def launch(cls):
        """Starts both and returns at once."""
        artemis = Artemis().launch()
        cls.running = {Artemis: artemis, RabbitMq: RabbitMq(artemis.certificates).launch()}

    @classmethod
    def get(cls, kind, mode):
        """A broker that runs, and a gateway of this mode in front of it."""
        if not cls.running:
            cls.launch()
        broker = cls.running[kind].ready()
        gateway = cls.gateways.get((kind, mode))
        if gateway is None or not gateway.role.process.running:
            credentials = broker.credentials if kind is RabbitMq or mode != PER_CONNECTION else None
            routes = [broker.address(route) for route in ROUTES]
            login = {"sasl_mechanisms": ["ANONYMOUS", "PLAIN"]}
            gateway = RoutedGateway(broker.port, broker.certificates.ca, mode, routes, credentials, **login).start()
            cls.gateways[(kind, mode)] = gateway
        return broker, gateway


LOGIN = """activemq {
   org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule sufficient
       org.apache.activemq.jaas.properties.user="artemis-users.properties"
       org.apache.activemq.jaas.properties.role="artemis-roles.properties";
   org.apache.activemq.artemis.spi.core.security.jaas.GuestLoginModule sufficient
       credentialsInvalidate=true
       org.apache.activemq.jaas.guest.user="guest"
       org.apache.activemq.jaas.guest.role="amq";
};
certificates {
   org.apache.activemq.artemis.spi.core.security.jaas.TextFileCertificateLoginModule required
       org.apache.activemq.jaas.textfiledn.user="cert-users.properties"
       org.apache.activemq.jaas.textfiledn.role="cert-roles.properties";
};
"""

BOOTSTRAP = """<broker xmlns="http://activemq.apache.org/schema">
   <jaas-security domain="activemq" certificate-domain="certificates"/>
   <server configuration="file:@BROKER@"/>
</broker>
"""

LOGGING = """rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %-5level [%logger] %msg%n
"""

PERMISSIONS = "".join(
    f'<permission type="{kind}" roles="amq"/>'
    for kind in (
        *("createNonDurableQueue", "deleteNonDurableQueue", "createDurableQueue", "deleteDurableQueue"),
        *("createAddress", "deleteAddress", "consume", "browse", "send"),
    )
)

# Whoever may create an address may not yet send to it.
NO_PERMISSION = PERMISSIONS.replace('type="send" roles="amq"', 'type="send" roles="nobody"')

BROKER = f"""<configuration xmlns="urn:activemq">
   <core xmlns="urn:activemq:core">
      <name>interop</name>
      <persistence-enabled>false</persistence-enabled>
      <large-messages-directory>@DIRECTORY@/large</large-messages-directory>
      <paging-directory>@DIRECTORY@/paging</paging-directory>
      <max-disk-usage>-1</max-disk-usage>
      <critical-analyzer>false</critical-analyzer>
      <acceptors>
         <acceptor name="amqps">@ACCEPTOR@</acceptor>
         <acceptor name="external">@EXTERNAL@</acceptor>
      </acceptors>
      <security-settings>
         <security-setting match="#">{PERMISSIONS}</security-setting>
         <security-setting match="forbidden.#">{NO_PERMISSION}</security-setting>
      </security-settings>
      <address-settings>
         <address-setting match="#">
            <default-address-routing-type>ANYCAST</default-address-routing-type>
            <default-queue-routing-type>ANYCAST</default-queue-routing-type>
            <dead-letter-address>dead</dead-letter-address>
            <max-delivery-attempts>5</max-delivery-attempts>
            <redelivery-delay>0</redelivery-delay>
         </address-setting>
         <address-setting match="closed.#">
            <auto-create-queues>false</auto-create-queues>
            <auto-create-addresses>false</auto-create-addresses>
         </address-setting>
         <address-setting match="topic.#">
            <default-address-routing-type>MULTICAST</default-address-routing-type>
            <default-queue-routing-type>MULTICAST</default-queue-routing-type>
         </address-setting>
      </address-settings>
      <addresses><address name="dead"><anycast><queue name="dead"/></anycast></address></addresses>
   </core>
</configuration>
"""

RABBIT = f"""listeners.tcp.1 = 127.0.0.1:@PLAIN@
listeners.ssl.1 = 127.0.0.1:@PORT@
ssl_options.cacertfile = @ca@
ssl_options.certfile = @cert@
ssl_options.keyfile = @key@
ssl_options.verify = verify_none
default_user = {USER}
default_pass = {PASSWORD}
amqp1_0.default_user = {USER}
amqp1_0.default_vhost = /
log.console = true
log.console.level = warning
"""
