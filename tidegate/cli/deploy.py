"""`tidegate deploy`: plan, difference, confirmation, rollout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ClusterCommand, hint
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    ReasonOption,
    YesOption,
    ask,
    chosen,
    note,
    plain,
    print_data,
)
from tidegate.cli.plan import plan_lines
from tidegate.cli.wish import StrategyFlags, build_document
from tidegate.errors import ControlError

if TYPE_CHECKING:
    from tidegate.client import ControlClient
    from tidegate.replies import RolloutStatus


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("deploy", cls=ClusterCommand)(deploy)


def deploy(
    reference: Annotated[
        str, typer.Argument(metavar="[NAME@VERSION]", help="What to roll out; may be left out with -f.")
    ] = "",
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="How the new version takes over: canary (default), blue-green, shadow, ab."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="5,25,50,100", help="canary: weights in percent; 100 means to the end."),
    ] = None,
    step_duration: Annotated[
        str | None, typer.Option("--step-duration", metavar="30s", help="canary: how long each step takes at least.")
    ] = None,
    mirror: Annotated[
        int | None, typer.Option("--mirror", min=1, max=100, help="shadow: percent of stable's requests to copy.")
    ] = None,
    weight: Annotated[
        int | None, typer.Option("--weight", min=1, max=99, help="ab: percent of sessions for the new version.")
    ] = None,
    sessions: Annotated[
        int | None, typer.Option("--sessions", min=1, help="ab: how many sessions until the report.")
    ] = None,
    smoke: Annotated[
        Path | None,
        typer.Option("--smoke", metavar="FILE", help="blue-green: a YAML list of requests and what to expect."),
    ] = None,
    testers: Annotated[
        list[str] | None,
        typer.Option("--tester", metavar="HEADER=VALUE", help="canary, blue-green: always to the new version; repeat."),
    ] = None,
    emergency: Annotated[
        bool, typer.Option("--emergency", help="All traffic as soon as it answers: no steps, no evidence.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", metavar="FILE", help="A rollout.yaml; other options win over it."),
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=1, max=64, help="Replicas of the version.")] = None,
    reason: ReasonOption = "",
    yes: YesOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end: exit code 0 Healthy, 1 Degraded.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="With --wait: give up after so long.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and do nothing.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Roll a registered version out: show the plan, ask, start."""
    output = chosen(output, as_json)
    from rollout.specs import parse_spec

    flags = StrategyFlags(strategy, steps, step_duration, mirror, weight, sessions, smoke, tuple(testers or ()))
    document = build_document(reference, file, flags, replicas=replicas)
    if emergency:
        document["emergency"] = True
    spec = parse_spec(document)  # a mistake is told before anything is asked of the control plane
    for_people = output in (Format.TABLE, Format.WIDE)
    with session.connect() as client:
        if for_people or dry_run:
            plan = client.deploy(document, reason=reason, dry_run=True).plan or {}
            before = _status_or_none(client, spec.model)
            if output is Format.NAME:
                print(spec.model)
            elif not for_people:
                print_data(plain({"plan": plan, "status": before.model_dump(mode="json") if before else None}), output)
            if not for_people:
                return
            for line in plan_lines(spec, before, plan):
                note(line)
        if dry_run:
            return
        if not ask(f"Roll out {spec.model}@{spec.version} now?", yes=yes):
            note("nothing was changed")
            raise typer.Exit(1)
        reply = client.deploy(document, reason=reason)
        started = reply.status
        if reply.decision is not None and for_people:
            print(reply.decision.reason)
        if wait:
            _wait(client, spec.model, started.rollout if started else None, timeout, output)
        elif for_people:
            note(f"{hint(f'rollout get {spec.model} --watch')} shows it; {hint(f'rollback {spec.model}')} undoes it")
        else:
            from tidegate.cli.rollout import print_reply

            print_reply(reply, output)


def _status_or_none(client: ControlClient, model: str) -> RolloutStatus | None:
    try:
        return client.rollout(model)
    except ControlError as error:
        if error.status == 404:
            return None
        raise


def _wait(client: ControlClient, model: str, rollout: str | None, timeout_s: float | None, output: Format) -> None:
    from tidegate.cli.rollout import conclude
    from tidegate.cli.watch import follow

    quiet = output not in (Format.TABLE, Format.WIDE)
    try:
        found = follow(client, model, rollout=rollout, timeout_s=timeout_s, quiet=quiet)
    except KeyboardInterrupt:
        note(f"it goes on; {hint(f'rollout get {model} --watch')} shows it")
        sys.exit(130)
    conclude(found, output)
