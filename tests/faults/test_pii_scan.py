"""Personal data planted in a column that is entity, feature and target of checks is nowhere but where it must be: in
the lake, in the stores that serve it, in what a training is given, and in the predictions that name whom they are for.
"""

from __future__ import annotations

import json
import logging
import math
import struct
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.masking import HIDDEN
from features.ingest import ingest
from features.materialize import materialize
from features.transform import FeatureSqlFailed, transform
from features.validate import DataRejected, validate
from lake.lake import Lake
from lake.ledger import Promotion
from monitoring.drift import drift
from monitoring.pages import data, drift_report, model, reports, retraining, tonight, trace
from monitoring.pages.page import Context, Page, Viewer, to_csv
from monitoring.pages.render import render
from monitoring.performance import performance
from serving.projection import project_predictions, sql_name
from serving.score import score
from tests import toy
from training.__main__ import run
from training.registry.coarse import Grid
from training.registry.explanation import explain
from training.registry.gate import judge
from training.registry.job import PersonalFeature, gate_folder, prepare_job
from training.registry.leakage import audit
from training.registry.register import register

MODEL = "ride_minutes"
PERSON, BADGE = "Planted Person", "vehicle_daily__badge"
BADGES = [8141592.625 + 1000 * number for number in range(6)]
AS_OF = date(2024, 1, 18)
HISTORY = Interval.closed(toy.FIRST, AS_OF)
NIGHTS = Interval.closed(AS_OF + ONE_DAY, date(2024, 1, 20))

VEHICLE = "vehicle: {type: string, nullable: false, description: the vehicle}"
MINUTES = "      minutes: {type: float64, unit: minutes, description: duration; null when it was not measured}\n"
FEATURE = "      minutes_7d: {type: float64, unit: minutes, description: mean duration of the last seven days}\n"
DATASET_YAML = (
    toy.DATASET_YAML.replace(VEHICLE, VEHICLE.replace("}", ", pii: true}"))
    .replace(MINUTES, f"{MINUTES}      badge: {{type: float64, pii: true, description: the driver's badge}}\n")
    .replace(FEATURE, f"{FEATURE}      badge: {{type: float64, pii: true, description: the driver's newest badge}}\n")
    .replace("    known_at: {column: end_utc}\n", "    known_at: {column: end_utc}\n    quality: {stop_share: 0.9}\n")
    .replace(
        "      - {rule: between, column: minutes, min: 0, max: 600}\n",
        "      - {rule: between, column: minutes, min: 0, max: 600}\n"
        f"      - {{rule: between, column: badge, max: {BADGES[5] - 100}}}\n"  # one vehicle in six breaks it
        "      - {rule: matches, column: vehicle, regex: 'v[0-4]$'}\n",
    )
)
MODEL_YAML = toy.MODEL_YAML.replace(
    "train: 21 days, validation: 5 days, test: 7 days", "train: 7 days, validation: 2 days, test: 3 days"
)
VIEW_SQL = toy.VIEW_SQL.replace("\nFROM nights", ",\n    max(o.badge) AS badge\nFROM nights")


@dataclass(frozen=True)
class Chain:
    """An installation after some nights; nothing of it is changed.

    Attributes:
        store: where MLflow keeps database and artifacts.
        said: what was logged meanwhile.
    """

    lake: Lake
    store: Path
    job_dir: Path
    said: list[str]


def planted(folder: Path, **catalog: Any) -> Lake:
    """The sources, with personal data in them."""
    rides = toy.generate(Interval(toy.FIRST, NIGHTS.end + ONE_DAY), per_day=12)
    names = pa.array([f"{PERSON} v{number}" for number in range(6)])
    for table, rows in (("bookings", rides.bookings), ("outcomes", rides.outcomes)):
        number = pc.utf8_slice_codeunits(rows["vehicle"], 1).cast(pa.int64()).combine_chunks()
        rows = rows.set_column(rows.column_names.index("vehicle"), "vehicle", names.take(number))
        if table == "outcomes":
            rows = rows.append_column("badge", pa.array(BADGES).take(number))
        toy.write_csv(folder / "source" / f"{table}.csv", rows)
    given = {"dataset": DATASET_YAML, "model": MODEL_YAML, "sql": {"rides/vehicle_daily.sql": VIEW_SQL}} | catalog
    settings = toy.write_catalog(folder, **given)
    return Lake(settings, load_catalog(settings))


class Said(logging.Handler):
    """What is logged, with the traceback of an error."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """From the sources to reports, with a model that MLflow has, too."""
    import mlflow

    folder, store = tmp_path_factory.mktemp("planted"), tmp_path_factory.mktemp("mlflow")
    handler, logger = Said(), logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    patch = pytest.MonkeyPatch()
    patch.chdir(store)  # where MLflow keeps the artifacts of such a database
    before, uri = mlflow.get_tracking_uri(), f"sqlite:///{store / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    made = planted(folder)
    lake = replace(made, settings=made.settings.model_copy(update={"mlflow_tracking_uri": uri}))
    for nights in (HISTORY, NIGHTS):
        for stage in (ingest, validate, transform):
            stage(lake, "rides", nights, run_id="r")
    materialize(lake, "rides", Interval.of(NIGHTS.last), run_id="r")
    job_dir = prepare_job(lake, MODEL, as_of=AS_OF, run_id="r")
    run(job_dir)
    registered = register(lake, MODEL, job_dir, run_id="r")
    decision = judge(lake, MODEL, job_dir, registered, run_id="r")
    explained = lake.settings.reports / MODEL / "explained"
    explained.mkdir(parents=True)
    explain(lake, MODEL, job_dir, registered, decision, folder=explained)
    ledger, at = lake.ledger(MODEL), datetime(2024, 1, 19, tzinfo=UTC)
    line = Promotion(MODEL, 1, AS_OF, NIGHTS.start, at, "gate", registered.artifact_digest, decision.evidence_digest)
    ledger.append(line, seen=ledger.read())
    score(lake, MODEL, NIGHTS, run_id="r")
    project_predictions(lake, MODEL, NIGHTS, run_id="r")
    for watch in (drift, performance, reports.report):
        watch(lake, MODEL, NIGHTS, run_id="r")
    yield Chain(lake, store, job_dir, handler.lines)
    patch.undo()
    mlflow.set_tracking_uri(before)
    logger.removeHandler(handler)
    logger.setLevel(level)
    lake.engine.dispose()


def spelled() -> list[bytes]:
    """The planted values as texts and as the bytes of a double."""
    texts = [PERSON, *(repr(badge) for badge in BADGES), *(f"{badge:,}" for badge in BADGES)]
    return [text.encode() for text in texts] + [struct.pack("<d", badge) for badge in BADGES]


def holds(content: bytes) -> bool:
    """Whether there is a planted value in it."""
    return any(value in content for value in spelled())


def rows_of(path: Path) -> bytes:
    """A Parquet file as text: its pages are packed."""
    return json.dumps(pq.read_table(path).to_pydict(), default=str).encode()


def written(chain: Chain) -> dict[str, bytes]:
    """Every file that the chain wrote, but for those that hold rows on purpose; SQL without the predictions."""
    home, settings = chain.lake.settings.home, chain.lake.settings
    # The lake, copies of the sources, and the online store with SQLite's files beside it.
    rows = (settings.lake, home / "cache" / "sources", settings.online_store)
    files = [path for root in (home, chain.store) for path in root.rglob("*") if path.is_file()]
    given = {
        chain.job_dir / "training_set.parquet",
        *(gate_folder(chain.job_dir) / f"{name}_set.parquet" for name in ("test", "unlabelled")),
    }
    contents = {
        str(path): rows_of(path) if path.suffix == ".parquet" else path.read_bytes()
        for path in files
        if path not in given
        and not any(str(path).startswith(str(place)) for place in rows)
        and not path.name.startswith("nightfleet.db")
        and path.parent.name != "model"  # what the trainer learned: a tree's thresholds are values
    }
    engine = chain.lake.engine
    for table in set(sa.inspect(engine).get_table_names()) - {sql_name(MODEL)}:
        with engine.connect() as connection:
            values = connection.execute(sa.text(f'SELECT * FROM "{table}"')).fetchall()
        contents[f"SQL {table}"] = repr(values).encode()
    return contents


def test_what_the_chain_wrote(chain: Chain) -> None:
    contents = written(chain)
    names = " ".join(contents)
    looked_at = ("reference.json", "reference_sample.parquet", "manifest.json", "drift.html", "input_example.json")
    for name in (*looked_at, "explanation.json", "segments.json", "events.jsonl", "SQL metrics", "SQL decisions"):
        assert name in names, f"{name} was not looked at"
    leaking = [place for place, content in contents.items() if holds(content)]
    leaking += [line for line in chain.said if holds(line.encode())]
    assert not leaking, "personal data in:\n" + "\n".join(leaking)


def test_what_is_measured_all_the_same(chain: Chain) -> None:
    from lake.metrics import metrics_table

    rows = metrics_table(chain.lake.settings, MODEL, "drift").read([NIGHTS.last]).to_pylist()
    badge = {row["check"]: row for row in rows if row["column"] == BADGE}
    assert badge["drift_psi"]["value"] is not None
    assert badge["null_rate"]["value"] is not None
    assert set(badge) == {"drift_psi", "null_rate"}, "a mean of one row is that row's value"
    page = (chain.lake.settings.reports / MODEL / NIGHTS.last.isoformat() / "drift.html").read_text()
    assert f"{BADGE} is personal data: it is measured, but not drawn" in page


def served(chain: Chain) -> dict[str, Page]:
    context = Context(
        chain.lake, Viewer("ada", "viewer"), datetime(2024, 1, 21, tzinfo=UTC), (MODEL,), ("rides",), csrf_token="t"
    )
    example = trace.page(context, query={}).table("examples").rows[0]
    night = NIGHTS.last.isoformat()
    pages = {
        "tonight": tonight.page(context, query={}),
        "model": model.page(context, query={}, model=MODEL),
        "drift report": drift_report.page(context, query={}, model=MODEL, night=night),
        "retraining": retraining.page(context, query={}),
        "data": data.page(context, query={"night": night}, dataset="rides"),
        "trace": trace.page(context, query={"id": example["id"]}),
    }
    for name, page in pages.items():
        assert not holds(render(page, context, path="/nightfleet").encode()), name
    return pages


def test_what_is_served(chain: Chain) -> None:
    pages = served(chain)
    for name, page in pages.items():
        for table in page.tables:
            assert not holds(to_csv(table).encode()), f"{name}, {table.name}"


def test_what_the_leakage_audit_finds(chain: Chain, tmp_path: Path) -> None:
    rows = pq.read_table(chain.job_dir / "training_set.parquet")
    moved = pc.add(rows[BADGE], 1.0)
    changed = tmp_path / "rows.parquet"
    pq.write_table(rows.set_column(rows.column_names.index(BADGE), BADGE, moved), changed)
    pins = json.loads((gate_folder(chain.job_dir) / "training_set.json").read_text())["pins"]
    found = audit(chain.lake, MODEL, as_of=AS_OF, files=[changed], pins=pins, nights=1)
    assert found.differing > 0
    assert HIDDEN in str(found.findings[0])
    told = json.dumps(found.to_json()) + "".join(map(str, found.findings))
    assert not holds(told.encode())


@pytest.mark.parametrize("column", ["o.vehicle", "o.badge"])
def test_an_error_of_a_feature_s_sql(tmp_path: Path, column: str) -> None:
    cast = f"max(CAST(CAST({column} AS VARCHAR) || 'x' AS BIGINT)) AS rides_7d"
    lake = planted(tmp_path, sql={"rides/vehicle_daily.sql": VIEW_SQL.replace("count(*) AS rides_7d", cast)})
    night = Interval.of(toy.FIRST)
    for stage in (ingest, validate):
        stage(lake, "rides", night, run_id="r")
    with pytest.raises(FeatureSqlFailed, match="ConversionException.*its text is hidden") as refused:
        transform(lake, "rides", night, run_id="r")
    assert not holds("".join(traceback.format_exception(refused.value)).encode())


def test_examples_of_a_rejection(tmp_path: Path) -> None:
    text = DATASET_YAML.replace("stop_share: 0.9", "stop_share: 0.01")
    lake = planted(tmp_path, dataset=text)
    night = Interval.closed(toy.FIRST, toy.FIRST + ONE_DAY)
    ingest(lake, "rides", night, run_id="r")
    with pytest.raises(DataRejected) as refused:
        validate(lake, "rides", night, run_id="r")
    assert not holds("".join(traceback.format_exception(refused.value)).encode())


def test_a_text_that_is_personal_data_is_no_feature(tmp_path: Path) -> None:
    text = DATASET_YAML.replace(
        "badge: {type: float64, pii: true, description: the driver's newest",
        "badge: {type: string, pii: true, description: the driver's newest",
    )
    lake = planted(tmp_path, dataset=text)
    with pytest.raises(PersonalFeature, match=f"reads {BADGE}, a text that is personal data"):
        prepare_job(lake, MODEL, as_of=AS_OF, run_id="r")
    assert not lake.settings.jobs.exists()


@pytest.mark.parametrize(
    ("edges", "step", "lines"),
    [
        ([18.0, 33.0, 47.0, 81.0], 10.0, 9),
        ([8141592.625, 8146592.625], 500.0, 12),
        ([0.123], 0.02, 2),
        ([-math.inf, 0.0, math.inf], 0.1, 1),
        ([], 0.1, 1),
    ],
)
def test_the_grid(edges: list[float], step: float, lines: int) -> None:
    grid = Grid.of(edges)
    assert grid.step == pytest.approx(step)
    assert len(grid.lines) == lines
    near = grid.nearest(np.array([math.nan, 1e300, -math.inf]))
    assert np.isnan(near[0])
    assert near[1] == grid.lines[-1]
    assert near[2] == grid.lines[0]
