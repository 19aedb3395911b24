"""What may be removed, by declared ages, and its removal. What a kept prediction or a stored model was computed from
stays, whatever its age.

Ages are the settings `keep_…_days`. Commits, current partitions, stored versions, their cards, decisions, the ledgers
and current rows of SQL are never removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from config.calendar import parse_data_date
from config.settings import Settings
from features.data_docs import SITE
from lake.delta import TableLocation
from lake.lake import Lake
from lake.leftovers import is_leftover, leftovers, newest_change, remove, unheld
from lake.storage import ObjectStore, artifacts, reports
from lake.vacuum import LogIncomplete, orphans, remove_orphans, superseded_files
from monitoring.audit.citations import citations, lake_tables, superseding_tables
from training.registry.attempt import HOST_SUFFIX, host_folder
from training.registry.job import TRIES

Kind = Literal["leftovers of dead tries", "replaced rows", "replaced data files", "jobs", "reports", "logs"]
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Removal:
    """Something that goes: a path, a key among the reports, or rows of a SQL table.

    Attributes:
        what: its path, or the SQL table.
        size: bytes, of rows their number.
    """

    kind: Kind
    what: str
    size: int


@dataclass(frozen=True)
class Cleaning:
    """What was removed, or would be, and what was left alone though it may hold something, with the reason."""

    removals: tuple[Removal, ...]
    left_alone: tuple[str, ...]

    def totals(self) -> dict[str, tuple[int, int]]:
        """By kind: how many, and their bytes (of rows: their number)."""
        totals: dict[str, tuple[int, int]] = {}
        for removal in self.removals:
            count, size = totals.get(removal.kind, (0, 0))
            totals[removal.kind] = (count + 1, size + removal.size)
        return totals


def clean(lake: Lake, *, dry_run: bool, now: datetime | None = None) -> Cleaning:
    """Remove what dead tries left and what is older than the settings say; safe beside running stages.

    Args:
        dry_run: remove nothing, and say what would go.
        now: the instant that ages are counted from, aware; None: this one.
    Raises:
        CitationsUnreadable: what a stored version or a job was trained on cannot be read; no data file was removed.
    """
    now = now or datetime.now(UTC)
    replaced_since = now - timedelta(days=lake.settings.keep_superseded_days)
    removals: list[Removal] = []
    left_alone: list[str] = []
    removals += _tries(lake.settings, dry_run)
    # Before data files: what only such a row or such a job cites goes with it.
    removals += _rows(lake, replaced_since, dry_run)
    jobs = list(_jobs(lake.settings, now, dry_run))
    gone = {Path(job.what) for job in jobs}
    removals += [*jobs, *_data_files(lake, replaced_since, gone, dry_run, left_alone)]
    removals += _old_reports(reports(lake.settings), lake.settings.keep_reports_days, dry_run)
    removals += _logs(lake.settings, now, dry_run)
    return Cleaning(tuple(removals), tuple(left_alone))


def _tries(settings: Settings, dry_run: bool) -> Iterator[Removal]:
    attempts = [*artifacts(settings).attempts(), *reports(settings).attempts()]
    for path in leftovers([*settings.scratch.glob("*"), *settings.jobs.glob(f"*/{TRIES}"), *attempts]):
        yield _removed("leftovers of dead tries", path, dry_run)


def _jobs(settings: Settings, now: datetime, dry_run: bool) -> Iterator[Removal]:
    """Folders of jobs, each with what lies beside it; a stored version holds all that it needs of its own."""
    tries = set(settings.jobs.glob(f"*/{TRIES}"))
    folders = {path for path in settings.jobs.glob("*/*") if path.is_dir() and path not in tries}
    for job_dir in sorted({path.with_name(path.name.removesuffix(HOST_SUFFIX)) for path in folders}):
        together = sorted({job_dir, host_folder(job_dir)} & folders)
        if all(_older(path, settings.keep_jobs_days, now) and is_leftover(path) for path in together):
            for path in together:
                yield _removed("jobs", path, dry_run)


def _rows(lake: Lake, replaced_since: datetime, dry_run: bool) -> Iterator[Removal]:
    for table in superseding_tables(lake):
        old = table.c.superseded_at < replaced_since
        with lake.engine.begin() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(table).where(old)).scalar_one()
            if count and not dry_run:
                connection.execute(table.delete().where(old))
        if count:
            yield Removal("replaced rows", table.name, int(count))


def _data_files(
    lake: Lake, replaced_since: datetime, without_jobs: Collection[Path], dry_run: bool, left_alone: list[str]
) -> Iterator[Removal]:
    cited: dict[tuple[str, date], list[int]] = {}
    for each in citations(lake, superseded_since=replaced_since, without_jobs=without_jobs):
        cited.setdefault((each.table, each.data_date), []).append(each.version)
    for table in lake_tables(lake):
        root = Path(table.location.uri)
        try:
            yield from _orphans(table.location, dry_run)
            for file in superseded_files(table.location, replaced_since):
                day = file.data_date
                if day is None or any(file.serves(version) for version in cited.get((table.name, day), ())):
                    continue
                yield _removed("replaced data files", root / file.path, dry_run)
        except LogIncomplete as error:
            left_alone.append(str(error))


def _orphans(location: TableLocation, dry_run: bool) -> Iterator[Removal]:
    if dry_run:
        with unheld(Path(location.uri)) as nobody_writes:
            for path in orphans(location) if nobody_writes else ():
                yield Removal("leftovers of dead tries", str(path), path.stat().st_size)
        return
    for path, size in remove_orphans(location):
        yield Removal("leftovers of dead tries", str(path), size)


def _old_reports(store: ObjectStore, keep_days: int, dry_run: bool) -> Iterator[Removal]:
    """Folders of nights, `<model>/<data date>` and `data_docs/<data set>/<interval>`. The nights of a replay lie in the
    past: their age counts from the newest night of the same subject.
    """
    subjects = [name for name in store.names() if name != SITE] + [f"{SITE}/{name}" for name in store.names(SITE)]
    for subject in subjects:
        nights = {name: _last_date(name) for name in store.names(subject)}
        newest = max((night for night in nights.values() if night is not None), default=None)
        for name, night in nights.items():
            if night is None or newest is None or newest - night <= timedelta(days=keep_days):
                continue
            key = f"{subject}/{name}"
            yield Removal("reports", store.uri(key), store.bytes_below(key))
            if not dry_run:
                store.remove_folder(key)


def _last_date(name: str) -> date | None:
    """The last data date that a folder's name holds, None where it is no night's."""
    dates = _DAY.findall(name)
    return parse_data_date(dates[-1]) if dates and _DAY.match(name) else None


def _logs(settings: Settings, now: datetime, dry_run: bool) -> Iterator[Removal]:
    """Logs of Airflow's tasks, and those of components and events that were renamed because they had grown large."""
    renamed = (settings.home / "logs").glob("*-[0-9]*T[0-9]*.*")
    of_tasks = settings.home / "airflow" / "logs"
    for path in sorted([*renamed, *of_tasks.rglob("*")]):
        if path.is_file() and not path.is_symlink() and _older(path, settings.keep_logs_days, now):
            yield _removed("logs", path, dry_run)


def _older(path: Path, days: int, now: datetime) -> bool:
    return newest_change(path) < (now - timedelta(days=days)).timestamp()


def _removed(kind: Kind, path: Path, dry_run: bool) -> Removal:
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())
    if not dry_run:
        remove(path)
    return Removal(kind, str(path), size)
