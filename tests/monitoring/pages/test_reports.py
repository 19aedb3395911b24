"""Reports: self-contained, safe, in agreement with the metrics table, and alive whatever the columns hold."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.lineage import PartitionNotReady
from lake.metrics import read_metrics
from lake.signature import sign
from lake.tables import valid_table
from monitoring.drift import drift
from monitoring.pages.reports import (
    _column_pair,
    _every_nth,
    _evidently_drift,
    _evidently_performance,
    _Page,
    _whole,
    report,
)
from monitoring.performance import performance
from tests import toy
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL
from training.registry.reference import SAMPLE_FILE

OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|@import|url\(\s*["']?(?:https?:)?//""", re.IGNORECASE)
EVIL = "</script><script>alert(1)</script>"


def pages(lake: Lake, night=NIGHT) -> dict[str, str]:
    drift(lake, MODEL, Interval.of(night), run_id="t")
    performance(lake, MODEL, Interval.of(night), run_id="t")
    report(lake, MODEL, Interval.of(night), run_id="t")
    return read_pages(lake, night)


def read_pages(lake: Lake, night=NIGHT) -> dict[str, str]:
    folder = lake.settings.reports / MODEL / night.isoformat()
    assert sorted(path.name for path in folder.iterdir()) == ["drift.html", "performance.html"], (
        "nothing else is left behind"
    )
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def evidently_drift(page: str) -> dict[str, float]:
    """Column to score in the rows of Evidently's table."""
    found = re.findall(
        r'"column_name": "([^"]+)", "column_type": "[a-z]+", "stattest_name": "[^"]*", .*?"drift_score": ([-0-9.e]+)',
        page,
    )
    return {name: float(score) for name, score in found}


def test_pages_hold_everything_they_need_and_are_written_once(night: Lake):
    result = None
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    performance(night, MODEL, Interval.of(NIGHT), run_id="t")
    result = report(night, MODEL, Interval.of(NIGHT), run_id="t")
    assert result.committed == 2
    written = {Path(path): Path(path).stat().st_mtime_ns for path in result.details["files"]}
    for name, page in read_pages(night).items():
        head = page[: page.index("</head>")]
        assert not OUTSIDE.search(head), f"{name} loads something from outside"
        assert not re.search(r"<(?:script|img|iframe|link)[^>]+(?:src|href)=[\"']?(?:https?:)?//", page)
        assert "default-src 'none'" in unescape(head), "the browser is told to load nothing"
        assert len(page) > 1_000_000, "Evidently's part is missing"
    again = report(night, MODEL, Interval.of(NIGHT), run_id="again")
    assert again.committed == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_evidently_shows_our_numbers(night: Lake):
    page = pages(night)["drift"]
    rows = [
        row
        for row in read_metrics(night, MODEL, "drift", Interval.of(NIGHT)).to_pylist()
        if row["check"] == "drift_psi"
    ]
    for row in rows:
        assert f'"drift_score": {json.dumps(row["value"])}' in page or str(round(row["value"], 6)) in page, row[
            "column"
        ]
        assert row["column"] in page
    for output in night.model(MODEL).output_columns:
        assert f"Drift in column &#39;{output}&#39;" in page or f"Drift in column '{output}'" in page


def test_performance_page_agrees_with_the_metrics(night: Lake):
    page = pages(night)["performance"]
    rows = {
        (r["check"], r["column"]): r
        for r in read_metrics(night, MODEL, "performance", Interval.of(NIGHT)).to_pylist()
        if not r["segment"]
    }
    assert "nights whose labels became mature: 2024-02-13" in page
    assert f"{rows['mae', 'ride_minutes']['value']:,.4g}" in page
    assert f"{rows['mae', 'ride_minutes']['value']:.3f}"[:4] in page


def test_all_null_constant_infinite_and_new_values_do_not_kill_the_page(fresh: Lake, monkeypatch):
    monkeypatch.setattr("serving.score.check_outputs", lambda *_, **__: None)
    scenario.decide_gate(fresh)
    infinite, empty, constant = NIGHT, NIGHT + ONE_DAY, NIGHT + 2 * ONE_DAY
    scenario.with_features(fresh, infinite, minutes_7d=lambda old: np.full_like(old, np.inf))
    scenario.with_features(fresh, empty, minutes_7d=pa.nulls(6), rides_7d=pa.nulls(6))
    scenario.with_features(
        fresh, constant, minutes_7d=lambda old: np.full_like(old, 1.0), rides_7d=lambda old: np.full_like(old, 5)
    )
    scenario.score_all(fresh)
    assert "vehicle_daily__minutes_7d" in pages(fresh, infinite)["drift"]
    page = pages(fresh, empty)["drift"]
    assert "vehicle_daily__minutes_7d is not evaluated: every value is null" in page
    assert "Left out, and other notes" in page
    assert len(pages(fresh, constant)["drift"]) > 1_000_000


def test_a_reference_without_a_value_is_left_out(night: Lake):
    champion = night.ledger(MODEL).read().newest
    path = night.settings.artifacts / MODEL / champion.artifact_digest / SAMPLE_FILE
    rows = pq.read_table(path)
    name = "vehicle_daily__minutes_7d"
    pq.write_table(rows.set_column(rows.column_names.index(name), name, pa.nulls(rows.num_rows, pa.float64())), path)
    sign(night.settings, path.parent, MODEL)
    page = pages(night)["drift"]
    assert f"{name} is measured, but not drawn: one side of the sample has no value" in page
    assert len(page) > 1_000_000
    path.unlink()
    scenario.change_reference(night, champion, {"limit_quantile": 0.9})
    (night.settings.reports / MODEL / NIGHT.isoformat() / "drift.html").unlink()
    assert f"not drawn: version 1 has no {SAMPLE_FILE}" in pages(night)["drift"]


def test_an_empty_night_and_one_without_labels_say_not_evaluated(tmp_path, promoted: Lake):
    lake = scenario.copy_of(promoted, tmp_path)
    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    toy.publish_rows(lake, table, table.schema.empty_table(), Interval.of(NIGHT))
    outcomes = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    rows = outcomes.read(Interval.closed(NIGHT + ONE_DAY, SCORED.last))
    blank = rows.set_column(rows.column_names.index("minutes"), "minutes", pa.nulls(rows.num_rows, pa.float64()))
    toy.publish_rows(lake, outcomes, blank.cast(rows.schema), Interval.closed(NIGHT + ONE_DAY, SCORED.last))
    scenario.score_all(lake)
    page = pages(lake, NIGHT)["drift"]
    assert "not evaluated: nothing was scored in this night" in page
    assert len(page) < 100_000
    assert (
        "not evaluated: nothing was scored in this night: it had no row"
        in pages(lake, NIGHT + 2 * ONE_DAY)["performance"]
    )
    assert "no label came for any of the 40 rows" in pages(lake, NIGHT + 3 * ONE_DAY)["performance"]
    assert "nothing was scored for this night: no predictions are published" in pages(lake, SCORED.start)["performance"]


def test_values_from_the_data_cannot_run_in_the_page():
    profile = {"kind": "categorical", "categories": ["a", EVIL]}
    pair = _column_pair(
        "x", pa.chunked_array([["a", EVIL, None, "b"]]), pa.chunked_array([["a", f"{EVIL}2", EVIL]]), profile, []
    )
    assert pair is not None
    for side in pair:
        assert not any("<" in value for value in side)
    assert list(pair[0]) == ["a", "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;", "(other)"]
    assert len(pair[1]) == 3
    assert "(other)" not in pair[1], "a new category keeps its name"


def test_a_hostile_category_and_column_are_escaped_on_the_whole_page():
    column = f"x{EVIL}"
    profile = {"kind": "categorical", "categories": ["a", EVIL], "method": "psi", "windows": 9}
    pair = _column_pair("x", pa.chunked_array([["a", EVIL] * 5]), pa.chunked_array([["a", EVIL, EVIL]]), profile, [])
    assert pair is not None
    row = {
        "check": "drift_psi",
        "column": column,
        "value": 0.4,
        "threshold": 0.3,
        "status": "warning",
        "reason": EVIL,
        "n": 3,
        "segment": f"depot={EVIL}",
    }
    row |= {"about_date": NIGHT, "lower": None, "upper": None}
    drawn = _evidently_drift({column: pair}, {column: profile}, {column: row}, 0.3, set())
    page = _whole(_Page(EVIL, [EVIL], [row], [EVIL]), EVIL, "stamp", drawn)
    assert "alert(1)" in page
    assert EVIL not in page
    assert "<script>alert" not in page


def test_infinities_are_drawn_at_the_largest_finite_value():
    pair = _column_pair(
        "x",
        pa.chunked_array([[1.0, 2.0, None, np.nan]]),
        pa.chunked_array([[np.inf, -np.inf, 5.0]]),
        {"kind": "numeric"},
        [],
    )
    assert pair is not None
    assert [list(side) for side in pair] == [[1.0, 2.0], [5.0, 1.0, 5.0]]
    assert (
        _column_pair(
            "x", pa.chunked_array([[1.0]]), pa.chunked_array([pa.nulls(2, pa.float64())]), {"kind": "numeric"}, []
        )
        is None
    )


@pytest.mark.parametrize(
    "values", [[1.7e308] * 3, [1e15, 1e15 + 1], [1.0, 1.0 + 1e-15], [-1e300, 0.0], [5e-324, 0.0], [0.0, 0.0]]
)
def test_histograms_of_extreme_values_can_be_drawn(values):
    notes: list[str] = []
    pair = _column_pair("x", pa.chunked_array([values]), pa.chunked_array([values]), {"kind": "numeric"}, notes)
    assert pair is not None
    for side in pair:
        np.histogram(side, bins=10, density=True)
        assert len(side) == len(values)
    assert bool(notes) == (abs(np.array(values)).max() > 1e12)


ONES = np.ones(10)


@pytest.mark.parametrize(
    ("label", "predicted", "note"),
    [
        (0 * ONES, ONES, "ride_minutes is not drawn: fewer than two labels differ from zero"),
        (ONES[:1], ONES[:1], "ride_minutes is not drawn: fewer than two labels differ from zero"),
        (ONES, 1.7e308 * ONES, "ride_minutes is not drawn: some predictions lie beyond 1e+12"),
        (ONES, ONES, "long_probability is not drawn: all 10 rows came out alike"),
        (np.arange(10.0), np.arange(10.0) + 1, "long_probability is not drawn"),
        (np.arange(10.0), ONES, "ride_minutes is drawn without a MAPE"),
        (0.1 * np.arange(10.0), 0.1 * np.arange(10.0) + 1, "ride_minutes is not drawn: all its errors are alike"),
    ],
)
def test_outcomes_that_evidently_cannot_draw_are_left_out(toy_lake: Lake, label, predicted, note):
    notes: list[str] = []
    chance = np.linspace(0, 1, len(label))
    _evidently_performance(toy_lake.model(MODEL), label, {"ride_minutes": predicted, "long_probability": chance}, notes)
    assert any(said.startswith(note) for said in notes), notes


@pytest.mark.parametrize(("lowest", "has"), [(5.0, True), (0.0, False), (1e-6, False)])
def test_no_report_opens_with_a_mape_of_labels_that_come_near_zero(toy_lake: Lake, lowest, has):
    label = np.append(lowest, 20 + 2 * np.arange(9.0))
    predicted = {"ride_minutes": 1.1 * label + 1, "long_probability": np.linspace(0, 1, 10)}
    notes: list[str] = []
    drawn = _evidently_performance(toy_lake.model(MODEL), label, predicted, notes)
    assert drawn is not None
    assert ("MAPE" in drawn) == has
    assert ("MAE" in drawn, any("without a MAPE" in note for note in notes)) == (True, not has)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_every_nth_row_whatever_the_batches(monkeypatch, size):
    monkeypatch.setattr("monitoring.pages.reports.SAMPLE_ROWS", 5)
    rows = pa.table({"x": list(range(23))})
    found = _every_nth(rows.to_batches(max_chunksize=size), ["x"], 23)["x"].to_pylist()
    assert found == [0, 5, 10, 15, 20]


def test_nothing_is_drawn_before_it_is_measured(scored: Lake):
    with pytest.raises(
        PartitionNotReady, match=r"(?s)The reports of ride_minutes needs it. Run `ride_minutes_monitor`"
    ):
        report(scored, MODEL, Interval.of(SCORED.last - timedelta(days=1)), run_id="t")
