"""From the offline feature tables into the online store, night by night, by explicit intervals.

The online store is a projection: it keeps the digest of every partition it holds, an unchanged one is not written
again, and a replaced one is taken out and projected anew. Values older than a view's TTL, seen from its newest night,
are dropped: what is read online is what retrieval gives at that night's cutoff. So of a long interval only the last
TTL's nights are written.
"""

# ruff: noqa: S608 (table names are Feast's own, quoted)
from __future__ import annotations

import contextlib
import io
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog.data import Dataset
from features.definitions import PROJECT, ensure_applied, feast_lock, feature_store, open_online, view_name
from features.online_store import NewestWinsSqliteOnlineStore, online_table, stored_time
from features.retrieval import require_partitions
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Publication
from lake.tables import feature_table

if TYPE_CHECKING:
    from feast import FeatureStore

_INSTANT = timedelta(microseconds=1)
_TO_WRITE_ANEW = 0  # in `created_ts`, which is null in what we write
_log = logging.getLogger(__name__)
_PROJECTED = (
    "CREATE TABLE IF NOT EXISTS projected_partitions (view TEXT, data_date TEXT, digest TEXT, PRIMARY KEY (view,"
    " data_date))",
    "CREATE TABLE IF NOT EXISTS projected_rows (view TEXT PRIMARY KEY, row_count INTEGER)",
)


@logged("materialize")
def materialize(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Project the nights of the interval of every feature view of a data set into the online store.

    Nothing is written for partitions that are there already. Those before the interval that the TTL reaches back to are
    looked at too, so that a store that was lost, or lost rows, is whole again. An older night never replaces a newer
    value; a correction of the same night does. One process at a time writes; others wait.

    Raises:
        PartitionNotReady: a night of a view is not published.
    """
    entry = lake.dataset(dataset)
    ensure_applied(lake)
    with feast_lock(lake):
        published = {view: _published(lake, entry, view, interval) for view in entry.features}
        store = feature_store(
            lake, {feature_table(lake.settings, entry, view).name: version for view, (version, _) in published.items()}
        )
        projections = {
            view: _Projection(store, view_name(dataset, view), entry, entry.features[view].ttl)
            for view in entry.features
        }
        plans = {view: projections[view].plan(interval, publications) for view, (_, publications) in published.items()}
        rows: dict[str, int] = {}
        # Views of one window go in one call: each costs Feast a reading of its registry.
        for begin, end in sorted({(plan.begin, plan.end) for plan in plans.values() if plan.changed}):
            named = {
                view_name(dataset, view): view
                for view, plan in plans.items()
                if plan.changed and (plan.begin, plan.end) == (begin, end)
            }
            rows |= {named[name]: count for name, count in _run(store, begin, end, list(named)).items()}
        for view, plan in plans.items():
            if plan.changed:
                projections[view].settle(plan)
    views = {
        view: {"rows": rows.get(view, 0), "partitions": len(plan.changed), "first": str(plan.first)}
        for view, plan in plans.items()
    }
    written, partitions = sum(rows.values()), sum(len(plan.changed) for plan in plans.values())
    _log.info("%s: materialized %s %s: %d entities from %d partitions", run_id, dataset, interval, written, partitions)
    return StageResult(
        stage="materialize",
        subject=dataset,
        interval=str(interval),
        rows=written,
        committed=partitions,
        details={"views": views},
    )


def rebuild_online(lake: Lake, dataset: str, *, run_id: str) -> StageResult | None:
    """Write the online store of a data set's views anew from what its newest night knows, and take out what that does
    not say; None where no night has all features.

    Who reads meanwhile finds an entity's former value or its new one, never none.
    """
    entry = lake.dataset(dataset)
    newest = [lake.publications.newest(feature_table(lake.settings, entry, view)) for view in entry.features]
    nights = [publication.data_date for publication in newest if publication is not None]
    if not nights or len(nights) < len(newest):
        return None
    ensure_applied(lake)
    names = [view_name(dataset, view) for view in entry.features]
    last = stored_time(cutoff(min(nights), entry.time_zone))
    with feast_lock(lake), closing(open_online(lake.settings, writable=True)) as connection, connection:
        for statement in _PROJECTED:
            connection.execute(statement)
        for name in names:
            # Later than the lake knows of: the newest time wins, so it would stay.
            connection.execute(f'DELETE FROM "{PROJECT}_{name}" WHERE event_ts > ?', (last,))
            connection.execute(f'UPDATE "{PROJECT}_{name}" SET created_ts = {_TO_WRITE_ANEW}')
            for table in ("projected_partitions", "projected_rows"):
                connection.execute(f"DELETE FROM {table} WHERE view = ?", (name,))
    result: StageResult = materialize(lake, dataset, Interval.of(min(nights)), run_id=run_id)
    with feast_lock(lake), closing(open_online(lake.settings, writable=True)) as connection, connection:
        for name in names:
            table = f'"{PROJECT}_{name}"'
            connection.execute(f"DELETE FROM {table} WHERE created_ts = {_TO_WRITE_ANEW}")
            connection.execute(
                f"UPDATE projected_rows SET row_count = (SELECT count(*) FROM {table}) WHERE view = ?", (name,)
            )
    return result


def online_problems(lake: Lake, dataset: str) -> dict[str, str]:
    """What the online store does not hold as the lake has it, by view; nothing is written."""
    entry = lake.dataset(dataset)
    problems = {}
    for view in entry.features:
        newest = lake.publications.newest(feature_table(lake.settings, entry, view))
        if newest is None:
            continue
        problem = _online_problem(lake, entry, view, newest.data_date)
        if problem:
            problems[view] = problem
    return problems


def _online_problem(lake: Lake, dataset: Dataset, view: str, newest: date) -> str | None:
    name = view_name(dataset.name, view)
    published = lake.publications.current(feature_table(lake.settings, dataset, view), _reach(dataset, view, newest))
    try:
        with closing(open_online(lake.settings)) as connection:
            held = dict(
                connection.execute("SELECT data_date, digest FROM projected_partitions WHERE view = ?", (name,))
            )
            recorded = connection.execute("SELECT row_count FROM projected_rows WHERE view = ?", (name,)).fetchone()
            (count,) = connection.execute(f'SELECT count(*) FROM "{PROJECT}_{name}"').fetchone()
    except sqlite3.Error as error:
        return f"cannot be read: {error}"
    missing = [day for day, publication in published.items() if held.get(day.isoformat()) != publication.digest]
    if missing:
        return f"lacks {len(missing)} nights, the first is {missing[0]}"
    if recorded is not None and recorded[0] != count:
        return f"has {count} values, {recorded[0]} were written"
    return None


def _published(lake: Lake, dataset: Dataset, view: str, interval: Interval) -> tuple[int, dict[date, Publication]]:
    """The Delta version of a view's table now, and what it holds of the nights that a TTL reaches back to from the
    last.
    """
    table = feature_table(lake.settings, dataset, view)
    window = _reach(dataset, view, interval.last)
    delta = table.load()
    version = delta.version() if delta is not None else 0
    published = lake.publications.current(table, window, as_of_version=version)
    needed = Interval(max(window.start, interval.start), interval.end)
    if needed != interval:
        _log.info("%s: nights before %s are older than the TTL and are not written", table.name, needed.start)
    require_partitions(lake, table, dataset, needed, published, f"Materializing {dataset.name}")
    return version, published


def _reach(dataset: Dataset, view: str, last: date) -> Interval:
    """Nights whose values can serve at the cutoff of `last`."""
    ttl, zone = dataset.features[view].ttl, dataset.time_zone
    if not ttl:
        return Interval.closed(min(dataset.first_data_date, last), last)
    oldest = cutoff(last, zone) - ttl
    first = last
    while cutoff(first - ONE_DAY, zone) >= oldest:
        first -= ONE_DAY
    return Interval.closed(first, last)


def _run(store: FeatureStore, begin: datetime, end: datetime, names: list[str]) -> dict[str, int]:
    """Write the newest row of each entity with a time in `[begin, end]`; returns entities by view."""
    online = store._get_provider().online_store
    online.entities_written.clear()
    # Feast prints a coloured line a view; the stage logs its own.
    with contextlib.redirect_stdout(io.StringIO()):
        store.materialize(begin, end, feature_views=names)
    return dict(online.entities_written)


@dataclass(frozen=True)
class _Plan:
    """What one view needs.

    Attributes:
        digests: by night that was looked at; `changed` are those the online store does not hold.
        begin, end: times of the rows to write, both included.
        expired_before: values older than this are past the TTL, seen from the newest night; None: they never are.
    """

    digests: dict[date, str]
    changed: list[date]
    begin: datetime
    end: datetime
    expired_before: datetime | None

    @property
    def first(self) -> date:
        """The first night that was looked at."""
        return min(self.digests)


class _Projection:
    """One view in the online store, and which partitions it holds."""

    def __init__(self, store: FeatureStore, name: str, dataset: Dataset, ttl: timedelta) -> None:
        online = store._get_provider().online_store
        assert isinstance(online, NewestWinsSqliteOnlineStore)  # what `repo_config` names
        self._name, self._dataset, self._ttl = name, dataset, ttl
        self._connection: sqlite3.Connection = online._get_conn(store.config)
        for statement in _PROJECTED:
            self._connection.execute(statement)
        self._table = online_table(store.config, store.get_feature_view(name, allow_registry_cache=True))

    def plan(self, interval: Interval, published: Mapping[date, Publication]) -> _Plan:
        """What is to be written; takes out what replaced nights brought."""
        zone = self._dataset.time_zone
        if self.has_lost_rows():
            with self._connection:
                self._connection.execute("DELETE FROM projected_partitions WHERE view = ?", (self._name,))
        projected = self.digests()
        digests = {day: publication.digest for day, publication in published.items()}
        changed = [day for day, digest in digests.items() if projected.get(day) != digest]
        newest = max([*projected, interval.last])
        # Feast's interval holds both its ends; the night before is none of ours.
        begin = cutoff(min(changed, default=interval.last) - ONE_DAY, zone) + _INSTANT
        end = cutoff(interval.last, zone)
        replaced = [day for day in changed if day in projected]
        if replaced:
            # What those nights brought goes; what other nights say of the same entities comes back.
            self.forget(replaced)
            reach = (
                cutoff(replaced[0], zone) - self._ttl
                if self._ttl
                else cutoff(self._dataset.first_data_date - ONE_DAY, zone)
            )
            begin, end = min(begin, reach), cutoff(newest, zone)
        return _Plan(digests, changed, begin, end, cutoff(newest, zone) - self._ttl if self._ttl else None)

    def digests(self) -> dict[date, str]:
        """Digest of each partition that is held; empty for one whose replacement was begun and not finished."""
        rows = self._connection.execute(
            "SELECT data_date, digest FROM projected_partitions WHERE view = ?", (self._name,)
        )
        return {date.fromisoformat(day): digest for day, digest in rows}

    def has_lost_rows(self) -> bool:
        """Whether somebody else took rows out, or put some in, since the last night was written."""
        known = self._connection.execute("SELECT row_count FROM projected_rows WHERE view = ?", (self._name,))
        row = known.fetchone()
        return row is not None and row[0] != self._count()

    def _count(self) -> int:
        return int(self._connection.execute(f'SELECT count(*) FROM "{self._table}"').fetchone()[0])

    def forget(self, days: Sequence[date]) -> None:
        """Take out what those nights brought."""
        with self._connection:
            times = [(stored_time(cutoff(day, self._dataset.time_zone)),) for day in days]
            self._connection.executemany(f'DELETE FROM "{self._table}" WHERE event_ts = ?', times)
            self._connection.executemany(
                "UPDATE projected_partitions SET digest = '' WHERE view = ? AND data_date = ?",
                [(self._name, day.isoformat()) for day in days],
            )

    def settle(self, plan: _Plan) -> None:
        """Record what is held now, and drop what is older than the TTL."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO projected_partitions VALUES (?, ?, ?)",
                [(self._name, day.isoformat(), digest) for day, digest in plan.digests.items()],
            )
            if plan.expired_before is not None:
                self._connection.execute(
                    f'DELETE FROM "{self._table}" WHERE event_ts < ?', (stored_time(plan.expired_before),)
                )
            self._connection.execute("INSERT OR REPLACE INTO projected_rows VALUES (?, ?)", (self._name, self._count()))
