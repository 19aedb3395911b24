"""Makes `visits.csv.gz` and `areas.csv` from the donors' own files beside it: `python
features/sources/data/msweb/convert.py`.

Their text is a record a line, told apart by its first letter: `A` an area of the site, `C` a user, `V` a visit of the
user before it. The order of a user's visits is that of the files. The same bytes come out each time.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {"train": "anonymous-msweb.data.gz", "test": "anonymous-msweb.test.gz"}


def convert(source: Path, target: Path) -> None:
    """Write both files to `target` from the donors' in `source`."""
    visits = io.StringIO(newline="")
    writer = csv.writer(visits, lineterminator="\n")
    writer.writerow(("part", "user", "seq", "area"))
    for part, file in FILES.items():
        user, seq = "", 0
        for record in _records(source / file):
            if record[0] == "C":
                user, seq = record[2], 0
            elif record[0] == "V":
                seq += 1
                writer.writerow((part, user, seq, record[1]))
    (target / "visits.csv.gz").write_bytes(gzip.compress(visits.getvalue().encode(), mtime=0))
    areas = io.StringIO(newline="")
    writer = csv.writer(areas, lineterminator="\n")
    writer.writerow(("area", "title", "path"))
    writer.writerows(sorted((r[1], r[3], r[4]) for r in _records(source / FILES["train"]) if r[0] == "A"))
    (target / "areas.csv").write_text(areas.getvalue(), encoding="utf-8", newline="\n")


def _records(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="latin-1", newline="") as lines:
        yield from (record for record in csv.reader(lines) if record)


if __name__ == "__main__":
    convert(FOLDER, FOLDER)
