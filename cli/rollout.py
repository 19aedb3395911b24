"""How a model's rollout stands, for whoever asks on the command line, and a person's move of it."""

from __future__ import annotations

import getpass
from typing import Any

import pyarrow.compute as pc
from rich.console import Console

from lake.assignment import CHALLENGER, scored_by
from lake.lake import Lake
from lake.metrics import read_metrics
from lake.rollouts import Rollout, RolloutLine
from monitoring.rollout.checks import GROUP, GUARDRAIL, HARM
from monitoring.rollout.outlook import outlook, served
from monitoring.wording import counted
from serving.predictions import predictions_table
from training.registry.delivery import NoRollout, act, told

STATUS = "status"


def move(lake: Lake, console: Console, model: str, action: str, *, reason: str) -> None:
    """Advance, hold, finish or roll back, in the name of whoever is logged in to this machine."""
    line = act(lake, lake.model(model).name, action, by=getpass.getuser(), reason=reason)
    console.print(f"{told(line)}.", markup=False, soft_wrap=True)


def show(lake: Lake, console: Console, model: str) -> None:
    """Strategy, step, share, nights, guardrails, bounds of the harm, next decision, and the ledger's lines.

    Raises:
        NoRollout: the model never had one.
    """
    entry = lake.model(model)
    snapshot = lake.rollouts(entry.name).read()
    newest = snapshot.of()
    if not snapshot.lines or newest is None:
        raise NoRollout(
            f"{model} never had a rollout: its catalog entry says `rollout: {{strategy: {entry.rollout.strategy}}}`."
        )
    for name, text in [*_standing(lake, newest), *_measured(lake, model, newest)]:
        console.print(f"{name:11}{text}", markup=False, soft_wrap=True)
    if snapshot.queued is not None:
        console.print(f"{'waits':11}version {snapshot.queued.version}", markup=False, soft_wrap=True)
    console.print("ledger")
    for line in snapshot.lines:
        console.print(f"  {_told(line)}", markup=False, soft_wrap=True)


def _standing(lake: Lake, rollout: Rollout) -> list[tuple[str, str]]:
    model, number, steps = rollout.started.model, rollout.step, rollout.steps
    units = ", ".join(rollout.settings["unit"])
    stands = "goes on" if rollout.running else f"is over: {rollout.state.replace('_', ' ')}"
    in_step = _steps_scored(lake, rollout)
    own = in_step.count(number)
    said = [
        ("rollout", f"{model} version {rollout.version}, {rollout.strategy}, {stands}"),
        ("step", f"{number + 1} of {len(steps)} since {rollout.step_since}: serves {served(rollout, steps[number])}"),
        ("unit", units),
        ("nights", f"{counted(len(in_step), 'scored night')}, {own} in this step"),
    ]
    if rollout.running:
        said.append(("next", outlook(rollout, nights=len(in_step), nights_in_step=own)))
    return said


def _steps_scored(lake: Lake, rollout: Rollout) -> list[int]:
    """The step of each night that the rollout's challenger scored."""
    entry = lake.model(rollout.started.model)
    published = lake.publications.current(predictions_table(lake.settings, entry, lake.dataset(entry.dataset)))
    units = (
        assignment.units
        for night, publication in published.items()
        for assignment in scored_by(night, publication.details)
        if assignment.role == CHALLENGER
    )
    return [each.step for each in units if each is not None and each.rollout == rollout.started.sequence]


def _measured(lake: Lake, model: str, rollout: Rollout) -> list[tuple[str, str]]:
    """What the newest evening measured of this challenger."""
    rows = read_metrics(lake, model, GROUP)
    rows = rows.filter(pc.equal(rows["model_version"], rollout.version))
    rows = rows.filter(pc.greater_equal(rows["data_date"], rollout.started.effective_from))
    if not rows.num_rows:
        return [("measured", "nothing yet")]
    night = pc.max(rows["data_date"]).as_py()
    found: list[dict[str, Any]] = rows.filter(pc.equal(rows["data_date"], night)).to_pylist()
    rails = [row for row in found if row["check"].startswith(GUARDRAIL)]
    statuses = [row["status"] for row in rails]
    counts = ", ".join(f"{statuses.count(one)} {one.replace('_', ' ')}" for one in dict.fromkeys(sorted(statuses)))
    said = [("guardrails", f"of {night}: {counts or 'none'}")]
    said += [("", str(row["reason"])) for row in rails if row["status"] == "failing"]
    harms = [row for row in found if row["check"] == HARM and (not row["segment"] or row["status"] == "failing")]
    return [*said, *(("harm", _harm(row)) for row in harms)]


def _harm(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return f"of {row['column']}: not evaluated. {row['reason']}"
    low, high = ("unbounded" if row[side] is None else f"{row[side]:.4g}" for side in ("lower", "upper"))
    bounds = f"{row['value']:.4g} ({low} to {high}), borne is {row['threshold']:.4g}"
    return f"of {row['column']}: {bounds}. {row['reason']}"


def _told(line: RolloutLine) -> str:
    decided = f"by {line.by}" + ("" if line.night is None else f", of night {line.night}")
    step = "" if line.kind in ("queued", "dropped") else f" step {line.step + 1},"
    return (
        f"{line.effective_from}  version {line.version} {line.kind.replace('_', ' ')},{step} {decided}: {line.reason}"
    )
