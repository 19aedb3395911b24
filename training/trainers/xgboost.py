"""Gradient-boosted trees: a median or mean with an interval, and calibrated probabilities.

A fit that was killed goes on from its checkpoint and ends in the same bytes: what a round samples follows from the seed
and the round alone. A training set that lies in a memory map is quantised slice by slice into files of the scratch
folder.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from config.catalog.output import Task
from serving.predictors.contract import Contract, write_json
from serving.predictors.xgboost import DETAILS_FILE, margin_odds
from training.rows import slices
from training.trainers import (
    FamilyParams,
    Fitted,
    Floats,
    NoGpu,
    Rows,
    Run,
    TrainingDiverged,
    normalised,
    truth_to_learn,
)
from training.trainers.calibration import Method, fit_calibration, fit_class_calibrations, fit_interval

_SAY_EVERY = 50
_BOOSTER_FILE, _CURVES_FILE = "booster.ubj", "curves.json"


class Params(FamilyParams):
    """What a catalog or a form may set."""

    n_estimators: int = Field(300, ge=1, le=100_000)
    max_depth: int = Field(6, ge=1, le=30)
    learning_rate: float = Field(0.1, gt=0, le=1)
    min_child_weight: float = Field(20.0, ge=0)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample_bytree: float = Field(0.8, gt=0, le=1)
    reg_lambda: float = Field(1.0, ge=0)
    reg_alpha: float = Field(0.0, ge=0)
    gamma: float = Field(0.0, ge=0)
    max_bin: int = Field(256, ge=2, le=65_536)
    max_cat_to_onehot: int = Field(4, ge=1)
    early_stopping_rounds: int = Field(30, ge=1)
    calibration: Method = "platt"
    threads: int = Field(2, ge=1)


LEARNS: tuple[Task, ...] = ("number", "event", "classes")
ROUNDS: str | None = "n_estimators"
QUICK: dict[str, Any] = {
    "n_estimators": 40,
    "max_depth": 4,
    "learning_rate": 0.3,
    "early_stopping_rounds": 10,
    "threads": 1,
}


def gpu_count() -> int:
    """GPUs that the CUDA driver sees; 0 without a driver. Loads nothing but the driver's own library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def chosen_device(wanted: str) -> str:
    """`cuda` or `cpu`, for `auto`, `cpu` or `gpu`.

    Raises:
        NoGpu: `gpu` is demanded, and there is none or this build of XGBoost cannot use it.
    """
    import xgboost as xgb

    if wanted == "cpu":
        return "cpu"
    count, built = gpu_count(), bool(xgb.build_info().get("USE_CUDA"))
    if count and built:
        return "cuda"
    if wanted == "gpu":
        reason = "the CUDA driver sees no GPU" if built else "this build of xgboost has no CUDA"
        raise NoGpu(
            f"trainer.device is gpu, but {reason}. Set `device: auto` to train on the CPU, or run the job where a GPU "
            "is."
        )
    return "cpu"


def train(
    contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
) -> Fitted:
    """Fit one booster an output (and one for an interval's bounds) and write them into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged: as their texts say; nothing usable is written.
    """

    chosen = Params(**params)
    used = chosen_device(run.device)
    matrix = _quantised(contract, fit, chosen, run.scratch / "train", None)
    held_out = _quantised(contract, validation, chosen, run.scratch / "validation", matrix)
    common = {
        "tree_method": "hist",
        "device": used,
        "nthread": chosen.threads,
        "seed": run.seed,
        "seed_per_iteration": True,
        **chosen.model_dump(exclude={"n_estimators", "early_stopping_rounds", "calibration", "threads"}),
    }

    def boost(name: str, objective: dict[str, Any], metric: str, label: Floats, held_out_label: Floats) -> Any:
        matrix.set_label(label)
        held_out.set_label(held_out_label)
        boosted = _boosted(name, {**common, **objective, "eval_metric": metric}, matrix, held_out, chosen, run)
        rounds[name] = boosted.best
        run.progress.line(
            f"xgboost {name}: best round {boosted.best} of {boosted.rounds}, validation {metric} "
            f"{boosted.curves['validation'][metric][boosted.best - 1]:.5g}"
        )
        kept = boosted.booster[: boosted.best]
        kept.set_param({"device": "cpu"})
        kept.save_model(folder / f"{name}.ubj")
        return kept

    rounds: dict[str, int] = {}
    importances: dict[str, dict[str, float]] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, output in contract.outputs.items():
        kind = contract.kinds[name]
        if kind.task == "event":
            truth, held_out_truth = truth_to_learn(contract, name, fit), kind.truth(validation.label)
            booster = boost(name, {"objective": "binary:logistic"}, "logloss", truth, held_out_truth)
            details[name] = {
                "file": f"{name}.ubj",
                "calibration": fit_calibration(_margin(booster, validation), held_out_truth, chosen.calibration),
            }
        elif kind.task == "classes":
            truth, held_out_truth = truth_to_learn(contract, name, fit), kind.truth(validation.label)
            softmax = {"objective": "multi:softprob", "num_class": len(kind.label_values)}
            booster = boost(name, softmax, "mlogloss", truth, held_out_truth)
            odds = margin_odds(_margin(booster, validation))
            details[name] = {
                "file": f"{name}.ubj",
                "class_calibrations": fit_class_calibrations(odds, held_out_truth, chosen.calibration),
            }
        else:
            median = output["objective"] == "median"
            objective = (
                {"objective": "reg:quantileerror", "quantile_alpha": 0.5}
                if median
                else {"objective": "reg:squarederror"}
            )
            booster = boost(name, objective, "mae" if median else "rmse", fit.label, validation.label)
            details[name] = {"file": f"{name}.ubj"}
            if output.get("interval"):
                tail = round((1.0 - output["interval"]) / 2.0, 6)
                quantiles = {"objective": "reg:quantileerror", "quantile_alpha": [tail, 1.0 - tail]}
                bounds = boost(f"{name}_interval", quantiles, "quantile", fit.label, validation.label)
                raw = _margin(bounds, validation)
                center = _margin(booster, validation)
                details[name]["interval"] = {
                    "file": f"{name}_interval.ubj",
                    **fit_interval(output, validation.label, center, raw[:, 0], raw[:, 1]),
                }
        importances[name] = normalised(booster.get_score(importance_type="total_gain"), contract)
    write_json(folder / DETAILS_FILE, {"outputs": details})
    return Fitted("gpu" if used == "cuda" else "cpu", rounds, importances, ("xgboost", "numpy", "pyarrow"))


@dataclass
class _Boosted:
    """A booster and how it came so far.

    Attributes:
        curves: per split and metric, one value a round.
        best: the first round with the lowest validation metric, counted from 1; 0 before the first.
        lowest: that metric.
    """

    booster: Any
    curves: dict[str, dict[str, list[float]]]
    best: int = field(init=False)
    lowest: float = field(init=False)

    def __post_init__(self) -> None:
        judged = self.judged()
        self.lowest = min(judged, default=np.inf)
        self.best = judged.index(self.lowest) + 1 if judged else 0

    def judged(self) -> list[float]:
        """The validation curve that early stopping follows."""
        return next(iter(self.curves.get("validation", {}).values()), [])

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.judged())

    def each_curve(self) -> Iterator[tuple[str, str, list[float]]]:
        """Split, metric and values of every curve."""
        for split, metrics in self.curves.items():
            for metric, values in metrics.items():
                yield split, metric, values

    def follow(self) -> None:
        """Take note of the newest round."""
        newest = self.judged()[-1]
        if newest < self.lowest:
            self.best, self.lowest = self.rounds, newest


def _boosted(name: str, settings: Mapping[str, Any], matrix: Any, held_out: Any, chosen: Params, run: Run) -> _Boosted:
    """Boost until early stopping or the last round, from the stage's checkpoint if there is one."""
    import xgboost as xgb

    boosted, finished = _resumed(name, settings, matrix, held_out, run)
    if finished:
        return boosted
    # Its own loop, not `xgb.train`: there the rounds of a continued booster count from 0, and so would what they
    # sample.
    container = xgb.callback.CallbackContainer([])
    container.history = boosted.curves
    for done in range(boosted.rounds, chosen.n_estimators):
        if done and done - boosted.best >= chosen.early_stopping_rounds:
            break
        _forget_sampling(boosted.booster, settings["tree_method"])
        boosted.booster.update(matrix, done)
        container.after_iteration(boosted.booster, done, matrix, [(matrix, "train"), (held_out, "validation")])
        _report(name, boosted, chosen, run)
        boosted.follow()
        if run.checkpoints.due():
            _save(name, boosted, run, finished=False)
    _save(name, boosted, run, finished=True)
    return boosted


def _resumed(name: str, settings: Mapping[str, Any], matrix: Any, held_out: Any, run: Run) -> tuple[_Boosted, bool]:
    """A new booster, or that of the stage's checkpoint with its curves told again; and whether it has ended."""
    import xgboost as xgb

    saved = run.checkpoints.load(name)
    if saved is None:
        return _Boosted(xgb.Booster(dict(settings), [matrix, held_out]), {}), False
    booster = xgb.Booster(dict(settings), [matrix, held_out], model_file=saved.folder / _BOOSTER_FILE)
    boosted = _Boosted(booster, json.loads((saved.folder / _CURVES_FILE).read_text(encoding="utf-8")))
    for split, metric, values in boosted.each_curve():
        for step, value in enumerate(values, 1):
            run.progress.point(f"{split}/{name}/{metric}", step, value)
    if not saved.finished:
        run.progress.line(f"xgboost {name}: goes on after round {boosted.rounds}, from a checkpoint")
    return boosted, saved.finished


def _report(name: str, boosted: _Boosted, chosen: Params, run: Run) -> None:
    """Tell the newest point of every curve.

    Raises:
        TrainingDiverged: it is not a number.
    """
    done = boosted.rounds
    for split, metric, values in boosted.each_curve():
        if not np.isfinite(values[-1]):
            kept = run.checkpoints.load(name)
            last_good = f" The checkpoint of round {kept.state['round']} is kept." if kept else ""
            raise TrainingDiverged(
                f"xgboost {name}: {split} {metric} is {values[-1]} in round {done}.{last_good} Lower `learning_rate`, "
                "and look for extreme labels."
            )
        run.progress.point(f"{split}/{name}/{metric}", done, values[-1])
        if split == "validation" and done % _SAY_EVERY == 0:
            run.progress.line(
                f"xgboost {name}: round {done} of {chosen.n_estimators}, validation {metric} {values[-1]:.5g}"
            )


def _save(name: str, boosted: _Boosted, run: Run, *, finished: bool) -> None:
    def write(folder: Path) -> None:
        boosted.booster.save_model(folder / _BOOSTER_FILE)
        (folder / _CURVES_FILE).write_text(json.dumps(boosted.curves), encoding="utf-8")

    run.checkpoints.save(name, write, {"round": boosted.rounds}, finished=finished)


def _forget_sampling(booster: Any, method: str) -> None:
    """Let the next round make its samplers anew.

    They are seeded when they are made, by `seed_per_iteration` from seed and round, but would be kept from then on:
    after a checkpoint they would not stand where they stood. Another method and back drops them, and nothing else.
    """
    booster.set_param({"tree_method": "approx"})
    booster.save_config()  # parameters take effect when they are needed; this needs them
    booster.set_param({"tree_method": method})


def _quantised(contract: Contract, rows: Rows, chosen: Params, cache: Path, reference: Any) -> Any:
    """The rows as XGBoost bins them; those of a memory map lie in files beginning with `cache`, and are read page by
    page.
    """
    import xgboost as xgb

    types = ["c" if spec.categories is not None else "q" for spec in contract.features.values()]
    named = {"feature_types": types, "feature_names": list(contract.features)}
    shared = {"ref": reference, "max_bin": chosen.max_bin, "nthread": chosen.threads}
    if not isinstance(rows.matrix, np.memmap):
        return xgb.QuantileDMatrix(rows.matrix, label=rows.label, **named, **shared)

    class Slices(xgb.DataIter):  # type: ignore[misc]  # a class of a library without types
        """Copies of the map's slices, one at a time."""

        def __init__(self) -> None:
            self.remaining = slices(*rows.matrix.shape)
            super().__init__(cache_prefix=str(cache))

        def next(self, input_data: Any) -> bool:
            some = next(self.remaining, None)
            if some is None:
                return False
            input_data(data=np.array(rows.matrix[some]), label=rows.label[some], **named)
            return True

        def reset(self) -> None:
            self.remaining = slices(*rows.matrix.shape)

    return xgb.ExtMemQuantileDMatrix(Slices(), **shared)


def _margin(booster: Any, rows: Rows) -> Floats:
    parts = [
        booster.inplace_predict(
            np.array(rows.matrix[some]), predict_type="margin", missing=np.nan, validate_features=False
        )
        for some in slices(*rows.matrix.shape)
    ]
    margin: Floats = np.concatenate(parts).astype(np.float64)
    return margin
