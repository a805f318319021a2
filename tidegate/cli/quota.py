"""`tidegate quota`: what all keys of a namespace may use together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ControlCommand, hint
from tidegate.cli.output import Format, JsonOption, OutputOption, age, chosen, print_data, print_rows
from tidegate.errors import WrongUse

if TYPE_CHECKING:
    from tidegate.replies import Quota

app = typer.Typer(help="What all keys of a namespace may use together.", no_args_is_help=True, rich_markup_mode=None)

Named = Annotated[
    str, typer.Argument(metavar="NAMESPACE", help="The one that keys were made with; '*': those good in all.")
]


@app.command("set", cls=ControlCommand)
def set_(
    namespace: Named,
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens per minute, in and out.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at one time.")] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Set a namespace's quota in place of what it had; gateways obey it within a second. Limits of keys hold besides.

    Only who is bound to no namespace may set one.
    """
    output = chosen(output, as_json)
    if rpm is None and tpm is None and concurrency is None:
        way_out = hint(f"quota remove {namespace}")
        raise WrongUse(f"give at least one of --rpm, --tpm and --concurrency; {way_out} takes all away")
    with session.connect() as client:
        found = client.set_quota(namespace, requests_per_minute=rpm, tokens_per_minute=tpm, concurrency=concurrency)
    _print(found, f"the keys of {found.namespace} have together {_told(found)}", output)


@app.command("list", cls=ControlCommand)
def list_(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """List the quotas that there are, by namespace."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.quotas()
    print_rows(
        output,
        data=[q.model_dump(mode="json") for q in found],
        names=[q.namespace for q in found],
        columns=["namespace", "requests/min", "tokens/min", "at once", "age"],
        rows=[[q.namespace, q.requests_per_minute, q.tokens_per_minute, q.concurrency, age(q.set_at)] for q in found],
        empty=f"no quotas; {hint('quota set NAMESPACE')} sets one",
    )


@app.command("remove", cls=ControlCommand)
def remove(namespace: Named, output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Let the keys of a namespace have their own limits alone."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.remove_quota(namespace)
    _print(found, f"the keys of {found.namespace} have no quota any more", output)


def _print(quota: Quota, told: str, output: Format) -> None:
    if output in (Format.JSON, Format.YAML):
        print_data(quota.model_dump(mode="json"), output)
    else:
        print(quota.namespace if output is Format.NAME else told)


def _told(quota: Quota) -> str:
    limits = {
        "requests/min": quota.requests_per_minute,
        "tokens/min": quota.tokens_per_minute,
        "requests at once": quota.concurrency,
    }
    return ", ".join(f"{limit:,} {what}" for what, limit in limits.items() if limit is not None)
