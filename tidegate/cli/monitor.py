"""`tidegate monitor export`: dashboards, rules and configurations for a Prometheus and a Grafana of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli import session
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from monitoring.slo import ServiceLevels

app = typer.Typer(help="Dashboards and alerts for Prometheus and Grafana.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Dashboards and alerts for Prometheus and Grafana."""


@app.command("export")
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made when missing.")],
    availability: Annotated[
        float, typer.Option(metavar="PERCENT", help="Requests that are promised to be answered.")
    ] = 99.9,
    first_token: Annotated[
        float, typer.Option("--first-token", metavar="PERCENT", help="Answers whose first token comes in time.")
    ] = 95.0,
    within: Annotated[
        float, typer.Option("--within", metavar="SECONDS", help="What in time means; a bound of the histogram.")
    ] = 2.5,
    runbooks: Annotated[str, typer.Option(metavar="URL", help="What runbook links begin with.")] = "docs/runbooks",
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="HOST:PORT", help="Another vLLM's /metrics; repeat."),
    ] = None,
    ray: Annotated[
        list[str] | None,
        typer.Option("--ray", metavar="FILE", help="Ray's prom_metrics_service_discovery.json; repeat."),
    ] = None,
    gpus: Annotated[
        list[str] | None, typer.Option("--gpu", metavar="HOST:PORT", help="A DCGM exporter; repeat.")
    ] = None,
    hosts: Annotated[
        list[str] | None, typer.Option("--node", metavar="HOST:PORT", help="A node exporter; repeat.")
    ] = None,
    alertmanagers: Annotated[
        list[str] | None, typer.Option("--alertmanager", metavar="HOST:PORT", help="Who is told of alerts; repeat.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that were changed by hand.")] = False,
) -> None:
    """Write dashboards, rules, a prometheus.yml for this platform's ports and an example for Alertmanager."""
    from tidegate.monitoring_files import exported_files, local_targets, write_files

    levels = _levels(availability, first_token, within)
    targets = local_targets(
        session.running_settings(), tuple(engines or ()), tuple(gpus or ()), tuple(hosts or ()),
        tuple(alertmanagers or ()), tuple(ray or ()),
    )  # fmt: skip
    for address in (*targets.engines, *targets.gpus, *targets.hosts, *targets.alertmanagers):
        if not address.rpartition(":")[2].isdigit() or "/" in address:
            raise WrongUse(f"{address!r} is no address; write HOST:PORT, without http:// and without a path")
    files = exported_files(targets, levels, runbooks, folder.absolute())
    if not force:
        _refuse_changed(folder, files)
    try:
        write_files(folder, files)
    except OSError as error:
        why = (error.strerror or "it failed").lower()
        raise TidegateError(f"{error.filename or folder} can't be written: {why}; name another folder") from None
    for name in files:
        print(folder / name)
    print(f"Next: `prometheus --config.file={folder / 'prometheus.yml'}`; {folder / 'README.md'} says the rest")


def _levels(availability: float, first_token: float, within: float) -> ServiceLevels:
    from pydantic import ValidationError

    from monitoring.slo import Availability, FirstToken, ServiceLevels

    for option, value in (("--availability", availability), ("--first-token", first_token)):
        if not 0.0 < value < 100.0:
            raise WrongUse(f"{option} {value:g}: a promise is between 0 and 100 percent, 99.9 for instance")
    try:
        return ServiceLevels(
            availability=Availability(objective=round(availability / 100.0, 9)),
            first_token=FirstToken(objective=round(first_token / 100.0, 9), within_s=within),
        )
    except ValidationError as error:
        raise WrongUse(f"--within {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _refuse_changed(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise TidegateError(f"{path} exists with other content; name another folder, or --force to write over it")
