"""One run over many nights, and the nights one by one as the data arrived, publish the same rows bit by bit."""

from __future__ import annotations

import shutil
import tempfile
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from features.transform import compute_view, transform
from lake.lake import Lake
from lake.publish import publish
from lake.tables import feature_table, valid_table
from tests.features.depot import Row, arrive, day, depot, features
from tests.features.generated import publish_generated

NIGHTS = 6


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[Row]]:
    """By night: trips of that day, late ones of earlier days, and corrections of any earlier trip; now and then two in
    one night.
    """
    nights: list[list[Row]] = [[] for _ in range(NIGHTS)]
    trips = draw(
        st.lists(st.tuples(st.integers(0, NIGHTS - 1), st.sampled_from(["ann", "bob", "cy"])), max_size=12, unique=True)
    )
    for number, driver in trips:
        landed = number
        for revision in range(draw(st.integers(1, 4))):
            landed += draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
            if landed >= NIGHTS:
                break
            nights[landed].append((day(number), driver, draw(st.one_of(st.none(), st.integers(-50, 50))), revision))
    return nights


def expected(nights: list[list[Row]], number: int) -> dict[str, tuple[int | None, float | None]]:
    """What night `number` must say, in plain Python."""
    newest: dict[tuple[date, str], tuple[int, int | None]] = {}
    for landed in range(max(0, number - 5), number + 1):
        for event, driver, minutes, revision in nights[landed]:
            if (event, driver) not in newest or revision > newest[event, driver][0]:
                newest[event, driver] = (revision, minutes)
    out: dict[str, list[int | None]] = {}
    for (event, driver), (_, minutes) in newest.items():
        if day(number) - timedelta(days=3) < event <= day(number):
            out.setdefault(driver, []).append(minutes)
    measured = {driver: [m for m in minutes if m is not None] for driver, minutes in out.items()}
    return {driver: (len(out[driver]), sum(m) / len(m) if m else None) for driver, m in measured.items()}


def digests(lake: Lake, dataset: str, view: str, interval: Interval) -> dict[date, str | None]:
    """What this lake has published of the view. The table is this lake's own: of another lake's it would tell that
    one's digests.
    """
    return lake.publications.digests(feature_table(lake.settings, lake.dataset(dataset), view), interval)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nights=arrivals())
def test_bulk_equals_nightly_under_late_rows_and_corrections(nights: list[list[Row]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        nightly, bulk = depot(Path(folder) / "nightly"), depot(Path(folder) / "bulk")
        for number, rows in enumerate(nights):
            arrive(nightly, day(number), rows)
            transform(nightly, "depot", Interval.of(day(number)), run_id="r")
        # The same valid tables, whole from the start: every night now has a future that it must not look at.
        shutil.copytree(nightly.settings.lake / "depot" / "valid", bulk.settings.lake / "depot" / "valid")
        whole = Interval(day(0), day(NIGHTS))
        transform(bulk, "depot", whole, run_id="r")
        assert digests(bulk, "depot", "driver_daily", whole) == digests(nightly, "depot", "driver_daily", whole)
        for number in range(NIGHTS):
            assert features(bulk, day(number)) == expected(nights, number), f"night {number}"


def real(folder: Path) -> Lake:
    """The catalog of this repository over an empty lake."""
    installed = Settings(home=folder, duckdb_memory_gb=1.0)
    return Lake(installed, load_catalog(installed))


def only_newest_revisions(lake: Lake, dataset: str, night: date, folder: Path) -> Lake:
    """A lake whose valid tables hold what `night` knew and nothing else: the newest revision of each key by then, each
    called the first.
    """
    plain = real(folder)
    entry = lake.dataset(dataset)
    for name, declared in entry.tables.items():
        source, target = (
            valid_table(lake.settings, entry, name),
            valid_table(plain.settings, plain.dataset(dataset), name),
        )
        first = min(lake.publications.current(source))
        known = Interval.closed(first, night)
        with lake.duckdb() as connection, lake.scratch("test") as scratch:
            source.register(connection, "rows", known)
            rows = connection.sql(f"""
                SELECT * REPLACE (CAST(0 AS INTEGER) AS revision) FROM rows
                QUALIFY row_number() OVER (PARTITION BY {", ".join(declared.key)} ORDER BY data_date DESC,
                  rows.revision DESC) = 1
                """).to_arrow_table()
            publish(
                plain.publications,
                target,
                rows,
                known,
                replaces=plain.publications.digests(target, known),
                lineage=plain.lineage(dataset, "test"),
                scratch=scratch,
            )
    return plain


@pytest.mark.parametrize(
    ("dataset", "first", "night"),
    [("flights", date(2012, 12, 31), date(2013, 2, 4)), ("traffic", date(2012, 10, 2), date(2012, 11, 5))],
)
def test_a_superseded_row_counts_for_nothing(tmp_path: Path, dataset: str, first: date, night: date) -> None:
    lake = real(tmp_path / "lake")
    publish_generated(lake, dataset, Interval(first, night + timedelta(days=5)), per_day=200)
    plain = only_newest_revisions(lake, dataset, night, tmp_path / "plain")
    for view in lake.dataset(dataset).features:
        found = compute_view(lake, dataset, view, Interval.of(night))
        assert found.num_rows
        assert found == compute_view(plain, dataset, view, Interval.of(night)), (
            f"{dataset}/{view}.sql counts rows that a later revision replaced"
        )


# Across the change of clocks of each zone: 10 March 2013 in New York has 23 hours, 4 November 2012 in Chicago 25.
@pytest.mark.parametrize(
    ("dataset", "first", "begin", "end"),
    [
        ("flights", date(2012, 12, 31), date(2013, 3, 9), date(2013, 3, 12)),
        ("traffic", date(2012, 10, 2), date(2012, 11, 2), date(2012, 11, 6)),
    ],
)
def test_the_catalogs_own_views_in_bulk_equal_their_nights(
    tmp_path: Path, dataset: str, first: date, begin: date, end: date
) -> None:
    bulk, nightly = real(tmp_path / "bulk"), real(tmp_path / "nightly")
    whole, history = Interval(first, end), Interval(first, begin)
    publish_generated(bulk, dataset, whole)
    transform(bulk, dataset, whole, run_id="r")

    publish_generated(nightly, dataset, history)
    transform(nightly, dataset, history, run_id="r")
    for night in Interval(begin, end):
        publish_generated(nightly, dataset, Interval.of(night), since=Interval(first, night + ONE_DAY))
        transform(nightly, dataset, Interval.of(night), run_id="r")

    assert not transform(bulk, dataset, whole, run_id="again").committed
    for view in bulk.dataset(dataset).features:
        in_bulk, by_night = digests(bulk, dataset, view, whole), digests(nightly, dataset, view, whole)
        differing = [str(night) for night in whole if in_bulk[night] != by_night[night]]
        assert not differing, (
            f"{dataset}/{view}.sql gives other rows in bulk for {', '.join(differing)}: it looks at rows their night "
            "did not know"
        )


@pytest.mark.parametrize(
    ("dataset", "first", "night"),
    [("flights", date(2012, 12, 31), date(2013, 3, 12)), ("traffic", date(2012, 10, 2), date(2012, 11, 20))],
)
def test_the_lookback_the_catalog_grants_suffices(tmp_path: Path, dataset: str, first: date, night: date) -> None:
    lake = real(tmp_path)
    publish_generated(lake, dataset, Interval.closed(first, night))
    entry = lake.dataset(dataset)
    generous = {
        name: view.model_copy(update={"lookback": view.lookback + timedelta(days=15)})
        for name, view in entry.features.items()
    }
    datasets = tuple(
        entry.model_copy(update={"features": generous}) if d.name == dataset else d for d in lake.catalog.datasets
    )
    wide = Lake(lake.settings, lake.catalog.model_copy(update={"datasets": datasets}))
    nights = Interval.closed(night - ONE_DAY, night)
    for view in entry.features:
        granted, more = compute_view(lake, dataset, view, nights), compute_view(wide, dataset, view, nights)
        assert granted.num_rows
        assert granted == more, (
            f"{dataset}/{view} uses rows from before its lookback of {entry.features[view].lookback.days} days: give "
            "it more"
        )


def hours(lake: Lake, night: date) -> int:
    """Hours that hour_calendar and volume_lags give for the day after `night`."""
    calendar, lags = (
        int(compute_view(lake, "traffic", view, Interval.of(night)).num_rows)
        for view in ("hour_calendar", "volume_lags")
    )
    assert calendar == lags
    return calendar


def test_a_day_has_as_many_hours_as_its_clock(tmp_path: Path) -> None:
    lake = real(tmp_path)
    autumn, spring = date(2012, 11, 4), date(2013, 3, 10)
    publish_generated(lake, "traffic", Interval.closed(date(2012, 10, 2), spring))
    assert [
        hours(lake, day_ - ONE_DAY) for day_ in (autumn - ONE_DAY, autumn, autumn + ONE_DAY, spring - ONE_DAY, spring)
    ] == [24, 25, 24, 24, 23]
    calendar = compute_view(lake, "traffic", "hour_calendar", Interval.of(autumn - ONE_DAY))
    assert calendar["local_hour"].to_pylist()[:4] == [0, 1, 1, 2]
    # 24 hours before the 25th hour lies on that day itself.
    lags = compute_view(lake, "traffic", "volume_lags", Interval.of(autumn - ONE_DAY))
    assert lags["volume_24h_ago"].to_pylist()[-1] is None
    assert compute_view(lake, "traffic", "hour_calendar", Interval.of(spring - ONE_DAY))["local_hour"].to_pylist()[
        :4
    ] == [0, 1, 3, 4]
