"""Performance of mature nights: right numbers, from labels that may be relied on, and a reason where there are none."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from features.labels import is_mature, labels
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.metrics import metrics_table, read_metrics
from lake.tables import valid_table
from monitoring.drift import drift
from monitoring.performance import (
    gate_ratios,
    maturing,
    performance,
    segment_names,
    segment_values,
)
from monitoring.retraining_requests import read_history
from serving.predictions import predictions_table
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL

ABOUT = NIGHT - 2 * ONE_DAY


def rows_of(lake: Lake, night: date = NIGHT) -> dict[tuple[str, str], dict]:
    return {
        (row["check"], row["column"]): row
        for row in read_metrics(lake, MODEL, "performance", Interval.of(night)).to_pylist()
        if not row["segment"]
    }


def segments_of(lake: Lake, night: date = NIGHT) -> dict[tuple[str, str, str], dict]:
    rows = read_metrics(lake, MODEL, "performance", Interval.of(night)).to_pylist()
    return {(row["check"], row["column"], row["segment"]): row for row in rows if row["segment"]}


def republish_outcomes(lake: Lake, interval: Interval, change) -> None:
    """Put other outcomes into nights of the interval."""
    table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    toy.publish_rows(lake, table, change(table.read(interval)), interval)


def test_each_night_is_judged_once_also_where_the_clocks_change(promoted: Lake):
    year = Interval.closed(date(2024, 1, 10), date(2024, 12, 20))
    judged = [day for night in year for day in maturing(promoted, MODEL, night)]
    assert judged == [date(2024, 1, 8) + timedelta(days=i) for i in range(len(judged))]
    assert all(
        is_mature(promoted, MODEL, day, as_of=night) for night in year for day in maturing(promoted, MODEL, night)
    )
    assert maturing(promoted, MODEL, NIGHT) == [ABOUT]


def test_numbers_equal_a_plain_computation(night: Lake):
    result = performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    assert result.details["judged"] == {"2024-02-15": ["2024-02-13"]}
    rows = rows_of(night)
    assert {row["about_date"] for row in rows.values()} == {ABOUT}
    assert {row["status"] for key, row in rows.items() if key[0] != "error_ratio"} <= {"ok", "warning"}
    predicted = predictions_table(night.settings, night.model(MODEL)).read([ABOUT]).to_pandas()
    truth = labels(night, MODEL, Interval.of(ABOUT), as_of=NIGHT).to_pandas()
    joined = predicted.merge(truth, on=["event_date", "ride"])
    known = joined[joined["label"].notna()]
    assert 0 < len(known) < len(joined), "the toy has labels that never come"
    share = rows["label_share", ""]
    assert share["value"] == pytest.approx(len(known) / len(joined), abs=1e-6)
    assert share["reason"] == f"the label of {len(joined) - len(known)} of {len(joined)} rows never came"
    error = known["ride_minutes"] - known["label"]
    event = known["label"] > 30
    chance = known["long_probability"]
    expected = {
        ("mae", "ride_minutes"): error.abs().mean(),
        ("rmse", "ride_minutes"): np.sqrt((error**2).mean()),
        ("bias", "ride_minutes"): error.mean(),
        ("interval_coverage", "ride_minutes"): (
            (known["label"] >= known["ride_minutes_lower"]) & (known["label"] <= known["ride_minutes_upper"])
        ).mean(),
        ("brier", "long_probability"): ((chance - event) ** 2).mean(),
        ("log_loss", "long_probability"): -np.log(np.where(event, chance, 1 - chance)).mean(),
        ("auc", "long_probability"): roc_auc_score(event, chance),
        ("accuracy", "long_probability"): ((chance >= 0.5) == event).mean(),
    }
    for key, value in expected.items():
        assert rows[key]["value"] == pytest.approx(value, abs=1e-5), key
        assert rows[key]["n"] == len(known)
    mae = rows["mae", "ride_minutes"]
    assert mae["lower"] < mae["value"] < mae["upper"]


def test_segments_equal_a_plain_computation_and_add_up_to_the_night(night: Lake):
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    whole, rows = rows_of(night), segments_of(night)
    predicted = predictions_table(night.settings, night.model(MODEL)).read([ABOUT]).to_pandas()
    truth = labels(night, MODEL, Interval.of(ABOUT), as_of=NIGHT).to_pandas()
    booked = valid_table(night.settings, night.dataset("rides"), "bookings").read([ABOUT]).to_pandas()
    joined = predicted.merge(truth, on=["event_date", "ride"]).merge(booked, on=["event_date", "ride"])
    joined = joined[joined["label"].notna()]
    joined["mae"] = (joined["ride_minutes"] - joined["label"]).abs()
    joined["brier"] = (joined["long_probability"] - (joined["label"] > 30)) ** 2
    assert {segment for _, _, segment in rows} == {f"depot={name}" for name in toy.DEPOTS}
    for check, column in (("mae", "ride_minutes"), ("brier", "long_probability")):
        for depot, part in joined.groupby("depot"):
            row = rows[check, column, f"depot={depot}"]
            half = 1.959964 * part[check].std(ddof=1) / np.sqrt(len(part))
            assert (row["value"], row["n"]) == (pytest.approx(part[check].mean(), abs=1e-5), len(part))
            assert (row["lower"], row["upper"]) == (
                pytest.approx(part[check].mean() - half, abs=1e-4),
                pytest.approx(part[check].mean() + half, abs=1e-4),
            )
            assert (row["status"], row["threshold"]) == ("ok", None)
        for found in (check, f"{check}_baseline"):
            parts = [row for (name, _, _), row in rows.items() if name == found]
            assert sum(row["value"] * row["n"] for row in parts) == pytest.approx(
                whole[found, column]["value"] * len(joined), rel=1e-4
            )
    inputs = night.publications.current(metrics_table(night.settings, MODEL, "performance"))[NIGHT].inputs
    assert (f"{MODEL}/predictions", ABOUT) in {(item.table, item.data_date) for item in inputs}
    assert ("rides/valid/bookings", ABOUT) in {(item.table, item.data_date) for item in inputs}


def test_segments_are_those_of_the_night_that_was_scored(night: Lake):
    """The booking says another depot after the night was scored: what is judged is what was scored."""
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    before = segments_of(night)
    table = valid_table(night.settings, night.dataset("rides"), "bookings")
    rows = table.read([ABOUT])
    toy.publish_rows(
        night,
        table,
        rows.set_column(rows.column_names.index("depot"), "depot", pa.array(["west"] * rows.num_rows)),
        Interval.of(ABOUT),
    )
    assert performance(night, MODEL, Interval.of(NIGHT), run_id="again").committed == 0
    assert segments_of(night) == before


def with_segments(lake: Lake, columns: str) -> Lake:
    path = lake.settings.catalogs[0] / "models" / f"{MODEL}.yaml"
    path.write_text(path.read_text().replace("segments: {columns: [depot]", f"segments: {{columns: [{columns}]"))
    return Lake(lake.settings, load_catalog(lake.settings))


def test_entity_and_feature_columns_make_segments_and_the_small_ones_are_counted_together(night: Lake):
    lake = with_segments(night, "ride, depot, vehicle_daily__rides_7d")
    published = lake.publications.current(predictions_table(lake.settings, lake.model(MODEL)))[ABOUT]
    values, inputs = segment_values(lake, lake.model(MODEL), lake.dataset("rides"), published)
    assert values["ride"].to_pylist() == [str(number) for number in range(1, scenario.PER_DAY + 1)], (
        "by key, as the outcomes are"
    )
    assert {item.table for item in inputs} == {"rides/valid/bookings", "rides/features/vehicle_daily"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monitoring.performance.LARGEST_SEGMENTS", 5)
        performance(lake, MODEL, Interval.of(NIGHT), run_id="t")
    rows = segments_of(lake)
    named = [row for (check, _, segment), row in rows.items() if check == "mae" and segment.startswith("ride=")]
    assert len(named) == 6
    other = rows["mae", "ride_minutes", "ride=(other)"]
    assert other["n"] == rows_of(lake)["mae", "ride_minutes"]["n"] - 5
    assert all(row["lower"] is None and row["n"] == 1 for row in named if row["segment"] != "ride=(other)"), (
        "one row has no interval"
    )
    assert any(segment.startswith("vehicle_daily__rides_7d=") for _, _, segment in rows)
    assert performance(lake, MODEL, SCORED, run_id="bulk").committed == len(SCORED)
    assert performance(lake, MODEL, Interval.of(NIGHT), run_id="nightly").committed == 0


def test_a_segment_without_a_label_says_so_and_a_model_without_segments_has_none(night: Lake):
    def unlabelled(rows: pa.Table) -> pa.Table:
        first = pc.equal(rows["ride"], 1)
        return rows.set_column(
            rows.column_names.index("minutes"), "minutes", pc.if_else(first, None, rows["minutes"])
        ).cast(rows.schema)

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), unlabelled)
    lake = with_segments(night, "ride")
    performance(lake, MODEL, Interval.of(NIGHT), run_id="t")
    row = segments_of(lake)["mae", "ride_minutes", "ride=1"]
    assert (row["status"], row["value"], row["n"], row["reason"]) == (
        "not_evaluated",
        None,
        0,
        "no label came for any of its 1 rows",
    )
    path = lake.settings.catalogs[0] / "models" / f"{MODEL}.yaml"
    path.write_text(path.read_text().replace("segments: {columns: [ride], min_rows: 20, worst: 1.5},", ""))
    bare = Lake(lake.settings, load_catalog(lake.settings))
    performance(bare, MODEL, Interval.of(NIGHT), run_id="t")
    assert not segments_of(bare)


def test_hostile_values_have_short_names_that_differ():
    hostile = [
        "<script>alert(1)</script>",
        'a"b',
        "",
        None,
        "(null)",
        "(other)",
        "x" * 10_000,
        "x" * 10_001,
        "a\x00b",
        "a\x01b",
        "a\nb",
        "\ud800",
    ]
    names = segment_names("carrier", hostile)
    assert len(set(names)) == len(hostile)
    assert max(map(len, names)) < 150
    assert not any("\x00" in name or "\n" in name for name in names)
    assert names[:5] == ["carrier=<script>alert(1)</script>", 'carrier=a"b', "carrier=", "carrier=(null)", names[4]]
    assert names[4].startswith("carrier=(null) #")
    for name in names:
        name.encode()


def test_the_policy_looks_at_whole_nights_not_at_their_segments(night: Lake):
    performance(night, MODEL, SCORED, run_id="t")
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    history = read_history(night, night.model(MODEL), NIGHT, dict.fromkeys(SCORED, 1))
    rows = rows_of(night)
    judged = next(n for n in history.performance if n.night == ABOUT and n.output == "ride_minutes")
    assert (judged.error, judged.rows) == (rows["mae", "ride_minutes"]["value"], rows["mae", "ride_minutes"]["n"])
    assert judged.baseline == rows["mae_baseline", "ride_minutes"]["value"]


def test_the_ratio_stands_beside_the_one_at_the_gate(night: Lake):
    assert gate_ratios(night, MODEL) == {1: {"ride_minutes": 0.8, "long_probability": 0.8}}
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    ratio = rows["error_ratio", "ride_minutes"]
    assert ratio["value"] == pytest.approx(
        rows["mae", "ride_minutes"]["value"] / rows["mae_baseline", "ride_minutes"]["value"], abs=1e-5
    )
    assert ratio["threshold"] == pytest.approx(0.8 * 1.1)
    assert ratio["status"] == ("warning" if ratio["value"] > 0.88 else "ok")
    scenario.decide_gate(night, 1, ratio=0.01, as_of=scenario.AS_OF + ONE_DAY)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    worse = rows_of(night)["error_ratio", "ride_minutes"]
    assert worse["status"] == "warning"
    assert worse["reason"].endswith("in this night, it was 0.010 at the gate")


def test_without_a_gate_ratio_the_ratio_is_not_evaluated(fresh: Lake):
    scenario.score_all(fresh)
    performance(fresh, MODEL, Interval.of(NIGHT), run_id="t")
    ratio = rows_of(fresh)["error_ratio", "ride_minutes"]
    assert (ratio["status"], ratio["reason"]) == (
        "not_evaluated",
        "the gate left no ratio to compare with for version 1",
    )
    assert ratio["value"] > 0


def test_bulk_equals_nightly_and_a_rerun_commits_nothing(night: Lake, scored: Lake):
    assert performance(night, MODEL, SCORED, run_id="bulk").committed == len(SCORED)
    assert performance(night, MODEL, SCORED, run_id="again").committed == 0
    bulk = night.publications.digests(metrics_table(night.settings, MODEL, "performance"), SCORED)
    for day in (SCORED.start, NIGHT):
        performance(scored, MODEL, Interval.of(day), run_id="nightly")
        assert (
            scored.publications.digests(metrics_table(scored.settings, MODEL, "performance"), Interval.of(day))[day]
            == bulk[day]
        )


def test_labels_that_come_after_the_night_are_not_used(night: Lake):
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    before = rows_of(night)

    def corrected(rows: pa.Table) -> pa.Table:
        """A correction of every ride of ABOUT, known a night too late."""
        late = rows.filter(pc.equal(rows["event_date"], pa.scalar(ABOUT + ONE_DAY, pa.date32())))
        late = late.set_column(late.column_names.index("minutes"), "minutes", pa.array([500.0] * late.num_rows))
        late = late.set_column(
            late.column_names.index("revision"), "revision", pa.array([1] * late.num_rows, pa.int32())
        )
        late = late.set_column(
            late.column_names.index("data_date"), "data_date", pa.array([NIGHT + ONE_DAY] * late.num_rows, pa.date32())
        )
        return pa.concat_tables([rows, late.cast(rows.schema)])

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT + ONE_DAY), corrected)
    assert performance(night, MODEL, Interval.of(NIGHT), run_id="again").committed == 0
    assert rows_of(night) == before


def test_a_night_is_not_judged_before_it_is_mature(night: Lake):
    """ABOUT + 1 has nearly all its labels on NIGHT, and yet is no subject of NIGHT."""
    nearly = labels(night, MODEL, Interval.of(ABOUT + ONE_DAY), as_of=NIGHT)
    assert nearly["label"].null_count < nearly.num_rows / 4
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    assert {row["about_date"] for row in rows_of(night).values()} == {ABOUT}


def test_labels_that_never_come_are_said_to(night: Lake):
    def unlabelled(rows: pa.Table) -> pa.Table:
        return rows.set_column(
            rows.column_names.index("minutes"), "minutes", pa.nulls(rows.num_rows, pa.float64())
        ).cast(rows.schema)

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), unlabelled)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    share = rows.pop(("label_share", ""))
    assert (share["value"], share["status"]) == (0.0, "warning")
    why = f"no label came for any of the {scenario.PER_DAY} rows"
    assert {(row["status"], row["reason"], row["value"]) for row in rows.values()} == {("not_evaluated", why, None)}
    judged = {
        (check, column)
        for column, gate in (("ride_minutes", "mae"), ("long_probability", "brier"))
        for check in (gate, "error_ratio")
    }
    assert set(rows) == judged | {("accuracy", "long_probability")}
    assert not segments_of(night)


def test_one_row_with_a_label_is_too_few_to_call_the_night_better_or_worse(night: Lake):
    left = iter([True])

    def all_but_one_unlabelled(rows: pa.Table) -> pa.Table:
        kept = [
            minutes if about == ABOUT + ONE_DAY and minutes is not None and next(left, False) else None
            for about, minutes in zip(rows["event_date"].to_pylist(), rows["minutes"].to_pylist(), strict=True)
        ]
        return rows.set_column(rows.column_names.index("minutes"), "minutes", pa.array(kept, pa.float64()))

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), all_but_one_unlabelled)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    assert rows["mae", "ride_minutes"]["n"] == 1
    ratio = rows["error_ratio", "ride_minutes"]
    assert (ratio["status"], ratio["value"] is not None) == ("not_evaluated", True)
    assert ratio["reason"] == "a night is judged by at least 2 rows with a label, this one has 1"


def test_a_night_before_the_first_champion_is_not_evaluated(night: Lake):
    performance(night, MODEL, Interval.of(SCORED.start), run_id="t")
    rows = rows_of(night, SCORED.start)
    assert {row["reason"] for row in rows.values()} == {
        "nothing was scored for this night: no predictions are published"
    }
    assert {row["status"] for row in rows.values()} == {"not_evaluated"}


def test_an_outcome_of_one_kind_cannot_be_ranked(night: Lake):
    def short(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.column_names.index("minutes"), "minutes", pa.array([5.0] * rows.num_rows)).cast(
            rows.schema
        )

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), short)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    found = rows_of(night)["auc", "long_probability"]
    assert (found["status"], found["reason"]) == (
        "not_evaluated",
        "all 40 rows came out alike (not above 30), so nothing can be ranked",
    )


def test_outcomes_must_be_published(promoted: Lake):
    with pytest.raises(
        PartitionNotReady,
        match=r"(?s)outcomes has no partition 2024-02-21.*Performance of ride_minutes needs it. Run `rides_ingest`",
    ):
        performance(promoted, MODEL, Interval.of(date(2024, 2, 21)), run_id="t")


def test_nights_that_are_monitored_backwards_end_as_those_monitored_in_order(fresh: Lake):
    first, second, last = ABOUT, ABOUT + ONE_DAY, NIGHT
    scenario.decide_gate(fresh)
    for night in (last, second):
        scenario.score_all(fresh, Interval.of(night))
        performance(fresh, MODEL, Interval.of(night), run_id="backwards")
    assert {row["status"] for row in rows_of(fresh, last).values()} == {"not_evaluated"}
    scenario.score_all(fresh, Interval.of(first))
    done = performance(fresh, MODEL, Interval.of(first), run_id="backwards")
    assert done.details["measured_again"] == [last.isoformat()]
    backwards = read_metrics(fresh, MODEL, "performance", Interval.of(last))
    assert rows_of(fresh, last)["mae", "ride_minutes"]["value"] is not None
    assert performance(fresh, MODEL, Interval.closed(first, last), run_id="in order").committed == 0
    assert read_metrics(fresh, MODEL, "performance", Interval.of(last)).equals(backwards)
    assert performance(fresh, MODEL, Interval.of(first), run_id="again").details["measured_again"] == []
