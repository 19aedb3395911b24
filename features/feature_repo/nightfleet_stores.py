"""The stores that `feature_store.yaml` names, importable from this folder, where the `feast` command looks for
modules.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from features.compute_engine import ColumnarComputeEngine, ColumnarComputeEngineConfig
from features.offline_store import DuckDBDeltaOfflineStore, DuckDBDeltaOfflineStoreConfig
from features.online_store import NewestWinsSqliteOnlineStore, NewestWinsSqliteOnlineStoreConfig

__all__ = [
    "ColumnarComputeEngine",
    "ColumnarComputeEngineConfig",
    "DuckDBDeltaOfflineStore",
    "DuckDBDeltaOfflineStoreConfig",
    "NewestWinsSqliteOnlineStore",
    "NewestWinsSqliteOnlineStoreConfig",
]
