"""Transformer encoders over sequences: what they see, the file and the explanation are those of recurrent networks."""

from __future__ import annotations

from pathlib import Path

from serving.predictors import lstm
from serving.predictors.contract import Contract
from serving.predictors.shapley import Sample, Shapley

PRELOAD = ("keras",)


def load(folder: Path, contract: Contract) -> lstm.LstmPredictor:
    """Load network and constants from a verified folder."""
    return lstm.load(folder, contract)


def explain(folder: Path, contract: Contract, sample: Sample) -> Shapley:
    """Contributions of every feature by expected gradients; those of a channel's steps stand in its newest step."""
    return lstm.explain(folder, contract, sample)
