"""Recommenders: what goes with what, unknown items, empty and whole histories, and what is refused before a fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from lake.artifact import folder_digests
from serving.predictors import explainer_of, load_predictor
from serving.predictors.recommender import Weights, positions, ranked
from serving.predictors.shapley import Sample
from tests.training.jobs import write_job
from training.__main__ import run
from training.trainers import TrainingImpossible, recommender

STEPS = 3
GROUPS = (10, 20, 30)  # an item n goes with n + 1, n + 2 and n + 3


def histories(count: int = 600, seed: int = 1) -> pa.Table:
    """Rows whose history and label are of one group; the groups are not equally frequent."""
    random = np.random.default_rng(seed)
    group = random.choice(GROUPS, count, p=(0.5, 0.3, 0.2))
    drawn = np.argsort(random.random((count, 4)), axis=1)[:, : STEPS + 1] + group[:, None]
    known = random.integers(0, STEPS + 1, count)
    columns = {
        f"v__seen_t{step}": pa.array([str(n) for n in drawn[:, step + 1]], mask=known <= step) for step in range(STEPS)
    }
    came = drawn[:, 0].copy()
    came[:40] = drawn[:40, 1]  # came again, where it is in the history
    day = np.sort(random.integers(0, 20, count))
    return pa.table(
        {
            **columns,
            "v__other": pa.array(random.normal(size=count)),
            "data_date": pa.array(19_700 + day, pa.int32()).cast(pa.date32()),
            "label": came.astype(np.float64),
            "baseline": pa.nulls(count, pa.float64()),
            "split": np.where(day < 15, "train", "validation"),
        }
    )


def job(folder: Path, *, k: int = 2, rows: pa.Table | None = None, **params: Any) -> Path:
    """A job of the recommender on such rows."""
    output = {"kind": "ranking", "k": k, "gate": "ndcg_loss"}
    names = ["item", *(f"item_{rank}" for rank in range(2, k + 1))]
    rows = histories() if rows is None else rows
    kinds = {name: "string" if pa.types.is_string(rows[name].type) else "float64" for name in rows.column_names}
    return write_job(
        folder,
        "recommender",
        rows=rows,
        params=params,
        entry={"outputs": {"item": output}, "trainer": {"family": "recommender"}},
        feature_columns={name: kind for name, kind in kinds.items() if name.startswith("v__")},
        output_columns=[*names, *(f"{name}_score" for name in names)],
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = job(tmp_path_factory.mktemp("recommender") / "job")
    run(folder)
    return folder


def seen(*rows: tuple[str | None, ...]) -> pa.Table:
    """Rows of such histories, newest first."""
    filled = [(*row, *([None] * (STEPS - len(row)))) for row in rows]
    columns = {f"v__seen_t{step}": pa.array([row[step] for row in filled], pa.string()) for step in range(STEPS)}
    return pa.table(columns | {"v__other": pa.array(np.zeros(len(rows)))})


@pytest.fixture(scope="module")
def trained_ease(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = job(tmp_path_factory.mktemp("ease") / "job", method="ease")
    run(folder)
    return folder


@pytest.mark.parametrize("method", ["next", "ease"])
def test_items_of_the_same_group_are_found(method: str, trained: Path, trained_ease: Path) -> None:
    folder = trained if method == "next" else trained_ease
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert metrics["item/ndcg_loss"] < 0.8 * metrics["item/baseline_ndcg_loss"]
    said = load_predictor(folder).predict(seen(("31",), ("22", "20"), ("12", "11", "10")))
    first = np.column_stack([said["item"], said["item_2"]])
    assert [{int(n) // 10 for n in items} for items in first[:2]] == [{3}, {2}]
    assert set(first[1].tolist()) == {21, 23}
    assert first[2, 0] == 13


def test_what_is_empty_unknown_or_twice_in_a_history_adds_nothing(trained: Path) -> None:
    predictor = load_predictor(trained)
    labels = np.concatenate([np.asarray(histories()[name].drop_null(), np.float64) for name in ("label",)])
    empty = predictor.predict(seen(()))
    assert int(empty["item"][0].as_py()) // 10 == 1, "without a history the most popular group comes first"
    assert empty["item"][0].as_py() in labels
    said = predictor.predict(seen(("99",), ("31", "99"), ("31",), ("31", "31", "31")))
    assert said.slice(0, 1).equals(empty), "an item that training never met counts as none"
    assert said.slice(1, 1).equals(said.slice(2, 1))
    assert said.slice(3, 1).equals(said.slice(2, 1)), "an item counts once"


def test_a_row_alone_is_the_row_among_others(trained: Path) -> None:
    predictor, rows = load_predictor(trained), histories(300, seed=2)
    whole = predictor.predict(rows)
    predictor.chunk_rows = 7
    assert predictor.predict(rows).equals(whole)
    assert all(predictor.predict(rows.slice(n, 1)).equals(whole.slice(n, 1)) for n in range(40))


def test_equal_scores_come_in_the_order_of_the_items_and_seen_ones_last() -> None:
    weights = Weights(np.zeros((5, 4)), np.zeros((5, 4)), np.zeros((1, 4)))
    history = np.array([[2, 4], [4, 4], [1, 0]])
    items, scores = ranked(weights, history, exclude_seen=True)
    assert items.tolist() == [[0, 1, 3, 2], [0, 1, 2, 3], [2, 3, 0, 1]]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert ranked(weights, history, exclude_seen=False)[0].tolist() == [[0, 1, 2, 3]] * 3


def test_who_has_seen_all_items_gets_them_again(tmp_path: Path) -> None:
    rows = histories()
    narrow = job(tmp_path / "job", k=12, rows=rows)
    run(narrow)
    predictor = load_predictor(narrow)
    said = predictor.predict(seen(("10", "11", "12")))
    items = [said[name][0].as_py() for name in predictor.output_columns if not name.endswith("score")]
    assert items[-3:] == sorted(items[-3:], key=items.index)
    assert set(items[-3:]) == {10, 11, 12}
    assert len(set(items)) == 12


def test_equal_rows_give_equal_bytes(trained: Path, trained_ease: Path, tmp_path: Path) -> None:
    again, dropped = job(tmp_path / "again"), job(tmp_path / "dropped", method="ease", dropout=0.3)
    run(again)
    assert folder_digests(again / "model") == folder_digests(trained / "model")
    run(dropped)
    ours, theirs = (np.load(folder / "model" / "weights.npy") for folder in (trained_ease, dropped))
    assert ours.shape == theirs.shape == (13, 12)
    assert np.abs(theirs).sum() < np.abs(ours).sum(), "dropout trusts each item less"


def training_indicators() -> np.ndarray:
    """Of each training row the items of its history and of its newest step, (rows, 24), how many, the one that came."""
    rows = histories()
    rows = rows.filter(pa.array(np.asarray(rows["split"]) == "train"))
    given = np.zeros((len(rows), 24))
    for step in range(STEPS):
        for row, value in enumerate(rows[f"v__seen_t{step}"].to_pylist()):
            if value is not None:
                given[row, ITEMS.index(int(value))] = 1.0
                given[row, 12 + ITEMS.index(int(value))] += step == 0
    count = given[:, :12].sum(axis=1)
    label = np.searchsorted(ITEMS, rows["label"].to_numpy())
    return np.column_stack([given, count[:, None] == np.arange(STEPS + 1), label])


ITEMS = [first + n for first in GROUPS for n in range(4)]


def test_weights_of_what_comes_next_are_a_ridge_regression(trained: Path) -> None:
    columns = training_indicators()
    wanted = columns[:, -1:] == np.arange(12)
    known = Ridge(alpha=10.0, fit_intercept=False).fit(columns[:, :-1], wanted.astype(float))
    weights = np.load(trained / "model" / "weights.npy")
    assert weights == pytest.approx(known.coef_.T, abs=1e-9)
    said = load_predictor(trained).predict(seen(("11", "10"), ()))
    score = known.coef_ @ (np.eye(28)[1] + np.eye(28)[0] + np.eye(28)[13] + np.eye(28)[26])
    unseen = [n for n in range(12) if ITEMS[n] not in {10, 11}]
    assert said["item_score"][0].as_py() == pytest.approx(score[unseen].max())
    assert said["item_score"][1].as_py() == pytest.approx(known.coef_[:, 24].max())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weights_of_what_is_together_are_ridge_regressions_on_all_other_items(dropout: float, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", method="ease", dropout=dropout)
    run(folder)
    columns = training_indicators()
    held = np.column_stack([columns[:, :12], np.ones(len(columns))])
    held[np.arange(len(held)), columns[:, -1].astype(int)] = 1.0
    together = held.T @ held
    penalty = 10.0 + np.append(np.diag(together)[:12], 0.0) * dropout / (1.0 - dropout)
    weights = np.load(folder / "model" / "weights.npy")
    others = [n for n in range(13) if n != 5]
    known = np.linalg.solve((together + np.diag(penalty))[np.ix_(others, others)], together[others, 5])
    assert weights[others, 5] == pytest.approx(known, abs=1e-9)
    assert weights[5, 5] == 0


def test_contributions_add_up_to_the_score_of_the_first_item(trained: Path) -> None:
    predictor = load_predictor(trained)
    explainer = explainer_of("recommender", trained / "model")
    assert explainer is not None
    matrix = predictor.contract.matrix(histories(50, seed=3))
    background = predictor.contract.matrix(histories(40, seed=4))
    shapley = explainer(trained / "model", predictor.contract, Sample(matrix, background))
    scores = predictor.scores(matrix)
    way = shapley.values["item"].sum(axis=1)
    usual = scores[:, 2] - way  # of the same first item, the mean of its score over the background
    for item in np.unique(scores[:, 0]):
        assert np.ptp(usual[scores[:, 0] == item]) < 1e-9
    assert np.abs(shapley.values["item"][:, list(predictor.contract.features).index("v__other")]).max() == 0


def test_importances_fall_with_how_often_a_step_is_there(trained: Path) -> None:
    shares = json.loads((trained / "importances.json").read_text())["item"]
    assert next(iter(shares)) == "v__seen_t0"
    assert sum(shares.values()) == pytest.approx(1)
    assert [name for name, share in shares.items() if share > 0] == [f"v__seen_t{step}" for step in range(STEPS)]


def test_steps_of_a_history_know_the_same_items(tmp_path: Path) -> None:
    rows = histories()
    train = np.asarray(rows["split"]) == "train"
    last = pa.array(
        [None if in_train else value for value, in_train in zip(rows["v__seen_t2"].to_pylist(), train, strict=True)],
        pa.string(),
    )
    rows = rows.set_column(rows.schema.get_field_index("v__seen_t2"), "v__seen_t2", last)
    folder = job(tmp_path / "job", rows=rows)
    run(folder)
    contract = load_predictor(folder).contract
    history = [f"v__seen_t{step}" for step in range(STEPS)]
    stood = positions(contract, history, np.arange(10.0, 34.0), contract.matrix(seen(("10", "11", "12"))))
    assert stood.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 13}, r"item lists 13 items, training rows hold 12 different ones. Lower its `k`"),
        ({"history": "bought"}, r"needs one text feature with `steps`.*`history` names none"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingImpossible, match=words):
        run(job(tmp_path / "job", **changes))
    assert not (tmp_path / "job" / "manifest.json").exists()


def test_items_that_are_no_numbers_or_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = histories()
    named = rows.set_column(0, "v__seen_t0", pa.array(["shoes"] * len(rows)))
    with pytest.raises(TrainingImpossible, match=r"v__seen_t\d holds 'shoes'; an item of the history is"):
        run(job(tmp_path / "named", rows=named))
    alike = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(np.full(len(rows), 10.0)))
    with pytest.raises(TrainingImpossible, match=r"all \d+ training rows came out as the item 10"):
        run(job(tmp_path / "alike", rows=alike))
    monkeypatch.setattr(recommender, "MOST_ITEMS", 11)
    with pytest.raises(TrainingImpossible, match=r"hold 12 different items, a matrix of items takes at most 11"):
        run(job(tmp_path / "many"))
