"""Static public tables that were made nightly, beside their published figures: whole histories, trained as processes.

Customers: IBM's Telco Customer Churn. Published figures hold out a random quarter; here the customers of the last
    nights are held out, and since a hash deals the customers to the nights, that is a random share, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serving.metrics import metric_named
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.registry.job import gate_folder

# ROC-AUC on a random quarter: logistic regression 0.8465, gradient boosting 0.8460; PROVENANCE.md says where from.
PUBLISHED_CHURN = 0.846


def run(folder: Path) -> list[dict[str, Any]]:
    """Every table; rows with what, seconds, against, ratio (ours to the published figure), aim."""
    return customers(folder / "customers")


def customers(folder: Path) -> list[dict[str, Any]]:
    """Churn: every candidate on the customers of all nights after validation."""
    lake, rows = history(folder, "customers")
    jobs, prepared = prepare(lake, "user_behavior")
    rows.append(prepared)
    test = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    judged = pa.concat_tables([test, later_nights(lake, "user_behavior", test)])
    output = lake.model("user_behavior").outputs["churn_probability"]
    truth = output.truth(judged["label"].to_numpy())
    for job_dir in jobs:
        seconds = train(lake, "user_behavior", job_dir)
        manifest = read_manifest(job_dir)
        probability = load_predictor(job_dir).predict(judged)["churn_probability"].to_numpy()
        area, precision, brier = (
            metric_named(name).value(truth, probability) for name in ("roc_auc", "average_precision", "brier")
        )
        validated = manifest["metrics"]["churn_probability/brier"]
        what = (
            f"user_behavior {manifest['family']}, {len(truth):,} customers held out: AUC {area:.4f}, "
            f"average precision {precision:.4f}, Brier {brier:.4f} (validation {validated:.4f})"
        )
        rows.append(row(what, seconds, f"published AUC {PUBLISHED_CHURN}", area and area / PUBLISHED_CHURN))
    return rows
