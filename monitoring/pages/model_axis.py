"""One axis of nights under several grids: columns, what happened on them, and how grids are put below each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from monitoring.pages.model_history import Floats

MOST_COLUMNS = 400  # of the axis; longer periods are drawn with several nights in one
LEFT, NARROW_LEFT, RIGHT = 196, 86, 14
_TITLE, _DATES, _GAP = 22, 22, 12


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
class Tenure:
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
        """Position of the first night of each column."""
        return range(0, len(self.nights), self.size)

    @functools.cached_property
    def names(self) -> list[str]:
        """The first night of each column."""
        return [self.nights[i].isoformat() for i in self.starts]

    def column_of(self, night: date) -> int:
        """The position of the column that holds a night, of the nearest one for a night outside."""
        return min(max((night - self.nights[0]).days, 0), len(self.nights) - 1) // self.size

    def name_of(self, night: date) -> str:
        """The name of that column."""
        return self.names[self.column_of(night)]

    def mean(self, values: Floats, weights: Floats | None = None) -> Floats:
        """Of each column's nights with a value, weighted by rows where they are given."""
        if self.size == 1:
            return values
        there = np.isfinite(values)
        weight = np.where(there, 1.0 if weights is None else np.nan_to_num(weights, nan=1.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.add.reduceat(np.where(there, values, 0.0) * weight, list(self.starts)) / np.add.reduceat(
                weight, list(self.starts)
            )

    def worst(self, values: Floats) -> Floats:
        """The largest of each column's nights."""
        if self.size == 1:
            return values
        worst = np.maximum.reduceat(np.where(np.isfinite(values), values, -np.inf), list(self.starts))
        return np.where(np.isfinite(worst), worst, np.nan)


@dataclass(frozen=True)
class Span:
    """A band over columns of a grid.

    Attributes:
        first, last: columns.
        floor: where it stands on the grid's own axis; it is 1 high.
        drawn: its name, style and label.
    """

    first: int
    last: int
    floor: int
    drawn: Mapping[str, Any]


@dataclass
class Stack:
    """Grids as they are put below each other."""

    axis: Axis
    marks: Sequence[Mark]
    top: int = 4
    grids: list[dict[str, Any]] = field(default_factory=list)
    titles: list[dict[str, Any]] = field(default_factory=list)
    x_axes: list[dict[str, Any]] = field(default_factory=list)
    y_axes: list[dict[str, Any]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    more: list[str] = field(default_factory=list)

    def grid(
        self,
        title: str,
        height: int,
        y_axis: Mapping[str, Any],
        series: Sequence[dict[str, Any]],
        *,
        more: str = "",
        dates: bool = False,
        lines: bool = True,
    ) -> None:
        """One grid more.

        Args:
            more: stands behind the title where there is room for it, in small type; `{1|text}` in the colour of the
            first series.
            dates: nights stand below it.
            lines: its values are read off along the axis.
        """
        index = len(self.grids)
        rich = {str(i): {"color": f"var:--series-{i}", "fontSize": 11, "fontWeight": 600} for i in range(1, 7)} | {
            "small": {"color": "var:--soft", "fontSize": 11}
        }
        style = {"fontSize": 12, "color": "var:--soft", "fontWeight": 600, "rich": rich}
        self.titles.append({"text": plain(title), "top": self.top, "left": 0, "textStyle": style})
        self.more.append(f"{plain(title)}   {more}" if more else plain(title))
        self.top += _TITLE
        # ECharts would shrink a grid whose last label sticks out, and the columns would no longer stand below each
        # other.
        self.grids.append({"top": self.top, "height": height, "left": LEFT, "right": RIGHT, "outerBoundsMode": "none"})
        self.x_axes.append(
            {
                "gridIndex": index,
                "type": "category",
                "data": self.axis.names,
                "axisTick": {"show": False},
                "axisLabel": {"show": dates, "hideOverlap": True, "fontSize": 11, "alignMaxLabel": "right"},
                "axisPointer": {"show": lines, "triggerEmphasis": False},
                "splitLine": {"show": False},
            }
        )
        self.y_axes.append(
            {
                "gridIndex": index,
                "splitNumber": 3,
                **y_axis,
                "axisLabel": {"fontSize": 11, **y_axis.get("axisLabel", {})},
            }
        )
        own = [{"xAxisIndex": index, "yAxisIndex": index, "emphasis": {"disabled": True}, **s} for s in series]
        if own:
            own[0]["markLine"] = self._mark_lines()
        self.series += own
        self.top += height + (_DATES if dates else 0) + _GAP

    def spans(self, grid: int, bands: Sequence[Span]) -> None:
        """Bands over whole columns of a grid, from the left edge of one to the right edge of another; after all grids.
        ECharts' own begin and end in the middle of a column, so that one of a single night has no width.
        """
        index = len(self.x_axes)
        last = len(self.axis.names) - 0.5
        hidden = {"type": "value", "min": -0.5, "max": last, "show": False, "axisPointer": {"show": False}}
        self.x_axes.append({"gridIndex": grid, **hidden})
        areas = [
            [
                {"xAxis": span.first - 0.5, "yAxis": span.floor, **span.drawn},
                {"xAxis": span.last + 0.5, "yAxis": span.floor + 1},
            ]
            for span in bands
        ]
        area = {"silent": True, "data": areas}
        self.series.append(
            {"type": "scatter", "name": "spans", "xAxisIndex": index, "yAxisIndex": grid, "data": [], "markArea": area}
        )

    def option(self, *, linked_from: int = 0) -> dict[str, Any]:
        """All of it as an ECharts option, with a narrow layout of its own.

        Args:
            linked_from: the first grid whose values are read off together.
        """
        narrow = {
            "grid": [{"left": NARROW_LEFT, "right": 6} for _ in self.grids],
            "yAxis": [
                {"axisLabel": {"width": NARROW_LEFT - 10, "overflow": "truncate", "fontSize": 10}} for _ in self.y_axes
            ],
            "title": [{"text": title["text"], "textStyle": {"fontSize": 11}} for title in self.titles],
        }
        # What the narrow layout changes, as it is on a wide screen: a turned telephone goes back to it.
        wide = {
            "grid": [{"left": LEFT, "right": RIGHT} for _ in self.grids],
            "yAxis": [{"axisLabel": {"width": LEFT - 12, "overflow": "truncate", "fontSize": 11}} for _ in self.y_axes],
            "title": [{"text": text, "textStyle": {"fontSize": 12}} for text in self.more],
        }
        return {
            "columnLinks": True,
            # Beyond so many elements ECharts draws what is pointed at on a layer of its own, over the tooltip.
            "hoverLayerThreshold": 1_000_000_000,
            "grid": self.grids,
            "title": self.titles,
            "xAxis": self.x_axes,
            "yAxis": self.y_axes,
            "series": self.series,
            "tooltip": {"trigger": "axis"},
            "axisPointer": {"link": [{"xAxisIndex": list(range(linked_from, len(self.grids)))}]},
            "media": [{"query": {"maxWidth": 640}, "option": narrow}, {"option": wide}],
        }

    def _mark_lines(self) -> dict[str, Any]:
        """A line for every mark; versions are named on each grid, requests on the lane above alone."""
        data = []
        for mark in self.marks:
            colour = MARKS[mark.kind][1]
            column = self.axis.name_of(mark.night)
            # Of the first column the label would lie on the axis' own.
            shown = bool(mark.short) and column != self.axis.names[0]
            label = {
                "show": shown,
                "formatter": mark.short,
                "position": "insideEndBottom",
                "rotate": 0,
                "fontSize": 10,
                "color": colour,
                "distance": [3, 2],
            }
            line = {"color": colour, "type": "dotted" if mark.kind == "request" else "solid", "width": 1}
            data.append({"xAxis": column, "label": label, "lineStyle": line})
        return {"silent": True, "symbol": "none", "animation": False, "data": data}


# Symbol and colour of each kind of mark.
MARKS = {
    "promotion": ("triangle", "var:--link"),
    "rollback": ("path://M0,0 L10,0 L5,9 Z", "var:--bad"),
    "request": ("diamond", "var:--late"),
}


def plain(text: str) -> str:
    """Without what a chart's titles read as markup."""
    return text.translate({ord("{"): "(", ord("}"): ")", ord("|"): "/"})


def points(values: Floats, size: int, digits: int = 4) -> list[Any]:
    """As `numbers`, for a line with dots of that size; a value without neighbours has a larger one, as no line leads to
    it.
    """
    there = np.isfinite(values)
    alone = there & ~np.append(False, there[:-1]) & ~np.append(there[1:], False)
    plain_numbers = numbers(values, digits)
    return [
        {"value": value, "symbolSize": 2 * size + 2} if lonely else value
        for value, lonely in zip(plain_numbers, alone.tolist(), strict=True)
    ]


def numbers(values: Floats, digits: int = 4) -> list[float | None]:
    """To so many digits that count; None for what is not there."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
