"""`tidegate k8s render`: what an installation would apply, before it is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Tidegate on Kubernetes.", no_args_is_help=True, rich_markup_mode=None)

Release = Annotated[str, typer.Argument(metavar="RELEASE", help="The release's name; all names are made of it.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Where it would be installed.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--values", "-f", metavar="FILE", help="Values, as helm takes them; repeat."),
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="One value, as for helm; repeat.")]
Chart = Annotated[
    Path | None, typer.Option(metavar="DIR|TGZ", help="Another chart than the one beside this program's source.")
]


@app.callback()
def _group() -> None:
    """Tidegate on Kubernetes."""


@app.command("render")
def render(
    release: Release = "tidegate",
    namespace: Namespace = "default",
    values: Files = None,
    settings: Settings = None,
    chart: Chart = None,
    images: Annotated[bool, typer.Option("--images", help="Only the images that it needs, for a mirror.")] = False,
) -> None:
    """Print exactly what `helm install` would apply: definitions, objects, hooks. Asks no cluster."""
    from tidegate import helm

    wanted = helm.Wanted(release, namespace, chart or helm.CHART, tuple(values or ()), tuple(settings or ()))
    text = helm.render(wanted)
    print("\n".join(helm.images(text)) if images else text, end="\n" if images else "")
