"""One settings class: flags > `TIDEGATE_*` > `$TIDEGATE_HOME/config.toml` > these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from monitoring.tracing.settings import Told, Transport
from rollout.access import parse_networks
from rollout.notifications.base import Happening
from serving.addresses import base_url

_LABEL = r"^[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?$"
"""A Helm release's name: at most 53 characters, so that what is called after it fits into 63."""

Port = Annotated[int, Field(ge=1, le=65535)]


def default_home() -> Path:
    """`$TIDEGATE_HOME`, else `~/.tidegate`."""
    return Path(os.environ.get("TIDEGATE_HOME") or Path.home() / ".tidegate").expanduser()


class WebhookSettings(BaseModel):
    """One receiver of notifications: `[[webhooks]]` in `config.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+")]
    secret_file: Path = Field(description="Holds whsec_ and base64 of 24 to 64 bytes; readable by the owner alone.")
    events: tuple[Happening, ...] = Field(default=tuple(Happening), description="Which to tell; all unless given.")


class Settings(BaseSettings):
    """Everything that can be configured about a local platform.

    Paths below `home` are derived, not configured: whoever knows the home knows where all of it lies.
    """

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_", extra="forbid", frozen=True)

    home: Path = Field(default_factory=default_home, description="Where state, logs and credentials live.")
    host: str = Field(
        default="127.0.0.1",
        description="Address that the gateway, its metrics and health too, and the control plane bind to.",
    )
    gateway_port: Port = Field(default=8000, description="The OpenAI address.")
    admin_port: Port = Field(default=8001, description="The gateway's metrics and health.")
    control_port: Port = Field(default=8080, description="The console and the control plane's API.")
    serve_port: Port = Field(default=8100, description="Ray Serve's own proxy, which nothing of ours uses.")
    tracking_uri: str = Field(default="", description="MLflow tracking URI; empty means sqlite below home.")
    store_url: str = Field(default="", description="SQLAlchemy URL of the event log; empty means sqlite below home.")
    store_url_file: Path | None = Field(
        default=None, description="File that holds that URL, for instance of a mounted Secret; instead of store_url."
    )
    control_token_file: Path | None = Field(
        default=None, description="Mounted file with the bootstrap token, only ever read; instead of the one in home."
    )
    gateway_key_file: Path | None = Field(
        default=None, description="Key that gateways dial with; the control plane books it with the role gateway alone."
    )
    gateway_internal_url: str = Field(
        default="",
        description="Where our own processes reach the gateways, for instance a Service; empty means on this machine.",
    )
    auth: Literal["none", "keys"] = Field(
        default="none", description="keys: every request to the gateway needs an API key (`tidegate key create`)."
    )
    gateways: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Gateway processes, all on one public port; each has its own admin port, counted up."
    )
    tls_cert_file: Path | None = Field(default=None, description="Certificate chain of the gateway's public port, PEM.")
    tls_key_file: Path | None = Field(default=None, description="Its key, PEM.")
    default_policy: str = Field(
        default="default",
        description="Guardrails of versions that bring none: default (only counts), standard (protects), none, or the "
        "path of a policy.",
    )
    guard_models: Literal["threads", "service"] = Field(
        default="threads",
        description="Where the guardrails' models run: in threads of each gateway, or in a Ray Serve application of "
        "their own that scales by itself.",
    )
    judge_policy_file: Path | None = Field(
        default=None,
        description="The policy whose checks rollouts may name as signals (guardrail/NAME); the shipped judge unless "
        "given.",
    )
    prometheus_url: str = Field(
        default="", description="Where signals named prometheus/... are read; empty means that such a signal holds."
    )
    prometheus_token_file: Path | None = Field(
        default=None, description="Bearer token for it; readable by the owner alone."
    )
    monitoring: bool = Field(default=False, description="Run this machine's Prometheus beside the platform.")
    prometheus_port: Port = Field(default=9090, description="Its port, on loopback.")
    prometheus_retention_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=15, description="How long it keeps what it collected; the longest window of an alert is three days."
    )
    prometheus_retention_mib: Annotated[int, Field(ge=64)] = Field(
        default=2048, description="How much of the disk it may take, in MiB; the oldest goes first."
    )
    ray_metrics: bool = Field(
        default=False,
        description="Let the local Ray measure itself, for the Prometheus of `monitoring`; takes CPU time.",
    )
    request_secret_file: Path | None = Field(
        default=None,
        description="What gateways sign request ids with, where it is not below the home: users stand in the request "
        "log under a mark that is made with it.",
    )
    drift: bool = Field(default=True, description="Run the drift watch; without a reference it only keeps vectors.")
    drift_port: Port = Field(default=8090, description="The drift watch's metrics and status, on loopback.")
    drift_watch_url: str = Field(
        default="", description="The drift watch of a cluster, http://HOST:PORT; empty means this machine's own."
    )
    drift_key_file: Path | None = Field(
        default=None, description="The key that the drift watch of a cluster asks for; readable by the owner alone."
    )
    drift_embeddings_per_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="Requests that it embeds, at most; one takes 1 to 5 ms of one core."
    )
    probe_every_h: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Probe every version that serves for bias, so many hours apart; 0: only on command."
    )
    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="The longest a request may take; also how long a drain waits for its streams."
    )

    platform: Literal["local", "kubernetes"] = Field(
        default="local",
        description="kubernetes: models are asked for by ModelDeployments, and engines run under KubeRay.",
    )
    release: Annotated[str, StringConstraints(pattern=_LABEL)] = Field(
        default="tidegate", description="The Helm release's name; its objects are called after it."
    )
    namespace: str = Field(default="", description="Where the release lives on the cluster.")
    pod_name: str = Field(default="", description="This pod's name, by which it holds the lease.")
    watch_namespaces: tuple[str, ...] = Field(
        default=(), description="Where ModelDeployments are looked for; empty means in the release's own namespace."
    )
    kubeconfig: Path | None = Field(
        default=None, description="How to reach the cluster from outside of it; in a pod its service account does."
    )
    kube_context: str | None = Field(default=None, description="The context of that kubeconfig; else the current one.")
    engine_image: str = Field(default="", description="On a cluster: the engine image of specs that name none.")
    engine_service_account: str = Field(default="", description="On a cluster: that of engine pods; it needs no right.")
    engine_pull_secrets: tuple[str, ...] = Field(default=(), description="On a cluster: Secrets for pulling the image.")
    engine_tracking_uri: str = Field(
        default="", description="On a cluster: where engine pods fetch weights from; empty means tracking_uri."
    )
    engine_credentials_secret: str = Field(
        default="", description="On a cluster: a Secret with what that takes, as environment; specs may name another."
    )
    model_cache_claim: str = Field(default="", description="On a cluster: a volume claim that keeps fetched weights.")
    model_cache_path: str = Field(default="", description="On a cluster: a folder of the nodes that keeps them.")
    ray_auth_secret: str = Field(
        default="", description="On a cluster: Secret with Ray's token as auth_token; empty means RELEASE-ray-token."
    )
    ray_token_file: Path | None = Field(default=None, description="On a cluster: file that holds that token.")
    redis_address: str = Field(
        default="",
        description="On a cluster: Redis for Ray's control store; without it a lost head ends its engines.",
    )
    redis_secret: str = Field(default="", description="On a cluster: Secret with its password as password.")
    traffic_router: Literal["gateway", "gateway-api"] = Field(
        default="gateway",
        description="On a cluster: what divides requests, our gateways or HTTPRoutes of your ingress.",
    )
    gateway_service: str = Field(
        default="", description="On a cluster: the Service of the gateways; empty means RELEASE-gateway."
    )
    http_route: str = Field(
        default="{model}", description="With gateway-api: the name of a model's HTTPRoute; {model} stands for its name."
    )
    http_route_namespace: str = Field(
        default="", description="With gateway-api: where the routes are; empty means the release's own namespace."
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="OTLP collector that traces go to, http://127.0.0.1:4317 for instance; empty means no traces.",
    )
    otlp_protocol: Transport = Field(default=Transport.GRPC, description="How: grpc, or http/protobuf (port 4318).")
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Part of the traces that begin here and are kept; failures always are."
    )
    trace_canaries_per_s: Annotated[float, Field(ge=0)] = Field(
        default=10.0,
        description="So many requests of canaries a second each gateway samples beyond that: their traces are whole.",
    )
    trace_engines: Told = Field(
        default=Told.HEAD,
        description="Traces that engines add a span to: head (those sampled at the start), or always (then the "
        "collector must drop what no gateway kept).",
    )
    trace_content: bool = Field(
        default=False, description="Have traces hold prompts and answers, redacted, where a version's policy allows it."
    )
    request_log_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Part of the requests that is logged; above 0 what failed always is. 0 means no log."
    )
    request_log_format: Literal["jsonl", "parquet"] = Field(default="parquet", description="Of closed segments.")
    request_log_days: Annotated[float, Field(gt=0)] = Field(default=7.0, description="How long a request is kept.")
    request_log_mib: Annotated[int, Field(ge=1)] = Field(
        default=1024, description="How much of the disk each gateway's log may take, in MiB; the oldest goes first."
    )

    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="Addresses and networks whose X-Forwarded-For the control plane believes."
    )
    webhooks: tuple[WebhookSettings, ...] = Field(default=(), description="Who is told what rollouts do.")

    @model_validator(mode="after")
    def _has_one_store(self) -> Self:
        if self.store_url and self.store_url_file is not None:
            raise ValueError("store_url and store_url_file both name the store; give one of them")
        return self

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.platform == "kubernetes" and not (self.namespace and self.pod_name):
            raise ValueError(
                f"platform kubernetes needs namespace (found {self.namespace!r}) and pod_name ({self.pod_name!r}); "
                "the chart sets TIDEGATE_NAMESPACE and TIDEGATE_POD_NAME from the pod"
            )
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(given)
        return given

    @field_validator("webhooks")
    @classmethod
    def _have_names_of_their_own(cls, given: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        names = [w.name for w in given]
        if len(set(names)) != len(names):
            raise ValueError(f"two webhooks have one name in {names}; give each its own")
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put `config.toml` below the environment."""
        toml = TomlConfigSettingsSource(settings_cls, default_home() / "config.toml")
        return init_settings, env_settings, toml

    @property
    def run_dir(self) -> Path:
        """Process ids, sockets and addresses of what runs now."""
        return self.home / "run"

    @property
    def log_dir(self) -> Path:
        """Logs of every process of the local platform."""
        return self.home / "logs"

    @property
    def ray_file(self) -> Path:
        """JSON with the address, dashboard URL and token of the Ray that the supervisor started."""
        return self.run_dir / "ray.json"

    @property
    def ray_metrics_file(self) -> Path:
        """Where Prometheus learns, by its file discovery, at which port that Ray tells its metrics."""
        return self.run_dir / "prom_metrics_service_discovery.json"

    @property
    def credentials_file(self) -> Path:
        """Bearer token of the control plane: of this home, mode 0600, unless a mounted one is named."""
        return self.control_token_file or self.home / "credentials"

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """Where ModelDeployments are looked for, each once."""
        return tuple(dict.fromkeys(self.watch_namespaces)) or (self.namespace,)

    @property
    def prometheus_dir(self) -> Path:
        """Configuration and data of the Prometheus that runs beside the platform."""
        return self.home / "prometheus"

    @property
    def local_prometheus_url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.prometheus_port}"

    @property
    def webhook_cursors_file(self) -> Path:
        """How far each webhook had been told, as older versions kept it; it is in the store now."""
        return self.home / "webhooks.json"

    @property
    def table_file(self) -> Path:
        """The gateway's last traffic table, for a start without a controller."""
        return self.home / "gateway" / "table.json"

    @property
    def gateway_secret_file(self) -> Path:
        """What the gateways of this home, or of this release, sign request ids with."""
        return self.request_secret_file or self.home / "gateway" / "secret"

    @property
    def request_log_dir(self) -> Path:
        """Holds a folder for each gateway's request log."""
        return self.home / "requests"

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI in force."""
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def event_log_url(self) -> str:
        """The SQLAlchemy URL in force.

        Raises:
            OSError: it is in a file that can't be read.
        """
        if self.store_url_file is not None:
            return self.store_url_file.read_text().strip()
        return self.store_url or f"sqlite:///{self.home / 'state.db'}"

    @property
    def drift_url(self) -> str:
        """Where the drift watch says what it knows."""
        return f"{self.drift_watch_url.rstrip('/') or f'http://127.0.0.1:{self.drift_port}'}/status"

    @property
    def drift_key_headers(self) -> dict[str, str]:
        """What shows the drift watch that we may ask; read each time, so that a Secret that was changed is taken up.

        Raises:
            OSError: the key can't be read.
        """
        file = self.drift_key_file
        return {} if file is None else {"authorization": f"Bearer {file.read_text().strip()}"}

    @property
    def control_url(self) -> str:
        """Where the control plane answers."""
        return base_url(self.host, self.control_port)

    @property
    def admin_url(self) -> str:
        """Where the first gateway's metrics and health are."""
        return base_url(self.host, self.admin_port)

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers."""
        url = base_url(self.host, self.gateway_port)
        return url if self.tls_cert_file is None else url.replace("http:", "https:", 1)

    @property
    def own_gateway_url(self) -> str:
        """Where our own processes reach the gateway: as configured, or by loopback when it listens everywhere."""
        if self.gateway_internal_url:
            return self.gateway_internal_url
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = f"[{self.host}]" if ":" in self.host else self.host
            return self.gateway_url.replace(f"//{host}:", "//127.0.0.1:", 1)
        return self.gateway_url


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - forwarded to pydantic, which validates
    """Read the settings; keyword arguments are the command line's flags, None meaning not given."""
    return Settings(**{k: v for k, v in overrides.items() if v is not None})
