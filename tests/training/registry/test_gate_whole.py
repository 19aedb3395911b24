"""The gate over a real training: features by SQL, a training set by Feast, XGBoost, and a leak that makes the model
better.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from config.calendar import Interval
from features.transform import transform
from lake.artifact import combined_digest
from lake.lake import Lake
from serving.predictors import read_manifest
from tests import toy
from training.__main__ import run
from training.registry.gate import judge
from training.registry.job import prepare_job
from training.registry.promotion import promote
from training.registry.register import Registered, store

MODEL = "ride_minutes"
AS_OF = date(2024, 3, 1)

# What is asked for: the shortest and the longest of the vehicle's rides of tomorrow.
ORACLE_SQL = """
SELECT n.data_date, o.vehicle, CAST(min(o.minutes) AS BIGINT) AS rides_7d, CAST(max(o.minutes) AS DOUBLE) AS minutes_7d
FROM nights AS n
INNER JOIN outcomes AS o ON o.end_utc > n.cutoff_utc AND o.end_utc <= n.cutoff_utc + INTERVAL 24 HOUR
GROUP BY n.data_date, o.vehicle
"""


def trained(folder: Path, sql: str) -> tuple[Lake, Path, Registered]:
    """Two months of rides, and a model trained on them."""
    lake = toy.toy_lake(folder, sql={"rides/vehicle_daily.sql": sql})
    history = Interval.closed(toy.FIRST, AS_OF)
    toy.publish_valid(lake, history, per_day=60)
    transform(lake, "rides", history, run_id="history")
    job_dir = prepare_job(lake, MODEL, as_of=AS_OF, run_id="train")
    run(job_dir)
    digest = combined_digest(read_manifest(job_dir)["artifacts"])
    return lake, job_dir, Registered(MODEL, 1, digest, "run", AS_OF, store(lake, MODEL, job_dir, digest))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path, Registered]:
    return trained(tmp_path_factory.mktemp("honest"), toy.VIEW_SQL)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path, Registered]:
    return trained(tmp_path_factory.mktemp("leaking"), ORACLE_SQL)


def test_an_honest_model_that_beats_the_baseline_is_promoted(honest: tuple[Lake, Path, Registered]) -> None:
    lake, job_dir, registered = honest
    decision = judge(lake, MODEL, job_dir, registered, run_id="gate")
    assert decision.verdict == "promote", [str(reason) for reason in decision.reasons]
    assert decision.evidence["leakage"]["differing"] == 0
    assert decision.evidence["leakage"]["cells"] > 300
    assert 0.6 < decision.evidence["coverage"]["ride_minutes"]["found"] <= 1
    line = promote(lake, decision, registered, by="test")
    assert line is not None
    assert (line.trained_until, line.effective_from) == (AS_OF, date(2024, 3, 2))
    assert judge(lake, MODEL, job_dir, registered, run_id="cleared") == decision


def test_the_bytes_that_were_gated_are_the_bytes_promoted(honest: tuple[Lake, Path, Registered]) -> None:
    lake, job_dir, registered = honest
    decision = judge(lake, MODEL, job_dir, registered, run_id="gate")
    assert decision.evidence["subject"]["artifact_digest"] == registered.artifact_digest == registered.folder.name
    assert registered.folder == lake.settings.artifacts / MODEL / registered.artifact_digest


def test_a_leak_planted_in_a_features_sql_is_refused_though_the_model_is_better(
    honest: tuple[Lake, Path, Registered], leaking: tuple[Lake, Path, Registered]
) -> None:
    fair = judge(honest[0], MODEL, honest[1], honest[2], run_id="gate")
    lake, job_dir, registered = leaking
    decision = judge(lake, MODEL, job_dir, registered, run_id="gate")
    assert decision.verdict == "refuse"
    assert (
        decision.evidence["outputs"]["ride_minutes"]["challenger"]
        < fair.evidence["outputs"]["ride_minutes"]["challenger"]
    )
    assert {reason.code for reason in decision.reasons} == {"leakage"}
    [reason] = decision.reasons
    assert "differ from what was known then; none may." in reason.text
    assert "vehicle_daily.minutes_7d" in reason.text or "vehicle_daily.(row)" in reason.text
    assert promote(lake, decision, registered, by="test") is None
    assert lake.ledger(MODEL).read().promotions == ()
