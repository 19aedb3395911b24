from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.chain import (
    Chain,
    NoFirstChampion,
    NothingToReplay,
    Step,
    TaskFailed,
    first_run_id,
    make_plan,
    monitored_until,
    published_until,
    task_error,
)
from config.calendar import ONE_DAY, Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from lake.lake import Lake
from lake.ledger import Promotion
from lake.rollouts import RolloutLine
from tests import toy
from tests.monitoring.scenario import decide_gate


def test_the_first_run_loads_all_history_up_to_the_night_before(toy_lake: Lake) -> None:
    plan = make_plan(toy_lake, 3, None)
    assert plan.history == {"rides": Interval(toy.FIRST, toy.FIRST_NIGHT)}
    assert plan.nights == tuple({"rides": toy.FIRST_NIGHT + timedelta(days=i)} for i in range(3))
    assert [(m.name, as_of) for m, as_of in plan.first_models(toy_lake.catalog)] == [
        ("ride_minutes", toy.FIRST_NIGHT - timedelta(days=1))
    ]


def test_a_night_may_be_chosen_inside_the_replay(toy_lake: Lake) -> None:
    chosen = date(2024, 5, 1)
    plan = make_plan(toy_lake, 1, chosen)
    assert plan.first_nights == {"rides": chosen}
    assert plan.history == {"rides": Interval(toy.FIRST, chosen)}


def test_a_night_outside_every_replay_leaves_each_its_own(toy_lake: Lake) -> None:
    assert make_plan(toy_lake, 1, date(1999, 1, 1)).first_nights == {"rides": toy.FIRST_NIGHT}


def test_one_data_set_may_be_chosen_alone(toy_lake: Lake) -> None:
    assert make_plan(toy_lake, 1, None, ["rides"]).first_nights == {"rides": toy.FIRST_NIGHT}
    with pytest.raises(BadCatalog, match="there is no data set 'boats'. Known: rides"):
        make_plan(toy_lake, 1, None, ["boats"])


def test_a_data_set_that_waits_to_be_asked_for_runs_when_it_is_and_goes_on_once_begun(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, dataset=toy.DATASET_YAML + "run_by_default: false\n")
    with pytest.raises(NothingToReplay):
        make_plan(lake, 1, None)
    asked = {"rides": toy.FIRST_NIGHT}
    assert make_plan(lake, 1, None, ["rides"]).first_nights == asked
    assert make_plan(lake, 1, None, whole=True).first_nights == asked
    toy.publish_features(lake, Interval(toy.FIRST, date(2024, 2, 1)))
    assert make_plan(lake, 1, None).first_nights == asked


def test_whether_a_data_set_runs_by_default_is_no_part_of_the_catalog_s_digest(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, dataset=toy.DATASET_YAML + "run_by_default: false\n")
    assert lake.catalog.digest("rides") == toy.toy_lake(tmp_path / "other").catalog.digest("rides")


def test_what_is_loaded_is_not_loaded_again(toy_lake: Lake) -> None:
    toy.publish_features(toy_lake, Interval(toy.FIRST, date(2024, 2, 1)))
    assert published_until(toy_lake, toy_lake.dataset("rides")) == date(2024, 1, 31)
    assert make_plan(toy_lake, 1, None).history == {"rides": Interval(date(2024, 2, 1), toy.FIRST_NIGHT)}
    toy.publish_features(toy_lake, Interval(date(2024, 2, 1), toy.FIRST_NIGHT))
    assert make_plan(toy_lake, 1, None).history == {}


def test_the_last_night_of_a_replay_is_the_last(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(make_plan(toy_lake, 5, toy.LAST).nights) == 1
    monkeypatch.setattr("cli.chain.monitored_until", lambda lake, dataset: toy.LAST)
    with pytest.raises(NothingToReplay, match="no replay has a night left to run(?s:.*)rides 2024-01-01 to 2024-12-31"):
        make_plan(toy_lake, 1, None)


def test_a_task_s_error_is_read_from_its_log(tmp_path: Path) -> None:
    log = tmp_path / "attempt=1.log"
    detail = [
        {"exc_type": "DataRejected", "exc_value": "DataRejected: rides/raw/bookings: too many"},
        {"exc_type": "ValueError", "exc_value": "its cause"},
    ]
    log.write_text(
        json.dumps({"event": "working"})
        + "\n"
        + json.dumps({"event": "failed", "error_detail": detail})
        + "\nnot json\n"
    )
    assert task_error(log) == "DataRejected: rides/raw/bookings: too many"
    log.write_text(json.dumps({"error_detail": [{"exc_type": "KeyError", "exc_value": "'x'"}]}))
    assert task_error(log) == "KeyError: 'x'"
    assert "left no log" in task_error(tmp_path / "none.log")


# ---- approvals ---------------------------------------------------------------------------------------------------

ASKING = toy.MODEL_YAML + "approval: required\n"
AS_OF = toy.FIRST_NIGHT - timedelta(days=1)


class Answers:
    """Airflow's API, as far as the chain asks it: runs with the states of their tasks."""

    def __init__(self, runs: dict[str, tuple[str, dict[str, str]]]) -> None:
        self.runs = runs
        self.released: list[str] = []

    def trigger(self, dag_id: str, run_id: str, **_: Any) -> bool:
        self.released.append(dag_id)
        return True

    def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        return (
            {
                "dag_id": dag_id,
                "dag_run_id": run_id,
                "partition_key": str(toy.FIRST_NIGHT),
                "state": self.runs[dag_id][0],
            }
            if dag_id in self.runs
            else None
        )

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return [
            {"task_id": name, "dag_id": dag_id, "state": state, "duration": 1.0, "try_number": 1}
            for name, state in self.runs[dag_id][1].items()
        ]

    def result(self, dag_id: str, run_id: str, task_id: str) -> Any:
        return None

    def listed(self, path: str, key: str, **params: Any) -> list[dict[str, Any] | None]:
        if key == "task_instances":
            everything = [task for dag_id in self.runs for task in self.tasks(dag_id, "any")]
            return [task for task in everything if task["state"] == params["state"]]
        return [self.run(dag_id, "night") for dag_id in self.runs]


class Quiet:
    """Nothing ever dies."""

    def check(self) -> None:
        return


def chain_of(lake: Lake, folder: Path, runs: dict[str, tuple[str, dict[str, str]]]) -> tuple[Chain, list[str]]:
    shown: list[str] = []

    def redraw(step: Step) -> None:
        shown.extend(
            f"{task.dag_id}.{task.task_id} {task.state}" for run in step.runs.values() for task in run.tasks.values()
        )

    return Chain(lake, Answers(runs), Quiet(), folder, redraw), shown  # type: ignore[arg-type]


def test_a_first_training_that_waits_for_approval_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=ASKING)
    chain, shown = chain_of(
        lake,
        tmp_path,
        {"ride_minutes_train": ("running", {"gate": "success", "approve": "awaiting_input", "promote": "none"})},
    )
    chain.train({"ride_minutes": AS_OF}, "first")
    chain.require_champions({"ride_minutes": AS_OF})
    assert "ride_minutes_train.approve awaiting_input" in shown


def test_a_model_that_waits_for_its_first_approval_does_not_stop_the_night(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=ASKING)
    runs = {
        "rides_ingest": ("success", {}),
        "ride_minutes_score": ("failed", {"score": "failed", "publish": "upstream_failed"}),
    }
    chain, shown = chain_of(lake, tmp_path, runs)
    chain.night({"rides": toy.FIRST_NIGHT})
    assert "ride_minutes_score.score failed" in shown
    without = toy.toy_lake(tmp_path / "other")
    chain, _ = chain_of(without, tmp_path, runs)
    with pytest.raises(TaskFailed, match=r"ride_minutes_score.score"):
        chain.night({"rides": toy.FIRST_NIGHT})


def _crowned(lake: Lake) -> Lake:
    ledger = lake.ledger("ride_minutes")
    line = Promotion("ride_minutes", 1, AS_OF, toy.FIRST_NIGHT, datetime(2024, 3, 1, tzinfo=UTC), "ada", "d", "e")
    ledger.append(line, seen=ledger.read())
    return lake


def test_once_there_is_a_champion_a_failed_scoring_stops_the_night(tmp_path: Path) -> None:
    lake = _crowned(toy.toy_lake(tmp_path, model=ASKING))
    chain, _ = chain_of(
        lake, tmp_path, {"rides_ingest": ("success", {}), "ride_minutes_score": ("failed", {"score": "failed"})}
    )
    with pytest.raises(TaskFailed, match=r"ride_minutes_score.score"):
        chain.night({"rides": toy.FIRST_NIGHT})


@pytest.mark.parametrize(
    ("state", "tasks"),
    [
        ("running", {"gate": "success", "approve": "awaiting_input"}),
        ("queued", {}),  # behind another training of the model, which waits
        ("failed", {"gate": "success", "approve": "failed", "promote": "upstream_failed"}),
    ],
)
def test_no_answer_and_no_no_stops_a_night(tmp_path: Path, state: str, tasks: dict[str, str]) -> None:
    lake = _crowned(toy.toy_lake(tmp_path, model=ASKING))
    runs: dict[str, tuple[str, dict[str, str]]] = {
        f"ride_minutes_{kind}": ("success", {}) for kind in ("score", "monitor")
    }
    runs |= {"rides_ingest": ("success", {}), "ride_minutes_train": (state, tasks)}
    chain, shown = chain_of(lake, tmp_path, runs)
    api: Any = chain._api
    real = api.tasks
    if state == "queued":
        api.tasks = lambda dag_id, run_id: [
            *real(dag_id, run_id),
            *([_awaiting(dag_id)] if run_id == "any" and dag_id.endswith("_train") else []),
        ]
    api.result = lambda dag_id, run_id, task_id: {"details": {"requested": True}}
    runs["ride_minutes_monitor"] = ("success", {"decide": "success"})
    chain.night({"rides": toy.FIRST_NIGHT})
    assert f"ride_minutes_train.approve {'failed' if state == 'failed' else 'awaiting_input'}" in shown


def _awaiting(dag_id: str) -> dict[str, Any]:
    return {"task_id": "approve", "dag_id": dag_id, "state": "awaiting_input", "duration": None, "try_number": 1}


def test_another_failure_of_the_training_still_stops_the_chain(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=ASKING)
    chain, _ = chain_of(
        lake, tmp_path, {"ride_minutes_train": ("failed", {"gate": "failed", "approve": "upstream_failed"})}
    )
    with pytest.raises(TaskFailed, match=r"ride_minutes_train.gate"):
        chain.train({"ride_minutes": AS_OF}, "first")


def test_a_first_champion_that_was_rejected_is_no_champion(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path, model=ASKING)
    chain, _ = chain_of(
        lake,
        tmp_path,
        {"ride_minutes_train": ("failed", {"gate": "success", "approve": "failed", "promote": "upstream_failed"})},
    )
    chain.train({"ride_minutes": AS_OF}, "first")
    with pytest.raises(NoFirstChampion, match="ride_minutes"):
        chain.require_champions({"ride_minutes": AS_OF})


def test_one_failed_training_lets_the_others_end_before_it_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = toy.toy_lake(tmp_path)
    runs: dict[str, tuple[str, dict[str, str]]] = {
        "ride_minutes_train": ("failed", {"prepare": "failed"}),
        "ride_delay_train": ("running", {"train": "running"}),
    }
    chain, shown = chain_of(lake, tmp_path, runs)

    def wait(_seconds: float) -> None:
        runs["ride_delay_train"] = ("success", {"train": "success", "gate": "success"})

    monkeypatch.setattr("cli.chain.time.sleep", wait)
    with pytest.raises(TaskFailed, match=r"ride_minutes_train.prepare .* failed"):
        chain.train({"ride_minutes": AS_OF, "ride_delay": AS_OF}, "first")
    assert "ride_delay_train.gate success" in shown


def test_without_a_champion_the_run_ends_with_the_gate_s_evidence(toy_lake: Lake, tmp_path: Path) -> None:
    decide_gate(toy_lake, as_of=AS_OF, verdict="refuse")
    chain, _ = chain_of(toy_lake, tmp_path, {"ride_minutes_train": ("success", {"gate": "success"})})
    chain.train({"ride_minutes": AS_OF}, "first")
    with pytest.raises(NoFirstChampion, match="ride_minutes version 1 as of 2024-02-29: refuse"):
        chain.require_champions({"ride_minutes": AS_OF})


def test_a_refused_version_that_runs_along_has_nights_to_show(toy_lake: Lake, tmp_path: Path) -> None:
    decide_gate(toy_lake, as_of=AS_OF, verdict="refuse")
    ledger, night = toy_lake.rollouts("ride_minutes"), AS_OF + ONE_DAY
    settings = json.dumps({"strategy": "shadow", "salt": "s", "unit": [], "steps": [{"share": 0.0}], "alone": True})
    at = datetime(2024, 3, 1, tzinfo=UTC)
    line = RolloutLine("ride_minutes", 1, "started", AS_OF, night, at, "run", "a", "e", "refused", settings=settings)
    ledger.append(line, seen=ledger.read())
    chain, _ = chain_of(toy_lake, tmp_path, {"ride_minutes_train": ("success", {"gate": "success"})})
    chain.require_champions({"ride_minutes": AS_OF})
    assert chain.refused == {}


def test_the_others_nights_go_on_without_a_model_whose_first_version_was_refused(tmp_path: Path) -> None:
    lake = _crowned(toy.toy_lake(tmp_path))
    chain, _ = chain_of(lake, tmp_path, {})
    chain.require_champions({"ride_minutes": AS_OF, "ride_delay": AS_OF})
    assert chain.refused == {"ride_delay": "ride_delay as of 2024-02-29: no decision was stored."}

    without = toy.toy_lake(tmp_path / "without")
    runs = {"rides_ingest": ("success", {}), "ride_minutes_score": ("failed", {"score": "failed"})}
    chain, shown = chain_of(without, tmp_path, runs)
    chain.refused = {"ride_minutes": "refuse"}
    chain.night({"rides": toy.FIRST_NIGHT})
    assert "ride_minutes_score.score failed" in shown


def test_a_model_without_a_champion_does_not_hold_back_its_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy.write_catalog(tmp_path)
    other = toy.MODEL_YAML.replace("model: ride_minutes", "model: ride_delay")
    (tmp_path / "models" / "ride_delay.yaml").write_text(other, encoding="utf-8")
    lake = Lake(settings, load_catalog(settings))
    monkeypatch.setattr(
        "monitoring.retraining_requests.newest_decided",
        lambda lake, model: toy.FIRST_NIGHT if model == "ride_minutes" else None,
    )
    assert monitored_until(_crowned(lake), lake.dataset("rides")) == toy.FIRST_NIGHT
    ledger = lake.ledger("ride_delay")
    line = Promotion("ride_delay", 1, AS_OF, toy.FIRST_NIGHT, datetime(2024, 3, 1, tzinfo=UTC), "ada", "d", "e")
    ledger.append(line, seen=ledger.read())
    assert monitored_until(lake, lake.dataset("rides")) is None, "that night of its champion is to come"


def test_before_the_first_run_no_ledger_is_read(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(self: Lake, model: str) -> None:
        raise AssertionError(f"the ledger of {model} was read, though there is no key yet")

    monkeypatch.setattr(Lake, "ledger", asked)
    make_plan(toy_lake, 1, None)


def test_a_first_training_that_was_refused_is_tried_again_once_its_entry_has_changed(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path)
    assert first_run_id(lake, "ride_minutes", AS_OF) == f"first__{AS_OF}"
    decide_gate(lake, as_of=AS_OF, verdict="refuse")
    refused = first_run_id(lake, "ride_minutes", AS_OF)
    settings = toy.write_catalog(tmp_path, model=toy.MODEL_YAML + "gate: {max_milliseconds_per_row: 50}\n")
    mended = Lake(settings, load_catalog(settings))
    assert len({f"first__{AS_OF}", refused, first_run_id(mended, "ride_minutes", AS_OF)}) == 3


def test_nights_that_passed_without_a_champion_are_not_run_again(tmp_path: Path) -> None:
    lake = toy.toy_lake(tmp_path)
    third = toy.FIRST_NIGHT + timedelta(days=2)
    toy.publish_features(lake, Interval(toy.FIRST, third))
    assert make_plan(lake, 1, None).first_nights == {"rides": third}
    assert make_plan(_crowned(lake), 1, None).first_nights == {"rides": toy.FIRST_NIGHT}, "its nights are to be scored"
    asked = toy.toy_lake(tmp_path / "asked", model=ASKING)
    toy.publish_features(asked, Interval(toy.FIRST, third))
    decide_gate(asked, as_of=AS_OF, verdict="promote")
    assert make_plan(asked, 1, None).first_nights == {"rides": toy.FIRST_NIGHT}, "a person has the word"
    later = toy.toy_lake(tmp_path / "later")
    toy.publish_features(later, Interval(toy.FIRST, third))
    ledger = later.ledger("ride_minutes")
    line = Promotion("ride_minutes", 1, AS_OF, third, datetime(2024, 3, 1, tzinfo=UTC), "ada", "d", "e")
    ledger.append(line, seen=ledger.read())
    assert make_plan(later, 1, None).first_nights == {"rides": third}, "promoted after nights that nobody scored"
