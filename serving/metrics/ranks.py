"""Where in a list of items the one that came stands."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranks(truth: Floats, predicted: Floats) -> Floats:
    """The rank of each row's item among those said, counted from 1; infinite where it is none of them.

    Args:
        truth: numbers of the items that came, (rows,).
        predicted: numbers of the items said, best first, (rows, items); no item twice in a row.
    """
    came = predicted == truth[:, None]
    return np.where(came.any(axis=1), came.argmax(axis=1) + 1.0, np.inf)
