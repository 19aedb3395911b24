"""A training set that is larger than the job's memory: read in batches, mapped, and learned from page by page."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.predictors import load_model_folder
from tests.training.jobs import OUTPUTS, training_rows, write_job
from training import rows as rows_module
from training.checkpoints import Checkpoints
from training.progress import Progress
from training.rows import MEMORY_SHARE, read_rows
from training.trainers import Fitted, Run, TrainingImpossible, validated_params
from training.trainers.xgboost import train

PARAMS = {"n_estimators": 30, "max_depth": 4, "learning_rate": 0.3, "early_stopping_rounds": 30, "threads": 1}


def entry(memory_gb: float, outputs: Any = OUTPUTS) -> dict[str, Any]:
    return {
        "outputs": outputs,
        "trainer": {"family": "xgboost"},
        "training": {"checkpoint_minutes": 5.0, "memory_gb": memory_gb},
    }


def trained(folder: Path, memory_gb: float, params: dict[str, Any]) -> tuple[Fitted, bool, list[str]]:
    """What was trained, whether from a map, and the files it kept beside while it was."""
    job_dir = write_job(folder, "xgboost", rows=training_rows(9000), params=params, entry=entry(memory_gb))
    job = json.loads((job_dir / "job.json").read_text())
    known = validated_params("xgboost", params)
    contract, splits, _ = read_rows(job, "xgboost", known, job_dir / "training_set.parquet", folder)
    cached: list[str] = []
    target = folder / "model"
    target.mkdir()

    def look(_: str) -> None:
        cached.extend(path.name for path in folder.glob("*.page"))

    run = Run(7, "cpu", Progress(say_line=look), Checkpoints(folder / "checkpoints", "same", 1e9), folder)
    fitted = train(contract, splits["train"], splits["validation"], target, params=known, run=run)
    contract.write(target)
    return fitted, isinstance(splits["train"].matrix, np.memmap), cached


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("_BATCH_BYTES", "_SLICE_BYTES"):
        monkeypatch.setattr(rows_module, size, 1)  # 1,024 rows at a time: seven slices of the training rows


def test_from_a_map_it_learns_the_same(tmp_path: Path, small_slices: None) -> None:
    whole, mapped_whole, cached_whole = trained(tmp_path / "whole", 8.0, PARAMS)
    paged, mapped, cached = trained(tmp_path / "paged", 1e-6, PARAMS)
    assert (mapped_whole, mapped) == (False, True)
    assert not cached_whole
    assert {name.split("-")[0] for name in cached} == {"train", "validation"}, "it was not learned from page by page"
    probability = "late_probability.ubj"
    assert (tmp_path / "whole" / "model" / probability).read_bytes() == (
        tmp_path / "paged" / "model" / probability
    ).read_bytes()
    # The leaves of a median are set from another sample of a page's rows: as good, but not the same.
    sample = training_rows(3000, seed=2)
    errors = {}
    for name in ("whole", "paged"):
        predicted = load_model_folder(tmp_path / name / "model").predict(sample)["minutes"].to_numpy()
        errors[name] = float(np.abs(predicted - sample["label"].to_numpy()).mean())
    assert errors["paged"] == pytest.approx(errors["whole"], rel=0.05)
    assert paged.best_iteration["late_probability"] == whole.best_iteration["late_probability"]


def test_without_a_sample_of_rows_the_whole_model_has_the_same_bytes(tmp_path: Path, small_slices: None) -> None:
    params = PARAMS | {"subsample": 1.0, "n_estimators": 8}
    trained(tmp_path / "whole", 8.0, params)
    trained(tmp_path / "paged", 1e-6, params)
    for file in (tmp_path / "whole" / "model").glob("*.ubj"):
        assert file.read_bytes() == (tmp_path / "paged" / "model" / file.name).read_bytes(), file.name


def test_reading_takes_a_fifth_of_what_it_reads(tmp_path: Path) -> None:
    """Peak of everything allocated, by NumPy and by Arrow, while 100 MB of matrix are written into a map."""
    width, count = 50, 500_000
    names = [f"v__{index}" for index in range(width)]
    path = tmp_path / "training_set.parquet"
    random = np.random.default_rng(1)
    with pq.ParquetWriter(
        path,
        pa.schema(
            [
                *((name, pa.float64()) for name in names),
                ("v__place", pa.string()),
                ("label", pa.float64()),
                ("split", pa.string()),
                ("data_date", pa.date32()),
            ]
        ),
        use_dictionary=["v__place", "split"],
    ) as writer:
        part = [pa.array(random.random(50_000)) for _ in names]
        part += [
            pa.array(random.choice(["a", "b"], 50_000)),
            pa.array(random.random(50_000)),
            pa.array(np.where(random.random(50_000) < 0.9, "train", "validation")),
        ]
        for index in range(count // 50_000):
            writer.write_batch(
                pa.record_batch(
                    [*part, pa.array(np.full(50_000, 19_700 + index, np.int32)).cast(pa.date32())], schema=writer.schema
                )
            )
    job = {
        "model": "wide",
        "as_of": "2024-01-01",
        "seed": 1,
        "output_columns": ["y"],
        "training_set": {"digest": "0"},
        "feature_columns": {**dict.fromkeys(names, "float64"), "v__place": "string"},
        "entry": entry(0.02, {"y": {"kind": "regression", "objective": "mean"}}),
    }
    matrix_bytes = count * (width + 1) * 4
    assert matrix_bytes > MEMORY_SHARE * 0.02e9
    del part
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)  # counts from here on
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        contract, splits, _ = read_rows(job, "xgboost", {}, path, tmp_path)
        numpy_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    labels = sum(rows.label.nbytes + rows.nights.nbytes for rows in splits.values())
    assert contract.features["v__place"].categories == ("a", "b")
    assert isinstance(splits["train"].matrix, np.memmap)
    assert numpy_peak - labels < matrix_bytes / 5
    assert pool.max_memory() < matrix_bytes / 5
    assert np.isfinite(splits["train"].matrix[-1]).all()


def test_batches_or_not_the_rows_are_the_same(
    tmp_path: Path, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", rows=training_rows(5000))
    job = json.loads((job_dir / "job.json").read_text())
    path = job_dir / "training_set.parquet"
    _, mapped, _ = read_rows(job | {"entry": entry(1e-6)}, "xgboost", {}, path, tmp_path)
    monkeypatch.undo()
    contract, held, _ = read_rows(job | {"entry": entry(8.0)}, "xgboost", {}, path, tmp_path)
    table = pq.read_table(path)
    for split, rows in held.items():
        part = table.filter(pa.compute.equal(table["split"], split))
        np.testing.assert_array_equal(rows.matrix, contract.matrix(part))
        np.testing.assert_array_equal(rows.label, part["label"].to_numpy())
        np.testing.assert_array_equal(rows.nights, part["data_date"].cast(pa.int32()).to_numpy())
        np.testing.assert_array_equal(mapped[split].matrix, rows.matrix)
        np.testing.assert_array_equal(mapped[split].label, rows.label)


def test_a_bad_label_in_the_last_batch_is_found(tmp_path: Path, small_slices: None) -> None:
    rows = training_rows(5000)
    label = rows["label"].to_numpy().copy()
    label[-1] = np.inf
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(label))
    job_dir = write_job(tmp_path / "job", "xgboost", rows=rows)
    job = json.loads((job_dir / "job.json").read_text())
    with pytest.raises(TrainingImpossible, match="validation rows hold labels that are null, NaN or infinite"):
        read_rows(job, "xgboost", {}, job_dir / "training_set.parquet", tmp_path)
