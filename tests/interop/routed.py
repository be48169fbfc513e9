"""Scenarios about routed links: each runs once for each way in which the gateway uses its hub connections."""

import itertools

from brokers import ROUTES, Certificates
from fieldgate import PER_CONNECTION, SHARED, Directory, RoutedGateway
from peers import Hub, Loop
from processes import Failure
from scenario import SCENARIOS

MODES = (SHARED, PER_CONNECTION)
ONE = (PER_CONNECTION,)
"""Only where a device has a hub connection of its own."""


class World:
    """A hub that the scenario plays, a gateway in front of it, and devices."""

    certificates = None

    def __init__(self, mode, hub_there=True, **listener):
        if World.certificates is None:
            World.certificates = Certificates(Directory())
        self.mode = mode
        self.loop = Loop()
        self.hub = Hub(self.loop, World.certificates)
        if hub_there:
            self.hub.listen()
        self.gateway = RoutedGateway(self.hub.port, World.certificates.ca, mode, ROUTES, **listener).start()
        self.shared = mode == SHARED
        self._numbers = itertools.count(1)

    def device(self, container=None, **options):
        """A device's connection to the gateway."""
        return self.loop.device(self.gateway.port, container or f"device-{next(self._numbers)}", **options)

    def upstream(self, device, address="q/1", name="up", credit=10, **settings):
        """A sender of a device: its end, and the hub's end of the same link, with credit."""
        mine = device.sender(address, name, wait=False, **settings)
        theirs = self.hub.wait_link(address, 1 + sum(self.hub.address(end) == address for end in self.hub.links))
        mine.wait_attached()
        if credit:
            theirs.link.flow(credit)
            mine.wait_credit(credit)
        return mine, theirs

    def downstream(self, device, address="q/1", name="down", credit=10, **settings):
        """A receiver of a device: its end, and the hub's end of the same link, with credit."""
        mine = device.receiver(address, name, credit=credit, wait=False, **settings)
        theirs = self.hub.wait_link(address, 1 + sum(self.hub.address(end) == address for end in self.hub.links))
        mine.wait_attached()
        if credit:
            theirs.wait_credit(credit)
        return mine, theirs

    def close(self):
        """Ends all of it; the gateway must have lived until now."""
        running = self.gateway.role.process.running
        self.loop.stop()
        self.gateway.role.process.kill()
        if not running:
            raise Failure(f"the gateway has ended\n{self.gateway.role.process.tail()}")


def routed(name, modes=MODES, hub_there=True):
    """Lists a function as a scenario for each mode; it is called with a `World`."""

    def register(function):
        def run(mode):
            world = World(mode, hub_there)
            try:
                function(world)
            except Failure as failure:
                raise Failure(f"{failure}\n{world.gateway.role.process.tail()}") from None
            finally:
                world.close()

        for mode in modes:
            SCENARIOS.append((f"routed links, {mode}: {name}", lambda mode=mode: run(mode), True))
        return function

    return register
