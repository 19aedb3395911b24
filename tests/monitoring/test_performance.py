"""Performance of mature nights: right numbers, from labels that may be relied on, and a reason where there are none."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import roc_auc_score

from config.calendar import ONE_DAY, Interval
from features.labels import is_mature, labels
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.metrics import metrics_table, read_metrics
from lake.tables import valid_table
from monitoring.performance import area_under_curve, gate_ratios, maturing, performance, pooled_ratio
from serving.predictions import predictions_table
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL

ABOUT = NIGHT - 2 * ONE_DAY


def rows_of(lake: Lake, night: date = NIGHT) -> dict[tuple[str, str], dict]:
    return {(row["check"], row["column"]): row for row in read_metrics(lake, MODEL, "performance", Interval.of(night)).to_pylist()}


def republish_outcomes(lake: Lake, interval: Interval, change) -> None:
    """Put other outcomes into nights of the interval."""
    table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    toy.publish_rows(lake, table, change(table.read(interval)), interval)


def test_each_night_is_judged_once_also_where_the_clocks_change(promoted: Lake):
    year = Interval.closed(date(2024, 1, 10), date(2024, 12, 20))
    judged = [day for night in year for day in maturing(promoted, MODEL, night)]
    assert judged == [date(2024, 1, 8) + timedelta(days=i) for i in range(len(judged))]
    assert all(is_mature(promoted, MODEL, day, as_of=night) for night in year for day in maturing(promoted, MODEL, night))
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
        ("interval_coverage", "ride_minutes"): ((known["label"] >= known["ride_minutes_lower"]) & (known["label"] <= known["ride_minutes_upper"])).mean(),
        ("brier", "long_probability"): ((chance - event) ** 2).mean(),
        ("log_loss", "long_probability"): -np.log(np.where(event, chance, 1 - chance)).mean(),
        ("auc", "long_probability"): roc_auc_score(event, chance),
    }
    for key, value in expected.items():
        assert rows[key]["value"] == pytest.approx(value, abs=1e-5), key
        assert rows[key]["n"] == len(known)
    mae = rows["mae", "ride_minutes"]
    assert mae["lower"] < mae["value"] < mae["upper"]


def test_the_ratio_stands_beside_the_one_at_the_gate(night: Lake):
    assert gate_ratios(night, MODEL) == {1: {"ride_minutes": 0.8, "long_probability": 0.8}}
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    ratio = rows["error_ratio", "ride_minutes"]
    assert ratio["value"] == pytest.approx(rows["mae", "ride_minutes"]["value"] / rows["mae_baseline", "ride_minutes"]["value"], abs=1e-5)
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
    assert (ratio["status"], ratio["reason"]) == ("not_evaluated", "the gate left no ratio to compare with for version 1")
    assert ratio["value"] > 0


def test_bulk_equals_nightly_and_a_rerun_commits_nothing(night: Lake, scored: Lake):
    assert performance(night, MODEL, SCORED, run_id="bulk").committed == len(SCORED)
    assert performance(night, MODEL, SCORED, run_id="again").committed == 0
    bulk = night.publications.digests(metrics_table(night.settings, MODEL, "performance"), SCORED)
    for day in (SCORED.start, NIGHT):
        performance(scored, MODEL, Interval.of(day), run_id="nightly")
        assert scored.publications.digests(metrics_table(scored.settings, MODEL, "performance"), Interval.of(day))[day] == bulk[day]


def test_labels_that_come_after_the_night_are_not_used(night: Lake):
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    before = rows_of(night)

    def corrected(rows: pa.Table) -> pa.Table:
        """A correction of every ride of ABOUT, known a night too late."""
        late = rows.filter(pc.equal(rows["event_date"], pa.scalar(ABOUT + ONE_DAY, pa.date32())))
        late = late.set_column(late.column_names.index("minutes"), "minutes", pa.array([500.0] * late.num_rows))
        late = late.set_column(late.column_names.index("revision"), "revision", pa.array([1] * late.num_rows, pa.int32()))
        late = late.set_column(late.column_names.index("data_date"), "data_date", pa.array([NIGHT + ONE_DAY] * late.num_rows, pa.date32()))
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
        return rows.set_column(rows.column_names.index("minutes"), "minutes", pa.nulls(rows.num_rows, pa.float64())).cast(rows.schema)

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), unlabelled)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    share = rows.pop(("label_share", ""))
    assert (share["value"], share["status"]) == (0.0, "warning")
    why = f"no label came for any of the {scenario.PER_DAY} rows"
    assert {(row["status"], row["reason"], row["value"]) for row in rows.values()} == {("not_evaluated", why, None)}
    assert set(rows) == {(check, column) for column, gate in (("ride_minutes", "mae"), ("long_probability", "brier")) for check in (gate, "error_ratio")}


def test_a_night_before_the_first_champion_is_not_evaluated(night: Lake):
    performance(night, MODEL, Interval.of(SCORED.start), run_id="t")
    rows = rows_of(night, SCORED.start)
    assert {row["reason"] for row in rows.values()} == {"nothing was scored for this night: no predictions are published"}
    assert {row["status"] for row in rows.values()} == {"not_evaluated"}


def test_an_outcome_of_one_kind_cannot_be_ranked(night: Lake):
    def short(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.column_names.index("minutes"), "minutes", pa.array([5.0] * rows.num_rows)).cast(rows.schema)

    republish_outcomes(night, Interval.closed(ABOUT, NIGHT), short)
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    found = rows_of(night)["auc", "long_probability"]
    assert (found["status"], found["reason"]) == ("not_evaluated", "all 40 rows came out alike (not above 30), so nothing can be ranked")


def test_outcomes_must_be_published(promoted: Lake):
    with pytest.raises(PartitionNotReady, match=r"(?s)outcomes has no partition 2024-02-21.*Performance of ride_minutes needs it. Run `rides_ingest`"):
        performance(promoted, MODEL, Interval.of(date(2024, 2, 21)), run_id="t")


def test_area_under_the_curve_with_ties():
    rng = np.random.default_rng(5)
    event = rng.random(300) < 0.3
    score = np.round(rng.random(300) + 0.2 * event, 1)
    assert area_under_curve(event, score.astype(np.float64)) == pytest.approx(roc_auc_score(event, score))
    assert area_under_curve(np.zeros(3, dtype=bool), np.ones(3)) is None


def test_pooled_ratio_weighs_rows_and_squares_of_rooted_errors():
    assert pooled_ratio([(2.0, 1), (4.0, 3)], [(4.0, 1), (4.0, 3)], rooted=False) == pytest.approx(14 / 16)
    assert pooled_ratio([(3.0, 1), (4.0, 1)], [(5.0, 2)], rooted=True) == pytest.approx(np.sqrt(25 / 50))
    assert pooled_ratio([], [], rooted=False) is None
