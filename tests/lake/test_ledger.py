"""The ledger: append-only, one writer at a time, and who is champion of a night."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from config.settings import Settings
from lake.ledger import Ledger, NoChampion, Promotion
from lake.signed_lines import LedgerConflict


def promotion(version: int, effective_from: date, *, trained_until: date = date(2024, 1, 1), **more: Any) -> Promotion:
    decided = datetime(2024, 3, 1, 12, tzinfo=UTC)
    return Promotion(
        "m",
        version,
        trained_until,
        effective_from,
        decided,
        "gate",
        f"artifact {version}",
        f"evidence {version}",
        **more,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Settings(home=tmp_path), "m")


def test_an_empty_ledger_has_no_champion(ledger: Ledger) -> None:
    snapshot = ledger.read()
    assert snapshot.promotions == ()
    assert snapshot.newest is None
    with pytest.raises(NoChampion) as caught:
        snapshot.champion_of(date(2024, 5, 1))
    assert str(caught.value) == (
        "NoChampion: m has no champion for data date 2024-05-01: it never had one.\n"
        "  Train and promote one for that date (`m_train` with partition key 2024-05-01), or score a later night."
    )


def test_what_is_appended_is_read_back(ledger: Ledger) -> None:
    written = promotion(3, date(2024, 4, 1))
    snapshot = ledger.append(written, seen=ledger.read())
    assert snapshot == ledger.read()
    assert snapshot.promotions[0].sequence == 1
    assert {**snapshot.promotions[0].__dict__, "sequence": 0} == written.__dict__


def test_the_champion_is_the_one_in_force_that_night(ledger: Ledger) -> None:
    for version, start in ((1, date(2024, 4, 1)), (2, date(2024, 4, 10)), (3, date(2024, 4, 10))):
        ledger.append(promotion(version, start), seen=ledger.read())
    snapshot = ledger.read()
    assert [snapshot.champion_of(date(2024, 4, day)).version for day in (1, 9, 10, 30)] == [1, 1, 3, 3]
    with pytest.raises(NoChampion, match="its first champion takes effect on 2024-04-01"):
        snapshot.champion_of(date(2024, 3, 31))


def test_a_model_trained_on_later_nights_is_no_champion_of_an_earlier_one(ledger: Ledger) -> None:
    ledger.append(promotion(1, date(2024, 4, 1)), seen=ledger.read())
    ledger.append(promotion(2, date(2024, 4, 2), trained_until=date(2024, 4, 20)), seen=ledger.read())
    snapshot = ledger.read()
    assert snapshot.champion_of(date(2024, 4, 10)).version == 1
    assert snapshot.champion_of(date(2024, 4, 20)).version == 2


def test_a_rollback_is_a_promotion_of_the_older_version(ledger: Ledger) -> None:
    for number, version in enumerate((1, 2, 1)):
        ledger.append(
            promotion(version, date(2024, 4, 1 + number), kind="rollback" if number == 2 else "promotion"),
            seen=ledger.read(),
        )
    newest = ledger.read().newest
    assert newest is not None
    assert (newest.version, newest.kind, newest.sequence) == (1, "rollback", 3)


@pytest.mark.parametrize("before", [0, 1])
def test_who_decided_on_an_older_ledger_is_refused(ledger: Ledger, before: int) -> None:
    for number in range(before):
        ledger.append(promotion(9 + number, date(2024, 3, 1)), seen=ledger.read())
    seen = ledger.read()
    ledger.append(promotion(1, date(2024, 4, 1)), seen=seen)
    with pytest.raises(LedgerConflict) as caught:
        ledger.append(promotion(2, date(2024, 4, 1)), seen=seen)
    assert (
        str(caught.value)
        == "LedgerConflict: the ledger of m changed while this decision was made. Nothing was written. Decide again on"
        " what is there now."
    )
    assert [p.version for p in ledger.read().promotions] == [*(9 + n for n in range(before)), 1]


@pytest.mark.parametrize("before", [0, 1])
def test_of_two_appends_at_once_one_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    for _ in range(before):
        ledger.append(promotion(9, date(2024, 3, 1)), seen=ledger.read())
    barrier = threading.Barrier(2, timeout=30)

    def together(*args: Any, **kwargs: Any) -> None:
        barrier.wait()
        commit(*args, **kwargs)

    commit = DeltaTable.create_write_transaction
    monkeypatch.setattr(DeltaTable, "create_write_transaction", together)
    seen = ledger.read()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(ledger.append, promotion(version, date(2024, 4, 1)), seen=seen) for version in (1, 2)]
    failures = [future.exception() for future in futures]
    assert sorted(type(failure).__name__ for failure in failures) == ["LedgerConflict", "NoneType"], failures
    assert len(ledger.read().promotions) == before + 1
