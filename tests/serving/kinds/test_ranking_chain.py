"""A model that ranks through the whole chain in one process, from its sources to the pages: the shipped catalog of web
visits, over a small site whose users keep to the areas of one taste.
"""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, date, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval
from config.catalog.load import load_catalog
from config.settings import ROOT, Settings
from features.labels import labels
from features.retrieval import retrieve
from lake.lake import Lake
from lake.metrics import read_metrics
from monitoring.audit.trace import reproduce
from monitoring.drift import drift
from monitoring.pages import model as model_page
from monitoring.pages import trace as trace_page
from monitoring.pages.model_card import write_model_card
from monitoring.pages.page import Context, Viewer
from monitoring.pages.render import render
from monitoring.pages.reports import report
from monitoring.performance import performance
from serving.predictions import predictions_table
from serving.predictors import load_predictor
from serving.projection import project_predictions
from serving.score import score
from tests.serving.kinds.chain import features, first_champion

MODEL = "recommendation"
FIRST, AS_OF = date(1998, 1, 1), date(1998, 1, 24)
SCORED = Interval.closed(date(1998, 1, 25), date(1998, 1, 27))
MATURE = date(1998, 1, 26)
TASTES, AREAS, USERS_A_DAY = 5, 8, 25
NEW_AREA = 1999  # is there from the first scored night on


def visits() -> Iterator[tuple[str, int, int, int]]:
    """Part, user, place and area: of each taste's areas some are seen more often."""
    random = np.random.default_rng(3)
    for part, days in (("train", 24), ("test", 4)):
        for user in range(10_001, 10_001 + days * USERS_A_DAY):
            taste, count = random.integers(TASTES), int(random.integers(1, 7))
            weights = 1.0 / np.arange(1, AREAS + 1)
            seen = 1000 + taste * AREAS + random.choice(AREAS, count, replace=False, p=weights / weights.sum())
            if part == "test" and user % 5 == 0:
                seen[-1 if user % 2 else 0] = NEW_AREA
            yield from ((part, user, seq, int(area)) for seq, area in enumerate(seen, 1))


def small_site(folder: Path) -> Settings:
    """The shipped catalog of the data set with a small file behind it, and days to fit."""
    for name in ("datasets/msweb.yaml", f"models/{MODEL}.yaml"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / "config" / name, folder / name)
    shutil.copytree(ROOT / "features" / "sql" / "msweb", folder / "sql" / "msweb")
    dataset, model = folder / "datasets" / "msweb.yaml", folder / "models" / f"{MODEL}.yaml"
    rewrite(dataset, {"features/sources/data/msweb/": "", "first_night: 1998-03-02": "first_night: 1998-01-25"})
    rewrite(
        model,
        {
            "train: 42 days, validation: 7 days, test: 8 days": "train: 10 days, validation: 4 days, test: 6 days",
            "min_days: 7": "min_days: 5",
            "k: 10": "k: 4",
            "min_rows: 200, worst: 1.05": "min_rows: 20, worst: 9",
        },
    )
    for file in (folder / "sql" / "msweb").glob("*.source.sql"):
        rewrite(file, {"// 546": f"// {USERS_A_DAY}", "// 500": f"// {USERS_A_DAY}", "1998-03-02": "1998-01-25"})
    with gzip.open(folder / "visits.csv.gz", "wt", newline="") as text:
        csv.writer(text).writerows([("part", "user", "seq", "area"), *visits()])
    shutil.copy(ROOT / "features/sources/data/msweb/areas.csv", folder / "areas.csv")
    return Settings(home=folder / "var", catalogs=(folder,), duckdb_memory_gb=1.0)


def rewrite(file: Path, changes: dict[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def test_a_ranking_goes_from_the_sources_to_the_pages(tmp_path: Path, mlflow_server: str) -> None:
    settings = small_site(tmp_path).model_copy(update={"mlflow_tracking_uri": mlflow_server})
    lake = Lake(settings, load_catalog(settings))
    features(lake, "msweb", Interval.closed(FIRST, AS_OF))
    job_dir, registered, decision = first_champion(lake, MODEL, AS_OF)
    assert "the 4 items that came most often in the training window" in decision.reasons[0].text

    features(lake, "msweb", SCORED)
    assert score(lake, MODEL, SCORED, run_id="score").rows == USERS_A_DAY * len(SCORED)
    rows = predictions_table(settings, lake.model(MODEL)).read(SCORED)
    items = np.column_stack([rows[column] for column in ("area", "area_2", "area_3", "area_4")])
    assert all(len(set(row)) == 4 for row in items.tolist())
    assert NEW_AREA not in items, "the version has never met it"
    known = retrieved(lake)
    seen_by = {
        row["user"]: {int(area) for name, area in row.items() if "recent_t" in name and area}
        for row in known.to_pylist()
    }
    assert min(map(len, seen_by.values())) == 0, "nobody came without a history"
    for user, said in zip(rows["user"].to_pylist(), items.tolist(), strict=True):
        assert not seen_by[user] & set(said), "it recommends what the user has seen"
    project_predictions(lake, MODEL, SCORED, run_id="project")

    drift(lake, MODEL, SCORED, run_id="drift")
    performance(lake, MODEL, SCORED, run_id="performance")
    drifts = read_metrics(lake, MODEL, "drift", SCORED).to_pylist()
    assert {r["column"] for r in drifts if r["check"] == "prediction_drift"} == {"area", "area_score"}
    assert "history__recent_t0" in {row["column"] for row in drifts}
    measured = read_metrics(lake, MODEL, "performance", SCORED).to_pylist()
    of_night = {row["check"]: row for row in measured if row["about_date"] == MATURE and not row["segment"]}
    truth = labels(lake, MODEL, Interval.of(MATURE), as_of=SCORED.last)["label"].to_numpy()
    assert NEW_AREA in truth, "the night has an item to miss"
    hits = items[np.asarray(pc.equal(rows["data_date"], MATURE))] == truth[:, None]
    gains = (hits / np.log2(np.arange(2, 6))).sum(axis=1)
    assert of_night["ndcg_loss"]["value"] == pytest.approx(1 - gains.mean(), abs=1e-6)
    assert of_night["recall_at_k"]["value"] == pytest.approx(hits.any(axis=1).mean(), abs=1e-6)
    assert of_night["error_ratio"]["value"] < 1
    assert {row["segment"] for row in measured} >= {"areas_seen=0", "areas_seen=3-5"}

    assert report(lake, MODEL, Interval.of(MATURE), run_id="report").committed == 2
    path = lake.settings.reports / MODEL / MATURE.isoformat() / "performance.html"
    drawn = path.read_text(encoding="utf-8")
    assert "table-all" in drawn
    assert '<details class="fold"' not in drawn, "where Evidently draws nothing the numbers are in sight"
    card = write_model_card(lake, MODEL, job_dir, registered, decision).read_text(encoding="utf-8")
    shown = unescape(re.sub(r"<[^>]+>", " ", card))
    for words in ("the 4 most likely values of area, best first", "NDCG of the list", "Shapley values of the sum"):
        assert words in shown, words
    assert "area: found among the first" not in shown  # it is drawn
    context = Context(lake, Viewer("ada", "viewer"), datetime(1998, 1, 28, tzinfo=UTC), (MODEL,), ("msweb",))
    whole = unescape(render(model_page.page(context, query={}, model=MODEL), context, path="/nightfleet/model"))
    assert "ndcg_loss" in whole
    one = rows.slice(7, 1).to_pylist()[0]
    traced = trace_page.page(context, query={"id": one["prediction_id"]})
    text = unescape(render(traced, context, path="/nightfleet/trace"))
    assert ", ".join(str(one[column]) for column in ("area", "area_2", "area_3", "area_4")) in text
    again = reproduce(lake, one["prediction_id"])
    assert again.equal, again.steps

    predictor, few = load_predictor(job_dir), known.slice(0, 20)
    assert all(predictor.predict(few.slice(n, 1)).equals(predictor.predict(few).slice(n, 1)) for n in range(20))


def retrieved(lake: Lake) -> pa.Table:
    """Features of the scored nights."""
    with lake.scratch("retrieved") as folder:
        return retrieve(lake, MODEL, SCORED, folder=folder).reader().read_all()
