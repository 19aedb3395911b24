"""The commands of a person: `python -m cli COMMAND`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from config.calendar import Interval, parse_data_date
from config.durations import parse_duration
from config.errors import NightfleetError
from config.settings import ROOT, load_settings

if TYPE_CHECKING:
    from cli.new import Started

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Nightfleet: a fleet's models, every night.",
)
# Where nobody watches (a log, a pipe) lines need not fit a screen.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, which the command-line library would turn into its own message and exit
    code.
    """


def _stop(_number: int, _frame: object) -> None:
    raise Stopped


@app.command()
def run(
    nights: Annotated[int, typer.Option(min=1, help="How many nights to run.")] = 3,
    start: Annotated[str, typer.Option("--from", help="First night, YYYY-MM-DD; each data set's own by default.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Only this data set; may be repeated.")] = None,
    whole: Annotated[bool, typer.Option("--all", help="All data sets, not only those run by default.")] = False,
) -> None:
    """Start Airflow and MLflow, load history, train first champions, run night after night, sum up, stop."""
    from cli.run import run_nights

    settings = load_settings()
    first = parse_data_date(start) if start else None
    code = run_nights(settings, console, nights=nights, start=first, only=only, whole=whole)
    raise typer.Exit(code)


@app.command()
def up(
    replay: Annotated[str, typer.Option(help="Release one night every so often, for example 60s.")] = "",
) -> None:
    """Start Airflow and MLflow and keep them running; with --replay a clock releases night after night."""
    from cli.run import keep_up

    seconds: float | None = None
    if replay:
        seconds = (
            float(replay[:-1])
            if replay.endswith("s") and replay[:-1].replace(".", "", 1).isdigit()
            else parse_duration(replay).total_seconds()
        )
    settings = load_settings()
    keep_up(settings, console, replay_seconds=seconds)


@app.command()
def trace(
    prediction_id: Annotated[str, typer.Argument(help="A prediction_id from the SQL table predictions_<model>.")],
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Compute the row again from what was known then, and compare.")
    ] = False,
) -> None:
    """Show the life of one prediction as a tree."""
    from cli.trace_view import render_reproduction, render_trace
    from lake.lake import open_lake
    from monitoring.audit import trace as tracing

    lake = open_lake()
    console.print(render_trace(tracing.trace(lake, prediction_id)))
    if reproduce:
        outcome = tracing.reproduce(lake, prediction_id)
        console.print(render_reproduction(outcome))
        raise typer.Exit(0 if outcome.equal else 1)


@app.command()
def rescore(model: str, start: str, end: str) -> None:
    """Score data dates START to END of MODEL again, both included, each with the champion of its night."""
    from lake.lake import open_lake
    from serving.projection import project_predictions
    from serving.score import rescore as rescore_interval

    lake, days = open_lake(), Interval.closed(parse_data_date(start), parse_data_date(end))
    run_id = f"rescore__{int(time.time())}"
    scored = rescore_interval(lake, model, days, run_id=run_id)
    project_predictions(lake, model, days, run_id=run_id)
    console.print(f"{model} {days}: {scored.rows:,} predictions, {scored.committed} of {len(days)} partitions changed.")


@app.command()
def route(
    model: str,
    origin: str,
    destination: str,
    night: Annotated[str, typer.Option(help="The night whose predictions are asked, YYYY-MM-DD.")],
    at: Annotated[str, typer.Option(help="When to leave on the day after it, HH:MM.")] = "08:00",
    map_table: Annotated[str, typer.Option("--map", help="Table of the model's data set that is the map.")] = "roads",
) -> None:
    """Show the fastest way from ORIGIN to DESTINATION by what MODEL foretold of each road and hour."""
    from cli.route import way_table
    from lake.lake import open_lake

    console.print(way_table(open_lake(), model, parse_data_date(night), (origin, destination), at, map_table=map_table))


@app.command()
def restate(dataset: str, start: str, end: str) -> None:
    """Rewrite DATASET's data dates START to END from its sources as they are now, and recompute what follows."""
    from cli.chain import validated_until
    from features.ingest import restate as restate_raw
    from features.materialize import materialize
    from features.transform import transform
    from features.validate import validate
    from lake.lake import open_lake
    from serving.score import stale_predictions

    lake, days = open_lake(), Interval.closed(parse_data_date(start), parse_data_date(end))
    run_id = f"restate__{int(time.time())}"
    raw = restate_raw(lake, dataset, days, run_id=run_id)
    nights = sorted({str(night) for table in raw.details.values() for night in table["restated"]})
    console.print(
        f"raw: {len(nights)} nights rewritten"
        + (f", {nights[0]} to {nights[-1]}" if nights else "; the source holds what is published")
    )
    newest = validated_until(lake, lake.dataset(dataset))
    if nights and newest is not None and parse_data_date(nights[0]) <= newest:
        # Later nights may hold revisions of what was rewritten; those that come out equal commit nothing.
        later = Interval.closed(parse_data_date(nights[0]), newest)
        for stage in (validate, transform, materialize):
            done = stage(lake, dataset, later, run_id=run_id)
            console.print(f"{done.stage} {later}: {done.committed} partitions rewritten")
    for model in lake.catalog.readers_of(dataset):
        stale = [night.data_date for night in stale_predictions(lake, model.name)]
        if stale:
            first, last = min(stale), max(stale)
            console.print(f"{model.name}: predictions of {len(stale)} nights are stale, {first} to {last}.")
            console.print(f"  `python -m cli rescore {model.name} {first} {last}` rewrites them.")


@app.command()
def rollback(model: str, reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")]) -> None:
    """End MODEL's rollout; without one, make its former champion the champion again, from the next night on."""
    import getpass

    from lake.lake import open_lake
    from training.registry.delivery import rollback as roll_back
    from training.registry.delivery import told

    console.print(f"{told(roll_back(open_lake(), model, by=getpass.getuser(), reason=reason))}.")


@app.command()
def rollout(
    model: str,
    action: Annotated[
        Literal["status", "advance", "hold", "finish", "rollback"],
        typer.Argument(help="What to do; status changes nothing."),
    ] = "status",
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger. Whatever moves the rollout needs it.")] = "",
) -> None:
    """Show how MODEL's rollout stands, or move it: to the next step, not any further, to its end, or back."""
    from cli.rollout import STATUS, move, show
    from lake.lake import open_lake

    if action == STATUS:
        show(open_lake(), console, model)
    else:
        move(open_lake(), console, model, action, reason=reason)


stored_model = typer.Typer(no_args_is_help=True, help="Stored versions of a model.")
app.add_typer(stored_model, name="model")


@stored_model.command("export")
def _export(
    model: str,
    folder: Annotated[Path, typer.Argument(help="Where to; a folder named by the files' digest is made in it.")],
    version: Annotated[int | None, typer.Option(min=1, help="Which; the champion by default.")] = None,
) -> None:
    """Copy a version of MODEL to FOLDER, its signature and every byte verified before anything is written."""
    from lake.lake import open_lake
    from serving.signed import export_signed
    from training.registry.numbers import digest_of

    lake = open_lake()
    number, digest = digest_of(lake, model, version)
    export_signed(lake.settings, model, digest, folder)
    console.print(f"{model} version {number}: verified, and copied to {folder / digest}.", soft_wrap=True)
    console.print(
        f'  Load it: python -c "from pathlib import Path; from serving.predictors import load_predictor; '
        f"load_predictor(Path('{folder / digest}'))\"",
        soft_wrap=True,
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def airflow(context: typer.Context) -> None:
    """Airflow's own command line on this installation, for example `airflow backfill create --help`."""
    from cli.installation import airflow_environment, prepare
    from cli.processes import python_tool

    environment = airflow_environment(prepare(load_settings()))
    os.execve(python_tool("airflow"), ["airflow", *context.args], environment)  # noqa: S606 (our own tool, no shell)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; list what would go.")] = False,
) -> None:
    """Remove what dead tries left, and what is older than the settings keep_…_days say."""
    from lake.lake import open_lake
    from monitoring.audit.retention import clean as clean_up

    cleaning = clean_up(open_lake(), dry_run=dry_run)
    for removal in cleaning.removals if dry_run else ():
        console.print(f"{removal.kind:26} {removal.size:>15,}  {removal.what}", soft_wrap=True, markup=False)
    for reason in cleaning.left_alone:
        console.print(f"left alone: {reason}", style="yellow", soft_wrap=True, markup=False)
    verb = "would go" if dry_run else "removed"
    for kind, (count, size) in cleaning.totals().items():
        unit = "rows" if kind == "replaced rows" else "bytes"
        console.print(f"{kind}: {count:,} {verb}, {size:,} {unit}")
    if not cleaning.removals:
        console.print("there is nothing to remove")


new = typer.Typer(no_args_is_help=True, help="Write a commented start of a data set or a model, and its test.")
app.add_typer(new, name="new")
_LIKE = typer.Option("--like", help="One of the catalog to begin from; `doctor` accepts its copy.")
_IN = typer.Option("--in", help="Catalog folder to write to; it is made where it is not there.")


def _say_started(started: Started) -> None:
    for path in started.files:
        console.print(f"written  {path}", soft_wrap=True)
    if not started.named:
        console.print(f"\nName the folder: NIGHTFLEET_CATALOGS=config,{started.folder}, or `catalogs` of the profile.")
    console.print(f"Then: `python -m cli doctor`, and `python -m pytest {started.folder / 'tests'}`.", soft_wrap=True)


@new.command("dataset")
def _new_dataset(name: str, like: Annotated[str, _LIKE], folder: Annotated[Path, _IN] = ROOT / "config") -> None:
    """Start data set NAME: its YAML with comments, its SQL, example data, a test."""
    from cli.new import new_dataset

    _say_started(new_dataset(load_settings(), name, like=like, folder=folder))


@new.command("model")
def _new_model(
    name: str,
    like: Annotated[str, _LIKE],
    folder: Annotated[Path, _IN] = ROOT / "config",
    dataset: Annotated[str | None, typer.Option(help="Data set of the new model; that of the one it is like.")] = None,
) -> None:
    """Start model NAME: its YAML with comments, a test."""
    from cli.new import new_model

    _say_started(new_model(load_settings(), name, like=like, folder=folder, dataset=dataset))


@app.command()
def verify() -> None:
    """Read everything that has a digest, and say what is damaged; exit code 1 where anything is."""
    from cli.verify import verify as verify_all
    from lake.lake import open_lake

    raise typer.Exit(verify_all(open_lake(), console))


@app.command()
def repair(
    accept_ledger: Annotated[
        list[str] | None,
        typer.Option(help="Model whose ledgers were restored from an old backup: they count as they are; repeatable."),
    ] = None,
) -> None:
    """Rebuild SQL with its history, Feast's registry and online store, and MLflow's aliases from Delta, and name what
    has to be made again elsewhere.
    """
    from cli.verify import repair as repair_all
    from lake.lake import open_lake

    raise typer.Exit(repair_all(open_lake(), console, accept_ledgers=accept_ledger or ()))


@app.command()
def doctor(
    sample: Annotated[
        str | None,
        typer.Option(help="A data set: read the first rows of its sources, and propose how to declare them, as YAML."),
    ] = None,
) -> None:
    """Say what is missing on this machine, for which capability, and the command that fixes it."""
    from cli.doctor import examine, render

    if sample is not None:
        from cli.sample import sample as sampled

        for text in sampled(load_settings(), sample):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    findings = examine(load_settings())
    console.print(render(findings))
    raise typer.Exit(0 if all(finding.present or not finding.required for finding in findings) else 1)


def main() -> int:
    """Run a command and return its exit code; an expected error is its own text, without a traceback."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)  # said, because a shell starts background commands with SIGINT ignored
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow talks over what was asked for
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(bool(leave.code))
    except NightfleetError as error:
        console.print(f"\n{error}", style="red", markup=False)
        return 1
    except Stopped:
        console.print("\nstopped, and every process with it")
        return 130
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries are not torn down: DuckDB would report its bindings as leaked below the command's own last line.
    os._exit(code)
