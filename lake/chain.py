"""Whether the lines of a ledger are ours: each is signed over itself and all lines before it.

Lines from before lines were signed stand under a seal: their digests, in a file beside the key, which whoever writes to
the lake cannot reach. It is made once, by the first process with the key that reads a ledger of the installation. A
ledger that begins later has signed lines alone.

A chain that is cut at its end still is a chain. So the end of each ledger that was seen last is kept beside the key,
too: a ledger goes on from there, and never lacks it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

from config.errors import NightfleetError
from config.settings import Settings
from lake.delta import table_location
from lake.durable import keep_beside_key
from lake.signature import KEY, authenticate, authenticated_by

SEAL_FILE = "ledger_seal.json"
HEADS_FOLDER = "ledger_heads"
SIGNATURE = "signature"
Line = Mapping[str, Any]
log = logging.getLogger(__name__)


class LedgerUntrusted(NightfleetError):
    """A line of a ledger is not signed, or is not as it was signed."""


class LedgerCut(LedgerUntrusted):
    """A ledger lacks lines that were seen in it."""


@dataclass(frozen=True)
class ChainName:
    """Which ledger of a model a chain of lines is: `promotions`, or `rollouts`."""

    model: str
    ledger: str = "promotions"

    def __str__(self) -> str:
        return f"the ledger of {self.model}" if self.ledger == "promotions" else f"the {self.ledger} of {self.model}"

    @property
    def key(self) -> str:
        """Names it beside the key; no model's name has a dot."""
        return self.model if self.ledger == "promotions" else f"{self.model}.{self.ledger}"

    @property
    def table(self) -> str:
        """Its table in the lake."""
        return f"{self.model}/{self.ledger}"


@dataclass(frozen=True)
class Head:
    """How far a ledger was seen.

    Attributes:
        lines: how many.
        digest: of all of them.
    """

    lines: int
    digest: str


def head_path(settings: Settings, chain: ChainName) -> Path:
    """Where it is kept how far a ledger was seen."""
    return settings.home / "secrets" / HEADS_FOLDER / f"{chain.key}.json"


def read_head(settings: Settings, chain: ChainName) -> Head | None:
    """How far the ledger was seen; None where nobody with the key has read it yet. Ask before the ledger is read: a
    line that is added in between is no line that is lacking.

    Raises:
        LedgerUntrusted: the file is damaged.
    """
    path = head_path(settings, chain)
    try:
        return Head(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LedgerUntrusted(
            f"{path} is damaged ({error}): nobody knows how many lines {chain} had. Nothing was decided by them.\n"
            f"  Restore that file from a backup, or run `python -m cli repair --accept-ledger {chain.model}` once you "
            "know that no line is lacking."
        ) from error


def check_head(settings: Settings, chain: ChainName, lines: Sequence[Line], head: Head | None) -> None:
    """Know verified lines as all that there ever were, and keep how far they reach.

    Raises:
        LedgerCut: lines are lacking that were seen.
    """
    digests = _running(lines)
    reached = head.lines if head else 0
    if head and reached and (len(lines) < reached or digests[reached - 1] != head.digest):
        folder = table_location(settings, chain.table).uri
        raise LedgerCut(
            f"{chain} has {len(lines)} lines, of the {reached} that were seen in it some are lacking: it "
            "was cut, or restored from an older backup. No night is scored and nothing is judged by it.\n"
            f"  Restore {folder} from a newer backup. If none is newer, or the ledger was restored on purpose, run "
            f"`python -m cli repair --accept-ledger {chain.model}`: what the lacking lines decided no longer counts."
        )
    if len(lines) > reached:
        try:
            keep_beside_key(head_path(settings, chain), asdict(Head(len(lines), digests[-1])))
        except OSError as error:
            log.warning("how far %s reaches could not be kept: %s", chain, error)


def forget_head(settings: Settings, chain: ChainName) -> Head | None:
    """Take the ledger for whole as it is, with the next read; returns how far it was seen before."""
    path = head_path(settings, chain)
    try:
        head = read_head(settings, chain)
    except LedgerUntrusted:
        head = None
    path.unlink(missing_ok=True)
    return head


def seal_path(settings: Settings) -> Path:
    """Where the seal of the installation's ledgers lies."""
    return settings.home / "secrets" / SEAL_FILE


def read_seal(settings: Settings) -> dict[str, list[str]] | None:
    """By model the digests of its sealed lines, the first line's first; None where no seal was made yet."""
    try:
        return dict(json.loads(seal_path(settings).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LedgerUntrusted(
            f"{seal_path(settings)} is damaged ({error}): nobody knows which lines of the ledgers were there before "
            "lines were signed. Nothing was decided by them.\n"
            "  Restore that file from a backup."
        ) from error


def seal_former(settings: Settings, ledgers: Mapping[str, Sequence[Line]]) -> dict[str, list[str]]:
    """Seal the unsigned lines that each ledger begins with, unless another process did so first; returns the seal."""
    sealed = {model: _running(lines)[: _unsigned(lines)] for model, lines in ledgers.items() if _unsigned(lines)}
    for model, digests in sealed.items():
        log.warning(
            "the first %d lines of the ledger of %s, from before lines were signed, are sealed", len(digests), model
        )
    keep_beside_key(seal_path(settings), sealed, first=True)
    return read_seal(settings) or {}


def sign_line(settings: Settings, before: Sequence[Line], line: Line) -> str:
    """The signature of a line that comes after the others.

    Raises:
        MissingSecret: there is no key, or one too short.
    """
    return authenticate(settings, _signed(line, _running(before)[-1] if before else ""))


def verify_lines(settings: Settings, chain: ChainName, lines: Sequence[Line], seal: Mapping[str, list[str]]) -> None:
    """Know every line as ours: sealed, or signed in its place.

    Where lines are known by the previous key alone they are sealed anew, so that that key may be taken away.

    Raises:
        LedgerUntrusted: names the first line that is not.
        MissingSecret: there is no key to verify with.
    """
    digests = _running(lines)
    sealed = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(digests, seal.get(chain.key, []), strict=False))
    )
    begin, keys = max(sealed, _bound(settings, lines, digests)), set()
    for number in range(begin, len(lines)):
        key = _key_of(settings, lines, digests, number)
        if key is None:
            raise LedgerUntrusted(_refusal(settings, chain, number, lines[number]))
        keys.add(key)
    if keys - {KEY}:
        try:
            keep_beside_key(seal_path(settings), {**seal, chain.key: digests})
        except OSError as error:
            log.warning("%s could not be sealed under the new key: %s", chain, error)


def _bound(settings: Settings, lines: Sequence[Line], digests: Sequence[str]) -> int:
    """How many unsigned lines the first signed one vouches for."""
    unsigned = _unsigned(lines)
    signed = unsigned < len(lines) and _key_of(settings, lines, digests, unsigned)
    return unsigned if signed else 0


def _key_of(settings: Settings, lines: Sequence[Line], digests: Sequence[str], number: int) -> str | None:
    line = lines[number]
    return authenticated_by(settings, _signed(line, digests[number - 1] if number else ""), line[SIGNATURE])


def _signed(line: Line, before: str) -> dict[str, Any]:
    return {"ledger_line": _plain(line, without=(SIGNATURE,)), "before": before}


def _plain(line: Line, without: Sequence[str] = ()) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, date) else value
        for name, value in line.items()
        if name not in without and (name != SIGNATURE or value is not None)
    }


def _running(lines: Sequence[Line]) -> list[str]:
    """After each line the digest of all lines so far."""
    digests: list[str] = []
    for line in lines:
        text = json.dumps([digests[-1] if digests else "", _plain(line)], sort_keys=True, separators=(",", ":"))
        digests.append(hashlib.sha256(text.encode()).hexdigest())
    return digests


def _unsigned(lines: Sequence[Line]) -> int:
    return next((number for number, line in enumerate(lines) if line[SIGNATURE] is not None), len(lines))


def _refusal(settings: Settings, chain: ChainName, number: int, line: Line) -> str:
    folder = table_location(settings, chain.table).uri
    what = "is not signed" if line[SIGNATURE] is None else "was changed, moved, or signed with another key"
    return (
        f"line {number + 1} of {chain} (a {line['kind']} of version {line['version']}, files "
        f"{str(line['artifact_digest'])[:12]}…) {what}: this installation did not write it so. No night is scored and "
        "nothing is judged by this ledger.\n"
        f"  Find out who wrote to {folder} and restore that folder from a backup; where the key was changed, give "
        "the old one as model_signing_key_previous."
    )
