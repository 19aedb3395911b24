"""How a version that passed the gate takes over: at once, or step by step under guardrails."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from config.catalog.base import Model
from config.catalog.spine import Misfit

_UNKNOWN = "is neither a column of the spine nor a feature (<view>__<column>)"
Share = Annotated[float, Field(ge=0, le=1)]


class Guardrails(Model):
    """What stops a challenger, before its labels come and after.

    Harm is relative: the challenger's error over the champion's on the same rows, less one.
    """

    tolerance: float = Field(0.02, ge=0, lt=1, description="harm that is borne; 0.02: an error 2 % larger")
    false_rollback: float = Field(
        0.05, gt=0, lt=0.5, description="how often a challenger that is no worse may be rolled back, over all nights"
    )
    disagreement: float | None = Field(
        None, gt=0, description="in the label's unit: two predictions of a row further apart disagree"
    )
    disagreement_share: float = Field(0.2, gt=0, le=1, description="share of rows that may disagree")
    width_ratio: float = Field(2.0, gt=1, description="mean width of intervals over the champion's")
    max_milliseconds_per_row: float | None = Field(None, gt=0, description="None: the gate's")
    max_memory_mb: float | None = Field(None, gt=0, description="growth of the process while it scores; None: any")


class _Stepwise(Model):
    """What all rollouts have that last for nights."""

    unit: tuple[str, ...] = Field(
        (), description="columns that name who stays with one version from night to night; the entity by default"
    )
    max_nights: int = Field(60, ge=1, le=3650, description="scored nights after which an undecided rollout ends")
    undecided: Literal["roll_back", "finish", "ask"] = Field(
        "roll_back", description="what happens then: the champion stays, the challenger takes over, or a person decides"
    )
    when_busy: Literal["queue", "supersede"] = Field(
        "queue", description="a further version passes the gate while a rollout runs: it waits, or takes its place"
    )
    interferes: bool = Field(
        False, description="predictions change what comes true: only what each version served is compared"
    )
    refused_first: bool = Field(
        False, description="without any champion, a version that the gate refused scores and serves nothing"
    )
    guardrails: Guardrails = Guardrails()

    @field_validator("unit")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a column twice")
        return value

    @property
    def by(self) -> str | None:
        """Column of the groups that take turns, None where a share of all units is served."""
        return None

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """The steps of a rollout that starts now, as its ledger keeps them: `share`, and `groups` where they take
        turns.

        Args:
            sizes: rows of each group, by name; none where a share is served.
        """
        raise NotImplementedError

    def misfits(self, types: Mapping[str, str], personal: Collection[str]) -> Iterator[Misfit]:
        """Columns that would name units or groups, and are not there, or name nobody.

        Args:
            types: of each column of the spine and each feature.
            personal: those of them that are personal data.
        """
        for column in self.unit:
            if column not in types:
                yield Misfit("rollout.unit", column, _UNKNOWN)
            elif types[column] == "float64":
                yield Misfit("rollout.unit", column, "is a float64, which names nobody; needs text or whole numbers")
        if self.by is not None and self.by not in types:
            yield Misfit("rollout.by", self.by, _UNKNOWN)
        if self.by in personal:
            yield Misfit("rollout.by", self.by, "is personal data (pii), which pages would show; take another column")


class Immediate(Model):
    """The version is champion from the next night on."""

    strategy: Literal["immediate"] = "immediate"

    def misfits(self, types: Mapping[str, str], personal: Collection[str]) -> Iterator[Misfit]:
        """None: it names no column."""
        return iter(())


class Shadow(_Stepwise):
    """The challenger scores every row and serves none, then its evidence decides."""

    strategy: Literal["shadow"]
    nights: int = Field(7, ge=1, description="scored nights before the evidence decides")
    then: Literal["promote", "ask"] = Field("promote", description="ask: a person finishes it")

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """See `_Stepwise`."""
        return [{"share": 0.0}]


class Canary(_Stepwise):
    """The challenger serves a growing share of the units."""

    strategy: Literal["canary"]
    steps: tuple[Share, ...] = Field((0.05, 0.25, 0.5, 1.0), min_length=1)
    nights: int = Field(3, ge=1, description="scored nights of a step, at least")
    advance: Literal["evidence", "nights"] = Field(
        "evidence",
        description="evidence: a step is left when the harm is shown to be below the tolerance; nights: when its "
        "nights are over and no harm is shown",
    )

    @field_validator("steps")
    @classmethod
    def _growing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value[0] <= 0 or any(later <= earlier for earlier, later in pairwise(value)):
            raise ValueError(f"{list(value)} does not grow from above 0; needs for example [0.05, 0.25, 0.5, 1.0]")
        return value

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """See `_Stepwise`."""
        return [{"share": share} for share in self.steps]


class BlueGreen(_Stepwise):
    """Both versions score everything; one switch moves all units, and moves them back at once."""

    strategy: Literal["blue_green"]
    nights: int = Field(3, ge=1, description="scored nights before the switch, and after it until it is final")
    advance: Literal["evidence", "nights"] = "nights"

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """See `_Stepwise`."""
        return [{"share": 0.0}, {"share": 1.0}]


class Rolling(_Stepwise):
    """One group of units after the other."""

    strategy: Literal["rolling"]
    groups_of: str = Field(alias="by", description="column whose values are the groups")
    order: tuple[str, ...] = Field((), description="groups first to last; those left out follow, the smallest first")
    nights: int = Field(1, ge=1, description="scored nights of a group, at least")
    advance: Literal["evidence", "nights"] = "nights"

    @property
    def by(self) -> str | None:
        """Column of the groups."""
        return self.groups_of

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """One group more in each step; the last serves all, groups that nobody knew at the start included."""
        rest = sorted(set(sizes) - set(self.order), key=lambda group: (sizes[group], group))
        groups, total = [*self.order, *rest], sum(sizes.values())
        reached = list(accumulate(sizes.get(group, 0) for group in groups))
        steps = [
            {"share": count / total, "groups": groups[:number]} for number, count in enumerate(reached[:-1], 1) if total
        ]
        return [*steps, {"share": 1.0}]


class AbTest(_Stepwise):
    """Both serve a fixed share until one of them is shown to be better."""

    strategy: Literal["ab_test"]
    share: float = Field(0.5, gt=0, lt=1, description="of the units, served by the challenger")
    nights: int = Field(28, ge=2, description="scored nights at most")
    looks: int = Field(4, ge=1, le=20, description="evenly spaced looks at which a winner may be declared")

    @model_validator(mode="after")
    def _enough_nights(self) -> Self:
        if self.looks > self.nights:
            raise ValueError(f"looks: {self.looks} looks in {self.nights} nights; needs one night a look at least")
        return self

    def planned(self, sizes: Mapping[str, int]) -> list[dict[str, Any]]:
        """See `_Stepwise`."""
        return [{"share": self.share}]


Stepwise = Shadow | Canary | BlueGreen | Rolling | AbTest
AnyRollout = Annotated[Immediate | Shadow | Canary | BlueGreen | Rolling | AbTest, Field(discriminator="strategy")]
