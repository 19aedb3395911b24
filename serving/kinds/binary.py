"""The calibrated probability of one event: that the label lies above a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement, OutputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]


class EventOutput(OutputKind):
    """One number a row that is higher the likelier, or the stranger: the event is that the label lies above `above`."""

    above: float

    # ---- labels

    def truth(self, label: Floats) -> Floats:
        """1 where the label lies above the bound, else 0."""
        import numpy as np

        return np.where(label > self.above, 1.0, 0.0)

    # ---- judging

    def relevance(self, groups: npt.NDArray[Any], label: Floats) -> Floats:
        """1 for an event, else 0."""
        return self.truth(label)

    # ---- baseline

    def constant(self, label: Floats, rule: str | None) -> float:
        """The share of events."""
        return float(self.truth(label).mean())

    def rate(self, label: Floats) -> float:
        """The share of events."""
        return self.constant(label, None)

    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> float | None:
        """See `OutputKind.stored_constant`."""
        rate = facts.get("rates", {}).get(name)
        return None if rate is None else float(rate)

    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """One number for all rows, the share of events: a value of the label is none."""
        import numpy as np

        return np.full(rows, float(constant))

    # ---- pictures

    def gain(self, name: str, events: str, label: Floats, judged: Floats, *, said: str = "probability") -> Drawing:
        """The share of events among the rows with the highest numbers; `events` and `said` are what to call them."""
        return Drawing(
            "gain",
            "gain",
            f"Share of the {events} among the rows with the highest {name}, beside guessing.",
            {
                "truth": self.truth(label),
                "probability": judged,
                "title": f"{name}: gain over the baseline",
                "said": said,
            },
        )

    def classification(self, shown: str, label: Floats, judged: Floats) -> EvidentlyTask:
        """What Evidently draws of labels of both kinds, `shown` being the output's name in its report."""
        actual = f"{shown}: label above {self.above:g}"
        return EvidentlyTask(
            "BinaryClassification",
            "ClassificationPreset",
            {actual: self.truth(label).astype("int64"), shown: judged},
            {"target": actual, "prediction_probas": shown, "pos_label": 1},
        )


class Output(EventOutput):
    """The calibrated probability that the label lies above `above`."""

    task = "event"
    headlines = ("accuracy",)
    measured = ("brier", "log_loss", "roc_auc", "average_precision", "accuracy", "precision", "recall", "f1")
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "rate": "share of events",
        "predicted_rate": "predicted share of events",
        "ndcg": "NDCG of a night's order",
        "mrr": "mean reciprocal rank of a night's highest",
    }

    kind: Literal["binary"] = "binary"
    gate: Literal["brier", "log_loss"] = "brier"

    def columns(self, name: str) -> dict[str, str]:
        """The probability."""
        return {name: "float64"}

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """A number that is no probability."""
        import pyarrow.compute as pc

        values = rows[name]
        return [Defect(name, pc.or_(pc.less(values, 0.0), pc.greater(values, 1.0)), "are not probabilities in [0, 1]")]

    # ---- labels

    def unlearnable(self, label: Floats, rows: str) -> str | None:
        """Labels that all lie on one side."""
        truth = self.truth(label)
        if truth.min() < truth.max():
            return None
        return f"all {len(truth)} {rows} lie {'above' if truth[0] else 'at or below'} {self.above:g}"

    # ---- judging

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """Metrics of the probability and of the decision it becomes at 0.5; `rate` of events and `predicted_rate`."""
        from serving.metrics import metric_named

        truth, probability = self.truth(label), columns[name]
        values = {metric: metric_named(metric).value(truth, probability) for metric in self.measured}
        defined = {metric: value for metric, value in values.items() if value is not None}
        return defined | {"predicted_rate": float(probability.mean()), "rate": float(truth.mean())}

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """`brier`, `log_loss`, `bias`, `accuracy` (a probability of at least 0.5 says yes), `auc`."""
        from serving.metrics import metric_named, row_metric
        from serving.metrics.decided import decided
        from serving.metrics.intervals import mean_with_interval, rounded, share_with_interval

        truth, probability = self.truth(label), columns[name]
        rows = len(truth)
        losses = {metric: row_metric(metric).row_losses(truth, probability) for metric in ("brier", "log_loss")}
        measured = []
        for check, values in (losses | {"bias": probability - truth}).items():
            value, lower, upper = mean_with_interval(values)
            measured.append(Measurement(check, rows, value=value, lower=lower, upper=upper))
        share, low, high = share_with_interval(int((decided(probability) == truth).sum()), rows)
        measured.append(Measurement("accuracy", rows, value=share, lower=low, upper=high))
        area = metric_named("roc_auc").value(truth, probability)
        if area is None:
            side = "above" if truth.any() else "not above"
            why = f"all {rows:,} rows came out alike ({side} {self.above:g}), so nothing can be ranked"
            return [*measured, Measurement("auc", rows, status="not_evaluated", reason=why)]
        return [*measured, Measurement("auc", rows, value=rounded(area))]

    def event(self, label: Floats, judged: Floats) -> tuple[Floats, Floats]:
        """See `OutputKind.event`."""
        return self.truth(label), judged

    # ---- baseline

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        return "the baseline (rate of the training window)"

    # ---- words and pictures

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        return f"the probability that {label} lies above {self.above:g}{f' {unit}' if unit else ''}"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        return Answer(values.get(name), "percent", f"that {label} lies above {self.above:g} {unit}".rstrip())

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """Calibration, decisions, and gain where there is an event."""
        from serving.metrics.decided import THRESHOLD

        truth = self.truth(label)
        event = f"above {self.above:g}" + (f" {unit}" if unit else "")
        calibration = Drawing(
            "calibration",
            "calibration",
            f"How often the event came true for each predicted {name}.",
            {"truth": truth, "probability": judged, "title": f"{name}: calibration"},
        )
        confusion = Drawing(
            "confusion",
            "confusion",
            f"Decisions of {name} at the threshold {THRESHOLD:g} against what happened.",
            {
                "truth": truth,
                "probability": judged,
                "title": f"{name}: decisions at {THRESHOLD:g}",
                "threshold": THRESHOLD,
                "event": event,
            },
        )
        if not truth.any():
            return [calibration, confusion], [f"{name}: no test row lies {event}, so there is no gain to draw"]
        return [calibration, confusion, self.gain(name, "events", label, judged)], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """See `OutputKind.evidently`."""
        truth = self.truth(label)
        if truth.min() == truth.max():
            return f"all {len(truth):,} rows came out alike, so nothing can be ranked"
        return self.classification(shown, label, columns[name])
