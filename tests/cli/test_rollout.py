"""`python -m cli rollout`: how a rollout stands, and a person's moves of it."""

from __future__ import annotations

import getpass
from datetime import date
from typing import Any

import pytest
from typer.testing import CliRunner

import training.registry.delivery as delivery
from cli import __main__ as commands
from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.metrics import Metric, publish_metrics
from tests import toy
from tests.serving.rollout.scenario import FIRST, begin, champion_with_nights, next_unscored, scored
from tests.serving.scenario import MODEL, use_linear

NIGHT = FIRST + ONE_DAY


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A champion that has scored one night, in the installation that the commands find."""
    use_linear(monkeypatch)
    for name in ("check_files_of", "repair_alias"):
        monkeypatch.setattr(delivery, name, lambda *_: None)
    monkeypatch.setattr(delivery, "effective_from", next_unscored)
    monkeypatch.setattr(commands.console, "width", 400)
    for name, value in toy.environment(toy_lake.settings).items():
        monkeypatch.setenv(name, value)
    return champion_with_nights(toy_lake)


def rollout(*arguments: str) -> str:
    done = CliRunner().invoke(commands.app, ["rollout", MODEL, *arguments])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def measure(lake: Lake, night: date, version: int = 2) -> None:
    told: dict[str, Any] = {"role": "challenger", "model_version": version}
    harm: dict[str, Any] = {
        "value": 0.2,
        "lower": -0.5,
        "upper": 0.9,
        "threshold": 0.35,
        "n": 3,
        "reason": "After 3 nights it is open.",
    }
    open_one: dict[str, Any] = {"status": "not_evaluated", "reason": "No night of the rollout has mature labels yet."}
    metrics = [
        Metric(MODEL, night, night, "harm", column="ride_minutes", status="ok", **harm, **told),
        Metric(MODEL, night, night, "harm", column="long_probability", **open_one, **told),
        Metric(MODEL, night, night, "harm", column="ride_minutes", segment="depot=north", status="ok", **harm, **told),
        Metric(MODEL, night, night, "guardrail_finite", status="ok", **told),
        Metric(MODEL, night, night, "guardrail_shift", status="failing", reason="It shifts by 0.9.", **told),
    ]
    publish_metrics(lake, MODEL, "rollout", metrics, Interval.of(night), run_id="monitor")


def test_the_status_has_step_share_nights_what_was_measured_what_comes_next_and_the_ledger(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 1.0], nights=2)
    scored(lake, NIGHT)
    lines = rollout().splitlines()
    assert lines[:6] == [
        f"rollout    {MODEL} version 2, canary, goes on",
        "step       1 of 2 since 2024-01-22: serves 30 % of the units",
        "unit       vehicle",
        "nights     1 scored night, 1 in this step",
        "next       Step 2 of 2 (everything) after 1 more scored night, once harm is shown to be below the tolerance. "
        "Undecided after 60 nights, it is rolled back.",
        "measured   nothing yet",
    ]
    assert lines[6:] == ["ledger", "  2024-01-22  version 2 started, step 1, by gate: it is better"]
    measure(lake, NIGHT)
    assert rollout("status").splitlines()[5:9] == [
        f"guardrails of {NIGHT}: 1 failing, 1 ok",
        "           It shifts by 0.9.",
        "harm       of long_probability: not evaluated. No night of the rollout has mature labels yet.",
        "harm       of ride_minutes: 0.2 (-0.5 to 0.9), borne is 0.35. After 3 nights it is open.",
    ]


def test_a_person_moves_it_with_a_reason_and_by_name(lake: Lake) -> None:
    begin(lake, strategy="canary", steps=[0.3, 0.6, 1.0])
    assert rollout("hold", "--reason", "a holiday") == (
        f"{MODEL}: the rollout of version 2 stays in step 1, from data date {NIGHT} on.\n"
    )
    assert f"next       Held by {getpass.getuser()}: until a person goes on" in rollout()
    assert "goes to step 2" in rollout("advance", "--reason", "it is over")
    assert "version 2 is champion, from data date" in rollout("finish", "--reason", "no harm")
    assert [(line.kind, line.by) for line in lake.rollouts(MODEL).read().lines[1:]] == [
        (kind, getpass.getuser()) for kind in ("held", "advanced", "finished")
    ]
    assert lake.ledger(MODEL).read().champion_of(NIGHT).version == 2
    assert f"rollout    {MODEL} version 2, canary, is over: finished" in rollout()


def test_what_measured_another_challenger_is_not_shown(lake: Lake) -> None:
    begin(lake, strategy="shadow")
    measure(lake, NIGHT, version=9)
    assert "measured   nothing yet" in rollout()
    assert "is rolled back: the champion serves everything" in rollout("rollback", "--reason", "odd numbers")


def test_what_cannot_be_done_says_why(lake: Lake) -> None:
    for arguments, words in (
        (["status"], "never had a rollout: its catalog entry says `rollout: {strategy: immediate}`"),
        (["advance", "--reason", "go"], "has no rollout that goes on"),
        (["finish"], "no reason was given"),
        (["leap"], ""),
    ):
        refused = CliRunner().invoke(commands.app, ["rollout", MODEL, *arguments])
        assert refused.exit_code != 0
        assert words in str(refused.exception)
    assert lake.rollouts(MODEL).read().lines == ()
