"""What the tests of a catalog folder use: its first nights, run from the sources as the chain runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import load_settings
from features.ingest import ingest
from features.retrieval import retrieve
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from lake.tables import LakeTable, feature_table, valid_table


@dataclass(frozen=True)
class FirstNights:
    """What the first nights of a data set hold.

    Attributes:
        interval: their data dates.
        valid_rows: by table, rows that passed the checks.
        views: by feature view, its table.
    """

    interval: Interval
    valid_rows: Mapping[str, int]
    views: Mapping[str, LakeTable]

    def features(self, view: str) -> pa.Table:
        """Rows of a feature view in these nights, sorted by `(data_date, *entities)`."""
        return self.views[view].read(list(self.interval))


def folder_lake(folder: Path, home: Path) -> Lake:
    """An empty lake in `home` whose catalog has that folder beside those that the settings name.

    Raises:
        BadCatalog: something is wrong with a file of a folder.
    """
    settings = load_settings()
    catalogs = tuple(dict.fromkeys((*settings.catalogs, folder.resolve())))
    settings = settings.model_copy(update={"home": home, "catalogs": catalogs, "sql_url": "", "feast_registry_url": ""})
    return Lake(settings, load_catalog(settings))


def run_first_nights(lake: Lake, dataset: str, *, nights: int) -> FirstNights:
    """Ingest, validate and transform the first nights there can be; raises as these stages do."""
    entry = lake.dataset(dataset)
    interval = Interval(entry.first_data_date, entry.first_data_date + timedelta(days=nights))
    for stage in (ingest, validate, transform):
        stage(lake, dataset, interval, run_id="test")
    valid = {name: valid_table(lake.settings, entry, name).read(list(interval)).num_rows for name in entry.tables}
    views = {view: feature_table(lake.settings, entry, view) for view in entry.features}
    return FirstNights(interval, valid, views)


def first_rows(lake: Lake, model: str, *, nights: int) -> pa.Table:
    """What the model would score in its data sets' first common nights, with its features; raises as the stages do."""
    entry = lake.model(model)
    runs = [run_first_nights(lake, dataset.name, nights=nights) for dataset in lake.catalog.datasets_of(entry)]
    common = Interval(max(run.interval.start for run in runs), min(run.interval.end for run in runs))
    with lake.scratch("first-rows") as folder:
        return retrieve(lake, model, common, folder=folder).reader().read_all()
