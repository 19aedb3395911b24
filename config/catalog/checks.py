"""The validation rules a table may declare in its catalog file.

Row rules mark single rows; a row that breaks one goes to quarantine with every rule it broke. Table rules judge a
partition as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from config.durations import Duration

Scalar = bool | int | float | str


class _Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class When(_Check):
    """The rows a rule applies to: `column op value`; rows where `column` is null are left out."""

    column: str
    op: Literal["==", "!=", ">", ">=", "<", "<="]
    value: Scalar


class _RowCheck(_Check):
    when: When | None = None


class NotNull(_RowCheck):
    rule: Literal["not_null"]
    column: str


class Between(_RowCheck):
    """`min <= value <= max`; a null passes."""

    rule: Literal["between"]
    column: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Between:
        if self.min is None and self.max is None:
            raise ValueError("between needs min, max, or both")
        return self


class InSet(_RowCheck):
    rule: Literal["in_set"]
    column: str
    values: tuple[Scalar, ...] = Field(min_length=1)


class Matches(_RowCheck):
    """A regular expression found in the value."""

    rule: Literal["matches"]
    column: str
    regex: str


class Unique(_RowCheck):
    """No two rows of one partition share these columns; all rows of a clash are marked."""

    rule: Literal["unique"]
    columns: tuple[str, ...] = Field(min_length=1)


class PairGreater(_RowCheck):
    """Column `a` lies above column `b`; rows where either is null pass."""

    rule: Literal["pair_greater"]
    a: str
    b: str
    or_equal: bool = False


class RowCount(_Check):
    """Rows of a partition against the mean of the same weekday in earlier weeks, as ratios."""

    rule: Literal["row_count"]
    weeks: int = Field(4, ge=1)
    min_ratio: float = Field(0.5, ge=0)
    max_ratio: float = Field(2.0, gt=0)
    severity: Literal["warn", "stop"] = "warn"


class Freshness(_Check):
    """The newest `column` (a timestamp) lies at most `max_age` before the partition's cutoff.

    Rows that lie more than `max_ahead` after the cutoff do not count: one wrong date would hide that all else is stale.
    They are a finding of their own, `future(column)`.
    """

    rule: Literal["freshness"]
    column: str
    max_age: Duration = timedelta(days=1)
    max_ahead: Duration = Field(
        timedelta(0),
        exclude_if=lambda ahead: not ahead,  # the catalog's digest of before it could be declared
        description="how far after the cutoff a row may lie, in a table of what is planned",
    )
    severity: Literal["warn", "stop"] = "warn"


RowRule = NotNull | Between | InSet | Matches | Unique | PairGreater
TableRule = RowCount | Freshness
Check = Annotated[RowRule | TableRule, Field(discriminator="rule")]


def check_name(check: RowRule | TableRule) -> str:
    """A stable, readable name: `between(distance)`, `unique(carrier, flight)`; the quarantine and metrics use it."""
    match check:
        case Unique():
            subject = ", ".join(check.columns)
        case PairGreater():
            subject = f"{check.a}, {check.b}"
        case RowCount():
            subject = "*"
        case _:
            subject = check.column
    condition = getattr(check, "when", None)
    return f"{check.rule}({subject})" + (
        f" when {condition.column} {condition.op} {condition.value}" if condition else ""
    )


def check_columns(check: RowRule | TableRule) -> tuple[str, ...]:
    """Every column the check reads."""
    match check:
        case Unique():
            columns = check.columns
        case PairGreater():
            columns = (check.a, check.b)
        case RowCount():
            columns = ()
        case _:
            columns = (check.column,)
    condition = getattr(check, "when", None)
    return (*columns, condition.column) if condition else columns


_NUMBERS = frozenset({"int32", "int64", "float64"})


def check_types(check: RowRule | TableRule, types: Mapping[str, str]) -> str | None:
    """What does not fit between a check and the types of the columns it reads, None when all does."""
    match check:
        case Between() if types[check.column] not in _NUMBERS:
            return f"{check.column} is a {types[check.column]}, needs a number"
        case Matches() if types[check.column] != "string":
            return f"{check.column} is a {types[check.column]}, needs a string"
        case Freshness() if types[check.column] != "timestamp":
            return f"{check.column} is a {types[check.column]}, needs a timestamp"
        case PairGreater() if types[check.a] != types[check.b] and not {types[check.a], types[check.b]} <= _NUMBERS:
            return f"{check.a} is a {types[check.a]}, {check.b} a {types[check.b]}; they cannot be compared"
        case InSet():
            for value in check.values:
                if not _fits(value, types[check.column]):
                    return f"{check.column} is a {types[check.column]}, which {value!r} cannot be equal to"
    condition = getattr(check, "when", None)
    if condition and not _fits(condition.value, types[condition.column]):
        return f"{condition.column} is a {types[condition.column]}, which cannot be compared with {condition.value!r}"
    return None


def _fits(value: Scalar, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return kind in _NUMBERS if isinstance(value, int | float) else kind == "string"
