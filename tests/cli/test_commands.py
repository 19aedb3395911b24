"""The commands that work on the lake without Airflow, run as a person runs them."""

from __future__ import annotations

import os
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import __main__ as commands
from config.calendar import Interval
from features.ingest import ingest
from features.materialize import materialize
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from lake.ledger import Promotion
from lake.tables import feature_table, valid_table
from tests import toy
from tests.training.registry.versions import AS_OF, MODEL, make_version, write_set

NIGHTS = Interval(toy.FIRST, date(2024, 1, 20))


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    lake = toy.toy_lake(tmp_path, source=Interval(toy.FIRST, date(2024, 1, 25)))
    for stage in (ingest, validate, transform, materialize):
        stage(lake, "rides", NIGHTS, run_id="test")
    for name, value in toy.environment(lake.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands.console, "width", 160)
    return lake


def test_restate_rewrites_the_nights_and_what_is_computed_from_them(loaded: Lake, tmp_path: Path) -> None:
    source = tmp_path / "source" / "outcomes.csv"
    lines = source.read_text().splitlines()
    changed = [
        re.sub(r"[^,]+$", "59.5", line)
        if line.startswith("2024-01-05,3,") or line.startswith('"2024-01-05",3,')
        else line
        for line in lines
    ]
    assert changed != lines
    source.write_text("\n".join(changed) + "\n")
    done = CliRunner().invoke(commands.app, ["restate", "rides", "2024-01-05", "2024-01-05"])
    assert done.exit_code == 0, done.output
    assert "1 nights rewritten, 2024-01-05 to 2024-01-05" in done.output
    valid = valid_table(loaded.settings, loaded.dataset("rides"), "outcomes").read([date(2024, 1, 5)]).to_pylist()
    assert [row["minutes"] for row in valid if row["ride"] == 3 and row["event_date"] == date(2024, 1, 5)] == [59.5]
    features = loaded.publications.current(
        feature_table(loaded.settings, loaded.dataset("rides"), "vehicle_daily"), NIGHTS
    )
    rewritten = [day for day, publication in features.items() if publication.run_id.startswith("restate__")]
    assert rewritten[0] == date(2024, 1, 5)
    assert rewritten[-1] <= date(2024, 1, 5) + timedelta(days=8)


def test_restate_of_an_unchanged_source_rewrites_nothing(loaded: Lake) -> None:
    done = CliRunner().invoke(commands.app, ["restate", "rides", "2024-01-05", "2024-01-07"])
    assert done.exit_code == 0, done.output
    assert "raw: 0 nights rewritten; the source holds what is published" in done.output


def test_a_version_is_exported_once_every_byte_is_verified(
    toy_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in toy.environment(toy_lake.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands.console, "width", 400)
    stored = make_version(toy_lake, write_set(toy_lake, "job"), 3).folder
    digest, decided = stored.name, datetime(2024, 3, 1, tzinfo=UTC)
    ledger = toy_lake.ledger(MODEL)
    ledger.append(Promotion(MODEL, 3, AS_OF, AS_OF, decided, "run", digest, "evidence"), seen=ledger.read())
    target = tmp_path / "elsewhere"
    done = CliRunner().invoke(commands.app, ["model", "export", MODEL, str(target)])
    assert done.exit_code == 0, done.output
    assert f"version 3: verified, and copied to {target / digest}" in done.output
    files = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(target / digest) for path in (target / digest).rglob("*") if path.is_file())
    refusals = [(["--version", "3"], "FolderTaken"), (["--version", "4"], "Known versions: 3")]
    for more, words in refusals:
        refused = CliRunner().invoke(commands.app, ["model", "export", MODEL, str(target), *more])
        assert words in str(refused.exception)
    (stored / "model" / "contract.json").write_text("{}")
    refused = CliRunner().invoke(commands.app, ["model", "export", MODEL, str(tmp_path / "other")])
    assert "its bytes were changed" in str(refused.exception)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "nonsense"], "nonsense"),
        (["rescore", "no_model", "2024-01-05", "2024-01-06"], "there is no model 'no_model'"),
        (["rescore", "ride_minutes", "2024-01-06", "2024-01-05"], "lies before the first"),
        (["rollback", "ride_minutes", "--reason", "worse on trucks"], "ride_minutes"),
    ],
)
def test_a_command_that_cannot_says_why(loaded: Lake, arguments: list[str], words: str) -> None:
    refused = CliRunner().invoke(commands.app, arguments)
    assert refused.exit_code != 0
    assert words in str(refused.exception)


def test_clean_lists_what_would_go_and_then_removes_it(loaded: Lake) -> None:
    left = loaded.settings.scratch / "publish-of-a-killed-try"
    left.mkdir()
    os.utime(left, (0, 0))
    listed = CliRunner().invoke(commands.app, ["clean", "--dry-run"])
    assert listed.exit_code == 0, listed.output
    assert str(left) in listed.output
    assert "leftovers of dead tries: 1 would go, 0 bytes" in listed.output
    assert left.is_dir()
    # Nearly every command makes a try of its own, which takes what dead ones left.
    assert CliRunner().invoke(commands.app, ["clean"]).exit_code == 0
    assert not left.exists()
    assert "there is nothing to remove" in CliRunner().invoke(commands.app, ["clean"]).output
