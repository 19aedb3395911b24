"""What an output of a model is, and what a metric is, in the abstract; each kind is a file of `serving/kinds`, each
metric one of `serving/metrics`.

The dependency is turned round on purpose. A kind is at once its entry in the catalog (`kind: binary`, `above: 15`) and
all that the chain does with such an output, which lies in `serving`, and `config` may import nothing from there. So
what everybody relies on is declared here, and the catalog resolves the name of a kind when it meets it, as a family is
resolved. For the same reason kinds load numpy and pyarrow only where they compute: each task reads the catalog first.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, SerializeAsAny

from config.catalog.base import Model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

# What a trainer has to learn: a number, the probability of one event, a probability for each of several classes, an
# order of items, how strange a row is, decisions that cost little.
Task = Literal["number", "event", "classes", "ranking", "anomaly", "decision"]

# Column of training sets, and of what is judged, where a gate is `scaled`: what the losses of rows are divided by.
SCALE = "nf__scale"


class Metric(ABC):
    """How good predictions are, as one number.

    `truth` is (rows,) as the output's kind makes it from labels; `predicted` is (rows,), (rows, classes), or items best
    first, (rows, items).

    Attributes:
        name: in the catalog, in tables and in file names.
        title: short, for a cell: `MAE`.
        words: for people who do not know the name.
        abbreviated: the name is an abbreviation of the words, to be shown beside them.
        in_label_unit: it has the unit of the label; else it has none.
        greater_is_better: else it is an error.
        rooted: it is the root of a mean; squares are what can be averaged.
        scaled: it divides each row's error by the scale of the row's series, so that series of any size can be pooled.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    words: ClassVar[str]
    abbreviated: ClassVar[bool] = False
    in_label_unit: ClassVar[bool] = False
    greater_is_better: ClassVar[bool] = False
    rooted: ClassVar[bool] = False
    scaled: ClassVar[bool] = False

    @property
    def full(self) -> str:
        """The words, with the name beside them where it abbreviates them."""
        return f"{self.words} ({self.name})" if self.abbreviated else self.words

    @abstractmethod
    def value(self, truth: Floats, predicted: Floats) -> float | None:
        """The metric of at least one row; None where it is not defined."""

    def value_over(self, truth: Floats, predicted: Floats, scale: Floats | None) -> float | None:
        """As `value`; of a metric that is `scaled` with the scale of each row's series, (rows,), NaN for none."""
        return self.value(truth, predicted)

    def of_mean(self, mean: Any) -> Any:
        """The metric from a mean that rows, nights or segments can be pooled in; a number or an array."""
        if not self.rooted:
            return mean
        import numpy as np

        return np.sqrt(np.maximum(mean, 0.0))  # rounding may leave a bound of squares below zero

    def as_mean(self, value: Any) -> Any:
        """The mean behind a value of the metric, the inverse of `of_mean`; numbers, arrays or SQL."""
        return value * value if self.rooted else value

    def pooled(self, parts: Sequence[tuple[float, int]]) -> float | None:
        """The metric of several nights or segments together, from the (value, rows) of each; None without rows."""
        rows = sum(count for _, count in parts)
        if not rows:
            return None
        return float(self.of_mean(sum(self.as_mean(value) * count for value, count in parts) / rows))

    def pooled_ratio(self, own: Sequence[tuple[float, int]], base: Sequence[tuple[float, int]]) -> float | None:
        """One error over the other, each of several (value, rows); None where the other is 0 or without rows."""
        below = sum(self.as_mean(value) * rows for value, rows in base)
        if below <= 0:
            return None
        return float(self.of_mean(sum(self.as_mean(value) * rows for value, rows in own) / below))


class RowMetric(Metric):
    """A mean over rows, or the root of one: it can be a gate's, be resampled, and be cut by segment.

    Attributes:
        listwise: what a row adds depends on the rows beside it, so that these must be all that are judged together.
    """

    listwise: ClassVar[bool] = False

    @abstractmethod
    def row_losses(self, truth: Floats, predicted: Floats) -> Floats:
        """What each row adds before the mean, (rows,)."""

    def losses_over(self, truth: Floats, predicted: Floats, scale: Floats | None) -> Floats:
        """As `row_losses`; of a metric that is `scaled` with the scale of each row's series, (rows,), NaN for none."""
        return self.row_losses(truth, predicted)

    def of_draws(self, truth: Floats, predicted: Floats, day: npt.NDArray[np.int64], weights: Floats) -> Floats:
        """The mean among the rows of each draw of days, (draws,).

        Args:
            day: position of each row's day, (rows,).
            weights: how often each day is drawn, (draws, days).
        """
        import numpy as np

        sums = np.bincount(day, weights=self.row_losses(truth, predicted), minlength=weights.shape[1])
        means: Floats = (weights @ sums) / (weights @ np.bincount(day, minlength=weights.shape[1]))
        return means


@dataclass(frozen=True)
class Measurement:
    """One check of an output on the labelled rows of a night; the fields are those of the metrics table."""

    check: str
    n: int
    status: Literal["ok", "warning", "not_evaluated"] = "ok"
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Defect:
    """Rows of a column that must not be published.

    Attributes:
        bad: a mask, (rows,).
        what: of so many values, in words: `are not probabilities in [0, 1]`.
    """

    column: str
    bad: pa.ChunkedArray
    what: str


@dataclass(frozen=True)
class Drawing:
    """A plot of an output's quality: which, what it is named and shows, and what is drawn.

    Attributes:
        kind: part of the file's name, and where the model card puts it.
        plot: `<plot>_plot` of training/registry/plots.py.
        alt: what it shows, in words.
        arguments: of that function.
    """

    kind: str
    plot: str
    alt: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class StepErrors:
    """How good an output is by how far ahead it was said, nearest first; one number for each step, or for so many steps
    together that a drawing shows them.

    Attributes:
        first_hours, last_hours: from the night's end to the begin of the first and of the last of those steps.
        rows: with a label.
        error, baseline: mean absolute errors, in the label's unit.
        inside: share of outcomes that the interval held, which should be `wanted`; empty without an interval.
    """

    first_hours: tuple[float, ...]
    last_hours: tuple[float, ...]
    rows: tuple[int, ...]
    error: tuple[float, ...]
    baseline: tuple[float, ...]
    inside: tuple[float, ...] = ()
    wanted: float | None = None


@dataclass(frozen=True)
class EvidentlyTask:
    """What Evidently draws of an output: names of its classes, and the columns they take.

    Attributes:
        metrics: drawn one by one in place of the preset, where that holds one that means nothing here.
    """

    definition: str
    preset: str
    columns: Mapping[str, Any]
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One prediction of an output as a page shows it.

    Attributes:
        form: `number`, `percent` or `text`, how the value is written.
        about: what the value is about, in words.
        lower, upper, share: an interval, and the share of outcomes it should hold.
        beside: further numbers, by name.
    """

    value: Any
    form: Literal["number", "percent", "text"]
    about: str
    unit: str = ""
    lower: float | None = None
    upper: float | None = None
    share: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)


class OutputKind(Model, ABC):
    """An output of a model: its entry in the catalog, and what the chain does with it.

    `label` is always float64 (rows,): the label itself, or for a text its position among the classes. `constant` is
    what the baseline says of every row: a number, or one for each class.
    """

    task: ClassVar[Task]
    # Checks of the nightly performance that stand for the output beside the gate's metric.
    headlines: ClassVar[tuple[str, ...]] = ()
    # Metrics of an evaluation, in the order people read them.
    measured: ClassVar[tuple[str, ...]]
    # Words for figures of an evaluation that are no metric, or whose metric's own words do not fit.
    facts: ClassVar[Mapping[str, str]] = {}

    kind: str
    gate: str

    # ---- columns

    @abstractmethod
    def columns(self, name: str) -> dict[str, str]:
        """Published columns of an output of that name, with their types of the catalog; the first is the name."""

    def judged_columns(self, name: str) -> tuple[str, ...]:
        """The published columns that the output is judged by, all float64."""
        return tuple(self.columns(name))

    def raw_columns(self, name: str) -> tuple[str, ...]:
        """What a model computes for the output, column by column, float64."""
        return self.judged_columns(name)

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """The published columns, from what a model computed, (rows, raw columns)."""
        return {column: raw[:, position] for position, column in enumerate(self.raw_columns(name))}

    def feature_columns(self, name: str) -> tuple[str, ...]:
        """The published columns that name a feature; `published` gives its position among the model's, -1 for none."""
        return ()

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """What must not be published of rows whose judged columns are finite."""
        return []

    def drift_types(self, name: str) -> dict[str, str]:
        """Catalog types by which the drift of the published columns is measured; a string is compared by its values."""
        return self.columns(name)

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """Unit of each column that has one; `probability` is what to call that of a probability."""
        return dict.fromkeys(self.columns(name), probability) if probability else {}

    # ---- labels

    @property
    def label_values(self) -> tuple[str | int, ...]:
        """All values that the label may take; none for a label that may be any number."""
        return ()

    def label_problem(self, column: str, kind: str) -> str | None:
        """What is wrong with a label column of that catalog type, None when nothing is."""
        if kind in {"int32", "int64", "float64", "boolean"}:
            return None
        remedy = "; say in the label's `values` which number each text stands for" if kind == "string" else ""
        return f"label {column} is a {kind}, a {self.kind} output needs a number{remedy}"

    def truth(self, label: Floats) -> Floats:
        """What came true, as metrics take it, (rows,)."""
        return label

    def unlearnable(self, label: Floats, rows: str) -> str | None:
        """Why those labels teach nothing, None when they do; `rows` is what to call them."""
        return None

    # ---- judging

    def untold(self, label: Floats, night: npt.NDArray[np.int64] | None = None) -> str | None:
        """Why those labels cannot judge the output, None when they can.

        Args:
            night: position of each row's night; None where all rows are of one.
        """
        return None

    def agreement(self) -> float | None:
        """The share of `picked` rows that must be common to two versions where no label tells them apart; None: where
        none does, the champion stays.
        """
        return None

    def picked(self, judged: Floats, nights: int) -> npt.NDArray[np.bool_]:
        """The rows of so many nights that `agreement` is about."""
        raise NotImplementedError(f"{self.kind} outputs pick no rows")

    @property
    def metric(self) -> RowMetric:
        """The metric that the gate judges by."""
        metric: RowMetric = importlib.import_module("serving.metrics").row_metric(self.gate)
        return metric

    def metric_named(self, name: str) -> Metric:
        """One of the measured metrics, as it judges this output."""
        metric: Metric = importlib.import_module("serving.metrics").metric_named(name)
        return metric

    def figure_words(self) -> dict[str, str]:
        """Words for every figure of an evaluation, in the order people read them."""
        return {name: self.metric_named(name).full for name in self.measured} | dict(self.facts)

    def judged(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """Predictions as metrics take them, from at least the judged columns."""
        return columns[name]

    @property
    def scaled(self) -> bool:
        """Whether the gate's metric needs the scale of each row's series."""
        return False

    def row_losses(self, label: Floats, judged: Floats, scale: Floats | None = None) -> Floats:
        """What each row adds to the gate's metric, (rows,).

        Args:
            scale: of each row's series, (rows,), where the output is `scaled`.
        """
        return self.metric.losses_over(self.truth(label), judged, scale)

    @abstractmethod
    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """Every metric and fact that is defined on those rows, by name; `columns` may hold a `SCALE`."""

    def relevance(self, groups: npt.NDArray[Any], label: Floats) -> Floats | None:
        """How far each row should rank up within its group, not negative; None where nothing is ranked."""
        return None

    @abstractmethod
    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """The checks of a mature night, on the rows whose label came."""

    def event(self, label: Floats, judged: Floats) -> tuple[Floats, Floats] | None:
        """What happened (0 or 1) and the probability said of it, each (rows,); None where neither is said."""
        return None

    def bias(self, label: Floats, judged: Floats) -> Floats | None:
        """What was said minus what came true, (rows,); None where the one cannot lie above the other."""
        pair = self.event(label, judged)
        return judged - label if pair is None else pair[1] - pair[0]

    def interval_bounds(self, name: str) -> tuple[str, str, float] | None:
        """Columns of an interval, and the share of outcomes it should hold; None without one."""
        return None

    # ---- baseline

    @abstractmethod
    def constant(self, label: Floats, rule: str | None) -> Any:
        """What the baseline says of every row, from training labels.

        Args:
            rule: of the gate, for example `mean`; None: what suits the output.
        """

    def rate(self, label: Floats) -> Any:
        """Shares of training labels that a version's reference keeps as JSON; None where it keeps none."""
        return None

    @abstractmethod
    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> Any:
        """As `constant`, from the facts about labels that a version's reference keeps; None where they lack it."""

    @abstractmethod
    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """What the baseline says, as metrics take it.

        Args:
            by_row: a value for each row instead of the constant (NaN: the constant), None without.
        """

    @abstractmethod
    def baseline_words(self, rule: str) -> str:
        """The baseline in words: `the baseline (median of the training window)`."""

    # ---- words and pictures

    @abstractmethod
    def says(self, label: str, unit: str) -> str:
        """What the output is, in words: `the median of minutes`."""

    @abstractmethod
    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """One prediction for a page, from its published columns."""

    @abstractmethod
    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """Plots of the quality on at least one row, and notes on those that cannot be drawn."""

    def by_step(
        self, name: str, label: Floats, columns: Mapping[str, Floats], baseline: Floats, ahead_hours: Floats
    ) -> StepErrors | None:
        """How good it is by how far ahead it was said, each (rows,); None for what is not said step by step."""
        return None

    @abstractmethod
    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """What Evidently draws of labelled rows, `shown` being the name in its report; or why nothing can be drawn."""

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """Unit of what a feature adds to the output."""
        return probability_unit

    def metric_unit(self, label_unit: str) -> str:
        """Unit of the gate's metric."""
        return label_unit if self.metric.in_label_unit else ""

    def weaknesses(self, name: str, metrics: Mapping[str, float]) -> list[str]:
        """What a model card must warn of, beside errors: sentences from an evaluation, whose keys are
        `<output>/<metric>`.
        """
        return []


def known_kinds() -> tuple[str, ...]:
    """Names of all kinds, sorted."""
    package = importlib.import_module("serving.kinds")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def kind_named(name: str) -> type[OutputKind]:
    """The class of a known kind."""
    kind: type[OutputKind] = importlib.import_module(f"serving.kinds.{name}").Output
    return kind


def output_of(document: Any) -> OutputKind:
    """The output that a catalog entry describes, as YAML or JSON.

    Raises:
        ValueError: the kind is missing or unknown, or an entry does not fit it.
    """
    if isinstance(document, OutputKind):
        return document
    if not isinstance(document, Mapping):
        raise ValueError(f"an output needs a mapping of keys with a `kind`, one of {_listed()}")
    if "kind" not in document:
        raise ValueError(f"`kind` is missing, needs one of {_listed()}")
    kind = document["kind"]
    if kind not in known_kinds():
        raise ValueError(f"kind is {kind!r}, needs one of {_listed()}")
    return kind_named(kind).model_validate(dict(document))


def outputs_of(documents: Mapping[str, Any]) -> dict[str, OutputKind]:
    """The outputs of a model from its catalog entry as JSON, for example in a job or beside a stored model."""
    return {name: output_of(document) for name, document in documents.items()}


def _listed() -> str:
    return ", ".join(repr(kind) for kind in known_kinds())


Output = Annotated[SerializeAsAny[OutputKind], BeforeValidator(output_of)]
