"""The model card in a browser, inside the frame that the pages show it in."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

from playwright.sync_api import Browser

from lake.lake import Lake
from monitoring.pages.model_card import render as render_card
from tests.monitoring.pages.test_embedded import HOSTILE, browser, context_of, noting, put, served  # noqa: F401 (a fixture among them)
from tests.monitoring.pages.test_model_card import judged, lake, subject  # noqa: F401 (fixtures)
from tests.serving.scenario import MODEL
from training.registry.segments import Bounds, Segment


def test_a_model_card_shows_hostile_values_as_text_and_runs_nothing(
    toy_lake: Lake,
    browser: Browser,  # noqa: F811 (fixtures)
    subject: Any,  # noqa: F811 (fixtures)
) -> None:
    said, folder = subject
    bounds = Bounds(1.0, 0.5, 2.0)
    segment = Segment("carrier", HOSTILE, 50, 7, bounds, bounds, 0.0, None, None, worse=True)
    whole = said.explanation.segments
    outputs = tuple(replace(part, segments=(segment,)) for part in whole.outputs)
    card = render_card(
        replace(
            said, explanation=replace(said.explanation, segments=replace(whole, outputs=outputs), notes=(HOSTILE,))
        ),
        folder,
    )
    path = put(toy_lake, f"{MODEL}/model_cards/3.html", card)
    with served(context_of(toy_lake)) as origin:
        page = browser.new_page()
        dialogs: list[str] = []
        page.on("dialog", noting(dialogs))
        page.goto(f"{origin}/frame/{path}")
        text = page.frames[1].locator("body").inner_text()
        assert f"carrier = {HOSTILE}" in text
        page.close()
    assert dialogs == []
    assert "<script" not in card.replace(html.escape("<script"), "")
