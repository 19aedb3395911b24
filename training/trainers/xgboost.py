"""Gradient-boosted trees: a median or mean with an interval, and calibrated probabilities."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from serving.predictors.calibration import ordered_interval
from serving.predictors.contract import Contract, write_json
from serving.predictors.xgboost import DETAILS_FILE
from training.progress import Progress
from training.trainers import FamilyParams, Fitted, Floats, NoGpu, Rows, Run, TrainingDiverged, TrainingImpossible, normalised
from training.trainers.calibration import Method, fit_calibration, fit_widening

_SAY_EVERY = 50


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
        raise NoGpu(f"trainer.device is gpu, but {reason}. Set `device: auto` to train on the CPU, or run the job where a GPU is.")
    return "cpu"


def train(contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run) -> Fitted:
    """Fit one booster an output (and one for an interval's bounds) and write them into `folder`.

    Args:
        contract: features and outputs; its order is the order of the matrices.
        fit, validation: rows to learn from; rows for early stopping, calibration and interval widths.
        params: as `validated_params` gives them.
        run: seed, device, progress, checkpoints, workers.
    Raises:
        NoGpu, TrainingImpossible, TrainingDiverged: as their texts say; nothing usable is written.
    """
    import xgboost as xgb

    chosen = Params(**params)
    used = chosen_device(run.device)
    types = ["c" if spec.categories is not None else "q" for spec in contract.features.values()]
    names = list(contract.features)
    matrix = xgb.QuantileDMatrix(fit.matrix, label=fit.label, feature_types=types, feature_names=names, max_bin=chosen.max_bin, nthread=chosen.threads)
    held_out = xgb.QuantileDMatrix(
        validation.matrix, label=validation.label, feature_types=types, feature_names=names, ref=matrix, max_bin=chosen.max_bin, nthread=chosen.threads
    )
    common = {
        "tree_method": "hist",
        "device": used,
        "nthread": chosen.threads,
        "seed": run.seed,
        **chosen.model_dump(exclude={"n_estimators", "early_stopping_rounds", "calibration", "threads"}),
    }

    def boost(name: str, objective: dict[str, Any], metric: str, label: Floats, held_out_label: Floats) -> Any:
        matrix.set_label(label)
        held_out.set_label(held_out_label)
        booster = xgb.train(
            {**common, **objective, "eval_metric": metric},
            matrix,
            num_boost_round=chosen.n_estimators,
            evals=[(matrix, "train"), (held_out, "validation")],
            early_stopping_rounds=chosen.early_stopping_rounds,
            callbacks=[_Report(name, chosen.n_estimators, run.progress)],
            verbose_eval=False,
        )
        rounds[name] = booster.best_iteration + 1
        run.progress.line(f"xgboost {name}: best round {rounds[name]} of {booster.num_boosted_rounds()}, validation {metric} {booster.best_score:.5g}")
        kept = booster[: rounds[name]]
        kept.set_attr(best_iteration=None, best_score=None)
        kept.set_param({"device": "cpu"})
        kept.save_model(folder / f"{name}.ubj")
        return kept

    rounds: dict[str, int] = {}
    importances: dict[str, dict[str, float]] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, output in contract.outputs.items():
        if output["kind"] == "binary":
            truth, held_out_truth = (np.where(rows.label > output["above"], 1.0, 0.0) for rows in (fit, validation))
            if truth.min() == truth.max():
                side = "above" if truth[0] else "at or below"
                raise TrainingImpossible(
                    f"{contract.model}: all {len(truth)} training rows lie {side} {output['above']:g}, so {name!r} cannot be learned. Widen `split.train`."
                )
            booster = boost(name, {"objective": "binary:logistic"}, "logloss", truth, held_out_truth)
            logits = _margin(booster, validation)
            details[name] = {"file": f"{name}.ubj", "calibration": fit_calibration(logits, held_out_truth, chosen.calibration)}
        else:
            median = output["objective"] == "median"
            objective = {"objective": "reg:quantileerror", "quantile_alpha": 0.5} if median else {"objective": "reg:squarederror"}
            booster = boost(name, objective, "mae" if median else "rmse", fit.label, validation.label)
            details[name] = {"file": f"{name}.ubj"}
            if output.get("interval"):
                tail = round((1.0 - output["interval"]) / 2.0, 6)
                quantiles = {"objective": "reg:quantileerror", "quantile_alpha": [tail, 1.0 - tail]}
                bounds = boost(f"{name}_interval", quantiles, "quantile", fit.label, validation.label)
                raw = _margin(bounds, validation)
                lower, upper = ordered_interval(_margin(booster, validation), raw[:, 0], raw[:, 1], 0.0)
                details[name]["interval"] = {"file": f"{name}_interval.ubj", "widen_by": fit_widening(validation.label, lower, upper, output["interval"])}
        importances[name] = normalised(booster.get_score(importance_type="total_gain"), contract)
    write_json(folder / DETAILS_FILE, {"outputs": details})
    return Fitted("gpu" if used == "cuda" else "cpu", rounds, importances, ("xgboost", "numpy", "pyarrow"))


def _margin(booster: Any, rows: Rows) -> Floats:
    margin: Floats = booster.inplace_predict(rows.matrix, predict_type="margin", missing=np.nan, validate_features=False).astype(np.float64)
    return margin


def _Report(name: str, rounds: int, progress: Progress) -> Any:  # noqa: N802 (makes a class of a library that is imported late)
    import xgboost as xgb

    class Report(xgb.callback.TrainingCallback):  # type: ignore[misc]
        """Curves each round, a line now and then."""

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            for split, metrics in evals_log.items():
                for metric, values in metrics.items():
                    value = float(values[-1])
                    if not np.isfinite(value):
                        raise TrainingDiverged(
                            f"xgboost {name}: {split} {metric} is {value} in round {epoch + 1}. Lower `learning_rate`, and look for extreme labels."
                        )
                    progress.point(f"{split}/{name}/{metric}", epoch + 1, value)
                    if split == "validation" and (epoch + 1) % _SAY_EVERY == 0:
                        progress.line(f"xgboost {name}: round {epoch + 1} of {rounds}, validation {metric} {value:.5g}")
            return False

    return Report()
