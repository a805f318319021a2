"""`tidegate rollback`: back at once, from any state."""

from __future__ import annotations

from typing import Annotated

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ClusterCommand
from tidegate.cli.output import Format, JsonOption, OutputOption, YesOption, ask, chosen, note
from tidegate.cli.rollout import CONFIRM_S, FULL_HELP, print_reply


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("rollback", cls=ClusterCommand)(rollback)


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model, for instance chat.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="VERSION", help="Which version; else what was stable before the one in question."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help=FULL_HELP)] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; goes into the event log.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and do nothing.")] = False,
    yes: YesOption = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Go back at once, whatever is under way. Open streams finish; the version is condemned until `rollout ack`."""
    output = chosen(output, as_json)
    with session.connect() as client:
        if not dry_run and not yes:
            plan = client.command(name, "rollback", reason=reason, version=to, full=full, dry_run=True)
            found = plan.plan or (plan.decision.model_dump() if plan.decision else {})
            note(f"plan: {found.get('reason', 'roll back')}")
            if not ask(f"Roll {name} back now?", yes=yes):
                raise typer.Exit(1)
        wait_s = 0.0 if dry_run else CONFIRM_S
        reply = client.command(name, "rollback", reason=reason, version=to, full=full, dry_run=dry_run, wait_s=wait_s)
    print_reply(reply, output)
