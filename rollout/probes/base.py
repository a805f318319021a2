"""The port to reports of bias probes: the last one of each version, wherever the probes ran and whoever leads."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

KEPT = 100
"""Versions of a model whose reports are kept, those that were probed last."""

Name = Annotated[str, StringConstraints(max_length=64)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class GapReport(BaseModel):
    """One line of a report; see `monitoring.bias_probes.Gap`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    attribute: Name
    measure: Name
    pairs: Annotated[int, Field(ge=0)]
    mean: Number
    p_value: Number
    found: bool


class ProbeReport(BaseModel):
    """What the probes showed of a version. No answer is in it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Annotated[str, StringConstraints(max_length=63)]
    version: Annotated[str, StringConstraints(max_length=255)]
    at: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    languages: Annotated[tuple[Name, ...], Field(max_length=16)]
    pairs: Annotated[int, Field(ge=0)]
    unanswered: Annotated[int, Field(ge=0)]
    gaps: Annotated[tuple[GapReport, ...], Field(max_length=256)]

    @property
    def found(self) -> tuple[GapReport, ...]:
        """The gaps that are no chance."""
        return tuple(gap for gap in self.gaps if gap.found)


class ProbeReports(Protocol):
    """Keeps reports. Blocking; both may raise `EventLogUnavailable`, and may be tried again."""

    def load(self, model: str, version: str) -> ProbeReport | None:
        """A version's last report, None without one."""
        ...

    def save(self, report: ProbeReport) -> None:
        """Keep a report, unless a later one of its version is there; after this returns it survives a crash.

        Of each model the `KEPT` that were probed last are kept.
        """
        ...
