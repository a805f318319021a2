"""The label by which a Service finds the leading controller's pod. Shell.

Readiness would not do: a follower that is never ready leaves its Deployment unavailable for ever, and a budget for
disruptions with one healthy pod of two lets no node be drained. So both are ready, and the Service selects the label.
The label decides nothing: who is dialled by mistake and does not lead says so, and is dialled again elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)

LABEL = "tidegate.dev/leader"
LOOK_S = 0.5
"""How often it is looked whether the leadership has come or gone. Costs nothing: it is this process's own."""
CHECK_S = 10.0
"""How often the API server is asked all the same: somebody may have changed a label."""
AGAIN_S = 1.0
REQUEST_TIMEOUT_S = 5.0


class Pods(Protocol):
    """The pods of a release's controllers."""

    def labelled(self) -> Collection[str]:
        """The names of those that carry the label."""
        ...

    def label(self, name: str, *, leads: bool) -> None:
        """Put the label on one, or take it off. One that is gone is no error."""
        ...


class Changes(NamedTuple):
    """What is wrong with the labels."""

    on: tuple[str, ...]
    off: tuple[str, ...]


def changes(labelled: Collection[str], me: str, *, leads: bool) -> Changes:
    """What one controller should change: a leader corrects all, a follower only itself. Pure.

    The new leader is labelled before the old one loses it: two for a moment cost a second dial, none would cost a gap.
    """
    if leads:
        return Changes(on=() if me in labelled else (me,), off=tuple(sorted(set(labelled) - {me})))
    return Changes(on=(), off=(me,) if me in labelled else ())


class LeaderLabel:
    """Keeps the label where the leadership is.

    Args:
        pods: the controllers' pods.
        me: this pod's name.
        leads: whether this process leads, by the store's token.

    """

    def __init__(self, pods: Pods, me: str, leads: Callable[[], bool]) -> None:
        self._pods = pods
        self._me = me
        self._leads = leads
        self._complaint = ""

    async def run(self) -> None:
        """Follow the leadership, for ever; an API server that is away is asked again."""
        loop = asyncio.get_running_loop()
        told: bool | None = None
        due = loop.time()
        while True:
            leads = self._leads()
            if leads is not told or loop.time() >= due:
                done = await asyncio.to_thread(self.settle, leads=leads)
                told = leads if done else None
                due = loop.time() + CHECK_S
                if not done:
                    await asyncio.sleep(AGAIN_S)
                    continue
            await asyncio.sleep(LOOK_S)

    def settle(self, *, leads: bool) -> bool:
        """Make the labels right once. False when the API server did not let it; each new reason is logged."""
        try:
            wrong = changes(self._pods.labelled(), self._me, leads=leads)
            for name in wrong.on:
                self._pods.label(name, leads=True)
            for name in wrong.off:
                self._pods.label(name, leads=False)
        except (ApiException, HTTPError, OSError) as error:
            why = f"{error.status} {error.reason}" if isinstance(error, ApiException) else type(error).__name__
            if why != self._complaint:
                self._complaint = why
                log.warning(
                    "the label %s can't be kept (%s), so gateways may not find the leader; %s", LABEL, why, _hint(error)
                )
            return False
        if wrong.on or wrong.off:
            log.info("label %s: on %s, off %s", LABEL, ", ".join(wrong.on) or "none", ", ".join(wrong.off) or "none")
        self._complaint = ""
        return True


def _hint(error: Exception) -> str:
    """What to do about it: a right may be missing only where the API server said so."""
    if isinstance(error, ApiException) and error.status in (401, 403):
        return "the controller's Role needs list and patch on pods"
    return "the API server is asked again until it does"


class ClusterPods:
    """The pods as the API server has them.

    Args:
        api: a client with the right to list and patch pods there.
        namespace: the release's.
        release: its name.

    """

    def __init__(self, api: client.CoreV1Api, namespace: str, release: str) -> None:
        self._api = api
        self._namespace = namespace
        self._selector = f"app.kubernetes.io/component=controller,app.kubernetes.io/instance={release},{LABEL}=true"

    def labelled(self) -> Collection[str]:
        """See `Pods.labelled`."""
        found = self._api.list_namespaced_pod(
            self._namespace, label_selector=self._selector, _request_timeout=REQUEST_TIMEOUT_S
        )
        return [pod.metadata.name for pod in found.items if pod.metadata and pod.metadata.name]

    def label(self, name: str, *, leads: bool) -> None:
        """See `Pods.label`."""
        body = {"metadata": {"labels": {LABEL: "true" if leads else None}}}
        try:
            self._api.patch_namespaced_pod(name, self._namespace, body, _request_timeout=REQUEST_TIMEOUT_S)
        except ApiException as error:
            if error.status != 404:
                raise


def leader_label(
    configuration: client.Configuration, *, namespace: str, release: str, me: str, leads: Callable[[], bool]
) -> LeaderLabel:
    """The label of a release's leader, kept through the API server that is configured."""
    api = client.CoreV1Api(client.ApiClient(configuration))
    return LeaderLabel(ClusterPods(api, namespace, release), me, leads)
