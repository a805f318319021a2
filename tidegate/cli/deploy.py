"""`tidegate deploy`: plan, difference, confirmation, rollout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    ReasonOption,
    YesOption,
    ask,
    chosen,
    duration,
    note,
    plain,
    print_data,
)
from tidegate.errors import ControlError, WrongUse

if TYPE_CHECKING:
    from rollout.specs import RolloutSpec
    from tidegate.client import ControlClient, RolloutStatus

STRATEGIES = ("canary", "blue-green", "shadow", "ab")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("deploy")(deploy)


def deploy(
    reference: Annotated[
        str, typer.Argument(metavar="[NAME@VERSION]", help="What to roll out; may be left out with -f.")
    ] = "",
    strategy: Annotated[str, typer.Option("--strategy", help="How the new version takes over: canary.")] = "canary",
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="5,25,50,100", help="Weights in percent; 100 means to the end.")
    ] = None,
    step_duration: Annotated[
        str | None, typer.Option("--step-duration", metavar="30s", help="How long each step takes at least.")
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
    _check_strategy(strategy)
    document = build_document(reference, file, steps=steps, step_duration=step_duration, replicas=replicas)
    if emergency:
        document["emergency"] = True
    spec = _checked(document)
    for_people = output in (Format.TABLE, Format.WIDE)
    with session.connect() as client:
        if for_people or dry_run:
            plan = client.deploy(document, reason=reason, dry_run=True).plan or {}
            before = _status_or_none(client, spec.model)
            if not for_people:
                print_data(plain({"plan": plan, "status": before.model_dump(mode="json") if before else None}), output)
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
            note(f"`tidegate rollout get {spec.model} --watch` shows it; `tidegate rollback {spec.model}` undoes it")
        else:
            print_data(plain(reply.model_dump(mode="json", exclude_none=True)), output)


def _check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise WrongUse(f"--strategy {strategy!r} is unknown; there is canary")
    if strategy != "canary":
        raise WrongUse(f"--strategy {strategy} is not available yet; use canary")


def build_document(
    reference: str, file: Path | None, *, steps: str | None, step_duration: str | None, replicas: int | None
) -> dict[str, Any]:
    """The spec as it goes to the control plane: the file, with what the command line says on top."""
    document = _read_file(file) if file is not None else {}
    if reference:
        document["model"], document["version"] = session.parse_reference(reference)
    elif file is None:
        raise WrongUse("say what to deploy: NAME@VERSION, for instance chat@1.0.1, or -f FILE")
    if replicas is not None:
        document["engine"] = {**_mapping(document, "engine"), "minReplicas": replicas}
    if steps is not None or step_duration is not None:
        strategy = _mapping(document, "strategy")
        canary = _mapping(strategy, "canary")
        canary["steps"] = _steps(steps, step_duration, canary.get("steps"))
        document["strategy"] = {**strategy, "canary": canary}
    return document


def _mapping(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return dict(found) if isinstance(found, dict) else {}


def _steps(text: str | None, step_duration: str | None, given: object) -> list[dict[str, Any]]:
    from rollout.specs import DEFAULT_STEPS

    if text is not None:
        try:
            found: list[dict[str, Any]] = [{"weight": int(part.strip().removesuffix("%"))} for part in text.split(",")]
        except ValueError:
            raise WrongUse(f"--steps {text!r}: write weights in percent, rising, as 5,25,50,100") from None
    elif isinstance(given, list):
        found = [dict(s) for s in given if isinstance(s, dict)]
    else:
        found = [{"weight": s.weight} for s in DEFAULT_STEPS]
    if step_duration is not None:
        found = [{**s, "duration": step_duration} for s in found]
    return found


def _read_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise WrongUse(f"-f {path}: {(error.strerror or 'it cannot be read').lower()}; name a readable file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(f"-f {path} is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise WrongUse(f"-f {path} holds a {type(found).__name__}, not a mapping; see examples/rollout.yaml")
    body = found.get("spec", found) if found.get("kind") == "ModelDeployment" else found
    if not isinstance(body, dict):
        raise WrongUse(f"-f {path}: spec is a {type(body).__name__}, not a mapping; see examples/rollout.yaml")
    return dict(body)


def _checked(document: dict[str, Any]) -> RolloutSpec:
    """The document as a spec, so that a mistake is told before anything is asked of the control plane."""
    from rollout.specs import parse_spec

    return parse_spec(document)


def _status_or_none(client: ControlClient, model: str) -> RolloutStatus | None:
    try:
        return client.rollout(model)
    except ControlError as error:
        if error.status == 404:
            return None
        raise


def plan_lines(spec: RolloutSpec, before: RolloutStatus | None, plan: dict[str, Any]) -> list[str]:
    """What is there, what would change, how it would go, and how to get back."""
    stable = before.stable if before is not None else None
    lines = [f"plan for {spec.model}", f"  stable now   {stable or 'none'}", f"  new          {spec.version}"]
    lines += [f"  changes      {change}" for change in _changes(plan)]
    if before is not None and before.canary is not None:
        lines.append(f"  supersedes   {before.canary}, which is at {before.weight} %")
    if stable is None:
        lines.append("  traffic      all of it as soon as it answers, since nothing else serves")
    elif spec.emergency:
        lines.append("  traffic      EMERGENCY: all of it as soon as it answers, no steps, no evidence")
    else:
        lines += _judged(spec)
    replicas = spec.engine.min_replicas
    count = f"{replicas} replica{'s' if replicas > 1 else ''}"
    lines.append(f"  capacity     {count} beside stable's, image {spec.engine.image}")
    if stable is not None:
        lines.append(f"  way back     {stable} stays warm for {duration(spec.rollback_window)} after the end")
    return lines


def _judged(spec: RolloutSpec) -> list[str]:
    canary, analysis = spec.strategy.canary, spec.analysis
    steps = " -> ".join(f"{s.weight} % for {duration(s.duration)}" for s in canary.shifting_steps)
    soak = f" -> soak at {100 - canary.holdback_percent} % for {duration(canary.soak)}" if canary.soak else ""
    signals = ", ".join(f"{s.name}{'' if s.gating else ' (takes back only)'}" for s in analysis.signals)
    return [
        f"  steps        {steps}{soak} -> 100 %, each until the evidence suffices",
        f"  signals      {signals}",
        f"  alpha        {analysis.alpha:g}: the chance of ever taking back a healthy version",
    ]


def _changes(plan: dict[str, Any]) -> list[str]:
    """What the control plane tells of the difference between stable and new, as far as it can."""
    told = plan.get("changes")
    if isinstance(told, str):
        return [told]
    if isinstance(told, list):
        return [str(change) for change in told]
    bump, why = plan.get("bump"), plan.get("bump_reason")
    return [f"{bump}: {why}" if bump and why else str(bump or why)] if bump or why else []


def _wait(client: ControlClient, model: str, rollout: str | None, timeout_s: float | None, output: Format) -> None:
    from tidegate.cli.rollout import conclude
    from tidegate.cli.watch import follow

    quiet = output not in (Format.TABLE, Format.WIDE)
    try:
        found = follow(client, model, rollout=rollout, timeout_s=timeout_s, quiet=quiet)
    except KeyboardInterrupt:
        note(f"it goes on; `tidegate rollout get {model} --watch` shows it")
        sys.exit(130)
    conclude(found, output)
