"""Which processes make the local platform, and how each is seen to answer."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
from functools import partial

from monitoring.tracing.settings import TracingSettings
from serving.drift.config import DriftConfig, Places
from serving.gateway.config import GatewayConfig
from serving.gateway.guard_settings import GuardSettings
from serving.request_log.settings import RequestLogSettings
from tidegate.monitoring_files import prepare_prometheus, prometheus_argv, prometheus_program
from tidegate.runfile import write_private
from tidegate.settings import Settings
from tidegate.supervisor import Part

PROBE_TIMEOUT_S = 0.5
GATEWAY_DRAIN_S = 30.0
"""How long the streams of a gateway that is being stopped may go on."""


def platform_parts(settings: Settings) -> tuple[Part, ...]:
    """Ray, controller, gateways, drift watch and Prometheus, in the order of starting; none waits for another."""
    python = sys.executable

    def ray_ready(started_at: float) -> bool:
        try:
            return settings.ray_file.stat().st_mtime >= started_at - 0.1
        except OSError:
            return False

    def controller_ready(_started_at: float) -> bool:
        return answers(settings.host, settings.control_port, "/healthz")

    def gateway_ready(_started_at: float, admin_port: int) -> bool:
        return answers(settings.host, admin_port, "/healthz")

    config = GatewayConfig(
        home=settings.home,
        host=settings.host,
        port=settings.gateway_port,
        admin_host=settings.host,
        admin_port=settings.admin_port,
        control_url=settings.control_url,
        serve_port=settings.serve_port,
        request_timeout_s=settings.request_timeout_s,
        drain_s=GATEWAY_DRAIN_S,
        auth=settings.auth,
        limit_share=1 / settings.gateways,
        tls_cert_file=settings.tls_cert_file,
        tls_key_file=settings.tls_key_file,
        drift_socket=Places(settings.home).socket if settings.drift else None,
        tracing=TracingSettings(
            endpoint=settings.otlp_endpoint,
            transport=settings.otlp_protocol,
            ratio=settings.trace_ratio,
            canaries_per_s=settings.trace_canaries_per_s,
            engines=settings.trace_engines,
            content=settings.trace_content,
        ),
        request_log=RequestLogSettings(
            ratio=settings.request_log_ratio,
            format=settings.request_log_format,
            days=settings.request_log_days,
            mib=settings.request_log_mib,
        ),
        guard=GuardSettings(default_policy=settings.default_policy, models=settings.guard_models),
    )
    many = settings.gateways > 1
    gateways = [config.for_process(i) for i in range(settings.gateways)] if many else [config]
    return (
        Part("ray", "Ray", (python, "-m", "tidegate.ray_process"), ray_ready, stop_s=20.0),
        Part("controller", "controller", (python, "-m", "tidegate.control_plane"), controller_ready),
        *(
            Part(
                f"gateway-{index}" if index else "gateway",
                f"gateway {index}" if index else "gateway",
                (python, "-m", "serving.gateway.main", "--config", one.to_json()),
                partial(gateway_ready, admin_port=one.admin_port),
                stop_s=GATEWAY_DRAIN_S + 5.0,
            )
            for index, one in enumerate(gateways)
        ),
        *drift_parts(settings),
        *probe_parts(settings),
        *monitoring_parts(settings),
    )


def drift_parts(settings: Settings) -> tuple[Part, ...]:
    """The drift watch; nobody's request waits for it, so the platform does well without it."""
    if not settings.drift:
        return ()
    config = DriftConfig(
        home=settings.home,
        port=settings.drift_port,
        embeddings_per_s=settings.drift_embeddings_per_s,
    )

    def ready(_started_at: float) -> bool:
        return answers("127.0.0.1", settings.drift_port, "/healthz")

    argv = (sys.executable, "-m", "serving.drift.main", "--config", config.to_json())
    return (Part("drift", "drift watch", argv, ready, vital=False),)


def probe_parts(settings: Settings) -> tuple[Part, ...]:
    """Bias probes on schedule, where they were asked for."""
    if settings.probe_every_h <= 0:
        return ()
    argv = (sys.executable, "-m", "tidegate.probing")
    return (Part("probes", "bias probes", argv, lambda _started_at: True, vital=False),)


def monitoring_parts(settings: Settings) -> tuple[Part, ...]:
    """Prometheus, when it was asked for and the machine has one."""
    program = prometheus_program()
    if not settings.monitoring or program is None:
        return ()

    def ready(_started_at: float) -> bool:
        return answers("127.0.0.1", settings.prometheus_port, "/-/ready")

    return (Part("prometheus", "Prometheus", prometheus_argv(settings, program), ready),)


def platform_environment(settings: Settings) -> dict[str, str]:
    """The environment of every part: ours, with the settings in force spelled out."""
    env = dict(os.environ)
    env.pop("TIDEGATE_KEY", None)  # a person's; no process of the platform needs it
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        env[f"TIDEGATE_{name.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    env["PYTHONUNBUFFERED"] = "1"  # a log that ends before the reason is no log
    return env


def prepare_home(settings: Settings) -> None:
    """Make the folders of a home, readable by the owner alone, and its key."""
    for folder in (settings.home, settings.run_dir, settings.log_dir, settings.table_file.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        known = settings.credentials_file.read_text().strip()
    except FileNotFoundError:
        known = ""
    if not known:
        write_private(settings.credentials_file, secrets.token_urlsafe(32) + "\n")
    settings.credentials_file.chmod(0o600)
    if settings.monitoring:
        prepare_prometheus(settings)


def answers(host: str, port: int, path: str) -> bool:
    """Whether an HTTP server there answers 200 at once."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
