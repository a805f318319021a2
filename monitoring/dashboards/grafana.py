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
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.dashboards.boards import LATENCY, OVERVIEW, QUALITY, ROLLOUT
from monitoring.dashboards.capacity import CAPACITY
from monitoring.dashboards.catalogue import PROMISED, known_series
from monitoring.dashboards.expressions import metric_names
from monitoring.dashboards.panels import MODELS_OF_NAMESPACE, Column, Dashboard, Panel, Row, Shape
from monitoring.rules.document import RUNBOOKS

FOLDER = Path(__file__).parent
WRITTEN = (OVERVIEW, ROLLOUT, LATENCY, QUALITY, CAPACITY)
"""The dashboards as they are meant, with panels whose metrics are still to come."""

Builder = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel

_CHOICES = ("${namespace:queryparam}", "${model:queryparam}")

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
            lines = timeseries.Panel().legend(legend.placement(common_model.LegendPlacement.BOTTOM)).tooltip(tooltip)
            limits = (
                common_model.GraphTresholdsStyleMode.LINE if panel.steps else common_model.GraphTresholdsStyleMode.OFF
            )
            return lines.thresholds_style(common.GraphThresholdsStyleConfig().mode(limits))
        case Shape.STAT:
            return stat.Panel().graph_mode(common_model.BigValueGraphMode.AREA)
        case Shape.NAMES:
            named = stat.Panel().text_mode(common_model.BigValueTextMode.NAME)
            return named.graph_mode(common_model.BigValueGraphMode.NONE)
        case Shape.BARS:
            bars = bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL)
            return bars.display_mode(common_model.BarGaugeDisplayMode.BASIC).min(0)
        case Shape.TABLE:
            return _table(panel)


def _table(panel: Panel) -> table.Panel:
    """A table of these columns: rows joined by their labels, the rest left out, names and values put into words."""
    titles = {c.source: c.title for c in panel.columns}
    built = table.Panel().show_header(True)
    for kind, options in (
        ("merge", {}),
        ("filterFieldsByName", {"include": {"names": list(titles)}}),
        ("organize", {"indexByName": {source: place for place, source in enumerate(titles)}, "renameByName": titles}),
    ):
        built = built.with_transformation(model.DataTransformerConfig(id_val=kind, options=options))
    for column in panel.columns:
        properties = _properties(column)
        if properties:
            built = built.override_by_name(column.title, properties)
    return built


def _properties(column: Column) -> list[model.DynamicConfigValue]:
    found: dict[str, object] = {}
    if column.unit is not None:
        found["unit"] = column.unit.value
    if column.words is not None:
        shown = {value: {"text": text, "color": colour} for value, (text, colour) in column.words.items()}
        found["mappings"] = [{"type": "value", "options": shown}]
    if column.steps:
        found["thresholds"] = {"mode": "absolute", "steps": [{"value": at, "color": c} for at, c in column.steps]}
    if column.words is not None or column.steps:
        found["custom.cellOptions"] = {"type": "color-text"}
    if column.link:
        found["links"] = [{"title": column.title, "url": column.link}]
    return [model.DynamicConfigValue(id_val=name, value=value) for name, value in found.items()]


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
        built = built.links([builder.DashboardLink(title).url(dashboard_url(uid)) for title, uid in panel.links])
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        target = target.instant() if panel.shape in (Shape.NAMES, Shape.BARS, Shape.TABLE) else target.range()
        if panel.columns:
            target = target.format(PromQueryFormat.TABLE)
        built = built.with_target(target.datasource(_SOURCE))
    return built


def dashboard_url(uid: str, *more: str) -> str:
    """Where a dashboard is, with the time range and the choices made at the top of this one."""
    return f"/d/{uid}?" + "&".join(("${__url_time_range}", "${datasource:queryparam}", *(more or _CHOICES)))


def _choice(name: str, label: str, query: str, regex: str) -> builder.QueryVariable:
    """A variable of which several values may be chosen, and all are at first."""
    choice = builder.QueryVariable(name).label(label).datasource(_SOURCE).multi(True).include_all(True)
    choice = choice.query(query).regex(regex)
    choice = choice.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return choice.current(model.VariableOption(selected=True, text="All", value="$__all"))


def _variables() -> tuple[builder.QueryVariable, ...]:
    """The namespace (on a cluster), and the models in it: all of them, when all are chosen."""
    namespace = _choice("namespace", "Namespace", "label_values(tidegate_rollout_info, model_namespace)", "")
    models = _choice("model", "Model", f"query_result({MODELS_OF_NAMESPACE})", '/model="([^"]+)"/')
    return namespace.all_value(".*"), models


def _annotations(dashboard: Dashboard) -> list[dict[str, object]]:
    """As Grafana's Prometheus data source reads them; the SDK's schema does not know how their time is told."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return [
        {"name": a.name, "datasource": source, "enable": True, "hide": False, "iconColor": a.colour, "expr": a.expr}
        | {"titleFormat": a.title, "textFormat": "", "tagKeys": "model,version", "useValueForTime": True, "step": "60s"}
        for a in dashboard.annotations
    ]


def build(dashboard: Dashboard) -> model.Dashboard:
    """Put a dashboard into Grafana's form."""
    built = builder.Dashboard(dashboard.title).uid(dashboard.uid).description(dashboard.text)
    built = built.tags(list(dashboard.tags)).time("now-3h", "now").refresh("30s").timezone("browser").readonly()
    built = built.tooltip(model.DashboardCursorSync.CROSSHAIR)
    built = built.with_variable(builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for variable in _variables():
        built = built.with_variable(variable)
    if dashboard.runbooks:
        asked = builder.TextBoxVariable("runbooks").label("Runbooks").default_value(RUNBOOKS)
        built = built.with_variable(asked)
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
    known = json.loads(json.dumps(model.Dashboard.from_json(plain), cls=JSONEncoder))
    known["annotations"] = {"list": _annotations(dashboard)}
    return json.dumps(known, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in WRITTEN:
        (FOLDER / f"{each.uid}.json").write_text(text(each), encoding="utf-8")
