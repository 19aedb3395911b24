"""Nothing stands in for anything here: features from SQL, a trained model, and the same bits in bulk, by night and
alone.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from config.calendar import Interval
from lake.artifact import combined_digest
from lake.lake import Lake
from lake.ledger import Promotion
from monitoring.audit.trace import reproduce, trace
from serving.predictions import predictions_table
from serving.predictors import read_manifest
from serving.projection import project_predictions
from serving.score import score
from tests import toy
from tests.serving.scenario import MODEL, publish_inputs
from training.__main__ import run
from training.registry.job import prepare_job
from training.registry.register import store

AS_OF = date(2024, 2, 18)
NIGHTS = Interval.closed(date(2024, 2, 18), date(2024, 2, 21))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """History, and a first champion trained on it as of `AS_OF`; MLflow is not there."""
    toy_lake = toy.toy_lake(tmp_path_factory.mktemp("trained"))
    publish_inputs(toy_lake, NIGHTS)
    job_dir = prepare_job(toy_lake, MODEL, as_of=AS_OF, run_id="train")
    run(job_dir)
    digest = combined_digest(read_manifest(job_dir)["artifacts"])
    store(toy_lake, MODEL, job_dir, digest)
    ledger = toy_lake.ledger(MODEL)
    promotion = Promotion(MODEL, 1, AS_OF, AS_OF, datetime(2024, 2, 19, tzinfo=UTC), "gate", digest, "evidence")
    ledger.append(promotion, seen=ledger.read())
    return toy_lake


def test_a_trained_model_scores_the_same_in_bulk_by_night_and_alone(trained: Lake, tmp_path: Path) -> None:
    nightly = Lake(trained.settings.model_copy(update={"home": tmp_path / "nightly"}), trained.catalog)
    shutil.copytree(trained.settings.home, nightly.settings.home)
    score(trained, MODEL, NIGHTS, run_id="bulk")
    for night in NIGHTS:
        score(nightly, MODEL, Interval.of(night), run_id="nightly")
    table = predictions_table(trained.settings, trained.model(MODEL))
    digests = trained.publications.digests(table, NIGHTS)
    assert None not in digests.values()
    assert nightly.publications.digests(predictions_table(nightly.settings, nightly.model(MODEL)), NIGHTS) == digests

    project_predictions(trained, MODEL, NIGHTS, run_id="bulk")
    for row in table.read([NIGHTS.last]).slice(0, 3).to_pylist():
        found = reproduce(trained, row["prediction_id"])
        assert all(step.equal for step in found.steps), [step for step in found.steps if not step.equal]


def test_its_trace_names_the_training_set(trained: Lake) -> None:
    score(trained, MODEL, NIGHTS, run_id="bulk")
    project_predictions(trained, MODEL, NIGHTS, run_id="bulk")
    row = predictions_table(trained.settings, trained.model(MODEL)).read([NIGHTS.start]).to_pylist()[0]
    version = trace(trained, row["prediction_id"]).version
    described = json.loads((Path(version.folder) / "training_set.json").read_text())
    assert (version.family, version.as_of, version.missing) == ("xgboost", AS_OF.isoformat(), ())
    assert version.training_digest == described["training_digest"]
    assert version.windows is not None
    assert set(version.windows) == {"train", "validation", "test"}
    newest = max(date.fromisoformat(w["end"]) for w in version.windows.values()) - timedelta(days=1)
    assert newest < row["data_date"]
