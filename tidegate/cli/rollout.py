"""`tidegate rollout`: see, steer and understand rollouts."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ClusterCommand, hint
from tidegate.cli.evidence import step_place
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    ReasonOption,
    YesOption,
    age,
    ask,
    chosen,
    note,
    plain,
    print_data,
    print_rows,
    print_table,
)
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tidegate.replies import CommandReply, Confirmation, ReplayedDecision, RolloutStatus

app = typer.Typer(help="See, steer and understand rollouts.", no_args_is_help=True, rich_markup_mode=None)

FULL_HELP = "Move all traffic at once, also what stable's replicas can't take yet: that is shed."
CONFIRM_S = 5.0
"""How long to wait for the gateways' confirmation. They need milliseconds; one that is away is not waited for."""

UNBROKEN = 2000
"""Columns where there is no terminal: a reason is one line, for grep."""

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model, for instance chat.")]


@app.command("get", cls=ClusterCommand)
def get(
    name: NameArgument,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on showing it; Ctrl-C ends.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show where a rollout stands, with the evidence on each signal."""
    output = chosen(output, as_json)
    if watch and output not in (Format.TABLE, Format.WIDE):
        raise WrongUse(f"--watch shows a tree; for programs GET /api/v1/events streams what -o {output} prints once")
    from tidegate.cli.watch import follow

    with session.connect() as client:
        if watch:
            follow(client, name, endless=True)
        show(client.rollout(name), output)


@app.command("status", cls=ClusterCommand)
def status(
    name: NameArgument,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after so long; exit code 1.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Wait until the rollout has ended. Exit code 0 when the model is Healthy, 1 when it is Degraded."""
    output = chosen(output, as_json)
    from tidegate.cli.watch import follow

    with session.connect() as client:
        found = follow(client, name, timeout_s=timeout, quiet=output not in (Format.TABLE, Format.WIDE))
    conclude(found, output)


@app.command("list", cls=ClusterCommand)
def list_(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """List every model with what serves and what rolls out."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.rollouts()
    print_rows(
        output,
        data=[plain(s.model_dump(mode="json")) for s in found],
        names=[s.model for s in found],
        columns=["model", "stable", "canary", "weight", "phase", "reason", "age"],
        rows=[
            [s.model, s.stable, s.canary, f"{s.weight} %" if s.canary else "", s.phase, s.reason, age(s.updated_at)]
            for s in found
        ],
        wide={
            "step": [step_place(s).removeprefix("step ") for s in found],
            "previous": [s.previous for s in found],
            "requests": [s.exposure.canary_requests for s in found],
            "by": [s.actor for s in found],
        },
        empty=f"no model is deployed; {hint('deploy NAME@VERSION')} deploys one",
    )


@app.command("promote", cls=ClusterCommand)
def promote(
    name: NameArgument,
    full: Annotated[bool, typer.Option("--full", help="Skip everything that is left, not only this step.")] = False,
    reason: ReasonOption = "",
    yes: YesOption = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Go to the next step now, or with --full to the end."""
    output = chosen(output, as_json)
    if full and not ask(f"Give {name}'s canary all traffic without further evidence?", yes=yes):
        raise typer.Exit(1)
    _say(name, "promote", output, reason=reason, full=full)


def _plain_verb(verb: str, text: str) -> None:
    def command(
        name: NameArgument,
        reason: ReasonOption = "",
        output: OutputOption = Format.TABLE,
        as_json: JsonOption = False,
    ) -> None:
        _say(name, verb, chosen(output, as_json), reason=reason)

    command.__doc__ = text
    command.__name__ = verb
    app.command(verb, cls=ClusterCommand)(command)


_plain_verb("pause", "Stay at the present weight. Evidence against the canary still takes it back.")
_plain_verb("resume", "Go on after a pause.")
_plain_verb("retry", "Roll the last version out again, after an abort or a failure that was not its fault.")


@app.command("abort", cls=ClusterCommand)
def abort(
    name: NameArgument,
    full: Annotated[bool, typer.Option("--full", help=FULL_HELP)] = False,
    reason: ReasonOption = "",
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Stop this rollout: the canary loses its traffic, stable stays, the version may be tried again."""
    _say(name, "abort", chosen(output, as_json), reason=reason, full=full, wait_s=CONFIRM_S)


@app.command("undo", cls=ClusterCommand)
def undo(
    name: NameArgument,
    to: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="Which version; else the one before.")
    ] = None,
    reason: ReasonOption = "",
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Start a new rollout to an earlier version, step by step. For at once, see `tidegate rollback`."""
    _say(name, "undo", chosen(output, as_json), reason=reason, version=to)


@app.command("ack", cls=ClusterCommand)
def ack(
    name: NameArgument,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Only this version; else all that are held.")
    ] = None,
    reason: ReasonOption = "",
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Release condemned versions: somebody has looked at them, and they may be rolled out again."""
    _say(name, "ack", chosen(output, as_json), reason=reason, version=version)


@app.command("history", cls=ClusterCommand)
def history(
    name: NameArgument,
    evidence: Annotated[bool, typer.Option("--evidence", help="Also what the gateways reported.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List the commands and decisions of a model, oldest first."""
    output = chosen(output, as_json)
    with session.connect() as client:
        entries = client.history(name, evidence=evidence)
    print_rows(
        output,
        data=[plain(e.model_dump(mode="json")) for e in entries],
        names=[str(e.id) for e in entries],
        columns=["id", "at", "kind", "by", "from", "cause", "reason"],
        rows=[
            [e.id, _when(e.at), e.kind, e.actor, e.source, e.cause, e.reason or _evidence_short(e.payload)]
            for e in entries
        ],
        wide={"actions": [", ".join(str(a.get("type")) for a in e.actions) for e in entries]},
        empty=f"nothing in the log of {name}",
    )


@app.command("explain", cls=ClusterCommand)
def explain(
    name: NameArgument,
    rollout: Annotated[str | None, typer.Option("--rollout", metavar="ID", help="Which one; else the last.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every rollout of the model, oldest first.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Tell from the event log alone what happened, what each decision saw, and why it was taken."""
    output = chosen(output, as_json)
    if rollout is not None and every:
        raise WrongUse("--rollout names one, --all shows every one; give one of them")
    from tidegate.cli.timeline import render, rollouts_in, tell

    with session.connect() as client:
        entries = client.history(name, evidence=True)
    known = rollouts_in(entries)
    if not known:
        raise TidegateError(f"{name} has had no rollout; {hint(f'deploy {name}@VERSION')} starts one")
    ids = [i for i, _ in known]
    if rollout is not None and rollout not in ids:
        listed = ", ".join(f"{i} ({v})" for i, v in known[-5:])
        raise WrongUse(f"{name} has had no rollout {rollout!r}; the last are {listed}")
    stories = [tell(entries, i) for i in (ids if every else [rollout or ids[-1]])]
    if output in (Format.JSON, Format.YAML):
        import dataclasses

        print_data(plain([dataclasses.asdict(s) for s in stories]), output)
    elif output is Format.NAME:
        print("\n".join(s.rollout for s in stories))
    else:
        print("\n\n".join("\n".join(render(s)) for s in stories))


@app.command("replay", cls=ClusterCommand)
def replay(name: NameArgument, output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Take every recorded decision again with today's code. Exit code 1 when one comes out otherwise."""
    output = chosen(output, as_json)
    with session.connect() as client:
        decisions = client.replay(name)
    if output is Format.TABLE:
        _print_replay(name, decisions)
    else:
        print_rows(
            output,
            data=[plain(d.model_dump(mode="json")) for d in decisions],
            names=[str(d.id) for d in decisions if not d.same],
            columns=["id", "same", "recorded", "today"],
            rows=[[d.id, "yes" if d.same else "NO", _decision(d.recorded), _decision(d.today)] for d in decisions],
            empty=f"no decisions in the log of {name}",
        )
    other = sum(not d.same for d in decisions)
    if other:
        note(f"tidegate: {other} of {len(decisions)} decisions would be taken otherwise today")
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------- shared


def _print_replay(name: str, decisions: Sequence[ReplayedDecision]) -> None:
    """What is the same in a line; what differs side by side, line by line."""
    if not decisions:
        print(f"no decisions in the log of {name}")
        return
    for d in decisions:
        if d.same:
            print(f"{d.id}  the same  {_decision(d.recorded)}")
            continue
        print(f"{d.id}  DIFFERS")
        print_table(["", "recorded", "today"], list(_side_by_side(d.recorded, d.today or {})))
    print(f"{sum(d.same for d in decisions)} of {len(decisions)} decisions come out the same today")


def _side_by_side(recorded: dict[str, Any], today: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each thing of which the two decisions consist; `*` where they differ."""
    pairs = [(key, str(recorded.get(key) or ""), str(today.get(key) or "nothing")) for key in ("cause", "reason")]
    was, now = ([_action(a) for a in side.get("actions") or ()] for side in (recorded, today))
    longest = max(len(was), len(now), 1)
    padded = (was + [""] * (longest - len(was)), now + [""] * (longest - len(now)))
    pairs += [("action", a or "none", b or "none") for a, b in zip(*padded, strict=True)]
    for key, old, new in pairs:
        yield [f"{'*' if old != new else ' '} {key}", old, new]


def _action(action: dict[str, Any]) -> str:
    rest = ", ".join(f"{k}={v}" for k, v in action.items() if k != "type" and not isinstance(v, dict | list))
    return f"{action.get('type')}{f' ({rest})' if rest else ''}"


def show(found: RolloutStatus, output: Format) -> None:
    """Print one rollout's status."""
    if output in (Format.JSON, Format.YAML):
        print_data(plain(found.model_dump(mode="json")), output)
    elif output is Format.NAME:
        print(found.model)
    else:
        from rich.console import Console

        from tidegate.cli.watch import tree

        Console(width=None if sys.stdout.isatty() else UNBROKEN, soft_wrap=True).print(tree(found))


def conclude(found: RolloutStatus, output: Format) -> None:
    """Print how a rollout ended and exit accordingly."""
    if output in (Format.TABLE, Format.WIDE):
        print(f"{found.model} is {found.phase}, stable {found.stable or 'none'}: {found.reason}")
    else:
        show(found, output)
    if found.phase != "Healthy":
        raise typer.Exit(1)


def print_reply(reply: CommandReply, output: Format) -> None:
    """Print what the control plane did, or with a dry run would do."""
    if output in (Format.JSON, Format.YAML):
        print_data(plain(reply.model_dump(mode="json", exclude_none=True)), output)
        return
    decision = reply.decision
    if output is Format.NAME:
        print(reply.status.model if reply.status else "")
    elif decision is not None:
        print(decision.reason)
        if reply.confirmed is not None:
            print(confirmation(reply.confirmed))
    elif reply.plan is not None:
        print(f"would: {_decision(reply.plan)}")


def confirmation(found: Confirmation) -> str:
    """Whether traffic has left, as measured by the control plane from the command to the last acknowledgement."""
    if found.all and found.after_s is not None:
        who = "the gateway" if found.gateways == 1 else f"all {found.gateways} gateways"
        return f"{who} confirmed weight {found.weight} after {1000 * found.after_s:.1f} ms"
    if not found.gateways:
        return "no gateway is connected; one that still runs sends nothing to a canary 15 s after it lost the line"
    return f"not every gateway has confirmed yet; {hint('rollout get NAME')} shows when all have"


def _say(name: str, verb: str, output: Format, **arguments: Any) -> None:  # noqa: ANN401 - forwarded
    with session.connect() as client:
        print_reply(client.command(name, verb, **arguments), output)


def _decision(decision: dict[str, Any] | None) -> str:
    if not decision:
        return "nothing"
    actions = ", ".join(str(a.get("type")) for a in decision.get("actions") or ()) or "wait"
    return f"{actions} [{decision.get('cause')}] {decision.get('reason')}"


def _when(at: float) -> str:
    return f"{dt.datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"


def _evidence_short(payload: dict[str, Any]) -> str:
    events, totals = payload.get("events") or (), payload.get("totals") or ()
    return f"{len(events)} events, {len(totals)} counters"
