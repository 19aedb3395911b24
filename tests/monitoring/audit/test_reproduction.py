"""A reproduction in a process of its own: one at a time, ended in time, refused in words."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import monitoring.audit.reproduction as module
from config.settings import Settings
from lake.lake import Lake
from monitoring.audit.reproduction import NotReproduced, StillReproducing, reproduce_apart
from serving.predictions import predictions_table
from serving.projection import project_predictions
from serving.score import score
from tests.serving.scenario import MODEL
from tests.serving.test_real_models import NIGHTS, trained  # noqa: F401 (a fixture)


def test_a_trained_models_prediction_comes_out_equal(trained: Lake) -> None:  # noqa: F811 (the fixture)
    score(trained, MODEL, NIGHTS, run_id="bulk")
    project_predictions(trained, MODEL, NIGHTS, run_id="bulk")
    row = predictions_table(trained.settings, trained.model(MODEL)).read([NIGHTS.last]).to_pylist()[0]
    found = reproduce_apart(trained, row["prediction_id"])
    assert found["equal"], [step for step in found["steps"] if not step["equal"]]
    assert "output ride_minutes" in [step["name"] for step in found["steps"]]


def test_a_refusal_arrives_in_its_own_words(toy_lake: Lake) -> None:
    with pytest.raises(NotReproduced, match="UnknownPrediction: there is no prediction 'abc'"):
        reproduce_apart(toy_lake, "abc")
    assert not list(toy_lake.settings.scratch.glob("reproduction-*"))


def test_it_is_ended_when_it_takes_too_long(toy_lake: Lake) -> None:
    with pytest.raises(NotReproduced, match=r"took longer than 0\.01 s and was ended"):
        reproduce_apart(toy_lake, "abc", seconds=0.01)


def test_a_process_that_dies_is_told_by_its_last_line(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "model_dump", lambda *_, **__: {"no such setting": 1})
    with pytest.raises(NotReproduced, match="its process ended with code 1: "):
        reproduce_apart(toy_lake, "abc")


def test_a_second_one_is_told_that_one_is_going_on(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(*_: Any) -> dict[str, Any]:
        begun.set()
        may_end.wait(60)
        return {"equal": True}

    monkeypatch.setattr(module, "_outcome", slow)
    results: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: results.append(reproduce_apart(toy_lake, "a")))
    first.start()
    try:
        assert begun.wait(60)
        with pytest.raises(StillReproducing, match="one at a time"):
            reproduce_apart(toy_lake, "b")
    finally:
        may_end.set()
        first.join()
    assert results == [{"equal": True}]
    assert reproduce_apart(toy_lake, "b") == {"equal": True}, "the next one may begin"
