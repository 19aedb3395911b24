from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from cli.doctor import examine, render
from config.settings import Settings


def _text(settings: Settings) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render(examine(settings)))
    return out.getvalue()


def test_what_is_there_needs_no_mending(tmp_path: Path) -> None:
    findings = {(f.capability, f.needs): f for f in examine(Settings(home=tmp_path))}
    assert findings["everything", "the locked packages"].present
    assert findings["everything", "catalog folder config without errors"].found == "4 data sets, 4 models"


def test_what_is_missing_is_named_with_the_command_that_mends_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    text = _text(Settings(home=tmp_path))
    assert "no Docker engine answers" in text
    assert "apt-get install docker.io" in text


def test_a_broken_catalog_is_found(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "x.yaml").write_text("dataset: x\nunknown: 1\n")
    findings = [
        f
        for f in examine(Settings(home=tmp_path, catalogs=(tmp_path,)))
        if f.needs == f"catalog folder {tmp_path} without errors"
    ]
    assert not findings[0].present
    assert "x.yaml" in findings[0].found
    assert "unknown = 1: unknown key" in findings[0].found
