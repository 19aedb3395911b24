"""The simulated platform: what the best possible model would have reached on the same rows, beside ours.

The optimum is computed by who knows each user's mood and habits and each cluster's deviation in the evening, and not
what is drawn later: no model can do better, and one that has to guess them from what is seen does worse.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.catalog.output import OutputKind
from features.sources.simulation.platform import Platform, cluster, engagement, work
from features.sources.simulation.platform import projects as world_projects
from features.sources.simulation.platform.accounts import CLUSTERS
from lake.lake import Lake
from serving.metrics import metric_named
from serving.metrics.pinball import PinballLoss
from serving.predictors import load_predictor, read_manifest
from tests.benchmarks.published_stages import history, prepare, row, train
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]
# Standard deviations from the median to the bounds of an interval of 80 %.
_BOUND = 1.2815515655446004
_SEASON_DAYS = 7


def run(folder: Path) -> list[dict[str, Any]]:
    """Every model of the platform; rows with what, seconds, against, ratio (ours to the optimum), aim."""
    lake, rows = history(folder / "platform", "platform")
    source = lake.dataset("platform").tables["user_days"].source
    world = Platform(source.seed, source.users)  # type: ignore[union-attr]  # a simulated one has both
    rows += classes(lake, world, "engagement", engagement.level_probability)
    rows += classes(lake, world, "platform_next_activity", work.next_probability)
    rows += capacity(lake, world)
    lake, more = history(folder / "platform_projects", "platform_projects")
    return [*rows, *more, *projects(lake)]


def projects(lake: Lake) -> list[dict[str, Any]]:
    """Success and days of the projects that users begin: every candidate beside who knows each owner's skill."""
    source = lake.dataset("platform_projects").tables["projects"].source
    world = Platform(source.seed, source.users)  # type: ignore[union-attr]  # a simulated one has both
    rows: list[dict[str, Any]] = []
    for model, column, truth, metrics in (
        ("platform_project_success", "success_probability", "success", ("brier", "roc_auc")),
        ("platform_project_days", "days", "days", ("mae", "rmse")),
    ):
        jobs, prepared = prepare(lake, model)
        judged = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
        days = dict.fromkeys(judged["event_date"].to_pylist())
        known = pa.concat_tables(world_projects.expected(world, day.toordinal()) for day in days)
        by_project = dict(zip(known["project"].to_pylist(), known[truth].to_pylist(), strict=True))
        best = np.array([by_project[project] for project in judged["project"].to_pylist()])
        label = judged["label"].to_numpy()
        possible = [metric_named(metric).value(label, best) for metric in metrics]
        rows.append(prepared)
        for job_dir in jobs:
            seconds = train(lake, model, job_dir)
            said = load_predictor(job_dir).predict(judged)[column].to_numpy()
            ours = [metric_named(metric).value(label, said) for metric in metrics]
            figures = ", ".join(
                f"{metric} {one:.4f} of a possible {other:.4f}"
                for metric, one, other in zip(metrics, ours, possible, strict=True)
            )
            validated = read_manifest(job_dir)["metrics"][f"{column}/{metrics[0]}"]
            what = f"{model} {read_manifest(job_dir)['family']}, {len(label):,} projects: {figures}"
            ratio = float(ours[0] or 0.0) / float(possible[0] or 1.0)
            rows.append(row(f"{what} (validation {validated:.4f})", seconds, "who knows the owners' skill", ratio))
    return rows


def classes(
    lake: Lake, world: Platform, model: str, truth_of: Callable[[Platform, int], Floats]
) -> list[dict[str, Any]]:
    """A model of classes: every candidate on the gate's nights, beside the optimum and the frequencies of training."""
    jobs, prepared = prepare(lake, model)
    judged = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    ((name, output),) = lake.model(model).outputs.items()
    users = np.char.lstrip(np.array(judged["user"].to_pylist(), str), "U").astype(np.int64)
    days = np.array([day.toordinal() for day in judged["data_date"].to_pylist()])
    best = np.concatenate([truth_of(world, int(day))[users[days == day]] for day in np.unique(days)])
    order = np.concatenate([np.flatnonzero(days == day) for day in np.unique(days)])
    optimum = np.empty_like(best)
    optimum[order] = best
    label = judged["label"].to_numpy()
    taught = pq.read_table(jobs[0] / "training_set.parquet", columns=["label"], filters=[("split", "=", "train")])
    guessed = output.baseline(output.constant(taught["label"].to_numpy(), None), len(label), None)
    rows = [prepared, row(f"{model}: frequencies of training, {_judged(output, label, guessed)[0]}", 0.0)]
    said, least = _judged(output, label, optimum)
    for job_dir in jobs:
        seconds = train(lake, model, job_dir)
        predicted = load_predictor(job_dir).predict(judged)
        probability = output.judged(name, {each: predicted[each].to_numpy() for each in output.judged_columns(name)})
        ours, loss = _judged(output, label, probability)
        validated = read_manifest(job_dir)["metrics"][f"{name}/log_loss"]
        what = f"{model} {read_manifest(job_dir)['family']}, {len(label):,} rows: {ours} (validation {validated:.4f})"
        rows.append(row(what, seconds, f"optimum {said}", loss / least))
    return rows


def _judged(output: OutputKind, label: Floats, probability: Floats) -> tuple[str, float]:
    """Figures in words, and the log loss."""
    truth = output.truth(label)
    loss, score = (metric_named(each).value(truth, probability) for each in ("log_loss", "macro_f1"))
    ranked = np.argsort(-probability, axis=1)
    first, third = (float((ranked[:, :k] == truth[:, None]).any(axis=1).mean()) for k in (1, 3))
    top = f", top 3 {third:.3f}" if probability.shape[1] > 3 else ""
    return f"log loss {loss:.4f}, macro F1 {score:.3f}, accuracy {first:.3f}{top}", float(loss or 0.0)


def capacity(lake: Lake, world: Platform) -> list[dict[str, Any]]:
    """The clusters' use: ours, seasonal naive, a line through four weeks, and the optimum."""
    jobs, prepared = prepare(lake, "cluster_capacity")
    judged = pq.read_table(gate_folder(jobs[0]) / "test_set.parquet")
    ahead, usual = (judged[f"capacity__{each}"].to_numpy() for each in ("days_ahead", "usage_28d"))
    line = judged["capacity__usage_7d"].to_numpy() + judged["capacity__trend"].to_numpy() * (ahead + 3.0)
    simple = {
        "seasonal naive": judged["baseline"].to_numpy(),
        "linear trend": line,
        "linear trend times weekday": line * judged["capacity__weekday_28d"].to_numpy() / usual,
    }
    scale = _season_error(world, pc.min(judged["data_date"]).as_py().toordinal())
    resource, label, rows = np.array(judged["resource"].to_pylist()), judged["label"].to_numpy(), [prepared]
    for what, said in simple.items():
        rows.append(row(f"cluster_capacity, {what}: {_forecast(label, said, resource, scale)[0]}", 0.0))
    best, least = _forecast(label, _capacity_optimum(world, judged), resource, scale)
    for job_dir in jobs:
        seconds = train(lake, "cluster_capacity", job_dir)
        predicted = load_predictor(job_dir).predict(judged)
        said = np.column_stack([predicted[each].to_numpy() for each in ("usage_lower", "usage", "usage_upper")])
        ours, error = _forecast(label, said, resource, scale)
        manifest = read_manifest(job_dir)
        validated = manifest["metrics"]["usage/pinball"]
        what = f"cluster_capacity {manifest['family']}, {len(label):,} steps: {ours} (validation {validated:.5f})"
        rows.append(row(what, seconds, f"optimum {best}", error / least))
    return rows


def _capacity_optimum(world: Platform, judged: pa.Table) -> Floats:
    """Lower bound, median and upper bound of each row, (rows, 3)."""
    place = {
        (name, resource.name): number * len(cluster.RESOURCES) + at
        for number, name in enumerate(CLUSTERS)
        for at, resource in enumerate(cluster.RESOURCES)
    }
    deviations = np.array([-_BOUND, 0.0, _BOUND])
    nights = [day.toordinal() for day in judged["data_date"].to_pylist()]
    keys = zip(judged["cluster"].to_pylist(), judged["resource"].to_pylist(), strict=True)
    ahead = judged["capacity__days_ahead"].to_pylist()
    foretold = {
        (night, steps): cluster.foretold(world, night, steps, deviations)
        for night, steps in set(zip(nights, ahead, strict=True))
    }
    return np.array([foretold[night, steps][place[key]] for night, steps, key in zip(nights, ahead, keys, strict=True)])


def _season_error(world: Platform, day: int) -> dict[str, float]:
    """Mean absolute change of each resource's use over a week, in the half year before: what MASE is measured in.

    Hyndman and Koehler, Int. J. of Forecasting 22, 2006.
    """
    series = np.stack([cluster.usage(world, day - ago) for ago in range(1, 183)])
    change = np.abs(series[:-_SEASON_DAYS] - series[_SEASON_DAYS:]).mean(axis=0)
    by_resource = change.reshape(len(CLUSTERS), -1).mean(axis=0)
    return {each.name: float(error) for each, error in zip(cluster.RESOURCES, by_resource, strict=True)}


def _forecast(label: Floats, said: Floats, resource: npt.NDArray[Any], scale: dict[str, float]) -> tuple[str, float]:
    """Figures in words, and the mean absolute error."""
    middle = said if said.ndim == 1 else said[:, 1]
    error = np.abs(middle - label)
    by_resource = ", ".join(f"{each} {error[resource == each].mean() / size:.3f}" for each, size in scale.items())
    words = f"MAE {error.mean():.4f}, MASE {by_resource}"
    if said.ndim == 1:
        return words, float(error.mean())
    held = float(((label >= said[:, 0]) & (label <= said[:, 2])).mean())
    pinball = float(PinballLoss((0.1, 0.5, 0.9)).row_losses(label, said).mean())
    return f"{words}, pinball {pinball:.5f}, {held:.1%} in the interval", float(error.mean())
