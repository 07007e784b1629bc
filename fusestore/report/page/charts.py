"""The page's charts: Vega-Lite specifications, drawn as SVG without a browser.

Colors are CSS variables of the page, so that a chart follows its light and dark theme.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from fusestore.errors import MissingDependencyError
from fusestore.forecast.forecast import Forecast
from fusestore.report.learning_curves import LearningCurve
from fusestore.report.page.content import (
    AlignmentReport,
    Histogram,
    ReportArtifact,
    SourceReport,
)

WIDTH = 330
"""Pixels of a chart's data: with its labels it fits a phone without becoming much smaller."""

NUM_COLORS = 6

_COLORS = [f"var(--c{number})" for number in range(NUM_COLORS)]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3]]
KINDS = ("span", "inside", "mined", "none")
"""Alignment kinds in the order in which they are shown."""

_CONFIG = {
    "aria": False,
    "mark": {"aria": False},
    "background": None,
    # A browser's letters may be wider than those by which the labels' room was measured.
    "padding": {"left": 24, "right": 16, "top": 4, "bottom": 4},
    "font": "sans-serif",
    "view": {"stroke": None},
    "bar": {"color": "var(--c0)"},
    "text": {"fill": "var(--text)", "fontSize": 12},
    "axis": {
        "aria": False,
        "labelColor": "var(--text)",
        "titleColor": "var(--text)",
        "gridColor": "var(--line)",
        "domainColor": "var(--muted)",
        "tickColor": "var(--muted)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
    },
    "header": {
        "labelColor": "var(--text)",
        "labelFontSize": 12,
        "labelAnchor": "start",
        "labelOrient": "top",
        "title": None,
    },
    "legend": {
        "aria": False,
        "labelColor": "var(--text)",
        "title": None,
        "orient": "top",
        "labelFontSize": 12,
        "columns": 2,
        "labelLimit": WIDTH,
        "symbolStrokeWidth": 2,
        "symbolSize": 200,
    },
    "range": {"category": _COLORS},
}


def check_charts() -> None:
    """Check that charts can be drawn.

    Raises:
        MissingDependencyError: the package that draws them is not installed.
    """
    try:
        importlib.import_module("vl_convert")
    except ImportError as error:
        raise MissingDependencyError(
            "The charts of the page are drawn by the package vl-convert-python, which is not "
            "installed. Run `pip install 'fusestore[report]'`."
        ) from error


def score_chart(sources: Sequence[SourceReport]) -> str:
    """Bits per byte of each source on each split."""
    values = [
        {"source": source.cache, "split": score.split, "bits": score.bits_per_byte}
        for source in sources
        for score in source.scores
    ]
    y = {"field": "source", "type": "nominal", "title": None, "sort": None}
    return _draw(
        values,
        {
            "facet": {"row": {"field": "split", "type": "nominal"}},
            "spec": _bars_with_numbers(y, "bits", "bits per byte"),
        },
    )


def histogram_chart(histograms: Mapping[str, Histogram], title: str, *, log: bool = False) -> str:
    """The shares of rows by a number, a panel for each source."""
    values = [
        {"source": source, "from": low, "to": high, "share": share}
        for source, histogram in histograms.items()
        for low, high, share in zip(
            histogram.edges[:-1], histogram.edges[1:], histogram.shares, strict=True
        )
    ]
    scale = {"type": "log", "base": 2} if log else {"zero": True}
    axis = {"format": "~g"} if log else {"format": "%", "tickCount": 6}
    x = {"field": "from", "type": "quantitative", "title": title, "scale": scale, "axis": axis}
    y = {
        "field": "share",
        "type": "quantitative",
        "title": "share of rows",
        "axis": {"format": "%", "tickCount": 3},
    }
    return _draw(
        values,
        {
            "facet": {"row": {"field": "source", "type": "nominal", "sort": None}},
            "spec": {
                "width": WIDTH,
                "height": 70,
                "mark": {
                    "type": "rect",
                    "color": "var(--c0)",
                    "stroke": "var(--back)",
                    "strokeWidth": 0.5,
                },
                "encoding": {"x": x, "x2": {"field": "to"}, "y": y, "y2": {"datum": 0}},
            },
        },
    )


def coverage_chart(alignments: Sequence[AlignmentReport]) -> str:
    """Shares of target positions by alignment kind, a bar for each alignment."""
    values = [
        {"alignment": each.alignment, "kind": kind, "share": share, "order": KINDS.index(kind)}
        for each in alignments
        for kind, share in each.coverage.items()
        if kind in KINDS
    ]
    return _draw(
        values,
        {
            "width": WIDTH,
            "height": {"step": 26},
            "mark": {"type": "bar", "stroke": "var(--back)", "strokeWidth": 2},
            "encoding": {
                "y": {"field": "alignment", "type": "nominal", "title": None},
                "x": {
                    "field": "share",
                    "type": "quantitative",
                    "title": "share of target tokens",
                    "axis": {"format": "%", "tickCount": 6},
                    "scale": {"domain": [0, 1]},
                },
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {
                        "domain": list(KINDS),
                        "range": [*_COLORS[: len(KINDS) - 1], "var(--muted)"],
                    },
                },
                "order": {"field": "order", "type": "quantitative"},
            },
        },
    )


def forecast_chart(forecast: Forecast) -> str:
    """Bits per byte of sources and mixtures over the positions that all may supervise."""
    values = [
        {"name": each.cache, "what": "one source", "bits": each.alone.common_bits_per_byte}
        for each in forecast.sources
    ]
    best: dict[tuple[str, str], float] = {}
    for mixture in forecast.strategies:
        if mixture.common_bits_per_byte is not None:
            sees = (
                "a mixture"
                if mixture.sees == "nothing"
                else f"a mixture that sees the {mixture.sees}"
            )
            name = " by ".join(
                filter(None, [mixture.strategy, mixture.granularity or mixture.fit_by])
            )
            key = (name, sees)
            best[key] = min(mixture.common_bits_per_byte, best.get(key, float("inf")))
    values += [{"name": name, "what": what, "bits": bits} for (name, what), bits in best.items()]
    values = [value for value in values if value["bits"] is not None]
    y = {"field": "name", "type": "nominal", "title": None, "sort": {"field": "bits"}}
    spec = _bars_with_numbers(y, "bits", "bits per byte, on the positions common to all sources")
    spec["encoding"]["color"] = {"field": "what", "type": "nominal", "legend": {"columns": 1}}
    return _draw(values, spec)


def curves_chart(curves: Sequence[LearningCurve]) -> str:
    """Held-out bits per byte by training tokens, a line for each run."""
    values = [
        {"run": curve.title, "tokens": tokens, "bits": bits}
        for curve in curves
        for tokens, bits in curve.points
    ]
    titles = [curve.title for curve in curves]
    line = {
        "field": "run",
        "type": "nominal",
        "sort": titles,
        "legend": {"columns": 1, "symbolType": "stroke"},
    }
    dashes = [_DASHES[number % len(_DASHES)] for number in range(len(titles))]
    return _draw(
        values,
        {
            "width": WIDTH,
            "height": 220,
            "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 24}},
            "encoding": {
                "x": {
                    "field": "tokens",
                    "type": "quantitative",
                    "title": "training tokens",
                    "axis": {"format": "~s", "tickCount": 6},
                },
                "y": {
                    "field": "bits",
                    "type": "quantitative",
                    "title": "held-out bits per byte",
                    "scale": {"zero": False},
                },
                # Scales of one domain share a legend.
                "color": {**line, "scale": {"domain": titles}},
                "strokeDash": {**line, "scale": {"domain": titles, "range": dashes}},
            },
        },
    )


def storage_chart(artifacts: Sequence[ReportArtifact]) -> str:
    """Bytes of each artifact, the largest first."""
    values = [{"artifact": each.artifact, "bytes": each.num_bytes} for each in artifacts]
    y = {
        "field": "artifact",
        "type": "nominal",
        "title": None,
        "sort": None,
    }
    return _draw(values, _bars_with_numbers(y, "bytes", "bytes", number="~s", digits=".3~s"))


def _bars_with_numbers(
    y: dict[str, Any], field: str, title: str, *, number: str = "~g", digits: str = ".4f"
) -> dict[str, Any]:
    x = {
        "field": field,
        "type": "quantitative",
        "title": title,
        "axis": {"format": number, "tickCount": 5},
    }
    text = {"field": field, "type": "quantitative", "format": digits}
    return {
        "width": WIDTH - 60,
        "height": {"step": 24},
        "encoding": {"y": y, "x": x},
        "layer": [
            {"mark": {"type": "bar"}},
            {
                "mark": {"type": "text", "align": "left", "dx": 4},
                "encoding": {"text": text, "color": {"value": "var(--text)"}},
            },
        ],
    }


def _draw(values: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> str:
    check_charts()
    import vl_convert

    whole = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "config": _CONFIG,
        "data": {"values": list(values)},
        **spec,
    }
    # Data is inline: nothing may be fetched.
    return vl_convert.vegalite_to_svg(whole, allowed_base_urls=[])
