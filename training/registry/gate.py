"""Judge a challenger: may this version score from the next night on?

Both models predict the same rows, those of the nights after the training and validation windows of both, with the
predictors that score every night. Days are resampled, not rows, and each output's improvement must reach `better_by`
with the catalog's confidence. A first champion passes the same test against the trivial baseline.

Segments. A segment refuses when the challenger is worse there than `worst` times the incumbent *with the same
confidence*: the lower bound of the error ratio lies above it. The ratio itself would refuse on noise: with two dozen
segments of a few hundred rows in two weeks, some lie 5 % above an incumbent that is no better. The rule holds for first
champions too, whose incumbent is the baseline: being better on the whole is no licence to be proven worse than guessing
for one carrier.

A decision is stored once with all its evidence, and never rewritten; the same judgement asked for again is the same
decision.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import serving.predictors
from config.calendar import BadInterval, Interval
from config.catalog.model import ModelEntry
from config.catalog.output import OutputKind
from config.errors import NightfleetError
from lake.artifact import file_digest
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, Promotion
from lake.lineage import Input
from lake.storage import artifact_folder
from serving.predictors.contract import BadFeatures, PredictionsNotFinite, Predictor
from serving.signed import load_signed, signed_files
from training.evaluate import judged_values
from training.registry import leakage
from training.registry.bootstrap import RESAMPLES, day_weights, error_ratio, improvement_bound, ratio_lower_bounds
from training.registry.decision import (
    Check,
    Decision,
    Reason,
    ReasonCode,
    Verdict,
    incumbent_of,
    read_decisions,
    store_decision,
    stored_decisions,
)
from training.registry.job import TRAINING_SET_FILE, checked_job, gate_folder
from training.registry.origin import verify_origin
from training.registry.register import Registered

Floats = npt.NDArray[np.float64]

__all__ = [
    "Check",
    "Decision",
    "GateEvidenceChanged",
    "GateEvidenceMissing",
    "Reason",
    "VersionNumberTaken",
    "judge",
    "judge_registered",
    "read_decisions",
    "registered_from_json",
]

TEST_FILE = "test_set.parquet"
_BATCH_ROWS = 65_536
_WARM_UP_ROWS = 64
_SMALL_SEGMENTS_NAMED = 30


class GateEvidenceMissing(NightfleetError):
    """What the gate must judge by is not there."""


class ForeignVersion(NightfleetError):
    """What was handed over is not a version of the model."""


class GateEvidenceChanged(NightfleetError):
    """What the gate must judge by is not what was written when the training set was built."""


class VersionNumberTaken(NightfleetError):
    """The ledger knows the version's number by other files."""


def judge_registered(
    lake: Lake, model: str, job_dir: str | Path, registered: Mapping[str, Any], *, run_id: str
) -> dict[str, Any]:
    """`judge`, with arguments and result as JSON documents; `registered` has the fields of `Registered`."""
    handed = registered_from_json(lake, model, registered)
    return judge(lake, model, checked_job(lake, model, job_dir), handed, run_id=run_id).to_json()


def registered_from_json(lake: Lake, model: str, document: Mapping[str, Any]) -> Registered:
    """A `Registered` from its fields as JSON, which another process handed over: where its files lie follows from the
    digest, and is not taken from there.

    Raises:
        ForeignVersion: it is of another model, or its digest is none.
    """
    digest = str(document["artifact_digest"])
    if document["model"] != model or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ForeignVersion(
            f"version {document['version']!r} of {document['model']!r} with digest {digest[:80]!r} was handed over: "
            f"needs a version of {model} and a SHA-256. Nothing was read. Clear `register` to hand over what it stored."
        )
    return Registered(
        model=model,
        version=int(document["version"]),
        artifact_digest=digest,
        mlflow_run_id=document["mlflow_run_id"],
        as_of=date.fromisoformat(str(document["as_of"])),
        folder=artifact_folder(lake.settings, model, digest),
    )


def judge(lake: Lake, model: str, job_dir: Path, registered: Registered, *, run_id: str) -> Decision:
    """Judge a registered version, and store the decision; a judgement that was made already is returned as it was.

    Args:
        job_dir: the training job, its test set in `<job_dir>.gate`.
        registered: the version; its files are read from the content-addressed folder that would score.
    Returns:
        promote; refuse, with every reason; or not_evaluated, where too few nights lie after both models' windows.
    Raises:
        VersionNumberTaken: the ledger knows the number by other files. No verdict.
        GateEvidenceMissing, GateEvidenceChanged: the test set, the training set or their description is not there or
            was edited. No verdict.
        BadManifest, ArtifactMismatch, UntrustedModel, ModelMissing: the files of challenger or champion are missing,
            changed or unsigned. No verdict.
    """
    entry = lake.model(model)
    judged = _read_set(gate_folder(job_dir) / TRAINING_SET_FILE, job_dir)
    _verify_set(judged, registered, lake)
    snapshot = lake.ledger(model).read()
    _check_number(snapshot, registered)
    champion = _champion(snapshot, registered.version)
    subject = {
        "artifact_digest": registered.artifact_digest,
        "test_digest": judged.test_digest,
        "training_digest": judged.training_digest,
        "catalog_digest": lake.catalog.digest(model),
    }
    made = _already_judged(lake, model, registered.version, judged.as_of, subject, champion, snapshot)
    if made is not None:
        return made
    evidence = _Judgement(lake, entry, judged, registered, champion).evidence(subject)
    return store_decision(lake, evidence, run_id=run_id, inputs=judged.test_inputs)


# ---- what is judged, and by what ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JudgedSet:
    """A training set's description and its two files."""

    as_of: date
    training_path: Path
    test_path: Path
    training_digest: str
    test_digest: str
    windows: Mapping[str, Interval]
    pins: Mapping[str, int]
    inputs: Sequence[Input]

    @property
    def versions(self) -> dict[str, int]:
        """Delta version each table was read at: the newest of its partitions'."""
        versions: dict[str, int] = {}
        for item in self.inputs:
            versions[item.table] = max(versions.get(item.table, 0), item.version)
        return versions

    @property
    def test_inputs(self) -> list[Input]:
        """Partitions of the nights of the test window."""
        return [item for item in self.inputs if item.data_date in self.windows["test"]]


def _read_document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise GateEvidenceMissing(
            f"{path} does not exist: the gate cannot know what was trained on which nights. Nothing was judged. Train "
            "again."
        )
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise GateEvidenceChanged(
            f"{path} is not a JSON document ({error}). Nothing was judged. Train again."
        ) from error


def _read_windows(document: Mapping[str, Any], path: Path) -> dict[str, Interval]:
    try:
        return {
            split: Interval(
                date.fromisoformat(document["windows"][split]["start"]),
                date.fromisoformat(document["windows"][split]["end"]),
            )
            for split in ("train", "validation", "test")
        }
    except (BadInterval, KeyError, TypeError, ValueError) as error:
        raise GateEvidenceChanged(
            f"{path} does not say which nights were trained on ({error!r}). Nothing was judged. Train again."
        ) from error


def _read_set(path: Path, job_dir: Path) -> _JudgedSet:
    document = _read_document(path)
    windows = _read_windows(document, path)
    try:
        return _JudgedSet(
            as_of=date.fromisoformat(document["as_of"]),
            training_path=job_dir / Path(document["training_path"]).name,
            test_path=path.with_name(TEST_FILE),
            training_digest=document["training_digest"],
            test_digest=document["test_digest"],
            windows=windows,
            pins=dict(document["pins"]),
            inputs=[
                Input(i["table"], date.fromisoformat(i["data_date"]), i["digest"], i["version"])
                for i in document["inputs"]
            ],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GateEvidenceChanged(
            f"{path} does not describe a training set ({error!r}). Nothing was judged. Train again."
        ) from error


def _verify_set(judged: _JudgedSet, registered: Registered, lake: Lake) -> None:
    """The files are those the description names, and the model was trained from them."""
    for what, path, digest in (
        ("test set", judged.test_path, judged.test_digest),
        ("training set", judged.training_path, judged.training_digest),
    ):
        if not path.is_file():
            raise GateEvidenceMissing(
                f"the {what} {path} does not exist. Nothing was judged, the champion stays. Train again."
            )
        found = file_digest(path)
        if found != digest:
            raise GateEvidenceChanged(
                f"the {what} {path} has digest {found[:12]}…, it was written with {digest[:12]}…: its bytes were "
                "changed. "
                "Nothing was judged, the champion stays. Train again."
            )
    with signed_files(lake.settings, registered.model, registered.artifact_digest, documents_only=True) as folder:
        trained_on = serving.predictors.read_manifest(folder)["training_set_digest"]
    if trained_on != judged.training_digest:
        raise GateEvidenceChanged(
            f"{registered.model} version {registered.version} was trained on a set of digest {trained_on[:12]}…, this "
            f"job's is {judged.training_digest[:12]}…: "
            "its test set may hold nights the model has seen. Nothing was judged. Judge it with its own job, or train "
            "again."
        )


def _check_number(snapshot: LedgerSnapshot, registered: Registered) -> None:
    """One number names one set of files, else the reigning champion would be taken for the challenger itself."""
    known = next(
        (
            p.artifact_digest
            for p in snapshot.promotions
            if p.version == registered.version and p.artifact_digest != registered.artifact_digest
        ),
        None,
    )
    if known is not None:
        newest = max(p.version for p in snapshot.promotions)
        raise VersionNumberTaken(
            f"version {registered.version} of {registered.model} is {known[:12]}… in the ledger, but MLflow gives that "
            f"number to {registered.artifact_digest[:12]}…: MLflow's database was lost, or made anew. Nothing was "
            "judged, the champion stays.\n"
            "  Restore MLflow's database from a backup, and train again. Without one, train again until MLflow's "
            f"number is above {newest}."
        )


def _champion(snapshot: LedgerSnapshot, version: int) -> Promotion | None:
    """The newest promotion of another version: a version that was promoted since is not its own incumbent."""
    others = [p for p in snapshot.promotions if p.version != version]
    return max(others, key=lambda p: (p.effective_from, p.sequence), default=None)


def _already_judged(
    lake: Lake,
    model: str,
    version: int,
    as_of: date,
    subject: Mapping[str, str],
    champion: Promotion | None,
    snapshot: LedgerSnapshot,
) -> Decision | None:
    """The decision on the same files with the same rules against the same incumbent; one that the ledger cites stands
    whoever reigns now.
    """
    cited = {p.evidence_digest for p in snapshot.promotions}
    same = [
        d
        for _, _, d in stored_decisions(lake, model, as_of)
        if d.version == version and d.evidence["subject"] == subject
    ]
    for decision in reversed(same):
        if decision.evidence_digest in cited or decision.incumbent_version == _against(decision, champion):
            return decision
    return None


def _against(decision: Decision, champion: Promotion | None) -> int | None:
    unusable = incumbent_of(decision.evidence).get("unusable_champion")
    if unusable is not None and champion is not None and unusable["version"] == champion.version:
        return None
    return champion.version if champion else None


# ---- the judgement -----------------------------------------------------------------------------------------------


class _Incumbent:
    """What the challenger is compared with: a champion's predictor, or the baseline."""

    def __init__(self, champion: Promotion | None, predictor: Predictor | None, baseline: str) -> None:
        self.promotion = champion
        self.predictor = predictor
        self.name = f"champion version {champion.version}" if champion and predictor else f"baseline {baseline}"
        self.unusable: str | None = None


@dataclass
class _Losses:
    """Losses of every test row for one output; the predictions themselves are not kept."""

    challenger: list[Floats]
    baseline: list[Floats]
    champion: list[Floats]


class _Judgement:
    """One run of the gate over one test set."""

    def __init__(
        self, lake: Lake, entry: ModelEntry, judged: _JudgedSet, registered: Registered, champion: Promotion | None
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
                windows["champion"] = _read_windows(_read_document(path), path)
        fitted = [w[split].last for w in windows.values() for split in ("train", "validation")]
        # The description could be wrong about its own file, whose digest the model cites: the rows themselves count
        # too.
        seen_until = max(*fitted, *_nights_of(judged.training_path))
        present = _nights_of(judged.test_path)
        nights = [day for day in present if day > seen_until]
        enough = len(nights) >= entry.gate.min_days

        verify_origin(self._lake, entry.name, self._registered.version, self._registered.artifact_digest)
        challenger = load_signed(settings, entry.name, self._registered.artifact_digest)
        incumbent = self._incumbent()
        rows = 0
        if self._schema_holds(challenger):
            constants = _baseline_constants(entry, judged.training_path)
            scored = self._score(challenger, incumbent, constants)
            if scored is not None:
                rows = scored.judged_rows(nights)
                self._measure(scored, incumbent, nights, enough)
        self._check_nights(nights, present, seen_until, enough)
        self._audit()
        refused = [r for r in self._reasons if r.code not in {"better", "too_few_nights"}]
        verdict: Verdict = "promote" if enough else "not_evaluated"
        if refused:
            verdict = "refuse"
        kept = (
            refused + [r for r in self._reasons if r.code == "too_few_nights"]
            if verdict != "promote"
            else self._reasons
        )
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
        found = dict(challenger.feature_columns)
        there = set(pq.read_schema(self._judged.test_path).names)
        problems = [f"it lacks {name}" for name in wanted if name not in found]
        problems += [f"it takes {name}, which the catalog does not have" for name in found if name not in wanted]
        problems += [
            f"it takes {name} as {found[name]}, the catalog has {wanted[name]}"
            for name in wanted
            if name in found and found[name] != wanted[name]
        ]
        problems += [f"the test set lacks {name}" for name in found if name not in there]
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

    def _score(self, challenger: Predictor, incumbent: _Incumbent, constants: Mapping[str, Any]) -> _Scored | None:
        """Losses of challenger, baseline and champion on every test row; None where the challenger gave no finite
        numbers.
        """
        entry = self._entry
        segments = entry.gate.segments.columns if entry.gate.segments else ()
        scored = _Scored(entry, segments)
        features = set(challenger.feature_columns) | (
            set(incumbent.predictor.feature_columns) if incumbent.predictor else set()
        )
        seconds, bad, warm = 0.0, "", False
        for batch in _batches(self._judged.test_path, {*features, "data_date", "label", "baseline", *segments}):
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
            infinite = {name: int((~np.isfinite(_numbers(predicted, name))).sum()) for name in entry.judged_columns}
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
        for output, found in scored.coverage().items():
            note = f"{found['crossed']} rows with lower above upper" if found["crossed"] else None
            self._checks.append(
                Check(
                    "coverage",
                    passed=None,
                    output=output,
                    challenger=found["found"],
                    needed=found["wanted"],
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
        found = seconds * 1_000 / rows
        self._checks.append(
            Check(
                "latency",
                passed=found <= limit,
                metric="milliseconds_per_row",
                challenger=found,
                needed=limit,
                rows=rows,
            )
        )
        if found > limit:
            self._refuse(
                "latency",
                f"Batch prediction takes {found:.2f} ms a row over {rows} rows; at most {limit:g} ms are allowed.",
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

    def _measure(self, scored: _Scored, incumbent: _Incumbent, nights: Sequence[date], enough: bool) -> None:
        entry, rules = self._entry, self._entry.gate
        mask, day = scored.nights(nights)
        weights = day_weights(len(nights), seed=entry.trainer.seed) if enough else None
        against_champion = incumbent.predictor is not None
        self._details["outputs"] = {}
        for name, output in entry.outputs.items():
            root = output.metric.rooted
            losses = scored.losses(name, mask)
            theirs = losses.champion if against_champion else losses.baseline
            by_day = [_sums(day, values, len(nights)) for values in (losses.challenger, theirs, losses.baseline)]
            found, reached, trivial = (_error(output, values, len(day)) for values in by_day)
            improvement = 1.0 - float(error_ratio(by_day[0].sum(), by_day[1].sum(), root=root))
            bound = (
                improvement_bound(by_day[0], by_day[1], weights, confidence=rules.confidence, root=root)
                if weights is not None
                else None
            )
            passed = None if bound is None else bound >= rules.better_by
            self._details["outputs"][name] = {
                "metric": output.gate,
                "challenger": found,
                "incumbent": reached,
                "baseline": trivial,
            }
            self._checks.append(
                Check(
                    "improvement",
                    passed=passed,
                    output=name,
                    metric=output.gate,
                    challenger=found,
                    incumbent=reached,
                    improvement=_plain_float(improvement),
                    bound=None if bound is None else _plain_float(bound),
                    needed=rules.better_by,
                    rows=len(day),
                )
            )
            if bound is not None:
                self._say_improvement(name, output, incumbent, found, reached, bound)
                self._measure_segments(name, output, scored, losses.challenger, theirs, mask, day, weights, incumbent)

    def _say_improvement(
        self, name: str, output: OutputKind, incumbent: _Incumbent, found: float, reached: float, bound: float
    ) -> None:
        rules = self._entry.gate
        versus = (
            f"{name}: {output.gate} {found:.4g} against {reached:.4g} of {self._incumbent_words(incumbent, output)}"
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
        scored: _Scored,
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
                _sums(cell, losses, days * len(values)).reshape(days, len(values))[:, large]
                for losses in (challenger, theirs)
            ]
            ratios = error_ratio(sums[0].sum(axis=0), sums[1].sum(axis=0), root=root)
            bounds = ratio_lower_bounds(sums[0], sums[1], weights, confidence=self._entry.gate.confidence, root=root)
            for position, index in enumerate(large):
                ratio, bound, count = float(ratios[position]), float(bounds[position]), int(rows[index])
                found, reached = (_error(output, side[:, position], count) for side in sums)
                worse = bound > rules.worst
                self._checks.append(
                    Check(
                        "segment",
                        passed=not worse,
                        output=name,
                        metric=output.gate,
                        segment=f"{column}={values[index]}",
                        challenger=found,
                        incumbent=reached,
                        improvement=_plain_float(1.0 - ratio),
                        bound=_plain_float(bound),
                        needed=rules.worst,
                        rows=count,
                    )
                )
                if worse:
                    self._refuse(
                        "segment_worse",
                        f"{name} where {column} is {values[index]} ({count} rows): {output.gate} {found:.4g} against "
                        f"{reached:.4g} of "
                        f"{self._incumbent_words(incumbent, output)}; "
                        f"with {self._entry.gate.confidence:.0%} confidence at least {bound:.2f} times the "
                        f"incumbent's, at most {rules.worst:g} times is allowed.",
                    )


class _Scored:
    """Per-row losses of the test set; features and predictions are let go batch by batch."""

    def __init__(self, entry: ModelEntry, segments: Sequence[str]) -> None:
        self._entry = entry
        self._days: list[npt.NDArray[np.int64]] = []
        self._losses = {name: _Losses([], [], []) for name in entry.outputs}
        self._segments: dict[str, list[pa.Array]] = {name: [] for name in segments}
        self._inside = dict.fromkeys(entry.outputs, 0)
        self._crossed = dict.fromkeys(entry.outputs, 0)
        self.rows = 0

    def add(
        self, batch: pa.RecordBatch, predicted: pa.Table, champion: pa.Table | None, constants: Mapping[str, Any]
    ) -> None:
        self.rows += batch.num_rows
        self._days.append(batch["data_date"].cast(pa.int32()).cast(pa.int64()).to_numpy(zero_copy_only=False))
        label = batch["label"].to_numpy(zero_copy_only=False).astype(np.float64)
        by_row = self._by_row(batch)
        for column, values in self._segments.items():
            values.append(pc.fill_null(batch[column].cast(pa.string()), "(null)"))
        for name, output in self._entry.outputs.items():
            losses = self._losses[name]
            columns = judged_values(output, name, predicted)
            losses.challenger.append(output.row_losses(label, output.judged(name, columns)))
            losses.baseline.append(output.row_losses(label, output.baseline(constants[name], len(label), by_row)))
            if champion is not None:
                theirs = output.judged(name, judged_values(output, name, champion))
                losses.champion.append(output.row_losses(label, theirs))
            bounds = output.interval_bounds(name)
            if bounds is not None:
                lower, upper = columns[bounds[0]], columns[bounds[1]]
                self._inside[name] += int(((label >= lower) & (label <= upper)).sum())
                self._crossed[name] += int((lower > upper).sum())

    def _by_row(self, batch: pa.RecordBatch) -> Floats | None:
        """The baseline's value of each row where the gate has one that differs by row."""
        if self._entry.gate.baseline != "same_hour_last_week":
            return None
        rows: Floats = batch["baseline"].cast(pa.float64()).to_numpy(zero_copy_only=False)
        return rows

    def coverage(self) -> dict[str, dict[str, Any]]:
        """Share of labels inside the interval, of each output that has one."""
        wanted = {name: output.interval_bounds(name) for name, output in self._entry.outputs.items()}
        return {
            name: {
                "wanted": bounds[2],
                "found": self._inside[name] / max(self.rows, 1),
                "crossed": self._crossed[name],
            }
            for name, bounds in wanted.items()
            if bounds is not None
        }

    def nights(self, nights: Sequence[date]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Mask of the rows of those nights, and for each of them its night's position."""
        wanted = np.array([(day - date(1970, 1, 1)).days for day in nights], dtype=np.int64)
        days = np.concatenate(self._days)
        mask = np.isin(days, wanted)
        return mask, np.searchsorted(wanted, days[mask])

    def judged_rows(self, nights: Sequence[date]) -> int:
        """Rows of those nights."""
        return int(self.nights(nights)[0].sum())

    def losses(self, output: str, mask: npt.NDArray[np.bool_]) -> _RowLosses:
        """Losses of the masked rows."""
        found = self._losses[output]
        champion = np.concatenate(found.champion)[mask] if sum(map(len, found.champion)) == self.rows else np.empty(0)
        return _RowLosses(np.concatenate(found.challenger)[mask], np.concatenate(found.baseline)[mask], champion)

    def segment(self, column: str, mask: npt.NDArray[np.bool_]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Sorted values of the column among the masked rows, and each row's position in them."""
        encoded = pa.chunked_array(self._segments[column]).filter(pa.array(mask)).combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        order = np.argsort(np.array(values, dtype=object))
        position = np.empty(len(values), dtype=np.int64)
        position[order] = np.arange(len(values))
        return [values[i] for i in order], position[encoded.indices.to_numpy()]


@dataclass(frozen=True)
class _RowLosses:
    challenger: Floats
    baseline: Floats
    champion: Floats


def _baseline_constants(entry: ModelEntry, training_path: Path) -> dict[str, Any]:
    """What a baseline predicts for every row of each output, from the training window's labels."""
    rows = pq.read_table(training_path, columns=["split", "label"])
    label = rows.filter(pc.equal(rows["split"], "train"))["label"].to_numpy().astype(np.float64)
    if not len(label):
        raise GateEvidenceMissing(
            f"{training_path} holds no row of split train, so there is no baseline to beat. Nothing was judged. Train "
            "again."
        )
    return {name: output.constant(label, entry.gate.baseline) for name, output in entry.outputs.items()}


def _batches(path: Path, columns: set[str]) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    wanted = [name for name in file.schema_arrow.names if name in columns]
    yield from (batch for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted) if batch.num_rows)


def _nights_of(path: Path) -> list[date]:
    return sorted(pc.unique(pq.read_table(path, columns=["data_date"])["data_date"]).to_pylist())


def _numbers(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _sums(codes: npt.NDArray[np.int64], values: Floats, count: int) -> Floats:
    return np.bincount(codes, weights=values, minlength=count).astype(np.float64)


def _error(output: OutputKind, sums: Floats, rows: int) -> float:
    return float(output.metric.of_mean(float(sums.sum()) / max(rows, 1)))


def _plain_float(value: float) -> float:
    """JSON has no infinity: the largest number stands for it."""
    return float(np.clip(value, -np.finfo(np.float64).max, np.finfo(np.float64).max))
