"""From a spec's version to a revision that can run: resolve, verify, fetch. Shell around the registry's port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from registry.errors import RegistryError
from registry.models import ModelVersion, SourceKind
from registry.promotion import Moment, alias_moves
from registry.stores.base import RegistryStore, apply_moves, policy_file
from rollout.actions import Deployed
from rollout.judges import judge_policy
from rollout.specs import RolloutSpec
from serving.specs import EngineKind, RevisionSpec

log = logging.getLogger(__name__)


class Versions:
    """Turns registered versions into revisions and keeps the registry's aliases where the rollouts are.

    The registry's client blocks, so every call runs in a thread: the controller's loop must not wait for it.
    """

    def __init__(
        self, store: RegistryStore, accelerator: str = "cpu", judge: Callable[[RolloutSpec], str] = judge_policy
    ) -> None:
        """Begin; `judge` gives the text of the policy that scores a rollout's answers, see `rollout.judges`."""
        self._store = store
        self._accelerator = accelerator
        self.judge = judge

    async def resolve(self, spec: RolloutSpec) -> tuple[ModelVersion, Deployed]:
        """A spec's version and its revision, its files verified against the manifest.

        Raises:
            registry.errors.RegistryError: no such version, a damaged file, a registry that does not answer.

        """
        return await asyncio.to_thread(self._resolve, spec)

    def _resolve(self, spec: RolloutSpec) -> tuple[ModelVersion, Deployed]:
        version = self._store.get(spec.model, spec.version)
        simulated = version.kind is SourceKind.SIMULATED
        folder = None if simulated and not version.policy_sha256 else self._store.materialise(version, verify=True)
        source = version.location if simulated else str(folder)
        revision = RevisionSpec(
            model=spec.model,
            version=version.version,
            manifest_sha256=version.manifest_sha256,
            engine=EngineKind.SIMULATED if simulated else EngineKind.VLLM,
            source=source,
            engine_image=spec.engine.image,
            engine_args=dict(version.engine_args),
            accelerator=self._accelerator,
            policy_sha256=version.policy_sha256,
        )
        file = policy_file(folder) if folder is not None else None
        policy = file.read_bytes().decode() if file is not None else ""
        return version, Deployed(revision=revision, replicas=spec.engine.min_replicas, policy=policy)

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
