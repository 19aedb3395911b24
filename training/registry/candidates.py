"""Of the candidates of one training, the one that goes to the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lake.lake import Lake
from serving.predictors import MANIFEST_FILE, read_manifest
from training.job_file import read_job
from training.registry.job import checked_job
from training.registry.register import register
from training.registry.runner import where_trained
from training.registry.tracking import answered, tracking_client


def register_best(lake: Lake, model: str, manifests: Sequence[str], *, run_id: str) -> dict[str, Any]:
    """Register the job whose validation error is smallest; `Registered` as JSON with its `job_dir` and every
    candidate's error.

    The error is the mean, over outputs, of the gate's metric relative to the trivial baseline, on validation rows that
    no trainer fitted. The gate's test rows have no part in the choice.

    Args:
        manifests: paths of the candidates' manifests, the model's own trainer first; a tie is its.
    """
    job_dirs = [checked_job(lake, model, Path(manifest).parent) for manifest in manifests]
    errors = [validation_error(lake, model, job_dir) for job_dir in job_dirs]
    best = min(range(len(job_dirs)), key=lambda index: (errors[index], index))
    registered = register(lake, model, job_dirs[best], run_id=run_id)
    families = [read_manifest(job_dir)["family"] for job_dir in job_dirs]
    for index, job_dir in enumerate(job_dirs):
        if index != best:
            _retire(
                lake,
                job_dir,
                f"{families[best]} was better on validation: {errors[best]:.4f} against {errors[index]:.4f} of the "
                "baseline's error",
            )
    candidates = [
        {"family": family, "error_of_baseline": error, "job": d.name, "trained": where_trained(d)}
        for family, error, d in zip(families, errors, job_dirs, strict=True)
    ]
    return registered.to_json() | {"job_dir": str(job_dirs[best]), "candidates": candidates}


def validation_error(lake: Lake, model: str, job_dir: Path) -> float:
    """Mean over outputs of the gate's metric divided by the baseline's, on validation rows; 1 for an output that their
    labels do not tell.
    """
    metrics = read_manifest(job_dir)["metrics"]
    ratios = []
    for name, output in lake.model(model).outputs.items():
        if f"{name}/{output.gate}" not in metrics:
            ratios.append(1.0)
            continue
        error, baseline = metrics[f"{name}/{output.gate}"], metrics[f"{name}/baseline_{output.gate}"]
        ratios.append(error / baseline if baseline > 0 else error)
    return float(sum(ratios) / len(ratios))


def _retire(lake: Lake, job_dir: Path, why: str) -> None:
    """Complete the MLflow run of a trainer that was not chosen, so that it can be compared there."""
    run_id = (read_job(job_dir).get("mlflow") or {}).get("run_id")
    if not run_id:
        return
    from mlflow.entities import Metric, Param, RunTag

    manifest = read_manifest(job_dir)
    client = tracking_client(lake.settings)
    with answered(lake.settings):
        params = {**manifest["params"], "seed": manifest["seed"], "family": manifest["family"]}
        client.log_batch(
            run_id,
            metrics=[Metric(f"validated/{name}", value, 0, 0) for name, value in manifest["metrics"].items()],
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag("not_chosen", why)],
        )
        client.log_artifact(run_id, str(job_dir / MANIFEST_FILE))
        client.set_terminated(run_id, "FINISHED")
