"""The live view of the chain: each task's state, seconds, rows."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.chain import RunView, Step, TaskView

_MARKS = {
    "success": ("✔", "green"),
    "failed": ("✘", "bold red"),
    "running": ("●", "yellow"),
    "skipped": ("–", "dim"),
    "up_for_retry": ("↻", "magenta"),
    "upstream_failed": ("✘", "red"),
    "deferred": ("◌", "cyan"),
    "awaiting_input": ("?", "bold yellow"),
}
_ORDER = ("ingest", "history", "train", "score", "monitor")


def _remark(task: TaskView) -> str:
    result: Any = task.result
    if task.state == "skipped":
        skipped = {"request": "no retraining", "promote": "not promoted: see gate", "run_along": "nothing runs along"}
        return skipped.get(task.task_id, "")
    if task.state == "awaiting_input":
        return "waiting for approval: answer it in the UI, under Required Actions; the chain goes on"
    if not isinstance(result, dict):
        return ""
    if "verdict" in result:
        return f"{result['verdict']}: {' '.join(result.get('reasons', []))}"[:110]
    parts = []
    if "candidates" in result:
        trained = ", ".join(
            f"{c['family']} {c['error_of_baseline']:.3f} ({c['trained']})" for c in result["candidates"]
        )
        parts.append(f"version {result['version']}; of the baseline's error on validation: {trained}")
    if result.get("committed") == 0:
        parts.append("there already")
    details = result.get("details", {})
    if "requested" in details:
        parts.append(("retraining requested: " if details["requested"] else "") + str(details["reason"]))
    return ", ".join(parts)[:110]


def _run_order(run: RunView) -> tuple[str, int]:
    name, kind = run.dag_id.rsplit("_", 1)
    return (str(_ORDER.index(kind)) if kind in _ORDER else "9", 0 if name else 1)


def step_table(step: Step) -> Table:
    """One step as a table, a line per task."""
    seconds = step.seconds if step.seconds is not None else time.monotonic() - step.began
    table = Table(
        title=f"{step.title}   {seconds:.0f} s",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for heading, justify in (
        ("chain", "left"),
        ("task", "left"),
        ("", "left"),
        ("seconds", "right"),
        ("rows", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]  # the literals are those rich knows
    for run in sorted(step.runs.values(), key=_run_order):
        shown = run.dag_id
        for task in run.tasks.values():
            mark, style = _MARKS.get(task.state, ("·", "dim"))
            table.add_row(
                shown,
                task.task_id,
                Text(f"{mark} {task.state}", style=style),
                f"{task.seconds:.1f}" if task.seconds is not None else "",
                f"{task.rows:,}" if task.rows is not None else "",
                Text(_remark(task), style="dim"),
            )
            shown = ""
    return table


class LiveView:
    """Redraws the running step in place on a terminal; prints a line per finished task elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._printed: set[tuple[str, str, str, str]] = set()
        self._titles: set[str] = set()

    def __call__(self, step: Step) -> None:
        """Show the step as it stands."""
        if self._console.is_terminal:
            self._draw(step)
        else:
            self._print(step)

    def _draw(self, step: Step) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        shown: RenderableType = Group(step_table(step), Text(""))
        self._live.update(shown)
        if step.seconds is not None:
            self.close()
            self._console.print(shown)

    def _print(self, step: Step) -> None:
        if step.title not in self._titles:
            self._titles.add(step.title)
            self._console.print(f"== {step.title}")
        for run in sorted(step.runs.values(), key=_run_order):
            for task in run.tasks.values():
                key = (run.dag_id, run.run_id, task.task_id, f"{task.state}{task.tries}")
                if task.state in _MARKS and task.state != "running" and key not in self._printed:
                    self._printed.add(key)
                    rows = f"{task.rows:,} rows" if task.rows is not None else ""
                    seconds = f"{task.seconds:6.1f} s" if task.seconds is not None else "        "
                    name = f"{run.dag_id}.{task.task_id}"
                    self._console.print(
                        f"  {name:<38} {task.state:<16}{seconds}  {rows:<16}{_remark(task)}",
                        soft_wrap=True,
                        highlight=False,
                    )
        if step.seconds is not None:
            self._console.print(f"   done in {step.seconds:.1f} s")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
