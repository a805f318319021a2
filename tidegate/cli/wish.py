"""From a rollout.yaml and the flags of `tidegate deploy` to the one document that both mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.cli import session
from tidegate.errors import WrongUse

if TYPE_CHECKING:
    import yaml

MOST_VALUES = 100_000
"""A document that means more is refused, whatever its length: a few lines with aliases can stand for billions."""

KEYS = {"canary": "canary", "blue-green": "blueGreen", "shadow": "shadow", "ab": "ab"}
"""What a strategy is called on the command line, and in the document."""


@dataclasses.dataclass(frozen=True)
class StrategyFlags:
    """What the command line says about the strategy; None is what it does not say."""

    strategy: str | None = None
    steps: str | None = None
    step_duration: str | None = None
    mirror: int | None = None
    weight: int | None = None
    sessions: int | None = None
    smoke: Path | None = None
    testers: tuple[str, ...] = ()


BELONGS_TO = {
    "steps": ("canary",),
    "step_duration": ("canary",),
    "mirror": ("shadow",),
    "weight": ("ab",),
    "sessions": ("ab",),
    "smoke": ("blue-green",),
    "testers": ("canary", "blue-green"),
}
"""Which strategies a flag means something to."""


def build_document(reference: str, file: Path | None, flags: StrategyFlags, *, replicas: int | None) -> dict[str, Any]:
    """The spec as it goes to the control plane: the file, with what the command line says on top.

    Raises:
        WrongUse: there is nothing to deploy, a file can't be read, or a flag belongs to another strategy.
    """
    document = read_file("-f", file) if file is not None else {}
    if reference:
        document["model"], document["version"] = session.parse_reference(reference)
    elif file is None:
        raise WrongUse("say what to deploy: NAME@VERSION, for instance chat@1.0.1, or -f FILE")
    if replicas is not None:
        document["engine"] = {**_mapping(document, "engine"), "minReplicas": replicas}
    if flags != StrategyFlags():
        name = _strategy_name(document, flags)
        key = KEYS[name]
        document["strategy"] = {key: _strategy(name, _mapping(_mapping(document, "strategy"), key), flags)}
    return document


def _strategy_name(document: dict[str, Any], flags: StrategyFlags) -> str:
    """The strategy that is meant: the flag's, else the file's, else a canary."""
    if flags.strategy is not None and flags.strategy not in KEYS:
        raise WrongUse(f"--strategy {flags.strategy!r} is unknown; there are {', '.join(KEYS)}")
    written = [name for name, key in KEYS.items() if key in _mapping(document, "strategy")]
    name = flags.strategy or (written[0] if written else "canary")
    for flag, owners in BELONGS_TO.items():
        if getattr(flags, flag) and name not in owners:
            option = {"testers": "--tester"}.get(flag, f"--{flag.replace('_', '-')}")
            raise WrongUse(f"{option} means nothing to {name}; it belongs to --strategy {' or '.join(owners)}")
    return name


def _strategy(name: str, given: dict[str, Any], flags: StrategyFlags) -> dict[str, Any]:
    """One strategy's part of the document, the flags over what the file says."""
    made = dict(given)
    if name == "canary" and (flags.steps is not None or flags.step_duration is not None):
        made["steps"] = _steps(flags.steps, flags.step_duration, given.get("steps"))
    numbers = {"mirrorPercent": flags.mirror, "weight": flags.weight, "sessions": flags.sessions}
    made |= {key: value for key, value in numbers.items() if value is not None}
    if flags.smoke is not None:
        made["smoke"] = _smoke(flags.smoke)
    if flags.testers:
        pairs = session.parse_pairs("--tester", list(flags.testers))
        made["testers"] = [{"header": header, "value": value} for header, value in pairs.items()]
    return made


def _steps(text: str | None, step_duration: str | None, given: object) -> list[dict[str, Any]]:
    from rollout.specs import DEFAULT_STEPS

    if text is not None:
        try:
            found: list[dict[str, Any]] = [{"weight": int(part.strip().removesuffix("%"))} for part in text.split(",")]
        except ValueError:
            raise WrongUse(f"--steps {text!r}: write weights in percent, rising, as 5,25,50,100") from None
    elif isinstance(given, list):
        found = [dict(s) for s in given if isinstance(s, dict)]
    else:
        found = [{"weight": s.weight} for s in DEFAULT_STEPS]
    if step_duration is not None:
        found = [{**s, "duration": step_duration} for s in found]
    return found


def _smoke(path: Path) -> list[Any]:
    found = _read_yaml("--smoke", path)
    cases = found.get("smoke") if isinstance(found, dict) else found
    if not isinstance(cases, list):
        raise WrongUse(f"--smoke {path} holds no list of cases; write `- {{name: ..., prompt: ..., expect: ...}}`")
    return cases


def read_file(option: str, path: Path) -> dict[str, Any]:
    """A rollout.yaml, bare or inside a ModelDeployment.

    Raises:
        WrongUse: it can't be read, or is something else.
    """
    found = _read_yaml(option, path)
    if not isinstance(found, dict):
        raise WrongUse(f"{option} {path} holds a {type(found).__name__}, not a mapping; see examples/rollout.yaml")
    body = found.get("spec", found) if found.get("kind") == "ModelDeployment" else found
    if not isinstance(body, dict):
        raise WrongUse(f"{option} {path}: spec is a {type(body).__name__}, not a mapping; see examples/rollout.yaml")
    return dict(body)


def _read_yaml(option: str, path: Path) -> object:
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text())
        node = loader.get_single_node()
        if expanded(node) > MOST_VALUES:
            raise WrongUse(f"{option} {path} says more than {MOST_VALUES:,} values with its aliases; write fewer")
        return None if node is None else loader.construct_document(node)
    except OSError as error:
        why = (error.strerror or "it cannot be read").lower()
        raise WrongUse(f"{option} {path}: {why}; name a readable file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(f"{option} {path} is not YAML: {error}") from None
    except RecursionError:
        raise WrongUse(f"{option} {path} is nested too deep to be read; see examples/rollout.yaml") from None


def expanded(node: yaml.Node | None, known: dict[int, int] | None = None) -> int:
    """How many values a document has when its aliases are written out."""
    import yaml

    known = {} if known is None else known
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # should it hold itself
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(expanded(part, known) for part in inner)
    return known[id(node)]


def _mapping(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return dict(found) if isinstance(found, dict) else {}
