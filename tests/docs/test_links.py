"""README and docs: links, anchors, paths and commands lead somewhere, and the README stays a first screen."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from cli.__main__ import app
from config.settings import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# Prose is wrapped at 120; a table's row, a link and a picture's drawing cannot be.
LONGEST_LINE, README_LINES = 120, 180
# What an installation writes: there are no such files in the repository.
WRITTEN = ("var/", "lake/<", "lake/flights", ".venv/", "../our-fleet")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def _tracked() -> frozenset[str]:
    """Every file and folder of the repository, ignored ones left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    paths = {Path(name) for name in files if name}
    return frozenset(path.as_posix() for path in paths | {parent for path in paths for parent in path.parents})


@each_page
def test_every_link_leads_to_a_file_and_an_anchor(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", _prose(page))
    for link in links:
        if re.match(r"(https?|mailto):", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert not link.startswith("/"), f"{page.name}: {link} is absolute. Write it relative to the page."
        assert target.relative_to(ROOT).as_posix() in _tracked(), f"{page.name}: {link} leads to no file."
        assert not anchor or anchor in _anchors(target), (
            f"{page.name}: {link} names no heading of {target.name}. There are: {', '.join(sorted(_anchors(target)))}."
        )


@each_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    folders = {name.partition("/")[0] for name in _tracked()}
    for name in re.findall(r"`([^`\s]+)`", _prose(page)):
        looks_like_a_path = "/" in name and name.partition("/")[0] in folders
        if looks_like_a_path and not name.startswith(WRITTEN) and "<" not in name:
            assert name.rstrip("/") in _tracked(), f"{page.name} names `{name}`, which is not in the repository."


@each_page
def test_every_command_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {str(group.name) for group in app.registered_groups}
    for command in re.findall(r"-m cli ([a-z]\w*)", text):
        assert command in commands, f"{page.name} names `cli {command}`. There are: {', '.join(sorted(commands))}."
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert target in targets, f"{page.name} names `make {target}`. There are: {', '.join(sorted(targets))}."
    for module in re.findall(r"-m (tests[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (
            f"{page.name} names `python -m {module}`, which cannot be run."
        )


@each_page
def test_prose_is_wrapped(page: Path) -> None:
    for number, line in enumerate(_prose(page).splitlines(), 1):
        assert len(line) <= LONGEST_LINE or line.startswith(("|", "![")), (
            f"{page.name}, line {number} outside blocks has {len(line)} characters. Wrap it at {LONGEST_LINE}."
        )


def test_the_readme_fits_a_few_screens_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES, f"README.md is longer than {README_LINES} lines. Move it to docs/."
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in text, f"README.md does not link to docs/{page.name}."


def test_the_makefile_explains_each_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    said = set(re.findall(r"make ([a-z][a-z-]*) ", "".join(re.findall(r"^#.*\n", makefile, re.MULTILINE))))
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)) - {"help", "setup", "lint"}
    assert targets <= said, f"`make help` does not explain {', '.join(sorted(targets - said))}."
