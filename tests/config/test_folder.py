"""Several catalog folders: where they come from, one name space over all of them, and every problem of each told."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from config.catalog.base import BadCatalog
from config.catalog.folder import CatalogFolder, catalog_folders
from config.catalog.load import load_catalog, read_catalog
from config.settings import PREFIX, ROOT, BadSettings, Settings, load_settings
from tests import toy
from tests.config.test_catalog import changed


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def team(folder: Path) -> Path:
    """A second folder with data set `tours` and model `tour_minutes`."""
    texts = (toy.DATASET_YAML, toy.MODEL_YAML)
    dataset, model = (
        text.replace(": rides", ": tours").replace("model: ride_minutes", "model: tour_minutes") for text in texts
    )
    for name, text in (
        ("datasets/tours.yaml", dataset),
        ("models/tour_minutes.yaml", model),
        ("sql/tours/vehicle_daily.sql", toy.VIEW_SQL),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def two_folders(tmp_path: Path) -> Settings:
    settings = toy.write_catalog(tmp_path / "first")
    return settings.model_copy(update={"catalogs": (tmp_path / "first", team(tmp_path / "second"))})


def test_the_shipped_folder_keeps_its_sql_and_data_beside_the_code() -> None:
    assert catalog_folders(load_settings()) == (
        CatalogFolder(ROOT / "config", sql=ROOT / "features" / "sql", sources=ROOT),
    )


@pytest.mark.parametrize("value", ["config, ../{team}", "config" + os.pathsep + "../{team}", "[config, ../{team}]"])
def test_the_environment_names_folders_from_the_repository_root(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = os.path.relpath(team(tmp_path / "fleet"), ROOT.parent)
    monkeypatch.setenv("NIGHTFLEET_CATALOGS", value.format(team=relative))
    shipped, own = catalog_folders(load_settings())
    assert shipped.path == ROOT / "config"
    assert own == CatalogFolder(tmp_path / "fleet", sql=tmp_path / "fleet" / "sql", sources=tmp_path / "fleet")


def test_an_installation_with_the_former_settings_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_CATALOG_DIR", str(team(tmp_path / "fleet")))
    monkeypatch.setenv("NIGHTFLEET_SQL_DIR", str(tmp_path / "queries"))
    folders = catalog_folders(load_settings())
    assert folders == (CatalogFolder(tmp_path / "fleet", sql=tmp_path / "queries", sources=tmp_path),)
    assert [model.name for model in load_catalog(load_settings()).models] == ["tour_minutes"]


def test_former_and_present_setting_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_CATALOG_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTFLEET_CATALOGS", "config")
    with pytest.raises(BadSettings, match="are both set. Name every folder in NIGHTFLEET_CATALOGS"):
        load_settings()


@pytest.mark.parametrize(("value", "words"), [("config,config", "names one folder twice"), (",", "at least 1 item")])
def test_a_wrong_list_of_folders_is_refused(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFLEET_CATALOGS", value)
    with pytest.raises(BadSettings, match=rf"setting 'catalogs' is .*{words}"):
        load_settings()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadCatalog, match=r"names .*nowhere, which is not a folder. Create it with datasets/ or models/"
    ):
        load_catalog(Settings(catalogs=(tmp_path / "nowhere",)))


def test_all_folders_are_one_catalog_and_each_entry_knows_its_own(tmp_path: Path) -> None:
    catalog = load_catalog(two_folders(tmp_path))
    assert [d.name for d in catalog.datasets] == ["rides", "tours"]
    assert [m.name for m in catalog.models] == ["ride_minutes", "tour_minutes"]
    assert catalog.view_sql("rides", "vehicle_daily") == tmp_path / "first/sql/rides/vehicle_daily.sql"
    assert catalog.view_sql("tours", "vehicle_daily") == tmp_path / "second/sql/tours/vehicle_daily.sql"
    assert catalog.home("tour_minutes").sources == tmp_path / "second"


def test_where_an_entry_lies_does_not_change_its_digest(tmp_path: Path) -> None:
    catalog = load_catalog(two_folders(tmp_path))
    alone = load_catalog(Settings(catalogs=(team(tmp_path / "elsewhere"),)))
    assert catalog.digest("tours") == alone.digest("tours")


def test_a_model_may_use_a_data_set_of_another_folder(tmp_path: Path) -> None:
    settings = two_folders(tmp_path)
    model = tmp_path / "second" / "models" / "tour_minutes.yaml"
    model.write_text(changed(toy.MODEL_YAML, "model", "tour_minutes"), encoding="utf-8")
    assert load_catalog(settings).model("tour_minutes").dataset == "rides"


def test_a_name_of_two_folders_is_refused_with_both_files(tmp_path: Path) -> None:
    settings = two_folders(tmp_path)
    (tmp_path / "second" / "datasets" / "rides.yaml").write_text(toy.DATASET_YAML, encoding="utf-8")
    with pytest.raises(BadCatalog) as caught:
        load_catalog(settings)
    text = str(caught.value)
    assert str(tmp_path / "first" / "datasets" / "rides.yaml") in text
    assert str(tmp_path / "second" / "datasets" / "rides.yaml") in text
    assert "Rename one of the two: the file, and the name in it." in text


def test_every_problem_of_every_folder_is_told_and_none_that_follows_from_another(tmp_path: Path) -> None:
    settings = two_folders(tmp_path)
    (tmp_path / "first" / "datasets" / "rides.yaml").write_text(changed(toy.DATASET_YAML, "owner", 3))
    model = tmp_path / "second" / "models" / "tour_minutes.yaml"
    model.write_text(changed(model.read_text(), "features", ["nothing"]))
    (tmp_path / "second" / "models" / "spare.yaml").write_text("model: [")
    problems = read_catalog(catalog_folders(settings)).problems
    assert [problem.path.relative_to(tmp_path).as_posix() for problem in problems] == [
        "first/datasets/rides.yaml",
        "second/models/spare.yaml",
        "second/models/tour_minutes.yaml",
    ]
    with pytest.raises(BadCatalog) as caught:
        load_catalog(settings)
    assert all(problem.text in str(caught.value) for problem in problems)


def with_features(tmp_path: Path, features: list[str], changes: dict[str, object] | None = None) -> Settings:
    """The two folders, the second's model taking those features; `changes` are of the first folder's data set."""
    settings = two_folders(tmp_path)
    model = tmp_path / "second" / "models" / "tour_minutes.yaml"
    model.write_text(changed(model.read_text(), "features", features), encoding="utf-8")
    text = toy.DATASET_YAML
    for path, value in (changes or {}).items():
        text = changed(text, path, value)
    (tmp_path / "first" / "datasets" / "rides.yaml").write_text(text, encoding="utf-8")
    return settings


def test_a_model_takes_features_of_two_data_sets(tmp_path: Path) -> None:
    catalog = load_catalog(with_features(tmp_path, ["vehicle_daily", "rides.vehicle_daily"]))
    model = catalog.model("tour_minutes")
    assert [(view.name, view.dataset.name, view.view) for view in catalog.views(model)] == [
        ("vehicle_daily", "tours", "vehicle_daily"),
        ("rides.vehicle_daily", "rides", "vehicle_daily"),
    ]
    assert list(catalog.feature_columns(model)) == [
        "vehicle_daily__rides_7d",
        "vehicle_daily__minutes_7d",
        "rides.vehicle_daily__rides_7d",
        "rides.vehicle_daily__minutes_7d",
    ]
    assert {m.name for m in catalog.readers_of("rides")} == {"ride_minutes", "tour_minutes"}
    assert {m.name for m in catalog.models_of("rides")} == {"ride_minutes"}


@pytest.mark.parametrize(
    ("feature", "changes", "words"),
    [
        ("walks.vehicle_daily", {}, "features = 'walks': is not a data set (rides, tours)"),
        ("rides.nothing", {}, "features = 'rides.nothing': is not a feature view of rides (vehicle_daily)"),
        ("tours.vehicle_daily", {}, "names the model's own data set; write 'vehicle_daily'"),
        (
            "rides.vehicle_daily",
            {"time_zone": "Europe/Paris"},
            "is of time zone Europe/Paris, but tours of Europe/Berlin",
        ),
        (
            "rides.vehicle_daily",
            {"replay.to": date(2024, 6, 1)},
            "ends with 2024-06-01, but tours goes on to 2024-12-31",
        ),
        (
            "rides.vehicle_daily",
            {"replay.from": date(2024, 3, 1), "replay.first_night": date(2024, 3, 9)},
            "begins with 2024-03-01, but the first night of tours is 2024-03-01; it must begin before that",
        ),
        ("rides.vehicle_daily", {"replay": ..., "start": date(2023, 1, 1)}, "is live, but tours is a replay"),
        (
            "rides.vehicle_daily",
            {"tables.outcomes.columns.vehicle.type": "int64"},
            "is keyed by 'vehicle' of type int64, which is string in the spine",
        ),
    ],
)
def test_what_two_data_sets_cannot_give_together_is_refused(
    tmp_path: Path, feature: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(BadCatalog) as caught:
        load_catalog(with_features(tmp_path, ["vehicle_daily", feature], changes))
    assert words in str(caught.value)


def test_a_feature_view_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match="'vehicle_daily': appears twice"):
        load_catalog(with_features(tmp_path, ["vehicle_daily", "vehicle_daily"]))
