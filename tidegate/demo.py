"""The story, with real models all the way: one version promoted, two taken back, times printed. `make demo`.

1.0.0 is the bundled model. 1.0.1 has the same weights and another system prompt. 1.1.0's weights were damaged by
noise: it answers, but babbles to its length limit (signal `length-stop`). 1.2.0 loads and then fails requests: its chat
template divides by the number of earlier messages (signal `engine-4xx`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

from registry.errors import UnknownVersion, VersionExists
from registry.stores.base import RegistryStore
from tidegate import bundled
from tidegate.client import ControlClient, connect
from tidegate.composition import build_registry, register_request
from tidegate.errors import TidegateError
from tidegate.load import Load
from tidegate.replies import HistoryEntry, RolloutStatus
from tidegate.settings import Settings, load_settings

MODEL = bundled.MODEL
SHORT_PROMPT = "You are a helpful assistant. Answer in one short sentence."
BROKEN_TEMPLATE = "{%- set budget = 2048 // (messages | length - 1) -%}\n"
NOISE = 0.3
"""Standard deviation of the noise added to each weight matrix, as a part of the matrix's own."""

SPEC: dict[str, Any] = {
    "strategy": {
        "canary": {
            "steps": [{"weight": 25, "duration": "5s"}, {"weight": 50, "duration": "5s"}, {"weight": 100}],
        }
    },
    # Not slow-tokens: on one machine both versions compute on the same cores, so each slows the other.
    "analysis": {"signals": [{"name": n} for n in ("error", "engine-4xx", "length-stop", "repetition")]},
    "rollbackWindow": "30s",
    "drainDeadline": "2m",
    "progressDeadlineSeconds": 300,
}


def damage(source: Path, target: Path) -> None:
    """Copy a model's folder with noise added to its weight matrices; embeddings and norms stay."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = np.random.default_rng(0)
    for file in source.glob("*.safetensors"):
        weights = load_file(file)
        for name, weight in weights.items():
            if weight.ndim > 1 and "embed" not in name:
                noise = generator.standard_normal(weight.shape, dtype=np.float32) * weight.std() * NOISE
                weights[name] = (weight + noise).astype(weight.dtype)
        save_file(weights, target / file.name, metadata={"format": "pt"})


def register_versions(settings: Settings, store: RegistryStore, versions: set[str], say: Callable[[str], None]) -> None:
    """Register the story's versions that are not there yet; 1.0.0 must be."""
    work = settings.home / "demo"
    work.mkdir(parents=True, exist_ok=True)
    base = bundled.folder(settings)
    template = (base / "chat_template.jinja").read_text()
    (work / "short.txt").write_text(SHORT_PROMPT)
    (work / "broken.jinja").write_text(BROKEN_TEMPLATE + template)
    story: dict[str, dict[str, Any]] = {
        "1.0.1": {"prompt_file": work / "short.txt"},
        "1.1.0": {"prompt_file": work / "short.txt", "source": str(work / "damaged")},
        "1.2.0": {"prompt_file": work / "broken.jinja"},
    }
    for version, fields in story.items():
        if version not in versions or _exists(store, version):
            continue
        if version == "1.1.0":
            say("damaging the weights of 1.1.0")
            damage(base, work / "damaged")
        say(f"registering {MODEL}@{version}")
        wanted = {"model": MODEL, "version": version, "source": str(base), "engine_args": bundled.ENGINE_ARGS}
        try:
            store.register(register_request(**(wanted | fields)))
        except VersionExists:
            continue
    shutil.rmtree(work / "damaged", ignore_errors=True)


def _exists(store: RegistryStore, version: str) -> bool:
    try:
        store.get(MODEL, version)
    except UnknownVersion:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the time line: what happened, in seconds since the epoch (None: it did not)."""

    what: str
    at: float | None


def timeline(control: ControlClient, status: RolloutStatus) -> list[Moment]:
    """The moments of the last rollout of a model, from the event log."""
    entries = [e for e in control.history(status.model, evidence=True) if e.at >= (status.started_at or 0) - 0.001]
    decided = _entry_with(entries, {"withdraw", "promote"})
    taken_back = decided is not None and any(a.get("type") == "withdraw" for a in decided.actions)
    exposure = status.exposure
    moments = [
        Moment("deployed", status.started_at),
        Moment("first canary request", exposure.first_admitted_at),
        Moment("first evidence against it", _first_evidence(entries)),
        Moment("taken back" if taken_back else "promoted", decided.at if decided else None),
    ]
    if taken_back:
        moments.append(Moment("last canary request", exposure.last_admitted_at))
        moments.append(Moment("drained", _drained(entries, decided)))
    return moments


def _entry_with(entries: list[HistoryEntry], kinds: set[str]) -> HistoryEntry | None:
    return next((e for e in entries if any(a.get("type") in kinds for a in e.actions)), None)


def _drained(entries: list[HistoryEntry], decided: HistoryEntry | None) -> float | None:
    if decided is None:
        return None
    later = [e for e in entries if e.id > decided.id]
    found = _entry_with(later, {"remove"})
    return found.at if found else None


def _first_evidence(entries: list[HistoryEntry]) -> float | None:
    for entry in entries:
        for event in entry.payload.get("events", ()):
            if event.get("arm") == "canary":
                return float(event["settled_at"])
    return None


def follow(control: ControlClient, version: str, say: Callable[[str], None], timeout_s: float = 600.0) -> RolloutStatus:
    """Wait until the rollout of a version has ended and, where it was taken back, has drained.

    Raises:
        TidegateError: it took longer than `timeout_s`.
    """
    told: object = None
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        status = control.rollout(MODEL)
        if (status.phase, status.weight, status.cause) != told:
            told = (status.phase, status.weight, status.cause)
            say(f"{status.phase} at {status.weight} %: {status.waiting_for or status.reason}")
        if status.finished and not any(r.version == version for r in status.retiring):
            return status
        time.sleep(0.25)
    raise TidegateError(
        f"{MODEL}@{version} was not decided within {timeout_s:.0f} s; see `tidegate rollout get {MODEL}`"
    )


def ensure_running(settings: Settings, say: Callable[[str], None]) -> None:
    """Start the platform with the bundled model, unless it runs."""
    say("starting the platform (or finding it running)")
    started = subprocess.run([sys.executable, "-m", "tidegate.cli.main", "up", "--detach"], check=False)
    if started.returncode != 0:
        raise TidegateError("the platform did not start; the lines above say why")


def rest_at_first_version(control: ControlClient, say: Callable[[str], None]) -> None:
    """Make 1.0.0 stable again when an earlier run has left something else."""
    status = control.rollout(MODEL)
    if status.quarantine:
        control.command(MODEL, "ack", reason="the demo starts again")
    if not status.finished:
        control.command(MODEL, "abort", reason="the demo starts again")
    if control.rollout(MODEL).stable != bundled.VERSION:
        say(f"going back to {bundled.REFERENCE}")
        spec = SPEC | {"model": MODEL, "version": bundled.VERSION, "emergency": True}
        control.deploy(spec, reason="the demo starts again")
        follow(control, bundled.VERSION, say)


def roll_out(control: ControlClient, version: str, load: Load, console: Console) -> RolloutStatus:
    """Deploy a version under load, wait for its end, and print the time line."""
    console.rule(f"[bold]{MODEL}@{version}")
    before = len(load.samples)
    control.deploy(SPEC | {"model": MODEL, "version": version}, reason="demo")
    follow(control, version, lambda line: console.print(f"  [dim]{line}[/dim]"))
    time.sleep(1.0)  # the gateway's last counts arrive after the decision
    status = control.rollout(MODEL)
    _print_timeline(console, timeline(control, status))
    samples = load.samples[before:]
    faults = [s for s in samples if s.error]
    console.print(f"  {status.phase}: {status.reason}")
    bound = status.exposure.lower_bound
    console.print(
        f"  canary requests {status.exposure.canary_requests}"
        + (f", lower bound {bound}" if bound is not None else "")
        + f"; of {len(samples)} requests, clients saw {len(faults)} faults"
        + (f" ({', '.join(sorted({f.error for f in faults}))})" if faults else "")
    )
    return status


def _print_timeline(console: Console, moments: list[Moment]) -> None:
    table = Table(box=None, padding=(0, 2))
    table.add_column("moment")
    table.add_column("seconds after the deploy", justify="right")
    table.add_column("after the moment before", justify="right")
    start = moments[0].at or 0.0
    last = start
    for moment in moments:
        if moment.at is None:
            continue
        table.add_row(moment.what, f"{moment.at - start:.2f}", f"{moment.at - last:+.3f}")
        last = moment.at
    console.print(table)


def main() -> int:
    """Run the story; 0 when every version ended as it should."""
    console = Console()
    settings = load_settings()
    try:
        ensure_running(settings, console.print)
        console.print("preparing the versions")
        store = build_registry(settings)
        register_versions(settings, store, {"1.0.1", "1.1.0", "1.2.0"}, lambda line: console.print(f"  {line}"))
        ended: dict[str, str] = {}
        with connect(settings) as control:
            rest_at_first_version(control, console.print)
            with Load(settings.gateway_url, MODEL) as load:
                for version in ("1.0.1", "1.1.0", "1.2.0"):
                    ended[version] = roll_out(control, version, load, console).phase
    except TidegateError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    expected = {"1.0.1": "Healthy", "1.1.0": "Degraded", "1.2.0": "Degraded"}
    console.rule()
    console.print(json.dumps(ended))
    return 0 if ended == expected else 1


if __name__ == "__main__":
    sys.exit(main())
