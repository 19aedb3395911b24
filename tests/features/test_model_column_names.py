"""A spine's column may be called as anything in our SQL is: it reaches the training set whole, or the catalog refuses
it by name. No column of ours is overwritten by a user's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.base import BadCatalog
from config.catalog.data import OWN_PREFIX, PREDICTION_COLUMNS, RESERVED_COLUMNS, TRAINING_COLUMNS
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.training_set import build_training_set
from features.transform import transform
from lake.lake import Lake
from lake.projection import sql_columns
from lake.publish import publish
from lake.tables import valid_table
from serving.predictions import predictions_table

FIRST = date(2024, 3, 1)
NIGHTS = Interval(FIRST, FIRST + 7 * ONE_DAY)
PLACES = (
    *("features/training_set.py", "features/labels.py", "features/known.py", "features/retrieval.py"),
    *("features/offline_store.py", "config/catalog/spine.py", "serving/predictions.py", "serving/score.py"),
)
NO_ROW = "there is no such row"
OURS = RESERVED_COLUMNS | TRAINING_COLUMNS | PREDICTION_COLUMNS


def words() -> list[str]:
    """Every word of the texts and every identifier in what makes training sets and predictions."""
    named = {"weight", "a", "b", "e", "f", "l", "r", "y", "x"}
    for place in PLACES:
        for node in ast.walk(ast.parse((ROOT / place).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 1000:
                named |= set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", node.value))
    lower = {word.lower() for word in named if not word.startswith((OWN_PREFIX, "__"))}
    return sorted(lower - RESERVED_COLUMNS - {"id", "at", "outcome"})


WORDS = words()


def catalog_of(
    folder: Path,
    entity: list[str],
    others: list[str],
    outputs: dict[str, Any] | None = None,
    outcome: str = "float64",
    **declared: Any,
) -> Lake:
    """Model `m` of the rows of `plans`, keyed by id and `entity`; `others` are more columns of them."""
    key = {name: {"type": "int64", "description": "k", "nullable": False} for name in ("id", *entity)}
    at = {"at": {"type": "timestamp", "description": "target time", "nullable": False}}
    more = {name: {"type": "int64", "description": "c"} for name in others}
    label = {"outcome": {"type": outcome, "description": "what came of it"}}

    def table(name: str, columns: dict[str, Any]) -> dict[str, Any]:
        return {
            "description": "t", "source": {"kind": "file", "uri": f"{name}/{{data_date}}.csv"}, "key": list(key),
            "known_at": "arrival", "columns": columns,
        }  # fmt: skip

    view = {
        "description": "v", "entities": ["id"], "reads": ["plans"], "lookback": "3 days", "ttl": "3 days",
        "columns": {"twice": {"type": "int64", "description": "a feature"}},
    }  # fmt: skip
    about = {"title": "d", "owner": "o", "owner_url": "mailto:o@example.com"}
    dataset = about | {
        "dataset": "d", "licence": "CC0-1.0", "time_zone": "Europe/Berlin", "start": FIRST, "features": {"v": view},
        "tables": {"plans": table("plans", key | at | more), "outcomes": table("outcomes", key | label)},
    }  # fmt: skip
    model = about | {
        "model": "m", "deadline": "06:00", "dataset": "d", "features": ["v"],
        "spine": {"table": "plans", "entity": list(key), "target_time": "at"},
        "label": {"table": "outcomes", "column": "outcome", "matures_after": "1 hour"} | declared,
        "outputs": outputs or {"told_outcome": {"kind": "regression", "objective": "mean", "gate": "rmse"}},
        "trainer": {"family": "linear", "params": {}, "seed": 1, "device": "cpu"},
        "split": {"train": "1 days", "validation": "1 days", "test": "2 days", "embargo": "0 days"},
        "gate": {"min_days": 2, "baseline": "mean"},
    }  # fmt: skip
    for name in ("datasets", "models", "sql/d", "plans", "outcomes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(dataset, sort_keys=False))
    (folder / "models" / "m.yaml").write_text(yaml.safe_dump(model, sort_keys=False))
    (folder / "sql" / "d" / "v.sql").write_text(
        "SELECT nights.data_date, plans.id, 2 * plans.id AS twice FROM nights JOIN plans "
        "ON plans.data_date = nights.data_date"
    )
    settings = Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)
    return Lake(settings, load_catalog(settings))


def arrive(lake: Lake, entity: list[str], others: list[str], said: Callable[[int], Any] = lambda i: i + 0.5) -> None:
    """Two plans a night, of the next day, and what came of those of the night before, as validation publishes them;
    `said` is the outcome of an id, NO_ROW where there is no row of it.
    """
    dataset = lake.dataset("d")
    days = [night for night in NIGHTS for _ in range(2)]
    for name, ids in (("plans", range(2 * len(NIGHTS))), ("outcomes", range(-2, 2 * len(NIGHTS) - 2))):
        rows: dict[str, Any] = {"id": ids} | {column: [k * 1000 + i for i in ids] for k, column in enumerate(entity)}
        if name == "plans":
            rows["at"] = [cutoff(night, "Europe/Berlin") + ONE_DAY / 2 for night in days]
            rows |= {column: [-k * 1000 - i for i in ids] for k, column in enumerate(others, 1)}
        else:
            rows["outcome"] = [said(i) for i in ids]
        rows |= {"known_at_utc": [cutoff(night, "Europe/Berlin") for night in days], "revision": [0] * len(days)}
        table = valid_table(lake.settings, dataset, name)
        schema = pa.schema([table.schema.field(column) for column in (*rows, "data_date")])
        values = {
            column: [None if v == NO_ROW else v for v in of] for column, of in (rows | {"data_date": days}).items()
        }
        batch = pa.table(values, schema)
        if name == "outcomes":
            batch = batch.filter([said(i) != NO_ROW for i in ids])
        with lake.scratch("test") as scratch:
            lineage, replaces = lake.lineage("d", "r"), dict.fromkeys(NIGHTS)
            publish(lake.publications, table, batch, NIGHTS, replaces=replaces, lineage=lineage, scratch=scratch)


def test_columns_called_as_our_words_reach_the_training_set_whole(tmp_path: Path) -> None:
    usable = [word for word in WORDS if word not in OURS]
    entity = usable[::8]  # a join over hundreds of keys takes its time
    others = sorted({*usable, *OURS} - {*entity, *RESERVED_COLUMNS})
    lake = catalog_of(tmp_path, entity, others)
    arrive(lake, entity, others)
    transform(lake, "d", NIGHTS, run_id="r")
    built = build_training_set(lake, "m", NIGHTS.last, tmp_path)
    rows = pa.concat_tables([pq.read_table(path) for path in (built.training_path, built.test_path)])
    ids = rows["id"].to_pylist()
    assert len(ids) == 8
    assert rows["label"].to_pylist() == [i + 0.5 for i in ids]
    assert rows["v__twice"].to_pylist() == [2 * i for i in ids]
    assert rows["split"].to_pylist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 4
    assert len(set(rows.column_names)) == rows.num_columns
    for k, name in enumerate(entity):
        assert rows[name].to_pylist() == [k * 1000 + i for i in ids], name
    for k, name in enumerate(others, 1):
        if name not in (*TRAINING_COLUMNS, "target_time_utc"):
            assert rows[name].to_pylist() == [-k * 1000 - i for i in ids], name
    predictions = predictions_table(lake.settings, lake.model("m"), lake.dataset("d"))
    in_sql = [column.name for column in sql_columns("predictions_m", predictions.schema, keep_replaced=True).columns]
    assert len({name.lower() for name in in_sql}) == len(in_sql)
    assert set(predictions.schema.names) - {"id", *entity, "told_outcome", "data_date"} <= PREDICTION_COLUMNS


@pytest.mark.parametrize("name", [*sorted(TRAINING_COLUMNS | PREDICTION_COLUMNS), "Model"])
def test_an_entity_called_as_a_column_of_ours_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCatalog, match=rf"models/m\.yaml(.|\n)*spine\.entity = '{name}': is a column of its own in"):
        catalog_of(tmp_path, [name], [])


@pytest.mark.parametrize("name", ["model", "served", "data_date", "id"])
def test_an_output_called_as_a_column_of_ours_is_refused_by_name(tmp_path: Path, name: str) -> None:
    outputs = {name: {"kind": "regression", "objective": "mean", "gate": "rmse"}}
    with pytest.raises(BadCatalog, match=rf"models/m\.yaml(.|\n)*outputs = '{name}': is published as a column"):
        catalog_of(tmp_path, [], [], outputs)


def test_a_column_called_as_a_feature_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match=r"spine = 'v__twice': is what training sets call a feature"):
        catalog_of(tmp_path, [], ["v__twice"])
