"""All workloads of a cluster as one port: those that are ours to run, and those that somebody else runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from rollout.workloads.base import Workload, WorkloadPort, WorkloadStatus


class ClusterWorkloads:
    """Hands each workload to the adapter that it belongs to; what one can't tell, both can't tell."""

    def __init__(self, ours: WorkloadPort, referred: WorkloadPort) -> None:
        """Take the two adapters."""
        self._ours = ours
        self._referred = referred

    async def apply(self, desired: Sequence[Workload]) -> None:
        """See `WorkloadPort`. Neither holds up the other."""
        ours = [w for w in desired if w.engine.workload_ref is None]
        theirs = [w for w in desired if w.engine.workload_ref is not None]
        results = await asyncio.gather(self._ours.apply(ours), self._referred.apply(theirs), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def observe(self) -> Mapping[str, WorkloadStatus]:
        """See `WorkloadPort`."""
        ours, theirs = await asyncio.gather(self._ours.observe(), self._referred.observe())
        return {**ours, **theirs}

    async def shortage(self, wanted: Workload) -> str:
        """See `WorkloadPort`."""
        return await (self._ours if wanted.engine.workload_ref is None else self._referred).shortage(wanted)

    async def close(self) -> None:
        """See `WorkloadPort`."""
        await asyncio.gather(self._ours.close(), self._referred.close())
