"""`-n/--namespace`, `--context`, `--release-namespace`: which commands take them, and what they mean.

With one of them, or as `kubectl tidegate`, a command drives a cluster by its ModelDeployments; without, the platform of
this machine. A command that can do both is registered with `cls=ClusterCommand`, which adds the options to it; one that
asks nothing but the controller, with `cls=ControlCommand` (its `-n`, if it has one, is about keys). Every command's way
stands in `reach.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from tidegate.client import ControlClient

OPTIONS = {
    "namespace": (["-n", "--namespace"], "NAMESPACE", "Drive a cluster: the ModelDeployments of this namespace."),
    "context": (["--context"], "CONTEXT", "Drive a cluster: the one of this context of the kubeconfig."),
    "release": (
        ["--release-namespace"],
        "NAMESPACE",
        "Drive a cluster: where its controllers are, for what they are asked; else the other namespace.",
    ),
}


@dataclass
class Chosen:
    """What the command line said."""

    namespace: str | None = None
    context: str | None = None
    release: str | None = None
    """The namespace of the release."""
    always: bool = False
    """Whether this is `kubectl tidegate`, which always means a cluster."""

    @property
    def cluster(self) -> bool:
        """Whether a cluster is meant."""
        return self.always or any(said is not None for said in (self.namespace, self.context, self.release))


chosen = Chosen()
"""Of the command that runs now; set anew with each command line."""


def begin(*, always: bool = False) -> None:
    """Forget what the last command line said."""
    chosen.namespace, chosen.context, chosen.release, chosen.always = None, None, None, always


def hint(words: str) -> str:
    """A further command to give, so that it means the same platform as this one.

    >>> hint("rollout get chat")
    '`tidegate rollout get chat`'
    """
    flags = {"-n": chosen.namespace, "--context": chosen.context, "--release-namespace": chosen.release}
    given = "".join(f" {flag} {value}" for flag, value in flags.items() if value is not None)
    return f"`{'kubectl ' if chosen.always else ''}tidegate {words}{given}`"


class ClusterCommand(TyperCommand):
    """A command that drives this machine's platform or a cluster."""

    options: tuple[str, ...] = tuple(OPTIONS)

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 - forwarded
        super().__init__(*args, **more)
        import typer

        for name in self.options:
            self.params.append(_option(typer, name, *OPTIONS[name]))


class ControlCommand(ClusterCommand):
    """A command that asks the control plane of this machine's platform, or of a cluster."""

    options = ("context", "release")


def _option(typer: Any, name: str, flags: list[str], metavar: str, told: str) -> Any:  # noqa: ANN401 - typer's own
    """One option, made by typer itself, whose value goes into `chosen` and not to the command's function."""
    probe = typer.Typer(add_completion=False)

    def command(value: str | None = typer.Option(None, *flags, metavar=metavar, help=told)) -> None:
        """Carry one option."""

    probe.command()(command)
    made = typer.main.get_command(probe).params[0]

    def keep(context: Any, parameter: Any, value: str | None) -> str | None:  # noqa: ANN401 - typer's own
        if value is not None:
            setattr(chosen, name, value)
        return value

    made.name, made.expose_value, made.callback = f"cluster_{name}", False, keep
    return made


def connect() -> ControlClient:
    """A client of the cluster that was chosen.

    Raises:
        ControlError: there is no way to it.
    """
    import os

    from rollout.errors import ClusterError
    from rollout.operator.api import Address, ResourceApi
    from rollout.operator.forward import open_controller
    from rollout.operator.remote import Remote
    from tidegate.cluster_client import ClusterClient
    from tidegate.errors import ControlError

    address = Address(context=chosen.context)
    try:
        configuration = address.configuration()
        namespace = chosen.namespace or chosen.release or address.default_namespace()
    except ClusterError as error:
        raise ControlError(str(error)) from None
    remote = Remote(ResourceApi(configuration, user_agent="tidegate-cli"), namespace)
    release = chosen.release or namespace
    token = os.environ.get("TIDEGATE_KEY", "").strip()
    return ClusterClient(remote, lambda: open_controller(address, release), token, release=release)
