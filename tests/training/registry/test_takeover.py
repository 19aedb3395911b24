"""Gate, a person's approval, rollout, champion: how they compose, on decisions that the gate made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.ledger import Promotion
from lake.rollouts import RolloutLine
from lake.signature import UntrustedModel
from tests import toy
from tests.training.registry.versions import AS_OF, MODEL, load_oracle, make_version, write_set
from training.registry.approval import APPROVE, NotApproved, answered
from training.registry.decision import Decision, DecisionNotSigned
from training.registry.delivery import TooFewUnits, deliver, finish, roll_back, rollback, settle
from training.registry.gate import judge
from training.registry.leakage import Audit
from training.registry.numbers import VersionNumberTaken, given_numbers
from training.registry.origin import verify_origin
from training.registry.promotion import StaleDecision
from training.registry.register import Registered

NEXT = AS_OF + ONE_DAY
Catalog = Callable[..., Lake]


@pytest.fixture(autouse=True)
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))
    for room in ("promotion", "delivery"):  # MLflow's alias is what `test_promotion` is about
        monkeypatch.setattr(f"training.registry.{room}.repair_alias", lambda *_: None)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """The lake with features up to the as-of night, under a catalog whose model goes by a `rollout` block."""

    def lake_by(rollout: str = "{strategy: shadow, unit: [vehicle]}", approval: str = "none") -> Lake:
        return toy.toy_lake(tmp_path, model=toy.MODEL_YAML + f"approval: {approval}\nrollout: {rollout}\n")

    toy.publish_features(lake_by(), Interval.closed(date(2024, 2, 20), AS_OF))
    return lake_by


def judged(lake: Lake, version: int, **misses: Any) -> tuple[Decision, Registered]:
    job = write_set(lake, f"job-{version}")
    registered = make_version(lake, job, version, **({"miss": 10.0 / version} | misses))
    return judge(lake, MODEL, job, registered, run_id=f"run-{version}"), registered


def approved(lake: Lake, decision: Decision) -> None:
    word = {"by": "ada", "reason": "looks right", "answered_at": datetime(2024, 2, 27, 9, 30, tzinfo=UTC)}
    shown, run_id = decision.evidence_digest, f"run-{decision.version}"
    answered(lake, MODEL, decision.to_json(), shown=shown, option=APPROVE, run_id=run_id, **word)  # type: ignore[arg-type]


def delivered(lake: Lake, version: int, **misses: Any) -> RolloutLine | Promotion | None:
    decision, registered = judged(lake, version, **misses)
    if decision.verdict == "promote" and lake.model(MODEL).approval == "required":
        approved(lake, decision)
    return deliver(lake, decision, registered, by=f"run-{version}")


def champions(lake: Lake) -> list[int]:
    return [promotion.version for promotion in lake.ledger(MODEL).read().promotions]


def told(lake: Lake) -> list[tuple[str, int]]:
    return [(line.kind, line.version) for line in lake.rollouts(MODEL).read().lines]


# ---- gate, approval, rollout, champion -----------------------------------------------------------------------------


def test_the_first_champion_has_nobody_to_take_over_from(catalog: Catalog) -> None:
    lake = catalog(approval="required")
    line = delivered(lake, 1)
    assert isinstance(line, Promotion)
    assert (line.by, line.effective_from) == ("ada (run-1)", NEXT)
    assert told(lake) == []


def test_an_approved_version_begins_its_rollout_and_ends_it_as_champion(catalog: Catalog) -> None:
    lake = catalog(approval="required")
    delivered(lake, 1)
    line = delivered(lake, 2)
    assert isinstance(line, RolloutLine)
    assert (line.kind, line.by, line.effective_from) == ("started", "ada (run-2)", NEXT)
    assert champions(lake) == [1]
    finish(lake, MODEL, by="ada", reason="seven nights without harm", run_id="r", version=2)
    assert champions(lake) == [1, 2]
    newest = lake.ledger(MODEL).read().newest
    assert newest is not None
    assert (newest.evidence_digest, newest.artifact_digest) == (line.evidence_digest, line.artifact_digest)


@pytest.mark.parametrize("rollout", ["{strategy: shadow}", "{strategy: shadow, when_busy: supersede}", "{}"])
def test_what_nobody_approved_neither_starts_nor_ends_a_rollout(catalog: Catalog, rollout: str) -> None:
    lake = catalog(approval="required")
    delivered(lake, 1)
    delivered(lake, 2)
    lake = catalog(rollout if rollout != "{}" else "{strategy: immediate}", approval="required")
    decision, registered = judged(lake, 3)
    with pytest.raises(NotApproved, match="has none for version 3"):
        deliver(lake, decision, registered, by="run-3")
    assert told(lake) == [("started", 2)]
    assert champions(lake) == [1]


def test_the_same_decision_delivered_twice_is_one_rollout_also_after_it_has_ended(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    decision, registered = judged(lake, 2)
    line = deliver(lake, decision, registered, by="run-2")
    assert deliver(lake, decision, registered, by="cleared") == line
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert deliver(lake, decision, registered, by="cleared") == line
    assert told(lake) == [("started", 2), ("rolled_back", 2)]


def test_the_champion_s_own_decision_delivered_again_leaves_a_rollout_alone(catalog: Catalog) -> None:
    lake = catalog()
    decision, registered = judged(lake, 1)
    line = deliver(lake, decision, registered, by="run-1")
    delivered(lake, 2)
    for again in (lake, catalog("{strategy: immediate}"), catalog("{strategy: shadow, when_busy: supersede}")):
        assert deliver(again, decision, registered, by="cleared") == line
    assert told(lake) == [("started", 2)]


# ---- a further version while a rollout runs ------------------------------------------------------------------------


def test_a_further_version_waits_and_starts_when_the_first_one_is_rolled_back(catalog: Catalog) -> None:
    lake = catalog(approval="required")
    delivered(lake, 1)
    delivered(lake, 2)
    decision, registered = judged(lake, 3)
    approved(lake, decision)
    line = deliver(lake, decision, registered, by="run-3")
    assert deliver(lake, decision, registered, by="cleared") == line
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert told(lake) == [("started", 2), ("queued", 3), ("rolled_back", 2), ("started", 3)]
    started = lake.rollouts(MODEL).read().lines[-1]
    assert (started.by, started.effective_from, started.reason) == (
        "ada (run-3)",
        NEXT,
        " ".join(map(str, decision.reasons)),
    )
    assert settle(lake, MODEL, by="later") == []
    assert champions(lake) == [1]


def test_a_version_that_waits_is_let_go_when_the_champion_has_changed(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    decision, registered = judged(lake, 3)
    deliver(lake, decision, registered, by="run-3")
    finish(lake, MODEL, by="ada", reason="no harm")
    assert told(lake) == [("started", 2), ("queued", 3), ("finished", 2), ("dropped", 3)]
    assert champions(lake) == [1, 2]
    reason = lake.rollouts(MODEL).read().lines[-1].reason
    assert "version 3 was judged against champion version 1, but version 2 is champion now" in reason
    with pytest.raises(StaleDecision, match="Clear the gate's task to judge against version 2"):
        deliver(lake, decision, registered, by="cleared")


def test_of_two_that_wait_the_later_one_counts(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    decision, registered = judged(lake, 3)
    deliver(lake, decision, registered, by="run-3")
    delivered(lake, 4)
    again = deliver(lake, decision, registered, by="cleared")
    assert isinstance(again, RolloutLine)
    assert (again.kind, again.reason) == ("dropped", "version 4 waits in its place")
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert told(lake)[1:] == [("queued", 3), ("dropped", 3), ("queued", 4), ("rolled_back", 2), ("started", 4)]


def test_a_version_that_waits_is_let_go_when_its_decision_is_lost(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    delivered(lake, 3)
    monkeypatch.setattr("training.registry.approval.read_decisions", lambda *_: [])
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert told(lake)[-1] == ("dropped", 3)
    assert "has no stored decision" in lake.rollouts(MODEL).read().lines[-1].reason


def test_a_further_version_takes_the_place_of_the_first(catalog: Catalog) -> None:
    lake = catalog("{strategy: shadow, when_busy: supersede}")
    delivered(lake, 1)
    delivered(lake, 2)
    delivered(lake, 3)
    assert told(lake) == [("started", 2), ("abandoned", 2), ("started", 3)]
    running = lake.rollouts(MODEL).read().running
    assert running is not None
    assert (running.version, champions(lake)) == (3, [1])


def test_whoever_waited_does_not_come_after_a_later_version_that_took_the_place(catalog: Catalog) -> None:
    lake = catalog()
    for version in (1, 2, 3):
        delivered(lake, version)
    lake = catalog("{strategy: shadow, when_busy: supersede}")
    delivered(lake, 4)
    assert told(lake) == [("started", 2), ("queued", 3), ("dropped", 3), ("abandoned", 2), ("started", 4)]
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert told(lake)[-1] == ("rolled_back", 4)


def test_a_version_that_cannot_start_does_not_end_the_one_that_runs(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    with pytest.raises(TooFewUnits, match=r"a share of 0.05 needs 20 units, and the newest scored night has 0"):
        delivered(catalog("{strategy: canary, when_busy: supersede}"), 3)
    assert told(lake) == [("started", 2)]


# ---- the catalog changes -------------------------------------------------------------------------------------------


def test_switched_back_to_immediate_a_rollout_goes_on_until_a_version_passes(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    lake = catalog("{strategy: immediate}")
    assert settle(lake, MODEL, by="next run") == []
    assert told(lake) == [("started", 2)]
    delivered(lake, 3)
    assert told(lake) == [("started", 2), ("abandoned", 2)]
    assert champions(lake) == [1, 3]


def test_switched_back_to_immediate_whoever_waits_is_promoted_at_once(catalog: Catalog) -> None:
    lake = catalog()
    delivered(lake, 1)
    delivered(lake, 2)
    delivered(lake, 3)
    lake = catalog("{strategy: immediate}")
    roll_back(lake, MODEL, by="ada", reason="odd numbers")
    assert told(lake)[-2:] == [("rolled_back", 2), ("dropped", 3)]
    assert champions(lake) == [1, 3]
    assert settle(lake, MODEL, by="next run") == []


# ---- without a champion --------------------------------------------------------------------------------------------


def test_a_refused_first_version_runs_along_until_one_passes(catalog: Catalog) -> None:
    lake = catalog("{strategy: shadow, refused_first: true}", approval="required")
    line = delivered(lake, 1, miss=40.0)
    assert isinstance(line, RolloutLine)
    assert (line.kind, line.by) == ("started", "run-1")
    running = lake.rollouts(MODEL).read().running
    assert running is not None
    assert [step.share for step in running.steps] == [0.0]
    delivered(lake, 2, miss=39.0)
    assert told(lake) == [("started", 1), ("abandoned", 1), ("started", 2)]
    assert champions(lake) == []
    delivered(lake, 3)
    assert told(lake)[3:] == [("abandoned", 2)]
    assert champions(lake) == [3]


def test_a_refused_version_that_nobody_signed_does_not_run_along(catalog: Catalog) -> None:
    lake = catalog("{strategy: shadow, refused_first: true}")
    decision, registered = judged(lake, 1, miss=40.0)
    with pytest.raises(DecisionNotSigned):
        deliver(lake, replace(decision, signature=None), registered, by="run-1")
    with pytest.raises(StaleDecision, match="asked to promote is"):
        deliver(lake, decision, replace(registered, artifact_digest="0" * 64), by="run-1")
    assert told(lake) == []


def test_a_refused_version_does_nothing_where_there_is_a_champion_or_nobody_wants_it(catalog: Catalog) -> None:
    assert delivered(catalog(), 1, miss=40.0) is None
    lake = catalog("{strategy: shadow, refused_first: true}")
    delivered(lake, 2)
    assert delivered(lake, 3, miss=40.0) is None
    assert told(lake) == []


# ---- a person takes it back ----------------------------------------------------------------------------------------


def test_a_former_champion_that_is_named_comes_back_and_the_rollout_ends(catalog: Catalog) -> None:
    lake = catalog("{strategy: immediate}")
    delivered(lake, 1)
    delivered(lake, 2)
    lake = catalog()
    decision, registered = judged(lake, 3)
    deliver(lake, decision, registered, by="run-3")
    line = rollback(lake, MODEL, by="ada", reason="odd numbers", version=1, run_id="r")
    assert isinstance(line, Promotion)
    assert (line.kind, line.version) == ("rollback", 1)
    assert told(lake) == [("started", 3), ("rolled_back", 3)]
    rollback(lake, MODEL, by="ada", reason="odd numbers", version=1, run_id="r")
    assert (champions(lake), len(told(lake))) == ([1, 2, 1], 2)
    again = judge(lake, MODEL, lake.settings.jobs / MODEL / "job-3", registered, run_id="cleared")
    assert again.evidence_digest == decision.evidence_digest, "what a rollout cites stands, whoever is champion now"


def test_a_number_names_the_files_that_a_rollout_gave_it_to(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = catalog()
    delivered(lake, 1)
    _, registered = judged(lake, 3)
    delivered(lake, 2)
    job = lake.settings.jobs / MODEL / "job-3"
    with pytest.raises(VersionNumberTaken, match="was handed over as version 2"):
        judge(lake, MODEL, job, replace(registered, version=2), run_id="run-3")
    monkeypatch.setattr("training.registry.numbers.stored_decisions", lambda *_: [])
    given = [number for number, _ in given_numbers(lake, MODEL).given]
    assert given == [1, 2]
    line = lake.rollouts(MODEL).read().lines[0]
    tags = SimpleNamespace(version="2", tags={"trained_by_run": "another", "artifact_digest": line.artifact_digest})
    client = SimpleNamespace(search_model_versions=lambda _: [tags])
    monkeypatch.setattr("training.registry.origin.tracking_client", lambda _: client)
    assert verify_origin(lake, MODEL, 2, line.artifact_digest).run_id == "run-2"
    tags.version = "3"
    with pytest.raises(UntrustedModel, match="MLflow's tag of that version says another"):
        verify_origin(lake, MODEL, 3, registered.artifact_digest)
