"""Where Prometheus collects what, and whom Alertmanager tells: configurations as text. Pure.

Job names are part of the interface: alerts ask for `up{job="tidegate-gateway"}`, and so for `tidegate-control` and
`tidegate-drift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

GATEWAY_JOB = "tidegate-gateway"
CONTROL_JOB = "tidegate-control"
DRIFT_JOB = "tidegate-drift"
ENGINE_JOB = "tidegate-engine"
DISCOVERED_JOB = "tidegate-engines"
RAY_JOB = "ray"
GPU_JOB = "dcgm"
HOST_JOB = "node"


@dataclass(frozen=True, slots=True)
class Targets:
    """HOST:PORT of what is collected from; what is empty gets no job."""

    gateways: tuple[str, ...] = ()
    """Admin ports."""
    controls: tuple[str, ...] = ()
    drifts: tuple[str, ...] = ()
    """Drift watches."""
    engines: tuple[str, ...] = ()
    discovery: tuple[str, ...] = ()
    """URLs that list engines as Prometheus' HTTP service discovery has it: a gateway's `/targets`."""
    discovery_files: tuple[str, ...] = ()
    """The same as files, for instance the one in which Ray lists its metrics agents."""
    gpus: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    alertmanagers: tuple[str, ...] = ()


def prometheus_document(targets: Targets, rule_files: Sequence[str], interval_s: int = 15) -> dict[str, Any]:
    """The configuration of a Prometheus as plain data.

    Args:
        targets: What to collect from.
        rule_files: Paths of rule files; relative ones are relative to the configuration.
        interval_s: How often.
    """
    jobs = (
        (GATEWAY_JOB, targets.gateways), (CONTROL_JOB, targets.controls), (DRIFT_JOB, targets.drifts),
        (ENGINE_JOB, targets.engines), (GPU_JOB, targets.gpus), (HOST_JOB, targets.hosts),
    )  # fmt: skip
    found: dict[str, Any] = {
        "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": "30s"},
        "rule_files": list(rule_files),
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in jobs if addresses
        ],
    }
    found["scrape_configs"] += _discovered(targets)
    if targets.alertmanagers:
        managers = {"static_configs": [{"targets": list(targets.alertmanagers)}]}
        found["alerting"] = {"alertmanagers": [managers]}
    return found


def _discovered(targets: Targets) -> list[dict[str, Any]]:
    """Jobs whose targets Prometheus asks for itself, every few seconds."""
    jobs: list[dict[str, Any]] = []
    if targets.discovery:
        sources = [{"url": url, "refresh_interval": "5s"} for url in targets.discovery]
        # The engine's own `version` would be vLLM's; that of the model is ours, and the target's labels win.
        jobs.append({"job_name": DISCOVERED_JOB, "http_sd_configs": sources})
    if targets.discovery_files:
        jobs.append({"job_name": RAY_JOB, "file_sd_configs": [{"files": list(targets.discovery_files)}]})
    return jobs


def prometheus_text(targets: Targets, rule_files: Sequence[str], interval_s: int = 15) -> str:
    """The configuration of a Prometheus as its file."""
    return yaml.safe_dump(prometheus_document(targets, rule_files, interval_s), sort_keys=False)


ALERTMANAGER_EXAMPLE = """\
# An example for Alertmanager: pages go to one receiver at once, tickets to another, gathered by the hour.
# Put addresses of your own in place of these.
route:
  receiver: tickets
  group_by: [alertname, model]
  group_wait: 30s
  group_interval: 5m
  repeat_interval: 24h
  routes:
    - matchers: [severity="page"]
      receiver: pager
      repeat_interval: 1h
inhibit_rules:
  # A model that is being paged for needs no ticket of the same alert.
  - source_matchers: [severity="page"]
    target_matchers: [severity="ticket"]
    equal: [alertname, model]
  # Nobody needs to hear what a gateway that is down can't do.
  - source_matchers: [alertname="TidegateGatewayDown"]
    target_matchers: [alertname=~"TidegateGatewayWithoutController|TidegateNoReadyEndpoint"]
    equal: [instance]
receivers:
  - name: pager
    webhook_configs:
      - url: http://127.0.0.1:9099/pager
  - name: tickets
    webhook_configs:
      - url: http://127.0.0.1:9099/tickets
"""

GRAFANA_PROVIDER = """\
# For Grafana's folder provisioning/dashboards: loads the dashboards beside this file. Correct the path.
apiVersion: 1
providers:
  - name: tidegate
    folder: Tidegate
    type: file
    options:
      path: {path}
"""
