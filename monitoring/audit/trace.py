"""The life of one prediction, walked back from its id; and the proof: the row computed again from the pinned
versions.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from config.calendar import Interval
from config.catalog.load import ModelView
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from config.settings import MissingSecret, code_version
from features.retrieval import retrieve, spine_table
from features.transform import compute_view
from lake.assignment import CHALLENGER, CHAMPION, Assignment, Plan, scored_by
from lake.delta import TableDamaged, table_location
from lake.digest import rows_digest
from lake.lake import Lake
from lake.lineage import Input, Publication
from lake.signature import UntrustedModel, verify
from lake.storage import artifact_folder
from lake.tables import LakeTable, feature_table
from monitoring.audit.served import Service, service
from serving.predictions import FeatureMissing
from serving.projection import SQL_PREFIX, sql_name
from serving.rollout.units import served_rows
from serving.score import load_version, predict_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


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
    served: bool
    superseded_at: datetime | None
    partition: TracedPartition


@dataclass(frozen=True)
class TracedView:
    """What one feature view gave the row: its values, and the partition they were read from.

    `partition` is None where the entity had no row within the view's time to live (all values are null then), or where
    `expired` says why the values can no longer be read.
    """

    view: str
    entity: dict[str, Any]
    values: dict[str, Any]
    partition: TracedPartition | None
    expired: str | None = None


@dataclass(frozen=True)
class TracedVersion:
    """The model version: from which training set, by which run and code.

    `pins`: Delta version of each feature view that the training set was read at. `run_id`: the run that trained it.
        `signature`: `valid`, or why
    it is not. Unknown facts are None, and `missing` names files that are gone.
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
    run_id: str | None = None
    signature: str = "not looked at"


@dataclass(frozen=True)
class Trace:
    """The whole life of one prediction.

    Attributes:
        promotion: the line of the ledger of promotions that made its version champion, `rollout`: of the ledger of
            rollouts, by which a challenger scored that night; `decision`: the gate's. None where there is none.
        service: why it was served, or was not.
    """

    prediction: TracedPrediction
    features: tuple[TracedView, ...]
    version: TracedVersion
    promotion: dict[str, Any] | None
    decision: dict[str, Any] | None
    rollout: dict[str, Any] | None
    service: Service

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
        document: dict[str, Any] = json.loads(
            json.dumps({"prediction_id": self.prediction_id, "equal": self.equal, "steps": steps}, default=_json_value)
        )
        return document


def trace(lake: Lake, prediction_id: str, *, model: str | None = None) -> Trace:
    """Walk a prediction back to its features, the data they were computed from, its model version, that version's
    training set and gate decision.

    Args:
        model: whose prediction it is, where the caller knows; None: every model is looked at.
    Raises:
        UnknownPrediction: no predictions table holds the id.
        InputsExpired: the lake's table of predictions is not there, or was made anew since.
    """
    prediction, publication = _find(lake, prediction_id, model)
    entry = lake.model(prediction.model)
    plan = scored_by(prediction.data_date, publication.details)
    assignment = next(a for a in plan if a.role == prediction.role)
    line = _line(lake, prediction, assignment)
    views, row = _views(lake, entry, prediction)
    return Trace(
        prediction,
        views,
        _version(lake, prediction),
        promotion=line if prediction.role == CHAMPION else None,
        decision=_decision(lake, prediction, line),
        rollout=line if prediction.role == CHALLENGER else None,
        service=service(plan, prediction.role, prediction.served, row),
    )


def reproduce(lake: Lake, prediction_id: str) -> Reproduction:
    """Compute the prediction again from what it was computed from, and compare every step.

    The features are retrieved from the recorded versions of the feature partitions, and computed again from the
    recorded versions of the valid partitions; the outputs are predicted by the recorded model version, from verified
    bytes.

    Raises:
        UnknownPrediction: no predictions table holds the id.
        InputsExpired: a version that is needed was vacuumed, or its files or the model's are gone.
        UntrustedModel, ArtifactMismatch: the model is not signed, or its bytes were changed.
    """
    prediction, publication = _find(lake, prediction_id)
    entry = lake.model(prediction.model)
    recorded = prediction.partition
    pins = _Pins.of(recorded.computed_from)
    _still_there(lake, pins)
    steps = [
        Step("code", recorded.code_version, code_version(), binding=False),
        Step("catalog", recorded.catalog_digest, lake.catalog.digest(entry.name), binding=False),
        *_published_row(lake, entry, prediction),
    ]
    views, _ = _views(lake, entry, prediction)
    for view in views:
        steps += _recomputed(lake, entry, view)
    steps += _predicted(lake, entry, prediction, scored_by(prediction.data_date, publication.details), pins, views)
    return Reproduction(prediction_id, tuple(steps))


# ---- finding ---------------------------------------------------------------------------------------------------


def _find(lake: Lake, prediction_id: str, model: str | None = None) -> tuple[TracedPrediction, Publication]:
    names = _sql_tables(lake, None if model is None else [model])
    with lake.engine.connect() as connection:
        for name in names:
            some = sa.table(name, sa.column("prediction_id"))
            if (
                connection.execute(
                    sa.select(some.c.prediction_id).where(some.c.prediction_id == prediction_id).limit(1)
                ).first()
                is None
            ):
                continue  # before the table's columns are looked up, which takes longer
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            query = (
                sa.select(table)
                .where(table.c.prediction_id == prediction_id)
                .order_by(table.c.superseded_at.is_not(None), table.c.superseded_at.desc())
            )
            return _prediction(lake, dict(connection.execute(query.limit(1)).mappings().one()))
        example = None
        for name in names:
            some = sa.table(name, sa.column("prediction_id"))
            example = example or connection.execute(sa.select(some.c.prediction_id).limit(1)).scalar()
    if not names:
        hint = "Nothing is published yet: score a night first."
    else:
        listed = ", ".join(name.removeprefix(SQL_PREFIX) for name in names)
        hint = (
            f"Looked at the predictions of {listed}, replaced ones included. An id has 32 digits 0-9a-f and stands in"
            f" column prediction_id of {names[0]}"
        )
        hint += f", for example {example}." if example else "."
    raise UnknownPrediction(f"there is no prediction {prediction_id!r}.\n  {hint}")


def _sql_tables(lake: Lake, models: Iterable[str] | None) -> list[str]:
    """The SQL tables of those models' predictions (None: all) that are there, sorted."""
    wanted = None if models is None else {sql_name(model) for model in models}
    names = sa.inspect(lake.engine).get_table_names()
    return sorted(name for name in names if name.startswith(SQL_PREFIX) and (wanted is None or name in wanted))


def _prediction(lake: Lake, row: Mapping[str, Any]) -> tuple[TracedPrediction, Publication]:
    entry = lake.model(row["model"])
    day = row["data_date"]
    publication = _publication(lake, _any_table(lake, row["source_table"]), day, row["delta_version"])
    prediction = TracedPrediction(
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
        served=bool(row["served"]),
        superseded_at=_utc(row["superseded_at"]),
        partition=_partition(publication),
    )
    return prediction, publication


def _utc(value: Any) -> Any:
    """SQLite gives instants back without their zone; all of ours are UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


@dataclass(frozen=True)
class _OpenTable(LakeTable):
    """A table that was opened once, at one version: reading its log takes longer than all else of a trace."""

    delta: DeltaTable | None = None

    def load(self, version: int | None = None) -> DeltaTable | None:
        """The table as it was opened."""
        return self.delta


def _any_table(lake: Lake, name: str, version: int | None = None) -> _OpenTable:
    """A table of the lake by its name, opened; with a version, its columns are those it had then, not the catalog's of
    today.
    """
    location = table_location(lake.settings, name)
    try:
        delta = LakeTable(name, location, pa.schema([]), ()).load(version)
        if delta is None and version is not None:
            raise InputsExpired(_expired(name, version, f"there is no table in {location.uri}"))
        schema = pa.schema(delta.schema().to_arrow()) if delta is not None and version is not None else pa.schema([])
    except (DeltaError, TableDamaged) as error:
        raise InputsExpired(_expired(name, version or 0, str(error).splitlines()[0])) from error
    return _OpenTable(name, location, schema, (), delta=delta)


def _publication(lake: Lake, table: _OpenTable, day: date, version: int) -> Publication:
    """What was published for a night as of a Delta version."""
    if table.delta is None:
        # The index would forget what it knows of a table that is not there; a disk that is not mounted is no reason to.
        raise InputsExpired(_expired(table.name, version, f"there is no table in {table.location.uri}"))
    published = lake.publications.current(table, Interval.of(day), loaded=table.delta, as_of_version=version)
    if day not in published:
        raise InputsExpired(
            _expired(
                table.name,
                version,
                f"the index of publications has no partition {day} up to that version; the table was recreated since",
            )
        )
    return published[day]


def _partition(publication: Publication) -> TracedPartition:
    p = publication
    return TracedPartition(
        p.table, p.data_date, p.digest, p.version, p.run_id, p.code_version, p.catalog_digest, p.committed_at, p.inputs
    )


@dataclass(frozen=True)
class _Pins:
    """The version to read each table at. An input names the commit that wrote its partition; as of the latest of them
    all were there.
    """

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
        "  The prediction cannot be computed again from what it was computed from. Restore the files from a backup; "
        "`trace` without --reproduce still works."
    )


def _readable(lake: Lake, name: str, version: int, dates: Iterable[date]) -> _OpenTable:
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
                raise InputsExpired(
                    _expired(
                        name,
                        version,
                        f"its partition {day} there is not the one that was recorded; the table was recreated since",
                    )
                )


# ---- features --------------------------------------------------------------------------------------------------


def _views(
    lake: Lake, entry: ModelEntry, prediction: TracedPrediction
) -> tuple[tuple[TracedView, ...], dict[str, Any] | None]:
    """What each view gave the row; and the row, its features named as retrieval names them, None where it expired."""
    pins = _Pins.of(prediction.partition.computed_from)
    with lake.duckdb() as connection:
        try:
            spine = _spine_row(lake, connection, entry, prediction, pins)
        except InputsExpired as error:
            return tuple(TracedView(view, {}, {}, None, expired=str(error)) for view in entry.features), None
        views = tuple(_view(lake, connection, view, spine, pins) for view in lake.catalog.views(entry))
    read = (view for view in views if view.expired is None)
    return views, spine | {f"{view.view}__{name}": value for view in read for name, value in view.values.items()}


def _spine_row(
    lake: Lake, connection: DuckDBPyConnection, entry: ModelEntry, prediction: TracedPrediction, pins: _Pins
) -> dict[str, Any]:
    """The spine's row of the entity as the night knew it: its columns are the keys of the views."""
    source = spine_table(lake, entry)
    if source is None or source.name not in pins.versions:
        return prediction.entity
    dates = pins.dates[source.name]
    table = _readable(lake, source.name, pins.versions[source.name], dates)
    keys = {name: value for name, value in prediction.entity.items() if name in source.schema.names}
    row = _one_row(connection, table, dates, keys, "data_date DESC, revision DESC")
    return prediction.entity | (row or {})


def _view(
    lake: Lake,
    connection: DuckDBPyConnection,
    view: ModelView,
    spine: Mapping[str, Any],
    pins: _Pins,
) -> TracedView:
    declared = view.declared
    entity = {name: spine.get(name) for name in declared.entities}
    nulls = dict.fromkeys(declared.columns)
    name = feature_table(lake.settings, view.dataset, view.view).name
    if name not in pins.versions:
        return TracedView(
            view.name,
            entity,
            nulls,
            None,
            expired=f"{name} is not among the recorded inputs; the catalog's features changed since",
        )
    if any(value is None for value in entity.values()):
        return TracedView(view.name, entity, nulls, None)
    dates = pins.dates[name]  # those within the time to live, as retrieval recorded them
    try:
        table = _readable(lake, name, pins.versions[name], dates)
        row = _one_row(connection, table, dates, entity, "data_date DESC")
        if row is None:
            return TracedView(view.name, entity, nulls, None)
        publication = _publication(lake, table, row["data_date"], pins.versions[name])
    except InputsExpired as error:
        return TracedView(view.name, entity, nulls, None, expired=str(error))
    values = {
        column: value
        for column, value in row.items()
        if column not in {*declared.entities, "event_timestamp", "data_date"}
    }
    return TracedView(view.name, entity, values, _partition(publication))


def _one_row(
    connection: DuckDBPyConnection, table: _OpenTable, dates: Iterable[date], key: Mapping[str, Any], order: str
) -> dict[str, Any] | None:
    """The first row of those partitions with that key, in that order."""
    where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in key)
    table.register(connection, "t", dates)
    query = f"SELECT * FROM t WHERE {where} ORDER BY {order} LIMIT 1"  # noqa: S608 (names from the catalog)
    rows = connection.sql(query, params=list(key.values())).to_arrow_table()
    return dict(rows.cast(_same_order(table.schema, rows)).to_pylist()[0]) if rows.num_rows else None


def _same_order(schema: pa.Schema, rows: pa.Table) -> pa.Schema:
    return pa.schema([schema.field(name).with_nullable(True) for name in rows.column_names])


# ---- model version, ledger, gate -------------------------------------------------------------------------------


def _version(lake: Lake, prediction: TracedPrediction) -> TracedVersion:
    folder = artifact_folder(lake.settings, prediction.model, prediction.artifact_digest)
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
        run_id=first(("job.json", "run_id")),
        signature=_signature(lake, folder, prediction),
    )


def _signature(lake: Lake, folder: Path, prediction: TracedPrediction) -> str:
    try:
        verify(lake.settings, folder, prediction.model, prediction.artifact_digest)
    except (UntrustedModel, MissingSecret) as error:
        return str(error).splitlines()[0]
    return "valid"


def _line(lake: Lake, prediction: TracedPrediction, assignment: Assignment) -> dict[str, Any] | None:
    """The line that gave the version its role: of the ledger of promotions, or of rollouts."""
    if assignment.role == CHALLENGER:
        lines = lake.rollouts(prediction.model).read().lines
        return next((dict(one.__dict__) for one in lines if one.sequence == assignment.sequence), None)
    promotions = lake.ledger(prediction.model).read().promotions
    return next((dict(p.__dict__) for p in promotions if p.sequence == assignment.sequence), None)


def _decision(lake: Lake, prediction: TracedPrediction, line: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The gate's decision that the ledger's line cites, else the newest on that version."""
    name = f"{prediction.model}/decisions"
    opened = _any_table(lake, name)
    if opened.delta is None:
        return None
    table = replace(opened, schema=pa.schema(opened.delta.schema().to_arrow()))
    with lake.duckdb() as connection:
        table.register(connection, "decisions")
        cited = line["evidence_digest"] if line else None
        query = (
            "SELECT * FROM decisions WHERE version = ? ORDER BY evidence_digest IS NOT DISTINCT FROM ? DESC, data_date"
            " DESC LIMIT 1"
        )
        decisions = connection.sql(query, params=[prediction.version, cited]).to_arrow_table()
    return {key: _parsed(value) for key, value in decisions.to_pylist()[0].items()} if decisions.num_rows else None


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
    with lake.duckdb() as connection:
        row = (
            _one_row(
                connection, table, [prediction.data_date], {"prediction_id": prediction.prediction_id}, "data_date"
            )
            or {}
        )
    in_sql = {
        **prediction.outputs,
        "input_digest": prediction.input_digest,
        "version": prediction.version,
        "artifact_digest": prediction.artifact_digest,
    }
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
    taken = next(one for one in lake.catalog.views(entry) if one.name == view.view)
    current = LakeTable(table.name, table.location, table.schema, taken.declared.entities)
    steps = [
        Step(
            f"partition {partition.table} {day}", partition.digest, rows_digest(current.read([day], partition.version))
        )
    ]
    computed = compute_view(lake, taken.dataset.name, taken.view, Interval.of(day), versions=pins.versions)
    with lake.duckdb() as connection:
        connection.register("computed", computed)
        where = " AND ".join(f'"{name}" IS NOT DISTINCT FROM ?' for name in view.entity)
        query = f"SELECT * FROM computed WHERE {where}"  # noqa: S608 (names from the catalog)
        rows = connection.sql(query, params=list(view.entity.values())).to_arrow_table().to_pylist()
    row = rows[0] if rows else {}
    return [*steps, Step(f"features {view.view}", view.values, {name: row.get(name) for name in view.values})]


def _predicted(
    lake: Lake,
    entry: ModelEntry,
    prediction: TracedPrediction,
    plan: Plan,
    pins: _Pins,
    views: Iterable[TracedView],
) -> list[Step]:
    view_pins = {
        view: pins.versions[table.name]
        for view, table in lake.feature_tables(entry).items()
        if table.name in pins.versions
    }
    source = spine_table(lake, entry)
    spine_version = pins.versions.get(source.name) if source else None
    if not artifact_folder(lake.settings, prediction.model, prediction.artifact_digest).is_dir():
        raise InputsExpired(
            f"the files of {prediction.model} version {prediction.version} (artifact "
            f"{prediction.artifact_digest[:12]}…) are gone. "
            "Restore them from a backup or from the version's MLflow artifacts."
        )
    predictor = load_version(lake.settings, prediction.model, prediction.version, prediction.artifact_digest)
    steps = [Step("model bytes", prediction.artifact_digest, prediction.artifact_digest)]
    with lake.scratch("reproduce") as folder, lake.duckdb() as connection:
        retrieval = retrieve(
            lake,
            entry.name,
            Interval.of(prediction.data_date),
            pins=view_pins,
            spine_version=spine_version,
            folder=folder,
        )
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
        assignment = next(a for a in plan if a.role == prediction.role)
        served = served_rows(plan, rows)[prediction.role]
        again = predict_rows(entry, assignment, predictor, rows, served=served).to_pylist()[0]
    except FeatureMissing as error:
        return [*steps, Step("features of the version", "all there", str(error))]
    steps.append(Step("input digest", prediction.input_digest, again["input_digest"]))
    steps += [Step(f"output {name}", value, again[name]) for name, value in prediction.outputs.items()]
    steps.append(Step("served", prediction.served, again["served"]))
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
