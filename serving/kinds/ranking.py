"""Which items suit an entity best, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from config.catalog.output import Answer, Defect, Drawing, EvidentlyTask, Measurement, OutputKind

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]


class Output(OutputKind):
    """`k` different items, best first: `<name>`, `<name>_2` … `<name>_<k>`, and `<name>_score` … of each.

    An item is a whole number: the label says which one came, one a row. Metrics take truth as its number, and items as
    (rows, k). Scores fall from rank to rank and have no unit; what they are is the family's.
    """

    task = "ranking"
    headlines = ("recall_at_k",)
    measured = ("ndcg_loss", "miss_rate", "rank_loss")
    facts = {  # noqa: RUF012 (pydantic reads it as what it is, a class variable)
        "ndcg_at_k": "NDCG of the list",
        "recall_at_k": "share of items that came and were in the list",
        "recall_at_1": "share of items that came and were first in the list",
        "rank_score": "Breese's rank score of the list, half-life 5",
    }

    kind: Literal["ranking"] = "ranking"
    k: int = Field(10, ge=1, le=100, description="items in the list")
    gate: Literal["ndcg_loss", "miss_rate", "rank_loss"] = "ndcg_loss"

    # ---- columns

    def columns(self, name: str) -> dict[str, str]:
        """The items, and the score of each."""
        return dict.fromkeys(self.judged_columns(name), "int64") | dict.fromkeys(self._scores(name), "float64")

    def judged_columns(self, name: str) -> tuple[str, ...]:
        """The items, best first."""
        return (name, *(f"{name}_{rank}" for rank in range(2, self.k + 1)))

    def raw_columns(self, name: str) -> tuple[str, ...]:
        """Numbers of the items, best first, and their scores."""
        return tuple(self.columns(name))

    def published(self, name: str, raw: Floats) -> dict[str, Any]:
        """The items as whole numbers, the scores as they are."""
        import numpy as np

        items = {column: raw[:, rank].astype(np.int64) for rank, column in enumerate(self.judged_columns(name))}
        return items | {column: raw[:, self.k + rank] for rank, column in enumerate(self._scores(name))}

    def defects(self, name: str, rows: pa.Table) -> list[Defect]:
        """An item that stands twice in a list, and scores that are no numbers or rise with the rank."""
        import numpy as np
        import pyarrow as pa

        items = np.sort(np.column_stack([rows[column].to_numpy() for column in self.judged_columns(name)]), axis=1)
        scores = np.column_stack([rows[column].to_numpy() for column in self._scores(name)])
        twice = (np.diff(items, axis=1) == 0).any(axis=1)
        disordered = ~np.isfinite(scores).all(axis=1) | (np.diff(scores, axis=1) > 0).any(axis=1)
        return [
            Defect(name, pa.chunked_array([twice]), "belong to lists that name an item twice"),
            Defect(
                self._scores(name)[0],
                pa.chunked_array([disordered]),
                "belong to lists whose scores rise with the rank or are not finite numbers",
            ),
        ]

    def drift_types(self, name: str) -> dict[str, str]:
        """The first item, compared by its values, and its score: those behind it move with them."""
        return {name: "string", self._scores(name)[0]: "float64"}

    def units(self, name: str, label_unit: str, *, probability: str = "") -> dict[str, str]:
        """None: neither an item nor a score has one."""
        return {}

    def _scores(self, name: str) -> tuple[str, ...]:
        return tuple(f"{column}_score" for column in self.judged_columns(name))

    # ---- labels

    def label_problem(self, column: str, kind: str) -> str | None:
        """Items are whole numbers."""
        if kind in {"int32", "int64"}:
            return None
        remedy = "; say in the label's `values` which number each text stands for" if kind == "string" else ""
        return f"label {column} is a {kind}, a ranking output needs the whole number of an item{remedy}"

    def unlearnable(self, label: Floats, rows: str) -> str | None:
        """Labels that are all the same item."""
        if label.min() < label.max():
            return None
        return f"all {len(label):,} {rows} came out as the item {label[0]:.0f}"

    # ---- judging

    def judged(self, name: str, columns: Mapping[str, Floats]) -> Floats:
        """Numbers of the items, best first, (rows, k)."""
        import numpy as np

        return np.column_stack([columns[column] for column in self.judged_columns(name)])

    def evaluation(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> dict[str, float]:
        """The losses, and what each leaves of 1; `recall_at_1`."""
        from serving.metrics import metric_named

        judged = self.judged(name, columns)
        losses = {metric: metric_named(metric).value(label, judged) or 0.0 for metric in self.measured}
        return losses | {
            "ndcg_at_k": 1.0 - losses["ndcg_loss"],
            "recall_at_k": 1.0 - losses["miss_rate"],
            "recall_at_1": float((judged[:, 0] == label).mean()),
            "rank_score": 1.0 - losses["rank_loss"],
        }

    def measurements(self, name: str, label: Floats, columns: Mapping[str, Floats]) -> list[Measurement]:
        """The losses, `recall_at_k` and `recall_at_1`."""
        import numpy as np

        from serving.metrics import row_metric
        from serving.metrics.intervals import mean_with_interval, share_with_interval
        from serving.metrics.ranks import ranks

        judged, rows = self.judged(name, columns), len(label)
        measured = []
        for metric in self.measured:
            value, lower, upper = mean_with_interval(row_metric(metric).row_losses(label, judged))
            measured.append(Measurement(metric, rows, value=value, lower=lower, upper=upper))
        rank = ranks(label, judged)
        for check, last in (("recall_at_k", self.k), ("recall_at_1", 1)):
            value, lower, upper = share_with_interval(int(np.count_nonzero(rank <= last)), rows)
            measured.append(Measurement(check, rows, value=value, lower=lower, upper=upper))
        return measured

    def bias(self, label: Floats, judged: Floats) -> Floats | None:
        """None: an item is neither above nor below another."""
        return None

    # ---- baseline

    def constant(self, label: Floats, rule: str | None) -> list[float]:
        """The `k` items that came most often, of equally frequent ones the lower number first."""
        import numpy as np

        items, counts = np.unique(label, return_counts=True)
        return [float(item) for item in items[np.argsort(-counts, kind="stable")][: self.k]]

    def rate(self, label: Floats) -> list[float]:
        """The most frequent items."""
        return self.constant(label, None)

    def stored_constant(self, facts: Mapping[str, Any], name: str, rule: str) -> list[float] | None:
        """See `OutputKind.stored_constant`."""
        items = facts.get("rates", {}).get(name)
        return None if items is None else [float(item) for item in items]

    def baseline(self, constant: Any, rows: int, by_row: Floats | None) -> Floats:
        """The same items for all rows, (rows, at most k)."""
        import numpy as np

        return np.tile(np.asarray(constant, np.float64), (rows, 1))

    def baseline_words(self, rule: str) -> str:
        """See `OutputKind.baseline_words`."""
        return f"the baseline (the {self.k} items that came most often in the training window, for every row)"

    # ---- words and pictures

    def says(self, label: str, unit: str) -> str:
        """See `OutputKind.says`."""
        return f"the {self.k} most likely values of {label}, best first"

    def answer(self, name: str, values: Mapping[str, Any], label: str, unit: str) -> Answer:
        """See `OutputKind.answer`."""
        items = [str(values[column]) for column in self.judged_columns(name) if values.get(column) is not None]
        return Answer(", ".join(items) or None, "text", f"{label}, best first")

    def drawings(
        self, name: str, label: Floats, judged: Floats, baseline: Floats, unit: str | None
    ) -> tuple[list[Drawing], list[str]]:
        """How often the item that came stands among the first, beside the baseline's list."""
        from serving.metrics.ranks import ranks

        hits = Drawing(
            "gain",
            "hits",
            f"Share of items that came among the first of the list, for each length of it, {name} and the baseline.",
            {
                "rank": ranks(label, judged),
                "baseline": ranks(label, baseline),
                "longest": self.k,
                "title": f"{name}: found among the first",
            },
        )
        return [hits], []

    def evidently(self, name: str, shown: str, label: Floats, columns: Mapping[str, Floats]) -> EvidentlyTask | str:
        """Why Evidently draws nothing: its preset for rankings takes a row for each pair of entity and item."""
        return "Evidently draws rankings as one row for each pair of entity and item; the model card shows hits by rank"

    def contribution_unit(self, label_unit: str | None, probability_unit: str) -> str:
        """Of the score of the first item."""
        return "score of the first item"
