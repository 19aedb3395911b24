"""MLflow's database is lost: versions keep their numbers, and a challenger is judged against who really tenures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from config.calendar import Interval
from lake.lake import Lake
from lake.ledger import Promotion
from tests import toy
from training.registry import register as register_module
from training.registry.gate import judge
from training.registry.job import prepare_job
from training.registry.leakage import Audit
from training.registry.numbers import Numbers, VersionNumberTaken, given_numbers
from training.registry.promotion import repair_alias
from training.registry.register import Registered, register
from training.registry.runner import run_job
from training.registry.tracking import tracking_client

MODEL, AS_OF = "ride_minutes", date(2024, 3, 1)


def log_nothing_but_the_model(uri: str, mlflow_run: str, *_: Any) -> None:
    """In the place of the copy for analysts, which takes seconds."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

    client = MlflowClient(uri)
    logged = client.create_logged_model(
        client.get_run(mlflow_run).info.experiment_id, "model", source_run_id=mlflow_run
    )
    client.log_outputs(mlflow_run, [LoggedModelOutput(logged.model_id, 0)])


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """Two months of rides, and an MLflow that is one file."""
    import mlflow

    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of such a database
    monkeypatch.setattr(register_module, "_log_pyfunc", log_nothing_but_the_model)
    monkeypatch.setattr(register_module, "importance_plot", lambda _document, _title, path: path.write_bytes(b""))
    monkeypatch.setattr("training.registry.leakage.audit", lambda *_, **__: Audit((AS_OF,), 1, 1, 0, (), 0.0))
    made = toy.toy_lake(tmp_path)
    nights = Interval.closed(date(2024, 1, 1), AS_OF)
    toy.publish_valid(made, nights)
    toy.publish_features(made, nights)
    uri, elsewhere = f"sqlite:///{tmp_path / 'mlflow.db'}", mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)  # where such a database looks up the models that it names, whoever asked
    yield replace(made, settings=made.settings.model_copy(update={"mlflow_tracking_uri": uri}))
    mlflow.set_tracking_uri(elsewhere)


def trained(lake: Lake, run_id: str, **overrides: Any) -> Path:
    job_dir = prepare_job(lake, MODEL, as_of=AS_OF, run_id=run_id, overrides={"threads": 1, **overrides})
    run_job(lake, MODEL, job_dir, say=lambda line: None)
    return job_dir


def crown(lake: Lake, registered: Registered) -> None:
    ledger = lake.ledger(MODEL)
    number, digest = registered.version, registered.artifact_digest
    line = Promotion(MODEL, number, AS_OF, AS_OF, datetime(2024, 3, 1, tzinfo=UTC), "run", digest, "evidence")
    ledger.append(line, seen=ledger.read())


def test_numbers_go_on_and_the_gate_judges_against_the_champion_in_force(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_job, second_job = trained(lake, "first", n_estimators=8), trained(lake, "second", n_estimators=9)
    first = register(lake, MODEL, first_job, run_id="first")
    assert first.version == 1
    crown(lake, first)

    tracking_client(lake.settings).delete_registered_model(MODEL)
    with monkeypatch.context() as former:  # numbers began again
        former.setattr(register_module, "given_numbers", lambda *_: Numbers((), 0))
        renumbered = register(lake, MODEL, second_job, run_id="second")
    assert renumbered.version == 1
    with pytest.raises(VersionNumberTaken, match=r"was handed over as version 1\. Nothing was judged"):
        judge(lake, MODEL, second_job, renumbered, run_id="second")

    second = register(lake, MODEL, second_job, run_id="second")
    assert (second.version, second.artifact_digest) == (2, renumbered.artifact_digest)
    judged = judge(lake, MODEL, second_job, second, run_id="second")
    assert (judged.incumbent, judged.incumbent_version) == ("champion version 1", 1)
    # MLflow's version 1 is the second model still: it is not shown as champion.
    assert "MLflow has no version 1" in str(repair_alias(lake, MODEL).warning)

    # The champion's own files, trained again: they have the number that the ledger knows.
    again = register(lake, MODEL, first_job, run_id="again")
    assert (again.version, again.artifact_digest) == (1, first.artifact_digest)
    assert register(lake, MODEL, first_job, run_id="once more") == again
    with pytest.raises(VersionNumberTaken):
        judge(lake, MODEL, first_job, replace(again, version=7), run_id="again")

    cards = lake.settings.reports / MODEL / "model_cards"
    cards.mkdir(parents=True)
    (cards / "6.html").write_text("")
    highest = given_numbers(lake, MODEL).highest
    assert highest == 6, "the number of a card is never given again"
    client = tracking_client(lake.settings)
    register_module._create_version(client, MODEL, second.mlflow_run_id, {}, least=highest + 1)
    assert max(int(v.version) for v in client.search_model_versions(f"name = '{MODEL}'")) == 7
    with pytest.raises(VersionNumberTaken, match="needs number 1,000,000,000, but MLflow is at 7"):
        register_module._create_version(client, MODEL, second.mlflow_run_id, {}, least=10**9)
