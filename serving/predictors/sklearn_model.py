"""What the scikit-learn families share when they are served: skops files read with a list of trusted types, and sums
that are the same in any batch.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.predictors.contract import BadModelFile, Contract, Matrix

Floats = npt.NDArray[np.float64]
PRELOADED = "skops.io"  # imports all of scikit-learn, to know its types

# Beside what skops itself trusts. None of them does more than hold or cut numbers.
TREE = "sklearn.tree._tree.Tree"
FOLDS = "sklearn.model_selection._split.KFold"  # how the target encoder was fitted
CUT = "numpy.clip"
KIND = "numpy.dtype"  # of the matrix that an imputer was fitted on


def read_model(path: Path, kind: str, trusted: tuple[str, ...]) -> Any:
    """Read a pipeline of two steps, `encode` and `model`.

    Args:
        path: a skops file whose bytes the caller has just written or verified.
        kind: class name of the step `model`.
        trusted: types that may be made beside those of skops' own list; nothing is unpickled.
    Raises:
        BadModelFile: it holds another type, of which nothing was made, or another model.
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    try:
        foreign = sorted(set(skops.io.get_untrusted_types(file=path)) - set(trusted))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise BadModelFile(
            f"{path} is not a skops file: {error}. Nothing was loaded. Restore it, or train the model again."
        ) from error
    if foreign:
        raise BadModelFile(
            f"{path} holds the type {foreign[0]}, this family's models hold none but scikit-learn's own and "
            f"{', '.join(trusted)}. "
            "Nothing was loaded. Find out who wrote it, and train the model again."
        )
    model = skops.io.load(path, trusted=list(trusted))
    held = (
        type(model["model"]).__name__
        if isinstance(model, Pipeline) and "model" in model.named_steps
        else type(model).__name__
    )
    if held != kind:
        raise BadModelFile(f"{path} holds a {held}, this family serves a {kind}. Train the model again.")
    return model


def linear_scores(pipeline: Any, matrix: Matrix) -> Floats:
    """Raw scores, float64 of shape (rows, targets), of a pipeline that ends in a linear model.

    Summed row by row: a BLAS product gives a row other last bits in another batch.
    """
    design = np.ascontiguousarray(pipeline["encode"].transform(matrix), dtype=np.float64)
    coefficients = np.ascontiguousarray(np.atleast_2d(pipeline["model"].coef_))
    scores: Floats = np.einsum("ij,kj->ik", design, coefficients) + pipeline["model"].intercept_
    return scores


def column_origins(contract: Contract, encoder: Any) -> list[str]:
    """The feature behind each column of a fitted encoder, whose column names hold the features' positions."""
    names = list(contract.features)
    columns = encoder.get_feature_names_out([str(index) for index in range(len(names))])
    return [names[int(re.match(r"\w+?__(?:missingindicator_)?(\d+)", column)[1])] for column in columns]  # type: ignore[index]  # the encoder names them so
