"""What people do to ModelDeployments from outside the cluster: read them, write a wish, say a verb. Shell; blocks.

A verb is an annotation with an id of its own; the operator's status says what became of it. Nothing is deleted: a
pause ends by an annotation that says `false`, so that two people who write at once don't undo each other unseen.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rollout.commands import Verb
from rollout.errors import ClusterConflict, ClusterUnavailable, InvalidSpec, ResourceGone, UnknownRollout
from rollout.operator.api import ResourceApi
from rollout.operator.crd import schema
from rollout.operator.documents import Handled
from rollout.operator.names import CLI_MANAGER, GROUP
from rollout.operator.resource import Key, Resource, read_resource
from rollout.operator.structural import Schema

LOOK_S = 0.2
HANDLED_S = 30.0
"""How long the operator may take to carry out what was asked, before it is told that it did not."""

T = TypeVar("T")


class Remote:
    """The resources of one namespace.

    Args:
        api: the cluster.
        namespace: where.
        monotonic: seconds that never go back.
        sleep: waits so many seconds.

    """

    def __init__(
        self,
        api: ResourceApi,
        namespace: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self.namespace = namespace
        self._monotonic = monotonic
        self._sleep = sleep

    def all(self) -> list[Resource]:
        """Every resource of the namespace, by name."""
        return sorted((read_resource(b) for b in self._api.list_all((self.namespace,))), key=lambda r: r.key)

    def of(self, model: str) -> Resource:
        """The resource of a model: the one that is called like it, or that names it.

        Raises:
            UnknownRollout: there is none.

        """
        try:
            found = read_resource(self._api.get(Key(self.namespace, model)))
            if found.model == model:
                return found
        except ResourceGone:
            pass
        there = [r for r in self.all() if r.model == model]
        if not there:
            known = ", ".join(r.model for r in self.all()) or "none"
            raise UnknownRollout(
                f"no ModelDeployment in namespace {self.namespace} is about model {model!r} (there: {known}); "
                "`tidegate deploy` makes one, -n looks elsewhere"
            )
        return min(there, key=lambda r: r.seniority)

    def wish(self, document: Mapping[str, Any], *, dry_run: bool = False) -> Resource:
        """Write what should be, by server-side apply; returns the resource as it is then.

        Raises:
            ClusterConflict: fields of it are managed by somebody else, who is named.
            ClusterRejected: the API server does not accept it, and says why.

        """
        model = str(document.get("model"))
        try:
            key = self.of(model).key
        except UnknownRollout:
            key = Key(self.namespace, model)
        content = {"spec": resource_spec(document)}
        try:
            return read_resource(self._api.apply(key, content, manager=CLI_MANAGER, dry_run=dry_run))
        except ClusterConflict as error:
            raise ClusterConflict(
                f"{error}. Change it where it is managed (for instance in Git), or take it over: "
                f"`kubectl apply --server-side --force-conflicts --field-manager={CLI_MANAGER}`"
            ) from None

    def say(self, resource: Resource, verb: Verb, order: Mapping[str, Any]) -> Handled | None:
        """Say a verb and wait for what becomes of it; None when it is not said by an order but by a state (pause).

        Raises:
            ClusterUnavailable: the operator did not handle it in time.

        """
        if verb in (Verb.PAUSE, Verb.RESUME):
            self._pause(resource, str(order.get("reason") or "by the command line"), paused=verb is Verb.PAUSE)
            return None
        said = {"id": uuid.uuid4().hex[:16], **{k: v for k, v in order.items() if v}}
        annotation = {f"{GROUP}/{verb}": json.dumps(said, ensure_ascii=False)}
        self._api.annotate(resource.key, annotation, manager=CLI_MANAGER)

        def handled(now: Resource) -> Handled | None:
            found = now.status.handled(verb)
            return found if found is not None and found.id == said["id"] else None

        return self._awaited(resource.key, handled, f"the operator did not handle {verb}")

    def _pause(self, resource: Resource, reason: str, *, paused: bool) -> None:
        if not paused and resource.spec is not None and resource.spec.paused:
            raise InvalidSpec(
                f"{resource.key.name} has spec.paused: true, which no annotation overrules; set it to false where the "
                "spec is managed"
            )
        value = reason if paused else "false"
        self._api.annotate(resource.key, {f"{GROUP}/pause": value}, manager=CLI_MANAGER)
        rollout = resource.status.rollout

        def followed(now: Resource) -> bool | None:
            ended = now.status.canary is None or now.status.rollout != rollout
            return (now.status.phase == "Paused") == paused or ended or None

        self._awaited(resource.key, followed, f"the operator did not {'pause' if paused else 'resume'}")

    def taken(self, resource: Resource) -> Resource:
        """The resource as soon as the operator has read its newest spec.

        Raises:
            ClusterUnavailable: it did not in time.

        """

        def read(now: Resource) -> Resource | None:
            return now if now.status.observed_generation >= resource.generation else None

        return self._awaited(resource.key, read, "the operator did not read the new spec")

    def _awaited(self, key: Key, look: Callable[[Resource], T | None], problem: str) -> T:
        ends = self._monotonic() + HANDLED_S
        while True:
            found = look(read_resource(self._api.get(key)))
            if found is not None:
                return found
            if self._monotonic() >= ends:
                raise ClusterUnavailable(
                    f"{problem} in {HANDLED_S:.0f} s; it is asked for and will be done when a controller leads: "
                    f"`kubectl get pods -n {self.namespace} -l app.kubernetes.io/component=controller`"
                )
            self._sleep(LOOK_S)


def resource_spec(document: Mapping[str, Any]) -> dict[str, Any]:
    """A rollout.yaml as a resource takes it: whole numbers as numbers, fractions as strings.

    >>> resource_spec({"model": "chat", "analysis": {"alpha": 0.01}, "engine": {"minReplicas": "2"}})
    {'model': 'chat', 'analysis': {'alpha': '0.01'}, 'engine': {'minReplicas': 2}}
    """
    made = _fitting(document, schema()["properties"]["spec"])
    assert isinstance(made, dict)
    return made


def _fitting(value: Any, node: Schema) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(value, Mapping):
        properties: Schema = node.get("properties") or {}
        extra: Schema = node.get("additionalProperties") or {}
        return {key: _fitting(part, properties.get(key, extra)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting(part, node.get("items") or {}) for part in value]
    if isinstance(value, str) and node.get("type") == "integer" and value.strip().isdigit():
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else f"{value:.15f}".rstrip("0")
    return value
