"""Trees that rank a recommender's candidates: what they learn, resuming, rows alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb

from lake.artifact import folder_digests
from serving.predictors import load_predictor
from serving.predictors.recommender import Weights, positions
from serving.predictors.xgboost_ranking import PAIR_FEATURES, FirstStage, pairs
from tests.training.jobs import write_job
from tests.training.test_recommender import STEPS, histories, seen
from training.__main__ import run
from training.trainers import TrainingImpossible, xgboost_ranking

FAMILY = "xgboost_ranking"


def job(folder: Path, *, k: int = 2, rows: pa.Table | None = None, **params: Any) -> Path:
    """A job of the family on the recommender's toy."""
    names = ["item", *(f"item_{rank}" for rank in range(2, k + 1))]
    rows = histories() if rows is None else rows
    return write_job(
        folder,
        FAMILY,
        rows=rows,
        params={**xgboost_ranking.QUICK, **params},
        entry={
            "outputs": {"item": {"kind": "ranking", "k": k, "gate": "ndcg_loss"}},
            "trainer": {"family": FAMILY},
            "training": {"checkpoint_minutes": 1e-9},
        },
        feature_columns={f"v__seen_t{step}": "string" for step in range(STEPS)} | {"v__other": "float64"},
        output_columns=[*names, *(f"{name}_score" for name in names)],
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = job(tmp_path_factory.mktemp("ranking") / "job")
    run(folder)
    return folder


def test_trees_rank_by_what_a_sum_of_weights_cannot_say(tmp_path: Path) -> None:
    """After 10 and 11 comes 12, after one of them alone 13: no sum of what each adds says both."""
    random = np.random.default_rng(1)
    count = 800
    held = random.integers(0, 3, count)  # 10, 11, or both
    label = np.where(held == 2, 12.0, 13.0)
    noise = random.random(count) < 0.2
    label = np.where(noise, random.choice([14.0, 15.0, 16.0], count), label)
    first, second = np.where(held == 1, "11", "10"), np.where(held == 2, "11", "")
    day = np.sort(random.integers(0, 20, count))
    rows = histories(count).set_column(0, "v__seen_t0", pa.array(first)).set_column(
        1, "v__seen_t1", pa.array(second, mask=held != 2)
    )  # fmt: skip
    rows = rows.set_column(2, "v__seen_t2", pa.nulls(count, pa.string()))
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(label))
    rows = rows.set_column(
        rows.schema.get_field_index("split"), "split", pa.array(np.where(day < 15, "train", "validation"))
    )
    folder = job(tmp_path / "job", rows=rows, candidates=5)
    run(folder)
    said = load_predictor(folder).predict(seen(("10",), ("11",), ("10", "11")))
    assert said["item"].to_pylist() == [13, 13, 12]


def test_the_lists_are_nearer_than_the_most_frequent_items(trained: Path) -> None:
    metrics = json.loads((trained / "manifest.json").read_text())["metrics"]
    assert metrics["item/ndcg_loss"] < 0.8 * metrics["item/baseline_ndcg_loss"]
    said = load_predictor(trained).predict(histories(200, seed=3))
    items = np.column_stack([said["item"], said["item_2"]])
    assert (items[:, 0] != items[:, 1]).all()
    assert (said["item_score"].to_numpy() >= said["item_2_score"].to_numpy()).all()


def test_a_row_alone_is_the_row_among_others(trained: Path) -> None:
    predictor, rows = load_predictor(trained), histories(60, seed=2)
    whole = predictor.predict(rows)
    predictor.chunk_rows = 25
    assert predictor.predict(rows).equals(whole)
    assert all(predictor.predict(rows.slice(n, 1)).equals(whole.slice(n, 1)) for n in range(10))
    unknown = predictor.predict(seen(("99",), ()))
    assert unknown.slice(0, 1).equals(unknown.slice(1, 1)), "an item that training never met counts as none"


def test_killed_in_a_round_it_ends_in_the_same_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, update = job(tmp_path / "job"), xgb.Booster.update

    def dies(self: xgb.Booster, matrix: Any, done: int) -> None:
        if done == 9:
            raise KeyboardInterrupt
        update(self, matrix, done)

    monkeypatch.setattr(xgb.Booster, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    rounds: list[int] = []

    def counted(self: xgb.Booster, matrix: Any, done: int) -> None:
        rounds.append(done)
        update(self, matrix, done)

    monkeypatch.setattr(xgb.Booster, "update", counted)
    run(folder)
    assert rounds[0] == 9, "what was done is not done again"
    assert folder_digests(folder / "model") == folder_digests(trained / "model")


def test_the_trees_see_a_candidate_as_its_weights_say() -> None:
    after = Weights(
        np.vstack([np.arange(9.0).reshape(3, 3), np.zeros(3)]),
        np.vstack([np.eye(3), np.zeros(3)]),
        np.array([[0.0, 0.0, 0.5], [0.1, 0.2, 0.3]]),
    )
    together = Weights(np.vstack([np.ones((3, 3)), np.zeros(3)]), np.zeros((4, 3)), np.zeros((1, 3)))
    stage = FirstStage(after, together, np.array([0.5, 0.3, 0.2]))
    named, given = pairs(stage, np.array([[1, 3], [3, 3]]), 2, exclude_seen=True)
    assert named.tolist() == [[2, 0], [2, 0]]
    first = dict(zip(PAIR_FEATURES, given[0].tolist(), strict=True))
    assert first == pytest.approx(
        {"next": 5.3, "rank": 0, "behind": 0, "together": 1, "newest": 5, "strongest": 5, "start": 0.3, "share": 0.2,
         "items": 1}
    )  # fmt: skip
    assert dict(zip(PAIR_FEATURES, given[1].tolist(), strict=True))["behind"] == pytest.approx(3.1 - 5.3)


def test_what_cannot_be_ranked_is_refused(tmp_path: Path) -> None:
    rows = histories()
    one = rows.set_column(
        rows.schema.get_field_index("data_date"), "data_date", pa.array([19_700] * len(rows), pa.int32()).cast("date32")
    )
    with pytest.raises(TrainingImpossible, match="one night alone"):
        run(job(tmp_path / "one", rows=one))
    label = np.where(np.asarray(rows["split"]) == "train", np.asarray(rows["label"]), 77.0)
    strange = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(label))
    with pytest.raises(TrainingImpossible, match=r"of no row the item that came is among its 12 candidates"):
        run(job(tmp_path / "strange", rows=strange))


def test_as_many_candidates_as_a_list_has_at_least(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", k=6, candidates=2, n_estimators=2)
    run(folder)
    predictor = load_predictor(folder)
    assert predictor.predict(seen(())).num_columns == 12
    assert positions(predictor.contract, ["v__seen_t0"], np.array([10.0]), np.zeros((1, 4), np.float32)).shape == (1, 1)
