"""What wears and what the workshop tells of it: brake pads, engines, tyres, and the visits that end their lives."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa

from config.catalog.simulation import PolicyChange
from features.sources.simulation.draws import Floats
from features.sources.simulation.fleet.usage import (
    BRAKES,
    ENGINE,
    NEW_TREAD_MM,
    TYRES,
    WORN_TREAD_MM,
    clocks,
)
from features.sources.simulation.fleet.vehicles import Fleet
from features.sources.simulation.renewal import Bools, Ints, Lives, Part, Weibull, drawn_lives
from features.sources.simulation.reports import dates, evenings_before, instant, instants, repeated

# Failures pile up late in a life: wear, not chance, is what ends it. Some are replaced before, by plan.
PADS = Part("pads", fails=Weibull(7.0, 1.0), planned=Weibull(5.0, 0.9))
MOTOR = Part("engine", fails=Weibull(6.0, 1.0), planned=Weibull(4.0, 0.95))
# Tyres do not fail here: they are changed as their tread is worn down to what the workshop lets pass.
_CLOCKS = {PADS.name: BRAKES, MOTOR.name: ENGINE}
PARTS = {part.name: part for part in (PADS, MOTOR)}
# An event is looked for within so many days after an evening, and told at most so many days after it.
BRAKES_WITHIN_DAYS, ENGINE_WITHIN_DAYS, TOLD_WITHIN_DAYS = 14, 14, 5
_COMPOUND, _MEASURED_MM, _MEASURED_SHARE, _MEASURED_TOLD_DAYS = 0.15, 0.2, 1.0 / 25.0, 4
_CYCLES = 16


@lru_cache(maxsize=8)
def _drawn(fleet: Fleet, part: str, cycles: int) -> Lives:
    clock, stretch = _CLOCKS[part], np.ones(fleet.vehicles)
    between = (np.full(fleet.vehicles, np.inf),) * 2
    for episode in fleet.planted(PolicyChange):
        if part == PADS.name:
            stretch = np.full(fleet.vehicles, episode.later)
            between = (
                clocks(fleet, episode.first.toordinal() - 1)[clock],
                clocks(fleet, episode.last.toordinal())[clock],
            )
    return drawn_lives(PARTS[part], fleet.seed, cycles, stretch, between)


def lives(fleet: Fleet, part: str, day: int) -> Lives:
    """The lives of a part up to a day, and some more."""
    cycles, clock = _CYCLES, clocks(fleet, day)[_CLOCKS[part]].max()
    while (drawn := _drawn(fleet, part, cycles)).ends[-1].min() <= clock:
        cycles *= 2
    return drawn


def wear(fleet: Fleet, part: str, day: int) -> Floats:
    """How worn the part of each vehicle is in the evening of a day, 1 being a nominal life."""
    return lives(fleet, part, day).wear(clocks(fleet, day)[_CLOCKS[part]])


def failure_probability(fleet: Fleet, part: str, day: int, within_days: int) -> Floats:
    """How probable it was in the evening of a day that the part of each vehicle fails within some days, by who knows
    its wear and how far it will be driven.
    """
    clock = _CLOCKS[part]
    return lives(fleet, part, day + within_days).failure_probability(
        clocks(fleet, day)[clock], clocks(fleet, day + within_days)[clock]
    )


@lru_cache(maxsize=64)
def _ended(fleet: Fleet, part: str, day: int) -> tuple[Bools, Bools, Ints]:
    """Whether the part's life ended on a day, whether by failing, and which of the vehicle's it was."""
    known, clock = lives(fleet, part, day), _CLOCKS[part]
    before, after = (known.cycle(clocks(fleet, each)[clock]) for each in (day - 1, day))
    ended, cycle = after > before, np.maximum(after - 1, 0)
    failed = ended & np.take_along_axis(known.failed, cycle[None], axis=0)[0]
    return ended, failed, cycle


def failed(fleet: Fleet, part: str, day: int) -> Bools:
    """Whether the part of each vehicle failed on a day."""
    return _ended(fleet, part, day)[1]


def told_after(fleet: Fleet, part: str, day: int) -> Ints:
    """After how many days the workshop tells of a visit on a day."""
    return (fleet.uniforms(f"told {part}", day) * (TOLD_WITHIN_DAYS + 1)).astype(np.int64)


def _reports(fleet: Fleet, part: str, night: int, within: int) -> pa.Table:
    evenings, vehicles, days = evenings_before(
        night,
        lambda day: failed(fleet, part, day),
        lambda day: told_after(fleet, part, day),
        within=within,
        latest=TOLD_WITHIN_DAYS,
    )
    return pa.table(
        {
            "event_date": dates(evenings),
            "vehicle": fleet.names.take(pa.array(vehicles)),
            "failed": pa.array(np.ones(len(vehicles), np.int32)),
            "failed_on": dates(days),
            "known_utc": repeated(instant(night, 18), len(vehicles)),
        }
    )


def brake_reports(fleet: Fleet, night: int) -> pa.Table:
    """The evenings that brake failures reported in a night came after."""
    return _reports(fleet, PADS.name, night, BRAKES_WITHIN_DAYS)


def engine_reports(fleet: Fleet, night: int) -> pa.Table:
    """The evenings that unplanned engine visits reported in a night came after."""
    return _reports(fleet, MOTOR.name, night, ENGINE_WITHIN_DAYS)


def workshop_visits(fleet: Fleet, night: int) -> pa.Table:
    """Visits to the workshop that are reported in a night, planned and unplanned."""
    vehicles, days, parts, unplanned = [], [], [], []
    for late in range(TOLD_WITHIN_DAYS + 1):
        for number, part in enumerate(PARTS):
            ended, failing, _ = _ended(fleet, part, night - late)
            told = np.flatnonzero(ended & (told_after(fleet, part, night - late) == late))
            vehicles.append(told)
            days.append(np.full(len(told), night - late))
            parts.append(np.full(len(told), number))
            unplanned.append(failing[told])
    return pa.table(
        {
            "visit_date": dates(np.concatenate(days)),
            "vehicle": fleet.names.take(pa.array(np.concatenate(vehicles))),
            "part": pa.array(list(PARTS)).take(pa.array(np.concatenate(parts))),
            "unplanned": pa.array(np.concatenate(unplanned).astype(np.int32)),
            "reported_utc": repeated(instant(night, 18), len(np.concatenate(days))),
        }
    )


# ---- tyres


@lru_cache(maxsize=8)
def _tyre_sets(fleet: Fleet, cycles: int) -> tuple[Floats, Floats]:
    """(cycles, vehicles): where on the clock each set ends, and how much softer its compound is than the mean."""
    ends, softer = np.empty((cycles, fleet.vehicles)), np.empty((cycles, fleet.vehicles))
    begin = np.zeros(fleet.vehicles)
    for cycle in range(cycles):
        softer[cycle] = np.exp(_COMPOUND * fleet.normals("compound", cycle) - _COMPOUND**2 / 2.0)
        changed_at_mm = 2.0 + 1.2 * fleet.uniforms("tread let pass", cycle)
        begin = begin + (NEW_TREAD_MM - changed_at_mm) / (WORN_TREAD_MM * softer[cycle])
        ends[cycle] = begin
    return ends, softer


def tyres(fleet: Fleet, day: int) -> tuple[Floats, Floats]:
    """In the evening of a day: the work that each vehicle's tyres have done since they were changed, 1 being a nominal
    life, and their mean depth of tread in mm.

    Archard's law: what is worn off is proportional to load times distance, and to how soft the compound is.
    """
    clock, cycles = clocks(fleet, day)[TYRES], _CYCLES
    while (sets := _tyre_sets(fleet, cycles))[0][-1].min() <= clock.max():
        cycles *= 2
    ends, softer = sets
    cycle = (ends <= clock).sum(axis=0)
    begun = np.vstack([np.zeros(fleet.vehicles), ends])
    work = clock - np.take_along_axis(begun, cycle[None], axis=0)[0]
    return work, NEW_TREAD_MM - WORN_TREAD_MM * np.take_along_axis(softer, cycle[None], axis=0)[0] * work


def tread_measurements(fleet: Fleet, night: int) -> pa.Table:
    """Depths of tread that the workshop reports in a night, measured in the morning after `event_date`.

    A vehicle is measured every 25 days in the mean, by chance: most evenings of most vehicles never get a label.
    """
    vehicles, evenings, depths = [], [], []
    for late in range(1, _MEASURED_TOLD_DAYS + 1):
        evening = night - late
        told = (fleet.uniforms("tread told", evening) * _MEASURED_TOLD_DAYS).astype(np.int64) + 1 == late
        measured = np.flatnonzero(told & (fleet.uniforms("tread measured", evening) < _MEASURED_SHARE))
        depth = tyres(fleet, evening)[1] + _MEASURED_MM * fleet.normals("tread error", evening)
        vehicles.append(measured)
        evenings.append(np.full(len(measured), evening))
        depths.append(depth[measured])
    days = np.concatenate(evenings)
    return pa.table(
        {
            "event_date": dates(days),
            "vehicle": fleet.names.take(pa.array(np.concatenate(vehicles))),
            "tread_mm": pa.array(np.round(np.concatenate(depths), 1)),
            "measured_utc": instants(days + 1, np.full(len(days), 7 * 3600)),
            "reported_utc": repeated(instant(night, 18), len(days)),
        }
    )
