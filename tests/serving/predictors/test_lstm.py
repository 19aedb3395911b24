"""Sequences of a row: oldest step first, short histories moved to the front and masked, every value finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.predictors import load_predictor
from serving.predictors.contract import Contract, FeatureSpec
from serving.predictors.lstm import LstmPredictor, SequenceEncoding
from tests.training.jobs import OUTPUT_COLUMNS, trained_job, training_rows

NAMES = [
    "v__b_t1",
    "v__age",
    "v__a_t0",
    "v__a_t1",
    "v__a_t2",
    "v__b_t0",
    "v__b_t2",
]  # the order of a matrix is that of the catalog, not of time
CONSTANTS: dict[str, Any] = {
    "steps": 3,
    "channels": {"v__a": {"mean": 10.0, "scale": 2.0}, "v__b": {"mean": 0.0, "scale": 1.0}},
    "null_flags": ["v__b"],
    "static": {
        "means": {"v__age": 1.0},
        "scales": {"v__age": 1.0},
        "null_flags": [],
        "one_hot": {},
        "levels": {},
        "residual_of": "v__a_t0",
        "residual_default": 3.0,
    },
}


def encoding() -> SequenceEncoding:
    contract = Contract(
        "toy", "lstm", {name: FeatureSpec("float64") for name in NAMES}, {}, ("minutes",), "0", "2024-01-01", 7, {}
    )
    return SequenceEncoding(contract, CONSTANTS)


def matrix_of(*rows: dict[str, float]) -> Any:
    return np.array([[row.get(name, np.nan) for name in NAMES] for row in rows], dtype=np.float32)


def test_the_oldest_step_comes_first_and_what_is_missing_comes_last() -> None:
    whole = {
        "v__a_t0": 12.0,
        "v__a_t1": 14.0,
        "v__a_t2": 16.0,
        "v__b_t0": 1.0,
        "v__b_t1": 2.0,
        "v__b_t2": 3.0,
        "v__age": 5.0,
    }
    short = {"v__a_t0": 12.0, "v__a_t1": 14.0, "v__b_t0": 1.0}
    sequence, present, static = encoding().inputs(matrix_of(whole, short, {}))
    assert sequence.dtype == static.dtype == np.float32
    assert present.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    # Channels a and b, standardised, then whether b was missing.
    assert sequence[0].tolist() == [[3, 3, 0], [2, 2, 0], [1, 1, 0]]
    assert sequence[1].tolist() == [[2, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert sequence[2].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert static.tolist() == [[4], [0], [0]]
    assert encoding().base(matrix_of(whole, {})).tolist() == [12, 3]


def test_numbers_far_outside_are_cut() -> None:
    sequence, _, _ = encoding().inputs(matrix_of({"v__a_t0": 1e30, "v__b_t0": -1e30}))
    assert sequence[0, 0].tolist() == [10, -10, 0]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_encoding_a_matrix_is_encoding_each_row_by_hand(seed: int, unknown: float) -> None:
    random = np.random.default_rng(seed)
    matrix = random.normal(10, 2, size=(20, len(NAMES))).astype(np.float32)
    matrix[random.random(matrix.shape) < unknown] = np.nan
    sequence, present, static = encoding().inputs(matrix)
    assert np.isfinite(sequence).all()
    assert np.isfinite(static).all()
    for row, found, mask in zip(matrix, sequence, present, strict=True):
        steps = [(row[NAMES.index(f"v__a_t{k}")], row[NAMES.index(f"v__b_t{k}")]) for k in range(3)]
        while len(steps) > 1 and all(np.isnan(value) for value in steps[-1]):
            steps.pop()
        expected = [
            [0 if np.isnan(a) else (a - 10) / 2, 0 if np.isnan(b) else np.clip(b, -10, 10), float(np.isnan(b))]
            for a, b in reversed(steps)
        ]
        np.testing.assert_allclose(found, expected + [[0.0] * 3] * (3 - len(steps)), atol=1e-6)
        assert mask.tolist() == [True] * len(steps) + [False] * (3 - len(steps))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_job("lstm", tmp_path_factory.getbasetemp())


def test_a_masked_step_says_nothing(trained: Path) -> None:
    predictor = load_predictor(trained)
    assert isinstance(predictor, LstmPredictor)
    sequence, present, static = predictor._encoding.inputs(predictor.contract.matrix(training_rows(200)))
    assert 0.2 < present[:, 2].mean() < 0.8
    told = np.asarray(predictor._network(sequence, present, static))
    masked, known = sequence.copy(), sequence.copy()
    masked[~present] = 7.0
    known[:, 0] = 7.0
    np.testing.assert_array_equal(np.asarray(predictor._network(masked, present, static)), told)
    assert np.abs(np.asarray(predictor._network(known, present, static)) - told).max() > 1e-4, (
        "the network looks at no step at all"
    )


def test_an_older_step_that_is_not_there_is_no_step(trained: Path) -> None:
    """A row with one known step is what that step alone would give, whether older ones are null, NaN or infinite."""
    predictor = load_predictor(trained)
    rows = training_rows(50)
    found = []
    for value in (None, float("nan"), float("inf")):
        changed = rows
        for name in ("v__trail_t1", "v__trail_t2"):
            changed = changed.set_column(
                rows.schema.get_field_index(name), name, [[value] * 50] if value is not None else rows["v__empty"]
            )
        found.append(predictor.predict(changed))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert found[0].column_names == OUTPUT_COLUMNS
