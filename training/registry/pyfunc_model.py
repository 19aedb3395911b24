"""What `mlflow.pyfunc.load_model` runs of a registered version: our own predictor on the verified files. Nothing is
unpickled.

An analyst has no signing key: the files are verified by the digests in the manifest beside them, which say that they
belong together, not who made them. Whoever can write to MLflow's store can change both. Nothing that scores, judges or
promotes loads this copy.

MLflow copies this file, and the few packages it imports, beside the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa

_TYPES = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
}


class NightfleetModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A DataFrame of features in, a DataFrame of the output columns out."""

    def load_context(self, context: Any) -> None:
        """Verify and load the files."""
        from serving.predictors import load_predictor

        self._predictor = load_predictor(Path(context.artifacts["version"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict every row; columns of the signature, every number as float64, missing ones as NaN."""
        del context, params
        schema = pa.schema([(name, _TYPES[kind]) for name, kind in self._predictor.feature_columns.items()])
        rows = pa.Table.from_pandas(model_input[schema.names], schema=schema, preserve_index=False)
        predictions: pd.DataFrame = self._predictor.predict(rows).to_pandas()
        return predictions


mlflow.models.set_model(NightfleetModel())
