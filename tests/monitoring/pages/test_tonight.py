"""The landing page: one status and its cause for each model, one sentence for the night, from what the metrics say."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from monitoring.alerting.alarms import acknowledge, silence
from monitoring.alerting.runs import Run, record_failure, record_run
from monitoring.alerting.standing import Cause, Headline, Standing, alarms_text, headline, standings
from monitoring.alerting.status import DEFINITIONS, STATUSES
from monitoring.pages import tonight
from monitoring.pages.page import to_csv
from monitoring.pages.render import render
from monitoring.retraining_requests import request_retraining
from tests import toy
from tests.monitoring.pages.fleet import DATASET, FEATURES, MATURE, NIGHT, NOW, OUTPUTS, context, night, nights
from tests.monitoring.scenario import HISTORY
from tests.serving.scenario import MODEL

HOSTILE = "<script>alert(1)</script> \"quoted\" 'x'"


@pytest.fixture(name="lake")
def _lake(request: pytest.FixtureRequest) -> Lake:
    scored: Lake = request.getfixturevalue("night")
    return scored


def standing(lake: Lake) -> Standing:
    [found] = standings(lake, [MODEL], NOW)
    return found


def causes(lake: Lake) -> list[str]:
    return [cause.text for cause in standing(lake).causes]


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def shown(lake: Lake, **changed: Any) -> tuple[str, list[str]]:
    """What a person reads of the page, and its elements."""
    here = context(lake, **changed)
    parser = _Text()
    parser.feed(render(tonight.page(here, query={}), here, path="/nightfleet/"))
    return " ".join(" ".join(parser.words).split()), parser.tags


def failed(lake: Lake, kind: str, error: str, subject: str = MODEL, day: Any = NIGHT) -> None:
    at = datetime(2024, 2, 21, 1, tzinfo=UTC)
    run = Run(
        f"{subject}_{kind}",
        f"run__{day}",
        subject,
        kind,  # type: ignore[arg-type]  # a value that the test varies
        day.isoformat(),
        "failed",
        at,
        at + timedelta(minutes=1),
    )
    record_run(lake, run, at=at)
    record_failure(lake, run, task=kind, error=error, at=at)


# ---- a green night -----------------------------------------------------------------------------------------------


def test_a_green_night_is_one_sentence(lake: Lake) -> None:
    nights(lake)
    found = standing(lake)
    assert (found.status, found.causes) == ("healthy", ())
    assert headline([found]) == Headline("The model is healthy", True)
    assert headline([found] * 16).text == "All 16 models are healthy"
    text, _ = shown(lake)
    assert "The model is healthy 1 healthy Data date 2024-02-20." in text
    assert "What is wrong" not in text


def test_the_row_says_what_was_scored_and_how_well(lake: Lake) -> None:
    nights(lake)
    page = tonight.page(context(lake), query={})
    [row] = page.tables[0].rows
    assert (row["night"], row["version"], row["rows"], row["quality"]) == (NIGHT, 1, 40, 1.0)
    assert row["drift"] == "0 of 2"
    assert row["performance"] == "MAE 8.08 minutes, 81 % (80–82), promised 80; Brier 0.162, 81 % (80–82), promised 80"
    assert (row["approvals"], row["requests"], row["alarms"]) == (0, 0, "none")
    [header, line] = csv.reader(io.StringIO(to_csv(page.tables[0])))
    assert dict(zip(header, line, strict=True))["rows"] == "40"


# ---- causes ------------------------------------------------------------------------------------------------------


def test_a_view_without_values_is_named_first_with_since_and_share(lake: Lake) -> None:
    gone = {("null_rate", name): {"value": 0.31, "status": "warning"} for name in FEATURES}
    drifted = {
        ("drift_psi", FEATURES[0]): {"value": 0.9, "status": "warning"},
        ("drift_share", ""): {"value": 0.5, "status": "failing", "reason": "1 of 2"},
    }
    nights(lake, count=4)
    for back in (2, 1):
        night(lake, NIGHT - timedelta(days=back), gone)
    night(lake, NIGHT, gone | drifted)
    assert standing(lake).status == "failing"
    assert causes(lake)[1] == "vehicle daily missing since 02-18: 2 features null in 31 % of rows"
    assert (
        causes(lake)[0]
        == "drift: 1 of 2 features beyond their limit, worst rides_7d of vehicle_daily (PSI 0.9, limit 0.2)"
    )
    night(lake, NIGHT, gone)
    assert standing(lake).status == "degraded"
    told = headline(standings(lake, [MODEL], NOW))
    assert (told.text, told.cause) == (
        "The model is degraded",
        "Vehicle daily missing since 02-18: 2 features null in 31 % of rows",
    )


def test_what_concerns_more_of_the_input_stands_first(lake: Lake) -> None:
    """A few nulls in one feature never stand above the drift of many."""
    few = {("null_rate", FEATURES[0]): {"value": 0.06, "status": "warning"}}
    drifted = {("drift_psi", name): {"value": 0.9, "status": "warning"} for name in FEATURES}
    for day in (NIGHT - ONE_DAY, NIGHT):
        night(lake, day, few | drifted)
    assert [text.partition(" ")[0] for text in causes(lake)[:2]] == ["drift", "vehicle"]
    for day in (NIGHT - ONE_DAY, NIGHT):
        night(lake, day, {("null_rate", FEATURES[0]): {"value": 1.0, "status": "failing", "reason": "all"}} | drifted)
    assert (standing(lake).status, causes(lake)[0].partition(" ")[0]) == ("failing", "vehicle")


def test_what_the_model_rests_on_weighs_more(lake: Lake) -> None:
    """Half of the rows without the feature that nearly all rests on, against a drift of one that hardly counts."""
    half = {("null_rate", FEATURES[1]): {"value": 0.5, "status": "warning"}}
    drifted = {("drift_psi", FEATURES[0]): {"value": 0.9, "status": "warning"}}
    for day in (NIGHT - ONE_DAY, NIGHT):
        night(lake, day, half | drifted)
    assert [text.partition(" ")[0] for text in causes(lake)[:2]] == ["drift", "vehicle"], "0.5 of 1 against 0.5 of 0.5"
    [digest] = {promotion.artifact_digest for promotion in lake.ledger(MODEL).read().promotions}
    rests_on = {output: {FEATURES[0]: 0.1, FEATURES[1]: 0.9} for output in OUTPUTS}
    (lake.settings.artifacts / MODEL / digest / "importances.json").write_text(json.dumps(rests_on))
    assert [text.partition(" ")[0] for text in causes(lake)[:2]] == ["vehicle", "drift"]


def test_one_column_beyond_its_limit_for_one_night_does_not_count_yet(lake: Lake) -> None:
    wide = {("drift_psi", FEATURES[0]): {"value": 0.3, "status": "warning"}}
    nights(lake, wide)
    assert (standing(lake).status, [a.column for a in standing(lake).alarms]) == ("healthy", [FEATURES[0]])
    assert "1 warning of healthy models does not count yet." in shown(lake)[0]
    night(lake, NIGHT - ONE_DAY, wide)
    assert standing(lake).status == "degraded"
    assert causes(lake) == [
        "drift since 02-19: 1 of 2 features beyond their limit, worst rides_7d of vehicle_daily (PSI 0.3, limit 0.2)"
    ]


@pytest.mark.parametrize(
    ("key", "change", "status", "text"),
    [
        (
            ("volume", ""),
            {"status": "warning", "reason": "12 rows were scored; nights of the training window allow 20 to 60"},
            "degraded",
            "volume: 12 rows were",
        ),
        (("volume", ""), {"status": "failing", "reason": "0 rows were scored"}, "failing", "volume: 0 rows"),
        (
            ("bad_share", "bookings"),
            {"status": "warning", "value": 0.05, "reason": "2 of 40 rows"},
            "degraded",
            "bookings: 5 % of rows quarantined (2 of 40 rows)",
        ),
        (("quality_score", "outcomes"), {"status": "warning", "value": 0.9}, "degraded", "outcomes: quality 90 %"),
        (
            ("accuracy_drop", "long_probability"),
            {"status": "failing", "reason": "accuracy fell by 0.07"},
            "failing",
            "accuracy drop of long_probability: accuracy",
        ),
    ],
)
def test_each_kind_of_alarm_has_its_words(
    lake: Lake, key: tuple[str, str], change: dict[str, Any], status: str, text: str
) -> None:
    nights(lake, {key: change})
    assert standing(lake).status == status
    assert causes(lake)[0].startswith(text)


def test_a_failed_run_tells_its_error_s_first_line_and_leads_to_the_run(lake: Lake) -> None:
    nights(lake)
    failed(lake, "monitor", "TrainingFailed: out of memory\n  a second line", day=NIGHT)
    assert standing(lake).status == "failing"
    assert causes(lake) == ["monitoring of 2024-02-20 failed: TrainingFailed: out of memory"]
    page = tonight.page(context(lake), query={})
    assert page.values["troubled"][0]["causes"][0]["url"] == f"/dags/{MODEL}_monitor/runs/run__2024-02-20/tasks/monitor"


def test_a_failure_that_was_mended_is_over(lake: Lake) -> None:
    nights(lake)
    failed(lake, "score", "NoChampion: none")
    later = datetime(2024, 2, 21, 3, tzinfo=UTC)
    record_run(
        lake, Run(f"{MODEL}_score", "again", MODEL, "score", NIGHT.isoformat(), "success", later, later), at=later
    )
    assert standing(lake).status == "healthy"


def test_a_training_that_fails_stands_beside_the_night_s_health(lake: Lake) -> None:
    said = f"the last 2 runs of {MODEL}_train failed"
    twice = {"status": "failing", "value": 2.0, "threshold": 2.0, "reason": said}
    nights(lake, {("consecutive_failures", "train"): twice})
    failed(lake, "train", "NotEnoughHistory: split validation has no labelled row", day=NIGHT)
    found = standing(lake)
    assert (found.status, found.causes) == ("healthy", ())
    assert [alarm.check for alarm in found.alarms] == ["consecutive_failures"], "still an alarm, on Retraining"
    assert found.training is not None
    assert (
        found.training.text == "training of 2024-02-20 failed: NotEnoughHistory: split validation has no labelled row"
    )
    page = tonight.page(context(lake), query={})
    [told] = page.values["trainings"]
    assert told["url"].startswith(f"/dags/{MODEL}_train/runs/")
    assert "Trainings that failed" in shown(lake)[0]
    later = datetime(2024, 2, 22, 3, tzinfo=UTC)
    record_run(
        lake, Run(f"{MODEL}_train", "again", MODEL, "train", NIGHT.isoformat(), "success", later, later), at=later
    )
    assert standing(lake).training is None
    nights(lake, {("consecutive_failures", "score"): twice})
    assert standing(lake).status == "failing"


def test_a_failed_ingest_is_one_cause_for_all_its_models(lake: Lake) -> None:
    nights(lake)
    failed(lake, "ingest", "SourceChanged: bookings", subject=DATASET, day=NIGHT + ONE_DAY)
    found = standing(lake)
    assert found.causes[0].shared == f"{DATASET}_ingest"
    told = headline([found, replace(found, entry=lake.model(MODEL))])
    assert (told.text, told.cause) == ("2 of 2 models failing", "Ingest of 2024-02-21 failed: SourceChanged: bookings")
    assert told.about == "Duration of tomorrow's rides and 1 more model"


def test_a_night_that_is_published_but_not_scored_is_late(lake: Lake) -> None:
    nights(lake)
    toy.publish_valid(lake, Interval(HISTORY.start, NIGHT + 2 * ONE_DAY))
    toy.publish_features(lake, Interval.of(NIGHT + ONE_DAY))
    assert standing(lake).status == "late"
    assert causes(lake) == ["2024-02-21 is not scored, though its features are published, and no run is going on"]


# ---- never green by accident -------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["volume", "drift_share", "prediction_drift", "quality_score", "mae", "error_ratio"])
def test_a_part_that_is_missing_is_not_healthy(lake: Lake, check: str) -> None:
    nights(lake, left_out=(check,))
    assert standing(lake).status == "not evaluated"
    assert "not evaluated: " in causes(lake)[0]


@pytest.mark.parametrize(
    "key", [("volume", ""), ("drift_share", ""), ("mae", "ride_minutes"), ("error_ratio", "long_probability")]
)
def test_a_part_that_could_not_be_judged_says_why(lake: Lake, key: tuple[str, str]) -> None:
    nights(lake, {key: {"status": "not_evaluated", "value": None, "reason": HOSTILE}})
    assert standing(lake).status == "not evaluated"
    assert causes(lake)[0].endswith(HOSTILE)
    assert "script" not in [tag for tag in shown(lake)[1] if tag == "script"][1:], (
        "the page's own script is the only one"
    )


def test_single_columns_without_a_verdict_are_counted_beside(lake: Lake) -> None:
    nights(
        lake, {("drift_psi", FEATURES[0]): {"status": "not_evaluated", "value": None, "reason": "every value is null"}}
    )
    assert standing(lake).status == "healthy"
    assert standing(lake).drift == "0 of 1; 1 not evaluated"


def test_nothing_measured_at_all(lake: Lake) -> None:
    assert standing(lake).status == "not evaluated"
    assert any("no night of it has matured so far" in text for text in causes(lake))


def test_nothing_scored_at_all(fresh: Lake) -> None:
    found = standings(fresh, [MODEL], NOW)
    assert found[0].status != "healthy"
    assert not headline(found).good
    assert "never" in shown(fresh)[0]


def test_an_empty_installation(toy_lake: Lake) -> None:
    assert standings(toy_lake, [MODEL], NOW)[0].status == "not evaluated"
    assert shown(toy_lake)
    text, _ = shown(toy_lake, models=(), datasets=())
    assert "There is no model you may see" in text
    assert not headline([]).good


def test_old_judgements_do_not_stand_in_for_the_newest(lake: Lake) -> None:
    nights(lake, left_out=("mae", "brier", "error_ratio", "mae_baseline", "brier_baseline"))
    assert causes(lake) == [f"performance not evaluated: night {MATURE}: mae of ride_minutes is missing"]


def test_errors_are_those_of_the_last_judged_nights_however_long_ago(lake: Lake) -> None:
    """A model's data may skip months, and another model's newest night may be years later: neither loses its errors."""
    for back in (200, 190, 180):
        night(lake, NIGHT - timedelta(days=back))
    nights(lake, count=1, left_out=("mae", "brier", "error_ratio", "mae_baseline", "brier_baseline"))
    assert standing(lake).performance[0] == "MAE 8.08 minutes, 81 % (79–83), promised 80"


# ---- people ------------------------------------------------------------------------------------------------------


def test_acknowledged_and_silenced_alarms_are_counted_apart_and_stay_true(lake: Lake) -> None:
    nights(
        lake,
        {
            ("volume", ""): {"status": "warning", "reason": "few"},
            ("label_share", ""): {"status": "warning", "value": 0.1},
        },
    )
    assert alarms_text(standing(lake).alarms) == "2 open"
    acknowledge(lake, f"{MODEL}/volume//", by="anna", role="operator", reason="known")
    silence(lake, f"{MODEL}/label_share//", until=NIGHT + ONE_DAY, by="anna", role="operator", reason="known")
    assert alarms_text(standing(lake).alarms) == "1 acknowledged, 1 silenced"
    assert standing(lake).status == "degraded"


def test_an_open_request_is_counted(lake: Lake) -> None:
    nights(lake)
    request_retraining(lake, MODEL, NIGHT, by="anna", reason=HOSTILE, run_id="r")
    assert standing(lake).requests == 1


# ---- order, speed, escaping --------------------------------------------------------------------------------------


def test_the_worst_comes_first(lake: Lake) -> None:
    nights(lake)
    found = standing(lake)
    order = sorted(
        (replace(found, status=status, causes=(Cause(1, status),)) for status in reversed(STATUSES)),
        key=lambda s: STATUSES.index(s.status),
    )
    assert [s.status for s in order] == list(STATUSES) == ["failing", "late", "degraded", "not evaluated", "healthy"]
    told = headline(order)
    assert (told.text, told.cause) == ("1 of 5 models failing, 1 late, 1 degraded, 1 not evaluated", "Failing")


def test_a_handful_of_queries_whatever_the_number_of_nights(lake: Lake) -> None:
    nights(lake, count=9)
    standings(lake, [MODEL], NOW)
    asked: list[str] = []
    sa.event.listen(lake.engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    standings(lake, [MODEL], NOW)
    selects = [s for s in asked if s.lstrip().upper().startswith("SELECT")]
    assert len(selects) < 60, f"{len(selects)} queries for one model; read all models and nights together"


def test_the_page_says_when_nobody_is_told_of_what_goes_wrong(lake: Lake) -> None:
    nights(lake)
    assert "The watch" not in shown(lake)[0], "an installation that ran without one"

    def watched(state: str, minutes_ago: int) -> None:
        at = NOW - timedelta(minutes=minutes_ago)
        record_run(lake, Run("watch", f"watch-{minutes_ago}", "", "watch", None, state, at, at), at=at)

    watched("success", 40)
    assert "The watch has not looked for 40 minutes." in shown(lake)[0]
    watched("failed", 8)
    run = Run("watch", "watch-8", "", "watch", None, "failed", NOW, NOW)
    record_failure(lake, run, task="watch", error=f"BadMetric: {HOSTILE}\nmore", at=NOW)
    assert "The watch failed at 2024-02-21 06:52 UTC: BadMetric: <script>" in shown(lake)[0]
    watched("success", 1)
    assert "The watch" not in shown(lake)[0]


def test_what_comes_from_data_is_shown_as_text(lake: Lake) -> None:
    nights(lake)
    rows = [Metric(MODEL, NIGHT, NIGHT, "volume", "warning", value=float("nan"), reason=HOSTILE * 50)]
    publish_metrics(lake, MODEL, "more", rows, Interval.of(NIGHT), run_id="t")
    text, tags = shown(lake)
    assert "<script>alert(1)</script>" in text
    assert tags.count("script") == 1


def test_the_words_are_defined_on_the_page(lake: Lake) -> None:
    nights(lake)
    text, _ = shown(lake)
    for status in STATUSES:
        assert DEFINITIONS[status] in text
