"""The few kinds of panel that the dashboards are made of, as plain values, and their form for Grafana.

What a dashboard shows is written as `Panel` values; `grafana` alone knows Grafana's schema (its foundation SDK, which
is needed to generate the files and not to use them).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

VARIABLE_MODEL = 'model=~"$model"'
"""The matcher that follows the choice at the top of a dashboard."""


class Shape(enum.StrEnum):
    """How a panel looks."""

    LINES = "lines"
    STAT = "stat"
    """One number with its trend."""
    NAMES = "names"
    """The legends alone: for facts whose value is always 1."""
    BARS = "bars"
    """A bar per series from 0 to 1."""
    TABLE = "table"


class Unit(enum.StrEnum):
    """Grafana's names of units."""

    RATIO = "percentunit"
    SECONDS = "s"
    PER_SECOND = "reqps"
    TOKENS_PER_SECOND = "tokens/s"
    COUNT = "short"
    BYTES = "bytes"
    MEBIBYTES = "mbytes"
    CELSIUS = "celsius"
    WATT = "watt"
    PERCENT = "percent"
    BYTES_PER_SECOND = "Bps"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `width` is of 24 columns; `steps` are (from this value on, colour), the first from nothing on."""

    title: str
    text: str
    queries: tuple[Query, ...]
    shape: Shape = Shape.LINES
    unit: Unit = Unit.COUNT
    width: int = 8
    height: int = 7
    steps: tuple[tuple[float | None, str], ...] = ()
    most: float | None = None
    links: tuple[tuple[str, str], ...] = ()
    """(title, uid of a dashboard) of where to go on."""


@dataclass(frozen=True, slots=True)
class Row:
    """A heading with panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    models: bool = True
    """Whether it can be narrowed to some models."""
    tags: tuple[str, ...] = field(default=("tidegate",))

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels in their order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def with_role(expression: str, role: str) -> str:
    """Only the series of versions that have this role now. Roles change, so they are joined and not labels."""
    return f'{expression} and on (model, version) tidegate_revision_info{{{VARIABLE_MODEL},role="{role}"}}'


def by_role(expression: str, *, others: bool = False) -> tuple[Query, ...]:
    """An expression by model and version, once for stable and once for the canary."""
    roles = ("stable", "canary", *(("draining",) if others else ()))
    return tuple(Query(with_role(expression, role), f"{{{{model}}}} {role} {{{{version}}}}") for role in roles)
