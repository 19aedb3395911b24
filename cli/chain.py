"""Drives the chain from outside, night after night, and watches every task of it.

A closed loop: a night is released only when the one before is through, its retraining included, so that a model trained
on night T scores night T+1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from cli.airflow_api import AirflowApi
from cli.processes import Supervisor
from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset
from config.catalog.load import Catalog
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from lake.assignment import plan_of
from lake.lake import Lake
from lake.ledger import NoChampion
from lake.tables import feature_table, valid_table

POLL_SECONDS = 0.25
# A night's runs that have not even been created after this long will never be: an event was lost, or a DAG is paused.
_CREATION_SECONDS = 90.0

DONE = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
# Airflow's state of a task that waits for a person's answer.
AWAITING = "awaiting_input"
APPROVE_TASK = "approve"


class TaskFailed(NightfleetError):
    """A task of the chain failed; the message is that task's own error."""


class ChainStuck(NightfleetError):
    """A DAG run that should have started never did."""


class NoFirstChampion(NightfleetError):
    """The gate did not pass a first champion."""


class NothingToReplay(NightfleetError):
    """The dates asked for lie outside the replay."""


@dataclass
class TaskView:
    """One task of a run as the live view shows it."""

    dag_id: str
    task_id: str
    state: str
    seconds: float | None
    tries: int
    result: Any = None

    @property
    def rows(self) -> int | None:
        """Rows the task reported, if it did."""
        return self.result.get("rows") if isinstance(self.result, dict) else None

    @property
    def committed(self) -> int | None:
        """Partitions the task committed, if it said so."""
        return self.result.get("committed") if isinstance(self.result, dict) else None


@dataclass
class RunView:
    """One DAG run."""

    dag_id: str
    run_id: str
    partition_key: str | None
    state: str
    tasks: dict[str, TaskView] = field(default_factory=dict)


@dataclass
class Step:
    """A wave of runs that is waited for together: history, first trainings, one night."""

    title: str
    runs: dict[str, RunView] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None


class Chain:
    """The closed loop over Airflow's REST API."""

    def __init__(
        self, lake: Lake, api: AirflowApi, supervisor: Supervisor, log_folder: Path, redraw: Callable[[Step], None]
    ) -> None:
        self._lake = lake
        self._api = api
        self._supervisor = supervisor
        self._logs = log_folder
        self._redraw = redraw
        self.steps: list[Step] = []
        self._released: dict[str, list[date]] = {}
        self._asking = {f"{m.name}_train": m for m in lake.catalog.models if m.approval == "required"}
        self._waiting: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}

    # ---- the three kinds of step ----

    def history(self, plan: dict[str, Interval]) -> None:
        """Load an interval of every named data set in bulk."""
        step = self._begin("history in bulk")
        wanted = {}
        for name, interval in plan.items():
            # A changed catalog (a new feature view, say) makes it another run: what is there already costs it nothing.
            run_id = f"history__{interval.start}__{interval.last}__{self._lake.catalog.digest(name)[:8]}"
            self._release(f"{name}_history", run_id, conf={"start": str(interval.start), "end": str(interval.last)})
            wanted[f"{name}_history"] = run_id
        self._wait(step, wanted)

    def train(self, plan: dict[str, date], reason: str) -> None:
        """Train every named model as of a night."""
        step = self._begin("first champions")
        wanted = {}
        for name, as_of in plan.items():
            run_id = first_run_id(self._lake, name, as_of)
            self._release(
                f"{name}_train",
                run_id,
                partition_key=str(as_of),
                conf={"reason": reason},
                note=f"requested by {reason}",
            )
            wanted[f"{name}_train"] = run_id
        self._wait(step, wanted, patient=True)

    def require_champions(self, plan: dict[str, date]) -> None:
        """Check that these models have champions for the night after their as-of, or a refused version that runs along
        (`rollout.refused_first`), or wait for a person's approval of one. Those that a gate or a person refused stay in
        `refused`, with the decision and its evidence: the others' nights go on without them.

        Raises:
            NoFirstChampion: all were refused.
        """
        self._waiting = self._waiting_for_approval()
        for name, as_of in plan.items():
            if f"{name}_train" in self._waiting:
                continue  # it is reported, and the others need not wait for it
            try:
                self._check_scorable(name, as_of + ONE_DAY)
            except NoChampion:
                self.refused[name] = _refusal(self._lake, name, as_of)
        if self.refused.keys() == plan.keys():
            raise NoFirstChampion("nothing can be scored without a champion.\n\n" + "\n\n".join(self.refused.values()))

    def night(self, plan: dict[str, date]) -> None:
        """Release one data date of every named data set, and wait for all that follows from it."""
        step = self._begin("night " + ", ".join(f"{day} ({name})" for name, day in plan.items()))
        wanted = {}
        for name, day in plan.items():
            run_id = f"replay__{day}"
            self._released.setdefault(name, []).append(day)
            self._release(f"{name}_ingest", run_id, partition_key=str(day))
            wanted[f"{name}_ingest"] = run_id
        self._wait(step, wanted, plan)

    def release(self, dataset: str, day: date) -> None:
        """Release one data date and return: the replay clock."""
        self._release(f"{dataset}_ingest", f"replay__{day}", partition_key=str(day))

    def nights_of(self, dataset: str) -> list[date]:
        """The data dates of a data set that this run released, in order."""
        return self._released.get(dataset, [])

    # ---- inside ----

    def _begin(self, title: str) -> Step:
        step = Step(title)
        self.steps.append(step)
        return step

    def _release(self, dag_id: str, run_id: str, **arguments: Any) -> None:
        if not self._api.trigger(dag_id, run_id, **arguments):
            run = self._api.run(dag_id, run_id)
            if run and run["state"] == "failed":
                self._api.clear(dag_id, run_id)

    def _wait(
        self, step: Step, wanted: dict[str, str], nights: dict[str, date] | None = None, *, patient: bool = False
    ) -> None:
        """Poll until the wanted runs, and for a night all runs that follow from them, are done; raise on the first
        failure.

        A training that waits for a person's approval counts as done: it may wait for days. So does one queued behind
        it.

        `patient`: let the other runs end before a failure is raised.
        """
        progress = time.monotonic()
        seen: set[tuple[str, str]] = set()
        while True:
            self._supervisor.check()
            runs = {dag_id: run for dag_id, run_id in wanted.items() if (run := self._api.run(dag_id, run_id))}
            expected = set(wanted)
            if nights:
                runs |= self._night_runs(nights)
                expected |= self._following(step, nights, runs)
            self._update(step, runs)
            self._mark_waiting(step)
            self._redraw(step)
            # One model's failed training is no reason to lose what the others' would show.
            running = any(
                run.state in {"running", "queued"} and run.dag_id not in self._waiting for run in step.runs.values()
            )
            if not (patient and running):
                self._raise_failures(step)
            if expected <= {run.dag_id for run in step.runs.values() if self._settled(run)} | self._waiting:
                step.seconds = time.monotonic() - step.began
                self._redraw(step)
                return
            now_seen = {(run.dag_id, task.state) for run in step.runs.values() for task in run.tasks.values()}
            if now_seen != seen:
                seen, progress = now_seen, time.monotonic()
            if not running and time.monotonic() - progress > _CREATION_SECONDS:
                missing = sorted(expected - {run.dag_id for run in step.runs.values()})
                raise ChainStuck(
                    f"{', '.join(missing)} did not start within {_CREATION_SECONDS:.0f} s. Look in the UI whether the "
                    "DAG is paused."
                )
            time.sleep(POLL_SECONDS)

    def _following(self, step: Step, nights: dict[str, date], runs: Iterable[str]) -> set[str]:
        """DAGs that must run after the nights' ingests: scoring, monitoring where there is a champion, and the
        trainings that a monitor asked for.
        """
        following = set()
        for name, day in nights.items():
            for model in self._lake.catalog.models_of(name):
                if not all(nights.get(read.name) == day for read in self._lake.catalog.datasets_of(model)):
                    continue  # a night of another data set is not among these
                following.add(f"{model.name}_score")
                if not self._without_champion(f"{model.name}_score", day):
                    following.add(f"{model.name}_monitor")
        return following | {
            dag_id.removesuffix("_monitor") + "_train" for dag_id in runs if self._requested(step, dag_id)
        }

    def _raise_failures(self, step: Step) -> None:
        for view in step.runs.values():
            if not self._settled(view):
                self._raise_if_failed(view)

    def _night_runs(self, nights: dict[str, date]) -> dict[str, dict[str, Any]]:
        runs: dict[str, dict[str, Any]] = {}
        for name, day in nights.items():
            follow = {
                f"{m.name}_{kind}" for m in self._lake.catalog.models_of(name) for kind in ("score", "monitor", "train")
            }
            query = {"partition_key_prefix_pattern": str(day), "order_by": "id"}
            for run in self._api.listed("/dags/~/dagRuns", "dag_runs", **query):
                if run["dag_id"] in follow and not run["dag_run_id"].startswith("first__"):
                    runs[run["dag_id"]] = run
        return runs

    def _requested(self, step: Step, dag_id: str) -> bool:
        run = step.runs.get(dag_id)
        decision = run.tasks.get("decide") if run else None
        return bool(
            decision and isinstance(decision.result, dict) and decision.result.get("details", {}).get("requested")
        )

    def _update(self, step: Step, runs: dict[str, dict[str, Any]]) -> None:
        for dag_id, run in runs.items():
            view = step.runs.get(dag_id)
            if view is None or view.run_id != run["dag_run_id"]:
                view = step.runs[dag_id] = RunView(dag_id, run["dag_run_id"], run.get("partition_key"), run["state"])
            elif view.state in {"success", "failed"} and run["state"] == view.state:
                continue
            for instance in self._api.tasks(dag_id, view.run_id):
                mapped, state = instance.get("map_index", -1), instance["state"] or "waiting"
                name = instance["task_id"] if mapped < 0 else f"{instance['task_id']}[{mapped}]"
                task = TaskView(dag_id, name, state, instance["duration"], instance["try_number"] or 0)
                before = view.tasks.get(name)
                if before and before.result is not None and before.tries == task.tries:
                    task.result = before.result
                elif state == "success" and mapped < 0:
                    task.result = _decoded(self._api.result(dag_id, view.run_id, name))
                view.tasks[name] = task
            view.state = run["state"]

    # ---- approvals ----

    def _waiting_for_approval(self) -> frozenset[str]:
        """Training DAGs of which a run waits for a person."""
        if not self._asking:
            return frozenset()
        waiting = self._api.listed("/dags/~/dagRuns/~/taskInstances", "task_instances", state=AWAITING)
        return frozenset(instance["dag_id"] for instance in waiting if instance["dag_id"] in self._asking)

    def _mark_waiting(self, step: Step) -> None:
        """Show the approval that a training waits for, also on a run that is queued behind the one that asked."""
        self._waiting = (
            self._waiting_for_approval() if any(dag_id in self._asking for dag_id in step.runs) else frozenset()
        )
        for dag_id in self._waiting & {run.dag_id for run in step.runs.values() if run.state in {"running", "queued"}}:
            before = step.runs[dag_id].tasks.get(APPROVE_TASK)
            step.runs[dag_id].tasks[APPROVE_TASK] = TaskView(
                dag_id, APPROVE_TASK, AWAITING, None, before.tries if before else 0
            )

    def _settled(self, run: RunView) -> bool:
        """Whether the chain need not wait for a run any more, nor stop for it.

        A person's no, or nobody's answer, stops no chain: the champion stays, the run is red, and its task says why.
        Nor does a night that a model cannot score because its first champion was refused, or is not approved yet.
        """
        if run.state != "failed":
            return run.state == "success"
        failed = {task.task_id for task in run.tasks.values() if task.state == "failed"}
        if run.dag_id in self._asking:
            return failed == {APPROVE_TASK}
        return bool(run.partition_key) and self._without_champion(
            run.dag_id, date.fromisoformat(str(run.partition_key))
        )

    def _without_champion(self, dag_id: str, night: date) -> bool:
        """Whether that is the scoring of a model whose first champion the gate refused, or a person has not
        approved.
        """
        model = dag_id.removesuffix("_score")
        if model == dag_id or not (model in self.refused or f"{model}_train" in self._asking):
            return False
        try:
            self._check_scorable(model, night)
        except NoChampion:
            return True
        return False

    def _check_scorable(self, model: str, night: date) -> None:
        """Somebody scores the night: a champion, or a refused version that runs along; raises NoChampion."""
        plan_of(self._lake.ledger(model).read(), self._lake.rollouts(model).read(), night)

    def _raise_if_failed(self, run: RunView) -> None:
        if run.state != "failed":
            return
        failed = [task for task in run.tasks.values() if task.state == "failed"]
        if not failed:
            raise TaskFailed(f"{run.dag_id} {run.run_id} failed, but none of its tasks did. Look at it in the UI.")
        task = failed[0]
        name, _, mapped = task.task_id.rstrip("]").partition("[")
        folder = self._logs / f"dag_id={run.dag_id}" / f"run_id={run.run_id}" / f"task_id={name}"
        path = (folder / f"map_index={mapped}" if mapped else folder) / f"attempt={max(task.tries, 1)}.log"
        raise TaskFailed(
            f"{run.dag_id}.{task.task_id} ({run.partition_key or run.run_id}) failed:\n\n{task_error(path)}\n\n"
            f"Its log: {path}"
        )


def first_run_id(lake: Lake, model: str, as_of: date) -> str:
    """The run that trains a model's first version: one and the same, but another for each catalog entry once the gate
    has refused one, so that what was mended is tried.
    """
    from training.registry.decision import read_decisions

    judged = [decision for decision in read_decisions(lake, model) if decision.as_of == as_of]
    if not judged or judged[-1].verdict == "promote":
        return f"first__{as_of}"
    return f"first__{as_of}__{lake.catalog.digest(model)[:8]}"


def _refusal(lake: Lake, model: str, as_of: date) -> str:
    """The newest decision on that model, with its reasons and checks, as text."""
    from training.registry.approval import read_approvals
    from training.registry.decision import read_decisions

    decisions = [d for d in read_decisions(lake, model) if d.as_of == as_of]
    if not decisions:
        return f"{model} as of {as_of}: no decision was stored."
    decision = decisions[-1]
    lines = [f"{model} version {decision.version} as of {as_of}: {decision.verdict}"]
    lines += [f"  {reason}" for reason in decision.reasons]
    lines += [
        f"  {word.answer} by {word.by}{f': {word.reason}' if word.reason else ''}"
        for word in read_approvals(lake, model, as_of)[-1:]
    ]
    return "\n".join(lines)


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def task_error(log: Path) -> str:
    """The error a task ended with, as it says itself, from its structured log; the last lines where there is none."""
    if not log.exists():
        return "(the task left no log: its process was killed before it began)"
    lines = log.read_text(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        details = record.get("error_detail") or []
        if details:
            # The error itself stands first, its causes after it.
            kind, value = details[0]["exc_type"], details[0]["exc_value"]
            return str(value) if str(value).startswith(f"{kind}:") else f"{kind}: {value}"
    return "\n".join(lines[-15:])


# ---- what to run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What one `run` will do."""

    first_nights: dict[str, date]
    history: dict[str, Interval]
    nights: tuple[dict[str, date], ...]

    def first_models(self, catalog: Catalog) -> Iterator[tuple[ModelEntry, date]]:
        """Every model with the night before its first one: its first champion is trained as of then."""
        for model in catalog.models:
            if model.dataset in self.first_nights:
                yield model, self.first_nights[model.dataset] - ONE_DAY


def published_until(lake: Lake, dataset: Dataset) -> date | None:
    """The newest data date for which every feature view is published."""
    newest = []
    for view in dataset.features:
        publication = lake.publications.newest(feature_table(lake.settings, dataset, view))
        if publication is None:
            return None
        newest.append(publication.data_date)
    return min(newest, default=None)


def validated_until(lake: Lake, dataset: Dataset) -> date | None:
    """The newest data date for which every table is validated."""
    newest = [lake.publications.newest(valid_table(lake.settings, dataset, table)) for table in dataset.tables]
    return min((publication.data_date for publication in newest if publication), default=None) if all(newest) else None


def monitored_until(lake: Lake, dataset: Dataset) -> date | None:
    """The newest data date for which every model of the data set that has a champion has its retraining decision."""
    from monitoring.retraining_requests import newest_decided

    newest = {model.name: newest_decided(lake, model.name) for model in lake.catalog.models_of(dataset.name)}
    known = [day for day in newest.values() if day is not None]
    # A ledger is read only where a night was decided: before the first run there is no key to verify it by.
    if not known or any(lake.ledger(name).read().newest is not None for name, day in newest.items() if day is None):
        return None
    return min(known)


def _first_scorable_night(lake: Lake, dataset: Dataset, first: date) -> date:
    """The first night that a champion of the data set's models can score, where nights were published before there was
    one: what is promoted takes effect after them. While a person has the word, the first training is not asked again.
    """
    from training.registry.decision import read_decisions

    published = published_until(lake, dataset)
    if published is None or published < first:
        return first
    models = lake.catalog.models_of(dataset.name)
    effective = [line.effective_from for m in models for line in lake.ledger(m.name).read().promotions]
    # A rollout without a champion is that of a refused version that runs along.
    effective += [line.effective_from for m in models for line in lake.rollouts(m.name).read().lines]
    if effective:
        return min(effective)
    asked = any(decision.verdict == "promote" for m in models for decision in read_decisions(lake, m.name)[-1:])
    return first if asked or not models else published + ONE_DAY


def _first_nights(lake: Lake, start: date | None, only: list[str] | None, *, whole: bool) -> dict[str, date]:
    """The first night to run of each replay; one and the same where a model reads several of them."""
    firsts: dict[str, date] = {}
    for dataset in lake.catalog.datasets:
        replay = dataset.replay
        if replay is None:
            continue  # a live data set runs by its own clock
        inside = start is not None and replay.first < start <= replay.last
        first = start if start is not None and inside else replay.first_night
        monitored = monitored_until(lake, dataset)
        if monitored is not None and start is None:
            first = max(first, monitored + ONE_DAY)
        elif start is None:
            first = max(first, _first_scorable_night(lake, dataset, first))
        firsts[dataset.name] = first
    if only:
        wanted = {lake.dataset(name).name for name in only}
    else:  # what was begun goes on
        wanted = {
            name
            for name in firsts
            if whole or lake.dataset(name).run_by_default or published_until(lake, lake.dataset(name)) is not None
        }
    read_together = [
        {dataset.name for dataset in lake.catalog.datasets_of(m)} & set(firsts) for m in lake.catalog.models
    ]
    # As often as there are data sets: what is read together with one of a group joins the group.
    for _ in firsts:
        for group in read_together:
            if group & wanted:
                wanted |= group
            if group:
                firsts |= dict.fromkeys(group, max(firsts[name] for name in group))
    return {name: first for name, first in firsts.items() if name in wanted}


def make_plan(
    lake: Lake, nights: int, start: date | None, only: list[str] | None = None, *, whole: bool = False
) -> Plan:
    """Which history to load and which nights to run, given what is there already.

    Args:
        only: these data sets; by default those that the catalog runs by default, and those that were begun.
        whole: all data sets.
    Raises:
        NothingToReplay: no data set's replay holds the dates asked for.
    """
    first_nights: dict[str, date] = {}
    history: dict[str, Interval] = {}
    schedules: dict[str, list[date]] = {}
    firsts = _first_nights(lake, start, only, whole=whole)
    for name, first in firsts.items():
        dataset = lake.dataset(name)
        replay, published = dataset.replay, published_until(lake, dataset)
        assert replay is not None  # only replays have a first night
        if published is None or published < first - ONE_DAY:
            history[dataset.name] = Interval.closed(
                replay.first if published is None else published + ONE_DAY, first - ONE_DAY
            )
        days = [day for day in (first + timedelta(days=i) for i in range(nights)) if day <= replay.last]
        first_nights[dataset.name] = first
        if days:
            schedules[dataset.name] = days
    if not schedules:
        bounds = "; ".join(f"{d.name} {d.replay.first} to {d.replay.last}" for d in lake.catalog.datasets if d.replay)
        raise NothingToReplay(
            f"no replay has a night left to run (asked: {start or 'the next one'}). The replays: {bounds or 'none'}. "
            "`make clean` starts over."
        )
    longest = max(len(days) for days in schedules.values())
    waves = tuple({name: days[i] for name, days in schedules.items() if i < len(days)} for i in range(longest))
    return Plan(first_nights, history, waves)
