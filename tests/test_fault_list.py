"""`docs/faults.md` lists the cases of `tests/faults` by name. To write it anew: `python -m tests.test_fault_list`."""

from __future__ import annotations

import ast
import textwrap

from config.settings import ROOT

PAGE = ROOT / "docs" / "faults.md"
HEAD = """# Faults that are tested

What breaks in the world around the product, and what holds then. Each line is a test of `tests/faults`, which runs on a
toy chain in less than two minutes: `python -m pytest tests/faults`. What to do when one of them happens to you stands
in [When a stage fails](failures.md) and [Security](security.md). Written by `python -m tests.test_fault_list`.
"""


def listed() -> str:
    """The page: a section a file, a line a test."""
    parts = [HEAD]
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        about = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        cases = [f"- `{name.removeprefix('test_')}`" for name in names]
        parts.append(
            "\n".join(
                [
                    f"## {path.stem.removeprefix('test_').replace('_', ' ')}",
                    "",
                    textwrap.fill(about, 120),
                    "",
                    *cases,
                    "",
                ]
            )
        )
    return "\n".join(parts)


def test_the_page_lists_every_fault() -> None:
    assert PAGE.read_text(encoding="utf-8") == listed(), (
        f"{PAGE.relative_to(ROOT)} is not what tests/faults holds. Write it anew: `python -m tests.test_fault_list`."
    )


if __name__ == "__main__":
    PAGE.write_text(listed(), encoding="utf-8")
