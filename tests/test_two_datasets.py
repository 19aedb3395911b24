"""A model that takes features of two data sets, which lie in two catalog folders: from the sources to its trace."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cli.chain import make_plan
from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from features.ingest import ingest
from features.training_set import NotEnoughHistory, build_training_set
from features.transform import transform
from features.validate import validate
from lake.artifact import combined_digest
from lake.lake import Lake
from lake.ledger import Promotion
from lake.lineage import PartitionNotReady
from lake.metrics import metrics_table
from monitoring.alerting.standing import tables_read
from monitoring.audit.trace import reproduce, trace
from monitoring.drift import drift
from serving.predictions import predictions_table
from serving.predictors import read_manifest
from serving.projection import project_predictions
from serving.score import score
from tests import toy
from training.__main__ import run
from training.registry.job import gate_folder, prepare_job
from training.registry.leakage import audit
from training.registry.register import store

MODEL = "ride_minutes"
TEMPERATURE = "weather.depot_weather__temperature_c"
AS_OF = date(2024, 1, 26)
HISTORY = Interval.closed(toy.FIRST, AS_OF)
NIGHTS = Interval.closed(AS_OF + ONE_DAY, date(2024, 1, 28))

WEATHER_YAML = """
dataset: weather
title: Weather at the depots
owner: fleet
owner_url: mailto:fleet@example.com
licence: CC0-1.0
time_zone: Europe/Berlin
replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}
tables:
  observations:
    description: What was measured at a depot on a day, known in its evening.
    source: {kind: file, uri: data/observations.csv}
    key: [event_date, depot]
    known_at: {sql: "timezone('Europe/Berlin', CAST(event_date AS TIMESTAMP) + INTERVAL 20 HOUR)"}
    columns:
      event_date: {type: date, nullable: false, description: day of the measurement}
      depot: {type: string, nullable: false, description: where it was measured}
      temperature_c: {type: float64, unit: °C, description: mean of the day}
features:
  depot_weather:
    description: The day's weather at the depot.
    entities: [depot]
    reads: [observations]
    lookback: 1 day
    ttl: 1 day
    columns:
      temperature_c: {type: float64, unit: °C, description: mean of the day}
"""
WEATHER_SQL = """
SELECT n.data_date, o.depot, max(o.temperature_c) AS temperature_c
FROM nights AS n JOIN observations AS o
    ON o.data_date = n.data_date AND (o.superseded_on IS NULL OR o.superseded_on > n.data_date)
GROUP BY n.data_date, o.depot
"""
MODEL_YAML = toy.MODEL_YAML.replace("[vehicle_daily]", "[vehicle_daily, weather.depot_weather]").replace(
    "train: 21 days, validation: 5 days, test: 7 days", "train: 12 days, validation: 3 days, test: 5 days"
)


def observations(interval: Interval) -> pa.Table:
    """One temperature a depot and day."""
    days, depots = list(interval), toy.DEPOTS
    return pa.table(
        {
            "event_date": pa.array([day for day in days for _ in depots], pa.date32()),
            "depot": [depot for _ in days for depot in depots],
            "temperature_c": [day.day / 3 + 5.0 * place for day in days for place in range(len(depots))],
        }
    )


def two_datasets(folder: Path) -> Lake:
    """Rides in one catalog folder, weather in the other, with the sources of every night."""
    whole = Interval(toy.FIRST, NIGHTS.end + ONE_DAY)
    rides = toy.generate(whole, per_day=20)
    toy.write_csv(folder / "rides" / "source" / "bookings.csv", rides.bookings)
    toy.write_csv(folder / "rides" / "source" / "outcomes.csv", rides.outcomes)
    toy.write_csv(folder / "weather" / "data" / "observations.csv", observations(whole))
    for name, text in (("datasets/weather.yaml", WEATHER_YAML), ("sql/weather/depot_weather.sql", WEATHER_SQL)):
        (folder / "weather" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weather" / name).write_text(text, encoding="utf-8")
    return opened(folder)


def opened(folder: Path) -> Lake:
    settings = toy.write_catalog(folder / "rides", model=MODEL_YAML).model_copy(
        update={"catalogs": (folder / "rides", folder / "weather"), "mlflow_tracking_uri": "http://127.0.0.1:9"}
    )
    return Lake(settings, load_catalog(settings))


def publish_night(lake: Lake, interval: Interval, datasets: tuple[str, ...] = ("rides", "weather")) -> None:
    for dataset in datasets:
        for stage in (ingest, validate, transform):
            stage(lake, dataset, interval, run_id="test")


@dataclass(frozen=True)
class Trained:
    """The installation after its history, with a first champion."""

    folder: Path
    lake: Lake
    job_dir: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("two")
    lake = two_datasets(folder)
    publish_night(lake, HISTORY)
    job_dir = prepare_job(lake, MODEL, as_of=AS_OF, run_id="first")
    run(job_dir)
    digest = combined_digest(read_manifest(job_dir)["artifacts"])
    store(lake, MODEL, job_dir, digest)
    ledger = lake.ledger(MODEL)
    ledger.append(
        Promotion(
            model=MODEL,
            version=1,
            trained_until=AS_OF,
            effective_from=NIGHTS.start,
            decided_at=datetime(2024, 1, 27, tzinfo=UTC),
            by="gate",
            artifact_digest=digest,
            evidence_digest="evidence",
        ),
        seen=ledger.read(),
    )
    return Trained(folder, lake, job_dir)


def scored(lake: Lake) -> dict[date, str | None]:
    """Digest of each night's predictions."""
    return lake.publications.digests(predictions_table(lake.settings, lake.model(MODEL)), NIGHTS)


def described_set(trained: Trained) -> dict[str, Any]:
    return dict(json.loads((gate_folder(trained.job_dir) / "training_set.json").read_text()))


def copy_of(trained: Trained, folder: Path) -> Lake:
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
    return opened(folder)


def test_the_other_data_sets_features_stand_beside_the_own(trained: Trained) -> None:
    lake, entry = trained.lake, trained.lake.model(MODEL)
    assert [d.name for d in lake.catalog.datasets_of(entry)] == ["rides", "weather"]
    assert list(lake.catalog.feature_columns(entry)) == [
        "vehicle_daily__rides_7d",
        "vehicle_daily__minutes_7d",
        TEMPERATURE,
    ]
    assert [m.name for m in lake.catalog.readers_of("weather")] == [MODEL]
    assert lake.catalog.models_of("weather") == ()
    assert tables_read(lake, entry) == {("rides", "bookings"), ("rides", "outcomes"), ("weather", "observations")}


def test_the_training_set_has_the_values_of_each_rows_own_night(trained: Trained) -> None:
    rows = pq.read_table(trained.job_dir / "training_set.parquet")
    expected = {(r["event_date"], r["depot"]): r["temperature_c"] for r in observations(HISTORY).to_pylist()}
    assert rows.num_rows > 200
    for night, depot, value in zip(
        *(rows[name].to_pylist() for name in ("data_date", "depot", TEMPERATURE)), strict=True
    ):
        assert value == expected[night, depot]
    described = described_set(trained)
    assert set(described["pins"]) == {"vehicle_daily", "weather.depot_weather"}
    assert {item["table"] for item in described["inputs"]} >= {"weather/features/depot_weather"}


def test_the_leakage_audit_looks_into_both(trained: Trained) -> None:
    lake, described = trained.lake, described_set(trained)
    files = [trained.job_dir / "training_set.parquet", gate_folder(trained.job_dir) / "test_set.parquet"]
    honest = audit(lake, MODEL, as_of=AS_OF, files=files, pins=described["pins"], nights=2)
    assert honest.differing == 0
    rows = pq.read_table(files[1])
    warmer = rows.set_column(rows.column_names.index(TEMPERATURE), TEMPERATURE, pc.add(rows[TEMPERATURE], 1.0))
    pq.write_table(warmer, trained.folder / "warmer.parquet")
    found = audit(lake, MODEL, as_of=AS_OF, files=[trained.folder / "warmer.parquet"], pins=described["pins"], nights=1)
    assert {(finding.source, finding.column) for finding in found.findings} == {
        ("weather.depot_weather", "temperature_c")
    }


def test_backfill_equals_nightly_and_every_row_is_traced_to_both(trained: Trained, tmp_path: Path) -> None:
    nightly, bulk = copy_of(trained, tmp_path / "nightly"), copy_of(trained, tmp_path / "bulk")
    for day in NIGHTS:
        publish_night(nightly, Interval.of(day))
        score(nightly, MODEL, Interval.of(day), run_id=f"night {day}")
    publish_night(bulk, NIGHTS)
    score(bulk, MODEL, NIGHTS, run_id="bulk")
    digests = [
        lake.publications.digests(predictions_table(lake.settings, lake.model(MODEL)), NIGHTS)
        for lake in (nightly, bulk)
    ]
    assert digests[0] == digests[1]
    assert set(digests[0]) == set(NIGHTS)

    project_predictions(bulk, MODEL, NIGHTS, run_id="bulk")
    row = predictions_table(bulk.settings, bulk.model(MODEL)).read([NIGHTS.last]).to_pylist()[0]
    views = {view.view: view for view in trace(bulk, row["prediction_id"]).features}
    assert set(views) == {"vehicle_daily", "weather.depot_weather"}
    weather = views["weather.depot_weather"]
    assert weather.partition is not None
    assert (weather.partition.table, weather.partition.data_date) == ("weather/features/depot_weather", NIGHTS.last)
    assert weather.values["temperature_c"] is not None
    assert reproduce(bulk, row["prediction_id"]).equal

    judged = drift(bulk, MODEL, Interval.of(NIGHTS.last), run_id="bulk")
    rows = metrics_table(bulk.settings, MODEL, "drift").read([NIGHTS.last]).to_pylist()
    psi = {row["column"]: row["status"] for row in rows if row["check"] == "drift_psi"}
    assert judged.rows == len(rows)
    assert psi[TEMPERATURE] != "not_evaluated"


def test_a_night_waits_for_the_other_data_set_by_name(trained: Trained, tmp_path: Path) -> None:
    lake = copy_of(trained, tmp_path)
    publish_night(lake, NIGHTS, ("rides",))
    with pytest.raises(PartitionNotReady, match="weather/features/depot_weather has no partition") as caught:
        score(lake, MODEL, Interval.of(NIGHTS.start), run_id="early")
    assert f"Run `weather_ingest` for {NIGHTS.start}" in str(caught.value)


def test_history_is_that_of_the_younger_data_set(tmp_path: Path) -> None:
    folder = tmp_path
    two_datasets(folder)
    path = folder / "weather" / "datasets" / "weather.yaml"
    path.write_text(WEATHER_YAML.replace("from: 2024-01-01", "from: 2024-01-20"))
    with pytest.raises(NotEnoughHistory, match="but weather begins with 2024-01-20"):
        build_training_set(opened(folder), MODEL, AS_OF, tmp_path)


def test_a_run_begins_both_with_the_same_night_and_never_one_alone(tmp_path: Path) -> None:
    two_datasets(tmp_path)
    path = tmp_path / "weather" / "datasets" / "weather.yaml"
    path.write_text(WEATHER_YAML.replace("first_night: 2024-03-01", "first_night: 2024-02-01"))
    lake = opened(tmp_path)
    for plan in (make_plan(lake, 2, None), make_plan(lake, 2, None, ["rides"])):
        assert plan.first_nights == {"rides": toy.FIRST_NIGHT, "weather": toy.FIRST_NIGHT}
        assert plan.history == dict.fromkeys(("rides", "weather"), Interval(toy.FIRST, toy.FIRST_NIGHT))
