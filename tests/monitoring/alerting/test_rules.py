"""Alert rules: when a night is late, and what each rule says by the facts as they are."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics, read_metrics
from monitoring.alerting.alarms import open_alarms
from monitoring.alerting.rules import due_at, duration_text, judge_alerts, last_night, lateness, model_nights, shortened
from monitoring.alerting.runs import Run, record_run
from tests import toy
from tests.monitoring.facts import publish_night

MODEL, DATASET, ZONE = "ride_minutes", "rides", "Europe/Berlin"
T = date(2024, 3, 5)
NOW = datetime(2024, 3, 6, 12, tzinfo=UTC)
LIVE = toy.DATASET_YAML.replace(
    "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}", "start: 2024-01-01"
)


# ---- lateness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("night", "deadline", "due"),
    [
        (date(2024, 3, 5), time(6), datetime(2024, 3, 6, 5, tzinfo=UTC)),
        (date(2024, 3, 30), time(6), datetime(2024, 3, 31, 4, tzinfo=UTC)),  # the clocks went forward that morning
        (
            date(2024, 3, 30),
            time(2, 30),
            datetime(2024, 3, 31, 1, 30, tzinfo=UTC),
        ),  # an hour that is skipped: 03:30 of summer time
        (
            date(2024, 10, 26),
            time(2, 30),
            datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        ),  # an hour that comes twice: the first
        (date(2024, 10, 26), time(6), datetime(2024, 10, 27, 5, tzinfo=UTC)),
    ],
)
def test_the_deadline_is_local_time_of_the_morning_after(night: date, deadline: time, due: datetime) -> None:
    assert due_at(night, deadline, ZONE) == due


def live(**given: Any) -> Any:
    known: dict[str, Any] = {
        "deadline": time(6),
        "time_zone": ZONE,
        "replay": False,
        "published": True,
        "scored_at": None,
        "running": False,
    }
    return lateness(T, **(known | {"now": NOW} | given))


@pytest.mark.parametrize(
    ("given", "late", "minutes", "says"),
    [
        ({"now": datetime(2024, 3, 6, 5, tzinfo=UTC)}, False, None, "is due at 2024-03-06 05:00 UTC"),
        (
            {"now": datetime(2024, 3, 6, 5, 1, tzinfo=UTC)},
            True,
            1,
            "is not scored, 1 minute after its deadline, 2024-03-06 05:00 UTC; no run is going on",
        ),
        (
            {"running": True},
            True,
            420,
            "is not scored, 7 h after its deadline, 2024-03-06 05:00 UTC; a run is going on",
        ),
        ({"published": False}, True, 420, "its features are not published"),
        ({"scored_at": datetime(2024, 3, 6, 5, tzinfo=UTC)}, False, None, "was scored before its deadline"),
        (
            {"scored_at": datetime(2024, 3, 6, 5, 45, tzinfo=UTC)},
            True,
            45,
            "was scored 45 minutes after its deadline, 2024-03-06 05:00 UTC",
        ),
        ({"has_champion": False}, False, None, "is not expected: the model has no champion"),
    ],
)
def test_a_live_night_is_late_by_the_clock(given: Any, late: bool, minutes: int | None, says: str) -> None:
    found = live(**given)
    assert (found.late, found.late_by) == (late, None if minutes is None else timedelta(minutes=minutes))
    assert found.reason.startswith("2024-03-05 ")
    assert says in found.reason


@pytest.mark.parametrize(
    ("given", "late", "says"),
    [
        ({}, True, "is not scored, though its features are published, and no run is going on"),
        ({"running": True}, False, "is being worked on"),
        ({"published": False}, False, "are not published yet"),
        ({"scored_at": NOW}, False, "is scored"),
        ({"has_champion": False}, False, "no champion"),
        (
            {"published": False, "now": datetime(2050, 1, 1, tzinfo=UTC)},
            False,
            "are not published yet",
        ),  # whatever the clock says
    ],
)
def test_a_replayed_night_is_late_when_nothing_works_on_it(given: Any, late: bool, says: str) -> None:
    found = live(replay=True, **given)
    assert (found.late, found.due_at, found.late_by) == (late, None, None)
    assert says in found.reason


def test_the_newest_night_that_is_over() -> None:
    assert last_night(datetime(2024, 3, 5, 22, 59, tzinfo=UTC), ZONE) == date(2024, 3, 4)
    assert last_night(datetime(2024, 3, 5, 23, tzinfo=UTC), ZONE) == date(2024, 3, 5)
    assert last_night(datetime(2024, 3, 31, 21, 59, tzinfo=UTC), ZONE) == date(2024, 3, 30)
    assert last_night(datetime(2024, 3, 31, 22, tzinfo=UTC), ZONE) == date(2024, 3, 31)


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0.4, "0 minutes"),
        (1, "1 minute"),
        (59, "59 minutes"),
        (156, "2 h 36 min"),
        (180, "3 h"),
        (60 * 76, "3 days 4 h"),
        (60 * 72, "3 days"),
    ],
)
def test_lengths_as_a_person_says_them(minutes: float, text: str) -> None:
    assert duration_text(timedelta(minutes=minutes)) == text


# ---- where models stand ----------------------------------------------------------------------------------------


@pytest.fixture
def lake(sql_lake: Lake) -> Lake:
    return sql_lake


def scored(lake: Lake, night: date, at: datetime = NOW) -> None:
    publish_night(lake, f"{MODEL}/predictions", night, at)


def ran(lake: Lake, kind: str, number: int, state: str = "failed", **given: Any) -> None:
    subject = DATASET if kind == "ingest" else MODEL
    start = NOW + timedelta(minutes=number - 600)
    key = (T - ONE_DAY * 20 + ONE_DAY * number).isoformat()
    run = Run(
        f"{subject}_{kind}",
        f"r{number}",
        subject,
        kind,  # type: ignore[arg-type]  # a value that the test varies
        given.pop("key", key),
        state,
        start,
        start if state != "running" else None,
        **given,
    )
    record_run(lake, run, at=start)


def test_a_model_stands_where_its_data_set_and_its_predictions_do(lake: Lake) -> None:
    night = model_nights(lake, [MODEL], now=NOW)[MODEL]
    assert (night.data_date, night.lateness) == (None, None)
    publish_night(lake, f"{DATASET}/features/vehicle_daily", T, NOW)
    night = model_nights(lake, [MODEL], now=NOW)[MODEL]
    assert night.lateness is not None
    assert "no champion" in night.lateness.reason
    scored(lake, T - ONE_DAY)
    night = model_nights(lake, [MODEL], now=NOW)[MODEL]
    assert (night.data_date, night.scored, night.scored_at) == (T, T - ONE_DAY, None)
    assert night.lateness is not None
    assert night.lateness.late
    scored(lake, T)
    night = model_nights(lake, [MODEL], now=NOW)[MODEL]
    assert night.lateness is not None
    assert (night.scored, night.scored_at, night.lateness.late) == (T, NOW, False)


@pytest.mark.parametrize(
    ("kind", "state", "minutes_ago", "late"),
    [
        ("score", "running", 5, False),
        ("ingest", "running", 5, False),
        ("monitor", "running", 5, True),
        ("score", "running", 60 * 25, True),  # lost, with whoever would have said how it ended
        ("score", "failed", 1, True),
        ("ingest", "success", 2, False),  # what it starts takes a moment to begin
        ("ingest", "success", 6, True),
    ],
)
def test_a_replayed_night_that_is_worked_on_is_not_late(
    lake: Lake, kind: Any, state: str, minutes_ago: int, late: bool
) -> None:
    publish_night(lake, f"{DATASET}/features/vehicle_daily", T, NOW)
    scored(lake, T - ONE_DAY)
    at = NOW - timedelta(minutes=minutes_ago)
    subject = DATASET if kind == "ingest" else MODEL
    record_run(lake, Run("d", "r", subject, kind, T.isoformat(), state, at, None if state == "running" else at), at=at)
    found = model_nights(lake, [MODEL], now=NOW)[MODEL].lateness
    assert found is not None
    assert found.late is late


# ---- rules -----------------------------------------------------------------------------------------------------


def accuracies(
    lake: Lake,
    values: list[float | None],
    *,
    first: date = T - 2 * ONE_DAY,
    check: str = "accuracy",
    column: str = "long_probability",
    rows: int = 100,
) -> None:
    """One judged night each, judged two nights later."""
    for number, value in enumerate(values):
        about = first + timedelta(days=number - len(values) + 1)
        status = "ok" if value is not None else "not_evaluated"
        row = Metric(
            MODEL,
            about,
            about + 2 * ONE_DAY,
            check,
            status,  # type: ignore[arg-type]  # a value that the test varies
            column,
            value=value,
            n=rows,
            reason=None if value is not None else "no label came",
        )
        publish_metrics(lake, MODEL, "performance", [row], Interval.of(row.data_date), run_id="r")


def judged(lake: Lake, night: date = T, **given: Any) -> dict[tuple[str, str], Any]:
    judge_alerts(lake, MODEL, night, run_id="r", now=NOW, **given)
    rows = read_metrics(lake, MODEL, "alerts", Interval.of(night)).to_pylist()
    return {(row["check"], row["column"]): row for row in rows}


@pytest.mark.parametrize(
    ("values", "status", "says"),
    [
        ([0.8, 0.7501], "ok", None),
        (
            [0.7, 0.65],
            "failing",
            "accuracy of long_probability fell from 0.700 on 2024-03-02 to 0.650 on 2024-03-03; 0.05 is too much",
        ),
        ([0.8, None, 0.7], "failing", "fell from 0.800 on 2024-03-01 to 0.700"),
        ([0.8, 0.9], "ok", None),
        ([0.8], "not_evaluated", "is the first night whose accuracy of long_probability is known (0.800)"),
        ([0.8, None], "not_evaluated", "no label came"),
    ],
)
def test_accuracy_may_not_fall_by_five_hundredths_from_night_to_night(
    lake: Lake, values: Any, status: str, says: str | None
) -> None:
    accuracies(lake, values)
    row = judged(lake)["accuracy_drop", "long_probability"]
    assert row["status"] == status
    assert (row["reason"] is None) if says is None else (says in row["reason"])
    assert (row["about_date"], row["data_date"], row["threshold"]) == (T - 2 * ONE_DAY, T, 0.05)


def test_the_drop_is_critical_and_clears_when_the_next_night_is_no_worse(lake: Lake) -> None:
    accuracies(lake, [0.8, 0.7])
    judged(lake)
    [alarm] = open_alarms(lake, [MODEL])
    assert (alarm.check, alarm.severity, alarm.fingerprint) == (
        "accuracy_drop",
        "critical",
        f"{MODEL}/accuracy_drop/long_probability/",
    )
    assert alarm.value == pytest.approx(0.1)
    accuracies(lake, [0.69], first=T - ONE_DAY)
    judged(lake, T + ONE_DAY)
    assert open_alarms(lake, [MODEL]) == []


def test_a_night_of_one_row_is_no_measure_of_a_drop(lake: Lake) -> None:
    accuracies(lake, [1.0, 0.0], rows=1)
    row = judged(lake)["accuracy_drop", "long_probability"]
    assert row["status"] == "not_evaluated"
    assert row["reason"] == ("2024-03-03 has 1 row with a label: two nights are compared when each has at least 2")
    assert open_alarms(lake, [MODEL]) == []


def test_an_earlier_night_is_not_compared_with_later_ones(lake: Lake) -> None:
    accuracies(lake, [0.9, 0.8, 0.7], first=T)  # judged up to T + 2
    assert judged(lake)["accuracy_drop", "long_probability"]["status"] == "not_evaluated"


def test_another_check_of_another_output(tmp_path: Path) -> None:
    rule = (
        "\nalerts: [{rule: accuracy_drop, name: error_jump, check: mae, outputs: [ride_minutes], by: 2, worse: higher,"
        " severity: warning}]\n"
    )
    lake = toy.toy_lake(tmp_path, model=toy.MODEL_YAML + rule)
    accuracies(lake, [5.0, 7.5], check="mae", column="ride_minutes")
    [(name, row)] = judged(lake).items()
    assert name == ("error_jump", "ride_minutes")
    assert (row["status"], row["value"]) == ("warning", 2.5)
    assert "mae of ride_minutes rose from 5.000" in row["reason"]


def test_where_nothing_is_decided_there_is_no_accuracy(tmp_path: Path) -> None:
    text = "\n".join(line for line in toy.MODEL_YAML.splitlines() if "long_probability" not in line)
    row = judged(toy.toy_lake(tmp_path, model=text))["accuracy_drop", ""]
    assert row["status"] == "not_evaluated"
    assert "no output of the model decides between outcomes (ride_minutes is a number)" in row["reason"]


def test_a_night_without_performance_says_so(lake: Lake) -> None:
    assert (
        "accuracy of long_probability was not measured by the night 2024-03-05"
        in judged(lake)["accuracy_drop", "long_probability"]["reason"]
    )


def test_two_failures_one_after_the_other(lake: Lake) -> None:
    ran(lake, "score", 1, "success")
    ran(lake, "score", 2)
    ran(lake, "score", 3, "running")
    ran(lake, "ingest", 1)
    ran(lake, "ingest", 2, "success")
    ran(lake, "ingest", 3)
    rows = judged(lake)
    assert {
        column: (rows["consecutive_failures", column]["status"], rows["consecutive_failures", column]["value"])
        for column in ("score", "ingest", "train")
    } == {
        "score": ("ok", 1.0),
        "ingest": ("ok", 1.0),
        "train": ("ok", 0.0),
    }
    ran(lake, "score", 4, failed_task="score", error="NoChampion: <script>\nTrain one.")
    row = judged(lake)["consecutive_failures", "score"]
    assert (row["status"], row["value"], row["threshold"], row["n"]) == ("failing", 2.0, 2.0, 3)
    assert (
        row["reason"]
        == "the last 2 runs of ride_minutes_score failed, the newest for 2024-02-18: score said NoChampion: <script>"
    )
    ran(lake, "score", 5, "success")
    assert judged(lake)["consecutive_failures", "score"]["status"] == "ok"


def test_failures_of_later_nights_say_nothing_of_an_earlier_one(lake: Lake) -> None:
    ran(lake, "score", 1, key=(T + ONE_DAY).isoformat())
    ran(lake, "score", 2, key=(T + 2 * ONE_DAY).isoformat())
    assert judged(lake)["consecutive_failures", "score"]["value"] == 0.0
    assert judged(lake, T + 2 * ONE_DAY)["consecutive_failures", "score"]["value"] == 2.0


def test_a_late_replayed_night_is_a_warning_until_it_is_scored(lake: Lake) -> None:
    publish_night(lake, f"{DATASET}/features/vehicle_daily", T, NOW)
    scored(lake, T - ONE_DAY)
    row = judged(lake)["late", ""]
    assert (row["status"], row["value"]) == ("warning", None)
    scored(lake, T)
    assert judged(lake)["late", ""]["status"] == "ok"


def test_a_late_live_night_stays_late_and_the_same_fact_is_one_row(tmp_path: Path) -> None:
    settings = toy.write_catalog(tmp_path, dataset=LIVE)
    lake = Lake(settings, load_catalog(settings))
    publish_night(lake, f"{DATASET}/features/vehicle_daily", T, NOW)
    scored(lake, T - ONE_DAY)
    first = judge_alerts(lake, MODEL, T, run_id="r", now=NOW)
    again = judge_alerts(lake, MODEL, T, run_id="r2", now=NOW + timedelta(hours=1))
    assert (first.committed, again.committed) == (1, 0)
    assert any(
        "late: 2024-03-05 was not scored at its deadline, 2024-03-06 05:00 UTC" in text
        for text in again.details["alarms"]
    )
    scored(lake, T, at=datetime(2024, 3, 6, 14, tzinfo=UTC))
    row = judged(lake)["late", ""]
    assert (row["status"], row["value"]) == ("warning", 540.0)
    assert "was scored 9 h after its deadline" in row["reason"]


def test_long_errors_are_shown_by_their_first_line() -> None:
    assert shortened("x" * 400) == "x" * 299 + "…"
    assert shortened(" a  b \nc") == "a b"
    assert shortened(None) == ""
