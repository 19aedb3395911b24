"""The model card: written whole from a real training, self-contained, escaped, the same again, and honest about
limits.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from monitoring.pages import model_card
from monitoring.pages.model_card import Subject, explain_registered, limits, render, write_model_card
from monitoring.wording import percent
from serving.predictors import read_manifest
from serving.predictors.contract import read_json
from tests import toy
from tests.mlflow_server import free_port, start_mlflow
from training.registry.decision import Decision
from training.registry.explanation import explain
from training.registry.gate import judge
from training.registry.job import prepare_job
from training.registry.numbers import VersionNumberTaken
from training.registry.promotion import StaleDecision
from training.registry.register import Registered, register
from training.registry.runner import run_job
from training.registry.segments import Bounds, Segment, TooSmall
from training.registry.tracking import MlflowUnavailable

AS_OF = date(2024, 3, 1)
VERDICTS = ["promote", "refuse", "not_evaluated"]


def with_mlflow(lake: Lake, uri: str) -> Lake:
    return Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": uri}), lake.catalog)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Lake:
    """Two months of rides."""
    lake = with_mlflow(toy.toy_lake(tmp_path_factory.mktemp("cards")), mlflow_server)
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(lake, nights)
    toy.publish_features(lake, nights)
    return lake


@pytest.fixture(scope="module")
def judged(lake: Lake) -> tuple[Path, Registered, Decision]:
    """A registered version and the gate's decision on it."""
    job_dir = prepare_job(lake, "ride_minutes", as_of=AS_OF, run_id="card", overrides={"threads": 1})
    run_job(lake, "ride_minutes", job_dir, say=lambda line: None)
    registered = register(lake, "ride_minutes", job_dir, run_id="card")
    return job_dir, registered, judge(lake, "ride_minutes", job_dir, registered, run_id="card")


@pytest.fixture(scope="module")
def written(lake: Lake, judged: tuple[Path, Registered, Decision]) -> dict[str, Any]:
    job_dir, registered, decision = judged
    candidates = [
        {"family": "xgboost", "job": "one", "error_of_baseline": 0.5},
        {"family": "linear", "job": "two", "error_of_baseline": 0.75},
    ]
    document = json.loads(json.dumps(registered.to_json() | {"candidates": candidates}))
    return explain_registered(
        lake, "ride_minutes", str(job_dir), document, json.loads(json.dumps(decision.to_json())), "a run"
    )


@pytest.fixture(scope="module")
def subject(
    lake: Lake, judged: tuple[Path, Registered, Decision], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Subject, Path]:
    """What the card is written from, and the folder of its plots."""
    job_dir, registered, decision = judged
    folder = tmp_path_factory.mktemp("plots")
    explanation = explain(lake, "ride_minutes", job_dir, registered, decision, folder=folder)
    manifest, (job, training_set) = (
        read_manifest(registered.folder),
        (read_json(registered.folder / name) for name in ("job.json", "training_set.json")),
    )
    return Subject(
        lake, lake.model("ride_minutes"), registered, decision, explanation, manifest, job, training_set, (), None
    ), folder


class Page(HTMLParser):
    """What a page shows, holds and points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(page: str) -> str:
    """The text of a page, in one line, without its stylesheet."""
    return " ".join(" ".join(Page(re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)).text).split())


def test_the_card_says_what_an_approver_must_know(
    lake: Lake, judged: tuple[Path, Registered, Decision], written: dict[str, Any]
) -> None:
    _, registered, decision = judged
    path = lake.settings.reports / "ride_minutes" / "model_cards" / f"{registered.version}.html"
    assert written == {
        "model": "ride_minutes",
        "version": registered.version,
        "path": str(path),
    }
    text = shown(path.read_text())
    for wanted in (
        "Duration of tomorrow's rides",
        f"version {registered.version}, xgboost, trained on what was known on 2024-03-01",
        "Refused by the gate",
        *(" ".join(reason.text.split()) for reason in decision.reasons),
        "The champion stays. This version scores nothing.",
        "the probability that minutes lies above 30 minutes",
        decision.evidence_digest,
        registered.artifact_digest,
        registered.mlflow_run_id,
        "vehicle_daily__minutes_7d",
        "depot = east",
        "linear two 0.75",
        "Lift, by mae: ",
    ):
        assert wanted in text, wanted


def test_the_gate_s_figures_are_on_it(written: dict[str, Any], judged: tuple[Path, Registered, Decision]) -> None:
    text = shown(Path(written["path"]).read_text())
    for check in judged[2].checks:
        if check.name == "improvement":
            assert check.bound is not None
            assert percent(check.bound, signed=True) in text
            assert f"{check.challenger:.4g}" in text
            assert f"{check.incumbent:.4g}" in text


def test_it_holds_all_it_needs(written: dict[str, Any]) -> None:
    text = Path(written["path"]).read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in {"src", "srcset", "background", "poster"}]
    assert sources
    assert all(value and value.startswith("data:image/png;base64,") for value in sources)
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    assert not re.search(r"url\(|@import", text)
    assert not any(name.startswith("on") or name == "style" for _, name, _ in page.attributes)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_mlflow_has_card_plots_metrics_and_json(
    lake: Lake, judged: tuple[Path, Registered, Decision], written: dict[str, Any], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    _, registered, _ = judged
    client = MlflowClient(tracking_uri=lake.settings.tracking_uri)
    there = {
        item.path
        for folder in ("explanation", "model_card")
        for item in client.list_artifacts(registered.mlflow_run_id, folder)
    }
    assert there >= {
        "explanation/explanation.json",
        "explanation/segments.json",
        f"model_card/{registered.version}.html",
    }
    assert {
        f"explanation/{kind}_ride_minutes.png" for kind in ("contributions", "residuals", "gain", "segments")
    } <= there
    assert {
        f"explanation/{kind}_long_probability.png"
        for kind in ("contributions", "calibration", "confusion", "gain", "segments")
    } <= there
    assert {"explanation/curves.png", "explanation/importances.png"} <= there
    fetched = client.download_artifacts(
        registered.mlflow_run_id, f"model_card/{registered.version}.html", str(tmp_path)
    )
    assert Path(fetched).read_bytes() == Path(written["path"]).read_bytes()
    run = client.get_run(registered.mlflow_run_id)
    assert run.data.metrics["tested/ride_minutes/mae"] > 0
    assert run.info.status == "FINISHED"


def test_the_card_of_another_version_is_not_overwritten(lake: Lake, judged: tuple[Path, Registered, Decision]) -> None:
    job_dir, registered, decision = judged
    path = lake.settings.reports / "ride_minutes" / "model_cards" / "77.html"
    path.write_text("of another version")
    try:
        with pytest.raises(
            VersionNumberTaken, match="is the model card of another version 77 .* It was not overwritten"
        ):
            write_model_card(lake, "ride_minutes", job_dir, replace(registered, version=77), decision)
        assert path.read_text() == "of another version"
    finally:
        path.unlink()


def test_again_gives_the_same_bytes(lake: Lake, judged: tuple[Path, Registered, Decision]) -> None:
    job_dir, registered, decision = judged
    first = write_model_card(lake, "ride_minutes", job_dir, registered, decision).read_bytes()
    assert write_model_card(lake, "ride_minutes", job_dir, registered, decision).read_bytes() == first
    assert [p.name for p in (lake.settings.reports / "ride_minutes" / "model_cards").iterdir()] == [
        f"{registered.version}.html"
    ]


@pytest.mark.parametrize("verdict", [*VERDICTS, None])
def test_every_verdict_has_its_words_and_none_looks_like_another(
    verdict: str | None, subject: tuple[Subject, Path]
) -> None:
    said, folder = subject
    assert said.decision is not None
    decision = None if verdict is None else replace(said.decision, verdict=verdict)  # type: ignore[arg-type]
    page = render(replace(said, decision=decision), folder)
    words = {
        "promote": "Passed the gate",
        "refuse": "Refused by the gate",
        "not_evaluated": "Not evaluated",
        None: "Not judged yet",
    }
    text = shown(page)
    assert {word for word in words.values() if word in text.partition("What it is for")[0]} == {words[verdict]}
    assert f'<div class="verdict {verdict or "none"}">' in page
    assert ("becomes the champion" in text) == (verdict == "promote")


def test_an_approver_is_told_what_an_answer_does(subject: tuple[Subject, Path]) -> None:
    said, folder = subject
    assert said.decision is not None
    asked = replace(
        said,
        decision=replace(said.decision, verdict="promote"),
        entry=said.entry.model_copy(update={"approval": "required"}),
    )
    assert "If you approve, it becomes the champion" in shown(render(asked, folder))


HOSTILE = "<script>alert('1')</script>\"{{ 7 * 7 }}"


def test_where_the_model_may_be_used_is_on_the_card(subject: tuple[Subject, Path]) -> None:
    v, folder = subject
    entry = v.entry.model_copy(update={"intended_use": "rides within the city"})
    assert "Intended use: rides within the city" in shown(render(replace(v, entry=entry), folder))


def test_values_are_shown_as_text(subject: tuple[Subject, Path]) -> None:
    said, folder = subject
    bounds = Bounds(1.0, 0.5, 2.0)
    segment = Segment("depot", HOSTILE, 50, 7, bounds, bounds, 0.0, None, None, worse=True)
    report = said.explanation.segments
    outputs = tuple(
        replace(part, segments=(segment,), not_evaluated=(TooSmall("depot", HOSTILE + "2", 3),))
        for part in report.outputs
    )
    explanation = replace(said.explanation, segments=replace(report, outputs=outputs), notes=(HOSTILE,))
    entry = said.entry.model_copy(update={"title": HOSTILE, "owner": HOSTILE, "owner_url": "javascript:alert(1)"})
    candidates = [{"family": HOSTILE, "job": HOSTILE, "error_of_baseline": 1.0}] * 2
    manifest = {
        **said.manifest,
        "search": {"sampler": HOSTILE, "trials": {HOSTILE: 3}},
        "cross_validation": {"folds": [{}], "mean": {HOSTILE: 1.0}, "std": {}},
    }
    page = render(replace(said, explanation=explanation, entry=entry, candidates=candidates, manifest=manifest), folder)
    assert "<script" not in page
    assert "javascript:" not in page
    assert "49" not in shown(page).partition("What it is for")[0]
    assert shown(page).count(HOSTILE) >= 8
    assert html.escape(f"depot = {HOSTILE}", quote=False).split("'")[0] in page


def test_search_and_cross_validation_are_shown(subject: tuple[Subject, Path]) -> None:
    said, folder = subject
    found = {
        "folds": [{}, {}],
        "mean": {"ride_minutes/mae": 4.25, "ride_minutes/baseline_mae": 9.0},
        "std": {"ride_minutes/mae": 0.5},
    }
    search = {
        "sampler": "tpe",
        "metric": "ride_minutes/mae",
        "trials": {"complete": 3, "pruned": 1},
        "best_value": 4.5,
        "best_trial": 2,
    }
    text = shown(render(replace(said, manifest={**said.manifest, "search": search, "cross_validation": found}), folder))
    assert "trials complete 3, pruned 1" in text
    assert "ride_minutes/mae 4.25 0.5" in text
    assert "baseline_mae" not in text


# ---- limits ------------------------------------------------------------------------------------------------------


Change = Callable[[Subject], Subject]


def metrics(**values: float) -> Change:
    return lambda v: replace(
        v,
        explanation=replace(
            v.explanation, metrics={**v.explanation.metrics, **{k.replace("__", "/"): x for k, x in values.items()}}
        ),
    )


def few_nights(v: Subject) -> Subject:
    assert v.decision is not None
    return replace(v, decision=replace(v.decision, nights=3))


def grouped(v: Subject) -> Subject:
    return replace(
        v, entry=v.entry.model_copy(update={"split": v.entry.split.model_copy(update={"groups": "vehicle"})})
    )


def small(v: Subject) -> Subject:
    report = v.explanation.segments
    outputs = tuple(replace(part, not_evaluated=(TooSmall("depot", "west", 3),)) for part in report.outputs)
    return replace(v, explanation=replace(v.explanation, segments=replace(report, outputs=outputs)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda v: v, "Not for anything further ahead than 1 day after its night"),
        (lambda v: v, "It learned from 21 days (from 2024-01-25): seasons outside them are unknown to it."),
        (lambda v: v, "How good it is from 2024-02-29 on is not known: labels count 1 day after the target"),
        (lambda v: v, "never got a label and were left out"),
        (lambda v: replace(v, decision=None), "The gate has not judged it: do not score with it."),
        (few_nights, "Only 3 nights lie after both models' training, 5 are needed"),
        (grouped, "No vehicle of the test rows was seen in training"),
        (
            metrics(ride_minutes__lift=-0.1),
            "ride_minutes: no better than the baseline on these nights (mae 10 % higher)",
        ),
        (
            metrics(ride_minutes__coverage=0.6),
            "the interval should hold 80 % of outcomes and held 60 %: do not plan with its bounds.",
        ),
        (small, "1 segment has fewer than 20 rows"),
    ],
)
def test_each_limit_follows_from_a_fact(change: Change, line: str, subject: tuple[Subject, Path]) -> None:
    assert any(line in limit for limit in limits(change(subject[0]))), limits(change(subject[0]))


def test_a_limit_that_does_not_hold_is_not_claimed(subject: tuple[Subject, Path]) -> None:
    said = metrics(ride_minutes__lift=0.1, long_probability__lift=0.1, ride_minutes__coverage=0.8)(subject[0])
    said = replace(said, training_set={**said.training_set, "unlabelled": {}})
    text = " ".join(limits(said))
    for absent in (
        "no better than the baseline",
        "do not plan with its bounds",
        "never got a label",
        "fewer than",
        "are needed",
        "has not judged",
    ):
        assert absent not in text


# ---- when it cannot be written -----------------------------------------------------------------------------------


def test_mlflow_down_fails_before_the_work(
    lake: Lake, judged: tuple[Path, Registered, Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir, registered, decision = judged
    monkeypatch.setattr(model_card, "explain", lambda *_, **__: pytest.fail("it was explained though MLflow is down"))
    with pytest.raises(MlflowUnavailable):
        write_model_card(
            with_mlflow(lake, f"http://127.0.0.1:{free_port()}"), "ride_minutes", job_dir, registered, decision
        )


def test_mlflow_dying_in_the_middle_leaves_the_card_and_says_so(
    lake: Lake, judged: tuple[Path, Registered, Decision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir, _, decision = judged
    server = start_mlflow(tmp_path)
    dying = Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": server.uri}), lake.catalog)
    try:
        again = register(dying, "ride_minutes", job_dir, run_id="card")
        real = model_card._log

        def kill_then_go_on(*arguments: Any) -> None:
            server.kill()
            real(*arguments)

        monkeypatch.setattr(model_card, "_log", kill_then_go_on)
        path = lake.settings.reports / "ride_minutes" / "model_cards" / f"{again.version}.html"
        path.unlink(missing_ok=True)
        with pytest.raises(
            MlflowUnavailable,
            match=rf"the model card of ride_minutes version {again.version} lies at {path}, MLflow has not got it",
        ):
            write_model_card(dying, "ride_minutes", job_dir, again, decision)
        assert path.read_text().endswith("</html>\n")
    finally:
        server.kill()


def test_a_decision_that_is_not_stored_is_refused(lake: Lake, judged: tuple[Path, Registered, Decision]) -> None:
    job_dir, registered, decision = judged
    with pytest.raises(StaleDecision, match=r"no stored decision with evidence 000000000000…. No card was written."):
        explain_registered(
            lake,
            "ride_minutes",
            job_dir,
            registered.to_json(),
            decision.to_json() | {"evidence_digest": "0" * 64},
            "run",
        )
