"""The drift report of a night: what the metrics say, with how often, from what; and nights that are not there or not
whole.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics, read_metrics
from monitoring.drift import drift
from monitoring.pages.drift_report import page
from monitoring.pages.page import BadAddress, Context, NotFound, Viewer, to_csv
from monitoring.pages.render import render
from monitoring.pages.reports import report
from monitoring.pages.story import drift_story, known_from
from monitoring.performance import performance
from tests.monitoring import scenario
from tests.monitoring.scenario import NIGHT, SCORED
from tests.serving.scenario import MODEL

MINUTES, RIDES = "vehicle_daily__minutes_7d", "vehicle_daily__rides_7d"
HOSTILE = "<script>alert(1)</script>"


def context_of(lake: Lake) -> Context:
    return Context(
        lake=lake,
        viewer=Viewer("ann", "viewer"),
        now=datetime(2024, 2, 20, tzinfo=UTC),
        models=(MODEL,),
        datasets=("rides",),
        airflow_url="",
    )


def shown(lake: Lake, night: Any = NIGHT) -> tuple[Any, str]:
    context = context_of(lake)
    found = page(context, query={}, model=MODEL, night=str(night))
    return found, render(found, context, path=f"/nightfleet/models/{MODEL}/nights/{night}")


def rows_by_name(found: Any, table: str = "drift") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.table(table).rows}


def test_the_table_says_what_was_measured(fresh: Lake) -> None:
    scenario.decide_gate(fresh)
    scenario.with_features(fresh, NIGHT, minutes_7d=lambda old: old + 400)
    scenario.score_all(fresh)
    drift(fresh, MODEL, Interval.closed(SCORED.start, NIGHT), run_id="monitor of 1")
    found, text = shown(fresh)
    metrics = {
        (r["check"], r["column"]): r for r in read_metrics(fresh, MODEL, "drift", Interval.of(NIGHT)).to_pylist()
    }
    rows = rows_by_name(found)
    assert set(rows) == {MINUTES, RIDES, *fresh.model(MODEL).output_columns}
    row, test = rows[MINUTES], metrics["drift_psi", MINUTES]
    assert (row["feature"], row["kind"], row["status"], row["test"]) == (
        "minutes_7d of vehicle_daily",
        "feature",
        "warning",
        "PSI",
    )
    assert (row["value"], row["limit"], row["times_limit"]) == (
        test["value"],
        test["threshold"],
        test["value"] / test["threshold"],
    )
    assert (row["mean"], row["reference_mean"], row["unit"]) == (
        metrics["mean", MINUTES]["value"],
        metrics["reference_mean", MINUTES]["value"],
        "minutes",
    )
    assert (row["rows"], row["reference_rows"]) == (scenario.PER_DAY, metrics["reference_mean", MINUTES]["n"])
    assert (row["null_rate"], row["null_status"]) == (0.0, "ok")
    nights = len(Interval.closed(SCORED.start, NIGHT))
    earlier = [
        r["status"]
        for r in read_metrics(fresh, MODEL, "drift").to_pylist()
        if (r["check"], r["column"]) == ("drift_psi", MINUTES)
    ]
    assert row["fired"] == f"{earlier.count('warning')} of {nights}"
    assert rows["ride_minutes"]["kind"] == "prediction"
    assert next(iter(rows)) in {MINUTES, "ride_minutes", "long_probability", "ride_minutes_lower", "ride_minutes_upper"}
    beyond = found.table("beyond").rows
    assert [r["name"] for r in beyond] == [
        name for name, r in rows.items() if r["status"] != "ok" or r["null_status"] not in {"ok", None}
    ]
    share = found.table("night").rows[0]
    assert (share["status"], share["value"], share["limit"], share["n"]) == ("failing", "50 %", "30 %", 2)
    assert found.table("night").rows[1]["limit"].count(" to ") == 1
    for sentence in drift_story(fresh, MODEL, NIGHT):
        assert sentence in text.replace("&#39;", "'")
    assert 'class="status status-failing"' in text


def test_neighbours_links_and_the_data_version(night: Lake) -> None:
    drift(night, MODEL, Interval.of(NIGHT), run_id="asset_triggered__1+00:00")
    found, text = shown(night)
    for neighbour in (NIGHT - ONE_DAY, NIGHT + ONE_DAY):
        assert f'href="/nightfleet/models/{MODEL}/nights/{neighbour}"' in text
    assert f'href="/nightfleet/models/{MODEL}?from=2024-02-01&amp;to=2024-02-29"' in text
    assert f'href="/dags/{MODEL}_monitor/runs/asset_triggered__1%2B00%3A00"' in text
    assert f'href="/dags/{MODEL}_score/runs/score"' in text
    inputs = {(row["table"], row["data_date"]) for row in found.table("inputs").rows}
    assert ("rides/features/vehicle_daily", NIGHT) in inputs
    assert all(row["digest"] and isinstance(row["version"], int) for row in found.table("inputs").rows)
    first, _ = shown(night, SCORED.start)
    last, _ = shown(night, SCORED.last)
    assert first.values["previous"] is None
    assert last.values["next"] is None


def test_reports_are_embedded_without_an_origin_where_they_are_there(night: Lake) -> None:
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    _, text = shown(night)
    assert "<iframe" not in text
    assert text.count("This report does not exist yet.") == 3
    judge = known_from(night, MODEL, NIGHT)
    for day in (NIGHT, judge):
        drift(night, MODEL, Interval.of(day), run_id="t")
        performance(night, MODEL, Interval.of(day), run_id="t")
        report(night, MODEL, Interval.of(day), run_id="t")
    card = night.settings.reports / MODEL / "model_cards" / "1.html"
    card.parent.mkdir(parents=True)
    card.write_text("<p>card</p>")
    _, text = shown(night)
    for path, sandbox in (
        (f"{NIGHT}/drift.html", "allow-scripts"),
        (f"{judge}/performance.html", "allow-scripts"),
        ("model_cards/1.html", ""),
    ):
        assert f'sandbox="{sandbox}" src="/nightfleet/embedded/{MODEL}/{path}"' in text
    assert "allow-same-origin" not in text
    assert "performance held" in text or "performance got worse" in text


def test_nights_that_are_not_there_say_which_are(night: Lake, promoted: Lake) -> None:
    for asked in ("2024-05-01", "2023-01-01"):
        with pytest.raises(
            NotFound,
            match=(
                f"it was not scored. Scored are {len(SCORED)} nights, {SCORED.start} to {SCORED.last}; the nearest is"
            ),
        ):
            shown(night, asked)
    with pytest.raises(BadAddress, match="needs a date such as"):
        shown(night, "yesterday")
    with pytest.raises(NotFound, match="no night of it was scored yet"):
        shown(promoted)
    with pytest.raises(NotFound, match=f"There are: {MODEL}"):
        page(context_of(night), query={}, model=HOSTILE, night=str(NIGHT))


def test_a_night_that_was_not_measured_is_not_green(night: Lake) -> None:
    found, text = shown(night)
    assert found.values["standing"].status == "not evaluated"
    assert "volume not evaluated: monitoring of the night is not done" in text
    assert {row["status"] for row in found.table("night").rows} == {"not_evaluated"}
    assert not found.table("drift").rows
    assert "status-ok" not in text
    assert "The drift of this night has not been measured yet." in text
    assert "its drift was not measured yet" in text


def test_columns_without_values_and_limits_of_zero(fresh: Lake) -> None:
    scenario.with_features(fresh, NIGHT, minutes_7d=pa.nulls(6), rides_7d=lambda old: np.full_like(old, 30))
    scenario.score_all(fresh)
    drift(fresh, MODEL, Interval.of(NIGHT), run_id="t")
    rows = rows_by_name(shown(fresh)[0])
    assert (rows[MINUTES]["status"], rows[MINUTES]["value"], rows[MINUTES]["fired"]) == (
        "not_evaluated",
        None,
        "never judged",
    )
    assert rows[MINUTES]["reason"] == "every value is null"
    assert (rows[MINUTES]["null_rate"], rows[MINUTES]["null_status"]) == (1.0, "failing")
    zero = Metric(MODEL, NIGHT, NIGHT, "drift_psi", "warning", column=RIDES, value=0.5, threshold=0.0)
    publish_metrics(fresh, MODEL, "drift", [zero], Interval.of(NIGHT), run_id="t")
    found, text = shown(fresh)
    assert rows_by_name(found)[RIDES]["times_limit"] is None, "no number of times is beyond nothing"
    assert "inf" not in text.split("<tbody>", 1)[1].split("</tbody>")[0]


def test_hostile_texts_are_text_in_page_and_csv(night: Lake) -> None:
    rows = [
        Metric(
            MODEL,
            NIGHT,
            NIGHT,
            "drift_psi",
            "warning",
            column=HOSTILE,
            value=0.5,
            threshold=0.1,
            reason='=HYPERLINK("x")' + HOSTILE,
            n=3,
        ),
        Metric(
            MODEL,
            NIGHT,
            NIGHT,
            "drift_share",
            "failing",
            value=1.0,
            threshold=0.3,
            reason=HOSTILE + "\n" + "x" * 10_000,
            n=1,
        ),
    ]
    publish_metrics(night, MODEL, "drift", rows, Interval.of(NIGHT), run_id=HOSTILE)
    found, text = shown(night)
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    table = found.table("drift")
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["name"] for row in read] == [HOSTILE]
    assert read[0]["reason"].startswith("'=HYPERLINK")


def test_a_profile_that_is_gone_leaves_what_the_metrics_hold(night: Lake) -> None:
    drift(night, MODEL, Interval.of(NIGHT), run_id="t")
    before = rows_by_name(shown(night)[0])
    (night.settings.artifacts / MODEL / night.ledger(MODEL).read().newest.artifact_digest / "reference.json").unlink()
    found, text = shown(night)
    after = rows_by_name(found)
    assert {name: row["reference_rows"] for name, row in after.items()} == {
        name: row["reference_rows"] for name, row in before.items()
    }
    assert "version 1 has no reference.json beside its files; register it again" in text
