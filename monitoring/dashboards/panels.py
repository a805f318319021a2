"""The few kinds of panel that the dashboards are made of, as plain values, and their form for Grafana.

What a dashboard shows is written as `Panel` values; `grafana` alone knows Grafana's schema (its foundation SDK, which
is needed to generate the files and not to use them).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

VARIABLE_MODEL = 'model=~"$model"'
"""The matcher that follows the choice at the top of a dashboard."""

MODELS_OF_NAMESPACE = (
    'max by (model) (tidegate_rollout_info{model_namespace=~"$namespace"}) '
    "or max by (model) (tidegate_revision_info unless on (model) tidegate_rollout_info)"
)
"""Which models there are to choose from; where no controller tells of them, those that gateways know."""


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
    AGE = "dateTimeFromNow"
    """Of milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        source: A label, or `Value #A` for the values of the first query, `Value #B` for those of the second.
        title: Above it.
        unit: Of values.
        words: What to show in place of a label's values, and in which colour.
        steps: Colours by value, as of a panel.
        link: Where a click on a cell leads; `${__value.raw}` stands for what is in it.
    """

    source: str
    title: str
    unit: Unit | None = None
    words: Mapping[str, tuple[str, str]] | None = None
    steps: tuple[tuple[float | None, str], ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Something that happened, as a mark on every graph: its time is the value, in milliseconds since the epoch."""

    name: str
    expr: str
    colour: str
    title: str
    """With `{{label}}`."""


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
    columns: tuple[Column, ...] = ()
    """Of a table: these, in this order, and no others. Rows of several queries are joined by the labels they share."""


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
    annotations: tuple[Annotation, ...] = ()
    runbooks: bool = False
    """Whether it asks where the runbooks are."""
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
