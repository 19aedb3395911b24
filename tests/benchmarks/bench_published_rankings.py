"""Recommendation on the Anonymous Microsoft Web Data, beside the rank scores of Heckerman et al. (JMLR 1, 2000, there
MS.COM).

As a night asks: each user of the official test set has one more visit, the last in the file, and everything before it
is known. As published: of each test user with more than 2, 5 or 10 areas so many are given at random, or all but one of
two or more, and the others are ranked; all 32,711 training users teach. Other methods are measured by the same
protocol.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from config.calendar import ONE_DAY, Interval
from config.catalog.output import output_of
from config.settings import ROOT
from features.labels import labels
from features.retrieval import retrieve
from lake.artifact import file_digest
from lake.lake import Lake
from serving.metrics.rank_loss import HALF_LIFE
from serving.predictors import Predictor, load_predictor, read_manifest
from serving.predictors.contract import read_json, write_json
from tests.benchmarks.published_stages import history, later_nights, prepare, row, train
from training.__main__ import run as run_training
from training.evaluate import judged_values
from training.job_file import JOB_FILE, job_identity
from training.registry.job import gate_folder

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
# Given so many areas of a user, None: all but one; each with the scores of the Bayesian network and of popularity.
PUBLISHED = {2: (53.2, 43.4), 5: (52.5, 39.3), 10: (51.6, 39.3), None: (66.5, 49.8)}
DRAWS = 5
STEPS = 20
LONGEST = 100  # an item at rank 100 is worth 2**-25


def run(folder: Path) -> list[dict[str, Any]]:
    """Rows with what, seconds, against, ratio (ours to the published figure), aim."""
    lake, rows = history(folder, "msweb")
    jobs, prepared = prepare(lake, "recommendation")
    return [*rows, prepared, *nightly(lake, jobs), *published(lake, jobs[0]), *activities(lake)]


def nightly(lake: Lake, jobs: list[Path]) -> list[dict[str, Any]]:
    """Every candidate of the first night, on the last visits of the official test users."""
    judged = later_nights(lake, "recommendation", pq.read_table(gate_folder(jobs[0]) / "test_set.parquet"))
    judged = judged.filter(pc.starts_with(judged["user"], "test"))
    output, label = lake.model("recommendation").outputs["area"], judged["label"].to_numpy()
    taught = pq.read_table(jobs[0] / "training_set.parquet", columns=["label", "split"])
    constant = output.constant(taught.filter(pc.equal(taught["split"], "train"))["label"].to_numpy(), None)
    rows, said = [], {"baseline, the most frequent areas": (output.baseline(constant, len(label), None), 0.0)}
    for job_dir in jobs:
        seconds, manifest = train(lake, "recommendation", job_dir), read_manifest(job_dir)
        columns = judged_values(output, "area", load_predictor(job_dir).predict(judged))
        said[manifest["family"]] = output.judged("area", columns), seconds
        validated = manifest["metrics"]["area/ndcg_at_k"]
        rows.append(row(f"recommendation {manifest['family']}, validation: ndcg_at_k {validated:.4f}", seconds))
    for who, (items, seconds) in said.items():
        columns = dict(zip(output.judged_columns("area"), items.T, strict=True))
        figures = output.evaluation("area", label, columns)
        shown = ", ".join(f"{name} {figures[name]:.4f}" for name in ("ndcg_at_k", "recall_at_k", "rank_score"))
        rows.append(row(f"recommendation {who}, last visit of {len(label):,} test users: {shown}", seconds))
    return rows


def activities(lake: Lake) -> list[dict[str, Any]]:
    """What the last visits of the official test users are about, by every candidate."""
    jobs, prepared = prepare(lake, "next_activity")
    judged = later_nights(lake, "next_activity", pq.read_table(gate_folder(jobs[0]) / "test_set.parquet"))
    judged = judged.filter(pc.starts_with(judged["user"], "test"))
    output, label = lake.model("next_activity").outputs["activity"], judged["label"].to_numpy()
    taught = pq.read_table(jobs[0] / "training_set.parquet", columns=["label", "split"])
    shares = output.constant(taught.filter(pc.equal(taught["split"], "train"))["label"].to_numpy(), None)
    said = {"baseline, the share of each activity": (output.baseline(shares, len(label), None), 0.0)}
    for job_dir in jobs:
        seconds = train(lake, "next_activity", job_dir)
        columns = judged_values(output, "activity", load_predictor(job_dir).predict(judged))
        said[read_manifest(job_dir)["family"]] = output.judged("activity", columns), seconds
    rows = []
    for who, (probabilities, seconds) in said.items():
        figures = output.evaluation(
            "activity", label, dict(zip(output.judged_columns("activity"), probabilities.T, strict=True))
        )
        shown = ", ".join(f"{name} {figures[name]:.3f}" for name in ("log_loss", "accuracy", "macro_f1"))
        rows.append(row(f"next_activity {who}, last visit of {len(label):,} test users: {shown}", seconds))
    return [prepared, *rows]


def published(lake: Lake, job_dir: Path) -> list[dict[str, Any]]:
    """The rank scores, each protocol and method, mean and deviation over draws of what is given."""
    visits = pacsv.read_csv(ROOT / "features/sources/data/msweb/visits.csv.gz")
    train_users, test_users = (
        _areas_by_user(visits.filter(pc.equal(visits["part"], part))) for part in ("train", "test")
    )
    items = np.unique(visits["area"].to_numpy())
    held = np.zeros((len(train_users), len(items)))
    for user, areas in enumerate(train_users):
        held[user, np.searchsorted(items, areas)] = 1.0
    rankers: dict[str, Callable[[list[Counts]], Counts]] = {
        "popularity": _by_scores(items, lambda given: np.tile(held.sum(axis=0), (len(given), 1))),
        "cosine of areas": _by_scores(items, cosine(held)),
        "implicit ALS": _by_scores(items, implicit_als(held)),
    }
    for name, params in (
        ("ease", {"method": "ease", "l2": 10.0}),
        ("ease, dropout 0.1", {"method": "ease", "l2": 10.0, "dropout": 0.1}),
        ("next", {"method": "next", "l2": 10.0}),
    ):
        rankers[name] = _by_predictor(_taught_by_all(lake, job_dir, name.replace(", ", "-").replace(" ", "-"), params))
    rows = []
    for given, (network, popular) in PUBLISHED.items():
        for name, ranker in rankers.items():
            began = time.perf_counter()
            scores = [_rank_scores(test_users, given, ranker, seed) for seed in range(DRAWS)]
            mean, deviation = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1)
            known = popular if name == "popularity" else network
            protocol = "all but 1" if given is None else f"given {given}"
            what = f"MS.COM {protocol}, {name}: rank score {mean[0]:.1f} ± {deviation[0]:.1f} ({mean[1]:.1f})"
            against = f"published {'popularity' if name == 'popularity' else 'Bayesian network'} {known}"
            rows.append(row(what, time.perf_counter() - began, against, mean[0] / known))
    return rows


def _areas_by_user(visits: pa.Table) -> list[Counts]:
    users, areas = visits["user"].to_numpy(), visits["area"].to_numpy()
    return np.split(areas, np.flatnonzero(np.diff(users)) + 1)


def _rank_scores(
    users: list[Counts], given: int | None, ranker: Callable[[list[Counts]], Counts], seed: int
) -> tuple[float, float]:
    """Breese's rank score with the half-life of the formula as it is written, and with one rank more."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(areas) for areas in users]
    split = [len(areas) - 1 if given is None else given for areas in drawn]
    asked = [(areas[:cut], areas[cut:]) for areas, cut in zip(drawn, split, strict=True) if len(areas) > cut > 0]
    lists = ranker([known for known, _ in asked])
    hidden = np.full((len(asked), max(len(rest) for _, rest in asked)), -1)
    for number, (_, rest) in enumerate(asked):
        hidden[number, : len(rest)] = rest
    hits = np.zeros(lists.shape, np.bool_)
    for column in hidden.T:
        hits |= lists == column[:, None]
    wanted = (hidden >= 0).sum(axis=1)
    scores = []
    for half in (HALF_LIFE - 1.0, float(HALF_LIFE)):
        worth = np.exp2(-np.arange(lists.shape[1]) / half)
        scores.append(100.0 * float((hits @ worth).sum() / np.cumsum(worth)[wanted - 1].sum()))
    return scores[0], scores[1]


def _by_predictor(predictor: Predictor) -> Callable[[list[Counts]], Counts]:
    def rank(given: list[Counts]) -> Counts:
        steps = {
            f"history__recent_t{step}": pa.array(
                [str(areas[step]) if step < len(areas) else None for areas in given], pa.string()
            )
            for step in range(STEPS)
        }
        said = predictor.predict(pa.table(steps))
        return np.column_stack([said[name].to_numpy() for name in said.column_names if not name.endswith("score")])

    return rank


def _by_scores(items: Counts, scores: Callable[[Floats], Floats]) -> Callable[[list[Counts]], Counts]:
    """What is ranked by a score of each area, from 0 and 1 for each area that is given."""

    def rank(given: list[Counts]) -> Counts:
        known = np.zeros((len(given), len(items)))
        for user, areas in enumerate(given):
            known[user, np.searchsorted(items, areas)] = 1.0
        order = np.argsort(np.where(known > 0, np.inf, -scores(known)), axis=1, kind="stable")[:, :LONGEST]
        ranked: Counts = items[order]
        return ranked

    return rank


def cosine(held: Floats) -> Callable[[Floats], Floats]:
    """Sums of the cosines between areas; who has seen none gets the most popular."""
    together = held.T @ held
    lengths = np.sqrt(np.maximum(np.diag(together), 1.0))
    weights, popular = together / np.outer(lengths, lengths), held.mean(axis=0)
    return lambda given: given @ weights + 1e-6 * popular


def implicit_als(
    held: Floats, *, factors: int = 64, penalty: float = 30.0, confidence: float = 0.3, rounds: int = 6
) -> Callable[[Floats], Floats]:
    """Matrix factorisation of implicit feedback by alternating least squares (Hu, Koren and Volinsky 2008).

    Of twelve settings these had the best rank scores on training users that were held out.
    """

    def half(rows: Floats, other: Floats) -> Floats:
        solved = np.zeros((len(rows), factors))
        squares = other.T @ other + penalty * np.eye(factors)
        for number, taken in enumerate(rows):
            mine = other[np.flatnonzero(taken)]
            solved[number] = np.linalg.solve(squares + confidence * mine.T @ mine, (1 + confidence) * mine.sum(axis=0))
        return solved

    areas = np.random.default_rng(0).normal(0.0, 0.1, (held.shape[1], factors))
    for _ in range(rounds):
        areas = half(held.T, half(held, areas))
    popular = held.mean(axis=0)
    return lambda given: half(given, areas) @ areas.T + 1e-6 * popular


def _taught_by_all(lake: Lake, job_dir: Path, name: str, params: Mapping[str, Any]) -> Predictor:
    """A version that all training users taught, with a list of `LONGEST`."""
    replay = lake.dataset("msweb").replay
    assert replay is not None
    nights = Interval(replay.first, replay.first_night)
    with lake.scratch("all") as scratch:
        rows = retrieve(lake, "recommendation", nights, folder=scratch).reader().read_all()
    rows = rows.append_column("label", labels(lake, "recommendation", nights, as_of=replay.last)["label"])
    rows = rows.append_column("baseline", pa.nulls(rows.num_rows, pa.float64()))
    last = rows.filter(pc.equal(rows["data_date"], replay.first_night - ONE_DAY))  # shows figures, teaches nothing
    parts = [
        part.append_column("split", pa.array([split] * part.num_rows))
        for part, split in ((rows, "train"), (last, "validation"))
    ]
    target = job_dir.with_name(f"all-{name}")
    target.mkdir()
    pq.write_table(pa.concat_tables(parts), target / "training_set.parquet")
    job = copy.deepcopy(read_json(job_dir / JOB_FILE))
    job["entry"]["outputs"]["area"]["k"] = LONGEST
    job["output_columns"] = list(output_of(job["entry"]["outputs"]["area"]).columns("area"))
    job["params"] = dict(params)
    job["training_set"] = {"path": "training_set.parquet", "digest": file_digest(target / "training_set.parquet")}
    write_json(target / JOB_FILE, {**job, "identity": job_identity(job)})
    run_training(target)
    return load_predictor(target)
