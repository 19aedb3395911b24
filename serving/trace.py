"""The life of one prediction, walked back from its id; and the proof: the row computed again from the pinned versions."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from config.calendar import Interval
from config.catalog import ModelEntry, TableSpine
from config.errors import NightfleetError
from config.settings import code_version
from features.retrieval import retrieve
from features.transform import compute_view
from lake.digest import rows_digest
from lake.lake import Lake
from lake.lineage import Input, Publication
from lake.tables import LakeTable
from serving.predictions import FeatureMissing
from serving.publish import SQL_PREFIX
from serving.score import load_version, predict_rows, recorded_champion

if TYPE_CHECKING:
    from rich.tree import Tree


class UnknownPrediction(NightfleetError):
    """No predictions table holds that id."""


class InputsExpired(NightfleetError):
    """A version that a prediction was computed from can no longer be read."""


@dataclass(frozen=True)
class TracedPartition:
    """One published partition, by whom and when; `computed_from` are the partitions it was computed from."""

    table: str
    data_date: date
    digest: str
    version: int
    run_id: str
    code_version: str
    catalog_digest: str
    committed_at: datetime
    computed_from: tuple[Input, ...]


@dataclass(frozen=True)
class TracedPrediction:
    """The row as it was published. `superseded_at`: when another row took its place, None while it is current."""

    prediction_id: str
    model: str
    role: str
    version: int
    artifact_digest: str
    entity: dict[str, Any]
    data_date: date
    target_time_utc: datetime
    outputs: dict[str, float | None]
    input_digest: str
    superseded_at: datetime | None
    partition: TracedPartition


@dataclass(frozen=True)
class TracedView:
    """What one feature view gave the row: its values, and the partition they were read from.

    `partition` is None where the entity had no row within the view's time to live (all values are null then), or where `expired` says
    why the values can no longer be read.
    """

    view: str
    entity: dict[str, Any]
    values: dict[str, Any]
    partition: TracedPartition | None
    expired: str | None = None


@dataclass(frozen=True)
class TracedVersion:
    """The model version: from which training set, by which run and code.

    `pins`: Delta version of each feature view that the training set was read at. Unknown facts are None, and `missing` names files that are gone.
    """

    version: int
    artifact_digest: str
    folder: str
    family: str | None
    as_of: str | None
    training_digest: str | None
    test_digest: str | None
    windows: dict[str, Any] | None
    rows: dict[str, Any] | None
    pins: dict[str, int] | None
    code_version: str | None
    mlflow_run_id: str | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The whole life of one prediction. `promotion` is the ledger's line, `decision` the gate's, None where there is none."""

    prediction: TracedPrediction
    features: tuple[TracedView, ...]
    version: TracedVersion
    promotion: dict[str, Any] | None
    decision: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON document; dates and instants in ISO 8601."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_json_value))
        return document


@dataclass(frozen=True)
class Step:
    """One comparison. `binding`: a difference means that the row was not reproduced; otherwise it only explains one."""

    name: str
    expected: Any
    found: Any
    binding: bool = True

    @property
    def equal(self) -> bool:
        """Whether both are the same, numbers bit by bit."""
        return _same(self.expected, self.found)


@dataclass(frozen=True)
class Reproduction:
    """A prediction computed again, step by step."""

    prediction_id: str
    steps: tuple[Step, ...]

    @property
    def equal(self) -> bool:
        """Whether every binding step came out equal."""
        return all(step.equal for step in self.steps if step.binding)

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        steps = [asdict(step) | {"equal": step.equal} for step in self.steps]
        document: dict[str, Any] = json.loads(json.dumps({"prediction_id": self.prediction_id, "equal": self.equal, "steps": steps}, default=_json_value))
        return document


def trace(lake: Lake, prediction_id: str) -> Trace:
    """Walk a prediction back to its features, the data they were computed from, its model version, that version's training set and gate decision.

    Raises:
        UnknownPrediction: no predictions table holds the id.
    """
    prediction = _find(lake, prediction_id)
    publication = _publication(lake, f"{prediction.model}/predictions", prediction.data_date, prediction.partition.version)
    entry = lake.model(prediction.model)
    version = _version(lake, prediction)
    promotion = _promotion(lake, prediction, publication)
    return Trace(prediction, _views(lake, entry, prediction), version, promotion, _decision(lake, prediction, promotion))


def reproduce(lake: Lake, prediction_id: str) -> Reproduction:
    """Compute the prediction again from what it was computed from, and compare every step.

    The features are retrieved from the recorded versions of the feature partitions, and computed again from the recorded versions of the valid
    partitions; the outputs are predicted by the recorded model version, from verified bytes.

    Raises:
        UnknownPrediction: no predictions table holds the id.
        InputsExpired: a version that is needed was vacuumed, or its files or the model's are gone.
        UntrustedModel, ArtifactMismatch: the model is not signed, or its bytes were changed.
    """
    prediction = _find(lake, prediction_id)
    entry = lake.model(prediction.model)
    recorded = prediction.partition
    pins = _Pins.of(recorded.computed_from)
    _still_there(lake, pins)
    steps = [
        Step("code", recorded.code_version, code_version(), binding=False),
        Step("catalog", recorded.catalog_digest, lake.catalog.digest(entry.name), binding=False),
        *_published_row(lake, entry, prediction),
    ]
    views = _views(lake, entry, prediction)
    for view in views:
        steps += _recomputed(lake, entry, view)
    steps += _predicted(lake, entry, prediction, pins, views)
    return Reproduction(prediction_id, tuple(steps))


# ---- finding ---------------------------------------------------------------------------------------------------


def _find(lake: Lake, prediction_id: str) -> TracedPrediction:
    inspector = sa.inspect(lake.engine)
    names = sorted(name for name in inspector.get_table_names() if name.startswith(SQL_PREFIX))
    with lake.engine.connect() as connection:
        for name in names:
            table = sa.Table(name, sa.MetaData(), autoload_with=lake.engine)
            query = sa.select(table).where(table.c.prediction_id == prediction_id).order_by(table.c.superseded_at.is_not(None), table.c.superseded_at.desc())
            row = connection.execute(query.limit(1)).mappings().first()
            if row is not None:
                return _prediction(lake, dict(row))
        example = None
        for name in names:
            some = sa.table(name, sa.column("prediction_id"))
            example = example or connection.execute(sa.select(some.c.prediction_id).limit(1)).scalar()
    if not names:
        hint = "Nothing is published yet: score a night first."
    else:
        listed = ", ".join(name.removeprefix(SQL_PREFIX) for name in names)
        hint = f"Looked at the predictions of {listed}, replaced ones included. An id has 32 digits 0-9a-f and stands in column prediction_id of {names[0]}"
        hint += f", for example {example}." if example else "."
    raise UnknownPrediction(f"there is no prediction {prediction_id!r}.\n  {hint}")


def _prediction(lake: Lake, row: Mapping[str, Any]) -> TracedPrediction:
    entry = lake.model(row["model"])
    day = row["data_date"]
    publication = _publication(lake, row["source_table"], day, row["delta_version"])
    return TracedPrediction(
        prediction_id=row["prediction_id"],
        model=row["model"],
        role=row["role"],
        version=row["version"],
        artifact_digest=row["artifact_digest"],
        entity={name: _utc(row[name]) for name in entry.entity},
        data_date=day,
        target_time_utc=_utc(row["target_time_utc"]),
        outputs={name: row[name] for name in entry.output_columns if name in row},
        input_digest=row["input_digest"],
        superseded_at=_utc(row["superseded_at"]),
        partition=_partition(publication),
    )


def _utc(value: Any) -> Any:
    """SQLite gives instants back without their zone; all of ours are UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


def _any_table(lake: Lake, name: str, version: int | None = None) -> LakeTable:
    """A table of the lake by its name; with a version, its columns are those it had then, not the catalog's of today."""
    schema = pa.schema([])
    path = lake.settings.lake / name
    if version is not None:
        try:
            schema = pa.schema(DeltaTable(path, version=version).schema().to_arrow())
        except DeltaError as error:
            raise InputsExpired(_expired(name, version, str(error))) from error
    return LakeTable(name, path, schema, ())


def _publication(lake: Lake, table: str, day: date, version: int) -> Publication:
    """What was published for a night as of a Delta version."""
    found = lake.publications.current(_any_table(lake, table), Interval.of(day), as_of_version=version)
    if day not in found:
        raise InputsExpired(_expired(table, version, f"the index of publications has no partition {day} up to that version; the table was made anew since"))
    return found[day]


def _partition(publication: Publication) -> TracedPartition:
    p = publication
    return TracedPartition(p.table, p.data_date, p.digest, p.version, p.run_id, p.code_version, p.catalog_digest, p.committed_at, p.inputs)


@dataclass(frozen=True)
class _Pins:
    """The version to read each table at. An input names the commit that wrote its partition; as of the latest of them all were there."""

    versions: dict[str, int]
    dates: dict[str, tuple[date, ...]]
    digests: dict[tuple[str, date], str]

    @classmethod
    def of(cls, inputs: Iterable[Input]) -> _Pins:
        versions: dict[str, int] = {}
        dates: dict[str, set[date]] = {}
        digests = {}
        for item in inputs:
            versions[item.table] = max(versions.get(item.table, -1), item.version)
            dates.setdefault(item.table, set()).add(item.data_date)
            digests[item.table, item.data_date] = item.digest
        return cls(versions, {name: tuple(sorted(days)) for name, days in dates.items()}, digests)


def _expired(table: str, version: int, why: str) -> str:
    return (
        f"{table} can no longer be read at version {version}: {why}.\n"
        "  The prediction cannot be computed again from what it was computed from. Restore the files from a backup; `trace` without --reproduce still works."
    )


def _readable(lake: Lake, name: str, version: int, dates: Iterable[date]) -> LakeTable:
    """The table, once it is known that its files of those partitions are there at that version.

    Raises:
        InputsExpired: they are not.
    """
    table = _any_table(lake, name, version)
    gone = [uri for uri in table.files(dates, version) if "://" not in uri and not Path(uri).is_file()]
    if gone:
        raise InputsExpired(_expired(name, version, f"{len(gone)} of its files are gone, {gone[0]} first"))
    return table


def _still_there(lake: Lake, pins: _Pins) -> None:
    """Check that every pinned partition can be read, and is the one that was recorded.

    Raises:
        InputsExpired: one is not.
    """
    for name, version in pins.versions.items():
        table = _readable(lake, name, version, pins.dates[name])
        days = pins.dates[name]
        published = lake.publications.current(table, Interval.closed(days[0], days[-1]), as_of_version=version)
        for day in days:
            if day not in published or published[day].digest != pins.digests[name, day]:
                raise InputsExpired(_expired(name, version, f"its partition {day} there is not the one that was recorded; the table was made anew since"))


# ---- features --------------------------------------------------------------------------------------------------


def _views(lake: Lake, entry: ModelEntry, prediction: TracedPrediction) -> tuple[TracedView, ...]:
    pins = _Pins.of(prediction.partition.computed_from)
    try:
        spine = _spine_row(lake, entry, prediction, pins)
    except InputsExpired as error:
        return tuple(TracedView(view, {}, {}, None, expired=str(error)) for view in entry.features)
    return tuple(_view(lake, entry, view, prediction, spine, pins) for view in entry.features)


def _spine_row(lake: Lake, entry: ModelEntry, prediction: TracedPrediction, pins: _Pins) -> dict[str, Any]:
    """The spine's row of the entity as the night knew it: its columns are the keys of the views."""
    if not isinstance(entry.spine, TableSpine):
        return prediction.entity
    name = f"{entry.dataset}/valid/{entry.spine.table}"
    if name not in pins.versions:
        return prediction.entity
    table = _readable(lake, name, pins.versions[name], pins.dates[name])
    row = _one_row(lake, table, pins.dates[name], pins.versions[name], prediction.entity, "data_date DESC, revision DESC")
    return row or prediction.entity


def _view(lake: Lake, entry: ModelEntry, view: str, prediction: TracedPrediction, spine: Mapping[str, Any], pins: _Pins) -> TracedView:
    declared = lake.dataset(entry.dataset).features[view]
    entity = {name: spine.get(name) for name in declared.entities}
    nulls = dict.fromkeys(declared.columns)
    name = f"{entry.dataset}/features/{view}"
    if name not in pins.versions:
        return TracedView(view, entity, nulls, None, expired=f"{name} is not among the recorded inputs; the catalog's features changed since")
    if any(value is None for value in entity.values()):
        return TracedView(view, entity, nulls, None)
    dates = pins.dates[name]  # those within the time to live, as retrieval recorded them
    try:
        table = _readable(lake, name, pins.versions[name], dates)
        row = _one_row(lake, table, dates, pins.versions[name], entity, "data_date DESC")
        if row is None:
            return TracedView(view, entity, nulls, None)
        publication = _publication(lake, name, row["data_date"], pins.versions[name])
    except InputsExpired as error:
        return TracedView(view, entity, nulls, None, expired=str(error))
    values = {column: value for column, value in row.items() if column not in {*declared.entities, "event_timestamp", "data_date"}}
    return TracedView(view, entity, values, _partition(publication))


def _one_row(lake: Lake, table: LakeTable, dates: Iterable[date], version: int, key: Mapping[str, Any], order: str) -> dict[str, Any] | None:
    """The first row of those partitions with that key, in that order."""
    where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in key)
    with lake.duckdb() as connection:
        table.register(connection, "t", dates, version)
        query = f"SELECT * FROM t WHERE {where} ORDER BY {order} LIMIT 1"  # noqa: S608 (names from the catalog)
        found = connection.sql(query, params=list(key.values())).to_arrow_table()
    return dict(found.cast(_same_order(table.schema, found)).to_pylist()[0]) if found.num_rows else None


def _same_order(schema: pa.Schema, found: pa.Table) -> pa.Schema:
    return pa.schema([schema.field(name).with_nullable(True) for name in found.column_names])


# ---- model version, ledger, gate -------------------------------------------------------------------------------


def _version(lake: Lake, prediction: TracedPrediction) -> TracedVersion:
    folder = lake.settings.artifacts / prediction.model / prediction.artifact_digest
    documents: dict[str, dict[str, Any]] = {}
    missing = []
    for name in ("manifest.json", "job.json", "training_set.json"):
        try:
            documents[name] = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            documents[name] = {}
            missing.append(name)

    def first(*places: tuple[str, str]) -> Any:
        return next((documents[file][key] for file, key in places if documents[file].get(key) is not None), None)

    return TracedVersion(
        version=prediction.version,
        artifact_digest=prediction.artifact_digest,
        folder=str(folder),
        family=first(("manifest.json", "family")),
        as_of=first(("job.json", "as_of"), ("manifest.json", "as_of")),
        training_digest=first(("training_set.json", "training_digest"), ("manifest.json", "training_set_digest")),
        test_digest=first(("training_set.json", "test_digest")),
        windows=first(("training_set.json", "windows"), ("job.json", "windows")),
        rows=first(("training_set.json", "rows")),
        pins=first(("training_set.json", "pins")),
        code_version=first(("job.json", "code_version")),
        mlflow_run_id=(first(("job.json", "mlflow")) or {}).get("run_id"),
        missing=tuple(missing),
    )


def _promotion(lake: Lake, prediction: TracedPrediction, publication: Publication) -> dict[str, Any] | None:
    sequence = recorded_champion(publication)["sequence"]
    return next((dict(p.__dict__) for p in lake.ledger(prediction.model).read().promotions if p.sequence == sequence), None)


def _decision(lake: Lake, prediction: TracedPrediction, promotion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The gate's decision that the promotion cites, else the newest on that version."""
    name = f"{prediction.model}/decisions"
    delta = _any_table(lake, name).load()
    if delta is None:
        return None
    table = _any_table(lake, name, delta.version())
    with lake.duckdb() as connection:
        table.register(connection, "decisions", None, delta.version())
        cited = promotion["evidence_digest"] if promotion else None
        query = "SELECT * FROM decisions WHERE version = ? ORDER BY evidence_digest IS NOT DISTINCT FROM ? DESC, data_date DESC LIMIT 1"
        found = connection.sql(query, params=[prediction.version, cited]).to_arrow_table()
    return {key: _parsed(value) for key, value in found.to_pylist()[0].items()} if found.num_rows else None


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


# ---- reproducing -----------------------------------------------------------------------------------------------


def _published_row(lake: Lake, entry: ModelEntry, prediction: TracedPrediction) -> list[Step]:
    """SQL's copy against the lake's row."""
    version = prediction.partition.version
    table = _readable(lake, prediction.partition.table, version, [prediction.data_date])
    row = _one_row(lake, table, [prediction.data_date], version, {"prediction_id": prediction.prediction_id}, "data_date") or {}
    in_sql = {**prediction.outputs, "input_digest": prediction.input_digest, "version": prediction.version, "artifact_digest": prediction.artifact_digest}
    return [Step("published row", {name: row.get(name) for name in in_sql}, in_sql)]


def _recomputed(lake: Lake, entry: ModelEntry, view: TracedView) -> list[Step]:
    """The partition's digest, and the view's cells computed again from the valid partitions."""
    if view.expired:
        raise InputsExpired(view.expired.removeprefix("InputsExpired: "))
    if view.partition is None:
        return []
    partition, day = view.partition, view.partition.data_date
    table = _readable(lake, partition.table, partition.version, [day])
    pins = _Pins.of(partition.computed_from)
    _still_there(lake, pins)
    declared = lake.dataset(entry.dataset).features[view.view]
    current = LakeTable(table.name, table.path, table.schema, declared.entities)
    steps = [Step(f"partition {partition.table} {day}", partition.digest, rows_digest(current.read([day], partition.version)))]
    computed = compute_view(lake, entry.dataset, view.view, Interval.of(day), versions=pins.versions)
    with lake.duckdb() as connection:
        connection.register("computed", computed)
        where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in view.entity)
        query = f"SELECT * FROM computed WHERE {where}"  # noqa: S608 (names from the catalog)
        found = connection.sql(query, params=list(view.entity.values())).to_arrow_table().to_pylist()
    row = found[0] if found else {}
    return [*steps, Step(f"features {view.view}", view.values, {name: row.get(name) for name in view.values})]


def _predicted(lake: Lake, entry: ModelEntry, prediction: TracedPrediction, pins: _Pins, views: Iterable[TracedView]) -> list[Step]:
    prefix = f"{entry.dataset}/features/"
    view_pins = {name.removeprefix(prefix): version for name, version in pins.versions.items() if name.startswith(prefix)}
    spine_version = pins.versions.get(f"{entry.dataset}/valid/{entry.spine.table}") if isinstance(entry.spine, TableSpine) else None
    if not (lake.settings.artifacts / prediction.model / prediction.artifact_digest).is_dir():
        raise InputsExpired(
            f"the files of {prediction.model} version {prediction.version} (artifact {prediction.artifact_digest[:12]}…) are gone. "
            "Restore them from a backup or from the version's MLflow artifacts."
        )
    predictor = load_version(lake.settings, prediction.model, prediction.version, prediction.artifact_digest)
    steps = [Step("model bytes", prediction.artifact_digest, prediction.artifact_digest)]
    with lake.scratch("reproduce") as folder, lake.duckdb() as connection:
        retrieval = retrieve(lake, entry.name, Interval.of(prediction.data_date), pins=view_pins, spine_version=spine_version, folder=folder)
        connection.register("retrieved", retrieval.reader())
        where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in prediction.entity)
        query = f"SELECT * FROM retrieved WHERE {where}"  # noqa: S608 (names from the catalog)
        rows = connection.sql(query, params=list(prediction.entity.values())).to_arrow_table()
    if rows.num_rows != 1:
        return [*steps, Step("entity in the spine", 1, rows.num_rows)]
    row = rows.to_pylist()[0]
    for view in views:
        expected = {f"{view.view}__{name}": value for name, value in view.values.items()}
        steps.append(Step(f"retrieved {view.view}", expected, {name: row.get(name) for name in expected}))
    try:
        again = predict_rows(entry, prediction.version, prediction.artifact_digest, predictor, rows).to_pylist()[0]
    except FeatureMissing as error:
        return [*steps, Step("features of the version", "all there", str(error))]
    steps.append(Step("input digest", prediction.input_digest, again["input_digest"]))
    steps += [Step(f"output {name}", value, again[name]) for name, value in prediction.outputs.items()]
    steps.append(Step("prediction id", prediction.prediction_id, again["prediction_id"]))
    return steps


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(_same(value, found[key]) for key, value in expected.items())
    if isinstance(expected, float) and isinstance(found, float):
        return (expected != expected and found != found) or struct.pack("<d", expected) == struct.pack("<d", found)
    return type(expected) is type(found) and bool(expected == found)


def _json_value(value: Any) -> Any:
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    return str(value)


# ---- for people ------------------------------------------------------------------------------------------------


def render(found: Trace) -> Tree:
    """The trace as a tree for a terminal (rich)."""
    from rich.markup import escape
    from rich.tree import Tree

    def add(tree: Tree, name: str, value: Any) -> Tree:
        return tree.add(f"[dim]{escape(name)}[/] {escape(_shown(value))}")

    p = found.prediction
    root = Tree(f"[bold]prediction {p.prediction_id}[/] of {p.model}")
    add(root, "entity", ", ".join(f"{name} {_shown(value)}" for name, value in p.entity.items()))
    add(root, "target time", p.target_time_utc)
    for output, number in p.outputs.items():
        add(root, output, number)
    state = f"[yellow]replaced at {_shown(p.superseded_at)}[/]" if p.superseded_at else "[green]current[/]"
    published = root.add(f"[bold]published[/] {p.partition.table} for {p.data_date}, {state}")
    _add_partition(published, add, p.partition)
    features = root.add(f"[bold]features[/] as known on {p.data_date}, input digest {p.input_digest}")
    for view in found.features:
        where = f"partition {view.partition.data_date}" if view.partition else "no row of this entity within its time to live"
        branch = features.add(f"[bold]{view.view}[/] {escape(', '.join(f'{n}={_shown(v)}' for n, v in view.entity.items()))}: {where}")
        if view.expired:
            branch.add(f"[yellow]{escape(view.expired)}[/]")
            continue
        for name, value in view.values.items():
            add(branch, name, value)
        if view.partition:
            _add_partition(branch, add, view.partition)
    v = found.version
    version = root.add(f"[bold]model[/] {p.model} version {v.version}, {v.family or 'family unknown'}")
    for name, value in (("artifact", v.artifact_digest), ("as of", v.as_of), ("training set", v.training_digest), ("test set", v.test_digest)):
        add(version, name, value)
    for name, window in (v.windows or {}).items():
        add(version, f"window {name}", Interval(date.fromisoformat(window["start"]), date.fromisoformat(window["end"])))
    for name, value in (("rows", v.rows), ("features at versions", v.pins), ("code", v.code_version), ("MLflow run", v.mlflow_run_id), ("files", v.folder)):
        add(version, name, value)
    if v.missing:
        version.add(f"[yellow]missing: {', '.join(v.missing)}[/]")
    _add_decision(root, add, found)
    return root


def render_reproduction(reproduction: Reproduction) -> Tree:
    """The steps of a reproduction as a tree for a terminal (rich)."""
    from rich.markup import escape
    from rich.tree import Tree

    steps = Tree("[bold green]reproduced: every step is equal[/]" if reproduction.equal else "[bold red]not reproduced[/]")
    for step in reproduction.steps:
        if step.equal:
            steps.add(f"[green]equal[/] {escape(step.name)}")
            continue
        colour, note = ("red", "") if step.binding else ("yellow", " (explains differences, is none itself)")
        steps.add(f"[{colour}]differs[/] {escape(step.name)}{note}: expected {escape(_shown(step.expected))}, found {escape(_shown(step.found))}")
    return steps


def _add_partition(tree: Tree, add: Any, partition: TracedPartition) -> None:
    add(tree, "version", f"{partition.version} of {partition.table}, digest {partition.digest[:16]}…")
    add(tree, "run", f"{partition.run_id} at {_shown(partition.committed_at)}, code {partition.code_version}")
    tables: dict[str, list[Input]] = {}
    for item in partition.computed_from:
        tables.setdefault(item.table, []).append(item)
    for table, items in tables.items():
        days = sorted(item.data_date for item in items)
        span = f"{days[0]}..{days[-1]} ({len(days)} partitions)" if len(days) > 1 else f"{days[0]} (digest {items[0].digest[:16]}…)"
        add(tree, "computed from", f"{table} {span}, up to version {max(item.version for item in items)}")


def _add_decision(root: Tree, add: Any, found: Trace) -> None:
    from rich.markup import escape

    if found.promotion:
        promoted = root.add(f"[bold]{found.promotion['kind']}[/] in force from {found.promotion['effective_from']}")
        for name in ("by", "decided_at", "trained_until", "evidence_digest"):
            add(promoted, name, found.promotion[name])
    else:
        root.add("[yellow]the ledger no longer has the line that made this version champion[/]")
    if not found.decision:
        root.add("[yellow]no gate decision is stored for this version[/]")
        return
    decision = root.add(f"[bold]gate decision[/] {escape(str(found.decision['verdict']))} against {escape(str(found.decision.get('rival')))}")
    for reason in found.decision.get("reasons") or []:
        add(decision, "reason", reason["text"] if isinstance(reason, dict) else reason)
    for check in found.decision.get("checks") or []:
        passed = {True: "[green]passed[/]", False: "[red]failed[/]"}.get(check.get("passed"), "[yellow]not evaluated[/]")
        said = {key: value for key, value in check.items() if value is not None and key not in {"name", "passed"}}
        decision.add(f"{passed} {escape(str(check.get('name')))} [dim]{escape(_shown(said))}[/]")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return str(value)
