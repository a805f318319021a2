"""What an installation of the chart would apply, told by Helm itself: its binary where there is one, else its SDK.

The binary comes first, since it is what will install. `helm-python-sdk` is Helm's own library in a wheel; at 80 MB it
is no dependency of the platform. Both print the same objects.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tidegate.errors import TidegateError, WrongUse

if TYPE_CHECKING:
    import helm_python

CHART = Path(__file__).parent.parent / "helm" / "tidegate"
TIMEOUT_S = 60.0
HOOK = "helm.sh/hook"
INSTALLING = {"pre-install", "post-install"}
"""When hooks run that are part of an installation; those of a deletion, for one, are not applied."""
NO_CLUSTER: Mapping[str, Any] = {"storage_driver": "memory", "kube_apiserver": "http://127.0.0.1:1"}
"""A dry run asks no cluster, but would look for the address of one."""
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: the definition alone takes the other one most of a second."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An installation as one would ask Helm for it."""

    release: str
    namespace: str
    chart: Path = CHART
    files: tuple[Path, ...] = ()
    """Values, later ones win."""
    settings: tuple[str, ...] = ()
    """`a.b=c`, which win over files."""


def render(wanted: Wanted) -> str:
    """Everything that would be applied, as YAML: definitions first, then objects in Helm's order, then hooks; no tests.

    Raises:
        WrongUse: the chart, a file of values or a value that can't be used.
        TidegateError: there is no Helm.
    """
    if not (wanted.chart.is_file() or (wanted.chart / "Chart.yaml").exists()):
        raise WrongUse(
            f"{wanted.chart} is no chart; name the folder helm/tidegate of a checkout, or a .tgz, with --chart"
        )
    for file in wanted.files:
        if not file.is_file():
            raise WrongUse(f"{file} is no file; -f takes files of values, as helm does")
    program = shutil.which("helm")
    return _by_binary(program, wanted) if program else _by_sdk(wanted)


def binary_arguments(wanted: Wanted) -> list[str]:
    """How the binary is asked."""
    asked = ["template", wanted.release, str(wanted.chart), "--namespace", wanted.namespace]
    for file in wanted.files:
        asked += ["--values", str(file)]
    for setting in wanted.settings:
        asked += ["--set", setting]
    return [*asked, "--include-crds", "--skip-tests"]


def _by_binary(program: str, wanted: Wanted) -> str:
    try:
        done = subprocess.run(
            [program, *binary_arguments(wanted)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise TidegateError(f"{program} did not answer within {TIMEOUT_S:g} s; try `helm template` by hand") from None
    if done.returncode != 0:
        raise WrongUse(f"helm: {done.stderr.strip().removeprefix('Error: ')}")
    return done.stdout


def _by_sdk(wanted: Wanted) -> str:
    try:
        import helm_python as helm
    except ImportError:
        raise TidegateError(
            "there is no Helm here; install the binary (https://helm.sh/docs/intro/install), or its library: "
            "pip install helm-python-sdk"
        ) from None
    values: dict[str, Any] = {}
    try:
        for file in wanted.files:
            values = merged(values, helm.values_from_yaml(file.read_text(encoding="utf-8")))
        for setting in wanted.settings:
            values = merged(values, helm.parse_set_string(setting))
        with (
            helm.Chart.load(wanted.chart) as chart,
            # Nothing is asked: a dry run of the client needs no cluster, but would look for the address of one.
            helm.Config(
                namespace=wanted.namespace, storage_driver="memory", kube_apiserver="http://127.0.0.1:1"
            ) as config,
        ):
            release = config.install(chart, wanted.release, values, dry_run="client")
            hooks = _hooks(chart, values, wanted)
            crds = [crd["data"].strip() for crd in chart.crds]
    except helm.HelmError as error:
        raise WrongUse(f"helm: {error}") from None
    parts = [*crds, str(release["manifest"]).removeprefix("---\n").strip(), *hooks]
    return "".join(f"---\n{part}\n" for part in parts)


def _hooks(chart: helm_python.Chart, values: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """The hooks of an installation, in the order in which they run."""
    found: list[tuple[int, int, str]] = []
    texts = chart.render(dict(values), name=wanted.release, namespace=wanted.namespace, is_install=True)
    for name, text in sorted(texts.items()):
        for part in text.split("\n---\n") if name.endswith(".yaml") else ():
            document = yaml.load(part, LOADER)  # noqa: S506 - a safe one
            notes = (document or {}).get("metadata", {}).get("annotations") or {}
            if INSTALLING & set(str(notes.get(HOOK, "")).split(",")):
                weight = int(notes.get("helm.sh/hook-weight", 0))
                found.append((weight, len(found), f"# Source: {name}\n{part.strip()}"))
    return [text for _, _, text in sorted(found)]


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values under values, as Helm puts them together: mappings are merged, all else is replaced. Pure."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def images(text: str) -> Sequence[str]:
    """Every image that what was rendered names, sorted: what a mirror must hold."""
    found: set[str] = set()
    for document in yaml.load_all(text, LOADER):
        found |= set(_images(document))
    return sorted(found)


def _images(node: object) -> list[str]:
    if isinstance(node, Mapping):
        here = [node["image"]] if isinstance(node.get("image"), str) and "name" in node else []
        if node.get("name") == "TIDEGATE_ENGINE_IMAGE":
            here = [str(node["value"])]
        return here + [found for value in node.values() for found in _images(value)]
    if isinstance(node, list):
        return [found for value in node for found in _images(value)]
    return []
