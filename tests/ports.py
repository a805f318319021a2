"""Ports for tests that start real servers: below the range that the kernel hands out by itself.

A port that was free a moment ago and lies in that range may be taken by the next outgoing connection, and Ray, for one,
makes hundreds of them while it starts.
"""

from __future__ import annotations

import contextlib
import random
import socket

LOW, HIGH = 15_000, 29_000


def free_ports(count: int) -> list[int]:
    """`count` distinct ports on loopback that nobody listens on now."""
    found: list[int] = []
    chance = random.SystemRandom()
    while len(found) < count:
        port = chance.randrange(LOW, HIGH)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
