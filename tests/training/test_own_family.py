"""A team's own family goes from its folder through a job into a version, which keeps the code that trained it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from lake.artifact import combined_digest, folder_digests
from lake.contained import UnsafeFile
from lake.lake import Lake
from serving.predictors import UnknownFamily, load_predictor
from serving.predictors.brought import BadFamily, FamilyCode
from serving.signed import load_signed
from tests import toy
from tests.training.own_family import FILES, MODEL_YAML, write_family
from training.registry.job import prepare_job
from training.registry.register import register
from training.registry.runner import TrainingFailed, run_job

AS_OF = date(2024, 3, 1)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    write_family(tmp_path)
    made = toy.toy_lake(tmp_path, model=MODEL_YAML)
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(made, nights)
    toy.publish_features(made, nights)
    return made


def prepared(lake: Lake, run_id: str = "r") -> Path:
    return prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id=run_id)


def trained(lake: Lake, run_id: str = "r") -> Path:
    job_dir = prepared(lake, run_id)
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    return job_dir


def test_a_version_is_served_by_the_code_that_trained_it(lake: Lake, tmp_path: Path, mlflow_server: str) -> None:
    lake = Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server}), lake.catalog)
    job_dir = trained(lake)
    registered = register(lake, "ride_minutes", job_dir, run_id="r")
    rows = pq.read_table(job_dir / "training_set.parquet")
    median = pa.compute.quantile(rows.filter(pa.compute.equal(rows["split"], "train"))["label"], 0.5)[0].as_py()
    before = load_signed(lake.settings, "ride_minutes", registered.artifact_digest).predict(rows)
    assert before["ride_minutes"].to_pylist() == pytest.approx([median] * rows.num_rows)
    # The folder goes on; the version does not.
    write_family(tmp_path, predictor=FILES["predictor.py"].replace("self._value)", "-1.0)"))
    assert load_signed(lake.settings, "ride_minutes", registered.artifact_digest).predict(rows).equals(before)
    again = trained(lake, "edited")
    assert set(load_predictor(again).predict(rows)["ride_minutes"].to_pylist()) == {-1.0}
    identities = [json.loads((folder / "job.json").read_text())["identity"] for folder in (job_dir, again)]
    assert identities[0] != identities[1], "an edit of the code trains again"


def test_an_edit_after_the_job_was_prepared_is_refused_in_training(lake: Lake) -> None:
    job_dir = prepared(lake)
    (job_dir / "family" / "names.py").write_text("FILE = 'other.json'\n")
    with pytest.raises(TrainingFailed, match="it was edited"):
        run_job(lake, "ride_minutes", job_dir, say=lambda line: None)


@pytest.mark.parametrize("how", ["another predictor", "one file more", "none"])
def test_code_that_a_training_wrote_is_never_loaded(lake: Lake, how: str) -> None:
    job_dir = trained(lake)
    code = job_dir / "model" / "family"
    if how == "none":
        for path in code.iterdir():
            path.unlink()
    else:
        name = "predictor.py" if how == "another predictor" else "more.py"
        (code / name).write_text("raise SystemExit('the container runs on the host')\n")
    manifest = json.loads((job_dir / "manifest.json").read_text())
    manifest["artifacts"] = {f"model/{name}": digest for name, digest in folder_digests(job_dir / "model").items()}
    (job_dir / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsafeFile, match="brings code that its job was not given"):
        register(lake, "ride_minutes", job_dir, run_id="r")
    assert not (lake.settings.artifacts / "ride_minutes" / combined_digest(manifest["artifacts"])).exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainer": "import nothing_like_it\n"}, "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ({"trainer": "def train(:\n"}, "SyntaxError"),
        ({"predictor": "PRELOAD = ()\n"}, "does not define load"),
        ({"predictor": "from os import nothing\n"}, "cannot be imported: ImportError"),
    ],
)
def test_code_that_cannot_be_used_is_one_typed_error(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    code = FamilyCode.read("quantile", write_family(tmp_path, **changes))
    with pytest.raises(BadFamily, match=says):
        code.module(next(iter(changes)))


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    (family / "weights.bin").write_bytes(b"")
    with pytest.raises(BadFamily, match=r"weights\.bin"):
        FamilyCode.read("quantile", family)
    (family / "weights.bin").unlink()
    (family / "secret.py").symlink_to("/etc/passwd")
    with pytest.raises(BadFamily, match=r"secret\.py"):
        FamilyCode.read("quantile", family)
    (family / "secret.py").unlink()
    (family / "trainer.py").unlink()
    with pytest.raises(BadFamily, match=r"trainer\.py is missing"):
        FamilyCode.read("quantile", family)


@pytest.mark.parametrize("name", ["xgboost", "contract", "Quantile", "a-b"])
def test_a_name_that_is_taken_or_is_none_stops_the_catalog(tmp_path: Path, name: str) -> None:
    settings = toy.write_catalog(tmp_path)
    load_catalog(settings)
    write_family(tmp_path, name)
    with pytest.raises(BadCatalog, match="there is a family|is no name of a family"):
        load_catalog(settings)


def test_two_folders_cannot_bring_the_same_family(tmp_path: Path) -> None:
    settings = toy.write_catalog(tmp_path / "ours")
    write_family(tmp_path / "ours")
    write_family(tmp_path / "theirs")
    both = settings.model_copy(update={"catalogs": (tmp_path / "ours", tmp_path / "theirs")})
    with pytest.raises(BadCatalog, match=r"theirs.*there is a family 'quantile' already, .*ours"):
        load_catalog(both)


def test_without_its_folder_the_family_is_unknown(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=MODEL_YAML.replace("quantile", "nowhere"))
    with pytest.raises(UnknownFamily, match="families/<name>"):
        prepared(lake)
