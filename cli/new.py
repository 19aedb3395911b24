"""A commented start of a data set or a model in a catalog folder, copied from one that works."""

from __future__ import annotations

import glob
import gzip
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from config.catalog.base import BadCatalog, Name
from config.catalog.data import Dataset
from config.catalog.folder import CatalogFolder, catalog_folders
from config.catalog.load import load_catalog, read_catalog
from config.catalog.source import FileSource, Lookup
from config.errors import NightfleetError
from config.settings import ROOT, Settings

_WHOLE_FILE_BYTES = 2_000_000
_SAMPLE_LINES = 5_000

_DATASET_KEYS = {
    "dataset": "The name: tables, DAGs and SQL are called after it. The file has the same name.",
    "title": "What people read.",
    "owner": "Who answers for it, and where to reach them.",
    "licence": "Under which terms the data may be used.",
    "time_zone": "A night ends at midnight here.",
    "start": "First data date of a live data set; a historic one says `replay` instead.",
    "replay": "Bounds of a historic data set, and the first night that models score; a live one says `start` instead.",
    "ready_after": "Local time before which a live night is not read.",
    "tables": "Each table: source, key, when a row became known, columns, checks.",
    "features": "Each view is a file sql/<data set>/<view>.sql that gives data_date, the entities and these columns.",
    "airflow": "Retries, pool, timeout and tags of the DAGs.",
}
_TABLE_KEYS = {
    "source": "Where the rows come from: a file, an SQL query, or JSON over HTTP. `select` shapes them to the columns.",
    "key": "Columns that name a row. A row that comes again with other values is a revision.",
    "known_at": "When a row became known: a column, an expression, or `arrival`. No night sees what came later.",
    "columns": "Every column, with type and description: one that is missing, new or retyped stops the night.",
    "checks": "A row that breaks a rule is set aside; a rule on the whole table warns or stops.",
    "quality": "Shares of bad rows that warn and stop.",
    "entities": "Join keys, named as in the model's spine.",
    "reads": "Tables that the SQL reads.",
    "lookback": "Partitions of so many days suffice for a night.",
    "ttl": "How long a value serves an entity that a later night does not have.",
}
_MODEL_KEYS = {
    "model": "The name: DAGs, tables and MLflow's entries are called after it. The file has the same name.",
    "title": "What people read.",
    "owner": "Who answers for it, and where to reach them.",
    "deadline": "Local time by which a night should be scored.",
    "dataset": "The data set of spine and label.",
    "spine": "What is scored each night: rows of a table, or steps of a calendar.",
    "label": "What comes true, and how long after the target time it is certain.",
    "features": "Feature views of the data set; `<data set>.<view>` takes one of another of the same time zone.",
    "outputs": "What is predicted, and the metric that the gate judges by.",
    "trainer": "The family, its parameters, its seed.",
    "candidates": "Further trainers; the best on validation goes to the gate.",
    "split": "Windows backwards from the newest mature night: test, embargo, validation, embargo, train.",
    "gate": "What a challenger must prove before it is promoted.",
    "approval": "`required`: a person decides on each promotion that passed the gate.",
    "rollout": "How a version that passed takes over: at once, or step by step under guardrails.",
    "retrain": "When a retraining is asked for.",
    "training": "Resources of the training job.",
    "airflow": "Retries, pool, timeout and tags of the DAGs.",
    "alerts": "When somebody is told.",
}

_CONFTEST = '''"""Makes the repository's packages importable wherever pytest is started."""

import os
import sys
from pathlib import Path

REPOSITORY = os.environ.get("NIGHTFLEET_REPOSITORY") or Path(__file__).parent / "{repository}"
sys.path.insert(0, str(Path(REPOSITORY).resolve()))
'''
_DATASET_TEST = '''"""The first nights of {name}: read, validated, and made into features."""

from pathlib import Path

FOLDER = Path(__file__).parents[1]


def test_the_first_nights_of_{name}(tmp_path: Path) -> None:
    from features.testing import folder_lake, run_first_nights

    lake = folder_lake(FOLDER, tmp_path)
    nights = run_first_nights(lake, "{name}", nights=7)
    assert any(nights.valid_rows.values()), f"no table has a valid row in {{nights.interval}}"
    # What the SQL must get right: compare some rows of `nights.features(view)` with values worked out by hand.
    assert set(nights.views) == set(lake.dataset("{name}").features)
'''
_MODEL_TEST = '''"""The first nights of {name}: what it would score, with the features it takes."""

from pathlib import Path

FOLDER = Path(__file__).parents[1]


def test_the_first_rows_of_{name}(tmp_path: Path) -> None:
    from features.testing import first_rows, folder_lake

    lake = folder_lake(FOLDER, tmp_path)
    rows = first_rows(lake, "{name}", nights=7)
    assert rows.num_rows > 0
    assert set(lake.catalog.feature_columns(lake.model("{name}"))) <= set(rows.column_names)
'''


class BadStart(NightfleetError):
    """A new data set or model cannot be started like that; nothing was written."""


@dataclass(frozen=True)
class Started:
    """What was written, and whether the settings name the folder already."""

    folder: Path
    files: tuple[Path, ...]
    named: bool


def new_dataset(settings: Settings, name: str, *, like: str, folder: Path) -> Started:
    """Write data set `name` into a catalog folder: the YAML of `like` with comments, its SQL, its data, a test.

    Raises:
        BadStart: the name is none or taken, a file is there already, or there is no data set `like`.
    """
    catalog, target, named = load_catalog(settings), *_target(settings, folder)
    known = [dataset.name for dataset in catalog.datasets]
    _check(settings, name, like, known)
    dataset, home = catalog.dataset(like), catalog.home(like)
    text = (home.path / "datasets" / f"{like}.yaml").read_text(encoding="utf-8")
    copies: dict[Path, Path] = {}
    for uri in _relative_uris(dataset):
        paths = [Path(match) for match in sorted(glob.glob(str(home.sources / uri.replace("{data_date}", "*"))))]
        if not paths:
            raise BadStart(f"{like} reads {home.sources / uri}, which is not there. Nothing was written.")
        folder_of_data = target.path / "data" / name
        for path in [*paths, *paths[0].parent.glob("PROVENANCE.md")]:
            if copies.setdefault(folder_of_data / path.name, path) != path:
                raise BadStart(f"{like} reads two files called {path.name}: copy it by hand. Nothing was written.")
        own = os.path.relpath(folder_of_data / Path(uri).name, target.sources)
        text = re.sub(rf"(?<![\w./*-]){re.escape(uri)}(?![\w./*-])", own, text)
    for path in sorted((home.sql / like).glob("*.sql")):
        copies[target.sql / name / path.name] = path
    text = re.sub(rf"(?m)^dataset: *{like}\b", f"dataset: {name}", text)
    text = re.sub(rf"(select: *)[\"']?{like}/", rf"\g<1>{name}/", text)
    text = text.replace(f"features/sql/{like}/", f"sql/{name}/")
    texts = {
        target.path / "datasets" / f"{name}.yaml": _commented(text, _DATASET_KEYS, _TABLE_KEYS),
        target.path / "tests" / f"test_{name}.py": _DATASET_TEST.format(name=name),
    }
    return _write(settings, target, texts, copies, named)


def new_model(settings: Settings, name: str, *, like: str, folder: Path, dataset: str | None = None) -> Started:
    """Write model `name` into a catalog folder: the YAML of `like` with comments, and a test.

    Args:
        dataset: the data set of the new model, with tables and views named as those of `like`'s; its own by default.
    Raises:
        BadStart: the name is none or taken, a file is there already, or there is no model `like`.
        BadCatalog: the data set does not have what the model needs; nothing was written.
    """
    catalog, target, named = load_catalog(settings), *_target(settings, folder)
    _check(settings, name, like, [model.name for model in catalog.models])
    text = (catalog.home(like).path / "models" / f"{like}.yaml").read_text(encoding="utf-8")
    text = re.sub(rf"(?m)^model: *{like}\b", f"model: {name}", text)
    if dataset is not None:
        text = re.sub(r"(?m)^dataset: *\w+", f"dataset: {dataset}", text)
    texts = {
        target.path / "models" / f"{name}.yaml": _commented(text, _MODEL_KEYS, {}),
        target.path / "tests" / f"test_{name}.py": _MODEL_TEST.format(name=name),
    }
    return _write(settings, target, texts, {}, named)


def _target(settings: Settings, folder: Path) -> tuple[CatalogFolder, bool]:
    """The folder to write to, and whether the settings name it."""
    path = folder.expanduser().resolve()
    for known in catalog_folders(settings):
        if known.path.resolve() == path:
            return known, True
    return CatalogFolder(path, path / "sql", path), False


def _check(settings: Settings, name: str, like: str, known: list[str]) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise BadStart(
            f"{name!r} is no name: it needs to begin with a small letter and to go on with small letters, digits and "
            "underscores, 60 in all at most. Nothing was written."
        ) from error
    if like not in known:
        raise BadStart(f"there is nothing called {like!r} to begin from. Known: {', '.join(known)}.")
    homes = load_catalog(settings).homes
    if name in homes:
        raise BadStart(f"the name {name!r} is taken, in {homes[name].path}. Choose another; nothing was written.")


def _relative_uris(dataset: Dataset) -> list[str]:
    sources = [table.source for table in dataset.tables.values()]
    files: list[FileSource | Lookup] = [source for source in sources if isinstance(source, FileSource)]
    files += [lookup for source in sources for lookup in source.lookups.values()]
    uris = dict.fromkeys(file.uri.partition("!")[0] for file in files)
    return [uri for uri in uris if not uri.startswith("package:") and not Path(uri).is_absolute()]


def _commented(text: str, top: Mapping[str, str], inner: Mapping[str, str]) -> str:
    """The YAML with a comment before each key that is explained; an inner key is explained where it first stands."""
    lines: list[str] = []
    told: set[str] = set()
    for line in text.splitlines():
        key = re.match(r"( *)(\w+):", line)
        comments = top if key and not key[1] else inner
        if key and key[2] in comments and (not key[1] or len(key[1]) == 4) and key[2] not in told:
            told.add(key[2])
            lines.append(f"{key[1]}# {comments[key[2]]}")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _write(
    settings: Settings, target: CatalogFolder, texts: dict[Path, str], copies: Mapping[Path, Path], named: bool
) -> Started:
    conftest = target.path / "tests" / "conftest.py"
    there = [path for path in (*texts, *copies) if path.exists()]
    if there:
        raise BadStart(f"{there[0]} is there already. Choose another name, or remove it; nothing was written.")
    if not conftest.exists():
        texts[conftest] = _CONFTEST.format(repository=os.path.relpath(ROOT, conftest.parent))
    written = [*texts, *copies]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, source in copies.items():
        _copy(source, path)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    folders = catalog_folders(settings)
    reading = read_catalog(folders if target in folders else (*folders, target))
    mine = [problem.text for problem in reading.problems if problem.path in texts]
    if mine:
        for path in written:
            path.unlink()
        raise BadCatalog("\n".join([*mine, "Nothing was written."]))
    return Started(target.path, tuple(sorted(written)), named)


def _copy(source: Path, target: Path) -> None:
    """The file; of a large text only its first lines, since it is an example."""
    if source.stat().st_size <= _WHOLE_FILE_BYTES or source.suffix not in {".csv", ".gz"}:
        shutil.copyfile(source, target)
        return
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as whole, opened(target, "wt", encoding="utf-8") as sample:
        sample.writelines(line for _, line in zip(range(_SAMPLE_LINES), whole, strict=False))
