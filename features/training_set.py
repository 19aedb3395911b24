"""The rows a model is trained, tuned and judged on: mature, labelled, with features as their own night knew them."""

# ruff: noqa: S608 (names come from the typed catalog, quoted; values are dates)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from config.catalog.output import SCALE
from config.durations import format_duration
from config.errors import NightfleetError
from features.labels import baseline_query, label_query, newest_mature, register_rows
from features.retrieval import RowGroupWriter, feature_fields, read_features, spine, view_inputs, write_parquet
from lake.artifact import file_digest
from lake.lake import Lake
from lake.lineage import Input
from lake.tables import LakeTable, feature_table, valid_table

SPLITS = ("train", "validation", "test")


class NotEnoughHistory(NightfleetError):
    """The nights that a training needs are not there, or hold no labelled row."""


@dataclass(frozen=True)
class TrainingSet:
    """Three Parquet files and where they come from.

    Attributes:
        training_path, test_path: splits train and validation, and split test, which the trainer never sees. Columns:
            entity, the spine's other columns, data_date, target_time_utc, split, label, baseline, `<view>__<column>`
            features; sorted by `(data_date, *entity)`.
        unlabelled_path: rows of train and validation for which no label had come, in the same order. They are scored
            like any other, so drift is measured against them too; nobody learns from them. Columns: data_date, split,
            features.
        training_digest, test_digest, unlabelled_digest: SHA-256 of the files.
        rows, unlabelled: by split: rows with a label, and rows for which none had come.
        in_earlier_split: by split: rows left out because their group (`split.groups`) occurs in an earlier one.
        windows: data dates of each split.
        inputs: every partition that was read.
        pins: Delta version of each view.
    """

    model: str
    as_of: date
    training_path: Path
    test_path: Path
    unlabelled_path: Path
    training_digest: str
    test_digest: str
    unlabelled_digest: str
    rows: dict[str, int]
    unlabelled: dict[str, int]
    in_earlier_split: dict[str, int]
    windows: dict[str, Interval]
    inputs: list[Input]
    pins: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document; paths by their file name."""
        document = asdict(self) | {
            "training_path": self.training_path.name,
            "test_path": self.test_path.name,
            "unlabelled_path": self.unlabelled_path.name,
            "as_of": self.as_of.isoformat(),
        }
        document["windows"] = {
            name: {"start": w.start.isoformat(), "end": w.end.isoformat()} for name, w in self.windows.items()
        }
        document["inputs"] = [asdict(item) | {"data_date": item.data_date.isoformat()} for item in self.inputs]
        return document


def split_windows(lake: Lake, model: str, as_of: date) -> dict[str, Interval]:
    """Data dates of train, validation and test: backwards from the newest mature one, with an embargo between."""
    split = lake.model(model).split
    windows: dict[str, Interval] = {}
    end = newest_mature(lake, model, as_of) + ONE_DAY
    for name, length in (("test", split.test), ("validation", split.validation), ("train", split.train)):
        windows[name] = Interval(end - timedelta(days=length.days), end)
        end = windows[name].start - timedelta(days=split.embargo.days)
    return {name: windows[name] for name in SPLITS}


def build_training_set(lake: Lake, model: str, as_of: date, folder: Path) -> TrainingSet:
    """Write `training_set.parquet`, `test_set.parquet` and `unlabelled_set.parquet` to `folder`; the same lake gives
    the same bytes.

    Labels are those known on `as_of`; rows without one are kept apart. With `split.groups` rows whose group occurs in
    an earlier split, labelled there or not, are left out and counted: no group is in two splits.

    Raises:
        NotEnoughHistory: nights are not published, lie before the data set begins, or a split has no labelled row.
    """
    entry, dataset = lake.model(model), lake.dataset(lake.model(model).dataset)
    windows = split_windows(lake, model, as_of)
    whole = Interval(windows["train"].start, windows["test"].end)
    _require_history(lake, entry, dataset, whole, as_of)
    by_night, pins = view_inputs(lake, model, whole, needed_by="Training")
    with lake.duckdb() as connection, lake.scratch("training-set") as scratch:
        rows = spine(lake, model, whole, folder=scratch)
        register_rows(connection, "spine_rows", rows.path)
        in_earlier_split = _split(connection, windows, entry.split.groups)
        label = label_query(lake, model, connection, "split_rows", as_of=as_of)
        connection.execute(f"CREATE TEMP TABLE labelled AS {label.sql}")
        unlabelled = dict.fromkeys(SPLITS, 0) | dict(
            connection.execute("SELECT split, count(*) FROM labelled WHERE label IS NULL GROUP BY ALL").fetchall()
        )
        base = baseline_query(lake, model, connection, "labelled", last=whole.last)
        fields = [f for f in rows.schema if f.name != "event_timestamp"]
        fields += [
            pa.field("split", pa.string(), nullable=False),
            pa.field("label", pa.float64()),
            pa.field("baseline", pa.float64()),
            *([pa.field(SCALE, pa.float64())] if entry.scaled else []),
        ]
        order = ", ".join(f'"{name}"' for name in ("data_date", *entry.entity))
        entities = scratch / "entities.parquet"
        schema = pa.schema([*fields, rows.schema.field("event_timestamp")])
        write_parquet(
            entities,
            schema,
            connection.sql(
                f"SELECT * FROM ({base.sql}) WHERE label IS NOT NULL OR split <> 'test' ORDER BY {order}"
            ).to_arrow_reader(),
        )
        features = feature_fields(lake, model)
        training, test, apart = (folder / f"{name}_set.parquet" for name in ("training", "test", "unlabelled"))
        reader = read_features(lake, model, entities, pa.schema([*fields, *features]), pins)
        counted = _write(reader, features, training, test, apart)
    _require_rows(entry, as_of, windows, counted, unlabelled, in_earlier_split)
    inputs = {item for day in whole for item in (*rows.inputs[day], *by_night[day])} | {*label.inputs, *base.inputs}
    return TrainingSet(
        model=model,
        as_of=as_of,
        training_path=training,
        test_path=test,
        unlabelled_path=apart,
        training_digest=file_digest(training),
        test_digest=file_digest(test),
        unlabelled_digest=file_digest(apart),
        rows=counted,
        unlabelled=unlabelled,
        in_earlier_split=in_earlier_split,
        windows=windows,
        inputs=sorted(inputs, key=lambda item: (item.table, item.data_date)),
        pins=pins,
    )


def check_trainable(lake: Lake, model: str, as_of: date) -> None:
    """Refuse, before a run starts, an as-of date for which no training set can be made: as far as windows, published
    nights and groups say it. Which labels came is known only when the set is made.

    Raises:
        NotEnoughHistory: as in `build_training_set`.
    """
    entry, dataset = lake.model(model), lake.dataset(lake.model(model).dataset)
    windows = split_windows(lake, model, as_of)
    whole = Interval(windows["train"].start, windows["test"].end)
    _require_history(lake, entry, dataset, whole, as_of)
    if entry.split.groups is None:
        return
    with lake.duckdb() as connection, lake.scratch("trainable") as scratch:
        register_rows(connection, "spine_rows", spine(lake, model, whole, folder=scratch).path)
        in_earlier_split = _split(connection, windows, entry.split.groups)
        rows = dict(connection.execute("SELECT split, count(*) FROM split_rows GROUP BY ALL").fetchall())
    counted = dict.fromkeys(SPLITS, 0) | rows
    _require_rows(entry, as_of, windows, counted, counted, in_earlier_split)


def _require_rows(
    entry: ModelEntry,
    as_of: date,
    windows: Mapping[str, Interval],
    counted: Mapping[str, int],
    unlabelled: Mapping[str, int],
    in_earlier_split: Mapping[str, int],
) -> None:
    empty = next((name for name in SPLITS if not counted[name]), None)
    if empty is None:
        return
    grouped = (
        f"; {in_earlier_split[empty]} more are of a {entry.split.groups} that an earlier split has"
        if in_earlier_split[empty]
        else ""
    )
    raise NotEnoughHistory(
        f"{entry.name} as of {as_of}: split {empty} ({windows[empty]}) has no labelled row, of "
        f"{unlabelled[empty]} in all{grouped}.\n"
        f"  Train as of another night, or change split in models/{entry.name}.yaml."
    )


def _split(
    connection: duckdb.DuckDBPyConnection, windows: Mapping[str, Interval], groups: str | None
) -> dict[str, int]:
    """View `split_rows`: the rows of `spine_rows` with their split; returns, by split, the rows left out because an
    earlier split has their group.

    A missing group is one too: what cannot be told apart is not taken for new.
    """
    within = " ".join(
        f"WHEN data_date >= DATE '{w.start}' AND data_date < DATE '{w.end}' THEN '{name}'"
        for name, w in windows.items()
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW dated_rows AS SELECT *, CASE {within} END AS split FROM spine_rows WHERE split "
        "IS NOT NULL"
    )
    counted = dict.fromkeys(SPLITS, 0)
    if groups is None:
        connection.execute("CREATE OR REPLACE TEMP VIEW split_rows AS SELECT * FROM dated_rows")
        return counted
    order = " ".join(f"WHEN '{name}' THEN {number}" for number, name in enumerate(SPLITS))
    first = f'"{groups}" AS group_value, min(CASE split {order} END) AS first_split'
    connection.execute(f"CREATE OR REPLACE TEMP TABLE first_splits AS SELECT {first} FROM dated_rows GROUP BY ALL")
    joined = f'FROM dated_rows AS r JOIN first_splits AS f ON f.group_value IS NOT DISTINCT FROM r."{groups}"'
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW split_rows AS SELECT r.* {joined} WHERE CASE r.split {order} END = f.first_split"
    )
    return counted | dict(
        connection.execute(
            f"SELECT r.split, count(*) {joined} WHERE CASE r.split {order} END > f.first_split GROUP BY ALL"
        ).fetchall()
    )


def _write(
    reader: pa.RecordBatchReader, features: Sequence[pa.Field], training: Path, test: Path, unlabelled: Path
) -> dict[str, int]:
    """One pass over the rows into three files; returns the labelled rows by split."""
    counted = dict.fromkeys(SPLITS, 0)
    label = reader.schema.get_field_index("label")
    labelled = reader.schema.set(label, reader.schema.field(label).with_nullable(False))
    unlabelled_schema = pa.schema([*(reader.schema.field(name) for name in ("data_date", "split")), *features])
    with (
        closing(RowGroupWriter(training, labelled)) as training_rows,
        closing(RowGroupWriter(test, labelled)) as test_rows,
        closing(RowGroupWriter(unlabelled, unlabelled_schema)) as unlabelled_rows,
    ):
        for every in reader:
            unlabelled_rows.write(every.filter(pc.is_null(every["label"])))
            batch = every.filter(pc.is_valid(every["label"]))
            for value in pc.value_counts(batch["split"]).to_pylist():
                counted[value["values"]] += value["counts"]
            is_test = pc.equal(batch["split"], "test")
            training_rows.write(batch.filter(pc.invert(is_test)))
            test_rows.write(batch.filter(is_test))
    return counted


def _require_history(lake: Lake, entry: ModelEntry, dataset: Dataset, whole: Interval, as_of: date) -> None:
    split = entry.split
    lengths = (
        f"train {split.train.days}, validation {split.validation.days}, test {split.test.days}, two embargoes of"
        f" {split.embargo.days}"
    )
    shortened = "split"
    if entry.spine.horizon > ONE_DAY:
        lengths += f"; with a horizon of {format_duration(entry.spine.horizon)} labels are mature that much later"
        shortened = "split or horizon"
    asked = f"{entry.name} as of {as_of} needs the {len(whole)} data dates {whole} ({lengths})"
    views = lake.catalog.views(entry)
    youngest = max((dataset, *(view.dataset for view in views)), key=lambda one: one.first_data_date)
    if whole.start < youngest.first_data_date:
        earliest = as_of + (youngest.first_data_date - whole.start)
        raise NotEnoughHistory(
            f"{asked}, but {youngest.name} begins with {youngest.first_data_date}.\n"
            f"  Train as of {earliest} or later, or shorten {shortened} in models/{entry.name}.yaml."
        )
    wanted: list[tuple[str, LakeTable, Interval]] = [
        (view.dataset.name, feature_table(lake.settings, view.dataset, view.view), whole) for view in views
    ]
    labels = valid_table(lake.settings, dataset, entry.label.table)
    wanted.append((dataset.name, labels, Interval.closed(whole.start, as_of)))
    for of, table, interval in wanted:
        published: Mapping[date, Any] = lake.publications.current(table, interval)
        missing = [day for day in interval if day not in published]
        if missing:
            nights = f"{missing[0]}" if len(missing) == 1 else f"{missing[0]} to {missing[-1]} ({len(missing)} nights)"
            raise NotEnoughHistory(
                f"{asked} and labels up to {as_of}; {table.name} lacks {nights}.\n"
                f"  Run `{of}_history` for {missing[0]} to {missing[-1]}, then train again."
            )
