"""The block `rollout` in the docs: every example is valid, and every key of every strategy is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import TypeAdapter

from config.catalog.rollout import AnyRollout, Guardrails, Stepwise
from config.settings import ROOT

PAGE = ROOT / "docs" / "add_model.md"
PARSED: TypeAdapter[AnyRollout] = TypeAdapter(AnyRollout)


def examples(page: Path) -> list[dict[str, object]]:
    found = re.findall(r"^rollout: *(\{.*?\})", page.read_text(), re.MULTILINE)
    return [yaml.safe_load(example) for example in found]


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_each_strategy_has_an_example_that_is_valid(page: Path) -> None:
    blocks = [PARSED.validate_python(example) for example in examples(page)]
    assert {"shadow", "canary", "blue_green", "rolling", "ab_test"} <= {block.strategy for block in blocks}


def test_the_example_of_a_strategy_has_its_defaults() -> None:
    for example in examples(PAGE):
        needed = {name: example[name] for name in ("strategy", "by", "order") if name in example}
        assert PARSED.validate_python(example) == PARSED.validate_python(needed)


def test_every_key_is_explained() -> None:
    section = PAGE.read_text().partition("## How a version takes over")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    explained = set(re.findall(r"`([a-z_.]+)`", " ".join(rows)))
    keys = {info.alias or name for strategy in get_args(Stepwise) for name, info in strategy.model_fields.items()}
    assert keys - {"strategy", "guardrails"} <= explained
    assert set(Guardrails.model_fields) <= {name.rpartition(".")[2] for name in explained}
