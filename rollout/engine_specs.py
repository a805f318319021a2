"""What a rollout gives the engines of its version: how many, on which machines, from which cache. Pure.

It is the `engine` part of a spec (specs.py). The version owns what decides its answers; everything here decides only
how much of it there is and where. What concerns a cluster alone is ignored by the local platform.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from rollout.spec_types import WHOLE, Spec


class Capacity(enum.StrEnum):
    """Where the canary's replicas come from."""

    SURGE = "surge"
    """Beside stable's."""
    REPLACE = "replace"
    """No spare accelerator: stable gives its replicas to the canary one by one, and always keeps one."""


class OnShortage(enum.StrEnum):
    """What a rollback does while stable's ready replicas can't take all traffic."""

    STAY = "stay"
    """The canary keeps what stable can't take, less and less as stable becomes ready."""
    SHED = "shed"
    """All traffic leaves the canary at once; the gateways shed what stable can't take."""


_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
Quantity = Annotated[int, Field(ge=0, strict=True)] | Annotated[str, StringConstraints(pattern=_QUANTITY)]

ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", min_length=1, max_length=253)
]
"""The name of a Kubernetes object."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9.-]{{1,253}}/)?{_LABEL}$")]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^({_LABEL})?$")]


class Resources(Spec):
    """What one replica needs, in Kubernetes' words: `{limits: {nvidia.com/gpu: 1, memory: 24Gi}}`."""

    limits: Mapping[str, Quantity] = {}
    requests: Mapping[str, Quantity] = {}

    @property
    def accelerators(self) -> Mapping[str, int]:
        """How many of which accelerator a replica takes, for instance `{"nvidia.com/gpu": 1}`."""
        named = {**self.requests, **self.limits}
        found = {name: quantity for name, quantity in named.items() if name.rpartition("/")[2].endswith(("gpu", "tpu"))}
        return {name: int(quantity) for name, quantity in found.items() if str(quantity).isdigit() and int(quantity)}


class TolerationOperator(enum.StrEnum):
    """How a toleration's value is compared with the taint's."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(enum.StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Spec):
    """A taint of nodes that the engines may live with, in Kubernetes' words."""

    key: LabelKey | None = None
    """Left out, with the operator Exists: every taint."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    value: LabelValue | None = None
    effect: TaintEffect | None = None
    """Left out: every effect."""
    toleration_seconds: Annotated[int, Field(ge=0), WHOLE] | None = None
    """For NoExecute: how long they stay once the taint is there. Left out: for ever."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.key is None and self.operator is not TolerationOperator.EXISTS:
            raise ValueError("a toleration without a key tolerates everything, and must say so: operator: Exists")
        if self.operator is TolerationOperator.EXISTS and self.value is not None:
            raise ValueError(f"operator Exists takes no value (found {self.value!r}); leave one of the two out")
        if self.toleration_seconds is not None and self.effect is not TaintEffect.NO_EXECUTE:
            raise ValueError("tolerationSeconds belongs to the effect NoExecute; leave it out, or set the effect")
        return self


class WeightCache(Spec):
    """Where fetched weights are kept, so that the next replica on the same node does not fetch them again."""

    host_path: Annotated[str, StringConstraints(pattern=r"^/[^:]{1,1000}$")] | None = None
    """A folder of the node. The namespace must allow host paths, which the pod security level `restricted` does not."""
    persistent_volume_claim: ObjectName | None = None
    """A claim in the ModelDeployment's namespace; ReadWriteMany when replicas run on several nodes."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.host_path is not None and self.persistent_volume_claim is not None:
            raise ValueError("cache: hostPath and persistentVolumeClaim exclude each other; give one")
        return self


class Weights(Spec):
    """How a version's files come to the node before the engine starts."""

    credentials_secret: ObjectName | None = None
    """A Secret in the ModelDeployment's namespace whose keys become environment variables of the fetching container:
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, MLFLOW_TRACKING_TOKEN, HF_TOKEN."""
    cache: WeightCache = WeightCache()
    """Left out: the pod's own, fetched anew for each pod."""


class WorkloadKind(enum.StrEnum):
    """What `workloadRef` may point to."""

    DEPLOYMENT = "Deployment"
    INFERENCE_SERVICE = "InferenceService"


class WorkloadRef(Spec):
    """A workload that somebody else runs: it is watched and gets traffic, and is never created, scaled or deleted.

    It must answer OpenAI's API under the model's name, and keep running until the rollback window is over.
    """

    kind: WorkloadKind = WorkloadKind.DEPLOYMENT
    name: Annotated[ObjectName, StringConstraints(max_length=63)]
    service: Annotated[ObjectName, StringConstraints(max_length=63)] | None = None
    """The Service in front of it, whose endpoints the gateways use. Left out: one of the same name."""
    port: Annotated[int, Field(ge=1, le=65535), WHOLE] = 8000
    """The port on which its pods answer."""

    @property
    def service_name(self) -> str:
        """The Service whose endpoints are used."""
        return self.service if self.service is not None else self.name


class EngineSpec(Spec):
    """Capacity: what the rollout owns, as against what the version owns."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] = "local"
    """Left out: the platform's own engine image."""
    min_replicas: Annotated[int, Field(ge=1, le=64), WHOLE] = 1
    max_replicas: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    """Left out: as many as minReplicas."""
    target_requests_per_replica: Annotated[int, Field(ge=1, le=10_000), WHOLE] = 32
    """Between the two: one replica for so many requests that run or wait in the engines."""
    resources: Resources = Resources()
    capacity: Capacity = Capacity.SURGE
    on_shortage: OnShortage = OnShortage.STAY
    check_room: Annotated[bool, Field(strict=True)] = True
    """Refuse to start where the nodes have no room. Off where a node autoscaler brings machines on demand."""
    node_selector: Mapping[LabelKey, LabelValue] = {}
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None
    """For instance `nvidia`, where that is not the nodes' default."""
    queue_name: Annotated[ObjectName, StringConstraints(max_length=63)] | None = None
    """The LocalQueue of Kueue that must admit the engines first."""
    weights: Weights = Weights()
    workload_ref: WorkloadRef | None = None

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"maxReplicas {self.max_replicas} is below minReplicas {self.min_replicas}; raise it")
        if self.capacity is Capacity.REPLACE and self.min_replicas < 2:
            raise ValueError("capacity: replace needs minReplicas of at least 2; with one there is none to give")
        if self.capacity is Capacity.REPLACE and self.most_replicas > self.min_replicas:
            raise ValueError(
                f"capacity: replace moves replicas between two versions, so their number is fixed: leave maxReplicas "
                f"({self.max_replicas}) out, or use capacity: surge"
            )
        return self

    @model_validator(mode="after")
    def _queued(self) -> Self:
        if self.queue_name is not None and self.elastic:
            raise ValueError(
                f"queueName {self.queue_name}: Kueue admits a fixed number of replicas; leave maxReplicas out and use "
                "capacity: surge"
            )
        return self

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        if self.workload_ref is not None:
            ours = {"resources", "node_selector", "tolerations", "queue_name", "weights", "max_replicas", "capacity"}
            if given := sorted(ours & self.model_fields_set):
                raise ValueError(
                    f"workloadRef points to a workload that is not ours to shape; set {', '.join(given)} there instead"
                )
        return self

    @property
    def most_replicas(self) -> int:
        """Up to how many replicas it may grow."""
        return self.max_replicas if self.max_replicas is not None else self.min_replicas

    @property
    def elastic(self) -> bool:
        """Whether the number of replicas changes while it runs: by load, or by giving and taking."""
        return self.most_replicas > self.min_replicas or self.capacity is Capacity.REPLACE
