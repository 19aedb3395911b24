"""Labels that are texts, yes or no, or that only come where something happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.catalog.base import BadCatalog
from features.labels import UnknownClass, labels
from features.training_set import build_training_set
from features.transform import transform
from lake.lake import Lake
from tests.features.test_model_column_names import NIGHTS, NO_ROW, arrive, catalog_of
from training.registry.leakage import audit

EVENT = {"said": {"kind": "binary", "above": 0.5}}


def trained_on(
    folder: Path, said: Callable[[int], Any], outcome: str, outputs: dict[str, Any] = EVENT, **declared: Any
) -> dict[int, float]:
    """Label by id in the training set; the leakage audit, which works them out anew, finds no other."""
    lake = catalog_of(folder, [], [], outputs, outcome, **declared)
    arrive(lake, [], [], said)
    transform(lake, "d", NIGHTS, run_id="r")
    built = build_training_set(lake, "m", NIGHTS.last, folder)
    paths = (built.training_path, built.test_path)
    versions = {item.table: item.version for item in built.inputs}
    found = audit(lake, "m", as_of=NIGHTS.last, files=paths, pins=built.pins, versions=versions, seed=1)
    assert not found.differing, found.findings
    rows = pa.concat_tables([pq.read_table(path, columns=["id", "label"]) for path in paths])
    return dict(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))


def test_a_text_is_the_number_that_the_catalog_says(tmp_path: Path) -> None:
    mapped = trained_on(tmp_path, lambda i: ("no", "it's")[i % 2], "string", values={"it's": 1, "no": 0})
    assert len(mapped) == 8
    assert all(label == key % 2 for key, label in mapped.items())


def test_a_boolean_is_zero_or_one(tmp_path: Path) -> None:
    assert all(label == key % 2 for key, label in trained_on(tmp_path, lambda i: i % 2 == 1, "boolean").items())


def test_texts_are_classes(tmp_path: Path) -> None:
    outputs = {"said": {"kind": "multiclass", "classes": ["low", "high"]}}
    got = trained_on(tmp_path, lambda i: ("low", "high")[i % 2], "string", outputs)
    assert all(label == key % 2 for key, label in got.items())


def test_absence_is_a_label_once_it_is_mature_and_null_is_none(tmp_path: Path) -> None:
    def said(key: int) -> Any:
        return NO_ROW if key % 2 else (1.0 if key % 4 else None)

    got = trained_on(tmp_path, said, "float64", absent=0)
    assert got == {key: float(key % 2 == 0) for key in range(2, 10) if key % 4}
    lake = catalog_of(tmp_path, [], [], EVENT, absent=0)
    early = labels(lake, "m", NIGHTS, as_of=NIGHTS.start + (NIGHTS.end - NIGHTS.start) / 2)
    by_id = dict(zip(early["id"].to_pylist(), early["label"].to_pylist(), strict=True))
    assert by_id[1] == 0.0
    assert by_id[13] is None, "what may still come is not absent"
    unsaid = labels(catalog_of(tmp_path, [], [], EVENT), "m", NIGHTS, as_of=NIGHTS.last)
    assert unsaid["label"].drop_null().to_pylist() == [1.0] * 3


def test_a_text_that_stands_for_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownClass, match=r"outcome = 'perhaps', which is none of yes, no(.|\n)*`values` of the label"
    ):
        trained_on(tmp_path, lambda i: "perhaps", "string", values={"yes": 1, "no": 0})


def test_the_catalog_says_what_a_text_label_needs(tmp_path: Path) -> None:
    with pytest.raises(BadCatalog, match="a binary output needs a number; say in the label's `values`"):
        catalog_of(tmp_path, [], [], EVENT, "string")
    with pytest.raises(BadCatalog, match="maps texts, and outcome is a float64"):
        catalog_of(tmp_path, [], [], EVENT, values={"yes": 1})


def test_a_model_that_declares_nothing_keeps_its_digest(tmp_path: Path) -> None:
    lake: Lake = catalog_of(tmp_path, [], [])
    document = lake.model("m").label.model_dump(mode="json")
    assert sorted(document) == ["column", "matures_after", "table"]
