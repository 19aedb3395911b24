"""Explain a registered version on the test rows: what moves its predictions, how good they are and for whom.

Shapley values say how far each feature moved one prediction away from the mean; their sum is the whole way. They
explain the model, not the world: a feature that matters to the model need not cause anything. The family's own file
says how they are found; one that does not gets permutation importances, and the explanation says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.calendar import cutoff
from config.catalog.model import ModelEntry
from config.catalog.output import SCALE, OutputKind, StepErrors
from config.errors import NightfleetError
from lake.artifact import file_digest
from lake.lake import Lake
from serving import predictors
from serving.predictors import explainer_of
from serving.predictors.contract import Contract, Matrix, Predictor, read_json, write_json
from serving.predictors.shapley import SAMPLE_ROWS, Sample, evenly
from serving.signed import signed_files
from training.__main__ import IMPORTANCES_FILE
from training.evaluate import baseline_metrics, evaluate, judged_values, lifts
from training.progress import CURVES_FILE
from training.registry import plots
from training.registry.decision import Decision
from training.registry.job import TRAINING_SET_FILE, gate_folder
from training.registry.judged_set import TEST_FILE
from training.registry.reference import SAMPLE_FILE
from training.registry.register import Registered, predict_files
from training.registry.segments import SEGMENTS_FILE, SegmentReport, segment_columns, segment_report

Floats = npt.NDArray[np.float64]
EXPLANATION_FILE = "explanation.json"
FORMAT = 1
_BACKGROUND_ROWS = 200
_PERMUTATIONS = 3
_PLOTTED_SEGMENTS = 15
_DIGITS = 6


class NothingToExplain(NightfleetError):
    """The rows that a version is explained on are missing, or not those its training set describes."""


@dataclass(frozen=True)
class Contributions:
    """What moves one output.

    Attributes:
        method: how it was found, in words.
        unit: of the strengths: the label's, `log-odds`, or the gate metric by which an error grows.
        rows: looked at, a sample of the test rows.
        strengths: by feature, mean distance its value moves a prediction, largest first; steps of one feature count as
            one.
    """

    output: str
    method: str
    unit: str
    rows: int
    strengths: dict[str, float]


@dataclass(frozen=True)
class Plot:
    """A PNG beside the explanation.

    Attributes:
        output: which it is about, "" for the model as a whole.
        kind: contributions, importances, calibration, confusion, detection, residuals, gain, steps, curves or segments.
        alt: what it shows, in words.
    """

    file: str
    output: str
    kind: str
    alt: str


@dataclass(frozen=True)
class Explanation:
    """A version on its test rows.

    Attributes:
        nights, rows: what it was looked at on: the nights the gate judged, or all test nights where it judged none.
        metrics: of `evaluate` with the data date as the group, of the gate's baseline, and the lift.
        notes: what is left out, and why.
        steps: by output how good it is by how far ahead it was said, of what is said step by step.
    """

    nights: tuple[date, ...]
    rows: int
    metrics: dict[str, float]
    contributions: tuple[Contributions, ...]
    segments: SegmentReport
    plots: tuple[Plot, ...]
    notes: tuple[str, ...]
    steps: dict[str, StepErrors] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON document, without the segments, which have a file of their own."""
        document = asdict(self) | {"format": FORMAT, "nights": [night.isoformat() for night in self.nights]}
        del document["segments"]
        return document


def explain(
    lake: Lake, model: str, job_dir: Path, registered: Registered, decision: Decision | None = None, *, folder: Path
) -> Explanation:
    """Look at a version on its test rows, and write explanation.json, segments.json and the plots into `folder`.

    Equal versions and decisions give equal files.

    Args:
        job_dir: the training job, its test set in `<job_dir>.gate`.
        decision: of the gate; its nights are the ones looked at.
    Raises:
        NothingToExplain: the test set is missing or another one than its description names, or holds no row.
        UntrustedModel, ModelMissing, BadManifest, ArtifactMismatch: the version's files are missing, unsigned or were
            changed.
    """
    # All of it is read from one verified copy: the model, the explainer's background, curves and importances.
    with signed_files(lake.settings, model, registered.artifact_digest) as version_folder:
        return _explanation(lake, model, job_dir, registered, decision, version_folder, folder)


def _explanation(
    lake: Lake,
    model: str,
    job_dir: Path,
    registered: Registered,
    decision: Decision | None,
    version_folder: Path,
    folder: Path,
) -> Explanation:
    entry = lake.model(model)
    predictor = predictors.load_predictor(version_folder)
    test_path = _verified_test_set(job_dir)
    columns = {"data_date", "target_time_utc", "label", "baseline", SCALE, *segment_columns(entry)}
    rows = pq.read_table(test_path, columns=[name for name in pq.read_schema(test_path).names if name in columns])
    chosen = _judged(rows, decision)
    rows, predictions = rows.filter(chosen), predict_files(predictor, [test_path]).filter(chosen)
    if not rows.num_rows:
        raise NothingToExplain(
            f"{test_path} holds no row of the nights that were judged. Nothing was explained. Judge the version again."
        )
    label = _numbers(rows["label"])
    fitted_on = _training_labels(job_dir)
    trivial = _row_baseline(entry, rows)
    constant = "mean" if entry.gate.baseline == "mean" else "median"
    days = rows["data_date"].cast(pa.int32()).to_numpy()
    scale = _numbers(rows[SCALE]) if entry.scaled else None
    if scale is not None:
        predictions = predictions.append_column(SCALE, rows[SCALE])
    metrics = evaluate(entry.outputs, label, predictions, days) | baseline_metrics(
        entry.outputs, fitted_on, label, trivial, constant=constant, scale=scale
    )
    metrics |= lifts(entry.outputs, metrics)
    judged = _judged_by_output(entry, predictions)
    report = segment_report(entry, rows, label, judged, _inside(entry, label, predictions))

    subject = _Subject.of(
        entry,
        _unit(lake, entry),
        predictor,
        version_folder,
        test_path,
        np.flatnonzero(chosen.to_numpy(zero_copy_only=False)),
    )
    explained = _contributions(subject)
    title = f"{model} version {registered.version}"
    drawn = _Drawn(folder, title, subject.unit)
    ahead, steps = _hours_ahead(lake, entry, rows), {}
    for name, output in entry.outputs.items():
        drawn.contributions(explained[name], subject)
        baseline = output.baseline(output.constant(fitted_on, constant), len(label), trivial)
        drawn.quality(name, output, label, judged[name], baseline)
        of_steps = output.by_step(name, label, judged_values(output, name, predictions), baseline, ahead)
        if of_steps is not None:
            steps[name] = of_steps
            drawn.steps(name, of_steps)
    drawn.segments(report)
    drawn.training(read_json(version_folder / IMPORTANCES_FILE), read_json(version_folder / CURVES_FILE))
    explanation = Explanation(
        nights=tuple(sorted(pc.unique(rows["data_date"]).to_pylist())),
        rows=rows.num_rows,
        metrics={name: _rounded(value) for name, value in metrics.items()},
        contributions=tuple(part.summary for part in explained.values()),
        segments=report,
        plots=tuple(drawn.plots),
        notes=tuple(drawn.notes),
        steps=steps,
    )
    write_json(folder / EXPLANATION_FILE, explanation.to_json())
    write_json(folder / SEGMENTS_FILE, report.to_json())
    return explanation


# ---- rows --------------------------------------------------------------------------------------------------------


def _verified_test_set(job_dir: Path) -> Path:
    described, path = gate_folder(job_dir) / TRAINING_SET_FILE, gate_folder(job_dir) / TEST_FILE
    if not described.is_file() or not path.is_file():
        missing = path if described.is_file() else described
        raise NothingToExplain(
            f"{missing} does not exist, so there are no rows to explain the version on. Train again."
        )
    wanted, found = str(read_json(described)["test_digest"]), file_digest(path)
    if found != wanted:
        raise NothingToExplain(
            f"{path} has digest {found[:12]}…, it was written with {wanted[:12]}…: its bytes were changed. Nothing was "
            "explained. Train again."
        )
    return path


def _judged(rows: pa.Table, decision: Decision | None) -> pa.ChunkedArray:
    """Mask of the rows of the nights that the gate judged; of all where it judged none."""
    nights = [date.fromisoformat(night) for night in decision.evidence["test"]["nights"]] if decision else []
    if not nights:
        return pc.is_valid(rows["data_date"])
    return pc.is_in(rows["data_date"], value_set=pa.array(nights, pa.date32()))


def _training_labels(job_dir: Path) -> Floats:
    path = job_dir / str(read_json(gate_folder(job_dir) / TRAINING_SET_FILE)["training_path"])
    rows = pq.read_table(path, columns=["split", "label"])
    return _numbers(rows.filter(pc.equal(rows["split"], "train"))["label"])


def _inside(entry: ModelEntry, label: Floats, predictions: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
    """Of each output with an interval, whether it holds the label, row by row."""
    inside = {}
    for name, output in entry.outputs.items():
        bounds = output.interval_bounds(name)
        if bounds is not None:
            lower, upper = (_numbers(predictions[column]) for column in bounds[:2])
            inside[name] = (label >= lower) & (label <= upper)
    return inside


def _row_baseline(entry: ModelEntry, rows: pa.Table) -> Floats | None:
    """The baseline's value of each row where the gate has one that differs by row."""
    return None if entry.gate.naive_season is None else _numbers(rows["baseline"].cast(pa.float64()))


def _hours_ahead(lake: Lake, entry: ModelEntry, rows: pa.Table) -> Floats:
    """From each row's cutoff to its target time, (rows,)."""
    zone = lake.dataset(entry.dataset).time_zone
    nights = rows["data_date"].combine_chunks().dictionary_encode()
    if isinstance(nights, pa.ChunkedArray):
        nights = nights.unify_dictionaries().combine_chunks()
    instant = pa.timestamp("us", tz="UTC")
    cutoffs = pa.array([cutoff(night, zone) for night in nights.dictionary.to_pylist()], instant).cast(pa.int64())
    targets = rows["target_time_utc"].cast(instant).cast(pa.int64()).to_numpy()
    hours: Floats = (targets - cutoffs.to_numpy()[nights.indices.to_numpy()]) / 3.6e9
    return hours


def _unit(lake: Lake, entry: ModelEntry) -> str | None:
    return lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit


def _numbers(values: pa.ChunkedArray) -> Floats:
    return np.asarray(values.to_numpy(), dtype=np.float64)


def _rounded(value: float) -> float:
    """To six significant digits: the last bits of a sum depend on the machine."""
    return float(f"{value:.{_DIGITS}g}")


# ---- contributions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """What is explained, and on which rows.

    Attributes:
        files: the model's own verified folder.
        matrix, label, scale: sampled test rows, in their order; the scale of their series where a gate needs it.
        background: sampled training rows, what contributions are measured from.
        groups: by shown name the columns of the matrix it stands for: steps of one feature are shown as one.
    """

    entry: ModelEntry
    unit: str | None
    predictor: Predictor
    files: Path
    matrix: Matrix
    label: Floats
    scale: Floats | None
    background: Matrix
    groups: Mapping[str, Sequence[int]]

    @property
    def contract(self) -> Contract:
        return self.predictor.contract

    @classmethod
    def of(
        cls,
        entry: ModelEntry,
        unit: str | None,
        predictor: Predictor,
        folder: Path,
        test_path: Path,
        judged: npt.NDArray[np.int64],
    ) -> _Subject:
        features = list(predictor.feature_columns)
        picked = judged[evenly(len(judged), SAMPLE_ROWS)]
        taken, seen = [], 0
        scaled = [SCALE] if entry.scaled else []
        for batch in pq.ParquetFile(test_path).iter_batches(columns=[*features, "label", *scaled]):
            inside = picked[(picked >= seen) & (picked < seen + batch.num_rows)] - seen
            seen += batch.num_rows
            taken.append(batch.take(pa.array(inside)))
        sample = pa.Table.from_batches(taken)
        reference = pq.read_table(folder / SAMPLE_FILE, columns=[*features, "split"])
        train = reference.filter(pc.equal(reference["split"], "train"))
        background = train.take(pa.array(evenly(train.num_rows, _BACKGROUND_ROWS)))
        contract = predictor.contract
        matrices = contract.matrix(sample), contract.matrix(background)
        return cls(
            entry,
            unit,
            predictor,
            folder / "model",
            matrices[0],
            _numbers(sample["label"]),
            _numbers(sample[SCALE]) if entry.scaled else None,
            matrices[1],
            _groups(features),
        )


def _groups(features: Sequence[str]) -> dict[str, list[int]]:
    """`x_t0`, `x_t1`, … as `x (2 steps)`; every other feature by itself."""
    steps: dict[str, list[int]] = {}
    known = set(features)
    for index, name in enumerate(features):
        stem = re.sub(r"_t\d+$", "", name)
        steps.setdefault(stem if f"{stem}_t0" in known and f"{stem}_t1" in known else name, []).append(index)
    return {name if len(columns) == 1 else f"{name} ({len(columns)} steps)": columns for name, columns in steps.items()}


@dataclass(frozen=True)
class _Found:
    """`values` are contributions of shape (rows, shown features) in `summary.unit`, None where only strengths are
    known.
    """

    summary: Contributions
    values: Floats | None
    rows: Matrix


def _contributions(subject: _Subject) -> dict[str, _Found]:
    explainer = explainer_of(subject.contract.family, subject.files)
    if explainer is None:
        return _permutations(subject)
    shapley = explainer(subject.files, subject.contract, Sample(subject.matrix, subject.background))
    method = f"{shapley.method}, on {len(shapley.rows):,} test rows"
    parts = {}
    for name, output in subject.entry.outputs.items():
        grouped = np.column_stack(
            [shapley.values[name][:, list(columns)].sum(axis=1) for columns in subject.groups.values()]
        )
        unit = output.contribution_unit(subject.unit, shapley.probability_unit)
        strengths = _largest_first(subject.groups, np.abs(grouped).mean(axis=0))
        parts[name] = _Found(Contributions(name, method, unit, len(shapley.rows), strengths), grouped, shapley.rows)
    return parts


def _largest_first(names: Mapping[str, Any], strengths: Floats) -> dict[str, float]:
    strongest = {name: _rounded(float(value)) for name, value in zip(names, strengths, strict=True)}
    return dict(sorted(strongest.items(), key=lambda item: (-item[1], item[0])))


def _permutations(subject: _Subject) -> dict[str, _Found]:
    """How much each output's error grows when one feature's values are shuffled among the sampled rows."""
    random = np.random.default_rng(subject.contract.seed)

    def errors(matrix: Matrix) -> dict[str, float]:
        judged = _judged_by_output(subject.entry, subject.contract.published(subject.predictor.scores(matrix)))
        return {
            name: float(output.metric.of_mean(output.row_losses(subject.label, judged[name], subject.scale).mean()))
            for name, output in subject.entry.outputs.items()
        }

    whole = errors(subject.matrix)
    growth = {name: np.zeros(len(subject.groups)) for name in subject.entry.outputs}
    for index, columns in enumerate(subject.groups.values()):
        for _ in range(_PERMUTATIONS):
            shuffled = subject.matrix.copy()
            order = random.permutation(len(shuffled))
            shuffled[:, list(columns)] = subject.matrix[order][:, list(columns)]
            for name, error in errors(shuffled).items():
                growth[name][index] += (error - whole[name]) / _PERMUTATIONS
    method = (
        f"Permutation importances: growth of the error when a feature's values are shuffled, mean of {_PERMUTATIONS} "
        f"shuffles, on {len(subject.matrix):,} test "
        f"rows. The family {subject.contract.family} has no Shapley explainer here, so directions are not known"
    )
    permuted = {}
    for name, output in subject.entry.outputs.items():
        unit = output.metric_unit(subject.unit or "")
        unit = f"growth of {output.gate}" + (f" ({unit})" if unit else "")
        strengths = _largest_first(subject.groups, np.maximum(growth[name], 0.0))
        permuted[name] = _Found(Contributions(name, method, unit, len(subject.matrix), strengths), None, subject.matrix)
    return permuted


def _judged_by_output(entry: ModelEntry, predictions: pa.Table) -> dict[str, Floats]:
    """Predictions of each output as its metrics take them."""
    return {
        name: output.judged(name, judged_values(output, name, predictions)) for name, output in entry.outputs.items()
    }


# ---- plots -------------------------------------------------------------------------------------------------------


class _Drawn:
    """Plots, as they are drawn into a folder."""

    def __init__(self, folder: Path, title: str, unit: str | None) -> None:
        self._folder, self._title, self._unit = folder, title, unit
        self.plots: list[Plot] = []
        self.notes: list[str] = []

    def _place(self, kind: str, output: str, alt: str) -> Path:
        file = f"{kind}_{output}.png" if output else f"{kind}.png"
        self.plots.append(Plot(file, output, kind, alt))
        return self._folder / file

    def contributions(self, explained: _Found, subject: _Subject) -> None:
        """Shapley values row by row, or strengths alone."""
        summary = explained.summary
        names = list(subject.groups)
        top = ", ".join(f"{name} {value:.3g}" for name, value in list(summary.strengths.items())[:3])
        grey = " Grey dots: the value is missing, or a category." if explained.values is not None else ""
        path = self._place(
            "contributions",
            summary.output,
            f"What moves {summary.output}: {top} ({summary.unit}). {summary.method}.{grey}",
        )
        if explained.values is None:
            strengths = np.array([summary.strengths[name] for name in names])
            plots.strength_plot(
                names, strengths, path, title=f"{summary.output}: what its error rests on", unit=summary.unit
            )
            return
        specs = list(subject.contract.features.values())
        # Of a feature of many steps the first column, the newest step, gives the colour.
        first = [columns[0] for columns in subject.groups.values()]
        categorical = [specs[index].categories is not None for index in first]
        features = explained.rows[:, first].astype(np.float64)
        title = f"{summary.output}: what moved {summary.rows:,} predictions"
        plots.contribution_plot(
            names, explained.values, features, path, title=title, unit=summary.unit, categorical=categorical
        )

    def quality(self, name: str, output: OutputKind, label: Floats, judged: Floats, baseline: Floats) -> None:
        """How good the output is, as its kind is best seen."""
        drawings, notes = output.drawings(name, label, judged, baseline, self._unit)
        for drawing in drawings:
            path = self._place(drawing.kind, name, drawing.alt)
            plots.QUALITY_PLOTS[drawing.plot](path=path, **drawing.arguments)
        self.notes += notes

    def steps(self, name: str, steps: StepErrors) -> None:
        """How good the output is by how far ahead it was said."""
        held = ", and the share of outcomes that the interval held" if steps.inside else ""
        path = self._place("steps", name, f"Mean absolute error of {name} and of the baseline by how far ahead{held}.")
        plots.steps_plot(steps, path, title=f"{name}: error by how far ahead", unit=self._unit)

    def segments(self, report: SegmentReport) -> None:
        """Each output's worst segments."""
        for part in report.outputs:
            shown = [segment for segment in part.segments if segment.ratio is not None][:_PLOTTED_SEGMENTS]
            if not shown:
                continue
            ratios = [segment.ratio for segment in shown if segment.ratio is not None]
            bounds = (
                [np.nan if b is None else b for b in side]
                for side in ([r.lower for r in ratios], [r.upper for r in ratios])
            )
            lower, upper = (np.array(side, dtype=np.float64) for side in bounds)
            path = self._place(
                "segments",
                part.output,
                f"{part.metric} of {part.output} by segment, over that of all rows, with 95 % intervals.",
            )
            names = [f"{segment.column} = {segment.value}" for segment in shown]
            values = np.array([ratio.value for ratio in ratios])
            plots.segment_plot(
                names, values, lower, upper, path, title=f"{part.output}: {part.metric} by segment, worst first"
            )

    def training(
        self, importances: Mapping[str, Mapping[str, float]], curves: Mapping[str, Sequence[Sequence[float]]]
    ) -> None:
        """What the trainer left: importances of its own, and learning curves."""
        if importances and all(importances.values()):
            path = self._place(
                "importances", "", "Importance of each feature as the trainer measured it, as a share of the whole."
            )
            plots.importance_plot(importances, f"{self._title}: importances of the trainer", path)
        path = self._folder / "curves.png"
        if plots.curves_plot(curves, path, title=f"{self._title}: learning curves"):
            self.plots.append(
                Plot("curves.png", "", "curves", "Loss by round or epoch on training and validation rows.")
            )
        else:
            self.notes.append("the family leaves no learning curve of two points or more")
