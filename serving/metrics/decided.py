"""What probabilities become when somebody must decide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# A probability at or above it counts as a yes, in the metrics of a decision and in the confusion matrix.
THRESHOLD = 0.5


def decided(predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """0 or 1 of the probabilities of an event, (rows,); of those of classes, (rows, classes), the most probable, of
    equal ones the first.
    """
    if predicted.ndim == 2:
        return np.asarray(predicted.argmax(axis=1), dtype=np.int64)
    return (predicted >= THRESHOLD).astype(np.int64)
