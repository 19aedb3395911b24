"""The folders that make up the catalog: the shipped one, and those that teams keep elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from config.catalog.base import BadCatalog
from config.settings import ROOT, Settings

SHIPPED = ROOT / "config"
SHIPPED_SQL = ROOT / "features" / "sql"


@dataclass(frozen=True)
class CatalogFolder:
    """One catalog folder: `datasets/*.yaml`, `models/*.yaml`, and what they name.

    Attributes:
        path: the folder.
        sql: holds `<dataset>/<view>.sql` and what a source's `select` names.
        families: holds model families of one's own, `<family>/trainer.py` and `<family>/predictor.py`.
        sources: where the relative paths of sources start.
    """

    path: Path
    sql: Path
    sources: Path

    @property
    def families(self) -> dict[str, Path]:
        """Folders of its own model families, by name."""
        folders = sorted((self.path / "families").glob("*/"))
        return {path.name: path for path in folders if path.name != "__pycache__"}

    def files(self, kind: str) -> list[Path]:
        """The YAML files of `datasets` or `models`, sorted."""
        return sorted((self.path / kind).glob("*.yaml"))


def catalog_folders(settings: Settings) -> tuple[CatalogFolder, ...]:
    """The catalog folders in the order of the settings.

    The shipped folder keeps its SQL and data beside the code that reads them. Installations that still say
    `catalog_dir` and `sql_dir` keep their paths too: their sources start at the folder above the catalog.

    Raises:
        BadCatalog: a folder is not there.
    """
    if settings.catalog_dir is not None:
        path = settings.catalog_dir
        return (CatalogFolder(path, settings.sql_dir or SHIPPED_SQL, path.parent),)
    for path in settings.catalogs:
        if not path.is_dir():
            raise BadCatalog(
                f"the setting `catalogs` names {path}, which is not a folder. Create it with datasets/ or models/ in "
                "it, or correct the setting; relative paths start at the repository's root."
            )
    return tuple(
        CatalogFolder(path, settings.sql_dir or SHIPPED_SQL, ROOT)
        if path == SHIPPED
        else CatalogFolder(path, path / "sql", path)
        for path in settings.catalogs
    )
