"""Reports of bias probes that last as long as the process: for tests."""

from __future__ import annotations

from rollout.probes.base import KEPT, ProbeReport


class MemoryProbeReports:
    """See `ProbeReports`."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], ProbeReport] = {}

    def load(self, model: str, version: str) -> ProbeReport | None:
        """See `ProbeReports.load`."""
        return self._reports.get((model, version))

    def save(self, report: ProbeReport) -> None:
        """See `ProbeReports.save`."""
        place = (report.model, report.version)
        before = self._reports.get(place)
        if before is None or report.at >= before.at:
            self._reports[place] = report
        own = sorted((r for r in self._reports.values() if r.model == report.model), key=lambda r: (-r.at, r.version))
        for old in own[KEPT:]:
            del self._reports[old.model, old.version]
