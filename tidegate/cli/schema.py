"""`tidegate schema`: what may stand in a rollout.yaml."""

from __future__ import annotations

import typer

from tidegate.cli.output import Format, JsonOption, OutputOption, chosen, print_data
from tidegate.errors import WrongUse


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("schema")(schema)


def schema(output: OutputOption = Format.JSON, as_json: JsonOption = False) -> None:
    """Print the JSON Schema of rollout.yaml, for editors and other tools. No platform is needed."""
    output = chosen(output, as_json)
    if output not in (Format.JSON, Format.YAML):
        raise WrongUse(f"a schema can't be shown as -o {output}; use json or yaml")
    from rollout.schema import json_schema

    print_data(json_schema(), output)
