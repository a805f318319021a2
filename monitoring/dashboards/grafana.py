"""Dashboards in Grafana's form, by its foundation SDK: `python -m monitoring.dashboards.grafana` renews the files here.

The JSON files are part of the package, so nothing at run time needs the SDK, which is a tool for developers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

from monitoring.dashboards.boards import LATENCY, OVERVIEW, QUALITY, ROLLOUT
from monitoring.dashboards.capacity import CAPACITY
from monitoring.dashboards.catalogue import PROMISED, known_series
from monitoring.dashboards.expressions import metric_names
from monitoring.dashboards.panels import Dashboard, Panel, Row, Shape

FOLDER = Path(__file__).parent
WRITTEN = (OVERVIEW, ROLLOUT, LATENCY, QUALITY, CAPACITY)
"""The dashboards as they are meant, with panels whose metrics are still to come."""

Builder = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel

_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def waits_for(panel: Panel) -> frozenset[str]:
    """The promised metrics that a panel needs and nobody exports yet."""
    named = frozenset(name for query in panel.queries for name in metric_names(query.expr))
    return named & known_series(PROMISED)


def _shown(row: Row) -> Row:
    return replace(row, panels=tuple(p for p in row.panels if not waits_for(p)))


def shown(dashboard: Dashboard) -> Dashboard:
    """The dashboard without panels whose metrics don't exist yet, and without rows that are empty then."""
    rows = (_shown(row) for row in dashboard.rows)
    return replace(dashboard, rows=tuple(row for row in rows if row.panels))


def left_out() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(dashboard, panel, metrics that it waits for) of every panel that is left out."""
    return tuple((d.title, p.title, tuple(sorted(waits_for(p)))) for d in WRITTEN for p in d.panels if waits_for(p))


def _empty(panel: Panel) -> Builder:
    match panel.shape:
        case Shape.LINES:
            legend = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.LIST).show_legend(True)
            tooltip = common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI)
            return timeseries.Panel().legend(legend.placement(common_model.LegendPlacement.BOTTOM)).tooltip(tooltip)
        case Shape.STAT:
            return stat.Panel().graph_mode(common_model.BigValueGraphMode.AREA)
        case Shape.NAMES:
            named = stat.Panel().text_mode(common_model.BigValueTextMode.NAME)
            return named.graph_mode(common_model.BigValueGraphMode.NONE)
        case Shape.BARS:
            bars = bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL)
            return bars.display_mode(common_model.BarGaugeDisplayMode.BASIC).min(0)
        case Shape.TABLE:
            return table.Panel().show_header(True)


def _panel(panel: Panel, number: int) -> Builder:
    built = _empty(panel).id(number).title(panel.title).description(panel.text).datasource(_SOURCE)
    built = built.height(panel.height).span(panel.width).unit(panel.unit.value)
    if panel.shape in (Shape.STAT, Shape.NAMES):
        built = built.no_value("none")
    if panel.most is not None:
        built = built.max(panel.most)
    if panel.steps:
        steps = [model.Threshold(value=at, color=colour) for at, colour in panel.steps]
        built = built.thresholds(builder.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.links:
        built = built.links([builder.DashboardLink(t).url(f"/d/{uid}?${{__url_time_range}}") for t, uid in panel.links])
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        target = target.instant() if panel.shape in (Shape.NAMES, Shape.BARS, Shape.TABLE) else target.range()
        built = built.with_target(target.datasource(_SOURCE))
    return built


def _model_variable() -> builder.QueryVariable:
    choice = builder.QueryVariable("model").label("Model").datasource(_SOURCE).multi(True).include_all(True)
    choice = choice.query("label_values(tidegate_revision_info, model)").all_value(".*")
    choice = choice.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return choice.current(model.VariableOption(selected=True, text="All", value="$__all"))


def build(dashboard: Dashboard) -> model.Dashboard:
    """Put a dashboard into Grafana's form."""
    built = builder.Dashboard(dashboard.title).uid(dashboard.uid).description(dashboard.text)
    built = built.tags(list(dashboard.tags)).time("now-3h", "now").refresh("30s").timezone("browser").readonly()
    built = built.tooltip(model.DashboardCursorSync.CROSSHAIR)
    built = built.with_variable(builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    if dashboard.models:
        built = built.with_variable(_model_variable())
    links = builder.DashboardLink("Tidegate").type(model.DashboardLinkType.DASHBOARDS).tags(list(dashboard.tags))
    built = built.link(links.as_dropdown(True).include_vars(True).keep_time(True))
    number = 0
    for row in dashboard.rows:
        number += 1
        built = built.with_row(builder.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            built = built.with_panel(_panel(panel, number))
    return built.build()


def text(dashboard: Dashboard) -> str:
    """The file of a dashboard, in the form that Grafana's schema gives back when it has read it."""
    register_default_plugins()
    plain = json.loads(json.dumps(build(shown(dashboard)), cls=JSONEncoder))
    return json.dumps(model.Dashboard.from_json(plain), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in WRITTEN:
        (FOLDER / f"{each.uid}.json").write_text(text(each), encoding="utf-8")
