"""The world of tests/simulation with resources in front of it: a cluster in memory, the operator, and virtual time.

The controller, the operator's decisions and its reconciler are the real ones, and so are the cluster's semantics; only
the wire between them is left out, so that a rollout takes milliseconds. tests/kubernetes/test_operator_wire.py has it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.errors import UnknownVersion
from rollout.actions import Deployed
from rollout.commands import Command, Target
from rollout.control_api.plane import ControlPlane
from rollout.errors import ClusterConflict, ClusterRejected, ClusterUnavailable, ResourceGone
from rollout.operator.api import MADE_ANEW
from rollout.operator.crd import definition
from rollout.operator.names import API_VERSION, FINALIZER, KIND, OPERATOR_MANAGER
from rollout.operator.reconciler import Reconciler
from rollout.operator.resource import Resource
from rollout.operator.telling import Note
from rollout.specs import RolloutSpec
from tests.kubernetes.api_errors import Refused
from tests.kubernetes.cluster import Cluster, Write
from tests.kubernetes.patches import merge_patch
from tests.simulation.world import CANARY_STEPS, World, deployed

Object = dict[str, Any]
DEFINITION = definition()


@dataclass
class DirectWriter:
    """The operator's writes, straight into a cluster's memory; some fail, before or after they were done."""

    cluster: Cluster
    chance: float = 0.0
    generator: random.Random = field(default_factory=lambda: random.Random(1))
    away: bool = False
    writes: list[tuple[str, str]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    undeclared: frozenset[str] = frozenset()

    async def write_status(self, resource: Resource, status: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._apply("status", resource, {"status": dict(status)}, "status", force=True)

    async def hold(self, resource: Resource, *, held: bool) -> Mapping[str, Any]:
        metadata = {"finalizers": [FINALIZER]} if held else {}
        return self._apply("hold" if held else "release", resource, {}, "", metadata=metadata)

    async def post(self, resource: Resource, note: Note) -> None:
        self._trouble()
        self.notes.append(note)

    def _apply(
        self, what: str, resource: Resource, content: Object, subresource: str, *, force: bool = False,
        metadata: Object | None = None,
    ) -> Mapping[str, Any]:  # fmt: skip
        self._trouble()
        named = {"name": resource.key.name, "namespace": resource.key.namespace, "uid": resource.uid}
        if subresource:
            named["resourceVersion"] = resource.version
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {**named, **(metadata or {})}, **content}
        write = Write(OPERATOR_MANAGER, subresource, strictness="Strict")
        kind = self.cluster.kind(KIND)
        self.writes.append((what, resource.key.name))
        try:
            before = (self.cluster.find(KIND, *resource.key) or {}).get("status") or {}
            done = self.cluster.apply(kind, resource.key.namespace, resource.key.name, body, write, force=force)
            check_conditions(before, done.get("status") or {}, done["metadata"].get("generation", 0))
        except Refused as refused:
            kinds = {404: ResourceGone, 409: ClusterConflict}
            anew = MADE_ANEW.search(refused.message) is not None
            raise kinds.get(409 if anew else refused.code, ClusterRejected)(refused.message) from None
        self._trouble()  # done, but the answer is lost
        return done

    def _trouble(self) -> None:
        if self.away or self.generator.random() < self.chance / 2:
            raise ClusterUnavailable("the API server is away")


def check_conditions(before: Object, after: Object, generation: int) -> None:
    """What holds of every status that is written: a time is that of a change, a generation never an older one."""
    assert before.get("observedGeneration", 0) <= after.get("observedGeneration", 0) <= generation
    known = {c["type"]: c for c in before.get("conditions", ())}
    for condition in after.get("conditions", ()):
        was = known.get(condition["type"])
        assert condition["observedGeneration"] <= generation
        if was is not None and was["status"] == condition["status"]:
            assert condition["lastTransitionTime"] == was["lastTransitionTime"], (was, condition)
        elif was is not None:
            assert condition["lastTransitionTime"] >= was["lastTransitionTime"], (was, condition)


class OperatorWorld(World):
    """A World whose models are asked for by resources."""

    def __init__(self, *, cluster: Cluster | None = None, namespace: str = "default", **world: Any) -> None:
        self.now = 0.0
        self.namespace = namespace
        self.cluster = cluster or Cluster(clock=lambda: self.now)
        if cluster is None:
            self.cluster.create("customresourcedefinitions", None, DEFINITION)
        self.writer = DirectWriter(self.cluster)
        self.unknown: set[str] = set()
        """Versions that are not registered (yet)."""
        self.deaf = False
        """Whether the watch tells nothing."""
        self._told = 0
        super().__init__(**world)  # sets the time

    def start_controller(self) -> None:
        super().start_controller()
        plane = ControlPlane.__new__(ControlPlane)
        plane.controller, plane.versions = self.controller, self  # type: ignore[assignment]

        async def aim(model: str, command: Command) -> Target | None:
            return await plane.aim(model, command)

        async def resolve(spec: RolloutSpec, _: str) -> Deployed:
            return (await self.resolve(spec))[1]

        self.reconciler = Reconciler(
            controller=self.controller,
            resolve=resolve,
            aim=aim,
            writer=self.writer,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )
        self.controller.subscribe(self.reconciler.on_status)
        self.listen_anew()

    async def resolve(self, spec: RolloutSpec, _: str = "") -> tuple[None, Deployed]:
        """What the registry says of a version."""
        if spec.version in self.unknown:
            raise UnknownVersion(f"{spec.model}@{spec.version} is not registered")
        found = deployed(spec.version, spec.model)
        return None, found.model_copy(update={"replicas": spec.engine.min_replicas, "engine": spec.engine})

    def judge(self, _: RolloutSpec) -> str:
        """No rollout here has signals that answers are judged for."""
        return ""

    def listen_anew(self) -> None:
        """List everything, and watch from there."""
        with self.cluster.lock:
            self._told = self.cluster.version
            self.reconciler.replace_all(self.cluster.list(KIND))

    def hear(self) -> None:
        """Pass on what the watch would have told."""
        if self.deaf:
            return
        for change in self.cluster.changes_since(self.cluster.kind(KIND), self._told):
            self.reconciler.see(change.after, gone=change.what == "DELETED")
        self._told = self.cluster.version

    def step(self, seconds: float = 0.5, *, requests: int = 0, doubled: bool = False) -> None:
        self.hear()
        self.run(self.reconciler.settle())
        super().step(seconds, requests=requests, doubled=doubled)
        self.hear()
        self.run(self.reconciler.settle())

    # -- people --

    def apply(self, version: str, name: str = "chat", manager: str = "kubectl", **spec: Any) -> Object:
        """`kubectl apply --server-side` of a ModelDeployment."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"model": "chat", "version": version, "strategy": CANARY_STEPS, **spec},
        }
        return self.cluster.apply(self.cluster.kind(KIND), self.namespace, name, body, Write(manager), force=True)

    def annotate(self, verb: str, value: str | Object | None, name: str = "chat") -> None:
        """`kubectl annotate`."""
        said = json.dumps(value) if isinstance(value, dict) else value
        patch = {"metadata": {"annotations": {f"tidegate.dev/{verb}": said}}}
        self.cluster.patch(
            self.cluster.kind(KIND), self.namespace, name, lambda o: merge_patch(o, patch), Write("kubectl")
        )

    def delete(self, name: str = "chat") -> None:
        self.cluster.delete(KIND, self.namespace, name)

    def resource(self, name: str = "chat") -> Object:
        return self.cluster.get(KIND, self.namespace, name)

    def told(self, name: str = "chat") -> Object:
        """The status of a resource."""
        return self.resource(name).get("status") or {}

    def condition(self, kind: str, name: str = "chat") -> tuple[str, str]:
        """A condition's status and reason."""
        found = next((c for c in self.told(name).get("conditions", ()) if c["type"] == kind), None)
        return (found["status"], found["reason"]) if found else ("", "")

    def serving(self, version: str) -> bool:
        """Whether a version is stable and nothing rolls out."""
        told = self.told()
        return told.get("stable") == version and told.get("canary") is None
