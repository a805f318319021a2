"""`tidegate model`: register versions, look at them, verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.cli import session
from tidegate.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    age,
    busy,
    chosen,
    plain,
    print_data,
    print_rows,
    progress,
)
from tidegate.errors import WrongUse

if TYPE_CHECKING:
    from registry.models import ModelVersion
    from registry.stores.base import RegistryStore

app = typer.Typer(help="Register, show and verify model versions.", no_args_is_help=True, rich_markup_mode=None)


@app.command("register")
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model, for instance chat.")],
    source: Annotated[
        str,
        typer.Option(
            "--source", metavar="SRC", help="A folder of safetensors, hf:ID[@REV], a models:/ URI, or sim:?k=v&..."
        ),
    ],
    version: Annotated[str | None, typer.Option("--version", metavar="X.Y.Z", help="The number, by hand.")] = None,
    bump: Annotated[
        str | None,
        typer.Option("--bump", metavar="auto|patch|minor|major", help="How to raise it; auto tells from what changed."),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option("--prompt", metavar="FILE", help="System prompt, baked into the chat template.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Guardrail policy; or `standard`.")
    ] = None,
    generation: Annotated[
        list[str] | None,
        typer.Option("--generation", metavar="K=V", help="A default of generation, as temperature=0.2; repeat."),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option("--engine-arg", metavar="K=V", help="An engine argument that changes answers; repeat."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="K=V", help="An evaluation result, a number; repeat.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="URI", help="What it was trained on.")] = None,
    commit: Annotated[str | None, typer.Option("--commit", metavar="SHA", help="The code it came from.")] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", metavar="VERSION", help="What to compare it with; else production.")
    ] = None,
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Register a version: its files are copied, hashed and never change again."""
    output = chosen(output, as_json)
    if version is not None and bump is not None:
        raise WrongUse("--version gives the number, --bump derives it; give one of them")
    if bump not in (None, "auto", "patch", "minor", "major"):
        raise WrongUse(f"--bump {bump!r}: it is auto, patch, minor or major")
    from tidegate.composition import register_request

    request = register_request(
        model=name,
        source=source,
        version=version,
        bump=None if bump == "auto" else bump,
        prompt_file=prompt,
        policy_file=policy,
        generation=session.parse_pairs("--generation", generation or []),
        engine_args=session.parse_pairs("--engine-arg", engine_arg or []),
        metrics=_numbers(session.parse_pairs("--metric", metric or [])),
        dataset=dataset,
        commit=commit,
        parent=parent,
    )
    store = _open_registry()
    with progress(f"registering {name}") as show:
        found = store.register(request, show)
    if output is Format.TABLE:
        bumped = f" ({found.bump})" if found.bump else ""
        print(f"{found.reference}{bumped}: {found.bump_reason}")
        print(f"Next: tidegate deploy {found.reference}")
    else:
        _print_one(found, output)


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this model's versions.")] = "",
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List registered versions, the highest of each model first."""
    output = chosen(output, as_json)
    store = _open_registry()
    names = (name,) if name else store.list_models()
    found = [v for model in names for v in store.list_versions(model)]
    print_rows(
        output,
        data=[_data(v) for v in found],
        names=[v.reference for v in found],
        columns=["model", "version", "aliases", "kind", "bump", "age"],
        rows=[[v.model, v.version, ", ".join(v.aliases), v.kind, v.bump, age(v.created_at.timestamp())] for v in found],
        wide={
            "mlflow": [v.mlflow_version for v in found],
            "parent": [v.lineage.parent_version for v in found],
            "manifest": [v.manifest_sha256[:12] for v in found],
            "why": [v.bump_reason for v in found],
        },
        empty="nothing is registered; `tidegate model register NAME --source SRC` registers a version",
    )


@app.command("show")
def show(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="NAME@VERSION or NAME@ALIAS.")],
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a version."""
    output = chosen(output, as_json)
    _print_one(_find(_open_registry(), reference), output)


@app.command("alias")
def alias(
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="What the alias shall point to.")],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, for instance baseline.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias instead.")] = False,
) -> None:
    """Point an alias at a version. Rollouts move `candidate` and `production` by themselves."""
    model, version = session.parse_reference(reference)
    store = _open_registry()
    target = _find(store, reference).version
    store.set_alias(model, name, None if remove else target)
    print(f"{model}@{name} was removed" if remove else f"{model}@{name} is {model}@{target}")
    if version != target and not remove:
        print(f"({reference} is {model}@{target} now; the alias stays there when {version} moves)")


@app.command("verify")
def verify(
    reference: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="NAME@VERSION or NAME@ALIAS.")],
    output: OutputOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a version and compare it with the manifest. Exit code 1 when a file is damaged."""
    output = chosen(output, as_json)
    store = _open_registry()
    found = _find(store, reference)
    with progress(f"verifying {found.reference}") as show_progress:
        store.verify(found, show_progress)
    if output in (Format.JSON, Format.YAML):
        print_data({"version": found.reference, "verified": True, "manifest_sha256": found.manifest_sha256}, output)
    else:
        print(found.reference if output is Format.NAME else f"{found.reference} is what was registered")


def _open_registry() -> RegistryStore:
    from tidegate.composition import build_registry

    settings = session.settings()
    with busy("opening the registry"):  # importing MLflow takes seconds
        return build_registry(settings)


def _find(store: RegistryStore, reference: str) -> ModelVersion:
    from registry.stores.base import find

    return find(store, reference)


def _numbers(pairs: dict[str, str]) -> dict[str, float]:
    numbers = {}
    for key, text in pairs.items():
        try:
            numbers[key] = float(text)
        except ValueError:
            raise WrongUse(f"--metric {key}={text}: {text!r} is not a number") from None
    return numbers


def _data(version: ModelVersion) -> dict[str, Any]:
    data: dict[str, Any] = plain(version.model_dump(mode="json"))
    return {"reference": version.reference, **data}


def _print_one(version: ModelVersion, output: Format) -> None:
    if output in (Format.JSON, Format.YAML):
        print_data(_data(version), output)
    elif output is Format.NAME:
        print(version.reference)
    else:
        for key, value in _data(version).items():
            if value in (None, "", {}, []):
                continue
            if isinstance(value, dict):
                value = ", ".join(f"{k}={v}" for k, v in value.items() if v not in (None, ""))
            elif isinstance(value, list):
                value = ", ".join(str(v) for v in value)
            print(f"{key:<16} {value}")
