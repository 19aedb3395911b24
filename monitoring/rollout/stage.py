"""The evening of a night in rollout: guardrails before labels, bounds of the harm after them, and what follows.

Both versions scored every row of the night, so that they are compared on all rows, whichever of them served one. What
was measured is kept as metrics of the group `rollout`; the decision is the night's line of the ledger of rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from config.calendar import Interval
from config.catalog.model import ModelEntry
from config.catalog.output import SCALE
from config.catalog.rollout import Guardrails
from features.labels import is_mature
from lake.assignment import CHALLENGER, CHAMPION, Assignment, scored_by
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Input, Publication
from lake.metrics import Metric, metrics_table, publish_metrics, read_metrics
from lake.rollouts import Rollout, RolloutLine, RolloutSnapshot
from lake.tables import LakeTable
from monitoring.performance import outcomes, segment_names, segment_values
from monitoring.references import VersionReference, references_of
from monitoring.rollout import guardrails as rails
from monitoring.rollout.checks import (
    CHALLENGER_LOSS,
    CHAMPION_LOSS,
    DISAGREEING,
    GROUP,
    GUARDRAIL,
    HARM,
    SHIFT,
    stated_looks,
)
from monitoring.rollout.decision import Decision, Standing, decide
from monitoring.rollout.guardrails import Guardrail
from monitoring.rollout.looks import Outcome, design, outcome
from monitoring.rollout.sequence import Look, Prefixes, paired, prefixes
from monitoring.rollout.unpaired import arms, unpaired
from monitoring.rollout.verdict import Verdict, judge
from monitoring.wording import label_unit
from serving.metrics.intervals import rounded
from serving.predictions import predictions_table
from training.registry.delivery import advance, finish, hold, roll_back, settle, told

# Nights and rows that a usual shift is measured on.
_SHIFT_NIGHTS = 14
_SHIFT_ROWS = 20_000
_LEAST_NIGHTS = 5
_ROLES = (CHAMPION, CHALLENGER)
_MOVES = {"advanced": advance, "held": hold, "finished": finish, "rolled_back": roll_back}

Floats = npt.NDArray[np.float64]


@logged("rollout")
def move_rollout(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Judge the challenger of each night of the interval, and move the rollout that goes on by the newest of them.

    A night without a challenger has nothing to judge. Run again, a night finds its line in the ledger and writes none.

    Raises:
        LedgerConflict: a person decided at the same moment; run again, the night is judged on what is there then.
        PartitionNotReady: the label's table is not published up to a night of the interval.
    """
    settled = settle(lake, model, by=run_id)
    if not lake.rollouts(model).read().lines:  # as most nights of most models: nothing further is read for them
        return StageResult("rollout", model, str(interval), 0, 0, {"status": "ok", "told": settled})
    entry = lake.model(model)
    table = predictions_table(lake.settings, entry, lake.dataset(entry.dataset))
    published = lake.publications.current(table)
    rows, lines, told_of = 0, 0, list(settled)
    for night in interval:
        judged = _Night.of(lake, entry, table, published, night)
        if judged is None:
            continue
        rows += judged.measure(run_id)
        line = judged.moved(run_id)
        lines += line is not None
        told_of += [f"{told(line)}: {line.reason}"] if line is not None else []
    details: dict[str, Any] = {"status": "ok", "told": told_of}
    return StageResult("rollout", model, str(interval), rows, lines, details)


@dataclass(frozen=True)
class _Night:
    """A night in rollout, and what was published of the nights before it."""

    lake: Lake
    entry: ModelEntry
    table: LakeTable
    published: Mapping[date, Publication]
    night: date
    rollout: Rollout
    snapshot: RolloutSnapshot
    challenger: Assignment

    @classmethod
    def of(
        cls, lake: Lake, entry: ModelEntry, table: LakeTable, published: Mapping[date, Publication], night: date
    ) -> _Night | None:
        """None where no challenger of a rollout scored it."""
        snapshot = lake.rollouts(entry.name).read()
        challenger = None if night not in published else _challenger(published[night])
        if challenger is None or challenger.units is None:
            return None
        rollout = next((r for r in snapshot.all if r.started.sequence == challenger.units.rollout), None)
        if rollout is None:
            return None
        return cls(lake, entry, table, published, night, rollout, snapshot, challenger)

    # ---- what is measured

    def measure(self, run_id: str) -> int:
        """Publish the metrics of the night; rows written."""
        name, interval = self.entry.name, Interval.of(self.night)
        before = self.lake.publications.digests(metrics_table(self.lake.settings, name, GROUP), interval)
        losses, inputs = self._losses
        metrics = [*losses, *(self._of_guardrail(rail) for rail in self.guardrails), *self._harms()]
        metrics += self._of_distance()
        inputs = [self.published[self.night].as_input(), *inputs]
        read = {self.night: list(dict.fromkeys(inputs))}
        done = publish_metrics(self.lake, name, GROUP, metrics, interval, run_id=run_id, inputs=read, replaces=before)
        return done.rows

    def _metric(self, check: str, **values: Any) -> Metric:
        said = {"about_date": self.night, "role": CHALLENGER, "model_version": self.rollout.version, **values}
        return Metric(
            subject=self.entry.name,
            data_date=self.night,
            check=check,
            reference=f"the rollout of version {self.rollout.version}",
            **said,
        )

    def _of_guardrail(self, rail: Guardrail) -> Metric:
        column, _, check = rail.name.rpartition(": ")
        status = {"ok": "ok", "breached": "failing", "not_evaluated": "not_evaluated"}[rail.status]
        value, limit = (None if number is None else rounded(number) for number in (rail.value, rail.limit))
        return self._metric(
            f"{GUARDRAIL}{check.replace(' ', '_')}",
            column=column,
            value=value,
            threshold=limit,
            status=status,
            reason=None if status == "ok" else rail.explanation,
        )

    def _of_distance(self) -> list[Metric]:
        """How far the two versions lie apart tonight, which later nights judge by."""
        if self.rollout.settings.get("alone"):
            return []
        champion, challenger = self._sides
        beyond = self._settings.disagreement
        metrics = []
        for name in self.entry.outputs:
            apart = {SHIFT: rails.shift(champion[name], challenger[name])}
            if self._may_disagree(name):
                apart[DISAGREEING] = rails.disagreeing(champion[name], challenger[name], beyond=beyond)
            metrics += [
                self._metric(check, column=name, value=rounded(value), n=champion.num_rows, status="ok")
                for check, value in apart.items()
                if value is not None
            ]
        return metrics

    @cached_property
    def _settings(self) -> Guardrails:
        return Guardrails.model_validate(self.rollout.settings["guardrails"])

    def _may_disagree(self, output: str) -> bool:
        """Whether `disagreement` has the unit of an output."""
        metric = self.entry.outputs[output].metric
        return self._settings.disagreement is not None and (metric.in_label_unit or metric.rooted)

    @cached_property
    def _sides(self) -> tuple[pa.Table, pa.Table]:
        """The night's rows of champion and challenger, in the same order."""
        rows = self.table.read([self.night])
        keys = [(key, "ascending") for key in self.entry.entity]
        champion, challenger = (rows.filter(pc.equal(rows["role"], role)).sort_by(keys) for role in _ROLES)
        return champion, challenger

    @cached_property
    def _losses(self) -> tuple[list[Metric], list[Input]]:
        """Mean losses of both versions on the same rows, of each night that is mature since this one."""
        metrics: list[Metric] = []
        inputs: list[Input] = []
        if self.rollout.settings.get("alone"):
            return metrics, inputs  # there is nobody to compare with
        judged = {row["about_date"] for row in self._before if row["check"] == CHAMPION_LOSS}
        # Not only those that matured in this night: one that nobody monitored in time is judged now.
        for about in sorted(self.published):
            if about <= self.night and about not in judged and self._is_own(about) and self._mature(about):
                rows, read = self._losses_of(about)
                metrics += rows
                inputs += read
        return metrics, inputs

    def _losses_of(self, about: date) -> tuple[list[Metric], list[Input]]:
        dataset = self.lake.dataset(self.entry.dataset)
        sides = {
            role: outcomes(self.lake, self.entry, dataset, about, self.night, role=role)
            for role in (CHAMPION, CHALLENGER)
        }
        segments, inputs = segment_values(self.lake, self.entry, dataset, self.published[about])
        inputs = [self.published[about].as_input(), *inputs, *(item for side in sides.values() for item in side[3])]
        label = sides[CHAMPION][0]
        came = ~np.isnan(label)
        metrics: list[Metric] = []
        if not came.any():
            return metrics, inputs
        codes = {column: _codes(column, values.filter(pa.array(came))) for column, values in segments.items()}
        for name, output in self.entry.outputs.items():
            of_role = {}
            for role, (_, _, predicted, _) in sides.items():
                said = {column: values[came] for column, values in predicted.items()}
                of_role[role] = output.row_losses(label[came], output.judged(name, said), said.get(SCALE))
            known = np.isfinite(of_role[CHAMPION]) & np.isfinite(of_role[CHALLENGER])
            whole = ([""], np.zeros(int(came.sum()), dtype=np.int64))
            for segment_list, positions in (whole, *codes.values()):
                metrics += self._pooled(about, name, of_role, known, segment_list, positions)
        return metrics, inputs

    def _pooled(
        self,
        about: date,
        output: str,
        of_role: Mapping[str, Floats],
        known: npt.NDArray[np.bool_],
        segments: Sequence[str],
        positions: npt.NDArray[np.int64],
    ) -> list[Metric]:
        counts = np.bincount(positions[known], minlength=len(segments))
        metrics = []
        for check, role in ((CHAMPION_LOSS, CHAMPION), (CHALLENGER_LOSS, CHALLENGER)):
            sums = np.bincount(positions[known], weights=of_role[role][known], minlength=len(segments))
            metrics += [
                self._metric(
                    check,
                    about_date=about,
                    column=output,
                    segment=segment,
                    value=rounded(total / count),
                    n=int(count),
                    status="ok",
                    role=role,
                    model_version=self.rollout.version if role == CHALLENGER else self._champion_in(about).version,
                )
                for segment, total, count in zip(segments, sums, counts, strict=True)
                if count
            ]
        return metrics

    # ---- evidence

    def _harms(self) -> list[Metric]:
        """The bounds of the harm as this night knows them."""
        metrics = []
        for evidence in self.evidence:
            look, verdict = evidence.look, evidence.verdict
            values: dict[str, Any] = {"column": evidence.output, "segment": evidence.segment}
            if look is None:
                metrics.append(self._metric(HARM, status="not_evaluated", reason=verdict.sentence, **values))
                continue
            lower, upper = (None if not np.isfinite(bound) else rounded(bound) for bound in (look.lower, look.upper))
            values |= {"value": rounded(look.harm), "lower": lower, "upper": upper, "n": look.nights}
            values |= {"threshold": rounded(evidence.tolerance), "reason": verdict.sentence}
            metrics.append(self._metric(HARM, status="failing" if verdict.finding == "harmful" else "ok", **values))
        return metrics

    @cached_property
    def evidence(self) -> list[_Evidence]:
        """Of each output, and of each segment of it, what the nights with mature labels say.

        Half of the promised rate is for the rows as a whole, half for all segments together; both are divided among the
        outputs.
        """
        history = self._history()
        settings = self._settings
        # By what each version served alone a segment has too few units in each arm to say anything.
        segments = [] if self._interferes else sorted({segment for _, segment in history if segment})
        rate = settings.false_rollback / len(self.entry.outputs) / (2 if segments else 1)
        unit = label_unit(self.lake, self.entry)
        found = []
        for name, output in self.entry.outputs.items():
            worse = output.metric.as_mean(1.0 + settings.tolerance) - 1.0
            metric = "mean squared error" if output.metric.rooted else output.metric.title
            said_unit = "" if output.metric.rooted else output.metric_unit(unit)
            for segment in ["", *segments]:
                nights = history.get((name, segment), [])
                if segment and not nights:
                    continue
                alpha = rate / len(segments) if segment else rate
                days, champion, challenger, rows = _columns(nights)
                tolerance = worse * float(np.average(champion, weights=rows)) if nights else 0.0
                if self._interferes:
                    served = self._served_rows(name)
                    looks = unpaired(served, alpha=alpha, tolerance=tolerance) if served.num_rows else ()
                    statistics = arms(served)[2] if looks else None
                else:
                    looks = paired(days, challenger - champion, rows, alpha=alpha, tolerance=tolerance)
                    statistics = prefixes(challenger - champion, rows) if nights else None
                verdict = judge(looks, tolerance=tolerance, metric=metric, unit=said_unit, segment=segment or None)
                found.append(_Evidence(name, segment, verdict, tolerance, statistics))
        return found

    @cached_property
    def _before(self) -> list[dict[str, Any]]:
        """What was measured of this rollout in the nights before this one."""
        first = self.rollout.started.effective_from
        if first >= self.night:
            return []
        rows = read_metrics(self.lake, self.entry.name, GROUP, Interval(first, self.night)).to_pylist()
        return [row for row in rows if row["about_date"] >= first]

    def _history(self) -> dict[tuple[str, str], list[tuple[date, float, float, int]]]:
        """By output and segment: each judged night of this rollout with the losses of both versions and its rows."""
        rows = [*self._before, *(metric.__dict__ for metric in self._losses[0])]
        sides: dict[tuple[str, str], dict[date, dict[str, tuple[float, int]]]] = {}
        for row in rows:
            if row["check"] in (CHAMPION_LOSS, CHALLENGER_LOSS):
                nights = sides.setdefault((row["column"], row["segment"]), {})
                nights.setdefault(row["about_date"], {})[row["check"]] = (row["value"], row["n"])
        return {
            key: [
                (day, both[CHAMPION_LOSS][0], both[CHALLENGER_LOSS][0], both[CHAMPION_LOSS][1])
                for day, both in sorted(nights.items())
                if len(both) == 2
            ]
            for key, nights in sides.items()
        }

    @property
    def _interferes(self) -> bool:
        """Whether predictions change what comes true, so that each version is judged by its own rows alone."""
        return bool(self.rollout.settings["interferes"])

    def _served_rows(self, output: str) -> pa.Table:
        """`data_date`, `unit`, `challenger`, `loss` of the rows that each version served, as `unpaired` takes them. A
        unit whose columns the predictions do not hold is a row's entity.
        """
        dataset, parts = self.lake.dataset(self.entry.dataset), []
        for about in sorted(self.published):
            if about > self.night or not self._is_own(about) or not self._mature(about):
                continue
            rows = self.table.read([about])
            for role in (CHAMPION, CHALLENGER):
                label, _, predicted, _ = outcomes(self.lake, self.entry, dataset, about, self.night, role=role)
                own = rows.filter(pc.equal(rows["role"], role)).sort_by(
                    [(key, "ascending") for key in self.entry.entity]
                )
                kind = self.entry.outputs[output]
                loss = kind.row_losses(label, kind.judged(output, predicted), predicted.get(SCALE))
                keep = own["served"].to_numpy() & np.isfinite(loss)
                parts.append(
                    pa.table(
                        {
                            "data_date": own["data_date"],
                            "unit": _unit_names(own, self.rollout.settings["unit"], self.entry.entity),
                            "challenger": pa.repeat(role == CHALLENGER, own.num_rows),
                            "loss": loss,
                        }
                    ).filter(pa.array(keep))
                )
        return pa.concat_tables(parts) if parts else pa.table({"loss": pa.array([], pa.float64())})

    def _mature(self, about: date) -> bool:
        return is_mature(self.lake, self.entry.name, about, as_of=self.night)

    def outcomes(self) -> list[Outcome]:
        """Of an A/B test: what the stated looks say, output by output."""
        if self.rollout.strategy != "ab_test":
            return []
        settings = self.rollout.settings
        rate = settings["guardrails"]["false_rollback"] / len(self.entry.outputs)
        plan = design(stated_looks(settings["nights"], settings["looks"]), alpha=rate)
        found = []
        for evidence in self.evidence:
            if not evidence.segment and evidence.prefixes is not None:
                metric = self.entry.outputs[evidence.output].metric
                unit = (
                    ""
                    if metric.rooted
                    else self.entry.outputs[evidence.output].metric_unit(label_unit(self.lake, self.entry))
                )
                found.append(outcome(plan, evidence.prefixes, metric=metric.title, unit=unit))
        return found

    # ---- guardrails

    @cached_property
    def guardrails(self) -> list[Guardrail]:
        """Of this night, before any label of it is there."""
        if self.rollout.settings.get("alone"):
            return []
        settings = self._settings
        champion, challenger = self._sides
        reference = references_of(self.lake, self.entry.name, {self.night: self.published[self.night]})[self.night].get(
            CHALLENGER
        )
        return [
            *self._of_outputs(champion, challenger, reference, settings),
            *self._of_scoring(reference, settings),
        ]

    def _of_outputs(
        self, champion: pa.Table, challenger: pa.Table, reference: VersionReference | None, settings: Guardrails
    ) -> list[Guardrail]:
        profiles: Mapping[str, Any] = reference.profile.get("predictions", {}) if reference else {}
        found: list[Guardrail] = []
        unit = label_unit(self.lake, self.entry)
        for name, output in self.entry.outputs.items():
            column = challenger[name]
            found.append(rails.finite_outputs(name, column, rows=champion.num_rows))
            if rails.is_number(column):
                profile = profiles.get(name, {})
                lowest, highest = profile.get("lowest"), profile.get("highest")
                found.append(rails.within_gate_range(name, column, lowest=lowest, highest=highest))
            tonight = rails.shift(champion[name], column)
            shifts = [*self._apart(SHIFT, name, self.rollout.version, self.rollout.started.effective_from), tonight]
            found.append(rails.prediction_shift(name, shifts, self._usual_shift(name)))
            bounds = output.interval_bounds(name)
            if bounds is not None:
                ends = [(side[bounds[0]], side[bounds[1]]) for side in (champion, challenger)]
                found.append(rails.interval_width(name, ends[0], ends[1], ratio=settings.width_ratio))
            if self._may_disagree(name):
                earlier = self._apart(DISAGREEING, name, self.rollout.version, self.rollout.started.effective_from)
                found.append(
                    rails.disagreement(
                        name,
                        champion[name],
                        column,
                        beyond=settings.disagreement,
                        share=settings.disagreement_share,
                        earlier=earlier,
                        usual=self._between_versions(DISAGREEING, name),
                        unit=unit,
                    )
                )
        return found

    def _of_scoring(self, reference: VersionReference | None, settings: Guardrails) -> list[Guardrail]:
        """What the publication says of how the night was scored."""
        scoring: Mapping[str, Any] = self.published[self.night].details.get("scoring", {})
        own, other = scoring.get(CHALLENGER, {}), scoring.get(CHAMPION, {})
        rows = int(own.get("rows", 0))
        found = [rails.milliseconds_a_row(other.get("seconds"), own.get("seconds"), rows=rows)]
        if settings.max_memory_mb is not None:
            peak = own.get("peak_mib")
            found.append(rails.memory(settings.max_memory_mb, peak, ratio=1.0))
        values: Mapping[str, int] = own.get("values", {})
        columns: Mapping[str, Any] = reference.profile.get("columns", {}) if reference else {}
        usual = {name: float(profile["null_share"]) for name, profile in columns.items()}
        # A feature without a profile, as a column of the calendar, is held against nothing.
        shares = {name: 1.0 - count / rows for name, count in values.items() if rows and name in usual}
        found.append(rails.features_present(shares, usual))
        return found

    def _usual_shift(self, column: str) -> rails.ShiftLimit | None:
        """The larger of what versions of this model lie apart, and what the champion's own nights do."""
        limits = [
            limit
            for limit in (self._between_versions(SHIFT, column), self._between_nights(column))
            if limit is not None
        ]
        return max(limits, key=lambda limit: limit.value, default=None)

    def _between_versions(self, check: str, column: str) -> rails.ShiftLimit | None:
        """As far as the champion lay from its predecessor while it was a challenger itself."""
        version = self._champion_in(self.night).version
        before = next((r for r in reversed(self.snapshot.all) if r.state == "finished" and r.version == version), None)
        if before is None:
            return None
        return rails.limit_from_predecessor(self._apart(check, column, version, before.started.effective_from))

    def _apart(self, check: str, column: str, version: int, first: date) -> list[float | None]:
        """How far a challenger lay from its champion, in each night before this one."""
        if first >= self.night:
            return []
        rows = read_metrics(self.lake, self.entry.name, GROUP, Interval(first, self.night)).to_pylist()
        own = (r for r in rows if r["check"] == check and r["column"] == column and r["model_version"] == version)
        return [row["value"] for row in own]

    def _between_nights(self, column: str) -> rails.ShiftLimit | None:
        champion = self._champion_in(self.night)
        days = [
            day
            for day in sorted(self.published)
            if day < self.night
            and any(
                a.role == CHAMPION and a.version == champion.version
                for a in scored_by(day, self.published[day].details)
            )
        ][-_SHIFT_NIGHTS:]
        if len(days) < _LEAST_NIGHTS:
            return None
        parts = []
        for day in days:
            rows = self.table.read([day])
            parts.append(
                _thinned(rows.filter(pc.equal(rows["role"], CHAMPION)).select([column, "data_date"]), len(days))
            )
        rows = pa.concat_tables(parts)
        return rails.limit_from_halves(rows[column], rows["data_date"], seed=0)

    def _is_own(self, day: date) -> bool:
        own = _challenger(self.published[day])
        return own is not None and own.units is not None and own.units.rollout == self.rollout.started.sequence

    def _champion_in(self, day: date) -> Assignment:
        return next(a for a in scored_by(day, self.published[day].details) if a.role == CHAMPION)

    # ---- what follows

    def moved(self, run_id: str) -> RolloutLine | None:
        """Write the night's line; None where the rollout is over, or a later night decided already."""
        running = self.snapshot.running
        if running is None or running.started.sequence != self.rollout.started.sequence:
            return None
        if any(line.night is not None and line.night >= self.night for line in running.lines):
            return None
        decision = self.decision(running)
        return _MOVES[decision.move](self.lake, self.entry.name, by=run_id, reason=decision.reason, night=self.night)

    def decision(self, running: Rollout) -> Decision:
        """What the night means for the rollout that goes on."""
        own = [
            a.units.step
            for day, publication in self.published.items()
            if day <= self.night
            and (a := _challenger(publication)) is not None
            and a.units is not None
            and a.units.rollout == running.started.sequence
        ]
        verdicts = [evidence.verdict for evidence in self.evidence]
        return decide(Standing(running, len(own), own.count(running.step), self.guardrails, verdicts, self.outcomes()))


@dataclass(frozen=True)
class _Evidence:
    """What the nights say of one output, of all rows or of a segment."""

    output: str
    segment: str
    verdict: Verdict
    tolerance: float
    prefixes: Prefixes | None

    @property
    def look(self) -> Look | None:
        """The newest."""
        return self.verdict.look


def _challenger(publication: Publication) -> Assignment | None:
    plan = scored_by(publication.data_date, publication.details)
    return next((a for a in plan if a.role == CHALLENGER), None)


def _codes(column: str, values: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of a column's segments, and the position of each row's."""
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    return segment_names(column, encoded.dictionary.to_pylist()), np.asarray(encoded.indices, dtype=np.int64)


def _columns(nights: Sequence[tuple[date, float, float, int]]) -> tuple[list[date], Floats, Floats, Floats]:
    days = [day for day, *_ in nights]
    numbers = np.array([values for _, *values in nights], dtype=np.float64).reshape(-1, 3)
    return days, numbers[:, 0], numbers[:, 1], numbers[:, 2]


def _unit_names(rows: pa.Table, unit: Sequence[str], entity: Sequence[str]) -> pa.ChunkedArray:
    columns = unit if all(name in rows.column_names for name in unit) else entity
    texts = [pc.fill_null(rows[name].cast(pa.string()), "") for name in columns]
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")


def _thinned(rows: pa.Table, nights: int) -> pa.Table:
    every = max(1, rows.num_rows * nights // _SHIFT_ROWS)
    return rows.take(pa.array(np.arange(0, rows.num_rows, every)))
