"""One settings class: flags > `TIDEGATE_*` > `$TIDEGATE_HOME/config.toml` > these defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rollout.access import parse_networks
from rollout.notifications.base import Happening

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
    host: str = Field(default="127.0.0.1", description="Address that the public and control ports bind to.")
    gateway_port: Port = Field(default=8000, description="The OpenAI address.")
    admin_port: Port = Field(default=8001, description="The gateway's metrics and health.")
    control_port: Port = Field(default=8080, description="The console and the control plane's API.")
    serve_port: Port = Field(default=8100, description="Ray Serve's own proxy, which nothing of ours uses.")
    tracking_uri: str = Field(default="", description="MLflow tracking URI; empty means sqlite below home.")
    store_url: str = Field(default="", description="SQLAlchemy URL of the event log; empty means sqlite below home.")
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
    drift: bool = Field(default=True, description="Run the drift watch; without a reference it only keeps vectors.")
    drift_port: Port = Field(default=8090, description="The drift watch's metrics and status, on loopback.")
    drift_embeddings_per_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="Requests that it embeds, at most; one takes 1 to 5 ms of one core."
    )
    probe_every_h: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Probe every version that serves for bias, so many hours apart; 0: only on command."
    )
    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="The longest a request may take; also how long a drain waits for its streams."
    )

    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="Addresses and networks whose X-Forwarded-For the control plane believes."
    )
    webhooks: tuple[WebhookSettings, ...] = Field(default=(), description="Who is told what rollouts do.")

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
    def credentials_file(self) -> Path:
        """Bearer token of the local control plane, mode 0600."""
        return self.home / "credentials"

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
        """How far each webhook has been told."""
        return self.home / "webhooks.json"

    @property
    def table_file(self) -> Path:
        """The gateway's last traffic table, for a start without a controller."""
        return self.home / "gateway" / "table.json"

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI in force."""
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

    @property
    def event_log_url(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.store_url or f"sqlite:///{self.home / 'state.db'}"

    @property
    def drift_url(self) -> str:
        """Where the drift watch says what it knows."""
        return f"http://127.0.0.1:{self.drift_port}/status"

    @property
    def control_url(self) -> str:
        """Where the control plane answers."""
        return f"http://{self.host}:{self.control_port}"

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers."""
        scheme = "http" if self.tls_cert_file is None else "https"
        return f"{scheme}://{self.host}:{self.gateway_port}"

    @property
    def own_gateway_url(self) -> str:
        """Where our own processes reach the gateway: by loopback, when it listens on every address."""
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            return self.gateway_url.replace(f"//{self.host}:", "//127.0.0.1:", 1)
        return self.gateway_url


def load_settings(**overrides: Any) -> Settings:  # noqa: ANN401 - forwarded to pydantic, which validates
    """Read the settings; keyword arguments are the command line's flags, None meaning not given."""
    return Settings(**{k: v for k, v in overrides.items() if v is not None})
