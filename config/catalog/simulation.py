"""Simulated sources: which worlds and tables there are, and the episodes that may be planted in them."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from config.catalog.base import Model


class World(NamedTuple):
    """A world that is simulated in `features/sources/simulation/`."""

    begins: date
    tables: tuple[str, ...]
    # Keys of a source that shape its rows, beside the seed.
    shaped_by: tuple[str, ...]
    # Episodes that may be planted in it.
    episodes: tuple[str, ...] = ()


WORLDS = {
    "fleet": World(
        begins=date(2023, 1, 2),
        tables=(
            "vehicles",
            "vehicle_days",
            "workshop_visits",
            "brake_reports",
            "engine_reports",
            "tread_measurements",
            "incidents",
            "incident_reports",
            "fuel_transactions",
            "fraud_findings",
            "trip_plans",
            "trip_reports",
            "battery_days",
            "battery_reports",
        ),
        shaped_by=("vehicles", "episodes"),
        episodes=("bad_sensors", "colder_winter", "new_vehicle_type", "policy_change"),
    ),
    "roads": World(
        begins=date(2023, 1, 2),
        tables=("roads", "links", "road_hours", "rain_forecasts"),
        shaped_by=("blocks",),
    ),
    "platform": World(
        begins=date(2023, 1, 2),
        tables=(
            "user_days",
            "engagement_levels",
            "next_activities",
            "cluster_usage",
            "projects",
            "project_outcomes",
        ),
        shaped_by=("users", "episodes"),
        episodes=("ai_policy", "more_capacity", "new_activity", "outage"),
    ),
}


class _Episode(Model):
    """From one day to another, both included."""

    first: date = Field(alias="from")
    last: date = Field(alias="to")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"needs from <= to, has {self.first} and {self.last}")
        return self


class BadSensors(_Episode):
    """A batch of sensors reads too much: `offset` is added to what they show, and nothing else changes."""

    kind: Literal["bad_sensors"]
    sensor: Literal["engine_temp", "vibration", "oil_pressure", "brake_temp", "pad_mm"]
    offset: float = Field(description="in the unit of the sensor")
    share: float = Field(0.3, gt=0, le=1, description="share of the vehicles that have one of the batch")


class ColderWinter(_Episode):
    """It is colder: the air, what it cools, the fuel that this takes, and accidents on ice."""

    kind: Literal["colder_winter"]
    celsius: float = Field(gt=0, le=40, description="by how much")


class NewVehicleType(_Episode):
    """Some vehicles are replaced by electric vans of the same load, whose motors brake: pads take half as much."""

    kind: Literal["new_vehicle_type"]
    share: float = Field(0.2, gt=0, le=1, description="share of the vehicles that are replaced")


class PolicyChange(_Episode):
    """Brake pads that are mounted meanwhile are planned to be changed later."""

    kind: Literal["policy_change"]
    later: float = Field(gt=1, le=3, description="factor on the wear at which pads are planned to be changed")


class AiPolicy(_Episode):
    """Users may ask the assistant less often."""

    kind: Literal["ai_policy"]
    factor: float = Field(ge=0, lt=1, description="on the share of actions that ask it")


class MoreCapacity(_Episode):
    """The clusters are larger: the same load is a smaller share of them."""

    kind: Literal["more_capacity"]
    factor: float = Field(gt=1, le=10, description="on what each cluster has")


class NewActivity(_Episode):
    """Some users generate code in pairs, an activity that nobody had before."""

    kind: Literal["new_activity"]
    share: float = Field(0.3, gt=0, le=1, description="share of the users who do")


class Outage(_Episode):
    """Nobody gets in: no user is active."""

    kind: Literal["outage"]


Episode = Annotated[
    BadSensors | ColderWinter | NewVehicleType | PolicyChange | AiPolicy | MoreCapacity | NewActivity | Outage,
    Field(discriminator="kind"),
]


class Simulated(Model):
    """Which table of which world, and what shapes its rows."""

    world: str
    table: str
    seed: int = Field(7, ge=0, lt=2**63)
    vehicles: int = Field(200, ge=1, le=200_000)
    users: int = Field(
        200,
        ge=1,
        le=200_000,
        exclude_if=lambda users: users == 200,  # the catalog's digest of before it could be declared
    )
    episodes: tuple[Episode, ...] = ()
    blocks: int = Field(
        5,
        ge=3,
        le=50,
        exclude_if=lambda blocks: blocks == 5,  # the catalog's digest of before there were roads
        description="junctions on each side of a city's grid",
    )

    @field_validator("world")
    @classmethod
    def _known_world(cls, value: str) -> str:
        if value not in WORLDS:
            raise ValueError(f"is no simulated world ({', '.join(WORLDS)})")
        return value

    @model_validator(mode="after")
    def _known_table(self) -> Self:
        if self.table not in (tables := WORLDS[self.world].tables):
            raise ValueError(f"table {self.table!r} is not of the world {self.world} ({', '.join(tables)})")
        return self

    @model_validator(mode="after")
    def _shaped_as_the_world_is(self) -> Self:
        world = WORLDS[self.world]
        for key in ("vehicles", "users", "episodes", "blocks"):
            if key not in world.shaped_by and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} shapes nothing in the world {self.world} ({', '.join(world.shaped_by)} do)")
        for episode in self.episodes:
            if episode.kind not in world.episodes:
                raise ValueError(
                    f"episode {episode.kind!r} is not of the world {self.world} ({', '.join(world.episodes)})"
                )
        return self
