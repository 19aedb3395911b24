"""Random numbers by address instead of by order: any of them is drawn without those before it.

Philox is a counter-based generator (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011): a number is a function of a key and a counter. The key is the world's seed and the name of a stream, the counter
a day or cycle and the place of a vehicle, so that further vehicles change none of the first ones' numbers.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@cache
def _stream_key(stream: str) -> int:
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")


def uniforms(seed: int, stream: str, index: int, count: int) -> Floats:
    """`count` numbers in (0, 1), the same however many are drawn.

    Args:
        index: which draw of the stream, for example the day or the cycle; not negative.
    """
    # The bits themselves: NumPy promises them to stay, and what it makes of them not.
    raw = np.random.Philox(key=(seed, _stream_key(stream)), counter=(0, 0, index, 0)).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, stream: str, index: int, count: int) -> Floats:
    """`count` standard normal numbers, by Box and Muller's transform of two uniform ones each."""
    pairs = uniforms(seed, stream, index, 2 * count).reshape(count, 2)
    return np.sqrt(-2.0 * np.log(pairs[:, 0])) * np.cos(2.0 * np.pi * pairs[:, 1])
