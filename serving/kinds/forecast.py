"""A number for each step of a horizon, with an interval: what is to come of a series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from config.catalog.output import SCALE, Defect, Drawing, Measurement, Metric, RowMetric, StepErrors
from serving.kinds.regression import NumberOutput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]


# So many points of a drawing at most: more steps are put together.
_STEPS_DRAWN = 48


class Output(NumberOutput):
    """A number in the label's unit for each step; with `interval`, also `<name>_lower` and `<name>_upper`.

    With `gate: pinball` the bounds are judged with the number: metrics take (rows, 3), lower, number and upper. A
    baseline says one number a row, which stands for all three.
    """

    measured = (*NumberOutput.measured, "pinball", "mase")
    facts = {name: words for name, words in NumberOutput.facts.items() if name not in {"ndcg", "mrr"}}  # noqa: RUF012

    kind: Literal["forecast"] = "forecast"
    gate: Literal["mae", "pinball", "mase"] = "mae"
    minimum: float | None = Field(
        None, description="no number below it is published: 0 for what is counted; lower ones become it"
    )

    @model_validator(mode="after")
    def _needs_interval(self) -> Self:
        if self.gate == "pinball" and (self.interval is None or self.objective != "median"):
            raise ValueError("gate: pinball judges quantiles; give the output an `interval`, and `objective: median`")
        return self

    # ---- columns

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """As computed, and nothing below the minimum."""
        import numpy as np

        return super().published(name, raw if self.minimum is None else np.maximum(raw, self.minimum))

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """A lower bound above the upper, and a number below the minimum."""
        import pyarrow.compute as pc

        defects = super().defects(name, rows)
        if self.minimum is not None:
            what = f"lie below the minimum {self.minimum:g}"
            defects += [Defect(column, pc.less(rows[column], self.minimum), what) for column in self.columns(name)]
        return defects

    # ---- judging

    @property
    def scaled(self) -> bool:
        """With `gate: mase`."""
        return self.gate == "mase"

    @property
    def metric(self) -> RowMetric:
        """The metric that the gate judges by: of an interval the pinball loss of its own quantiles."""
        return self._pinball() if self.gate == "pinball" else super().metric

    def judged(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """The numbers, (rows,); with `gate: pinball` lower, number and upper, (rows, 3)."""
        return self._quantiles(name, columns) if self.gate == "pinball" else super().judged(name, columns)

    def relevance(self, groups: npt.NDArray[Any], label: Floats) -> None:
        """Nothing is ranked: steps have their order."""
        return None

    def bias(self, label: Floats, judged: Floats) -> Floats:
        """The number minus what came true."""
        return _number(judged) - label

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """As of any number, the pinball loss (of the number alone its absolute error), and of scaled rows `mase`."""
        figures = super().evaluation(name, label, columns)
        figures["pinball"] = float(self._pinball().row_losses(label, self._quantiles(name, columns)).mean())
        if self.scaled and SCALE in columns:
            figures["mase"] = float(self.row_losses(label, columns[name], columns[SCALE]).mean())
        return figures

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """As of any number, `pinball` of an interval, and `mase` where the gate judges by it."""
        from serving.metrics.intervals import mean_with_interval

        measured, losses = super().measurements(name, label, columns), {}
        if self.interval is not None:
            losses["pinball"] = self._pinball().row_losses(label, self._quantiles(name, columns))
        if self.scaled:
            losses["mase"] = self.row_losses(label, columns[name], columns[SCALE])
        for check, of_rows in losses.items():
            value, lower, upper = mean_with_interval(of_rows)
            measured.append(Measurement(check, len(of_rows), value=value, lower=lower, upper=upper))
        return measured

    # ---- baseline, pictures

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        words = super().baseline_words(rule)
        return f"{words}, one number for all quantiles" if self.gate == "pinball" else words

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """As of any number."""
        return super().drawings(name, label, _number(judged), baseline, unit)

    def by_step(
        self, name: str, label: Floats, columns: Mapping[str, Floats], baseline: Floats, ahead_hours: Floats
    ) -> StepErrors:
        """See `OutputKind.by_step`."""
        import numpy as np

        steps, position = np.unique(ahead_hours, return_inverse=True)
        point = position * min(_STEPS_DRAWN, len(steps)) // len(steps)
        rows = np.bincount(point)

        def means(values: npt.NDArray[Any]) -> tuple[float, ...]:
            return tuple(float(f"{mean:.6g}") for mean in np.bincount(point, weights=values) / rows)

        bounds = self.interval_bounds(name)
        inside: tuple[float, ...] = ()
        if bounds is not None:
            inside = means((label >= columns[bounds[0]]) & (label <= columns[bounds[1]]))
        at = np.arange(len(steps)) * len(rows) // len(steps)
        return StepErrors(
            first_hours=tuple(float(steps[at == number].min()) for number in range(len(rows))),
            last_hours=tuple(float(steps[at == number].max()) for number in range(len(rows))),
            rows=tuple(int(count) for count in rows),
            error=means(np.abs(columns[name] - label)),
            baseline=means(np.abs(baseline - label)),
            inside=inside,
            wanted=self.interval,
        )

    def metric_named(self, name: str) -> Metric:
        """See `OutputKind.metric_named`."""
        return self._pinball() if name == "pinball" else super().metric_named(name)

    def _pinball(self) -> RowMetric:
        from serving.metrics.pinball import PinballLoss

        tail = (1.0 - self.interval) / 2.0 if self.interval else 0.5
        return PinballLoss((tail, 0.5, 1.0 - tail))

    def _quantiles(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """Lower bound, number and upper bound, (rows, 3); the number alone without an interval."""
        import numpy as np

        bounds = self.interval_bounds(name)
        if bounds is None:
            return columns[name]
        return np.column_stack([columns[bounds[0]], columns[name], columns[bounds[1]]])


def _number(judged: Floats) -> Floats:
    """The number itself, where its bounds stand beside it."""
    return judged if judged.ndim == 1 else judged[:, 1]
