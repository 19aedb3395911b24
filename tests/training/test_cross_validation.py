"""Time-series cross-validation: no fold learns from a night it is judged on or from one after it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.jobs import ANOMALY, OUTPUTS, QUICK, training_rows, write_job
from training import cross_validation
from training.__main__ import run
from training.cross_validation import folds
from training.rows import select
from training.trainers import Rows, TrainingImpossible

TRAINER = {"family": "xgboost", "device": "cpu", "cross_validation": {"folds": 3, "embargo": "2 days"}}
ENTRY = {"outputs": OUTPUTS, "trainer": TRAINER, "training": {"checkpoint_minutes": 5.0}}


@given(
    nights=st.lists(st.integers(15_000, 15_400), min_size=1, max_size=300),
    count=st.integers(2, 8),
    embargo_days=st.integers(0, 12),
)
@settings(max_examples=300, deadline=None)
def test_no_night_is_learned_from_that_is_not_before_the_judged_ones(
    nights: list[int], count: int, embargo_days: int
) -> None:
    given_nights = np.array(nights, np.int32)
    try:
        found = folds(given_nights, count, embargo_days)
    except TrainingImpossible:
        assert len(set(nights)) < (count + 1) * (2 + 2 * embargo_days)
        return
    assert [fold.number for fold in found] == list(range(1, count + 1))
    for fold in found:
        assert fold.fit[0] <= fold.fit[1] < fold.tail[0] - embargo_days
        assert fold.tail[0] <= fold.tail[1] < fold.judged[0] - embargo_days
        assert fold.judged[0] <= fold.judged[1]
        assert set(fold.fit) | set(fold.tail) | set(fold.judged) <= set(nights)
    for earlier, later in pairwise(found):
        assert earlier.judged[1] < later.judged[0], "two folds are judged on one night"
        assert earlier.fit[0] == later.fit[0] == min(nights), "windows expand"
        assert earlier.fit[1] < later.fit[1]
    assert found[-1].judged[1] == max(nights), "the newest nights are judged"


def test_too_few_nights_is_a_sentence() -> None:
    with pytest.raises(
        TrainingImpossible,
        match=r"in 4 folds with an embargo of 1 days needs at least 20 nights of training and validation, there are 19",
    ):
        folds(np.arange(19, dtype=np.int32), 4, 1)
    assert len(folds(np.arange(20, dtype=np.int32), 4, 1)) == 4


def test_rows_are_chosen_by_night_in_their_order_from_memory_and_from_maps_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    parts = []
    for count in (50, 30):
        nights = random.integers(0, 10, count).astype(np.int32)
        parts.append(
            Rows(
                np.column_stack([nights, random.random(count)]).astype(np.float32),
                nights.astype(np.float64) + 0.5,
                nights,
            )
        )
    mapped = []
    for index, part in enumerate(parts):
        matrix = np.memmap(tmp_path / f"{index}.f32", np.float32, "w+", shape=part.matrix.shape)
        matrix[:] = part.matrix
        mapped.append(Rows(matrix, part.label, part.nights))
    chosen = select(parts, 3, 6, tmp_path / "unused")
    assert set(chosen.nights.tolist()) == {3, 4, 5, 6}
    assert len(chosen.label) == sum(int(((part.nights >= 3) & (part.nights <= 6)).sum()) for part in parts)
    assert (chosen.matrix[:, 0] == chosen.nights).all()
    assert (chosen.label == chosen.nights + 0.5).all()
    assert not (tmp_path / "unused").exists()
    same = select(mapped, 3, 6, tmp_path / "chosen.f32")
    assert isinstance(same.matrix, np.memmap)
    np.testing.assert_array_equal(same.matrix, chosen.matrix)
    np.testing.assert_array_equal(same.label, chosen.label)


def test_folds_stand_in_the_manifest_and_are_not_fitted_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    job_dir = write_job(tmp_path / "job", "xgboost", entry=ENTRY)
    fitted: list[tuple[int, int, int]] = []
    whole = cross_validation.fit_and_judge

    def counted(contract: Any, fit: Rows, early: Rows, judged: Rows, *rest: Any) -> dict[str, float]:
        assert fit.nights.max() < early.nights.min() - 2
        assert early.nights.max() < judged.nights.min() - 2
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append((len(fit.label), len(early.label), len(judged.label)))
        return whole(contract, fit, early, judged, *rest)

    monkeypatch.setattr(cross_validation, "fit_and_judge", counted)
    with pytest.raises(KeyboardInterrupt):
        run(job_dir)
    monkeypatch.setattr(cross_validation, "fit_and_judge", whole)
    run(job_dir)
    found = json.loads((job_dir / "manifest.json").read_text())["cross_validation"]
    assert [tuple(fold["rows"].values()) for fold in found["folds"]][:2] == fitted
    assert [fold["fold"] for fold in found["folds"]] == [1, 2, 3]
    maes = [fold["metrics"]["minutes/mae"] for fold in found["folds"]]
    assert found["mean"]["minutes/mae"] == pytest.approx(sum(maes) / 3)
    assert found["std"]["minutes/mae"] == pytest.approx(math.sqrt(sum((mae - sum(maes) / 3) ** 2 for mae in maes) / 3))
    assert maes[0] < 12, "a fold learns"
    assert (
        found["folds"][0]["nights"]["judged"][0]
        > found["folds"][0]["nights"]["tail"][1]
        > found["folds"][0]["nights"]["fit"][1]
    )
    assert "cross-validation: fold 3 of 3: minutes/mae " in capsys.readouterr().out
    assert sorted(path.name for path in job_dir.iterdir() if path.is_dir()) == ["model"]


def rare_anomalies(at: str) -> pa.Table:
    """Rows of which few are anomalies, all of them in training nights or in those of validation."""
    rows = training_rows(500)
    inside = np.asarray(rows["split"]) == at
    label = np.where(inside & (np.arange(len(rows)) % 9 == 0), 20.0, 0.0)
    if at == "train":
        label[np.asarray(rows["data_date"].cast("int32")) < 19_720] = 0.0
    return rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(label))


def anomaly_job(folder: Path, rows: pa.Table, **trainer: Any) -> Path:
    trainer = {"family": "isolation_forest", "device": "cpu", **trainer}
    entry = {"outputs": ANOMALY, "trainer": trainer}
    return write_job(folder, "isolation_forest", rows=rows, params=QUICK["isolation_forest"], entry=entry)


SEARCHED = {"space": {"n_estimators": {"kind": "integer", "low": 2, "high": 4}}, "sampler": "random", "trials": 1}
LOSS = "odd/average_precision_loss"


def test_folds_without_an_anomaly_are_counted_and_their_metrics_not_evaluated(tmp_path: Path) -> None:
    folds = {"cross_validation": {"folds": 3, "embargo": "1 day"}}
    job_dir = anomaly_job(tmp_path / "job", rare_anomalies("train"), search=SEARCHED, **folds)
    run(job_dir)
    manifest = json.loads((job_dir / "manifest.json").read_text())
    told = [LOSS in fold["metrics"] for fold in manifest["cross_validation"]["folds"]]
    assert told == [False, True, False]
    of_fold = manifest["cross_validation"]["folds"][1]["metrics"][LOSS]
    assert manifest["cross_validation"]["mean"][LOSS] == of_fold == manifest["search"]["best_value"]
    assert manifest["cross_validation"]["not_evaluated"][LOSS] == 2
    assert manifest["search"]["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert LOSS not in manifest["metrics"], "validation holds no anomaly"


def test_where_no_label_tells_a_search_has_nothing_to_lower(tmp_path: Path) -> None:
    rows = rare_anomalies("train")
    with pytest.raises(TrainingImpossible, match=rf"a search would lower {LOSS} of validation, where .*not evaluated"):
        run(anomaly_job(tmp_path / "validation", rows, search=SEARCHED))
    early = np.where(np.asarray(rows["data_date"].cast("int32")) == 19_700, 20.0, 0.0)  # before every judged fold
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(early))
    folds = {"cross_validation": {"folds": 2, "embargo": "1 day"}}
    with pytest.raises(TrainingImpossible, match=rf"the labels of none of 2 folds tell {LOSS}: not evaluated"):
        run(anomaly_job(tmp_path / "folds", rows, search=SEARCHED, **folds))
