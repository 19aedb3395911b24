"""From the offline feature tables into the online store, night by night, by explicit intervals.

The online store is a projection: it keeps the digest of every partition it holds, an unchanged one is not written again, and a
replaced one is taken out and projected anew. Values older than a view's TTL, seen from its newest night, are dropped: what is
read online is what retrieval gives at that night's cutoff. So of a long interval only the last TTL's nights are written.
"""

# ruff: noqa: S608 (table names are Feast's own, quoted)
from __future__ import annotations

import contextlib
import io
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from config.calendar import ONE_DAY, Interval, cutoff
from config.catalog import Dataset
from features.definitions import ensure_applied, feast_lock, feature_store, view_name
from features.online_store import NewestWinsSqliteOnlineStore, online_table, stored_time
from features.retrieval import require_partitions
from lake.lake import Lake, StageResult
from lake.tables import feature_table

if TYPE_CHECKING:
    from feast import FeatureStore

_log = logging.getLogger(__name__)
_PROJECTED = "CREATE TABLE IF NOT EXISTS projected_partitions (view TEXT, data_date TEXT, digest TEXT, PRIMARY KEY (view, data_date))"


def materialize(lake: Lake, dataset: str, interval: Interval, *, run_id: str) -> StageResult:
    """Project the nights of the interval of every feature view of a data set into the online store.

    Nothing is written for partitions that are there already. An older night never replaces a newer value; a correction of
    the same night does. One process at a time writes; others wait.

    Raises:
        PartitionNotReady: a night of a view is not published.
    """
    entry = lake.dataset(dataset)
    ensure_applied(lake)
    views: dict[str, Any] = {}
    with feast_lock(lake.settings):
        for view in entry.features:
            done = _materialize_view(lake, entry, view, interval)
            views[view] = {"rows": done.rows, "partitions": done.partitions, "first": str(done.first)}
    rows = sum(view["rows"] for view in views.values())
    partitions = sum(view["partitions"] for view in views.values())
    _log.info("materialized %s %s: %d entities from %d partitions", dataset, interval, rows, partitions)
    return StageResult(stage="materialize", subject=dataset, interval=str(interval), rows=rows, committed=partitions, details={"run_id": run_id, "views": views})


@dataclass(frozen=True)
class _Done:
    """Entities written, partitions newly projected, and the first night that was looked at."""

    rows: int
    partitions: int
    first: date


def _materialize_view(lake: Lake, dataset: Dataset, view: str, interval: Interval) -> _Done:
    table, ttl, zone = feature_table(lake.settings, dataset, view), dataset.features[view].ttl, dataset.time_zone
    oldest = cutoff(interval.last, zone) - ttl
    first = next(day for day in interval if not ttl or cutoff(day, zone) >= oldest)
    window = Interval(first, interval.end)
    if first > interval.start:
        _log.info("%s: nights before %s are older than the TTL of %s and are not written", table.name, first, ttl)
    delta = table.load()
    version = delta.version() if delta is not None else 0
    published = lake.publications.current(table, window, as_of_version=version)
    require_partitions(lake, table, dataset, window, published, f"Materializing {dataset.name}")

    projection = _Projection(feature_store(lake, {table.name: version}), view_name(dataset.name, view), zone)
    projected = projection.digests()
    changed = [day for day in window if projected.get(day) != published[day].digest]
    if not changed:
        return _Done(0, 0, first)
    begin, newest = cutoff(window.start - ONE_DAY, zone), max([*projected, interval.last])
    replaced = [day for day in changed if day in projected]
    end = cutoff(interval.last, zone)
    if replaced:
        # What those nights brought goes; what other nights say of the same entities comes back.
        projection.forget(replaced)
        reach = cutoff(replaced[0], zone) - ttl if ttl else cutoff(dataset.first_data_date - ONE_DAY, zone)
        begin, end = min(begin, reach), cutoff(newest, zone)
    rows = projection.materialize(begin, end)
    projection.settle({day: published[day].digest for day in window}, cutoff(newest, zone) - ttl if ttl else None)
    return _Done(rows, len(changed), first)


class _Projection:
    """One view in the online store, and which partitions it holds."""

    def __init__(self, store: FeatureStore, name: str, time_zone: str) -> None:
        self._store, self._name, self._time_zone = store, name, time_zone
        self._online = store._get_provider().online_store
        assert isinstance(self._online, NewestWinsSqliteOnlineStore)  # what `repo_config` names
        self._connection: sqlite3.Connection = self._online._get_conn(store.config)
        self._connection.execute(_PROJECTED)
        self._table = online_table(store.config, store.get_feature_view(name, allow_registry_cache=True))

    def digests(self) -> dict[date, str]:
        """Digest of each partition that is held; empty for one whose replacement was begun and not finished."""
        rows = self._connection.execute("SELECT data_date, digest FROM projected_partitions WHERE view = ?", (self._name,))
        return {date.fromisoformat(day): digest for day, digest in rows}

    def forget(self, days: Sequence[date]) -> None:
        """Take out what those nights brought."""
        with self._connection:
            self._connection.executemany(f'DELETE FROM "{self._table}" WHERE event_ts = ?', [(stored_time(cutoff(day, self._time_zone)),) for day in days])
            self._connection.executemany(
                "UPDATE projected_partitions SET digest = '' WHERE view = ? AND data_date = ?", [(self._name, day.isoformat()) for day in days]
            )

    def materialize(self, begin: datetime, end: datetime) -> int:
        """Write the newest row of each entity with a time in `[begin, end]`; returns how many."""
        before = self._online.entities_written
        # Feast prints a coloured line a view; the stage logs its own.
        with contextlib.redirect_stdout(io.StringIO()):
            self._store.materialize(begin, end, feature_views=[self._name])
        return self._online.entities_written - before

    def settle(self, digests: Mapping[date, str], expired_before: datetime | None) -> None:
        """Record what is held now, and drop what is older than the TTL."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO projected_partitions VALUES (?, ?, ?)", [(self._name, day.isoformat(), digest) for day, digest in digests.items()]
            )
            if expired_before is not None:
                self._connection.execute(f'DELETE FROM "{self._table}" WHERE event_ts < ?', (stored_time(expired_before),))
