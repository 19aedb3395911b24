"""What is damaged in this installation, and the rebuilding of what follows from Delta."""

from __future__ import annotations

import time
from collections.abc import Collection

from rich.console import Console
from rich.markup import escape

from lake.lake import Lake
from lake.verify import Damage
from monitoring.audit import verification
from training.registry.tracking import MlflowUnavailable


def verify(lake: Lake, console: Console) -> int:
    """Say what is damaged; returns the exit code, 1 where anything is."""
    count = 0
    for damage in verification.verify(lake):
        count += 1
        _say(console, damage)
    try:
        for damage in verification.verify_aliases(lake):
            count += 1
            _say(console, damage)
    except MlflowUnavailable:
        console.print("MLflow does not answer: its aliases were not looked at.")
    console.print(f"{count} damaged" if count else "nothing is damaged")
    return 1 if count else 0


def repair(lake: Lake, console: Console, *, accept_ledgers: Collection[str] = ()) -> int:
    """Rebuild SQL, Feast and MLflow's aliases from Delta, then say what is still damaged and how it is made again.

    Args:
        accept_ledgers: models whose two ledgers were restored from an older backup, and count as they are.
    """
    for model in accept_ledgers:
        name = lake.model(model).name
        for ledger, accept in (("promotions", lake.ledger(name).accept), ("rollouts", lake.rollouts(name).accept)):
            seen, lines = accept()
            said = f"ledger: the {ledger} of {model} count with their {lines} lines; {seen} were seen before"
            console.print(said, markup=False)
    for line in verification.repair(lake, run_id=f"repair__{int(time.time())}"):
        console.print(line, markup=False, soft_wrap=True)
    return verify(lake, console)


def _say(console: Console, damage: Damage) -> None:
    console.print(f"[red]{escape(damage.part)}: {escape(damage.place)}[/]", soft_wrap=True)
    console.print(f"  {damage.problem}\n  {damage.remedy}", markup=False, soft_wrap=True)
