"""The page Data: what a person reads of published, late, rewritten and missing nights, and of the rows that were set
aside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pyarrow.fs import LocalFileSystem

from config.calendar import ONE_DAY, Interval
from features.validate import validate
from lake.lake import Lake
from lake.lineage import publications_table
from lake.projection import _metadata as projections_metadata
from lake.publication_queries import PublishedNight
from lake.storage import ObjectStore
from lake.tables import quarantine_table, raw_table, valid_table
from monitoring.alerting.runs import _metadata as runs_metadata
from monitoring.pages.data import data_docs_folder, page
from monitoring.pages.data_nights import STATES, states_of
from monitoring.pages.data_quarantine import MASKED, PAGE_ROWS, read_quarantine, rules_in
from monitoring.pages.embedded import document
from monitoring.pages.page import BadAddress, Context, NotFound, Page, Viewer, to_csv
from monitoring.pages.render import render
from tests import toy
from tests.config.test_catalog import changed
from tests.features.test_validate import edit, lake_with
from tests.monitoring.facts import ran

FIRST = toy.FIRST
NIGHTS = Interval.closed(FIRST, FIRST + timedelta(days=3))
BAD = NIGHTS.last
HOSTILE = "<script>alert('depot')</script>"
AT = datetime(2024, 1, 2, tzinfo=UTC)


def context_of(lake: Lake, **given: Any) -> Context:
    return Context(
        lake,
        Viewer("ada", "viewer"),
        given.pop("now", datetime(2024, 3, 1, tzinfo=UTC)),
        ("ride_minutes",),
        ("rides",),
        **given,
    )


def shown(lake: Lake, **query: str) -> Page:
    return page(context_of(lake), query=query, dataset="rides")


def html_of(lake: Lake, **query: str) -> str:
    return render(shown(lake, **query), context_of(lake), path="/nightfleet/data/rides")


def table(found: Page, name: str) -> list[dict[str, Any]]:
    return [dict(row) for row in next(t for t in found.tables if t.name.partition("__")[0] == name).rows]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Four validated nights; in the last one most bookings are bad, and the vehicle is personal data."""
    made = lake_with(
        tmp_path_factory.mktemp("data"),
        NIGHTS,
        tables__bookings__columns__vehicle__pii=True,
        tables__bookings__quality={"stop_share": 1.0},
    )
    raw = toy.with_lake_columns(
        made, "bookings", toy.generate(Interval(NIGHTS.start, NIGHTS.end + ONE_DAY), per_day=120).bookings
    )
    raw = raw.append_column("row_number", [[1] * raw.num_rows])
    toy.publish_rows(made, raw_table(made.settings, made.dataset("rides"), "bookings"), raw, NIGHTS)

    def spoil(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["ride"] <= 110:
                row["distance_km"] = -row["distance_km"]
            if row["ride"] in (2, 3):
                row["depot"] = HOSTILE if row["ride"] == 2 else "x" * 10_000
        return rows

    edit(made, "bookings", Interval.of(BAD), spoil)
    validate(made, "rides", NIGHTS, run_id="history")
    return made


# ---- states ----------------------------------------------------------------------------------------------------

ONE = PublishedNight("t", FIRST, "d", 10, 1, "r", AT, AT, 1, "{}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("published",)),
        ({"published": None, "quarantined": 3}, ("missing",)),
        ({"quarantined": 1}, ("quarantined",)),
        ({"later_first_at": AT - timedelta(seconds=1)}, ("late",)),
        ({"later_first_at": AT}, ("published",)),
        ({"deadline": AT - timedelta(seconds=1)}, ("late",)),
        ({"deadline": AT}, ("published",)),
        ({"published": replace(ONE, times=2)}, ("republished",)),
        (
            {"published": replace(ONE, times=2), "quarantined": 1, "deadline": AT - ONE_DAY},
            ("quarantined", "late", "republished"),
        ),
    ],
)
def test_a_night_has_every_state_that_is_true_of_it_worst_first(
    given: dict[str, Any], expected: tuple[str, ...]
) -> None:
    facts: dict[str, Any] = {"published": ONE, "quarantined": 0, "later_first_at": None, "deadline": None}
    assert states_of(**(facts | given)) == expected


def published(
    lake: Lake, table_name: str, night: date, at: datetime, version: int = 1, rows: int = 5, details: str = "{}"
) -> None:
    """A line of the index, as a publish leaves it."""
    _ = lake.publications  # makes the table
    values = {
        "table_name": table_name,
        "data_date": night,
        "version": version,
        "digest": f"d{version}",
        "row_count": rows,
        "run_id": "r",
        "committed_at": at,
    }
    with lake.engine.begin() as connection:
        connection.execute(
            publications_table.insert().values(
                **values, code_version="c", catalog_digest="c", inputs="[]", details=details
            )
        )


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lake]:
    made = toy.toy_lake(tmp_path)
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    yield made
    publications_table.metadata.drop_all(made.engine)
    projections_metadata.drop_all(made.engine)
    runs_metadata.drop_all(made.engine)
    with made.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS metrics"))
    made.engine.dispose()


def test_late_rewritten_missing_and_failed_nights_are_told_apart(empty: Lake) -> None:
    days = [FIRST + timedelta(days=n) for n in range(6)]
    for number, day in enumerate(days[:5]):
        if number != 3:
            published(empty, "rides/valid/bookings", day, AT + timedelta(days=number))
    published(empty, "rides/valid/bookings", days[0], AT + timedelta(days=30), version=2)
    # The second night came after the third.
    with empty.engine.begin() as connection:
        second = publications_table.c.data_date == days[1]
        connection.execute(
            publications_table.update().where(second).values(committed_at=AT + timedelta(days=2, hours=1))
        )
    ran(
        empty,
        "rides",
        "ingest",
        days[5],
        AT,
        state="failed",
        failed_task="validate",
        error="DataRejected: 40 of 50 rows break a rule",
    )
    rows = {row["day"]: row for row in table(shown(empty, table="bookings"), "nights")}
    assert {day: row["state"] for day, row in rows.items()} == dict(
        zip(days, ["republished", "late", "published", "missing", "published", "missing"], strict=True)
    )
    assert rows[days[5]]["failed"] == "validate: DataRejected: 40 of 50 rows break a rule"
    found = shown(empty, table="bookings", night=days[5].isoformat())
    assert [(row["table"], row["state"]) for row in table(found, "night")] == [("bookings", "missing")]
    assert [run["state"] for run in table(found, "runs")] == ["failed"]


def test_a_night_ahead_of_time_in_a_replay_is_not_missing(empty: Lake) -> None:
    published(empty, "rides/valid/bookings", FIRST, AT)
    assert [row["day"] for row in table(shown(empty), "nights")] == [FIRST]


def test_a_live_night_is_late_after_the_earliest_deadline_and_missing_when_it_has_passed(tmp_path: Path) -> None:
    text = changed(
        toy.DATASET_YAML.replace(
            "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}\n", "start: 2024-01-01\n"
        ),
        "title",
        "Live",
    )
    live = toy.toy_lake(tmp_path, dataset=text)
    # The clocks of Berlin go forward in the night of the 30th: 06:00 of the 31st is 04:00 UTC, not 05:00.
    nights = [date(2024, 3, 28), date(2024, 3, 29), date(2024, 3, 30)]
    published(live, "rides/valid/bookings", nights[0], datetime(2024, 3, 29, 5, 1, tzinfo=UTC))
    published(live, "rides/valid/bookings", nights[1], datetime(2024, 3, 30, 4, 59, tzinfo=UTC))
    published(live, "rides/valid/bookings", nights[2], datetime(2024, 3, 31, 4, 1, tzinfo=UTC))

    def states(now: datetime) -> list[str]:
        found = page(context_of(live, now=now), query={"table": "bookings"}, dataset="rides")
        return [row["state"] for row in reversed(table(found, "nights"))]

    assert states(datetime(2024, 4, 1, 3, 59, tzinfo=UTC)) == ["late", "published", "late"]
    assert states(datetime(2024, 4, 1, 4, 1, tzinfo=UTC)) == ["late", "published", "late", "missing"]


def test_nights_of_one_bulk_commit_have_no_deadline(tmp_path: Path) -> None:
    text = toy.DATASET_YAML.replace(
        "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}\n", "start: 2024-01-01\n"
    )
    live = toy.toy_lake(tmp_path, dataset=text)
    for day in NIGHTS:
        published(live, "rides/valid/bookings", day, AT + timedelta(days=20))
    found = page(context_of(live, now=AT), query={"table": "bookings"}, dataset="rides")
    assert {row["state"] for row in table(found, "nights")} == {"published"}


def test_an_installation_without_nights_says_what_to_do(empty: Lake) -> None:
    assert "No night of this data set has been published yet" in render(shown(empty), context_of(empty))


# ---- the page --------------------------------------------------------------------------------------------------


def test_the_night_tells_rows_quality_and_docs_of_every_table(lake: Lake) -> None:
    found = shown(lake, night=BAD.isoformat())
    bookings, outcomes = table(found, "night")
    assert (bookings["table"], bookings["state"], bookings["rows"], bookings["valid"], bookings["quarantined"]) == (
        "bookings",
        "quarantined",
        120,
        10,
        110,
    )
    assert bookings["score"] == pytest.approx(1 / 12)
    assert outcomes["state"] == "published"
    assert bookings["docs_url"] == "/nightfleet/embedded/data_docs/rides/2024-01-01..2024-01-04/rides.bookings.html"
    assert (
        b"rides.bookings"
        in document(context_of(lake), bookings["docs_url"].removeprefix("/nightfleet/embedded/")).content
    )


def test_keys_closed_are_counted_and_are_no_rows(tmp_path: Path) -> None:
    empty = toy.toy_lake(tmp_path)
    entry = empty.dataset("rides")
    valid, quarantine = (make(empty.settings, entry, "bookings") for make in (valid_table, quarantine_table))
    for name, rows, details in ((valid.name, 5, json.dumps({"closed": {f"{FIRST}": 2}})), (quarantine.name, 1, "{}")):
        published(empty, name, FIRST, AT, rows=rows, details=details)
    (bookings,) = table(shown(empty, night=FIRST.isoformat()), "night")
    assert {name: bookings[name] for name in ("rows", "valid", "quarantined", "closed")} == {
        "rows": 4, "valid": 3, "quarantined": 1, "closed": 2,
    }  # fmt: skip
    assert [night["closed"] for night in table(shown(empty), "nights")] == [2]


def test_calendar_and_words_agree(lake: Lake) -> None:
    found = shown(lake)
    chart = next(c for c in found.charts if c.name == "calendar")
    drawn = {
        point["value"][0]: STATES[point["value"][1]] for series in chart.option["series"] for point in series["data"]
    }
    told = {row["day"].isoformat(): row["state"] for row in table(found, "nights")}
    assert drawn == told
    assert set(chart.links) == set(told)
    counts = {one["state"]: one["nights"] for one in found.values["counts"]}
    assert counts == {"published": 3, "quarantined": 1, "late": 0, "republished": 0, "missing": 0}


def test_rules_of_the_year_are_counted(lake: Lake) -> None:
    rules = {(row["table"], row["rule"]): row for row in table(shown(lake), "rules")}
    between = rules["bookings", "between(distance_km)"]
    assert (between["broken"], between["nights"], between["last"]) == (110, 1, BAD)
    assert rules["bookings", "in_set(depot)"]["broken"] == 2


def test_rows_set_aside_are_paged_with_every_rule_they_broke(lake: Lake) -> None:
    pages = [table(shown(lake, night=BAD.isoformat(), page=str(number)), "quarantine") for number in (1, 2, 3)]
    assert [len(rows) for rows in pages] == [PAGE_ROWS, PAGE_ROWS, 10]
    rides = [row["ride"] for rows in pages for row in rows]
    assert rides == list(range(1, 111))
    assert pages[0][1]["broken_rules"] == ["in_set(depot)", "between(distance_km)"], "in the catalog's order"
    assert pages[0][0]["broken_rules"] == ["between(distance_km)"]


def test_a_csv_holds_all_rows_set_aside_whatever_page_it_was_asked_for_on(lake: Lake) -> None:
    query = {"night": BAD.isoformat(), "table": "quarantine__of__bookings", "format": "csv", "page": "2"}
    whole = page(context_of(lake), query=query, dataset="rides").table("quarantine__of__bookings")
    assert [row["ride"] for row in whole.rows] == list(range(1, 111))


def test_a_csv_that_does_not_hold_all_says_so(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "The CSV holds the first 100;"
    captions = [t.caption for t in shown(lake, night=BAD.isoformat()).tables if t.name.startswith("quarantine")]
    assert not any(whole in caption for caption in captions)
    monkeypatch.setattr("monitoring.pages.data.CSV_ROWS", 100)
    captions = [t.caption for t in shown(lake, night=BAD.isoformat()).tables if t.name.startswith("quarantine")]
    assert any(whole in caption for caption in captions)


def test_a_rule_filters_rows_and_keeps_the_counts(lake: Lake) -> None:
    found = shown(lake, night=BAD.isoformat(), rule="in_set(depot)")
    assert [row["ride"] for row in table(found, "quarantine")] == [2, 3]
    assert {row["rule"]: row["rows"] for row in table(found, "night_rules")} == {
        "between(distance_km)": 110,
        "in_set(depot)": 2,
    }
    with pytest.raises(
        NotFound,
        match=r"no row of bookings broke 'in_set\(moon\)'.*Broken were: in_set\(depot\), between\(distance_km\)",
    ):
        shown(lake, night=BAD.isoformat(), table="bookings", rule="in_set(moon)")


def test_personal_data_is_shown_to_nobody_and_never_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(lake, night=BAD.isoformat())
    assert {row["vehicle"] for row in table(found, "quarantine")} == {MASKED}
    (browser,) = [t for t in found.tables if t.name == "quarantine__of__bookings"]
    rows = quarantine_table(lake.settings, lake.dataset("rides"), "bookings").read([BAD]).to_pylist()
    vehicles = {row["vehicle"] for row in rows}
    assert vehicles
    for text in (to_csv(browser), html_of(lake, night=BAD.isoformat())):
        assert not [name for name in vehicles if f"{name}," in text or f">{name}<" in text]


def test_hostile_and_long_values_are_text_and_short(lake: Lake) -> None:
    text = html_of(lake, night=BAD.isoformat())
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(&#39;depot&#39;)&lt;/script&gt;" in text
    long = table(shown(lake, night=BAD.isoformat()), "quarantine")[2]["depot"]
    assert long.endswith("… (10000 characters)")
    assert len(long) < 400


def test_a_csv_is_that_of_the_table_it_names(lake: Lake) -> None:
    """`table=` of the address names the CSV there, which says by its name which table it is about."""
    query = {"night": BAD.isoformat(), "table": "quarantine__of__bookings", "format": "csv"}
    text = to_csv(page(context_of(lake), query=query, dataset="rides").table("quarantine__of__bookings"))
    assert text.startswith('"broken_rules","depot","distance_km [km]","event_date",')
    nights = page(context_of(lake), query={"table": "nights__of__outcomes", "format": "csv"}, dataset="rides").table(
        "nights__of__outcomes"
    )
    assert all(row["quarantined"] == 0 for row in nights.rows)


def test_a_partition_whose_files_are_gone_is_said(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise OSError("no such file")

    monkeypatch.setattr("monitoring.pages.data.read_quarantine", gone)
    assert "rides/quarantine/bookings cannot be read for 2024-01-04: &#39;no such file&#39;" in html_of(
        lake, night=BAD.isoformat()
    )


@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        ({"night": "2024-13-01"}, BadAddress, "night is '2024-13-01', needs a date"),
        (
            {"night": "2025-01-01"},
            NotFound,
            r"rides has no night 2025-01-01: the first is 2024-01-01, the newest is 2024-01-04",
        ),
        ({"year": "MMXXIV"}, BadAddress, "year is 'MMXXIV', needs a year from 1900"),
        ({"year": "²"}, BadAddress, "year is '²'"),
        (
            {"table": "moons"},
            NotFound,
            "rides has no table 'moons'. It has: bookings, outcomes, features/vehicle_daily",
        ),
        ({"table": "bookings", "page": "9"}, BadAddress, "page is '9', needs a number from 1 to 3"),
        ({"table": "bookings", "page": "-1"}, BadAddress, "page is '-1'"),
    ],
)
def test_a_wrong_address_says_what_there_is(
    lake: Lake, query: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        shown(lake, **query)


def test_a_data_set_that_one_may_not_see_is_not_there(lake: Lake) -> None:
    with pytest.raises(NotFound, match="no data set 'rides'"):
        page(replace(context_of(lake), datasets=()), query={}, dataset="rides")


# ---- parts -----------------------------------------------------------------------------------------------------


def test_rule_names_that_hold_the_separator_stay_whole() -> None:
    name = "in_set(a) when b == x; y"
    assert rules_in(f"not_null(a); {name}", ["not_null(a)", name]) == ("not_null(a)", name)
    assert rules_in("gone(a); not_null(a)", ["not_null(a)"]) == ("gone(a)", "not_null(a)")


def test_docs_of_a_night_are_its_own_before_those_of_an_interval(tmp_path: Path) -> None:
    site = tmp_path / "data_docs" / "rides"
    for name in ("suites", "2024-01-01..2024-03-01", "2024-01-01..2024-02-01", "2024-01-05", "2024-01-09..2024-01-01"):
        (site / name).mkdir(parents=True)
    store = ObjectStore(LocalFileSystem(), str(tmp_path))
    assert data_docs_folder(store, "rides", date(2024, 1, 5)) == "2024-01-05"
    assert data_docs_folder(store, "rides", date(2024, 1, 4)) == "2024-01-01..2024-02-01"
    assert data_docs_folder(store, "rides", date(2024, 5, 4)) is None
    assert data_docs_folder(ObjectStore(LocalFileSystem(), str(tmp_path / "nowhere")), "rides", FIRST) is None


def test_an_empty_partition_has_no_page_but_one(lake: Lake) -> None:
    seen: list[int] = []
    found = read_quarantine(
        lake,
        lake.dataset("rides"),
        "bookings",
        FIRST,
        [],
        rule=None,
        page=lambda pages: seen.append(pages) or 1,  # type: ignore[func-returns-value]  # the list is what is looked at
    )
    assert (found.total, found.rows, seen) == (0, [], [1])
