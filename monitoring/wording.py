"""How people read a value: names of columns and their units, numbers, shares, instants. One way for alarms, messages,
pages, cards and reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from config.catalog.model import ModelEntry
from lake.lake import Lake

NOTHING = "–"


def named(column: str) -> str:
    """A feature as a person calls it: `dep_delay_7d of origin_daily`; an output by its own name."""
    view, separator, name = column.partition("__")
    return f"{name} of {view}" if separator else column


def unit_of(lake: Lake, entry: ModelEntry, column: str) -> str:
    """The unit of a feature or an output column, as the catalog says; empty where it says none."""
    features = lake.catalog.feature_columns(entry)
    if column in features:
        return features[column].unit or ""
    units: dict[str, str] = {}
    for name, output in entry.outputs.items():
        units |= output.units(name, label_unit(lake, entry))
    return units.get(column, "")


def label_unit(lake: Lake, entry: ModelEntry) -> str:
    """The unit of what the model predicts, empty where the catalog says none."""
    return lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit or ""


def figures(value: float, digits: int = 3) -> str:
    """So many digits that count, thousands apart: 18.3, 0.41, 12,346."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)  # -0.0 is 0, too
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def percent(share: float, *, signed: bool = False) -> str:
    """A share with its unit: 3.4 %, 34 %, 134 %; `signed`: +3.4 %."""
    return ("+" if signed and share >= 0 else "") + f"{per_hundred(share)} %"


def per_hundred(share: float) -> str:
    """A share in percent, where the unit stands beside."""
    return figures(100 * share, 2 if abs(share) < 1 else 3)


def with_bounds(value: float, lower: float | None, upper: float | None) -> str:
    """A value and its interval, to three digits, a last zero included: 1.00 is not about 1."""
    known = [bound for bound in (lower, upper) if bound is not None]
    text, *bounds = (f"{number:#.3g}".rstrip(".") for number in (value, *known))
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def counted(count: int, noun: str) -> str:
    """`1 night`, `3 nights`, `1,204 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def instant(value: datetime | None) -> str:
    """An instant in UTC, to the minute; one without a zone is UTC already."""
    if value is None:
        return NOTHING
    return (value.astimezone(UTC) if value.tzinfo else value).strftime("%Y-%m-%d %H:%M UTC")


def shown(value: Any, kind: str = "number") -> str:
    """A value of any type in a table: four digits that count, yes and no, dates and instants, lists with commas, a dash
    for nothing. `kind` percent: a share.
    """
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value, kind)
    if isinstance(value, datetime):
        return instant(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def _number(value: float, kind: str) -> str:
    if kind in ("percent", "change"):
        return percent(value, signed=kind == "change")
    return f"{value:,}" if isinstance(value, int) else figures(value, 4)


def exact(value: Any) -> str:
    """A value as it is, nothing rounded: instants to the second, mappings and lists in words, null for nothing."""
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {exact(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(exact(item) for item in value)
    return str(value)


def spaced(unit: str) -> str:
    """A unit behind a number, empty where there is none."""
    return f" {unit}" if unit else ""
