"""What most commands begin with: the settings, and a connection to the control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidegate.errors import WrongUse

if TYPE_CHECKING:
    from tidegate.client import ControlClient
    from tidegate.settings import Settings


def settings(**flags: Any) -> Settings:  # noqa: ANN401 - forwarded to pydantic, which validates
    """The settings in force; a platform that runs for this home knows its own ports.

    Raises:
        WrongUse: a value that can't be used, or `config.toml` holds something else than settings.
    """
    import tomllib

    from pydantic import ValidationError

    from tidegate.settings import load_settings

    try:
        return load_settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WrongUse(
            f"setting {where}: {first['msg'].lower()} (found {str(first['input'])[:80]!r}); "
            "correct the flag, the TIDEGATE_* variable or config.toml"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise WrongUse(f"$TIDEGATE_HOME/config.toml can't be read: {error}; correct or remove it") from None


def running_settings() -> Settings:
    """The settings with the ports of the platform that runs now, whatever flags it was started with."""
    from tidegate.runfile import read_state

    found = settings()
    state = read_state(found)
    if state is None or not state.alive:
        return found
    ports = {n: getattr(state, n) for n in ("host", "gateway_port", "admin_port", "control_port", "serve_port")}
    ports["monitoring"] = any(p.name == "prometheus" for p in state.parts)
    return found.model_copy(update=ports)


def connect() -> ControlClient:
    """A client of the control plane of this home's platform, or of the cluster that the command line names."""
    from tidegate import client
    from tidegate.cli import cluster

    if cluster.chosen.cluster:
        return cluster.connect()
    return client.connect(running_settings())


def parse_reference(text: str) -> tuple[str, str]:
    """Split NAME@VERSION.

    Raises:
        WrongUse: there is no version in it.
    """
    name, at, version = text.partition("@")
    if not at or not name or not version:
        raise WrongUse(f"{text!r} names no version; write NAME@VERSION, for instance chat@1.0.1")
    return name, version


def parse_pairs(option: str, values: list[str]) -> dict[str, str]:
    """Read repeated K=V options."""
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals or not key.strip():
            raise WrongUse(f"{option} {value!r}: write it as NAME=VALUE")
        if key.strip() in pairs:
            raise WrongUse(f"{option} {key.strip()} is given twice; give it once")
        pairs[key.strip()] = rest
    return pairs
