"""A number in the label's unit, with an interval where one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement, OutputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

# Below the wanted share by more than this, the bounds of a night are called too narrow.
COVERAGE_TOLERANCE = 0.1
# Off the wanted share by more than this, the model card warns of the bounds.
_CARD_TOLERANCE = 0.05
# Evidently squares what it draws, and counts it in bins.
_LARGEST_DRAWN = 1e12
_ALIKE = 1e-12  # of the largest label
# A label below this share of the median one makes a mean of relative errors one of few rows.
_NEAR_ZERO = 0.01
# Of the rows by what is predicted: where a number is low, an interval may hold all, and half where it is high.
_THIRDS = ("lowest", "middle", "highest")
_WITHOUT_MAPE = ("MAE", "RMSE", "R2Score", "MeanError", "AbsMaxError")


class NumberOutput(OutputKind):
    """A number in the label's unit; with `interval`, also `<name>_lower` and `<name>_upper`."""

    task = "number"
    measured: ClassVar[tuple[str, ...]] = ("mae", "rmse", "mse", "median_absolute_error", "r2")
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "bias": "bias, predicted minus real",
        "coverage": "share of outcomes inside the interval",
        "width": "mean width of the interval",
        **{f"coverage_{third}": f"… of the {third} third of predictions" for third in _THIRDS},
        **{f"width_{third}": f"mean width, {third} third of predictions" for third in _THIRDS},
        "ndcg": "NDCG of a night's order",
        "mrr": "mean reciprocal rank of a night's highest",
    }

    objective: Literal["median", "mean"] = "median"
    interval: float | None = Field(None, gt=0, lt=1, description="share of outcomes the interval should hold")
    interval_bands: int | None = Field(
        None,
        ge=2,
        exclude_if=lambda bands: bands is None,  # the catalog's digest of before it could be declared
        description="bands of the predicted number, each with equally many validation rows, that are to hold the share "
        "each by itself, so that bounds are narrow where a number can be told; left out: the share holds on the whole",
    )

    @model_validator(mode="after")
    def _bands_are_of_an_interval(self) -> Self:
        if self.interval_bands is not None and self.interval is None:
            raise ValueError("interval_bands: no `interval` is there to hold its share in each; give the output one")
        return self

    def columns(self, name: str) -> dict[str, str]:
        """The number, and the bounds of an interval."""
        return dict.fromkeys((name, *(f"{name}_{bound}" for bound in ("lower", "upper") if self.interval)), "float64")

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """A lower bound above the upper."""
        import pyarrow.compute as pc

        bounds = self.interval_bounds(name)
        if bounds is None:
            return []
        lower, upper, _ = bounds
        return [Defect(lower, pc.greater(rows[lower], rows[upper]), f"lie above {upper}")]

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """The label's."""
        return dict.fromkeys(self.columns(name), label_unit)

    def interval_bounds(self, name: str) -> tuple[str, str, float] | None:
        """See `OutputKind.interval_bounds`."""
        return (f"{name}_lower", f"{name}_upper", self.interval) if self.interval else None

    # ---- judging

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """Metrics, `bias` (prediction minus truth), and of an interval `coverage` (share inside) and `width`, in the
        label's unit, of all rows and of each third of them by what is predicted.
        """
        predicted = columns[name]
        values = {metric: self.metric_named(metric).value(label, predicted) for metric in self.measured}
        defined = {metric: value for metric, value in values.items() if value is not None}
        defined["bias"] = float((predicted - label).mean())
        bounds = self.interval_bounds(name)
        if bounds is not None:
            lower, upper = columns[bounds[0]], columns[bounds[1]]
            inside, width = (label >= lower) & (label <= upper), upper - lower
            defined |= {"coverage": float(inside.mean()), "width": float(width.mean())}
            for third, rows in _thirds(predicted).items():
                defined |= {
                    f"coverage_{third}": float(inside[rows].mean()),
                    f"width_{third}": float(width[rows].mean()),
                }
        return defined

    def relevance(self, groups: npt.NDArray[Any], label: Floats) -> Floats | None:
        """How far a label lies above the lowest of its group."""
        from serving.metrics.ranking import above_lowest

        return above_lowest(groups, label)

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """`mae`, `rmse`, `bias`, and `interval_coverage` of an interval."""
        import numpy as np

        from serving.metrics.intervals import mean_and_bounds, mean_with_interval, rounded

        error = columns[name] - label
        rows = len(error)

        def mean(check: str, values: Floats) -> Measurement:
            value, lower, upper = mean_with_interval(values)
            return Measurement(check, rows, value=value, lower=lower, upper=upper)

        distance = mean("mae", np.abs(error))
        # Rounded after the root, and never below the mean distance, which the last bit of a float might say.
        root, low, high = (rounded(max(value, 0.0) ** 0.5) for value in mean_and_bounds(np.square(error)))
        root = max(root, distance.value or 0.0)
        rooted = Measurement("rmse", rows, value=root, lower=low, upper=high)
        measured = [
            distance,
            rooted if rows > 1 else Measurement("rmse", rows, value=root),
            mean("bias", error),
        ]
        bounds = self.interval_bounds(name)
        if bounds is not None:
            lower, upper, wanted = bounds
            measured.append(_coverage(wanted, (label >= columns[lower]) & (label <= columns[upper])))
        return measured

    # ---- baseline

    def constant(self, label: Floats, rule: str | None) -> float:
        """Median or mean of the labels; of a baseline row by row the median stands in where it says nothing."""
        import numpy as np

        return float(label.mean()) if (rule or self.objective) == "mean" else float(np.median(label))

    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> float | None:
        """See `OutputKind.stored_constant`."""
        value = facts.get("mean" if rule == "mean" else "median")
        return None if value is None else float(value)

    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """See `OutputKind.baseline`."""
        import numpy as np

        return np.full(rows, float(constant)) if by_row is None else np.where(np.isnan(by_row), constant, by_row)

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        said = rule.replace("_", " ") if "_" in rule else f"{rule} of the training window"
        return f"the baseline ({said})"

    # ---- words and pictures

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        interval = f", with an interval that should hold {_percent(self.interval)} of outcomes" if self.interval else ""
        return f"the {self.objective} of {label}{f' in {unit}' if unit else ''}{interval}"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        low, high = values.get(f"{name}_lower"), values.get(f"{name}_upper")
        share = self.interval if low is not None and high is not None else None
        return Answer(values.get(name), "number", label, unit, low, high, share)

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """Residuals, and how near the predictions are beside the baseline's."""
        residuals = Drawing(
            "residuals",
            "residual",
            f"Predicted minus real of {name}, against the prediction and as a histogram.",
            {"label": label, "predicted": judged, "title": f"{name}: residuals", "unit": unit},
        )
        gain = Drawing(
            "gain",
            "tolerance",
            f"Share of rows within each distance of the truth, {name} and the baseline.",
            {
                "label": label,
                "predicted": judged,
                "baseline": baseline,
                "title": f"{name}: how near, beside the baseline",
                "unit": unit,
            },
        )
        return [residuals, gain], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """See `OutputKind.evidently`."""
        import numpy as np

        if np.count_nonzero(label) < 2:
            return "fewer than two labels differ from zero"
        if np.abs(columns[name]).max() > _LARGEST_DRAWN:
            return f"some predictions lie beyond {_LARGEST_DRAWN:.0e}"
        spread = np.ptp(columns[name] - label)
        if 0 < spread < _ALIKE * np.abs(label).max():
            return "all its errors are alike but for rounding, and Evidently cannot cut them into bins"
        actual = f"{shown}: label"
        sizes = np.abs(label)
        near_zero = bool(sizes.min() < _NEAR_ZERO * np.median(sizes))
        note = f"{name} is drawn without a MAPE: it divides by labels, and some are zero or near it"
        return EvidentlyTask(
            "Regression",
            "RegressionPreset",
            {actual: label, shown: columns[name]},
            {"target": actual, "prediction": shown},
            (note,) if near_zero else (),
            _WITHOUT_MAPE if near_zero else (),
        )

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """The label's."""
        return label_unit or "the label's unit"

    def weaknesses(self, name: str, metrics: Mapping[str, float]) -> list[str]:
        """An interval that does not hold what it should."""
        if not self.interval:
            return []
        share = metrics[f"{name}/coverage"]
        if abs(share - self.interval) > _CARD_TOLERANCE:
            return [
                f"{name}: the interval should hold {_percent(self.interval)} of outcomes and held {_percent(share)}: "
                "do not plan with its bounds."
            ]
        held = {third: metrics.get(f"{name}/coverage_{third}", self.interval) for third in _THIRDS}
        off = [
            f"{_percent(part)} of the {third} third, too {'wide' if part > self.interval else 'narrow'} there"
            for third, part in held.items()
            if abs(part - self.interval) > COVERAGE_TOLERANCE
        ]
        said = f"{name}: the interval holds its {_percent(self.interval)} of outcomes on the whole, but by prediction "
        return [f"{said}{'; '.join(off)}."] if off else []


class Output(NumberOutput):
    """A number for each row."""

    kind: Literal["regression"] = "regression"
    gate: Literal["mae", "rmse"] = "mae"


def _thirds(predicted: Floats) -> dict[str, npt.NDArray[np.bool_]]:
    """The rows of each third by what is predicted; those that are predicted alike are in one, and a third may have
    none, and is left out.
    """
    import numpy as np

    third = np.searchsorted(np.quantile(predicted, (1 / 3, 2 / 3), method="lower"), predicted)
    masks = {name: third == index for index, name in enumerate(_THIRDS)}
    return {name: rows for name, rows in masks.items() if rows.any()}


def _coverage(wanted: float, inside: npt.NDArray[np.bool_]) -> Measurement:
    import math

    import numpy as np

    from serving.metrics.intervals import mean_with_interval

    share, lower, upper = mean_with_interval(inside.astype(np.float64))
    short = not math.isnan(upper) and upper < wanted - COVERAGE_TOLERANCE
    return Measurement(
        "interval_coverage",
        len(inside),
        status="warning" if short else "ok",
        value=share,
        lower=max(lower, 0.0),
        upper=min(upper, 1.0),
        threshold=wanted,
        reason=f"the interval should hold {wanted:.0%} of outcomes, it held {share:.0%}" if short else None,
    )


def _percent(share: float) -> str:
    """As people read it: two digits that count."""
    return f"{100 * share:.2g} %"
