"""What a run did, on one screen."""

from __future__ import annotations

from datetime import date

from rich.console import Console
from rich.table import Table

from cli.chain import Chain
from cli.installation import Installation
from config.catalog.data import Dataset
from config.catalog.model import ModelEntry
from config.errors import NightfleetError
from features.data_docs import SITE
from lake.assignment import CHAMPION
from lake.lake import Lake
from lake.metrics import read_metrics
from lake.storage import reports
from lake.tables import quarantine_table, valid_table

_NUMBERS = frozenset({"valid rows", "quarantined", "rows", "its error", "baseline's", "better by"})


def _plain_table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    return table


def _ingested(lake: Lake, dataset: Dataset, table: Table) -> bool:
    """Whether anything was."""
    begun = False
    for name in dataset.tables:
        valid, bad = valid_table(lake.settings, dataset, name), quarantine_table(lake.settings, dataset, name)
        published = lake.publications.current(valid)
        if not published:
            continue
        begun = True
        quarantined = sum(p.rows for p in lake.publications.current(bad).values())
        with lake.duckdb() as connection:
            bad.register(connection, "bad")
            reasons = connection.execute(
                "SELECT rule, count(*) FROM (SELECT unnest(string_split(broken_rules, '; ')) AS rule FROM bad) GROUP "
                "BY ALL ORDER BY 2 DESC, 1 LIMIT 3"
            ).fetchall()
        why = ", ".join(f"{rule}: {count:,}" for rule, count in reasons)
        nights = f"{min(published)} to {max(published)}"
        rows = sum(p.rows - p.closed for p in published.values())
        table.add_row(
            dataset.name,
            name,
            nights,
            f"{rows:,}",
            f"{quarantined:,}",
            why,
        )
    return begun


def _champion(lake: Lake, model: ModelEntry, table: Table) -> None:
    from training.registry.decision import read_decisions

    newest = lake.ledger(model.name).read().newest
    if newest is None:
        judged = read_decisions(lake, model.name)
        why = (
            f"the gate's verdict on version {judged[-1].version}: {judged[-1].verdict}"
            if judged
            else "no challenger was judged yet"
        )
        table.add_row(model.name, "none", "", "", "", "", why)
        return
    decision = next((d for d in reversed(read_decisions(lake, model.name)) if d.version == newest.version), None)
    checks = [check for check in decision.checks if check.name == "improvement"] if decision else []
    for i, check in enumerate(checks):
        shown = (model.name, f"version {newest.version}, from {newest.effective_from}") if i == 0 else ("", "")
        incumbent = _incumbent(model, check.output or "", decision.incumbent if decision else "")
        table.add_row(
            *shown,
            f"{check.output} {check.metric}",
            _number(check.challenger),
            _number(check.incumbent),
            _percent(check.improvement),
            incumbent,
        )
    if not checks:
        table.add_row(
            model.name, f"version {newest.version}, from {newest.effective_from}", "", "", "", "", newest.kind
        )


def _incumbent(model: ModelEntry, output: str, name: str) -> str:
    """A champion by its name, a baseline by what it says of that output."""
    if not name.startswith("baseline ") or output not in model.outputs:
        return name
    words = model.outputs[output].baseline_words(model.gate.baseline)
    return words.removeprefix("the baseline (").removesuffix(")")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _nights(lake: Lake, model: ModelEntry, days: list[date], table: Table) -> None:
    from monitoring.retraining_requests import read_requests
    from serving.predictions import predictions_table

    predictions = lake.publications.current(predictions_table(lake.settings, model))
    decisions = {row["data_date"]: row for row in read_requests(lake, model.name).to_pylist()}
    drift = {
        row["data_date"]: row
        for row in read_metrics(lake, model.name, "drift").to_pylist()
        if row["check"] == "drift_share" and row["role"] == CHAMPION
    }
    for day in days:
        if day not in predictions:
            table.add_row(model.name, str(day), "not scored", "", "")
            continue
        measured, decided = drift.get(day), decisions.get(day)
        if measured is None:
            drifted = "not evaluated"
        elif measured["value"] is None:
            drifted = f"not evaluated: {measured['reason']}"
        else:
            drifted = f"{measured['value']:.0%} of columns over their limit ({measured['status']})"
        verdict = ""
        if decided:
            verdict = ("requested: " if decided["requested"] else "no: ") + decided["reason"]
        table.add_row(model.name, str(day), f"{predictions[day].rows:,}", drifted, verdict)


def print_summary(
    console: Console,
    lake: Lake,
    installation: Installation,
    chain: Chain,
    problem: NightfleetError | None,
    seconds: float,
) -> None:
    """Rows, champions, predictions, drift, decisions, where to look; the problem last, where it is seen."""
    console.print()
    table = _plain_table("ingested", "data set", "table", "nights", "valid rows", "quarantined", "broken rules")
    begun = {dataset.name for dataset in lake.catalog.datasets if _ingested(lake, dataset, table)}
    console.print(table)
    console.print()
    table = _plain_table(
        "champions", "model", "version", "metric", "its error", "baseline's", "better by", "judged against"
    )
    for model in lake.catalog.models:
        if model.dataset in begun:
            _champion(lake, model, table)
    console.print(table)
    nights = {d.name: chain.nights_of(d.name) for d in lake.catalog.datasets}
    if any(nights.values()):
        console.print()
        table = _plain_table("nights", "model", "data date", "rows", "drift", "retraining")
        for model in lake.catalog.models:
            _nights(lake, model, nights[model.dataset], table)
        console.print(table)
    console.print()
    console.print(
        "steps     "
        f" {', '.join(f'{step.title} {step.seconds:.0f} s' for step in chain.steps if step.seconds is not None)};"
        f" {seconds:.0f} s in all"
    )
    store = reports(lake.settings)
    for model in lake.catalog.models:
        newest = next((key for key in reversed(store.keys(model.name)) if key.endswith("/drift.html")), None)
        if newest is not None:
            console.print(f"reports    {store.uri(newest)}, performance.html beside it", soft_wrap=True)
    docs = next((key for key in store.keys(SITE) if key.count("/") == 2 and key.endswith("/index.html")), None)
    if docs is not None:
        console.print(f"data docs  {store.uri(docs)}", soft_wrap=True)
    console.print(
        "trace      .venv/bin/python -m cli trace " + (_some_prediction(lake) or "PREDICTION_ID"), soft_wrap=True
    )
    for refusal in chain.refused.values():
        console.print(f"not scored, for {refusal}", style="yellow", markup=False, soft_wrap=True)
    console.print("keep it    `make up` keeps Airflow and MLflow running and prints the logins")
    if problem is None:
        console.print(
            f"\nOpen {installation.pages_url} beside a running `make up`: how every model did tonight",
            style="bold",
            soft_wrap=True,
        )
    else:
        console.print(f"\n{problem}", style="red", markup=False, soft_wrap=True)


def _some_prediction(lake: Lake) -> str | None:
    import sqlalchemy as sa

    inspector = sa.inspect(lake.engine)
    for model in lake.catalog.models:
        name = f"predictions_{model.name}"
        if inspector.has_table(name):
            table = sa.Table(name, sa.MetaData(), autoload_with=lake.engine)
            query = (
                sa.select(table.c.prediction_id)
                .where(table.c.superseded_at.is_(None))
                .order_by(table.c.data_date.desc(), table.c.prediction_id)
                .limit(1)
            )
            with lake.engine.connect() as connection:
                prediction_id = connection.execute(query).scalar()
            if prediction_id:
                return str(prediction_id)
    return None
