"""The gate: it opens for a better model, and each reason to keep it shut is seen shut, with its message."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from lake.artifact import ArtifactMismatch
from lake.lake import Lake
from lake.ledger import Promotion
from lake.publish import publish
from lake.signature import UntrustedModel
from serving.predictors.contract import Contract, Matrix, Scores
from tests import series, toy
from tests.training.jobs import write_job
from tests.training.registry.versions import (
    AS_OF,
    FEATURES,
    MODEL,
    OUTPUT_COLUMNS,
    WINDOWS,
    Oracle,
    load_oracle,
    make_version,
    write_set,
)
from training.job_file import JOB_FILE
from training.registry import decision as decision_module
from training.registry.decision import Decision, DecisionDamaged, decisions_table, read_decisions
from training.registry.gate import ForeignVersion, judge, judge_registered
from training.registry.judged_set import GateEvidenceChanged, GateEvidenceMissing
from training.registry.leakage import Audit, Finding
from training.registry.numbers import VersionNumberTaken
from training.registry.register import Registered

CLEAN = Audit((date(2024, 2, 23),), 100, 500, 0, (), 0.1)


@pytest.fixture(autouse=True)
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are oracles, and the audit, which has tests of its own, finds nothing."""
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: CLEAN)


def with_gate(folder: Path, **rules: Any) -> Lake:
    """A toy lake whose model has other gate rules."""
    text = {"better_by": "0.0", "confidence": "0.95", "min_days": "5", "baseline": "median"} | rules
    model = toy.MODEL_YAML
    written = model[model.index("gate: {better_by") : model.index("retrain:")]
    segments = text.pop("segments", "{columns: [depot], min_rows: 20, worst: 1.5}")
    gate = ", ".join(f"{key}: {value}" for key, value in text.items())
    return toy.toy_lake(folder, model=model.replace(written, f"gate: {{{gate}, segments: {segments}}}\n"))


def crown(lake: Lake, registered: Registered, *, effective_from: date = AS_OF + ONE_DAY) -> Promotion:
    """Make it champion without asking the gate."""
    ledger = lake.ledger(MODEL)
    line = Promotion(
        model=MODEL,
        version=registered.version,
        trained_until=registered.as_of,
        effective_from=effective_from,
        decided_at=datetime(2024, 2, 27, tzinfo=UTC),
        by="test",
        artifact_digest=registered.artifact_digest,
        evidence_digest=f"evidence-{registered.version}",
    )
    return ledger.append(line, seen=ledger.read()).promotions[-1]


def codes(decision: Decision) -> set[str]:
    return {reason.code for reason in decision.reasons}


def text(decision: Decision) -> str:
    return "\n".join(str(reason) for reason in decision.reasons)


# ---- it opens ----------------------------------------------------------------------------------------------------


def test_a_first_champion_that_beats_the_baseline_is_promoted(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")
    assert decision.verdict == "promote"
    assert codes(decision) == {"better"}
    assert (decision.incumbent, decision.incumbent_version, decision.nights, decision.rows) == (
        "baseline median",
        None,
        7,
        420,
    )
    assert "ride_minutes: mae 1 against" in text(decision)
    assert "of the baseline (median of the training window)" in text(decision)
    assert "with 95% confidence the improvement is at least +9" in text(decision)
    found = {(check.output, check.metric) for check in decision.checks if check.name == "improvement"}
    assert found == {("ride_minutes", "mae"), ("long_probability", "brier")}
    assert {check.segment for check in decision.checks if check.name == "segment"} == {
        "depot=east",
        "depot=north",
        "depot=south",
    }
    assert all(check.passed is not False for check in decision.checks)
    assert decision.evidence["outputs"]["ride_minutes"]["challenger"] == pytest.approx(1.0)


def test_baseline_errors_are_those_of_the_training_window(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")
    import pyarrow.parquet as pq

    fitted = pq.read_table(job / "training_set.parquet")
    train = fitted.filter(pc.equal(fitted["split"], "train"))["label"].to_numpy()
    test = pq.read_table(job.with_name("one.gate") / "test_set.parquet")["label"].to_numpy()
    outputs = decision.evidence["outputs"]
    assert outputs["ride_minutes"]["baseline"] == pytest.approx(np.abs(test - np.median(train)).mean())
    assert outputs["long_probability"]["baseline"] == pytest.approx(np.square((train > 30).mean() - (test > 30)).mean())


def test_a_challenger_better_than_the_champion_is_promoted(toy_lake: Lake) -> None:
    first = write_set(toy_lake, "one")
    champion = make_version(toy_lake, first, 1, miss=5.0, unsure=0.4)
    crown(toy_lake, champion)
    second = write_set(toy_lake, "two")
    decision = judge(toy_lake, MODEL, second, make_version(toy_lake, second, 2, miss=4.0, unsure=0.3), run_id="run")
    assert decision.verdict == "promote"
    assert (decision.incumbent, decision.incumbent_version) == ("champion version 1", 1)
    assert (
        "mae 4 against 5 of champion version 1; with 95% confidence the improvement is at least +20.0%, +0.0% is "
        "needed." in text(decision)
    )
    assert (
        decision.evidence["outputs"]["ride_minutes"]["baseline"] > 10
    )  # the monitor compares later ratios with this one


def test_a_negative_better_by_allows_to_be_a_little_worse(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, better_by="-0.3")
    job = write_set(lake, "one")
    crown(lake, make_version(lake, job, 1, miss=4.0))
    assert judge(lake, MODEL, job, make_version(lake, job, 2, miss=5.0), run_id="run").verdict == "promote"
    assert judge(lake, MODEL, job, make_version(lake, job, 3, miss=5.5), run_id="run").verdict == "refuse"


# ---- each reason to keep it shut ---------------------------------------------------------------------------------


def test_not_better_than_the_champion(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, better_by="0.05", segments="{columns: [depot], min_rows: 20, worst: 3}")
    job = write_set(lake, "one")
    crown(lake, make_version(lake, job, 1, miss=4.0))
    decision = judge(lake, MODEL, job, make_version(lake, job, 2, miss=3.9), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"not_better"}
    assert (
        "ride_minutes: mae 3.9 against 4 of champion version 1; with 95% confidence the improvement is at least +2.5%"
        in text(decision)
    )
    assert "but +5.0% is needed." in text(decision)


def test_every_output_must_pass(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1, unsure=0.55), run_id="run")
    assert decision.verdict == "refuse"
    failed = [check for check in decision.checks if check.name == "improvement" and not check.passed]
    assert [check.output for check in failed] == ["long_probability"]
    assert "long_probability: brier 0.3025 against" in text(decision)
    assert "of the baseline (rate of the training window)" in text(decision)
    assert "ride_minutes: mae" not in text(decision)  # a refusal gives the reasons for refusing


def test_better_on_average_but_proven_worse_in_a_segment(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    crown(toy_lake, make_version(toy_lake, job, 1, miss=5.0))
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 2, miss=1.0, miss_south=8.0), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"segment_worse"}
    assert "ride_minutes where depot is south (" in text(decision)
    assert (
        "mae 8 against 5 of champion version 1; with 95% confidence at least 1.60 times the incumbent's, at most 1.5 "
        "times is allowed." in text(decision)
    )
    passed = {
        check.segment: check.passed
        for check in decision.checks
        if check.name == "segment" and check.output == "ride_minutes"
    }
    assert passed == {"depot=east": True, "depot=north": True, "depot=south": False}


def test_a_segment_rule_holds_against_the_baseline_too(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1, miss=0.5, miss_south=30.0), run_id="run")
    assert decision.verdict == "refuse"
    assert "segment_worse" in codes(decision)


def test_small_segments_are_named_and_not_evaluated(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, segments="{columns: [depot], min_rows: 140, worst: 1.5}")
    job = write_set(lake, "one")
    decision = judge(lake, MODEL, job, make_version(lake, job, 1), run_id="run")
    [small] = [
        check for check in decision.checks if check.name == "segments_too_small" and check.output == "ride_minutes"
    ]
    evaluated = {str(check.segment) for check in decision.checks if check.name == "segment"}
    assert small.passed is None
    assert small.note is not None
    assert "of 3 have fewer than 140 rows: " in small.note
    assert 0 < len(evaluated) < 3
    assert all(name.removeprefix("depot=") not in small.note for name in evaluated)


def test_leakage(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    night = date(2024, 2, 20)
    leak = Finding("feature", "vehicle_daily", "minutes_7d", night, {"vehicle": "v1"}, 31.5, 30.25)
    monkeypatch.setattr(
        "training.registry.leakage.audit", lambda *_, **__: replace(CLEAN, differing=4, findings=(leak,))
    )
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"leakage"}
    assert (
        "4 of 100 feature cells (nights 2024-02-23) and 500 labels differ from what was known then; none may."
        in text(decision)
    )
    assert (
        "vehicle_daily.minutes_7d, night 2024-02-20, vehicle v1: the feature partition has 31.5, what was known gives "
        "30.25." in text(decision)
    )


@pytest.mark.parametrize(
    ("features", "outputs", "said"),
    [
        ({"vehicle_daily__minutes_7d": "float64"}, OUTPUT_COLUMNS, "it lacks vehicle_daily__rides_7d"),
        (
            FEATURES | {"vehicle_daily__colour": "string"},
            OUTPUT_COLUMNS,
            "it takes vehicle_daily__colour, which the catalog does not have",
        ),
        (
            FEATURES | {"vehicle_daily__rides_7d": "float64"},
            OUTPUT_COLUMNS,
            "it takes vehicle_daily__rides_7d as float64, the catalog has int64",
        ),
        (FEATURES, ("ride_minutes",), "it gives ride_minutes, the catalog asks for ride_minutes, ride_minutes_lower"),
    ],
)
def test_other_columns_than_the_catalog(
    toy_lake: Lake, features: dict[str, str], outputs: tuple[str, ...], said: str
) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(
        toy_lake, MODEL, job, make_version(toy_lake, job, 1, features=features, outputs=outputs), run_id="run"
    )
    assert decision.verdict == "refuse"
    assert codes(decision) == {"schema"}
    assert said in text(decision)
    assert "Needed are equal columns: train it again." in text(decision)


def test_a_prediction_that_is_no_number(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1, nan=True), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"not_finite"}
    assert "must be a finite number. 1 of 420 values of ride_minutes are NaN or infinite." in text(decision)


def test_a_predictor_that_notices_that_itself(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1, unscored="south"), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"not_finite"}
    assert "must be a finite number. PredictionsNotFinite: ride_minutes predicted" in text(decision)


def test_too_slow(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, max_milliseconds_per_row="0.01")
    job = write_set(lake, "one")
    decision = judge(lake, MODEL, job, make_version(lake, job, 1, seconds=0.02), run_id="run")
    assert decision.verdict == "refuse"
    assert codes(decision) == {"latency"}
    assert "ms a row over 420 rows; at most 0.01 ms are allowed." in text(decision)


def test_a_model_that_is_timed_on_two_rows_is_not_refused_for_it(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, max_milliseconds_per_row="0.01", segments="{columns: [depot], min_rows: 2, worst: 1.5}")
    job = write_set(lake, "one", per_day=12)
    decision = judge(lake, MODEL, job, make_version(lake, job, 1, seconds=0.02), run_id="run")
    (latency,) = [check for check in decision.checks if check.name == "latency"]
    assert (latency.passed, latency.rows) == (None, 84)
    assert latency.note == "84 rows are too few to time, 100 are needed: not evaluated"
    assert "latency" not in codes(decision)


def same_label(value: float) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        for name in ("label", "vehicle_daily__minutes_7d"):
            column = pa.array(np.full(table.num_rows, value))
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table

    return edit


def test_labels_of_one_class_tell_nothing(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one", edit_test=same_label(5.0))
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")
    assert (decision.verdict, codes(decision)) == ("not_evaluated", {"nothing_to_tell"})
    assert "long_probability: the labels of all test rows came out alike" in text(decision)
    by_output = {check.output: check.passed for check in decision.checks if check.name == "improvement"}
    assert by_output == {"ride_minutes": True, "long_probability": None}


class ClassOracle(Oracle):
    """Says the class that comes, but 10 for `lost` of the frequent ones and, with `blind`, for the rare one."""

    def scores(self, matrix: Matrix) -> Scores:
        label, params = matrix[:, 1].astype(np.float64), self.contract.params
        missed = (label == 0) & (np.arange(len(label)) % 100 < params["lost"]) | (label == 20) & bool(params["blind"])
        said = np.where(missed, 10, label)
        return np.asarray(np.where(said[:, None] == [0, 10, 20], 0.9, 0.05))


def test_by_macro_f1_a_rare_class_weighs_as_much_as_a_frequent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "serving.predictors.load_predictor", lambda folder, **_: ClassOracle(Contract.read(folder / "model"))
    )
    dataset = toy.DATASET_YAML.replace(
        "      minutes: {type", "      pace: {type: int64, description: how fast}\n      minutes: {type"
    )
    yaml = toy.MODEL_YAML.replace("column: minutes", "column: pace")
    outputs = "outputs:\n  pace: {kind: multiclass, classes: [0, 10, 20], gate: macro_f1_loss}\n"
    yaml = yaml[: yaml.index("outputs:")] + outputs + yaml[yaml.index("trainer:") :]
    lake = toy.toy_lake(tmp_path, dataset=dataset, model=yaml)
    random = np.random.default_rng(3)

    def classes(table: pa.Table) -> pa.Table:
        label = random.choice([0.0, 10.0, 20.0], table.num_rows, p=[0.6, 0.37, 0.03])
        for name in ("label", "vehicle_daily__minutes_7d"):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(label))
        return table

    columns = lake.model(MODEL).output_columns
    first = write_set(lake, "one", edit_test=classes)
    sees = make_version(lake, first, 1, outputs=columns, lost=8, blind=False)
    decision = judge(lake, MODEL, first, sees, run_id="run")
    assert decision.verdict == "promote", text(decision)
    assert "pace: macro_f1_loss 0.04" in text(decision)
    crown(lake, sees)
    second = write_set(lake, "two", edit_test=classes)
    blind = make_version(lake, second, 2, outputs=columns, lost=0, blind=True)
    decision = judge(lake, MODEL, second, blind, run_id="run")
    assert decision.verdict == "refuse", (
        "it errs in 3 % of the rows, the champion in 5 %, but never says the rare class"
    )
    (improved,) = [check for check in decision.checks if check.name == "improvement"]
    assert improved.challenger == pytest.approx((1 + 0.04) / 3, abs=0.02)
    assert (improved.passed, improved.metric) == (False, "macro_f1_loss")
    assert improved.bound is not None
    assert improved.improvement is not None
    assert improved.bound < improved.improvement < 0


class ScaledOracle(Oracle):
    """Knows the load of a small and of a large series, and misses each by its own amount."""

    def scores(self, matrix: Matrix) -> Scores:
        params = self.contract.params
        return np.asarray(matrix[:, :1] + np.where(matrix[:, 1:] == 0, params["small"], params["large"]))


@pytest.mark.parametrize(("gate", "verdict"), [("mase", "refuse"), ("mae", "promote")])
def test_by_mase_a_small_series_weighs_as_much_as_a_large_one(
    gate: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "serving.predictors.load_predictor", lambda folder, **_: ScaledOracle(Contract.read(folder / "model"))
    )
    yaml = series.MODEL_YAML.replace("model: server_load", f"model: {MODEL}")
    yaml = yaml.replace("interval: 0.8, gate: pinball, minimum: 0", f"gate: {gate}").replace("worst: 1.5", "worst: 9")
    settings = series.lake_of(tmp_path).settings
    (tmp_path / "models" / f"{MODEL}.yaml").write_text(yaml, encoding="utf-8")
    lake = Lake(settings, load_catalog(settings))
    features = {"load_lags__load_7d_ago": "float64", "load_lags__local_hour": "int32"}

    def loads(table: pa.Table) -> pa.Table:
        large = np.arange(table.num_rows) % 2
        label = np.where(large, 5_000.0, 50.0) + np.arange(table.num_rows) % 7
        return (
            table.select(["data_date", "split"])
            .add_column(0, "server", pa.array(large).cast(pa.string()))
            .append_column("label", pa.array(label))
            .append_column("baseline", pa.array(label + np.where(large, 300.0, 3.0)))
            .append_column("nf__scale", pa.array(np.where(large, 100.0, 1.0)))
            .append_column("load_lags__load_7d_ago", pa.array(label))
            .append_column("load_lags__local_hour", pa.array(large, pa.int32()))
        )

    first = write_set(lake, "one", edit_test=loads)
    champion = make_version(lake, first, 1, features=features, outputs=("load",), small=1.0, large=100.0)
    decision = judge(lake, MODEL, first, champion, run_id="run")
    assert decision.verdict == "promote", text(decision)
    assert f"load: {gate} " in text(decision)
    crown(lake, champion)
    second = write_set(lake, "two", edit_test=loads)
    challenger = make_version(lake, second, 2, features=features, outputs=("load",), small=3.0, large=50.0)
    decision = judge(lake, MODEL, second, challenger, run_id="run")
    assert decision.verdict == verdict, text(decision)
    (improved,) = [check for check in decision.checks if check.name == "improvement"]
    errors = [(3.0 + 0.5) / 2, 1.0] if gate == "mase" else [(3.0 + 50.0) / 2, 50.5]
    assert [improved.challenger, improved.incumbent] == pytest.approx(errors)
    if gate == "mase":
        old = write_set(lake, "three", edit_test=lambda table: loads(table).drop_columns("nf__scale"))
        late = make_version(lake, old, 3, features=features, outputs=("load",), small=3.0, large=50.0)
        with pytest.raises(GateEvidenceMissing, match=r"has no column nf__scale.*Train again"):
            judge(lake, MODEL, old, late, run_id="run")


def test_no_error_against_no_error_promotes_nobody(toy_lake: Lake) -> None:
    first = write_set(toy_lake, "one")
    crown(toy_lake, make_version(toy_lake, first, 1, miss=0.0, unsure=0.4))
    second = write_set(toy_lake, "two")
    decision = judge(toy_lake, MODEL, second, make_version(toy_lake, second, 2, miss=0.0, unsure=0.3), run_id="run")
    assert (decision.verdict, codes(decision)) == ("not_evaluated", {"nothing_to_tell"})
    assert "ride_minutes: mae is 0 for the challenger and for champion version 1" in text(decision)
    segments = {check.output: check.passed for check in decision.checks if check.name == "segment"}
    assert segments == {"long_probability": True}, "segments of what is not judged are not judged"
    worse = write_set(toy_lake, "three")
    decision = judge(toy_lake, MODEL, worse, make_version(toy_lake, worse, 3, miss=0.0, unsure=0.6), run_id="run")
    assert (decision.verdict, codes(decision)) == ("refuse", {"not_better", "segment_worse", "nothing_to_tell"})


def test_too_few_nights_after_the_champions_windows(toy_lake: Lake) -> None:
    seen = dict(WINDOWS) | {"validation": Interval(date(2024, 2, 14), date(2024, 2, 20))}
    first = write_set(toy_lake, "one", windows=seen)
    crown(toy_lake, make_version(toy_lake, first, 1, miss=9.0))
    second = write_set(toy_lake, "two")
    decision = judge(toy_lake, MODEL, second, make_version(toy_lake, second, 2), run_id="run")
    assert decision.verdict == "not_evaluated"
    assert codes(decision) == {"too_few_nights"}
    assert (
        "Only 4 of 7 test nights lie after 2024-02-19, the last night either model was fitted on; 5 are needed."
        in text(decision)
    )
    assert "the champion stays" in text(decision)
    assert decision.evidence["test"]["left_out"] == ["2024-02-17", "2024-02-18", "2024-02-19"]
    assert [check.passed for check in decision.checks if check.name == "improvement"] == [None, None]


def test_nights_the_champion_was_fitted_on_are_left_out(toy_lake: Lake) -> None:
    seen = dict(WINDOWS) | {"validation": Interval(date(2024, 2, 14), date(2024, 2, 19))}
    first = write_set(toy_lake, "one", windows=seen)
    crown(toy_lake, make_version(toy_lake, first, 1, miss=9.0, unsure=0.3))
    second = write_set(toy_lake, "two")
    decision = judge(toy_lake, MODEL, second, make_version(toy_lake, second, 2), run_id="run")
    assert (decision.verdict, decision.nights, decision.rows) == ("promote", 5, 300)


def test_a_leak_refuses_even_where_the_nights_do_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: replace(CLEAN, differing=1))
    lake = with_gate(tmp_path, min_days="8")
    job = write_set(lake, "one")
    decision = judge(lake, MODEL, job, make_version(lake, job, 1), run_id="run")
    assert (decision.verdict, codes(decision)) == ("refuse", {"leakage", "too_few_nights"})


# ---- no verdict without evidence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_set.parquet", "training_set.json"])
def test_a_missing_test_set_gives_no_verdict(toy_lake: Lake, name: str) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    (job.with_name("one.gate") / name).unlink()
    with pytest.raises(GateEvidenceMissing, match=rf"{name} does not exist.*Nothing was judged"):
        judge(toy_lake, MODEL, job, registered, run_id="run")
    assert read_decisions(toy_lake, MODEL) == []


def test_an_edited_test_set_gives_no_verdict_even_after_a_promotion(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    assert judge(toy_lake, MODEL, job, registered, run_id="run").verdict == "promote"
    path = job.with_name("one.gate") / "test_set.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(
        GateEvidenceChanged,
        match=r"test set .* its bytes were changed. Nothing was judged, the champion stays. Train again.",
    ):
        judge(toy_lake, MODEL, job, registered, run_id="again")


def test_an_edited_training_set_gives_no_verdict(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    (job / "training_set.parquet").write_bytes(b"other")
    with pytest.raises(GateEvidenceChanged, match=r"the training set .* was written with"):
        judge(toy_lake, MODEL, job, registered, run_id="run")


@pytest.mark.parametrize(
    "document", ["{", "{}", '{"windows": {"train": {"start": "2024-01-01", "end": "2023-01-01"}}}']
)
def test_a_description_that_is_none_gives_no_verdict(toy_lake: Lake, document: str) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    (job.with_name("one.gate") / "training_set.json").write_text(document)
    with pytest.raises(GateEvidenceChanged, match=r"Nothing was judged. Train again."):
        judge(toy_lake, MODEL, job, registered, run_id="run")


def test_the_test_set_of_another_job_gives_no_verdict(toy_lake: Lake) -> None:
    registered = make_version(toy_lake, write_set(toy_lake, "one"), 1)
    other = write_set(
        toy_lake, "two", windows=dict(WINDOWS) | {"train": Interval(date(2024, 1, 21), date(2024, 2, 10))}
    )
    with pytest.raises(
        GateEvidenceChanged,
        match=r"version 1 was trained on a set of digest .* its test set may hold nights the model has seen",
    ):
        judge(toy_lake, MODEL, other, registered, run_id="run")


def test_files_that_are_missing_or_changed_give_no_verdict(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real loader
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    path = registered.folder / "model" / "contract.json"
    path.write_text(path.read_text().replace('"miss": 1.0', '"miss": 0.0'))
    with pytest.raises(ArtifactMismatch, match="its bytes were changed"):
        judge(toy_lake, MODEL, job, registered, run_id="run")
    (registered.folder / "manifest.json").unlink()
    with pytest.raises(UntrustedModel, match="it is not as it was signed.*manifest.json"):
        judge(toy_lake, MODEL, job, registered, run_id="run")


@pytest.mark.parametrize("whose", ["challenger", "champion"])
def test_a_version_nobody_signed_gives_no_verdict(toy_lake: Lake, whose: str) -> None:
    job = write_set(toy_lake, "one")
    champion, challenger = make_version(toy_lake, job, 1), make_version(toy_lake, job, 2)
    crown(toy_lake, champion)
    ((champion if whose == "champion" else challenger).folder / "signature.json").unlink()
    with pytest.raises(UntrustedModel, match="nobody vouches for it"):
        judge(toy_lake, MODEL, job, challenger, run_id="run")
    assert read_decisions(toy_lake, MODEL) == []


def test_an_empty_test_set_gives_no_verdict(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one", edit_test=lambda table: table.slice(0, 0))
    with pytest.raises(GateEvidenceMissing, match="holds no row"):
        judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")


# ---- baselines ---------------------------------------------------------------------------------------------------


def test_same_hour_last_week_falls_back_to_the_training_median_where_it_is_null(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, baseline="same_hour_last_week")
    job = write_set(lake, "one")
    decision = judge(lake, MODEL, job, make_version(lake, job, 1), run_id="run")
    import pyarrow.parquet as pq

    test = pq.read_table(job.with_name("one.gate") / "test_set.parquet")
    fitted = pq.read_table(job / "training_set.parquet")
    median = np.median(fitted.filter(pc.equal(fitted["split"], "train"))["label"].to_numpy())
    guess = pc.fill_null(test["baseline"], median).to_numpy()
    assert test["baseline"].null_count == 42
    assert decision.evidence["outputs"]["ride_minutes"]["incumbent"] == pytest.approx(
        np.abs(guess - test["label"].to_numpy()).mean()
    )
    assert "of the baseline (same hour last week)" in text(decision)


def test_the_mean_as_baseline(tmp_path: Path) -> None:
    lake = with_gate(tmp_path, baseline="mean")
    job = write_set(
        lake,
        "one",
        edit_test=lambda table: table.drop_columns("baseline").append_column(
            "baseline", pa.nulls(table.num_rows, pa.float64())
        ),
    )
    decision = judge(lake, MODEL, job, make_version(lake, job, 1), run_id="run")
    assert decision.incumbent == "baseline mean"
    assert "(mean of the training window)" in text(decision)


# ---- a champion that cannot score --------------------------------------------------------------------------------


def test_a_champion_that_lacks_todays_features_gives_way_to_the_baseline(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    crown(toy_lake, make_version(toy_lake, job, 1, features=FEATURES | {"vehicle_daily__gone": "float64"}))
    decision = judge(toy_lake, MODEL, job, make_version(toy_lake, job, 2), run_id="run")
    assert (decision.verdict, decision.incumbent, decision.incumbent_version) == ("promote", "baseline median", None)
    assert decision.evidence["incumbent"]["unusable_champion"]["version"] == 1
    [said] = [check.note for check in decision.checks if check.name == "champion"]
    assert said is not None
    assert "cannot score these rows, so the incumbent is the baseline" in said
    assert "vehicle_daily__gone" in said


def test_a_champion_whose_files_are_gone_gives_no_verdict(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    champion = make_version(toy_lake, job, 1)
    crown(toy_lake, champion)
    (champion.folder / "training_set.json").unlink()
    with pytest.raises(UntrustedModel, match=r"training_set.json is missing, though it was signed"):
        judge(toy_lake, MODEL, job, make_version(toy_lake, job, 2), run_id="run")


def test_a_number_that_the_ledger_gave_to_other_files_is_not_judged(toy_lake: Lake) -> None:
    """MLflow's database was lost, so its numbers began again: the champion must not be taken for the challenger."""
    job = write_set(toy_lake, "one")
    crown(toy_lake, make_version(toy_lake, job, 1))
    again = make_version(toy_lake, job, 2)
    renumbered = dataclasses.replace(again, version=1)
    with pytest.raises(VersionNumberTaken, match=r"version 1 of ride_minutes is .* in the ledger"):
        judge(toy_lake, MODEL, job, renumbered, run_id="run")
    assert read_decisions(toy_lake, MODEL) == []


# ---- storing -----------------------------------------------------------------------------------------------------


def test_the_same_judgement_again_is_the_same_decision_and_commits_nothing(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    decision = judge(toy_lake, MODEL, job, registered, run_id="run")
    table = decisions_table(toy_lake, MODEL).load()
    assert table is not None
    assert judge(toy_lake, MODEL, job, registered, run_id="other run") == decision
    again = decisions_table(toy_lake, MODEL).load()
    assert again is not None
    assert again.version() == table.version()
    assert read_decisions(toy_lake, MODEL) == [decision]
    publication = toy_lake.publications.current(decisions_table(toy_lake, MODEL))[AS_OF]
    assert publication.run_id == "run"
    assert [item.table for item in publication.inputs] == ["rides/features/vehicle_daily"]


def test_a_decision_the_ledger_cites_stands_whoever_reigns_now(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    decision = judge(toy_lake, MODEL, job, registered, run_id="run")
    ledger = toy_lake.ledger(MODEL)
    line = crown(toy_lake, registered)
    assert (
        judge(toy_lake, MODEL, job, registered, run_id="run") == decision
    )  # it is champion now, and not its own incumbent
    ledger.append(
        replace(line, version=9, artifact_digest="9" * 64, evidence_digest=decision.evidence_digest), seen=ledger.read()
    )
    assert judge(toy_lake, MODEL, job, registered, run_id="run") == decision


def test_other_rules_or_another_incumbent_are_another_judgement(toy_lake: Lake, tmp_path: Path) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 2)
    first = judge(toy_lake, MODEL, job, registered, run_id="run")
    crown(toy_lake, make_version(toy_lake, job, 1, miss=0.5))
    second = judge(toy_lake, MODEL, job, registered, run_id="run")
    path = toy_lake.settings.catalogs[0] / "models" / "ride_minutes.yaml"
    path.write_text(path.read_text().replace("better_by: 0.0", "better_by: -0.9").replace("worst: 1.5", "worst: 9"))
    third = judge(Lake(toy_lake.settings, load_catalog(toy_lake.settings)), MODEL, job, registered, run_id="run")
    assert [d.verdict for d in (first, second, third)] == ["promote", "refuse", "refuse"]
    assert read_decisions(toy_lake, MODEL) == [first, second, third]
    assert len({d.evidence_digest for d in (first, second, third)}) == 3


def test_two_judgements_at_once_store_one_decision(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_set(toy_lake, "one")
    registered = make_version(toy_lake, job, 1)
    winner: list[Decision] = []
    real = publish

    def late(*args: Any, **kwargs: Any) -> Any:
        if not winner:
            monkeypatch.setattr(decision_module, "publish", real)
            winner.append(judge(toy_lake, MODEL, job, registered, run_id="winner"))
        return real(*args, **kwargs)

    monkeypatch.setattr(decision_module, "publish", late)
    assert judge(toy_lake, MODEL, job, registered, run_id="loser") == winner[0]
    assert read_decisions(toy_lake, MODEL) == winner


def test_a_stored_decision_that_was_edited_is_not_read(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1, unsure=0.55), run_id="run")
    table = decisions_table(toy_lake, MODEL)
    rows = table.read()
    edited = [json.dumps(json.loads(rows["evidence"][0].as_py()) | {"verdict": "promote"})]
    rows = rows.set_column(rows.column_names.index("evidence"), rows.schema.field("evidence"), pa.array(edited))
    toy.publish_rows(toy_lake, table, rows, Interval.of(AS_OF))
    with pytest.raises(
        DecisionDamaged, match=r"version 1 as of 2024-02-26 whose evidence has digest .* it was changed"
    ):
        read_decisions(toy_lake, MODEL)


def test_as_json_for_airflow(toy_lake: Lake) -> None:
    job = write_set(toy_lake, "one")
    described = write_job(toy_lake.settings.jobs / "described", "linear", model=MODEL) / JOB_FILE
    described.rename(job / JOB_FILE)
    registered = make_version(toy_lake, job, 1)
    document = registered.__dict__ | {"as_of": registered.as_of.isoformat(), "folder": "/etc"}
    for wrong in ({"artifact_digest": "../" * 3}, {"model": "other"}):
        with pytest.raises(ForeignVersion):
            judge_registered(toy_lake, MODEL, str(job), document | wrong, run_id="run")
    found = judge_registered(toy_lake, MODEL, str(job), json.loads(json.dumps(document)), run_id="run")
    assert json.loads(json.dumps(found)) == found
    assert found["verdict"] == "promote"
    assert all(isinstance(reason, str) for reason in found["reasons"])
    assert found["evidence_digest"] == read_decisions(toy_lake, MODEL)[0].evidence_digest
