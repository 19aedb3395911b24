"""The Model page's one chart: grids above each other on one axis of nights, with versions, rollbacks and requests drawn through all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from config.calendar import Interval
from config.catalog import BinaryOutput
from monitoring.pages.model_history import VOLUME, Floats, History
from monitoring.pages.page import Chart
from monitoring.performance import LABEL_SHARE

MOST_FEATURES = 40
MOST_COLUMNS = 400  # of the axis; longer periods are drawn with several nights in one
_NULL_LINES = 5
_LEFT, _NARROW_LEFT, _RIGHT = 196, 86, 14
_TITLE, _DATES, _GAP = 22, 22, 12
# Of a drift over its limit: below, near, beyond, far beyond.
STEPS = (0.7, 1.0, 2.0)


@dataclass(frozen=True)
class Mark:
    """Something that happened on a night.

    Attributes:
        kind: promotion, rollback or request.
        short: two or three letters beside the line, empty for none.
        text: what is said where one points at it.
    """

    night: date
    kind: str
    short: str
    text: str


@dataclass(frozen=True)
class Reign:
    """Nights that one version scored."""

    version: int
    first: date
    last: date


@dataclass(frozen=True)
class Axis:
    """Nights of a period as columns: one each, or, of a long period, several together."""

    nights: tuple[date, ...]
    size: int

    @classmethod
    def of(cls, nights: Sequence[date]) -> Axis:
        """As few nights a column as fit."""
        return cls(tuple(nights), max(1, math.ceil(len(nights) / MOST_COLUMNS)))

    @property
    def starts(self) -> range:
        return range(0, len(self.nights), self.size)

    @property
    def names(self) -> list[str]:
        """The first night of each column."""
        return [self.nights[i].isoformat() for i in self.starts]

    def name_of(self, night: date) -> str:
        """The column that holds a night, the nearest one for a night outside."""
        position = min(max((night - self.nights[0]).days, 0), len(self.nights) - 1)
        return self.nights[position - position % self.size].isoformat()

    def mean(self, values: Floats, weights: Floats | None = None) -> Floats:
        """Of each column's nights with a value, weighted by rows where they are given."""
        if self.size == 1:
            return values
        there = np.isfinite(values)
        weight = np.where(there, 1.0 if weights is None else np.nan_to_num(weights, nan=1.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.add.reduceat(np.where(there, values, 0.0) * weight, list(self.starts)) / np.add.reduceat(weight, list(self.starts))

    def worst(self, values: Floats) -> Floats:
        """The largest of each column's nights."""
        if self.size == 1:
            return values
        found = np.maximum.reduceat(np.where(np.isfinite(values), values, -np.inf), list(self.starts))
        return np.where(np.isfinite(found), found, np.nan)


@dataclass
class _Stack:
    """Grids as they are put below each other."""

    axis: Axis
    marks: Sequence[Mark]
    top: int = 4
    grids: list[dict[str, Any]] = field(default_factory=list)
    titles: list[dict[str, Any]] = field(default_factory=list)
    x_axes: list[dict[str, Any]] = field(default_factory=list)
    y_axes: list[dict[str, Any]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)

    def grid(self, title: str, height: int, y_axis: Mapping[str, Any], series: Sequence[dict[str, Any]], *, dates: bool = False, lines: bool = True) -> None:
        """One grid more. `dates`: nights stand below it; `lines`: its values are read off along the axis."""
        index = len(self.grids)
        if title:
            self.titles.append({"text": title, "top": self.top, "left": 0, "textStyle": {"fontSize": 12, "color": "var:--soft", "fontWeight": 600}})
            self.top += _TITLE
        self.grids.append({"top": self.top, "height": height, "left": _LEFT, "right": _RIGHT})
        self.x_axes.append(
            {
                "gridIndex": index,
                "type": "category",
                "data": self.axis.names,
                "axisTick": {"show": False},
                "axisLabel": {"show": dates, "hideOverlap": True, "fontSize": 11},
                "axisPointer": {"show": lines},
                "splitLine": {"show": False},
            }
        )
        self.y_axes.append({"gridIndex": index, "splitNumber": 3, **y_axis, "axisLabel": {"fontSize": 11, **y_axis.get("axisLabel", {})}})
        own = [{"xAxisIndex": index, "yAxisIndex": index, **s} for s in series]
        if own and title:
            own[0]["markLine"] = self._mark_lines()
        self.series += own
        self.top += height + (_DATES if dates else 0) + _GAP

    def _mark_lines(self) -> dict[str, Any]:
        """A line for every mark; versions are named on each grid, requests on the lane above alone."""
        data = []
        for mark in self.marks:
            colour = _MARKS[mark.kind][1]
            label = {"show": bool(mark.short), "formatter": mark.short, "position": "insideEndTop", "rotate": 0, "fontSize": 10, "color": colour, "distance": [3, 2]}
            line = {"color": colour, "type": "dotted" if mark.kind == "request" else "solid", "width": 1}
            data.append({"xAxis": self.axis.name_of(mark.night), "label": label, "lineStyle": line})
        return {"silent": True, "symbol": "none", "animation": False, "data": data}


# Symbol and colour of each kind of mark.
_MARKS = {"promotion": ("triangle", "var:--link"), "rollback": ("path://M0,0 L10,0 L5,9 Z", "var:--bad"), "request": ("diamond", "var:--late")}


def time_lines(
    history: History,
    marks: Sequence[Mark],
    reigns: Sequence[Reign],
    promises: Mapping[str, Mapping[int, float]],
    features: Sequence[str],
    *,
    periods: Sequence[tuple[str, Interval]],
    mature_until: date | None,
    links: Mapping[str, str],
) -> Chart:
    """Everything about the nights of `history` on one axis.

    Args:
        promises: by output and version, its error on the gate's test nights.
        features: to draw, worst first.
        periods: that are compared, by name, to be marked.
        mature_until: the newest night whose labels were judged; later ones are drawn as not yet known.
        links: address of each night.
    """
    axis = Axis.of(history.nights)
    stack = _Stack(axis, marks)
    _lane(stack, reigns, periods)
    _heat_map(stack, history, features)
    for name in history.entry.outputs:
        _performance(stack, history, name, promises.get(name, {}), mature_until)
    _labels(stack, history, mature_until)
    _volume(stack, history)
    _nulls(stack, history)
    narrow = {
        "grid": [{"left": _NARROW_LEFT, "right": 6} for _ in stack.grids],
        "yAxis": [{"axisLabel": {"width": _NARROW_LEFT - 10, "overflow": "truncate", "fontSize": 10}} for _ in stack.y_axes],
        "title": [{"textStyle": {"fontSize": 11}} for _ in stack.titles],
    }
    option = {
        "columnLinks": True,
        "grid": stack.grids,
        "title": stack.titles,
        "xAxis": stack.x_axes,
        "yAxis": stack.y_axes,
        "series": stack.series,
        "tooltip": {"trigger": "axis"},
        "axisPointer": {"link": [{"xAxisIndex": list(range(2, len(stack.x_axes)))}]},
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
        "media": [{"query": {"maxWidth": 640}, "option": narrow}, {"option": _wide(stack)}],
    }
    return Chart("history", "What changed, and does it matter", option, _described(history, marks, features, mature_until), stack.top, links)


def _wide(stack: _Stack) -> dict[str, Any]:
    """What the narrow layout changes, as it is on a wide screen: a turned telephone goes back to it."""
    return {
        "grid": [{"left": _LEFT, "right": _RIGHT} for _ in stack.grids],
        "yAxis": [{"axisLabel": {"width": _LEFT - 12, "overflow": "truncate", "fontSize": 11}} for _ in stack.y_axes],
        "title": [{"textStyle": {"fontSize": 12}} for _ in stack.titles],
    }


def _numbers(values: Floats, digits: int = 4) -> list[float | None]:
    """To so many digits that count; None for what is not there."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def short_name(feature: str) -> str:
    """`<column> · <view>`: what differs stands first, where a narrow screen cuts."""
    view, _, column = feature.partition("__")
    return f"{column} · {view}" if column else feature


# ---- grids -------------------------------------------------------------------------------------------------------


def _lane(stack: _Stack, reigns: Sequence[Reign], periods: Sequence[tuple[str, Interval]]) -> None:
    """Which version scored, what happened, and the compared periods."""
    axis = stack.axis
    bands = [
        [
            {
                "xAxis": axis.name_of(reign.first),
                "yAxis": 1,
                "name": f"v{reign.version}",
                "itemStyle": {"color": "var:--quiet-bg" if place % 2 else "var:--band"},
                "label": {"position": "inside", "color": "var:--ink", "fontSize": 10, "overflow": "truncate"},
            },
            {"xAxis": axis.name_of(reign.last), "yAxis": 2},
        ]
        for place, reign in enumerate(reigns)
    ]
    for name, interval in periods:
        if not (interval.end <= axis.nights[0] or interval.start > axis.nights[-1]):
            label = {"position": "inside", "color": "var:--late", "fontSize": 10, "fontWeight": 600}
            style = {"color": "var:--late-bg", "borderColor": "var:--late", "borderWidth": 1}
            bands.append(
                [
                    {"xAxis": axis.name_of(interval.start), "yAxis": 2, "name": name, "itemStyle": style, "label": label},
                    {"xAxis": axis.name_of(interval.last), "yAxis": 3},
                ]
            )
    points = [
        {"name": mark.text, "value": [axis.name_of(mark.night), 0.5], "symbol": _MARKS[mark.kind][0], "itemStyle": {"color": _MARKS[mark.kind][1]}}
        for mark in stack.marks
    ]
    series = {
        "type": "scatter",
        "name": "events",
        "symbolSize": 10,
        "data": points,
        "tooltip": {"trigger": "item", "format": "name"},
        "markArea": {"silent": True, "data": bands},
    }
    rows = 3 if periods else 2
    y_axis = {"type": "value", "min": 0, "max": rows, "interval": 1, "axisLabel": {"show": False}, "axisLine": {"show": False}, "splitLine": {"show": False}}
    stack.grid("Versions and what happened", 20 * rows, y_axis, [series], lines=False)


def _heat_map(stack: _Stack, history: History, features: Sequence[str]) -> None:
    if not features:
        return
    lines = history.drift
    # From below: the axis grows upwards, and the worst stands on top.
    shown = list(features)[::-1]
    matrix = [_numbers(np.round(stack.axis.worst(lines[name].ratio), 2)) for name in shown]
    y_axis = {
        "type": "category",
        "data": [short_name(name) for name in shown],
        "axisTick": {"show": False},
        "axisLabel": {"interval": 0, "width": _LEFT - 12, "overflow": "truncate"},
    }
    series = {"type": "heatmap", "name": "times its limit", "matrix": matrix, "tooltip": {"trigger": "item"}, "progressive": 0}
    title = "Drift of features: value over its limit" + (f", the {len(shown)} worst of {len(lines)}" if len(shown) < len(lines) else "")
    stack.grid(title, max(14 * len(shown), 28), y_axis, [series], dates=True, lines=False)


def _performance(stack: _Stack, history: History, output: str, promise: Mapping[int, float], mature_until: date | None) -> None:
    declared = history.entry.outputs[output]
    axis = stack.axis
    line, baseline = history.line(declared.gate, output), history.line(f"{declared.gate}_baseline", output)
    measured = axis.mean(line.value, line.n)
    lower, upper = axis.mean(line.lower, line.n), axis.mean(line.upper, line.n)
    base = {"type": "line", "symbol": "circle", "symbolSize": 3, "connectNulls": False}
    hidden = {"symbol": "none", "silent": True, "lineStyle": {"opacity": 0}, "tooltip": {"show": False}, "stack": f"band {output}"}
    series: list[dict[str, Any]] = [
        {**base, "name": f"{output}: {declared.gate}", "data": _numbers(measured), "itemStyle": {"color": "var:--series-1"}, "lineStyle": {"width": 2}, "z": 4},
        {**base, **hidden, "name": "lower", "data": _numbers(lower), "stackStrategy": "all"},
        {**base, **hidden, "name": "band", "data": _numbers(upper - lower), "areaStyle": {"color": "var:--band", "opacity": 0.8}, "stackStrategy": "all"},
    ]
    if np.isfinite(baseline.value).any():
        style = {"itemStyle": {"color": "var:--series-2"}, "lineStyle": {"type": "dashed", "width": 1.5}}
        series.append({**base, "symbol": "none", "name": f"{output}: baseline", "data": _numbers(axis.mean(baseline.value, baseline.n)), **style})
    versions = [history.scored[night].version if night in history.scored else None for night in history.nights]
    promised = np.array([promise.get(version, math.nan) if version is not None else math.nan for version in versions], dtype=np.float64)
    if np.isfinite(promised).any():
        style = {"itemStyle": {"color": "var:--series-3"}, "lineStyle": {"type": "dotted", "width": 2}}
        series.append({**base, "symbol": "none", "step": "middle", "name": f"{output}: promised at the gate", "data": _numbers(axis.mean(promised)), **style})
    _not_known(stack, history, series[0], np.isfinite(line.value), mature_until)
    unit = "probability" if isinstance(declared, BinaryOutput) else "label's unit"
    title = f"{output}: {declared.gate} ({unit}), smaller is better"
    stack.grid(title, 120, {"type": "value", "scale": True}, series, dates=True)


def _not_known(stack: _Stack, history: History, series: dict[str, Any], has_value: npt.NDArray[np.bool_], mature_until: date | None) -> None:
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
            name = "labels not mature yet" if waiting else ""
            style = {"color": "var:--quiet-bg", "opacity": 0.9, "borderColor": "var:--soft", "borderType": "dashed", "borderWidth": 1}
            label = {"position": ["100%", 2], "align": "right", "color": "var:--soft", "fontSize": 10}
            areas.append([{"xAxis": stack.axis.name_of(first), "name": name, "itemStyle": style, "label": label}, {"xAxis": stack.axis.name_of(last)}])
            begin = None
    if areas:
        series["markArea"] = {"silent": True, "data": areas}


def _labels(stack: _Stack, history: History, mature_until: date | None) -> None:
    line = history.line(LABEL_SHARE)
    if not line.known.any() and not history.scored:
        return
    values = _numbers(stack.axis.mean(line.value, line.n))
    series: dict[str, Any] = {"type": "bar", "name": "rows whose label came", "data": values, "itemStyle": {"color": "var:--series-4"}, "barMaxWidth": 14}
    series["tooltip"] = {"format": "percent"}
    _not_known(stack, history, series, np.isfinite(line.value), mature_until)
    y_axis = {"type": "value", "min": 0, "max": 1, "interval": 0.5, "axisLabel": {"format": "percent"}}
    stack.grid("Share of rows whose label came", 44, y_axis, [series])


def _volume(stack: _Stack, history: History) -> None:
    line = history.line(VOLUME)
    values = np.where(np.isfinite(line.value), line.value, [float(history.scored[n].rows) if n in history.scored else math.nan for n in history.nights])
    bound = {"type": "line", "symbol": "none", "lineStyle": {"type": "dashed", "width": 1}, "itemStyle": {"color": "var:--soft"}}
    series: list[dict[str, Any]] = [
        {"type": "line", "symbol": "circle", "symbolSize": 3, "name": "rows scored", "data": _numbers(stack.axis.mean(values), 6), "itemStyle": {"color": "var:--series-1"}}
    ]
    for name, bounds in (("fewest expected", line.lower), ("most expected", line.upper)):
        if np.isfinite(bounds).any():
            series.append({**bound, "name": name, "data": _numbers(stack.axis.mean(bounds), 6)})
    stack.grid("Rows scored, between the bounds of training", 80, {"type": "value", "scale": True}, series, dates=not history.nulls)


def _nulls(stack: _Stack, history: History) -> None:
    lines = history.nulls
    if not lines:
        return
    series: list[dict[str, Any]] = []
    for place, name in enumerate(worst_nulls(history)):
        values = _numbers(stack.axis.worst(lines[name].value))
        style = {"itemStyle": {"color": f"var:--series-{place + 1}"}, "lineStyle": {"width": 1.5}}
        series.append({"type": "line", "symbol": "circle", "symbolSize": 2, "name": short_name(name), "data": values, "tooltip": {"format": "percent"}, **style})
    more = f"the {len(series)} highest of {len(lines)}" if len(series) < len(lines) else "each feature"
    stack.grid(f"Null rates: {more}", 90, {"type": "value", "min": 0, "axisLabel": {"format": "percent"}}, series, dates=True)


def worst_nulls(history: History) -> list[str]:
    """The features with the highest null rate of a night, at most five, highest first."""
    peaks = {name: float(np.nanmax(line.value)) for name, line in history.nulls.items() if np.isfinite(line.value).any()}
    return sorted(peaks, key=lambda name: (-peaks[name], name))[:_NULL_LINES]


def _described(history: History, marks: Sequence[Mark], features: Sequence[str], mature_until: date | None) -> str:
    """The chart in words."""
    said = [f"{len(history.scored)} of {len(history.nights)} nights were scored."]
    if features:
        beyond = sum(bool((history.drift[name].ratio > 1).any()) for name in history.drift)
        said.append(f"{beyond} of {len(history.drift)} features lay beyond their drift limit in some night; worst is {features[0]}.")
    said.append(f"Labels are judged up to {mature_until}." if mature_until else "No labels are judged yet.")
    happened = [f"{mark.night}: {mark.text}" for mark in marks]
    said.append(f"{'; '.join(happened[:12])}{'; and more' if len(happened) > 12 else ''}." if happened else "No version changed.")
    return " ".join(said)
