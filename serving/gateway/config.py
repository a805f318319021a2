"""Everything that can be configured about one gateway process.

`serving` knows nothing of `tidegate`, so this is a plain value that the composition root builds; its JSON is what
`python -m serving.gateway.main --config` takes.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from serving.errors import ServingError
from serving.limits import MAX_BODY_BYTES


class InvalidConfig(ServingError):
    """A gateway can't be started like this."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """One gateway. Times are in seconds; port 0 means any free one (for tests)."""

    home: Path
    """The platform's home; the four paths below default to places in it."""
    name: str = "gateway-0"
    """Names the gateway at the controller; two gateways must not share one."""
    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    control_url: str | None = "http://127.0.0.1:8080"
    """Where the controller answers; None serves the table on disk for ever."""
    table_file: Path | None = None
    secret_file: Path | None = None
    credentials_file: Path | None = None
    ray_file: Path | None = None
    endpoints: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)
    """Application -> base URLs: a static list instead of asking Ray."""
    serve_port: int = 8100
    """Ray Serve's own proxy, which is never an endpoint."""
    request_timeout_s: float = 600.0
    connect_timeout_s: float = 2.0
    idle_timeout_s: float = 120.0
    """The longest silence inside an answer that has begun. Before it only the deadline counts: engines queue."""
    keepalive_s: float = 4.0
    """How long an idle upstream connection is kept: below the 5 s after which uvicorn, so vLLM, closes it."""
    drain_s: float = 30.0
    """On SIGTERM, how long streams may go on."""
    lease_s: float = 15.0
    """Without a word from the controller for so long, the canary gets no new requests."""
    max_body_bytes: int = MAX_BODY_BYTES
    show_version: bool = True
    """Whether answers say which version and role gave them; off where clients must not aim at the canary."""

    def __post_init__(self) -> None:
        for host, port in ((self.host, self.port), (self.admin_host, self.admin_port)):
            if not _is_loopback(host):
                raise InvalidConfig(
                    f"the gateway would listen on {host}:{port}, beyond loopback, without API keys; "
                    "use 127.0.0.1 or localhost and put an authenticating proxy in front"
                )
        object.__setattr__(self, "table_file", self.table_file or self.home / "gateway" / "table.json")
        object.__setattr__(self, "secret_file", self.secret_file or self.home / "gateway" / "secret")
        object.__setattr__(self, "credentials_file", self.credentials_file or self.home / "credentials")
        object.__setattr__(self, "ray_file", self.ray_file or self.home / "run" / "ray.json")

    def to_json(self) -> str:
        """This configuration as one line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InvalidConfig: not JSON, an unknown field, a missing home, or a host beyond loopback.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError as e:
            raise InvalidConfig(f"--config is not JSON ({e}); pass one object, see GatewayConfig") from None
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidConfig(f"--config has unknown fields {unknown}; known are those of GatewayConfig")
        if not values.get("home"):
            raise InvalidConfig("--config lacks `home`; pass the platform's home directory")
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidConfig(f"--config: {where} is {first['input']!r}; {first['msg']}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
