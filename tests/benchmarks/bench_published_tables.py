"""Static public tables that were made nightly, beside their published figures: whole histories, trained as processes.

Customers: IBM's Telco Customer Churn. Published figures hold out a random quarter; here the customers of the last
    nights are held out, and since a hash deals the customers to the nights, that is a random share, too.

Projects: the World Bank's ratings. The published figure learns from approvals before 2010 with every rating the file
    has, and is judged on those from 2010 on. Ours learns from what was rated by the eve of the first night, of
    approvals up to 2003, and is judged on the same projects.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.metrics import metric_named
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.registry.job import gate_folder

# ROC-AUC on a random quarter: logistic regression 0.8465, gradient boosting 0.8460; PROVENANCE.md says where from.
PUBLISHED_CHURN = 0.846
# ROC-AUC, approvals before 2010 against those from 2010 on.
PUBLISHED_SUCCESS = 0.595
# Nights of the replay on which the fiscal years 2010 and 2016 begin, and 2026 ends.
YEAR_2010, RATED_LAST = date(2002, 1, 20), date(2002, 8, 11)
YEAR_2016 = date(2002, 4, 2)


def run(folder: Path) -> list[dict[str, Any]]:
    """Every table; rows with what, seconds, against, ratio (ours to the published figure), aim."""
    return [*customers(folder / "customers"), *projects(folder / "projects"), *closings(folder / "closings")]


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


def projects(folder: Path) -> list[dict[str, Any]]:
    """Success: every candidate on the gate's three years, and on the projects of the published figure."""
    lake, rows = history(folder, "projects", last=RATED_LAST)
    jobs, prepared = prepare(lake, "project_success")
    rows.append(prepared)
    test = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    later = later_nights(lake, "project_success", test)
    later = later.filter(pc.greater_equal(later["data_date"], YEAR_2010))
    output = lake.model("project_success").outputs["success_probability"]
    area_of, brier_of = metric_named("roc_auc"), metric_named("brier")
    for job_dir in jobs:
        seconds = train(lake, "project_success", job_dir)
        manifest = read_manifest(job_dir)
        predictor = load_predictor(job_dir)
        figures = []
        for judged in (test, later):
            truth = output.truth(judged["label"].to_numpy())
            probability = predictor.predict(judged)["success_probability"].to_numpy()
            figures.append((len(truth), area_of.value(truth, probability), brier_of.value(truth, probability)))
        (gated, gate_area, gate_brier), (count, area, _) = figures
        what = (
            f"project_success {manifest['family']}, {count:,} projects approved from 2010 on: AUC {area:.4f}; "
            f"the gate's {gated:,}: AUC {gate_area:.4f}, Brier {gate_brier:.4f} "
            f"(validation {manifest['metrics']['success_probability/brier']:.4f})"
        )
        rows.append(row(what, seconds, f"published AUC {PUBLISHED_SUCCESS}", area and area / PUBLISHED_SUCCESS))
    return rows


def closings(folder: Path) -> list[dict[str, Any]]:
    """Completion time: every candidate on the gate's three years, and on the projects approved from 2010 on."""
    lake, rows = history(folder, "project_closings", last=RATED_LAST)
    jobs, prepared = prepare(lake, "project_duration")
    rows.append(prepared)
    test = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    later = later_nights(lake, "project_duration", test)
    # Of later approvals the file has those that closed early.
    later = later.filter(
        pc.and_(pc.greater_equal(later["data_date"], YEAR_2010), pc.less(later["data_date"], YEAR_2016))
    )
    learned = pq.read_table(jobs[0] / "training_set.parquet", filters=[("split", "=", "train")])["label"]
    median = pc.approximate_median(learned).as_py()
    for job_dir in jobs:
        seconds = train(lake, "project_duration", job_dir)
        manifest = read_manifest(job_dir)
        for judged, name in ((test, "the gate's"), (later, "approved 2010 to 2015")):
            truth, said = judged["label"].to_numpy(), load_predictor(job_dir).predict(judged)
            held = (truth >= said["years_lower"].to_numpy()) & (truth <= said["years_upper"].to_numpy())
            ours, baseline = (abs(each - truth).mean() for each in (said["years"].to_numpy(), median))
            what = (
                f"project_duration {manifest['family']}, {name} {len(truth):,} projects: MAE {ours:.3f} years, "
                f"{held.mean():.0%} in the interval (validation MAE {manifest['metrics']['years/mae']:.3f})"
            )
            rows.append(row(what, seconds, f"median of training: {baseline:.3f}", float(ours / baseline)))
    return rows
