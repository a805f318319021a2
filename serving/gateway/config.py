"""Everything that can be configured about one gateway process.

`serving` knows nothing of `tidegate`, so this is a plain value that the composition root builds; its JSON is what
`python -m serving.gateway.main --config` takes.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from monitoring.tracing.settings import TracingSettings
from serving.addresses import host_and_port
from serving.errors import ServingError
from serving.gateway.guard_settings import GuardSettings
from serving.knobs import Picking, QueueSettings
from serving.limits import MAX_BODY_BYTES
from serving.mirroring import MirrorSettings
from serving.request_log.settings import RequestLogSettings
from serving.resampling import ResampleSettings


class InvalidConfig(ServingError):
    """A gateway can't be started like this."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """One gateway. Times are in seconds; port 0 means any free one (for tests)."""

    home: Path
    """The platform's home; the paths below default to places in it."""
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
    keys_file: Path | None = None
    usage_dir: Path | None = None
    request_log_dir: Path | None = None
    endpoints: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)
    """Application -> base URLs: a static list instead of asking Ray."""
    cluster: bool = False
    """On a cluster: ask where the traffic table says for each revision, instead of one Ray."""
    ray_token_file: Path | None = None
    """On a cluster: the token that all Ray dashboards take."""
    kubernetes_url: str = "https://kubernetes.default.svc"
    """On a cluster: the API server, asked only where a revision is somebody else's workload."""
    kubernetes_token_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    kubernetes_ca_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
    serve_port: int = 8100
    """Ray Serve's own proxy, which is never an endpoint."""
    request_timeout_s: float = 600.0
    meter_streams: bool = True
    """Whether engines are asked for the usage of streams whose clients did not ask; those don't get to see it. Without
    it such streams count no tokens. Off for engines that don't know `stream_options`."""
    connect_timeout_s: float = 2.0
    idle_timeout_s: float = 120.0
    """The longest silence inside an answer that has begun. Before it only the deadline counts: engines queue."""
    keepalive_s: float = 4.0
    """How long an idle upstream connection is kept: below the 5 s after which uvicorn, so vLLM, closes it."""
    drain_s: float = 30.0
    """On SIGTERM, how long streams may go on."""
    lease_s: float = 15.0
    """Without a word from the controller for so long, the canary gets no new requests."""
    drain_delay_s: float = 0.0
    """On SIGTERM, how long new connections are still accepted while readiness says no: until balancers have seen it."""
    max_body_bytes: int = MAX_BODY_BYTES
    max_connections: int = 10_000
    """Clients' connections that may be open; further ones are answered with 503."""
    head_within_s: float = 10.0
    """How long a client may take for the headers of a request, and for TLS to be agreed."""
    body_within_s: float = 60.0
    write_within_s: float = 60.0
    """A client that has taken nothing of its answer for so long is cut off."""
    client_idle_s: float = 75.0
    """How long a client's idle connection is kept."""
    tls_cert_file: Path | None = None
    """Certificate chain of the public port, PEM; with `tls_key_file` it speaks TLS. Both are read again on change."""
    tls_key_file: Path | None = None
    reuse_port: bool = False
    """Whether other gateway processes of this machine may listen on the same public port: see `for_process`."""
    auth: Literal["none", "keys"] = "none"
    """`keys`: every request to the API needs a key. Without keys nothing beyond loopback is listened on."""
    keys_max_age_s: float | None = None
    """How long keys hold without a word from the controller; None: for ever, so that it may be away, at the risk that a
    gateway which is cut off goes on accepting a key that was revoked meanwhile."""
    limit_share: float = 1.0
    """This gateway's part of every key's limits. Each gateway limits alone: with n of them 1/n keeps the sum, but gives
    a client that holds on to one connection no more than that part."""
    queue: QueueSettings = field(default_factory=QueueSettings)
    """How much may be under way and wait, per model."""
    picking: Picking = field(default_factory=Picking)
    """How one of a revision's endpoints is picked."""
    mirror: MirrorSettings = field(default_factory=MirrorSettings)
    """How much may be mirrored to a shadow; whether anything is, the traffic table says."""
    drift_socket: Path | None = None
    """Where the drift watch of this machine listens; None tells nobody of requests."""
    drift_address: str | None = None
    """Where the drift watch of a cluster listens, in place of that, `HOST:PORT`; with `drift_key_file`."""
    drift_key_file: Path | None = None
    """The key that gateways and watch prove to each other."""
    drift_per_s: float = 50.0
    """Requests per second that it is told of, at most: one costs some 20 us here."""
    quality_per_s: float = 20.0
    """Answers per second that are looked at for the metrics of quality, at most, beside those of a rollout: one takes
    some 50 us, after its client has it."""
    resample: ResampleSettings = field(default_factory=ResampleSettings)
    """How much is asked again while a rollout watches score/semantic-entropy."""
    tracing: TracingSettings = field(default_factory=TracingSettings)
    """Where traces go, and which; off without an endpoint."""
    request_log: RequestLogSettings = field(default_factory=RequestLogSettings)
    """How much is logged of requests; off unless a part is given."""
    guard: GuardSettings = field(default_factory=GuardSettings)
    """What guardrails may cost here, and where their models run; what they do, each version's policy says."""
    show_version: bool = True
    """Whether answers say which version and role gave them; off where clients must not aim at the canary."""

    def __post_init__(self) -> None:
        for host, port in ((self.host, self.port), (self.admin_host, self.admin_port)):
            if not _is_loopback(host) and self.auth == "none":
                raise InvalidConfig(
                    f"the gateway would listen on {host}:{port}, beyond loopback, without API keys; "
                    "use 127.0.0.1 or localhost and put an authenticating proxy in front, or ask for keys"
                )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise InvalidConfig("TLS needs both tls_cert_file and tls_key_file; give both, or neither")
        if min(self.drift_per_s, self.quality_per_s) < 0:
            raise InvalidConfig(
                f"drift_per_s is {self.drift_per_s}, quality_per_s {self.quality_per_s}; give rates, 0 for none"
            )
        if (self.drift_address is None) != (self.drift_key_file is None):
            raise InvalidConfig("a cluster's drift watch needs drift_address and drift_key_file; give both, or neither")
        if self.drift_address is not None:
            if self.drift_socket is not None:
                raise InvalidConfig("drift_socket and drift_address are both given; there is one drift watch")
            try:
                host_and_port(self.drift_address)
            except ValueError as error:
                raise InvalidConfig(f"drift_address: {error}") from None
        if not 0 < self.limit_share <= 1:
            raise InvalidConfig(f"limit_share is {self.limit_share}; give a part above 0 and at most 1")
        object.__setattr__(self, "table_file", self.table_file or self.home / "gateway" / "table.json")
        object.__setattr__(self, "secret_file", self.secret_file or self.home / "gateway" / "secret")
        object.__setattr__(self, "credentials_file", self.credentials_file or self.home / "credentials")
        object.__setattr__(self, "ray_file", self.ray_file or self.home / "run" / "ray.json")
        object.__setattr__(self, "keys_file", self.keys_file or self.home / "gateway" / "keys.json")
        object.__setattr__(self, "usage_dir", self.usage_dir or self.home / "gateway" / "usage")
        object.__setattr__(self, "request_log_dir", self.request_log_dir or self.home / "requests")

    def for_process(self, index: int) -> Self:
        """The configuration of one of several processes on one public port: its own name and admin port."""
        admin_port = self.admin_port + index if self.admin_port else 0
        return replace(self, name=f"gateway-{index}", admin_port=admin_port, reuse_port=True)

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
