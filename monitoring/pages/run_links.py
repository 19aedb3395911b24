"""Where a run id leads: Airflow names a run by DAG and id, a publication keeps the id alone."""

from __future__ import annotations

from collections.abc import Iterable, Set

import sqlalchemy as sa

from lake.lake import Lake
from lake.projection import has_table
from monitoring.alerting.runs import runs_table
from monitoring.pages.page import Context


def runs_on_record(lake: Lake, subjects: Iterable[str], run_ids: Iterable[str]) -> frozenset[tuple[str, str]]:
    """DAG and id of every run of those subjects and ids; runs that assets started share an id over several DAGs."""
    wanted = sorted(set(run_ids))
    if not wanted or not has_table(lake, runs_table.name):
        return frozenset()
    c = runs_table.c
    query = sa.select(c.dag_id, c.run_id).where(c.subject.in_(sorted(set(subjects))), c.run_id.in_(wanted))
    with lake.engine.connect() as connection:
        return frozenset((row.dag_id, row.run_id) for row in connection.execute(query))


def run_url(context: Context, on_record: Set[tuple[str, str]], run_id: str, *dag_ids: str) -> str:
    """The run's page in Airflow, of the first of those DAGs that had it; where none is on record (a command of a
    person), the first DAG's page.
    """
    known = next((dag_id for dag_id in dag_ids if (dag_id, run_id) in on_record), None)
    return context.dag_url(known, run_id) if known else context.dag_url(dag_ids[0])
