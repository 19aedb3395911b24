"""How much of its limits one read of a source has used up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from typing import IO, BinaryIO

import duckdb

from config.limits import SourceLimits
from features.sources.errors import SourceTooLarge

# Small texts of zeros pack a thousandfold, and harm nobody.
RATIO_FROM_BYTES = 16 * 2**20
_CHUNK_BYTES = 1 << 20
_INTERRUPT_SECONDS = 0.1
_WORDS = {
    "max_bytes": "bytes",
    "max_rows": "rows",
    "max_pages": "pages",
    "max_seconds": "seconds",
    "max_header_bytes": "bytes of header",
    "max_zip_members": "members",
}


class Meter:
    """Counts one read. Every method raises `SourceTooLarge` once its limit is passed."""

    def __init__(self, label: str, limits: SourceLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.label, self.limits, self._clock = label, limits, clock
        self._ends = clock() + limits.max_seconds
        self._taken: dict[str, float] = {}

    def take(self, limit: str, amount: int) -> None:
        """Add to what was read of a limit, and look at the time."""
        self._taken[limit] = self._taken.get(limit, 0) + amount
        self.check(limit, self._taken[limit])
        self.in_time()

    def check(self, limit: str, amount: float) -> None:
        """Compare an amount that is known as a whole."""
        allowed = getattr(self.limits, limit)
        if amount > allowed:
            raise self._refusal(limit, f"has more than {allowed:,} {_WORDS[limit]}")

    def ratio(self, packed: int, unpacked: int) -> None:
        """Compare what came out of a compression with what went in, both in bytes."""
        if unpacked > max(RATIO_FROM_BYTES, self.limits.max_ratio * packed):
            raise self._refusal(
                "max_ratio", f"unpacks {packed:,} bytes to more than {self.limits.max_ratio:,} times as many"
            )

    def in_time(self) -> None:
        """Look at the time."""
        if self._clock() > self._ends:
            raise self._refusal("max_seconds", f"was not read within {self.limits.max_seconds:,.0f} seconds")

    def copy(self, packed: IO[bytes] | GzipFile, file: BinaryIO, packed_bytes: int) -> None:
        """Unpack a stream into a file, and stop where a limit is passed: what lies on disk stays within it."""
        unpacked = 0
        while chunk := packed.read(_CHUNK_BYTES):
            unpacked += len(chunk)
            self.take("max_bytes", len(chunk))
            self.ratio(packed_bytes, unpacked)
            file.write(chunk)

    @contextmanager
    def interrupting(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupt the connection's query when the time is over."""
        over = threading.Event()

        def interrupt() -> None:
            wait_seconds = max(0.0, self._ends - self._clock())
            while not over.wait(wait_seconds):
                # More than once: between two queries, or before the first, nobody hears it.
                connection.interrupt()
                wait_seconds = _INTERRUPT_SECONDS

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        try:
            yield
        except duckdb.InterruptException:
            self.in_time()
            raise
        finally:
            over.set()
            thread.join()

    def _refusal(self, limit: str, what: str) -> SourceTooLarge:
        return SourceTooLarge(
            f"{self.label} {what}. Nothing was written.\n"
            f"  If the delivery is right, raise `{limit}` in the source's `limits`, or in the setting "
            "NIGHTFLEET_SOURCE_LIMITS for all sources."
        )
