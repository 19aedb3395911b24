"""Explain a registered version on the test rows: what moves its predictions, how good they are and for whom.

Shapley values say how far each feature moved one prediction away from the mean; their sum is the whole way. They
explain the model, not the world: a feature that matters to the model need not cause anything. How they are found
depends on the family; one without a way of its own gets permutation importances, and the explanation says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from config.catalog.model import BinaryOutput, ModelEntry, Output, RegressionOutput
from config.errors import NightfleetError
from lake.artifact import file_digest
from lake.lake import Lake
from serving.predictors.contract import Contract, Matrix, Predictor, read_json, write_json
from serving.signed import load_signed
from training.__main__ import IMPORTANCES_FILE
from training.evaluate import THRESHOLD, baseline_metrics, baseline_values, column, evaluate, lifts
from training.progress import CURVES_FILE
from training.registry import plots
from training.registry.decision import Decision
from training.registry.gate import TEST_FILE, row_losses
from training.registry.job import TRAINING_SET_FILE, gate_folder
from training.registry.reference import SAMPLE_FILE
from training.registry.register import Registered, artifact_folder, predict_file
from training.registry.segments import SEGMENTS_FILE, SegmentReport, segment_columns, segment_report

Floats = npt.NDArray[np.float64]
EXPLANATION_FILE = "explanation.json"
FORMAT = 1
SAMPLE_ROWS = 2_000
LOG_ODDS = "log-odds"
_BACKGROUND_ROWS = 200
_GRADIENT_ROWS = 200
_GRADIENT_SAMPLES = 200
# About three seconds; at least so many rows, which of a forest of full depth take ten.
_TREE_WORK = 1.5e9
_LEAST_TREE_ROWS = 25
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
        kind: contributions, importances, calibration, confusion, residuals, gain, curves or segments.
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
    """

    nights: tuple[date, ...]
    rows: int
    metrics: dict[str, float]
    contributions: tuple[Contributions, ...]
    segments: SegmentReport
    plots: tuple[Plot, ...]
    notes: tuple[str, ...]

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
    entry = lake.model(model)
    predictor = load_signed(lake.settings, model, registered.artifact_digest)
    version_folder = artifact_folder(lake.settings, model, registered.artifact_digest)
    test_path = _verified_test_set(job_dir)
    columns = {"data_date", "label", "baseline", *segment_columns(entry)}
    rows = pq.read_table(test_path, columns=[name for name in pq.read_schema(test_path).names if name in columns])
    chosen = _judged(rows, decision)
    rows, predictions = rows.filter(chosen), predict_file(predictor, test_path).filter(chosen)
    if not rows.num_rows:
        raise NothingToExplain(
            f"{test_path} holds no row of the nights that were judged. Nothing was explained. Judge the version again."
        )
    label = _numbers(rows["label"])
    fitted_on = _training_labels(job_dir)
    trivial = _row_baseline(entry, rows)
    constant = "mean" if entry.gate.baseline == "mean" else "median"
    outputs = {name: output.model_dump(mode="json") for name, output in entry.outputs.items()}
    days = rows["data_date"].cast(pa.int32()).to_numpy()
    metrics = evaluate(outputs, label, predictions, days) | baseline_metrics(
        outputs, fitted_on, label, trivial, constant=constant
    )
    metrics |= lifts(outputs, metrics)
    report = segment_report(entry, rows, label, {name: column(predictions, name) for name in entry.outputs})

    subject = _Subject.of(
        entry,
        _unit(lake, entry),
        predictor,
        version_folder,
        test_path,
        np.flatnonzero(chosen.to_numpy(zero_copy_only=False)),
    )
    found = _contributions(subject)
    title = f"{model} version {registered.version}"
    drawn = _Drawn(folder, title, subject.unit)
    for name, output in entry.outputs.items():
        drawn.contributions(found[name], subject)
        drawn.quality(
            name,
            output,
            label,
            column(predictions, name),
            baseline_values(outputs[name], fitted_on, len(label), trivial, constant=constant),
        )
    drawn.segments(report)
    drawn.training(read_json(version_folder / IMPORTANCES_FILE), read_json(version_folder / CURVES_FILE))
    explanation = Explanation(
        nights=tuple(sorted(pc.unique(rows["data_date"]).to_pylist())),
        rows=rows.num_rows,
        metrics={name: _rounded(value) for name, value in metrics.items()},
        contributions=tuple(part.summary for part in found.values()),
        segments=report,
        plots=tuple(drawn.plots),
        notes=tuple(drawn.notes),
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


def _row_baseline(entry: ModelEntry, rows: pa.Table) -> Floats | None:
    """The baseline's value of each row where the gate has one that differs by row."""
    return _numbers(rows["baseline"].cast(pa.float64())) if entry.gate.baseline == "same_hour_last_week" else None


def _unit(lake: Lake, entry: ModelEntry) -> str | None:
    return lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit


def _numbers(values: pa.ChunkedArray) -> Floats:
    return np.asarray(values.to_numpy(), dtype=np.float64)


def _rounded(value: float) -> float:
    """To six significant digits: the last bits of a sum depend on the machine."""
    return float(f"{value:.{_DIGITS}g}")


def _evenly(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """At most `wanted` positions among `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


# ---- contributions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """What is explained, and on which rows.

    Attributes:
        files: the model's own verified folder.
        matrix, label: sampled test rows, in their order.
        background: sampled training rows, what contributions are measured from.
        groups: by shown name the columns of the matrix it stands for: steps of one feature are shown as one.
    """

    entry: ModelEntry
    unit: str | None
    predictor: Predictor
    files: Path
    matrix: Matrix
    label: Floats
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
        picked = judged[_evenly(len(judged), SAMPLE_ROWS)]
        taken, seen = [], 0
        for batch in pq.ParquetFile(test_path).iter_batches(columns=[*features, "label"]):
            inside = picked[(picked >= seen) & (picked < seen + batch.num_rows)] - seen
            seen += batch.num_rows
            taken.append(batch.take(pa.array(inside)))
        sample = pa.Table.from_batches(taken)
        reference = pq.read_table(folder / SAMPLE_FILE, columns=[*features, "split"])
        train = reference.filter(pc.equal(reference["split"], "train"))
        background = train.take(pa.array(_evenly(train.num_rows, _BACKGROUND_ROWS)))
        contract = predictor.contract
        matrices = contract.matrix(sample), contract.matrix(background)
        return cls(
            entry,
            unit,
            predictor,
            folder / "model",
            matrices[0],
            _numbers(sample["label"]),
            matrices[1],
            _groups(features),
        )

    def sampled(self, rows: int) -> _Subject:
        """The same with fewer rows."""
        kept = _evenly(len(self.matrix), rows)
        return _Subject(
            self.entry,
            self.unit,
            self.predictor,
            self.files,
            self.matrix[kept],
            self.label[kept],
            self.background,
            self.groups,
        )


def _groups(features: Sequence[str]) -> dict[str, list[int]]:
    """`x_t0`, `x_t1`, … as `x (2 steps)`; every other feature by itself."""
    steps: dict[str, list[int]] = {}
    known = set(features)
    for index, name in enumerate(features):
        stem = re.sub(r"_t\d+$", "", name)
        steps.setdefault(stem if f"{stem}_t0" in known and f"{stem}_t1" in known else name, []).append(index)
    return {name if len(found) == 1 else f"{name} ({len(found)} steps)": found for name, found in steps.items()}


@dataclass(frozen=True)
class _Found:
    """`values` are contributions of shape (rows, shown features) in `summary.unit`, None where only strengths are
    known.
    """

    summary: Contributions
    values: Floats | None
    rows: Matrix


@dataclass(frozen=True)
class _Shapley:
    """Contributions to every output, (rows, features), how they were found, and the unit of those to a probability."""

    method: str
    rows: Matrix
    values: Mapping[str, Floats]
    probability_unit: str = LOG_ODDS


def _contributions(subject: _Subject) -> dict[str, _Found]:
    explainer = EXPLAINERS.get(subject.contract.family)
    if explainer is None:
        return _permutations(subject)
    found = explainer(subject)
    method = f"{found.method}, on {len(found.rows):,} test rows"
    parts = {}
    for name, output in subject.entry.outputs.items():
        grouped = np.column_stack(
            [found.values[name][:, list(columns)].sum(axis=1) for columns in subject.groups.values()]
        )
        unit = found.probability_unit if isinstance(output, BinaryOutput) else subject.unit or "the label's unit"
        strengths = _largest_first(subject.groups, np.abs(grouped).mean(axis=0))
        parts[name] = _Found(Contributions(name, method, unit, len(found.rows), strengths), grouped, found.rows)
    return parts


def _largest_first(names: Mapping[str, Any], strengths: Floats) -> dict[str, float]:
    found = {name: _rounded(float(value)) for name, value in zip(names, strengths, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _slope(calibration: Mapping[str, Any]) -> float:
    """What a raw score's distance becomes in calibrated log-odds; a calibration that is no line leaves it as it is."""
    return float(calibration["slope"]) if calibration["method"] == "platt" else 1.0


def _xgboost(subject: _Subject) -> _Shapley:
    import xgboost as xgb

    from serving.predictors.xgboost import DETAILS_FILE

    contract = subject.contract
    types = ["c" if spec.categories is not None else "q" for spec in contract.features.values()]
    matrix = xgb.DMatrix(subject.matrix, feature_names=list(contract.features), feature_types=types, missing=np.nan)
    values = {}
    for name, detail in read_json(subject.files / DETAILS_FILE)["outputs"].items():
        booster = xgb.Booster()
        booster.load_model(subject.files / detail["file"])
        booster.set_param({"device": "cpu"})
        raw = booster.predict(matrix, pred_contribs=True)[:, :-1].astype(np.float64)
        values[name] = raw * (_slope(detail["calibration"]) if "calibration" in detail else 1.0)
    return _Shapley("Shapley values of the trees (Tree SHAP)", subject.matrix, values)


def _keras(subject: _Subject) -> _Shapley:
    import keras
    import shap

    from serving.predictors.keras import DETAILS_FILE, NETWORK_FILE, Encoding

    subject = subject.sampled(_GRADIENT_ROWS)
    details = read_json(subject.files / DETAILS_FILE)
    constants = details["encoding"]
    encoding = Encoding(subject.contract, constants)
    network = keras.saving.load_model(subject.files / NETWORK_FILE, compile=False, safe_mode=True)
    explainer = shap.GradientExplainer(network, encoding.encode(subject.background))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The structure of `inputs`")  # the explainer hands over a list of one
        found = explainer.shap_values(
            encoding.encode(subject.matrix), nsamples=_GRADIENT_SAMPLES, rseed=subject.contract.seed
        )
    raw = np.asarray(found, dtype=np.float64)
    # Each input of the network belongs to the feature it was made from.
    found_by_feature = raw.transpose(2, 0, 1) @ _owners(subject.contract, _input_features(constants))
    values = _decoded(subject, details, constants, found_by_feature, encoding)
    return _Shapley(f"Expected gradients (Gradient SHAP, {_GRADIENT_SAMPLES} draws a row)", subject.matrix, values)


def _lstm(subject: _Subject) -> _Shapley:
    import keras

    from serving.predictors.keras import DETAILS_FILE, NETWORK_FILE
    from serving.predictors.lstm import SequenceEncoding

    subject = subject.sampled(_GRADIENT_ROWS)
    details = read_json(subject.files / DETAILS_FILE)
    constants = details["encoding"]
    encoding = SequenceEncoding(subject.contract, constants)
    network = keras.saving.load_model(subject.files / NETWORK_FILE, compile=False, safe_mode=True)
    found = expected_gradients(
        network, encoding.inputs(subject.matrix), encoding.inputs(subject.background), seed=subject.contract.seed
    )
    # A channel's steps are shown as one, so their sum may stand in the newest step's column.
    channels = [f"{name}_t0" for name in [*constants["channels"], *constants["null_flags"]]]
    by_feature = found[0].sum(axis=2) @ _owners(subject.contract, channels) + found[2] @ _owners(
        subject.contract, _input_features(constants["static"])
    )
    values = _decoded(subject, details, constants["static"], by_feature, encoding)
    return _Shapley(f"Expected gradients ({_GRADIENT_SAMPLES} draws a row)", subject.matrix, values)


def expected_gradients(
    network: Any, inputs: Sequence[npt.NDArray[Any]], background: Sequence[npt.NDArray[Any]], *, seed: int
) -> list[Floats]:
    """Shapley values of a network of several inputs by expected gradients (Erion and others 2021).

    SHAP's own explainer of gradients walks every input from the background to the row, and half a mask is none: here an
    input that is no floating-point number stays the row's own.

    Returns:
        Per input, float64 of shape (outputs, rows, *its own); zeros for one that is no floating-point number.
    """
    import tensorflow as tf

    random = np.random.default_rng(seed)
    moving = [index for index, part in enumerate(inputs) if np.issubdtype(part.dtype, np.floating)]
    rows, count = len(inputs[0]), int(network.outputs[0].shape[-1])
    totals = [np.zeros((count, *part.shape)) for part in inputs]

    def gradients(parts: Any) -> Any:
        watched = [parts[index] for index in moving]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(watched)
            raw = network(list(parts), training=False)
            sums = [tf.reduce_sum(raw[:, position]) for position in range(count)]
        return [tape.gradient(one, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO) for one in sums]

    traced = tf.function(gradients)
    for draw in range(_GRADIENT_SAMPLES):
        start = random.integers(0, len(background[0]), rows)
        share = ((draw + random.random(rows)) / _GRADIENT_SAMPLES).astype(np.float32)  # all stretches of the way alike
        ways = [inputs[index] - background[index][start] for index in moving]
        parts = list(inputs)
        for index, way in zip(moving, ways, strict=True):
            parts[index] = background[index][start] + share.reshape(-1, *[1] * (way.ndim - 1)) * way
        for position, found in enumerate(traced(tuple(tf.constant(part) for part in parts))):
            for index, way, gradient in zip(moving, ways, found, strict=True):
                totals[index][position] += way * np.asarray(gradient) / _GRADIENT_SAMPLES
    return totals


def _input_features(constants: Mapping[str, Any]) -> list[str]:
    """The feature that each input of a dense encoding was made from."""
    one_hot = [name for name, count in constants["one_hot"].items() for _ in range(count)]
    return [
        *constants["means"],
        *constants["null_flags"],
        *one_hot,
        *(name for name, levels in constants["levels"].items() for _ in levels),
    ]


def _decoded(
    subject: _Subject, details: Mapping[str, Any], constants: Mapping[str, Any], found: Floats, encoding: Any
) -> dict[str, Floats]:
    """Contributions to a network's raw outputs, (raw outputs, rows, features), as contributions to the outputs in their
    unit.
    """
    values, position = {}, 0
    for name, detail in details["outputs"].items():
        if "calibration" in detail:
            values[name] = found[position] * _slope(detail["calibration"])
        else:
            values[name] = found[position] * details["label_scale"]
            if constants["residual_of"] is not None:
                corrected = list(subject.contract.features).index(constants["residual_of"])
                values[name][:, corrected] += encoding.base(subject.matrix) - encoding.base(subject.background).mean()
        position += 3 if "interval" in detail else 1
    return values


def _random_forest(subject: _Subject) -> _Shapley:
    from serving.predictors.random_forest import DETAILS_FILE, TRUSTED, encoded
    from serving.predictors.sklearn_model import read_model
    from training.trainers.sklearn_rows import tree_columns

    details = read_json(subject.files / DETAILS_FILE)["outputs"]
    kinds = {
        name: "RandomForestClassifier" if "calibration" in detail else "RandomForestRegressor"
        for name, detail in details.items()
    }
    models = {
        name: read_model(subject.files / detail["file"], kinds[name], TRUSTED) for name, detail in details.items()
    }
    subject = subject.sampled(_affordable(sum(_work(model["model"]) for model in models.values())))
    values = {}
    for name, model in models.items():
        raw = _tree_values(model["model"], encoded(model["encode"], subject.matrix))
        values[name] = (raw[:, :, -1] if raw.ndim == 3 else raw) @ _owners(
            subject.contract, tree_columns(subject.contract)
        )
    return _Shapley("Shapley values of the trees (Tree SHAP)", subject.matrix, values, "probability before calibration")


def _isolation_forest(subject: _Subject) -> _Shapley:
    from serving.predictors.isolation_forest import DETAILS_FILE, MODEL_FILE, TRUSTED
    from serving.predictors.sklearn_model import read_model

    model = read_model(subject.files / MODEL_FILE, "IsolationForest", TRUSTED)
    subject = subject.sampled(_affordable(_work(model["model"])))
    columns = np.ascontiguousarray(model["encode"].transform(subject.matrix), dtype=np.float32)
    # The fewer cuts a row takes, the stranger it is: with the sign turned, to the right is stranger.
    found = -_tree_values(model["model"], columns) @ _owners(
        subject.contract, _origins(subject.contract, model["encode"])
    )
    names = read_json(subject.files / DETAILS_FILE)["outputs"]
    return _Shapley(
        "Shapley values of the trees (Tree SHAP)",
        subject.matrix,
        dict.fromkeys(names, found),
        "cuts fewer until the row stands alone",
    )


def _linear(subject: _Subject) -> _Shapley:
    from serving.predictors.linear import DETAILS_FILE, MODEL_FILE, TRUSTED
    from serving.predictors.sklearn_model import read_model

    model = read_model(subject.files / MODEL_FILE, "Ridge", TRUSTED)
    coefficients = np.atleast_2d(model["model"].coef_)
    values, position = {}, 0
    for name, detail in read_json(subject.files / DETAILS_FILE)["outputs"].items():
        values[name] = _linear_values(
            subject,
            model["encode"],
            coefficients[position],
            _slope(detail["calibration"]) if "calibration" in detail else 1.0,
        )
        position += 3 if "interval" in detail else 1
    return _Shapley("Shapley values of the sum (Linear SHAP)", subject.matrix, values)


def _logistic(subject: _Subject) -> _Shapley:
    from serving.predictors.logistic import DETAILS_FILE, TRUSTED
    from serving.predictors.sklearn_model import read_model

    values = {}
    for name, detail in read_json(subject.files / DETAILS_FILE)["outputs"].items():
        model = read_model(subject.files / detail["file"], "LogisticRegression", TRUSTED)
        values[name] = _linear_values(
            subject, model["encode"], np.atleast_2d(model["model"].coef_)[0], _slope(detail["calibration"])
        )
    return _Shapley("Shapley values of the sum (Linear SHAP)", subject.matrix, values)


def _linear_values(subject: _Subject, encoder: Any, coefficients: Floats, slope: float) -> Floats:
    """Contributions of a sum over encoded columns, (rows, features), measured from the mean of the background."""
    import shap

    background = shap.maskers.Independent(_dense(encoder, subject.background), max_samples=len(subject.background))
    values = shap.LinearExplainer((coefficients * slope, 0.0), background).shap_values(_dense(encoder, subject.matrix))
    return np.asarray(values, dtype=np.float64) @ _owners(subject.contract, _origins(subject.contract, encoder))


def _dense(encoder: Any, matrix: Matrix) -> Floats:
    return np.ascontiguousarray(encoder.transform(matrix), dtype=np.float64)


def _origins(contract: Contract, encoder: Any) -> list[str]:
    """The feature behind each column of a scikit-learn encoder, whose column names hold positions."""
    names = list(contract.features)
    columns = encoder.get_feature_names_out([str(index) for index in range(len(names))])
    return [names[int(re.match(r"\w+?__(?:missingindicator_)?(\d+)", column)[1])] for column in columns]  # type: ignore[index]  # the encoder names them so


def _owners(contract: Contract, names: Sequence[str]) -> Floats:
    """0 and 1, (columns, features): sums contributions of encoded columns by the feature they were made from."""
    features = list(contract.features)
    owner = np.zeros((len(names), len(features)))
    owner[np.arange(len(names)), [features.index(name) for name in names]] = 1.0
    return owner


def _tree_values(forest: Any, columns: npt.NDArray[np.float32]) -> Floats:
    import shap

    # Its own check of the sum loads the whole forest a second time; the sums are tested where this code is.
    return np.asarray(shap.TreeExplainer(forest).shap_values(columns, check_additivity=False), dtype=np.float64)


def _work(forest: Any) -> float:
    """What one row costs, in units of some two nanoseconds: leaves times squared depth, summed over the trees (Lundberg
    2020).
    """
    return float(sum(estimator.tree_.n_leaves * estimator.tree_.max_depth**2 for estimator in forest.estimators_))


def _affordable(work: float) -> int:
    """Rows that a forest is explained on, decided by its size and not by a clock, so that equal forests have equal
    explanations.
    """
    return int(np.clip(_TREE_WORK / max(work, 1.0), _LEAST_TREE_ROWS, SAMPLE_ROWS))


EXPLAINERS: dict[str, Callable[[_Subject], _Shapley]] = {
    "isolation_forest": _isolation_forest,
    "keras": _keras,
    "linear": _linear,
    "logistic": _logistic,
    "lstm": _lstm,
    "random_forest": _random_forest,
    "xgboost": _xgboost,
}


def _permutations(subject: _Subject) -> dict[str, _Found]:
    """How much each output's error grows when one feature's values are shuffled among the sampled rows."""
    random = np.random.default_rng(subject.contract.seed)
    positions = {name: subject.contract.output_columns.index(name) for name in subject.entry.outputs}

    def errors(matrix: Matrix) -> dict[str, float]:
        scores = subject.predictor.scores(matrix)
        return {
            name: _error(output, subject.label, scores[:, positions[name]])
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
    found = {}
    for name, output in subject.entry.outputs.items():
        unit = f"growth of {output.gate}" + (
            f" ({subject.unit})" if subject.unit and isinstance(output, RegressionOutput) else ""
        )
        strengths = _largest_first(subject.groups, np.maximum(growth[name], 0.0))
        found[name] = _Found(Contributions(name, method, unit, len(subject.matrix), strengths), None, subject.matrix)
    return found


def _error(output: Output, label: Floats, predicted: Floats) -> float:
    mean = float(row_losses(output, label, predicted).mean())
    return float(np.sqrt(mean)) if output.gate == "rmse" else mean


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

    def contributions(self, found: _Found, subject: _Subject) -> None:
        """Shapley values row by row, or strengths alone."""
        summary = found.summary
        names = list(subject.groups)
        top = ", ".join(f"{name} {value:.3g}" for name, value in list(summary.strengths.items())[:3])
        grey = " Grey dots: the value is missing, or a category." if found.values is not None else ""
        path = self._place(
            "contributions",
            summary.output,
            f"What moves {summary.output}: {top} ({summary.unit}). {summary.method}.{grey}",
        )
        if found.values is None:
            strengths = np.array([summary.strengths[name] for name in names])
            plots.strength_plot(
                names, strengths, path, title=f"{summary.output}: what its error rests on", unit=summary.unit
            )
            return
        specs = list(subject.contract.features.values())
        # Of a feature of many steps the first column, the newest step, gives the colour.
        first = [columns[0] for columns in subject.groups.values()]
        categorical = [specs[index].categories is not None for index in first]
        features = found.rows[:, first].astype(np.float64)
        title = f"{summary.output}: what moved {summary.rows:,} predictions"
        plots.contribution_plot(
            names, found.values, features, path, title=title, unit=summary.unit, categorical=categorical
        )

    def quality(self, name: str, output: Output, label: Floats, predicted: Floats, baseline: Floats) -> None:
        """Calibration, decisions and gain of a probability; residuals and distances of a number."""
        if isinstance(output, RegressionOutput):
            path = self._place(
                "residuals", name, f"Predicted minus real of {name}, against the prediction and as a histogram."
            )
            plots.residual_plot(label, predicted, path, title=f"{name}: residuals", unit=self._unit)
            path = self._place(
                "gain", name, f"Share of rows within each distance of the truth, {name} and the baseline."
            )
            plots.tolerance_plot(
                label, predicted, baseline, path, title=f"{name}: how near, beside the baseline", unit=self._unit
            )
            return
        truth = np.where(label > output.above, 1.0, 0.0)
        event = f"above {output.above:g}" + (f" {self._unit}" if self._unit else "")
        path = self._place("calibration", name, f"How often the event came true for each predicted {name}.")
        plots.calibration_plot(truth, predicted, path, title=f"{name}: calibration")
        path = self._place(
            "confusion", name, f"Decisions of {name} at the threshold {THRESHOLD:g} against what happened."
        )
        plots.confusion_plot(
            truth, predicted, path, title=f"{name}: decisions at {THRESHOLD:g}", threshold=THRESHOLD, event=event
        )
        if truth.any():
            path = self._place(
                "gain", name, f"Share of the events among the rows with the highest {name}, beside guessing."
            )
            plots.gain_plot(truth, predicted, path, title=f"{name}: gain over the baseline")
        else:
            self.notes.append(f"{name}: no test row lies {event}, so there is no gain to draw")

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
