"""Small trips for tests: a training set of them, and jobs of the family that plans them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from serving.predictors.road_load import SCALARS, SERIES, Floats, Trips
from tests.training.jobs import write_job

SEGMENTS = 4
OUTPUT: dict[str, Any] = {
    "kind": "action",
    "gate": "relative_cost",
    "decisions": SEGMENTS,
    "outcomes": [-9.0, -3.0, 0.0, 3.0, 9.0],
    "unit": "l",
    "decision_unit": "km/h",
}
FEATURES = dict.fromkeys(
    (
        *(f"v__{name}" for name in SCALARS),
        *(f"v__{name}_t{segment}" for name in SERIES for segment in range(SEGMENTS)),
        "v__other",
    ),
    "float64",
)


def trip_values(count: int, seed: int = 1) -> dict[str, Floats]:
    """What `Trips` takes: hilly roads of changing limits, and more or less time."""
    random = np.random.default_rng(seed)
    limits = random.choice([50.0, 60.0, 80.0, 90.0], (count, SEGMENTS))
    segment_km = random.uniform(1.0, 2.0, count)
    return {
        "segment_km": segment_km,
        "mass_tonnes": random.uniform(3.0, 14.0, count),
        "drag_area_m2": np.full(count, 5.0),
        "rolling_resistance": np.full(count, 0.008),
        "engine_efficiency": np.full(count, 0.42),
        "idle_litres_per_hour": np.full(count, 2.0),
        "headwind_mps": random.normal(0.0, 4.0, count),
        "budget_minutes": (segment_km[:, None] / limits).sum(axis=1) * 60.0 * random.uniform(1.03, 1.4, count),
        "grade_percent": random.normal(0.0, 2.5, (count, SEGMENTS)).clip(-6.0, 6.0),
        "limit_kmh": limits,
    }


def trip_rows(count: int = 240, seed: int = 1) -> pa.Table:
    """A training set of such trips, whose label is the headwind that came."""
    values, random = trip_values(count, seed), np.random.default_rng(seed + 1000)
    columns = {f"v__{name}": values[name] for name in SCALARS}
    for name in SERIES:
        columns |= {f"v__{name}_t{segment}": values[name][:, segment] for segment in range(SEGMENTS)}
    day = np.sort(random.integers(0, 20, count))
    return pa.table(
        {
            **columns,
            "v__other": random.normal(size=count),
            "data_date": pa.array(19_700 + day, pa.int32()).cast(pa.date32()),
            "label": 1.0 + 0.8 * values["headwind_mps"] + random.normal(size=count),
            "baseline": pa.nulls(count, pa.float64()),
            "split": np.where(day < 15, "train", "validation"),
        }
    )


def trip_job(
    folder: Path, *, rows: pa.Table | None = None, output: dict[str, Any] | None = None, **params: Any
) -> Path:
    """A job of the family on such trips."""
    kept = OUTPUT if output is None else output
    return write_job(
        folder,
        "fitted_q",
        rows=trip_rows() if rows is None else rows,
        params={"n_estimators": 4, "episodes": 1, "branches": 3, "lookahead": 1} | params,
        entry={"outputs": {"fuel": kept}, "trainer": {"family": "fitted_q"}},
        feature_columns={name: kind for name, kind in FEATURES.items() if rows is None or name in rows.column_names},
        output_columns=output_columns(kept),
    )


def output_columns(output: dict[str, Any]) -> list[str]:
    """What a prediction of that output has."""
    numbers = range(1, len(output["outcomes"]) + 1)
    return [
        "fuel",
        "fuel_baseline",
        "fuel_infeasible",
        *(f"fuel_action_{number}" for number in range(1, output["decisions"] + 1)),
        *(f"fuel_if_{number}" for number in numbers),
        *(f"fuel_baseline_if_{number}" for number in numbers),
    ]


def trips(count: int, seed: int = 1) -> Trips:
    """Such trips, as they are planned."""
    return Trips(trip_values(count, seed))
