"""The catalog: a wrong file never gets past loading, and the message names file, key, value, expectation."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.catalog.base import BadCatalog
from config.catalog.checks import (
    Between,
    Freshness,
    InSet,
    Matches,
    NotNull,
    PairGreater,
    RowCount,
    Unique,
    When,
    check_columns,
    check_name,
)
from config.catalog.load import Catalog, load_catalog
from config.catalog.output import known_kinds
from config.settings import ROOT, Settings
from tests import toy


def changed(text: str, path: str, value: Any) -> str:
    """The YAML with the value at a dotted path replaced, added, or, for `...`, removed."""
    document = yaml.safe_load(text)
    *parents, last = path.split(".")
    inner = document
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is ...:
        del inner[last]
    elif isinstance(inner, list):
        inner.append(value) if int(last) == len(inner) else inner.__setitem__(int(last), value)
    else:
        inner[last] = value
    return yaml.safe_dump(document)


def load(folder: Path, dataset: str = toy.DATASET_YAML, model: str = toy.MODEL_YAML) -> Catalog:
    return load_catalog(toy.write_catalog(folder, dataset=dataset, model=model))


def refusal(folder: Path, **texts: str) -> str:
    with pytest.raises(BadCatalog) as caught:
        load(folder, **texts)
    return str(caught.value)


def test_the_toy_and_the_catalog_that_is_shipped_are_accepted(tmp_path: Path) -> None:
    assert [d.name for d in load(tmp_path).datasets] == ["rides"]
    assert {d.name for d in load_catalog(Settings(catalogs=(ROOT / "config",))).datasets} >= {
        "flights",
        "traffic",
        "engines",
        "batteries",
    }


CHECK = {"rule": "between", "column": "distance_km", "min": 0}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # unknown keys
        ("owners", "x", ["owners = 'x': unknown key"]),
        ("tables.bookings.kye", ["x"], ["tables.bookings.kye = ['x']: unknown key"]),
        ("tables.bookings.columns.depot.nulable", True, ["tables.bookings.columns.depot.nulable = True: unknown key"]),
        # wrong types and values
        (
            "tables.bookings.columns.depot.type",
            "text",
            ["tables.bookings.columns.depot.type = 'text'", "'string', 'int32'"],
        ),
        ("tables.bookings.key", [], ["tables.bookings.key = []", "at least 1 item"]),
        ("time_zone", "New York", ["time_zone = 'New York': is not an IANA time zone, for example America/New_York"]),
        (
            "replay",
            {"from": "2024-02-01", "to": "2024-03-01", "first_night": "2024-01-01"},
            ["needs from < first_night <= to, has 2024-02-01, 2024-01-01"],
        ),
        ("start", "2024-01-01", ["needs either start (live) or replay (historic)"]),
        ("tables.bookings.source", {"kind": "ftp"}, ["tables.bookings.source", "'file', 'sql', 'http'"]),
        (
            "tables.bookings.known_at",
            {"column": "start_utc", "sql": "1"},
            ["known_at needs either column or sql, or the word arrival"],
        ),
        (
            "tables.bookings.quality",
            {"stop_share": 2},
            ["tables.bookings.quality.stop_share = 2", "less than or equal to 1"],
        ),
        ("tables.bookings.checks.0", {"rule": "unik"}, ["tables.bookings.checks.0", "'unique'"]),
        ("tables.bookings.checks.0", {"rule": "between", "column": "ride"}, ["between needs min, max, or both"]),
        (
            "tables.outcomes.checks.2.max_age",
            "1 fortnight",
            ["tables.outcomes.checks.2.freshness.max_age = '1 fortnight'", "write a duration as '14 days'"],
        ),
        # dangling references
        ("tables.bookings.key", ["event_date", "trip"], ["key names 'trip', which is not a column of the table"]),
        ("tables.bookings.columns.ride.nullable", True, ["key column 'ride' must say nullable: false"]),
        (
            "tables.bookings.checks.4",
            {**CHECK, "column": "distance"},
            ["check between(distance) names 'distance', which is not a column of the table"],
        ),
        (
            "tables.bookings.checks.4",
            {**CHECK, "when": {"column": "x", "op": "==", "value": 1}},
            ["names 'x', which is not a column of the table"],
        ),
        ("tables.bookings.checks.4", CHECK, ["the check between(distance_km) appears twice"]),
        ("tables.bookings.columns.revision", {"type": "int32", "description": "x"}, ["column 'revision' is reserved"]),
        (
            "tables.outcomes.known_at.column",
            "minutes",
            ["known_at names 'minutes', which must be a timestamp column with nullable: false"],
        ),
        (
            "features.vehicle_daily.reads",
            ["trips"],
            ["feature view 'vehicle_daily' reads 'trips', which is not a table of the data set (bookings, outcomes)"],
        ),
        (
            "features.vehicle_daily.columns.vehicle",
            {"type": "string", "description": "x"},
            ["declares 'vehicle', which is reserved or an entity"],
        ),
        # what would fail late
        (
            'tables.bookings.columns.a"b',
            {"type": "string", "description": "x"},
            ["tables.bookings.columns = ", "column 'a\"b' is empty, or has a double quote"],
        ),
        ("tables.bookings.columns.", {"type": "string", "description": "x"}, ["column '' is empty"]),
        (
            "tables.bookings.columns.Data_Date",
            {"type": "string", "description": "x"},
            ["column 'Data_Date' is reserved"],
        ),
        (
            "features.vehicle_daily.columns.rides[7]",
            {"type": "int64", "description": "x"},
            ["feature 'rides[7]' has [ ] in its name, which trainers refuse: take letters, digits and _"],
        ),
        (
            "features.vehicle_daily.columns.rides<7",
            {"type": "int64", "description": "x"},
            ["feature 'rides<7' has < in its name"],
        ),
        (
            "features.vehicle_daily.columns.Data_Date",
            {"type": "int64", "description": "x"},
            ["declares 'Data_Date', which is reserved or an entity"],
        ),
        (
            "tables.outcomes.columns.vehicle.type",
            "float64",
            ["feature view 'vehicle_daily' is keyed by 'vehicle', which is float64 in outcomes: an entity is a string"],
        ),
        (
            "tables.outcomes.columns.vehicle.type",
            "boolean",
            ["feature view 'vehicle_daily' is keyed by 'vehicle', which is boolean in outcomes: an entity is a string"],
        ),
        # checks that do not fit their column
        (
            "tables.bookings.checks.4",
            {"rule": "between", "column": "depot", "min": 1},
            ["check between(depot): depot is a string, needs a number"],
        ),
        (
            "tables.bookings.checks.4",
            {"rule": "matches", "column": "ride", "regex": "1"},
            ["check matches(ride): ride is a int64, needs a string"],
        ),
        (
            "tables.bookings.checks.4",
            {"rule": "freshness", "column": "depot"},
            ["check freshness(depot): depot is a string, needs a timestamp"],
        ),
        (
            "tables.bookings.checks.4",
            {"rule": "in_set", "column": "vehicle", "values": ["a", 1]},
            ["vehicle is a string, which 1 cannot be equal to"],
        ),
        (
            "tables.bookings.checks.4",
            {"rule": "pair_greater", "a": "ride", "b": "depot"},
            ["ride is a int64, depot a string; they cannot be compared"],
        ),
        (
            "tables.bookings.checks.4",
            {"rule": "not_null", "column": "depot", "when": {"column": "start_utc", "op": ">", "value": "2024"}},
            ["start_utc is a timestamp, which cannot be compared with '2024'"],
        ),
    ],
)
def test_a_wrong_data_set_is_refused(tmp_path: Path, path: str, value: Any, words: list[str]) -> None:
    message = refusal(tmp_path, dataset=changed(toy.DATASET_YAML, path, value))
    assert message.startswith(f"BadCatalog: {tmp_path / 'datasets' / 'rides.yaml'} does not describe a data set:\n")
    for word in words:
        assert word in message


@pytest.mark.parametrize("key", ["owner", "time_zone", "tables"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    assert f"{key} = " in (message := refusal(tmp_path, dataset=changed(toy.DATASET_YAML, key, ...)))
    assert "Field required" in message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("dataset", "trains", ["dataset = 'trains': is not a data set (rides)"]),
        ("spine.table", "trips", ["spine.table = 'trips': is not a table of rides (bookings, outcomes)"]),
        ("spine.target_time", "depot", ["spine.target_time = 'depot': must be a timestamp column"]),
        ("spine.target_time", "end_utc", ["spine = 'end_utc': is not a column of table bookings"]),
        ("label.table", "trips", ["label.table = 'trips': is not a table of rides"]),
        ("spine.entity", ["distance_km"], ["label = 'distance_km': is not a column of table outcomes"]),
        ("label.column", "price", ["label = 'price': is not a column of table outcomes"]),
        ("features", ["driver_daily"], ["features = 'driver_daily': is not a feature view of rides (vehicle_daily)"]),
        (
            "gate.segments.columns",
            ["weather"],
            ["gate.segments.columns = 'weather': is neither a column of the spine nor a feature (<view>__<column>)"],
        ),
        ("gate.better_than", 1, ["gate.better_than = 1: unknown key"]),
        ("split.train", "a month", ["split.train = 'a month'", "write a duration as"]),
        (
            "outputs.ride_minutes.kind",
            "guess",
            ["outputs.ride_minutes", ", ".join(map(repr, known_kinds()))],
        ),
        ("trainer.seed", "seven", ["trainer.seed = 'seven'"]),
        ("model", "Ride Minutes", ["model = 'Ride Minutes'", "String should match pattern"]),
    ],
)
def test_a_wrong_model_is_refused(tmp_path: Path, path: str, value: Any, words: list[str]) -> None:
    message = refusal(tmp_path, model=changed(toy.MODEL_YAML, path, value))
    assert "ride_minutes.yaml does not describe a model:" in message
    for word in words:
        assert word in message


def test_keys_that_never_meet_are_refused(tmp_path: Path) -> None:
    """`00061` as a text in one table, 61 as a number in the other: every join is empty, and nothing fails."""
    view = {
        "description": "x",
        "entities": ["ride"],
        "reads": ["bookings", "outcomes"],
        "lookback": "1 day",
        "ttl": "1 day",
        "columns": {"n": {"type": "int64", "description": "x"}},
    }
    other = changed(toy.DATASET_YAML, "tables.outcomes.columns.ride.type", "string")
    message = refusal(tmp_path / "tables", dataset=changed(other, "features.ride_daily", view))
    assert "feature view 'ride_daily' is keyed by 'ride', which is int64 in bookings and string in outcomes" in message
    message = refusal(tmp_path / "label", dataset=other)
    assert "label = 'ride': is int64 in the spine and string in table outcomes, so that no label is ever" in message
    other = changed(toy.DATASET_YAML, "tables.outcomes.columns.vehicle.type", "int64")
    message = refusal(tmp_path / "spine", dataset=other)
    assert "features = 'vehicle_daily': is keyed by 'vehicle' of type int64, which is string in the spine" in message


@pytest.mark.parametrize("kind", ["float64", "boolean"])
def test_an_entity_that_names_nothing_is_refused(tmp_path: Path, kind: str) -> None:
    both = changed(toy.DATASET_YAML, "tables.outcomes.columns.ride.type", kind)
    message = refusal(tmp_path, dataset=changed(both, "tables.bookings.columns.ride.type", kind))
    assert f"spine.entity = 'ride': is a {kind}; an entity is a string, int32, int64, date or timestamp" in message


@pytest.mark.parametrize("kind", ["date", "timestamp"])
def test_a_time_is_no_feature(tmp_path: Path, kind: str) -> None:
    declared = {"type": kind, "description": "x"}
    message = refusal(tmp_path, dataset=changed(toy.DATASET_YAML, "features.vehicle_daily.columns.last", declared))
    assert f"features = 'vehicle_daily__last': is a {kind}, which no trainer takes; make a number of it" in message


def test_a_text_is_no_label_of_a_number(tmp_path: Path) -> None:
    columns = changed(toy.DATASET_YAML, "tables.outcomes.columns.verdict", {"type": "string", "description": "x"})
    message = refusal(tmp_path, dataset=columns, model=changed(toy.MODEL_YAML, "label.column", "verdict"))
    assert "outputs = 'long_probability': label verdict is a string, a binary output needs a number" in message


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, dataset=changed(changed(toy.DATASET_YAML, "owners", "x"), "title", 7))
    assert "owners = 'x': unknown key" in message
    assert "title = 7: Input should be a valid string" in message


def test_the_former_key_of_the_candidates_is_read(tmp_path: Path) -> None:
    further = [{"family": "linear"}]
    entries = [
        load(tmp_path / key, model=changed(toy.MODEL_YAML, key, further)).model("ride_minutes")
        for key in ("candidates", "rivals")
    ]
    assert [trainer.family for trainer in entries[0].trainers] == ["xgboost", "linear"]
    assert entries[0] == entries[1]
    both = changed(changed(toy.MODEL_YAML, "candidates", further), "rivals", further)
    assert "rivals = [{'family': 'linear'}]: unknown key" in refusal(tmp_path, model=both)


def test_files_that_are_no_mapping_or_no_yaml(tmp_path: Path) -> None:
    assert "holds list, needs a mapping of keys" in refusal(tmp_path, dataset="- a")
    assert "is not readable as YAML" in refusal(tmp_path, dataset="a: [")


def test_keys_that_are_no_texts_are_told(tmp_path: Path) -> None:
    message = refusal(tmp_path / "top", dataset=toy.DATASET_YAML + "2: x\n")
    assert "rides.yaml does not describe a data set:\n  2 = " in message
    replay = {"from": "2024-01-01", None: "x"}
    message = refusal(tmp_path / "inner", dataset=changed(toy.DATASET_YAML, "replay", replay))
    assert "replay.to = " in message


def test_a_file_is_named_as_what_it_describes(tmp_path: Path) -> None:
    assert "describes 'journeys'. Name the file journeys.yaml." in refusal(
        tmp_path, dataset=changed(toy.DATASET_YAML, "dataset", "journeys")
    )


def test_data_sets_and_models_share_one_name_space(tmp_path: Path) -> None:
    settings = toy.write_catalog(tmp_path)
    (settings.catalogs[0] / "models" / "rides.yaml").write_text(changed(toy.MODEL_YAML, "model", "rides"))
    with pytest.raises(
        BadCatalog, match="the name 'rides' is used twice, first in .*rides.yaml. Data sets and models of all"
    ):
        load_catalog(settings)


def test_an_empty_catalog_says_where_to_begin(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match=r"holds no \*.yaml. Describe a data set there; config/datasets has examples."):
        load_catalog(Settings(catalogs=(tmp_path,)))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = load(tmp_path)
    assert load(tmp_path).digest("rides") == first.digest("rides")
    second = load(tmp_path, dataset=changed(toy.DATASET_YAML, "title", "Other rides, longer title"))
    assert second.dataset("rides").title == "Other rides, longer title"
    assert second.digest("rides") != first.digest("rides")
    assert second.digest("ride_minutes") == first.digest("ride_minutes")


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    catalog = load(tmp_path)
    for ask, message in (
        (catalog.dataset, "there is no data set 'x'. Known: rides."),
        (catalog.model, "there is no model 'x'. Known: ride_minutes."),
        (catalog.digest, "there is neither a data set nor a model 'x'."),
    ):
        with pytest.raises(BadCatalog) as caught:
            ask("x")
        assert message in str(caught.value)


def test_what_follows_from_a_catalog(tmp_path: Path) -> None:
    catalog = load(tmp_path)
    rides, model = catalog.dataset("rides"), catalog.model("ride_minutes")
    assert rides.first_data_date == date(2024, 1, 1)
    assert catalog.models_of("rides") == (model,)
    assert list(catalog.feature_columns(model)) == ["vehicle_daily__rides_7d", "vehicle_daily__minutes_7d"]
    assert model.output_columns == ("ride_minutes", "ride_minutes_lower", "ride_minutes_upper", "long_probability")
    assert model.split.nights == 21 + 5 + 7 + 2
    assert len(rides.tables["bookings"].row_rules) == 3
    assert [check_name(rule) for rule in rides.tables["bookings"].table_rules] == ["row_count(*)"]


def test_a_live_data_set_has_no_replay(tmp_path: Path) -> None:
    text = changed(changed(toy.DATASET_YAML, "replay", ...), "start", "2024-05-01")
    rides = load(tmp_path, dataset=text).dataset("rides")
    assert rides.first_data_date == date(2024, 5, 1)


def test_check_names_are_stable_and_readable() -> None:
    when = When(column="c", op="==", value=False)
    names = {
        check_name(NotNull(rule="not_null", column="a")): ("a",),
        check_name(Between(rule="between", column="a", min=1, when=when)): ("a", "c"),
        check_name(InSet(rule="in_set", column="a", values=("x",))): ("a",),
        check_name(Matches(rule="matches", column="a", regex="x")): ("a",),
        check_name(Unique(rule="unique", columns=("a", "b"))): ("a", "b"),
        check_name(PairGreater(rule="pair_greater", a="a", b="b")): ("a", "b"),
        check_name(RowCount(rule="row_count")): (),
        check_name(Freshness(rule="freshness", column="a", max_age=timedelta(hours=1))): ("a",),
    }
    assert list(names) == [
        "not_null(a)",
        "between(a) when c == False",
        "in_set(a)",
        "matches(a)",
        "unique(a, b)",
        "pair_greater(a, b)",
        "row_count(*)",
        "freshness(a)",
    ]
    assert check_columns(Between(rule="between", column="a", min=1, when=when)) == ("a", "c")
    assert check_columns(RowCount(rule="row_count")) == ()


# ---- features of many steps --------------------------------------------------------------------------------------

STEPS = {"type": "float64", "steps": 3, "unit": "km", "description": "distance of a ride"}


def test_steps_become_plain_columns_newest_first(tmp_path: Path) -> None:
    catalog = load(tmp_path, dataset=changed(toy.DATASET_YAML, "features.vehicle_daily.columns.distance", STEPS))
    columns = catalog.dataset("rides").features["vehicle_daily"].columns
    assert list(columns) == ["distance_t0", "distance_t1", "distance_t2", "minutes_7d", "rides_7d"]
    steps = [columns[f"distance_t{n}"] for n in range(3)]
    assert {(step.type, step.unit, step.steps) for step in steps} == {("float64", "km", None)}
    # Only the newest is watched for drift: the others show what it showed before.
    assert [step.calendar for step in steps] == [False, True, True]
    assert steps[0].description == "distance of a ride; the newest step"
    assert steps[2].description == "distance of a ride; step 2 back"
    assert "vehicle_daily__distance_t2" in catalog.feature_columns(catalog.model("ride_minutes"))


def test_a_catalog_of_steps_equals_one_that_writes_them_out(tmp_path: Path) -> None:
    short = load(tmp_path, dataset=changed(toy.DATASET_YAML, "features.vehicle_daily.columns.distance", STEPS))
    text = toy.DATASET_YAML
    for name, column in short.dataset("rides").features["vehicle_daily"].columns.items():
        text = changed(text, f"features.vehicle_daily.columns.{name}", column.model_dump(mode="json"))
    assert load(tmp_path, dataset=text).digest("rides") == short.digest("rides")


@pytest.mark.parametrize(
    ("steps", "other", "words"),
    [
        (1, "other", "features.vehicle_daily.columns.distance.steps = 1: Input should be greater than or equal to 2"),
        (
            5000,
            "other",
            "features.vehicle_daily.columns.distance.steps = 5000: Input should be less than or equal to 1000",
        ),
        (
            3,
            "distance_t1",
            "the steps of 'distance' make a column 'distance_t1', which exists already; rename one",
        ),
    ],
)
def test_wrong_steps_are_refused(tmp_path: Path, steps: int, other: str, words: str) -> None:
    text = changed(toy.DATASET_YAML, "features.vehicle_daily.columns.distance", {**STEPS, "steps": steps})
    text = changed(text, f"features.vehicle_daily.columns.{other}", {"type": "float64", "description": "x"})
    assert words in refusal(tmp_path, dataset=text)


def test_an_entity_may_not_hide_behind_steps(tmp_path: Path) -> None:
    text = changed(toy.DATASET_YAML, "features.vehicle_daily.entities", ["vehicle_t0"])
    assert "declares 'vehicle_t0', which is reserved or an entity" in refusal(
        tmp_path, dataset=changed(text, "features.vehicle_daily.columns.vehicle", {**STEPS, "type": "string"})
    )


def test_every_model_has_the_alert_rules_of_the_specification(tmp_path: Path) -> None:
    drop, failures, late = load(tmp_path).model("ride_minutes").alerts
    assert (drop.name, drop.check, drop.by, drop.severity) == ("accuracy_drop", "accuracy", 0.05, "critical")  # type: ignore[union-attr]  # the first of them
    assert (failures.name, failures.count, failures.severity) == ("consecutive_failures", 2, "critical")  # type: ignore[union-attr]  # the second
    assert (late.name, late.severity) == ("late", "warning")


@pytest.mark.parametrize(
    ("alerts", "words"),
    [
        ([{"rule": "slow"}], "alerts.0 = {rule}"),
        ([{"rule": "late", "severity": "deadly"}], "alerts.0.late.severity = 'deadly'"),
        ([{"rule": "late"}, {"rule": "late"}], "the name 'late' appears twice; give one of them another `name`"),
        ([{"rule": "accuracy_drop", "outputs": ["speed"]}], "accuracy_drop names 'speed', which is not an output"),
        ([{"rule": "accuracy_drop", "by": 0}], "alerts.0.accuracy_drop.by = 0: Input should be greater than 0"),
    ],
)
def test_a_wrong_alert_rule_is_refused(tmp_path: Path, alerts: Any, words: str) -> None:
    assert words in refusal(tmp_path, model=changed(toy.MODEL_YAML, "alerts", alerts))


def test_the_catalog_stays_light() -> None:
    heavy = "[name for name in ('numpy', 'pyarrow', 'pandas', 'sklearn') if name in sys.modules]"
    code = f"import sys; from config.catalog.load import load_catalog; assert load_catalog().models; print({heavy})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]", "every task of Airflow reads the catalog first: import such where they compute"


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ("{p: {kind: multiclass, classes: [a, b]}}", ["outputs = 'p'", "minutes is a float64", "a, b need string"]),
        ("{p: {kind: multiclass, classes: [1, 2]}}", ["outputs = 'p'", "minutes is a float64", "int32 or int64"]),
        ("{p: {kind: multiclass, classes: [a]}}", ["outputs.p.classes"]),
        ("{p: {kind: multiclass, classes: [a b, A-B]}}", ["would be published as <output>_a_b, which is taken"]),
        ("{p: {kind: binary}}", ["outputs.p.above", "Field required"]),
        ("{p: {above: 1}}", ["outputs.p", f"`kind` is missing, needs one of {', '.join(map(repr, known_kinds()))}"]),
        (
            "{p: {kind: regression, interval: 0.8}, p_lower: {kind: binary, above: 1}}",
            ["two of them would publish the column 'p_lower'"],
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(tmp_path: Path, outputs: str, words: list[str]) -> None:
    text = toy.MODEL_YAML
    text = text[: text.index("outputs:")] + f"outputs: {outputs}\n" + text[text.index("trainer:") :]
    message = refusal(tmp_path, model=text)
    for word in words:
        assert word in message
