"""Make CSV of the two ARFF files: `python features/sources/data/promise_effort/convert.py`, same bytes each time.

ARFF names its columns in `@attribute` lines and writes a missing value as `?`; data lines are comma-separated. Both
files are read as they are, a byte order mark and comments left out.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

FOLDER = Path(__file__).parent


def convert(source: Path, target: Path) -> None:
    """Write both CSV files to `target` from the ARFF files in `source`."""
    for name in ("china", "kitchenham"):
        (target / f"{name}.csv.gz").write_bytes(_csv(source / f"{name}.arff.gz"))


def _csv(path: Path) -> bytes:
    names: list[str] = []
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    for raw in gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines():
        line = raw.strip()
        if line.lower().startswith("@attribute"):
            names.append(line.split()[1])
        elif line.lower() == "@data":
            write.writerow(names)
        elif line and line[0] not in "@%":
            write.writerow(["" if value.strip() == "?" else value.strip() for value in line.split(",")])
    return gzip.compress(text.getvalue().encode(), 9, mtime=0)


if __name__ == "__main__":
    convert(FOLDER, FOLDER)
