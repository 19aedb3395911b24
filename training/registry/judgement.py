"""One judgement: all that the gate looks at, in one run over one test set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from config.catalog.model import ModelEntry
from config.catalog.output import SCALE, OutputKind
from lake.lake import Lake
from lake.ledger import Promotion
from serving.predictors.contract import BadFeatures, PredictionsNotFinite, Predictor
from serving.signed import load_signed, signed_files
from training.registry import leakage
from training.registry.bootstrap import (
    RESAMPLES,
    bound_of_draws,
    day_weights,
    error_ratio,
    improvement_bound,
    ratio_lower_bounds,
)
from training.registry.decision import (
    Check,
    Reason,
    ReasonCode,
    Verdict,
)
from training.registry.job import TRAINING_SET_FILE
from training.registry.judged_set import (
    GateEvidenceMissing,
    JudgedSet,
    read_document,
    read_windows,
)
from training.registry.losses import (
    RowLosses,
    ScoredRows,
    baseline_constants,
    batches_of,
    nights_of,
    numbers,
    plain_float,
    pooled_error,
    sums_by_code,
)
from training.registry.origin import verify_origin
from training.registry.register import Registered

Floats = npt.NDArray[np.float64]

_WARM_UP_ROWS = 64
_SMALL_SEGMENTS_NAMED = 30
_LEAST_TIMED_ROWS = 100  # of fewer, what a call costs by itself is most of what was measured
_PASSED: frozenset[ReasonCode] = frozenset({"better", "as_stable"})
_UNDECIDED: frozenset[ReasonCode] = frozenset({"too_few_nights", "nothing_to_tell"})


class _Incumbent:
    """What the challenger is compared with: a champion's predictor, or the baseline."""

    def __init__(self, champion: Promotion | None, predictor: Predictor | None, baseline: str) -> None:
        self.promotion = champion
        self.predictor = predictor
        self.name = f"champion version {champion.version}" if champion and predictor else f"baseline {baseline}"
        self.unusable: str | None = None


class Judgement:
    """One run of the gate over one test set."""

    def __init__(
        self, lake: Lake, entry: ModelEntry, judged: JudgedSet, registered: Registered, champion: Promotion | None
    ) -> None:
        self._lake, self._entry, self._judged, self._registered, self._champion = (
            lake,
            entry,
            judged,
            registered,
            champion,
        )
        self._checks: list[Check] = []
        self._reasons: list[Reason] = []
        self._details: dict[str, Any] = {}

    def evidence(self, subject: Mapping[str, str]) -> dict[str, Any]:
        """Look at everything, then decide."""
        entry, judged = self._entry, self._judged
        settings = self._lake.settings
        windows = {"challenger": dict(judged.windows)}
        if self._champion is not None:
            with signed_files(settings, entry.name, self._champion.artifact_digest, documents_only=True) as folder:
                path = folder / TRAINING_SET_FILE
                windows["champion"] = read_windows(read_document(path), path)
        fitted = [w[split].last for w in windows.values() for split in ("train", "validation")]
        # The description could be wrong about its own file, whose digest the model cites: the rows themselves count
        # too.
        seen_until = max(*fitted, *nights_of(judged.training_path))
        present = nights_of(judged.test_path)
        nights = [day for day in present if day > seen_until]
        enough = len(nights) >= entry.gate.min_days

        verify_origin(self._lake, entry.name, self._registered.version, self._registered.artifact_digest)
        challenger = load_signed(settings, entry.name, self._registered.artifact_digest)
        incumbent = self._incumbent()
        rows = 0
        if self._schema_holds(challenger):
            constants = baseline_constants(entry, judged.training_path)
            scored = self._score(challenger, incumbent, constants)
            if scored is not None:
                rows = scored.judged_rows(nights)
                self._measure(scored, incumbent, nights, enough)
        self._check_nights(nights, present, seen_until, enough)
        self._audit()
        undecided = [r for r in self._reasons if r.code in _UNDECIDED]
        refused = [r for r in self._reasons if r.code not in _PASSED and r.code not in _UNDECIDED]
        verdict: Verdict = "not_evaluated" if undecided else "promote"
        if refused:
            verdict = "refuse"
        kept = self._reasons if verdict == "promote" else refused + undecided
        unusable = None
        if self._champion and incumbent.unusable:
            unusable = {"version": self._champion.version, "why": incumbent.unusable}
        against = self._champion if self._champion and incumbent.predictor is not None else None
        return {
            "model": entry.name,
            "version": self._registered.version,
            "as_of": judged.as_of.isoformat(),
            "verdict": verdict,
            "reasons": [asdict(reason) for reason in kept],
            "checks": [asdict(check) for check in self._checks],
            "subject": dict(subject),
            "incumbent": {
                "name": incumbent.name,
                "version": against.version if against else None,
                "artifact_digest": against.artifact_digest if against else None,
                "unusable_champion": unusable,
            },
            "test": {
                "nights": [day.isoformat() for day in nights],
                "left_out": [day.isoformat() for day in present if day <= seen_until],
                "rows": rows,
            },
            "windows": {
                who: {s: {"start": str(w.start), "end": str(w.end)} for s, w in named.items()}
                for who, named in windows.items()
            },
            "rules": entry.gate.model_dump(mode="json"),
            "bootstrap": {"resampled": "days", "resamples": RESAMPLES, "seed": entry.trainer.seed},
            **self._details,
        }

    def _incumbent(self) -> _Incumbent:
        if self._champion is None:
            return _Incumbent(None, None, self._entry.gate.baseline)
        verify_origin(self._lake, self._entry.name, self._champion.version, self._champion.artifact_digest)
        return _Incumbent(
            self._champion,
            load_signed(self._lake.settings, self._entry.name, self._champion.artifact_digest),
            self._entry.gate.baseline,
        )

    def _refuse(self, code: ReasonCode, text: str) -> None:
        self._reasons.append(Reason(code, text))

    # -- schema, finite, latency

    def _schema_holds(self, challenger: Predictor) -> bool:
        """The model takes exactly the catalog's features, in their types, and gives exactly its outputs."""
        wanted = {name: str(column.type) for name, column in self._lake.catalog.feature_columns(self._entry).items()}
        taken = dict(challenger.feature_columns)
        there = set(pq.read_schema(self._judged.test_path).names)
        problems = [f"it lacks {name}" for name in wanted if name not in taken]
        problems += [f"it takes {name}, which the catalog does not have" for name in taken if name not in wanted]
        problems += [
            f"it takes {name} as {taken[name]}, the catalog has {wanted[name]}"
            for name in wanted
            if name in taken and taken[name] != wanted[name]
        ]
        problems += [f"the test set lacks {name}" for name in taken if name not in there]
        if tuple(challenger.output_columns) != self._entry.output_columns:
            problems.append(
                f"it gives {', '.join(challenger.output_columns)}, the catalog asks for "
                f"{', '.join(self._entry.output_columns)}"
            )
        note = "; ".join(problems) or f"{len(wanted)} features, {len(self._entry.output_columns)} output columns"
        self._checks.append(Check("schema", passed=not problems, note=note))
        if problems:
            more = f", and {len(problems) - 3} more differences" if len(problems) > 3 else ""
            self._refuse(
                "schema",
                f"The model's columns are not the catalog's: {'; '.join(problems[:3])}{more}. Needed are equal "
                "columns: train it again.",
            )
        return not problems

    def _score(self, challenger: Predictor, incumbent: _Incumbent, constants: Mapping[str, Any]) -> ScoredRows | None:
        """Losses of challenger, baseline and champion on every test row; None where the challenger gave no finite
        numbers.
        """
        entry = self._entry
        segments = entry.gate.segments.columns if entry.gate.segments else ()
        scored = ScoredRows(entry, segments)
        features = set(challenger.feature_columns) | (
            set(incumbent.predictor.feature_columns) if incumbent.predictor else set()
        )
        seconds, bad, warm = 0.0, "", False
        for batch in batches_of(
            self._judged.test_path, {*features, "data_date", "label", "baseline", SCALE, *segments}
        ):
            try:
                if not warm:
                    challenger.predict(batch.slice(0, _WARM_UP_ROWS))
                    warm = True
                begun = time.perf_counter()
                predicted = challenger.predict(batch)
                seconds += time.perf_counter() - begun
            except PredictionsNotFinite as error:
                bad = str(error).splitlines()[0]
                break
            infinite = {name: int((~np.isfinite(numbers(predicted, name))).sum()) for name in entry.judged_columns}
            if any(infinite.values()):
                worst = max(infinite, key=lambda name: infinite[name])
                bad = f"{infinite[worst]} of {batch.num_rows} values of {worst} are NaN or infinite."
                break
            if predicted.num_rows != batch.num_rows:
                bad = f"It gave {predicted.num_rows} predictions for {batch.num_rows} rows."
                break
            champion = self._champion_predictions(incumbent, batch)
            scored.add(batch, predicted, champion, constants)
        self._checks.append(Check("finite", passed=not bad, note=bad or None, rows=scored.rows))
        if bad:
            self._refuse("not_finite", f"A prediction of every test row must be a finite number. {bad}")
            return None
        if not scored.rows:
            raise GateEvidenceMissing(
                f"{self._judged.test_path} holds no row. Nothing was judged, the champion stays. Train as of a night "
                "with labelled rows."
            )
        self._check_latency(seconds, scored.rows)
        if incumbent.unusable:
            incumbent.predictor, incumbent.name = None, f"baseline {entry.gate.baseline}"
        self._details["coverage"] = scored.coverage()
        for output, covered in scored.coverage().items():
            note = f"{covered['crossed']} rows with lower above upper" if covered["crossed"] else None
            self._checks.append(
                Check(
                    "coverage",
                    passed=None,
                    output=output,
                    challenger=covered["found"],
                    needed=covered["wanted"],
                    rows=scored.rows,
                    note=note,
                )
            )
        return scored

    def _champion_predictions(self, incumbent: _Incumbent, batch: pa.RecordBatch) -> pa.Table | None:
        """The champion's, or None where there is none or it cannot score these rows.

        A champion that lacks a feature of today's catalog, or gives no number, cannot score the next night either: it
        would block its own successor for ever. The baseline takes its place, and the decision says so.
        """
        if incumbent.predictor is None or incumbent.unusable:
            return None
        try:
            return incumbent.predictor.predict(batch)
        except (BadFeatures, PredictionsNotFinite) as error:
            incumbent.unusable = str(error).splitlines()[0]
            self._checks.append(
                Check(
                    "champion",
                    passed=None,
                    note=f"cannot score these rows, so the incumbent is the baseline: {incumbent.unusable}",
                )
            )
            return None

    def _check_latency(self, seconds: float, rows: int) -> None:
        limit = self._entry.gate.max_milliseconds_per_row
        milliseconds = seconds * 1_000 / rows
        if rows < _LEAST_TIMED_ROWS:
            note = f"{rows} rows are too few to time, {_LEAST_TIMED_ROWS} are needed: not evaluated"
            self._checks.append(
                Check(
                    "latency",
                    passed=None,
                    metric="milliseconds_per_row",
                    challenger=milliseconds,
                    needed=limit,
                    rows=rows,
                    note=note,
                )
            )
            return
        self._checks.append(
            Check(
                "latency",
                passed=milliseconds <= limit,
                metric="milliseconds_per_row",
                challenger=milliseconds,
                needed=limit,
                rows=rows,
            )
        )
        if milliseconds > limit:
            self._refuse(
                "latency",
                f"Batch prediction takes {milliseconds:.2f} ms a row over {rows} rows; at most {limit:g} ms are "
                "allowed.",
            )

    # -- nights, leakage

    def _check_nights(self, nights: Sequence[date], present: Sequence[date], seen_until: date, enough: bool) -> None:
        needed = self._entry.gate.min_days
        self._checks.append(
            Check("nights", passed=True if enough else None, challenger=float(len(nights)), needed=float(needed))
        )
        if not enough:
            self._refuse(
                "too_few_nights",
                f"Only {len(nights)} of {len(present)} test nights lie after {seen_until}, the last night either model "
                "was fitted on; "
                f"{needed} are needed. Not evaluated: the champion stays. Train as of a later night.",
            )

    def _audit(self) -> None:
        judged = self._judged
        audit = leakage.audit(
            self._lake,
            self._entry.name,
            as_of=judged.as_of,
            files=(judged.training_path, judged.test_path),
            pins=judged.pins,
            versions=judged.versions,
            seed=self._entry.trainer.seed,
        )
        self._details["leakage"] = audit.to_json()
        self._checks.append(
            Check(
                "leakage",
                passed=not audit.differing,
                challenger=float(audit.differing),
                needed=0.0,
                rows=audit.rows,
                note=audit.summary,
            )
        )
        if audit.differing:
            shown = " ".join(str(finding) for finding in audit.findings[:3])
            self._refuse("leakage", f"{audit.summary}; none may. {shown}")

    # -- improvement and segments

    def _measure(self, scored: ScoredRows, incumbent: _Incumbent, nights: Sequence[date], enough: bool) -> None:
        entry, rules = self._entry, self._entry.gate
        mask, day = scored.nights(nights)
        weights = day_weights(len(nights), seed=entry.trainer.seed) if enough else None
        against_champion = incumbent.predictor is not None
        self._details["outputs"] = {}
        for name, output in entry.outputs.items():
            root = output.metric.rooted
            losses = scored.losses(name, mask)
            theirs = losses.champion if against_champion else losses.baseline
            by_day = [sums_by_code(day, values, len(nights)) for values in (losses.challenger, theirs, losses.baseline)]
            error, reached, trivial = (pooled_error(output, values, len(day)) for values in by_day)
            improvement = 1.0 - float(error_ratio(by_day[0].sum(), by_day[1].sum(), root=root))
            why = output.untold(scored.labels(mask), day)
            alike = scored.alike(output, mask)
            none = max(error, reached) <= scored.told_apart(output, mask)
            untold = self._nothing_to_tell(name, output, incumbent, why, alike=alike, none=none) if enough else None
            bound = None
            if weights is not None and not (untold and losses.judged):
                bound = self._bound(output, scored.labels(mask), losses, by_day, day, weights, against_champion)
            passed = None if bound is None or untold else bound >= rules.better_by
            self._details["outputs"][name] = {
                "metric": output.gate,
                "challenger": error,
                "incumbent": reached,
                "baseline": trivial,
            }
            self._checks.append(
                Check(
                    "improvement",
                    passed=passed,
                    output=name,
                    metric=output.gate,
                    challenger=error,
                    incumbent=reached,
                    improvement=plain_float(improvement),
                    bound=None if bound is None else plain_float(bound),
                    needed=rules.better_by,
                    rows=len(day),
                    note=untold,
                )
            )
            if untold:
                self._without_labels(name, output, untold, losses, day, weights, incumbent)
            elif bound is not None:
                self._say_improvement(name, output, incumbent, error, reached, bound)
                self._measure_segments(name, output, scored, losses.challenger, theirs, mask, day, weights, incumbent)

    def _bound(
        self,
        output: OutputKind,
        label: Floats,
        losses: RowLosses,
        by_day: Sequence[Floats],
        day: npt.NDArray[np.int64],
        weights: Floats,
        against_champion: bool,
    ) -> float:
        """What the improvement exceeds with the gate's confidence; a listwise metric is computed anew in each draw."""
        confidence, root = self._entry.gate.confidence, output.metric.rooted
        if losses.judged is None:
            return improvement_bound(by_day[0], by_day[1], weights, confidence=confidence, root=root)
        own, baseline, champion = losses.judged
        draws = [
            output.metric.of_draws(output.truth(label), judged, day, weights)
            for judged in (own, champion if against_champion else baseline)
        ]
        return bound_of_draws(*draws, confidence=confidence, root=root)

    def _nothing_to_tell(
        self, name: str, output: OutputKind, incumbent: _Incumbent, why: str | None, *, alike: bool, none: bool
    ) -> str | None:
        """Why the test rows cannot tell the challenger from the incumbent, None where they can."""
        if why is not None:
            return f"{name}: {why}, so nothing tells a good detector from another."
        if alike:
            return f"{name}: the labels of all test rows came out alike, so one that always says so is as good as any."
        if none:
            return (
                f"{name}: {output.gate} is 0 for the challenger and for {self._incumbent_words(incumbent, output)}, so "
                "nothing tells them apart."
            )
        return None

    def _without_labels(
        self,
        name: str,
        output: OutputKind,
        untold: str,
        losses: RowLosses,
        day: npt.NDArray[np.int64],
        weights: Floats | None,
        incumbent: _Incumbent,
    ) -> None:
        """Where labels tell nothing a challenger may follow a champion that it agrees with; else the champion stays."""
        needed = output.agreement()
        stays = f"{untold} Not evaluated: the champion stays. Train as of a later night."
        if needed is None or losses.judged is None or weights is None or incumbent.predictor is None:
            self._refuse("nothing_to_tell", stays)
            return
        own, _, champion = losses.judged
        picks = [output.picked(judged, weights.shape[1]) for judged in (own, champion)]
        common, either = (
            sums_by_code(day, rows.astype(np.float64), weights.shape[1])
            for rows in (picks[0] & picks[1], picks[0] | picks[1])
        )
        share = float(common.sum() / either.sum())
        confidence = self._entry.gate.confidence
        bound = improvement_bound(either - common, either, weights, confidence=confidence)
        passed = bound >= needed
        self._checks.append(
            Check(
                "agreement",
                passed=passed or None,
                output=name,
                challenger=share,
                bound=bound,
                needed=needed,
                rows=int(either.sum()),
                note="share of the rows that either calls strangest which both do",
            )
        )
        said = (
            f"Of the strangest rows {share:.0%} are also those of {incumbent.name}, with {confidence:.0%} confidence "
            f"at least {bound:.0%}; {needed:.0%} are needed."
        )
        if passed:
            self._reasons.append(Reason("as_stable", f"{untold} {said}"))
        else:
            self._refuse("nothing_to_tell", f"{stays} {said}")

    def _say_improvement(
        self, name: str, output: OutputKind, incumbent: _Incumbent, error: float, reached: float, bound: float
    ) -> None:
        rules = self._entry.gate
        versus = (
            f"{name}: {output.gate} {error:.4g} against {reached:.4g} of {self._incumbent_words(incumbent, output)}"
        )
        sure = f"with {rules.confidence:.0%} confidence the improvement is at least {bound:+.1%}"
        if bound >= rules.better_by:
            self._reasons.append(Reason("better", f"{versus}; {sure}, {rules.better_by:+.1%} is needed."))
        else:
            self._refuse("not_better", f"{versus}; {sure}, but {rules.better_by:+.1%} is needed.")

    def _incumbent_words(self, incumbent: _Incumbent, output: OutputKind) -> str:
        if incumbent.predictor is not None:
            return incumbent.name
        return output.baseline_words(self._entry.gate.baseline)

    def _measure_segments(
        self,
        name: str,
        output: OutputKind,
        scored: ScoredRows,
        challenger: Floats,
        theirs: Floats,
        mask: npt.NDArray[np.bool_],
        day: npt.NDArray[np.int64],
        weights: Floats | None,
        incumbent: _Incumbent,
    ) -> None:
        rules = self._entry.gate.segments
        if rules is None or weights is None:
            return
        root = output.metric.rooted
        days = weights.shape[1]
        for column in rules.columns:
            values, codes = scored.segment(column, mask)
            rows = np.bincount(codes, minlength=len(values))
            large = np.flatnonzero(rows >= rules.min_rows)
            small = np.flatnonzero(rows < rules.min_rows)
            if len(small):
                named = ", ".join(f"{values[i]} ({rows[i]})" for i in small[:_SMALL_SEGMENTS_NAMED])
                more = f" and {len(small) - _SMALL_SEGMENTS_NAMED} more" if len(small) > _SMALL_SEGMENTS_NAMED else ""
                note = f"{len(small)} of {len(values)} have fewer than {rules.min_rows} rows: {named}{more}"
                count = int(rows[small].sum())
                self._checks.append(
                    Check(
                        "segments_too_small",
                        passed=None,
                        output=name,
                        metric=output.gate,
                        segment=column,
                        rows=count,
                        note=note,
                    )
                )
            if not len(large):
                continue
            cell = day * len(values) + codes
            sums = [
                sums_by_code(cell, losses, days * len(values)).reshape(days, len(values))[:, large]
                for losses in (challenger, theirs)
            ]
            ratios = error_ratio(sums[0].sum(axis=0), sums[1].sum(axis=0), root=root)
            bounds = ratio_lower_bounds(sums[0], sums[1], weights, confidence=self._entry.gate.confidence, root=root)
            for position, index in enumerate(large):
                ratio, bound, count = float(ratios[position]), float(bounds[position]), int(rows[index])
                error, reached = (pooled_error(output, side[:, position], count) for side in sums)
                worse = bound > rules.worst
                errors = sums[0][:, position].sum() + sums[1][:, position].sum()
                self._checks.append(
                    Check(
                        "segment",
                        passed=not worse if errors else None,
                        output=name,
                        metric=output.gate,
                        segment=f"{column}={values[index]}",
                        challenger=error,
                        incumbent=reached,
                        improvement=plain_float(1.0 - ratio),
                        bound=plain_float(bound),
                        needed=rules.worst,
                        rows=count,
                        note=None if errors else "neither made an error: nothing to compare",
                    )
                )
                if worse:
                    self._refuse(
                        "segment_worse",
                        f"{name} where {column} is {values[index]} ({count} rows): {output.gate} {error:.4g} against "
                        f"{reached:.4g} of "
                        f"{self._incumbent_words(incumbent, output)}; "
                        f"with {self._entry.gate.confidence:.0%} confidence at least {bound:.2f} times the "
                        f"incumbent's, at most {rules.worst:g} times is allowed.",
                    )
