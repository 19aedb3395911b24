"""One page a version that says to who must approve it: what it is for, how good, for whom worse, what not to use it
for, where it comes from.

The page is whole in itself: no script, nothing loaded, every value escaped. Equal input gives equal bytes, so the page
that was read when a promotion was approved can be written again and compared.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from config.catalog.model import ModelEntry
from config.durations import format_duration
from config.settings import Settings
from lake.lake import Lake
from lake.storage import reports
from monitoring.pages.document import document
from monitoring.pages.gate_evidence import (
    improvements_table,
    incumbent_words,
    other_checks_table,
    segments_table,
)
from monitoring.pages.page import Column, Table
from monitoring.wording import exact, percent, with_bounds
from serving.predictors import read_manifest
from serving.predictors.contract import read_json
from serving.signed import signed_files
from training.job_file import JOB_FILE
from training.registry.decision import Decision, read_decisions
from training.registry.explanation import Contributions, Explanation, explain
from training.registry.gate import registered_from_json
from training.registry.job import TRAINING_SET_FILE, checked_job
from training.registry.numbers import CARDS_FOLDER, VersionNumberTaken
from training.registry.promotion import StaleDecision
from training.registry.register import Registered
from training.registry.segments import OutputSegments, Segment, SegmentReport
from training.registry.tracking import MlflowUnavailable, answered, tracking_client

MLFLOW_CARD_FOLDER = "model_card"
MLFLOW_EXPLANATION_FOLDER = "explanation"
TEMPLATE = "model_card.html.jinja"
_SHOWN_FEATURES = 8
_SHOWN_SEGMENTS = 12
_SMALL_SEGMENTS_NAMED = 20
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
# What may stand beside each other as shared columns.
_VERSION = Column("value", "this version", "number")
_BASELINE = Column("baseline", "baseline", "number")


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
        `path` of the card's file, and the version.
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
    registered = registered_from_json(lake, model, registered_json)
    path = write_model_card(
        lake,
        model,
        checked_job(lake, model, job_dir),
        registered,
        decision,
        candidates=registered_json.get("candidates") or (),
    )
    log.info("%s version %s: model card %s, asked for by %s", model, registered.version, path, run_id)
    return {"model": model, "version": registered.version, "path": str(path)}


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
        VersionNumberTaken: the card of another version has that number; it stays.
        MlflowUnavailable: MLflow does not answer; where it died in the middle, the card lies there all the same.
    """
    client = tracking_client(lake.settings)  # before the work: where MLflow is down this fails in seconds
    entry = lake.model(model)
    key = f"{model}/{CARDS_FOLDER}/{registered.version}.html"
    _check_card(lake.settings, key, registered)
    with (
        lake.scratch("explain") as scratch,
        signed_files(lake.settings, model, registered.artifact_digest, documents_only=True) as folder,
    ):
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
        card = render(version, scratch).encode()
        path = Path(reports(lake.settings).put(key, card))
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


def _check_card(settings: Settings, key: str, registered: Registered) -> None:
    """A card is what somebody approved by: only that of the same version is written again."""
    store = reports(settings)
    if store.exists(key) and registered.artifact_digest.encode() not in store.read(key):
        raise VersionNumberTaken(
            f"{store.uri(key)} is the model card of another version {registered.version} of {registered.model} than "
            f"{registered.artifact_digest[:12]}…. It was not overwritten.\n"
            "  Clear `register`: it gives each version a number of its own."
        )


def run_link(settings: Settings, client: Any, mlflow_run_id: str) -> str:
    """A run's page in MLflow."""
    experiment = client.get_run(mlflow_run_id).info.experiment_id
    return f"{settings.tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{mlflow_run_id}"


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
    title = f"{version.entry.title}: version {version.registered.version}"
    return document(TEMPLATE, {"card": _card(version, folder)}, title=title).whole()


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
        "improvements": _improvements(entry, decision),
        "purpose": _purpose(v),
        "outputs": _outputs(v),
        "limits": limits(v),
        "metrics_words": _metrics_words(v),
        "quality": [
            {
                "name": name,
                "unit": v.entry.outputs[name].units(name, v.unit or "").get(name),
                "metrics": _metrics(v, name),
                "plots": drawn(name, "calibration", "confusion", "detection", "residuals", "gain", "steps"),
                "steps": _steps(v, name),
            }
            for name in entry.outputs
        ],
        "segments_words": _segments_words(v.explanation.segments),
        "segments": [
            _segments(v, part) | {"plots": drawn(part.output, "segments")} for part in v.explanation.segments.outputs
        ],
        "features": [
            {"name": part.output, "table": _features(v, part), "plots": drawn(part.output, "contributions")}
            for part in v.explanation.contributions
        ],
        "segment_checks": segments_table("segment_checks", decision.checks) if decision else None,
        "checks": other_checks_table("checks", decision.checks) if decision else None,
        "windows": _windows(v),
        "training": _training(v),
        "candidates": _candidates(v) if len(v.candidates) > 1 else None,
        "search": _search(v.manifest.get("search")),
        "folds": _folds(v.manifest.get("cross_validation")),
        "training_plots": drawn("", "importances", "curves"),
        "notes": list(v.explanation.notes),
        "lineage": _lineage(v),
        "link": v.link,
    }


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


def _improvements(entry: ModelEntry, decision: Decision | None) -> Table | None:
    if decision is None:
        return None
    incumbent = incumbent_words(entry, decision.incumbent)
    table = improvements_table("improvements", decision.checks, incumbent, decision.rows, decision.nights)
    confidence = decision.evidence["rules"]["confidence"]
    return replace(table, caption=f"{table.caption} Lower bound with {percent(confidence)} confidence.")


def _purpose(v: Subject) -> list[str]:
    entry, dataset = v.entry, v.lake.dataset(v.entry.dataset)
    label = dataset.tables[entry.label.table].columns[entry.label.column]
    return [
        f"{entry.title}. Every night it predicts {entry.label.column} ({_sentence(label.description)}) for "
        f"{entry.spine.in_words(dataset.tables)}.",
        *([f"Intended use: {entry.intended_use}"] if entry.intended_use else []),
        f"Data: {dataset.title} (licence {dataset.licence}). Predictions are due at {entry.deadline:%H:%M}, "
        f"{dataset.time_zone}.",
    ]


def _outputs(v: Subject) -> Table:
    columns = (Column("output", "output"), Column("says", "says"), Column("judged_by", "judged by"))
    rows = [
        {"output": name, "says": _says(v, name), "judged_by": f"{output.metric.words} ({output.gate})"}
        for name, output in v.entry.outputs.items()
    ]
    return Table("outputs", "What each output says.", columns, rows, stacked=True)


def _says(v: Subject, name: str) -> str:
    return v.entry.outputs[name].says(v.entry.label.column, v.unit or "")


# ---- limits ------------------------------------------------------------------------------------------------------


def limits(v: Subject) -> list[str]:
    """What the version must not be used for and what is not known about it, from catalog, training set, gate and
    segments.
    """
    entry, dataset = v.entry, v.lake.dataset(v.entry.dataset)
    horizon = format_duration(entry.spine.horizon)
    limits = [
        f"Not for anything further ahead than {horizon} after its night: it was neither trained nor judged on that.",
        f"Not for data other than {dataset.title}: an unknown category counts as missing.",
        "Not as a statement of causes: changing a feature in the world need not change the outcome as the model says.",
    ]
    first, last = v.training_set["windows"]["train"]["start"], v.training_set["windows"]["test"]["end"]
    if entry.split.train < _YEAR:
        limits.append(
            f"It learned from {format_duration(entry.split.train)} (from {first}): seasons outside them are unknown to "
            "it."
        )
    maturity = format_duration(entry.label.matures_after)
    limits.append(
        f"How good it is from {last} on is not known: labels count {maturity} after the target, and were not mature "
        "there."
    )
    limits += _unlabelled(v)
    if entry.split.groups:
        limits.append(
            f"No {entry.split.groups} of the test rows was seen in training: how it does on a known one is not "
            "measured."
        )
    decision = v.decision
    if decision is None:
        limits.append("The gate has not judged it: do not score with it.")
    elif decision.nights < entry.gate.min_days:
        limits.append(
            f"Only {decision.nights} nights lie after both models' training, {entry.gate.min_days} are needed: how "
            "good it is is not proven."
        )
    else:
        limits.append(
            f"It was judged on {decision.nights} nights. Rare events that did not happen in them are not covered by "
            "any figure here."
        )
    limits += _weak_outputs(v) + _weak_segments(v)
    return limits


def _unlabelled(v: Subject) -> list[str]:
    rows, missing = v.training_set.get("rows") or {}, v.training_set.get("unlabelled") or {}
    total = sum(rows.values()) + sum(missing.values())
    if not total or not sum(missing.values()):
        return []
    share = sum(missing.values()) / total
    return [
        f"{percent(share)} of its rows ({sum(missing.values()):,} of {total:,}) never got a label and were left out: "
        "it says nothing about such cases."
    ]


def _weak_outputs(v: Subject) -> list[str]:
    weak = []
    for name, output in v.entry.outputs.items():
        lift = v.explanation.metrics.get(f"{name}/lift")
        if lift is not None and lift <= 0.0:
            weak.append(
                f"{name}: no better than the baseline on these nights ({output.gate} {percent(-lift)} higher): use the "
                "baseline instead."
            )
        weak += output.weaknesses(name, v.explanation.metrics)
    return weak


def _weak_segments(v: Subject) -> list[str]:
    report, weak = v.explanation.segments, []
    if not report.columns:
        weak.append("The catalog names no segments: whether it is worse for some of them was not looked at.")
    for part in report.outputs:
        worse = [f"{s.column} = {s.value} ({s.ratio.value:.2f} times)" for s in part.segments if s.worse and s.ratio]
        if worse:
            more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
            weak.append(
                f"{part.output}: its error is larger than on the whole, beyond chance, where "
                f"{', '.join(worse[:5])}{more}."
            )
    small = {(s.column, s.value) for part in report.outputs for s in part.not_evaluated}
    if small:
        count = "1 segment has" if len(small) == 1 else f"{len(small)} segments have"
        weak.append(f"{count} fewer than {report.min_rows} rows: how it does for them is not known.")
    return weak


# ---- figures -----------------------------------------------------------------------------------------------------


def _metrics_words(v: Subject) -> str:
    nights = v.explanation.nights
    return (
        f"On {v.explanation.rows:,} test rows of {len(nights)} nights, {nights[0]} to {nights[-1]}, none of which it "
        f"was fitted on. {_baselines(v.entry)} Lift is the share of the baseline's error that is "
        "gone: 0 is as good as no model."
    )


def _baselines(entry: ModelEntry) -> str:
    """What the baseline of each output is."""
    outputs: dict[str, list[str]] = {}
    for name, output in entry.outputs.items():
        words = output.baseline_words(entry.gate.baseline).removeprefix("the baseline (").removesuffix(")")
        outputs.setdefault(entry.gate.baseline_words if output.task == "number" else words, []).append(name)
    if len(outputs) == 1:
        return f"Baseline: {next(iter(outputs))}."
    return " ".join(f"Baseline of {', '.join(names)}: {words}." for words, names in outputs.items())


def _steps(v: Subject, name: str) -> Table | None:
    """The numbers behind the drawing of errors by step."""
    steps = v.explanation.steps.get(name)
    if steps is None:
        return None
    held = (Column("inside", "inside the interval", "percent"),) if steps.inside else ()
    columns = (Column("ahead", "hours from the night's end to the step"), Column("rows", "rows", "number"))
    rows = [
        {
            "ahead": f"{first:g}" if first == last else f"{first:g} to {last:g}",
            "rows": count,
            "error": error,
            "baseline": baseline,
        }
        for first, last, count, error, baseline in zip(
            steps.first_hours, steps.last_hours, steps.rows, steps.error, steps.baseline, strict=True
        )
    ]
    for row, inside in zip(rows, steps.inside, strict=False):
        row["inside"] = inside
    errors = (Column("error", "MAE of this version", "number"), Column("baseline", "MAE of the baseline", "number"))
    shown = (*columns, *errors, *held)
    return Table(f"steps_{name}", "Errors by how far ahead.", shown, rows, folded=True, stacked=True)


def _metrics(v: Subject, name: str) -> Table:
    output, metrics = v.entry.outputs[name], v.explanation.metrics
    lift = metrics.get(f"{name}/lift")
    rows = []
    for metric, words in output.figure_words().items():
        value = metrics.get(f"{name}/{metric}")
        if value is not None:
            rows.append({"metric": words, "value": value, "baseline": metrics.get(f"{name}/baseline_{metric}")})
    said = "Lift is not known." if lift is None else f"Lift, by {output.gate}: {percent(lift, signed=True)}."
    return Table(f"metrics_{name}", said, (Column("metric", "metric"), _VERSION, _BASELINE), rows)


def _segments_words(report: SegmentReport) -> str:
    if not report.columns:
        return "The catalog names no segment columns (gate.segments, split.groups), so nothing was compared."
    return (
        f"By {', '.join(report.columns)}, each segment's error against the error of all {report.rows:,} rows; in "
        "brackets 95 % intervals by "
        f"resampling the {report.days} days. Of forty segments that are all alike, one would be called worse by "
        "chance. "
        f"Segments under {report.min_rows} rows are not evaluated."
    )


def _segments(v: Subject, part: OutputSegments) -> dict[str, Any]:
    binary = any(segment.rate is not None for segment in part.segments)
    biased = any(segment.bias is not None for segment in part.segments)
    direction: tuple[Column, ...] = (Column("bias", "bias", "number"),) if biased else ()
    if binary:
        direction = Column("rate", "came true", "percent"), Column("predicted_rate", "predicted", "percent")
    interval = any(segment.coverage is not None for segment in part.segments)
    columns = (
        Column("segment", "segment"),
        Column("rows", "rows", "number"),
        Column("error", part.metric, "number"),
        Column("ratio", "against the whole", "number"),
        *direction,
        *([Column("coverage", "inside the interval", "percent")] if interval else []),
        Column("result", "result", "status"),
    )
    rest = len(part.segments) - _SHOWN_SEGMENTS
    whole = f"Whole: {part.metric} {with_bounds(part.whole.value, part.whole.lower, part.whole.upper)}. Worst first"
    caption = f"{whole}; {rest} more, with lower error, in segments.json." if rest > 0 else f"{whole}."
    rows = [_segment(segment) for segment in part.segments[:_SHOWN_SEGMENTS]]
    small = [f"{s.column} = {s.value} ({s.n})" for s in part.not_evaluated]
    more = f" and {len(small) - _SMALL_SEGMENTS_NAMED} more" if len(small) > _SMALL_SEGMENTS_NAMED else ""
    return {
        "name": part.output,
        "table": Table(f"segments_{part.output}", caption, columns, rows, stacked=True) if rows else None,
        "small": f"{', '.join(small[:_SMALL_SEGMENTS_NAMED])}{more}." if small else "",
    }


def _segment(s: Segment) -> dict[str, Any]:
    known = "within chance or better" if s.error.lower is not None else "too few days"
    return {
        "segment": f"{s.column} = {s.value}",
        "rows": s.n,
        "error": with_bounds(s.error.value, s.error.lower, s.error.upper),
        "ratio": with_bounds(s.ratio.value, s.ratio.lower, s.ratio.upper) if s.ratio else None,
        "bias": s.bias,
        "rate": s.rate,
        "predicted_rate": s.predicted_rate,
        "coverage": s.coverage,
        "result": "worse" if s.worse else known,
    }


def _features(v: Subject, part: Contributions) -> Table:
    declared = v.lake.catalog.feature_columns(v.entry)
    columns = (
        Column("feature", "feature"),
        Column("meaning", "what it is"),
        Column("strength", _strength_words(part), "number"),
    )
    rows = []
    for name, strength in list(part.strengths.items())[:_SHOWN_FEATURES]:
        column = declared.get(name) or declared.get(f"{name.split(' (')[0]}_t0")
        meaning = ""
        if column is not None:
            described = _sentence(column.description.removesuffix("; the newest step"))
            meaning = f"{described} ({column.unit})" if column.unit else described
        rows.append({"feature": name, "meaning": meaning, "strength": strength})
    return Table(f"features_{part.output}", f"{part.method}.", columns, rows, stacked=True)


def _strength_words(part: Contributions) -> str:
    return part.unit if part.unit.startswith("growth of") else f"mean distance it moves a prediction ({part.unit})"


def _windows(v: Subject) -> Table:
    rows, missing = v.training_set.get("rows") or {}, v.training_set.get("unlabelled") or {}
    champion = {} if v.decision is None else v.decision.evidence["windows"].get("champion", {})
    windows = {**v.training_set["windows"], **{f"champion's {split}": bounds for split, bounds in champion.items()}}
    columns = (
        Column("split", "split"),
        Column("first", "first night", "date"),
        Column("last", "last night", "date"),
        Column("rows", "rows", "number"),
        Column("missing", "left out, without a label", "number"),
    )
    found = [
        {
            "split": split,
            "first": bounds["start"],
            "last": date.fromisoformat(bounds["end"]) - timedelta(days=1),
            "rows": rows.get(split),
            "missing": missing.get(split),
        }
        for split, bounds in windows.items()
    ]
    return Table("windows", "Nights of each split.", columns, found, stacked=True)


def _candidates(v: Subject) -> Table:
    columns = (
        Column("family", "family"),
        Column("job", "job"),
        Column("error_of_baseline", "error over the baseline's, on validation", "number"),
    )
    caption = "Candidates of this training; the best on validation rows went to the gate."
    return Table("candidates", caption, columns, v.candidates, stacked=True)


def _training(v: Subject) -> list[tuple[str, str]]:
    manifest = v.manifest
    best = ", ".join(f"{name} {count}" for name, count in manifest["best_iteration"].items())
    params = ", ".join(f"{name} {exact(value)}" for name, value in sorted(manifest["params"].items()))
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
        (words.get(name, name.replace("_", " ")), exact(value)) for name, value in search.items() if value is not None
    ]


def _folds(folds: Mapping[str, Any] | None) -> Table | None:
    if not folds:
        return None
    columns = (
        Column("metric", "metric"),
        Column("mean", "mean over folds", "number"),
        Column("deviation", "standard deviation", "number"),
    )
    untold, count = folds.get("not_evaluated", {}), len(folds["folds"])
    rows = [
        {
            "metric": f"{metric}, not evaluated in {untold[metric]} of {count} folds" if metric in untold else metric,
            "mean": mean,
            "deviation": folds["std"].get(metric),
        }
        for metric, mean in folds["mean"].items()
        if "/baseline_" not in metric
    ]
    caption = f"{count} folds, each judged on nights after those it learned from."
    return Table("folds", caption, columns, rows)


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


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")
