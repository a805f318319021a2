"""Listening sockets of this machine's processes."""

from __future__ import annotations

import socket

from serving.gateway.config import InvalidConfig


class PortTaken(InvalidConfig):
    """A port can't be had."""


def bind(host: str, port: int, flag: str, *, share: bool = False) -> socket.socket:
    """Bind a listening socket; with `share` other processes of this user may listen on it too.

    Raises:
        PortTaken: something else listens there, or it is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise PortTaken(
            f"port {port} on {host} can't be had ({e.strerror}); stop what listens there, or pass another {flag}"
        ) from None
    listener.setblocking(False)
    return listener
