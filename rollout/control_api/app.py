"""The control plane over HTTP: status, commands, keys, events, and the socket that gateways dial."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from rollout.control_api.acting import acting_routes
from rollout.control_api.bounds import BoundedBodies
from rollout.control_api.drift import DriftWatch, drift_routes
from rollout.control_api.errors import install_errors
from rollout.control_api.gateways import gateway_routes
from rollout.control_api.guard import guard_of
from rollout.control_api.keys import key_routes, usage_routes
from rollout.control_api.plane import ControlPlane
from rollout.control_api.probes import probe_routes
from rollout.control_api.quotas import quota_routes
from rollout.control_api.reading import health_routes, log_routes, reading_routes
from rollout.control_api.requests import LoggedRequests, request_routes
from rollout.probes.base import ProbeReports


def create_app(
    plane: ControlPlane,
    *,
    platform: Callable[[], dict[str, Any]],
    clock: Callable[[], float],
    logged: LoggedRequests | None = None,
    probes: ProbeReports | None = None,
    drift: DriftWatch | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        plane: what the routes act on.
        platform: tells about the processes around the controller, for `/api/v1/status`.
        clock: seconds since the epoch.
        logged: the gateways' request log; None where it can't be reached from here.
        probes: reports of bias probes; None where none are kept.
        drift: the drift watch; None where there is none.

    """
    app = FastAPI(title="Tidegate control plane", version="1", docs_url=None, redoc_url=None)
    app.add_middleware(BoundedBodies)
    install_errors(app)
    guard = guard_of(plane)
    app.include_router(health_routes(plane, guard))
    app.include_router(reading_routes(plane, guard, platform))
    app.include_router(log_routes(plane, guard))
    app.include_router(acting_routes(plane, guard))
    app.include_router(key_routes(plane, guard, clock))
    app.include_router(quota_routes(plane, guard, clock))
    app.include_router(usage_routes(plane, guard, clock))
    app.include_router(request_routes(plane, guard, logged, clock))
    app.include_router(probe_routes(plane, guard, probes, clock))
    app.include_router(drift_routes(plane, guard, drift))
    app.include_router(gateway_routes(plane))
    return app
