"""Writes Espalier's Grafana dashboards as JSON: `python deploy/grafana/generate.py [FOLDER]`.

The dashboards are code so that a metric's new name is changed in one place and a review can read it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import AnnotationQuery, Dashboard
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, VisibilityMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from graphs import DASHBOARDS, JOB, Graph

DATASOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


def panel(graph: Graph) -> Panel:
    """The graph as Grafana's time series."""
    built = (
        Panel()
        .title(graph.title)
        .description(graph.description)
        .datasource(DATASOURCE)
        .unit(graph.unit)
        .min(0)
        .span(12)
        .height(8)
        .fill_opacity(8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
    )
    for number, query in enumerate(graph.queries):
        target = Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        built = built.with_target(target.datasource(DATASOURCE))
    return built


def dashboard(name: str) -> str:
    """One dashboard as the JSON that Grafana provisions, swaps marked on every panel."""
    title, graphs = DASHBOARDS[name]
    swaps = (
        AnnotationQuery()
        .name("Swaps")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("purple")
        .expr(f"sum by (instance, outcome) (changes(espalier_swaps_total{{{JOB}}}[1m])) > 0")
    )
    built = (
        Dashboard(title)
        .uid(f"espalier-{name}")
        .tags(["espalier"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .readonly()
        .annotation(swaps)
    )
    for number, graph in enumerate(graphs(), start=1):
        built = built.with_panel(panel(graph).id(number))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main(folder: Path) -> None:
    """Writes every dashboard into the folder."""
    for name in DASHBOARDS:
        (folder / f"{name}.json").write_text(dashboard(name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
