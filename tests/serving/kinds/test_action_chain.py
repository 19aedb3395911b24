"""A model that decides through the whole chain in one process, from its source to the pages: the shipped catalog of
trips, with a small fleet and few trees.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.labels import labels
from lake.lake import Lake
from lake.metrics import read_metrics
from monitoring.audit.trace import reproduce
from monitoring.drift import drift
from monitoring.pages import model as model_page
from monitoring.pages import trace as trace_page
from monitoring.pages.model_card import write_model_card
from monitoring.pages.page import Context, Viewer
from monitoring.pages.render import render
from monitoring.pages.reports import report
from monitoring.performance import performance
from serving.predictions import predictions_table
from serving.projection import project_predictions
from serving.score import score
from tests.serving.kinds.chain import features, first_champion

MODEL = "fuel_optimization"
FIRST, AS_OF = date(2024, 10, 1), date(2024, 10, 24)
SCORED = Interval.closed(date(2024, 10, 25), date(2024, 10, 27))
MATURE = date(2024, 10, 25)
VEHICLES = 12


def few_trips(folder: Path) -> Settings:
    """The shipped catalog of the data set with a small fleet, and days to fit."""
    changed = {
        "datasets/trips.yaml": {
            "vehicles: 40": f"vehicles: {VEHICLES}",
            "first_night: 2025-02-01": "first_night: 2024-10-25",
        },
        f"models/{MODEL}.yaml": {
            "train: 84 days, validation: 7 days, test: 14 days": "train: 10 days, validation: 3 days, test: 6 days",
            "min_days: 10": "min_days: 5",
            "min_rows: 100": "min_rows: 20",
            "n_estimators: 15": "n_estimators: 3",
            "episodes: 2, branches: 3, lookahead: 2": "episodes: 1, branches: 1, lookahead: 1",
        },
    }
    for name, changes in changed.items():
        text = (ROOT / "config" / name).read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "features" / "sql" / "trips", folder / "sql" / "trips")
    return Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)


def test_decisions_go_from_the_source_to_the_pages(tmp_path: Path, mlflow_server: str) -> None:
    settings = few_trips(tmp_path).model_copy(update={"mlflow_tracking_uri": mlflow_server})
    lake = Lake(settings, load_catalog(settings))
    features(lake, "trips", Interval.closed(FIRST, AS_OF))
    job_dir, registered, decision = first_champion(lake, MODEL, AS_OF)
    assert "the decisions of the same row that need no model" in decision.reasons[0].text

    features(lake, "trips", SCORED)
    assert score(lake, MODEL, SCORED, run_id="score").rows == VEHICLES * len(SCORED)
    rows = predictions_table(settings, lake.model(MODEL)).read(SCORED)
    project_predictions(lake, MODEL, SCORED, run_id="project")
    drift(lake, MODEL, SCORED, run_id="drift")
    performance(lake, MODEL, SCORED, run_id="performance")
    drifts = read_metrics(lake, MODEL, "drift", SCORED).to_pylist()
    moved = {row["column"] for row in drifts if row["check"] == "prediction_drift"}
    assert moved == {"fuel_litres", "fuel_litres_baseline", "fuel_litres_action_1"}
    measured = read_metrics(lake, MODEL, "performance", SCORED).to_pylist()
    of_night = {row["check"]: row for row in measured if row["about_date"] == MATURE and not row["segment"]}
    assert of_night["relative_cost"]["value"] == pytest.approx(relative_cost(lake, rows), abs=1e-6)
    assert of_night["relative_cost"]["value"] == of_night["error_ratio"]["value"] < 1
    assert of_night["relative_cost_baseline"]["value"] == 1
    assert {row["segment"] for row in measured} >= {"vehicle_type=van", "depot=north"}

    assert report(lake, MODEL, Interval.of(MATURE), run_id="report").committed == 2
    card = write_model_card(lake, MODEL, job_dir, registered, decision).read_text(encoding="utf-8")
    shown = unescape(re.sub(r"<[^>]+>", " ", card))
    for words in (
        "the 12 decisions to take",
        "share of the baseline's whole cost",
        "Shapley values of the expected cost",
    ):
        assert words in shown, words
    context = Context(lake, Viewer("ada", "viewer"), datetime(2024, 10, 28, tzinfo=UTC), (MODEL,), ("trips",))
    whole = unescape(render(model_page.page(context, query={}, model=MODEL), context, path="/nightfleet/model"))
    assert "relative_cost" in whole
    one = rows.slice(7, 1).to_pylist()[0]
    traced = trace_page.page(context, query={"id": one["prediction_id"]})
    text = unescape(render(traced, context, path="/nightfleet/trace"))
    assert ", ".join(f"{one[f'fuel_litres_action_{number}']:.4g}" for number in range(1, 13)) in text
    again = reproduce(lake, one["prediction_id"])
    assert again.equal, again.steps


def relative_cost(lake: Lake, rows: pa.Table) -> float:
    """Of the mature night, from what was published and what came, by hand."""
    outcomes = np.array(lake.model(MODEL).outputs["fuel_litres"].outcomes)  # type: ignore[attr-defined]  # of the kind
    night = rows.filter(pc.equal(rows["data_date"], MATURE))
    known = labels(lake, MODEL, Interval.of(MATURE), as_of=SCORED.last)
    came = dict(zip(known["vehicle"].to_pylist(), known["label"].to_pylist(), strict=True))
    ratios = []
    for row in night.to_pylist():
        ours, baseline = (
            np.interp(came[row["vehicle"]], outcomes, [row[f"{who}_if_{n}"] for n in range(1, len(outcomes) + 1)])
            for who in ("fuel_litres", "fuel_litres_baseline")
        )
        ratios.append(ours / baseline)
    return float(np.mean(ratios))
