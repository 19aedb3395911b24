"""Fuel cards: fills as the tank gets empty, and fraud planted among them, found out some days later.

A fill takes place on the day on which the fuel that a vehicle has taken since the world began passes another filling.
What the card's bill shows of it is drawn from one distribution for honest fills and one for each way of cheating, each
column by itself: so the probability of fraud given everything that can be seen is known exactly, by Bayes' rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.usage import odometer_km
from features.sources.simulation.fleet.vehicles import FIRST_DAY, Fleet
from features.sources.simulation.renewal import Ints
from features.sources.simulation.reports import instant, instants, repeated

FOUND_FROM_DAYS, FOUND_WITHIN_DAYS = 3, 20
_FILLED_SHARE, _NO_POSITION = 0.6, 0.05


@dataclass(frozen=True)
class Way:
    """How fills of one way look: shares and spreads of what the bill shows.

    Attributes:
        share: of all fills.
        more, more_spread: logarithm of litres over what the vehicle has taken since its last fill, normal.
        price, price_spread: euros a litre over the day's market price, normal.
        away_km: kilometres between the station and where the vehicle says it is, exponential.
        daytime: share of the fills between 6 and 20 o'clock; the others are between 20 and 6.
    """

    name: str
    share: float
    more: float
    more_spread: float
    price: float
    price_spread: float
    away_km: float
    daytime: float


WAYS = (
    Way("honest", 0.96, 0.0, 0.09, 0.0, 0.030, 0.5, 0.93),
    # A can is filled beside the tank; the card is used for another vehicle elsewhere; station and driver share a
    # higher price.
    Way("can", 0.018, 0.27, 0.12, 0.0, 0.030, 0.5, 0.80),
    Way("elsewhere", 0.012, 0.05, 0.35, 0.0, 0.035, 6.0, 0.55),
    Way("price", 0.010, 0.02, 0.10, 0.10, 0.040, 0.8, 0.90),
)


@lru_cache(maxsize=64)
def _fills(fleet: Fleet, day: int) -> Ints:
    """How many fills each vehicle had made by the end of a day."""
    taken = fleet.litres_a_km * (odometer_km(fleet, day) - odometer_km(fleet, FIRST_DAY - 1))
    return np.floor(taken / (_FILLED_SHARE * fleet.by_type("tank_litres")) + fleet.uniforms("first fill")).astype(
        np.int64
    )


def _market_price(day: int) -> float:
    """Euros a litre on a day: a season and a slow trend."""
    return 1.62 + 0.06 * float(np.sin(2.0 * np.pi * day / 365.25)) + 0.04 * float(np.sin(2.0 * np.pi * day / 97.0))


@dataclass(frozen=True)
class Fills:
    """The fills of a day, one value each, sorted by vehicle."""

    vehicles: Ints
    numbers: Ints
    way: Ints
    consumed: Floats
    more: Floats
    price: Floats
    away_km: Floats
    positioned: np.ndarray
    seconds: Ints
    found_after: Ints


@lru_cache(maxsize=24)
def fills(fleet: Fleet, day: int) -> Fills:
    """The fills of a day, with what only the world knows: which way each was made."""
    numbers = _fills(fleet, day)
    vehicles = np.flatnonzero((numbers > _fills(fleet, day - 1)) & ~fleet.electric(day))

    def drawn(stream: str) -> Floats:
        return fleet.uniforms(f"fill {stream}", day)[vehicles]

    def normal(stream: str) -> Floats:
        return fleet.normals(f"fill {stream}", day)[vehicles]

    way = np.searchsorted(np.cumsum([each.share for each in WAYS])[:-1], drawn("way"), side="right")

    def of_way(attribute: str) -> Floats:
        return np.array([getattr(each, attribute) for each in WAYS], dtype=np.float64)[way]

    hour = drawn("hour")
    by_day = drawn("daytime") < of_way("daytime")
    begin, hours = np.where(by_day, 6.0, 20.0), np.where(by_day, 14.0, 10.0)
    return Fills(
        vehicles=vehicles,
        numbers=numbers[vehicles],
        way=way,
        consumed=(_FILLED_SHARE * fleet.by_type("tank_litres"))[vehicles] * np.exp(0.05 * normal("consumed")),
        more=of_way("more") + of_way("more_spread") * normal("more"),
        price=of_way("price") + of_way("price_spread") * normal("price"),
        away_km=-np.log(drawn("away")) * of_way("away_km"),
        positioned=drawn("position") >= _NO_POSITION,
        seconds=((begin + hours * hour) % 24.0 * 3600.0).astype(np.int64),
        found_after=FOUND_FROM_DAYS + (drawn("found") * (FOUND_WITHIN_DAYS - FOUND_FROM_DAYS + 1)).astype(np.int64),
    )


def fraud_probability(shown: Fills) -> Floats:
    """How probable it is that each fill is a fraud, by who knows how all of them are made and sees what the bill shows:
    no model of the same columns can rank or calibrate better.
    """
    hours = shown.seconds / 3600.0
    by_day = (hours >= 6.0) & (hours < 20.0)
    density = []
    for way in WAYS:
        logarithm = np.log(way.share) + np.log(np.where(by_day, way.daytime, 1.0 - way.daytime))
        logarithm += -np.log(way.more_spread) - 0.5 * ((shown.more - way.more) / way.more_spread) ** 2
        logarithm += -np.log(way.price_spread) - 0.5 * ((shown.price - way.price) / way.price_spread) ** 2
        logarithm += np.where(shown.positioned, -np.log(way.away_km) - shown.away_km / way.away_km, 0.0)
        density.append(np.exp(logarithm))
    return np.asarray(1.0 - density[0] / np.sum(density, axis=0))


def transaction_names(fleet: Fleet, vehicles: Ints, numbers: Ints) -> pa.Array:
    """What fills are called: the vehicle and the number of its fill."""
    texts = pa.array(numbers, pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(fleet.names.take(pa.array(vehicles)), texts, "-")


def fuel_transactions(fleet: Fleet, night: int) -> pa.Table:
    """The fills of a night's day, as the card's bill shows them, due for review the morning after."""
    shown = fills(fleet, night)
    count = len(shown.vehicles)
    market = _market_price(night)
    return pa.table(
        {
            "event_date": repeated(date.fromordinal(night), count),
            "transaction": transaction_names(fleet, shown.vehicles, shown.numbers),
            "vehicle": fleet.names.take(pa.array(shown.vehicles)),
            "litres": pa.array(np.round(shown.consumed * np.exp(shown.more), 2)),
            "consumed_litres": pa.array(np.round(shown.consumed, 2)),
            "tank_litres": pa.array(fleet.by_type("tank_litres")[shown.vehicles]),
            "price_per_litre": pa.array(np.round(market + shown.price, 3)),
            "market_price_per_litre": pa.array(np.full(count, round(market, 3))),
            "station_away_km": pa.array(np.round(shown.away_km, 2), mask=~shown.positioned),
            "paid_utc": instants(night, shown.seconds),
            "review_due_utc": repeated(instant(night + 1, 9), count),
        }
    )


def fraud_findings(fleet: Fleet, night: int) -> pa.Table:
    """Frauds that are found out in a night; every one is in the end."""
    parts = []
    for late in range(FOUND_FROM_DAYS, FOUND_WITHIN_DAYS + 1):
        day = night - late
        shown = fills(fleet, day)
        found = np.flatnonzero((shown.way > 0) & (shown.found_after == late))
        parts.append(
            pa.table(
                {
                    "transaction": transaction_names(fleet, shown.vehicles[found], shown.numbers[found]),
                    "event_date": repeated(date.fromordinal(day), len(found)),
                    "fraud": pa.array(np.ones(len(found), np.int32)),
                    "way": pa.array([way.name for way in WAYS]).take(pa.array(shown.way[found])),
                    "found_utc": repeated(instant(night, 17), len(found)),
                }
            )
        )
    return pa.concat_tables(parts)
