"""The Model page: what it reads, what it makes of it, and what a person reads there; on SQLite and on Postgres."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.ledger import Promotion
from lake.metrics import Metric, publish_metrics
from lake.promotions import project_promotions
from lake.publish import publish
from monitoring.alerting.standing import alarms_text, standings
from monitoring.drift import drift
from monitoring.importance import read_importances
from monitoring.pages import model
from monitoring.pages.model_axis import MOST_COLUMNS, Axis, points
from monitoring.pages.model_compare import compared, comparison_presets
from monitoring.pages.model_history import Average, known_nights, read_averages, read_history, read_segments
from monitoring.pages.page import BadAddress, Context, NotFound, Page, Viewer, to_csv
from monitoring.pages.render import render
from monitoring.performance import performance
from serving.predictions import predictions_table
from tests import toy
from tests.monitoring import scenario

MODEL = "ride_minutes"
FIRST = date(2024, 3, 1)
MINUTES, RIDES = "vehicle_daily__minutes_7d", "vehicle_daily__rides_7d"
DIGEST = "d" * 64
HOSTILE = "<script>alert('depot')</script>"


@pytest.fixture
def lake(toy_lake: Lake) -> Lake:
    return toy_lake


def night(number: int) -> date:
    return FIRST + timedelta(days=number)


def metric(day: date, check: str, column: str = "", *, judged_after: int = 0, **values: Any) -> Metric:
    return Metric(MODEL, day, day + judged_after * ONE_DAY, check, values.pop("status", "ok"), column, **values)


def score_nights(lake: Lake, versions: Mapping[int, int]) -> None:
    """Publications of empty nights, by number of the night the version that scored it."""
    table = predictions_table(lake.settings, lake.model(MODEL), lake.dataset("rides"))
    for number, version in versions.items():
        interval = Interval.of(night(number))
        champion = {
            "version": version,
            "artifact_digest": DIGEST,
            "sequence": version,
            "first": str(night(number)),
            "last": str(night(number)),
        }
        lineage = lake.lineage(MODEL, f"scheduled__{night(number)}", champions=[champion])
        with lake.scratch("test") as scratch:
            publish(
                lake.publications,
                table,
                table.schema.empty_table(),
                interval,
                replaces=dict.fromkeys(interval),
                lineage=lineage,
                scratch=scratch,
            )


def publish_drift(
    lake: Lake, days: Sequence[date], values: Mapping[str, Sequence[float | None]], *, limit: float = 0.1
) -> None:
    rows = []
    for position, day in enumerate(days):
        for column, numbers in values.items():
            value = numbers[position]
            status = "not_evaluated" if value is None else "warning" if value > limit else "ok"
            rows.append(
                metric(
                    day,
                    "drift_psi",
                    column,
                    value=value,
                    threshold=limit,
                    n=40,
                    status=status,
                    reason="none" if value is None else None,
                )
            )
            rows.append(metric(day, "null_rate", column, value=0.01, threshold=0.05, n=40))
        rows.append(metric(day, "volume", value=40.0, lower=20.0, upper=60.0, n=40))
        rows.append(
            metric(
                day,
                "drift_share",
                value=0.5,
                threshold=0.3,
                n=2,
                status="failing",
                reason="1 of 2 columns lie beyond their limit",
            )
        )
    publish_metrics(lake, MODEL, "drift", rows, Interval.closed(min(days), max(days)), run_id="r")


def performance_rows(
    day: date,
    error: float,
    *,
    n: int = 38,
    judged_after: int = 2,
    segments: Mapping[str, tuple[float, int]] | None = None,
) -> list[Metric]:
    shared: dict[str, Any] = {"n": n, "judged_after": judged_after}
    rows = [
        metric(day, "label_share", value=0.95, threshold=0.5, **{**shared, "n": 40}),
        metric(day, "mae", "ride_minutes", value=error, lower=error - 0.5, upper=error + 0.5, **shared),
        metric(day, "mae_baseline", "ride_minutes", value=1.25 * error, **shared),
        metric(day, "rmse", "ride_minutes", value=2 * error, **shared),
        metric(day, "brier", "long_probability", value=0.2, lower=0.19, upper=0.21, **shared),
        metric(day, "brier_baseline", "long_probability", value=0.25, **shared),
    ]
    for value, (loss, count) in (segments or {}).items():
        rows.append(
            metric(day, "mae", "ride_minutes", segment=f"depot={value}", value=loss, n=count, judged_after=judged_after)
        )
        rows.append(
            metric(
                day,
                "mae_baseline",
                "ride_minutes",
                segment=f"depot={value}",
                value=2 * loss,
                n=count,
                judged_after=judged_after,
            )
        )
    return rows


def publish_performance(lake: Lake, rows: Sequence[Metric]) -> None:
    days = [row.data_date for row in rows]
    publish_metrics(lake, MODEL, "performance", rows, Interval.closed(min(days), max(days)), run_id="r")


def context_of(lake: Lake, **changed: Any) -> Context:
    given: dict[str, Any] = {
        "models": (MODEL,),
        "datasets": ("rides",),
        "airflow_url": "/airflow",
        "mlflow_url": "http://mlflow",
    }
    return Context(lake, Viewer("ada", "viewer"), datetime(2024, 4, 1, tzinfo=UTC), **given | changed)


def shown(lake: Lake, **query: str) -> tuple[Page, str]:
    """The page and its HTML; `from_` stands for `from`."""
    context = context_of(lake)
    page = model.page(context, query={name.rstrip("_"): value for name, value in query.items()}, model=MODEL)
    return page, render(page, context, path=f"/nightfleet/models/{MODEL}", query="")


@pytest.fixture
def fortnight(lake: Lake) -> Lake:
    """Fourteen scored nights by two versions; labels of all but the last two; one segment with a hostile name."""
    days = [night(i) for i in range(14)]
    score_nights(lake, {i: 1 if i < 7 else 2 for i in range(14)})
    publish_drift(lake, days, {MINUTES: [0.05] * 7 + [0.3] * 7, RIDES: [0.02, None] * 7})
    segments = {"north": (3.0, 10), HOSTILE: (9.0, 20), "south": (1.0, 8)}
    rows = [
        row
        for i in range(12)
        for row in performance_rows(days[i], 5.0 + 0.1 * (i % 3) + (2.0 if i >= 7 else 0.0), segments=segments)
    ]
    publish_performance(lake, rows)
    ledger = lake.ledger(MODEL)
    snapshot = ledger.read()
    for version, at in ((1, 0), (2, 7)):
        line = Promotion(
            MODEL,
            version,
            night(at) - ONE_DAY,
            night(at),
            datetime(2024, 3, 1 + at, tzinfo=UTC),
            "gate",
            DIGEST,
            f"e{version}",
        )
        snapshot = ledger.append(line, seen=snapshot)
    project_promotions(lake, MODEL, seen=snapshot)
    folder = lake.settings.artifacts / MODEL / DIGEST
    folder.mkdir(parents=True)
    (folder / "importances.json").write_text(
        json.dumps({"ride_minutes": {MINUTES: 0.2, RIDES: 0.8}, "long_probability": {MINUTES: 0.4, RIDES: 0.6}})
    )
    (folder / "manifest.json").write_text(json.dumps({"family": "random_forest"}))
    (folder / "job.json").write_text(json.dumps({"run_id": "trained <b>", "mlflow": {"run_id": "abc/1"}}))
    return lake


# ---- reading -----------------------------------------------------------------------------------------------------


def test_nothing_scored_is_nothing_known(lake: Lake) -> None:
    assert known_nights(lake, MODEL) is None
    with pytest.raises(NotFound, match="has not scored a night yet. Run the first one: `make run ONLY=rides`"):
        shown(lake)


def test_a_model_that_the_gate_refused_says_so_where_its_nights_would_be(lake: Lake) -> None:
    scenario.decide_gate(lake, as_of=FIRST, verdict="refuse")
    with pytest.raises(NotFound, match=r"the gate's verdict on version 1, as of 2024-03-01, is refuse\."):
        shown(lake)


def test_a_history_has_a_place_for_every_night(lake: Lake) -> None:
    score_nights(lake, {0: 1, 2: 3})
    publish_drift(lake, [night(0), night(2)], {MINUTES: [0.05, 0.3]})
    found = read_history(lake, lake.model(MODEL), Interval.closed(night(0), night(3)))
    line = found.drift[MINUTES]
    assert np.array_equal(line.value, [0.05, math.nan, 0.3, math.nan], equal_nan=True)
    assert list(line.known) == [True, False, True, False]
    assert line.ratio[[0, 2]] == pytest.approx([0.5, 3.0])
    assert {day: scored.version for day, scored in found.scored.items()} == {night(0): 1, night(2): 3}
    assert np.isnan(found.line("no such check").value).all()
    assert known_nights(lake, MODEL) == (night(0), night(2))


def test_a_limit_of_nothing_is_exceeded_by_anything_but_nothing(lake: Lake) -> None:
    publish_drift(lake, [night(0), night(1)], {MINUTES: [0.0, 1e-9]}, limit=0.0)
    ratio = read_history(lake, lake.model(MODEL), Interval.closed(night(0), night(1))).drift[MINUTES].ratio
    assert np.isnan(ratio[0])
    assert ratio[1] == 99.0


def test_a_night_judged_twice_counts_as_judged_last(lake: Lake) -> None:
    segments = {"north": (1.0, 10)}
    score_nights(lake, {0: 1})
    publish_performance(lake, performance_rows(night(0), 5.0, segments=segments))
    publish_performance(lake, performance_rows(night(0), 9.0, judged_after=4, segments={"north": (4.0, 10)}))
    entry, interval = lake.model(MODEL), Interval.of(night(0))
    assert read_history(lake, entry, interval).line("mae", "ride_minutes").value == pytest.approx([9.0])
    assert read_averages(lake, MODEL, interval)["mae", "ride_minutes"].mean == pytest.approx(9.0)
    assert [part.error for part in read_segments(lake, entry, interval)] == pytest.approx([4.0])


def test_averages_are_weighted_by_rows_and_roots_are_pooled(lake: Lake) -> None:
    publish_performance(lake, [*performance_rows(night(0), 3.0, n=10), *performance_rows(night(1), 6.0, n=30)])
    publish_metrics(
        lake,
        MODEL,
        "drift",
        [metric(night(i), "volume", value=float(v), n=v) for i, v in enumerate((10, 30))],
        Interval.closed(night(0), night(1)),
        run_id="r",
    )
    found = read_averages(lake, MODEL, Interval.closed(night(0), night(1)))
    assert found["mae", "ride_minutes"].mean == pytest.approx((3 * 10 + 6 * 30) / 40)
    assert found["mae", "ride_minutes"].spread == pytest.approx(statistics.stdev([3.0, 6.0]))
    assert (found["mae", "ride_minutes"].nights, found["mae", "ride_minutes"].rows) == (2, 40)
    assert found["rmse", "ride_minutes"].mean == pytest.approx(math.sqrt((6**2 * 10 + 12**2 * 30) / 40))
    assert found["volume", ""].mean == pytest.approx(20.0), "rows weighted by themselves would be 25"


def test_segments_hold_their_share_of_the_loss(fortnight: Lake) -> None:
    parts = read_segments(fortnight, fortnight.model(MODEL), Interval.closed(night(0), night(13)))
    assert [(p.value, p.rows) for p in parts] == [(HOSTILE, 240), ("north", 120), ("south", 96)]
    assert [p.error for p in parts] == pytest.approx([9.0, 3.0, 1.0])
    assert [p.baseline for p in parts] == pytest.approx([18.0, 6.0, 2.0])
    page, _ = shown(fortnight)
    table = page.table("segments_ride_minutes_depot")
    rows = table.rows
    header, first = list(csv.reader(io.StringIO(to_csv(table))))[:2]
    told = dict(zip(header, first, strict=True))
    assert (told["model"], told["output"], told["metric"], told["segment_column"], told["unit"]) == (
        MODEL,
        "ride_minutes",
        "mae",
        "depot",
        "minutes",
    )
    assert told["from"] < told["to"] == str(night(13))
    total = 9.0 * 20 + 3.0 * 10 + 1.0 * 8
    assert [r["loss_share"] for r in rows] == pytest.approx([180 / total, 30 / total, 8 / total], rel=1e-5)
    assert [r["row_share"] for r in rows] == pytest.approx([20 / 38, 10 / 38, 8 / 38], rel=1e-5)
    assert rows[0]["ratio"] == pytest.approx((180 / total) / (20 / 38), rel=1e-5)


def test_losses_of_roots_are_squares(lake: Lake) -> None:
    entry = lake.model(MODEL)
    rooted = entry.model_copy(
        update={"outputs": {"ride_minutes": entry.outputs["ride_minutes"].model_copy(update={"gate": "rmse"})}}
    )
    rows = [
        metric(night(i), "rmse", "ride_minutes", segment="depot=n", value=v, n=n, judged_after=2)
        for i, (v, n) in enumerate(((3.0, 10), (4.0, 30)))
    ]
    publish_performance(lake, rows)
    [part] = read_segments(lake, rooted, Interval.closed(night(0), night(1)))
    assert part.loss == pytest.approx(9 * 10 + 16 * 30)
    assert part.error == pytest.approx(math.sqrt((9 * 10 + 16 * 30) / 40))


# ---- importance --------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_over_outputs(fortnight: Lake) -> None:
    found = read_importances(fortnight.settings, fortnight.model(MODEL), 2, DIGEST)
    assert found.missing is None
    assert found.shares == pytest.approx({MINUTES: 0.3, RIDES: 0.7})
    assert found.family == "random_forest"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no importances.json"),
        ("no json", "cannot be read"),
        ("[1, 2]", "does not hold shares"),
        ("{}", "does not hold shares"),
        ('{"ride_minutes": 3}', "does not hold shares"),
        ('{"ride_minutes": {"x": NaN}}', "outside 0 to 1"),
        ('{"ride_minutes": {"x": -0.1}}', "outside 0 to 1"),
        ('{"ride_minutes": {"x": "0.5"}}', "outside 0 to 1"),
        ('{"ride_minutes": {"x": true}}', "outside 0 to 1"),
        ('{"<script>": {"x": 0.5}}', "an output that the model does not have"),
        ('{"ride_minutes": {}}', "measured no importances"),
        ("[" * 100_000, "cannot be read"),
        (" " * 4_000_001, "bytes, more than"),
    ],
)
def test_importance_that_is_not_there_or_not_shares_is_not_evaluated(
    toy_lake: Lake, text: str | None, said: str
) -> None:
    folder = toy_lake.settings.artifacts / MODEL / DIGEST
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "importances.json").write_text(text)
    found = read_importances(toy_lake.settings, toy_lake.model(MODEL), 2, DIGEST)
    assert said in (found.missing or "")
    assert found.shares == {}


def test_features_are_ranked_by_drift_times_importance(fortnight: Lake) -> None:
    page, html = shown(fortnight)
    rows = page.table("features").rows
    # minutes: (7 * 0.5 + 7 * 3) / 14 = 1.75 over its limit, importance 0.3; rides: 0.2, importance 0.7.
    assert [row["feature"] for row in rows] == [MINUTES, RIDES]
    assert [row["product"] for row in rows] == pytest.approx([1.75 * 0.3, 0.2 * 0.7], rel=1e-5)
    assert rows[0]["beyond"] == "7 of 14"
    assert rows[1]["beyond"] == "0 of 7"
    assert "Importance is the share of what version 2 rests on" in html


def test_without_importance_features_are_ranked_by_drift_and_the_page_says_why(fortnight: Lake) -> None:
    (fortnight.settings.artifacts / MODEL / DIGEST / "importances.json").unlink()
    page, html = shown(fortnight)
    assert [row["product"] for row in page.table("features").rows] == [None, None]
    assert [row["feature"] for row in page.table("features").rows] == [MINUTES, RIDES]
    assert "Importance is not evaluated: version 2 has no importances.json beside its files" in html


# ---- two periods -------------------------------------------------------------------------------------------------


def average(values: Sequence[float]) -> Average:
    return Average(
        statistics.fmean(values), len(values), 100, statistics.stdev(values) if len(values) > 1 else math.nan
    )


@pytest.mark.parametrize(
    ("second", "verdict"),
    [([5.1, 4.9, 5.0, 5.2], "within"), ([7.1, 6.9, 7.0, 7.2], "exceeds"), ([7.1, 6.9], "not_evaluated")],
)
def test_a_difference_counts_where_nights_differ_by_less(second: list[float], verdict: str) -> None:
    [found] = compared({("mae", "x"): average([5.0, 5.2, 4.9, 5.1, 5.0])}, {("mae", "x"): average(second)})
    assert found.verdict == verdict


def test_the_bound_is_that_of_welchs_test() -> None:
    from scipy.stats import ttest_ind

    first, second = [5.0, 5.3, 4.7, 5.1], [5.9, 5.2, 6.4, 5.5, 6.0, 6.1]
    [found] = compared({("mae", ""): average(first)}, {("mae", ""): average(second)})
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert found.chance == pytest.approx((interval.high - interval.low) / 2)
    assert found.verdict == ("exceeds" if interval.low > 0 or interval.high < 0 else "within")


def test_numbers_that_never_vary_exceed_when_they_change_and_references_are_left_out() -> None:
    same, other = Average(1.0, 5, 10, 0.0), Average(2.0, 5, 10, 0.0)
    key = ("drift_share", "")
    assert [d.verdict for d in compared({key: same}, {key: same})] == ["within"]
    assert [d.verdict for d in compared({key: same}, {key: other})] == ["exceeds"]
    assert compared({("reference_mean", "x"): same}, {("reference_mean", "x"): other}) == []
    assert compared({key: same}, {("volume", ""): same}) == []


def test_two_periods_are_compared_and_sorted_by_the_address(fortnight: Lake) -> None:
    asked = {"from_": str(night(7)), "to": str(night(13)), "compare_from": str(night(0)), "compare_to": str(night(6))}
    page, html = shown(fortnight, **asked)
    rows = {(row["metric"], row["column"]): row for row in page.table("comparison").rows}
    error = rows["mae", "ride_minutes"]
    assert error["first"] == pytest.approx(statistics.fmean(5.0 + 0.1 * (i % 3) for i in range(7)), rel=1e-5)
    assert error["second"] == pytest.approx(statistics.fmean(7.0 + 0.1 * (i % 3) for i in range(7, 12)), rel=1e-5)
    assert (error["verdict"], error["nights"], error["unit"]) == ("exceeds", "7 and 5", "minutes"), (
        "nights whose labels are not mature do not count"
    )
    assert rows["drift (PSI)", MINUTES]["verdict"] == "exceeds"
    assert rows["brier", "long_probability"]["verdict"] == "within"
    by_name, _ = shown(fortnight, sort="name", **asked)
    names = [(row["metric"], row["column"]) for row in by_name.table("comparison").rows]
    assert names == sorted(names)
    by_change, _ = shown(fortnight, sort="change", **asked)
    changes = [abs(row["change"] or 0) for row in by_change.table("comparison").rows]
    assert changes == sorted(changes, reverse=True)
    assert "sort=change" in html
    assert "A is 2024-03-01 to 2024-03-07, B is 2024-03-08 to 2024-03-14" in html


def test_presets_are_periods_of_calendar_and_ledger(fortnight: Lake) -> None:
    lines = fortnight.ledger(MODEL).read().promotions
    found = {name: (later, earlier) for name, later, earlier in comparison_presets(date(2024, 3, 14), lines)}
    assert found["last 7 nights against the 7 before"] == (
        Interval(date(2024, 3, 8), date(2024, 3, 15)),
        Interval(date(2024, 3, 1), date(2024, 3, 8)),
    )
    assert found["since the last promotion (2024-03-08) against before"] == (
        Interval(date(2024, 3, 8), date(2024, 3, 15)),
        Interval(date(2024, 3, 1), date(2024, 3, 8)),
    )
    assert found["this month against the last"] == (
        Interval(date(2024, 3, 1), date(2024, 3, 15)),
        Interval(date(2024, 2, 1), date(2024, 3, 1)),
    )
    assert len(comparison_presets(date(2024, 3, 14), ())) == 2, "no promotion, no such period"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"sort": "<script>"}, "sort is '<script>', needs one of effect"),
        ({"from_": "2024-03-09", "to": "2024-03-01"}, "Swap them"),
        ({"from_": "tomorrow"}, "needs a date"),
        ({"compare_from": "x"}, "compare_from is 'x'"),
    ],
)
def test_addresses_that_cannot_be_read_say_what_is_needed(fortnight: Lake, query: dict[str, str], said: str) -> None:
    with pytest.raises(BadAddress) as refused:
        shown(fortnight, **query)
    assert said in str(refused.value)


# ---- the page ----------------------------------------------------------------------------------------------------


def grids(page: Page) -> dict[str, dict[str, Any]]:
    """Title of each grid: its series by name."""
    option = page.charts[0].option
    by_grid: dict[str, dict[str, Any]] = {title["text"]: {} for title in option["title"]}
    for series in option["series"]:
        grid = option["xAxis"][series["xAxisIndex"]]["gridIndex"]
        by_grid[option["title"][grid]["text"]][series["name"]] = series
    return by_grid


def test_all_grids_share_one_axis_of_nights(fortnight: Lake) -> None:
    page, _ = shown(fortnight, from_=str(night(0)), to=str(night(13)))
    option = page.charts[0].option
    columns = {tuple(axis["data"]) for axis in option["xAxis"] if axis["type"] == "category"}
    assert columns == {tuple(night(i).isoformat() for i in range(14))}
    assert {(grid["left"], grid["right"]) for grid in option["grid"]} == {
        (option["grid"][0]["left"], option["grid"][0]["right"])
    }
    assert {grid["outerBoundsMode"] for grid in option["grid"]} == {"none"}, (
        "or ECharts moves their edges by their labels"
    )
    assert all(
        below["top"] >= above["top"] + above["height"]
        for above, below in zip(option["grid"], option["grid"][1:], strict=False)
    )
    assert len(option["grid"]) == len(option["title"]) == len(option["yAxis"]) == 7
    assert page.charts[0].links[night(3).isoformat()] == f"/nightfleet/models/{MODEL}/nights/{night(3)}"
    assert json.loads(json.dumps(option, allow_nan=False)) == option, "JSON alone"


def test_the_heat_map_has_the_worst_on_top_and_gaps_where_nothing_was_judged(fortnight: Lake) -> None:
    page, _ = shown(fortnight, from_=str(night(0)), to=str(night(13)))
    heat = grids(page)["Drift: value over its limit"]["times its limit"]
    labels = page.charts[0].option["yAxis"][heat["yAxisIndex"]]["data"]
    assert labels == ["rides_7d · vehicle_daily", "minutes_7d · vehicle_daily"], "the axis grows upwards"
    assert heat["matrix"] == [[0.2, None] * 7, [0.5] * 7 + [3.0] * 7]


def test_versions_are_marked_on_every_grid(fortnight: Lake) -> None:
    page, _ = shown(fortnight, from_=str(night(0)), to=str(night(13)))
    for title, series in grids(page).items():
        marks = [mark for s in series.values() for mark in s.get("markLine", {}).get("data", [])]
        assert [(m["xAxis"], m["label"]["formatter"]) for m in marks] == [
            (str(night(0)), "v1"),
            (str(night(7)), "v2"),
        ], title
    assert "promoted: version 2, by gate" in page.charts[0].description


def test_a_version_s_band_covers_its_nights_from_edge_to_edge(fortnight: Lake) -> None:
    page, _ = shown(fortnight, from_=str(night(0)), to=str(night(13)))
    spans = grids(page)["Versions and what happened"]["spans"]
    bands = [(begin["name"], begin["xAxis"], end["xAxis"]) for begin, end in spans["markArea"]["data"]]
    assert bands == [("v1", -0.5, 6.5), ("v2", 6.5, 13.5)], "column 0 reaches from -0.5 to 0.5"
    axis = page.charts[0].option["xAxis"][spans["xAxisIndex"]]
    assert (axis["min"], axis["max"], axis["show"]) == (-0.5, 13.5, False)


def test_a_value_without_neighbours_is_a_dot_that_is_seen() -> None:
    values = np.array([1.0, np.nan, 2.0, 3.0, np.nan, 4.0])
    alone, lonely = {"value": 1.0, "symbolSize": 8}, {"value": 4.0, "symbolSize": 8}
    assert points(values, 3) == [alone, None, 2.0, 3.0, None, lonely]


@pytest.mark.parametrize(("share", "top"), [(0.0, 0.01), (0.3, None), (0.95, 1), (1.0, 1)])
def test_the_axis_of_shares_never_ends_beyond_all(lake: Lake, share: float, top: float | None) -> None:
    score_nights(lake, {0: 1})
    row = metric(night(0), "null_rate", "vehicle_daily__rides_7d", value=share, threshold=0.05, status="warning")
    publish_metrics(lake, MODEL, "drift", [row], Interval.of(night(0)), run_id="r")
    option = shown(lake)[0].charts[0].option
    [axis] = [a for a, title in zip(option["yAxis"], option["title"], strict=True) if title["text"] == "Null rates"]
    assert axis.get("max") == top


def test_nights_without_mature_labels_are_drawn_as_not_known(fortnight: Lake) -> None:
    page, html = shown(fortnight, from_=str(night(0)), to=str(night(13)))
    series = grids(page)["ride_minutes: mae"]
    assert series["ride_minutes: mae"]["data"][-3:] == [pytest.approx(7.2), None, None]
    [[begin, end]] = series["ride_minutes: mae"]["markArea"]["data"]
    assert (begin["name"], begin["xAxis"], end["xAxis"]) == ("not known yet", str(night(12)), str(night(13)))
    assert series["lower"]["data"][0] == pytest.approx(4.5)
    assert series["band"]["data"][0] == pytest.approx(1.0)
    assert series["ride_minutes: baseline"]["data"][0] == pytest.approx(6.25)
    rows = page.table("nights").rows
    assert [row["state"] for row in rows[:3]] == ["not mature yet", "not mature yet", "judged"]
    assert [row["version"] for row in (rows[0], rows[-1])] == [2, 1]
    assert "labels are mature up to 2024-03-12" in html


def test_a_night_whose_judgement_failed_is_not_evaluated_and_named_so(lake: Lake) -> None:
    score_nights(lake, {0: 1, 1: 1, 2: 1})
    failed = [
        metric(night(1), check, column, status="not_evaluated", reason="no label came", judged_after=1)
        for check, column in (("label_share", ""), ("mae", "ride_minutes"))
    ]
    publish_performance(
        lake,
        [*performance_rows(night(0), 5.0, judged_after=1), *failed, *performance_rows(night(2), 5.0, judged_after=1)],
    )
    page, _ = shown(lake)
    assert [row["state"] for row in page.table("nights").rows] == ["judged", "not evaluated", "judged"]
    [[begin, _]] = grids(page)["ride_minutes: mae"]["ride_minutes: mae"]["markArea"]["data"]
    assert (begin["name"], begin["xAxis"]) == ("", str(night(1)))


def test_the_open_period_begins_with_the_first_night(fortnight: Lake) -> None:
    assert shown(fortnight)[0].charts[0].option["xAxis"][0]["data"] == [night(i).isoformat() for i in range(14)]
    early = shown(fortnight, to=str(night(2)))[0].charts[0].option["xAxis"][0]["data"]
    assert early == [night(i).isoformat() for i in range(-4, 3)], "a week at least"


def test_a_period_without_nights_says_which_there_are(fortnight: Lake) -> None:
    page, html = shown(fortnight, from_="2023-01-01", to="2023-01-31")
    assert "No night from 2023-01-01 to 2023-01-31 was scored. There are nights from 2024-03-01 to 2024-03-14." in html
    assert page.charts == ()
    assert page.table(None).name == "versions"


def test_values_from_data_are_text(fortnight: Lake) -> None:
    _, html = shown(fortnight)
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(&#39;depot&#39;)&lt;/script&gt;" in html
    assert "trained <b>" not in html
    assert html.count("<script") == 3, "the page's own, ECharts, and the chart's data"


def test_versions_lead_to_their_runs_and_cards(fortnight: Lake) -> None:
    card = fortnight.settings.reports / MODEL / "model_cards" / "2.html"
    card.parent.mkdir(parents=True)
    card.write_text("card")
    rows = shown(fortnight)[0].table("versions").rows
    assert [(row["version"], str(row["effective_from"]), row["until"]) for row in rows] == [
        (2, "2024-03-08", "in force"),
        (1, "2024-03-01", "2024-03-07"),
    ]
    assert rows[0]["mlflow_url"] == "http://mlflow/#/runs/abc%2F1"
    assert rows[0]["run_url"] == "/airflow/dags/ride_minutes_train", "no run of that name is on record"
    assert (rows[0]["card"], rows[1]["card"]) == ("card", None)
    assert rows[0]["card_url"] == f"/nightfleet/embedded/{MODEL}/model_cards/2.html"
    assert rows[0]["verdict"] == "no decision is stored"


def test_rollbacks_and_requests_are_told_apart(fortnight: Lake) -> None:
    from monitoring.retraining_requests import request_retraining

    ledger = fortnight.ledger(MODEL)
    seen = ledger.read()
    line = dataclasses.replace(
        seen.promotions[0], kind="rollback", effective_from=night(10), by="olga", reason="=cmd()", sequence=0
    )
    project_promotions(fortnight, MODEL, seen=ledger.append(line, seen=seen))
    request_retraining(fortnight, MODEL, night(9), by="ana", reason="<b>refit</b>", run_id="r")
    page, html = shown(fortnight)
    rows = {row["what"]: row for row in page.table("events").rows}
    assert (rows["rollback"]["version"], rows["rollback"]["reason"]) == (1, "=cmd()")
    assert rows["request"]["reason"] == "<b>refit</b>"
    assert "<b>refit</b>" not in html
    assert "'=cmd()" in to_csv(page.table("events"))
    lane = grids(page)["Versions and what happened"]["events"]
    assert {point["name"].split(" ")[0] for point in lane["data"]} == {"promoted:", "rollback", "retraining"}


def test_every_table_is_csv(fortnight: Lake) -> None:
    page, _ = shown(fortnight, table="drift", format="csv")
    for table in page.tables:
        lines = to_csv(table).splitlines()
        assert len(lines) >= 1 + len(table.rows), table.name
    drifts = page.table("drift").rows
    assert len(drifts) == 28
    assert {"night": night(7), "feature": MINUTES, "value": 0.3, "limit": 0.1, "null_rate": 0.01} in drifts


def test_beyond_forty_features_the_rest_is_a_table(lake: Lake) -> None:
    score_nights(lake, {0: 1})
    publish_drift(lake, [night(0)], {f"view__feature_{i}": [0.001 * (i + 1)] for i in range(45)})
    page, _ = shown(lake)
    heat = grids(page)["Drift: value over its limit"]["times its limit"]
    assert len(heat["matrix"]) == 40
    assert page.charts[0].option["yAxis"][heat["yAxisIndex"]]["data"][-1] == "feature_44 · view"
    assert sorted(row["feature"] for row in page.table("rest").rows) == [f"view__feature_{i}" for i in range(5)]


def test_a_catalog_without_segments_says_so(fortnight: Lake) -> None:
    entry = fortnight.model(MODEL)
    bare = entry.model_copy(update={"gate": entry.gate.model_copy(update={"segments": None})})
    catalog = fortnight.catalog.model_copy(update={"models": (bare,)})
    _, html = shown(Lake(fortnight.settings, catalog))
    assert "Not evaluated: the catalog names no segment columns" in html


def test_the_word_of_tonight_and_its_cause_stand_on_top(fortnight: Lake) -> None:
    [standing] = standings(fortnight, [MODEL], context_of(fortnight).now)
    _, html = shown(fortnight)
    assert f'<span class="status status-{standing.status.replace(" ", "_")}">{standing.status}</span>' in html
    assert standing.status == "failing"
    assert standing.causes
    assert standing.causes[0].text.rstrip(".") in unescape(html)
    assert f"Alarms: {alarms_text(standing.alarms)}." in html


def test_without_segments_the_page_says_why(lake: Lake) -> None:
    score_nights(lake, {0: 1})
    assert "Not evaluated: no scored night of the period has mature labels yet." in shown(lake)[1]
    publish_performance(lake, performance_rows(night(0), 5.0))
    assert "measured before segments were. Run `ride_minutes_monitor` for its nights again." in shown(lake)[1]


# ---- axis --------------------------------------------------------------------------------------------------------


def test_long_periods_are_drawn_with_several_nights_in_a_column() -> None:
    nights = [night(i) for i in range(2 * MOST_COLUMNS + 1)]
    axis = Axis.of(nights)
    assert axis.size == 3
    assert axis.names[:2] == [str(night(0)), str(night(3))]
    assert axis.name_of(night(5)) == str(night(3))
    assert axis.name_of(night(-9)) == str(night(0))
    assert axis.name_of(night(10_000)) == axis.names[-1]
    values = np.full(len(nights), np.nan)
    values[3], values[4] = 1.0, 4.0
    weights = np.full(len(nights), 1.0)
    weights[3] = 2.0
    assert axis.mean(values, weights)[1] == pytest.approx(2.0)
    assert axis.worst(values)[1] == 4.0
    assert np.isnan(axis.mean(values)[0])
    assert np.isnan(axis.worst(values)[0])


def test_periods_far_apart_are_not_drawn_on_one_axis(fortnight: Lake) -> None:
    page, html = shown(
        fortnight, from_=str(night(7)), to=str(night(13)), compare_from="2020-01-01", compare_to="2020-01-31"
    )
    assert page.charts[0].option["xAxis"][0]["data"][0] == str(night(7))
    assert "they are too far apart for one axis" in html


# ---- as the stages write it --------------------------------------------------------------------------------------


def test_what_the_stages_publish_is_shown(night: Lake) -> None:
    drift(night, MODEL, scenario.SCORED, run_id="m")
    performance(night, MODEL, scenario.SCORED, run_id="m")
    page, html = shown(night)
    judged = [row for row in page.table("nights").rows if row["state"] == "judged"]
    assert len(judged) == len(scenario.SCORED) - 2
    assert all(row["rows"] == scenario.PER_DAY for row in judged)
    parts = page.table("segments_ride_minutes_depot").rows
    assert {row["segment"] for row in parts} == set(toy.DEPOTS)
    assert sum(row["loss_share"] for row in parts) == pytest.approx(1.0, abs=1e-5)
    assert sum(row["row_share"] for row in parts) == pytest.approx(1.0, abs=1e-5)
    assert {row["feature"] for row in page.table("features").rows} == {MINUTES, RIDES}
    assert "beat its baseline" in html or "no better than its baseline" in html


def test_where_a_model_may_be_used_stands_on_its_page(tmp_path: Path) -> None:
    said = toy.MODEL_YAML + "intended_use: rides within the city; not for <night> rides\n"
    lake = toy.toy_lake(tmp_path, model=said)
    score_nights(lake, {0: 1})
    _, page = shown(lake)
    assert "Intended use: rides within the city; not for &lt;night&gt; rides" in page
    assert lake.catalog.digest(MODEL) == toy.toy_lake(tmp_path / "other").catalog.digest(MODEL)
