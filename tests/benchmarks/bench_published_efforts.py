"""Hours of software projects beside published protocols, by the real stages and by leave-one-out.

China: the projects of the gate's test and later nights, of which nothing was known when the model learned. Kitchenham:
    145 projects of one company, with the first estimate of the manager who knew the work.

Published figures leave one project out at a time and learn from all others, also from later ones. So do the lines here
that say leave-one-out: a straight line through logarithms (Whigham, Owen and MacDonell, TOSEM 24(3), 2015, propose it
as the baseline of all methods), in closed form.
"""

from __future__ import annotations

import csv
import gzip
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from config.settings import ROOT
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]

MODEL = "project_effort"
DATA = ROOT / "features" / "sources" / "data" / "promise_effort"
# When the last of the projects has ended.
ALL_ENDED = date(2010, 9, 12)
SIZES = ("AFP", "Input", "Output", "Enquiry", "File", "Interface", "Added", "Changed", "Deleted")


def relative_errors(truth: Floats, predicted: Floats) -> tuple[float, float, float]:
    """MMRE, MdMRE and PRED(25): mean and median of the error as a share of the truth, and the share of projects whose
    error is a quarter of the truth or less.
    """
    share = np.abs(predicted - truth) / truth
    return float(share.mean()), float(np.median(share)), float((share <= 0.25).mean())


def leave_one_out(inputs: Floats, truth: Floats) -> Floats:
    """What a least squares line through all other rows says of each row, (rows,).

    Args:
        inputs: (rows, columns), without a constant.
        truth: (rows,).
    """
    columns = np.column_stack([np.ones(len(truth)), inputs])
    orthogonal, _ = np.linalg.qr(columns)
    leverage = np.square(orthogonal).sum(axis=1)
    fitted = orthogonal @ (orthogonal.T @ truth)
    left_out: Floats = truth - (truth - fitted) / (1.0 - leverage)
    return left_out


def run(folder: Path) -> list[dict[str, Any]]:
    """Both companies; rows with what, seconds, against, ratio (our MMRE to the other), aim."""
    return [*nightly(folder / "software"), *china(), *kitchenham()]


def nightly(folder: Path) -> list[dict[str, Any]]:
    """Every candidate on the projects of all nights after validation."""
    lake, rows = history(folder, "software", last=ALL_ENDED)
    jobs, prepared = prepare(lake, MODEL)
    rows.append(prepared)
    test = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    judged = pa.concat_tables([test, later_nights(lake, MODEL, test)])
    truth = judged["label"].to_numpy()
    learned = pq.read_table(jobs[0] / "training_set.parquet", filters=[("split", "=", "train")])["label"].to_numpy()
    median = np.full(len(truth), np.median(learned))
    law = judged["specification__hours_by_size"].to_numpy()
    rows += [_row(f"{MODEL}, {name}", truth, said) for name, said in (("the median", median), ("the power law", law))]
    for job_dir in jobs:
        seconds = train(lake, MODEL, job_dir)
        manifest = read_manifest(job_dir)
        said = load_predictor(job_dir).predict(judged)
        held = (truth >= said["hours_lower"].to_numpy()) & (truth <= said["hours_upper"].to_numpy())
        validated = f"{held.mean():.0%} in the interval, validation MAE {manifest['metrics']['hours/mae']:.0f}"
        rows.append(
            _row(f"{MODEL} {manifest['family']}", truth, said["hours"].to_numpy(), more=validated, seconds=seconds)
        )
    return rows


def china() -> list[dict[str, Any]]:
    """Leave-one-out on all 499."""
    table = _table("china")
    hours = _numbers(table, "Effort")
    sizes = np.log1p(np.column_stack([_numbers(table, name) for name in SIZES]))
    return [
        _row(f"China, leave-one-out, line through logarithms of {name}", hours, np.exp(_left_out(inputs, hours)))
        for name, inputs in (("function points", sizes[:, :1]), ("nine sizes", sizes))
    ]


def kitchenham() -> list[dict[str, Any]]:
    """Leave-one-out on all 145, without and with the manager's first estimate."""
    table = _table("kitchenham")
    hours, estimate = _numbers(table, "Actual.effort"), _numbers(table, "First.estimate")
    points = np.log(_numbers(table, "Adjusted.function.points"))[:, None]
    both = np.column_stack([points, np.log(estimate)])
    human = relative_errors(hours, estimate)[0]
    rows = [_row("Kitchenham, the manager's first estimate", hours, estimate)]
    for name, inputs in (("function points", points), ("function points and first estimate", both)):
        line = _row(
            f"Kitchenham, leave-one-out, line through logarithms of {name}", hours, np.exp(_left_out(inputs, hours))
        )
        rows.append(line | {"against": f"the manager's MMRE {human:.3f}", "ratio": line["ratio"] / human})
    return rows


def _left_out(inputs: Floats, hours: Floats) -> Floats:
    return leave_one_out(inputs, np.log(hours))


def _row(what: str, truth: Floats, predicted: Floats, *, more: str = "", seconds: float = 0.0) -> dict[str, Any]:
    mean, median, within = relative_errors(truth, predicted)
    distance = float(np.abs(predicted - truth).mean())
    figures = f"MMRE {mean:.3f}, MdMRE {median:.3f}, PRED(25) {within:.3f}, MAE {distance:,.0f} h"
    return row(f"{what}, {len(truth)} projects: {figures}{f', {more}' if more else ''}", seconds, "MMRE", mean)


def _table(name: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _numbers(table: list[dict[str, str]], column: str) -> Floats:
    return np.array([float(record[column]) for record in table])
