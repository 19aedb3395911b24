"""`run` on the real data sets, read as its user reads it. The tests of this file build on one another, in order."""

from __future__ import annotations

from datetime import date

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from config.settings import ROOT
from serving.predictions import predictions_table
from tests.e2e.conftest import Finished, User, versions
from training.job_file import read_job

# One of `make run`'s data sets, and one that runs when asked for, with three candidates; the others' trainings would
# take minutes more (`make bench` runs them). A network is trained in containers by test_docker_runner.
FIRST = {
    "arrival_delay": date(2013, 7, 1),
    "user_behavior": date(2019, 8, 12),
}
DATASETS = ("flights", "customers")
# The README's `trace` line names a prediction of the third night: its identity is a promise.
PROMISED = "0036afe648aa50a58764634b5177946a"
ROWS = {"arrival_delay": 500, "user_behavior": 20}


@pytest.fixture(scope="module")
def first_run(real_user: User, built_image: None) -> Finished:
    return real_user.command("run", "--nights", "1", *(word for name in DATASETS for word in ("--only", name)))


def test_a_night_ends_in_a_summary_with_a_promotion_of_each_model(real_user: User, first_run: Finished) -> None:
    assert first_run.code == 0, first_run.output
    for words in ("ingested", "champions", "nights", "reports", "trace", "make up"):
        assert words in first_run.output
    for model, first in FIRST.items():
        newest = real_user.lake.ledger(model).read().newest
        assert newest is not None
        assert (newest.effective_from, newest.trained_until) == (first, first - ONE_DAY)


def test_models_are_trained_in_containers_and_the_better_rival_is_taken(
    docker_engine: object, real_user: User, first_run: Finished
) -> None:
    said = {
        line.split("_train.register")[0].strip(): line
        for line in first_run.output.splitlines()
        if "_train.register" in line
    }
    assert set(said) == set(FIRST), first_run.output
    assert all("(in a container)" in line and "as a process" not in line for line in said.values()), said
    lake = real_user.lake
    for model in FIRST:
        jobs = [read_job(path) for path in (lake.settings.jobs / model).iterdir() if (path / "job.json").is_file()]
        assert len(jobs) == len(lake.model(model).trainers)
        card = lake.settings.reports / model / "model_cards" / "1.html"
        assert "Passed the gate" in card.read_text()
    families = {
        job["entry"]["trainer"]["family"]
        for job in (read_job(p) for p in (lake.settings.jobs / "user_behavior").glob("*") if (p / "job.json").is_file())
    }
    assert families == {"xgboost", "random_forest", "logistic"}


def test_no_process_is_left(real_user: User, first_run: Finished) -> None:
    assert real_user.processes() == []


@pytest.mark.parametrize("model", list(FIRST))
def test_sql_holds_the_published_predictions(real_user: User, first_run: Finished, model: str) -> None:
    lake = real_user.lake
    nights = Interval.of(FIRST[model])
    published = lake.publications.current(predictions_table(lake.settings, lake.model(model)), nights)
    assert sorted(published) == list(nights)
    with lake.engine.connect() as connection:
        query = sa.text(
            f"SELECT data_date, count(*) FROM predictions_{model} WHERE superseded_at IS NULL GROUP BY 1 ORDER BY 1"
        )
        assert [count for _, count in connection.execute(query)] == [published[day].rows for day in nights]
    assert all(p.rows >= ROWS[model] for p in published.values())


@pytest.mark.parametrize("model", list(FIRST))
def test_the_night_has_its_reports_and_a_decision(real_user: User, first_run: Finished, model: str) -> None:
    from monitoring.retraining_requests import read_requests

    text = (real_user.settings.reports / model / str(FIRST[model]) / "drift.html").read_text()
    assert 'src="http' not in text
    assert "<link" not in text or 'href="http' not in text
    assert len(read_requests(real_user.lake, model)) >= 1


@pytest.mark.parametrize("model", list(FIRST))
def test_a_prediction_is_traced_and_reproduced(real_user: User, first_run: Finished, model: str) -> None:
    with real_user.lake.engine.connect() as connection:
        prediction_id = connection.execute(sa.text(f"SELECT min(prediction_id) FROM predictions_{model}")).scalar()
    traced = real_user.command("trace", str(prediction_id), "--reproduce")
    assert traced.code == 0, traced.output
    assert str(prediction_id)[:12] in traced.output


def test_the_same_night_again_commits_nothing(real_user: User, first_run: Finished) -> None:
    before = versions(real_user.lake)
    for model, first in FIRST.items():
        dataset = real_user.lake.model(model).dataset
        from features.ingest import ingest
        from features.transform import transform
        from features.validate import validate
        from serving.score import score

        nights = Interval.of(first)
        for stage in (ingest, validate, transform):
            assert stage(real_user.lake, dataset, nights, run_id="again").committed == 0
        assert score(real_user.lake, model, nights, run_id="again").committed == 0
    assert versions(real_user.lake) == before


def test_a_second_run_goes_on_where_the_first_ended(real_user: User, first_run: Finished) -> None:
    lake, model = real_user.lake, "arrival_delay"
    promotions = len(lake.ledger(model).read().promotions)
    second = real_user.command("run", "--nights", "2", "--only", "flights")
    assert second.code == 0, second.output
    assert "history in bulk" not in second.output
    published = predictions_table(lake.settings, lake.model(model))
    nights = Interval(FIRST[model], FIRST[model] + 3 * ONE_DAY)
    assert sorted(lake.publications.current(published, nights)) == list(nights)
    assert len(lake.ledger(model).read().promotions) == promotions


def test_the_prediction_that_the_readme_traces_has_the_same_identity(real_user: User) -> None:
    assert PROMISED in (ROOT / "README.md").read_text()
    with real_user.lake.engine.connect() as connection:
        query = sa.text("SELECT data_date FROM predictions_arrival_delay WHERE prediction_id = :id")
        nights = list(connection.execute(query, {"id": PROMISED}))
    assert len(nights) == 1, "an id follows from model, version, entity, data date and input: one of them changed"
