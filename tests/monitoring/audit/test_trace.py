from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable
from rich.console import Console

import serving.score as scoring
from cli.trace_view import render_reproduction, render_trace
from config.calendar import ONE_DAY, Interval
from features.ingest import ingest
from features.transform import transform
from features.validate import validate
from lake.artifact import ArtifactMismatch
from lake.delta import PartitionDamaged
from lake.lake import Lake
from lake.publish import publish
from lake.signature import UntrustedModel
from lake.tables import feature_table, named_table, valid_table
from monitoring.audit.lookup import by_entity, nearest, newest
from monitoring.audit.trace import InputsExpired, Step, UnknownPrediction, reproduce, trace
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import rescore, score
from tests import toy
from tests.serving.rollout.scenario import begin, champion_with_nights, scored
from tests.serving.scenario import FIRST_CHAMPION, MODEL, promote, publish_inputs, scored_nights, use_linear

NIGHT = date(2024, 1, 23)


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Four nights, scored and in SQL, by two champions."""
    use_linear(monkeypatch)
    publish_inputs(toy_lake)
    promote(toy_lake, 1)
    promote(toy_lake, 2, NIGHT)
    score(toy_lake, MODEL, scored_nights(), run_id="night run")
    project_predictions(toy_lake, MODEL, scored_nights(), run_id="night run")
    return toy_lake


def one_row(lake: Lake, night: date = NIGHT) -> dict[str, Any]:
    row: dict[str, Any] = predictions_table(lake.settings, lake.model(MODEL)).read([night]).to_pylist()[3]
    return row


def one_id(lake: Lake, night: date = NIGHT) -> str:
    return str(one_row(lake, night)["prediction_id"])


def store_decision(lake: Lake, version: int, evidence_digest: str) -> None:
    """A line of `<model>/decisions` in the form the gate stores it."""
    columns = {
        "version": "int64",
        "judgement": "int64",
        "verdict": "string",
        "rival": "string",
        "reasons": "string",
        "checks": "string",
    }
    table = named_table(
        lake.settings, f"{MODEL}/decisions", columns | {"evidence_digest": "string"}, ("version", "judgement")
    )
    row = {
        "version": version,
        "judgement": 1,
        "verdict": "promote",
        "rival": "baseline median",
        "reasons": json.dumps([{"code": "better", "text": "better than the baseline"}]),
        "checks": json.dumps([{"name": "improvement", "passed": True, "challenger": 3.5, "note": None}]),
        "evidence_digest": evidence_digest,
        "data_date": date(2024, 1, 20),
    }
    day = Interval.of(date(2024, 1, 20))
    with lake.scratch("test") as scratch:
        publish(
            lake.publications,
            table,
            pa.Table.from_pylist([row], schema=table.schema),
            day,
            replaces=lake.publications.digests(table, day),
            lineage=lake.lineage(MODEL, "gate"),
            scratch=scratch,
        )


def rewrite_valid(lake: Lake, seed: int, *tables: str) -> None:
    """A restate: other rows in every valid partition, and the features computed from them."""
    whole = Interval(toy.FIRST, scored_nights().end)
    toy.publish_valid(lake, whole, seed=seed, tables=tables or ("bookings", "outcomes"))
    transform(lake, "rides", whole, run_id="restate")


# ---- trace -----------------------------------------------------------------------------------------------------


def test_a_trace_walks_back_to_the_valid_partitions_and_the_model(lake: Lake) -> None:
    store_decision(lake, 2, "evidence-2")
    row = one_row(lake)
    found = trace(lake, row["prediction_id"])

    p = found.prediction
    assert (p.model, p.role, p.version, p.data_date) == (MODEL, "champion", 2, NIGHT)
    assert p.entity == {"event_date": row["event_date"], "ride": row["ride"]}
    assert p.target_time_utc == row["target_time_utc"].astimezone(UTC)
    assert p.outputs == {name: row[name] for name in lake.model(MODEL).output_columns}
    assert p.partition.run_id == "night run"
    assert p.superseded_at is None

    (view,) = found.features
    features = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily").read([NIGHT]).to_pylist()
    (expected,) = [f for f in features if f["vehicle"] == view.entity["vehicle"]]
    assert view.values == {name: expected[name] for name in ("rides_7d", "minutes_7d")}
    assert view.partition is not None
    assert (view.partition.table, view.partition.data_date, view.partition.run_id) == (
        "rides/features/vehicle_daily",
        NIGHT,
        "history",
    )
    assert {item.table for item in view.partition.computed_from} == {"rides/valid/outcomes"}
    assert max(item.data_date for item in view.partition.computed_from) == NIGHT

    v = found.version
    assert (v.version, v.family, v.training_digest, v.mlflow_run_id, v.as_of) == (
        2,
        "linear",
        "t" * 64,
        "run-of-linear",
        "2024-01-20",
    )
    assert v.windows == {"train": {"start": "2024-01-01", "end": "2024-01-15"}}
    assert v.missing == ()
    assert found.promotion is not None
    assert (found.promotion["version"], found.promotion["effective_from"]) == (2, NIGHT)
    assert found.decision is not None
    assert (found.decision["verdict"], found.decision["checks"][0]["name"]) == ("promote", "improvement")


def test_a_trace_is_json_and_a_tree(lake: Lake) -> None:
    store_decision(lake, 2, "evidence-2")
    found = trace(lake, one_id(lake))
    document = json.loads(json.dumps(found.to_json()))
    assert document["prediction"]["data_date"] == "2024-01-23"
    assert document["features"][0]["partition"]["computed_from"][0]["table"] == "rides/valid/outcomes"
    console = Console(record=True, width=200)
    console.print(render_trace(found))
    text = console.export_text()
    for shown in (
        found.prediction.prediction_id,
        "minutes_7d",
        "night run",
        "run-of-linear",
        "gate decision promote",
        "better than the baseline",
        "2024-01-01..2024-01-14",
    ):
        assert shown in text, shown


def test_each_prediction_names_the_champion_of_its_own_night(lake: Lake) -> None:
    assert trace(lake, one_id(lake, NIGHT - ONE_DAY)).version.version == 1
    assert trace(lake, one_id(lake, NIGHT)).version.version == 2


@pytest.mark.parametrize(
    "settings", [{"strategy": "canary", "steps": [0.5, 1.0]}, {"strategy": "rolling", "by": "depot"}]
)
def test_both_roles_of_a_rollout_say_why_they_served_and_are_reproduced(
    toy_lake: Lake, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    use_linear(monkeypatch)
    lake = champion_with_nights(toy_lake)
    store_decision(lake, 2, "evidence-2")
    begin(lake, **settings)
    night = FIRST_CHAMPION + ONE_DAY
    scored(lake, night)
    rows = predictions_table(lake.settings, lake.model(MODEL)).read([night]).to_pylist()
    wanted = {(role, served) for role in ("champion", "challenger") for served in (True, False)}
    one_of_each = {(row["role"], row["served"]): row for row in rows}
    assert set(one_of_each) == wanted
    for (role, served), row in one_of_each.items():
        traced = trace(lake, row["prediction_id"])
        why = traced.service
        assert (traced.prediction.role, why.served, why.rollout, why.step) == (role, served, 1, 1)
        inside = served == (role == "challenger")
        if "steps" in settings:
            assert why.position is not None
            assert (why.position < 0.5) == inside
            side = "below" if inside else "not below"
            assert (
                f"(vehicle) lies at {why.position:.4f}, {side} the share of 0.5 in step 1 of the rollout" in why.reason
            )
        else:
            assert "The challenger served the groups" in why.reason
        assert ("so this version served it" in why.reason) == served
        assert (traced.promotion is None, traced.rollout is None) == (role == "challenger", role == "champion")
        line = traced.promotion or traced.rollout or {}
        assert (line["version"], line["kind"]) == ((1, "promotion") if role == "champion" else (2, "started"))
        console = Console(record=True, width=240)
        console.print(render_trace(traced))
        text = console.export_text()
        assert ("rollout started, line 1, in force from 2024-01-22" in text) == (role == "challenger")
        assert f"{'served' if served else 'not served'} as {role}" in text
    used = one_of_each["challenger", True]
    listed, count = by_entity(lake, MODEL, night, {"ride": used["ride"], "event_date": used["event_date"]})
    assert [(one.role, one.served) for one in listed] == [("challenger", True), ("champion", False)]
    assert count == 2
    assert all(one.served for one in newest(lake, [MODEL], each=20))
    assert all(one.served for one in nearest(lake, MODEL, night, {"ride": 999}))
    again = reproduce(lake, used["prediction_id"])
    assert again.equal
    assert Step("served", True, True) in again.steps


def test_an_entity_without_features_is_traced_to_nulls(lake: Lake) -> None:
    bookings = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    night = scored_nights().end
    toy.publish_valid(lake, Interval.of(night))
    transform(lake, "rides", Interval.of(night), run_id="history")
    rows = bookings.read([night])
    toy.publish_rows(
        lake, bookings, rows.set_column(2, "vehicle", pa.array(["unheard of"] * rows.num_rows)), Interval.of(night)
    )
    score(lake, MODEL, Interval.of(night), run_id="r")
    project_predictions(lake, MODEL, Interval.of(night), run_id="r")
    (view,) = trace(lake, one_id(lake, night)).features
    assert view.entity == {"vehicle": "unheard of"}
    assert view.values == {"rides_7d": None, "minutes_7d": None}
    assert (view.partition, view.expired) == (None, None)
    assert reproduce(lake, one_id(lake, night)).equal


def test_a_value_is_traced_to_the_older_partition_it_came_from(lake: Lake) -> None:
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    night = scored_nights().end
    toy.publish_valid(lake, Interval.of(night))
    toy.publish_rows(lake, table, table.schema.empty_table(), Interval.of(night), inputs={night: []})
    score(lake, MODEL, Interval.of(night), run_id="r")
    project_predictions(lake, MODEL, Interval.of(night), run_id="r")
    found = trace(lake, one_id(lake, night))
    assert found.features[0].partition is not None
    assert found.features[0].partition.data_date == night - ONE_DAY
    assert reproduce(lake, one_id(lake, night)).equal


def test_a_replaced_prediction_is_still_traced_to_what_it_was_made_from(lake: Lake) -> None:
    before, values = one_id(lake), trace(lake, one_id(lake)).features[0].values
    rewrite_valid(lake, 7, "outcomes")
    rescore(lake, MODEL, scored_nights(), run_id="person")
    project_predictions(lake, MODEL, scored_nights(), run_id="person")
    found = trace(lake, before)
    assert found.prediction.superseded_at is not None
    assert found.prediction.partition.run_id == "night run"
    assert found.features[0].values == values
    after = trace(lake, one_id(lake))
    assert after.prediction.superseded_at is None
    assert after.prediction.partition.run_id == "person"
    assert after.features[0].values != values
    assert reproduce(lake, before).equal
    assert reproduce(lake, one_id(lake)).equal


def test_an_unknown_id_is_told_where_to_find_one(lake: Lake, tmp_path: Any) -> None:
    with pytest.raises(UnknownPrediction, match=rf"no prediction 'abc'.\n.*{MODEL}.* for example [0-9a-f]{{32}}\."):
        trace(lake, "abc")
    empty = toy.toy_lake(tmp_path / "other")
    with pytest.raises(UnknownPrediction, match="Nothing is published yet"):
        trace(empty, "abc")


def test_what_is_missing_about_a_version_is_said(lake: Lake) -> None:
    shutil.rmtree(lake.settings.artifacts / MODEL)
    found = trace(lake, one_id(lake))
    assert found.version.training_digest is None
    assert "manifest.json" in found.version.missing
    assert found.decision is None


# ---- reproduce -------------------------------------------------------------------------------------------------


def test_every_step_comes_out_equal(lake: Lake) -> None:
    found = reproduce(lake, one_id(lake))
    assert found.equal
    assert all(step.equal for step in found.steps), [step for step in found.steps if not step.equal]
    names = [step.name for step in found.steps]
    for name in (
        "published row",
        "partition rides/features/vehicle_daily 2024-01-23",
        "features vehicle_daily",
        "retrieved vehicle_daily",
        "model bytes",
    ):
        assert name in names
    for name in ("input digest", "output ride_minutes", "output long_probability", "prediction id"):
        assert name in names
    console = Console(record=True, width=200)
    console.print(render_reproduction(found))
    assert "reproduced: every step is equal" in console.export_text()


def test_a_prediction_is_reproduced_from_what_was_known_though_everything_was_restated(lake: Lake) -> None:
    prediction_id = one_id(lake)
    rewrite_valid(lake, 7)
    assert reproduce(lake, prediction_id).equal


def differing(lake: Lake, prediction_id: str) -> set[str]:
    found = reproduce(lake, prediction_id)
    assert not found.equal
    return {step.name for step in found.steps if not step.equal}


def test_an_edited_sql_row_is_found_out(lake: Lake) -> None:
    prediction_id = one_id(lake)
    table = sa.Table(sql_name(MODEL), sa.MetaData(), autoload_with=lake.engine)
    with lake.engine.begin() as connection:
        connection.execute(
            table.update()
            .where(table.c.prediction_id == prediction_id)
            .values(ride_minutes=table.c.ride_minutes + 1e-12)
        )
    assert differing(lake, prediction_id) == {"published row", "output ride_minutes"}


@pytest.mark.parametrize("edited", ["features/vehicle_daily", "valid/outcomes"])
def test_edited_rows_are_refused_before_anything_is_computed_from_them(lake: Lake, edited: str) -> None:
    prediction_id = one_id(lake)
    dataset = lake.dataset("rides")
    table = (
        valid_table(lake.settings, dataset, "outcomes")
        if edited == "valid/outcomes"
        else feature_table(lake.settings, dataset, "vehicle_daily")
    )
    (file,) = table.files([NIGHT])
    rows = pq.ParquetFile(file).read()
    pq.write_table(rows.slice(0, rows.num_rows // 2), file)
    with pytest.raises(PartitionDamaged, match=rf"rides/{edited}, partition data_date={NIGHT}"):
        reproduce(lake, prediction_id)


def test_other_code_explains_and_does_not_fail(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.audit.trace.code_version", lambda: "other")
    found = reproduce(lake, one_id(lake))
    assert found.equal
    assert [step.name for step in found.steps if not step.equal] == ["code"]
    console = Console(record=True, width=200)
    console.print(render_reproduction(found))
    assert "differs code (explains differences, is none itself)" in console.export_text()


def test_an_edited_model_is_refused(lake: Lake) -> None:
    scoring._loaded.cache_clear()
    for file in lake.settings.artifacts.rglob("slope.txt"):
        file.write_text("9.9")
    with pytest.raises(ArtifactMismatch):
        reproduce(lake, one_id(lake))


def test_a_model_nobody_signed_reproduces_nothing(lake: Lake) -> None:
    scoring._loaded.cache_clear()
    for signature in lake.settings.artifacts.rglob("signature.json"):
        signature.unlink()
    with pytest.raises(UntrustedModel, match="nobody vouches for it"):
        reproduce(lake, one_id(lake))


def test_a_model_that_is_gone_has_expired(lake: Lake) -> None:
    shutil.rmtree(lake.settings.artifacts / MODEL)
    with pytest.raises(InputsExpired, match=r"the files of ride_minutes version 2 .* are gone. Restore"):
        reproduce(lake, one_id(lake))


@pytest.mark.parametrize("table", ["rides/features/vehicle_daily", "rides/valid/bookings", "rides/valid/outcomes"])
def test_vacuumed_versions_have_expired(lake: Lake, table: str) -> None:
    prediction_id = one_id(lake)
    rewrite_valid(lake, 7)
    assert reproduce(lake, prediction_id).equal
    DeltaTable(lake.settings.lake / table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(
        InputsExpired,
        match=rf"{table} can no longer be read at version \d+: \d+ of its files are gone.*\n.*cannot be computed again",
    ):
        reproduce(lake, prediction_id)
    found = trace(lake, prediction_id)
    assert (found.features[0].expired is None) == (table == "rides/valid/outcomes"), (
        "trace shows what can still be read, and says what cannot"
    )
    Console(record=True).print(render_trace(found))


def test_a_table_made_anew_has_expired(lake: Lake) -> None:
    prediction_id = one_id(lake)
    shutil.rmtree(lake.settings.lake / "rides/features/vehicle_daily")
    toy.publish_features(lake, Interval(toy.FIRST, scored_nights().end))
    with pytest.raises(
        InputsExpired,
        match=r"partition 2024-01-20 there is not the one that was recorded; the table was recreated since",
    ):
        reproduce(lake, prediction_id)


def test_equal_means_the_same_bits_and_type() -> None:
    assert Step("x", float("nan"), float("nan")).equal
    assert not Step("x", 0.0, -0.0).equal
    assert not Step("x", None, 0).equal
    assert not Step("x", 1, 1.0).equal
    assert Step("x", {"a": datetime(2024, 1, 1, tzinfo=UTC)}, {"a": datetime(2024, 1, 1, tzinfo=UTC)}).equal


def test_a_prediction_after_rows_were_closed_is_traced_and_reproduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night's delivery lacks a day's outcomes: its features are those without them, now and whenever asked."""
    use_linear(monkeypatch)
    outcomes = "source: {kind: file, uri: source/outcomes.csv}"
    dataset = toy.DATASET_YAML.replace(outcomes, f"{outcomes}\n    deletes: close")
    lake = toy.toy_lake(tmp_path, source=Interval(toy.FIRST, NIGHT + 2 * ONE_DAY), dataset=dataset)

    def prepare(nights: Interval) -> None:
        for stage in (ingest, validate, transform):
            stage(lake, "rides", nights, run_id="night run")

    prepare(Interval(toy.FIRST, NIGHT))
    delivered = tmp_path / "source" / "outcomes.csv"
    gone = (NIGHT - 2 * ONE_DAY).isoformat()
    lines = delivered.read_text().splitlines(keepends=True)
    delivered.write_text("".join(line for line in lines if not line.startswith(gone)))
    prepare(Interval.of(NIGHT))
    promote(lake, 1)
    score(lake, MODEL, Interval.of(NIGHT), run_id="night run")
    project_predictions(lake, MODEL, Interval.of(NIGHT), run_id="night run")

    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    rides = {day: sum(table.read([day])["rides_7d"].to_pylist()) for day in (NIGHT - ONE_DAY, NIGHT)}
    closed = sum(line.startswith(gone) for line in lines)
    assert closed > 0
    assert rides[NIGHT] <= rides[NIGHT - ONE_DAY] - closed // 2, "without that day"
    again = reproduce(lake, one_id(lake))
    assert again.equal, again.to_json()
