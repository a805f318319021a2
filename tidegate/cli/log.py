"""`tidegate log`: single requests as gateways logged them, asked again of another version, erased."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ControlCommand
from tidegate.cli.key import seconds
from tidegate.cli.output import Format, JsonOption, OutputOption, YesOption, ask, chosen, note, print_data, print_rows
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterable

app = typer.Typer(help="The request log.", no_args_is_help=True, rich_markup_mode=None)

COLUMNS = ("at", "request_id", "model", "version", "role", "outcome", "duration_s", "output_tokens", "rating")
Since = Annotated[str, typer.Option("--since", metavar="24h", help="How far back: 90m, 24h, 7d.")]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help="Only this model.")]
Version = Annotated[str, typer.Option("--version", metavar="X.Y.Z", help="Only what was asked of this version.")]
Outcome = Annotated[
    str, typer.Option("--outcome", help="Only what ended so: ok, retried, error, timeout, rejected, ...")
]
Signal = Annotated[str, typer.Option("--signal", help="Only what showed it: repetition, slow-tokens:p95, ...")]
Rating = Annotated[str, typer.Option("--rating", metavar="up|down", help="Only what was rated so.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at most, the newest.")]


@app.callback()
def _group() -> None:
    """The request log."""


@app.command("show", cls=ControlCommand)
def show(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The answer's x-request-id, or what engines logged.")],
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show all that was logged of one request, and the votes on it."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.request(request_id)
    if output in (Format.JSON, Format.YAML):
        print_data(found, output)
        return
    for name, value in found.items():
        shown = _time(value) if name == "at" else value
        print(f"{name}: {shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)}")


@app.command("list", cls=ControlCommand)
def list_(
    since: Since = "24h",
    model: Model = "",
    version: Version = "",
    outcome: Outcome = "",
    signal: Signal = "",
    rating: Rating = "",
    limit: Limit = 50,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List logged requests, oldest first."""
    output = chosen(output, as_json)
    found = _wanted(since, model, version, outcome, signal, rating, limit)
    print_rows(
        output,
        data=found,
        names=[str(line.get("request_id")) for line in found],
        columns=COLUMNS,
        rows=[_row(line) for line in found],
        empty=f"nothing that is wanted was logged within {since}",
    )


@app.command("export", cls=ControlCommand)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines; made anew.")],
    since: Since = "24h",
    model: Model = "",
    version: Version = "",
    outcome: Outcome = "ok",
    signal: Signal = "",
    rating: Rating = "",
    limit: Limit = 1000,
    bodies: Annotated[bool, typer.Option("--bodies", help="Only the prompts, as a shadow replays them.")] = False,
    to_registry: Annotated[
        bool, typer.Option("--to-registry", help="Put votes and cases beside the versions in MLflow too.")
    ] = False,
) -> None:
    """Write logged prompts and answers as an evaluation set: what was asked, what was answered, how it was rated."""
    found = _wanted(since, model, version, outcome, signal, rating, limit, with_prompt=True)
    _require_text(found, since)
    rows = [line["prompt"] for line in found] if bodies else [_case(line) for line in found]
    _write(file, rows)
    print(f"{len(rows)} requests in {file}; they hold what people wrote: keep them as you keep the log")
    if to_registry:
        for reference, up, down in _register(found):
            print(f"{reference}: feedback.up {up}, feedback.down {down}, and the cases of it, are in the registry")


@app.command("replay")
def replay(
    to: Annotated[str, typer.Option("--to", metavar="NAME@VERSION", help="The version that is asked.")],
    since: Since = "24h",
    version: Version = "",
    outcome: Outcome = "ok",
    signal: Signal = "",
    rating: Rating = "",
    limit: Limit = 100,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="Requests under way at one time.")] = 4,
    key: Annotated[
        str, typer.Option("--key", envvar="TIDEGATE_REPLAY_KEY", help="API key with the scope pin-version.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="Where both answers go, as JSON lines.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")] = False,
) -> None:
    """Ask another version what was asked before, and compare the answers. It is no evidence for a rollout."""
    from tidegate.replay import Replay

    model, wanted_version = session.parse_reference(to)
    found = _wanted(since, model, version, outcome, signal, rating, limit, with_prompt=True)
    _require_text(found, since)
    if dry_run:
        print(f"{len(found)} requests would be asked of {to}")
        return
    settings = session.running_settings()
    with Replay(settings.own_gateway_url, key, certificate=settings.tls_cert_file) as replayed:
        cases = replayed.ask(found, model, wanted_version, at_once)
    if file is not None:
        _write(file, cases)
    failed = sum(case["status"] != 200 for case in cases)
    same = sum(case["status"] == 200 and case["answers"] == case["logged_answers"] for case in cases)
    print(f"{len(cases)} requests asked of {to}: {same} answered word for word as logged, {failed} failed")
    if file is not None:
        print(f"both answers of each are in {file}")
    if failed == len(cases):
        raise TidegateError(f"none of them was answered; the first said: {cases[0]['error']}")


@app.command("erase", cls=ControlCommand)
def erase(
    user: Annotated[
        str, typer.Option("--user", metavar="NAME", help="As requests named it: user or safety_identifier.")
    ],
    yes: YesOption = False,
) -> None:
    """Take what one user asked, and the votes on it, out of the log and the drift watch. It can't be undone."""
    if not ask(f"Erase all logged requests of {user!r}?", yes=yes):
        raise typer.Abort
    with session.connect() as client:
        lines = client.erase_user(user)
    print(f"{lines} lines and vectors erased")
    note("What was exported or replayed before is not in the log, so look for it yourself.")


def _wanted(
    since: str,
    model: str,
    version: str,
    outcome: str,
    signal: str,
    rating: str,
    limit: int,
    *,
    with_prompt: bool = False,
) -> list[dict[str, Any]]:
    if rating not in ("", "up", "down"):
        raise WrongUse(f"--rating {rating!r}: it is up or down")
    with session.connect() as client:
        return client.requests(
            since=max(0.0, time.time() - seconds("--since", since)), model=model, version=version, outcome=outcome,
            signal=signal, rating=rating, limit=limit, with_prompt=with_prompt,
        )  # fmt: skip


def _require_text(found: list[dict[str, Any]], since: str) -> None:
    if not found:
        raise TidegateError(
            f"no request whose text was kept is in the log of the last {since}; text is kept where a version's "
            "guardrail policy says `log_text: true`, and `request_log_ratio` is above 0"
        )


def _case(line: dict[str, Any]) -> dict[str, Any]:
    """One case of an evaluation set."""
    ratings = [vote["rating"] for vote in line.get("feedback") or ()]
    return {
        "request_id": line.get("request_id"),
        "model": line["model"],
        "version": line.get("answered_by") or line["version"],
        "inputs": line["prompt"],
        "outputs": line.get("answers") or [],
        "tool_calls": line.get("tool_calls") or [],
        "rating": ratings[-1] if ratings else None,
        "signals": line.get("signals") or [],
    }


def _register(found: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Put what people said beside each version that they said it of: (reference, up, down)."""
    from registry.stores.base import find
    from tidegate.composition import build_registry

    cases: dict[str, list[dict[str, Any]]] = {}
    for line in found:
        case = _case(line)
        if case["rating"] is not None:
            cases.setdefault(f"{case['model']}@{case['version']}", []).append(case)
    store = build_registry(session.settings())
    told: list[tuple[str, int, int]] = []
    for reference, rated in sorted(cases.items()):
        up = sum(case["rating"] == "up" for case in rated)
        text = "".join(json.dumps(case, ensure_ascii=False) + "\n" for case in rated)
        counts = {"up": float(up), "down": float(len(rated) - up)}
        store.note_evaluation(find(store, reference), "feedback", counts, text)
        told.append((reference, up, len(rated) - up))
    return told


def _write(file: Path, rows: Iterable[Any]) -> None:
    from serving.gateway.durable import replace_file

    try:
        replace_file(file, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    except OSError as error:
        why = (error.strerror or "it failed").lower()
        raise TidegateError(f"{file} can't be written: {why}; name another file") from None


def _row(line: dict[str, Any]) -> list[object]:
    ratings = ",".join(str(vote["rating"]) for vote in line.get("feedback") or ())
    told = {**line, "at": _time(line["at"]), "rating": ratings, "duration_s": f"{line['duration_s']:.3f}"}
    return [told.get(name) if told.get(name) is not None else "" for name in COLUMNS]


def _time(seconds_: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds_))
