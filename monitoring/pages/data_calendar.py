"""The nights of a year as a calendar, and their quality score as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Protocol

from config.calendar import Interval
from config.catalog.data import Dataset
from features.validate import SCORE
from lake.lake import Lake
from lake.metric_queries import read_metrics_of
from monitoring.pages.data_nights import STATES, Part, State
from monitoring.pages.page import Chart

_LETTERS: dict[State, str] = {"published": "", "quarantined": "Q", "late": "L", "republished": "R", "missing": "M"}
_COLOURS: dict[State, tuple[str, str]] = {
    state: (f"var:--night-{state}", f"var:--night-{state}-ink") for state in STATES
}


class NightAddress(Protocol):
    """What knows the address of a night's page."""

    def of_night(self, night: date) -> str:
        """The address."""
        ...


def state_counts(whole: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Nights by their worst state, the best state first; also those that no night has."""
    return [
        {"state": state, "letter": _LETTERS[state], "nights": sum(night["states"][0] == state for night in whole)}
        for state in reversed(STATES)
    ]


def calendar_chart(address: NightAddress, whole: Sequence[Mapping[str, Any]], year: int) -> Chart:
    """Two half-years side by side, one below the other where the screen is narrow; a night leads to its page."""
    halves = ([f"{year}-01-01", f"{year}-06-30"], [f"{year}-07-01", f"{year}-12-31"])
    pieces = [{"value": STATES.index(state), "color": _COLOURS[state][0]} for state in STATES]
    series = []
    for number in (0, 1):
        points = []
        for night in whole:
            if (night["day"].month > 6) != bool(number):
                continue
            state = night["states"][0]
            name = f"{night['day']}: {', '.join(night['states'])}\n{_said(night)}"
            letter = {"show": bool(_LETTERS[state]), "formatter": _LETTERS[state], "color": _COLOURS[state][1]}
            points.append({"value": [night["day"].isoformat(), STATES.index(state)], "name": name, "label": letter})
        emphasis = {"itemStyle": {"borderColor": "var:--ink", "borderWidth": 1}}
        series.append(
            {
                "type": "heatmap",
                "coordinateSystem": "calendar",
                "calendarIndex": number,
                "data": points,
                "emphasis": emphasis,
            }
        )
    common: dict[str, Any] = {
        "dayLabel": {"firstDay": 1, "nameMap": ["S", "M", "T", "W", "T", "F", "S"]},
        "monthLabel": {"nameMap": "en"},
        "yearLabel": {"show": False},
        "splitLine": {"lineStyle": {"width": 1}},
    }
    wide = [
        {"left": 22, "right": "51.5%", "top": 24, "cellSize": ["auto", 34]},
        {"left": "51.5%", "right": 2, "top": 24, "cellSize": ["auto", 34]},
    ]
    narrow = [
        {"left": 20, "right": 2, "top": 24, "cellSize": ["auto", 15]},
        {"left": 20, "right": 2, "top": 160, "cellSize": ["auto", 15]},
    ]
    option = {
        "tooltip": {"formatter": "{b}"},
        # The legend is part of the page, with the count of each.
        "visualMap": {"type": "piecewise", "show": False, "dimension": 1, "seriesIndex": [0, 1], "pieces": pieces},
        "calendar": [common | place | {"range": half} for place, half in zip(wide, halves, strict=True)],
        "series": series,
        "media": [
            {"query": {"maxWidth": 700}, "option": {"calendar": narrow}},
            {"query": {"minWidth": 701}, "option": {"calendar": wide}},
        ],
    }
    told = ", ".join(f"{one['nights']} {one['state']}" for one in state_counts(whole) if one["nights"]) or "none"
    links = {night["day"].isoformat(): address.of_night(night["day"]) for night in whole}
    return Chart(
        "calendar",
        f"Nights of {year}",
        option,
        f"By their worst state: {told}. The table of all nights says the same.",
        272,
        links,
    )


def _said(night: Mapping[str, Any]) -> str:
    if "missing" in night["states"]:
        return f"not published: {', '.join(night['missing'])}"
    return f"{night['rows']:,} rows, {night['quarantined']:,} quarantined"


def score_charts(
    lake: Lake, address: NightAddress, entry: Dataset, shown: Sequence[Part], period: Interval
) -> list[Chart]:
    """The quality score of each table as a line; no chart where no night has one."""
    lines: dict[str, list[list[Any]]] = {}
    for row in read_metrics_of(lake, [entry.name], period, checks=[SCORE]):
        if any(part.key == row["column"] for part in shown):
            lines.setdefault(row["column"], []).append(
                [row["about_date"].isoformat(), None if row["value"] is None else round(100 * row["value"], 3)]
            )
    if not lines:
        return []
    days = sorted({point[0] for points in lines.values() for point in points})
    common: dict[str, Any] = {
        "type": "line",
        "symbolSize": 6,
        "showSymbol": len(days) < 40,
        "lineStyle": {"width": 1.5},
    }
    series = [common | {"name": name, "data": points} for name, points in lines.items()]
    option = {
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0, "left": 0, "type": "scroll"},
        "grid": {"left": 44, "right": 12, "top": 34, "bottom": 26},
        "xAxis": {"type": "time", "min": days[0], "max": days[-1]},
        "yAxis": {"type": "value", "scale": True, "max": 100, "axisLabel": {"formatter": "{value} %"}},
        "series": series,
    }
    lowest = min(
        ((p[1], p[0], name) for name, points in lines.items() for p in points if p[1] is not None), default=None
    )
    described = (
        f"The lowest is {lowest[0]:.4g} %, table {lowest[2]} on {lowest[1]}." if lowest else "No night could be scored."
    )
    links = {day: address.of_night(date.fromisoformat(day)) for day in days}
    return [
        Chart(
            "quality", "Quality score, %", option, f"One line a table, {days[0]} to {days[-1]}. {described}", 230, links
        )
    ]
