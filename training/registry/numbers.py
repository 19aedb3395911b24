"""Which numbers a model's versions have, by our own records: MLflow counts them, and forgets when its database is lost.

A version is the digest of its files. Its number is what people call it by, so one number names one version for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from config.errors import NightfleetError
from lake.lake import Lake
from lake.storage import reports
from training.registry.decision import is_signed, stored_decisions

CARDS_FOLDER = "model_cards"


class VersionNumberTaken(NightfleetError):
    """A number that names one version would name another."""


class UnknownVersion(NightfleetError):
    """No record of ours knows a version by that number."""


@dataclass(frozen=True)
class Numbers:
    """Numbers that were given to a model's versions.

    Attributes:
        given: number and artifact digest, of the lines of both ledgers, the newest promotion first, then of the gate's
            decisions.
        highest: of these and of the model cards; 0 where there is none.
    """

    given: tuple[tuple[int, str], ...]
    highest: int

    def of(self, artifact_digest: str) -> int | None:
        """The number of that version, None where it has none yet."""
        return next((number for number, digest in self.given if digest == artifact_digest), None)

    def is_free(self, number: int, artifact_digest: str) -> bool:
        """Whether the number names no other version."""
        named = {digest for given, digest in self.given if given == number}
        return not named or artifact_digest in named


def digest_of(lake: Lake, model: str, version: int | None) -> tuple[int, str]:
    """Number and artifact digest of a version, of the champion where none is named; of our own signed records.

    Raises:
        UnknownVersion: no promotion, no rollout and no decision knows it.
        LedgerUntrusted, MissingSecret: as `given_numbers`.
    """
    lake.model(model)
    newest = lake.ledger(model).read().newest
    if version is None and newest is not None:
        return newest.version, newest.artifact_digest
    given = given_numbers(lake, model).given
    digest = next((digest for number, digest in given if number == version), None)
    if version is None or digest is None:
        known = ", ".join(str(number) for number in sorted({number for number, _ in given})) or "none"
        raise UnknownVersion(
            f"{model} has no {'champion' if version is None else f'version {version}'} in its ledger or among its "
            f"decisions. Known versions: {known}."
        )
    return version, digest


def given_numbers(lake: Lake, model: str) -> Numbers:
    """What ledgers, decisions and model cards know. Decisions that this installation did not sign do not count.

    Raises:
        LedgerUntrusted: a line of a ledger is not ours.
        MissingSecret: there is no key to verify with.
    """
    promotions = sorted(lake.ledger(model).read().promotions, key=lambda line: -line.sequence)
    given = [(line.version, line.artifact_digest) for line in promotions]
    given += [(line.version, line.artifact_digest) for line in reversed(lake.rollouts(model).read().lines)]
    decisions = [decision for _, _, decision in stored_decisions(lake, model) if is_signed(lake, decision)]
    given += [(decision.version, decision.evidence["subject"]["artifact_digest"]) for decision in decisions]
    cards = [PurePath(name).stem for name in reports(lake.settings).names(f"{model}/{CARDS_FOLDER}")]
    numbers = [number for number, _ in given] + [int(stem) for stem in cards if stem.isdecimal()]
    return Numbers(tuple(given), max(numbers, default=0))
