"""A month of the toy, a champion with its reference, and scored nights: what monitoring looks at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval
from config.catalog.load import load_catalog
from features.training_set import build_training_set
from lake.assignment import Assignment, Plan
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.rollouts import RolloutSnapshot
from lake.signature import sign
from lake.tables import valid_table
from serving.score import Planned, score
from tests import toy
from tests.serving import scenario as serving
from tests.serving.scenario import MODEL, LinearPredictor
from training.registry.decision import store_decision
from training.registry.reference import build_reference, write_reference_sample

PER_DAY = 40
HISTORY = Interval.closed(toy.FIRST, date(2024, 2, 20))
AS_OF = date(2024, 2, 9)
SCORED = Interval(AS_OF + ONE_DAY, HISTORY.end)
NIGHT = date(2024, 2, 15)
GATE_RATIO = 0.8
KINDS = {"vehicle_daily__rides_7d": "int64", "vehicle_daily__minutes_7d": "float64"}


def inputs(lake: Lake, *, empty_night: date | None = None) -> None:
    """Valid and feature partitions of all nights; `empty_night` has no bookings."""
    toy.publish_valid(lake, HISTORY, per_day=PER_DAY)
    if empty_night is not None:
        table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
        toy.publish_rows(lake, table, table.schema.empty_table(), Interval.of(empty_night))
    toy.publish_features(lake, HISTORY)


def champion(
    lake: Lake, folder: Path, *, version: int = 1, effective_from: date = SCORED.start, slope: float = 0.75
) -> Promotion:
    """Build the training set as of AS_OF, promote a linear model, and store reference and sample beside its files."""
    built = build_training_set(lake, MODEL, AS_OF, folder)
    promotion = serving.promote(lake, version, effective_from, slope=slope, trained_until=AS_OF)
    store_reference(lake, promotion, built.training_path, slope=slope)
    return promotion


def store_reference(lake: Lake, promotion: Promotion, training_path: Path, *, slope: float) -> None:
    """What registering leaves beside a version's files."""
    predictions = LinearPredictor(slope).predict(pq.read_table(training_path))
    target = lake.settings.artifacts / MODEL / promotion.artifact_digest
    reference = build_reference([training_path], KINDS, lake.model(MODEL), predictions)
    (target / "reference.json").write_text(json.dumps(reference))
    write_reference_sample([training_path], target, 7, KINDS, predictions)
    sign(lake.settings, target, MODEL)


def change_reference(lake: Lake, promotion: Promotion | None, change: Mapping[str, Any]) -> None:
    """Overwrite top-level keys of the stored profile."""
    path = lake.settings.artifacts / MODEL / promotion.artifact_digest / "reference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(change)))
    sign(lake.settings, path.parent, MODEL)


def decide_gate(
    lake: Lake, version: int = 1, *, ratio: float = GATE_RATIO, as_of: date = AS_OF, verdict: str = "promote"
) -> None:
    """A stored gate decision whose error over baseline is `ratio` for both outputs."""
    judged = {"challenger": ratio, "rival": 1.0, "baseline": 1.0}
    outputs = {
        name: {"metric": metric, **judged} for name, metric in (("ride_minutes", "mae"), ("long_probability", "brier"))
    }
    evidence = {
        "model": MODEL,
        "version": version,
        "as_of": as_of.isoformat(),
        "verdict": verdict,
        "reasons": [],
        "checks": [],
        "rival": {"name": "baseline median", "version": None},
        "test": {"nights": [], "rows": 0},
        "outputs": outputs,
        "subject": {"artifact_digest": f"a{version}"},
    }
    store_decision(lake, evidence, run_id="gate", inputs=[])


def with_features(lake: Lake, night: date, **values: Any) -> None:
    """Replace columns of one night's features: `minutes_7d=` a function of the old NumPy values, or an Arrow array."""
    rows = toy.vehicle_daily(lake, Interval.of(night))
    for name, value in values.items():
        index = rows.column_names.index(name)
        new = pa.array(value(np.asarray(rows[name].to_numpy()))) if callable(value) else value
        rows = rows.set_column(index, name, new.cast(rows.schema.field(name).type))
    toy.publish_features(lake, Interval.of(night), rows=rows)


def copy_of(lake: Lake, folder: Path) -> Lake:
    """The same state in another folder, to be changed."""
    source = lake.settings.home.parent
    shutil.copytree(source, folder, dirs_exist_ok=True)
    settings = lake.settings.model_copy(update={"home": folder / "var", "catalogs": (folder,)})
    return Lake(settings, load_catalog(settings))


def with_challenger(lake: Lake, folder: Path) -> Planned:
    """A second version with its reference in the ledger, far in the future; returns a plan in which it runs along."""
    champion(lake, folder, version=2, effective_from=HISTORY.end + 300 * ONE_DAY, slope=0.5)

    def plan(ledger: LedgerSnapshot, rollouts: RolloutSnapshot, night: date) -> Plan:
        first, second = ledger.promotions
        return (
            Assignment("champion", 1, first.artifact_digest, 1.0, first.sequence),
            Assignment("challenger", 2, second.artifact_digest, 0.0, second.sequence),
        )

    return plan


def score_all(lake: Lake, interval: Interval = SCORED) -> None:
    """Score with the linear model."""
    score(lake, MODEL, interval, run_id="score")
