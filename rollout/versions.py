"""From a spec's version to a revision that can run: resolve, verify, fetch. Shell around the registry's port."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from registry.errors import RegistryError, UnknownModel, UnknownVersion
from registry.models import ModelVersion, SourceKind
from registry.promotion import Moment, alias_moves
from registry.semver import SemVer
from registry.stores.base import RegistryStore, apply_moves
from rollout.accelerators import NO_IMAGE, accelerator_of, check_accelerators
from rollout.actions import Deployed
from rollout.engine_specs import WorkloadRef
from rollout.errors import InvalidSpec
from rollout.judges import judge_policy
from rollout.specs import RolloutSpec
from serving.specs import EngineKind, RevisionSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClusterHome:
    """What resolving a version means on a cluster, where the machine that resolves is not the one that serves."""

    namespace: str
    """Where a version's engines live, unless the caller says otherwise."""
    image: str
    """The engine image of specs that name none. It is part of the revision: a new one goes through a canary."""
    models: str = "/models"
    """Below this the nodes keep the files of versions, each in a folder named by its manifest's digest."""


class Versions:
    """Turns registered versions into revisions and keeps the registry's aliases where the rollouts are.

    The registry's client blocks, so every call runs in a thread: the controller's loop must not wait for it.
    """

    def __init__(
        self,
        store: RegistryStore,
        accelerator: str = "cpu",
        judge: Callable[[RolloutSpec], str] = judge_policy,
        cluster: ClusterHome | None = None,
    ) -> None:
        """Take a registry.

        Args:
            store: the registry.
            accelerator: what engines of this machine run on.
            judge: gives the text of the policy that scores a rollout's answers, see `rollout.judges`.
            cluster: given where engines run on a cluster: then nothing is fetched to this machine, and the accelerator
                is what the spec asks for.
        """
        self._store = store
        self._accelerator = accelerator
        self.judge = judge
        self._cluster = cluster

    async def resolve(self, spec: RolloutSpec, namespace: str = "") -> tuple[ModelVersion, Deployed]:
        """A spec's version and its revision, its files verified against the manifest.

        On a cluster they are verified where they are used, by the container that fetches them to a node.

        Args:
            spec: what is asked for.
            namespace: where on a cluster it shall live; empty means the platform's own namespace.

        Raises:
            registry.errors.RegistryError: no such version, a damaged file, a registry that does not answer.
            InvalidSpec: what the spec gives each replica does not fit what the version needs.

        """
        return await asyncio.to_thread(self._resolve, spec, namespace)

    def _resolve(self, spec: RolloutSpec, namespace: str) -> tuple[ModelVersion, Deployed]:
        ref = spec.engine.workload_ref
        if ref is not None:
            if self._cluster is None:
                raise InvalidSpec("engine.workloadRef points into a cluster, and this platform runs on one machine")
            version = self._referred(spec, ref)
            kind, source = EngineKind.EXTERNAL, f"{ref.kind}/{ref.name}"
        else:
            version = self._store.get(spec.model, spec.version)
            kind = EngineKind.SIMULATED if version.kind is SourceKind.SIMULATED else EngineKind.VLLM
            source = self._source(version)
        cluster = self._cluster
        image = spec.engine.image
        revision = RevisionSpec(
            model=spec.model,
            version=version.version,
            manifest_sha256=version.manifest_sha256,
            engine=kind,
            source=source,
            engine_image=cluster.image if cluster is not None and image == NO_IMAGE else image,
            engine_args=dict(version.engine_args),
            accelerator=self._accelerator if cluster is None else accelerator_of(spec.engine),
            policy_sha256=version.policy_sha256,
        )
        if cluster is not None and kind is EngineKind.VLLM:
            check_accelerators(spec.engine, revision)
        return version, Deployed(
            revision=revision,
            replicas=spec.engine.min_replicas,
            engine=spec.engine,
            namespace="" if cluster is None else namespace or cluster.namespace,
            longest_stream_s=spec.drain_deadline,
            policy=self._store.policy_text(version) if version.policy_sha256 else "",
        )

    def _source(self, version: ModelVersion) -> str:
        if version.kind is SourceKind.SIMULATED:
            return version.location
        if self._cluster is not None:
            return f"{self._cluster.models}/{version.manifest_sha256}"
        return str(self._store.materialise(version, verify=True))

    def _referred(self, spec: RolloutSpec, ref: WorkloadRef) -> ModelVersion:
        """The version of somebody else's workload: the registered one, or one that is made of the reference."""
        try:
            return self._store.get(spec.model, spec.version)
        except (UnknownModel, UnknownVersion):
            named = json.dumps([spec.model, spec.version, ref.model_dump(mode="json")], separators=(",", ":"))
            return ModelVersion(
                model=spec.model,
                version=str(SemVer.parse(spec.version)),
                mlflow_version="",
                kind=SourceKind.FOLDER,
                location=f"{ref.kind}/{ref.name}",
                manifest_sha256=hashlib.sha256(named.encode()).hexdigest(),
                created_at=dt.datetime.fromtimestamp(0, dt.UTC),
            )

    async def earlier(self, model: str, before: str) -> ModelVersion | None:
        """The version registered before `before`, newest first, or None."""
        versions = await asyncio.to_thread(self._store.list_versions, model)
        older = sorted((v for v in versions if v.version != before), key=lambda v: v.created_at)
        known = next((v for v in versions if v.version == before), None)
        if known is not None:
            older = [v for v in older if v.created_at < known.created_at]
        return older[-1] if older else None

    async def moved(self, moment: Moment, model: str, version: str) -> None:
        """Move the aliases after something happened to a version.

        A registry that does not answer is logged, not raised: an alias never holds up a rollout.
        """
        try:
            await asyncio.to_thread(self._move, moment, model, version)
        except RegistryError as error:
            log.warning("the aliases of %s were not moved (%s %s): %s", model, version, moment, error)

    def _move(self, moment: Moment, model: str, version: str) -> None:
        pointing = {alias: v.version for v in self._store.list_versions(model) for alias in v.aliases}
        apply_moves(self._store, model, alias_moves(moment, version, pointing))
