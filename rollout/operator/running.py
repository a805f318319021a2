"""The operator as a whole: watches while its controller leads. It runs inside the controller's process. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rollout.controller import Controller
from rollout.operator.api import Address, ResourceApi
from rollout.operator.reconciler import Aim, Reconciler, Resolve
from rollout.operator.watcher import Watcher
from rollout.operator.writer import ApiWriter
from rollout.specs import RolloutSpec

LEAD_LOOK_S = 0.1


class Operator:
    """Watches some namespaces for ModelDeployments and carries them out through one controller.

    Args:
        controller: whom to tell.
        resolve: turns a spec into a revision.
        aim: turns a verb into what it starts.
        address: the cluster.
        namespaces: where ModelDeployments are looked for.
        instance: the pod's name, for Events.
        clock: seconds since the epoch.
        monotonic: seconds that never go back.
        judge: gives the text of the policy that scores a rollout's answers.

    """

    def __init__(
        self,
        *,
        controller: Controller,
        resolve: Resolve,
        aim: Aim,
        address: Address,
        namespaces: tuple[str, ...],
        instance: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        judge: Callable[[RolloutSpec], str] = lambda _: "",
    ) -> None:
        self._controller = controller
        self._api = ResourceApi(address.configuration(), user_agent="tidegate-operator")
        self._writer = ApiWriter(self._api, instance=instance, clock=clock)
        self.reconciler = Reconciler(
            controller=controller,
            resolve=resolve,
            aim=aim,
            writer=self._writer,
            clock=clock,
            monotonic=monotonic,
            judge=judge,
        )
        self._watcher = Watcher(
            address=address,
            namespaces=namespaces,
            listed=self.reconciler.replace_all,
            changed=lambda body, gone: self.reconciler.see(body, gone=gone),
        )
        self.reconciler.unseen = lambda: self._watcher.message if self._watcher.refused else ""

    @property
    def message(self) -> str:
        """What stands between the operator and the cluster; empty when nothing does."""
        return self._watcher.message or self.reconciler.message

    async def run(self) -> None:
        """Work from the moment on when the controller leads, until cancelled."""
        while not self._controller.leads:  # noqa: ASYNC110 - leadership comes from the store; nothing could be awaited
            await asyncio.sleep(LEAD_LOOK_S)
        stop = self._controller.subscribe(self.reconciler.on_status)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watcher.run())
                tasks.create_task(self.reconciler.run())
        finally:
            stop()
            self._writer.close()
            self._api.close()
