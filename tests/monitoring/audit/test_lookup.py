"""Finding predictions by id and by entity, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.projection import _prepare, sql_columns
from monitoring.audit.lookup import (
    BadEntityValue,
    NoPredictionId,
    by_entity,
    by_id,
    entity_value,
    nearest,
    newest,
    nights_around,
)
from serving.predictions import predictions_table
from serving.projection import sql_name
from tests.serving.scenario import MODEL

NIGHT = date(2024, 1, 23)
NIGHTS = Interval.closed(NIGHT - ONE_DAY, NIGHT)


def prediction_id(night: date, ride: int) -> str:
    return f"{night:%m%d}{ride:028x}"


@pytest.fixture(params=["sqlite", "postgres"])
def lake(request: pytest.FixtureRequest, toy_lake: Lake) -> Iterator[Lake]:
    """Two nights of ten rides in SQL; ride 3 of the second night was replaced once, by a row of the same id."""
    made = toy_lake
    if request.param == "postgres":
        made = Lake(made.settings.model_copy(update={"sql_url": request.getfixturevalue("postgres_url")}), made.catalog)
    table = sql_columns(sql_name(MODEL), predictions_table(made.settings, made.model(MODEL)).schema, keep_replaced=True)
    rows: list[dict[str, Any]] = []
    for night in NIGHTS:
        for ride in range(1, 11):
            row: dict[str, Any] = dict.fromkeys(table.c.keys())
            row |= {
                "source_table": f"{MODEL}/predictions",
                "delta_version": 1,
                "prediction_id": prediction_id(night, ride),
                "role": "champion",
            }
            row |= {
                "model": MODEL,
                "version": 1,
                "event_date": night + ONE_DAY,
                "ride": ride,
                "ride_minutes": ride / 2,
                "data_date": night,
            }
            rows.append(row)
    rows.append(rows[-8] | {"superseded_at": datetime(2024, 2, 1, tzinfo=UTC)})
    with made.engine.begin() as connection:
        _prepare(connection, table, ("prediction_id",), (("prediction_id",), ("data_date",)))
        connection.execute(table.insert(), rows)
    yield made
    with made.engine.begin() as connection:
        for name in (sql_name(MODEL), "projections"):
            connection.execute(sa.text(f"DROP TABLE {name}"))
    made.engine.dispose()


def test_an_id_is_found_whole_or_by_its_beginning(lake: Lake) -> None:
    whole = prediction_id(NIGHT, 7)
    (found,) = by_id(lake, f"  {whole.upper()} ", [MODEL])
    assert (found.prediction_id, found.model, found.data_date, found.entity["ride"], found.value) == (
        whole,
        MODEL,
        NIGHT,
        7,
        3.5,
    )
    assert {one.prediction_id for one in by_id(lake, "01230000", [MODEL], limit=50)} == {
        prediction_id(NIGHT, ride) for ride in range(1, 11)
    }
    assert len(by_id(lake, "01230000", [MODEL], limit=4)) == 4
    assert by_id(lake, "f" * 32, [MODEL]) == []


def test_of_a_replaced_row_the_current_one_counts(lake: Lake) -> None:
    (found,) = by_id(lake, prediction_id(NIGHT, 3), [MODEL])
    assert found.superseded_at is None


def test_models_that_one_may_not_see_hold_nothing(lake: Lake) -> None:
    assert by_id(lake, prediction_id(NIGHT, 7), []) == []
    assert newest(lake, []) == []


@pytest.mark.parametrize("text", ["", "0123", "z" * 8, "0" * 33, "0123456_", "01230000'; --", "%" * 8])
def test_what_is_no_id_is_refused(lake: Lake, text: str) -> None:
    with pytest.raises(NoPredictionId, match="32 digits 0-9a-f, of which the first 8 or more"):
        by_id(lake, text, [MODEL])


def test_an_entity_is_found_in_its_night(lake: Lake) -> None:
    found, count = by_entity(lake, MODEL, NIGHT, {"event_date": NIGHT + ONE_DAY, "ride": 3})
    assert (count, [one.superseded_at is None for one in found]) == (2, [True, False]), "the current one first"
    found, count = by_entity(lake, MODEL, NIGHT, {}, limit=5)
    assert (count, [one.entity["ride"] for one in found]) == (11, [1, 2, 3, 4, 5])
    assert by_entity(lake, MODEL, NIGHT + ONE_DAY, {}) == ([], 0)


def test_the_nearest_share_most_and_lie_closest(lake: Lake) -> None:
    found = nearest(lake, MODEL, NIGHT, {"event_date": NIGHT + ONE_DAY, "ride": 12}, limit=3)
    assert [one.entity["ride"] for one in found] == [10, 9, 8]
    assert nearest(lake, MODEL, NIGHT + 5 * ONE_DAY, {"ride": 1}) == []


def test_nights_around_and_where_to_begin(lake: Lake) -> None:
    assert nights_around(lake, MODEL, NIGHT + 9 * ONE_DAY) == (NIGHT, None)
    assert nights_around(lake, MODEL, NIGHT - 9 * ONE_DAY) == (None, NIGHT - ONE_DAY)
    assert {one.data_date for one in newest(lake, [MODEL], each=3)} == {NIGHT}


def test_without_a_table_there_is_nothing(toy_lake: Lake) -> None:
    assert by_id(toy_lake, "0" * 32, [MODEL]) == []
    assert by_entity(toy_lake, MODEL, NIGHT, {}) == ([], 0)
    assert nearest(toy_lake, MODEL, NIGHT, {}) == []
    assert nights_around(toy_lake, MODEL, NIGHT) == (None, None)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("date", "2024-01-02", date(2024, 1, 2)),
        ("int64", "-7", -7),
        ("float64", "2.5", 2.5),
        ("boolean", "True", True),
        ("string", "a b", "a b"),
        ("timestamp", "2024-01-02T05:00", datetime(2024, 1, 2, 5, tzinfo=UTC)),
        ("timestamp", "2024-01-02T05:00+02:00", datetime(2024, 1, 2, 3, tzinfo=UTC)),
    ],
)
def test_texts_become_values_of_the_column(kind: str, text: str, value: Any) -> None:
    assert entity_value("x", kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text", "needs"),
    [
        ("date", "tomorrow", "a date such as 2013-07-01"),
        ("int32", str(2**31), "a whole number"),
        ("int64", "9" * 5000, "a whole number"),
        ("int64", "1.5", "a whole number"),
        ("float64", "x", "a number"),
        ("boolean", "1", "true or false"),
        ("timestamp", "noon", "an instant"),
    ],
)
def test_texts_that_are_no_value_say_what_is_needed(kind: str, text: str, needs: str) -> None:
    with pytest.raises(BadEntityValue, match=f"x is .*, needs {needs}"):
        entity_value("x", kind, text)
