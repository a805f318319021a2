"""Why the pods of a revision do not come up, as one line for people: what is wrong, and the way out. Pure.

None of this is final: a Secret may be made, an image pushed, a node added. The progress deadline decides when waiting
is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Pod = Mapping[str, Any]

LINE_LIMIT = 300
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})


def is_ready(pod: Pod) -> bool:
    """Whether a pod takes traffic: it is ready and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in _conditions(pod))


def trouble(pods: Iterable[Pod]) -> str:
    """The most telling trouble of some pods; empty when there is none."""
    found = sorted(t for pod in pods for t in _troubles(pod))
    return found[0][1] if found else ""


def _troubles(pod: Pod) -> Iterator[tuple[int, str]]:
    """What is wrong with one pod, with how much it tells: the lower, the more."""
    if pod["metadata"].get("deletionTimestamp"):
        return
    status = pod.get("status") or {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _container_troubles(container)
    if status.get("reason") in ("Evicted", "NodeLost", "Shutdown", "NodeShutdown", "Terminated"):
        told = _line(status.get("message") or "")
        yield 4, f"a pod was taken by its node ({status['reason']}): {told}; another one is started"
    for condition in _conditions(pod):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield from _scheduling_troubles(condition)
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            yield 5, f"a pod must leave its node: {_line(condition.get('message') or condition.get('reason') or '')}"


def _container_troubles(container: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, told = waiting.get("reason") or "", _line(waiting.get("message") or "")
    last = (container.get("lastState") or {}).get("terminated") or {}
    ended = (container.get("state") or {}).get("terminated") or last
    if reason in IMAGE_REASONS:
        image = container.get("image") or "the image"
        yield 0, f"{image} can't be pulled: {told or reason}; correct engine.image, or the pull secret"
    elif reason in CONFIG_REASONS:
        yield 0, f"the pod can't be made: {told or reason}; make what is missing, and it goes on by itself"
    elif ended.get("exitCode"):
        why = _line(ended.get("message") or "") or f"{ended.get('reason') or 'it ended'} with {ended['exitCode']}"
        if ended.get("reason") == "OOMKilled":
            why = "it was killed for want of memory; raise engine.resources.limits.memory"
        yield 1, f"container {container.get('name')} failed: {why}"


def _scheduling_troubles(condition: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    told = _line(condition.get("message") or "")
    if condition.get("reason") == "Unschedulable":
        yield 2, f"no node takes a pod: {told}; make room, add a node, or use capacity: replace"
    elif condition.get("reason") == "SchedulingGated":
        yield 3, "a pod waits to be admitted by its queue"


def _conditions(pod: Pod) -> Iterable[Mapping[str, Any]]:
    return (pod.get("status") or {}).get("conditions") or ()


def _line(text: str) -> str:
    """The last line of a message that says anything, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:LINE_LIMIT] if lines else ""
