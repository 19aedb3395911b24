"""A model of classes through the whole chain in one process: from its sources to the pages."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from sklearn.metrics import f1_score

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from features.labels import UnknownClass, labels
from lake.lake import Lake
from lake.metrics import read_metrics
from lake.tables import valid_table
from monitoring.drift import drift
from monitoring.pages import model as model_page
from monitoring.pages import trace as trace_page
from monitoring.pages.model_card import write_model_card
from monitoring.pages.page import Context, Viewer
from monitoring.pages.render import render
from monitoring.pages.reports import report
from monitoring.performance import performance
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import score
from tests import toy
from tests.serving.kinds.chain import features, first_champion

PACES = ("brisk", "steady", "slow")
AS_OF = date(2024, 3, 1)
SCORED = Interval.closed(date(2024, 3, 2), date(2024, 3, 8))
MATURE = date(2024, 3, 6)
MODEL = "ride_pace"
COLUMNS = ["pace", "pace_probability", "pace_brisk", "pace_steady", "pace_slow"]

DATASET = toy.DATASET_YAML.replace(
    "      minutes: {type",
    "      pace: {type: string, description: how fast the ride was; null when it was not measured}\n"
    "      rank: {type: int64, description: the pace as a number}\n"
    "      minutes: {type",
)
YAML = (
    toy.MODEL_YAML.replace("model: ride_minutes", f"model: {MODEL}")
    .replace("column: minutes", "column: pace")
    .replace("worst: 1.5", "worst: 9")
)
YAML = (
    YAML[: YAML.index("outputs:")]
    + f"outputs:\n  pace: {{kind: multiclass, classes: [{', '.join(PACES)}], gate: log_loss}}\n"
    + YAML[YAML.index("trainer:") :]
)


def paces(folder: Path) -> None:
    """Source files whose rides have a pace: minutes a kilometre, which the vehicle decides."""
    rides = toy.generate(Interval.closed(toy.FIRST, SCORED.end), per_day=60)
    per_km = np.asarray(rides.outcomes["minutes"], np.float64) / np.asarray(rides.bookings["distance_km"], np.float64)
    rank = np.digitize(per_km, [2.6, 3.0])
    missing = np.isnan(per_km)
    outcomes = rides.outcomes.append_column("pace", pa.array(np.array(PACES)[rank], mask=missing))
    outcomes = outcomes.append_column("rank", pa.array(rank * 10, pa.int64(), mask=missing))
    toy.write_csv(folder / "source" / "bookings.csv", rides.bookings)
    toy.write_csv(folder / "source" / "outcomes.csv", outcomes)


@pytest.mark.parametrize(("family", "label"), [("xgboost", "pace"), ("random_forest", "rank")])
def test_classes_go_from_the_sources_to_the_pages(family: str, label: str, tmp_path: Path, mlflow_server: str) -> None:
    yaml = YAML.replace("family: xgboost, params: {n_estimators: 20", f"family: {family}, params: {{n_estimators: 20")
    classes: tuple[Any, ...] = PACES if label == "pace" else (0, 10, 20)
    gate = "log_loss" if label == "pace" else "macro_f1_loss"
    yaml = yaml.replace("gate: log_loss", f"gate: {gate}")
    yaml = yaml.replace("column: pace", f"column: {label}").replace(", ".join(PACES), ", ".join(map(str, classes)))
    lake = toy.toy_lake(tmp_path, dataset=DATASET, model=None)
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(yaml, encoding="utf-8")
    settings = lake.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server})
    lake = Lake(settings, load_catalog(settings))
    columns = list(lake.model(MODEL).output_columns)
    paces(tmp_path)
    features(lake, "rides", Interval.closed(toy.FIRST, AS_OF))

    job_dir, registered, decision = first_champion(lake, MODEL, AS_OF, {"threads": 1})
    assert "of the baseline (frequencies of the classes in the training window)" in decision.reasons[0].text

    features(lake, "rides", SCORED)
    assert score(lake, MODEL, SCORED, run_id="score").rows == 60 * len(SCORED)
    rows = predictions_table(settings, lake.model(MODEL)).read(SCORED)
    probabilities = np.column_stack([rows[column].to_numpy() for column in columns[2:]])
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    assert rows["pace"].to_pylist() == [classes[k] for k in probabilities.argmax(axis=1)]
    assert rows["pace_probability"].to_numpy() == pytest.approx(probabilities.max(axis=1))
    assert len(set(rows["pace"].to_pylist())) == 3

    project_predictions(lake, MODEL, SCORED, run_id="project")
    with lake.engine.connect() as connection:
        stored = connection.execute(sa.text(f"SELECT pace, pace_probability FROM {sql_name(MODEL)}")).fetchall()
    assert sorted(map(tuple, stored)) == sorted(
        zip(rows["pace"].to_pylist(), rows["pace_probability"].to_pylist(), strict=True)
    )

    drift(lake, MODEL, SCORED, run_id="drift")
    performance(lake, MODEL, SCORED, run_id="performance")
    drifts = read_metrics(lake, MODEL, "drift", SCORED).to_pylist()
    watched = {row["column"]: row for row in drifts if row["check"] == "prediction_drift"}
    assert set(watched) == set(columns)
    measured = read_metrics(lake, MODEL, "performance", SCORED).to_pylist()
    of_night = {row["check"]: row for row in measured if row["about_date"] == MATURE and not row["segment"]}
    truth = labels(lake, MODEL, Interval.of(MATURE), as_of=SCORED.last)["label"].to_numpy()
    came = ~np.isnan(truth)
    said = probabilities[np.asarray(pc.equal(rows["data_date"], MATURE))][came]
    positions = truth[came].astype(int) // (1 if label == "pace" else 10)
    assert of_night["log_loss"]["value"] == pytest.approx(-np.log(said[np.arange(len(said)), positions]).mean())
    assert of_night["accuracy"]["value"] == pytest.approx((said.argmax(axis=1) == positions).mean())
    assert of_night["macro_f1"]["status"] == "ok"
    if gate == "macro_f1_loss":
        macro = f1_score(positions, said.argmax(axis=1), average="macro")
        assert of_night[gate]["value"] == pytest.approx(1 - macro, abs=1e-6)
        assert of_night["macro_f1_loss_baseline"]["value"] > 0.6, "it says one class alone"
    assert of_night["error_ratio"]["value"] < 1
    assert {row["segment"] for row in measured} >= {"depot=north", "depot=south"}

    assert report(lake, MODEL, Interval.of(MATURE), run_id="report").committed == 2
    page = (settings.reports / MODEL / MATURE.isoformat() / "performance.html").read_text(encoding="utf-8")
    assert len(page) > 1_000_000, "Evidently's part is missing"
    assert "is not drawn" not in page

    card = write_model_card(lake, MODEL, job_dir, registered, decision).read_text(encoding="utf-8")
    shown = unescape(re.sub(r"<[^>]+>", " ", card))
    for words in (
        f"which of {', '.join(map(str, classes))} {label} will be, with the probability of each",
        "macro F1, each class counting alike",
        "share of classes that were said right",
        "log loss",
    ):
        assert words in shown, words
    assert "pace: classes said" not in shown  # it is drawn
    assert card.count("data:image/png;base64") >= 5

    context = Context(lake, Viewer("ada", "viewer"), datetime(2024, 3, 9, tzinfo=UTC), (MODEL,), ("rides",))
    whole = unescape(render(model_page.page(context, query={}, model=MODEL), context, path="/nightfleet/model"))
    assert gate in whole
    one = rows.slice(0, 1).to_pylist()[0]
    traced = trace_page.page(context, query={"id": one["prediction_id"]})
    text = unescape(render(traced, context, path="/nightfleet/trace"))
    assert str(one["pace"]) in text
    assert all(str(value) in text for value in classes)


def test_a_label_outside_the_classes_stops_with_a_way_out(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, dataset=DATASET, model=None)
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(YAML, encoding="utf-8")
    lake = Lake(lake.settings, load_catalog(lake.settings))
    night = Interval.of(date(2024, 2, 1))
    toy.publish_valid(lake, Interval.of(night.start + ONE_DAY), tables=("bookings",))
    toy.publish_valid(lake, night, tables=("bookings",))
    rides = toy.generate(Interval.closed(night.start, night.start + ONE_DAY))
    hovering = pa.array(["hovering"] * rides.outcomes.num_rows)
    rows = toy.with_lake_columns(lake, "outcomes", rides.outcomes.append_column("pace", hovering))
    rows = rows.append_column("rank", pa.nulls(rows.num_rows, pa.int64()))
    table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    toy.publish_rows(lake, table, rows, Interval.closed(night.start, night.start + ONE_DAY))
    with pytest.raises(UnknownClass, match=r"pace = 'hovering', which is none of brisk, steady, slow.\s+Add it to"):
        labels(lake, MODEL, night, as_of=night.start + ONE_DAY)
