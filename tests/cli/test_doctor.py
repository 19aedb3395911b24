from __future__ import annotations

import io
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from cli.doctor import Finding, examine, render
from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from serving.predictors import FAMILIES
from tests import toy
from tests.training.own_family import MODEL_YAML, write_family


def _text(settings: Settings) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render(examine(settings)))
    return out.getvalue()


def test_what_is_there_needs_no_mending(tmp_path: Path) -> None:
    findings = {(f.capability, f.needs): f for f in examine(Settings(home=tmp_path))}
    assert findings["everything", "the locked packages"].present
    shipped = load_catalog(Settings(home=tmp_path))
    said = f"{len(shipped.datasets)} data sets, {len(shipped.models)} models"
    assert findings["everything", "catalog folder config without errors"].found == said


def test_what_is_missing_is_named_with_the_command_that_mends_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    text = _text(Settings(home=tmp_path))
    assert "no Docker engine answers" in text
    assert "apt-get install docker.io" in text


def test_a_broken_catalog_is_found(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "x.yaml").write_text("dataset: x\nunknown: 1\n")
    findings = [
        f
        for f in examine(Settings(home=tmp_path, catalogs=(tmp_path,)))
        if f.needs == f"catalog folder {tmp_path} without errors"
    ]
    assert not findings[0].present
    assert "x.yaml" in findings[0].found
    assert "unknown = 1: unknown key" in findings[0].found


def test_every_catalog_folder_is_listed_with_all_that_is_wrong_in_it(tmp_path: Path) -> None:
    right, wrong = toy.write_catalog(tmp_path / "right"), tmp_path / "wrong"
    (wrong / "datasets").mkdir(parents=True)
    (wrong / "models").mkdir()
    (wrong / "datasets" / "tours.yaml").write_text(
        toy.DATASET_YAML.replace(": rides", ": tours").replace(
            "kind: file, uri: source/outcomes.csv", "kind: file, uri: source/outcomes.csv, select: tours/out.sql"
        )
    )
    (wrong / "models" / "first.yaml").write_text(toy.MODEL_YAML.replace("model: ride_minutes", "model: second"))
    (wrong / "models" / "third.yaml").write_text("model: third\n")
    settings = right.model_copy(update={"catalogs": (tmp_path / "right", wrong)})
    findings = {f.needs: f for f in examine(settings)}
    fine = findings[f"catalog folder {tmp_path / 'right'} without errors"]
    assert (fine.present, fine.found) == (True, "1 data sets, 1 models")
    bad = findings[f"catalog folder {wrong} without errors"]
    assert not bad.present
    assert bad.required
    for words in (
        "first.yaml describes 'second'. Name the file second.yaml.",
        "third.yaml does not describe a model",
        f"{wrong}/sql/tours/vehicle_daily.sql is missing: feature view 'vehicle_daily' of tours needs it",
        f"{wrong}/sql/tours/out.sql is missing: `select` of table 'outcomes' of tours names it",
    ):
        assert words in bad.found


def test_a_catalog_folder_that_is_not_there_is_found(tmp_path: Path) -> None:
    findings = [
        f for f in examine(Settings(home=tmp_path, catalogs=(tmp_path / "no",))) if f.needs == "the catalog folders"
    ]
    assert [(f.present, "no, which is not a folder" in f.found) for f in findings] == [(False, True)]


def test_a_family_without_code_is_found_before_a_training_needs_it(tmp_path: Path) -> None:
    settings = toy.write_catalog(tmp_path, model=toy.MODEL_YAML.replace("family: xgboost", "family: oracle"))
    [finding] = [f for f in examine(settings) if "catalog" in f.needs]
    assert not finding.present
    assert f"ride_minutes.yaml: there is no model family 'oracle'. Known: {', '.join(FAMILIES)}" in finding.found


def test_a_family_of_one_s_own_is_imported_before_a_training_needs_it(tmp_path: Path) -> None:
    settings = toy.write_catalog(tmp_path, model=MODEL_YAML)
    family = write_family(tmp_path)
    [finding] = [f for f in examine(settings) if "catalog" in f.needs]
    assert finding.present
    (family / "trainer.py").write_text("from nowhere import train\n")
    [finding] = [f for f in examine(settings) if "catalog" in f.needs]
    assert not finding.present
    assert "trainer.py of the family 'quantile' cannot be imported: ModuleNotFoundError" in finding.found


def test_a_projection_that_lost_rows_is_found_with_the_command_that_rebuilds_it(toy_lake: Lake) -> None:
    def looked() -> Finding:
        return next(f for f in examine(toy_lake.settings) if f.needs == "SQL and Feast as the lake has them")

    assert looked().found == "nothing is stored yet"
    night = Interval.of(toy.FIRST)
    metric = Metric("ride_minutes", toy.FIRST, toy.FIRST, "toy", "ok", value=1.0)
    publish_metrics(toy_lake, "ride_minutes", "toy", [metric], night, run_id="r")
    assert looked().present
    with toy_lake.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM metrics"))
    assert not looked().present
    assert "metrics of ride_minutes/metrics/toy 1 data dates are not as in the lake" in looked().found
    assert looked().fix.startswith("python -m cli repair")
