"""What `feast apply` finds in this folder: every entity, feature view and feature service of the catalog."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from config.catalog.load import load_catalog
from config.settings import load_settings
from features.definitions import feast_objects

settings = load_settings()
(settings.home / "feast").mkdir(parents=True, exist_ok=True)  # SQLite makes a file, not its folder
globals().update(
    {f"{type(found).__name__}_{found.name}": found for found in feast_objects(settings, load_catalog(settings))}
)
