"""Bias by segment against figures by hand, and intervals against a bootstrap written out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.catalog.model import ModelEntry
from lake.lake import Lake
from training.registry.bootstrap import day_weights
from training.registry.segments import Segment, segment_columns, segment_report


def entry_of(lake: Lake, **changes: Any) -> ModelEntry:
    return lake.model("ride_minutes").model_copy(update=changes)


def report(
    entry: ModelEntry,
    label: np.ndarray,
    depots: list[str | None],
    minutes: np.ndarray,
    long: np.ndarray,
    days: np.ndarray,
) -> Any:
    rows = pa.table(
        {"data_date": pa.array(19_000 + days, pa.int32()).cast(pa.date32()), "depot": pa.array(depots, pa.string())}
    )
    return segment_report(
        entry, rows, label, {"ride_minutes": minutes, "long_probability": long}, {"ride_minutes": label < 40}
    )


def test_figures_by_hand(toy_lake: Lake) -> None:
    entry = entry_of(toy_lake)
    count = 40
    label = np.array([20.0, 40.0] * count)
    depots: list[str | None] = ["north", "south"] * count
    minutes = label + np.array([1.0, -3.0] * count)
    long = np.array([0.1, 0.6] * count)
    found = report(entry, label, [*depots[:-2], "east", None], minutes, long, np.arange(2 * count) // 8)
    number, chance = found.outputs
    assert (found.columns, found.min_rows, found.rows, found.days) == (("depot",), 20, 80, 10)
    assert [(s.value, s.n) for s in number.not_evaluated] == [("(null)", 1), ("east", 1)]
    assert number.whole.value == pytest.approx(2.0)
    worst, best = number.segments
    assert (worst.value, worst.n, worst.error.value, worst.ratio.value, worst.bias, worst.worse) == (
        "south",
        39,
        3.0,
        1.5,
        -3.0,
        True,
    )
    assert (best.value, best.error.value, best.ratio.value, best.worse) == ("north", 1.0, 0.5, False)
    assert worst.rate is None
    assert (worst.coverage, best.coverage, chance.segments[0].coverage) == (0.0, 1.0, None)
    assert [(s.value, s.rate, s.predicted_rate) for s in chance.segments] == [
        ("south", 1.0, pytest.approx(0.6)),
        ("north", 0.0, pytest.approx(0.1)),
    ]
    assert chance.segments[0].bias == pytest.approx(-0.4)
    json.dumps(found.to_json(), allow_nan=False)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), nights=st.integers(2, 12), metric=st.sampled_from(["mae", "rmse"]))
def test_intervals_are_the_quantiles_of_resampled_days(toy_lake: Lake, seed: int, nights: int, metric: str) -> None:
    number = toy_lake.model("ride_minutes").outputs["ride_minutes"].model_copy(update={"gate": metric})
    entry = entry_of(toy_lake, outputs={"ride_minutes": number})
    random = np.random.default_rng(seed)
    days = np.sort(np.concatenate([np.arange(nights), random.integers(0, nights, 30 * nights)]))
    depots = random.choice(["north", "south"], len(days), p=[0.8, 0.2])
    label, minutes = random.normal(size=len(days)), random.normal(size=len(days)) * 2
    rows = pa.table({"data_date": pa.array(19_000 + days, pa.int32()).cast(pa.date32()), "depot": depots})
    (found,) = segment_report(entry, rows, label, {"ride_minutes": minutes}, {}).outputs
    power, loss = (2, np.square(minutes - label)) if metric == "rmse" else (1, np.abs(minutes - label))
    drawn = day_weights(nights, seed=entry.trainer.seed)[:, days]  # every row as often as its day is drawn
    for segment in found.segments:
        mine = depots == segment.value
        with np.errstate(invalid="ignore"):
            own = (drawn[:, mine] @ loss[mine] / drawn[:, mine].sum(axis=1)) ** (1 / power)
        ratios = own / (drawn @ loss / drawn.sum(axis=1)) ** (1 / power)
        assert segment.error.value == pytest.approx(loss[mine].mean() ** (1 / power))
        assert segment.ratio.value == pytest.approx((loss[mine].mean() / loss.mean()) ** (1 / power))
        if segment.days < 2:
            assert segment.error.lower is None
            continue
        told = ratios[np.isfinite(ratios)]
        assert segment.ratio.lower == pytest.approx(np.quantile(told, 0.025, method="lower"))
        assert segment.ratio.upper == pytest.approx(np.quantile(told, 0.975, method="higher"))
        assert (segment.error.lower, segment.error.upper) == pytest.approx(
            tuple(np.quantile(own[np.isfinite(own)], [0.025, 0.975])), rel=0.05
        )


def test_equal_segments_are_found_alike_and_a_worse_one_is_not_overlooked(toy_lake: Lake) -> None:
    random = np.random.default_rng(3)
    days = np.repeat(np.arange(14), 60)
    depots = random.choice(["north", "east", "south"], len(days))
    label = random.normal(size=len(days)) * 10 + 30
    minutes = label + random.normal(size=len(days)) * 5 * np.where(depots == "south", 1.6, 1.0)
    found = report(entry_of(toy_lake), label, depots.tolist(), minutes, np.full(len(days), 0.5), days)
    assert [(s.value, s.worse) for s in found.outputs[0].segments] == [
        ("south", True),
        *((s.value, False) for s in found.outputs[0].segments[1:]),
    ]
    assert not any(s.worse for s in found.outputs[1].segments)


def test_the_smallest_segment_that_is_evaluated_has_just_enough_rows(toy_lake: Lake) -> None:
    depots: list[str | None] = [*["north"] * 20, *["south"] * 19]
    found = report(entry_of(toy_lake), np.zeros(39), depots, np.ones(39), np.full(39, 0.5), np.arange(39) % 5).outputs[
        0
    ]
    assert ([s.value for s in found.segments], [s.value for s in found.not_evaluated]) == (["north"], ["south"])


def test_one_day_gives_no_interval(toy_lake: Lake) -> None:
    found = report(
        entry_of(toy_lake),
        np.arange(30.0),
        ["north"] * 30,
        np.arange(30.0) + 1,
        np.full(30, 0.5),
        np.zeros(30, dtype=int),
    )
    (segment,) = found.outputs[0].segments
    assert isinstance(segment, Segment)
    assert (segment.error.value, segment.error.lower, segment.ratio.lower, segment.worse) == (1.0, None, None, False)
    assert found.outputs[0].whole.lower is None


def test_a_faultless_model_has_no_ratio(toy_lake: Lake) -> None:
    found = report(
        entry_of(toy_lake), np.arange(60.0), ["north"] * 60, np.arange(60.0), np.full(60, 0.5), np.arange(60) // 6
    )
    assert found.outputs[0].segments[0].ratio is None
    json.dumps(found.to_json(), allow_nan=False)


def test_what_is_held_out_whole_is_a_segment_too(toy_lake: Lake) -> None:
    entry = entry_of(toy_lake, split=toy_lake.model("ride_minutes").split.model_copy(update={"groups": "vehicle"}))
    assert segment_columns(entry) == ("depot", "vehicle")
    alone = entry.model_copy(update={"gate": entry.gate.model_copy(update={"segments": None})})
    assert segment_columns(alone) == ("vehicle",)
    none = entry_of(toy_lake, gate=alone.gate)
    assert report(none, np.ones(3), ["north"] * 3, np.ones(3), np.ones(3), np.arange(3)).outputs[0].segments == ()
