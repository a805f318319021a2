"""`tidegate key`: API keys of the gateway and roles of the control plane."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.cluster import ControlCommand, hint
from tidegate.cli.output import Format, JsonOption, OutputOption, age, chosen, duration, note, print_data, print_rows
from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    from tidegate.replies import Key, NewKey

app = typer.Typer(help="API keys and roles.", no_args_is_help=True, rich_markup_mode=None)

SCOPES = "inference, pin-version, see-version"
ROLES = "viewer, operator, admin, data-reader, gateway"
Namespace = Annotated[
    str,
    typer.Option(
        "-n",
        "--namespace",
        help="On a cluster: whose models it may ask and command; '*': all. Else to sort keys by.",
    ),
]


@app.command("create", cls=ControlCommand)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who holds it; for people.")],
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help=f"What it may do at the gateway: {SCOPES}; repeat.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="MODEL", help="A model it may ask; else all; repeat.")
    ] = None,
    roles: Annotated[
        list[str] | None, typer.Option("--role", help=f"What it may do at the control plane: {ROLES}; repeat.")
    ] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens per minute, in and out.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at one time.")] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", help="In a queue: interactive, standard (default) or batch.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="30d", help="How long it is good: 12h, 30d; else for ever.")
    ] = None,
    namespace: Namespace = "default",
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show its text, once. Without --scope and --role it may ask models and nothing else.

    On a cluster it is good for the models of its namespace alone; only who is bound to none may make one for '*'.
    """
    output = chosen(output, as_json)
    fields = {
        "name": name,
        "scopes": _known("--scope", scopes, SCOPES) if scopes else None,
        "models": models or None,
        "roles": _known("--role", roles, ROLES) if roles else None,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrency": concurrency,
        "priority": _known("--priority", [priority], "interactive, standard, batch")[0] if priority else None,
        "expires_in": None if expires is None else seconds("--expires", expires),
        "namespace": namespace,
    }
    with session.connect() as client:
        made = client.create_key(**fields)
    _print_new(made, output)


@app.command("list", cls=ControlCommand)
def list_(
    namespace: Annotated[
        str | None, typer.Option("-n", "--namespace", help="Only keys of this namespace; else of all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List the keys, oldest first. Their text is not kept anywhere."""
    output = chosen(output, as_json)
    with session.connect() as client:
        known = client.keys()
    found = [k for k in known if namespace in (None, k.namespace) and (every or k.state == "active")]
    print_rows(
        output,
        data=[k.model_dump(mode="json") for k in found],
        names=[k.id for k in found],
        columns=["id", "name", "namespace", "state", "may", "models", "expires", "age"],
        rows=[
            [k.id, k.name, k.namespace, k.state, _rights(k), _models(k), _expiry(k), age(k.created_at)] for k in found
        ],
        wide={
            "requests/min": [k.requests_per_minute for k in found],
            "tokens/min": [k.tokens_per_minute for k in found],
            "at once": [k.concurrency for k in found],
            "priority": [k.priority for k in found],
        },
        empty=f"no keys; {hint('key create NAME')} makes one",
    )


@app.command("revoke", cls=ControlCommand)
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key's id, or its name when it is the only one.")],
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: refused from now on, by the control plane at once and by the gateways within a second."""
    output = chosen(output, as_json)
    with session.connect() as client:
        found = client.revoke_key(pick(client.keys(), which).id)
    if output in (Format.JSON, Format.YAML):
        print_data(found.model_dump(mode="json"), output)
    elif output is Format.NAME:
        print(found.id)
    else:
        print(f"revoked {found.name} ({found.id})")


def pick(keys: tuple[Key, ...], which: str) -> Key:
    """The key that somebody means.

    Raises:
        TidegateError: there is none, or there are several of that name.
    """
    by_id = [k for k in keys if k.id == which]
    named = [k for k in keys if k.name == which]
    active = [k for k in named if k.state == "active"]
    found = by_id or active or named
    if not found:
        raise TidegateError(f"no key has the id or name {which!r}; {hint('key list --all')} shows them")
    if len(found) > 1:
        raise TidegateError(f"{len(found)} keys are named {which!r}: {', '.join(k.id for k in found)}; give an id")
    return found[0]


def seconds(option: str, text: str) -> float:
    """A duration as people write it, in seconds.

    Raises:
        WrongUse: it is none, or nothing.
    """
    from rollout.specs import parse_duration_s

    try:
        found = float(str(parse_duration_s(text)))
    except ValueError:
        found = 0.0
    if found <= 0:
        raise WrongUse(f"{option} {text!r} is no duration above 0; write it as 12h or 30d")
    return found


def _known(option: str, given: list[str], allowed: str) -> list[str]:
    for value in given:
        if value not in allowed.split(", "):
            raise WrongUse(f"{option} {value!r} is unknown; there are {allowed}")
    return given


def _print_new(made: NewKey, output: Format) -> None:
    if made.warning:
        note(f"tidegate: {made.warning}")
    if output in (Format.JSON, Format.YAML):
        data: dict[str, Any] = {"key": made.key, **made.record.model_dump(mode="json"), "warning": made.warning}
        print_data(data, output)
    elif output is Format.NAME:
        print(made.record.id)
    else:
        print(made.key)
        note(f"key {made.record.name} ({made.record.id}), {_rights(made.record)}; it is shown this once, keep it now")


def _rights(key: Key) -> str:
    return ", ".join((*key.scopes, *key.roles))


def _models(key: Key) -> str:
    return ", ".join(key.models) or "all"


def _expiry(key: Key) -> str:
    if key.expires_at is None:
        return "never"
    left_s = key.expires_at - dt.datetime.now(dt.UTC).timestamp()
    return f"in {duration(left_s)}" if left_s > 0 else f"{duration(-left_s)} ago"
