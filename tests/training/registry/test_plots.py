"""Plots are drawn whatever the numbers, the same bytes for the same numbers; what they show of them is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.registry import plots

PNG = b"\x89PNG"


def drawings(seed: int, rows: int, *, alike: bool) -> dict[str, Callable[[Path], object]]:
    """Every plot, of random rows, or of rows that are all alike."""
    random = np.random.default_rng(seed)
    label = np.full(rows, 3.0) if alike else random.normal(size=rows) * 10
    predicted = np.full(rows, 3.0) if alike else label + random.normal(size=rows)
    truth = (np.arange(rows) % 2 == 0).astype(float) if not alike else np.ones(rows)
    probability = np.full(rows, 0.25) if alike else random.random(rows)
    names = [f"view__a_feature_with_a_name_that_is_far_too_long_to_stand_beside_a_plot_{i}_$x^{{$" for i in range(15)]
    values = np.zeros((rows, 15)) if alike else random.normal(size=(rows, 15))
    features = np.where(random.random((rows, 15)) < 0.1, np.nan, values)
    return {
        "importances": lambda path: plots.importance_plot(
            {"y": dict.fromkeys(names, 1 / 15), "p": {"a": 0.0}}, "toy", path
        ),
        "contributions": lambda path: plots.contribution_plot(
            names, values, features, path, title="t", unit="US$", categorical=[True] * 2 + [False] * 13
        ),
        "strengths": lambda path: plots.strength_plot(names, np.abs(values).mean(axis=0), path, title="t", unit="x"),
        "calibration": lambda path: plots.calibration_plot(truth, probability, path, title="t"),
        "confusion": lambda path: plots.confusion_plot(
            truth, probability, path, title="t", threshold=0.5, event="late"
        ),
        "residuals": lambda path: plots.residual_plot(label, predicted, path, title="t", unit="minutes"),
        "gain": lambda path: plots.gain_plot(truth, probability, path, title="t"),
        "tolerance": lambda path: plots.tolerance_plot(label, predicted, np.zeros(rows), path, title="t", unit=None),
        "curves": lambda path: plots.curves_plot(
            {"train/y/mae": [[1, 2.0], [2, 1.0]], "validation/y/mae": [[1, 3.0], [2, 2.0]]}, path, title="t"
        ),
        "segments": lambda path: plots.segment_plot(
            ["a=b", "c=d"], np.array([1.0, 2.0]), np.array([0.5, np.nan]), np.array([1.5, np.nan]), path, title="t"
        ),
    }


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("name", sorted(drawings(0, 3, alike=False)))
def test_every_plot_is_a_png_and_equal_input_gives_equal_bytes(name: str, alike: bool, tmp_path: Path) -> None:
    for rows in (1, 2, 400):
        drawings(1, rows, alike=alike)[name](tmp_path / f"{rows}.png")
        assert (tmp_path / f"{rows}.png").read_bytes().startswith(PNG)
    drawings(1, 400, alike=alike)[name](tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "400.png").read_bytes()


def test_curves_without_two_points_are_not_drawn(tmp_path: Path) -> None:
    assert not plots.curves_plot(
        {"train/y/mae": [[1, 2.0]], "seconds": [[1, 1.0], [2, 1.0]]}, tmp_path / "none.png", title="t"
    )
    assert not (tmp_path / "none.png").exists()


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.integers(1, 30))
def test_calibration_bins_hold_every_row_once_and_their_interval_holds_the_share(
    seed: int, rows: int, values: int
) -> None:
    random = np.random.default_rng(seed)
    probability = np.round(random.random(rows) * values) / values
    truth = random.integers(0, 2, rows).astype(float)
    bins = plots.calibration_bins(truth, probability)
    assert bins["rows"].sum() == rows
    assert len(bins["rows"]) <= plots.CALIBRATION_BINS
    assert (bins["rows"] @ bins["found"]) == pytest.approx(truth.sum())
    assert (bins["rows"] @ bins["predicted"]) == pytest.approx(probability.sum())
    assert (np.diff(bins["predicted"]) > 0).all(), "equal probabilities were put in two groups"
    assert ((bins["lower"] - 1e-12 <= bins["found"]) & (bins["found"] <= bins["upper"] + 1e-12)).all()


def test_the_calibration_interval_is_wilson_s() -> None:
    bins = plots.calibration_bins(np.array([1.0] * 8 + [0.0] * 2), np.full(10, 0.7))
    assert (bins["lower"][0], bins["upper"][0]) == pytest.approx((0.490162, 0.943318), abs=1e-6)  # Wilson 1927, 8 of 10


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 20))
def test_gains_rise_from_nothing_to_all_and_do_not_depend_on_the_order_of_ties(
    seed: int, rows: int, values: int
) -> None:
    random = np.random.default_rng(seed)
    probability = np.round(random.random(rows) * values) / values
    truth = np.concatenate([[1.0], random.integers(0, 2, rows - 1)]).astype(float)
    gains = plots._gains(truth, probability)
    assert gains[0] == 0
    assert gains[-1] == pytest.approx(1)
    assert (np.diff(gains) >= -1e-12).all()
    shuffled = random.permutation(rows)
    assert plots._gains(truth[shuffled], probability[shuffled]) == pytest.approx(gains)
    assert plots._gains(truth, np.full(rows, 0.5)) == pytest.approx(np.linspace(0, 1, rows + 1))


def test_percentiles_share_ties_and_keep_what_is_missing() -> None:
    found = plots._percentiles(np.array([5.0, np.nan, 1.0, 5.0, 9.0]))
    assert np.isnan(found[1])
    assert found[[2, 0, 3, 4]] == pytest.approx([0.0, 0.5, 0.5, 1.0])
