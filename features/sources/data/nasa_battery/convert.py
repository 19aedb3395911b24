"""Makes `curves/B00xx.csv.gz` from the packed discharge curves: `python features/sources/data/nasa_battery/convert.py
FOLDER`.

FOLDER holds `B0005.tar.gz` and the others (PROVENANCE.md says where from, with their digests). A packed file is one
discharge, `dis_<cycle>_cap_<capacity>.csv`. Kept are time and the cell's own voltage, current and temperature, digit by
digit; left out are the load's two columns, the column `ic` that a later author derived, and the capacity in the file's
name, which is the label and comes from NASA's metadata alone. The same bytes come out each time.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent
CELLS = ("B0005", "B0006", "B0007", "B0018")
KEPT = {"discharge_time": "seconds", "voltage": "voltage", "current": "current", "temperature": "temperature"}


def convert(source: Path, target: Path) -> None:
    """Write one file a cell to `target` from the archives in `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("cell", "cycle", *KEPT.values()))
        with tarfile.open(source / f"{cell}.tar.gz") as archive:
            curves = {
                int(match[1]): member
                for member in archive
                if (match := re.search(r"/dis_(\d+)_cap_[\d.]+\.csv$", member.name))
            }
            for cycle, member in sorted(curves.items()):
                packed = archive.extractfile(member)
                assert packed is not None  # the pattern names files alone
                for row in csv.DictReader(io.TextIOWrapper(packed, encoding="utf-8", newline="")):
                    writer.writerow((cell, cycle, *(row[name] for name in KEPT)))
        (target / f"{cell}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), FOLDER / "curves")
