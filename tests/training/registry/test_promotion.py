"""Promotion, rollback, and the alias that follows the ledger."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, NoChampion, Promotion
from lake.lineage import PartitionNotReady
from lake.signature import UntrustedModel
from lake.signed_lines import LedgerConflict
from lake.tables import named_table
from tests import toy
from tests.training.registry.versions import AS_OF, MODEL, load_oracle, make_version, write_set
from training.registry import promotion as promote_module
from training.registry.approval import ReasonMissing
from training.registry.decision import Decision
from training.registry.delivery import deliver_decided
from training.registry.gate import judge
from training.registry.leakage import Audit
from training.registry.promotion import (
    ALIAS,
    ModelFilesDamaged,
    NothingToRollBackTo,
    StaleDecision,
    _tenures,
    effective_from,
    promote,
    repair_alias,
    rollback,
)
from training.registry.register import Registered

NEXT = AS_OF + ONE_DAY


@pytest.fixture(autouse=True)
def oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))


@pytest.fixture
def lake(toy_lake: Lake) -> Lake:
    """Features are published up to the as-of night."""
    toy.publish_features(toy_lake, Interval.closed(date(2024, 2, 20), AS_OF))
    return toy_lake


def judged(lake: Lake, version: int, **misses: Any) -> tuple[Decision, Registered]:
    job = write_set(lake, f"job-{version}")
    registered = make_version(lake, job, version, **({"miss": 10.0 / version} | misses))
    return judge(lake, MODEL, job, registered, run_id=f"run-{version}"), registered


def promoted(lake: Lake, version: int, **misses: Any) -> Promotion:
    decision, registered = judged(lake, version, **misses)
    line = promote(lake, decision, registered, by=f"run-{version}")
    assert line is not None
    return line


def predictions(lake: Lake, day: date) -> None:
    """A night's predictions are published; what they are is of no matter here."""
    table = named_table(lake.settings, f"{MODEL}/predictions", {"x": "int64"}, ("x",))
    toy.publish_rows(lake, table, pa.table({"x": [1], "data_date": pa.array([day])}), Interval.of(day))


# ---- promote -----------------------------------------------------------------------------------------------------


def test_a_passed_challenger_becomes_champion_from_the_next_night_on(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    line = promote(lake, decision, registered, by="run-1")
    assert line is not None
    assert (line.version, line.kind, line.by, line.reason) == (1, "promotion", "run-1", "")
    assert (line.trained_until, line.effective_from) == (AS_OF, NEXT)
    assert (line.artifact_digest, line.evidence_digest) == (registered.artifact_digest, decision.evidence_digest)
    snapshot = lake.ledger(MODEL).read()
    assert snapshot.champion_of(NEXT) == line
    with pytest.raises(NoChampion):
        snapshot.champion_of(AS_OF)


def test_the_same_decision_again_writes_nothing(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    line = promote(lake, decision, registered, by="run-1")
    assert promote(lake, decision, registered, by="cleared task") == line
    assert len(lake.ledger(MODEL).read().promotions) == 1


def test_the_same_decision_again_after_a_rollback_does_not_bring_it_back(lake: Lake) -> None:
    promoted(lake, 1)
    decision, registered = judged(lake, 2)
    line = promote(lake, decision, registered, by="run-2")
    rollback(lake, MODEL, by="ada", reason="odd numbers")
    assert promote(lake, decision, registered, by="cleared task") == line
    newest = lake.ledger(MODEL).read().newest
    assert newest is not None
    assert newest.version == 1


def test_what_was_not_passed_is_not_promoted(lake: Lake) -> None:
    decision, registered = judged(lake, 1, miss=40.0)
    assert decision.verdict == "refuse"
    assert promote(lake, decision, registered, by="run") is None
    assert lake.ledger(MODEL).read().promotions == ()


def test_a_decision_on_another_version_does_not_count(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    with pytest.raises(
        StaleDecision, match=r"the decision is on ride_minutes version 1 .* asked to promote is ride_minutes version 2"
    ):
        promote(lake, decision, replace(registered, version=2), by="run")
    with pytest.raises(StaleDecision, match=r"Nothing was promoted. Judge that version first."):
        promote(lake, decision, replace(registered, artifact_digest="0" * 64), by="run")
    assert lake.ledger(MODEL).read().promotions == ()


def test_a_decision_against_a_former_champion_does_not_count(lake: Lake) -> None:
    promoted(lake, 1)
    late, late_registered = judged(lake, 2)
    promoted(lake, 3)
    with pytest.raises(
        StaleDecision, match=r"version 2 was judged against champion version 1, but version 3 is champion now"
    ):
        promote(lake, late, late_registered, by="run")
    assert [p.version for p in lake.ledger(MODEL).read().promotions] == [1, 3]


def test_files_that_are_not_those_judged_are_never_promoted(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    path = registered.folder / "model" / "contract.json"
    kept = path.read_bytes()
    path.write_bytes(kept + b" ")
    with pytest.raises(
        ModelFilesDamaged, match=r"version 1 cannot become champion. Nothing was written.\n.*its bytes were changed"
    ):
        promote(lake, decision, registered, by="run")
    path.unlink()
    with pytest.raises(ModelFilesDamaged, match=r"is missing, though the manifest lists it"):
        promote(lake, decision, registered, by="run")
    path.write_bytes(kept)
    manifest = registered.folder / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"artifacts": document["artifacts"] | {"manifest.json": "0" * 64}}))
    with pytest.raises(ModelFilesDamaged):
        promote(lake, decision, registered, by="run")
    assert lake.ledger(MODEL).read().promotions == ()


def test_a_list_of_files_with_another_digest_is_never_promoted(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    extra = registered.folder / "model" / "extra.json"
    extra.write_text("{}")
    manifest = registered.folder / "manifest.json"
    document = json.loads(manifest.read_text())
    import hashlib

    document["artifacts"]["model/extra.json"] = hashlib.sha256(b"{}").hexdigest()
    manifest.write_text(json.dumps(document))
    with pytest.raises(
        ModelFilesDamaged, match=r"version 1 cannot become champion(?s:.*)lists files of digest .* signed are"
    ):
        promote(lake, decision, registered, by="run")


def test_two_promotions_at_once_write_one_line(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    decision, registered = judged(lake, 1)
    winner: list[Promotion | None] = []
    real = promote_module.effective_from

    def meanwhile(*args: Any, **kwargs: Any) -> date:
        if not winner:
            monkeypatch.setattr(promote_module, "effective_from", real)
            winner.append(promote(lake, decision, registered, by="winner"))
        return real(*args, **kwargs)

    monkeypatch.setattr(promote_module, "effective_from", meanwhile)
    assert promote(lake, decision, registered, by="loser") == winner[0]
    assert len(lake.ledger(MODEL).read().promotions) == 1


def test_another_promotion_in_between_is_a_conflict(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(lake, 1)
    decision, registered = judged(lake, 2)
    real = promote_module.effective_from

    def meanwhile(*args: Any, **kwargs: Any) -> date:
        ledger = lake.ledger(MODEL)
        ledger.append(replace(ledger.read().promotions[0], version=9), seen=ledger.read())
        return real(*args, **kwargs)

    monkeypatch.setattr(promote_module, "effective_from", meanwhile)
    with pytest.raises(LedgerConflict, match="Nothing was written"):
        promote(lake, decision, registered, by="run")
    assert [p.version for p in lake.ledger(MODEL).read().promotions] == [1, 9]


def test_as_json_for_airflow(lake: Lake) -> None:
    decision, registered = judged(lake, 1)
    document = json.loads(
        json.dumps(registered.__dict__ | {"as_of": str(registered.as_of), "folder": str(registered.folder)})
    )
    line = deliver_decided(lake, MODEL, document, decision.to_json(), by="run")
    assert line is not None
    assert json.loads(json.dumps(line)) == line
    assert (line["version"], line["effective_from"]) == (1, str(NEXT))
    with pytest.raises(StaleDecision, match=r"no stored decision with evidence ffff"):
        deliver_decided(lake, MODEL, document, {"evidence_digest": "f" * 64}, by="run")


# ---- from which night on -----------------------------------------------------------------------------------------


def test_the_first_night_is_the_one_after_the_newest_whose_features_are_published(lake: Lake) -> None:
    assert effective_from(lake, MODEL) == NEXT
    toy.publish_features(lake, Interval.closed(NEXT, NEXT + 2 * ONE_DAY))
    assert effective_from(lake, MODEL) == NEXT + 3 * ONE_DAY
    assert promoted(lake, 1).effective_from == NEXT + 3 * ONE_DAY


def test_a_night_already_scored_is_never_re_attributed(lake: Lake) -> None:
    first = promoted(lake, 1)
    for day in Interval.closed(NEXT, NEXT + 3 * ONE_DAY):
        predictions(lake, day)
    second = promoted(lake, 2)
    assert second.effective_from == NEXT + 4 * ONE_DAY
    snapshot = lake.ledger(MODEL).read()
    assert [snapshot.champion_of(day).version for day in Interval.closed(NEXT, NEXT + 4 * ONE_DAY)] == [1, 1, 1, 1, 2]
    assert first.effective_from == NEXT


def test_never_before_the_last_promotions_first_night(lake: Lake) -> None:
    ledger = lake.ledger(MODEL)
    far = Promotion(MODEL, 7, AS_OF, NEXT + 9 * ONE_DAY, datetime(2024, 2, 27, tzinfo=UTC), "x", "d", "e")
    ledger.append(far, seen=ledger.read())
    assert effective_from(lake, MODEL) == NEXT + 9 * ONE_DAY


def test_a_live_data_set_counts_the_clock(tmp_path: Path) -> None:
    text = toy.DATASET_YAML.replace(
        "replay: {from: 2024-01-01, to: 2024-12-31, first_night: 2024-03-01}", "start: 2024-01-01"
    )
    lake = toy.toy_lake(tmp_path, dataset=text)
    toy.publish_features(lake, Interval.of(AS_OF))
    quiet = datetime(2024, 2, 27, 0, 30, tzinfo=UTC)
    assert effective_from(lake, MODEL, decided_at=quiet) == NEXT
    # Decided at 02:30 local time, the night that ended two hours ago is past: its cutoff lies before the decision.
    assert effective_from(lake, MODEL, decided_at=datetime(2024, 3, 5, 1, 30, tzinfo=UTC)) == date(2024, 3, 5)
    assert effective_from(lake, MODEL, decided_at=datetime(2024, 3, 4, 23, 0, tzinfo=UTC)) == date(
        2024, 3, 4
    )  # midnight itself


def test_without_features_there_is_no_first_night(toy_lake: Lake) -> None:
    with pytest.raises(
        PartitionNotReady, match=r"rides/features/vehicle_daily has no partition at all.*\n.*rides_history"
    ):
        effective_from(toy_lake, MODEL)


# ---- rollback ----------------------------------------------------------------------------------------------------


def test_rollback_brings_the_former_champion_back_from_the_next_night_on(lake: Lake) -> None:
    first = promoted(lake, 1)
    second = promoted(lake, 2)
    predictions(lake, NEXT)
    line = rollback(lake, MODEL, by="ada", reason="numbers look odd")
    assert (line.version, line.kind, line.by, line.reason) == (1, "rollback", "ada", "numbers look odd")
    assert (line.artifact_digest, line.evidence_digest, line.trained_until) == (
        first.artifact_digest,
        first.evidence_digest,
        first.trained_until,
    )
    assert line.effective_from == NEXT + ONE_DAY
    snapshot = lake.ledger(MODEL).read()
    assert [snapshot.champion_of(NEXT + n * ONE_DAY).version for n in range(2)] == [2, 1]
    assert second.version == 2


def test_rollbacks_go_back_one_by_one_and_then_refuse(lake: Lake) -> None:
    for version in (1, 2, 3):
        promoted(lake, version)
    assert [rollback(lake, MODEL, by="ada", reason="again").version for _ in range(2)] == [2, 1]
    with pytest.raises(NothingToRollBackTo, match=r"version 1 is its only champion so far. Nothing was written."):
        rollback(lake, MODEL, by="ada", reason="once more")


def test_rollback_to_a_version_of_choice(lake: Lake) -> None:
    for version in (1, 2, 3):
        promoted(lake, version)
    with pytest.raises(
        NothingToRollBackTo,
        match=r"back to version 7: former champions are 1, 2, version 3 is champion. Nothing was written.",
    ):
        rollback(lake, MODEL, by="ada", reason="x", version=7)
    with pytest.raises(NothingToRollBackTo, match="back to version 3"):
        rollback(lake, MODEL, by="ada", reason="x", version=3)
    assert rollback(lake, MODEL, by="ada", reason="x", version=1).version == 1
    assert [p.version for p in _tenures(lake.ledger(MODEL).read())] == [1], "what lay above it is rolled back with it"


@pytest.mark.parametrize("reason", ["", " \n"])
def test_rollback_needs_a_reason(lake: Lake, reason: str) -> None:
    for version in (1, 2):
        promoted(lake, version)
    with pytest.raises(ReasonMissing, match=r"was not rolled back: no reason was given. Nothing was written."):
        rollback(lake, MODEL, by="ada", reason=reason)
    assert len(lake.ledger(MODEL).read().promotions) == 2


def test_the_same_run_rolls_back_once(lake: Lake) -> None:
    for version in (1, 2, 3):
        promoted(lake, version)
    line = rollback(lake, MODEL, by="ada", reason="x", run_id="manual__1")
    assert (line.version, line.by) == (2, "ada (manual__1)")
    assert rollback(lake, MODEL, by="ada", reason="x", run_id="manual__1") == line
    assert rollback(lake, MODEL, by="ada", reason="x", run_id="manual__2").version == 1


def test_the_command_rolls_back_in_the_name_of_its_user(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass

    from cli import __main__ as commands

    for version in (1, 2):
        promoted(lake, version)
    for name, value in toy.environment(lake.settings).items():
        monkeypatch.setenv(name, value)
    refused = CliRunner().invoke(commands.app, ["rollback", MODEL, "--reason", " "])
    assert "no reason was given" in str(refused.exception)
    done = CliRunner().invoke(commands.app, ["rollback", MODEL, "--reason", "numbers look odd"])
    assert done.exit_code == 0, done.output
    assert f"{MODEL}: version 1 is champion again from data date {NEXT} on." in done.output
    newest = lake.ledger(MODEL).read().newest
    assert newest is not None
    assert (newest.version, newest.kind, newest.by, newest.reason) == (
        1,
        "rollback",
        getpass.getuser(),
        "numbers look odd",
    )


def test_rollback_to_files_without_our_signature_writes_nothing(lake: Lake) -> None:
    first = promoted(lake, 1)
    promoted(lake, 2)
    (lake.settings.artifacts / MODEL / first.artifact_digest / "signature.json").unlink()
    with pytest.raises(ModelFilesDamaged, match=r"version 1 cannot become champion(?s:.*)nobody vouches for it"):
        rollback(lake, MODEL, by="ada", reason="x")
    assert len(lake.ledger(MODEL).read().promotions) == 2


def test_without_a_champion_there_is_nothing_to_roll_back(lake: Lake) -> None:
    with pytest.raises(
        NothingToRollBackTo, match=r"it never had a champion. Nothing was written. Train another version"
    ):
        rollback(lake, MODEL, by="ada", reason="x")


def test_rollback_to_damaged_files_writes_nothing(lake: Lake) -> None:
    first = promoted(lake, 1)
    promoted(lake, 2)
    (lake.settings.artifacts / MODEL / first.artifact_digest / "manifest.json").unlink()
    with pytest.raises(ModelFilesDamaged, match="version 1 cannot become champion"):
        rollback(lake, MODEL, by="ada", reason="x")
    assert len(lake.ledger(MODEL).read().promotions) == 2


def line(sequence: int, version: int, kind: Any = "promotion") -> Promotion:
    return Promotion(
        MODEL,
        version,
        AS_OF,
        NEXT + sequence * ONE_DAY,
        datetime(2024, 3, 1, tzinfo=UTC),
        "x",
        f"d{version}",
        f"e{version}",
        kind,
        sequence,
    )


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_promotions_and_rollbacks_unwinds(promotes: list[bool]) -> None:
    """Against a plain stack: promotions push, rollbacks pop where something lies below."""
    stack: list[int] = []
    lines: list[Promotion] = []
    for promoting in promotes:
        if promoting or len(stack) < 2:
            stack.append(len(lines) + 1)
            lines.append(line(len(lines) + 1, stack[-1]))
        else:
            stack.pop()
            lines.append(line(len(lines) + 1, stack[-1], "rollback"))
        snapshot = LedgerSnapshot(MODEL, 0, tuple(lines))
        assert [p.version for p in _tenures(snapshot)] == stack
        assert snapshot.newest is not None
        assert snapshot.newest.version == stack[-1]


# ---- MLflow ------------------------------------------------------------------------------------------------------


def test_mlflow_down_is_a_warning_and_the_ledger_stands(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="training.registry.promotion"):
        promoted(lake, 1)
    assert (
        "ride_minutes: MLflow may not show version 1 as champion yet. Scoring goes by the ledger; the next run tries "
        "again." in caplog.text
    )
    assert lake.ledger(MODEL).read().champion_of(NEXT).version == 1
    state = repair_alias(lake, MODEL)
    assert state.version == 1
    assert state.warning is not None
    assert "did not do what was asked" in state.warning


def test_without_a_decision_mlflow_is_not_asked(lake: Lake) -> None:
    state = repair_alias(lake, MODEL)
    assert (state.version, state.changed, state.warning) == (None, 0, None)


@pytest.fixture
def tracked(lake: Lake, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Lake, Any]:
    """The lake with a real MLflow that knows three versions, under a model name of this test's own."""
    from training.registry.tracking import tracking_client

    lake = Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": mlflow_server}), lake.catalog)
    client = tracking_client(lake.settings)
    for old in client.search_registered_models(f"name = '{MODEL}'"):
        client.delete_registered_model(old.name)
    client.create_registered_model(MODEL)
    for _ in range(3):
        run = client.create_run("0")
        client.create_model_version(MODEL, source=f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    make = make_version
    monkeypatch.setattr(
        "tests.training.registry.test_promotion.make_version",
        lambda *args, **misses: tagged(client, make(*args, **misses)),
    )
    return lake, client


def tagged(client: Any, registered: Registered) -> Registered:
    """With the tags that `register` gives a version."""
    for name, value in (
        ("trained_by_run", f"run-{registered.version}"),
        ("artifact_digest", registered.artifact_digest),
    ):
        client.set_model_version_tag(MODEL, str(registered.version), name, value)
    return registered


def shown(client: Any) -> tuple[int, dict[int, tuple[str | None, str | None]]]:
    versions = {
        int(v.version): (v.tags.get("stage"), v.tags.get("gate"))
        for v in client.search_model_versions(f"name = '{MODEL}'")
    }
    return int(client.get_model_version_by_alias(MODEL, ALIAS).version), versions


def test_the_alias_follows_the_ledger(tracked: tuple[Lake, Any]) -> None:
    lake, client = tracked
    promoted(lake, 1)
    assert shown(client) == (1, {1: ("champion", "promote"), 2: (None, None), 3: (None, None)})
    promoted(lake, 2)
    decision, registered = judged(lake, 3, miss=20.0)
    assert promote(lake, decision, registered, by="run-3") is None
    assert shown(client) == (2, {1: ("former champion", "promote"), 2: ("champion", "promote"), 3: (None, "refuse")})
    rollback(lake, MODEL, by="ada", reason="x")
    assert shown(client) == (1, {1: ("champion", "promote"), 2: ("former champion", "promote"), 3: (None, "refuse")})
    assert repair_alias(lake, MODEL).changed == 0


def test_an_alias_that_somebody_moved_is_put_back(tracked: tuple[Lake, Any]) -> None:
    lake, client = tracked
    promoted(lake, 1)
    client.set_registered_model_alias(MODEL, ALIAS, "3")
    client.set_model_version_tag(MODEL, "1", "stage", "archived")
    state = repair_alias(lake, MODEL)
    assert (state.version, state.changed, state.warning) == (1, 2, None)
    assert shown(client)[0] == 1


def test_what_was_promoted_while_mlflow_was_down_is_shown_later(tracked: tuple[Lake, Any]) -> None:
    lake, client = tracked
    down = Lake(lake.settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"}), lake.catalog)
    promoted(down, 2)
    assert repair_alias(lake, MODEL).changed == 3
    assert shown(client)[0] == 2


@pytest.mark.parametrize("tag", ["trained_by_run", "artifact_digest"])
def test_a_version_that_mlflow_knows_by_another_run_or_other_files_is_neither_judged_nor_promoted(
    tracked: tuple[Lake, Any], tag: str
) -> None:
    lake, client = tracked
    decision, registered = judged(lake, 1)
    client.set_model_version_tag(MODEL, "1", tag, "another")
    with pytest.raises(
        ModelFilesDamaged, match=rf"its signature says {tag} .*, MLflow's tag of that version says another"
    ):
        promote(lake, decision, registered, by="run")
    client.delete_model_version_tag(MODEL, "1", tag)
    with pytest.raises(UntrustedModel, match="MLflow's tag of that version says None"):
        judge(lake, MODEL, write_set(lake, "again", edit_test=lambda table: table.slice(1)), registered, run_id="again")
    assert lake.ledger(MODEL).read().promotions == ()


def test_a_version_mlflow_has_lost_is_a_warning(tracked: tuple[Lake, Any]) -> None:
    lake, client = tracked
    promoted(lake, 1)
    client.delete_model_version(MODEL, "1")
    state = repair_alias(lake, MODEL)
    assert state.warning is not None
    assert (
        "MLflow has no version 1 of ride_minutes, which the ledger names champion: its alias was not set."
        in state.warning
    )
