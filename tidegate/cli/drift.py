"""`tidegate drift`: what the drift watch of this home sees, what an alarm means, and what it compares with."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import cluster, session
from tidegate.cli.cluster import ControlCommand
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    ReasonOption,
    YesOption,
    age,
    ask,
    busy,
    chosen,
    note,
    print_data,
    print_rows,
)  # fmt: skip
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from tidegate.drift import Drift

app = typer.Typer(help="Drift of requests: alarms, and what they are compared with.", no_args_is_help=True,
                  rich_markup_mode=None)  # fmt: skip
reference = typer.Typer(help="What requests are compared with.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(reference, name="reference")


class Daily(enum.StrEnum):
    """What `--daily` takes: `monitoring.drift.daily.Daily`, without its cost."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The registered model.")]
StreamOption = Annotated[
    str, typer.Option("--stream", metavar="STREAM", help="all, tenant=NAMESPACE or route=OPERATION.")
]


def _drift() -> Drift:
    from tidegate.drift import Drift

    return Drift(session.settings())


def _status() -> dict[str, Any]:
    """What this home's watch last knew, or a cluster's."""
    if not cluster.chosen.cluster:
        return _drift().status()
    with session.connect() as client:
        return client.drift()


def _stream(model: str, scope: str) -> dict[str, Any]:
    """The status of one stream."""
    if not cluster.chosen.cluster:
        return _drift().stream(model, scope)
    for one in _status()["streams"]:
        if (one["model"], one["stream"]) == (model, scope):
            return dict(one)
    raise TidegateError(f"{model} ({scope}) is not watched; see {cluster.hint('drift status')}")


@app.command("status", cls=ControlCommand)
def status(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Show every watched stream, how near its detectors are to an alarm, and whether one is in force."""
    output = chosen(output, as_json)
    found = _status()
    rows, names = [], []
    for stream in found["streams"]:
        for name, one in stream["detectors"].items():
            rows.append([
                stream["model"], stream["stream"], name, f"{one['statistic']:.3g} of {one['threshold']:.3g}",
                "ALARM" if one["active"] else "quiet", one["alarms"], stream["seen"],
                age(stream["reference"]["built_at"]),
            ])  # fmt: skip
            names.append(f"{stream['model']}/{stream['stream']}/{name}")
    columns = ["model", "stream", "detector", "statistic", "state", "alarms", "requests", "reference"]
    print_rows(
        output, data=found, names=names, columns=columns, rows=rows,
        empty="no stream has a reference; `tidegate drift reference build MODEL --window 7d` makes one",
    )  # fmt: skip
    if output is Format.TABLE and time.time() - found["written_at"] > 30:
        see = "its pod's log" if cluster.chosen.cluster else "`tidegate status`"
        note(f"the drift watch said this {age(found['written_at'])} ago and does not run now; see {see}")


@app.command("explain", cls=ControlCommand)
def explain(
    model: ModelArgument, stream: StreamOption = "all", output: OutputOption = Format.TABLE, as_json: JsonOption = False
) -> None:
    """Say what changed at the last alarm: features that moved, groups of requests that came or went, and their ids."""
    output = chosen(output, as_json)
    found = _stream(model, stream)
    alarms = found["alarms"]
    if output in (Format.JSON, Format.YAML):
        print_data(alarms[-1] if alarms else None, output)
    elif not alarms:
        print(f"{model} ({stream}) has never had an alarm")
    else:
        for line in explained(model, stream, alarms[-1]):
            print(line)


def explained(model: str, stream: str, alarm: dict[str, Any]) -> list[str]:
    """An alarm in words."""
    what = alarm["explanation"]
    seen = alarm.get("acknowledged")
    lines = [
        f"{model} ({stream}): {alarm['severity']} by {alarm['detector']}, {age(alarm['at'])} ago, "
        + (f"acknowledged by {seen['by']}" if seen else "in force until `tidegate drift ack`, or over by itself"),
        f"statistic {alarm['statistic']:.3g}, threshold {alarm['threshold']:.3g}, tipped by {alarm['request_id']}",
        f"compared with {alarm['source']} ({alarm['reference']}), over the last {what['requests']} requests:",
    ]
    lines += [f"  {f['name']}: {f['deviations']:+.1f} standard deviations" for f in what["features"]]
    for word, changes in (("more", what["gained"]), ("fewer", what["lost"])):
        for change in changes:
            ids = ", ".join(change["recent_ids"] or change["reference_ids"])
            label = f" ({change['label']})" if change.get("label") else ""
            lines.append(
                f"  {word} of group {change['cluster']}{label}: {change['before_percent']:.1f} % before, "
                f"{change['now_percent']:.1f} % now; for instance {ids or 'none'}"
            )
    return lines


@app.command("ack", cls=ControlCommand)
def ack(
    model: ModelArgument,
    stream: Annotated[
        str, typer.Option("--stream", metavar="STREAM", help="Only this one; left out: all of the model.")
    ] = "",
    reason: ReasonOption = "",
) -> None:
    """Acknowledge the alarms of a model: they end, evidence starts anew, and rollouts that they hold go on."""
    if cluster.chosen.cluster:
        with session.connect() as client:
            taken_in = client.acknowledge_drift(model, stream or None, reason)
    else:
        taken_in = _drift().acknowledge(model, stream or None, reason)
    if not taken_in:
        note("the drift watch does not run; it will take this in when it starts")
    print(f"acknowledged: {model}" + (f" ({stream})" if stream else ""))


@reference.command("build")
def build(
    model: ModelArgument,
    window: Annotated[str, typer.Option("--window", metavar="7d", help="Requests of the time up to now: 6h, 7d.")] = "",
    dataset: Annotated[
        Path | None, typer.Option("--dataset", metavar="FILE", help="JSON lines with `text`, `prompt` or `messages`.")
    ] = None,
    stream: StreamOption = "all",
    daily: Annotated[Daily, typer.Option("--daily", help="A reference for each part of the day.")] = Daily.AUTO,
    yes: YesOption = False,
) -> None:
    """Build what a model's requests are compared with, from a window or a data set. Replaces what there was."""
    if bool(window) == (dataset is not None):
        raise WrongUse("give either --window, such as 7d, or --dataset FILE")
    drift = _drift()
    if drift.paging(model, stream) and not ask(
        f"{model} ({stream}) has an alarm in force; a reference of drifted requests hides the drift. Build it?", yes=yes
    ):
        raise typer.Abort
    with busy("building"):
        if dataset is not None:
            about = drift.build_from_dataset(model, stream, dataset)
        else:
            from tidegate.cli.key import seconds

            about = drift.build_from_window(model, stream, seconds("--window", window), daily.value)
    print(f"{model} ({stream}): reference {about.digest} of {about.rows} requests, {about.source}; {about.daily}")


@reference.command("refresh")
def refresh(model: ModelArgument, stream: StreamOption = "all", yes: YesOption = False) -> None:
    """Build a reference anew from a window as long as before, up to now."""
    drift = _drift()
    about = drift.about(model, stream)
    if about.window_s is None:
        raise WrongUse(f"the reference of {model} ({stream}) is of {about.source}; build it again from a data set")
    if drift.paging(model, stream) and not ask(
        f"{model} ({stream}) has an alarm in force; a reference of drifted requests hides the drift. Refresh it?",
        yes=yes,
    ):
        raise typer.Abort
    with busy("building"):
        fresh = drift.build_from_window(model, stream, about.window_s, Daily.AUTO.value)
    print(f"{model} ({stream}): reference {fresh.digest} of {fresh.rows} requests, {fresh.source}; {fresh.daily}")


@reference.command("show")
def show(
    model: ModelArgument, stream: StreamOption = "all", output: OutputOption = Format.TABLE, as_json: JsonOption = False
) -> None:
    """Show what a reference is of, and its groups of like requests."""
    output = chosen(output, as_json)
    about = _drift().about(model, stream)
    if output in (Format.JSON, Format.YAML):
        print_data(about.model_dump(mode="json"), output)
        return
    print(f"{model} ({stream}): {about.digest}, built {age(about.built_at)} ago of {about.rows} requests")
    print(f"of {about.source}; {about.daily}")
    for number, label in enumerate(about.labels):
        print(f"  group {number}: {label}")


@reference.command("list")
def list_references(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """List the references: each is a stream that is watched."""
    output = chosen(output, as_json)
    found = _drift().references()
    print_rows(
        output, data=[a.model_dump(mode="json") for a in found], names=[f"{a.model}/{a.scope}" for a in found],
        columns=["model", "stream", "digest", "requests", "parts of the day", "built", "of"],
        rows=[[a.model, a.scope, a.digest, a.rows, a.blocks, age(a.built_at), a.source] for a in found],
        empty="no references; `tidegate drift reference build MODEL --window 7d` makes one",
    )  # fmt: skip


@reference.command("remove")
def remove(model: ModelArgument, stream: StreamOption = "all", yes: YesOption = False) -> None:
    """Remove a reference, which ends the watch of that stream."""
    if not ask(f"Stop watching {model} ({stream})?", yes=yes):
        raise typer.Abort
    if not _drift().remove(model, stream):
        raise TidegateError(f"{model} ({stream}) has no reference; see `tidegate drift reference list`")
    print(f"removed: {model} ({stream})")
