"""Texts from outside that libraries fail on in their own way are refused in ours."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import BadSettings, load_settings
from monitoring.pages.page import Column, Table, to_csv
from tests import toy

DEEP = "[" * 2_000


@pytest.mark.parametrize("text", [DEEP, "a: 2024-02-30", "\x00", "a: !!python/object:os.system x", "a: *nothing"])
def test_a_catalog_that_is_no_yaml_is_refused_by_name(tmp_path: Path, text: str) -> None:
    settings = toy.write_catalog(tmp_path)
    (tmp_path / "datasets" / "rides.yaml").write_text(text)
    with pytest.raises(BadCatalog, match=r"rides\.yaml"):
        load_catalog(settings)


@pytest.mark.parametrize("name", ["NIGHTFLEET_NOTIFICATIONS", "NIGHTFLEET_SOURCE_LIMITS", "NIGHTFLEET_CATALOGS"])
@pytest.mark.parametrize("text", [DEEP, "[a: {", "[2024-02-30]"])
def test_a_setting_that_is_no_yaml_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(BadSettings, match=name):
        load_settings()


@pytest.mark.parametrize(
    "text", ["=1+1", "\uff1d1+1", "\uff20SUM(1)", "a;=1+1", "a; -1", " =1+1", "a\t+1", "a\n@x", "\r=1", '";=1+1;"']
)
def test_a_cell_is_no_formula_for_any_spreadsheet(text: str) -> None:
    table = Table("t", "A table", (Column("a", "A"), Column("b", "B")), ({"a": text, "b": -1.5},))
    written = to_csv(table)
    [cell, number] = list(csv.reader(io.StringIO(written, newline="")))[1]
    assert (cell.replace("'", ""), number) == (text, "-1.5")
    # Where `;`, a tab or a line's end divides, whatever stands in quotes.
    for split in (";", "\t", "\n", "\r"):
        for part in cell.split(split):
            assert not part.strip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")), cell
    assert written.splitlines()[0] == '"a","b"'
