"""Which of several classes the label will be, with a calibrated probability for each."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, StrictInt, StrictStr, model_validator

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement, OutputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

# Probabilities of one row may miss 1 by so much: they are sums of many roundings.
_SUM_TOLERANCE = 1e-6


class Output(OutputKind):
    """The class said, `<name>_probability` of it, and `<name>_<class>`, the probability of each class.

    Metrics take truth as the position of the class, and probabilities as (rows, classes).
    """

    task = "classes"
    headlines = ("accuracy",)
    measured = ("log_loss", "brier", "macro_f1_loss")
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "macro_f1": "macro F1, each class counting alike",
        "accuracy": "share of classes that were said right",
        "predicted_accuracy": "mean probability of the class said",
    }

    kind: Literal["multiclass"] = "multiclass"
    classes: tuple[StrictStr, ...] | tuple[StrictInt, ...] = Field(
        min_length=2, max_length=100, description="every value of the label column, texts or whole numbers"
    )
    gate: Literal["log_loss", "brier", "macro_f1_loss"] = "log_loss"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        columns = [_column("", value) for value in self.classes]
        for value, column in zip(self.classes, columns, strict=True):
            if columns.count(column) > 1 or column in {"_", "_probability"}:
                raise ValueError(
                    f"classes: {value!r} would be published as <output>{column}, which is taken or says nothing; "
                    "spell the classes so that their letters and digits differ"
                )
        return self

    # ---- columns

    def columns(self, name: str) -> dict[str, str]:
        """The class, its probability, and the probability of each."""
        label = "string" if self._texts else "int64"
        return {name: label} | dict.fromkeys((f"{name}_probability", *self.judged_columns(name)), "float64")

    def judged_columns(self, name: str) -> tuple[str, ...]:
        """The probability of each class."""
        return tuple(_column(name, value) for value in self.classes)

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """The most probable class, of equal ones the first; `raw` holds the probability of each."""
        import numpy as np
        import pyarrow as pa

        said = raw.argmax(axis=1)
        kind = pa.string() if self._texts else pa.int64()
        return {
            name: pa.array(self.classes, kind).take(pa.array(said)),
            f"{name}_probability": raw[np.arange(len(raw)), said],
            **{column: raw[:, position] for position, column in enumerate(self.judged_columns(name))},
        }

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """Numbers that are not probabilities, probabilities that do not add up to 1, a class that is none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        defects = []
        total: Any = 0.0
        for column in (f"{name}_probability", *self.judged_columns(name)):
            bad = pc.fill_null(pc.or_(pc.less(rows[column], 0.0), pc.greater(rows[column], 1.0)), True)
            defects.append(Defect(column, bad, "are not probabilities in [0, 1]"))
        for column in self.judged_columns(name):
            total = pc.add(total, rows[column])
        off = pc.greater(pc.abs(pc.subtract(total, 1.0)), _SUM_TOLERANCE)
        defects.append(
            Defect(self.judged_columns(name)[0], off, "belong to rows whose probabilities do not add up to 1")
        )
        known = pc.is_in(rows[name], value_set=pa.array(self.classes, rows[name].type))
        return [*defects, Defect(name, pc.invert(known), f"are none of {self._listed}")]

    def drift_types(self, name: str) -> dict[str, str]:
        """As published; a class is compared by its values, also where it is a number."""
        return self.columns(name) | {name: "string"}

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """That of a probability; a class has none."""
        units = super().units(name, label_unit, probability=probability)
        units.pop(name, None)
        return units

    # ---- labels

    @property
    def label_values(self) -> tuple[str | int, ...]:
        """The classes."""
        return self.classes

    def label_problem(self, column: str, kind: str) -> str | None:
        """Texts need a text column, whole numbers one of whole numbers."""
        wanted = {"string"} if self._texts else {"int32", "int64"}
        if kind in wanted:
            return None
        return f"label {column} is a {kind}, the classes {self._listed} need {' or '.join(sorted(wanted))}"

    def truth(self, label: Floats) -> Floats:
        """Position of each label's class."""
        import numpy as np

        if self._texts:
            return label
        order = np.argsort(self.classes)
        position = np.searchsorted(np.array(self.classes, np.float64)[order], label)
        truth: Floats = order[np.clip(position, 0, len(order) - 1)].astype(np.float64)
        return truth

    def unlearnable(self, label: Floats, rows: str) -> str | None:
        """Labels that lack a class."""
        import numpy as np

        counts = np.bincount(self.truth(label).astype(np.int64), minlength=len(self.classes))
        absent = [repr(self.classes[position]) for position in np.flatnonzero(counts == 0)]
        return f"none of {len(label)} {rows} is of class {', '.join(absent)}" if absent else None

    # ---- judging

    def judged(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """Probabilities, (rows, classes)."""
        import numpy as np

        return np.column_stack([columns[column] for column in self.judged_columns(name)])

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """Metrics of the probabilities and of the class said; `macro_f1`, `accuracy`, and `predicted_accuracy`, the
        mean probability of the class said.
        """
        from serving.metrics import metric_named

        truth, judged = self.truth(label), self.judged(name, columns)
        values = {metric: metric_named(metric).value(truth, judged) for metric in self.measured}
        defined = {metric: value for metric, value in values.items() if value is not None}
        came, said = self.event(label, judged)
        shares = {"accuracy": float(came.mean()), "predicted_accuracy": float(said.mean())}
        return defined | {"macro_f1": 1.0 - defined["macro_f1_loss"]} | shares

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """`log_loss`, `brier`, `bias` (probability of the class said minus share right), `accuracy`, `macro_f1`, and
        `macro_f1_loss` where the gate judges by it.
        """
        from serving.metrics import row_metric
        from serving.metrics.intervals import mean_with_interval, rounded, share_with_interval

        truth, judged = self.truth(label), self.judged(name, columns)
        rows = len(truth)
        came, said = self.event(label, judged)
        losses = {metric: row_metric(metric).row_losses(truth, judged) for metric in ("log_loss", "brier")}
        measured = []
        for check, values in (losses | {"bias": said - came}).items():
            value, lower, upper = mean_with_interval(values)
            measured.append(Measurement(check, rows, value=value, lower=lower, upper=upper))
        share, low, high = share_with_interval(int(came.sum()), rows)
        measured.append(Measurement("accuracy", rows, value=share, lower=low, upper=high))
        loss = float(row_metric("macro_f1_loss").row_losses(truth, judged).mean())
        scores = {"macro_f1": 1.0 - loss} | ({"macro_f1_loss": loss} if self.gate == "macro_f1_loss" else {})
        if truth.min() == truth.max():
            only = self.classes[int(truth[0])]
            why = f"all {rows:,} rows came out as {only}, so no class is told from another"
            return measured + [Measurement(check, rows, status="not_evaluated", reason=why) for check in scores]
        return measured + [Measurement(check, rows, value=rounded(score)) for check, score in scores.items()]

    def event(self, label: Floats, judged: Floats) -> tuple[Floats, Floats]:
        """That the class said comes true, and its probability."""
        import numpy as np

        from serving.metrics.decided import decided

        said = decided(judged)
        return (said == self.truth(label)).astype(np.float64), judged[np.arange(len(judged)), said]

    # ---- baseline

    def constant(self, label: Floats, rule: str | None) -> list[float]:
        """The share of each class."""
        import numpy as np

        counts = np.bincount(self.truth(label).astype(np.int64), minlength=len(self.classes))
        return [float(share) for share in counts / counts.sum()]

    def rate(self, label: Floats) -> list[float]:
        """The share of each class."""
        return self.constant(label, None)

    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> list[float] | None:
        """See `OutputKind.stored_constant`."""
        shares = facts.get("rates", {}).get(name)
        return None if shares is None else [float(share) for share in shares]

    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """The same shares for all rows, (rows, classes)."""
        import numpy as np

        return np.tile(np.asarray(constant, np.float64), (rows, 1))

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        return "the baseline (frequencies of the classes in the training window)"

    # ---- words and pictures

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        return f"which of {self._listed} {label} will be, with the probability of each"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        beside = {
            str(value): float(values[column])
            for value, column in zip(self.classes, self.judged_columns(name), strict=True)
            if values.get(column) is not None
        }
        return Answer(values.get(name), "text", label, beside=beside)

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """Calibration of the class said, and what was said of each class that came true."""
        from serving.metrics.decided import decided

        came, said = self.event(label, judged)
        calibration = Drawing(
            "calibration",
            "calibration",
            f"How often the class that {name} said came true, for each probability of it.",
            {"truth": came, "probability": said, "title": f"{name}: calibration of the class said"},
        )
        confusion = Drawing(
            "confusion",
            "classes",
            f"Classes that {name} said against those that came true.",
            {
                "truth": self.truth(label).astype("int64"),
                "said": decided(judged),
                "classes": [str(value) for value in self.classes],
                "title": f"{name}: classes said",
            },
        )
        return [calibration, confusion], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """See `OutputKind.evidently`."""
        import numpy as np

        from serving.metrics.decided import decided

        truth = self.truth(label).astype(np.int64)
        said = decided(self.judged(name, columns))
        # Evidently writes values into scripts as they are.
        names = np.array([html.escape(str(value)) for value in self.classes], dtype=object)
        actual = f"{shown}: label"
        return EvidentlyTask(
            "MulticlassClassification",
            "ClassificationPreset",
            {actual: names[truth], shown: names[said]},
            {"target": actual, "prediction_labels": shown},
        )

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """Of the score of the class said."""
        return f"{probability_unit} of the class said"

    @property
    def _texts(self) -> bool:
        return isinstance(self.classes[0], str)

    @property
    def _listed(self) -> str:
        return ", ".join(str(value) for value in self.classes)


def _column(name: str, value: str | int) -> str:
    """The published column of a class: its letters and digits, all others as one underscore."""
    return f"{name}_{re.sub(r'[^a-z0-9]+', '_', str(value).lower()).strip('_')}"
