"""How many replicas a load asks for: the policy that Ray Serve's autoscaler calls on a cluster.

Ray counts the requests that pass its handles and proxies, and none of ours does: gateways dial the engines. So each
replica tells what runs and waits in its engine (`record_autoscaling_stats`), and this policy adds it up.
"""

from __future__ import annotations

import math
from typing import Any

LOAD = "engine_requests"
"""The name under which replicas tell their load."""


class ReplicasForLoad:
    """One replica for every so many requests; Serve keeps the result within its bounds.

    It falls by one replica at a time, since what is taken away comes back only after its weights are loaded.
    """

    def __init__(self, per_replica: int = 32) -> None:
        """Take the number of requests that one replica is meant to have."""
        self._per_replica = per_replica

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401 - Ray's AutoscalingContext
        """The number of replicas wanted now, and no state to be kept."""
        told = (ctx.aggregated_metrics or {}).get(LOAD) or {}
        if not told:  # nobody has told yet, which is not the same as no load
            return ctx.target_num_replicas, {}
        wanted = math.ceil(sum(told.values()) / self._per_replica)
        return max(wanted, ctx.target_num_replicas - 1, ctx.capacity_adjusted_min_replicas), {}
