"""One page a version that says to who must approve it: what it is for, how good, for whom worse, what not to use it
for, where it comes from.

The page is whole in itself: no script, nothing loaded, every value escaped. Equal input gives equal bytes, so the page
that was read when a promotion was approved can be written again and compared.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from config.catalog.model import BinaryOutput, ModelEntry, RegressionOutput
from config.durations import format_duration
from config.settings import Settings
from lake.artifact import write_whole
from lake.lake import Lake
from serving.predictors import read_manifest
from serving.predictors.contract import read_json
from training.job_file import JOB_FILE
from training.registry.decision import Check, Decision, read_decisions
from training.registry.explanation import Contributions, Explanation, explain
from training.registry.gate import registered_from_json
from training.registry.job import TRAINING_SET_FILE
from training.registry.promotion import StaleDecision
from training.registry.register import Registered, artifact_folder
from training.registry.segments import OutputSegments, Segment, SegmentReport
from training.registry.tracking import MlflowUnavailable, answered, tracking_client

CARDS_FOLDER = "model_cards"
MLFLOW_CARD_FOLDER = "model_card"
MLFLOW_EXPLANATION_FOLDER = "explanation"
TEMPLATE = Path(__file__).parent / "templates" / "model_card.html.jinja"
_SHOWN_FEATURES = 8
_SHOWN_SEGMENTS = 12
_SMALL_SEGMENTS_NAMED = 20
_COVERAGE_TOLERANCE = 0.05
_YEAR = timedelta(days=365)
_FULL_WIDTH = frozenset({"residuals", "contributions", "importances", "curves"})
_LINKED = ("http://", "https://", "mailto:")
log = logging.getLogger(__name__)

_VERDICTS = {
    "promote": "Passed the gate",
    "refuse": "Refused by the gate",
    "not_evaluated": "Not evaluated: the gate could not judge it",
    "none": "Not judged yet",
}
_METRICS = {
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "mse": "mean squared error",
    "median_absolute_error": "median absolute error",
    "r2": "R², share of the variance explained",
    "bias": "bias, predicted minus real",
    "coverage": "share of outcomes inside the interval",
    "width": "mean width of the interval",
    "brier": "Brier score",
    "log_loss": "log loss",
    "roc_auc": "ROC AUC, 0.5 is guessing",
    "average_precision": "average precision",
    "accuracy": "accuracy at 0.5",
    "precision": "precision at 0.5",
    "recall": "recall at 0.5",
    "f1": "F1 at 0.5",
    "rate": "share of events",
    "predicted_rate": "predicted share of events",
    "ndcg": "NDCG of a night's order",
    "mrr": "mean reciprocal rank of a night's highest",
}
_CHECKS = {
    "nights": "test nights",
    "schema": "columns are the catalog's",
    "finite": "every prediction is a number",
    "latency": "time of a prediction (ms a row)",
    "leakage": "cells that knew the future",
    "coverage": "share inside the interval",
    "champion": "the champion",
    "segments_too_small": "segments too small to judge",
}


@dataclass(frozen=True)
class Subject:
    """All that a card is written from.

    Attributes:
        manifest, job, training_set: what the trainer wrote, what it was asked, and where its rows come from.
        candidates: trainers of the same training, as `register_best` compares them.
        link: the MLflow run in a browser, None where its experiment is not known.
    """

    lake: Lake
    entry: ModelEntry
    registered: Registered
    decision: Decision | None
    explanation: Explanation
    manifest: Mapping[str, Any]
    job: Mapping[str, Any]
    training_set: Mapping[str, Any]
    candidates: Sequence[Mapping[str, Any]]
    link: str | None

    @property
    def unit(self) -> str | None:
        """The label's."""
        table = self.lake.dataset(self.entry.dataset).tables[self.entry.label.table]
        return table.columns[self.entry.label.column].unit


def explain_registered(
    lake: Lake,
    model: str,
    job_dir: str | Path,
    registered_json: Mapping[str, Any],
    decision_json: Mapping[str, Any] | None,
    run_id: str,
) -> dict[str, Any]:
    """Explain a registered version and write its model card, with arguments and result as JSON documents; again, it
    writes the same.

    Args:
        registered_json: fields of `Registered`; `candidates` too where there were several.
        decision_json: of the gate, None before it has judged.
        run_id: the run that asks, for the log alone.
    Returns:
        `path` of the card's file, `link` to it in MLflow's pages, and the version.
    Raises:
        StaleDecision: no stored decision has that digest.
        NothingToExplain, UntrustedModel, ModelMissing, MlflowUnavailable: as `write_model_card`.
    """
    decision = None
    if decision_json is not None:
        digest = decision_json["evidence_digest"]
        decision = next((d for d in read_decisions(lake, model) if d.evidence_digest == digest), None)
        if decision is None:
            raise StaleDecision(
                f"{model} has no stored decision with evidence {digest[:12]}…. No card was written. Clear the gate's "
                "task to judge again."
            )
    registered = registered_from_json(registered_json)
    path = write_model_card(
        lake, model, Path(job_dir), registered, decision, candidates=registered_json.get("candidates") or ()
    )
    log.info("%s version %s: model card %s, asked for by %s", model, registered.version, path, run_id)
    client = tracking_client(lake.settings)
    with answered(lake.settings):
        link = card_link(lake.settings, client, registered.mlflow_run_id, path.name)
    return {"model": model, "version": registered.version, "path": str(path), "link": link}


def write_model_card(
    lake: Lake,
    model: str,
    job_dir: Path,
    registered: Registered,
    decision: Decision | None,
    *,
    candidates: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `<reports>/<model>/model_cards/<version>.html`, and log it to the version's MLflow run with plots, metrics
    and JSON.

    Args:
        job_dir: the training job, its test set in `<job_dir>.gate`.
        candidates: trainers of the same training: family, job, error_of_baseline.
    Raises:
        NothingToExplain, UntrustedModel, ModelMissing, BadManifest, ArtifactMismatch: see `explain`; nothing is
            written.
        MlflowUnavailable: MLflow does not answer; where it died in the middle, the card lies there all the same.
    """
    client = tracking_client(lake.settings)  # before the work: where MLflow is down this fails in seconds
    entry = lake.model(model)
    folder = artifact_folder(lake.settings, model, registered.artifact_digest)
    path = lake.settings.reports / model / CARDS_FOLDER / f"{registered.version}.html"
    with lake.scratch("explain") as scratch:
        explanation = explain(lake, model, job_dir, registered, decision, folder=scratch)
        with answered(lake.settings):
            link = run_link(lake.settings, client, registered.mlflow_run_id)
        version = Subject(
            lake,
            entry,
            registered,
            decision,
            explanation,
            read_manifest(folder),
            read_json(folder / JOB_FILE),
            read_json(folder / TRAINING_SET_FILE),
            candidates,
            link,
        )
        write_whole(path, render(version, scratch))
        try:
            with answered(lake.settings):
                _log(client, registered.mlflow_run_id, explanation, scratch, path)
        except MlflowUnavailable as error:
            said = str(error).splitlines()[0]
            raise MlflowUnavailable(
                f"the model card of {model} version {registered.version} lies at {path}, MLflow has not got it: "
                f"{said}\n"
                "  Start MLflow (`make up`), then clear this task: it writes the same card again."
            ) from error
    return path


def run_link(settings: Settings, client: Any, mlflow_run_id: str) -> str:
    """A run's page in MLflow."""
    experiment = client.get_run(mlflow_run_id).info.experiment_id
    return f"{settings.tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_run_id}"


def card_link(settings: Settings, client: Any, mlflow_run_id: str, file: str) -> str:
    """The card among the run's artifacts in MLflow's pages."""
    return f"{run_link(settings, client, mlflow_run_id)}/artifacts/{MLFLOW_CARD_FOLDER}/{file}"


def _log(client: Any, mlflow_run_id: str, explanation: Explanation, folder: Path, card: Path) -> None:
    from mlflow.entities import Metric

    client.log_batch(
        mlflow_run_id, metrics=[Metric(f"tested/{name}", value, 0, 0) for name, value in explanation.metrics.items()]
    )
    client.log_artifacts(mlflow_run_id, str(folder), MLFLOW_EXPLANATION_FOLDER)
    client.log_artifact(mlflow_run_id, str(card), MLFLOW_CARD_FOLDER)


# ---- the page ----------------------------------------------------------------------------------------------------


def render(version: Subject, folder: Path) -> str:
    """The card as HTML; `folder` holds the explanation's plots."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(card=_card(version, folder))


def _card(v: Subject, folder: Path) -> dict[str, Any]:
    entry, decision = v.entry, v.decision
    plots = [
        (
            plot,
            {
                "alt": plot.alt,
                "full": plot.kind in _FULL_WIDTH,
                "data": base64.b64encode((folder / plot.file).read_bytes()).decode(),
            },
        )
        for plot in v.explanation.plots
    ]

    def drawn(output: str, *kinds: str) -> list[dict[str, Any]]:
        return [shown for plot, shown in plots if plot.output == output and plot.kind in kinds]

    verdict = decision.verdict if decision else "none"
    return {
        "title": entry.title,
        "model": entry.name,
        "version": v.registered.version,
        "family": v.manifest["family"].replace("_", " "),
        "as_of": v.registered.as_of.isoformat(),
        "owner": entry.owner,
        "owner_url": entry.owner_url if entry.owner_url.startswith(_LINKED) else None,
        "verdict": verdict,
        "verdict_words": _VERDICTS[verdict],
        "reasons": [reason.text for reason in decision.reasons] if decision else [],
        "consequence": _consequence(entry, decision),
        **_improvements(v),
        "purpose": _purpose(v),
        "output_heads": _heads("output", "says", "judged by"),
        "outputs": [
            [name, _says(v, name), f"{_metric_words(output.gate)} ({output.gate})"]
            for name, output in entry.outputs.items()
        ],
        "limits": limits(v),
        "metrics_words": _metrics_words(v),
        "metric_heads": _heads("metric", "#this version", "#baseline"),
        "quality": [
            {
                "name": name,
                "unit": _unit_of(v, name),
                "metrics": _metrics(v, name),
                "plots": drawn(name, "calibration", "confusion", "residuals", "gain"),
            }
            for name in entry.outputs
        ],
        "segments_words": _segments_words(v.explanation.segments),
        "segments": [
            _segments(v, part) | {"plots": drawn(part.output, "segments")} for part in v.explanation.segments.outputs
        ],
        "features": [
            {
                "name": part.output,
                "method": part.method,
                "heads": _heads("feature", "what it is", f"#{_strength_words(part)}"),
                "rows": _features(v, part.strengths),
                "plots": drawn(part.output, "contributions"),
            }
            for part in v.explanation.contributions
        ],
        "check_heads": _heads("check", "#found", "#needed", "result", "note"),
        "checks": _checks(decision) if decision else [],
        "window_heads": _heads("split", "first night", "last night", "#rows", "#rows left out, without a label"),
        "windows": _windows(v),
        "training": _training(v),
        "candidate_heads": _heads("family", "job", "#error over the baseline's, on validation"),
        "candidates": [[str(r["family"]), str(r["job"]), _shown(r["error_of_baseline"])] for r in v.candidates]
        if len(v.candidates) > 1
        else [],
        "search": _search(v.manifest.get("search")),
        **_cross_validation(v.manifest.get("cross_validation")),
        "training_plots": drawn("", "importances", "curves"),
        "notes": list(v.explanation.notes),
        "lineage": _lineage(v),
        "link": v.link,
    }


def _heads(*texts: str) -> list[dict[str, Any]]:
    """Table heads; a `#` before the text: the column holds numbers."""
    return [{"text": text.removeprefix("#"), "number": text.startswith("#")} for text in texts]


def _consequence(entry: ModelEntry, decision: Decision | None) -> str:
    if decision is None:
        return "It scores nothing until the gate has passed it."
    if decision.verdict != "promote":
        return "The champion stays. This version scores nothing."
    asked = "If you approve, it" if entry.approval == "required" else "It"
    stays = " If you reject, or do not answer in time, the champion stays." if entry.approval == "required" else ""
    return (
        f"{asked} becomes the champion and scores every night from the next one on, until another is promoted or it is"
        f" rolled back.{stays}"
    )


def _improvements(v: Subject) -> dict[str, Any]:
    decision = v.decision
    if decision is None:
        return {"improvements": []}
    confidence = decision.evidence["rules"]["confidence"]
    rows = []
    for check in decision.checks:
        if check.name == "improvement":
            unit = _unit_of(v, check.output or "") if check.metric in {"mae", "rmse"} else None
            found, reached = (_shown(value, unit) for value in (check.challenger, check.rival))
            rows.append(
                [
                    check.output,
                    check.metric,
                    found,
                    reached,
                    _percent(check.improvement),
                    _percent(check.bound),
                    _percent(check.needed),
                    _result(check),
                ]
            )
    return {
        "improvements": rows,
        "improvement_heads": _heads(
            "output",
            "error",
            "#this version",
            f"#{decision.rival}",
            "#improvement",
            f"#at least, with {confidence:.0%} confidence",
            "#needed",
            "result",
        ),
        "improvement_caption": f"{decision.rows:,} rows of {decision.nights} nights that neither model was fitted on.",
    }


def _purpose(v: Subject) -> list[str]:
    entry, dataset = v.entry, v.lake.dataset(v.entry.dataset)
    label = dataset.tables[entry.label.table].columns[entry.label.column]
    return [
        f"{entry.title}. Every night it predicts {entry.label.column} ({_sentence(label.description)}) for "
        f"{entry.spine.in_words(dataset.tables)}.",
        f"Data: {dataset.title} (licence {dataset.licence}). Predictions are due at {entry.deadline:%H:%M}, "
        f"{dataset.time_zone}.",
    ]


def _says(v: Subject, name: str) -> str:
    output, label = v.entry.outputs[name], v.entry.label.column
    unit = f" {v.unit}" if v.unit else ""
    if isinstance(output, BinaryOutput):
        return f"the probability that {label} lies above {output.above:g}{unit}"
    interval = f", with an interval that should hold {output.interval:.0%} of outcomes" if output.interval else ""
    return f"the {output.objective} of {label}{f' in{unit}' if unit else ''}{interval}"


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(v: Subject) -> list[str]:
    """What the version must not be used for and what is not known about it, from catalog, training set, gate and
    segments.
    """
    entry, dataset = v.entry, v.lake.dataset(v.entry.dataset)
    horizon = format_duration(entry.spine.horizon)
    found = [
        f"Not for anything further ahead than {horizon} after its night: it was neither trained nor judged on it.",
        f"Not for other data than {dataset.title}: a category that it has not met counts as missing.",
        "Not as a statement of causes: changing a feature in the world need not change the outcome as the model says.",
    ]
    first, last = v.training_set["windows"]["train"]["start"], v.training_set["windows"]["test"]["end"]
    if entry.split.train < _YEAR:
        found.append(
            f"It learned from {format_duration(entry.split.train)} (from {first}): seasons outside them are unknown to "
            "it."
        )
    maturity = format_duration(entry.label.matures_after)
    found.append(
        f"How good it is from {last} on is not known: labels count {maturity} after the target, and were not mature "
        "there."
    )
    found += _unlabelled(v)
    if entry.split.groups:
        found.append(
            f"No {entry.split.groups} of the test rows was seen in training: how it does on a known one is not "
            "measured."
        )
    decision = v.decision
    if decision is None:
        found.append("The gate has not judged it: do not score with it.")
    elif decision.nights < entry.gate.min_days:
        found.append(
            f"Only {decision.nights} nights lie after both models' training, {entry.gate.min_days} are needed: how "
            "good it is is not proven."
        )
    else:
        found.append(
            f"It was judged on {decision.nights} nights. Rare events that did not happen in them are not covered by "
            "any figure here."
        )
    found += _weak_outputs(v) + _weak_segments(v)
    return found


def _unlabelled(v: Subject) -> list[str]:
    rows, missing = v.training_set.get("rows") or {}, v.training_set.get("unlabelled") or {}
    total = sum(rows.values()) + sum(missing.values())
    if not total or not sum(missing.values()):
        return []
    share = sum(missing.values()) / total
    return [
        f"{share:.2%} of its rows ({sum(missing.values()):,} of {total:,}) never got a label and were left out: it "
        "says nothing about such cases."
    ]


def _weak_outputs(v: Subject) -> list[str]:
    found = []
    for name, output in v.entry.outputs.items():
        lift = v.explanation.metrics.get(f"{name}/lift")
        if lift is not None and lift <= 0.0:
            found.append(
                f"{name}: no better than the baseline on these nights ({output.gate} {-lift:.1%} higher): use the "
                "baseline instead."
            )
        if isinstance(output, RegressionOutput) and output.interval:
            share = v.explanation.metrics[f"{name}/coverage"]
            if abs(share - output.interval) > _COVERAGE_TOLERANCE:
                found.append(
                    f"{name}: the interval should hold {output.interval:.0%} of outcomes and held {share:.0%}: do not "
                    "plan with its bounds."
                )
    return found


def _weak_segments(v: Subject) -> list[str]:
    report, found = v.explanation.segments, []
    if not report.columns:
        found.append("The catalog names no segments: whether it is worse for some of them was not looked at.")
    for part in report.outputs:
        worse = [f"{s.column} = {s.value} ({s.ratio.value:.2f} times)" for s in part.segments if s.worse and s.ratio]
        if worse:
            more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
            found.append(
                f"{part.output}: its error is larger than on the whole, beyond chance, where "
                f"{', '.join(worse[:5])}{more}."
            )
    small = {(s.column, s.value) for part in report.outputs for s in part.not_evaluated}
    if small:
        count = "1 segment has" if len(small) == 1 else f"{len(small)} segments have"
        found.append(f"{count} fewer than {report.min_rows} rows: how it does for them is not known.")
    return found


# ---- figures -----------------------------------------------------------------------------------------------------


def _metrics_words(v: Subject) -> str:
    nights = v.explanation.nights
    baseline = v.entry.gate.baseline.replace("_", " ")
    spoken = baseline if v.entry.gate.baseline == "same_hour_last_week" else f"{baseline} of the training window"
    return (
        f"On {v.explanation.rows:,} test rows of {len(nights)} nights, {nights[0]} to {nights[-1]}, none of which it "
        f"was fitted on. Baseline: {spoken} for "
        "numbers, the training window's rate for probabilities. Lift is the share of the baseline's error that is "
        "gone: 0 is as good as no model."
    )


def _metrics(v: Subject, name: str) -> list[list[Any]]:
    output, metrics = v.entry.outputs[name], v.explanation.metrics
    rows: list[list[Any]] = []
    lift = metrics.get(f"{name}/lift")
    if lift is not None:
        rows.append(
            [
                f"lift ({output.gate} against the baseline's)",
                {"text": _percent(lift), "tone": "good" if lift > 0 else "bad"},
                "",
            ]
        )
    for metric, words in _METRICS.items():
        value, baseline = metrics.get(f"{name}/{metric}"), metrics.get(f"{name}/baseline_{metric}")
        if value is not None:
            rows.append(
                [
                    f"{words} ({metric})" if metric in {"mae", "rmse", "mse"} else words,
                    _shown(value),
                    "" if baseline is None else _shown(baseline),
                ]
            )
    return rows


def _metric_words(metric: str) -> str:
    return _METRICS[metric]


def _unit_of(v: Subject, output: str) -> str | None:
    return v.unit if isinstance(v.entry.outputs.get(output), RegressionOutput) else None


def _segments_words(report: SegmentReport) -> str:
    if not report.columns:
        return "The catalog names no segment columns (`gate.segments`, `split.groups`), so nothing was compared."
    return (
        f"By {', '.join(report.columns)}, each segment's error against the error of all {report.rows:,} rows; in "
        "brackets 95 % intervals by "
        f"resampling the {report.days} days. Of forty segments that are all alike, one would be called worse by "
        "chance. "
        f"Segments under {report.min_rows} rows are not evaluated."
    )


def _segments(v: Subject, part: OutputSegments) -> dict[str, Any]:
    binary = any(segment.rate is not None for segment in part.segments)
    shown = part.segments[:_SHOWN_SEGMENTS]
    heads = [
        "segment",
        "#rows",
        f"#{part.metric}",
        "#against the whole",
        *(["#came true", "#predicted"] if binary else ["#bias"]),
        "result",
    ]
    rest = len(part.segments) - len(shown)
    whole = f"Whole: {part.metric} {_with_bounds(part.whole.value, part.whole.lower, part.whole.upper)}. Worst first"
    small = [f"{s.column} = {s.value} ({s.n})" for s in part.not_evaluated]
    more = f" and {len(small) - _SMALL_SEGMENTS_NAMED} more" if len(small) > _SMALL_SEGMENTS_NAMED else ""
    return {
        "name": part.output,
        "heads": _heads(*heads),
        "rows": [_segment(segment) for segment in shown],
        "caption": f"{whole}; {rest} more, with lower error, in segments.json." if rest else f"{whole}.",
        "small": f"{', '.join(small[:_SMALL_SEGMENTS_NAMED])}{more}." if small else "",
    }


def _segment(s: Segment) -> list[Any]:
    ratio = "" if s.ratio is None else f"{_with_bounds(s.ratio.value, s.ratio.lower, s.ratio.upper)}"
    said = (
        [_shown(s.bias)] if s.rate is None or s.predicted_rate is None else [f"{s.rate:.1%}", f"{s.predicted_rate:.1%}"]
    )
    unsure = s.error.lower is None
    result = (
        {"text": "worse", "tone": "bad"}
        if s.worse
        else {"text": "too few days", "tone": "unsure"}
        if unsure
        else "within chance, or better"
    )
    return [
        f"{s.column} = {s.value}",
        f"{s.n:,}",
        _with_bounds(s.error.value, s.error.lower, s.error.upper),
        ratio,
        *said,
        result,
    ]


def _features(v: Subject, strengths: Mapping[str, float]) -> list[list[Any]]:
    columns = v.lake.catalog.feature_columns(v.entry)
    rows = []
    for name, strength in list(strengths.items())[:_SHOWN_FEATURES]:
        stem = name.split(" (")[0]
        column = columns.get(name) or columns.get(f"{stem}_t0")
        described = (
            ""
            if column is None
            else _sentence(column.description.removesuffix("; the newest step"))
            + (f" ({column.unit})" if column.unit else "")
        )
        rows.append([name, described, _shown(strength)])
    return rows


def _strength_words(part: Contributions) -> str:
    return part.unit if part.unit.startswith("growth of") else f"mean distance it moves a prediction ({part.unit})"


def _checks(decision: Decision) -> list[list[Any]]:
    rows = []
    segments = [check for check in decision.checks if check.name == "segment"]
    for check in decision.checks:
        if check.name in {"improvement", "segment"}:
            continue
        what = (
            _CHECKS.get(check.name, check.name)
            + (f": {check.output}" if check.output else "")
            + (f" by {check.segment}" if check.segment else "")
        )
        rows.append([what, _shown(check.challenger), _shown(check.needed), _result(check), check.note or ""])
    if segments:
        worse = [check for check in segments if check.passed is False]
        named = ", ".join(
            f"{check.segment} ({check.output}): at least {check.bound:.2f} times"
            for check in worse[:5]
            if check.bound is not None
        )
        passed = Check("segment", passed=not worse, challenger=float(len(worse)), needed=0.0)
        rows.append(
            [f"segments proven worse than the rival, of {len(segments)}", str(len(worse)), "0", _result(passed), named]
        )
    return rows


def _result(check: Check) -> dict[str, str]:
    if check.passed is None:
        return {
            "text": "reported" if check.name in {"coverage", "champion"} else "not evaluated",
            "tone": "soft" if check.name == "coverage" else "unsure",
        }
    return {"text": "passed", "tone": "good"} if check.passed else {"text": "failed", "tone": "bad"}


def _windows(v: Subject) -> list[list[Any]]:
    rows, missing = v.training_set.get("rows") or {}, v.training_set.get("unlabelled") or {}
    windows = {} if v.decision is None else v.decision.evidence["windows"].get("champion", {})
    found = [
        [split, bounds["start"], _day_before(bounds["end"]), _count(rows.get(split)), _count(missing.get(split))]
        for split, bounds in v.training_set["windows"].items()
    ]
    return found + [
        [f"champion's {split}", bounds["start"], _day_before(bounds["end"]), "", ""]
        for split, bounds in windows.items()
    ]


def _training(v: Subject) -> list[tuple[str, str]]:
    manifest = v.manifest
    best = ", ".join(f"{name} {count}" for name, count in manifest["best_iteration"].items())
    params = ", ".join(f"{name} {_plain(value)}" for name, value in sorted(manifest["params"].items()))
    facts = [
        ("family", manifest["family"]),
        ("parameters", params),
        ("rounds or epochs kept", best),
        ("seed", str(manifest["seed"])),
        ("trained", f"in {manifest['seconds']:.1f} s on the {manifest['device']}"),
        ("held out whole", v.entry.split.groups or "nothing: nights alone divide the splits"),
    ]
    return [(name, value) for name, value in facts if value]


def _search(search: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not search:
        return []
    words = {"metric": "judged by", "best_value": "best value", "best_trial": "best trial"}
    return [
        (words.get(name, name.replace("_", " ")), _plain(value)) for name, value in search.items() if value is not None
    ]


def _cross_validation(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if not found:
        return {"folds": []}
    rows = [[metric, _shown(mean), _shown(found["std"].get(metric))] for metric, mean in found["mean"].items()]
    return {
        "folds": [row for row in rows if "/baseline_" not in row[0]],
        "fold_heads": _heads("metric", "#mean over folds", "#standard deviation"),
        "fold_words": f"{len(found['folds'])} folds, each judged on nights after those it learned from.",
    }


def _lineage(v: Subject) -> list[tuple[str, str]]:
    inputs = v.training_set.get("inputs", [])
    tables = sorted({item["table"] for item in inputs})
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(v.manifest["libraries"].items()))
    facts = [
        ("evidence digest", v.decision.evidence_digest if v.decision else "none: not judged"),
        ("artifact digest", v.registered.artifact_digest),
        ("training set", v.manifest["training_set_digest"]),
        ("test set", str(v.training_set.get("test_digest", ""))),
        ("inputs", f"{len(inputs)} partitions of {', '.join(tables)}" if inputs else ""),
        ("job identity", str(v.manifest.get("identity", ""))),
        ("code version", str(v.job["code_version"])),
        ("image code", str(v.job.get("image_code", ""))),
        ("catalog digest", str(v.job["catalog_digest"])),
        ("trained by run", str(v.job["run_id"])),
        ("MLflow run id", v.registered.mlflow_run_id),
        ("libraries", libraries),
    ]
    return [(name, value) for name, value in facts if value]


# ---- words -------------------------------------------------------------------------------------------------------


def _shown(value: float | None, unit: str | None = None) -> str:
    """Four digits; a minus sign that does not break off."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return text.replace("-", "−") + (f" {unit}" if unit else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}".replace("-", "−")


def _with_bounds(value: float, lower: float | None, upper: float | None) -> str:
    known = lower is not None and upper is not None
    return f"{_three(value)} [{_three(lower)}, {_three(upper)}]" if known else _three(value)


def _three(value: float | None) -> str:
    """Three digits, a last zero included: 1.00 is not about 1."""
    return "" if value is None else f"{value:#.3g}".rstrip(".").replace("-", "−")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _day_before(end: str) -> str:
    return (date.fromisoformat(end) - timedelta(days=1)).isoformat()


def _plain(value: Any) -> str:
    """A JSON value as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")
