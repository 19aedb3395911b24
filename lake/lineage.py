"""What was published when, from what: the index of all publications, a projection of the Delta commits' metadata.

A partition is *published* when the index has it; an empty partition has a publication and no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa
from deltalake import DeltaTable
from sqlalchemy import event

from config.calendar import Interval
from config.errors import TransientError
from lake.storage import lock
from lake.tables import LakeTable

COMMIT_KEY = "nightfleet"
_BROKEN_FILE = (
    "disk I/O error",
    "database or disk is full",
    "database disk image is malformed",
    "file is not a database",
    "unable to open database file",
    "attempt to write a readonly database",
)


class PartitionNotReady(TransientError):
    """A stage needs a partition that is not published, perhaps not yet: the night before may still run."""


@dataclass(frozen=True)
class Input:
    """One partition that was read, at the Delta version it was read at."""

    table: str
    data_date: date
    digest: str
    version: int


@dataclass(frozen=True)
class Lineage:
    """Who publishes, from what. `inputs` holds, per data date, the partitions its rows were computed from."""

    run_id: str
    code_version: str
    catalog_digest: str
    inputs: Mapping[date, Sequence[Input]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def closed_keys(details: Mapping[str, Any], data_date: date) -> int:
    """Rows of a valid partition that say that their key is gone, as the details of its publication tell."""
    return int(details.get("closed", {}).get(data_date.isoformat(), 0))


@dataclass(frozen=True)
class Publication:
    """One partition as one commit left it."""

    table: str
    data_date: date
    digest: str
    rows: int
    version: int
    run_id: str
    code_version: str
    catalog_digest: str
    committed_at: datetime
    inputs: tuple[Input, ...]
    details: Mapping[str, Any]

    @property
    def closed(self) -> int:
        """Of a valid table: how many of the rows say that their key is gone (`deletes: close`)."""
        return closed_keys(self.details, self.data_date)

    def as_input(self) -> Input:
        """This partition as what another one was computed from."""
        return Input(self.table, self.data_date, self.digest, self.version)


_metadata = sa.MetaData()
publications_table = sa.Table(
    "publications",
    _metadata,
    sa.Column("table_name", sa.String, primary_key=True),
    sa.Column("data_date", sa.Date, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("code_version", sa.String, nullable=False),
    sa.Column("catalog_digest", sa.String, nullable=False),
    sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
)
_synced_table = sa.Table(
    "publications_synced",
    _metadata,
    sa.Column("table_name", sa.String, primary_key=True),
    sa.Column("delta_id", sa.String, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)
# The commit that a table was synced up to, by what it says: a version number may come twice, in a lake restored from a
# backup or one that lost its newest commit.
_heads_table = sa.Table(
    "publications_heads",
    _metadata,
    sa.Column("table_name", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("commit_digest", sa.String, nullable=False),
)


class DatabaseFailed(TransientError):
    """The projections' database cannot be read or written."""


def as_utc(instant: datetime) -> datetime:
    """An instant of the projections' database in UTC: SQLite gives instants back without their zone, and all of ours
    are UTC.
    """
    return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)


def create_engine(url: str, *, read_only: bool = False) -> sa.Engine:
    """An engine on the projections' database; SQLite in WAL with a 30 s wait for locks.

    Args:
        read_only: the database itself refuses whatever a connection of this engine tries to write.
    """
    if not url.startswith("sqlite"):
        options = {"options": "-c default_transaction_read_only=on"} if read_only else {}
        return sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    engine = sa.create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "handle_error")
    def _named(context: Any) -> None:
        said = str(context.original_exception)
        if any(words in said for words in _BROKEN_FILE) and not (read_only and "readonly" in said):
            raise DatabaseFailed(
                f"the SQL database {engine.url.database} failed: {said}. What was to be written there is not.\n"
                "  Make room on its disk and see that it may be written, then clear the task. Restore a damaged file, "
                "with its -wal and -shm files, from a backup."
            ) from context.original_exception

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        if read_only:
            connection.execute("PRAGMA query_only = ON")

    return engine


def _create_all(engine: sa.Engine) -> None:
    # Processes that start together on an empty database: only one may create, and checking first is not a lock.
    if all(sa.inspect(engine).has_table(name) for name in _metadata.tables):
        return
    with engine.connect() as connection, connection.begin():
        lock(connection, "create tables")
        _metadata.create_all(connection, checkfirst=True)


def _insert(dialect: str, table: sa.Table) -> Any:
    """INSERT with ON CONFLICT, which SQLite and Postgres spell alike and SQLAlchemy keeps in their dialects."""
    from sqlalchemy.dialects import postgresql, sqlite

    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def commit_metadata(
    lineage: Lineage, partitions: Mapping[date, tuple[str, int]], committed_at: datetime, files: int
) -> dict[str, str]:
    """What a commit carries: digest, rows and inputs of each data date it wrote (inputs are pooled), and how many files
    it adds.
    """
    pool: dict[Input, int] = {}
    dates = {}
    for day, (digest, rows) in partitions.items():
        used = [pool.setdefault(item, len(pool)) for item in lineage.inputs.get(day, ())]
        dates[day.isoformat()] = {"digest": digest, "rows": rows, "inputs": used}
    document = {
        "run_id": lineage.run_id,
        "code_version": lineage.code_version,
        "catalog_digest": lineage.catalog_digest,
        "committed_at": committed_at.isoformat(),
        "details": dict(lineage.details),
        "inputs": [asdict(item) | {"data_date": item.data_date.isoformat()} for item in pool],
        "partitions": dates,
        "files": files,
    }
    return {COMMIT_KEY: json.dumps(document, sort_keys=True)}


class Publications:
    """The index of publications in the projections' database, brought up to date with a table's log before each
    read; `read_only`: as the last writer left it.
    """

    def __init__(self, engine: sa.Engine, *, read_only: bool = False) -> None:
        self._engine = engine
        self._read_only = read_only
        if not read_only:
            _create_all(engine)

    def sync(self, table: LakeTable, loaded: DeltaTable | None = None) -> None:
        """Make the index say what the table's commits say: add those it has not seen, and forget those that are gone
        (a table made anew, restored from a backup, or without its newest commit). A read-only index is left as it is.

        Commits outlast a power cut before the index names them.
        """
        if self._read_only:
            return
        delta = loaded or table.load()
        if delta is None:
            with self._engine.begin() as connection:
                for of_table in (publications_table, _synced_table, _heads_table):
                    connection.execute(of_table.delete().where(of_table.c.table_name == table.name))
            return
        known = self._head(table)
        if known is None or known.delta_id != str(delta.metadata().id):
            self._index_anew(table)
            return
        version = delta.version()
        if known.version > version:
            # Somebody published since `loaded` was read, or the table has gone back.
            newest = table.location.open()  # `table` may stand for one version
            if newest is None or newest.version() < known.version:
                self._index_anew(table)
            return
        commits = delta.history(version - known.version + 1)
        if commits[-1]["version"] == known.version and _commit_digest(commits[-1]) != known.commit_digest:
            self._index_anew(table)
        elif version > known.version:
            self._add(table, delta, [commit for commit in commits if commit["version"] > known.version])

    def _head(self, table: LakeTable) -> Any:
        s, h = _synced_table.c, _heads_table.c
        query = sa.select(s.delta_id, s.version, h.commit_digest).where(
            s.table_name == table.name, h.table_name == s.table_name, h.version == s.version
        )
        with self._engine.connect() as connection:
            return connection.execute(query).first()

    def _add(self, table: LakeTable, delta: DeltaTable, commits: Sequence[Mapping[str, Any]]) -> None:
        records = [record for commit in commits for record in _records(table.name, commit)]
        table.location.sync_commits(commit["version"] for commit in commits)
        with self._engine.begin() as connection:
            self._write(connection, table, delta, records, commits[0])

    def _index_anew(self, table: LakeTable) -> None:
        with self._engine.connect() as connection, connection.begin():
            lock(connection, "index")
            delta = table.location.open()
            if delta is None:
                return
            commits = delta.history()
            records = [record for commit in commits for record in _records(table.name, commit)]
            table.location.sync_commits(commit["version"] for commit in commits[:1])
            c = publications_table.c
            known = connection.execute(
                sa.select(_synced_table.c.delta_id).where(_synced_table.c.table_name == table.name)
            )
            same = known.scalar() == str(delta.metadata().id)
            # What the log has forgotten already is known here alone.
            gone = c.version >= min(commit["version"] for commit in commits) if same else sa.true()
            connection.execute(publications_table.delete().where(c.table_name == table.name, gone))
            for of_table in (_synced_table, _heads_table):
                connection.execute(of_table.delete().where(of_table.c.table_name == table.name))
            self._write(connection, table, delta, records, commits[0])

    def _write(
        self,
        connection: sa.Connection,
        table: LakeTable,
        delta: DeltaTable,
        records: Sequence[Mapping[str, Any]],
        head: Mapping[str, Any],
    ) -> None:
        # Two processes may project the same commits at once: the same primary key holds the same facts.
        if records:
            connection.execute(_insert(connection.dialect.name, publications_table).on_conflict_do_nothing(), records)
        values: dict[sa.Table, dict[str, Any]] = {
            _synced_table: {"delta_id": str(delta.metadata().id)},
            _heads_table: {"commit_digest": _commit_digest(head)},
        }
        for of_table, facts in values.items():
            facts |= {"version": head["version"]}
            inserted = _insert(connection.dialect.name, of_table).values(table_name=table.name, **facts)
            connection.execute(
                inserted.on_conflict_do_update(
                    index_elements=["table_name"],
                    set_={name: inserted.excluded[name] for name in facts},
                    where=of_table.c.version < inserted.excluded.version,
                )
            )

    def current(
        self,
        table: LakeTable,
        interval: Interval | None = None,
        *,
        loaded: DeltaTable | None = None,
        as_of_version: int | None = None,
    ) -> dict[date, Publication]:
        """The newest publication of each published data date of the interval (None: all), in date order."""
        self.sync(table, loaded)
        c = publications_table.c
        query = sa.select(publications_table).where(c.table_name == table.name).order_by(c.data_date, c.version)
        if interval is not None:
            query = query.where(c.data_date >= interval.start, c.data_date < interval.end)
        if as_of_version is not None:
            query = query.where(c.version <= as_of_version)
        return {row.data_date: _publication(row) for row in self._selected(query)}

    def _selected(self, query: sa.Select[Any]) -> list[sa.Row[Any]]:
        with self._engine.connect() as connection:
            if self._read_only and not sa.inspect(connection).has_table(publications_table.name):
                return []  # a new installation: no writer has made the table yet
            return list(connection.execute(query))

    def digests(self, table: LakeTable, interval: Interval) -> dict[date, str | None]:
        """Digest of each data date of the interval, None where nothing is published: what `publish` takes as
        `replaces`.
        """
        published = self.current(table, interval)
        return {day: published[day].digest if day in published else None for day in interval}

    def newest(self, table: LakeTable) -> Publication | None:
        """The publication with the latest data date, None when the table has none."""
        self.sync(table)
        c = publications_table.c
        query = (
            sa.select(publications_table)
            .where(c.table_name == table.name)
            .order_by(c.data_date.desc(), c.version.desc())
            .limit(1)
        )
        rows = self._selected(query)
        return _publication(rows[0]) if rows else None

    def require(self, table: LakeTable, interval: Interval, *, needed_by: str, remedy: str) -> dict[date, Publication]:
        """Publications of every data date of the interval.

        Raises:
            PartitionNotReady: one is missing; the message ends with `remedy`.
        """
        published = self.current(table, interval)
        missing = [day for day in interval if day not in published]
        if missing:
            newest = self.newest(table)
            latest = f"latest is {newest.data_date}" if newest else "nothing is published"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise PartitionNotReady(
                f"{table.name} has no partition {missing[0]}{more} ({latest}).\n  {needed_by} needs it. {remedy}"
            )
        return published


def _commit_digest(commit: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(commit, sort_keys=True, default=str).encode()).hexdigest()


def _records(table_name: str, commit: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    if COMMIT_KEY not in commit:
        return
    document = json.loads(commit[COMMIT_KEY])
    pool = document["inputs"]
    for day, partition in document["partitions"].items():
        yield {
            "table_name": table_name,
            "data_date": date.fromisoformat(day),
            "version": commit["version"],
            "digest": partition["digest"],
            "row_count": partition["rows"],
            "run_id": document["run_id"],
            "code_version": document["code_version"],
            "catalog_digest": document["catalog_digest"],
            "committed_at": datetime.fromisoformat(document["committed_at"]),
            "inputs": json.dumps([pool[i] for i in partition["inputs"]]),
            "details": json.dumps(document["details"]),
        }


def _publication(row: Any) -> Publication:
    inputs = tuple(
        Input(i["table"], date.fromisoformat(i["data_date"]), i["digest"], i["version"]) for i in json.loads(row.inputs)
    )
    return Publication(
        row.table_name,
        row.data_date,
        row.digest,
        row.row_count,
        row.version,
        row.run_id,
        row.code_version,
        row.catalog_digest,
        as_utc(row.committed_at),
        inputs,
        json.loads(row.details),
    )
