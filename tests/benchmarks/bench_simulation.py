"""A night of the whole simulated fleet at its largest: every table, staged as a source stages it, in one process each
for one night and for three, so that the peak of memory is that of the night and not of what came before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from config.settings import ROOT

VEHICLES = 200_000
_CODE = """
import json, resource, sys, tempfile, time
from datetime import date, timedelta
from pathlib import Path
import pyarrow.parquet as pq
from config.catalog.source import SourceColumn
from config.catalog.simulation import WORLDS, Simulated
from features.sources import simulation
from lake.tables import ARROW_TYPES

class Meter:
    label = "bench"
    def take(self, limit, amount): pass

kinds = {arrow: name for name, arrow in ARROW_TYPES.items()}
nights = [date(2024, 11, 30) + timedelta(days=n) for n in range(int(sys.argv[1]))]
began, rows = time.process_time(), 0
with tempfile.TemporaryDirectory() as folder:
    for table in WORLDS["fleet"].tables:
        few = simulation.night(Simulated(world="fleet", table=table, vehicles=2), nights[0])
        columns = {field.name: SourceColumn(type=kinds[field.type]) for field in few.schema}
        columns["nf__delivered"] = SourceColumn(type="date")
        asked = Simulated(world="fleet", table=table, vehicles=int(sys.argv[2]))
        target = Path(folder) / table
        simulation.stage(asked, columns, nights, "nf__delivered", target, Meter())
        rows += pq.read_metadata(target).num_rows
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": rows, "seconds": time.process_time() - began, "peak_mb": peak}))
"""


def run(vehicles: int = VEHICLES) -> list[dict[str, Any]]:
    """One night and three; rows with what, seconds of CPU, against, ratio (a night of three to one alone), peak_mb."""
    rows: list[dict[str, Any]] = []
    for nights in (1, 3):
        command = [sys.executable, "-c", _CODE, str(nights), str(vehicles)]
        told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        said = json.loads(told.stdout)
        what = f"simulated fleet of {vehicles:,}, {nights} night(s), all tables to Parquet: {said['rows']:,} rows"
        ratio = said["seconds"] / nights / rows[0]["seconds"] if rows else None
        rows.append({"what": what, **said, "against": "one night", "ratio": ratio, "aim": ""})
    return rows
