"""A column, a unit, a number as people read them: in alarms, messages and pages."""

from __future__ import annotations

from config.catalog.model import ModelEntry, RegressionOutput
from lake.lake import Lake


def named(column: str) -> str:
    """A feature as a person calls it: `dep_delay_7d of origin_daily`; an output by its own name."""
    view, separator, name = column.partition("__")
    return f"{name} of {view}" if separator else column


def unit_of(lake: Lake, entry: ModelEntry, column: str) -> str:
    """The unit of a feature or an output column, as the catalog says; empty where it says none."""
    features = lake.catalog.feature_columns(entry)
    if column in features:
        return features[column].unit or ""
    output = next((o for name, o in entry.outputs.items() if column in (name, f"{name}_lower", f"{name}_upper")), None)
    return label_unit(lake, entry) if isinstance(output, RegressionOutput) else ""


def label_unit(lake: Lake, entry: ModelEntry) -> str:
    """The unit of what the model predicts, empty where the catalog says none."""
    return lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit or ""


def figures(value: float, digits: int = 3) -> str:
    """So many digits that count, thousands apart: 18.3, 0.41, 12,346."""
    if abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"
