"""Reference profiles: statistics, bins, limits, and how often a stationary night alarms."""

from __future__ import annotations

import json
import math
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalog.model import ModelEntry
from training.registry.reference import (
    MIN_WINDOWS,
    SAMPLE_ROWS,
    BadReference,
    ExactSum,
    build_reference,
    count_bins,
    exact_sum,
    ks,
    numeric_edges,
    psi,
    smoothed_shares,
    statistic,
    upper_limit,
    window_sums,
    window_values,
    write_reference_sample,
)

FIRST = date(2020, 1, 1)


def make_entry(*, method: str = "psi", window: str = "1 night") -> ModelEntry:
    return ModelEntry(
        model="m",
        title="M",
        owner="o",
        owner_url="mailto:o@example.com",
        deadline="06:00",
        dataset="d",
        spine={"table": "t", "entity": ["k"], "target_time": "at_utc"},
        label={"table": "t", "column": "y", "matures_after": "1 day"},
        features=["v"],
        outputs={"minutes": {"kind": "regression"}},
        trainer={"family": "xgboost"},
        split={"train": "60 days"},
        retrain={"drift": {"method": method, "window": window}},
    )


def training_file(
    path: Path, columns: dict[str, Any], nights: int, rows_a_night: int, validation_nights: int = 0
) -> Path:
    days = [FIRST + timedelta(days=i) for i in range(nights) for _ in range(rows_a_night)]
    splits = [
        "train" if i < nights - validation_nights else "validation" for i in range(nights) for _ in range(rows_a_night)
    ]
    pq.write_table(pa.table({"data_date": pa.array(days, pa.date32()), "split": splits, **columns}), path)
    return path


shares = st.lists(st.integers(0, 1000), min_size=2, max_size=20)


@settings(deadline=None)
@given(shares, st.randoms())
def test_psi_is_zero_for_equal_shares_never_negative_and_symmetric(counts, random):
    other = counts[:]
    random.shuffle(other)
    a, b = smoothed_shares(counts), smoothed_shares(other)
    assert psi(a, a) == 0
    assert psi(a, b) >= 0
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert a.sum() == pytest.approx(1)
    assert 0 <= ks(a, b) <= ks(a, b, ordered=False) + 1e-12


def test_psi_of_a_worked_example_and_a_zero_share():
    assert psi([0.5, 0.5], [0.25, 0.75]) == pytest.approx(-0.25 * math.log(0.5) + 0.25 * math.log(1.5))
    assert ks([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.25)
    with pytest.raises(BadReference, match=r"share of zero.*smoothed_shares"):
        psi([0.5, 0.5], [0, 1])
    with pytest.raises(BadReference, match="no drift statistic 'tv'"):
        statistic("tv", [1], [1], ordered=True)


def test_limit_is_the_conformal_quantile():
    assert upper_limit(range(MIN_WINDOWS - 1), 0.99) is None
    assert upper_limit(range(50), 0.99) == 49
    assert upper_limit(range(199), 0.99) == 197  # ceil(0.99 * 200) = 198th smallest
    assert upper_limit(range(200), 0.5) == 100


def test_window_sums():
    assert window_sums(np.arange(8).reshape(4, 2), 2).tolist() == [[2, 4], [6, 8], [10, 12]]


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=200), st.integers(2, 20))
@settings(max_examples=200, deadline=None)
def test_every_value_falls_into_exactly_one_bin(values, bins):
    array = np.array(values, dtype=float)
    edges = numeric_edges(array, bins)
    assert len(edges) <= bins
    assert edges == sorted(set(edges))
    profile = {"kind": "numeric", "edges": edges, "counts": [0] * (len(edges) + 1)}
    counts, nulls = count_bins(pa.chunked_array([array]), profile, np.zeros(len(array), dtype=np.int64), 1)
    assert counts.sum() + nulls.sum() == len(array)
    assert nulls.sum() == np.isnan(array).sum()


def test_all_kinds_of_columns_and_their_profiles(tmp_path):
    nights, rows = 30, 50
    n = nights * rows
    rng = np.random.default_rng(1)
    path = training_file(
        tmp_path / "t.parquet",
        {
            "number": rng.normal(size=n),
            "infinite": np.where(np.arange(n) % 4 == 0, np.inf, rng.normal(size=n)),
            "constant": np.full(n, 5),
            "empty": pa.nulls(n, pa.float64()),
            "half": pa.array([None if i % 2 else 1.5 + i % 7 for i in range(n)], pa.float64()),
            "city": [f"c{i % 40:02d}" if i % 3 else "common" for i in range(n)],
            "flag": pa.array([bool(i % 2) for i in range(n)]),
            "day": pa.array([FIRST + timedelta(days=i % 9) for i in range(n)], pa.date32()),
            "month": np.ones(n),
        },
        nights,
        rows,
    )
    kinds = {
        "number": "float64",
        "infinite": "float64",
        "constant": "int64",
        "empty": "float64",
        "half": "float64",
        "city": "string",
        "flag": "boolean",
    }
    reference = build_reference(
        [path], kinds | {"day": "date", "month": "int64"}, make_entry(), calendar_columns={"month"}
    )
    columns = reference["columns"]
    json.dumps(reference, allow_nan=False)
    assert "month" not in columns
    assert columns["empty"]["limit"] is None
    assert columns["empty"]["null_share"] == 1
    assert columns["half"]["null_share"] == 0.5
    assert columns["city"]["categories"][0] == "common"
    assert len(columns["city"]["counts"]) == 20
    assert columns["infinite"]["edges"][-1] == "inf"
    for name in kinds:
        if name != "empty":
            assert columns[name]["windows"] == nights
            assert columns[name]["limit"] >= 0
    # A constant that stays is none, whatever the number of rows; one that moves to either side is.
    assert columns["constant"]["limit"] == 0
    for count in (1, rows, 10 * rows):
        counts, _ = count_bins(
            pa.chunked_array([np.full(count, 5)]), columns["constant"], np.zeros(count, dtype=np.int64), 1
        )
        assert window_values("psi", columns["constant"]["counts"], counts, ordered=True)[0] == 0
    for moved in (4, 6):
        counts, _ = count_bins(
            pa.chunked_array([np.full(rows, moved)]), columns["constant"], np.zeros(rows, dtype=np.int64), 1
        )
        assert (
            window_values("psi", columns["constant"]["counts"], counts, ordered=True)[0] > columns["constant"]["limit"]
        )
    # So is a new category.
    counts, _ = count_bins(pa.chunked_array([["new"] * rows]), columns["city"], np.zeros(rows, dtype=np.int64), 1)
    assert counts[0, -1] == rows
    assert window_values("psi", columns["city"]["counts"], counts, ordered=False)[0] > columns["city"]["limit"]
    assert reference["volume"] == {"lower": 37, "upper": 63, "nights": nights}


@pytest.mark.parametrize("method", ["psi", "ks"])
@pytest.mark.parametrize(("rows", "nights"), [(24, 365), (200, 120)])
def test_a_stationary_night_rarely_alarms_and_a_shifted_one_does(tmp_path, method, rows, nights):
    """The limits hold the promised rate on nights that the reference never saw, each with a habit of its own (weekday,
    level).
    """
    rng = np.random.default_rng(7)
    judged, copies = 400, 10

    def sample(count):
        """count nights × rows × copies; a weekday effect and a random level of each night make a fixed threshold
        useless.
        """
        weekday = np.arange(count) % 7
        level = weekday[:, None, None] * 0.3 + rng.normal(scale=0.3, size=(count, 1, copies))
        return level + rng.normal(size=(count, rows, copies))

    train = sample(nights)
    columns = {f"x{i}": train[:, :, i].ravel() for i in range(copies)}
    path = training_file(tmp_path / "t.parquet", columns, nights, rows)
    reference = build_reference([path], dict.fromkeys(columns, "float64"), make_entry(method=method))
    later = sample(judged)
    index = np.repeat(np.arange(judged), rows)
    alarms = shifted = 0
    for i in range(copies):
        profile = reference["columns"][f"x{i}"]
        for shift, add in ((0.0, 0), (3.0, 1)):
            counts, _ = count_bins(pa.chunked_array([later[:, :, i].ravel() + shift]), profile, index, judged)
            above = int((window_values(method, profile["counts"], counts, ordered=True) > profile["limit"]).sum())
            alarms, shifted = (alarms, shifted + above) if add else (alarms + above, shifted)
    rate = alarms / (judged * copies)
    assert rate <= 0.02, f"{rate:.2%} of stationary nights alarm; the limit promises about 1 %"
    assert shifted / (judged * copies) > 0.9
    if method == "psi" and rows == 200:
        assert (
            reference["columns"]["x0"]["limit"] > 0.2
        )  # the fixed threshold of the books would alarm on normal nights


def test_a_window_is_compared_with_the_rest_of_the_training_nights(tmp_path):
    path = training_file(tmp_path / "t.parquet", {"x": np.repeat(np.arange(8.0), 40)}, 8, 40)
    profile = build_reference([path], {"x": "float64"}, make_entry())["columns"]["x"]
    counts, _ = count_bins(pq.read_table(path)["x"], profile, np.repeat(np.arange(8), 40), 8)
    rest = counts.sum(axis=0) - counts
    expected = max(float(statistic("psi", rest[i], counts[i], ordered=True)) for i in range(8))
    assert profile["limit"] == expected
    assert profile["limit"] > max(window_values("psi", profile["counts"], counts, ordered=True))


def test_limits_are_equal_bit_by_bit_whatever_the_chunking(tmp_path):
    rng = np.random.default_rng(3)
    columns = {"x": rng.normal(size=2000), "c": rng.choice(list("abcdef"), 2000)}
    path = training_file(tmp_path / "a.parquet", columns, 40, 50)
    pq.write_table(pq.read_table(path), tmp_path / "b.parquet", row_group_size=77)
    kinds = {"x": "float64", "c": "string"}
    first, second = (build_reference([p], kinds, make_entry(window="3 nights")) for p in (path, tmp_path / "b.parquet"))
    assert json.dumps(first) == json.dumps(second)
    assert first["columns"]["x"]["windows"] == 38


def test_validation_rows_are_no_feature_reference_but_the_one_of_predictions(tmp_path):
    n = 30 * 20
    path = training_file(tmp_path / "t.parquet", {"x": np.repeat(np.arange(30.0), 20)}, 30, 20, validation_nights=10)
    predictions = pa.table({"minutes": np.repeat(np.arange(30.0), 20)})
    reference = build_reference([path], {"x": "float64"}, make_entry(), predictions)
    assert reference["columns"]["x"]["rows"] == 400
    assert max(reference["columns"]["x"]["edges"]) < 20
    assert reference["last"] == "2020-01-20"
    assert reference["predictions"]["minutes"]["split"] == "validation"
    assert min(reference["predictions"]["minutes"]["edges"][1:]) >= 20
    assert reference["predictions"]["minutes"]["rows"] == 200
    with pytest.raises(BadReference, match=f"3 predictions were given for {n} rows"):
        build_reference([path], {"x": "float64"}, make_entry(), predictions.slice(0, 3))
    with pytest.raises(BadReference, match="no column minutes"):
        build_reference([path], {"x": "float64"}, make_entry(), predictions.rename_columns(["other"]))


def test_rows_without_a_label_are_what_a_night_is_compared_with(tmp_path):
    """One row in ten has a label, and those are others than the rest."""
    x = np.tile(np.arange(20.0), 30)
    rare = x < 2
    every = training_file(tmp_path / "e.parquet", {"x": x}, 30, 20, validation_nights=10)
    rows = pq.read_table(every)
    labelled, apart = tmp_path / "l.parquet", tmp_path / "u.parquet"
    pq.write_table(rows.filter(pa.array(rare)).append_column("label", pa.array(x[rare] + 1)), labelled)
    pq.write_table(rows.filter(pa.array(~rare)), apart)
    predictions = pa.table({"minutes": np.concatenate([x[rare], x[~rare]])})
    built = build_reference([labelled, apart], {"x": "float64"}, make_entry(), predictions)
    assert built["volume"] == {"lower": 15, "upper": 25, "nights": 20}
    assert built["label"] == {"median": 1.5, "mean": 1.5, "rates": {}}, "of those that have one"
    whole = build_reference([every], {"x": "float64"}, make_entry(), pa.table({"minutes": x}))
    assert built == whole | {"label": built["label"]}
    sample = pq.read_table(write_reference_sample([labelled, apart], tmp_path, 7, ["x"], predictions)).to_pandas()
    assert sorted(sample["x"]) == sorted(x)
    assert (sample["minutes"] == sample["x"])[sample["split"] == "validation"].all()


def test_with_every_label_there_the_rows_without_one_change_no_byte(tmp_path):
    path = training_file(tmp_path / "t.parquet", {"x": np.arange(600.0), "c": list("abcdef") * 100}, 30, 20)
    nothing = tmp_path / "u.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), nothing)
    kinds = {"x": "float64", "c": "string"}
    alone, both = (build_reference(files, kinds, make_entry()) for files in ([path], [path, nothing]))
    assert json.dumps(alone) == json.dumps(both)
    content = write_reference_sample([path], tmp_path, 7, kinds).read_bytes()
    assert write_reference_sample([path, nothing], tmp_path, 7, kinds).read_bytes() == content


def test_few_nights_give_no_limit_and_no_rows_an_error(tmp_path):
    path = training_file(tmp_path / "t.parquet", {"x": np.arange(25.0)}, 5, 5)
    reference = build_reference([path], {"x": "float64"}, make_entry())
    assert reference["columns"]["x"]["limit"] is None
    assert reference["volume"]["upper"] is None
    with pytest.raises(BadReference, match="no column y, which m reads"):
        build_reference([path], {"y": "float64"}, make_entry())
    with pytest.raises(BadReference, match=r"other.parquet has no column x"):
        build_reference([path, training_file(tmp_path / "other.parquet", {}, 5, 5)], {"x": "float64"}, make_entry())
    empty = training_file(tmp_path / "e.parquet", {"x": np.arange(25.0)}, 5, 5, validation_nights=5)
    with pytest.raises(BadReference, match="no row of the train split"):
        build_reference([empty], {"x": "float64"}, make_entry())


def test_the_sample_is_bounded_and_the_same_for_a_seed(tmp_path):
    rows = 2500
    path = training_file(tmp_path / "t.parquet", {"x": np.arange(10.0 * rows)}, 10, rows, validation_nights=7)
    predictions = pa.table({"minutes": np.arange(10.0 * rows)})
    first = write_reference_sample([path], tmp_path, 7, ["x"], predictions)
    content = first.read_bytes()
    assert write_reference_sample([path], tmp_path, 7, ["x"], predictions).read_bytes() == content
    assert write_reference_sample([path], tmp_path, 8, ["x"], predictions).read_bytes() != content
    sample = pq.read_table(write_reference_sample([path], tmp_path, 7, ["x"], predictions))
    assert sample.num_rows == SAMPLE_ROWS
    frame = sample.to_pandas()
    assert frame.loc[frame["split"] == "train", "minutes"].isna().all()
    validation = frame[frame["split"] == "validation"]
    assert (validation["minutes"] == validation["x"]).all()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60), st.integers(1, 59), st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_sum_is_exact_in_whatever_order_and_batches(values, cut, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    whole = exact_sum(np.array(values, dtype=np.float64))
    assert (
        exact_sum(np.array(shuffled[:cut], dtype=np.float64)) + exact_sum(np.array(shuffled[cut:], dtype=np.float64))
        == whole
    )
    finite = [Fraction(value) for value in values if math.isfinite(value)]
    assert whole.count == len(finite)
    assert whole.infinite == sum(map(math.isinf, values))
    assert whole.mean() == (float(sum(finite) / len(finite)) if finite else None)


def test_a_mean_is_where_plain_summation_loses_it():
    values = np.array([1e16, 1.0, -1e16, 1.0])
    assert exact_sum(values).mean() == 0.5
    assert exact_sum(np.array([5e-324, 5e-324])).mean() == 5e-324
    assert exact_sum(np.full(3, 1.7e308)).mean() == 1.7e308
    assert ExactSum().mean() is None


def test_numbers_have_means_and_dates_and_categories_have_none(tmp_path: Path):
    nights, rows = 10, 4
    columns = {
        "x": [float(i) if i % 5 else None for i in range(nights * rows)],
        "hopeless": pa.nulls(nights * rows, pa.float64()),
        "day": pa.array([FIRST] * nights * rows, pa.date32()),
        "carrier": ["UA"] * nights * rows,
    }
    path = training_file(tmp_path / "t.parquet", columns, nights, rows)
    kinds = {"x": "float64", "hopeless": "float64", "day": "date", "carrier": "string"}
    profile = build_reference([path], kinds, make_entry())
    assert profile["format"] == 2
    found = profile["columns"]
    assert (found["x"]["mean"], found["x"]["mean_rows"]) == (20.0, 32)
    assert (found["hopeless"]["mean"], found["hopeless"]["mean_rows"]) == (None, 0)
    assert "mean" not in found["day"]
    assert "mean" not in found["carrier"]
    json.dumps(profile, allow_nan=False)
