"""Register a finished training: content-addressed files first, then MLflow's run and, last and at once, the version."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from config.catalog.output import outputs_of
from config.errors import NightfleetError
from config.settings import ROOT
from lake.artifact import combined_digest, file_digest, verify_files
from lake.contained import UnsafeFile, check_contained, copy_contained
from lake.lake import Lake
from lake.signature import SIGNATURE_FILE, sign, signing_key, verify
from lake.storage import VERSION_COMPLETE, advisory_lock, artifact_folder, artifacts, version_key
from serving.predictors import MANIFEST_FILE, Predictor, load_predictor, read_manifest
from serving.predictors.brought import FAMILY_FOLDER
from serving.predictors.contract import read_json, write_json
from training.__main__ import IMPORTANCES_FILE
from training.job_file import JOB_FILE, read_job
from training.progress import CURVES_FILE
from training.registry.job import TRAINING_SET_FILE, gate_folder
from training.registry.numbers import Numbers, VersionNumberTaken, given_numbers
from training.registry.plots import importance_plot
from training.registry.reference import build_reference, write_reference_sample
from training.registry.search_report import log_search
from training.registry.tracking import answered, experiment_id, tracking_client

REFERENCE_FILE = "reference.json"
EXAMPLE_ROWS = 5
_BATCH_ROWS = 65_536
_MOST_SKIPPED = 10_000
# What the predictor needs of ours when an analyst loads the model somewhere else.
_PACKED_CODE = (
    "config/__init__.py",
    "config/errors.py",
    "config/catalog/__init__.py",
    "config/catalog/base.py",
    "config/catalog/output.py",
    "lake/__init__.py",
    "lake/artifact.py",
    "serving/__init__.py",
    "serving/kinds",
    "serving/metrics",
    "serving/predictors",
)
# Whole numbers as double, so that a missing one can be NaN: pandas keeps such a column as floats, which MLflow refuses
# as long.
_MLFLOW_TYPES = {"string": "string", "int32": "double", "int64": "double", "float64": "double", "boolean": "boolean"}
# In the place of a personal value in the example, by a feature's type.
_NO_VALUE = {"string": "", "int32": math.nan, "int64": math.nan, "float64": math.nan, "boolean": False}
_OUTPUT_TYPES = {"string": "string", "int64": "long", "float64": "double", "boolean": "boolean"}
log = logging.getLogger(__name__)


class JobMismatch(NightfleetError):
    """A manifest, or a file beside it, belongs to another job than the one it lies with."""


@dataclass(frozen=True)
class Registered:
    """One version of a model.

    Attributes:
        version: its number, of our own records where they know its files, else MLflow's.
        artifact_digest: names its files, `<artifacts>/<model>/<artifact_digest>`.
        as_of: the night whose knowledge it was trained on.
        folder: those files: manifest.json, signature.json, model/, job.json, training_set.json, reference.json,
            importances.json.
    """

    model: str
    version: int
    artifact_digest: str
    mlflow_run_id: str
    as_of: date
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON."""
        return {**self.__dict__, "as_of": self.as_of.isoformat(), "folder": str(self.folder)}


def register(lake: Lake, model: str, job_dir: Path, *, run_id: str) -> Registered:
    """Store a finished job's model and register it with MLflow; the same model again gives the version it has.

    The version is made last, in one call with all its tags, so that a failure before it leaves nothing half-registered;
    the stored folder is named by its content and does no harm, and a retry continues.

    Args:
        job_dir: as `prepare_job` and `run_job` left it, `<job_dir>.gate` beside it.
        run_id: run that registers, a tag of the version.
    Raises:
        BadManifest, ArtifactMismatch, JobMismatch: the job has not finished, or its files were changed.
        UnsafeFile: a link, or a file that no trainer writes, or code that is not the job's, lies in the job's folder.
        UntrustedModel: the same model is stored already, without our signature.
        MissingSecret: there is no key to sign with.
        LedgerUntrusted: a line of the ledger, which knows the numbers, is not ours.
        MlflowUnavailable: MLflow does not answer; start it and try again.
    """
    check_contained(job_dir)
    manifest = read_manifest(job_dir)
    job = read_job(job_dir)
    if manifest["identity"] != job["identity"]:
        raise JobMismatch(
            f"the manifest in {job_dir} belongs to another {JOB_FILE} than lies there. Train the job again."
        )
    verify_files(job_dir, manifest["artifacts"])
    _check_code(job, manifest)
    digest = combined_digest(manifest["artifacts"])
    # Before the files: where MLflow is down or no key is there this fails in seconds, and a retry repeats nothing.
    signing_key(lake.settings)
    numbers = given_numbers(lake, model)
    client = tracking_client(lake.settings)
    folder = store(lake, model, job_dir, digest)
    # Another run may have stored the same bytes first: the version then is that run's, as its signature says.
    stored = read_json(folder / JOB_FILE)
    # Asked and made under one lock: two that register the same model at once would make two versions of it.
    with advisory_lock(lake.engine, f"register.{model}"), answered(lake.settings):
        mlflow_version = registered_version(client, model, digest, numbers)
        if mlflow_version is None:
            mlflow_run = _log_run(lake, client, model, job, manifest, folder, job_dir)
            tags = _tags(stored, manifest, folder, digest, run_id)
            _create_version(client, model, mlflow_run, tags, least=numbers.of(digest) or numbers.highest + 1)
            mlflow_version = registered_version(client, model, digest, numbers)
        elif (spare := (job.get("mlflow") or {}).get("run_id")) not in {None, str(mlflow_version.run_id)}:
            client.set_tag(
                spare, "same_as", str(mlflow_version.run_id)
            )  # an equal training made this version: what was opened for this one is over
            client.set_terminated(spare, "FINISHED")
    assert mlflow_version is not None  # created just now, or MLflow said otherwise
    return Registered(
        model,
        numbers.of(digest) or int(mlflow_version.version),
        digest,
        str(mlflow_version.run_id),
        date.fromisoformat(stored["as_of"]),
        folder,
    )


def _check_code(job: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Only the code that the job was given is loaded on this side: none that a training wrote.

    Raises:
        UnsafeFile: a model brings other code.
    """
    prefix = f"model/{FAMILY_FOLDER}/"
    brings = {
        name.removeprefix(prefix): digest for name, digest in manifest["artifacts"].items() if name.startswith(prefix)
    }
    if brings != job.get("family_code", {}):
        raise UnsafeFile(
            f"the model of {job['model']} as of {job['as_of']} brings code that its job was not given: "
            f"{', '.join(brings) or 'none at all'}. Nothing of it was run or registered. Look who wrote it, and train "
            "again."
        )


def registered_version(client: Any, model: str, artifact_digest: str, numbers: Numbers) -> Any | None:
    """The version with that artifact digest, the lowest if there were ever two, or None.

    One whose number names another version does not count: MLflow's database was lost, and its numbers began again.
    """
    query = f"name = '{model}' and tags.artifact_digest = '{artifact_digest}'"
    versions = [
        version
        for version in client.search_model_versions(query)
        if numbers.is_free(int(version.version), artifact_digest)
    ]
    return min(versions, key=lambda version: int(version.version), default=None)


def store(lake: Lake, model: str, job_dir: Path, artifact_digest: str) -> Path:
    """Sign a finished job's files and put them among the artifacts, `<model>/<artifact_digest>`; nothing where they
    are.

    The manifest is put last: until it lies there nothing is stored, and a retry puts everything again.
    """
    artifacts_store, key = artifacts(lake.settings), version_key(model, artifact_digest)
    if not artifacts_store.exists(f"{key}/{VERSION_COMPLETE}"):
        with lake.scratch("register") as scratch:
            signed = _signed_files(lake, model, job_dir, scratch / artifact_digest)
            # Two runs may have trained the same bytes: each signs its own job, so their files must not mix.
            with advisory_lock(lake.engine, "artifacts"):
                if not artifacts_store.exists(f"{key}/{VERSION_COMPLETE}"):
                    artifacts_store.put_folder(key, signed, last=VERSION_COMPLETE)
    folder = artifact_folder(lake.settings, model, artifact_digest)
    verify(lake.settings, folder, model, artifact_digest)
    verify_files(folder, read_manifest(folder)["artifacts"])
    return folder


def _signed_files(lake: Lake, model: str, job_dir: Path, folder: Path) -> Path:
    """All that is stored of a version, in a new folder of this machine that is named by the artifacts' digest."""
    artifact_names = [name for name in check_contained(job_dir) if name.startswith("model/")]
    for name in (*artifact_names, MANIFEST_FILE, JOB_FILE, IMPORTANCES_FILE, CURVES_FILE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_contained(job_dir, name, folder / name)
    shutil.copy2(gate_folder(job_dir) / TRAINING_SET_FILE, folder / TRAINING_SET_FILE)
    predictor = load_predictor(folder, artifact_digest=folder.name)
    job = read_json(folder / JOB_FILE)
    scored = _scored_files(job_dir, job)
    predictions = predict_files(predictor, scored)
    entry = lake.model(model)
    features = predictor.feature_columns
    calendar = {name for name, column in lake.catalog.feature_columns(entry).items() if column.calendar}
    personal = lake.catalog.personal_columns(entry)
    reference = build_reference(
        scored, features, entry, predictions, calendar_columns=calendar, personal_columns=personal
    )
    write_json(folder / REFERENCE_FILE, reference)
    write_reference_sample(scored, folder, job["seed"], features, predictions, personal_columns=personal)
    sign(lake.settings, folder, model)
    return folder


def _scored_files(job_dir: Path, job: Mapping[str, Any]) -> list[Path]:
    """The rows that the nights of the training window score: those that were trained on, and those without a label.

    Raises:
        JobMismatch: the rows without a label are missing, or not those that were written with the training set.
    """
    training_path = job_dir / job["training_set"]["path"]
    described = read_json(gate_folder(job_dir) / TRAINING_SET_FILE)
    if "unlabelled_path" not in described:  # prepared before rows without a label were kept
        return [training_path]
    path = gate_folder(job_dir) / str(described["unlabelled_path"])
    wanted, digest = str(described["unlabelled_digest"]), file_digest(path) if path.is_file() else "none"
    if digest != wanted:
        raise JobMismatch(
            f"{path} has digest {digest[:12]}, it was written with {wanted[:12]}: drift would be measured against "
            "other rows. Nothing was registered. Train again."
        )
    return [training_path, path]


def predict_files(predictor: Predictor, paths: Sequence[Path]) -> pa.Table:
    """Predictions of every row of Parquet files that hold at least one, in their order; only features are read, in
    batches.
    """
    columns = list(predictor.feature_columns)
    batches = (pq.ParquetFile(path).iter_batches(batch_size=_BATCH_ROWS, columns=columns) for path in paths)
    return pa.concat_tables([predictor.predict(batch) for file in batches for batch in file])


def _tags(
    job: Mapping[str, Any], manifest: Mapping[str, Any], folder: Path, digest: str, run_id: str
) -> dict[str, str]:
    training_set = read_json(folder / TRAINING_SET_FILE)
    return {
        "artifact_digest": digest,
        "training_set_digest": manifest["training_set_digest"],
        "test_set_digest": str(training_set.get("test_digest", "")),
        "inputs_digest": combined_digest({"inputs": json.dumps(training_set.get("inputs", []), sort_keys=True)}),
        "code_version": job["code_version"],
        "catalog_digest": job["catalog_digest"],
        "as_of": job["as_of"],
        "trained_by_run": job["run_id"],
        "registered_by_run": run_id,
        "family": manifest["family"],
        "device": manifest["device"],
    }


def _log_run(
    lake: Lake,
    client: Any,
    model: str,
    job: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: Path,
    job_dir: Path,
) -> str:
    """Complete the job's MLflow run, or make one; returns its id. Everything here may be done twice."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    # By its id alone: the same server may have another address since.
    mlflow_run: str | None = (job.get("mlflow") or {}).get("run_id")
    if mlflow_run is not None:
        try:
            client.get_run(mlflow_run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            mlflow_run = None  # MLflow's database was made anew since the job was prepared
    if mlflow_run is None:
        mlflow_run = client.create_run(experiment_id(client, model), run_name=f"{model} {job['as_of']}").info.run_id
    params = {**manifest["params"], "seed": manifest["seed"], "family": manifest["family"]}
    params |= {f"best_iteration.{name}": count for name, count in manifest["best_iteration"].items()}
    params |= {f"window.{split}": _window(bounds) for split, bounds in job["windows"].items()}
    finished = Metric("training_seconds", manifest["seconds"], 0, 0)
    # Not `validation/…`: those are the curves, one point a round.
    metrics = [Metric(f"validated/{name}", value, 0, 0) for name, value in manifest["metrics"].items()]
    metrics += [Metric(f"rows/{split}", float(count), 0, 0) for split, count in manifest["rows"].items()]
    tags = {
        "model": model,
        "as_of": job["as_of"],
        "job": job_dir.name,
        "device": manifest["device"],
        "code_version": job["code_version"],
    }
    client.log_batch(
        mlflow_run,
        metrics=[*metrics, finished],
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    _complete_curves(client, mlflow_run, read_json(folder / CURVES_FILE))
    log_search(client, mlflow_run, manifest, job_dir)
    with TemporaryDirectory(prefix="register-") as scratch:
        plot = Path(scratch) / "importances.png"
        importance_plot(read_json(folder / IMPORTANCES_FILE), f"{model} as of {job['as_of']}: what it rests on", plot)
        client.log_artifact(mlflow_run, str(plot))
    for name in (MANIFEST_FILE, SIGNATURE_FILE, JOB_FILE, TRAINING_SET_FILE, IMPORTANCES_FILE):
        client.log_artifact(mlflow_run, str(folder / name))
    _log_inputs(client, mlflow_run, model, job, folder, job_dir)
    training_path = job_dir / job["training_set"]["path"]
    personal = lake.catalog.personal_columns(lake.model(model))
    _log_pyfunc(lake.settings.tracking_uri, mlflow_run, model, manifest, folder, training_path, personal)
    client.set_terminated(mlflow_run, "FINISHED")
    return mlflow_run


def _window(bounds: Mapping[str, str]) -> str:
    return f"{bounds['start']} until {bounds['end']}"


def _complete_curves(client: Any, mlflow_run: str, curves: Mapping[str, list[list[float]]]) -> None:
    """Add the points that streaming did not bring: MLflow was away, or died in the middle."""
    from mlflow.entities import Metric

    missing = []
    latest = client.get_run(mlflow_run).data.metrics
    for metric, points in curves.items():
        there = {m.step for m in client.get_metric_history(mlflow_run, metric)} if metric in latest else set()
        missing += [Metric(metric, float(value), 0, int(step)) for step, value in points if int(step) not in there]
    for start in range(0, len(missing), 1000):
        client.log_batch(mlflow_run, metrics=missing[start : start + 1000])


def _log_inputs(client: Any, mlflow_run: str, model: str, job: Mapping[str, Any], folder: Path, job_dir: Path) -> None:
    """The training set as a data set of the run: its digest, and what partitions it was built from."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    training_set = read_json(folder / TRAINING_SET_FILE)
    digests = {"training": job["training_set"]["digest"], "test": str(training_set.get("test_digest", ""))}
    profile = json.dumps({"rows": training_set.get("rows", {}), "inputs": len(training_set.get("inputs", []))})
    source = json.dumps(
        {"job": job_dir.name, "as_of": job["as_of"], "windows": job["windows"], "pins": training_set.get("pins", {})}
    )
    inputs = [
        # MLflow keeps 36 characters of a digest; the whole one is a tag of the version.
        DatasetInput(
            Dataset(
                name=f"{model}-{context}-{job['as_of']}",
                digest=digest[:36],
                source_type="nightfleet",
                source=source,
                profile=profile,
            ),
            [InputTag("mlflow.data.context", context)],
        )
        for context, digest in digests.items()
        if digest
    ]
    client.log_inputs(mlflow_run, datasets=inputs)


def _log_pyfunc(
    uri: str,
    mlflow_run: str,
    model: str,
    manifest: Mapping[str, Any],
    folder: Path,
    training_path: Path,
    personal: frozenset[str],
) -> None:
    """Log the stored files as a model that `mlflow.pyfunc.load_model` opens, with signature, example (without personal
    data) and pinned requirements.
    """
    import mlflow
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    features = {name: spec["type"] for name, spec in manifest["feature_columns"].items()}
    outputs = outputs_of(manifest["outputs"])
    published = {column: kind for name, output in outputs.items() for column, kind in output.columns(name).items()}
    signature = ModelSignature(
        inputs=Schema([ColSpec(_MLFLOW_TYPES[kind], name, required=False) for name, kind in features.items()]),
        outputs=Schema([ColSpec(_OUTPUT_TYPES[kind], name) for name, kind in published.items()]),
    )
    example = next(
        pq.ParquetFile(training_path).iter_batches(batch_size=EXAMPLE_ROWS, columns=list(features))
    ).to_pandas()
    numbers = [name for name, kind in features.items() if kind in {"int32", "int64", "float64"}]
    example = example.astype(dict.fromkeys(numbers, "float64"))
    for name in personal.intersection(features):
        example[name] = _NO_VALUE[features[name]]
    libraries = {name: version for name, version in manifest["libraries"].items() if name != "python"}
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with (
            TemporaryDirectory(prefix="register-") as scratch,
            mlflow.start_run(run_id=mlflow_run, log_system_metrics=False),
        ):
            version_files = Path(scratch) / folder.name
            version_files.mkdir()
            shutil.copytree(folder / "model", version_files / "model")
            shutil.copy2(folder / MANIFEST_FILE, version_files / MANIFEST_FILE)
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"version": str(version_files)},
                code_paths=[str(path) for path in _packed_code(Path(scratch) / "code")],
                pip_requirements=[
                    f"mlflow=={mlflow.__version__}",
                    "pandas",
                    *(f"{name}=={version}" for name, version in sorted(libraries.items())),
                ],
                signature=signature,
                input_example=example,
                metadata={
                    "numbers": "give every number as float64, missing ones as NaN",
                    "model": model,
                    "artifact_digest": folder.name,
                },
            )
    finally:
        mlflow.set_tracking_uri(before)


def _packed_code(target: Path) -> list[Path]:
    """Copies of the packages a predictor needs, with nothing else of ours in them."""
    for name in _PACKED_CODE:
        source = ROOT / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy2(source, target / name)
    return sorted({target / name.split("/")[0] for name in _PACKED_CODE})


def _create_version(client: Any, model: str, mlflow_run: str, tags: Mapping[str, str], *, least: int) -> None:
    """Make the version, with a number that is not below `least`."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    logged = client.get_run(mlflow_run).outputs.model_outputs[-1].model_id
    there = {"source": f"models:/{logged}", "run_id": mlflow_run, "model_id": logged, "await_creation_for": 0}
    last = max((int(version.version) for version in client.search_model_versions(f"name = '{model}'")), default=0)
    if least - last > _MOST_SKIPPED:
        raise VersionNumberTaken(
            f"the next version of {model} needs number {least:,}, but MLflow is at {last:,}: so many numbers are not "
            "skipped. No version was made.\n"
            f"  Look who gave that number, in the ledger, the decisions or the model cards of {model}."
        )
    # MLflow counts up from the highest number that it ever gave: what is made and deleted moves it on.
    while last < least - 1:
        last = int(client.create_model_version(model, **there).version)
        client.delete_model_version(model, str(last))
        log.warning("number %d of %s is skipped: it was given before MLflow's database was lost", last, model)
    client.create_model_version(model, tags=dict(tags), **there)
