"""Trainers: one file a family, which declares all that is asked about the family in training: see `Family`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from config.catalog.output import OutputKind, Task, kind_named, known_kinds
from config.errors import NightfleetError
from serving.predictors import FAMILIES, check_family
from serving.predictors.brought import brought
from serving.predictors.contract import Contract, Matrix
from training.checkpoints import Checkpoints
from training.progress import Progress


class BadParameter(NightfleetError):
    """A trainer parameter is unknown or out of range."""


class NoGpu(NightfleetError):
    """A GPU is demanded and none can be used."""


class TrainingImpossible(NightfleetError):
    """The training set holds nothing that could be learned."""


class TrainingDiverged(NightfleetError):
    """The loss became NaN or infinite."""


class TrialPruned(Exception):
    """Raised by `Progress.point` during a search: this trial is not worth finishing. A trainer lets it pass."""


class FamilyParams(BaseModel):
    """Base of a family's parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """One split: `matrix` float32 (rows, features), `label` float64 (rows,) in the label's unit, `nights` int32 (rows,)
    data dates as days since 1970.

    The matrix of a training set that memory cannot hold is a memory map: take it in slices.
    """

    matrix: Matrix
    label: Floats
    nights: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cluster:
    """Data-parallel workers of one training, each a process that was started with the same job.

    Attributes:
        addresses: `host:port` of every worker, the chief first; equal in all of them.
        index: which of them this process is. The chief alone (0) writes files, curves and lines.
    """

    addresses: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class Run:
    """How one fit is run, whatever the family.

    Attributes:
        seed: decides everything random.
        device: auto, cpu or gpu, as the catalog says.
        progress: takes lines and curve points.
        checkpoints: where a killed fit resumes.
        cluster: the workers, None for one process. A family without data parallelism refuses more than one worker.
        scratch: a folder for files that may be thrown away.
    """

    seed: int
    device: str
    progress: Progress
    checkpoints: Checkpoints
    scratch: Path
    cluster: Cluster | None = None


@dataclass(frozen=True)
class Fitted:
    """What a trainer leaves beside the files it wrote.

    Attributes:
        device: `cpu` or `gpu`, as used.
        best_iteration: per fitted booster or network, rounds or epochs kept, counted from 1.
        importances: per output and feature, share of the whole, each in [0, 1].
        libraries: packages whose version decides the result.
    """

    device: str
    best_iteration: dict[str, int]
    importances: dict[str, dict[str, float]]
    libraries: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)


class Family(Protocol):
    """What a file of this folder defines.

    Attributes:
        Params: what a catalog or a form may set.
        LEARNS: what it can learn; each output kind says which of it its outputs are.
        ROUNDS: the parameter that says how many points its curve has at most; None where the curve says nothing of a
            fit that has not ended.
        QUICK: parameters with which it learns a thousand rows in seconds: the tests train with them.
    """

    Params: type[FamilyParams]
    LEARNS: tuple[Task, ...]
    ROUNDS: str | None
    QUICK: Mapping[str, Any]

    def train(
        self, contract: Contract, fit: Rows, validation: Rows, folder: Path, *, params: Mapping[str, Any], run: Run
    ) -> Fitted:
        """Fit all outputs and write the family's files into `folder`."""


def family_of(name: str) -> Family:
    """The family's file.

    Raises:
        UnknownFamily: there is no such family.
    """
    if check_family(name) not in FAMILIES:
        return cast("Family", brought()[name].module("trainer"))
    family: Family = importlib.import_module(f"training.trainers.{name}")
    return family


def check_outputs(model: str, family: str, outputs: Mapping[str, OutputKind]) -> None:
    """Check that a family can learn every output.

    Raises:
        UnknownFamily: there is no such family.
        TrainingImpossible: it cannot learn an output of that kind.
    """
    learns = family_of(family).LEARNS
    for name, output in outputs.items():
        if output.task not in learns:
            able = [other for other in (*FAMILIES, *brought()) if output.task in family_of(other).LEARNS]
            known = " and ".join(kind for kind in known_kinds() if kind_named(kind).task in learns)
            raise TrainingImpossible(
                f"{model}: the family {family} learns {known} outputs, {name!r} is {output.kind}. Name a "
                f"family that learns it ({', '.join(able) or 'there is none'}) in `trainer.family`, or leave the "
                "output out."
            )


def validated_params(family: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of the family, defaults filled in.

    Raises:
        UnknownFamily: there is no such family.
        BadParameter: a key is unknown, or a value of the wrong type or out of range.
    """
    kind = family_of(family).Params
    try:
        return kind(**params).model_dump(mode="json")
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise BadParameter(f"{family} has no parameter {name!r}. Known: {', '.join(kind.model_fields)}.") from error
        raise BadParameter(
            f"the {family} parameter {name} is {problem.get('input')!r}: {problem['msg']}. Fix `trainer.params`, or "
            "the form's override."
        ) from error


def truth_to_learn(contract: Contract, name: str, rows: Rows, split: str = "train") -> Floats:
    """What came true of an output, of rows that can teach it: 0 or 1, or the position of a class, (rows,).

    Raises:
        TrainingImpossible: all are alike, or a class is missing.
    """
    output = contract.kinds[name]
    why = output.unlearnable(rows.label, {"train": "training rows", "validation": "validation rows"}[split])
    if why is not None:
        raise TrainingImpossible(f"{contract.model}: {why}, so {name!r} cannot be learned. Widen `split.{split}`.")
    return output.truth(rows.label)


def normalised(importances: Mapping[str, float], contract: Contract) -> dict[str, float]:
    """Importances of every feature as shares of their sum, largest first; all 0 where there is nothing to share."""
    positive = {name: max(0.0, float(importances.get(name, 0.0))) for name in contract.features}
    total = sum(positive.values())
    shares = {name: value / total if total else 0.0 for name, value in positive.items()}
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
