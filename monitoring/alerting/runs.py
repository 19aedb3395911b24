"""What ran when, and how it ended: one row a DAG run in the SQL table `runs`, which outlives Airflow's own database
being cleaned.

A listener in the scheduler writes a run's states, one in the task's process the error's text. Events may come late or
twice: an event older than what is known changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import sqlalchemy as sa

from config.calendar import Interval
from lake.lake import Lake
from lake.lineage import as_utc
from lake.storage import lock

Kind = Literal["ingest", "history", "score", "monitor", "train", "rollback", "rollout", "watch", "maintenance"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RUNNING, SUCCESS, FAILED = "running", "success", "failed"
ENDED = (SUCCESS, FAILED)
LONGEST_TEXT = 4_000
_TASKS_KEPT = 20

_metadata = sa.MetaData()
runs_table = sa.Table(
    "runs",
    _metadata,
    sa.Column("dag_id", sa.String, primary_key=True),
    sa.Column("run_id", sa.String, primary_key=True),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("partition_key", sa.String),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column("note", sa.Text),
    sa.Column("failed_task", sa.String),
    sa.Column("errors", sa.Text),
    sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("error_at", sa.DateTime(timezone=True)),
    sa.Index("ix_runs_subject", "subject", "kind", "partition_key"),
    sa.Index("ix_runs_started", "started_at"),
    sa.Index("ix_runs_state", "state", "started_at"),
)
waiting_table = sa.Table(
    "waiting",
    _metadata,
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("run_id", sa.String, primary_key=True),
    sa.Column("asking", sa.Integer, primary_key=True),
    sa.Column("dag_id", sa.String, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True)
class Run:
    """One run of a DAG of the catalog.

    Attributes:
        subject: the data set or model it is about, empty for `watch`.
        partition_key: its data date, `YYYY-MM-DD`; None where it has none, or an interval.
        state: Airflow's word: running, success, failed.
        started_at, ended_at: aware, UTC.
        note: what Airflow shows on the run.
        failed_task, error: the first task that failed for good and what it said, None where nothing did.
    """

    dag_id: str
    run_id: str
    subject: str
    kind: Kind
    partition_key: str | None
    state: str
    started_at: datetime | None
    ended_at: datetime | None = None
    note: str | None = None
    failed_task: str | None = None
    error: str | None = None


def described(dag_id: str, conf: Mapping[str, Any] | None = None) -> tuple[str, Kind] | None:
    """Subject and kind of a DAG's runs by its name, None for a DAG that is not one of ours. The subject of a
    rollback or a rollout stands in its form.
    """
    if dag_id in ("rollback", "rollout"):
        return str((conf or {}).get("model") or ""), "rollback" if dag_id == "rollback" else "rollout"
    if dag_id == "watch":
        return "", "watch"
    if dag_id == "maintenance":
        return "", "maintenance"
    subject, _, kind = dag_id.rpartition("_")
    for known in KINDS[:5]:
        if kind == known and subject:
            return subject, known
    return None


def record_run(target: Lake | sa.Engine, run: Run, *, at: datetime | None = None) -> None:
    """Store a run's state; what its failed tasks said stays with it until the run starts anew or succeeds.

    Args:
        at: when that state was reached, aware; None: now. A state older than the one that is stored is left out.
    """
    at = at or datetime.now(UTC)
    with _writing(target) as connection:
        stored = _stored(connection, run)
        if stored is not None and as_utc(stored.state_at) > at:
            return
        values = _values(run) | {
            "state_at": at,
            "error_at": None,
            "errors": json.dumps([[run.failed_task, run.error]]) if run.failed_task and run.error else None,
        }
        if stored is not None:
            values["note"] = values["note"] if run.note is not None else stored.note
            if stored.error_at is not None and (
                run.state == FAILED or (run.state == RUNNING and as_utc(stored.error_at) > at)
            ):
                values |= {"errors": stored.errors, "error_at": stored.error_at}
        _put(connection, stored is not None, run, values)


def record_failure(target: Lake | sa.Engine, run: Run, *, task: str, error: str, at: datetime | None = None) -> None:
    """Store what a failed task said, with its run; of each task its last words are kept.

    Args:
        run: as far as the task knows it; used where the run is not on record yet.
    """
    at = at or datetime.now(UTC)
    with _writing(target) as connection:
        stored = _stored(connection, run)
        said = dict(json.loads(stored.errors)) if stored is not None and stored.errors else {}
        said = {name: text for name, text in said.items() if name != task} | {_text(task): _text(error)}
        values = {"errors": json.dumps(list(said.items())[-_TASKS_KEPT:]), "error_at": at}
        if stored is None:
            # Older than any event of the scheduler's, which knows the run's state.
            values = _values(run) | {"state_at": datetime(1970, 1, 1, tzinfo=UTC)} | values
        _put(connection, stored is not None, run, values)


def read_runs(
    lake: Lake,
    *,
    subjects: Collection[str] | None = None,
    kinds: Collection[Kind] | None = None,
    keys: Interval | None = None,
    states: Collection[str] | None = None,
    newest_first_limit: int | None = None,
) -> list[Run]:
    """Runs on record, the earliest start first; with `newest_first_limit` so many of the latest, the latest first.

    Args:
        keys: only runs with a partition key in that interval.
    """
    c = runs_table.c
    query = sa.select(runs_table)
    if subjects is not None:
        query = query.where(c.subject.in_(list(subjects)))
    if kinds is not None:
        query = query.where(c.kind.in_(list(kinds)))
    if states is not None:
        query = query.where(c.state.in_(list(states)))
    if keys is not None:
        query = query.where(c.partition_key >= keys.start.isoformat(), c.partition_key < keys.end.isoformat())
    order = (sa.func.coalesce(c.started_at, c.state_at), c.dag_id, c.run_id)
    query = (
        query.order_by(*(column.desc() for column in order)).limit(newest_first_limit)
        if newest_first_limit is not None
        else query.order_by(*order)
    )
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(runs_table.name):
            return []
        return [_run(row) for row in connection.execute(query)]


@dataclass(frozen=True)
class Waiting:
    """A run that waits for a person's word on a promotion.

    Attributes:
        asking: which asking of that run it is; a cleared task asks anew.
        asked_at, until: aware, UTC; without an answer by then, the promotion lapses.
    """

    model: str
    run_id: str
    asking: int
    dag_id: str
    title: str
    asked_at: datetime
    until: datetime


def record_waiting(lake: Lake, waiting: Waiting) -> None:
    """Store that a person is asked; the same asking again changes nothing but its time."""
    end_waiting(lake, waiting.model, waiting.run_id, waiting.asking)
    with _writing(lake) as connection:
        connection.execute(waiting_table.insert().values(**waiting.__dict__ | {"title": _text(waiting.title)}))


def end_waiting(lake: Lake, model: str, run_id: str, asking: int) -> None:
    """Store that nobody is asked any more: there is an answer, or none came in time."""
    c = waiting_table.c
    with _writing(lake) as connection:
        connection.execute(waiting_table.delete().where(c.model == model, c.run_id == run_id, c.asking == asking))


def read_waiting(lake: Lake, *, now: datetime | None = None) -> list[Waiting]:
    """Who waits for a person's word, the longest first; a run that has ended, or whose time is over, does not."""
    c, r = waiting_table.c, runs_table.c
    ended = sa.exists(sa.select(sa.literal(1)).where(r.dag_id == c.dag_id, r.run_id == c.run_id, r.state.in_(ENDED)))
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(waiting_table.name):
            return []
        rows = connection.execute(
            sa.select(waiting_table).where(sa.not_(ended), c.until > (now or datetime.now(UTC))).order_by(c.asked_at)
        ).all()
    return [Waiting(x.model, x.run_id, x.asking, x.dag_id, x.title, as_utc(x.asked_at), as_utc(x.until)) for x in rows]


def _run(row: Any) -> Run:
    said = dict(json.loads(row.errors)) if row.errors else {}
    # The scheduler knows which task failed for good; until it says so, the first that said something.
    task = row.failed_task or next(iter(said), None)
    started, ended = (instant and as_utc(instant) for instant in (row.started_at, row.ended_at))
    return Run(
        row.dag_id,
        row.run_id,
        row.subject,
        row.kind,
        row.partition_key,
        row.state,
        started,
        ended,
        row.note,
        task,
        said.get(task),
    )


def _text(value: str) -> str:
    """What both databases take: no NUL, no half character, of bounded length."""
    clean = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 1] + "…"


def _values(run: Run) -> dict[str, Any]:
    return {
        name: _text(value) if isinstance(value, str) else value
        for name, value in run.__dict__.items()
        if name != "error"
    }


def _same_run(run: Run) -> sa.ColumnElement[bool]:
    return sa.and_(runs_table.c.dag_id == run.dag_id, runs_table.c.run_id == run.run_id)


def _stored(connection: sa.Connection, run: Run) -> Any:
    return connection.execute(sa.select(runs_table).where(_same_run(run))).first()


def _put(connection: sa.Connection, there: bool, run: Run, values: Mapping[str, Any]) -> None:
    statement: Any = runs_table.update().where(_same_run(run)) if there else runs_table.insert()
    connection.execute(statement.values(**values))


def impatient_engine(url: str, seconds: float) -> sa.Engine:
    """An engine for who may not be kept waiting: it gives up after about so many seconds, and holds no connection
    between uses.
    """
    if url.startswith("sqlite"):
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": seconds})
    milliseconds = max(1, int(seconds * 1000))
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
    return sa.create_engine(
        url, poolclass=sa.NullPool, connect_args={"connect_timeout": max(1, round(seconds)), "options": options}
    )


@contextmanager
def _writing(target: Lake | sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that alone writes runs, on a database that has the table."""
    engine = target.engine if isinstance(target, Lake) else target
    with engine.connect() as connection, connection.begin():
        lock(connection, "runs")
        _metadata.create_all(connection, checkfirst=True)
        yield connection
