"""A family as a team keeps it in its own catalog folder: it predicts a quantile of the training labels."""

from __future__ import annotations

from pathlib import Path

from tests import toy

MODEL_YAML = (
    toy.MODEL_YAML.replace("family: xgboost, params: {n_estimators: 20, max_depth: 3}", "family: quantile, params: {}")
    .replace(", interval: 0.8", "")
    .replace("  long_probability: {kind: binary, above: 30, gate: brier}\n", "")
)
FILES = {
    "names.py": '"""The file of a model."""\n\nFILE = "quantile.json"\n',
    "predictor.py": '''"""One number for every row."""

import numpy as np
from serving.predictors.contract import Predictor, read_json

from .names import FILE

PRELOAD = ()


class QuantilePredictor(Predictor):
    def __init__(self, contract, value):
        super().__init__(contract)
        self._value = value

    def scores(self, matrix):
        return np.full((len(matrix), len(self.contract.raw_columns)), self._value)


def load(folder, contract):
    return QuantilePredictor(contract, read_json(folder / FILE)["value"])
''',
    "trainer.py": '''"""Learns a quantile of the training labels."""

import numpy as np
from pydantic import Field
from serving.predictors.contract import write_json
from training.trainers import FamilyParams, Fitted, normalised

from .names import FILE


class Params(FamilyParams):
    share: float = Field(0.5, ge=0, le=1)


LEARNS = ("number",)
ROUNDS = None
QUICK = {}


def train(contract, fit, validation, folder, *, params, run):
    write_json(folder / FILE, {"value": float(np.quantile(fit.label, params["share"]))})
    shares = {name: normalised({}, contract) for name in contract.kinds}
    return Fitted("cpu", {name: 1 for name in contract.kinds}, shares, ("numpy",))
''',
}


def write_family(folder: Path, name: str = "quantile", **changes: str) -> Path:
    """Write it below the catalog folder `folder`; `changes` replace files, by name without `.py`."""
    family = folder / "families" / name
    family.mkdir(parents=True, exist_ok=True)
    for file, text in (FILES | {f"{file}.py": text for file, text in changes.items()}).items():
        (family / file).write_text(text, encoding="utf-8")
    return family
