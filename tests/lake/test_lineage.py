"""The index of publications: a projection of the commits that can be lost, shared and rebuilt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from config.calendar import Interval
from lake.lineage import Input, Lineage, PartitionNotReady, Publications, create_engine
from tests.lake.conftest import FIRST, Items, item_rows

NIGHTS = [Interval.of(FIRST + timedelta(days=number)) for number in range(3)]


def _publish_nights(items: Items) -> None:
    for number, night in enumerate(NIGHTS):
        inputs = {night.start: [Input("things/other", night.start, "d" * 64, number)]}
        items.publish(item_rows(night), night, lineage=Lineage(f"run {number}", "code", "catalog", inputs))


def test_a_lost_index_is_rebuilt_from_the_commits(items: Items) -> None:
    _publish_nights(items)
    before = items.lake.publications.current(items.table)
    other = Publications(create_engine("sqlite://"))
    assert other.current(items.table) == before
    assert [p.run_id for p in before.values()] == ["run 0", "run 1", "run 2"]


def test_a_table_made_anew_is_not_taken_for_the_old_one(items: Items) -> None:
    _publish_nights(items)
    items.lake.publications.current(items.table)
    shutil.rmtree(items.table.location.uri)
    assert items.lake.publications.current(items.table) == {}
    items.publish(item_rows(NIGHTS[2]), NIGHTS[2])
    assert list(items.lake.publications.current(items.table)) == [NIGHTS[2].start]


def test_current_can_look_back_to_a_version(items: Items) -> None:
    items.publish(item_rows(NIGHTS[0]), NIGHTS[0])
    items.publish(item_rows(NIGHTS[0], seed=2), NIGHTS[0])
    now = items.lake.publications.current(items.table)[FIRST]
    then = items.lake.publications.current(items.table, as_of_version=1)[FIRST]
    assert (then.version, now.version) == (1, 2)
    assert then.digest != now.digest


def test_newest_is_the_latest_night_not_the_latest_commit(items: Items) -> None:
    assert items.lake.publications.newest(items.table) is None
    _publish_nights(items)
    items.publish(item_rows(NIGHTS[0], seed=2), NIGHTS[0])
    newest = items.lake.publications.newest(items.table)
    assert newest is not None
    assert newest.data_date == NIGHTS[2].start


@pytest.mark.parametrize(("published", "latest"), [(True, "latest is 2024-01-03"), (False, "nothing is published")])
def test_a_missing_partition_is_named_with_the_latest_and_the_remedy(
    items: Items, published: bool, latest: str
) -> None:
    if published:
        _publish_nights(items)
    wanted = Interval(FIRST, FIRST + timedelta(days=6))
    with pytest.raises(PartitionNotReady) as caught:
        items.lake.publications.require(items.table, wanted, needed_by="Scoring things", remedy="Run `things_ingest`.")
    first, more = ("2024-01-04", 2) if published else ("2024-01-01", 5)
    assert str(caught.value) == (
        f"PartitionNotReady: things/raw/items has no partition {first} and {more} more ({latest}).\n"
        "  Scoring things needs it. Run `things_ingest`."
    )


def test_an_empty_partition_is_ready(items: Items) -> None:
    items.publish(item_rows(NIGHTS[0]).slice(0, 0), NIGHTS[0])
    assert items.lake.publications.require(items.table, NIGHTS[0], needed_by="x", remedy="y")[FIRST].rows == 0


def _both(items_at: Callable[..., Items], sql_url: str) -> None:
    """Eight processes' worth of indexes open the same empty database and read the same table at once."""
    items = items_at("lake", sql_url)
    other = items_at("lake", "sqlite://")
    _publish_nights(other)

    def read(_: int) -> object:
        return Publications(create_engine(items.lake.settings.database_url)).current(items.table)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    assert found == [other.lake.publications.current(other.table)] * 8
    engine = create_engine(items.lake.settings.database_url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM publications")).scalar() == 3
    engine.dispose()


def test_many_may_bring_the_index_up_to_date_at_once_on_sqlite(items_at: Callable[..., Items]) -> None:
    _both(items_at, "")


def test_many_may_bring_the_index_up_to_date_at_once_on_postgres(
    items_at: Callable[..., Items], empty_postgres: str
) -> None:
    _both(items_at, empty_postgres)
