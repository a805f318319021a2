"""Whether the nodes of a cluster have room for the replicas of a revision. Pure, and an estimate.

Free is what a node can give (`allocatable`) less what the pods on it have asked for, over the nodes that a replica may
use: ready, not cordoned, with the labels and without the taints. Replicas are alike, so each node takes as many as its
scarcest resource allows. Affinity, volumes and priorities are the scheduler's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rollout.engine_specs import EngineSpec, TaintEffect, Toleration, TolerationOperator

Object = Mapping[str, Any]

_UNITS = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15),
    "E": Fraction(10**18), "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(?:[eE]([+-]?[0-9]{1,3}))?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
FEWEST_SHOWN = 3


def quantity(value: object) -> Fraction:
    """Read a Kubernetes quantity; what can't be read is nothing.

    >>> quantity("500m"), quantity("1.5Gi") == 3 * 2**29, quantity(2)
    (Fraction(1, 2), True, Fraction(2, 1))
    """
    found = _QUANTITY.match(str(value))
    if found is None:
        return Fraction(0)
    number, exponent, unit = found.groups()
    return Fraction(number) * Fraction(10) ** int(exponent or 0) * _UNITS[unit or ""]


@dataclass(frozen=True, slots=True)
class Room:
    """How many replicas would fit, and what is scarce."""

    fits: int
    nodes: int
    """Nodes that a replica may use."""
    scarce: str
    """The resource that most of them lack; empty when no node may be used."""


def requests_of_pod(pod: Object) -> Mapping[str, Fraction]:
    """What a pod counts for on its node: its containers together, or the largest of its init containers."""
    spec = pod.get("spec") or {}
    running = _sum(_asked(c) for c in spec.get("containers") or ())
    lasting = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    running = _sum([running, *(_asked(c) for c in lasting), _quantities(spec.get("overhead") or {})])
    starting = [_asked(c) for c in spec.get("initContainers") or () if c.get("restartPolicy") != "Always"]
    names = set(running).union(*starting)
    most = {n: max([running.get(n, Fraction(0)), *(s.get(n, Fraction(0)) for s in starting)]) for n in names}
    return {**most, "pods": Fraction(1)}


def room_for(template: Object, engine: EngineSpec, nodes: Iterable[Object], pods: Iterable[Object]) -> Room:
    """Count how many pods of this template the nodes could take now.

    Args:
        template: the template of an engine's pod.
        engine: where it may run.
        nodes: all nodes.
        pods: all pods of all namespaces.

    """
    taken: dict[str, list[Mapping[str, Fraction]]] = {}
    for pod in pods:
        where = (pod.get("spec") or {}).get("nodeName")
        if where and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            taken.setdefault(where, []).append(requests_of_pod(pod))
    wanted = {name: amount for name, amount in requests_of_pod(template).items() if amount}
    fits, usable, lacking = 0, 0, dict.fromkeys(wanted, 0)
    for node in nodes:
        if not _usable(node, engine):
            continue
        usable += 1
        free = _free(node, taken.get(node["metadata"]["name"], ()))
        times = {name: max(Fraction(0), free.get(name, Fraction(0))) // amount for name, amount in wanted.items()}
        fits += min(times.values())
        for name, count in times.items():
            lacking[name] += count == min(times.values())
    scarce = max(lacking, key=lambda name: (lacking[name], name != "pods", name)) if usable else ""
    return Room(fits=fits, nodes=usable, scarce=scarce)


def fits_given(
    template: Object, engine: EngineSpec, nodes: Sequence[Object], pods: Sequence[Object], given: Sequence[Object]
) -> tuple[Room, Room]:
    """Room where another revision gives its pods one by one: for the first replica, and when all are given.

    Which pod goes first is not known here, so the one that helps most is taken: what can't be told is not refused. An
    only pod serves until the new version has been promoted, so it makes no room for the first replica.

    Args:
        template: the template of an engine's pod.
        engine: where it may run.
        nodes: all nodes.
        pods: all pods of all namespaces.
        given: those among them that the other revision gives.

    """
    spared = given if len(given) > 1 else ()
    places = {str(pod["spec"].get("nodeName")): pod for pod in spared}  # on one node they are alike
    first = [room_for(template, engine, nodes, [p for p in pods if p is not one]) for one in places.values()]
    gone = {id(pod) for pod in given}
    every = room_for(template, engine, nodes, [p for p in pods if id(p) not in gone])
    return max(first, key=lambda room: room.fits, default=room_for(template, engine, nodes, pods)), every


def _free(node: Object, taken: Sequence[Mapping[str, Fraction]]) -> Mapping[str, Fraction]:
    used = _sum(taken)
    given = _quantities((node.get("status") or {}).get("allocatable") or {})
    return {name: amount - used.get(name, Fraction(0)) for name, amount in given.items()}


def _usable(node: Object, engine: EngineSpec) -> bool:
    spec = node.get("spec") or {}
    labels = node["metadata"].get("labels") or {}
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    if spec.get("unschedulable") or not ready or any(labels.get(k) != v for k, v in engine.node_selector.items()):
        return False
    hard = [t for t in spec.get("taints") or () if t.get("effect") != TaintEffect.PREFER_NO_SCHEDULE]
    return all(any(_tolerates(toleration, taint) for toleration in engine.tolerations) for taint in hard)


def _tolerates(toleration: Toleration, taint: Object) -> bool:
    if toleration.effect is not None and toleration.effect != taint.get("effect"):
        return False
    if toleration.key is not None and toleration.key != taint.get("key"):
        return False
    return toleration.operator is TolerationOperator.EXISTS or (toleration.value or "") == (taint.get("value") or "")


def _asked(container: Object) -> Mapping[str, Fraction]:
    """A container's requests; where a resource has only a limit, that is its request."""
    resources = container.get("resources") or {}
    return _quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _quantities(values: Mapping[str, Any]) -> Mapping[str, Fraction]:
    return {name: quantity(value) for name, value in values.items()}


def _sum(parts: Iterable[Mapping[str, Fraction]]) -> dict[str, Fraction]:
    total: dict[str, Fraction] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Fraction(0)) + amount
    return total
