"""Decisions to take, what they are expected to cost, and what they cost under each outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement, OutputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]


class Output(OutputKind):
    """A row's decisions, one after another: `<name>_action_1` … `<name>_action_<decisions>`.

    `<name>` is what they are expected to cost, `<name>_baseline` what the baseline's decisions are, and
    `<name>_infeasible` is 1 where no decisions keep to the row's limits. The label is what comes true later and decides
    on the cost, whoever decided: so `<name>_if_1` … are the costs of the decisions if it comes out as each of
    `outcomes`, and `<name>_baseline_if_1` … the baseline's. Metrics take (rows, 2 * outcomes), both side by side, and
    truth as the label's place among `outcomes`.
    """

    task = "decision"
    headlines = ("saving",)
    measured = ("relative_cost",)
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "saving": "share of the baseline's whole cost that the decisions saved",
        "cost": "mean cost of the decisions",
        "baseline_cost": "mean cost of the baseline's decisions",
        "dearer": "share of rows whose decisions cost more than the baseline's",
        "infeasible": "share of rows whose limits no decisions keep to",
    }

    kind: Literal["action"] = "action"
    gate: Literal["relative_cost"] = "relative_cost"
    decisions: int = Field(ge=1, le=200, description="how many are taken for a row, one after another")
    outcomes: tuple[float, ...] = Field(
        min_length=2, max_length=50, description="values of the label that costs are given for, rising"
    )
    unit: str = Field("", description="of a cost")
    decision_unit: str = Field("", description="of a decision")

    @field_validator("outcomes")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(value)):
            raise ValueError(f"must rise from value to value, is {list(value)}")
        return value

    # ---- columns

    def columns(self, name: str) -> dict[str, str]:
        """The costs expected, whether the limits can be kept, the decisions, and the costs under each outcome."""
        expected = {name: "float64", f"{name}_baseline": "float64", self._infeasible(name): "int64"}
        return expected | dict.fromkeys((*self._actions(name), *self._costs(name)), "float64")

    def judged_columns(self, name: str) -> tuple[str, ...]:
        """The costs under each outcome, and whether the limits can be kept."""
        return (self._infeasible(name), *self._costs(name))

    def raw_columns(self, name: str) -> tuple[str, ...]:
        """All that is published."""
        return tuple(self.columns(name))

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """As computed; whether the limits can be kept as a whole number."""
        import numpy as np

        columns = super().published(name, raw)
        return columns | {self._infeasible(name): columns[self._infeasible(name)].astype(np.int64)}

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """Costs that are not above zero, and decisions that are no numbers."""
        import numpy as np
        import pyarrow as pa

        costs = np.column_stack([rows[column].to_numpy() for column in (name, f"{name}_baseline", *self._costs(name))])
        actions = np.column_stack([rows[column].to_numpy() for column in self._actions(name)])
        return [
            Defect(
                name, pa.chunked_array([~(costs > 0).all(axis=1)]), "belong to decisions with a cost not above zero"
            ),
            Defect(
                self._actions(name)[0],
                pa.chunked_array([~np.isfinite(actions).all(axis=1)]),
                "belong to decisions of which one is no finite number",
            ),
        ]

    def drift_types(self, name: str) -> dict[str, str]:
        """The costs expected, and the first decision."""
        return dict.fromkeys((name, f"{name}_baseline", self._actions(name)[0]), "float64")

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """Of costs and of decisions, as the catalog says."""
        costs = dict.fromkeys((name, f"{name}_baseline", *self._costs(name)), self.unit)
        units = costs | dict.fromkeys(self._actions(name), self.decision_unit)
        return {column: unit for column, unit in units.items() if unit}

    def _infeasible(self, name: str) -> str:
        return f"{name}_infeasible"

    def _actions(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}_action_{number}" for number in range(1, self.decisions + 1))

    def _costs(self, name: str) -> tuple[str, ...]:
        numbers = range(1, len(self.outcomes) + 1)
        return tuple(f"{who}_if_{number}" for who in (name, f"{name}_baseline") for number in numbers)

    # ---- labels

    def truth(self, label: Floats) -> Floats:
        """The label's place among `outcomes`, between two by its share of the way."""
        import numpy as np

        return np.interp(label, self.outcomes, np.arange(len(self.outcomes), dtype=np.float64))

    # ---- judging

    def judged(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """Costs under each outcome, of the decisions and of the baseline's, (rows, 2 * outcomes)."""
        import numpy as np

        return np.column_stack([columns[column] for column in self._costs(name)])

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """The relative cost, and all facts."""
        from serving.metrics.relative_cost import costs

        truth, judged = self.truth(label), self.judged(name, columns)
        ours, baseline = costs(truth, judged)
        return {
            "relative_cost": float((ours / baseline).mean()),
            "saving": 1.0 - float(ours.sum() / baseline.sum()),
            "cost": float(ours.mean()),
            "baseline_cost": float(baseline.mean()),
            "dearer": float((ours > baseline).mean()),
            "infeasible": float(columns[self._infeasible(name)].mean()),
        }

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """`relative_cost`, `saving`, `dearer` and `infeasible`, which warns of rows that ask for the impossible."""
        import numpy as np

        from serving.metrics.intervals import mean_with_interval, rounded, share_with_interval
        from serving.metrics.relative_cost import costs

        ours, baseline = costs(self.truth(label), self.judged(name, columns))
        rows, impossible = len(label), int(columns[self._infeasible(name)].sum())
        value, lower, upper = mean_with_interval(ours / baseline)
        measured = [
            Measurement("relative_cost", rows, value=value, lower=lower, upper=upper),
            Measurement("saving", rows, value=rounded(1.0 - float(ours.sum() / baseline.sum()))),
        ]
        for check, count in (("dearer", int(np.count_nonzero(ours > baseline))), ("infeasible", impossible)):
            value, lower, upper = share_with_interval(count, rows)
            measured.append(Measurement(check, rows, value=value, lower=lower, upper=upper))
        if impossible:
            why = f"no decisions keep to the limits of {impossible:,} of {rows:,} rows"
            measured[-1] = replace(measured[-1], status="warning", reason=why)
        return measured

    def bias(self, label: Floats, judged: Floats) -> Floats | None:
        """None: a decision is neither above nor below what came true."""
        return None

    # ---- baseline

    def constant(self, label: Floats, rule: str | None) -> float:
        """1: each row has the costs of its own baseline beside it."""
        return 1.0

    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> float:
        """See `OutputKind.stored_constant`."""
        return 1.0

    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """Decisions that cost what the baseline's do, whatever comes, (rows, 2 * outcomes)."""
        import numpy as np

        return np.full((rows, 2 * len(self.outcomes)), float(constant))

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        return "the baseline (the decisions of the same row that need no model)"

    # ---- words and pictures

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        many = "decision" if self.decisions == 1 else f"{self.decisions} decisions"
        return f"the {many} to take, and the cost{f' in {self.unit}' if self.unit else ''} for each {label}"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        actions = [values.get(column) for column in self._actions(name)]
        beside = {
            "expected cost": values.get(name),
            "expected cost of the baseline": values.get(f"{name}_baseline"),
        }
        about = f"decisions in {self.decision_unit}, in order" if self.decision_unit else "decisions, in order"
        if values.get(self._infeasible(name)):
            about += "; the limits cannot be kept"
        return Answer(
            ", ".join(f"{action:.4g}" for action in actions if action is not None) or None,
            "text",
            about,
            beside={words: float(value) for words, value in beside.items() if value is not None},
        )

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """How much each row saved on the baseline."""
        from serving.metrics.relative_cost import costs

        ours, theirs = costs(self.truth(label), judged)
        saved = Drawing(
            "gain",
            "savings",
            f"Histogram of what each row's decisions of {name} saved of the baseline's cost, as it came true.",
            {"saved": 1.0 - ours / theirs, "title": f"{name}: saved of the baseline's cost"},
        )
        return [saved], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """Why Evidently draws nothing: it knows nothing of decisions."""
        return "Evidently has no report for decisions and their costs; the model card shows what each row saved"

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """The cost's."""
        return self.unit or "cost"

    def metric_unit(self, label_unit: str) -> str:
        """None: a cost over another."""
        return ""
