"""What is missing on this machine, for which capability, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from config.catalog.base import BadCatalog
from config.catalog.folder import CatalogFolder, catalog_folders
from config.catalog.load import Catalog, read_catalog
from config.errors import NightfleetError
from config.settings import ROOT, Settings

_NEEDED_DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One capability: what it needs, whether that is there, and the command that fixes it."""

    capability: str
    needs: str
    found: str
    present: bool
    required: bool
    fix: str


def _packages() -> tuple[bool, str]:
    missing = []
    for line in (ROOT / "requirements.in").read_text().splitlines():
        name = line.split("==")[0].strip()
        if not name or name.startswith("#"):
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return not missing, f"missing: {', '.join(missing)}" if missing else "all there"


def _shown(path: Path) -> str:
    """The path as the settings say it: below the repository's root, or whole."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _missing_sql(catalog: Catalog, folder: CatalogFolder) -> list[str]:
    """SQL files that the folder's data sets name and that are not there."""
    missing = []
    for dataset in catalog.datasets:
        if catalog.home(dataset.name) != folder:
            continue
        missing += [
            f"{path} is missing: feature view {view!r} of {dataset.name} needs it"
            for view in dataset.features
            if not (path := catalog.view_sql(dataset.name, view)).is_file()
        ]
        missing += [
            f"{folder.sql / select} is missing: `select` of table {table!r} of {dataset.name} names it"
            for table, declared in dataset.tables.items()
            if (select := declared.source.select or "").endswith(".sql") and not (folder.sql / select).is_file()
        ]
    return missing


def _unknown_families(catalog: Catalog, folder: CatalogFolder) -> list[str]:
    """Families of the folder whose code is wrong, and models of it that name a family without code: said now, not by
    the training of some night.
    """
    from serving.predictors import UnknownFamily, check_family
    from serving.predictors.brought import PARTS, BadFamily, FamilyCode, bring

    unknown = []
    for name, path in catalog.families.items():
        try:
            code = bring(FamilyCode.read(name, path))
            for part in PARTS if path == folder.families.get(name) else ():
                code.module(part)
        except BadFamily as error:
            unknown.append(error.args[0])
    for model in catalog.models:
        for trainer in (model.trainer, *model.candidates) if catalog.home(model.name) == folder else ():
            try:
                check_family(trainer.family)
            except UnknownFamily as error:
                unknown.append(f"{folder.path / 'models' / model.name}.yaml: {error.args[0]}")
    return unknown


def _catalogs(settings: Settings) -> Iterator[Finding]:
    """One finding for each catalog folder, with everything that is wrong in it."""
    try:
        folders = catalog_folders(settings)
    except BadCatalog as error:
        yield Finding(
            "everything", "the catalog folders", str(error), False, True, "create it, or correct NIGHTFLEET_CATALOGS"
        )
        return
    reading = read_catalog(folders)
    for folder in folders:
        wrong = [p.text for p in reading.problems if p.path.is_relative_to(folder.path)]
        wrong += _missing_sql(reading.catalog, folder) + _unknown_families(reading.catalog, folder)
        counts = f"{len(folder.files('datasets'))} data sets, {len(folder.files('models'))} models"
        yield Finding(
            "everything",
            f"catalog folder {_shown(folder.path)} without errors",
            "\n".join(wrong) or counts,
            not wrong,
            True,
            "fix the file it names",
        )


def _docker() -> tuple[bool, str]:
    from training.registry.containers import EngineUnavailable, engine

    try:
        version = engine().version()["Version"]
    except EngineUnavailable as error:
        return False, str(error).splitlines()[0].removeprefix("EngineUnavailable: ")[:80]
    return True, f"engine {version}"


def _image(settings: Settings) -> tuple[bool, str]:
    from training.registry.containers import EngineUnavailable, ImageMissing, engine, find_image

    try:
        return True, find_image(engine(), settings, gpus=False)
    except EngineUnavailable:
        return False, "no engine"
    except ImageMissing as error:
        return False, str(error).splitlines()[0].removeprefix("ImageMissing: ")[:100]


def _notifications(settings: Settings) -> tuple[bool, str]:
    from monitoring.alerting.outbox import state_text

    said = state_text(settings)
    return bool(settings.notifications) and "cannot be reached" not in said, said


def _projections(settings: Settings) -> tuple[bool, str]:
    """Whether SQL and Feast show what the lake holds; the bytes themselves are read by `verify` alone."""
    from config.catalog.load import load_catalog
    from lake.delta import table_location
    from lake.lake import Lake
    from lake.lineage import publications_table
    from lake.projection import has_table
    from monitoring.audit.verification import verify_projections

    if not Path(table_location(settings).uri).is_dir():
        return True, "nothing is stored yet"
    try:
        lake = Lake(settings, load_catalog(settings), read_only=True)
        if not has_table(lake, publications_table.name):
            return False, "SQL has no index of publications"
        damages = list(verify_projections(lake))
    except NightfleetError as error:
        return False, str(error).splitlines()[0]
    said = "\n".join(f"{damage.part}: {damage.place} {damage.problem}" for damage in damages)
    return not damages, said or "as in the lake"


def _command(*names: str) -> Callable[[], tuple[bool, str]]:
    def look() -> tuple[bool, str]:
        for name in names:
            path = shutil.which(name) or next(
                (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None
            )
            if path:
                return True, path
        return False, "not found"

    return look


def examine(settings: Settings) -> list[Finding]:
    """Look at everything a capability needs; starts nothing, changes nothing."""
    home = settings.home if settings.home.exists() else settings.home.parent
    free_gb = shutil.disk_usage(home).free / 1e9
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    findings: list[Finding] = [
        Finding(
            "everything",
            "Python 3.11",
            python,
            sys.version_info[:2] == (3, 11),
            True,
            "make setup PYTHON=/path/to/python3.11",
        ),
        Finding(
            "everything",
            f"{_NEEDED_DISK_GB:.0f} GB of disk for {home}",
            f"{free_gb:.0f} GB free",
            free_gb > _NEEDED_DISK_GB,
            True,
            "free some, or set NIGHTFLEET_HOME",
        ),
    ]

    def add(capability: str, needs: str, look: Callable[[], tuple[bool, str]], required: bool, fix: str) -> None:
        present, text = look()
        findings.append(Finding(capability, needs, text, present, required, fix))

    add("everything", "the locked packages", _packages, True, "make setup")
    findings += _catalogs(settings)
    add(
        "looking things up",
        "SQL and Feast as the lake has them",
        lambda: _projections(settings),
        False,
        "python -m cli repair; `python -m cli verify` reads every digest",
    )
    add(
        "training in containers",
        "a Docker engine",
        _docker,
        False,
        "apt-get install docker.io && dockerd; until then trainings are processes",
    )
    add(
        "training in containers",
        "the training image of this code",
        lambda: _image(settings),
        False,
        "make images; until then trainings are processes",
    )
    add(
        "training on a GPU",
        "an NVIDIA driver",
        _command("nvidia-smi"),
        False,
        "install the driver; until then training runs on the CPU",
    )
    add(
        "telling people",
        "channels that can be reached",
        lambda: _notifications(settings),
        False,
        "name them in the profile, with the secrets they refer to",
    )
    add("tests on Postgres", "Postgres server binaries", _command("initdb"), False, "apt-get install postgresql")
    add("tests of the pages", "Chromium", _command("chromium"), False, "apt-get install chromium")
    add("tests of the metrics", "Prometheus", _command("prometheus"), False, "apt-get install prometheus")
    return findings


def render(findings: list[Finding]) -> Table:
    """The findings as a table; the mending command stands where something is missing."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "capability", "needs", "found", "fix with"):
        table.add_column(column)
    for finding in findings:
        table.add_row(
            _mark(finding),
            finding.capability,
            finding.needs,
            escape(finding.found),
            "" if finding.present else finding.fix,
        )
    return table


def _mark(finding: Finding) -> str:
    if finding.present:
        return "[green]✔"
    return "[red]✘" if finding.required else "[yellow]–"
