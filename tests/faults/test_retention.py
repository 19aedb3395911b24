"""Whatever is cleaned, all that a kept prediction or a stored model was computed from can still be read; and what
nothing needs goes.
"""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from config.calendar import Interval
from config.catalog.load import Catalog
from config.settings import Settings
from lake.delta import PartitionDamaged
from lake.digest import rows_digest
from lake.lake import Lake
from lake.lineage import Lineage, Publication, publications_table
from lake.projection import project, sql_columns
from lake.publish import publish
from lake.tables import named_table
from monitoring.audit.citations import CitationsUnreadable
from monitoring.audit.retention import Cleaning, clean

FIRST = date(2024, 1, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(2)]
RAW, FEATURES, PREDICTIONS = CHAIN = ("things/raw/items", "things/features/items", "oracle/predictions")
Partition = tuple[str, date, int]  # table, data date, version


class Chain:
    """Three tables of one number a day, each computed from all days of the one before; predictions are in SQL, too."""

    def __init__(self, home: Path) -> None:
        self.lake = Lake(Settings(home=home), Catalog(datasets=(), models=()))
        self.tables = {name: named_table(self.lake.settings, name, {"item": "int64"}, ("item",)) for name in CHAIN}
        self.sql = sql_columns("predictions_oracle", self.tables[PREDICTIONS].schema, keep_replaced=True)
        self.later = datetime.now(UTC) + timedelta(days=self.lake.settings.keep_superseded_days, minutes=5)

    def publish(self, name: str, day: date, item: int) -> None:
        inputs = [p.as_input() for p in self._current(CHAIN[CHAIN.index(name) - 1])] if name != RAW else []
        rows = pa.table({"item": pa.array([item], pa.int64()), "data_date": pa.array([day], pa.date32())})
        table, night = self.tables[name], Interval.of(day)
        before = self.lake.publications.digests(table, night)
        lineage = Lineage("run", "code", "catalog", {day: inputs})
        with self.lake.scratch("test") as scratch:
            publish(
                self.lake.publications,
                table,
                rows,
                night,
                replaces=before,
                lineage=lineage,
                scratch=scratch,
                relabel=DAYS,
            )
        if name == PREDICTIONS:
            project(self.lake, table, self.sql.name, night, keep_replaced=True, identity=("item",))

    def store_version(self, digest: str) -> None:
        """A model that was trained on all features as they are now."""
        folder = self.lake.settings.artifacts / "oracle" / digest
        folder.mkdir(parents=True, exist_ok=True)
        inputs = [p.as_input().__dict__ for p in self._current(FEATURES)]
        (folder / "training_set.json").write_text(json.dumps({"inputs": inputs}, default=str))

    def _current(self, name: str) -> list[Publication]:
        return list(self.lake.publications.current(self.tables[name]).values())

    def replaced_when(self, item: int, *, long_ago: bool) -> None:
        """As if the replaced rows with that item had been so for long, or for a moment."""
        at = datetime.now(UTC) - timedelta(days=1000) if long_ago else self.later
        with self.lake.engine.begin() as connection:
            if sa.inspect(connection).has_table(self.sql.name):
                replaced = self.sql.c.superseded_at.is_not(None) & (self.sql.c.item == item)
                connection.execute(self.sql.update().where(replaced).values(superseded_at=at))

    def kept(self) -> dict[Partition, str]:
        """Digests of all that must stay readable: what is current, and what kept rows and models rest on."""
        waiting = {(PREDICTIONS, p.data_date, p.version) for p in self._current(PREDICTIONS)}
        with self.lake.engine.connect() as connection:
            if sa.inspect(connection).has_table(self.sql.name):
                c = self.sql.c
                kept = sa.or_(c.superseded_at.is_(None), c.superseded_at > datetime.now(UTC))
                rows = connection.execute(sa.select(c.data_date, c.delta_version).where(kept))
                waiting |= {(PREDICTIONS, row.data_date, row.delta_version) for row in rows}
            for path in self.lake.settings.artifacts.glob("*/*/training_set.json"):
                waiting |= {_partition(each) for each in json.loads(path.read_text())["inputs"]}
            index = {
                (row.table_name, row.data_date, row.version): row
                for row in connection.execute(sa.select(publications_table))
            }
        needed = {(name, p.data_date, p.version): p.digest for name in CHAIN for p in self._current(name)}
        walked: set[Partition] = set()
        while waiting:
            partition = waiting.pop()
            needed[partition] = index[partition].digest
            walked.add(partition)
            waiting |= {_partition(each) for each in json.loads(index[partition].inputs)} - walked
        return needed

    def read(self, partition: Partition) -> str:
        name, day, version = partition
        return rows_digest(self.tables[name].read([day], version))

    def clean(self, *, dry_run: bool = False) -> Cleaning:
        """Clean at an instant at which every data file that was ever replaced is old enough to go."""
        return clean(self.lake, dry_run=dry_run, now=self.later)

    def files(self) -> set[Path]:
        return set(self.lake.settings.lake.rglob("*.parquet"))


def _partition(document: dict[str, Any]) -> Partition:
    return document["table"], date.fromisoformat(document["data_date"]), document["version"]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


STEPS = st.lists(
    st.tuples(st.sampled_from([*CHAIN, "a stored version"]), st.sampled_from(DAYS)), min_size=3, max_size=10
)


# A failure is shown as it was met: making it smaller would take minutes.
@settings(max_examples=10, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(steps=STEPS, long_ago=st.sets(st.integers(0, 12)))
def test_nothing_that_a_kept_prediction_or_model_cites_goes(steps: list[tuple[str, date]], long_ago: set[int]) -> None:
    with tempfile.TemporaryDirectory() as home:
        chain = Chain(Path(home))
        for item, (what, day) in enumerate([*((name, FIRST) for name in CHAIN), *steps]):
            if what in CHAIN:
                chain.publish(what, day, item)
            else:
                chain.store_version(f"version {item}")
        for item in range(len(CHAIN) + len(steps)):
            chain.replaced_when(item, long_ago=item in long_ago)
        kept, files = chain.kept(), chain.files()
        announced = chain.clean(dry_run=True)
        assert chain.files() == files, "a dry run removes nothing"
        assert chain.clean() == announced
        assert {partition: chain.read(partition) for partition in kept} == kept
        assert chain.clean().removals == (), "again finds nothing to do"


def test_a_replaced_partition_goes_with_the_last_that_cites_it(chain: Chain) -> None:
    chain.publish(RAW, FIRST, 1)
    chain.publish(FEATURES, FIRST, 1)
    chain.publish(PREDICTIONS, FIRST, 1)
    cited = chain.kept()
    for name in CHAIN:
        chain.publish(name, FIRST, 2)
    chain.replaced_when(1, long_ago=False)
    assert not chain.clean().removals
    assert {partition: chain.read(partition) for partition in cited} == cited
    chain.store_version("first")
    chain.replaced_when(1, long_ago=True)
    totals = chain.clean().totals()
    assert totals["replaced rows"] == (1, 1)
    assert totals["replaced data files"][0] == 3
    with pytest.raises(PartitionDamaged, match="is missing"):
        chain.read((RAW, FIRST, 1))
    assert chain.kept() == {partition: chain.read(partition) for partition in chain.kept()}


def test_a_version_that_does_not_say_what_it_needs_stops_the_cleaning_of_data(chain: Chain) -> None:
    for item in (1, 2):
        chain.publish(RAW, FIRST, item)
    chain.store_version("first")
    damaged = chain.lake.settings.artifacts / "oracle" / "first" / "training_set.json"
    damaged.write_text("{")
    files = chain.files()
    with pytest.raises(CitationsUnreadable, match=r"(?s)training_set\.json does not say.*Restore that file"):
        chain.clean()
    assert chain.files() == files


def aged(path: Path, days: int) -> Path:
    """The path, written as text where it is not there, as if nobody had changed it for so long."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    at = datetime.now(UTC).timestamp() - days * 86_400
    for each in (*path.rglob("*"), path):
        os.utime(each, (at, at))
    return path


def test_the_rest_goes_by_its_age(chain: Chain) -> None:
    home, declared = chain.lake.settings.home, chain.lake.settings
    jobs = {}
    for name, days in {"old": declared.keep_jobs_days + 1, "young": declared.keep_jobs_days - 1}.items():
        for folder in (f"jobs/oracle/{name}", f"jobs/oracle/{name}.gate"):
            (home / folder).mkdir(parents=True)
            jobs[folder] = aged(home / folder, days)
    going = [
        aged(home / "scratch" / "publish-killed" / "rows.parquet", 1).parent,
        aged(home / "jobs" / "oracle" / "2024-01-01.try-1" / "training_set.parquet", 1).parent,
        aged(home / "artifacts" / "oracle" / "first" / f".manifest.json.{'0' * 32}", 1),
        aged(home / "logs" / "events-20240101T000000000000.jsonl", declared.keep_logs_days + 1),
        aged(home / "airflow" / "logs" / "dag_id=watch" / "attempt=1.log", declared.keep_logs_days + 1),
        aged(home / "reports" / "oracle" / "2024-01-01" / "drift.html", 0).parent,
        aged(home / "reports" / "data_docs" / "things" / "2024-01-01..2024-01-03" / "summary.json", 0).parent,
        jobs["jobs/oracle/old"],
        jobs["jobs/oracle/old.gate"],
    ]
    staying = [
        aged(home / "scratch" / "young" / "rows.parquet", 0),
        aged(home / "artifacts" / "oracle" / "first" / "manifest.json", 9_999),
        aged(home / "logs" / "events.jsonl", 9_999),
        aged(home / "logs" / "dag-processor.log", 9_999),
        aged(home / "logs" / "events-20240202T000000000000.jsonl", declared.keep_logs_days - 1),
        aged(home / "reports" / "oracle" / "model_cards" / "1.html", 9_999),
        aged(home / "reports" / "oracle" / "2025-06-01" / "drift.html", 9_999),
        aged(home / "reports" / "data_docs" / "things" / "2025-06-01" / "summary.json", 9_999),
        aged(home / "reports" / "data_docs" / "things" / "index.html", 9_999),
        aged(home / "secrets" / "fernet_seed", 9_999),
        jobs["jobs/oracle/young"],
        jobs["jobs/oracle/young.gate"],
    ]
    aged(home / "scratch" / "publish-killed", 1)
    aged(home / "jobs" / "oracle" / "2024-01-01.try-1", 1)
    announced = clean(chain.lake, dry_run=True)
    assert all(path.exists() for path in (*going, *staying))
    assert {removal.what for removal in announced.removals} == {str(path) for path in going}
    assert clean(chain.lake, dry_run=False) == announced
    assert [path for path in going if path.exists()] == []
    assert [path for path in staying if not path.exists()] == []
