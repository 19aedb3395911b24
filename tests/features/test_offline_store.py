"""The offline store against a plain reference, row by row in Python."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureView, Field, FileSource, RepoConfig
from feast.data_format import DeltaFormat
from feast.types import Float64, Int64, String
from feast.value_type import ValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.calendar import cutoff
from features.offline_store import BadEntityFrame, DuckDBDeltaOfflineStore, DuckDBRetrievalJob, SourceUnreadable

START = datetime(2024, 3, 30, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1)
COLOUR = Entity(name="colour", join_keys=["colour"], value_type=ValueType.STRING)
NUMBER = Entity(name="number", join_keys=["number"], value_type=ValueType.INT64)
KEYS = {"colour": (COLOUR, String, pa.string()), "number": (NUMBER, Int64, pa.int64())}


@dataclass(frozen=True)
class View:
    """Feature rows as the reference sees them: dicts with the keys, `t`, `a`, `b`."""

    name: str
    keys: tuple[str, ...]
    ttl: timedelta
    rows: tuple[dict[str, Any], ...]
    partitioned: bool = False

    def feast(self, folder: Path) -> FeatureView:
        schema = pa.schema(
            [
                *((key, KEYS[key][2]) for key in self.keys),
                ("t", pa.timestamp("us", "UTC")),
                ("a", pa.float64()),
                ("b", pa.string()),
            ]
        )
        if self.partitioned:
            schema = schema.append(pa.field("data_date", pa.date32()))
        path = folder / self.name
        write_deltalake(
            path,
            pa.Table.from_pylist(list(self.rows), schema=schema),
            partition_by=["data_date"] if self.partitioned else None,
        )
        return feature_view(self.name, path, self.keys, self.ttl)


def feature_view(name: str, path: Path, keys: Sequence[str], ttl: timedelta) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[KEYS[key][0] for key in keys],
        ttl=ttl,
        schema=[
            *(Field(name=key, dtype=KEYS[key][1]) for key in keys),
            Field(name="a", dtype=Float64),
            Field(name="b", dtype=String),
        ],
        source=FileSource(name=name, path=str(path), file_format=DeltaFormat(), timestamp_field="t"),
    )


def config(**offline: Any) -> RepoConfig:
    return RepoConfig(
        project="p",
        provider="local",
        registry={"registry_type": "sql", "path": "sqlite://"},
        offline_store={"type": "features.offline_store.DuckDBDeltaOfflineStore", "memory_gb": 1.0, **offline},
    )


def retrieve(
    views: Sequence[FeatureView], entities: pd.DataFrame | str, *, features: Sequence[str] = ("a", "b"), **offline: Any
) -> DuckDBRetrievalJob:
    references = [f"{view.projection.name_to_use()}:{feature}" for view in views for feature in features]
    job = DuckDBDeltaOfflineStore.get_historical_features(
        config(**offline), list(views), references, entities, None, "p", full_feature_names=True
    )
    assert isinstance(job, DuckDBRetrievalJob)
    return job


def reference(views: Sequence[View], entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What retrieval must give, said as plainly as can be."""
    result = []
    for entity in entities:
        row = dict(entity)
        for view in views:
            matching = [
                f
                for f in view.rows
                if all(entity[k] is not None and f[k] == entity[k] for k in view.keys)
                and f["t"] <= entity["event_timestamp"]
            ]
            newest = max(matching, key=lambda f: f["t"], default=None)
            serves = newest is not None and (not view.ttl or entity["event_timestamp"] - newest["t"] <= view.ttl)
            for feature in ("a", "b"):
                row[f"{view.name}__{feature}"] = newest[feature] if serves and newest else None
        result.append(row)
    return result


colours = st.sampled_from(["red", "green", ""])
numbers = st.integers(0, 2)
times = st.one_of(
    st.integers(0, 6).map(lambda n: START + n * DAY),
    st.tuples(st.integers(0, 6), st.integers(-2, 2)).map(lambda p: START + p[0] * DAY + p[1] * MICROSECOND),
)
values = st.fixed_dictionaries(
    {"a": st.one_of(st.none(), st.floats(-5, 5)), "b": st.one_of(st.none(), st.sampled_from(["x", "y"]))}
)


@st.composite
def views(draw: st.DrawFn, name: str) -> View:
    keys = draw(st.sampled_from([("colour",), ("number",), ("colour", "number")]))
    partitioned = draw(st.booleans())
    zone = draw(st.sampled_from(["Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago"]))
    rows: dict[Any, dict[str, Any]] = {}
    for _ in range(draw(st.integers(0, 8))):
        row: dict[str, Any] = {"colour": draw(colours), "number": draw(numbers)} | draw(values)
        row = {name: value for name, value in row.items() if name in (*keys, "a", "b")}
        if partitioned:
            row["data_date"] = date(2024, 3, 29) + draw(st.integers(0, 5)) * DAY
            row["t"] = cutoff(row["data_date"], zone)
        else:
            row["t"] = draw(times)
        # One row a key and time: ties are made impossible by the lake, which has one row an entity and night.
        rows[(*(row[key] for key in keys), row["t"])] = row
    ttl = draw(st.sampled_from([timedelta(0), MICROSECOND, DAY, 2 * DAY, 3 * DAY + MICROSECOND]))
    return View(name, keys, ttl, tuple(rows.values()), partitioned)


entity_rows = st.lists(
    st.fixed_dictionaries(
        {"colour": st.one_of(st.none(), colours), "number": st.one_of(st.none(), numbers), "event_timestamp": times}
    ),
    min_size=1,
    max_size=12,
)


@given(first=views("first"), second=views("second"), entities=entity_rows, as_sql=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equals_the_reference(first: View, second: View, entities: list[dict[str, Any]], as_sql: bool) -> None:
    entities = [*entities, entities[0]]  # a duplicate stays one
    schema = pa.schema(
        [("colour", pa.string()), ("number", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC"))]
    )
    table = pa.Table.from_pylist(entities, schema=schema)
    with TemporaryDirectory() as made:
        folder = Path(made)
        found = [view.feast(folder) for view in (first, second)]
        if as_sql:
            pq.write_table(table, folder / "entities.parquet")
            job = retrieve(found, f"SELECT * FROM read_parquet('{folder}/entities.parquet')")
            with job.to_reader(batch_rows=3) as reader:
                result = reader.read_all()
        else:
            result = retrieve(found, table.to_pandas().astype({"number": "Int64"})).to_arrow()
    assert result.to_pylist() == reference([first, second], entities)


def _entities(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame([dict(zip(("colour", "number", "event_timestamp"), row, strict=True)) for row in rows])


@pytest.mark.parametrize(
    ("late", "expected"), [(timedelta(0), 1.0), (DAY, 1.0), (DAY + MICROSECOND, None), (-MICROSECOND, None)]
)
def test_ttl_holds_to_the_microsecond(tmp_path: Path, late: timedelta, expected: float | None) -> None:
    view = View("v", ("colour",), DAY, ({"colour": "red", "t": START, "a": 1.0, "b": None},)).feast(tmp_path)
    result = retrieve([view], _entities(("red", 1, START + late))).to_arrow()
    assert result["v__a"].to_pylist() == [expected]


def test_the_newest_row_wins_though_its_value_is_null(tmp_path: Path) -> None:
    rows = ({"colour": "red", "t": START, "a": 1.0, "b": "x"}, {"colour": "red", "t": START + DAY, "a": None, "b": "y"})
    view = View("v", ("colour",), timedelta(0), rows).feast(tmp_path)
    result = retrieve([view], _entities(("red", 1, START + 2 * DAY))).to_arrow()
    assert result.select(["v__a", "v__b"]).to_pylist() == [{"v__a": None, "v__b": "y"}]


def test_a_partial_join_key_map_still_joins_on_both_keys(tmp_path: Path) -> None:
    pairs = list(itertools.product(["red", "green"], [0, 1]))
    rows = tuple({"colour": c, "number": n, "t": START, "a": float(i), "b": None} for i, (c, n) in enumerate(pairs))
    view = View("v", ("colour", "number"), timedelta(0), rows).feast(tmp_path)
    view.projection.join_key_map = {"colour": "paint"}
    entities = pd.DataFrame([{"paint": c, "number": n, "event_timestamp": START} for c, n in reversed(pairs)])
    assert retrieve([view], entities).to_arrow()["v__a"].to_pylist() == [3.0, 2.0, 1.0, 0.0]


def test_a_pinned_version_is_read_though_a_newer_one_is_there(tmp_path: Path) -> None:
    row = {"colour": "red", "t": START, "a": 1.0, "b": None}
    view = View("v", ("colour",), timedelta(0), (row,)).feast(tmp_path)
    schema = pa.schema(
        [("colour", pa.string()), ("t", pa.timestamp("us", "UTC")), ("a", pa.float64()), ("b", pa.string())]
    )
    table = pa.Table.from_pylist([row | {"a": 2.0}], schema=schema)
    write_deltalake(tmp_path / "v", table, mode="overwrite")
    entities = _entities(("red", 1, START))
    assert retrieve([view], entities).to_arrow()["v__a"].to_pylist() == [2.0]
    assert retrieve([view], entities, pins={"v": 0}).to_arrow()["v__a"].to_pylist() == [1.0]


def test_only_partitions_that_can_serve_are_opened(tmp_path: Path) -> None:
    nights = [date(2024, 3, 1) + n * DAY for n in range(30)]
    rows = tuple(
        {"colour": "red", "t": cutoff(night, "Europe/Berlin"), "a": float(n), "b": None, "data_date": night}
        for n, night in enumerate(nights)
    )
    view = View("v", ("colour",), 2 * DAY, rows, partitioned=True).feast(tmp_path)
    for night in nights:
        if not date(2024, 3, 17) <= night <= date(2024, 3, 21):
            for file in (tmp_path / "v" / f"data_date={night}").glob("*.parquet"):
                file.write_bytes(b"not a Parquet file")
    result = retrieve([view], _entities(("red", 1, cutoff(nights[19], "Europe/Berlin")))).to_arrow()
    assert result["v__a"].to_pylist() == [19.0]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_oldest_partition_a_ttl_reaches_is_opened(tmp_path: Path, zone: str) -> None:
    night = date(2024, 3, 10)
    first, last = cutoff(night, zone), cutoff(night + 2 * DAY, zone)
    view = View(
        "v",
        ("colour",),
        last - first,
        ({"colour": "red", "t": first, "a": 1.0, "b": None, "data_date": night},),
        partitioned=True,
    ).feast(tmp_path)
    assert retrieve([view], _entities(("red", 1, last))).to_arrow()["v__a"].to_pylist() == [1.0]


def test_feature_names_without_their_view(tmp_path: Path) -> None:
    view = View("v", ("colour",), timedelta(0), ({"colour": "red", "t": START, "a": 1.0, "b": "x"},)).feast(tmp_path)
    job = DuckDBDeltaOfflineStore.get_historical_features(
        config(), [view], ["v:b"], _entities(("red", 1, START)), None, "p"
    )
    assert job.to_df().columns.tolist() == ["colour", "number", "event_timestamp", "b"]


def test_missing_columns_and_sources_are_named(tmp_path: Path) -> None:
    view = View("v", ("colour",), timedelta(0), ()).feast(tmp_path)
    with pytest.raises(BadEntityFrame, match="lack 'colour', a join key of v; they have number, event_timestamp"):
        retrieve([view], _entities(("red", 1, START)).drop(columns="colour")).to_arrow()
    with pytest.raises(BadEntityFrame, match="no event_timestamp and no timestamp"):
        retrieve([view], _entities(("red", 1, START)).drop(columns="event_timestamp")).to_arrow()
    with pytest.raises(SourceUnreadable, match=r"there is no Delta table at .*nowhere"):
        retrieve([feature_view("v", tmp_path / "nowhere", ["colour"], DAY)], _entities(("red", 1, START))).to_arrow()


def test_writing_past_the_transform_is_refused(tmp_path: Path) -> None:
    view = View("v", ("colour",), timedelta(0), ()).feast(tmp_path)
    with pytest.raises(NotImplementedError, match="written by the night's transform alone"):
        DuckDBDeltaOfflineStore.offline_write_batch(config(), view, pa.table({}), None)


@pytest.mark.parametrize(("latest", "expected"), [(True, [3.0, 4.0]), (False, [2.0, 3.0, 4.0])])
def test_pull_takes_rows_of_the_interval_both_ends_included(
    tmp_path: Path, latest: bool, expected: list[float]
) -> None:
    rows = [("red", 0, 1.0), ("red", 1, 2.0), ("red", 2, 3.0), ("green", 1, 4.0), ("red", 3, 5.0)]
    view = View(
        "v",
        ("colour",),
        timedelta(0),
        tuple({"colour": c, "t": START + d * DAY, "a": a, "b": None} for c, d, a in rows),
    ).feast(tmp_path)
    source = view.batch_source
    assert source is not None
    if latest:
        job = DuckDBDeltaOfflineStore.pull_latest_from_table_or_query(
            config(), source, ["colour"], ["a"], "t", None, START + DAY, START + 2 * DAY
        )
    else:
        job = DuckDBDeltaOfflineStore.pull_all_from_table_or_query(
            config(), source, ["colour"], ["a"], "t", None, START + DAY, START + 2 * DAY
        )
    assert sorted(job.to_arrow()["a"].to_pylist()) == expected
