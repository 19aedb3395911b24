"""Whoever can write to the lake cannot make a champion: decisions and lines of the ledger are signed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable

from config.calendar import Interval
from config.settings import MissingSecret
from lake import ledger as ledger_module
from lake import signed_lines
from lake.chain import ChainName, LedgerCut, LedgerUntrusted, head_path, read_seal, seal_path
from lake.delta import write_data_file
from lake.lake import Lake
from lake.ledger import Promotion
from monitoring.audit.verification import verify_projections
from serving.score import score
from tests import toy
from tests.serving.scenario import promote, store_model, use_linear
from tests.training.registry.versions import AS_OF, MODEL, load_oracle, make_version, write_set
from training.registry.decision import DecisionNotSigned, decisions_table, read_decisions
from training.registry.delivery import deliver_decided
from training.registry.gate import judge
from training.registry.leakage import Audit
from training.registry.records import read_decisions_of

OLD_KEY, NEW_KEY = "the-old-key-of-more-than-32-characters", "the-new-key-of-more-than-32-characters"
UNSIGNED = pa.schema([field for field in ledger_module._SCHEMA if field.name != "signature"])


def line(version: int, *, sequence: int = 0, files: str = "f" * 64) -> Promotion:
    decided = datetime(2024, 1, 21, tzinfo=UTC)
    day = date(2024, 1, 20)
    return Promotion(MODEL, version, day, date(2024, 1, 21), decided, "gate", files, "evidence", sequence=sequence)


def write_to_lake(lake: Lake, row: Mapping[str, Any], schema: pa.Schema = ledger_module._SCHEMA) -> None:
    """A line as somebody without the key, or the former version, writes it."""
    root = lake.settings.lake / MODEL / "promotions"
    if not root.exists():
        root.mkdir(parents=True)
        DeltaTable.create(str(root), schema=schema, configuration={"delta.appendOnly": "true"})
    data = pa.Table.from_pylist([dict(row)], schema=schema)
    DeltaTable(str(root)).create_write_transaction(
        [write_data_file(root, schema, data.to_batches(), {})], mode="append", schema=schema
    )


def stored_line(lake: Lake, sequence: int) -> dict[str, Any]:
    files = DeltaTable(str(lake.settings.lake / MODEL / "promotions")).file_uris()
    rows = [row for uri in files for row in pq.read_table(uri, schema=ledger_module._SCHEMA).to_pylist()]
    return next(row for row in rows if row["sequence"] == sequence)


def test_a_signed_but_never_judged_model_is_not_scored_with_by_a_forged_line(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_linear(monkeypatch)
    promote(toy_lake, 1)
    never_judged = store_model(toy_lake, 9.0)
    write_to_lake(toy_lake, line(7, sequence=2, files=never_judged).__dict__)
    with pytest.raises(
        LedgerUntrusted,
        match=rf"line 2 of the ledger of {MODEL} \(a promotion of version 7.*is not signed(?s:.*)restore that folder",
    ):
        score(toy_lake, MODEL, Interval.of(date(2024, 1, 22)), run_id="after")


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row | {"version": 8},
        lambda row: row | {"artifact_digest": "0" * 64},
        lambda row: row | {"evidence_digest": "other"},
        lambda row: row | {"effective_from": date(2024, 1, 20)},
        lambda row: row | {"sequence": 4},
        lambda row: row,
        lambda row: row | {"sequence": 3, "signature": "ä"},
    ],
)
def test_a_signed_line_does_not_stand_in_another_place_or_with_another_word(
    toy_lake: Lake, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    ledger = toy_lake.ledger(MODEL)
    for version in (1, 2):
        ledger.append(line(version), seen=ledger.read())
    write_to_lake(toy_lake, edit(stored_line(toy_lake, 2) | {"sequence": 3}))
    with pytest.raises(LedgerUntrusted, match=r"line 3 .* was changed, moved, or signed with another key"):
        ledger.read()


def test_a_ledger_of_before_goes_on_under_a_seal_and_is_not_added_to_unsigned(toy_lake: Lake, tmp_path: Path) -> None:
    for version in (1, 2):
        write_to_lake(toy_lake, line(version, sequence=version).__dict__, UNSIGNED)
    ledger = toy_lake.ledger(MODEL)
    assert [p.version for p in ledger.read().promotions] == [1, 2]
    assert len((read_seal(toy_lake.settings) or {})[MODEL]) == 2
    assert seal_path(toy_lake.settings).stat().st_mode & 0o777 == 0o600
    assert [p.version for p in ledger.append(line(3), seen=ledger.read()).promotions] == [1, 2, 3]
    table = DeltaTable(str(toy_lake.settings.lake / MODEL / "promotions"))
    assert "signature" in {field.name for field in table.schema().fields}
    seal_path(toy_lake.settings).write_text("{}")
    assert len(ledger.read().promotions) == 3, "the first signed line vouches for those before it"
    write_to_lake(toy_lake, line(4, sequence=4).__dict__)
    with pytest.raises(LedgerUntrusted, match="line 4"):
        ledger.read()


def test_a_ledger_that_begins_after_the_seal_has_no_unsigned_line(toy_lake: Lake) -> None:
    assert toy_lake.ledger("another").read().promotions == ()
    write_to_lake(toy_lake, line(1, sequence=1).__dict__, UNSIGNED)
    with pytest.raises(LedgerUntrusted, match="line 1 .* is not signed"):
        toy_lake.ledger(MODEL).read()


def test_a_line_of_before_that_was_changed_is_refused(toy_lake: Lake) -> None:
    write_to_lake(toy_lake, line(1, sequence=1).__dict__, UNSIGNED)
    toy_lake.ledger(MODEL).read()
    (uri,) = DeltaTable(str(toy_lake.settings.lake / MODEL / "promotions")).file_uris()
    folder = Path(uri).parent
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    write_to_lake(toy_lake, line(1, sequence=1, files="e" * 64).__dict__, UNSIGNED)
    with pytest.raises(LedgerUntrusted, match="line 1 .* is not signed"):
        toy_lake.ledger(MODEL).read()


def test_who_has_no_key_reads_and_says_so_and_writes_nothing(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = toy_lake.ledger(MODEL)
    ledger.append(line(1), seen=ledger.read())
    assert ledger.read().unverified is None
    monkeypatch.delenv("MODEL_SIGNING_KEY")
    with caplog.at_level(logging.WARNING):
        snapshot = ledger.read()
    assert [p.version for p in snapshot.promotions] == [1]
    assert str(snapshot.unverified).startswith(f"the signatures of the ledger of {MODEL} were not verified")
    assert snapshot.unverified in caplog.messages
    with pytest.raises(MissingSecret):
        ledger.append(line(2), seen=snapshot)
    assert len(ledger.read().promotions) == 1


def test_the_key_is_changed_and_the_former_one_taken_away(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SIGNING_KEY", OLD_KEY)
    ledger = toy_lake.ledger(MODEL)
    ledger.append(line(1), seen=ledger.read())
    monkeypatch.setenv("MODEL_SIGNING_KEY", NEW_KEY)
    with pytest.raises(LedgerUntrusted, match="give the old one as model_signing_key_previous"):
        ledger.read()
    monkeypatch.setenv("MODEL_SIGNING_KEY_PREVIOUS", OLD_KEY)
    ledger.append(line(2), seen=ledger.read())
    monkeypatch.delenv("MODEL_SIGNING_KEY_PREVIOUS")
    assert [p.version for p in ledger.read().promotions] == [1, 2]
    assert [p.version for p in ledger.append(line(3), seen=ledger.read()).promotions] == [1, 2, 3]


def test_a_decision_that_the_gate_did_not_sign_promotes_nothing_and_is_made_anew(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))
    toy.publish_features(toy_lake, Interval.closed(date(2024, 2, 20), AS_OF))
    job = write_set(toy_lake, "job")
    registered = make_version(toy_lake, job, 1)
    decision = judge(toy_lake, MODEL, job, registered, run_id="run")
    table = decisions_table(toy_lake, MODEL)
    rows = table.read()
    for forged in (None, "0" * 64):
        column = pa.array([forged], pa.string())
        others = rows.set_column(rows.schema.get_field_index("signature"), "signature", column)
        toy.publish_rows(toy_lake, table, others, Interval.of(AS_OF))
        with pytest.raises(DecisionNotSigned, match=r"Nothing was promoted(?s:.*)Clear the gate's task"):
            deliver_decided(toy_lake, MODEL, registered.to_json(), decision.to_json(), by="run")
        assert toy_lake.ledger(MODEL).read().promotions == ()
        again = judge(toy_lake, MODEL, job, registered, run_id="again")
        assert replace(again, signature=None) in [replace(d, signature=None) for d in read_decisions(toy_lake, MODEL)]
        assert len({d.evidence_digest for d in read_decisions(toy_lake, MODEL)}) == len(read_decisions(toy_lake, MODEL))
        assert again.signature
    assert deliver_decided(toy_lake, MODEL, registered.to_json(), again.to_json(), by="run") is not None


def test_a_database_of_before_is_read_before_it_has_the_signatures(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.predictors.load_predictor", load_oracle)
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))
    job = write_set(toy_lake, "job")
    judge(toy_lake, MODEL, job, make_version(toy_lake, job, 1), run_id="run")
    with toy_lake.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE decisions DROP COLUMN signature"))
    assert len(read_decisions_of(toy_lake, [MODEL])) == 1


def cut(lake: Lake, keep: int) -> None:
    """The ledger with its first lines alone, as a backup or a thief leaves it."""
    rows = [stored_line(lake, number) for number in range(1, keep + 1)]
    shutil.rmtree(lake.settings.lake / MODEL / "promotions")
    for row in rows:
        write_to_lake(lake, row)


@pytest.mark.parametrize("keep", [2, 0])
def test_a_ledger_that_was_cut_at_its_end_is_noticed_until_somebody_accepts_it(toy_lake: Lake, keep: int) -> None:
    ledger = toy_lake.ledger(MODEL)
    for version in (1, 2, 3):
        ledger.append(line(version), seen=ledger.read())
    cut(toy_lake, keep)
    for _ in range(2):  # a read does not make it true
        with pytest.raises(
            LedgerCut, match=rf"has {keep} lines, of the 3 that were seen(?s:.*)repair --accept-ledger {MODEL}"
        ):
            ledger.read()
    with pytest.raises(LedgerCut):
        score(toy_lake, MODEL, Interval.of(date(2024, 1, 22)), run_id="after")
    (damage,) = [damage for damage in verify_projections(toy_lake) if damage.part == "ledger"]
    assert "--accept-ledger" in damage.remedy
    assert ledger.accept() == (3, keep)
    assert len(ledger.read().promotions) == keep


def test_other_lines_in_the_place_of_those_that_were_cut_are_noticed(toy_lake: Lake) -> None:
    ledger = toy_lake.ledger(MODEL)
    for version in (1, 2):
        ledger.append(line(version), seen=ledger.read())
    kept = head_path(toy_lake.settings, ChainName(MODEL)).read_bytes()
    cut(toy_lake, 1)
    ledger.accept()
    ledger.append(line(3), seen=ledger.read())
    head_path(toy_lake.settings, ChainName(MODEL)).write_bytes(
        kept
    )  # who saw the former second line, on another machine
    with pytest.raises(LedgerCut, match="has 2 lines, of the 2 that were seen"):
        ledger.read()


def test_how_far_a_ledger_reached_is_kept_by_the_first_read_and_shut_to_others(toy_lake: Lake) -> None:
    ledger = toy_lake.ledger(MODEL)
    ledger.append(line(1), seen=ledger.read())
    path = head_path(toy_lake.settings, ChainName(MODEL))
    path.unlink()  # an installation of before
    assert len(ledger.read().promotions) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_text("{")
    with pytest.raises(LedgerUntrusted, match="is damaged"):
        ledger.read()
    assert ledger.accept() == (0, 1)


def test_a_line_that_is_written_while_the_ledger_is_read_is_not_lacking(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = toy_lake.ledger(MODEL)
    ledger.append(line(1), seen=ledger.read())
    whole = signed_lines.stored_lines

    def and_another_line(table: DeltaTable, schema: pa.Schema) -> list[dict[str, Any]]:
        lines = whole(table, schema)
        monkeypatch.setattr(signed_lines, "stored_lines", whole)
        ledger.append(line(2), seen=ledger.read())
        return lines

    monkeypatch.setattr(signed_lines, "stored_lines", and_another_line)
    assert len(ledger.read().promotions) == 1
    assert len(ledger.read().promotions) == 2
