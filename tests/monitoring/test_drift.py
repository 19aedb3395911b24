"""Drift of scored nights: planted drift is found, normal nights stay quiet, and what cannot be judged says so."""

from __future__ import annotations

import json
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from config.calendar import Interval
from features.retrieval import retrieve
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.metrics import metrics_table, read_metrics
from lake.signature import sign
from monitoring.drift import drift, null_limit_of
from monitoring.drift_counts import pinned_versions
from monitoring.references import VersionReference, feature_profiles, load_reference
from serving.predictions import predictions_table
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import KINDS, NIGHT, SCORED
from tests.serving.scenario import MODEL

MINUTES = "vehicle_daily__minutes_7d"


def rows_of(lake: Lake, night=NIGHT) -> dict[tuple[str, str], dict]:
    return {
        (row["check"], row["column"]): row for row in read_metrics(lake, MODEL, "drift", Interval.of(night)).to_pylist()
    }


def measure(lake: Lake, night=NIGHT) -> dict[tuple[str, str], dict]:
    scenario.score_all(lake, Interval(SCORED.start, night + timedelta(days=1)))
    drift(lake, MODEL, Interval.of(night), run_id="t")
    return rows_of(lake, night)


def test_bulk_equals_nightly_and_a_rerun_commits_nothing(night: Lake, scored: Lake):
    result = drift(night, MODEL, SCORED, run_id="bulk")
    assert result.committed == len(SCORED)
    assert drift(night, MODEL, SCORED, run_id="again").committed == 0
    bulk = night.publications.digests(metrics_table(night.settings, MODEL, "drift"), SCORED)
    for day in (SCORED.start, NIGHT):
        drift(scored, MODEL, Interval.of(day), run_id="nightly")
        assert (
            scored.publications.digests(metrics_table(scored.settings, MODEL, "drift"), Interval.of(day))[day]
            == bulk[day]
        )
    rows = rows_of(night)
    assert {check for check, _ in rows} == {
        "drift_psi",
        "null_rate",
        "prediction_drift",
        "volume",
        "drift_share",
        "mean",
        "reference_mean",
    }
    assert {column for check, column in rows if check == "drift_psi"} == set(KINDS)
    assert {column for check, column in rows if check == "prediction_drift"} == set(night.model(MODEL).output_columns)
    assert rows["drift_psi", MINUTES]["reference"].startswith("version 1, trained on 2024-01-")
    alarms = [
        row
        for row in read_metrics(night, MODEL, "drift").to_pylist()
        if row["check"] == "drift_psi" and row["status"] == "warning"
    ]
    assert len(alarms) <= 3, "made-up features are the same kind every night: they should hardly ever alarm"
    publication = night.publications.current(metrics_table(night.settings, MODEL, "drift"))[NIGHT]
    assert {item.table for item in publication.inputs} == {
        "rides/valid/bookings",
        "rides/features/vehicle_daily",
        f"{MODEL}/predictions",
    }


def test_planted_drift_is_found_and_named(fresh: Lake):
    scenario.with_features(fresh, NIGHT, minutes_7d=lambda old: old + 400)
    rows = measure(fresh)
    found = rows["drift_psi", MINUTES]
    assert found["status"] == "warning"
    assert found["value"] > found["threshold"]
    assert rows["drift_psi", "vehicle_daily__rides_7d"]["status"] == "ok"
    assert rows["mean", MINUTES]["value"] == pytest.approx(rows["reference_mean", MINUTES]["value"] + 400, abs=5)
    assert {rows[check, MINUTES]["threshold"] for check in ("mean", "reference_mean")} == {None}
    share = rows["drift_share", ""]
    assert (share["value"], share["status"], share["n"]) == (0.5, "failing", 2)
    assert share["reason"] == f"1 of 2 columns lie beyond their limit: {MINUTES}"
    assert rows["prediction_drift", "ride_minutes"]["status"] == "warning"
    assert rows["volume", ""]["status"] == "ok"


def test_an_all_null_column_is_not_evaluated_but_its_null_rate_alarms(fresh: Lake):
    scenario.with_features(fresh, NIGHT, minutes_7d=pa.nulls(6))
    rows = measure(fresh)
    found = rows["drift_psi", MINUTES]
    assert (found["status"], found["reason"], found["value"]) == ("not_evaluated", "every value is null", None)
    assert (rows["null_rate", MINUTES]["status"], rows["null_rate", MINUTES]["value"]) == ("failing", 1.0)
    assert rows["null_rate", MINUTES]["reason"] == f"null in every one of {scenario.PER_DAY} rows"
    assert rows["drift_share", ""]["n"] == 1
    assert "1 not evaluated" in rows["drift_share", ""]["reason"]
    assert (rows["mean", MINUTES]["reason"], rows["mean", MINUTES]["n"]) == ("every value is null", 0)
    assert rows["reference_mean", MINUTES]["status"] == "ok"


def test_constant_and_infinite_columns_are_measured(fresh: Lake):
    scenario.with_features(
        fresh, NIGHT, minutes_7d=lambda old: np.full_like(old, np.inf), rides_7d=lambda old: np.full_like(old, 30)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.score.check_outputs", lambda *_, **__: None)
        rows = measure(fresh)
    for column in KINDS:
        assert rows["drift_psi", column]["status"] == "warning", column
    assert (rows["mean", MINUTES]["reason"], rows["mean", MINUTES]["value"]) == (
        "40 infinite values are left out",
        None,
    )
    assert rows["mean", "vehicle_daily__rides_7d"]["value"] == 30.0


def test_an_empty_night_is_visible_as_not_evaluated(tmp_path, promoted: Lake):
    lake = scenario.copy_of(promoted, tmp_path)
    from lake.tables import valid_table

    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    toy.publish_rows(lake, table, table.schema.empty_table(), Interval.of(NIGHT))
    rows = measure(lake)
    for key, row in rows.items():
        if key != ("volume", ""):
            assert (row["status"], row["reason"]) == ("not_evaluated", "nothing was scored in this night"), key
    assert rows["volume", ""]["status"] == "failing"
    assert rows["volume", ""]["reason"].startswith("0 rows were scored; nights of the training window allow")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "version 1 has no reference.json beside its files; register it again"),
        ("{", "reference.json of version 1 is not JSON; register it again"),
        ('{"format": 0}', "reference.json of version 1 has format 0, needs 1 or 2; train it again"),
    ],
)
def test_a_version_without_reference_is_not_evaluated(fresh: Lake, text, reason):
    champion = fresh.ledger(MODEL).read().newest
    path = fresh.settings.artifacts / MODEL / champion.artifact_digest / "reference.json"
    path.unlink() if text is None else path.write_text(text)
    sign(fresh.settings, path.parent, MODEL)
    rows = measure(fresh)
    assert {(row["status"], row["reason"]) for row in rows.values()} == {("not_evaluated", reason)}


def test_limits_that_were_changed_after_signing_are_not_judged_by(fresh: Lake) -> None:
    scenario.score_all(fresh, Interval(SCORED.start, NIGHT + timedelta(days=1)))
    champion = fresh.ledger(MODEL).read().newest
    assert champion is not None
    path = fresh.settings.artifacts / MODEL / champion.artifact_digest / "reference.json"
    profile = json.loads(path.read_text())
    for column in profile["columns"].values():
        column["limit"] = 1e9
    path.write_text(json.dumps(profile))
    drift(fresh, MODEL, Interval.of(NIGHT), run_id="t")
    found = {(row["status"], row["reason"]) for row in rows_of(fresh, NIGHT).values()}
    assert {status for status, _ in found} == {"not_evaluated"}
    assert all("reference.json was changed after it was signed" in reason for _, reason in found)


def test_features_rewritten_after_scoring_are_judged_as_they_were_scored(night: Lake):
    drift(night, MODEL, Interval.of(NIGHT), run_id="before")
    scenario.with_features(night, NIGHT, minutes_7d=lambda old: old + 400)
    table = metrics_table(night.settings, MODEL, "drift")
    before = night.publications.digests(table, Interval.of(NIGHT))
    result = drift(night, MODEL, Interval.of(NIGHT), run_id="after")
    assert result.committed == 0
    assert night.publications.digests(table, Interval.of(NIGHT)) == before


def test_a_window_of_several_nights(night: Lake):
    champion = night.ledger(MODEL).read().newest
    scenario.change_reference(night, champion, {"window_nights": 3})
    second, third = SCORED.start + timedelta(days=1), SCORED.start + timedelta(days=2)
    drift(night, MODEL, Interval.closed(SCORED.start, third), run_id="t")
    rows = rows_of(night, second)
    assert rows["drift_psi", MINUTES]["n"] == 3 * scenario.PER_DAY, (
        "features of the nights before the first scored one are there"
    )
    assert (
        rows["prediction_drift", "ride_minutes"]["reason"]
        == "the window needs 3 nights scored by version 1, 2 are there"
    )
    assert rows_of(night, third)["prediction_drift", "ride_minutes"]["n"] == 3 * scenario.PER_DAY


def test_columns_the_catalog_lost_or_retyped_and_limits_that_never_were(night: Lake):
    champion = night.ledger(MODEL).read().newest
    path = night.settings.artifacts / MODEL / champion.artifact_digest / "reference.json"
    columns = json.loads(path.read_text())["columns"]
    changed = {
        "vehicle_daily__gone": columns[MINUTES],
        "vehicle_daily__rides_7d": {
            "kind": "categorical",
            "categories": ["a"],
            **{k: v for k, v in columns[MINUTES].items() if k not in {"kind", "edges"}},
        },
        MINUTES: columns[MINUTES] | {"limit": None, "null_limit": None, "windows": 2},
    }
    scenario.change_reference(night, champion, {"columns": changed})
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    for column in ("vehicle_daily__gone", "vehicle_daily__rides_7d"):
        assert (
            rows["drift_psi", column]["reason"] == "the catalog no longer has this column, or has it with another type"
        )
    assert rows["drift_psi", MINUTES]["reason"] == "the training window gives no limit: 2 windows with values"
    assert rows["drift_psi", MINUTES]["value"] is not None
    assert rows["drift_share", ""]["status"] == "not_evaluated"


def test_calendar_columns_are_left_out(tmp_path):
    dataset = toy.DATASET_YAML.replace(
        "{type: int64, description: rides of", "{type: int64, calendar: true, description: rides of"
    )
    lake = toy.toy_lake(tmp_path, dataset=dataset)
    reference = VersionReference(1, "d", {"columns": {name: {} for name in KINDS}})
    assert list(feature_profiles(lake, lake.model(MODEL), reference)) == [MINUTES]


def test_pins_are_the_highest_versions_of_a_tables_partitions(night: Lake):
    publication = night.publications.current(predictions_table(night.settings, night.model(MODEL)))[NIGHT]
    pins, spine = pinned_versions(night, night.model(MODEL), publication.inputs)
    assert set(pins) == {"vehicle_daily"}
    assert spine is not None


def test_means_equal_a_plain_computation(night: Lake):
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    with night.scratch("test") as folder:
        features = retrieve(night, MODEL, Interval.of(NIGHT), folder=folder).reader().read_all().to_pandas()
    predicted = predictions_table(night.settings, night.model(MODEL)).read([NIGHT]).to_pandas()
    for name in (*KINDS, *night.model(MODEL).output_columns):
        values = (features if name in KINDS else predicted)[name].dropna()
        assert rows["mean", name]["value"] == float(sum(map(Fraction, values)) / len(values)), name
        assert rows["mean", name]["n"] == len(values)
    profile = load_reference(night.settings, MODEL, 1, night.ledger(MODEL).read().newest.artifact_digest).profile
    for name, stored in {**profile["columns"], **profile["predictions"]}.items():
        row = rows["reference_mean", name]
        assert (row["value"], row["n"]) == (stored["mean"], sum(stored["counts"])), name


def test_a_profile_that_was_stored_before_means_is_read_and_says_so(night: Lake):
    champion = night.ledger(MODEL).read().newest
    path = night.settings.artifacts / MODEL / champion.artifact_digest / "reference.json"
    profile = json.loads(path.read_text())
    for part in ("columns", "predictions"):
        profile[part] = {
            name: {k: v for k, v in column.items() if not k.startswith("mean")}
            for name, column in profile[part].items()
        }
    path.write_text(json.dumps(profile | {"format": 1}))
    sign(night.settings, path.parent, MODEL)
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_of(night)
    assert rows["drift_psi", MINUTES]["value"] is not None
    assert rows["mean", MINUTES]["status"] == "ok"
    assert (rows["reference_mean", MINUTES]["status"], rows["reference_mean", MINUTES]["reason"]) == (
        "not_evaluated",
        "version 1 was stored without means",
    )


def test_a_night_that_is_not_scored_cannot_be_measured(promoted: Lake):
    needed = (
        r"(?s)predictions has no partition 2024-02-15 \(nothing is published\).*Drift of ride_minutes needs it. Run"
        r" `ride_minutes_score`"
    )
    with pytest.raises(PartitionNotReady, match=needed):
        drift(promoted, MODEL, Interval.of(NIGHT), run_id="t")


def test_load_reference_of_a_stored_version(promoted: Lake):
    champion = promoted.ledger(MODEL).read().newest
    reference = load_reference(promoted.settings, MODEL, 1, champion.artifact_digest)
    assert reference.missing is None
    assert set(reference.profile["columns"]) == set(KINDS)


def test_a_limit_of_nulls_leaves_room_for_chance_and_nothing_for_a_column_without_values() -> None:
    assert null_limit_of(0.0, 737) == pytest.approx(3 / 737, abs=1e-6)
    assert 2 / 737 < null_limit_of(0.0, 737) < 4 / 737
    assert null_limit_of(0.02, 1_000_000) == pytest.approx(0.02, abs=0.001)
    assert null_limit_of(1.0, 50) == 1.0
    assert null_limit_of(0.0, 1) == 1.0
