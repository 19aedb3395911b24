"""A lake that the former version wrote goes on, opened, read, scored again, scored further, without anybody's doing.

`tests/data/former_lake/README.md` says what it holds.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Channel, Settings
from lake.assignment import Assignment, scored_by
from lake.lake import Lake
from lake.metrics import INDEXES, metrics_table, read_metrics
from lake.migrations import is_former
from monitoring.alerting.alarms import open_alarm, open_alarms, unsilence
from monitoring.alerting.nightly_summary import entries_of
from monitoring.alerting.outbox import events, outbox_table, tell
from monitoring.alerting.prometheus import scrape
from monitoring.alerting.rules import judge_alerts
from monitoring.audit.trace import reproduce
from monitoring.drift import drift
from monitoring.matured import judged_nights
from monitoring.pages import data, drift_report, model, retraining, tonight, trace
from monitoring.pages.reports import report
from monitoring.performance import performance
from monitoring.retraining_requests import decide_retraining
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import rescore, score
from tests.monitoring.pages.fleet import DATASET, context
from tests.serving.scenario import MODEL, use_linear

ARCHIVE = Path(__file__).parents[1] / "data" / "former_lake" / "lake.tar.xz"
SCORED = Interval.closed(date(2024, 2, 10), date(2024, 2, 17))
FURTHER = Interval.of(date(2024, 2, 18))
SECOND_FROM = date(2024, 2, 14)
ALARM = f"{MODEL}:champion:2/drift_share//"
SILENCED = f"{MODEL}:champion:2/drift_psi/vehicle_daily__minutes_7d/"
NOW = datetime(2024, 2, 18, 6, tzinfo=UTC)
BASE = "https://airflow.example.com"


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the unpacked lake, which nothing has opened yet."""
    use_linear(monkeypatch)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    hook = Channel(name="hook", kind="webhook", url_secret="hook_url", at_once=("critical", "warning"))
    return Settings(
        home=tmp_path / "var",
        catalog_dir=tmp_path / "catalog",
        sql_dir=tmp_path / "sql",
        duckdb_memory_gb=1.0,
        notifications=(hook,),
    )


@pytest.fixture
def lake(former: Settings) -> Lake:
    return Lake(former, load_catalog(former))


def version_of(night: date) -> int:
    return 1 if night < SECOND_FROM else 2


def digests(lake: Lake) -> dict[str, Any]:
    """Of every table that is recomputed here."""
    tables = [predictions_table(lake.settings, lake.model(MODEL), lake.dataset(DATASET))]
    tables += [metrics_table(lake.settings, MODEL, group) for group in ("drift", "performance")]
    return {table.name: lake.publications.digests(table, SCORED) for table in tables}


def test_scoring_again_commits_nothing_and_monitoring_at_most_once(lake: Lake) -> None:
    """Predictions are what they were for ever. A verdict follows the rules of the code that gives it, and is then the
    same each time.
    """
    before = digests(lake)
    assert all(None not in of_table.values() for of_table in before.values())
    for stage in (score, rescore):
        assert stage(lake, MODEL, SCORED, run_id="again").committed == 0, stage.__name__
    assert digests(lake) == before
    for judge in (drift, performance):
        judge(lake, MODEL, SCORED, run_id="again")
        assert judge(lake, MODEL, SCORED, run_id="once more").committed == 0, judge.__name__
    assert project_predictions(lake, MODEL, SCORED, run_id="again").committed == 0


def test_the_lake_reads_as_if_it_had_the_columns(lake: Lake) -> None:
    predictions = predictions_table(lake.settings, lake.model(MODEL), lake.dataset(DATASET))
    assert set(predictions.read()["served"].to_pylist()) == {True}
    for group in ("drift", "performance"):
        for row in read_metrics(lake, MODEL, group).to_pylist():
            known = row["reference"] is not None  # not where nothing was scored
            assert row["role"] == ("champion" if known else None)
            assert row["model_version"] == (version_of(row["about_date"]) if known else None)
    assert set(read_metrics(lake, DATASET, "quality")["role"].to_pylist()) == {None}
    publications = lake.publications.current(predictions, SCORED)
    for night, publication in publications.items():
        (assignment,) = scored_by(night, publication.details)
        promotion = lake.ledger(MODEL).read().champion_of(night)
        assert assignment == Assignment(
            "champion", version_of(night), promotion.artifact_digest, 1.0, promotion.sequence
        )


def test_the_database_is_brought_up_to_date_when_it_is_opened(former: Settings) -> None:
    engine = sa.create_engine(former.database_url)
    assert is_former(engine)
    lake = Lake(former, load_catalog(former), read_only=True)  # a page may be first
    with lake.engine.connect() as connection:
        metrics = connection.execute(sa.text("SELECT * FROM metrics")).mappings().all()
        served = connection.execute(sa.text(f"SELECT DISTINCT served FROM {sql_name(MODEL)}")).scalars().all()
        roles = connection.execute(sa.text("SELECT model_role, model_version FROM actions")).all()
    assert not is_former(engine)
    assert served == [1]
    assert set(roles) == {(None, None)}
    named = [row for row in metrics if (row["reference"] or "").startswith("version")]
    assert named
    for row in metrics:
        night = date.fromisoformat(row["about_date"])
        of_version = row in named
        assert (row["role"], row["model_version"]) == (("champion", version_of(night)) if of_version else (None, None))


def test_what_people_said_still_holds(lake: Lake) -> None:
    alarms = {alarm.fingerprint: alarm for alarm in open_alarms(lake, [MODEL], now=NOW)}
    assert alarms[ALARM].acknowledged is not None
    assert alarms[ALARM].acknowledged.by == "ada"
    assert alarms[SILENCED].silenced_until == date(2024, 2, 29)
    assert [a.fingerprint for a in alarms.values() if a.acknowledged or a.silenced_until] == [ALARM, SILENCED]
    # An address that somebody kept.
    assert open_alarm(lake, f"{MODEL}/drift_share//", now=NOW) == alarms[ALARM]
    unsilence(lake, SILENCED, by="ada", role="operator", reason="the garage is done", now=NOW)
    assert open_alarm(lake, SILENCED, now=NOW).silenced_until is None


def test_nobody_is_told_again_but_of_a_streak_that_a_promotion_cut(lake: Lake) -> None:
    """The second version's alarm on its intervals is one of its own: its streak began with the version."""
    told = events(lake, base_url=BASE, now=NOW)
    assert len(told) == 6
    assert tell(lake, told, now=NOW) == 1
    with lake.engine.connect() as connection:
        bodies = connection.execute(sa.select(outbox_table.c.body).order_by(outbox_table.c.created_at)).scalars().all()
    assert [line.split(" of ")[0] for line in bodies[-1].splitlines()[::2]] == ["warning: interval_coverage"]
    (entry,) = entries_of(lake, SCORED.last, [MODEL], base_url=BASE, now=NOW)
    assert entry.lines == ()
    assert entry.acknowledged == 1


def test_a_further_night(lake: Lake) -> None:
    for stage in (score, project_predictions, drift, performance, report):
        assert stage(lake, MODEL, FURTHER, run_id="further").committed >= 1, stage.__name__
    decide_retraining(lake, MODEL, FURTHER.start, run_id="further")
    judge_alerts(lake, MODEL, FURTHER.start, run_id="further", now=NOW)
    rows = read_metrics(lake, MODEL, "drift")
    assert {(row["role"], row["model_version"]) for row in rows.to_pylist() if row["data_date"] >= SECOND_FROM} == {
        ("champion", 2)
    }
    table = predictions_table(lake.settings, lake.model(MODEL), lake.dataset(DATASET))
    assert set(table.read()["served"].to_pylist()) == {True}
    assert [n.version for n in judged_nights(lake, [MODEL], SCORED)[MODEL, "ride_minutes"]] == [1, 1, 1, 1, 2, 2, 2]
    indexes = {tuple(index["column_names"]) for index in sa.inspect(lake.engine).get_indexes("metrics")}
    assert set(INDEXES) <= indexes
    assert digests(lake)[table.name] == {
        day: publication.digest for day, publication in lake.publications.current(table, SCORED).items()
    }
    # Nothing of before was committed again.
    assert {p.version for p in lake.publications.current(table, SCORED).values()} == {1}


def test_pages_and_trace_read_it(former: Settings) -> None:
    lake = Lake(former, load_catalog(former), read_only=True)
    reading = context(lake, now=NOW)
    example = trace.page(reading, query={}).table("examples").rows[0]["id"]
    pages: list[Callable[[], Any]] = [
        lambda: tonight.page(reading, query={}),
        lambda: model.page(reading, query={}, model=MODEL),
        lambda: drift_report.page(reading, query={}, model=MODEL, night=SCORED.last.isoformat()),
        lambda: retraining.page(reading, query={}),
        lambda: data.page(reading, query={}, dataset=DATASET),
        lambda: trace.page(reading, query={"id": example}),
    ]
    for page in pages:
        page()
    assert f'nightfleet_model_scored_version{{model="{MODEL}"}} 2.0' in scrape(lake, now=NOW)[0].decode()
    again = {step.name: step.equal for step in reproduce(Lake(former, load_catalog(former)), example).steps}
    assert again["published row"]
    assert again["prediction id"]


def test_the_database_on_postgres(former: Settings, empty_postgres: str) -> None:
    source = sa.create_engine(former.database_url)
    target = sa.create_engine(empty_postgres)
    tables = sa.MetaData()
    tables.reflect(source, only=["metrics", "actions", sql_name(MODEL)])
    for column in (column for table in tables.sorted_tables for column in table.columns):
        column.type = column.type.as_generic()
    with source.connect() as reading, target.begin() as writing:
        tables.create_all(writing)
        for table in tables.sorted_tables:
            writing.execute(table.insert(), [dict(row) for row in reading.execute(sa.select(table)).mappings()])
    on_postgres = Lake(former.model_copy(update={"sql_url": empty_postgres}), load_catalog(former))
    on_sqlite = Lake(former, load_catalog(former))
    query = sa.text(
        'SELECT "check", "column", segment, about_date, role, model_version FROM metrics'
        ' ORDER BY "check", "column", segment, about_date'
    )
    found = []
    for lake in (on_postgres, on_sqlite):
        with lake.engine.connect() as connection:
            found.append([tuple(map(str, row)) for row in connection.execute(query)])
            served = connection.execute(sa.text(f"SELECT count(*) FROM {sql_name(MODEL)} WHERE served")).scalar()
            assert served == 64
    assert sorted(found[0]) == sorted(found[1])
    on_postgres.engine.dispose()
    for engine in (source, target):
        engine.dispose()
