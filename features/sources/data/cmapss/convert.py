"""Makes `cycles.csv.gz` and `test_lives.csv` from NASA's own files beside it: `python
features/sources/data/cmapss/convert.py`.

NASA's text has no header and separates by blanks; the numbers are taken over as they are written there. The same bytes
come out each time.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

FOLDER = Path(__file__).parent
COLUMNS = ("fleet", "engine", "cycle", *(f"setting_{n}" for n in range(1, 4)), *(f"sensor_{n}" for n in range(1, 22)))


def convert(source: Path, target: Path) -> None:
    """Write both files to `target` from NASA's in `source`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for fleet in ("train", "test"):
        with gzip.open(source / f"{fleet}_FD001.txt.gz", "rt", encoding="ascii") as lines:
            writer.writerows([fleet, *line.split()] for line in lines)
    (target / "cycles.csv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    lives = (source / "RUL_FD001.txt").read_text(encoding="ascii").split()
    rows = "".join(f"{engine},{cycles}\n" for engine, cycles in enumerate(lives, start=1))
    (target / "test_lives.csv").write_text(f"engine,cycles_left\n{rows}", encoding="ascii", newline="\n")


if __name__ == "__main__":
    convert(FOLDER, FOLDER)
