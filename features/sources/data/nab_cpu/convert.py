"""Make `cpu.csv.gz` of NAB's eleven series of CPU use, a row a sample: `python convert.py <folder data of NAB>`.

The file source reads rows that say themselves which instance they are of; NAB says it in the names of its files.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path

SERIES = (
    *(
        f"realAWSCloudwatch/ec2_cpu_utilization_{name}"
        for name in ("24ae8d", "53ea38", "5f5533", "77c1ca", "825cc2", "ac20cd", "c6585a", "fe7f93")
    ),
    *(f"realAWSCloudwatch/rds_cpu_utilization_{name}" for name in ("cc0c53", "e47b3b")),
    "realKnownCause/cpu_utilization_asg_misconfiguration",
)


def convert(data: Path) -> bytes:
    """All series in the order of `SERIES` and of their files; equal files give equal bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["instance", "timestamp", "value"])
    for name in SERIES:
        instance = Path(name).name.replace("_cpu_utilization", "").replace("cpu_utilization_", "")
        with (data / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            writer.writerows([instance, row["timestamp"], row["value"]] for row in csv.DictReader(file))
    return gzip.compress(text.getvalue().encode(), 9, mtime=0)


if __name__ == "__main__":
    Path(__file__).with_name("cpu.csv.gz").write_bytes(convert(Path(sys.argv[1])))
