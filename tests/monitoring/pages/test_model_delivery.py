"""The section Delivery of the Model page: empty states, a rollout that goes on, one that ended, and who has buttons."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

import training.registry.delivery as delivery
from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from lake.promotions import project_promotions
from monitoring.pages import model, tonight
from monitoring.pages.page import BadAddress, NotFound, Role
from monitoring.pages.render import render
from monitoring.rollout.checks import CHALLENGER_LOSS, CHAMPION_LOSS, HARM
from tests.monitoring.pages.fleet import context
from tests.serving.rollout.scenario import FIRST, begin, champion_with_nights, next_unscored, scored
from tests.serving.scenario import MODEL, publish_inputs, use_linear

NIGHTS = [FIRST + number * ONE_DAY for number in range(4)]


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    use_linear(monkeypatch)
    monkeypatch.setattr(delivery, "effective_from", next_unscored)
    monkeypatch.setattr(delivery, "check_files_of", lambda *_: None)
    monkeypatch.setattr(delivery, "repair_alias", lambda *_: None)
    return toy_lake


def shown(lake: Lake, role: Role = "admin", **query: str) -> str:
    """The section as text, tags left out."""
    here = context(lake, role)
    html = render(model.page(here, query=query, model=MODEL), here)
    section = re.search(r'<section aria-labelledby="delivery">.*?</section>', html, re.DOTALL)
    assert section is not None
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", section.group())).split())


def buttons(lake: Lake, role: Role) -> list[str]:
    here = context(lake, role)
    html = render(model.page(here, query={}, model=MODEL), here)
    return re.findall(r"actions/(rollout_\w+)", html)


def judged(lake: Lake) -> None:
    """The evening of the second night of the rollout, which knows the labels of the first."""
    about, day = NIGHTS[1], NIGHTS[2]
    told: dict[str, Any] = {"column": "ride_minutes", "model_version": 2}
    rows = [
        Metric(MODEL, about, day, CHAMPION_LOSS, "ok", value=4.0, n=9, role="champion", **told | {"model_version": 1}),
        Metric(MODEL, about, day, CHALLENGER_LOSS, "ok", value=3.0, n=9, role="challenger", **told),
        Metric(
            MODEL, day, day, HARM, "ok", value=-1.0, lower=-2.5, upper=0.5, threshold=0.1, n=1, role="challenger",
            reason="After 1 night it is better.", **told,
        ),
        Metric(MODEL, day, day, "guardrail_shift", "ok", value=0.1, threshold=0.2, role="challenger", **told),
    ]  # fmt: skip
    publish_metrics(lake, MODEL, "rollout", rows, Interval.of(day), run_id="t")


def test_without_a_rollout_the_section_says_what_the_catalog_asks_for(lake: Lake) -> None:
    champion_with_nights(lake)
    assert f"{MODEL}.yaml asks for none" in shown(lake)
    assert buttons(lake, "admin") == []


def test_a_rollout_shows_both_arms_the_bounds_and_its_ledger(lake: Lake) -> None:
    champion_with_nights(lake)
    begin(lake, strategy="canary", steps=[0.5, 1.0], nights=1)
    for night in NIGHTS[1:3]:
        scored(lake, night)
    judged(lake)
    text = shown(lake)
    for said in (
        "Version 2 takes over by canary.",
        "2 scored, 2 of them in the step that holds",
        "step 1 of 2, the challenger serves 50 % of the units",
        "1 of 1 hold.",
        "After 1 night it is better.",
        "Step 2 of 2 (everything) after the next scored night, once harm is shown to be below the tolerance.",
    ):
        assert said in text, f"{said!r} is missing in: {text}"
    page = model.page(context(lake), query={}, model=MODEL)
    [chart] = [chart for chart in page.charts if chart.name == "delivery"]
    drawn: dict[str, list[Any]] = {}
    for series in chart.option["series"]:
        drawn.setdefault(series["name"], [p["value"] if isinstance(p, dict) else p for p in series["data"]])
    assert drawn["served by the challenger"] == [0.5, 0.5]
    # The same night for both; the bounds belong to the evening that knew them.
    assert (drawn["champion"], drawn["challenger"]) == ([4.0, None], [3.0, None])
    assert (drawn["lower bound"], drawn["upper bound"], drawn["tolerance"]) == ([None, -2.5], [None, 0.5], [None, 0.1])
    [line] = page.table("rollout_lines").rows
    assert (line["what"], line["version"], line["effective_from"]) == ("started", 2, NIGHTS[1])
    assert list(dict.fromkeys(buttons(lake, "admin"))) == [
        "rollout_hold",
        "rollout_advance",
        "rollout_finish",
        "rollout_rollback",
    ]
    assert buttons(lake, "operator") == []


def test_tonight_shows_the_rollout_until_it_ends(lake: Lake) -> None:
    champion_with_nights(lake)
    begin(lake, strategy="canary", steps=[0.5, 1.0], nights=1)
    scored(lake, NIGHTS[1])
    here = context(lake)
    [row] = tonight.page(here, query={}).table("rollouts").rows
    assert (row["version"], row["strategy"], row["step"], row["nights"]) == (2, "canary", "step 1 of 2", 1)
    assert "In rollout" in render(tonight.page(here, query={}), here)
    delivery.roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert "In rollout" not in render(tonight.page(here, query={}), here)
    text = shown(lake)
    assert "The last rollout is over: canary of version 2." in text
    assert f"rolled back from {NIGHTS[2]} on, by ada" in text
    assert "odd numbers" in text
    assert buttons(lake, "admin") == []
    begin(lake, version=3, slope=1.25, strategy="canary", steps=[1.0], nights=1)
    delivery.finish(lake, MODEL, by="ada", reason="it is better")
    project_promotions(lake, MODEL)
    [row, _] = model.page(here, query={}, model=MODEL).table("versions").rows
    assert (row["version"], row["rollout"]) == (3, f"canary from {NIGHTS[2]} on, finished: it is better")


def test_a_refused_first_version_has_a_page_and_is_not_in_service(lake: Lake) -> None:
    publish_inputs(lake, Interval.closed(FIRST - 2 * ONE_DAY, FIRST + 4 * ONE_DAY))
    begin(lake, alone=True, strategy="shadow", refused_first=True)
    scored(lake, FIRST)
    own: dict[str, Any] = {"column": "ride_minutes", "role": "challenger", "model_version": 2}
    error = Metric(MODEL, FIRST, FIRST + 2 * ONE_DAY, "mae", "ok", value=4.5, n=9, **own)
    publish_metrics(lake, MODEL, "performance", [error], Interval.of(error.data_date), run_id="t")
    text = shown(lake)
    assert "Version 2 is not in service : the gate refused it and there is no champion." in text
    page = model.page(context(lake), query={}, model=MODEL)
    assert [(row["version"], row["error_0"]) for row in page.table("nights").rows] == [(2, 4.5)]
    [row] = tonight.page(context(lake), query={}).table("rollouts").rows
    assert (row["step"], row["share"]) == ("not in service", "nothing")
    assert "rollout_finish" not in buttons(lake, "admin")


def test_an_address_names_a_rollout_that_is_there(lake: Lake) -> None:
    champion_with_nights(lake)
    begin(lake, strategy="canary", steps=[0.5, 1.0])
    delivery.roll_back(lake, MODEL, by="ada", reason="odd numbers")
    begin(lake, version=3, slope=1.25, strategy="shadow")
    assert "Version 3 takes over by shadow." in shown(lake)
    assert "The last rollout is over: canary of version 2." in shown(lake, rollout="1")
    with pytest.raises(NotFound, match="has no rollout 9. It has: 1, 3"):
        shown(lake, rollout="9")
    with pytest.raises(BadAddress, match="needs the number of one"):
        shown(lake, rollout="first")
