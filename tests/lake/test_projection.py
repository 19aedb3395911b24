"""SQL as a projection of Delta, on SQLite and on a real Postgres: equal rows, newer only, repaired, nothing half."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from config.calendar import Interval
from lake import projection
from lake.lineage import Publications
from lake.projection import ProjectionMismatch, project, projections_table
from lake.tables import named_table
from tests.lake.conftest import FIRST, Items, item_rows

WEEK = Interval(FIRST, FIRST + timedelta(days=7))
NIGHT = Interval.of(FIRST)
IDENTITY: dict[str, Any] = {"keep_replaced": True, "identity": ("data_date", "item")}


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, items_at: Callable[..., Items]) -> Items:
    return items_at("lake", request.getfixturevalue("empty_postgres") if request.param == "postgres" else "")


def _rows(items: Items, name: str = "items", *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
    listed = ", ".join(f'"{c}"' for c in columns or ("data_date", "item", "label", "value", "at", "on"))
    with items.lake.engine.connect() as connection:
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        query = (
            sa.select(*(table.c[c.strip('"')] for c in listed.split(", ")))
            .where(sa.text(where))
            .order_by("data_date", "item")
        )
        return [tuple(row) for row in connection.execute(query)]


def _expected(rows: pa.Table) -> list[tuple[Any, ...]]:
    return [
        tuple(row[c] for c in ("data_date", "item", "label", "value", "at", "on"))
        for row in rows.sort_by([("data_date", "ascending"), ("item", "ascending")]).to_pylist()
    ]


def _utc(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """SQLite gives instants back naive, and booleans as numbers."""
    return [
        tuple(
            v.replace(tzinfo=UTC)
            if isinstance(v, datetime) and v.tzinfo is None
            else bool(v)
            if n == 5 and v is not None
            else v
            for n, v in enumerate(row)
        )
        for row in rows
    ]


def test_sql_holds_what_delta_published(shared: Items) -> None:
    rows = item_rows(WEEK).cast(shared.table.schema)
    shared.publish(rows, WEEK)
    assert project(shared.lake, shared.table, "items", WEEK) == rows.num_rows
    assert _utc(_rows(shared)) == _expected(rows)


def test_again_writes_nothing(shared: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.publish(item_rows(WEEK), WEEK)
    project(shared.lake, shared.table, "items", WEEK)
    monkeypatch.setattr(projection, "_load", lambda *args: pytest.fail("rows were loaded again"))
    assert project(shared.lake, shared.table, "items", WEEK) == 0
    assert project(shared.lake, shared.table, "items", NIGHT) == 0


def test_awkward_texts_and_numbers_survive(shared: Items) -> None:
    texts = [
        "",
        None,
        "a,b",
        'say "hi"',
        "line\nbreak",
        "\\N",
        "tab\t",
        "ünï — 日本",
        " spaced ",
        "NULL",
        "'; DROP TABLE items; --",
    ]
    count = len(texts)
    rows = pa.table(
        {
            "item": pa.array([0, 2**62, -(2**62), *range(1, count - 2)], pa.int64()),
            "label": pa.array(texts),
            "value": pa.array(
                [0.1, None, 1e300, -1e-300, 1 / 3, math.inf, -math.inf, 0.0, 5.0, 2.5, 123456789.123456789]
            ),
            "at": pa.array(
                [
                    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
                    None,
                    *[datetime(2024, 3, 31, 1, 30, 0, 1, tzinfo=UTC)] * (count - 2),
                ],
                shared.table.schema.field("at").type,
            ),
            "on": pa.array([True, False, None] + [True] * (count - 3)),
            "data_date": pa.array([FIRST] * count, pa.date32()),
        }
    )
    shared.publish(rows, NIGHT)
    assert project(shared.lake, shared.table, "items", NIGHT) == count
    assert _utc(_rows(shared)) == _expected(rows.cast(shared.table.schema))


def test_a_night_is_replaced_and_the_others_stay(shared: Items) -> None:
    shared.publish(item_rows(WEEK), WEEK)
    project(shared.lake, shared.table, "items", WEEK)
    shared.publish(item_rows(NIGHT, seed=2, count=3), NIGHT)
    assert project(shared.lake, shared.table, "items", WEEK) == 3
    assert _utc(_rows(shared)) == _expected(shared.table.read())


def test_an_empty_night_and_an_unpublished_one(shared: Items) -> None:
    two = Interval(FIRST, FIRST + timedelta(days=2))
    shared.publish(item_rows(NIGHT), two)
    assert project(shared.lake, shared.table, "items", WEEK) == 4
    with shared.lake.engine.connect() as connection:
        recorded = connection.execute(
            sa.select(projections_table.c.data_date, projections_table.c.row_count).order_by("data_date")
        ).all()
    assert [tuple(row) for row in recorded] == [(FIRST, 4), (FIRST + timedelta(days=1), 0)]


def test_nothing_was_ever_published(shared: Items) -> None:
    assert project(shared.lake, shared.table, "items", WEEK) == 0


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM items WHERE item = 1", "DROP TABLE items", "DELETE FROM projections", "DROP TABLE projections"],
)
def test_what_was_lost_in_sql_is_repaired_by_a_run_that_commits_nothing(shared: Items, damage: str) -> None:
    shared.publish(item_rows(WEEK), WEEK)
    project(shared.lake, shared.table, "items", WEEK)
    with shared.lake.engine.begin() as connection:
        connection.execute(sa.text(damage))
    assert shared.publish(item_rows(WEEK), WEEK).committed == ()
    assert project(shared.lake, shared.table, "items", WEEK) == 28
    assert _utc(_rows(shared)) == _expected(shared.table.read())


def test_a_late_projector_does_not_put_older_rows_over_newer_ones(
    shared: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.publish(item_rows(NIGHT), NIGHT)
    old = shared.table.load()
    assert old is not None
    shared.publish(item_rows(NIGHT, seed=2), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT)
    load, late = type(shared.table).load, [old]
    monkeypatch.setattr(
        type(shared.table), "load", lambda self, version=None: late.pop() if late else load(self, version)
    )
    assert project(shared.lake, shared.table, "items", NIGHT) == 0
    assert _utc(_rows(shared)) == _expected(item_rows(NIGHT, seed=2).cast(shared.table.schema))


def test_two_delta_tables_share_one_sql_table(shared: Items) -> None:
    other = Items(
        shared.lake,
        named_table(shared.lake.settings, "things/raw/others", dict(zip(*_columns(shared), strict=True)), ("item",)),
    )
    shared.publish(item_rows(WEEK), WEEK)
    other.publish(item_rows(NIGHT, seed=5, count=2), NIGHT)
    project(shared.lake, shared.table, "items", WEEK)
    project(other.lake, other.table, "items", NIGHT)
    shared.publish(item_rows(NIGHT).slice(0, 0), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT)
    assert len(_rows(shared, where="source_table = 'things/raw/items'")) == 24
    assert _utc(_rows(shared, where="source_table = 'things/raw/others'")) == _expected(other.table.read())


def _columns(items: Items) -> tuple[list[str], list[str]]:
    names = [name for name in items.table.schema.names if name != "data_date"]
    return names, ["int64", "string", "float64", "timestamp", "boolean"]


def test_a_failure_in_the_middle_leaves_sql_as_it_was(shared: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.publish(item_rows(WEEK), WEEK)
    project(shared.lake, shared.table, "items", WEEK)
    shared.publish(item_rows(WEEK, seed=2), WEEK)
    load = projection._load

    def halfway(*args: Any) -> None:
        load(*args)
        raise RuntimeError("power cut")

    monkeypatch.setattr(projection, "_load", halfway)
    with pytest.raises(RuntimeError, match="power cut"):
        project(shared.lake, shared.table, "items", WEEK)
    monkeypatch.setattr(projection, "_load", load)
    assert _utc(_rows(shared)) == _expected(item_rows(WEEK).cast(shared.table.schema))
    assert project(shared.lake, shared.table, "items", WEEK) == 28


@pytest.mark.parametrize("options", [{}, IDENTITY], ids=["plain", "keep_replaced"])
def test_many_projectors_at_once_end_in_one_copy(shared: Items, options: dict[str, Any]) -> None:
    shared.publish(item_rows(WEEK), WEEK)
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda _: project(shared.lake, shared.table, "items", WEEK, **options), range(4)))
    assert sorted(written) == [0, 0, 0, 28]
    assert len(_rows(shared)) == 28


# ---- keep_replaced ---------------------------------------------------------------------------------------------


def _history(items: Items) -> list[tuple[Any, ...]]:
    """(item, value, version it came with, whether it is current)"""
    rows = _rows(items, "items", "data_date", "item", "value", "delta_version", "superseded_at")
    return sorted((item, value, version, at is None) for _, item, value, version, at in rows)


def test_replaced_rows_stay_with_the_time_of_the_commit_that_replaced_them(shared: Items) -> None:
    def rows(values: dict[int, float]) -> pa.Table:
        table = item_rows(NIGHT, count=len(values))
        return (
            table.set_column(0, "item", pa.array(list(values)))
            .set_column(2, "value", pa.array(list(values.values())))
            .set_column(1, "label", pa.array(["x"] * len(values)))
            .set_column(3, "at", pa.array([0] * len(values), table.schema.field("at").type))
            .set_column(4, "on", pa.nulls(len(values), pa.bool_()))
        )

    shared.publish(rows({1: 1.0, 2: 2.0, 3: 3.0}), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT, **IDENTITY)
    assert _history(shared) == [(1, 1.0, 1, True), (2, 2.0, 1, True), (3, 3.0, 1, True)]

    changed = shared.publish(rows({1: 1.0, 2: 2.5, 4: 4.0}), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT, **IDENTITY)
    expected = [(1, 1.0, 1, True), (2, 2.0, 1, False), (2, 2.5, 2, True), (3, 3.0, 1, False), (4, 4.0, 2, True)]
    assert _history(shared) == expected
    times = {
        row[-1]
        for row in _rows(shared, "items", "data_date", "item", "superseded_at", where="superseded_at IS NOT NULL")
    }
    assert {t.replace(tzinfo=UTC) for t in times} == {changed.publications[FIRST].committed_at}

    assert project(shared.lake, shared.table, "items", NIGHT, **IDENTITY) == 0
    shared.publish(rows({1: 1.0, 2: 2.0, 4: 4.0}), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT, **IDENTITY)
    assert _history(shared) == sorted(
        [*(r for r in expected if r[:3] != (2, 2.5, 2)), (2, 2.5, 2, False), (2, 2.0, 3, True)]
    )


def test_one_row_of_an_identity_is_current(shared: Items) -> None:
    shared.publish(item_rows(NIGHT), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT, **IDENTITY)
    with pytest.raises(sa.exc.IntegrityError), shared.lake.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO items SELECT * FROM items WHERE item = 1"))


def test_identity_is_needed_to_keep_what_was_replaced(items: Items) -> None:
    with pytest.raises(ValueError, match="needs identity"):
        project(items.lake, items.table, "items", NIGHT, keep_replaced=True)


# ---- the SQL table ---------------------------------------------------------------------------------------------


def test_a_column_that_came_later_is_added(shared: Items) -> None:
    shared.publish(item_rows(NIGHT), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT)
    names, types = _columns(shared)
    wider = Items(
        shared.lake,
        named_table(
            shared.lake.settings,
            "things/raw/wider",
            dict(zip([*names, "order"], [*types, "int32"], strict=True)),
            ("item",),
        ),
    )
    wider.publish(item_rows(NIGHT).append_column("order", pa.array([1, 2, 3, None], pa.int32())), NIGHT)
    assert project(wider.lake, wider.table, "items", NIGHT) == 4
    assert [
        row[2]
        for row in _rows(shared, "items", "data_date", "item", "order", where="source_table = 'things/raw/wider'")
    ] == [1, 2, 3, None]


def test_a_retyped_column_is_refused_with_the_way_out(shared: Items) -> None:
    shared.publish(item_rows(NIGHT), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT)
    names, types = _columns(shared)
    other = Items(
        shared.lake,
        named_table(
            shared.lake.settings,
            "things/raw/retyped",
            dict(zip(names, ["int64", "string", "string", *types[3:]], strict=True)),
            ("item",),
        ),
    )
    rows = item_rows(NIGHT)
    other.publish(rows.set_column(2, "value", rows["value"].cast(pa.string())), NIGHT)
    with pytest.raises(ProjectionMismatch) as caught:
        project(other.lake, other.table, "items", NIGHT)
    assert "SQL table items, column value: is DOUBLE" in str(caught.value)
    assert "needs TEXT. Nothing was written." in str(caught.value)
    assert "Drop the SQL table items: it is a projection" in str(caught.value)


def test_indexes_are_made_with_the_table(shared: Items) -> None:
    shared.publish(item_rows(NIGHT), NIGHT)
    project(shared.lake, shared.table, "items", NIGHT, indexes=(("label", "item"),))
    found = {tuple(index["column_names"]) for index in sa.inspect(shared.lake.engine).get_indexes("items")}
    assert found == {("source_table", "data_date"), ("label", "item")}


def test_a_table_made_anew_is_projected_though_its_versions_begin_again(shared: Items) -> None:
    import shutil

    for seed in (1, 2, 3):
        shared.publish(item_rows(WEEK, seed=seed), WEEK)
    project(shared.lake, shared.table, "items", WEEK)
    shutil.rmtree(shared.table.location.uri)
    shared.publish(item_rows(NIGHT, seed=4), NIGHT)
    project(shared.lake, shared.table, "items", WEEK)
    assert _utc(_rows(shared)) == _expected(item_rows(NIGHT, seed=4).cast(shared.table.schema)), (
        "rows of the table that is gone are gone"
    )


def test_rows_are_streamed_in_batches(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_BATCH_ROWS", 2048)
    sizes: list[int] = []
    convert = projection._for_sqlite

    def counted(column: pa.Array) -> pa.Array:
        sizes.append(len(column))
        return convert(column)

    monkeypatch.setattr(projection, "_for_sqlite", counted)
    items.publish(item_rows(NIGHT, count=10_000), NIGHT)
    assert project(items.lake, items.table, "items", NIGHT) == 10_000
    assert max(sizes) <= 2048


def test_csv_is_read_in_pieces_of_any_size() -> None:
    batch = pa.record_batch({"a": ["x", None, ""], "b": [1, 2, 3]})
    stream = projection._CsvStream([batch, batch])
    pieces = list(iter(lambda: stream.read(5), b""))
    assert max(len(piece) for piece in pieces) <= 5
    assert b"".join(pieces) == b'"x",1\n,2\n"",3\n' * 2


def test_the_index_and_the_projection_live_in_one_database(items: Items) -> None:
    items.publish(item_rows(NIGHT), NIGHT)
    project(items.lake, items.table, "items", NIGHT)
    assert isinstance(items.lake.publications, Publications)
    assert {"publications", "projections", "items"} <= set(sa.inspect(items.lake.engine).get_table_names())
