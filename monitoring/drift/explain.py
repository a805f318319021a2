"""What an alarm says beside a number: which features moved, which groups of requests came or went. Pure.

Requests are named by their ids only; who may read their texts is decided where the request log is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.drift.reference import Floats, Reference

REMEMBERED = 256
"""Requests whose id and cluster are kept."""

MOST_FEATURES = 5
MOST_CLUSTERS = 3
"""Clusters named in each direction."""

LEAST_ERRORS = 2.0
"""A cluster is named when its share has moved by so many standard errors."""

DISTANCE = "distance_to_reference"
"""Name of the last coordinate."""


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """A feature that moved.

    Attributes:
        name: of the feature, or `axis_N` for a principal component of an embedding.
        deviations: how far, in standard deviations of the reference; its sign is the direction.

    """

    name: str
    deviations: float


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """A group of similar requests that gained or lost.

    Attributes:
        cluster: number in the reference.
        before_percent: share of the reference's requests.
        now_percent: share of the recent ones.
        reference_ids: requests of the reference in its middle.
        recent_ids: recent requests in it, the newest first; none for a cluster that has gone.

    """

    cluster: int
    before_percent: float
    now_percent: float
    reference_ids: tuple[str, ...]
    recent_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What changed, over the last `requests` requests: the features that moved most, clusters that gained and lost."""

    requests: int
    features: tuple[FeatureChange, ...]
    gained: tuple[ClusterChange, ...]
    lost: tuple[ClusterChange, ...]


class RecentRequests:
    """Ids and clusters of the last requests of one stream, a few kB."""

    def __init__(self) -> None:
        self._kept: deque[tuple[str, int, int]] = deque(maxlen=REMEMBERED)

    def add(self, request_id: str, cluster: int, block: int) -> None:
        """Remember one."""
        self._kept.append((request_id, cluster, block))

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def to_json(self) -> list[list[Any]]:
        """Plain values."""
        return [list(kept) for kept in self._kept]

    def restore(self, stored: list[list[Any]]) -> None:
        """What `to_json` gave."""
        self._kept = deque(((str(i), int(c), int(b)) for i, c, b in stored), maxlen=REMEMBERED)

    def explain(self, reference: Reference, moved: Floats, requests: int, examples: int = 3) -> Explanation:
        """What changed.

        Args:
            reference: that the requests were located in.
            moved: of `DriftDetector.moved`.
            requests: the same; how many of the last requests are meant.
            examples: recent ids per cluster.

        """
        recent = list(self._kept)[-requests:]
        shares = self._expected(reference, recent)
        counts: dict[int, int] = {}
        for _id, cluster, _block in recent:
            counts[cluster] = counts.get(cluster, 0) + 1
        ranked = []
        total = max(len(recent), 1)
        for cluster, before in shares.items():
            error = (max(before * (1.0 - before), 1.0 / total) / total) ** 0.5
            ranked.append(((counts.get(cluster, 0) / total - before) / error, cluster))
        ranked.sort()

        def change(cluster: int) -> ClusterChange:
            newest = [request_id for request_id, own, _block in reversed(recent) if own == cluster]
            return ClusterChange(
                cluster=cluster,
                before_percent=100.0 * shares[cluster],
                now_percent=100.0 * counts.get(cluster, 0) / total,
                reference_ids=reference.example_ids[cluster],
                recent_ids=tuple(newest[:examples]),
            )

        lost = [cluster for errors, cluster in ranked[:MOST_CLUSTERS] if errors <= -LEAST_ERRORS]
        gained = [cluster for errors, cluster in reversed(ranked[-MOST_CLUSTERS:]) if errors >= LEAST_ERRORS]
        return Explanation(
            requests=len(recent),
            features=_features(reference, moved),
            gained=tuple(change(cluster) for cluster in gained),
            lost=tuple(change(cluster) for cluster in lost),
        )

    @staticmethod
    def _expected(reference: Reference, recent: list[tuple[str, int, int]]) -> Mapping[int, float]:
        """Share of each cluster by the reference, over the blocks of the day that the requests came in."""
        blocks = [block for _id, _cluster, block in recent] or [0]
        summed = sum(reference.blocks[block].cluster_share for block in blocks)
        return {cluster: float(share) / len(blocks) for cluster, share in enumerate(summed)}  # type: ignore[arg-type]


def _features(reference: Reference, moved: Floats) -> tuple[FeatureChange, ...]:
    names = reference.names or tuple(f"axis_{number}" for number in range(reference.coordinates - 1))
    order = sorted(range(len(moved)), key=lambda place: -abs(float(moved[place])))
    return tuple(FeatureChange((*names, DISTANCE)[place], float(moved[place])) for place in order[:MOST_FEATURES])
