"""`tidegate guard`: what a guardrail policy says of a text, and how well it judges many."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.output import Format, JsonOption, OutputOption, busy, chosen, print_data, print_table, progress
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from guardrails.checks.base import Catalogue
    from guardrails.evaluation import Judged
    from guardrails.policy import Policy

app = typer.Typer(help="Try guardrail policies out.", no_args_is_help=True, rich_markup_mode=None)

PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="A policy's file, or default, standard, judge."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME@VERSION", help="The policy of a registered version.")
]


@app.command("test")
def try_out(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")],
    policy: PolicyOption = None,
    model: ModelOption = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Say what the policy in force does with a text, as a prompt and as an answer, and why.

    Without --policy and --model it is the one of versions that bring none (the setting default_policy).
    """
    output = chosen(output, as_json)
    if text == "-":
        text = typer.get_text_stream("stdin").read()
    with busy("reading the policy"):
        found, catalogue = _policy(policy, model)
    from guardrails.trial import local_models, try_text

    async def tried() -> list[Any]:
        models = local_models(found)
        try:
            return await try_text(found, catalogue, models, text)
        finally:
            await models.close()

    trials = asyncio.run(tried())
    if output is not Format.TABLE:
        told = [
            {
                "direction": t.direction.value,
                "verdict": t.verdict.value,
                "text": t.text,
                "latency_ms": round(t.latency_ms, 3),
                "findings": [{"part": f.part.value, **f.finding.record()} for f in t.findings],
            }
            for t in trials
        ]
        print_data({"policy": found.name, "digest": found.digest, "directions": told}, output)
        return
    print(f"policy {found.name} ({found.digest[:12]})")
    if found.name == "default":
        print("it only counts, without models; `--policy standard` shows what the policy that protects would do")
    for trial in trials:
        print(f"\nas {'a prompt' if trial.direction == 'input' else 'an answer'}: {trial.verdict.value}")
        if trial.text != text and trial.verdict != "block":
            print(f"  becomes: {trial.text}")
        rows = [[f.finding.check, f.finding.verdict.value, f"{f.finding.score:.2f}",
                 f"{f.finding.start}-{f.finding.end}", f.finding.reason] for f in trial.findings]  # fmt: skip
        if rows:
            print_table(["check", "verdict", "score", "where", "why"], rows)


@app.command("eval")
def evaluate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines (also .gz) with text, toxic (or label), perhaps source and lang."
        ),
    ],
    policy: PolicyOption = None,
    model: ModelOption = None,
    check: Annotated[
        list[str] | None, typer.Option("--check", metavar="NAME", help="Only this check of the policy; repeat.")
    ] = None,
    direction: Annotated[
        str, typer.Option("--direction", metavar="input|output", help="Whether the texts are prompts or answers.")
    ] = "output",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many texts, spread over the file.")] = 20_000,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="HTML", help="Write a page with curves and latencies.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Measure a policy on labelled texts: precision, recall, F1 and AUC by source and language, and latency."""
    output = chosen(output, as_json)
    if direction not in ("input", "output"):
        raise WrongUse(f"--direction {direction!r}: it is input or output")
    rows = _rows(file, limit)
    with busy("reading the policy"):
        found, catalogue = _policy(policy, model)
    judged = asyncio.run(_judged(found, catalogue, rows, direction, check or []))
    from guardrails.evaluation import groups, quality

    figures = {name: quality(group) for name, group in groups(judged).items()}
    if report is not None:
        from tidegate.guard_report import page

        report.write_text(page(found, file.name, judged), encoding="utf-8")
    if output is not Format.TABLE:
        print_data({"policy": found.name, "digest": found.digest, "groups": _plain(figures)}, output)
        return
    columns = ["", "texts", "bad", "precision", "recall", "F1", "AUC", "false alarms", "p50 ms", "p99 ms", "failed"]
    print_table(columns, [[name, *_cells(figure)] for name, figure in figures.items()])
    if report is not None:
        print(f"the report is in {report}")


async def _judged(
    policy: Policy, catalogue: Catalogue, rows: list[dict[str, Any]], direction: str, checks: list[str]
) -> list[Judged]:
    from guardrails.trial import Evaluator, local_models
    from guardrails.verdicts import Direction

    models = local_models(policy)
    evaluator = Evaluator(policy, catalogue, models, Direction(direction), checks)
    unknown = sorted({*checks} - {*evaluator.checks})
    if unknown or not evaluator.checks:
        named = ", ".join(rule.name for rule in policy.rules(Direction(direction))) or "none"
        what = f"has no check {', '.join(unknown)}" if unknown else "has no check"
        raise WrongUse(f"policy {policy.name} {what} for {direction}; it has {named}")
    judged: list[Judged] = []
    try:
        await evaluator.judge("warm-up", bad=False, source="", language="")
        with progress(f"judging {len(rows)} texts", in_bytes=False) as show:
            for number, row in enumerate(rows, 1):
                judged.append(
                    await evaluator.judge(row["text"], bad=row["bad"], source=row["source"], language=row["language"])
                )
                show("texts", number, len(rows))
    finally:
        await models.close()
    return judged


def _policy(file: Path | None, reference: str | None) -> tuple[Policy, Catalogue]:
    """The policy that is asked for, and the checks that there are."""
    from guardrails.errors import GuardrailError
    from guardrails.plugins import installed_catalogue
    from guardrails.policy import parse_policy
    from tidegate.composition import policy_path

    if file is not None and reference is not None:
        raise WrongUse("--policy names a file, --model a version that has one; give one of them")
    if reference is not None:
        file = _policy_of(reference)
    if file is None:
        named = session.settings().default_policy
        file = Path(named)
    if str(file) == "none":
        raise WrongUse("the policy none checks nothing, so there is nothing to try; name another --policy or a --model")
    try:
        catalogue = installed_catalogue()
        return parse_policy(policy_path(file).read_text(encoding="utf-8"), catalogue), catalogue
    except GuardrailError as error:
        raise WrongUse(f"{file}: {error}") from None
    except UnicodeDecodeError:
        raise WrongUse(f"{file} is not UTF-8 text") from None


def _policy_of(reference: str) -> Path | None:
    """The policy's file of a registered version; None where it brings none."""
    from registry.stores.base import find, policy_file
    from tidegate.composition import build_registry

    store = build_registry(session.settings())
    version = find(store, reference)
    return policy_file(store.materialise(version)) if version.policy_sha256 else None


def _rows(file: Path, limit: int) -> list[dict[str, Any]]:
    rows = list(_labelled(file))
    if not rows:
        raise WrongUse(f'{file} has no labelled texts; a line is {{"text": "...", "toxic": true}}')
    step = max(1.0, len(rows) / limit)
    return [rows[int(at * step)] for at in range(min(limit, len(rows)))]


def _labelled(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield from (_case(file, number, line) for number, line in enumerate(lines, 1) if line.strip())
    except UnicodeDecodeError:
        raise WrongUse(f"{file} is not UTF-8 text; give JSON lines, gzipped where it says .gz") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WrongUse(f"{file} is not gzipped, or cut short; give JSON lines, gzipped where it says .gz") from None


def _case(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        label = row["toxic"] if "toxic" in row else row["label"]
        return {
            "text": str(row["text"]),
            "bad": bool(label),
            "source": str(row.get("source") or file.name),
            "language": str(row.get("lang") or row.get("language") or "unknown"),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TidegateError(
            f"{file}, line {number}: it is no JSON object with text and toxic (or label); correct or remove it"
        ) from None


def _plain(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    def number(value: Any) -> Any:  # noqa: ANN401 - a count or a rate
        return None if value != value else round(value, 4) if isinstance(value, float) else value

    return {name: {key: number(value) for key, value in asdict(f).items()} for name, f in figures.items()}


def _cells(figure: Any) -> list[str]:  # noqa: ANN401 - a Quality
    rates = [figure.precision, figure.recall, figure.f1, figure.auc, figure.false_alarms]
    times = [f"{figure.p50_ms:.2f}", f"{figure.p99_ms:.2f}"]
    shown = ["-" if rate != rate else f"{rate:.3f}" for rate in rates]
    return [str(figure.texts), str(figure.bad), *shown, *times, str(figure.failed)]
