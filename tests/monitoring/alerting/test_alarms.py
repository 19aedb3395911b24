"""Open alarms: which rows alarm, how long they have, and what acknowledging and silencing do to them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from monitoring.alerting.alarms import (
    AlarmNotOpen,
    BadSilence,
    Fingerprint,
    ReasonMissing,
    acknowledge,
    fingerprint_parts,
    fingerprint_text,
    open_alarms,
    silence,
    unsilence,
)
from tests import toy

MODEL = "ride_minutes"
FIRST = date(2024, 3, 1)
BY: Mapping[str, Any] = {"by": "ada", "role": "operator", "reason": "known"}


@pytest.fixture
def lake(sql_lake: Lake) -> Lake:
    return sql_lake


def row(
    night: date,
    status: str,
    check: str = "drift_psi",
    column: str = "x",
    segment: str = "",
    judged: int = 0,
    subject: str = MODEL,
    role: str | None = None,
    version: int | None = None,
) -> Metric:
    return Metric(
        subject,
        night - judged * ONE_DAY,
        night,
        check,
        status,  # type: ignore[arg-type]  # a value that the test varies
        column,
        segment,
        value=0.4,
        threshold=0.3,
        reason=f"{check} is {status}",
        role=role,
        model_version=version,
    )


def nights(lake: Lake, statuses: str, group: str = "drift", start: date = FIRST, **named: Any) -> date:
    """One night a letter: o(k), w(arning), f(ailing), n(ot evaluated), - no row. Returns the last."""
    words = {"o": "ok", "w": "warning", "f": "failing", "n": "not_evaluated"}
    subject = named.get("subject", MODEL)
    for number, letter in enumerate(statuses):
        day = start + timedelta(days=number)
        rows = [row(day, words[letter], **named)] if letter in words else []
        publish_metrics(lake, subject, group, rows, Interval.of(day), run_id="r")
    return start + timedelta(days=len(statuses) - 1)


def only(lake: Lake, **named: Any) -> Any:
    [alarm] = open_alarms(lake, [MODEL], **named)
    return alarm


def test_without_metrics_there_are_no_alarms(lake: Lake) -> None:
    assert open_alarms(lake, [MODEL, "rides"]) == []
    assert open_alarms(lake, []) == []


@pytest.mark.parametrize(
    ("statuses", "since", "count", "severity"),
    [
        ("w", 0, 1, "warning"),
        ("wow", 2, 1, "warning"),
        ("owwf", 1, 3, "critical"),
        ("owwo", None, None, None),
        ("ownw", 1, 2, "warning"),  # a night that could not be judged neither counts nor ends it
        ("ow-w", 1, 2, "warning"),
        ("wn", None, None, None),
        ("w-", None, None, None),  # an empty night is the newest, too
    ],
)
def test_a_streak_lasts_until_a_night_is_well(
    lake: Lake, statuses: str, since: int | None, count: int, severity: str
) -> None:
    last = nights(lake, statuses)
    if since is None:
        assert open_alarms(lake, [MODEL]) == []
        return
    alarm = only(lake)
    assert (alarm.since, alarm.nights, alarm.severity) == (FIRST + timedelta(days=since), count, severity)
    assert (alarm.about_date, alarm.data_date, alarm.value, alarm.threshold, alarm.acknowledged) == (
        last,
        last,
        0.4,
        0.3,
        None,
    )
    assert alarm.reason.startswith("drift_psi is ")


def test_each_group_has_a_newest_night_of_its_own(lake: Lake) -> None:
    nights(lake, "www")
    nights(lake, "w", group="performance", check="error_ratio", judged=2, start=FIRST + ONE_DAY)
    nights(lake, "f", group="quality", check="bad_share", subject="rides")
    found = open_alarms(lake, [MODEL, "rides"])
    assert [(alarm.subject, alarm.check) for alarm in found] == [
        ("rides", "bad_share"),
        (MODEL, "drift_psi"),
        (MODEL, "error_ratio"),
    ]
    assert found[2].about_date == FIRST - ONE_DAY
    assert [alarm.subject for alarm in open_alarms(lake, ["rides"])] == ["rides"]


def test_as_it_stood_after_an_earlier_night(lake: Lake) -> None:
    nights(lake, "wwo")
    assert open_alarms(lake, [MODEL]) == []
    alarm = only(lake, as_of=FIRST + ONE_DAY)
    assert (alarm.nights, alarm.about_date) == (2, FIRST + ONE_DAY)
    assert open_alarms(lake, [MODEL], as_of=FIRST - ONE_DAY) == []


def test_two_nights_judged_by_one_are_one_alarm_of_the_later(lake: Lake) -> None:
    both = [row(FIRST, "failing", judged=2), row(FIRST, "warning", judged=1)]
    publish_metrics(lake, MODEL, "performance", both, Interval.of(FIRST), run_id="r")
    alarm = only(lake)
    assert (alarm.about_date, alarm.severity, alarm.nights) == (FIRST - ONE_DAY, "warning", 2)


def test_an_acknowledgement_holds_until_the_alarm_clears(lake: Lake) -> None:
    nights(lake, "ow")
    action = acknowledge(lake, only(lake).fingerprint, **BY)
    assert only(lake).acknowledged == action
    assert (action.by, action.reason, action.action) == ("ada", "known", "acknowledge")
    nights(lake, "nwf", start=FIRST + 2 * ONE_DAY)
    assert only(lake).acknowledged == action
    nights(lake, "ow", start=FIRST + 5 * ONE_DAY)
    assert only(lake).acknowledged is None


def test_other_alarms_are_not_acknowledged_with_it(lake: Lake) -> None:
    rows = [row(FIRST, "warning", segment=segment) for segment in ("", "depot=a/b", "depot=%2F")]
    publish_metrics(lake, MODEL, "performance", rows, Interval.of(FIRST), run_id="r")
    acknowledge(lake, f"{MODEL}/drift_psi/x/depot=a/b", **BY)
    assert {alarm.segment: alarm.acknowledged is not None for alarm in open_alarms(lake, [MODEL])} == {
        "": False,
        "depot=%2F": False,
        "depot=a/b": True,
    }


def test_a_silence_of_a_replay_ends_with_its_data_date(lake: Lake) -> None:
    nights(lake, "w")
    until = FIRST + ONE_DAY
    silence(lake, only(lake).fingerprint, until=until, **BY)
    assert only(lake).silenced_until == until
    nights(lake, "w", start=FIRST + ONE_DAY)
    assert only(lake).silenced_until == until
    nights(lake, "w", start=FIRST + 2 * ONE_DAY)
    assert only(lake).silenced_until is None


def test_a_silence_is_ended_or_replaced_by_the_latest_word(lake: Lake) -> None:
    nights(lake, "w")
    name = only(lake).fingerprint
    at = datetime(2026, 1, 1, tzinfo=UTC)
    silence(lake, name, until=FIRST + 5 * ONE_DAY, now=at, **BY)
    silence(lake, name, until=FIRST + 2 * ONE_DAY, now=at + timedelta(minutes=1), **BY)
    assert only(lake).silenced_until == FIRST + 2 * ONE_DAY
    unsilence(lake, name, now=at + timedelta(minutes=2), **BY)
    assert only(lake).silenced_until is None
    with pytest.raises(AlarmNotOpen, match="is not silenced"):
        unsilence(lake, name, **BY)


def test_a_live_data_set_s_silence_goes_by_the_calendar_of_its_zone(tmp_path: Path) -> None:
    live = toy.DATASET_YAML.replace(
        "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}", "start: 2024-01-01"
    )
    settings = toy.write_catalog(tmp_path, dataset=live)
    lake = Lake(settings, load_catalog(settings))
    nights(lake, "w")
    evening = datetime(2024, 3, 4, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
    with pytest.raises(BadSilence, match="today is 2024-03-04"):
        silence(lake, only(lake).fingerprint, until=date(2024, 3, 3), now=evening, **BY)
    silence(lake, only(lake).fingerprint, until=date(2024, 3, 4), now=evening, **BY)
    assert only(lake, now=evening).silenced_until == date(2024, 3, 4)
    assert only(lake, now=evening + timedelta(hours=1)).silenced_until is None


def test_what_nobody_may_do(lake: Lake) -> None:
    nights(lake, "w")
    name = only(lake).fingerprint
    with pytest.raises(AlarmNotOpen, match="is open: it cleared, or never was"):
        acknowledge(lake, f"{MODEL}/drift_psi/y/", **BY)
    with pytest.raises(AlarmNotOpen, match="names no alarm"):
        acknowledge(lake, "<script>", **BY)
    for reason in ("  \n", "x" * 1_001):
        with pytest.raises(ReasonMissing, match="Say why"):
            acknowledge(lake, name, **{**BY, "reason": reason})
    for until in (FIRST - ONE_DAY, FIRST + 400 * ONE_DAY):
        with pytest.raises(BadSilence, match="the newest data date is 2024-03-01"):
            silence(lake, name, until=until, **BY)
    assert only(lake).acknowledged is None


@pytest.mark.parametrize(
    "parts",
    [
        ("m", "c", "", ""),
        ("m", "c", "a/b%2F%", "s=/x"),
        ("m", "c", "x", "carrier=<script>\n'"),
        ("m", "c", "x:y:3", "s=:", "champion", 12),
        ("m", "c", "", "", "challenger", None),
    ],
)
def test_a_fingerprint_is_taken_apart_as_it_was_put_together(parts: Any) -> None:
    key = Fingerprint(*parts)
    assert fingerprint_parts(fingerprint_text(key)) == key


def test_hostile_names_are_values_not_sql(lake: Lake) -> None:
    nights(lake, "w", column="'; DROP TABLE metrics; --", segment="carrier=<script>")
    alarm = only(lake)
    acknowledge(lake, alarm.fingerprint, **BY)
    assert only(lake).acknowledged is not None


# ---- role and version ------------------------------------------------------------------------------------------


def test_another_version_is_another_alarm_with_a_streak_of_its_own(lake: Lake) -> None:
    last = nights(lake, "ww", role="champion", version=1)
    acknowledge(lake, only(lake).fingerprint, **BY)
    assert only(lake).acknowledged is not None
    nights(lake, "w", start=last + ONE_DAY, role="champion", version=2)
    alarm = only(lake)
    assert (alarm.model_version, alarm.since, alarm.nights) == (2, last + ONE_DAY, 1)
    assert alarm.acknowledged is None


def test_what_is_said_of_a_challenger_is_not_said_of_the_champion(lake: Lake) -> None:
    rows = [row(FIRST, "warning", role=role, version=version) for role, version in (("champion", 1), ("challenger", 2))]
    publish_metrics(lake, MODEL, "drift", rows, Interval.of(FIRST), run_id="r")
    acknowledge(lake, f"{MODEL}:challenger:2/drift_psi/x/", **BY)
    assert {a.role: a.acknowledged is not None for a in open_alarms(lake, [MODEL])} == {
        "champion": False,
        "challenger": True,
    }


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        (Fingerprint("m", "c", "x"), True),  # before roles were recorded: whatever the version
        (Fingerprint("m", "c", "x", "", "champion", 3), True),
        (Fingerprint("m", "c", "x", "", "champion", 2), False),
        (Fingerprint("m", "c", "x", "", "challenger", 3), False),
        (Fingerprint("m", "c", "y"), False),
    ],
)
def test_what_holds_for_the_champions_alarm(said: Fingerprint, holds: bool) -> None:
    assert said.covers(Fingerprint("m", "c", "x", "", "champion", 3)) is holds


def test_what_was_said_before_roles_were_recorded_is_not_meant_of_a_challenger() -> None:
    assert not Fingerprint("m", "c").covers(Fingerprint("m", "c", "", "", "challenger", 3))


@pytest.mark.parametrize("text", ["m:champion/c//", "m:champion:x/c//", ":champion:1/c//", "m:a:1:2/c//"])
def test_a_text_that_is_no_fingerprint(text: str) -> None:
    with pytest.raises(AlarmNotOpen, match="names no alarm"):
        fingerprint_parts(text)
