"""The page Trace: from an id or an entity to a tree of links, in sentences that help where there is none; and the
button that computes again.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa

from lake.lake import Lake
from lake.lineage import publications_table
from monitoring.alerting.runs import Run, record_run
from monitoring.audit.reproduction import NotReproduced, StillReproducing
from monitoring.pages import trace as page_module
from monitoring.pages.page import BadAddress, Context, NotFound, Page, Viewer
from monitoring.pages.render import render
from monitoring.pages.trace import HIDDEN, page, reproduce_page
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import score
from tests import toy
from tests.serving.scenario import MODEL, promote, publish_inputs, scored_nights, use_linear

NIGHT = date(2024, 1, 23)
PERSONAL = toy.DATASET_YAML.replace(
    "description: the vehicle}\n      depot", "description: the vehicle, pii: true}\n      depot"
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four nights, scored and in SQL; the scoring's run is on record; the vehicle is personal data. Not to be
    changed.
    """
    patch = pytest.MonkeyPatch()
    use_linear(patch)
    made = toy.toy_lake(tmp_path_factory.mktemp("trace"), dataset=PERSONAL)
    publish_inputs(made)
    promote(made, 1)
    score(made, MODEL, scored_nights(), run_id="night run")
    project_predictions(made, MODEL, scored_nights(), run_id="night run")
    at = datetime(2024, 1, 24, tzinfo=UTC)
    record_run(made, Run(f"{MODEL}_score", "night run", MODEL, "score", NIGHT.isoformat(), "success", at, at), at=at)
    yield made
    patch.undo()
    made.engine.dispose()


@pytest.fixture
def own(lake: Lake, tmp_path: Any) -> Lake:
    """A copy to be changed."""
    shutil.copytree(lake.settings.home, tmp_path / "var")
    return Lake(lake.settings.model_copy(update={"home": tmp_path / "var"}), lake.catalog)


def context_of(lake: Lake, **given: Any) -> Context:
    return replace(
        Context(
            lake,
            Viewer("ada", "viewer"),
            datetime(2024, 3, 1, tzinfo=UTC),
            (MODEL,),
            ("rides",),
            mlflow_url="http://mlflow",
            csrf_token="token",
        ),
        **given,
    )


def html_of(lake: Lake, found: Page) -> str:
    return unescape(render(found, context_of(lake), path="/nightfleet/trace"))


def asked(lake: Lake, **query: str) -> Page:
    return page(context_of(lake), query=query)


def row_of(lake: Lake, number: int = 3) -> dict[str, Any]:
    row: dict[str, Any] = predictions_table(lake.settings, lake.model(MODEL)).read([NIGHT]).to_pylist()[number]
    return row


# ---- one prediction --------------------------------------------------------------------------------------------


def test_a_trace_shows_the_value_and_links_everything_it_came_from(lake: Lake) -> None:
    row = row_of(lake)
    text = html_of(lake, asked(lake, id=row["prediction_id"]))
    for said in (
        row["prediction_id"],
        str(row["ride_minutes"]),
        "80 % of outcomes expected between",
        "current",
        "vehicle_daily",
        "minutes_7d",
        "signature",
        "valid",
    ):
        assert said in text, said
    links = set(re.findall(r'href="([^"]+)"', text))
    for link in (
        f"/nightfleet/models/{MODEL}",
        f"/nightfleet/models/{MODEL}/nights/{NIGHT}",
        f"/nightfleet/data/rides?table=features%2Fvehicle_daily&night={NIGHT}",
        f"/nightfleet/data/rides?table=outcomes&night={NIGHT}",
        f"/nightfleet/data/rides?table=bookings&night={NIGHT}",
        f"/dags/{MODEL}_score/runs/night%20run",
        f"/dags/{MODEL}_train",  # that run is not on record
        "http://mlflow/#/runs/run-of-linear",
        f"/nightfleet/retraining?model={MODEL}",
    ):
        assert link in links, link


def test_the_tree_is_made_of_details_that_open_without_a_script(lake: Lake) -> None:
    text = html_of(lake, asked(lake, id=row_of(lake)["prediction_id"]))
    tree = text[text.index('<section class="tree"') :]
    tree = tree[: tree.index("</section>")]
    assert tree.count("<details") == tree.count("<summary") == tree.count("</details>") > 8
    assert "style=" not in text
    assert "onclick" not in text


def test_the_tables_hold_features_and_partitions(lake: Lake) -> None:
    found = asked(lake, id=row_of(lake)["prediction_id"])
    features = found.table("features").rows
    assert [row["feature"] for row in features] == ["rides_7d", "minutes_7d"]
    assert features[1]["unit"] == "minutes"
    partitions = {row["table"]: row for row in found.table("partitions").rows}
    assert set(partitions) == {f"{MODEL}/predictions", "rides/features/vehicle_daily"}
    assert partitions[f"{MODEL}/predictions"]["run_url"] == f"/dags/{MODEL}_score/runs/night%20run"


def test_the_beginning_of_an_id_is_enough_where_it_names_one(lake: Lake) -> None:
    wanted = row_of(lake)["prediction_id"]
    assert wanted in html_of(lake, asked(lake, id=f" {wanted[:12].upper()} "))


def test_several_ids_that_begin_alike_are_offered(own: Lake) -> None:
    table = sa.table(sql_name(MODEL), sa.column("prediction_id"))
    ids = [row_of(own, number)["prediction_id"] for number in (0, 1)]
    with own.engine.begin() as connection:
        for number, found in enumerate(ids):
            connection.execute(
                table.update().where(table.c.prediction_id == found).values(prediction_id=f"abcdabcd{number:024x}")
            )
    found = asked(own, id="abcdabcd")
    assert "give more digits or choose one" in html_of(own, found)
    assert [row["id"] for row in found.table("found").rows] == [f"abcdabcd{number:024x}" for number in (0, 1)]


def test_personal_data_is_hidden_in_tree_tables_and_lists(lake: Lake) -> None:
    found = asked(lake, id=row_of(lake)["prediction_id"])
    text = html_of(lake, found)
    assert f"vehicle {HIDDEN}" in text
    assert not re.search(r"\bv[0-9]\b", text)


def test_a_prediction_of_a_model_that_one_may_not_see_is_not_there(lake: Lake) -> None:
    wanted = row_of(lake)["prediction_id"]
    context = context_of(lake, models=())
    text = render(page(context, query={"id": wanted}), context)
    assert "No prediction has an id" in text
    assert "ride_minutes_lower" not in text
    with pytest.raises(NotFound, match="no model 'ride_minutes'"):
        page(context, query={"model": MODEL, "date": NIGHT.isoformat()})


def test_a_table_that_is_not_there_is_said_and_the_index_keeps_what_it_knows(own: Lake) -> None:
    row = row_of(own)
    shutil.rmtree(own.settings.lake / MODEL / "predictions")
    text = html_of(own, asked(own, id=row["prediction_id"]))
    assert "is in SQL, but its origin cannot be read" in text
    assert "there is no table in" in text
    with own.engine.connect() as connection:
        kept = connection.execute(
            sa.select(sa.func.count()).where(publications_table.c.table_name == f"{MODEL}/predictions")
        ).scalar_one()
    assert kept == len(scored_nights()), (
        "reading a page must not forget publications, for example while a disk is not mounted"
    )


def test_features_that_expired_are_said_in_the_tree(own: Lake) -> None:
    row = row_of(own)
    shutil.rmtree(own.settings.lake / "rides/features/vehicle_daily")
    text = html_of(own, asked(own, id=row["prediction_id"]))
    assert "rides/features/vehicle_daily can no longer be read" in text
    assert str(row["ride_minutes"]) in text


# ---- looking for one -------------------------------------------------------------------------------------------


def test_night_and_entity_lead_to_the_prediction(lake: Lake) -> None:
    row = row_of(lake)
    assert row["prediction_id"] in html_of(
        lake, asked(lake, model=MODEL, date=NIGHT.isoformat(), event_date=str(row["event_date"]), ride=str(row["ride"]))
    )


def test_a_night_alone_lists_its_predictions(lake: Lake) -> None:
    found = asked(lake, model=MODEL, date=NIGHT.isoformat())
    rows = found.table("found").rows
    assert len(rows) == 30
    assert [row["entity_ride"] for row in rows[:3]] == ["1", "2", "3"]
    assert "30 predictions of ride_minutes of the night 2024-01-23." in html_of(lake, found)


def test_an_entity_that_is_not_there_is_answered_with_the_nearest(lake: Lake) -> None:
    found = asked(lake, model=MODEL, date=NIGHT.isoformat(), ride="99")
    assert "ride_minutes has no prediction of the night 2024-01-23 for ride 99. The nearest ones" in html_of(
        lake, found
    )
    assert found.table("found").rows[0]["entity_ride"] == "30"


def test_a_night_that_is_not_there_is_answered_with_its_neighbours(lake: Lake) -> None:
    text = html_of(lake, asked(lake, model=MODEL, date="2024-05-01"))
    assert (
        f"no predictions of the night 2024-05-01. The nearest nights with predictions: {scored_nights().last}." in text
    )
    assert f"/nightfleet/trace?model={MODEL}&date={scored_nights().last}" in text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"id": "123"}, "'123' is not a prediction id: an id has 32 digits 0-9a-f"),
        ({"id": "<script>alert(1)</script>"}, "is not a prediction id"),
        ({"id": "0" * 32}, "No prediction has an id that begins with"),
        ({"model": MODEL, "date": "yesterday"}, "date is 'yesterday', needs a date"),
        ({"model": MODEL, "date": NIGHT.isoformat(), "ride": "seven"}, "ride is 'seven', needs a whole number"),
        (
            {"model": MODEL, "date": NIGHT.isoformat(), "event_date": "2024-02-31"},
            "event_date is '2024-02-31', needs a date",
        ),
    ],
)
def test_what_cannot_be_found_is_said_and_the_form_stays(lake: Lake, query: dict[str, str], said: str) -> None:
    found = asked(lake, **query)
    raw = render(found, context_of(lake), path="/nightfleet/trace")
    assert said in unescape(raw)
    assert "<script>alert" not in raw
    assert 'name="id"' in raw
    assert 'name="ride"' in raw


def test_the_empty_page_offers_predictions_to_begin_with(lake: Lake) -> None:
    found = asked(lake)
    assert {row["night"] for row in found.table("examples").rows} == {scored_nights().last}
    address = found.table("examples").rows[0]["id_url"]
    assert "Trace of a prediction" in html_of(lake, asked(lake, id=address.partition("id=")[2]))


def test_an_installation_without_predictions_has_a_page(tmp_path: Any) -> None:
    empty = toy.toy_lake(tmp_path)
    assert "There are no predictions yet" in html_of(empty, asked(empty))
    assert "It has no predictions yet" in html_of(empty, asked(empty, model=MODEL, date=NIGHT.isoformat()))


def test_fields_are_typed_as_the_catalog_says(lake: Lake) -> None:
    raw = render(asked(lake, model=MODEL), context_of(lake))
    assert '<input type="date" name="event_date"' in raw
    assert '<input type="number" name="ride"' in raw


def test_an_entity_column_named_as_a_part_of_the_address_gets_another_name() -> None:
    assert page_module._field("date") == "entity.date"
    assert page_module._field("ride") == "ride"


# ---- reproducing -----------------------------------------------------------------------------------------------


def outcome(*steps: tuple[str, Any, Any, bool]) -> dict[str, Any]:
    told = [
        {"name": name, "expected": expected, "found": found, "binding": binding, "equal": expected == found}
        for name, expected, found, binding in steps
    ]
    return {"prediction_id": "x", "equal": all(step["equal"] for step in told if step["binding"]), "steps": told}


@pytest.mark.parametrize(
    ("found", "words", "absent"),
    [
        (
            outcome(("model bytes", "a", "a", True), ("code", "1", "2", False)),
            ["the prediction is identical, bit by bit, in 2 steps", "explains"],
            "was not reproduced",
        ),
        (
            outcome(("output ride_minutes", 1.0, 2.0, True)),
            ["The prediction was not reproduced", "differs"],
            "bit by bit, in",
        ),
        (
            NotReproduced("InputsExpired: rides/valid/outcomes can no longer be read"),
            ["not reproduced", "InputsExpired: rides/valid/outcomes"],
            "bit by bit, in",
        ),
        (
            StillReproducing("another prediction is being computed again"),
            ["another prediction is being computed again"],
            "bit by bit, in",
        ),
    ],
)
def test_the_button_says_what_came_of_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, found: Any, words: list[str], absent: str
) -> None:
    def pretended(_: Lake, __: str) -> dict[str, Any]:
        if isinstance(found, Exception):
            raise found
        return dict(found)

    monkeypatch.setattr(page_module, "reproduce_apart", pretended)
    text = html_of(lake, reproduce_page(context_of(lake), {"id": row_of(lake)["prediction_id"]}))
    for said in words:
        assert said in text, said
    assert absent not in text
    assert "format=csv" not in text, "what a form answered with has no address to download from"


@pytest.mark.parametrize("text", ["", "0" * 32, "not an id"])
def test_a_form_that_names_no_prediction_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(page_module, "reproduce_apart", lambda *_: pytest.fail("nothing may be computed"))
    with pytest.raises(BadAddress, match="is not a prediction id"):
        reproduce_page(context_of(lake), {"id": text})


def test_the_button_needs_a_whole_id_of_a_model_one_may_see(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "reproduce_apart", lambda *_: pytest.fail("nothing may be computed"))
    wanted = row_of(lake)["prediction_id"]
    with pytest.raises(BadAddress):
        reproduce_page(context_of(lake), {"id": wanted[:16]})
    with pytest.raises(BadAddress):
        reproduce_page(context_of(lake, models=()), {"id": wanted})


def test_a_replaced_prediction_says_so(own: Lake) -> None:
    table = sa.Table(sql_name(MODEL), sa.MetaData(), autoload_with=own.engine)
    wanted = row_of(own)["prediction_id"]
    with own.engine.begin() as connection:
        connection.execute(
            table.update()
            .where(table.c.prediction_id == wanted)
            .values(superseded_at=datetime(2024, 2, 2, 3, 4, tzinfo=UTC))
        )
    text = html_of(own, asked(own, id=wanted))
    assert "replaced" in text
    assert "2024-02-02 03:04 UTC: another row took its place" in text


def test_a_step_that_differs_tells_only_what_differs_and_nothing_personal() -> None:
    steps = [
        (
            "features riders",
            {"name": "Ada", "minutes": 1.0, "rides": 3},
            {"name": "Eve", "minutes": 2.0, "rides": 3},
            True,
        ),
        ("retrieved riders", {"riders__name": "Ada"}, {"riders__name": "Eve"}, True),
    ]
    told = page_module._reproduced({"outcome": outcome(*steps), "refusal": None}, {"riders__name"})
    assert told is not None
    assert [(step["expected"], step["found"]) for step in told["steps"].rows] == [
        (f"name {HIDDEN}, minutes 1.0", f"name {HIDDEN}, minutes 2.0"),
        (f"riders__name {HIDDEN}", f"riders__name {HIDDEN}"),
    ]
