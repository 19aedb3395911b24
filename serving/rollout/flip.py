"""Serve a scored night by other rows of it that are stored: nothing is computed again."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from config.calendar import Interval
from config.errors import NightfleetError
from lake.assignment import check_plan, plan_of, recorded, scored_by
from lake.lake import Lake
from lake.publish import publish
from serving.predictions import predictions_table
from serving.projection import project_predictions


class CannotFlip(NightfleetError):
    """A night's stored rows are not those of its plan."""


def flip(lake: Lake, model: str, night: date, *, run_id: str) -> bool:
    """Bring `served` of a scored night in line with its plan, in one commit and one SQL transaction; whether anything
    had to be done.

    Raises:
        CannotFlip: the night was scored by other versions than its plan has, or is not scored.
        StalePublish: another run published in between.
    """
    entry = lake.model(model)
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset))
    there = lake.publications.current(table, Interval.of(night)).get(night)
    ledger = lake.ledger(model).read()
    plan = check_plan(model, night, plan_of(ledger, lake.rollouts(model).read(), night))
    before = scored_by(night, there.details) if there else ()
    if {(a.role, a.artifact_digest) for a in before} != {(a.role, a.artifact_digest) for a in plan} or there is None:
        raise CannotFlip(
            f"{table.name} for {night} does not hold the rows of the versions that its plan names "
            f"({', '.join(f'{a.role} version {a.version}' for a in plan)}). Nothing was changed.\n"
            "  Roll back without serving that night again: it counts from the next night on."
        )
    serving = [a.role for a in plan if a.served_share == 1.0]
    if len(serving) != 1:
        raise CannotFlip(
            f"the plan of {model} for {night} divides its units among versions. Nothing was changed. Only a whole "
            "night flips; wait for the next night."
        )
    changed = {a.role: a.served_share for a in before} != {a.role: a.served_share for a in plan}
    if changed:
        tenure = [(Interval.of(night), plan)]
        named = {"ledger_version": ledger.delta_version, "assignments": recorded(tenure)}
        lineage = lake.lineage(model, run_id, **{**there.details, **named})
        keys = ", ".join(f'"{name}"' for name in ("data_date", *table.key))
        query = f"SELECT * REPLACE (role = ? AS served) FROM scored ORDER BY {keys}"  # noqa: S608 (declared columns)
        with lake.scratch(f"flip-{model}") as folder, lake.duckdb() as connection:
            table.register(connection, "scored", [night])
            rows = connection.sql(query, params=serving).to_arrow_reader()
            publish(
                lake.publications,
                table,
                rows,
                Interval.of(night),
                replaces={night: there.digest},
                lineage=replace(lineage, inputs={night: tuple(there.inputs)}),
                scratch=folder,
            )
    project_predictions(lake, model, Interval.of(night), run_id=run_id)
    return changed
