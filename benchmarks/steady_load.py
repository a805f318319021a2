"""Load at a fixed rate, and how long each answer took from when its request was due.

A request that can't be sent in time, because those before it are slow, waits from the moment it was due: so what a
stall costs is counted for all that it holds up, not only for the one that met it. Written on `select`, whose time-out
is in microseconds: an event loop's timers are in milliseconds, which means bursts, or spinning on a core that those who
are measured need.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

CONNECTIONS = 64
GRACE_S = 2.0
"""How long the last answers may take."""
_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class LoadFailed(Exception):
    """An answer was not 200, or did not come."""


class _Connection:
    """One connection, with one request on its way at most."""

    __slots__ = ("due", "received", "socket", "wanted")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.received = b""
        self.wanted = 0
        """Bytes of the answer, once its head is there."""

    def fileno(self) -> int:
        """What `select` asks for."""
        return self.socket.fileno()

    def ask(self, request: bytes, due: float) -> None:
        """Send one request."""
        self.due, self.received, self.wanted = due, b"", 0
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Read what is there. Returns whether the answer is complete."""
        data = self.socket.recv(65536)
        if not data:
            raise LoadFailed("a connection was closed instead of an answer")
        data = self.received = self.received + data
        if not self.wanted:
            end = data.find(_END)
            if end < 0:
                return False
            head = data[:end].lower()
            at = head.find(_LENGTH)
            if b" 200 " not in head[:16] or at < 0:
                raise LoadFailed(f"the answer is {head[:40]!r}, not a whole one with status 200")
            self.wanted = end + len(_END) + int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        return len(data) >= self.wanted


def at_rate(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> list[float]:
    """Ask at a fixed rate for some seconds.

    Args:
        port: Where, on loopback.
        requests: Sent in turn.
        rate: Per second.
        seconds: How long.

    Returns:
        Seconds from when each was due to when its answer was complete; those that were not sent in time included.

    Raises:
        LoadFailed: not every answer came, or one was not 200.
    """
    connections = [_Connection(port) for _ in range(CONNECTIONS)]
    idle, busy = list(connections), set[_Connection]()
    times: list[float] = []
    count, sent = int(rate * seconds), 0
    clock = time.perf_counter
    begun = clock()
    try:
        while len(times) < count:
            now = clock()
            while sent < count and idle and begun + sent / rate <= now:
                connection = idle.pop()
                connection.ask(requests[sent % len(requests)], begun + sent / rate)
                busy.add(connection)
                sent += 1
            next_due = begun + sent / rate if sent < count and idle else now + GRACE_S
            for connection in select.select(busy, (), (), max(0.0, next_due - clock()))[0]:
                if connection.answered():
                    times.append(clock() - connection.due)
                    busy.discard(connection)
                    idle.append(connection)
            if now > begun + seconds + GRACE_S:
                raise LoadFailed(f"{count - len(times)} of {count} answers did not come in time")
    finally:
        for connection in connections:
            connection.socket.close()
    return times
