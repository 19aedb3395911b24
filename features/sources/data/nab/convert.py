"""Makes `measurements.csv.gz` and `incidents.csv` from Numenta's own files: `python
features/sources/data/nab/convert.py FOLDER`, FOLDER being a copy of the repository numenta/NAB.

All 58 series become one table; numbers and times are taken over as they are written there. The same bytes come out each
time.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def convert(source: Path, target: Path) -> None:
    """Write both files to `target` from `data/` and `labels/combined_windows.json` of `source`."""
    windows: dict[str, list[list[str]]] = json.loads((source / "labels" / "combined_windows.json").read_text("utf-8"))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("series", "step", "measured", "value"))
    for name in sorted(windows):
        with (source / "data" / name).open(encoding="ascii", newline="") as lines:
            rows = list(csv.reader(lines))[1:]
        series = name.removesuffix(".csv")
        writer.writerows((series, step, when, value) for step, (when, value) in enumerate(rows, start=1))
    (target / "measurements.csv.gz").write_bytes(gzip.compress(text.getvalue().encode("ascii"), 9, mtime=0))
    spans = [
        f"{name.removesuffix('.csv')},{begin.removesuffix('.000000')},{end.removesuffix('.000000')}\n"
        for name in sorted(windows)
        for begin, end in windows[name]
    ]
    (target / "incidents.csv").write_text("series,begins,ends\n" + "".join(spans), encoding="ascii", newline="\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), FOLDER)
