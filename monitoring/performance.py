"""Performance: predictions against what came true, once a night's labels are mature, beside what a trivial baseline
would have said.
"""

# ruff: noqa: S608 (names come from the typed catalog, quoted)
from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from config.calendar import ONE_DAY, Interval
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from config.catalog.output import SCALE, Measurement, OutputKind, RowMetric
from features.labels import baseline_query, is_mature, label_query, register_rows
from features.retrieval import retrieve, spine, write_parquet
from lake.assignment import CHAMPION
from lake.events import logged
from lake.lake import Lake, StageResult
from lake.lineage import Input, Publication
from lake.metrics import Metric, metrics_table, publish_metrics
from lake.tables import valid_table
from monitoring.drift_counts import pinned_versions
from monitoring.references import VersionReference, references_of
from serving.metrics.intervals import CONFIDENT, Bounded, rounded
from serving.predictions import predictions_table
from training.registry.decision import promised_ratios, read_decisions
from training.registry.segments import NULL

GROUP = "performance"
ERROR_RATIO = "error_ratio"
# What one row says of a night is chance: it has no spread to compare with.
LEAST_JUDGED_ROWS = 2
LABEL_SHARE = "label_share"
LEAST_LABEL_SHARE = 0.5
LARGEST_SEGMENTS = 50  # of a column; the rest are one segment, so that sums over segments are sums over all rows
OTHER = "(other)"
_LONGEST_SEGMENT = 120  # characters of a value: an index entry of Postgres holds some 2,700 bytes

Floats = npt.NDArray[np.float64]


def maturing(lake: Lake, model: str, data_date: date) -> list[date]:
    """The data dates whose labels are mature on `data_date` and were not the night before; none, one, or two where
    clocks change.
    """
    newest = data_date
    while not is_mature(lake, model, newest, as_of=data_date):
        newest -= ONE_DAY
    nights = []
    while not is_mature(lake, model, newest, as_of=data_date - ONE_DAY):
        nights.append(newest)
        newest -= ONE_DAY
    return nights[::-1]


def gate_ratios(lake: Lake, model: str) -> dict[int, dict[str, float]]:
    """By version and output: error over the baseline's on the gate's test nights, from the newest decision on each
    version.
    """
    promises = {decision.version: promised_ratios(decision.evidence) for decision in read_decisions(lake, model)}
    return {version: ratios for version, ratios in promises.items() if ratios}


@logged("performance")
def performance(lake: Lake, model: str, interval: Interval, *, run_id: str) -> StageResult:
    """Publish `<model>/metrics/performance`: night T judges the data dates whose labels became mature in T, as they
    were scored.

    A row's `about_date` is the night judged, its `data_date` is T. Checks, per output: those that its kind measures
    (serving/kinds); the gate's metric of the baseline (`<metric>_baseline`) and `error_ratio`, the former over the
    latter, against the same ratio at the gate. `label_share` is the share of scored rows whose label came. `lower` and
    `upper` are a 95 % interval that takes rows as independent: nights differ by more. What cannot be judged is
    `not_evaluated` with its reason.

    The gate's metric and that of the baseline are measured per segment, too, of each of the gate's segment columns:
    `segment` is `<column>=<value>` (see `segment_names`), `n` its rows with a label. The 50 with the most of them stand
    for themselves, the others are `<column>=(other)`. Their sums are those of the night: `value * n` (squared for a
    rooted metric) over that of the night is a segment's share of the loss. A segment never alarms by itself.

    Where later nights were measured first, without a night of the interval that was not scored yet, they are measured
    again.

    Raises:
        PartitionNotReady: the label's table is not published up to a night of the interval.
    """
    measured = _measure(lake, model, interval, run_id)
    again = overtaken(lake, model, interval)
    committed = sum(_measure(lake, model, Interval.of(night), run_id).committed for night in again)
    details = {**measured.details, "measured_again": [night.isoformat() for night in again]}
    return replace(measured, committed=measured.committed + committed, details=details)


def overtaken(lake: Lake, model: str, interval: Interval) -> list[date]:
    """The nights after the interval that were measured without predictions of it that are there now."""
    measures = metrics_table(lake.settings, model, GROUP)
    newest = lake.publications.newest(measures)
    if newest is None or newest.data_date < interval.end:
        return []
    table = predictions_table(lake.settings, lake.model(model))
    scored = lake.publications.current(table, interval)
    known = lake.publications.current(measures, Interval.closed(interval.end, newest.data_date))
    nights = []
    for night in sorted(known):
        judged = maturing(lake, model, night)
        if judged and judged[0] > interval.last:
            break
        used = {item.data_date for item in known[night].inputs if item.table == table.name}
        if any(day in scored and day not in used for day in judged):
            nights.append(night)
    return nights


def _measure(lake: Lake, model: str, interval: Interval, run_id: str) -> StageResult:
    entry = lake.model(model)
    dataset = lake.dataset(entry.dataset)
    before = lake.publications.digests(metrics_table(lake.settings, model, GROUP), interval)
    judged = {night: maturing(lake, model, night) for night in interval}
    oldest = min((day for days in judged.values() for day in days), default=interval.start)
    label_table = valid_table(lake.settings, dataset, entry.label.table)
    lake.publications.require(
        label_table,
        Interval(min(max(oldest, dataset.first_data_date), interval.start), interval.end),
        needed_by=f"Performance of {model}",
        remedy=f"Run `{dataset.name}_ingest` for it, then clear this task.",
    )
    scored = lake.publications.current(predictions_table(lake.settings, entry, dataset), Interval(oldest, interval.end))
    references = references_of(lake, model, scored)
    ratios = gate_ratios(lake, model)
    rows: list[Metric] = []
    inputs: dict[date, list[Input]] = {}
    for night, days in judged.items():
        for day in days:
            metrics, read = _night(lake, entry, dataset, day, night, scored.get(day), references.get(day, {}), ratios)
            rows += metrics
            inputs.setdefault(night, []).extend(read)
    unique = {night: list(dict.fromkeys(items)) for night, items in inputs.items()}
    published = publish_metrics(lake, model, GROUP, rows, interval, run_id=run_id, inputs=unique, replaces=before)
    details = {
        "judged": {night.isoformat(): [day.isoformat() for day in days] for night, days in judged.items()},
        "error_ratios": {
            f"{m.about_date} {m.column}": m.value
            for m in rows
            if m.check == ERROR_RATIO and m.value is not None and m.role == CHAMPION
        },
        "not_evaluated": sorted({f"{m.about_date}: {m.reason}" for m in rows if m.status == "not_evaluated"})[:20],
    }
    return StageResult("performance", model, str(interval), published.rows, len(published.committed), details)


def _night(
    lake: Lake,
    entry: ModelEntry,
    dataset: Dataset,
    about: date,
    night: date,
    publication: Publication | None,
    versions: Mapping[str, VersionReference],
    ratios: Mapping[int, Mapping[str, float]],
) -> tuple[list[Metric], list[Input]]:
    """The metrics of one mature night, of every role that scored it, and what was read for them."""
    if publication is None:
        nobody = _Judge(entry, about, night, None, None, {})
        return nobody.unjudged("nothing was scored for this night: no predictions are published"), []
    metrics, inputs = [], [publication.as_input()]
    for role, version in versions.items():
        judge = _Judge(entry, about, night, role, version, ratios.get(version.version, {}))
        if not publication.rows:
            metrics += judge.unjudged("nothing was scored in this night: it had no row")
            continue
        label, baseline, predicted, read = outcomes(lake, entry, dataset, about, night, role=role)
        segments, segments_read = segment_values(lake, entry, dataset, publication, role=role)
        metrics += judge.metrics(label, baseline, predicted, segments)
        inputs += [*read, *segments_read]
    return metrics, list(dict.fromkeys(inputs))


def outcomes(
    lake: Lake, entry: ModelEntry, dataset: Dataset, about: date, night: date, *, role: str = CHAMPION
) -> tuple[Floats, Floats, dict[str, Floats], list[Input]]:
    """Labels known by `night` (NaN: never came), the row-wise baseline (NaN: none) and each column that outputs are
    judged by (of a scaled gate with `SCALE` among them), of one night's rows of a role by key.
    """
    table = predictions_table(lake.settings, entry, dataset)
    keys = ", ".join(f'"{name}"' for name in entry.entity)
    outputs = ", ".join(f'"{name}"' for name in entry.judged_columns)
    with lake.duckdb() as connection:
        table.register(connection, "published", [about])
        connection.execute(
            f"CREATE TEMP TABLE predicted AS SELECT {keys}, data_date, {outputs} FROM published WHERE role = '{role}'"
        )
        labels = label_query(lake, entry.name, connection, "predicted", as_of=night)
        # A table, not a view: the next query registers other label rows under the same name.
        connection.execute(f"CREATE TEMP TABLE labelled AS {labels.sql}")
        base = baseline_query(lake, entry.name, connection, "labelled", last=about)
        scaled = f", {SCALE}" if entry.scaled else ""
        arrays = connection.sql(
            f"SELECT label, baseline, {outputs}{scaled} FROM ({base.sql}) ORDER BY {keys}"
        ).fetchnumpy()
    numbers = {name: np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan) for name, values in arrays.items()}
    return numbers.pop("label"), numbers.pop("baseline"), numbers, [*labels.inputs, *base.inputs]


def segment_values(
    lake: Lake, entry: ModelEntry, dataset: Dataset, publication: Publication, *, role: str = CHAMPION
) -> tuple[dict[str, pa.ChunkedArray], list[Input]]:
    """The gate's segment columns of one scored night's rows, as text, by key as `outcomes` has them; and what was read
    for it.

    A column that the predictions do not hold is read as it was when the night was scored.
    """
    columns = entry.gate.segments.columns if entry.gate.segments else ()
    if not columns:
        return {}, []
    about, elsewhere = publication.data_date, [name for name in columns if name not in entry.entity]
    keys = ", ".join(f'"{name}"' for name in entry.entity)
    listed = ", ".join(f'CAST("{name}" AS VARCHAR) AS s{number}' for number, name in enumerate(columns))
    inputs: list[Input] = []
    with lake.duckdb() as connection, lake.scratch("segments") as folder:
        predictions_table(lake.settings, entry, dataset).register(connection, "published", [about])
        connection.execute(f"CREATE TEMP VIEW predicted AS SELECT {keys} FROM published WHERE role = '{role}'")
        if elsewhere:
            pins, version = pinned_versions(lake, entry, publication.inputs)
            path = folder / "rows.parquet"
            if any(name in lake.catalog.feature_columns(entry) for name in elsewhere):
                retrieved = retrieve(
                    lake, entry.name, Interval.of(about), pins=pins, spine_version=version, folder=folder
                )
                write_parquet(path, retrieved.schema, retrieved.reader())
                inputs = retrieved.inputs[about]
            else:
                rows = spine(lake, entry.name, Interval.of(about), folder=folder, version=version)
                path, inputs = rows.path, rows.inputs[about]
            register_rows(connection, "scored_rows", path)
            connection.execute(
                f"CREATE TEMP VIEW segmented AS SELECT * FROM predicted LEFT JOIN scored_rows USING ({keys})"
            )
        query = f"SELECT {listed} FROM {'segmented' if elsewhere else 'predicted'} ORDER BY {keys}"
        rows_by_key = connection.sql(query).to_arrow_table()
    return {name: rows_by_key[f"s{number}"] for number, name in enumerate(columns)}, inputs


def segment_names(column: str, values: Sequence[str | None]) -> list[str]:
    """`<column>=<value>` of each distinct value; a null is `(null)`.

    A value that is longer than 120 characters, holds control characters (a null byte is no text to Postgres) or reads
    like `(null)` or `(other)` is cut and cleaned, and carries a digest of the whole, so that no two values share a
    name.
    """
    return [f"{column}={NULL if value is None else _shown_value(value)}" for value in values]


def _shown_value(value: str) -> str:
    cleaned = "".join(
        "\ufffd" if unicodedata.category(letter) in {"Cc", "Cs"} else letter for letter in value[:_LONGEST_SEGMENT]
    )
    if cleaned == value and value not in {NULL, OTHER}:
        return value
    return f"{cleaned} #{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _largest_segments(
    column: str, values: pa.ChunkedArray, came: npt.NDArray[np.bool_]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the segments, and each row's position in them: most rows with a label first, ties by name, `(other)`
    last.
    """
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    codes = np.asarray(encoded.indices, dtype=np.int64)
    found = segment_names(column, encoded.dictionary.to_pylist())
    labelled = np.bincount(codes[came], minlength=len(found))
    ranked = sorted(range(len(found)), key=lambda code: (-int(labelled[code]), found[code]))
    position = np.full(len(found), LARGEST_SEGMENTS, dtype=np.int64)
    position[ranked[:LARGEST_SEGMENTS]] = np.arange(min(len(ranked), LARGEST_SEGMENTS))
    names = [found[code] for code in ranked[:LARGEST_SEGMENTS]]
    return [*names, *([f"{column}={OTHER}"] if len(ranked) > LARGEST_SEGMENTS else [])], position[codes]


def _means_with_intervals(
    metric: RowMetric, losses: Floats, codes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> list[Bounded]:
    """The metric in each segment with its 95 % interval (NaN for a single row), rows taken as independent.

    `bincount` adds in the order of the rows, which is that of their keys.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.bincount(codes, weights=losses, minlength=len(counts)) / counts
        squares = np.bincount(codes, weights=np.square(losses - means[codes]), minlength=len(counts))
        half = CONFIDENT * np.sqrt(squares / (counts - 1)) / np.sqrt(counts)
        half[counts < 2] = np.nan  # one row has no spread
        bounds = [metric.of_mean(bound) for bound in (means, means - half, means + half)]
    return [(rounded(mean), rounded(lower), rounded(upper)) for mean, lower, upper in zip(*bounds, strict=True)]


@dataclass(frozen=True)
class _Judge:
    """The metrics of one mature night, of one version; of none where nothing was scored."""

    entry: ModelEntry
    about: date
    night: date
    role: str | None
    version: VersionReference | None
    gate: Mapping[str, float]

    def _metric(self, check: str, **values: Any) -> Metric:
        return Metric(
            subject=self.entry.name,
            about_date=self.about,
            data_date=self.night,
            check=check,
            reference=self.version.described() if self.version else None,
            role=self.role,
            model_version=self.version.version if self.version else None,
            **values,
        )

    def unjudged(self, why: str) -> list[Metric]:
        """One row an output, so that the night is visible."""
        rows = [self._metric(LABEL_SHARE, status="not_evaluated", reason=why)]
        for name, output in self.entry.outputs.items():
            checks = (output.gate, ERROR_RATIO, *output.headlines)
            rows += [self._metric(check, column=name, status="not_evaluated", reason=why) for check in checks]
        return rows

    def metrics(
        self, label: Floats, baseline: Floats, predicted: Mapping[str, Floats], segments: Mapping[str, pa.ChunkedArray]
    ) -> list[Metric]:
        """All rows about the night; arrays have one element a scored row."""
        came = ~np.isnan(label)
        total, count = len(label), int(came.sum())
        share = rounded(count / total)
        missing = f"the label of {total - count:,} of {total:,} rows never came" if count < total else None
        status = "ok" if share >= LEAST_LABEL_SHARE else "warning"
        rows = [
            self._metric(LABEL_SHARE, value=share, threshold=LEAST_LABEL_SHARE, n=total, status=status, reason=missing)
        ]
        if not count:
            why = f"no label came for any of the {total:,} rows"
            return rows + [m for m in self.unjudged(why) if m.check != LABEL_SHARE]
        actual, trivial = label[came], baseline[came]
        said = {column: values[came] for column, values in predicted.items()}
        for name, output in self.entry.outputs.items():
            rows += [self._measured(name, one) for one in output.measurements(name, actual, said)]
            rows += self._beside_baseline(name, output, actual, said, trivial)
        for column, values in segments.items():
            rows += self._by_segment(column, values, came, actual, said, trivial)
        return rows

    def _measured(self, name: str, measurement: Measurement) -> Metric:
        return self._metric(**asdict(measurement), column=name)

    def _beside_baseline(
        self, name: str, output: OutputKind, actual: Floats, predicted: Mapping[str, Floats], trivial: Floats
    ) -> list[Metric]:
        check = f"{output.gate}_baseline"
        said, why = self._baseline(name, output, trivial)
        untold = output.untold(actual)
        if said is None or untold is not None:
            why = untold or why
            return [self._metric(c, column=name, status="not_evaluated", reason=why) for c in (check, ERROR_RATIO)]
        own, base = (
            float(output.metric.of_mean(output.row_losses(actual, values, predicted.get(SCALE)).mean()))
            for values in (output.judged(name, predicted), said)
        )
        rows = [self._metric(check, column=name, value=rounded(base), n=len(actual), status="ok")]
        if not base:
            return [
                *rows,
                self._metric(
                    ERROR_RATIO,
                    column=name,
                    n=len(actual),
                    status="not_evaluated",
                    reason="the baseline made no error at all",
                ),
            ]
        ratio = rounded(own / base)
        at_gate = self.gate.get(name)
        if at_gate is None:
            why = f"the gate left no ratio to compare with for version {self.version.version if self.version else '?'}"
            return [
                *rows,
                self._metric(ERROR_RATIO, column=name, value=ratio, n=len(actual), status="not_evaluated", reason=why),
            ]
        bound = rounded(at_gate * (1 + self.entry.retrain.performance.worse_by))
        if len(actual) < LEAST_JUDGED_ROWS:
            why = f"a night is judged by at least {LEAST_JUDGED_ROWS} rows with a label, this one has {len(actual)}"
            told = {"value": ratio, "threshold": bound, "n": len(actual), "status": "not_evaluated", "reason": why}
            return [*rows, self._metric(ERROR_RATIO, column=name, **told)]
        worse = ratio > bound
        reason = (
            f"{output.gate} over the baseline's is {ratio:.3f} in this night, it was {at_gate:.3f} at the gate"
            if worse
            else None
        )
        return [
            *rows,
            self._metric(
                ERROR_RATIO,
                column=name,
                value=ratio,
                threshold=bound,
                n=len(actual),
                status="warning" if worse else "ok",
                reason=reason,
            ),
        ]

    def _by_segment(
        self,
        column: str,
        values: pa.ChunkedArray,
        came: npt.NDArray[np.bool_],
        actual: Floats,
        predicted: Mapping[str, Floats],
        trivial: Floats,
    ) -> list[Metric]:
        """The gate's metric of every output, and the baseline's, in each segment of a column; `actual` and what
        follows: rows with a label.
        """
        names, codes = _largest_segments(column, values, came)
        labelled = codes[came]
        counts, scored = np.bincount(labelled, minlength=len(names)), np.bincount(codes, minlength=len(names))
        rows = []
        for output_name, output in self.entry.outputs.items():
            said, _ = self._baseline(output_name, output, trivial)
            sides = [(output.gate, output.judged(output_name, predicted))] + (
                [(f"{output.gate}_baseline", said)] if said is not None else []
            )
            for check, judged in sides:
                losses = output.row_losses(actual, judged, predicted.get(SCALE))
                means = _means_with_intervals(output.metric, losses, labelled, counts)
                for segment, count, all_rows, (value, lower, upper) in zip(names, counts, scored, means, strict=True):
                    told = {"column": output_name, "segment": segment, "n": int(count)}
                    if not count:
                        why = f"no label came for any of its {int(all_rows):,} rows"
                        rows.append(self._metric(check, status="not_evaluated", reason=why, **told))
                        continue
                    rows.append(self._metric(check, value=value, lower=lower, upper=upper, status="ok", **told))
        return rows

    def _baseline(self, name: str, output: OutputKind, trivial: Floats) -> tuple[Floats | None, str | None]:
        """What the baseline said of each row: as at the gate, row by row where it is one, else a number of the training
        window.
        """
        facts: Mapping[str, Any] = self.version.profile.get("label", {}) if self.version else {}
        missing = (
            self.version.missing if self.version else None
        ) or "the reference of this version holds no facts about its labels"
        constant = output.stored_constant(facts, name, self.entry.gate.baseline)
        if constant is None:
            return None, missing
        return output.baseline(constant, len(trivial), trivial), None
