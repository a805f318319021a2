"""The files by which Prometheus and Grafana know this platform, and the Prometheus that runs beside it."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
from pathlib import Path

from monitoring.dashboards.boards import BAD, FIRST_TOKEN
from monitoring.rules.collection import ALERTMANAGER_EXAMPLE, GRAFANA_PROVIDER, Targets, prometheus_text
from monitoring.rules.document import RUNBOOKS, rules_text
from monitoring.slo import ServiceLevels
from tidegate.settings import Settings

RULES = "tidegate.rules.yml"
CONFIGURATION = "prometheus.yml"

README = """\
# Tidegate in Prometheus and Grafana

- `prometheus.yml` collects from the platform on this machine, every 15 s: `prometheus --config.file=prometheus.yml`.
  With a Prometheus of your own, take over its `scrape_configs` (the alerts rely on the jobs' names) and `{rules}`.
- `{rules}`: recording rules and alerts. `promtool check rules {rules}` checks it.
- `alertmanager.example.yml`: who is told, by severity `page` or `ticket`.
- `dashboards/*.json`: for Grafana 10 or newer. Import them by hand, or have `grafana-provider.yml` in
  Grafana's `provisioning/dashboards`. They ask which Prometheus to read.
"""


def local_targets(
    settings: Settings,
    engines: tuple[str, ...] = (),
    gpus: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    alertmanagers: tuple[str, ...] = (),
    ray: tuple[str, ...] = (),
) -> Targets:
    """What a Prometheus on this machine collects from: gateways, control plane, drift watch, and what is named."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    host = f"[{host}]" if ":" in host else host
    return Targets(
        gateways=tuple(f"{host}:{settings.admin_port + i}" for i in range(settings.gateways)),
        controls=(f"{host}:{settings.control_port}",),
        drifts=(f"127.0.0.1:{settings.drift_port}",) if settings.drift else (),
        engines=engines,
        # Every gateway knows every engine; the first one is asked, so that each is collected from once.
        discovery=(f"http://{host}:{settings.admin_port}/targets",),
        discovery_files=(*((str(settings.ray_metrics_file),) if settings.ray_metrics else ()), *ray),
        gpus=gpus,
        hosts=hosts,
        alertmanagers=alertmanagers,
    )


def dashboards() -> dict[str, str]:
    """The dashboards that come with the package, by file name."""
    folder = importlib.resources.files("monitoring.dashboards")
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return {f.name: f.read_text(encoding="utf-8") for f in found}


def exported_files(targets: Targets, levels: ServiceLevels, runbooks: str, folder: Path) -> dict[str, str]:
    """Everything that `tidegate monitor export` writes: text by path below `folder`."""
    return {
        CONFIGURATION: prometheus_text(targets, [RULES]),
        RULES: rules_text(levels, runbooks),
        "alertmanager.example.yml": ALERTMANAGER_EXAMPLE,
        "grafana-provider.yml": GRAFANA_PROVIDER.format(path=folder / "dashboards"),
        "README.md": README.format(rules=RULES),
        **{f"dashboards/{name}": _with_promises(text, levels, runbooks) for name, text in dashboards().items()},
    }


def _with_promises(dashboard: str, levels: ServiceLevels, runbooks: str) -> str:
    """A dashboard with these promises as limits, whose links to runbooks begin with this address."""
    limits = {BAD.title: round(1.0 - levels.availability.objective, 9), FIRST_TOKEN.title: levels.first_token.within_s}
    found = json.loads(dashboard)
    for variable in found["templating"]["list"]:
        if variable["name"] == "runbooks":
            variable["query"] = runbooks.rstrip("/")
    for panel in found["panels"]:
        if panel["title"] in limits:
            panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] = limits[panel["title"]]
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write them; a reader sees the old file or the new one.

    Raises:
        OSError: one could not be written.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def prometheus_program() -> str | None:
    """The Prometheus of this machine, None when there is none."""
    return shutil.which("prometheus")


def prepare_prometheus(settings: Settings) -> None:
    """Write the configuration of the Prometheus that runs beside the platform.

    Raises:
        OSError: it could not be written.
    """
    folder = settings.prometheus_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {
        CONFIGURATION: prometheus_text(local_targets(settings), [RULES], interval_s=5),
        RULES: rules_text(ServiceLevels(), RUNBOOKS),
    }
    write_files(folder, files)


def prometheus_argv(settings: Settings, program: str) -> tuple[str, ...]:
    """The command line of that Prometheus: on loopback, its data below the home and bounded."""
    folder = settings.prometheus_dir
    return (
        program,
        f"--config.file={folder / CONFIGURATION}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={settings.prometheus_retention_days}d",
        f"--storage.tsdb.retention.size={settings.prometheus_retention_mib}MB",
        f"--web.listen-address=127.0.0.1:{settings.prometheus_port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    )
