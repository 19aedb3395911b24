"""A trainer with its parameters, its search and its cross-validation: what the training image knows of the catalog."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from config.calendar import ONE_DAY
from config.catalog.base import Model, Name
from config.durations import Duration


class UniformSpace(Model):
    """A real number in [low, high], every value as likely."""

    kind: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class LogUniformSpace(Model):
    """A real number in [low, high], every order of magnitude as likely; low > 0."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class IntegerSpace(Model):
    """A whole number in [low, high], in steps."""

    kind: Literal["integer"]
    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _order(self) -> Self:
        _check_order(self.low, self.high)
        return self


class ChoiceSpace(Model):
    """One of the values."""

    kind: Literal["choice"]
    values: tuple[bool | int | float | str | tuple[int, ...] | None, ...] = Field(min_length=1)


def _check_order(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"needs low < high, has {low} and {high}")


Space = Annotated[UniformSpace | LogUniformSpace | IntegerSpace | ChoiceSpace, Field(discriminator="kind")]


class Search(Model):
    """A search for trainer parameters before the training; the best trial is trained again as the model."""

    space: dict[str, Space] = Field(
        min_length=1, description="trainer parameters that vary; all others stay as in `params`"
    )
    sampler: Literal["grid", "random", "tpe", "gp"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "asha"] = "none"
    trials: int = Field(20, ge=1)
    parallel: int = Field(1, ge=1, description="trials at once, inside the one container")
    metric: str | None = Field(
        None,
        description=(
            "<output>/<metric> of the validation rows, smaller is better; None: the gate's metric of the first output"
        ),
    )
    timeout_minutes: float | None = Field(None, gt=0, description="no trial starts after this long")


class CrossValidation(Model):
    """Expanding windows over the nights of train and validation: each fold is judged on nights after those it learned
    from.
    """

    folds: int = Field(4, ge=2)
    embargo: Duration = ONE_DAY


class Trainer(Model):
    """A family (a file in training/trainers and in serving/predictors) with its parameters."""

    family: Name
    params: dict[str, Any] = Field(default_factory=dict)
    seed: int = 7
    device: Literal["auto", "cpu", "gpu"] = "auto"
    search: Search | None = None
    cross_validation: CrossValidation | None = None
