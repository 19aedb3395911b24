"""Nights of the toy that can be scored: inputs in the lake, champions in the ledger, and a model that needs no
training.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval
from features.transform import transform
from lake.artifact import ArtifactMismatch, combined_digest, folder_digests, verify_files
from lake.lake import Lake
from lake.ledger import Promotion
from lake.promotions import project_promotions
from lake.signature import sign
from serving.predictors import Predictor
from serving.predictors import load_predictor as _load_trained
from tests import toy

MODEL = "ride_minutes"
NIGHTS = Interval.closed(date(2024, 1, 20), date(2024, 1, 24))
FIRST_CHAMPION = date(2024, 1, 21)


class LinearPredictor:
    """`slope * minutes_7d`, an interval around it, and a probability; all from one small file."""

    feature_columns = ("vehicle_daily__rides_7d", "vehicle_daily__minutes_7d")

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def predict(self, batch: pa.Table) -> pa.Table:
        """Row by row, whatever the neighbours."""
        minutes = np.nan_to_num(
            np.asarray(batch["vehicle_daily__minutes_7d"].to_numpy(zero_copy_only=False), dtype=float)
        )
        rides = np.asarray(pc.fill_null(batch["vehicle_daily__rides_7d"], 0).to_numpy(), dtype=float)
        middle = self.slope * minutes + 0.01 * rides
        return pa.table(
            {
                "ride_minutes": middle,
                "ride_minutes_lower": middle - 5,
                "ride_minutes_upper": middle + 5,
                "long_probability": 1 / (1 + np.exp(30 - middle)),
            }
        )


def load_linear(folder: Path) -> Predictor | LinearPredictor:
    """As `serving.predictors.load_predictor`: nothing is loaded before its bytes are verified."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if "model/slope.txt" not in manifest["artifacts"]:
        return _load_trained(folder)  # by a real trainer, beside the ones of these tests
    if combined_digest(manifest["artifacts"]) != folder.name:
        raise ArtifactMismatch(f"{folder} lists other files")
    verify_files(folder, manifest["artifacts"])
    return LinearPredictor(float((folder / "model" / "slope.txt").read_text()))


def publish_inputs(lake: Lake, nights: Interval = NIGHTS) -> None:
    """Valid partitions from the first data date on, and features computed from them by the toy's SQL; made once for
    each catalog and interval, and copied into the lake.
    """
    whole = Interval(toy.FIRST, nights.end)
    key = (lake.catalog.digest("rides"), whole)
    if key not in _inputs:
        folder = Path(tempfile.mkdtemp(prefix="inputs-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        made = Lake(lake.settings.model_copy(update={"home": folder, "sql_url": ""}), lake.catalog)
        toy.publish_valid(made, whole)
        transform(made, "rides", whole, run_id="history")
        made.engine.dispose()
        _inputs[key] = folder
    shutil.copytree(_inputs[key] / "lake", lake.settings.home / "lake", dirs_exist_ok=True)
    lake.settings.scratch.mkdir(parents=True, exist_ok=True)


_inputs: dict[tuple[str, Interval], Path] = {}


def store_model(lake: Lake, slope: float) -> str:
    """A model's folder under its digest; returns the digest."""
    staging = lake.settings.home / f"staging-{slope}"
    (staging / "model").mkdir(parents=True)
    (staging / "model" / "slope.txt").write_text(str(slope))
    artifacts = folder_digests(staging)
    digest = combined_digest(artifacts)
    windows = {"train": {"start": "2024-01-01", "end": "2024-01-15"}}
    training_set = {
        "training_digest": "t" * 64,
        "test_digest": "e" * 64,
        "rows": {"train": 400},
        "windows": windows,
        "pins": {"vehicle_daily": 0},
    }
    job = {
        "as_of": "2024-01-20",
        "identity": "linear",
        "run_id": "trained",
        "code_version": "abc+123",
        "windows": windows,
        "mlflow": {"run_id": "run-of-linear"},
    }
    (staging / "manifest.json").write_text(
        json.dumps({"artifacts": artifacts, "family": "linear", "identity": "linear", "training_set_digest": "t" * 64})
    )
    (staging / "job.json").write_text(json.dumps(job))
    (staging / "training_set.json").write_text(json.dumps(training_set))
    sign(lake.settings, staging, MODEL)
    target = lake.settings.artifacts / MODEL / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(staging)  # stored before: a start that was cut is made again
    else:
        staging.rename(target)
    return digest


def promote(
    lake: Lake, version: int, effective_from: date = FIRST_CHAMPION, *, slope: float | None = None, **fields: Any
) -> Promotion:
    """Append a promotion of a stored model to the ledger, and to SQL."""
    ledger = lake.ledger(MODEL)
    promotion = Promotion(
        model=MODEL,
        version=version,
        trained_until=fields.pop("trained_until", min(effective_from, FIRST_CHAMPION) - timedelta(days=1)),
        effective_from=effective_from,
        decided_at=datetime(2024, 1, 21, tzinfo=UTC),
        by="gate",
        artifact_digest=store_model(lake, slope if slope is not None else 1.0 + version / 8),
        evidence_digest=f"evidence-{version}",
        **fields,
    )
    project_promotions(lake, MODEL, seen=ledger.append(promotion, seen=ledger.read()))
    return promotion


def restate_features(lake: Lake, day: date) -> None:
    """Other values in one night's features, as a `restate` leaves them."""
    rows = toy.vehicle_daily(lake, Interval.of(day), seed=99)
    toy.publish_features(lake, Interval.of(day), rows=rows)


def use_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scoring load the linear model."""
    monkeypatch.setattr("serving.predictors.load_predictor", load_linear)


def scored_nights() -> Interval:
    """The nights that have a champion."""
    return Interval(FIRST_CHAMPION, NIGHTS.end)


__all__ = [
    "FIRST_CHAMPION",
    "MODEL",
    "NIGHTS",
    "ONE_DAY",
    "promote",
    "publish_inputs",
    "restate_features",
    "scored_nights",
    "store_model",
    "use_linear",
]
