"""Addresses of a network as `HOST:PORT`. Pure."""

from __future__ import annotations


def host_and_port(text: str) -> tuple[str, int]:
    """Read an address.

    >>> host_and_port("r-drift.models.svc:8091"), host_and_port("[fd00::1]:80")
    (('r-drift.models.svc', 8091), ('fd00::1', 80))

    Raises:
        ValueError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address; give HOST:PORT with a port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def base_url(host: str, port: int) -> str:
    """Where HTTP is spoken.

    >>> base_url("10.0.0.1", 80), base_url("fd00::1", 80)
    ('http://10.0.0.1:80', 'http://[fd00::1]:80')
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
