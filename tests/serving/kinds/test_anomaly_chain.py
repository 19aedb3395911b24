"""A detector of anomalies through the whole chain in one process: from its sources to the pages."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from features.labels import labels
from lake.lake import Lake
from lake.ledger import Promotion
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
from serving.projection import project_predictions, sql_name
from serving.score import score
from tests import toy
from tests.serving.kinds.chain import features
from training.__main__ import run
from training.registry.decision import Decision
from training.registry.gate import judge
from training.registry.job import prepare_job
from training.registry.promotion import promote
from training.registry.register import Registered, register

AS_OF = date(2024, 3, 1)
SCORED = Interval.closed(date(2024, 3, 2), date(2024, 3, 8))
MATURE = date(2024, 3, 6)
MODEL = "odd_vehicle"
COLUMNS = ["odd", "odd_is_anomaly", "odd_type", "odd_severity"]

DATASET = toy.DATASET_YAML.replace(
    "      minutes: {type",
    "      odd: {type: int64, description: 1 where the workshop found the vehicle slow; null when nobody looked}\n"
    "      minutes: {type",
)
YAML = (
    toy.MODEL_YAML.replace("model: ride_minutes", f"model: {MODEL}")
    .replace("column: minutes", "column: odd")
    .replace("worst: 1.5", "worst: 9")
    .replace("family: xgboost, params: {n_estimators: 20, max_depth: 3}", "family: isolation_forest, params: {}")
)
YAML = (
    YAML[: YAML.index("outputs:")] + "outputs:\n  odd: {kind: anomaly, share: 0.1}\n" + YAML[YAML.index("trainer:") :]
)


def sources(folder: Path, *, found: bool = True) -> None:
    """Source files in which one vehicle after the other is slow for eight days of twelve; it is called odd from the
    fourth of them until its mean of a week is as before.
    """
    rides = toy.generate(Interval.closed(toy.FIRST, AS_OF + 14 * ONE_DAY), per_day=60, vehicles=9)
    day = rides.outcomes["event_date"].cast(pa.int32()).to_numpy() - (toy.FIRST - date(1970, 1, 1)).days
    vehicle = pc.cast(pc.utf8_slice_codeunits(rides.outcomes["vehicle"], 1), pa.int64()).to_numpy()
    slow = (day // 12 * 4 % 9 == vehicle) & (day % 12 < 8)
    minutes = np.asarray(rides.outcomes["minutes"], np.float64) * np.where(slow, 4.0, 1.0)
    odd = (((day - 3) // 12 * 4 % 9 == vehicle) & ((day - 3) % 12 < 11) & found).astype(np.int64)
    missing = np.isnan(minutes)
    outcomes = rides.outcomes.set_column(
        rides.outcomes.schema.get_field_index("minutes"), "minutes", pa.array(np.round(minutes, 1), mask=missing)
    ).append_column("odd", pa.array(odd, mask=missing))
    toy.write_csv(folder / "source" / "bookings.csv", rides.bookings)
    toy.write_csv(folder / "source" / "outcomes.csv", outcomes)


def lake_with(tmp_path: Path, mlflow_server: str, yaml: str = YAML, *, found: bool = True) -> Lake:
    lake = toy.toy_lake(tmp_path, dataset=DATASET, model=None)
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(yaml, encoding="utf-8")
    settings = lake.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server})
    lake = Lake(settings, load_catalog(settings))
    sources(tmp_path, found=found)
    features(lake, "rides", Interval.closed(toy.FIRST, AS_OF))
    return lake


def trained(lake: Lake, as_of: date = AS_OF, **params: int) -> tuple[Path, Registered, Decision]:
    overrides = {"threads": 1, "n_estimators": 40} | params
    job_dir = prepare_job(lake, MODEL, as_of=as_of, run_id=f"train-{as_of}", overrides=overrides)
    run(job_dir)
    registered = register(lake, MODEL, job_dir, run_id="register")
    return job_dir, registered, judge(lake, MODEL, job_dir, registered, run_id="gate")


def test_an_anomaly_goes_from_the_sources_to_the_pages(tmp_path: Path, mlflow_server: str) -> None:
    lake = lake_with(tmp_path, mlflow_server)
    settings = lake.settings
    job_dir, registered, decision = trained(lake)
    assert decision.verdict == "promote", decision.reasons
    assert "of the baseline (one score for all rows)" in decision.reasons[0].text
    assert promote(lake, decision, registered, by="test") is not None

    features(lake, "rides", SCORED)
    assert score(lake, MODEL, SCORED, run_id="score").rows == 60 * len(SCORED)
    rows = predictions_table(settings, lake.model(MODEL)).read(SCORED)
    assert list(lake.model(MODEL).output_columns) == COLUMNS
    flagged = np.asarray(rows["odd_is_anomaly"])
    assert 0 < flagged.mean() < 0.4
    assert set(rows["odd_type"].filter(pa.array(flagged)).to_pylist()) <= {
        "vehicle_daily__minutes_7d",
        "vehicle_daily__rides_7d",
    }
    assert set(rows["odd_type"].filter(pa.array(~flagged)).to_pylist()) == {"none"}
    strange = np.asarray(rows["odd"])
    assert strange[flagged].min() > strange[~flagged].max()

    project_predictions(lake, MODEL, SCORED, run_id="project")
    with lake.engine.connect() as connection:
        stored = connection.execute(sa.text(f"SELECT odd, odd_is_anomaly, odd_type FROM {sql_name(MODEL)}")).fetchall()
    assert sorted((s, bool(f), t) for s, f, t in stored) == sorted(
        zip(*(rows[column].to_pylist() for column in COLUMNS[:3]), strict=True)
    )

    drift(lake, MODEL, SCORED, run_id="drift")
    performance(lake, MODEL, SCORED, run_id="performance")
    drifts = read_metrics(lake, MODEL, "drift", SCORED).to_pylist()
    assert {row["column"] for row in drifts if row["check"] == "prediction_drift"} == set(COLUMNS)
    measured = read_metrics(lake, MODEL, "performance", SCORED).to_pylist()
    of_night = {row["check"]: row for row in measured if row["about_date"] == MATURE and not row["segment"]}
    truth = labels(lake, MODEL, Interval.of(MATURE), as_of=SCORED.last)["label"].to_numpy()
    came = ~np.isnan(truth)
    assert 0 < came.sum() < len(came), "labels of some rows never come"
    assert of_night["label_share"]["value"] == pytest.approx(came.mean(), abs=1e-6)
    flags = flagged[np.asarray(pc.equal(rows["data_date"], MATURE))][came]
    assert of_night["flagged"]["value"] == pytest.approx(flags.mean(), abs=1e-6)
    assert of_night["recall"]["value"] == pytest.approx(flags[truth[came] > 0].mean(), abs=1e-6)
    assert of_night["average_precision_loss_baseline"]["value"] == pytest.approx(1 - truth[came].mean(), abs=1e-6)
    assert of_night["error_ratio"]["value"] < 1

    assert report(lake, MODEL, Interval.of(MATURE), run_id="report").committed == 2
    card = write_model_card(lake, MODEL, job_dir, registered, decision).read_text(encoding="utf-8")
    shown = unescape(re.sub(r"<[^>]+>", " ", card))
    for words in ("how strange a row is, without looking at odd", "share of anomalies that were flagged"):
        assert words in shown, words
    assert card.count("data:image/png;base64") >= 4

    context = Context(lake, Viewer("ada", "viewer"), datetime(2024, 3, 9, tzinfo=UTC), (MODEL,), ("rides",))
    whole = unescape(render(model_page.page(context, query={}, model=MODEL), context, path="/nightfleet/model"))
    assert "average_precision_loss" in whole
    one = rows.filter(pa.array(flagged)).slice(0, 1).to_pylist()[0]
    text = unescape(
        render(trace_page.page(context, query={"id": one["prediction_id"]}), context, path="/nightfleet/trace")
    )
    assert f"an anomaly by {one['odd_type']}, severity {one['odd_severity']}" in text
    assert reproduce(lake, one["prediction_id"]).equal


def test_without_labels_of_an_anomaly_a_challenger_follows_a_champion_that_it_agrees_with(
    tmp_path: Path, mlflow_server: str
) -> None:
    lake = lake_with(tmp_path, mlflow_server, found=False)
    _, first, decision = trained(lake)
    assert (decision.verdict, [reason.code for reason in decision.reasons]) == ("not_evaluated", ["nothing_to_tell"])
    assert re.match(r"odd: none of \d+ labelled rows was an anomaly, so nothing tells", decision.reasons[0].text)
    # A person's promotion of what no label judged is the champion from then on.
    ledger = lake.ledger(MODEL)
    line = Promotion(
        model=MODEL,
        version=first.version,
        trained_until=AS_OF,
        artifact_digest=first.artifact_digest,
        effective_from=AS_OF + ONE_DAY,
        decided_at=datetime(2024, 3, 1, 23, tzinfo=UTC),
        by="test",
        evidence_digest=decision.evidence_digest,
    )
    ledger.append(line, seen=ledger.read())
    later = AS_OF + 12 * ONE_DAY
    features(lake, "rides", Interval.closed(AS_OF + ONE_DAY, later))
    second = trained(lake, as_of=later, n_estimators=60)[2]
    assert (second.verdict, [reason.code for reason in second.reasons]) == ("promote", ["as_stable"])
    assert f"are also those of champion version {first.version}" in second.reasons[0].text
    strict = YAML.replace("share: 0.1", "share: 0.1, stable: 1.0")
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(strict, encoding="utf-8")
    third = trained(Lake(lake.settings, load_catalog(lake.settings)), as_of=later, n_estimators=1, max_samples=2)[2]
    assert (third.verdict, [reason.code for reason in third.reasons]) == ("not_evaluated", ["nothing_to_tell"])
    assert "100% are needed" in third.reasons[0].text
