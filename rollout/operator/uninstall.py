"""What is asked before a release is uninstalled: `python -m rollout.operator.uninstall '{"namespaces": ["a"]}'`. Shell.

A hook of the chart runs it while the controllers still do. Who takes off the finalizer of a ModelDeployment goes with
the release, so one that is left could never be deleted again, nor could its namespace. By default that refuses the
uninstall, and Helm takes nothing away; asked to drain, it deletes them and waits until their models are drained.
"""

from __future__ import annotations

import enum
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollout.errors import ClusterError, ClusterRejected, ClusterUnavailable, ResourceGone
from rollout.operator.api import Address, ResourceApi
from rollout.operator.names import FINALIZER, PLURAL
from rollout.operator.resource import Key

AGAIN_S = 2.0
NAMED = 5
"""Resources that are named in a message; of the others it says how many."""


class Mode(enum.StrEnum):
    """What to do about ModelDeployments that are there."""

    REFUSE = "refuse"
    DRAIN = "drain"


class Order(BaseModel):
    """What the hook is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespaces: tuple[str, ...] = Field(min_length=1)
    """All that are served, the release's own first."""
    mode: Mode = Mode.REFUSE
    within_s: float = Field(default=240.0, gt=0)
    """How long the API server may be away, or draining may take."""
    shared: bool = False
    """Whether another release may serve these namespaces too."""


class Resources(Protocol):
    """What is asked of the cluster."""

    def list_all(self, namespaces: tuple[str, ...]) -> list[dict[str, Any]]:
        """Every ModelDeployment in these namespaces."""
        ...

    def delete(self, key: Key) -> None:
        """Delete one; one that is gone is gone."""
        ...


def held(bodies: Sequence[dict[str, Any]]) -> list[Key]:
    """Those that would never go again: our finalizer is on them. Pure.

    >>> held([{"metadata": {"namespace": "a", "name": "x"}},
    ...       {"metadata": {"namespace": "a", "name": "y", "finalizers": ["tidegate.dev/drain"]}}])
    [Key(namespace='a', name='y')]
    """
    metadata = (body["metadata"] for body in bodies)
    return [Key(m["namespace"], m["name"]) for m in metadata if FINALIZER in (m.get("finalizers") or ())]


def refusal(left: Sequence[Key], order: Order) -> str:
    """Why the release stays, and the way out. Pure.

    >>> refusal([Key("a", "chat")], Order(namespaces=("a",)))[:66]
    'nothing is uninstalled: 1 ModelDeployment is still served (a/chat)'
    """
    names = ", ".join(f"{key.namespace}/{key.name}" for key in left[:NAMED])
    names += f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    count, those = ("1 ModelDeployment is", "it") if len(left) == 1 else (f"{len(left)} ModelDeployments are", "them")
    if order.mode is Mode.DRAIN:
        return (
            f"nothing is uninstalled: after {order.within_s:.0f} s {count} not drained ({names}); do the "
            "controllers run? `kubectl get mdep -A` says what they wait for. "
            "Uninstall again to wait on, with a longer --timeout and uninstall.withinSeconds"
        )
    if order.shared:  # to delete all would take the other one's away, who lets these go as well
        return (
            f"nothing is uninstalled: {count} still served ({names}); where another release serves {those} too "
            "(sharedNamespaces), `helm uninstall --no-hooks` leaves that to it, else delete what is this one's alone "
            "first"
        )
    commands = " && ".join(f"kubectl delete mdep --all -n {n}" for n in sorted({key.namespace for key in left}))
    return (
        f"nothing is uninstalled: {count} still served ({names}), and without the controllers nobody could delete "
        f"{those} any more; drain {those} first ({commands}), or upgrade with uninstall.modelDeployments=drain. "
        "`helm uninstall --no-hooks` asks nobody: docs/kubernetes.md, Uninstall"
    )


class Uninstall:
    """One run of the hook."""

    def __init__(
        self,
        resources: Resources,
        *,
        say: Callable[[str], None] = print,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._resources = resources
        self._say = say
        self._monotonic = monotonic
        self._sleep = sleep
        self._unread: set[str] = set()

    def run(self, order: Order) -> int:
        """Do it; returns the exit code: 0 lets Helm go on."""
        until = self._monotonic() + order.within_s
        away = ""
        left: list[Key] = []
        while True:
            try:
                left, away = self._look(order), ""
            except ClusterUnavailable as error:
                away = str(error)
            else:
                if not left:
                    self._say("no ModelDeployment is left that only this release could let go")
                    return 0
                if order.mode is Mode.REFUSE:
                    break
            if self._monotonic() >= until:
                break
            self._sleep(AGAIN_S)
        self._say(f"nothing is uninstalled: {away}" if away else refusal(left, order))
        return 1

    def _look(self, order: Order) -> list[Key]:
        """Who is left; with `drain` they are told to go."""
        found: list[dict[str, Any]] = []
        for namespace in order.namespaces:
            try:
                found += self._resources.list_all((namespace,))
            except ResourceGone:
                continue  # no definition, no resources
            except ClusterRejected as error:  # as where the namespace was deleted, and the Role in it
                if namespace == order.namespaces[0]:  # this one is there, as this Job is: it says nothing of its models
                    raise
                if namespace not in self._unread:
                    self._say(f"namespace {namespace} can't be read, so nothing there is waited for: {error}")
                self._unread.add(namespace)
        if order.mode is Mode.REFUSE:
            return held(found)
        left = {Key(m["namespace"], m["name"]): m for m in (body["metadata"] for body in found)}
        for key, metadata in left.items():  # the one too that is not held yet: a controller may be about to
            if "deletionTimestamp" not in metadata:
                self._say(f"draining {key.namespace}/{key.name}")
                self._resources.delete(key)
        return list(left)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 to go on, 1 to leave everything as it is, 2 for wrong use."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        order = Order.model_validate_json(given[0] if given else "{}")
    except ValidationError as error:
        first = error.errors()[0]
        print(f"uninstall: {'.'.join(map(str, first['loc'])) or 'the order'}: {first['msg']}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        api = ResourceApi(Address().configuration(), user_agent=f"tidegate-uninstall-{PLURAL}")
        return Uninstall(api).run(order)
    except ClusterError as error:
        print(f"nothing is uninstalled: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
