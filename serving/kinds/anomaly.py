"""How strange a row is, learned without labels; labels judge it where they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement
from serving.kinds.binary import EventOutput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

SEVERITIES = ("low", "medium", "high", "critical")
# Anomalies of one night hang together: a bound from fewer nights than these would claim to be certain.
_LEAST_NIGHTS = 3


class Output(EventOutput):
    """The score in [0, 1], the share of validation rows that are less strange; `<name>_is_anomaly` from a threshold on,
    `<name>_type`, the input that makes a flagged row most strange, `<name>_severity`.

    Threshold and the bounds of the severities are chosen on validation rows and kept with the version.
    """

    task = "anomaly"
    measured = ("average_precision_loss", "average_precision", "roc_auc", "precision", "recall", "f1")
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "precision": "share of flagged rows that were anomalies",
        "recall": "share of anomalies that were flagged",
        "f1": "F1 of the flag",
        "flagged": "share of rows that were flagged",
        "rate": "share of anomalies",
        "ndcg": "NDCG of a night's order",
        "mrr": "mean reciprocal rank of a night's strangest",
    }

    kind: Literal["anomaly"] = "anomaly"
    above: float = Field(0.0, description="a row was an anomaly where its label lies above it")
    share: float | None = Field(None, gt=0, lt=1, description="share of validation rows to flag")
    alarms_per_night: float | None = Field(None, gt=0, description="rows to flag in a night, on average of validation")
    severity: tuple[float, float, float] = Field(
        (0.9, 0.99, 0.999), description="shares of validation rows that are less than medium, high, critical"
    )
    stable: float = Field(
        0.8,
        gt=0,
        le=1,
        description="without labels of both kinds: the share of strangest rows that the champion must find as well",
    )
    gate: Literal["average_precision_loss"] = "average_precision_loss"

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if (self.share is None) == (self.alarms_per_night is None):
            raise ValueError("needs either `share` (0.01: flag one row in a hundred) or `alarms_per_night` (3)")
        if not 0 < self.severity[0] < self.severity[1] < self.severity[2] < 1:
            raise ValueError(f"severity: needs three rising shares between 0 and 1, has {list(self.severity)}")
        return self

    def budget(self, rows: int, nights: int) -> int:
        """How many of so many rows in so many nights may be flagged."""
        return min(rows, int(rows * self.share if self.share is not None else nights * (self.alarms_per_night or 0.0)))

    # ---- columns

    def columns(self, name: str) -> dict[str, str]:
        """Score, flag, the input behind a flag, severity."""
        kinds = ("float64", "boolean", "string", "string")
        return dict(zip(self.raw_columns(name), kinds, strict=True))

    def judged_columns(self, name: str) -> tuple[str, ...]:
        """Score and flag."""
        return (name, f"{name}_is_anomaly")

    def raw_columns(self, name: str) -> tuple[str, ...]:
        """Score; 1 where flagged; position of the input, -1 where not flagged; position of the severity."""
        return (name, f"{name}_is_anomaly", f"{name}_type", f"{name}_severity")

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """See `OutputKind.published`."""
        import numpy as np
        import pyarrow as pa

        score, flag, kind, severity = self.raw_columns(name)
        return {
            score: raw[:, 0],
            flag: raw[:, 1] > 0.5,
            kind: np.rint(raw[:, 2]).astype(np.int64),
            severity: pa.array(SEVERITIES).take(pa.array(np.rint(raw[:, 3]).astype(np.int64))),
        }

    def feature_columns(self, name: str) -> tuple[str, ...]:
        """The input behind a flag."""
        return (f"{name}_type",)

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """A score outside [0, 1], an unknown severity."""
        import pyarrow as pa
        import pyarrow.compute as pc

        outside = pc.or_(pc.less(rows[name], 0.0), pc.greater(rows[name], 1.0))
        unknown = pc.invert(pc.is_in(rows[f"{name}_severity"], value_set=pa.array(SEVERITIES)))
        return [
            Defect(name, outside, "are not scores in [0, 1]"),
            Defect(f"{name}_severity", unknown, f"are none of {', '.join(SEVERITIES)}"),
        ]

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """None has one."""
        return {}

    # ---- judging

    def untold(self, label: Floats, night: npt.NDArray[np.int64] | None = None) -> str | None:
        """Labels of one kind alone; anomalies in too few nights."""
        import numpy as np

        came = self.truth(label) > 0.5
        if not came.any():
            return f"none of {len(came):,} labelled rows was an anomaly"
        if came.all():
            return f"all {len(came):,} labelled rows were anomalies"
        if night is None or len(np.unique(night[came])) >= _LEAST_NIGHTS:
            return None
        nights = len(np.unique(night[came]))
        return f"anomalies came in {nights} of {len(np.unique(night)):,} nights, {_LEAST_NIGHTS} are needed"

    def agreement(self) -> float | None:
        """See `OutputKind.agreement`."""
        return self.stable

    def picked(self, judged: Floats, nights: int) -> npt.NDArray[np.bool_]:
        """As many of the strangest rows as may be flagged, at least one."""
        import numpy as np

        kept = max(1, self.budget(len(judged), nights))
        chosen: npt.NDArray[np.bool_] = judged >= np.partition(judged, len(judged) - kept)[len(judged) - kept]
        return chosen

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """`flagged` and `rate`; where labels of both kinds came, metrics of the score's order and of the flag."""
        truth = self.truth(label)
        facts = {"flagged": float(columns[f"{name}_is_anomaly"].mean()), "rate": float(truth.mean())}
        return facts if self.untold(label) else self._figures(name, truth, columns) | facts

    def _figures(self, name: str, truth: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        from serving.metrics import metric_named

        of_flag = {"precision", "recall", "f1"}
        figures = {
            metric: metric_named(metric).value(truth, columns[f"{name}_is_anomaly" if metric in of_flag else name])
            for metric in self.measured
        }
        return {metric: float(value) for metric, value in figures.items() if value is not None}

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """`flagged`; `average_precision_loss`, `average_precision`, `auc`, `precision` and `recall` of a night whose
        labels tell.
        """
        from serving.metrics.intervals import rounded, share_with_interval

        rows, flags = len(label), int(columns[f"{name}_is_anomaly"].sum())
        share, low, high = share_with_interval(flags, rows)
        measured = [Measurement("flagged", rows, value=share, lower=low, upper=high)]
        names = {"average_precision_loss": "average_precision_loss", "average_precision": "average_precision"}
        names |= {"auc": "roc_auc", "precision": "precision", "recall": "recall"}
        why = self.untold(label)
        figures = {} if why else self._figures(name, self.truth(label), columns)
        for check, metric in names.items():
            if metric in figures:
                measured.append(Measurement(check, rows, value=rounded(figures[metric])))
            else:
                measured.append(Measurement(check, rows, status="not_evaluated", reason=why or "no row was flagged"))
        return measured

    def bias(self, label: Floats, judged: Floats) -> Floats | None:
        """None: a score orders rows, it is no probability that could be too high."""
        return None

    # ---- words and pictures

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        return "the baseline (one score for all rows)"

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        flagged = f"{100 * self.share:g} % of rows" if self.share else f"{self.alarms_per_night:g} rows a night"
        return f"how strange a row is, without looking at {label}: the strangest are flagged, {flagged} on validation"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        flagged = values.get(f"{name}_is_anomaly")
        made_by = f"an anomaly by {values.get(f'{name}_type')}" if flagged else "no anomaly"
        return Answer(values.get(name), "number", f"{made_by}, severity {values.get(f'{name}_severity')}")

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """Precision over recall, and the share of anomalies among the strangest rows."""
        why = self.untold(label)
        if why is not None:
            return [], [f"{name}: {why}, so there is no precision to draw"]
        detection = Drawing(
            "detection",
            "precision_recall",
            f"Share of anomalies among the rows that {name} calls strangest, over the share of anomalies found.",
            {"truth": self.truth(label), "score": judged, "title": f"{name}: precision over recall"},
        )
        return [detection, self.gain(name, "anomalies", label, judged, said="score")], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """See `OutputKind.evidently`."""
        return self.untold(label) or self.classification(shown, label, columns[name])

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """Of the strangeness behind the score."""
        return probability_unit
