"""A trace and a reproduction as trees for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.audit.trace import Reproduction, Trace
from monitoring.audit.tree import Branch, tree
from monitoring.wording import exact

if TYPE_CHECKING:
    from rich.tree import Tree

_COLOURS = {"plain": "bold", "good": "bold green", "bad": "bold red", "unsure": "bold yellow"}


def render_trace(traced: Trace) -> Tree:
    """The trace as a tree for a terminal (rich)."""
    from rich.tree import Tree

    return _grown(Tree(""), tree(traced))


def _grown(into: Tree, branch: Branch) -> Tree:
    from rich.markup import escape

    entity = escape(", ".join(f"{fact.name}={exact(fact.value)}" for fact in branch.entity))
    into.label = f"[{_COLOURS[branch.mood]}]{escape(branch.kind)}[/] {escape(branch.title)}" + (
        f" [dim]({entity})[/]" if entity else ""
    )
    if branch.warning:
        into.add(f"[yellow]{escape(branch.warning)}[/]")
    for fact in () if branch.detail else branch.facts:
        into.add(f"[dim]{escape(fact.name)}[/] {escape(exact(fact.value))}")
    for part in branch.branches:
        _grown(into.add(""), part)
    return into


def render_reproduction(reproduction: Reproduction) -> Tree:
    """The steps of a reproduction as a tree for a terminal (rich)."""
    from rich.markup import escape
    from rich.tree import Tree

    steps = Tree(
        "[bold green]reproduced: every step is equal[/]" if reproduction.equal else "[bold red]not reproduced[/]"
    )
    for step in reproduction.steps:
        if step.equal:
            steps.add(f"[green]equal[/] {escape(step.name)}")
            continue
        colour, note = ("red", "") if step.binding else ("yellow", " (explains differences, is none itself)")
        steps.add(
            f"[{colour}]differs[/] {escape(step.name)}{note}: expected {escape(exact(step.expected))}, found "
            f"{escape(exact(step.found))}"
        )
    return steps
