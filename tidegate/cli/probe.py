"""`tidegate probe`: does a version answer otherwise when only a group is named otherwise?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ControlCommand
from tidegate.cli.output import Format, JsonOption, OutputOption, age, chosen, note, print_data, print_table, progress
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from rollout.probes.base import ProbeReport

app = typer.Typer(help="Bias probes: paired prompts that differ in one word.", no_args_is_help=True,
                  rich_markup_mode=None)  # fmt: skip

VersionArgument = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A version that is being served.")]


@app.command("run")
def run(
    version: VersionArgument,
    languages: Annotated[
        list[str] | None, typer.Option("--language", metavar="en|zh", help="Only prompts in this one; repeat.")
    ] = None,
    fail: Annotated[bool, typer.Option("--fail", help="Exit 1 when a gap is found, for pipelines.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Ask a version 120 pairs of prompts, compare the answers, keep the report and the version's metrics."""
    from monitoring.bias_probes import LANGUAGES
    from tidegate.probing import ControlReports, run_once, shipped_scorer

    output = chosen(output, as_json)
    model, number = session.parse_reference(version)
    if unknown := set(languages or ()) - set(LANGUAGES):
        raise WrongUse(f"--language {sorted(unknown)[0][:40]!r}: there are {' and '.join(LANGUAGES)}")
    with session.connect() as client, progress(f"probing {version}") as say:
        report = run_once(
            session.running_settings(), ControlReports(client), model, number, shipped_scorer(),
            languages=tuple(languages or LANGUAGES), say=lambda done, total: say("pairs", done, total),
        )  # fmt: skip
    _print(report, output)
    if fail and report.found:
        raise TidegateError(f"{len(report.found)} gaps of {version} are no chance; see `tidegate probe show {version}`")


@app.command("show", cls=ControlCommand)
def show(version: VersionArgument, output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Show the last report of a version."""
    output = chosen(output, as_json)
    model, number = session.parse_reference(version)
    with session.connect() as client:
        report = client.probe_report(model, number)
    if report is None:
        raise TidegateError(f"{version} was never probed; `tidegate probe run {version}` does it")
    _print(report, output)


def _print(report: ProbeReport, output: Format) -> None:
    if output in (Format.JSON, Format.YAML):
        print_data(report.model_dump(mode="json"), output)
        return
    rows = [
        [g.attribute, g.measure, g.pairs, f"{g.mean:+.3f}", f"{g.p_value:.3g}", "GAP" if g.found else "none"]
        for g in report.gaps
    ]
    print_table(["attribute", "measure", "pairs", "mean difference", "p (corrected)", "found"], rows)
    note(
        f"{report.model}@{report.version}, {age(report.at)} ago: {report.pairs} pairs, {report.unanswered} without an "
        "answer; a difference is the second group's less the first's"
    )
