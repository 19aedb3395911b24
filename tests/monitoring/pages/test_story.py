"""The three sentences: right numbers in the feature's unit, and what is not known is said, never left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from features.labels import is_mature
from lake.lake import Lake
from lake.metric_queries import read_metrics_of
from lake.metrics import Metric, Status, publish_metrics, read_metrics
from lake.signature import sign
from lake.tables import valid_table
from monitoring.alerting.alarms import open_alarms
from monitoring.drift import drift
from monitoring.pages.story import drift_story, fired_by_check, known_from, times_limit
from monitoring.performance import performance, segment_names
from monitoring.wording import figures, named, unit_of
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL

MINUTES = "vehicle_daily__minutes_7d"
RIDES = "vehicle_daily__rides_7d"


def rows_of(lake: Lake, group: str, night: date) -> dict[tuple[str, str], dict]:
    rows = read_metrics(lake, MODEL, group, Interval.of(night)).to_pylist()
    return {(row["check"], row["column"]): row for row in rows if not row["segment"]}


def planted(lake: Lake, **values) -> tuple[str, str, str]:
    """The story of NIGHT with those features, scored and measured."""
    scenario.decide_gate(lake)
    scenario.with_features(lake, NIGHT, **values)
    scenario.score_all(lake)
    drift(lake, MODEL, Interval.of(NIGHT), run_id="t")
    return drift_story(lake, MODEL, NIGHT)


def test_planted_drift_is_told_in_the_features_unit(fresh: Lake):
    moved, extent, followed = planted(fresh, minutes_7d=lambda old: old + 400)
    rows = rows_of(fresh, "drift", NIGHT)
    now, before, test = (
        rows["mean", MINUTES]["value"],
        rows["reference_mean", MINUTES]["value"],
        rows["drift_psi", MINUTES],
    )
    numbers = f"(PSI {test['value']:.3g}, limit {test['threshold']:.3g})"
    assert (
        moved
        == f"minutes_7d of vehicle_daily moved most: on average {now:.3g} minutes, {before:.3g} in training {numbers}."
    )
    assert extent == "1 of 2 features lies beyond its limit, 30 % are needed for an alarm, so this is an alarm."
    assert followed.startswith("Predictions followed: long_probability on average 1, ")
    assert followed.endswith(f"its performance is known from {NIGHT + 2 * ONE_DAY} on.")


def test_performance_stands_beside_what_was_promised(night: Lake):
    judge = known_from(night, MODEL, NIGHT)
    assert is_mature(night, MODEL, NIGHT, as_of=judge)
    assert not is_mature(night, MODEL, NIGHT, as_of=judge - ONE_DAY)
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    performance(night, MODEL, Interval.of(judge), run_id="t")
    rows = rows_of(night, "performance", judge)
    own, base, ratio = (rows[check, "ride_minutes"]["value"] for check in ("mae", "mae_baseline", "error_ratio"))
    said = drift_story(night, MODEL, NIGHT)[2]
    verdict = (
        "held"
        if rows["error_ratio", "ride_minutes"]["status"] == rows["error_ratio", "long_probability"]["status"] == "ok"
        else "got worse"
    )
    assert ratio == pytest.approx(own / base, abs=1e-5)
    assert (
        f"performance {verdict}: mae of ride_minutes was {own:.3g} minutes against {0.8 * base:.3g} promised and "
        f"{0.88 * base:.3g} allowed" in said
    )
    assert "brier of long_probability was" in said
    scenario.decide_gate(night, 1, ratio=0.01, as_of=scenario.AS_OF + ONE_DAY)
    performance(night, MODEL, Interval.of(judge), run_id="t")
    assert "performance got worse" in drift_story(night, MODEL, NIGHT)[2]


def test_what_is_missing_is_said(fresh: Lake):
    assert drift_story(fresh, MODEL, NIGHT) == (
        f"What moved in the night of {NIGHT} is not known: it was not scored.",
        "Whether an alarm was due is not known.",
        "Nothing was predicted, so there is no performance to be known.",
    )
    scenario.score_all(fresh)
    moved, extent, followed = drift_story(fresh, MODEL, NIGHT)
    assert moved.endswith("is not known: its drift was not measured yet.")
    assert extent == "Whether an alarm was due is not known."
    assert followed.startswith("Whether predictions moved is not known; its performance is known from")
    performance(fresh, MODEL, Interval.of(known_from(fresh, MODEL, NIGHT)), run_id="t")
    assert "performance was not judged: mae of ride_minutes was" in drift_story(fresh, MODEL, NIGHT)[2]
    assert "the gate left no ratio to compare with for version 1" in drift_story(fresh, MODEL, NIGHT)[2]


def test_columns_without_values_and_rows_without_labels(fresh: Lake):
    judge = known_from(fresh, MODEL, NIGHT)
    outcomes = valid_table(fresh.settings, fresh.dataset("rides"), "outcomes")
    nights = Interval.closed(NIGHT, judge)
    rows = outcomes.read(nights)
    blank = rows.set_column(rows.column_names.index("minutes"), "minutes", pa.nulls(rows.num_rows, pa.float64())).cast(
        rows.schema
    )
    toy.publish_rows(fresh, outcomes, blank, nights)
    moved, extent, _ = planted(fresh, minutes_7d=pa.nulls(6))
    assert moved.startswith(("rides_7d of vehicle_daily", "No feature"))
    assert "minutes_7d of vehicle_daily could not be judged (every value is null)" in extent
    assert "minutes_7d of vehicle_daily is null in 100 % of rows, limit 7.5 %" in extent
    performance(fresh, MODEL, Interval.of(judge), run_id="t")
    assert (
        "performance was not judged: mae of ride_minutes is not known, no label came for any of the 40 rows"
        in drift_story(fresh, MODEL, NIGHT)[2]
    )


def test_an_empty_night_a_lost_profile_and_one_without_means_say_why(tmp_path, promoted: Lake):
    lake = scenario.copy_of(promoted, tmp_path)
    bookings = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    toy.publish_rows(lake, bookings, bookings.schema.empty_table(), Interval.of(NIGHT))
    scenario.score_all(lake)
    drift(lake, MODEL, Interval.of(NIGHT), run_id="t")
    moved, extent, followed = drift_story(lake, MODEL, NIGHT)
    assert moved == "What moved is not known: nothing was scored in this night."
    assert extent.startswith(
        "Whether an alarm was due is not known: nothing was scored in this night; 0 rows were scored; nights of the "
        "training window allow"
    )
    assert followed.startswith("Whether predictions moved is not known: nothing was scored in this night")
    path = lake.settings.artifacts / MODEL / lake.ledger(MODEL).read().newest.artifact_digest / "reference.json"
    profile = json.loads(path.read_text())
    profile["columns"] = {
        name: {k: v for k, v in column.items() if not k.startswith("mean")}
        for name, column in profile["columns"].items()
    }
    path.write_text(json.dumps(profile | {"format": 1}))
    sign(lake.settings, path.parent, MODEL)
    other = NIGHT + ONE_DAY
    drift(lake, MODEL, Interval.of(other), run_id="t")
    assert "in training not known, version 1 was stored without means (PSI" in drift_story(lake, MODEL, other)[0]
    path.unlink()
    drift(lake, MODEL, Interval.of(other), run_id="t")
    assert (
        drift_story(lake, MODEL, other)[0]
        == "What moved is not known: version 1 has no reference.json beside its files; register it again."
    )


def test_a_category_has_no_mean(night: Lake):
    value: dict[str, Any] = {"column": RIDES, "value": 0.5, "threshold": 0.2, "status": "warning", "n": 40}
    rows = [
        Metric(MODEL, NIGHT, NIGHT, "drift_psi", **value),
        Metric(MODEL, NIGHT, NIGHT, "drift_share", "ok", value=0.1, threshold=0.3, n=9),
    ]
    publish_metrics(night, MODEL, "drift", rows, Interval.of(NIGHT), run_id="t")
    moved, extent, followed = drift_story(night, MODEL, NIGHT)
    assert moved == "rides_7d of vehicle_daily moved most: the shares of its values changed (PSI 0.5, limit 0.2)."
    assert extent == "1 of 9 features lies beyond its limit, 30 % are needed for an alarm, so this is no alarm."
    assert followed.startswith("Whether predictions followed is not known: their drift was not measured; ")


def plant_history(lake: Lake) -> None:
    """Alarms on NIGHT-9, NIGHT-3 and NIGHT, NIGHT-5 not evaluated, the others fine."""
    for back in range(12):
        day = NIGHT - timedelta(days=back)
        status: Status = "warning" if back in (0, 3, 9) else "not_evaluated" if back == 5 else "ok"
        row = Metric(
            MODEL,
            day,
            day,
            "drift_psi",
            status,
            column=MINUTES,
            value=0.5,
            threshold=0.2,
            reason="so" if back == 5 else None,
        )
        publish_metrics(lake, MODEL, "drift", [row], Interval.of(day), run_id="t")


def test_how_often_an_alarm_fired(toy_lake: Lake):
    minutes = ("drift_psi", MINUTES)
    assert fired_by_check(toy_lake, MODEL, NIGHT, None) == {}, "no table yet"
    plant_history(toy_lake)
    assert fired_by_check(toy_lake, MODEL, NIGHT, None) == {minutes: (3, 11)}
    assert fired_by_check(toy_lake, MODEL, NIGHT, None, nights=3) == {minutes: (1, 3)}
    assert fired_by_check(toy_lake, MODEL, NIGHT - ONE_DAY, None, nights=5) == {minutes: (1, 4)}


def test_alarms_of_another_version_are_not_counted(toy_lake: Lake):
    """An alarm's streak begins anew with a version: how often it fired may not contradict since when it is open."""
    for back, version in ((3, 1), (2, 1), (1, 2), (0, 2)):
        day = NIGHT - timedelta(days=back)
        row = Metric(
            MODEL, day, day, "drift_psi", "warning", MINUTES, value=0.5, role="champion", model_version=version
        )
        publish_metrics(toy_lake, MODEL, "drift", [row], Interval.of(day), run_id="t")
    [alarm] = open_alarms(toy_lake, [MODEL])
    assert fired_by_check(toy_lake, MODEL, NIGHT, 2)["drift_psi", MINUTES] == (alarm.nights, 2) == (2, 2)
    assert fired_by_check(toy_lake, MODEL, NIGHT, 1)["drift_psi", MINUTES] == (2, 2)


@pytest.fixture
def postgres_lake(toy_lake: Lake, postgres_url: str) -> Iterator[Lake]:
    """A lake whose projections lie in a Postgres without tables."""

    def clear() -> None:
        engine = sa.create_engine(postgres_url)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        engine.dispose()

    clear()
    lake = Lake(toy_lake.settings.model_copy(update={"sql_url": postgres_url}), toy_lake.catalog)
    yield lake
    lake.engine.dispose()
    clear()


def test_postgres_tells_the_same(postgres_lake: Lake):
    plant_history(postgres_lake)
    assert fired_by_check(postgres_lake, MODEL, NIGHT, None) == {("drift_psi", MINUTES): (3, 11)}
    assert drift_story(postgres_lake, MODEL, NIGHT)[0].startswith(
        "minutes_7d of vehicle_daily moved most: the shares of its values changed"
    )


def test_hostile_segments_fit_into_the_index_of_postgres(postgres_lake: Lake):
    names = segment_names("carrier", ["x" * 10_000, "a\x00b", "<script>", None, "(null)"])
    rows = [
        Metric(MODEL, NIGHT, NIGHT, "mae", "ok", column="ride_minutes", segment=name, value=1.0, n=1) for name in names
    ]
    publish_metrics(postgres_lake, MODEL, "performance", rows, Interval.of(NIGHT), run_id="t")
    found = read_metrics_of(postgres_lake, [MODEL], Interval.of(NIGHT), segments=True)
    assert {row["segment"] for row in found} == set(names)


def test_words(toy_lake: Lake):
    assert [figures(x) for x in (18.32, 0.4149, 12_345.6, 0.0, -3.0, 1e-9, 999.6)] == [
        "18.3",
        "0.415",
        "12,346",
        "0",
        "-3",
        "1e-09",
        "1,000",
    ]
    assert (named(MINUTES), named("ride_minutes")) == ("minutes_7d of vehicle_daily", "ride_minutes")
    entry = toy_lake.model(MODEL)
    assert [
        unit_of(toy_lake, entry, name) for name in (MINUTES, RIDES, "ride_minutes_lower", "long_probability", "gone")
    ] == ["minutes", "", "minutes", "", ""]
    assert times_limit({"value": 0.5, "threshold": 0.25}) == 2.0
    assert times_limit({"value": 0.5, "threshold": 0.0}) == np.inf
    assert times_limit({"value": 0.0, "threshold": 0.0}) == 0.0
    assert times_limit({"value": None, "threshold": 0.1}) is None


def test_a_night_that_was_scored_and_measured_tells_the_same_each_time(night: Lake):
    drift(night, MODEL, SCORED, run_id="t")
    assert drift_story(night, MODEL, NIGHT) == drift_story(night, MODEL, NIGHT)
    assert not any("not known" in sentence for sentence in drift_story(night, MODEL, NIGHT)[:2])
