"""A night's drift in three sentences: what moved, whether that is an alarm, and whether predictions or performance
followed.

Everything comes from the metrics table, by period, and from the catalog, which knows the units. What is not known is
said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from config.catalog.model import ModelEntry
from features.labels import is_mature
from lake.assignment import champion_in, scored_by
from lake.lake import Lake
from lake.metric_queries import METRICS, Row, fetch, read_metrics_of, these
from lake.publication_queries import published_nights
from monitoring.drift import MEAN, REFERENCE_MEAN
from monitoring.performance import ERROR_RATIO, gate_ratios
from monitoring.wording import figures, label_unit, named, percent, spaced, unit_of
from serving.predictions import predictions_table
from training.registry.records import read_promises

FEATURE_DRIFT = ("drift_psi", "drift_ks")
PREDICTION_DRIFT = "prediction_drift"
DRIFT_SHARE, NULL_RATE, VOLUME = "drift_share", "null_rate", "volume"
CHECKS = (*FEATURE_DRIFT, PREDICTION_DRIFT, DRIFT_SHARE, NULL_RATE, VOLUME, MEAN, REFERENCE_MEAN)
ALARMING = ("warning", "failing")
NIGHTS = 30
_MOST_NAMED = 3
_MOST_DIGITS = 6


# ---- how often -------------------------------------------------------------------------------------------------


def fired_by_check(
    lake: Lake, model: str, night: date, version: int | None, nights: int = NIGHTS
) -> dict[tuple[str, str], tuple[int, int]]:
    """Of every drift check and column: in how many of the last `nights`, `night` the last of them, its alarm fired, and
    in how many it was judged at all; by (check, column).

    Args:
        version: only nights judged against it count, as another version's alarm is another alarm; None: any.
    """
    c = METRICS.c
    alarming = sa.func.sum(sa.case((c.status.in_(ALARMING), 1), else_=0))
    judged = sa.func.sum(sa.case((c.status != "not_evaluated", 1), else_=0))
    where = these([model], judged=Interval.of(night).widened(nights - 1), checks=CHECKS)
    if version is not None:
        where.append(sa.or_(c.model_version == version, c.model_version.is_(None)))
    query = sa.select(c.check, c.column, alarming, judged).where(*where).group_by(c.check, c.column)
    return {(check, column): (int(times), int(of)) for check, column, times, of in fetch(lake, query)}


# ---- the three sentences ---------------------------------------------------------------------------------------


def drift_story(lake: Lake, model: str, night: date) -> tuple[str, str, str]:
    """What moved, by how much in the feature's unit; whether that is an alarm; whether predictions or performance
    followed.

    Three whole sentences as plain text. A night that was not scored, or not measured, gets three that say so.
    """
    entry = lake.model(model)
    rows = read_metrics_of(lake, [model], Interval.of(night), by="data_date", checks=CHECKS)
    if not rows and night not in published_nights(lake, [f"{model}/predictions"], Interval.of(night)).get(
        f"{model}/predictions", {}
    ):
        unknown = f"What moved in the night of {night} is not known: it was not scored."
        return (
            unknown,
            "Whether an alarm was due is not known.",
            "Nothing was predicted, so there is no performance to be known.",
        )
    performance = _performance(lake, entry, night)
    if not rows:
        unknown = f"What moved in the night of {night} is not known: its drift was not measured yet."
        return (
            unknown,
            "Whether an alarm was due is not known.",
            f"Whether predictions moved is not known; {performance}.",
        )
    summary = DriftSummary(lake, entry, rows)
    return summary.moved(), summary.extent(), _sentence(f"{summary.predictions()}; {performance}")


def known_from(lake: Lake, model: str, night: date) -> date:
    """The first night that may judge the performance of `night`: its labels are mature then."""
    judge = night
    while not is_mature(lake, model, night, as_of=judge):
        judge += ONE_DAY
    return judge


class DriftSummary:
    """The drift metrics of one night, in words."""

    def __init__(self, lake: Lake, entry: ModelEntry, rows: Sequence[Row]) -> None:
        self._lake, self._entry = lake, entry
        self._rows: dict[tuple[str, str], Row] = {(row["check"], row["column"]): row for row in rows}
        self._features = [row for row in rows if row["check"] in FEATURE_DRIFT]
        self._beyond = ranked(row for row in self._features if row["status"] == "warning")

    def moved(self) -> str:
        """What moved most, and by how much."""
        judged = ranked(row for row in self._features if row["status"] != "not_evaluated")
        if not judged:
            share = self._rows.get((DRIFT_SHARE, ""))
            reasons = [row["reason"] for row in (share, *self._features) if row is not None and row["reason"]]
            return _sentence(f"What moved is not known: {reasons[0] if reasons else 'no feature was measured'}")
        most = judged[0]
        if most["status"] == "warning":
            return _sentence(f"{named(most['column'])} moved most: {self._by_how_much(most, 'in training')}")
        if not most["value"]:
            return _sentence(f"No feature moved: all {len(judged)} that were judged look as in training")
        return _sentence(
            f"No feature lies beyond its limit; {named(most['column'])} came nearest: "
            f"{self._by_how_much(most, 'in training')}"
        )

    def _by_how_much(self, row: Row, where: str) -> str:
        column = row["column"]
        test = f"({_test(row, self._entry)} {figures(row['value'])}, limit {figures(row['threshold'])})"
        mean, before = self._rows.get((MEAN, column)), self._rows.get((REFERENCE_MEAN, column))
        if mean is None and before is None:
            return f"the shares of its values changed {test}"
        if mean is None or mean["value"] is None:
            return f"its mean is not known, {mean['reason'] if mean else 'it was not measured'} {test}"
        unit = unit_of(self._lake, self._entry, column)
        window = self._entry.retrain.drift.window.days
        over = f" over {window} nights" if window > 1 else ""
        if before is None or before["value"] is None:
            why = before["reason"] if before else "it was not measured"
            return f"on average{over} {figures(mean['value'])}{spaced(unit)}, {where} not known, {why} {test}"
        now, then = _two_figures(mean["value"], before["value"])
        return f"on average{over} {now}{spaced(unit)}, {then} {where} {test}"

    def extent(self) -> str:
        """How many features lie beyond their limit, and whether that is an alarm."""
        share = self._rows.get((DRIFT_SHARE, ""))
        if share is None or share["status"] == "not_evaluated" or share["value"] is None:
            why = (
                share["reason"]
                if share is not None and share["reason"]
                else "the share of features beyond their limit was not measured"
            )
            return _sentence(f"Whether an alarm was due is not known: {why}{self._also()}")
        verdict = "so this is an alarm" if share["status"] in ALARMING else "so this is no alarm"
        needed = f"{percent(share['threshold'])} are needed for an alarm"
        unjudged = [row for row in self._features if row["status"] == "not_evaluated"]
        left = f"; {_listed(unjudged)} could not be judged ({unjudged[0]['reason']})" if unjudged else ""
        lie = "lies beyond its" if len(self._beyond) == 1 else "lie beyond their"
        return _sentence(
            f"{len(self._beyond)} of {share['n']} features {lie} limit, {needed}, {verdict}{left}{self._also()}"
        )

    def _also(self) -> str:
        """Nulls and rows beyond what training knew, which are alarms of their own."""
        nulls = sorted(
            (r for (check, _), r in self._rows.items() if check == NULL_RATE and r["status"] in ALARMING),
            key=lambda r: (-r["value"], r["column"]),
        )
        said = ""
        if nulls:
            worst = nulls[0]
            are = "are null in up to" if len(nulls) > 1 else "is null in"
            said += f"; {_listed(nulls)} {are} {percent(worst['value'])} of rows, limit {percent(worst['threshold'])}"
        volume = self._rows.get((VOLUME, ""))
        return said + (f"; {volume['reason']}" if volume is not None and volume["status"] in ALARMING else "")

    def predictions(self) -> str:
        """Whether the predictions followed."""
        rows = [row for (check, _), row in self._rows.items() if check == PREDICTION_DRIFT]
        judged = ranked(row for row in rows if row["status"] != "not_evaluated")
        follow = bool(self._beyond)
        if not judged:
            reasons = [row["reason"] for row in rows if row["reason"]]
            verb = "followed" if follow else "moved"
            return (
                f"Whether predictions {verb} is not known: {reasons[0] if reasons else 'their drift was not measured'}"
            )
        most = judged[0]
        words = {
            (True, True): "Predictions followed",
            (True, False): "Predictions moved",
            (False, True): "Predictions did not follow",
        }
        said = words.get((most["status"] == "warning", follow), "Predictions stayed")
        return f"{said}: {named(most['column'])} {self._by_how_much(most, 'when it was validated')}"


def _performance(lake: Lake, entry: ModelEntry, night: date) -> str:
    """A clause about the errors of that night's predictions, beside what the gate promised of them."""
    when = known_from(lake, entry.name, night)
    checks = {ERROR_RATIO} | {
        check for output in entry.outputs.values() for check in (output.gate, f"{output.gate}_baseline")
    }
    metrics = read_metrics_of(lake, [entry.name], Interval.of(when), by="data_date", checks=checks)
    rows = {(row["check"], row["column"]): row for row in metrics if row["about_date"] == night}
    if not rows:
        newest = published_nights(lake, [f"{entry.name}/metrics/performance"], Interval.of(when)).get(
            f"{entry.name}/metrics/performance"
        )
        return (
            f"its performance was not judged, though it could be since {when}"
            if newest
            else f"its performance is known from {when} on"
        )
    parts, worse = [], False
    promised = _promised(lake, entry, night)
    for name, output in entry.outputs.items():
        ratio, own, base = (rows.get((check, name)) for check in (ERROR_RATIO, output.gate, f"{output.gate}_baseline"))
        unit = spaced(output.metric_unit(label_unit(lake, entry)))
        if own is None or own["value"] is None:
            why = (own or ratio or {}).get("reason") or "it was not measured"
            parts.append(f"{output.gate} of {name} is not known, {why}")
            continue
        at_gate = promised.get(name)
        if (
            ratio is None
            or ratio["status"] == "not_evaluated"
            or at_gate is None
            or base is None
            or base["value"] is None
        ):
            why = (ratio or {}).get("reason") or "nothing was promised"
            parts.append(f"{output.gate} of {name} was {figures(own['value'])}{unit}, not judged, {why}")
            continue
        worse = worse or ratio["status"] in ALARMING
        now, then = _two_figures(own["value"], at_gate * base["value"])
        allowed = figures(ratio["threshold"] * base["value"])
        parts.append(f"{output.gate} of {name} was {now}{unit} against {then} promised and {allowed} allowed")
    judged = any("promised and" in part for part in parts)
    held = "performance held" if judged else "performance was not judged"
    return f"{'performance got worse' if worse else held}: {', '.join(parts)}"


def _promised(lake: Lake, entry: ModelEntry, night: date) -> Mapping[str, float]:
    """By output: error over the baseline's at the gate, of the version that scored the night. Times that night's
    baseline it is what was promised of it.
    """
    publication = lake.publications.current(
        predictions_table(lake.settings, entry, lake.dataset(entry.dataset)), Interval.of(night)
    ).get(night)
    champion = champion_in(scored_by(night, publication.details)) if publication is not None else None
    if champion is None:
        return {}
    version = champion.version
    promised = read_promises(lake, {entry.name: [version]}).get(entry.name, {}).get(version)
    # None: not projected to SQL yet, and the lake knows.
    return gate_ratios(lake, entry.name).get(version, {}) if promised is None else promised


# ---- words -----------------------------------------------------------------------------------------------------


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The most times beyond its limit first; what has no limit or no value comes last."""
    return sorted(rows, key=lambda row: (-(times_limit(row) or 0.0), row["column"]))


def times_limit(row: Row) -> float | None:
    """How many times its limit a value is; None without either, or beyond a limit of zero."""
    if row["value"] is None or row["threshold"] is None:
        return None
    if not row["threshold"]:
        return 0.0 if not row["value"] else float("inf")
    return float(row["value"] / row["threshold"])


def _test(row: Row, entry: ModelEntry) -> str:
    return (
        row["check"].removeprefix("drift_") if row["check"] in FEATURE_DRIFT else entry.retrain.drift.method
    ).upper()


def _two_figures(one: float, other: float) -> tuple[str, str]:
    """Both with as many digits as it takes to tell them apart, at most six."""
    for digits in range(3, _MOST_DIGITS + 1):
        pair = (figures(one, digits), figures(other, digits))
        if one == other or pair[0] != pair[1]:
            break
    return pair


def _listed(rows: Sequence[Row]) -> str:
    names = [named(row["column"]) for row in rows[:_MOST_NAMED]]
    rest = len(rows) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _sentence(text: str) -> str:
    """Without a capital: what comes first may be a column's name."""
    return f"{text.rstrip('.')}."
