"""A forecast of series through the whole chain in one process: from its source to the pages, and back again."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import ONE_DAY, Interval, cutoff
from features.labels import labels
from lake.lake import Lake
from lake.metrics import read_metrics
from lake.tables import valid_table
from monitoring.audit.trace import reproduce
from monitoring.drift import drift
from monitoring.pages import model as model_page
from monitoring.pages.model_card import write_model_card
from monitoring.pages.page import Context, Viewer
from monitoring.pages.render import render
from monitoring.performance import performance
from serving.predictions import predictions_table
from serving.projection import project_predictions
from serving.score import score
from tests import series, toy
from tests.serving.kinds.chain import features, first_champion

AS_OF = date(2024, 2, 29)
SCORED = Interval.closed(date(2024, 3, 1), date(2024, 3, 8))
MATURE = date(2024, 3, 5)
STOPPED = date(2024, 3, 3)  # server c sends nothing from that day on; three days later it is scored no longer
MODEL = series.MODEL


def source(folder: Path) -> None:
    rows = series.generate(Interval.closed(series.FIRST, SCORED.last))
    silent = pc.and_(pc.equal(rows["server"], "c"), pc.greater_equal(rows["step_utc"], cutoff(STOPPED, series.ZONE)))
    toy.write_csv(folder / "source" / "loads.csv", rows.filter(pc.invert(silent)))


def test_a_forecast_goes_from_the_source_to_the_pages_and_back(tmp_path: Path, mlflow_server: str) -> None:
    scaled = "minimum: 0}\n  scaled_load: {kind: forecast, interval: 0.8, gate: mase}\n"
    # Its median is no nearer than last week, which this test is not about.
    yaml = series.MODEL_YAML.replace("minimum: 0}\n", scaled).replace("gate: {", "gate: {better_by: -0.9, ")
    lake = series.lake_of(tmp_path, model=yaml, mlflow_tracking_uri=mlflow_server)
    source(tmp_path)
    features(lake, "servers", Interval.closed(series.FIRST, AS_OF))
    job_dir, registered, decision = first_champion(lake, MODEL, AS_OF, {"threads": 1})
    assert "of the baseline (seasonal naive), one number for all quantiles" in decision.reasons[0].text

    features(lake, "servers", SCORED)
    score(lake, MODEL, SCORED, run_id="score")
    rows = predictions_table(lake.settings, lake.model(MODEL)).read(SCORED)
    by_night = {row["data_date"]: row["server_count_distinct"] for row in _servers(rows).to_pylist()}
    assert by_night == {day: 3 if day <= STOPPED + 2 * ONE_DAY else 2 for day in SCORED}
    assert rows.num_rows == sum(8 * servers for servers in by_night.values())
    project_predictions(lake, MODEL, SCORED, run_id="project")

    drift(lake, MODEL, SCORED, run_id="drift")
    performance(lake, MODEL, SCORED, run_id="performance")
    watched = {row["column"] for row in read_metrics(lake, MODEL, "drift", SCORED).to_pylist()}
    assert {"load", "load_lower", "load_upper"} <= watched
    measured = read_metrics(lake, MODEL, "performance", SCORED).to_pylist()
    whole = [row for row in measured if row["about_date"] == MATURE and not row["segment"]]
    of_night = {row["check"]: row for row in whole if row["column"] != "scaled_load"}
    truth = labels(lake, MODEL, Interval.of(MATURE), as_of=SCORED.last)["label"].to_numpy()
    came, night = ~np.isnan(truth), rows.filter(pc.equal(rows["data_date"], MATURE)).sort_by("server")
    assert came.tolist() == [True] * 16 + [False] * 8  # c's labels never come: counted, not judged
    error = np.abs(night["load"].to_numpy() - truth)[came]
    assert of_night["mae"]["value"] == pytest.approx(error.mean(), abs=1e-6)
    assert of_night["label_share"]["value"] == pytest.approx(2 / 3)
    assert of_night["error_ratio"]["value"] == pytest.approx(
        of_night["pinball"]["value"] / of_night["pinball_baseline"]["value"], abs=1e-5
    )
    assert of_night["error_ratio"]["value"] < 1
    by_check = {row["check"]: row["value"] for row in whole if row["column"] == "scaled_load"}
    assert by_check["error_ratio"] == pytest.approx(by_check["mase"] / by_check["mase_baseline"], abs=1e-5)
    scales = np.repeat([_scale(lake, server) for server in ("a", "b")], 8)
    error = np.abs(night["scaled_load"].to_numpy() - truth)[came]
    assert by_check["mase"] == pytest.approx((error / scales).mean(), abs=1e-5)
    assert {row["segment"] for row in measured if row["check"] == "mase"} >= {"server=a", "server=b"}

    prediction_id = night["prediction_id"].to_pylist()[0]
    assert reproduce(lake, prediction_id).equal

    card = write_model_card(lake, MODEL, job_dir, registered, decision).read_text(encoding="utf-8")
    shown = " ".join(unescape(re.sub(r"<[^>]+>", " ", card)).split())
    assert "Baseline: seasonal naive (7 days). Lift" in shown
    assert "Challenger against baseline" not in shown
    # Eight steps of two days, each with its errors and what the interval held.
    steps = shown[shown.index("hours from the night's end to the step") :].split("inside the interval", 1)[1]
    assert re.search(r"^ 0 \d+ [\d.]+ [\d.]+ \d+ % 6 \d+ .* 42 \d+ [\d.]+ [\d.]+ \d+ %", steps), steps[:400]
    assert "pinball loss of the interval's quantiles" in shown
    assert "mean absolute error over that of the seasons before (mase)" in shown
    assert card.count("data:image/png;base64") >= 4
    context = Context(lake, Viewer("ada", "viewer"), datetime(2024, 3, 9, tzinfo=UTC), (MODEL,), ("servers",))
    page = unescape(render(model_page.page(context, query={}, model=MODEL), context, path="/nightfleet/model"))
    assert "pinball" in page
    assert "each 6 hours of the 2 days after the night, of every server of loads" in page + shown


def _scale(lake: Lake, server: str) -> float:
    """How far weeks of a server lay apart, at the steps of the night of `MATURE`, of the four weeks before it."""
    rows = valid_table(lake.settings, lake.dataset("servers"), "loads").read(Interval.closed(series.FIRST, MATURE))
    rows = rows.filter(pc.equal(rows["server"], server))
    load = dict(zip(rows["step_utc"].to_pylist(), rows["load"].to_pylist(), strict=True))
    begin, week = cutoff(MATURE, series.ZONE), 7 * ONE_DAY
    steps = [begin + number * series.SIX_HOURS for number in range(8)]
    apart = [abs(load[step - back * week] - load[step - (back + 1) * week]) for step in steps for back in range(1, 4)]
    return float(np.mean(apart))


def _servers(rows: pa.Table) -> pa.Table:
    return rows.group_by("data_date").aggregate([("server", "count_distinct")])
