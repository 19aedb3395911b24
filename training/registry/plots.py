"""Plots of a model, as PNG files: colours that colour-blind people tell apart, axes that name their unit.

Drawn on matplotlib's figures without pyplot, which keeps state of its own; equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from config.catalog.output import StepErrors

Floats = npt.NDArray[np.float64]

# Okabe and Ito's palette: told apart with any kind of colour vision, and in grey by their lightness.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8f98"
PLOTTED_FEATURES = 20
CONTRIBUTING_FEATURES = 12
CALIBRATION_BINS = 10
_SCATTERED_ROWS = 3_000
_FEW_ROWS = 600
_MOST_HOURS = 72  # a longer horizon is read in days
_NUMBERED_CLASSES = 12
_DPI = 110
_CONFIDENT = 1.959963984540054  # two-sided 95 % of a normal distribution


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(_plain(title), fontsize=10.5, loc="left")
    axes.set_xlabel(_plain(x))
    axes.set_ylabel(_plain(y))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e9ee", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _with_unit(what: str, unit: str | None) -> str:
    return f"{what} ({unit})" if unit else what


def importance_plot(importances: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw each output's largest importances as bars into a PNG."""
    most = min(PLOTTED_FEATURES, max(len(shares) for shares in importances.values()))
    figure = _figure(7.0 * len(importances), 1.2 + 0.28 * most)
    figure.suptitle(title)
    for index, (name, shares) in enumerate(importances.items()):
        axes = figure.add_subplot(1, len(importances), index + 1)
        largest = sorted(shares.items(), key=lambda item: (item[1], item[0]))[-PLOTTED_FEATURES:]
        axes.barh([_short(feature) for feature, _ in largest], [share for _, share in largest], color=BLUE)
        _style(axes, name, "share of importance", "")
        axes.grid(visible=False, axis="y")
    _save(figure, path)


def contribution_plot(
    names: Sequence[str],
    values: Floats,
    features: Floats,
    path: Path,
    *,
    title: str,
    unit: str,
    categorical: Sequence[bool] | None = None,
) -> None:
    """Draw how much each feature moved each row's prediction: a dot a row, sideways by its contribution, coloured by
    the feature's value.

    Args:
        names: of the features, (features,).
        values: contributions in `unit`, (rows, features).
        features: the features' values, same shape; NaN, and all of a `categorical` feature, are grey.
    """
    strength = np.abs(values).mean(axis=0)
    chosen = sorted(range(len(names)), key=lambda i: (-strength[i], names[i]))[:CONTRIBUTING_FEATURES][::-1]
    figure = _figure(8.4, 1.7 + 0.42 * len(chosen))
    axes = figure.add_subplot()
    dots = None
    for line, index in enumerate(chosen):
        x = values[:, index]
        y = line + _spread(x)
        shade = _percentiles(features[:, index])
        grey = np.isnan(shade) | bool(categorical and categorical[index])
        axes.scatter(x[grey], y[grey], s=7, color=GREY, alpha=0.6, linewidths=0, rasterized=True)
        dots = axes.scatter(
            x[~grey],
            y[~grey],
            s=7,
            c=shade[~grey],
            cmap="cividis",
            vmin=0.0,
            vmax=1.0,
            alpha=0.8,
            linewidths=0,
            rasterized=True,
        )
    axes.axvline(0.0, color="#444b55", linewidth=0.8)
    axes.set_yticks(range(len(chosen)), [f"{_short(names[i])}\nmean |{strength[i]:.3g}|" for i in chosen], fontsize=8)
    axes.set_ylim(-0.6, len(chosen) - 0.4)
    _style(axes, title, _with_unit("contribution to the prediction", unit), "")
    if dots is not None:
        bar = figure.colorbar(dots, ax=axes, aspect=30, pad=0.02)
        bar.set_ticks([0.0, 1.0], labels=["low", "high"])
        bar.set_label("feature's value", fontsize=8)
    _save(figure, path)


def strength_plot(names: Sequence[str], strengths: Floats, path: Path, *, title: str, unit: str) -> None:
    """Draw one bar a feature, the largest on top."""
    chosen = sorted(range(len(names)), key=lambda i: (-strengths[i], names[i]))[:CONTRIBUTING_FEATURES][::-1]
    figure = _figure(7.4, 1.4 + 0.3 * len(chosen))
    axes = figure.add_subplot()
    axes.barh([_short(names[i]) for i in chosen], strengths[chosen], color=BLUE)
    _style(axes, title, unit, "")
    axes.grid(visible=False, axis="y")
    _save(figure, path)


def calibration_plot(truth: Floats, probability: Floats, path: Path, *, title: str) -> None:
    """Draw how often the event came true, with 95 % intervals (Wilson), in ten groups of equally many rows by
    probability, over the probabilities' histogram.

    Args:
        truth: 0 or 1, (rows,).
        probability: (rows,).
    """
    bins = calibration_bins(truth, probability)
    figure = _figure(6.2, 5.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    x, y = bins["predicted"], bins["found"]
    # Rounding may put a bound on the wrong side of a share of exactly 0 or 1.
    reach = np.maximum([y - bins["lower"], bins["upper"] - y], 0.0)
    upper.errorbar(
        x,
        y,
        yerr=reach,
        color=BLUE,
        marker="o",
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label="a tenth of the rows, 95 % interval",
    )
    most = float(max(x.max(), bins["upper"].max())) * 1.05
    upper.set_xlim(0.0, min(1.0, max(most, 0.1)))
    upper.set_ylim(0.0, min(1.0, max(most, 0.1)))
    upper.legend(loc="upper left", fontsize=8, frameon=False)
    _style(upper, title, "", "share that came true")
    lower.hist(probability, bins=40, range=(0.0, upper.get_xlim()[1]), color=BLUE, alpha=0.75)
    _style(lower, "", "predicted probability", "rows")
    _save(figure, path)


def calibration_bins(truth: Floats, probability: Floats, bins: int = CALIBRATION_BINS) -> dict[str, Floats]:
    """Rows in `bins` groups of about equal size, by probability; equal probabilities stay together.

    Returns:
        Per group: predicted (mean probability), found (share of ones), lower and upper (its 95 % Wilson interval),
        rows.
    """
    edges = np.unique(np.quantile(probability, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    codes = np.searchsorted(edges, probability, side="left")
    rows = np.bincount(codes)
    there = np.flatnonzero(rows)
    n = rows[there].astype(np.float64)
    predicted = np.bincount(codes, weights=probability)[there] / n
    shares = np.bincount(codes, weights=truth)[there] / n
    center = (shares + _CONFIDENT**2 / (2 * n)) / (1 + _CONFIDENT**2 / n)
    half = _CONFIDENT / (1 + _CONFIDENT**2 / n) * np.sqrt(shares * (1 - shares) / n + _CONFIDENT**2 / (4 * n**2))
    return {"predicted": predicted, "found": shares, "lower": center - half, "upper": center + half, "rows": n}


def confusion_plot(truth: Floats, probability: Floats, path: Path, *, title: str, threshold: float, event: str) -> None:
    """Draw the four counts of decisions at a threshold, each with its share of what really happened.

    Args:
        event: what a one means, in words.
    """
    came, said = truth > 0.5, probability >= threshold
    counts = np.array(
        [[int((~came & ~said).sum()), int((~came & said).sum())], [int((came & ~said).sum()), int((came & said).sum())]]
    )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros((2, 2)), where=totals > 0)
    figure = _figure(5.6, 4.2)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for row in range(2):
        for side in range(2):
            shown = f"{counts[row, side]:,}\n{shares[row, side]:.0%} of the row" if totals[row, 0] else "0\nno such row"
            axes.text(
                side, row, shown, ha="center", va="center", color="white" if shares[row, side] > 0.55 else "#1c2733"
            )
    axes.set_xticks([0, 1], [f"no\n(below {threshold:g})", f"yes\n({threshold:g} or more)"])
    axes.set_yticks([0, 1], ["no", "yes"])
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel("predicted")
    axes.set_ylabel(f"really: {event}")
    axes.spines[:].set_visible(False)
    axes.set_xticks([0.5], minor=True)
    axes.set_yticks([0.5], minor=True)
    axes.grid(visible=True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    _save(figure, path)


def classes_plot(
    truth: npt.NDArray[np.int64],
    said: npt.NDArray[np.int64],
    path: Path,
    *,
    classes: Sequence[str],
    title: str,
) -> None:
    """Draw how often each class was said of the rows of each class, as counts and as shares of what really happened.

    Args:
        truth, said: positions in `classes`, (rows,).
    """
    size = len(classes)
    counts = np.bincount(truth * size + said, minlength=size * size).reshape(size, size)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = _figure(2.2 + 0.9 * size, 1.8 + 0.7 * size)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for row in range(size if size <= _NUMBERED_CLASSES else 0):
        for side in range(size):
            color = "white" if shares[row, side] > 0.55 else "#1c2733"
            shown = f"{counts[row, side]:,}\n{shares[row, side]:.0%}"
            axes.text(side, row, shown, ha="center", va="center", fontsize=8, color=color)
    names = [_short(name) for name in classes]
    axes.set_xticks(range(size), names, rotation=90 if size > 6 else 0)
    axes.set_yticks(range(size), names)
    axes.set_title(_plain(title), fontsize=10.5, loc="left")
    axes.set_xlabel("predicted")
    axes.set_ylabel("really")
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)
    _save(figure, path)


def residual_plot(label: Floats, predicted: Floats, path: Path, *, title: str, unit: str | None) -> None:
    """Draw what was predicted minus what came true: against the prediction, with the median of each tenth of the rows,
    and as a histogram.

    The outer half per cent on each side of the residuals lies beyond the axis, and the plot says how many rows that is.
    """
    residual = predicted - label
    low, high = _central(residual)
    figure = _figure(9.4, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    step = max(-(-len(residual) // _SCATTERED_ROWS), 1)
    few = len(residual) <= _FEW_ROWS
    left.scatter(
        predicted[::step],
        residual[::step],
        s=14 if few else 6,
        color=BLUE,
        alpha=0.6 if few else 0.3,
        linewidths=0,
        rasterized=True,
    )
    x, middle = _medians(predicted, residual)
    left.plot(x, middle, color=ORANGE, marker="o", markersize=3.5, linewidth=1.4, label="median of a tenth of the rows")
    left.axhline(0.0, color="#444b55", linewidth=0.8)
    left.set_ylim(low, high)
    across = _central(predicted)
    left.set_xlim(*across)
    left.legend(loc="upper left", fontsize=8, frameon=False)
    _style(left, title, _with_unit("predicted", unit), _with_unit("predicted minus real", unit))
    right.hist(residual, bins=40, range=(low, high), color=BLUE, alpha=0.75)
    right.axvline(0.0, color="#444b55", linewidth=0.8)
    beyond = int(((residual < low) | (residual > high)).sum())
    drawn = "" if step == 1 else f", every {_ordinal(step)} is drawn left"
    note = f"{len(residual):,} rows{drawn};\n{beyond:,} lie beyond these axes"
    _style(right, "", _with_unit("predicted minus real", unit), "rows")
    right.set_title(note, fontsize=8, loc="left")
    _save(figure, path)


def gain_plot(truth: Floats, probability: Floats, path: Path, *, title: str, said: str = "probability") -> None:
    """Draw the share of all events found among the rows with the highest probabilities, or whatever else was `said` of
    them: the model, guessing, and what is possible.
    """
    gains, rows = _gains(truth, probability), np.linspace(0.0, 1.0, 201)
    rate = float(truth.mean())
    figure = _figure(5.8, 4.6)
    axes = figure.add_subplot()
    axes.plot(rows, np.minimum(rows / rate, 1.0), color=GREEN, linestyle=":", linewidth=1.4, label="best possible")
    axes.plot(rows, np.interp(rows, np.linspace(0.0, 1.0, len(gains)), gains), color=BLUE, linewidth=1.8, label="model")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label=f"baseline: one {said} for all rows")
    tenth = float(np.interp(0.1, np.linspace(0.0, 1.0, len(gains)), gains))
    axes.plot(
        [0.1], [tenth], "o", color=BLUE, markersize=4, label=f"the first 10 % hold {tenth:.0%}: lift {tenth / 0.1:.2g}"
    )
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.02)
    _style(axes, title, f"share of rows, highest {said} first", "share of events among them")
    _save(figure, path)


def precision_recall_plot(truth: Floats, score: Floats, path: Path, *, title: str) -> None:
    """Draw precision over recall for each score that rows could be flagged from, beside flagging any rows."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, score)
    rate, area = float(truth.mean()), float(average_precision_score(truth, score))
    figure = _figure(5.8, 4.6)
    axes = figure.add_subplot()
    axes.step(recall, precision, where="post", color=BLUE, linewidth=1.8, label=f"model: average precision {area:.3f}")
    axes.axhline(rate, color=GREY, linestyle="--", linewidth=1, label=f"any rows: {rate:.3f}")
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.02)
    _style(axes, title, "share of anomalies found (recall)", "share of anomalies among the flagged (precision)")
    _save(figure, path)


def _gains(truth: Floats, probability: Floats) -> Floats:
    """Cumulative share of events by falling probability, from 0 rows on; rows of equal probability share theirs."""
    _, codes = np.unique(-probability, return_inverse=True)
    rows, events = np.bincount(codes), np.bincount(codes, weights=truth)
    at = np.concatenate([[0], np.cumsum(rows)])
    cumulative = np.concatenate([[0.0], np.cumsum(events)]) / truth.sum()
    gains: Floats = np.interp(np.arange(len(truth) + 1), at, cumulative)
    return gains


def tolerance_plot(
    label: Floats, predicted: Floats, baseline: Floats, path: Path, *, title: str, unit: str | None
) -> None:
    """Draw the share of rows that lie within each distance of the truth, for the model and for the baseline (a
    regression error characteristic).
    """
    ours, theirs = np.sort(np.abs(predicted - label)), np.sort(np.abs(baseline - label))
    most = float(max(np.quantile(ours, 0.95), np.quantile(theirs, 0.95))) or 1.0
    within = np.linspace(0.0, most, 200)
    figure = _figure(5.8, 4.6)
    axes = figure.add_subplot()
    for errors, color, style, who in ((ours, BLUE, "-", "model"), (theirs, GREY, "--", "baseline")):
        axes.plot(
            within,
            np.searchsorted(errors, within, side="right") / len(errors),
            color=color,
            linestyle=style,
            linewidth=1.8,
            label=who,
        )
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_xlim(0.0, most)
    axes.set_ylim(0.0, 1.02)
    _style(axes, title, _with_unit("distance from the truth, at most", unit), "share of rows within it")
    _save(figure, path)


def hits_plot(rank: Floats, baseline: Floats, path: Path, *, longest: int, title: str) -> None:
    """Draw the share of rows whose item is among the first of a list, for each length up to the longest.

    Args:
        rank, baseline: rank of each row's item in the model's list and in the baseline's, infinite where it is in none.
    """
    lengths = np.arange(1, longest + 1)
    figure = _figure(5.8, 4.6)
    axes = figure.add_subplot()
    for ranks, color, style, who in ((rank, BLUE, "-", "model"), (baseline, GREY, "--", "baseline")):
        shares = np.searchsorted(np.sort(ranks), lengths, side="right") / len(ranks)
        axes.plot(lengths, shares, color=color, linestyle=style, linewidth=1.8, marker="o", markersize=3.5, label=who)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_ylim(0.0, 1.02)
    _style(axes, title, "items looked at, from the first", "share of rows whose item is among them")
    _save(figure, path)


def savings_plot(saved: Floats, path: Path, *, title: str) -> None:
    """Draw a histogram of the share of the baseline's cost that each row saved; below zero it cost more.

    Args:
        saved: (rows,), 0.05 is 5 % less than the baseline.
    """
    figure = _figure(5.8, 4.6)
    axes = figure.add_subplot()
    axes.hist(100.0 * saved, bins=40, color=BLUE)
    axes.axvline(0.0, color=GREY, linestyle="--", linewidth=1.4, label="baseline")
    axes.axvline(100.0 * float(saved.mean()), color=BLUE, linewidth=1.4, label="mean")
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    _style(axes, title, "saved, in % of the baseline's cost", "rows")
    _save(figure, path)


def steps_plot(steps: StepErrors, path: Path, *, title: str, unit: str | None) -> None:
    """Draw the mean absolute error of the model and of the baseline by how far ahead they were said, and below it the
    share of outcomes that the interval held.
    """
    last = np.array(steps.last_hours)
    days = last.max() > _MOST_HOURS
    ahead, time_unit = (last / 24.0, "days") if days else (last, "hours")
    panels = 2 if steps.inside else 1
    figure = _figure(7.2, 2.4 + 1.9 * panels)
    axes = figure.add_subplot(panels, 1, 1)
    for errors, color, style, who in ((steps.error, BLUE, "-", "model"), (steps.baseline, GREY, "--", "baseline")):
        axes.plot(ahead, errors, color=color, linestyle=style, linewidth=1.6, marker="o", markersize=3, label=who)
    axes.set_ylim(bottom=0.0)
    axes.legend(loc="best", fontsize=8, frameon=False)
    x = f"from the night's end to the step ({time_unit})"
    _style(axes, title, "" if steps.inside else x, _with_unit("mean absolute error", unit))
    if steps.inside and steps.wanted is not None:
        below = figure.add_subplot(panels, 1, 2, sharex=axes)
        below.plot(ahead, steps.inside, color=BLUE, linewidth=1.6, marker="o", markersize=3, label="held")
        below.axhline(steps.wanted, color=GREY, linestyle="--", label=f"should hold {steps.wanted:.0%}")
        below.set_ylim(0.0, 1.03)
        below.legend(loc="lower right", fontsize=8, frameon=False)
        _style(below, "", x, "share inside the interval")
    _save(figure, path)


# What an output's kind may have drawn of its quality.
QUALITY_PLOTS: dict[str, Callable[..., None]] = {
    "calibration": calibration_plot,
    "classes": classes_plot,
    "confusion": confusion_plot,
    "gain": gain_plot,
    "hits": hits_plot,
    "residual": residual_plot,
    "savings": savings_plot,
    "tolerance": tolerance_plot,
    "precision_recall": precision_recall_plot,
}


def curves_plot(curves: Mapping[str, Sequence[Sequence[float]]], path: Path, *, title: str) -> bool:
    """Draw learning curves, training and validation of one quantity together; returns whether there was anything to
    draw.

    Args:
        curves: (step, value) points by `<split>/<what>/<metric>`, as in curves.json.
    """
    panels: dict[str, dict[str, Sequence[Sequence[float]]]] = {}
    for name, points in sorted(curves.items()):
        split, _, what = name.partition("/")
        if split in {"train", "validation"} and len(points) > 1:
            panels.setdefault(what, {})[split] = points
    if not panels:
        return False
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = _figure(4.2 * columns, 0.5 + 3.1 * lines)
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    for index, (what, splits) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        for split, color, style in (("train", GREY, "--"), ("validation", BLUE, "-")):
            if split in splits:
                steps, values = np.array([point[:2] for point in splits[split]], dtype=np.float64).T
                axes.plot(steps, values, color=color, linestyle=style, linewidth=1.6, label=split)
        if "validation" in splits:
            best = min(splits["validation"], key=lambda point: (point[1], point[0]))
            axes.plot([best[0]], [best[1]], "o", color=BLUE, markersize=4, label=f"best: {int(best[0])}")
        axes.legend(fontsize=8, frameon=False)
        of, _, metric = what.rpartition("/")
        _style(axes, of, "round or epoch", metric)
    _save(figure, path)
    return True


def segment_plot(names: Sequence[str], ratios: Floats, lower: Floats, upper: Floats, path: Path, *, title: str) -> None:
    """Draw each segment's error over the error of all rows, with its interval; the first name on top."""
    figure = _figure(7.0, 1.5 + 0.3 * len(names))
    axes = figure.add_subplot()
    y = np.arange(len(names))[::-1]
    known = np.isfinite(lower) & np.isfinite(upper)
    axes.hlines(y[known], lower[known], upper[known], color=BLUE, linewidth=1.6)
    axes.plot(ratios, y, "o", color=BLUE, markersize=4.5)
    axes.axvline(1.0, color="#444b55", linewidth=0.8, linestyle="--")
    axes.set_yticks(y, [_short(name) for name in names], fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    _style(axes, title, "error over the error of all rows (1: as good as the whole)", "")
    _save(figure, path)


def _spread(x: Floats) -> Floats:
    """Heights in [-0.4, 0.4] so that dots at the same place lie beside each other, the same for the same values."""
    if not len(x) or x.min() == x.max():
        return np.linspace(-0.3, 0.3, len(x)) if len(x) > 1 else np.zeros(len(x))
    codes = np.clip(((x - x.min()) / (x.max() - x.min()) * 60).astype(np.int64), 0, 60)
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=61)
    starts = np.concatenate([[0], np.cumsum(counts)])
    place = np.empty(len(x))
    place[order] = np.arange(len(x)) - starts[codes[order]]
    # Alternately above and below the line, so that a thin heap stays near it.
    signed = np.where(place % 2 == 0, 1.0, -1.0) * np.ceil(place / 2)
    heights: Floats = signed / max(counts.max() / 2.0, 1.0) * 0.4
    return heights


def _percentiles(values: Floats) -> Floats:
    """Each value's place among the others in [0, 1], ties sharing theirs; NaN stays NaN."""
    percentiles = np.full(len(values), np.nan)
    there = ~np.isnan(values)
    if there.any():
        _, codes, counts = np.unique(values[there], return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts + 1) / 2.0
        percentiles[there] = middle[codes] / max(len(codes) - 1, 1)
    return percentiles


def _central(values: Floats) -> tuple[float, float]:
    """The range that holds 99 % of the values, a little wider; never empty."""
    low, high = (float(value) for value in np.quantile(values, [0.005, 0.995]))
    margin = (high - low) * 0.05 or max(abs(low), 1.0) * 0.05
    return low - margin, high + margin


def _medians(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Medians of x and y in ten groups of equally many rows by x."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(10, len(x)))
    return np.array([np.median(x[rows]) for rows in groups]), np.array([np.median(y[rows]) for rows in groups])


def _ordinal(number: int) -> str:
    if number % 100 in {11, 12, 13}:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def _short(name: str) -> str:
    """A name that fits beside a plot."""
    return _plain(name if len(name) <= 44 else f"{name[:26]}…{name[-17:]}")


def _plain(text: str) -> str:
    """Text that is drawn as it stands: a `$` would begin a formula."""
    return text.replace("$", r"\$")
