"""Trace: one prediction walked back to everything it was made from, and computed again on demand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from lake.storage import reports
from monitoring.audit.lookup import (
    BadEntityValue,
    Found,
    NoPredictionId,
    by_entity,
    by_id,
    entity_types,
    entity_value,
    nearest,
    newest,
    nights_around,
)
from monitoring.audit.reproduction import reproduce_apart
from monitoring.audit.trace import InputsExpired, Trace, UnknownPrediction, trace
from monitoring.audit.tree import Branch, Fact, Target, tree
from monitoring.pages.page import BadAddress, Column, Context, Page, Table, read_date, shortened
from monitoring.pages.run_links import run_url, runs_on_record
from monitoring.wording import counted, exact

TEMPLATE = "trace.html.jinja"
HIDDEN = "(personal data)"
LISTED = 50
_LONGEST_TEXT = 300
_OWN_NAMES = frozenset({"id", "model", "date", "format", "table"})
_INPUTS = {"date": "date", "timestamp": "datetime-local", "float64": "number", "int32": "number", "int64": "number"}
_FIELD_STEPS = {"int32": "1", "int64": "1", "timestamp": "1", "float64": "any"}
_MOODS = {"good": "good", "bad": "bad", "unsure": "unsure", "plain": ""}


def page(context: Context, *, query: Mapping[str, str]) -> Page:
    """The form, and what it found: a prediction's tree, several to choose from, or a sentence that says what there is.

    Raises:
        NotFound: the address names a model that is not there.
    """
    text = query.get("id", "").strip()
    return _traced(context, text, query) if text else _searched(context, query)


def reproduce_page(context: Context, form: Mapping[str, str]) -> Page:
    """The trace of the prediction that `form["id"]` names, computed again, with every step; takes seconds to minutes,
    one at a time.

    Raises:
        BadAddress: the form names no prediction by its whole id.
    """
    text = form.get("id", "").strip().lower()
    matches = _matching(context, text)
    if isinstance(matches, str) or len(matches) != 1 or matches[0].prediction_id != text:
        raise BadAddress(f"{shortened(text)} is not a prediction id. Open the trace and press the button there.")
    steps, refusal = None, None
    try:
        steps = reproduce_apart(context.lake, text)
    except NightfleetError as error:
        refusal = _plain(error)
    return _traced(context, text, {}, reproduced={"outcome": steps, "refusal": refusal})


# ---- one prediction --------------------------------------------------------------------------------------------


def _traced(
    context: Context, text: str, query: Mapping[str, str], *, reproduced: Mapping[str, Any] | None = None
) -> Page:
    matches = _matching(context, text)
    if isinstance(matches, str):
        return _form(context, query, text=text, problem=matches)
    if not matches:
        models = ", ".join(context.models) or "no model you may see"
        said = (
            f"No prediction has an id that begins with {shortened(text)}. Looked at: {models}, replaced ones included."
        )
        return _form(context, query, text=text, problem=said)
    if len(matches) > 1:
        said = (
            f"{len(matches)} or more predictions have an id that begins with {shortened(text)}: give more digits or"
            " choose one."
        )
        return _form(context, query, text=text, problem=said, listed=matches)
    one = matches[0]
    entry = context.model(one.model)
    try:
        traced = trace(context.lake, one.prediction_id, model=one.model)
    except (InputsExpired, UnknownPrediction) as error:
        said = f"Prediction {one.prediction_id} is in SQL, but its origin cannot be read. {_plain(error)}"
        return _form(context, query, text=text, problem=said, listed=[one])
    personal = context.lake.catalog.personal_columns(entry)
    branch = tree(traced, personal=personal)
    subjects = [*(dataset.name for dataset in context.lake.catalog.datasets_of(entry)), entry.name]
    linked = _Links(context, traced, runs_on_record(context.lake, subjects, _run_ids(branch)))
    # The page after a form has no address of its own, hence nothing to download; the trace has.
    tables = (
        []
        if reproduced
        else [_features_table(context, entry, traced, personal, linked), _partitions_table(branch, linked)]
    )
    p = traced.prediction
    values = _form_values(context, {"model": p.model, "date": p.data_date.isoformat()}, text=p.prediction_id) | {
        "traced": _overview(context, entry, traced, personal, linked),
        "tree": _node(branch, linked, depth=0),
        "reproduced": _reproduced(reproduced, personal),
        "back": context.url("trace", id=p.prediction_id),
    }
    return Page(f"Trace of {p.prediction_id[:8]}", TEMPLATE, values, tuple(tables))


def _matching(context: Context, text: str) -> list[Found] | str:
    """Predictions whose id begins so; a sentence where no id does."""
    try:
        return by_id(context.lake, text, context.models)
    except NoPredictionId as error:
        return f"{shortened(text)} is not a prediction id: {_plain(error)}"


def _plain(error: NightfleetError) -> str:
    """The error's own text, without the name of its type."""
    return str(error).removeprefix(f"{type(error).__name__}: ")


@dataclass(frozen=True)
class _Links:
    """Addresses of what a trace names."""

    context: Context
    traced: Trace
    on_record: frozenset[tuple[str, str]]

    def of(self, target: Target | None) -> str:
        """The address, empty where there is none, or nothing that this person may see."""
        context = self.context
        if target is None:
            return ""
        if target.kind == "model":
            if target.name not in context.models:
                return ""
            return (
                context.url("models", target.name, "nights", target.night)
                if target.night
                else context.url("models", target.name)
            )
        if target.kind == "table":
            dataset, stage, name = target.name.split("/", 2)
            part = f"features/{name}" if stage == "features" else name
            return context.url("data", dataset, table=part, night=target.night) if dataset in context.datasets else ""
        if target.kind == "run":
            kinds = ("score",) if target.subject in context.models else ("ingest", "history")
            return run_url(context, self.on_record, target.name, *(f"{target.subject}_{kind}" for kind in kinds))
        if target.kind == "training_run":
            return run_url(context, self.on_record, target.name, f"{target.subject}_train")
        if target.kind == "mlflow_run":
            # MLflow finds the run's experiment by itself.
            return f"{context.mlflow_url}/#/runs/{quote(target.name, safe='')}" if context.mlflow_url else ""
        if target.kind == "model_card":
            return (
                context.url("embedded", target.subject, "model_cards", f"{target.name}.html")
                if self._has_card(target)
                else ""
            )
        return context.url("retraining", model=target.name)

    def _has_card(self, target: Target) -> bool:
        return reports(self.context.lake.settings).exists(f"{target.subject}/model_cards/{target.name}.html")


def _facts(branch: Branch) -> Iterator[Fact]:
    yield from branch.facts
    for part in branch.branches:
        yield from _facts(part)


def _run_ids(branch: Branch) -> Iterator[str]:
    return (fact.target.name for fact in _facts(branch) if fact.target and fact.target.kind in {"run", "training_run"})


def _node(branch: Branch, links: _Links, *, depth: int) -> dict[str, Any]:
    """A branch as the template shows it; what a newcomer should see first is open."""
    return {
        "kind": branch.kind,
        "title": branch.title,
        "entity": ", ".join(f"{fact.name} {_value(fact)}" for fact in branch.entity),
        "mood": _MOODS[branch.mood],
        "warning": branch.warning,
        "url": links.of(branch.target),
        "leads_to": _leads_to(branch.target),
        "facts": [{"name": fact.name, "value": _value(fact), "url": links.of(fact.target)} for fact in branch.facts],
        "branches": [_node(part, links, depth=depth + 1) for part in branch.branches],
        "open": depth == 0 or (depth == 1 and branch.kind == "features"),
    }


def _leads_to(target: Target | None) -> str:
    """The words of a branch's link."""
    if target is None:
        return ""
    if target.kind == "table":
        return f"Data of the night {target.night}"
    if target.kind == "model":
        return f"{target.name} in the night {target.night}" if target.night else f"All of {target.name}"
    return f"Requests and decisions of {target.name}"


def _value(fact: Fact) -> str:
    if fact.personal and fact.value is not None:
        return HIDDEN
    text = exact(fact.value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"


def _overview(
    context: Context, entry: ModelEntry, traced: Trace, personal: Collection[str], links: _Links
) -> dict[str, Any]:
    p = traced.prediction
    unit = context.lake.dataset(entry.dataset).tables[entry.label.table].columns[entry.label.column].unit or ""
    outputs = []
    for name, output in entry.outputs.items():
        answer = output.answer(name, p.outputs, entry.label.column, unit)
        row = {"name": name, "kind": answer.form} | {
            part: getattr(answer, part) for part in ("value", "about", "unit", "lower", "upper", "share", "beside")
        }
        outputs.append(row)
    return {
        "id": p.prediction_id,
        "model": p.model,
        "title": entry.title,
        "model_url": links.of(Target("model", p.model)),
        "night": p.data_date,
        "night_url": links.of(Target("model", p.model, night=p.data_date)),
        "target_time": p.target_time_utc,
        "superseded_at": p.superseded_at,
        "version": p.version,
        "role": p.role,
        "served": p.served,
        "why_served": traced.service.reason,
        "committed_at": p.partition.committed_at,
        "run": p.partition.run_id,
        "run_url": links.of(Target("run", p.partition.run_id, p.model)),
        "entity": [
            {"name": name, "value": HIDDEN if name in personal and value is not None else _identity(value)}
            for name, value in p.entity.items()
        ],
        "outputs": outputs,
        "same_url": context.url("trace", model=p.model, date=p.data_date),
    }


def _features_table(
    context: Context, entry: ModelEntry, traced: Trace, personal: Collection[str], links: _Links
) -> Table:
    declared = context.lake.catalog.feature_columns(entry)
    rows = []
    for view in traced.features:
        at = view.partition.data_date if view.partition else None
        url = links.of(Target("table", view.partition.table, night=at)) if view.partition else ""
        for name, value in view.values.items():
            column = declared.get(f"{view.view}__{name}")
            hidden = f"{view.view}__{name}" in personal and value is not None
            row = {
                "view": view.view,
                "feature": name,
                "value": HIDDEN if hidden else value,
                "night": at,
                "night_url": url,
            }
            rows.append(
                row | {"unit": column.unit if column else None, "description": column.description if column else None}
            )
    columns = (
        Column("view", "feature view"),
        Column("feature", "feature"),
        Column("value", "value", "number"),
        Column("unit", "unit"),
        Column("night", "night", "date", link="night_url"),
        Column("description", "what it is"),
    )
    caption = f"{len(rows)} features as known on the night of {traced.prediction.data_date}."
    return Table(
        "features", caption, columns, rows, folded=True, empty="The features of this prediction can no longer be read."
    )


def _partitions_table(branch: Branch, links: _Links) -> Table:
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for part in _branches(branch):
        if part.kind not in {"partition", "published"}:
            continue
        facts = {fact.name: fact for fact in part.facts}
        version, _, table = str(facts["version"].value).partition(" of ")
        night = part.target.night if part.target else None
        row = {
            "table": table,
            "night": night,
            "night_url": links.of(part.target),
            "version": int(version),
            "digest": facts["digest"].value,
        }
        row |= {
            "run": facts["run"].value,
            "run_url": links.of(facts["run"].target),
            "committed": facts["committed"].value,
            "code": facts["code"].value,
        }
        rows[table, night] = row
    columns = (
        Column("table", "table"),
        Column("night", "night", "date", link="night_url"),
        Column("version", "version", "number"),
        Column("digest", "digest"),
        Column("run", "run", link="run_url"),
        Column("committed", "committed", "date"),
        Column("code", "code"),
    )
    return Table(
        "partitions",
        f"{counted(len(rows), 'partition')}: those that the prediction was read from, and its own.",
        columns,
        list(rows.values()),
        folded=True,
    )


def _branches(branch: Branch) -> Iterator[Branch]:
    yield branch
    for part in branch.branches:
        yield from _branches(part)


def _reproduced(reproduced: Mapping[str, Any] | None, personal: Collection[str]) -> dict[str, Any] | None:
    if reproduced is None:
        return None
    outcome = reproduced["outcome"]
    rows = [_step(step, personal) for step in (outcome["steps"] if outcome else ())]
    steps = Table("steps", "Every step, compared bit by bit.", _STEPS, rows, stacked=True)
    return {"refusal": reproduced["refusal"], "equal": outcome["equal"] if outcome else None, "steps": steps}


_STEPS = (
    Column("step", "step"),
    Column("outcome", "outcome", "status"),
    Column("expected", "as published"),
    Column("found", "computed again"),
)


def _step(step: Mapping[str, Any], personal: Collection[str]) -> dict[str, str]:
    different = "differs" if step["binding"] else "explains"
    expected, found = _told(step, personal)
    outcome = "equal" if step["equal"] else different
    return {"step": step["name"], "outcome": outcome, "expected": _cut(expected), "found": _cut(found)}


def _told(step: Mapping[str, Any], personal: Collection[str]) -> tuple[str, str]:
    """Both sides of a step as text; of many values those that differ, personal ones hidden."""
    expected, found = step["expected"], step["found"]
    if not (isinstance(expected, Mapping) and isinstance(found, Mapping)):
        return exact(expected), exact(found)
    view = step["name"].rpartition(" ")[2]
    differing = [
        name
        for name in {**expected, **found}
        if expected.get(name) != found.get(name) or (name in expected) != (name in found)
    ]
    if not differing and not step["equal"]:
        differing = [*expected]  # bits differ that compare equal, as 0.0 and -0.0 do
    hidden = {name for name in differing if name in personal or f"{view}__{name}" in personal}

    def side(values: Mapping[str, Any]) -> str:
        return exact({name: HIDDEN if name in hidden else values[name] for name in differing if name in values})

    return side(expected), side(found)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


# ---- looking for one -------------------------------------------------------------------------------------------


def _searched(context: Context, query: Mapping[str, str]) -> Page:
    if not query.get("model"):
        return _form(context, query)
    entry = context.model(query["model"])
    if not query.get("date"):
        return _form(context, query)
    try:
        night = read_date(query["date"], "date")
        kinds = entity_types(entry, context.lake.dataset(entry.dataset))
        wanted = {
            name: entity_value(name, kinds[name], text)
            for name in entry.entity
            if (text := query.get(_field(name), "").strip())
        }
    except (BadAddress, BadEntityValue) as error:
        return _form(context, query, problem=_plain(error))
    assert night is not None  # the date was given
    listed, count = by_entity(context.lake, entry.name, night, wanted, limit=LISTED)
    if len(listed) == 1 and wanted:
        return _traced(context, listed[0].prediction_id, query)
    if listed:
        about = f"of the night {night}" + (" match" if wanted else "")
        more = f", the first {LISTED} are shown: fill in more of its entity" if count > LISTED else ""
        return _form(context, query, listed=listed, caption=f"{count:,} predictions of {entry.name} {about}{more}.")
    close = nearest(context.lake, entry.name, night, wanted)
    if close:
        named = ", ".join(f"{name} {_shortly(value)}" for name, value in wanted.items())
        said = f"{entry.name} has no prediction of the night {night} for {named}. The nearest ones that it has:"
        return _form(context, query, problem=said, listed=close)
    before, after = nights_around(context.lake, entry.name, night)
    nights = " and ".join(str(day) for day in (before, after) if day)
    there = (
        f"The nearest nights with predictions: {nights}."
        if nights
        else "It has no predictions yet: score a night first."
    )
    return _form(
        context,
        query,
        problem=f"{entry.name} has no predictions of the night {night}. {there}",
        nights=[day for day in (before, after) if day],
    )


def _shortly(value: Any) -> str:
    text = exact(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _field(column: str) -> str:
    """The entity column's name in the address; one that the address uses itself gets a word before it."""
    return f"entity.{column}" if column in _OWN_NAMES else column


def _form(
    context: Context,
    query: Mapping[str, str],
    *,
    text: str = "",
    problem: str = "",
    listed: Sequence[Found] = (),
    caption: str = "Predictions to choose from.",
    nights: Sequence[Any] = (),
) -> Page:
    """The form with what was asked, what is wrong with it, and what there is instead."""
    values = _form_values(context, query, text=text) | {
        "problem": problem,
        "nights": [{"day": d, "url": _night_url(context, query, d)} for d in nights],
    }
    tables = []
    if listed:
        tables.append(_list_table(context, "found", caption, listed))
    elif not query.get("date"):
        some = newest(context.lake, context.models, each=2)
        tables.append(
            _list_table(context, "examples", "Some predictions to begin with, of each model's newest night.", some)
        )
    return Page("Trace", TEMPLATE, values, tuple(tables))


def _night_url(context: Context, query: Mapping[str, str], night: Any) -> str:
    return context.url("trace", model=query.get("model"), date=night)


def _identity(value: Any) -> Any:
    """A number that names something is read digit by digit."""
    return str(value) if isinstance(value, int) else value


def _form_values(context: Context, query: Mapping[str, str], *, text: str) -> dict[str, Any]:
    chosen = query.get("model") or (context.models[0] if context.models else "")
    fields: list[dict[str, Any]] = []
    newest_night = ""
    if chosen:
        entry = context.model(chosen)
        kinds = entity_types(entry, context.lake.dataset(entry.dataset))
        for name in entry.entity:
            kind = kinds[name]
            field = {
                "name": _field(name),
                "label": name,
                "type": _INPUTS.get(kind, "text"),
                "value": query.get(_field(name), ""),
            }
            fields.append(field | {"hint": "UTC" if kind == "timestamp" else "", "step": _FIELD_STEPS.get(kind, "")})
        ends = newest(context.lake, [chosen])
        newest_night = ends[0].data_date.isoformat() if ends else ""
    return {
        "text": text,
        "chosen": chosen,
        "date": query.get("date") or newest_night,
        "fields": fields,
        "problem": "",
        "nights": [],
        "traced": None,
        "tree": None,
        "reproduced": None,
        "back": "",
    }


def _list_table(context: Context, name: str, caption: str, matches: Sequence[Found]) -> Table:
    entries = {one.model: context.lake.model(one.model) for one in matches}
    alone = next(iter(entries.values())) if len(entries) == 1 else None
    rows = []
    for one in matches:
        entry = entries[one.model]
        personal = context.lake.catalog.personal_columns(entry)
        entity = {
            key: HIDDEN if key in personal and value is not None else _identity(value)
            for key, value in one.entity.items()
        }
        row = {
            "id": one.prediction_id,
            "id_url": context.url("trace", id=one.prediction_id),
            "model": one.model,
            "night": one.data_date,
        }
        row |= {
            "output": next(iter(entry.outputs)),
            "value": one.value,
            "version": one.version,
            "served": "served" if one.served else f"not served, {one.role}",
            "replaced": one.superseded_at,
        }
        row |= (
            {f"entity_{key}": value for key, value in entity.items()}
            if alone
            else {"entity": [f"{k} {exact(v)}" for k, v in entity.items()]}
        )
        rows.append(row)
    about = [Column(f"entity_{key}", key) for key in alone.entity] if alone else [Column("entity", "entity")]
    columns = (
        Column("id", "prediction", link="id_url"),
        Column("model", "model"),
        Column("night", "night", "date"),
        *about,
        Column("output", "output"),
        Column("value", "value", "number"),
        Column("version", "version", "number"),
        Column("served", "served"),
        Column("replaced", "replaced at", "date"),
    )
    return Table(name, caption, columns, rows, empty="There are no predictions yet: score a night first.")


__all__ = ["TEMPLATE", "page", "reproduce_page"]
