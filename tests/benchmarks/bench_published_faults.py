"""Sensor faults that are planted in the simulated fleet, found without labels by the families of `anomaly_detector`.

In every fortnight a batch of each of the five sensors reads too much, by three times what the sensor errs by on a day,
in one vehicle of a hundred; so one row of twenty is of a vehicle with a bad sensor. A row is a vehicle's evening. Its
inputs are how far each sensor's mean of the last 1, 3 and 7 evenings lies above that of 42 evenings which ended a
fortnight ago, less what weather, work and wear of the pads explain. The families learn from 84 nights, faults among
them, without knowing which; 28 nights choose the threshold, 56 are judged.

The possible is Bayes' rule by who knows what each sensor should read, the size of the faults and when a batch comes:
tonight's readings alone, and all since the batch came, which nobody who knew less could beat. The documents claim F1
0.90 and AUC 0.93, of faults that nobody describes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.catalog.simulation import WORLDS, BadSensors
from features.sources.simulation.fleet.telemetry import vehicle_days
from features.sources.simulation.fleet.vehicles import Fleet
from serving.metrics import metric_named
from serving.predictors import load_predictor
from tests.benchmarks.published_stages import row
from tests.training.jobs import write_job
from training.__main__ import run as trained

Floats = npt.NDArray[np.float64]

# What each sensor errs by on a day: features/sources/simulation/fleet/telemetry.py.
ERRORS: Mapping[str, float] = {
    "engine_temp": 2.5, "vibration": 0.06, "oil_pressure": 0.25, "brake_temp": 15.0, "pad_mm": 0.7,
}  # fmt: skip
# What a night has beside them that explains a part: the air, the day's work, and how far pads are worn.
BESIDE = ("ambient_temp", "distance_km", "harsh_braking", "pads_energy_mj")
SIZE, SHARE, DAYS = 3.0, 0.01, 14
SPANS = (1, 3, 7)
WARM_UP, TRAIN, VALIDATION, TEST = 56, 84, 28, 56
FAMILIES: Mapping[str, dict[str, Any]] = {
    "ecod": {"combine": "max", "tails": "upper"},
    "isolation_forest": {"n_estimators": 200, "max_samples": 4096},
}
DOCUMENTS = {"f1": 0.90, "roc_auc": 0.93}


def run(folder: Path, vehicles: int = 300) -> list[dict[str, Any]]:
    """Each family and each optimum; rows with what, seconds, against, ratio (ours to the documents' AUC), aim."""
    fleet = Fleet(7, vehicles, batches())
    readings, beside, faulty, evidence = drawn(fleet)
    inputs = departures(explained(readings, beside, fleet.type_of))
    nights = np.arange(WARM_UP, WARM_UP + TRAIN + VALIDATION + TEST)
    label: npt.NDArray[np.bool_] = np.logical_or.reduce(faulty[nights], axis=2)
    tuned, judged = slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, None)
    scores: dict[str, tuple[Floats, float]] = {
        "possible, by tonight's readings": (posterior(evidence)[nights], 0.0),
        "possible, by all readings since a batch came": (posterior(since_the_batch(evidence))[nights], 0.0),
    }
    for family, params in FAMILIES.items():
        began = time.perf_counter()
        scores[family] = found(folder / family, family, params, inputs[nights], label), time.perf_counter() - began
    return [
        figures(name, label[tuned], score[tuned], label[judged], score[judged], seconds)
        for name, (score, seconds) in scores.items()
    ]


def batches() -> tuple[BadSensors, ...]:
    """A batch of each sensor in each fortnight; each begins on a day of its own, which draws its vehicles."""
    begins, planted = WORLDS["fleet"].begins + timedelta(days=WARM_UP), []
    for start in range(0, TRAIN + VALIDATION + TEST, DAYS):
        for place, (sensor, error) in enumerate(ERRORS.items()):
            first = begins + timedelta(days=start + place)
            planted.append(
                BadSensors.model_validate(
                    {
                        "kind": "bad_sensors",
                        "sensor": sensor,
                        "offset": SIZE * error,
                        "share": SHARE,
                        "from": first,
                        "to": first + timedelta(days=DAYS - 1),
                    }
                )
            )
    return tuple(planted)


def drawn(fleet: Fleet) -> tuple[Floats, Floats, npt.NDArray[np.bool_], Floats]:
    """Readings, NaN where one is missing; the numbers beside them; which readings are faulty; and what each says for a
    fault by Bayes' rule, the logarithm of how much more probable it is with one: (nights, vehicles, …) each.
    """
    first = WORLDS["fleet"].begins.toordinal()
    shape = (WARM_UP + TRAIN + VALIDATION + TEST, fleet.vehicles, len(ERRORS))
    readings, faulty, evidence = np.full(shape, np.nan), np.zeros(shape, np.bool_), np.zeros(shape)
    beside = np.zeros((*shape[:2], len(BESIDE)))
    for night in range(shape[0]):
        day = first + night
        table = vehicle_days(fleet, day)
        beside[night] = np.column_stack([table[name].to_numpy() for name in BESIDE])
        for place, sensor in enumerate(ERRORS):
            readings[night, :, place] = table[sensor].to_numpy(zero_copy_only=False)
            for batch in fleet.planted(BadSensors):
                if batch.sensor == sensor and batch.first.toordinal() <= day <= batch.last.toordinal():
                    faulty[night, :, place] |= fleet.chosen(batch)
            error = fleet.normals(sensor, day) + SIZE * faulty[night, :, place]
            known = ~np.isnan(readings[night, :, place])
            evidence[night, :, place] = np.where(known, SIZE * error - SIZE**2 / 2.0, 0.0)
    return readings, beside, faulty & ~np.isnan(readings), evidence


def explained(readings: Floats, beside: Floats, types: npt.NDArray[np.int64]) -> Floats:
    """Readings less what the columns beside them explain, by a line for each sensor and type of vehicle through the
    nights that are learned from: (nights, vehicles, sensors).
    """
    left = np.full_like(readings, np.nan)
    for kind in np.unique(types):
        of = types == kind
        columns = np.concatenate([beside[:, of], np.ones((*beside[:, of].shape[:2], 1))], axis=2)
        for place in range(readings.shape[2]):
            target = readings[:, of, place]
            known = ~np.isnan(target[: WARM_UP + TRAIN])
            weights, *_ = np.linalg.lstsq(
                columns[: WARM_UP + TRAIN][known], target[: WARM_UP + TRAIN][known], rcond=None
            )
            left[:, of, place] = target - columns @ weights
    return left


def departures(left: Floats) -> Floats:
    """How far the means of the last 1, 3 and 7 evenings lie above that of 42 evenings that ended a fortnight ago:
    (nights, vehicles, 3 * sensors).
    """
    inputs = np.full((*left.shape[:2], len(SPANS) * left.shape[2]), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a vehicle without the sensor has a mean of nothing
        for night in range(WARM_UP, len(left)):
            usual = np.nanmean(left[night - 55 : night - 13], axis=0)
            means = [np.nanmean(left[night - span + 1 : night + 1], axis=0) - usual for span in SPANS]
            inputs[night] = np.concatenate(means, axis=1)
    return inputs


def since_the_batch(evidence: Floats) -> Floats:
    """The evidence of all evenings since the batch came that each sensor's could be of."""
    summed = evidence.copy()
    for place in range(len(ERRORS)):
        for night in range(WARM_UP, len(evidence)):
            if (night - WARM_UP - place) % DAYS:
                summed[night, :, place] += summed[night - 1, :, place]
    return summed


def posterior(evidence: Floats) -> Floats:
    """The probability that any sensor is faulty, (nights, vehicles)."""
    odds = SHARE / (1.0 - SHARE) * np.exp(evidence)
    none: Floats = (1.0 / (1.0 + odds)).prod(axis=2)
    return 1.0 - none


def found(folder: Path, family: str, params: dict[str, Any], inputs: Floats, label: npt.NDArray[np.bool_]) -> Floats:
    """The family's score of every row, (nights, vehicles); it learns without labels."""
    names = [f"v__{sensor}_{span}" for span in SPANS for sensor in ERRORS]
    output = {"odd": {"kind": "anomaly", "above": 0.5, "share": len(ERRORS) * SHARE}}
    nights = np.repeat(np.arange(len(inputs)), inputs.shape[1])
    flat = inputs.reshape(-1, inputs.shape[2])
    rows = pa.table(
        {
            **{name: pa.array(flat[:, place], from_pandas=True) for place, name in enumerate(names)},
            "data_date": pa.array(19_700 + nights, pa.int32()).cast(pa.date32()),
            "label": label.reshape(-1).astype(np.float64),
            "baseline": pa.nulls(len(flat), pa.float64()),
            "split": np.where(nights < TRAIN, "train", "validation"),
        }
    )
    job_dir = write_job(
        folder,
        family,
        rows=rows.filter(pa.array(nights < TRAIN + VALIDATION)),
        params=params,
        entry={"outputs": output, "trainer": {"family": family, "device": "auto"}},
        feature_columns=dict.fromkeys(names, "float64"),
        output_columns=["odd", "odd_is_anomaly", "odd_type", "odd_severity"],
    )
    trained(job_dir)
    score: Floats = load_predictor(job_dir).predict(rows)["odd"].to_numpy()
    return score.reshape(label.shape)


def figures(
    name: str,
    tuned: npt.NDArray[np.bool_],
    tuning: Floats,
    judged: npt.NDArray[np.bool_],
    scores: Floats,
    seconds: float,
) -> dict[str, Any]:
    """F1 at the threshold that is best on the validation nights, and the areas under both curves, on the test's."""
    truth, score = judged.reshape(-1).astype(np.float64), scores.reshape(-1)
    flagged = score >= best_threshold(tuned.reshape(-1), tuning.reshape(-1))
    hits = float(truth[flagged].sum())
    precision, recall = hits / max(flagged.sum(), 1), hits / truth.sum()
    f1 = 2.0 * hits / (flagged.sum() + truth.sum())
    area, average = (metric_named(metric).value(truth, score) for metric in ("roc_auc", "average_precision"))
    assert area is not None
    what = (
        f"sensor faults, {name}, {len(truth):,} evenings, {truth.mean():.1%} faulty: F1 {f1:.3f} "
        f"(precision {precision:.3f}, recall {recall:.3f}), AUC {area:.3f}, average precision {average:.3f}"
    )
    claimed = f"documents: F1 {DOCUMENTS['f1']}, AUC {DOCUMENTS['roc_auc']}"
    return row(what, seconds, claimed, area / DOCUMENTS["roc_auc"])


def best_threshold(truth: npt.NDArray[np.bool_], score: Floats) -> float:
    """The least score to be flagged where F1 is largest."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2.0 * hits / (np.arange(1, len(score) + 1) + truth.sum())
    return float(score[order][f1.argmax()])
