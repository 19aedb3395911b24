"""SQL sources, on a real Postgres and on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from config.calendar import Interval
from features.ingest import ingest
from features.sources import SourceRefused, SourceSchemaMismatch, SourceUnavailable
from lake.tables import raw_table
from tests.features.sources.reading import NIGHT, meters, read

QUERY = "SELECT meter, at_utc, litres, pulses, open, billed_on FROM readings"


@pytest.fixture
def engine(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    monkeypatch.setenv("METERS_URL", postgres_url)
    engine = sa.create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS readings"))
        typed = (
            "meter text, at_utc timestamptz, litres numeric(12, 3), pulses bigint, open boolean, billed_on date,"
            " changed timestamptz"
        )
        connection.execute(sa.text(f"CREATE TABLE readings ({typed})"))
    yield engine
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE readings"))
    engine.dispose()


def insert(
    engine: sa.Engine, meter: str, at: datetime, litres: float | None = 1.5, changed: datetime | None = None
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO readings VALUES (:meter, :at, :litres, 7, true, '2024-03-01', :changed)"),
            {"meter": meter, "at": at, "litres": litres, "changed": changed or at},
        )


def source(query: str = QUERY, **more: object) -> dict[str, object]:
    return {"kind": "sql", "url_secret": "meters_url", "query": query, **more}


def test_every_type_arrives_as_declared(tmp_path: Path, engine: sa.Engine) -> None:
    at = datetime(2024, 3, 4, 10, tzinfo=UTC)
    insert(engine, "a", at)
    insert(engine, "b", at, None)
    found = read(meters(tmp_path, source())).to_pylist()
    assert found[0] == {
        "meter": "a",
        "at_utc": at,
        "litres": 1.5,
        "pulses": 7,
        "open": True,
        "billed_on": date(2024, 3, 1),
        "known_at_utc": at,
        "nf__natural_date": NIGHT,
        "nf__delivered": None,
    }
    assert found[1]["litres"] is None


def test_rows_come_in_batches_by_a_server_side_cursor(
    tmp_path: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        many = (
            "SELECT 'm' || i, '2024-03-04 10:00Z', 1, i, true, '2024-03-01', '2024-03-04 10:00Z' FROM"
            " generate_series(1, 2500) AS s(i)"
        )
        connection.execute(sa.text(f"INSERT INTO readings {many}"))
    sizes: list[int] = []
    write = pq.ParquetWriter.write_table

    def noted(self: pq.ParquetWriter, table: pa.Table) -> None:
        sizes.append(table.num_rows)
        write(self, table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", noted)
    cursors: list[str | None] = []

    def executed(connection: sa.Connection, cursor: Any, *_: Any) -> None:
        cursors.append(cursor.name)

    sa.event.listen(sa.Engine, "after_cursor_execute", executed)
    try:
        assert read(meters(tmp_path, source(batch_rows=1000))).num_rows == 2500
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", executed)
    assert sizes == [1000, 1000, 500], (
        "rows must be staged in batches of batch_rows, so that memory does not grow with the table"
    )
    assert cursors, "the query was not seen"
    assert all(cursors), (
        "the query must run on a named, server-side cursor: without one the client holds the whole result"
    )


def test_a_bound_query_is_asked_night_by_night(tmp_path: Path, engine: sa.Engine) -> None:
    """So that a row that changed on a later night is that night's delivery, in bulk as nightly."""
    insert(engine, "a", datetime(2024, 3, 1, 12, tzinfo=UTC))
    insert(engine, "late", datetime(2024, 3, 1, 13, tzinfo=UTC), changed=datetime(2024, 3, 2, 13, tzinfo=UTC))
    insert(engine, "edge", datetime(2024, 3, 2, 23, tzinfo=UTC))  # midnight in Berlin: known at cutoff(2024-03-02)
    query = QUERY + " WHERE changed > :start_utc AND changed <= :end_utc"
    three = Interval(date(2024, 3, 1), date(2024, 3, 4))
    bulk = meters(tmp_path / "bulk", source(query))
    ingest(bulk, "meters", three, run_id="bulk")
    nightly = meters(tmp_path / "nightly", source(query))
    for night in three:
        ingest(nightly, "meters", Interval.of(night), run_id=f"night-{night}")
    digests = []
    for lake in (bulk, nightly):
        raw = raw_table(lake.settings, lake.dataset("meters"), "readings")
        digests.append(lake.publications.digests(raw, three))
        assert {row["meter"]: row["data_date"].day for row in raw.read().to_pylist()} == {"a": 1, "late": 2, "edge": 2}
    assert digests[0] == digests[1]


def test_undeclared_and_missing_columns_are_all_named(tmp_path: Path, engine: sa.Engine) -> None:
    lake = meters(tmp_path, source("SELECT meter, at_utc, litres, pulses, changed AS updated FROM readings"))
    with pytest.raises(SourceSchemaMismatch) as caught:
        read(lake)
    for part in (
        "source of meters/readings",
        "'updated' is not declared",
        "'open' is missing",
        "'billed_on' is missing",
        "Nothing was written",
    ):
        assert part in str(caught.value)


def test_a_value_of_another_type_shows_column_row_and_value(tmp_path: Path, engine: sa.Engine) -> None:
    insert(engine, "a", datetime(2024, 3, 4, 10, tzinfo=UTC))
    insert(engine, "b", datetime(2024, 3, 4, 11, tzinfo=UTC), 2.25)
    query = QUERY.replace("pulses", "litres AS pulses", 1) + " ORDER BY at_utc"
    with pytest.raises(
        SourceSchemaMismatch, match=r"(?s)'pulses' is DECIMAL.*, declared int64.*Decimal\('1.500'\), in row 1"
    ):
        read(meters(tmp_path, source(query)))
    with pytest.raises(
        SourceSchemaMismatch, match="'litres' is declared float64, but 2 values are not: first 'a', in row 1"
    ):
        read(meters(tmp_path, source(QUERY.replace("litres", "meter AS litres", 1) + " ORDER BY at_utc")))


def test_what_a_server_calls_nan_or_has_no_zone_for(tmp_path: Path, engine: sa.Engine) -> None:
    insert(engine, "a", datetime(2024, 3, 4, 10, tzinfo=UTC))
    nan = QUERY.replace("litres", "'NaN'::float8 AS litres", 1)
    assert read(meters(tmp_path, source(nan)))["litres"].to_pylist() == [None]
    with pytest.raises(SourceSchemaMismatch, match="'litres' is declared float64, but 1 values are infinite"):
        read(meters(tmp_path, source(nan.replace("NaN", "Infinity"))))
    naive = QUERY.replace("at_utc", "at_utc AT TIME ZONE 'Europe/Berlin' AS at_utc", 1)
    with pytest.raises(SourceSchemaMismatch, match="'at_utc' is declared timestamp, but 1 values have no time zone"):
        read(meters(tmp_path, source(naive)))
    found = read(meters(tmp_path, source(naive, zone="Europe/Berlin")))["at_utc"].to_pylist()
    assert found == [datetime(2024, 3, 4, 10, tzinfo=UTC)]


def test_a_refused_query_is_not_retried_and_an_absent_server_is(
    tmp_path: Path, engine: sa.Engine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceRefused, match="no_such_table"):
        read(meters(tmp_path, source("SELECT * FROM no_such_table")))
    with pytest.raises(SourceRefused, match=r"(?s)syntax error.*Correct `query`"):
        read(meters(tmp_path, source("SELEC 1")))
    monkeypatch.setenv("METERS_URL", "postgresql+psycopg2://nobody@" + postgres_url.partition("@")[2])
    with pytest.raises(SourceRefused, match='role "nobody" does not exist'):
        read(meters(tmp_path, source()))
    monkeypatch.setenv("METERS_URL", "postgresql+psycopg2://test:hidden@127.0.0.1:9/postgres")
    with pytest.raises(SourceUnavailable, match="Connection refused") as caught:
        read(meters(tmp_path, source()))
    assert "hidden" not in str(caught.value), "an error must not show the password of the URL"


def test_sqlite_without_types_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'meters.db'}"
    monkeypatch.setenv("METERS_URL", url)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE readings (meter text, at_utc text, litres real, pulses integer, open integer, billed_on "
                "text)"
            )
        )
        connection.execute(sa.text("INSERT INTO readings VALUES ('a', '2024-03-04 10:00:00', 1.5, 3, 1, '2024-03-01')"))
        connection.execute(sa.text("INSERT INTO readings VALUES ('b', '2024-03-04T11:00:00', NULL, NULL, 0, NULL)"))
    found = read(meters(tmp_path, source(zone="UTC"))).to_pylist()
    assert [row["at_utc"] for row in found] == [
        datetime(2024, 3, 4, 10, tzinfo=UTC),
        datetime(2024, 3, 4, 11, tzinfo=UTC),
    ]
    assert [row["open"] for row in found] == [True, False]
    assert found[1]["billed_on"] is None
    assert found[0]["known_at_utc"] - found[1]["known_at_utc"] == -timedelta(hours=1)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT no FROM readings", "no such column: no"),
        ("SELECT :since", "A value is required for bind parameter 'since'"),
        ("DELETE FROM readings", "does not return rows"),
    ],
)
def test_a_query_that_cannot_run_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, words: str
) -> None:
    """SQLite calls a wrong query by the name that others have for a lost connection."""
    monkeypatch.setenv("METERS_URL", f"sqlite:///{tmp_path / 'meters.db'}")
    with sqlite3.connect(tmp_path / "meters.db") as database:
        database.execute("CREATE TABLE readings (meter)")
    with pytest.raises(SourceRefused, match=f"(?s)source of meters/readings: sqlite.*{words}.*Correct `query`"):
        read(meters(tmp_path, source(query)))


def test_a_database_that_is_locked_may_answer_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERS_URL", f"sqlite:///{tmp_path / 'meters.db'}?timeout=0")
    with sqlite3.connect(tmp_path / "meters.db", isolation_level=None) as database:
        database.execute("CREATE TABLE readings (meter)")
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceUnavailable, match="(?s)database is locked.*clear the task"):
            read(meters(tmp_path, source("SELECT * FROM readings")))


@pytest.mark.parametrize("url", ["postgres//nowhere", "nosql://somewhere", "mysql+pymysql://me:sesame@somewhere/x"])
def test_a_url_that_is_none_is_refused_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("METERS_URL", url)
    with pytest.raises(SourceRefused, match="the secret 'meters_url' is no SQLAlchemy URL whose driver") as caught:
        read(meters(tmp_path, source()))
    assert url not in str(caught.value)
    assert caught.value.__cause__ is None, "a traceback would print the url, and the password in it"
