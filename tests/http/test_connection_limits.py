"""Limits for connections and for the bytes of their bodies."""

from __future__ import annotations

import resource

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.connection_limits import (
    FILES_PER_CONNECTION,
    LARGEST_BODIES,
    SPARE_FILES,
    ConnectionLimits,
    allowed_connections,
)
from bioproxy.runtime.errors import BodyTooLarge, Unavailable
from tests.support.raw import RawTest


class Guest:
    """A connection that notes whether it was closed."""

    ended = False

    def forceAbortClient(self) -> None:
        """Be closed."""
        self.ended = True


class Connections(SynchronousTestCase):
    """`make_room`, and which connection is closed for a new one."""

    def setUp(self) -> None:
        """Open three connections that have no request."""
        self.limits = ConnectionLimits(1000, 3)
        self.guests = [self.come() for _ in range(3)]

    def come(self) -> Guest:
        """Open one more."""
        guest = Guest()
        self.assertTrue(self.limits.make_room())
        self.limits.mark_idle(guest)
        return guest

    def ended(self) -> list[int]:
        """Return which of the first three were closed."""
        return [number for number, guest in enumerate(self.guests) if guest.ended]

    def test_room(self) -> None:
        """As long as there is room, no connection is closed."""
        self.limits.remove(self.guests[1])
        self.come()
        self.assertEqual(([], 3), (self.ended(), len(self.limits)))

    def test_longest(self) -> None:
        """Without room, the connection that has been idle for longest is closed, then the next one."""
        self.come()
        self.assertEqual(([0], 3), (self.ended(), len(self.limits)))
        self.come()
        self.assertEqual([0, 1], self.ended())

    def test_since_the_last_request(self) -> None:
        """What counts is the time since the last request, not since the connection began."""
        self.limits.mark_active(self.guests[0])
        self.limits.mark_idle(self.guests[0])
        self.come()
        self.assertEqual([1], self.ended())

    def test_active(self) -> None:
        """An active connection is never closed: if all are active, there is no room."""
        self.limits.mark_active(self.guests[0])
        self.limits.mark_active(self.guests[2])
        self.come()
        self.assertEqual([1], self.ended())
        newcomer = self.guests[1] = Guest()
        self.limits = ConnectionLimits(1000, 1)
        self.limits.mark_active(newcomer)
        self.assertFalse(self.limits.make_room())
        self.assertEqual(([], 1), (self.ended(), len(self.limits)))

    def test_leaving(self) -> None:
        """A connection that is lost, was closed, or is removed twice is counted no more."""
        self.limits.mark_active(self.guests[0])
        newcomer = self.come()
        for guest in (*self.guests, newcomer, newcomer):
            self.limits.remove(guest)
        self.assertEqual(0, len(self.limits))


class Bytes(SynchronousTestCase):
    """`reserve_body_bytes`."""

    def test_one_body(self) -> None:
        """A body may be as large as the limit, and not a byte larger, in however many pieces."""
        limits = ConnectionLimits(1000)
        self.assertIsNone(limits.reserve_body_bytes(0, 999))
        self.assertIsNone(limits.reserve_body_bytes(999, 1))
        self.assertIsInstance(limits.reserve_body_bytes(1000, 1), BodyTooLarge)
        self.assertIsInstance(ConnectionLimits(1000).reserve_body_bytes(0, 1001), BodyTooLarge)
        self.assertIsInstance(ConnectionLimits(1000).reserve_body_bytes(1001, 0), BodyTooLarge)

    def test_all_bodies(self) -> None:
        """Several bodies have a common limit; refused bytes are not counted, and released bytes are free again."""
        limits, guest = ConnectionLimits(1000), Guest()
        for _ in range(LARGEST_BODIES):
            self.assertIsNone(limits.reserve_body_bytes(0, 1000))
        for _ in range(3):
            self.assertIsInstance(limits.reserve_body_bytes(0, 1), Unavailable)
        self.assertIsNone(limits.reserve_body_bytes(0, 0))
        limits.mark_idle(guest, 600)
        self.assertIsNone(limits.reserve_body_bytes(0, 600))
        self.assertIsInstance(limits.reserve_body_bytes(600, 1), Unavailable)
        limits.remove(guest, 1)
        self.assertIsNone(limits.reserve_body_bytes(600, 1))

    def test_lowered(self) -> None:
        """After the limit was lowered, the bodies that are there already keep out other bodies, and nothing else."""
        limits = ConnectionLimits(1000)
        for _ in range(LARGEST_BODIES):
            self.assertIsNone(limits.reserve_body_bytes(0, 1000))
        limits.max_body = 100
        self.assertIsNone(limits.reserve_body_bytes(0, 0))
        self.assertIsInstance(limits.reserve_body_bytes(0, 1), Unavailable)


class Files(SynchronousTestCase):
    """`allowed_connections`."""

    def allowed(self, soft: int, hard: int, wanted: int = 1000) -> tuple[int, int]:
        """Return the number of connections and the limit of open files, given the limits at first."""
        self.limits = (soft, hard)
        self.patch(resource, "getrlimit", lambda which: self.limits if which == resource.RLIMIT_NOFILE else (0, 0))
        self.patch(resource, "setrlimit", lambda which, limits: setattr(self, "limits", limits))
        allowed = allowed_connections(wanted)
        self.assertEqual(hard, self.limits[1])
        return allowed, self.limits[0]

    def test_enough(self) -> None:
        """If enough open files are allowed already, nothing changes."""
        needed = 1000 * FILES_PER_CONNECTION + SPARE_FILES
        for soft, hard in ((needed, needed), (10 * needed, 20 * needed), (resource.RLIM_INFINITY,) * 2):
            self.assertEqual((1000, soft), self.allowed(soft, hard))

    def test_more(self) -> None:
        """If the hard limit allows more, the soft limit is raised to just what is needed."""
        needed = 1000 * FILES_PER_CONNECTION + SPARE_FILES
        for hard in (needed, 10 * needed, resource.RLIM_INFINITY):
            self.assertEqual((1000, needed), self.allowed(needed - 1, hard))

    def test_fewer(self) -> None:
        """If the hard limit is too low, there are as many connections as it is enough for, but at least one."""
        self.assertEqual((308, 1024), self.allowed(256, 1024))
        self.assertEqual((308, 1024), self.allowed(1024, 1024))
        self.assertEqual((1, 16), self.allowed(16, 16))

    def test_really(self) -> None:
        """The operating system agrees: what it allows afterwards is enough for what was promised."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        allowed = allowed_connections(10)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.assertTrue(soft == resource.RLIM_INFINITY or soft >= allowed * FILES_PER_CONNECTION)


class Port(RawTest):
    """Limits at the clients' port."""

    GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

    def test_who_is_ended(self) -> None:
        """A new connection takes the place of the one idle for longest, not of one that waits for its answer."""
        world = self.world()
        world.limits.connections = 3
        world.llama_server.pause_at = {"/health"}
        waiting = self.connect(world).say(self.GET)
        silent, slow = self.connect(world), self.connect(world).say(b"GET /")
        newcomer = self.connect(world)
        self.assertEqual([False, True, False], [each.aborted for each in (waiting, silent, slow)])
        silent.hang_up()
        world.llama_server.go_on()
        world.settle()
        self.assertEqual([200], waiting.statuses)
        self.connect(world)
        self.assertEqual([False, True, False], [each.aborted for each in (waiting, slow, newcomer)])
        self.assertEqual(3, len(world.limits))

    def test_no_room(self) -> None:
        """If all connections are active, one more is closed at once, and is not counted."""
        world = self.world()
        world.limits.connections = 2
        world.llama_server.pause_at = {"/health"}
        waiting = [self.connect(world).say(self.GET) for _ in range(2)]
        protocol, transport = world.clients_port.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        self.assertEqual((True, 2), (transport.disconnected, len(world.limits)))
        protocol.connectionLost()
        world.llama_server.go_on()
        world.settle()
        self.assertEqual([[200], [200]], [each.statuses for each in waiting])
        self.connect(world).say(self.GET)

    def test_count(self) -> None:
        """Whatever clients do, a lost connection is not counted."""
        world = self.world(max_body=100)
        for data in (b"", b"GE", self.GET, self.GET * 3, b"nonsense\r\n", self.GET.replace(b"Host: x\r\n", b"")):
            client = self.connect(world)
            if data:
                client.say(data)
            self.assertEqual(1, len(world.limits), data)
            client.hang_up()
            self.assertEqual((0, 0), (len(world.limits), world.limits._bytes), data)
