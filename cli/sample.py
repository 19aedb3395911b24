"""The first rows of a data set's sources, and the YAML with which the catalog would read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import TypeAdapter, ValidationError

from config.catalog.base import BadCatalog
from config.catalog.data import OWN_PREFIX, RESERVED_COLUMNS
from config.catalog.folder import CatalogFolder, catalog_folders
from config.catalog.simulation import WORLDS
from config.catalog.source import FileSource, HttpSource, SimulationSource, Source, SqlSource
from config.errors import NightfleetError
from config.settings import Settings

SAMPLED_ROWS = 1000
_ANY_NIGHT = "*"


def sample(settings: Settings, dataset: str) -> Iterator[str]:
    """What each table's source seems to hold, as YAML for its `source` and `columns`; also of an unfinished file.

    Raises:
        BadCatalog: no catalog folder has such a file, or it has no tables.
    """
    folder, document = _document(settings, dataset)
    tables = document.get("tables")
    if not isinstance(tables, dict) or not tables:
        raise BadCatalog(f"{dataset}.yaml has no `tables`: write one with its `source`, then sample again.")
    for name, table in tables.items():
        yield f"# tables: {name}:"
        try:
            yield _sampled(settings, folder, document, dataset, table if isinstance(table, dict) else {})
        except NightfleetError as error:
            yield "\n".join(f"# {line}" for line in str(error).splitlines())


def _document(settings: Settings, dataset: str) -> tuple[CatalogFolder, dict[str, Any]]:
    folders = catalog_folders(settings)
    for folder in folders:
        path = folder.path / "datasets" / f"{dataset}.yaml"
        if path.is_file():
            try:
                document = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, ValueError) as error:
                raise BadCatalog(f"{path} is not readable as YAML: {error}") from error
            if isinstance(document, dict):
                return folder, document
            raise BadCatalog(f"{path} holds {type(document).__name__}, needs a mapping of keys.")
    looked = ", ".join(str(folder.path / "datasets") for folder in folders)
    raise BadCatalog(f"there is no {dataset}.yaml in {looked}. Write it with its `tables` and their `source`.")


def _sampled(
    settings: Settings, folder: CatalogFolder, document: Mapping[str, Any], dataset: str, table: Mapping[str, Any]
) -> str:
    from features.sources.proposals import propose
    from lake.duck import connect

    described = table.get("source")
    if not isinstance(described, dict):
        raise BadCatalog("the table has no `source`: write its `kind`, and `uri`, `query` or `url`.")
    try:
        bare = {key: value for key, value in described.items() if key != "columns"}
        source = TypeAdapter[FileSource | SqlSource | HttpSource | SimulationSource](Source).validate_python(bare)
    except ValidationError as error:
        said = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors() if problem["loc"])
        raise BadCatalog(f"`source` cannot be read: {said}") from error
    time_zone = str(document.get("time_zone", "UTC"))
    with connect() as connection:
        source, rows = _first_rows(settings, folder, source, dataset, document, connection)
        lines = [f"source: {_flow(_said(described, source))}  # {rows.num_rows} rows read"]
        own = "columns" in described or "select" in described
        lines += ["# columns of the source itself: below `source`" if own else "columns:"]
        names: set[str] = set()
        for column, values in zip(rows.column_names, rows.columns, strict=True):
            proposal = propose(connection, values, time_zone=time_zone)
            name = _name(column, names)
            keys = dict(proposal.keys) | ({"renamed_from": column} if name != column else {})
            if not own:
                keys = _of_table(name, keys, table)
            note = f"  # {proposal.note}" if proposal.note else ""
            lines.append(f"  {_flow(name)}: {_flow(keys)}{note}")
    return "\n".join(lines)


def _first_rows(
    settings: Settings,
    folder: CatalogFolder,
    source: Source,
    dataset: str,
    document: Mapping[str, Any],
    connection: Any,
) -> tuple[Source, pa.Table]:
    import tempfile

    from features.sources import file, http, simulation, sql
    from features.sources.meter import Meter

    meter = Meter(f"source of {dataset}", source.limits_under(settings.source_limits))
    if isinstance(source, FileSource):
        with tempfile.TemporaryDirectory() as scratch:
            uri, place = source.uri.replace("{data_date}", _ANY_NIGHT), Path(scratch)
            files = file.find(uri, folder.sources, None, meter.label, folder=place, meter=meter)
            return file.first_rows(connection, source, files, place, meter, rows=SAMPLED_ROWS)
    replay = document.get("replay")
    night = replay.get("first_night") if isinstance(replay, dict) else document.get("start")
    night = night if isinstance(night, date) else None
    if isinstance(source, SqlSource):
        zone = str(document.get("time_zone", "UTC"))
        return source, sql.first_rows(settings, source, night, zone, meter, rows=SAMPLED_ROWS)
    if isinstance(source, SimulationSource):
        first = night or WORLDS[source.world].begins
        return source, simulation.night(source, first).slice(0, SAMPLED_ROWS)
    return source, http.first_rows(settings, source, night, meter, rows=SAMPLED_ROWS)


def _said(described: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The source as its file says it, with what was guessed."""
    kept = {key: value for key, value in described.items() if key != "columns"}
    for key in ("encoding", "delimiter", "skip_lines"):
        if getattr(source, key, None) is not None:
            kept[key] = getattr(source, key)
    return kept


def _name(found: str, taken: set[str]) -> str:
    """A name that the catalog takes: the source's own, unless it is taken or reserved."""
    name = found.strip() or "column"
    if name.lower() in RESERVED_COLUMNS or name.lower().startswith(OWN_PREFIX):
        name = f"source_{name}"
    while name.lower() in taken:
        name += "_2"
    taken.add(name.lower())
    return name


def _of_table(name: str, keys: dict[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """With what the file says of the column already, and what a column of a table needs."""
    columns = table.get("columns")
    known = columns.get(name) if isinstance(columns, dict) else None
    known = known if isinstance(known, dict) else {}
    key = table.get("key")
    if isinstance(key, list) and name in key:
        keys["nullable"] = False
    return (
        keys
        | {"description": "..."}
        | {own: known[own] for own in ("nullable", "description", "unit", "pii") if own in known}
    )


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()
