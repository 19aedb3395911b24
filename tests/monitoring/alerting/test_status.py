"""A model has exactly one status, and never the good one while something is wrong or was not looked at."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.alerting.status import (
    DEFINITIONS,
    PARTS,
    STATISTICAL,
    STATUSES,
    Facts,
    counts,
    more_than_chance,
    status_of,
)

GOOD = Facts(
    scored=True, overdue=False, came_late=False, run_failed=False, critical=False, warning=False, unjudged=frozenset()
)
FLAGS = ("scored", "overdue", "came_late", "run_failed", "critical", "warning")


def every_combination() -> list[Facts]:
    unjudged = [frozenset(some) for size in range(len(PARTS) + 1) for some in combinations(PARTS, size)]
    return [
        Facts(**dict(zip(FLAGS, flags, strict=True)), unjudged=parts)
        for flags in product((False, True), repeat=len(FLAGS))
        for parts in unjudged
    ]


def test_every_combination_of_facts_gives_exactly_one_word() -> None:
    found = [status_of(facts) for facts in every_combination()]
    assert len(found) == 2 ** (len(FLAGS) + len(PARTS))
    assert set(found) == set(STATUSES) == set(DEFINITIONS)


def test_only_a_model_without_any_open_question_is_healthy() -> None:
    assert [facts for facts in every_combination() if status_of(facts) == "healthy"] == [GOOD], (
        "healthy takes: scored, in time, no failed run, no alarm that counts, and every part judged. Add a new fact to "
        "`status_of` before it can hide."
    )


@pytest.mark.parametrize("part", PARTS)
def test_one_part_without_a_judgement_is_not_evaluated(part: str) -> None:
    assert status_of(replace(GOOD, unjudged=frozenset({part}))) == "not evaluated"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"scored": False}, "not evaluated"),
        ({"scored": False, "overdue": True}, "late"),
        ({"came_late": True}, "late"),
        ({"came_late": True, "warning": True}, "late"),
        ({"overdue": True, "warning": True, "scored": False}, "late"),
        ({"warning": True, "unjudged": frozenset({"performance"})}, "degraded"),
        ({"critical": True, "overdue": True, "scored": False}, "failing"),
        ({"run_failed": True}, "failing"),
    ],
)
def test_the_worst_word_that_applies(facts: dict[str, object], status: str) -> None:
    assert status_of(replace(GOOD, **facts)) == status  # type: ignore[arg-type]


def test_more_trouble_never_gives_a_better_word() -> None:
    for facts in every_combination():
        worse = [
            replace(facts, **{name: True})  # type: ignore[arg-type]  # a value that the test varies
            for name in ("overdue", "came_late", "run_failed", "critical", "warning")
        ]
        worse += [replace(facts, unjudged=facts.unjudged | {part}) for part in PARTS]
        for other in worse:
            assert STATUSES.index(status_of(other)) <= STATUSES.index(status_of(facts)), (facts, other)


# ---- which warnings count ----------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.sampled_from([0.9, 0.95, 0.99, 0.999]))
def test_chance_reaches_that_many_columns_in_at_most_one_night_in_a_hundred(columns: int, quantile: float) -> None:
    needed = more_than_chance(columns, quantile)

    def at_least(k: int) -> float:
        return 1 - sum(comb(columns, i) * (1 - quantile) ** i * quantile ** (columns - i) for i in range(k))

    assert at_least(needed) <= 0.01 + 1e-9
    assert needed == 1 or at_least(needed - 1) > 0.01


def test_a_single_column_counts_from_its_second_night() -> None:
    assert not counts("drift_psi", [1], 30, 0.99)
    assert counts("drift_psi", [2], 30, 0.99)
    assert not counts("null_rate", [1, 1], 30, 0.99)
    assert counts("null_rate", [1, 1, 1], 30, 0.99), "three of thirty at once is more than chance"
    assert counts("drift_psi", [1], 1, 0.99), "the only column there is"
    assert not counts("drift_psi", [], 30, 0.99)


@pytest.mark.parametrize("check", ["volume", "label_share", "bad_share", "accuracy_drop"])
def test_other_warnings_count_at_once(check: str) -> None:
    assert check not in STATISTICAL
    assert counts(check, [1], 0, 0.99)
