"""Registration with a real MLflow: whole or not at all, once, and loadable by an analyst."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from config.calendar import Interval
from config.settings import MissingSecret
from lake.artifact import ArtifactMismatch, combined_digest, file_digest, folder_digests
from lake.lake import Lake
from lake.signature import UntrustedModel, verify
from serving.predictors import BadManifest, load_predictor
from serving.signed import load_signed
from tests import toy
from tests.mlflow_server import free_port, start_mlflow
from training.job_file import JobChanged
from training.registry.job import prepare_job
from training.registry.origin import verify_origin
from training.registry.register import JobMismatch, _scored_files, predict_files, register, store
from training.registry.runner import run_job
from training.registry.tracking import MlflowUnavailable

AS_OF = date(2024, 3, 1)
FILES = {
    "importances.json",
    "job.json",
    "manifest.json",
    "model",
    "reference.json",
    "reference_sample.parquet",
    "signature.json",
    "training_set.json",
}


def with_mlflow(lake: Lake, uri: str) -> Lake:
    return Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": uri}), lake.catalog)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two months of rides; no test writes to its tables."""
    lake = toy.toy_lake(tmp_path_factory.mktemp("history"))
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights)
    return lake


@pytest.fixture
def lake(history: Lake, mlflow_server: str) -> Lake:
    return with_mlflow(history, mlflow_server)


def trained(lake: Lake, run_id: str, **overrides: Any) -> Path:
    job_dir = prepare_job(
        lake, "ride_minutes", as_of=AS_OF, run_id=run_id, overrides={"n_estimators": 8, "threads": 1, **overrides}
    )
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    return job_dir


def client_of(lake: Lake) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=lake.settings.tracking_uri)


@pytest.fixture
def version(lake: Lake) -> tuple[Any, Path]:
    job_dir = trained(lake, "r1")
    return register(lake, "ride_minutes", job_dir, run_id="r1"), job_dir


def test_files_are_stored_by_their_content(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    manifest = json.loads((job_dir / "manifest.json").read_text())
    assert registered.artifact_digest == combined_digest(manifest["artifacts"])
    assert registered.folder == lake.settings.artifacts / "ride_minutes" / registered.artifact_digest
    assert {p.name for p in registered.folder.iterdir()} == FILES | {"curves.json"}
    assert [p for p in registered.folder.parent.iterdir() if ".try-" in p.name] == []
    rows = pq.read_table(job_dir / "training_set.parquet")
    predicted = load_predictor(registered.folder).predict(rows)
    assert predicted.equals(load_predictor(job_dir).predict(rows))
    every_label_came = job_dir.with_name("every_label_came.parquet")
    pq.write_table(rows.slice(0, 0), every_label_came)
    files = [job_dir / "training_set.parquet", every_label_came]
    assert predict_files(load_predictor(job_dir), files).equals(predicted), "a file without a row adds none"
    reference = json.loads((registered.folder / "reference.json").read_text())
    assert set(reference["columns"]) == {"vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"}
    assert set(reference["predictions"]) == set(manifest["output_columns"])
    described = json.loads((registered.folder / "training_set.json").read_text())
    assert described["unlabelled"]["train"] > 0
    assert reference["rows"] == described["rows"]["train"] + described["unlabelled"]["train"], "all that was scored"


def test_the_version_says_where_it_comes_from(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    job = json.loads((job_dir / "job.json").read_text())
    found = client_of(lake).get_model_version("ride_minutes", str(registered.version))
    assert found.status == "READY"
    assert found.run_id == registered.mlflow_run_id
    for tag, value in {
        "artifact_digest": registered.artifact_digest,
        "training_set_digest": job["training_set"]["digest"],
        "code_version": job["code_version"],
        "catalog_digest": job["catalog_digest"],
        "as_of": "2024-03-01",
    }.items():
        assert found.tags[tag] == value
    assert len(found.tags["inputs_digest"]) == 64


def test_rows_without_a_label_are_those_that_were_written(tmp_path: Path) -> None:
    job_dir, gate, job = tmp_path / "job", tmp_path / "job.gate", {"training_set": {"path": "training_set.parquet"}}
    gate.mkdir()
    described = gate / "training_set.json"
    described.write_text("{}")
    assert _scored_files(job_dir, job) == [job_dir / "training_set.parquet"], "prepared before they were kept"
    apart = gate / "unlabelled_set.parquet"
    apart.write_bytes(b"rows")
    described.write_text(json.dumps({"unlabelled_path": apart.name, "unlabelled_digest": file_digest(apart)}))
    assert _scored_files(job_dir, job) == [job_dir / "training_set.parquet", apart]
    apart.write_bytes(b"others")
    with pytest.raises(JobMismatch, match=r"drift would be measured against other rows. Nothing was registered"):
        _scored_files(job_dir, job)
    apart.unlink()
    with pytest.raises(JobMismatch, match="has digest none"):
        _scored_files(job_dir, job)


def test_the_run_holds_parameters_curves_data_and_plot(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    client = client_of(lake)
    run = client.get_run(registered.mlflow_run_id)
    assert client.get_experiment(run.info.experiment_id).name == "ride_minutes"
    assert run.info.status == "FINISHED"
    assert run.data.params["n_estimators"] == "8"
    assert run.data.params["window.test"] == "2024-02-22 until 2024-02-29"
    manifest = json.loads((job_dir / "manifest.json").read_text())
    assert run.data.metrics["validated/ride_minutes/mae"] == pytest.approx(manifest["metrics"]["ride_minutes/mae"])
    curves = json.loads((job_dir / "curves.json").read_text())
    for metric, points in curves.items():
        assert sorted({m.step for m in client.get_metric_history(registered.mlflow_run_id, metric)}) == [
            step for step, _ in points
        ]
    assert {i.dataset.digest for i in run.inputs.dataset_inputs} >= {manifest["training_set_digest"][:36]}
    names = {f.path for f in client.list_artifacts(registered.mlflow_run_id)}
    assert {"importances.png", "manifest.json", "job.json", "training_set.json", "importances.json"} <= names


def test_again_is_the_same_version_also_from_another_run(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    count = len(client_of(lake).search_model_versions("name = 'ride_minutes'"))
    assert register(lake, "ride_minutes", job_dir, run_id="r2") == registered
    other = trained(lake, "another run")
    assert other != job_dir
    assert register(lake, "ride_minutes", other, run_id="another run") == registered
    assert len(client_of(lake).search_model_versions("name = 'ride_minutes'")) == count
    changed = register(lake, "ride_minutes", trained(lake, "r1", max_depth=2), run_id="r1")
    assert changed.version > registered.version
    assert changed.artifact_digest != registered.artifact_digest


def test_an_analyst_loads_it_far_from_this_repository(lake: Lake, version: tuple[Any, Path], tmp_path: Path) -> None:
    registered, job_dir = version
    rows = pq.read_table(
        job_dir / "training_set.parquet", columns=["vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"]
    ).slice(0, 20)
    pq.write_table(rows, tmp_path / "rows.parquet")
    code = (
        "import sys, mlflow, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]); model = "
        "mlflow.pyfunc.load_model(f'models:/ride_minutes/{sys.argv[2]}');"
        "model.predict(pd.read_parquet('rows.parquet').astype(float)).to_parquet('out.parquet'); import serving; "
        "print(serving.__file__);"
        "print(model.metadata.signature.inputs)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"
    }
    command = [sys.executable, "-c", code, lake.settings.tracking_uri, str(registered.version)]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert str(Path(__file__).parents[3]) not in found.stdout, (
        "the code packed with the model was not the code that ran"
    )
    assert "vehicle_daily__minutes_7d" in found.stdout
    assert (
        pq.read_table(tmp_path / "out.parquet")
        .replace_schema_metadata(None)
        .equals(load_predictor(registered.folder).predict(rows))
    )


def test_requirements_are_pinned(lake: Lake, version: tuple[Any, Path], tmp_path: Path) -> None:
    import mlflow
    import xgboost

    registered, _ = version
    mlflow.set_tracking_uri(lake.settings.tracking_uri)
    path = mlflow.artifacts.download_artifacts(
        f"models:/ride_minutes/{registered.version}/requirements.txt", dst_path=str(tmp_path)
    )
    assert f"xgboost=={xgboost.__version__}" in Path(path).read_text()


def test_mlflow_down_fails_soon_with_nothing_registered_and_a_retry_continues(
    history: Lake, mlflow_server: str
) -> None:
    dead = with_mlflow(history, f"http://127.0.0.1:{free_port()}")
    job_dir = trained(dead, "down", max_depth=4)
    digest = combined_digest(json.loads((job_dir / "manifest.json").read_text())["artifacts"])
    started = time.monotonic()
    with pytest.raises(
        MlflowUnavailable,
        match=rf"MLflow at {dead.settings.tracking_uri} did not do what was asked.*\n.*Start it \(`make up`\)",
    ):
        register(dead, "ride_minutes", job_dir, run_id="down")
    assert time.monotonic() - started < 15
    assert not (history.settings.artifacts / "ride_minutes" / digest).exists()
    alive = with_mlflow(history, mlflow_server)
    registered = register(alive, "ride_minutes", job_dir, run_id="down")
    assert registered.artifact_digest == digest
    client = client_of(alive)
    curves = json.loads((job_dir / "curves.json").read_text())
    metric, points = next(iter(curves.items()))
    assert [m.value for m in client.get_metric_history(registered.mlflow_run_id, metric)] == pytest.approx(
        [value for _, value in points]
    )


@pytest.mark.parametrize("stage", ["_log_pyfunc", "_create_version"])
def test_mlflow_dying_in_the_middle_registers_nothing_half(
    stage: str, history: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.registry.register

    port = free_port()
    server = start_mlflow(tmp_path, port)
    lake = with_mlflow(history, server.uri)
    job_dir = trained(lake, f"dying in {stage}", max_depth=5)
    real = getattr(training.registry.register, stage)

    def kill_then_go_on(*arguments: Any, **named: Any) -> Any:
        server.kill()
        return real(*arguments, **named)

    monkeypatch.setattr(training.registry.register, stage, kill_then_go_on)
    started = time.monotonic()
    try:
        with pytest.raises(MlflowUnavailable):
            register(lake, "ride_minutes", job_dir, run_id="r")
    finally:
        server.kill()
    assert time.monotonic() - started < 30
    monkeypatch.setattr(training.registry.register, stage, real)
    restarted = start_mlflow(tmp_path, port)
    try:
        again = with_mlflow(history, restarted.uri)
        assert client_of(again).search_model_versions("name = 'ride_minutes'") == []
        registered = register(again, "ride_minutes", job_dir, run_id="r")
        assert registered.version == 1
        assert len(client_of(again).search_runs(["1"])) == 1, "the retry made a second run"
    finally:
        restarted.kill()


def test_a_job_that_did_not_finish_or_was_changed_is_refused(lake: Lake, tmp_path: Path) -> None:
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="unfinished", overrides={"max_depth": 1})
    with pytest.raises(BadManifest, match=r"no training has finished there"):
        register(lake, "ride_minutes", job_dir, run_id="r")
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    job = job_dir / "job.json"
    whole = job.read_text()
    job.write_text(whole.replace('"seed": 7', '"seed": 8'))
    with pytest.raises(JobChanged, match=r"it was edited"):
        register(lake, "ride_minutes", job_dir, run_id="r")
    another = trained(lake, "another job", max_depth=1, n_estimators=3)
    shutil.copy2(another / "job.json", job)
    with pytest.raises(JobMismatch, match=r"belongs to another job.json"):
        register(lake, "ride_minutes", job_dir, run_id="r")
    job.write_text(whole)
    model = next((job_dir / "model").glob("*.ubj"))
    model.write_bytes(b"x")
    with pytest.raises(ArtifactMismatch, match=r"its bytes were changed"):
        register(lake, "ride_minutes", job_dir, run_id="r")


def test_stored_files_that_were_changed_are_noticed(lake: Lake) -> None:
    job_dir = trained(lake, "stored", max_depth=6)
    registered = register(lake, "ride_minutes", job_dir, run_id="r")
    model = next((registered.folder / "model").glob("*.ubj"))
    model.write_bytes(b"x")
    with pytest.raises(ArtifactMismatch, match=r"its bytes were changed"):
        register(lake, "ride_minutes", job_dir, run_id="r")


def test_what_is_registered_is_signed_by_the_run_that_trained_it(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    signed = verify(lake.settings, registered.folder, "ride_minutes", registered.artifact_digest)
    manifest = json.loads((job_dir / "manifest.json").read_text())
    assert (signed.run_id, signed.identity, signed.training_set_digest) == (
        "r1",
        manifest["identity"],
        manifest["training_set_digest"],
    )
    assert verify_origin(lake, "ride_minutes", registered.version, registered.artifact_digest) == signed
    # Trained again by another run, byte for byte: the version stays the first one's, and its tag says so.
    register(lake, "ride_minutes", trained(lake, "r3"), run_id="r3")
    assert client_of(lake).get_model_version("ride_minutes", str(registered.version)).tags["trained_by_run"] == "r1"


def test_files_without_their_manifest_are_an_attempt_that_is_made_again(lake: Lake, version: tuple[Any, Path]) -> None:
    registered, job_dir = version
    before = folder_digests(registered.folder)
    (registered.folder / "manifest.json").unlink()
    (registered.folder / "job.json").write_bytes(b"{")
    assert store(lake, "ride_minutes", job_dir, registered.artifact_digest) == registered.folder
    assert folder_digests(registered.folder) == before
    assert list(lake.settings.scratch.iterdir()) == []


def test_without_a_key_nothing_is_registered(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = trained(lake, "no key", max_depth=7)
    digest = combined_digest(json.loads((job_dir / "manifest.json").read_text())["artifacts"])
    with monkeypatch.context() as context:
        context.delenv("MODEL_SIGNING_KEY")
        with pytest.raises(MissingSecret, match="model_signing_key is not set"):
            register(lake, "ride_minutes", job_dir, run_id="r")
    assert not (lake.settings.artifacts / "ride_minutes" / digest).exists()
    assert register(lake, "ride_minutes", job_dir, run_id="r").artifact_digest == digest


def test_a_stored_model_without_our_signature_is_not_taken_for_ours(lake: Lake) -> None:
    job_dir = trained(lake, "planted", max_depth=8)
    registered = register(lake, "ride_minutes", job_dir, run_id="r")
    (registered.folder / "signature.json").unlink()
    with pytest.raises(UntrustedModel, match="nobody vouches for it"):
        register(lake, "ride_minutes", job_dir, run_id="r")


def test_mlflow_s_own_copy_does_not_matter_to_what_is_scored(history: Lake, tmp_path: Path) -> None:
    server = start_mlflow(tmp_path)
    try:
        lake = with_mlflow(history, server.uri)
        job_dir = trained(lake, "swapped", max_depth=9)
        registered = register(lake, "ride_minutes", job_dir, run_id="swapped")
        rows = pq.read_table(job_dir / "training_set.parquet").slice(0, 20)
        before = load_signed(lake.settings, "ride_minutes", registered.artifact_digest).predict(rows)
        copies = list((tmp_path / "mlflow").rglob("*.ubj"))
        assert copies
        for copy in copies:
            copy.write_bytes(b"swapped")
        assert load_signed(lake.settings, "ride_minutes", registered.artifact_digest).predict(rows).equals(before)
        verify_origin(lake, "ride_minutes", registered.version, registered.artifact_digest)
        import mlflow

        mlflow.set_tracking_uri(server.uri)
        with pytest.raises(Exception, match="its bytes were changed"):
            mlflow.pyfunc.load_model(f"models:/ride_minutes/{registered.version}")
    finally:
        server.kill()


def test_a_keras_model_registers_too(history: Lake, mlflow_server: str, tmp_path: Path) -> None:
    model = toy.MODEL_YAML.replace(
        "family: xgboost, params: {n_estimators: 20, max_depth: 3}, seed: 7",
        "family: keras, params: {hidden: [8], epochs: 3}, seed: 7",
    )
    settings = toy.write_catalog(tmp_path, model=model)
    from config.catalog.load import load_catalog

    lake = replace(
        history,
        settings=history.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server}),
        catalog=load_catalog(settings),
    )
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="keras")
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    registered = register(lake, "ride_minutes", job_dir, run_id="keras")
    import mlflow

    mlflow.set_tracking_uri(mlflow_server)
    rows = pq.read_table(
        job_dir / "training_set.parquet", columns=["vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"]
    )
    found = mlflow.pyfunc.load_model(f"models:/ride_minutes/{registered.version}").predict(
        rows.to_pandas().astype(float)
    )
    assert found["ride_minutes"].to_numpy() == pytest.approx(
        load_predictor(registered.folder).predict(rows)["ride_minutes"].to_numpy(), rel=1e-5
    )


def test_two_that_register_one_model_at_once_get_one_version(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.registry import register as module

    job_dir = trained(lake, "twice at once", max_depth=5)
    store(
        lake, "ride_minutes", job_dir, combined_digest(json.loads((job_dir / "manifest.json").read_text())["artifacts"])
    )
    real, asked = module.registered_version, threading.Barrier(2)

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        if found is None:
            # Two that may both ask before one has answered: the second comes within this second, or waits for a lock.
            with suppress(threading.BrokenBarrierError):
                asked.wait(timeout=1.0)
        return found

    monkeypatch.setattr(module, "registered_version", slow)
    with ThreadPoolExecutor(2) as pool:
        versions = list(pool.map(lambda run: register(lake, "ride_minutes", job_dir, run_id=run), ("one", "other")))
    assert versions[0] == versions[1]
    digest = versions[0].artifact_digest
    assert len(client_of(lake).search_model_versions(f"tags.artifact_digest = '{digest}'")) == 1
