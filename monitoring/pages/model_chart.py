"""The Model page's one chart: grids above each other on one axis of nights, with versions, rollbacks and requests drawn
through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from config.calendar import Interval
from monitoring.pages.model_axis import (
    LEFT,
    MARKS,
    Axis,
    Mark,
    Span,
    Stack,
    Tenure,
    numbers,
    plain,
    points,
)
from monitoring.pages.model_history import VOLUME, History
from monitoring.pages.page import Chart
from monitoring.performance import LABEL_SHARE

MOST_FEATURES = 40
_NULL_LINES = 5
_DOT = 3  # pixels
# Of a drift over its limit: below, near, beyond, far beyond.
STEPS = (0.7, 1.0, 2.0)


def time_lines(
    history: History,
    marks: Sequence[Mark],
    tenures: Sequence[Tenure],
    promises: Mapping[int, Mapping[str, float]],
    features: Sequence[str],
    *,
    periods: Sequence[tuple[str, Interval]],
    mature_until: date | None,
    unit: str,
    links: Mapping[str, str],
) -> Chart:
    """Everything about the nights of `history` on one axis.

    Args:
        promises: by version and output, the share of the baseline's error that its gate promised.
        features: to draw, worst first.
        periods: that are compared, by name, to be marked.
        mature_until: the newest night whose labels were judged; later ones are drawn as not yet known.
        unit: the label's.
        links: address of each night.
    """
    axis = Axis.of(history.nights)
    stack = Stack(axis, marks)
    _lane(stack, 3 if periods else 2)
    _heat_map(stack, history, features)
    for name, output in history.entry.outputs.items():
        _performance(
            stack,
            history,
            name,
            {version: ratios[name] for version, ratios in promises.items() if name in ratios},
            mature_until,
            output.metric_unit(unit),
        )
    _labels(stack, history, mature_until)
    _volume(stack, history)
    _nulls(stack, history)
    _spans(stack, tenures, periods)
    option = {
        **stack.option(linked_from=2),
        "visualMap": {
            "type": "piecewise",
            "seriesIndex": [i for i, s in enumerate(stack.series) if s["type"] == "heatmap"],
            "show": False,
            "dimension": 2,
            "pieces": [
                {"lt": STEPS[0], "color": "var:--heat-0"},
                {"gte": STEPS[0], "lte": STEPS[1], "color": "var:--heat-1"},
                {"gt": STEPS[1], "lte": STEPS[2], "color": "var:--heat-2"},
                {"gt": STEPS[2], "color": "var:--heat-3"},
            ],
        },
    }
    return Chart(
        "history",
        "What changed, and does it matter",
        option,
        _described(history, marks, features, mature_until),
        stack.top,
        links,
    )


def short_name(feature: str) -> str:
    """`<column> · <view>`: what differs stands first, where a narrow screen cuts."""
    view, _, column = feature.partition("__")
    return f"{column} · {view}" if column else feature


# ---- grids -------------------------------------------------------------------------------------------------------


def _lane(stack: Stack, rows: int) -> None:
    """What happened; `_spans` draws which version scored below it."""
    axis = stack.axis
    happened = [
        {
            "name": mark.text,
            "value": [axis.name_of(mark.night), 0.5],
            "symbol": MARKS[mark.kind][0],
            "itemStyle": {"color": MARKS[mark.kind][1]},
        }
        for mark in stack.marks
    ]
    series = {
        "type": "scatter",
        "name": "events",
        "symbolSize": 12,
        "data": happened,
        "tooltip": {"trigger": "item", "format": "name"},
    }
    y_axis = {
        "type": "value",
        "min": 0,
        "max": rows,
        "interval": 1,
        "axisLabel": {"show": False},
        "axisLine": {"show": False},
        "splitLine": {"show": False},
    }
    stack.grid("Versions and what happened", 20 * rows, y_axis, [series], lines=False)


def _spans(stack: Stack, tenures: Sequence[Tenure], periods: Sequence[tuple[str, Interval]]) -> None:
    """Which version scored, and above it the compared periods."""
    axis = stack.axis
    bands = []
    for place, tenure in enumerate(tenures):
        drawn = {
            "name": f"v{tenure.version}",
            "itemStyle": {"color": "var:--quiet-bg" if place % 2 else "var:--band"},
            "label": {"position": "inside", "color": "var:--ink", "fontSize": 10, "overflow": "truncate"},
        }
        bands.append(Span(axis.column_of(tenure.first), axis.column_of(tenure.last), 1, drawn))
    for name, interval in periods:
        if not (interval.end <= axis.nights[0] or interval.start > axis.nights[-1]):
            drawn = {
                "name": name,
                "itemStyle": {"color": "var:--late-bg", "borderColor": "var:--late", "borderWidth": 1},
                "label": {"position": "inside", "color": "var:--late", "fontSize": 10, "fontWeight": 600},
            }
            bands.append(Span(axis.column_of(interval.start), axis.column_of(interval.last), 2, drawn))
    stack.spans(0, bands)


def _heat_map(stack: Stack, history: History, features: Sequence[str]) -> None:
    if not features:
        return
    lines = history.drift
    # From below: the axis grows upwards, and the worst stands on top.
    shown = list(features)[::-1]
    matrix = [numbers(np.round(stack.axis.worst(lines[name].ratio), 2)) for name in shown]
    y_axis = {
        "type": "category",
        "data": [short_name(name) for name in shown],
        "axisTick": {"show": False},
        "axisLabel": {"interval": 0, "width": LEFT - 12, "overflow": "truncate"},
    }
    series = {
        "type": "heatmap",
        "name": "times its limit",
        "matrix": matrix,
        "tooltip": {"trigger": "item"},
        "progressive": 0,
    }
    more = f"{{small|the {len(shown)} worst of {len(lines)} features}}" if len(shown) < len(lines) else ""
    stack.grid(
        "Drift: value over its limit", max(14 * len(shown), 28), y_axis, [series], more=more, dates=True, lines=False
    )


def _performance(
    stack: Stack, history: History, output: str, promise: Mapping[int, float], mature_until: date | None, unit: str
) -> None:
    declared = history.entry.outputs[output]
    axis = stack.axis
    line, baseline = history.line(declared.gate, output), history.line(f"{declared.gate}_baseline", output)
    measured = axis.mean(line.value, line.n)
    lower, upper = axis.mean(line.lower, line.n), axis.mean(line.upper, line.n)
    base = {"type": "line", "symbol": "circle", "symbolSize": _DOT, "connectNulls": False}
    hidden = {
        "symbol": "none",
        "silent": True,
        "lineStyle": {"opacity": 0},
        "tooltip": {"show": False},
        "stack": f"band {output}",
    }
    series: list[dict[str, Any]] = [
        {
            **base,
            "name": f"{output}: {declared.gate}",
            "data": points(measured, _DOT),
            "itemStyle": {"color": "var:--series-1"},
            "lineStyle": {"width": 2},
            "z": 4,
        },
        {**base, **hidden, "name": "lower", "data": numbers(lower), "stackStrategy": "all"},
        {
            **base,
            **hidden,
            "name": "band",
            "data": numbers(upper - lower),
            "areaStyle": {"color": "var:--band", "opacity": 0.8},
            "stackStrategy": "all",
        },
    ]
    if np.isfinite(baseline.value).any():
        style = {"itemStyle": {"color": "var:--series-2"}, "lineStyle": {"type": "dashed", "width": 1.5}}
        series.append(
            {
                **base,
                "symbol": "none",
                "name": f"{output}: baseline",
                "data": numbers(axis.mean(baseline.value, baseline.n)),
                **style,
            }
        )
    versions = [history.scored[night].version if night in history.scored else None for night in history.nights]
    promised = np.array(
        [promise.get(version, math.nan) if version is not None else math.nan for version in versions], dtype=np.float64
    )
    promised *= baseline.value
    if np.isfinite(promised).any():
        style = {"itemStyle": {"color": "var:--series-3"}, "lineStyle": {"type": "dotted", "width": 2}}
        series.append(
            {
                **base,
                "symbol": "none",
                "step": "middle",
                "name": f"{output}: promised at the gate",
                "data": numbers(axis.mean(promised)),
                **style,
            }
        )
    _not_known(stack, history, series[0], np.isfinite(line.value), mature_until)
    more = f"{{small|{plain(unit)}{', ' if unit else ''}smaller is better}}"
    stack.grid(f"{output}: {declared.gate}", 120, {"type": "value", "scale": True}, series, more=more, dates=True)


def _not_known(
    stack: Stack,
    history: History,
    series: dict[str, Any],
    has_value: npt.NDArray[np.bool_],
    mature_until: date | None,
    *,
    said: bool = True,
) -> None:
    """Shade scored nights without a number: not mature yet, or judged without a result."""
    areas, begin = [], None
    for position in range(len(history.nights) + 1):
        night = history.nights[position] if position < len(history.nights) else None
        missing = night is not None and not has_value[position] and night in history.scored
        if missing and begin is None:
            begin = position
        elif not missing and begin is not None:
            first, last = history.nights[begin], history.nights[position - 1]
            waiting = mature_until is None or last > mature_until
            name = "not known yet" if waiting and said else ""
            style = {
                "color": "var:--quiet-bg",
                "opacity": 0.9,
                "borderColor": "var:--soft",
                "borderType": "dashed",
                "borderWidth": 1,
            }
            label = {
                "position": [-4, "100%"],
                "align": "right",
                "verticalAlign": "bottom",
                "color": "var:--soft",
                "fontSize": 10,
            }
            areas.append(
                [
                    {"xAxis": stack.axis.name_of(first), "name": name, "itemStyle": style, "label": label},
                    {"xAxis": stack.axis.name_of(last)},
                ]
            )
            begin = None
    if areas:
        series["markArea"] = {"silent": True, "data": areas}


def _labels(stack: Stack, history: History, mature_until: date | None) -> None:
    line = history.line(LABEL_SHARE)
    if not line.known.any() and not history.scored:
        return
    values = points(stack.axis.mean(line.value, line.n), _DOT)
    series: dict[str, Any] = {
        "type": "line",
        "symbol": "circle",
        "symbolSize": _DOT,
        "name": "rows whose label came",
        "data": values,
    }
    series |= {"itemStyle": {"color": "var:--series-4"}, "areaStyle": {"opacity": 0.2}}
    series["tooltip"] = {"format": "percent"}
    _not_known(stack, history, series, np.isfinite(line.value), mature_until, said=False)
    y_axis = {"type": "value", "min": 0, "max": 1, "interval": 0.5, "axisLabel": {"format": "percent"}}
    stack.grid("Share of rows whose label came", 44, y_axis, [series])


def _volume(stack: Stack, history: History) -> None:
    line = history.line(VOLUME)
    values = np.where(
        np.isfinite(line.value),
        line.value,
        [float(history.scored[n].rows) if n in history.scored else math.nan for n in history.nights],
    )
    bound = {
        "type": "line",
        "symbol": "none",
        "lineStyle": {"type": "dashed", "width": 1},
        "itemStyle": {"color": "var:--soft"},
    }
    series: list[dict[str, Any]] = [
        {
            "type": "line",
            "symbol": "circle",
            "symbolSize": _DOT,
            "name": "rows scored",
            "data": points(stack.axis.mean(values), _DOT, 6),
            "itemStyle": {"color": "var:--series-1"},
        }
    ]
    for name, bounds in (("fewest expected", line.lower), ("most expected", line.upper)):
        if np.isfinite(bounds).any():
            series.append({**bound, "name": name, "data": numbers(stack.axis.mean(bounds), 6)})
    stack.grid(
        "Rows scored",
        80,
        {"type": "value", "scale": True},
        series,
        more="{small|dashed: bounds from training}",
        dates=not history.nulls,
    )


def _nulls(stack: Stack, history: History) -> None:
    lines = history.nulls
    if not lines:
        return
    series: list[dict[str, Any]] = []
    for place, name in enumerate(worst_nulls(history)):
        values = points(stack.axis.worst(lines[name].value), _DOT)
        style = {"itemStyle": {"color": f"var:--series-{place + 1}"}, "lineStyle": {"width": 1.5}}
        series.append(
            {
                "type": "line",
                "symbol": "circle",
                "symbolSize": _DOT,
                "name": short_name(name),
                "data": values,
                "tooltip": {"format": "percent"},
                **style,
            }
        )
    title = f"Null rates, the {len(series)} highest of {len(lines)}" if len(series) < len(lines) else "Null rates"
    more = "   ".join(f"{{{place + 1}|{plain(s['name'])}}}" for place, s in enumerate(series))
    y_axis: dict[str, Any] = {"type": "value", "min": 0, "axisLabel": {"format": "percent"}}
    highest = max((float(np.nanmax(lines[name].value)) for name in worst_nulls(history)), default=0.0)
    if highest == 0:
        y_axis["max"] = 0.01  # an axis of zeros would end at 100 %
    elif highest > 0.8:
        y_axis["max"] = 1  # ECharts would go on to 120 %
    stack.grid(title, 90, y_axis, series, more=more, dates=True)


def worst_nulls(history: History) -> list[str]:
    """The features with the highest null rate of a night, at most five, highest first."""
    peaks = {
        name: float(np.nanmax(line.value)) for name, line in history.nulls.items() if np.isfinite(line.value).any()
    }
    return sorted(peaks, key=lambda name: (-peaks[name], name))[:_NULL_LINES]


def _described(history: History, marks: Sequence[Mark], features: Sequence[str], mature_until: date | None) -> str:
    """The chart in words."""
    said = [f"{len(history.scored)} of {len(history.nights)} nights were scored."]
    if features:
        beyond = sum(bool((history.drift[name].ratio > 1).any()) for name in history.drift)
        said.append(
            f"{beyond} of {len(history.drift)} features lay beyond their drift limit in some night; worst is "
            f"{features[0]}."
        )
    said.append(f"Labels are judged up to {mature_until}." if mature_until else "No labels are judged yet.")
    happened = [f"{mark.night}: {mark.text}" for mark in marks]
    more = ["and more"] if len(happened) > 12 else []
    said.append(f"{'; '.join([*happened[:12], *more])}." if happened else "No version changed.")
    return " ".join(said)
