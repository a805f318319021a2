"""The drift watch of one stream (a model, or a route or tenant of it): all its detectors together. Pure.

Every request is seen by its cheap features; those that were embedded by their embedding too. The two e-detectors share
one promise: the threshold of each is the watch's times their number, so that P(any false page within n requests) is at
most n / threshold. Kernel windows warn. One caller at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift.detector import THRESHOLD, DriftDetector
from monitoring.drift.errors import UnusableVectors
from monitoring.drift.explain import Explanation, RecentRequests
from monitoring.drift.mmd import WINDOW, KernelWindow
from monitoring.drift.reference import Reference


class Detector(StrEnum):
    """The detectors of a watch: the label `detector` of its metrics."""

    EMBEDDING = "embedding"
    CHEAP = "cheap_features"
    KERNEL = "kernel_window"


class Severity(StrEnum):
    """What an alarm is for."""

    PAGE = "page"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, told once.

    Attributes:
        detector: that raised it.
        severity: a page may also hold a rollout; a warning does neither.
        statistic: evidence of an e-detector, or distance of the kernel window.
        threshold: that it exceeded.
        request_id: of the request that tipped it.
        reference: digest.
        explanation: what changed.

    """

    detector: Detector
    severity: Severity
    statistic: float
    threshold: float
    request_id: str
    reference: str
    explanation: Explanation


class _Side:
    """One kind of features: its reference, its e-detector and the last requests."""

    def __init__(self, reference: Reference, threshold: float) -> None:
        self.reference = reference
        self.detector = DriftDetector(reference, threshold)
        self.recent = RecentRequests()

    def explain(self) -> Explanation:
        return self.recent.explain(self.reference, *self.detector.moved())

    def clear(self) -> None:
        self.detector.clear()
        self.recent.clear()


class DriftWatch:
    """The detectors of one stream.

    Args:
        cheap: reference of `features.cheap_features`.
        embedding: reference of embeddings; None without an embedding model.
        rng: draws the kernel window's frequencies.
        threshold: mean requests to a false page, at least, of all detectors together.

    """

    def __init__(
        self,
        cheap: Reference,
        embedding: Reference | None,
        rng: np.random.Generator,
        threshold: float = THRESHOLD,
    ) -> None:
        each = threshold * (1 if embedding is None else 2)
        self._sides = {Detector.CHEAP: _Side(cheap, each)}
        self._kernel: KernelWindow | None = None
        if embedding is not None:
            self._sides[Detector.EMBEDDING] = _Side(embedding, each)
            self._kernel = KernelWindow(embedding, rng)
        self._calm = WINDOW
        self.seen = 0
        self.embedded = 0
        self.unusable = 0
        self.alarms = dict.fromkeys(Detector, 0)

    def observe(
        self, request_id: str, cheap: NDArray[Any], embedding: NDArray[Any] | None = None, hour: int = 0
    ) -> tuple[Alarm, ...]:
        """Take in one request; the alarms that it raised, each told once until `clear`.

        A vector that can't be used is counted in `unusable` and left out: one broken embedding must not end the watch.
        A warning is told again only after 128 embedded requests below its threshold.

        Args:
            request_id: kept as an example, never with a text.
            cheap: its cheap features.
            embedding: None when it was not sampled.
            hour: of the day, 0 to 23, in the time zone of the references.

        Raises:
            ValueError: for an hour that is not one of 0 to 23.

        """
        self.seen += 1
        raised = self._take(Detector.CHEAP, request_id, cheap, hour)
        if embedding is not None and Detector.EMBEDDING in self._sides:
            raised += self._take(Detector.EMBEDDING, request_id, embedding, hour)
        for alarm in raised:
            self.alarms[alarm.detector] += 1
        return tuple(raised)

    def active(self) -> tuple[Detector, ...]:
        """Detectors whose alarm holds: pages until `clear`, a warning while it lasts."""
        active = [name for name, side in self._sides.items() if side.detector.active]
        if self._kernel is not None and self._kernel.warning:
            active.append(Detector.KERNEL)
        return tuple(active)

    def statistics(self) -> dict[Detector, tuple[float, float]]:
        """By detector, its statistic and the threshold: evidence for the e-detectors, a distance for the window."""
        found = {name: (side.detector.evidence, side.detector.threshold) for name, side in self._sides.items()}
        if self._kernel is not None:
            found[Detector.KERNEL] = (self._kernel.statistic, self._kernel.thresholds[self._kernel.block])
        return found

    def clear(self) -> None:
        """Forget evidence and alarms, not counters: the operator has seen them. References stay until replaced."""
        for side in self._sides.values():
            side.clear()
        if self._kernel is not None:
            self._kernel.clear()
        self._calm = WINDOW

    def to_json(self) -> dict[str, Any]:
        """The state for a restart, some tens of kB; the kernel window starts anew."""
        return {
            "sides": {
                name.value: {"detector": side.detector.to_json(), "recent": side.recent.to_json()}
                for name, side in self._sides.items()
            },
            "counters": {"seen": self.seen, "embedded": self.embedded, "unusable": self.unusable},
            "alarms": {name.value: count for name, count in self.alarms.items()},
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave; a side that was not saved starts anew.

        Raises:
            ForeignState: when a side was saved with another reference; nothing has changed then.

        """
        for name, side in self._sides.items():
            kept = stored["sides"].get(name.value)
            if kept is not None:
                # On a copy first: a second side that does not fit must not leave the first one changed.
                DriftDetector(side.reference, side.detector.threshold).restore(kept["detector"])
        for name, side in self._sides.items():
            kept = stored["sides"].get(name.value)
            if kept is not None:
                side.detector.restore(kept["detector"])
                side.recent.restore(kept["recent"])
        counters = stored["counters"]
        self.seen, self.embedded = int(counters["seen"]), int(counters["embedded"])
        self.unusable = int(counters["unusable"])
        self.alarms = {name: int(stored["alarms"].get(name.value, 0)) for name in Detector}

    def _take(self, name: Detector, request_id: str, vector: NDArray[Any], hour: int) -> list[Alarm]:
        side = self._sides[name]
        block = side.reference.block_of(hour)
        try:
            coordinates, cluster = side.reference.locate(vector)
        except UnusableVectors:
            self.unusable += 1
            return []
        side.recent.add(request_id, cluster, block)
        step = side.detector.observe(coordinates, block)
        raised = []
        if step.alarm:
            raised.append(
                Alarm(
                    name, Severity.PAGE, step.evidence, side.detector.threshold, request_id,
                    side.reference.digest, side.explain(),
                )
            )  # fmt: skip
        if name is Detector.EMBEDDING and self._kernel is not None:
            self.embedded += 1
            warning = self._kernel.observe(coordinates, block)
            if warning and self._calm >= WINDOW:
                raised.append(
                    Alarm(
                        Detector.KERNEL, Severity.WARNING, self._kernel.statistic, self._kernel.thresholds[block],
                        request_id, side.reference.digest, side.explain(),
                    )
                )  # fmt: skip
            self._calm = 0 if warning else self._calm + 1
        return raised
