"""Signatures: an HMAC over what a stored model is, where it comes from and which bytes it has; and over other documents
that must be ours, such as decisions and lines of the ledger.

A digest says that bytes are those that were named; whoever can write to the store can name others. The signature is
made when a model is stored, with a key that the store does not hold, and is checked before anything of the model is
loaded.

Keys. `model_signing_key` signs and verifies, `model_signing_key_previous` only verifies. To change the key, give the
old one as the previous, and a new one. Models that are stored from then on carry the new key's signature. Once no
champion and no version that one would roll back to carries the old one's, take the previous away. A key that became
known is not kept as previous: train the models again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from config.errors import NightfleetError
from config.settings import MissingSecret, Settings, process_environment, secret
from lake.artifact import combined_digest, file_digest
from lake.durable import keep_beside_key

SIGNATURE_FILE = "signature.json"
KEY = "model_signing_key"
PREVIOUS_KEY = "model_signing_key_previous"
FORMER_FOLDER = "former_versions"  # beside the key: what such a version held when it was seen first
log = logging.getLogger(__name__)
FORMAT = 2
# A signature of the first format vouches for less: only `job.json` and `training_set.json` beside manifest and model.
READABLE_FORMATS = (1, FORMAT)
LEAST_KEY_CHARACTERS = 32
MANIFEST_FILE = "manifest.json"
_FIRST_DOCUMENTS = ("job.json", "training_set.json")


class UntrustedModel(NightfleetError):
    """A stored model is not signed, or is not what its signature says."""


@dataclass(frozen=True)
class Signed:
    """What a signature vouches for.

    Attributes:
        model: the model it is a version of.
        artifact_digest: digest of the manifest's list of files, the name of its folder.
        manifest_digest: SHA-256 of `manifest.json`, byte for byte.
        documents: SHA-256 of every other file, by name, save the model's own, which the manifest lists.
        training_set_digest, identity: what it was trained on, and by which job.
        run_id: the run that trained it.
    """

    model: str
    artifact_digest: str
    manifest_digest: str
    documents: dict[str, str]
    training_set_digest: str
    identity: str
    run_id: str
    format: int = FORMAT


def sign(settings: Settings, folder: Path, model: str) -> Signed:
    """Write `signature.json` into a folder whose other files are complete.

    Raises:
        MissingSecret: there is no key, or one too short.
    """
    signed = _as_it_lies(folder, model, FORMAT)
    document = {"signed": asdict(signed), "hmac": _mac(signing_key(settings), signed)}
    (folder / SIGNATURE_FILE).write_bytes(_canonical(document))
    return signed


def verify(settings: Settings, folder: Path, model: str, artifact_digest: str) -> Signed:
    """What the signature of a stored model says, once it is known to be true of the folder, save for the model's own
    files.

    Those are verified by their digests, which the manifest lists, when they are loaded.

    Args:
        model, artifact_digest: what the caller asks for: the ledger's line, or what was registered.
    Raises:
        UntrustedModel: there is no signature, it was made with another key, or it is about something else than lies
            there or is asked for.
        MissingSecret: there is no key to verify with.
    """
    path = folder / SIGNATURE_FILE
    keys = _verifying_keys(settings)
    if not path.is_file():
        raise UntrustedModel(
            _refusal(
                folder,
                f"it has no {SIGNATURE_FILE}, so nobody vouches for it",
                "Train the model again, or restore the folder.",
            )
        )
    raw = path.read_bytes()
    try:
        document = json.loads(raw)
        written = document["hmac"]
        signed = Signed(**document["signed"])
        # Only one spelling is accepted: nothing in the file may change unnoticed.
        if (
            _canonical(document) != raw
            or not isinstance(written, str)
            or not written.isascii()
            or signed.format not in READABLE_FORMATS
        ):
            raise ValueError("it is not as `sign` writes it")
    except (ValueError, KeyError, TypeError) as error:
        raise UntrustedModel(
            _refusal(
                folder, f"its {SIGNATURE_FILE} is damaged ({error})", "Restore the folder, or train the model again."
            )
        ) from error
    if not any(hmac.compare_digest(_mac(key, signed), written) for key in keys):
        raise UntrustedModel(
            _refusal(
                folder,
                f"its {SIGNATURE_FILE} was edited, or made with a key other than {KEY} ({len(keys)} tried)",
                f"If the key was changed, give the old one as {PREVIOUS_KEY}; else restore the folder, or train the "
                "model again.",
            )
        )
    if signed.model != model:
        raise UntrustedModel(
            _refusal(
                folder,
                f"its signature belongs to a version of {signed.model}, but {model} was asked for",
                "Restore the folder.",
            )
        )
    if signed.artifact_digest != artifact_digest:
        known = (
            f"its signature is about the files {signed.artifact_digest[:12]}…, asked for are {artifact_digest[:12]}…"
        )
        raise UntrustedModel(_refusal(folder, known, "Restore the folder."))
    try:
        present = _as_it_lies(folder, model, signed.format)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedModel(
            _refusal(folder, f"it is not as it was signed ({type(error).__name__}: {error})", "Restore the folder.")
        ) from error
    for field in fields(Signed):
        wanted, there = getattr(signed, field.name), getattr(present, field.name)
        if wanted != there:
            raise UntrustedModel(
                _refusal(
                    folder, _difference(field.name, wanted, there), "Restore the folder, or train the model again."
                )
            )
    _check_former(settings, folder, signed)
    return signed


def _check_former(settings: Settings, folder: Path, signed: Signed) -> None:
    """Hold a version whose signature does not cover every file to what it was when it was seen first.

    Raises:
        UntrustedModel: a file beside the model differs from then.
    """
    if signed.format == FORMAT:
        return
    present = _as_it_lies(folder, signed.model, FORMAT).documents
    path = settings.home / "secrets" / FORMER_FOLDER / f"{signed.artifact_digest}.json"
    try:
        keep_beside_key(path, present, first=True)
        known = json.loads(path.read_bytes())
    except ValueError:
        known = {}
    except OSError as error:
        log.warning("what lies beside the model in %s could not be noted: %s", folder, error)
        return
    if known != present:
        raise UntrustedModel(
            _refusal(folder, _difference("documents", known, present), "Restore the folder, or train the model again.")
        )


def signing_key(settings: Settings) -> bytes:
    """The key new signatures are made with.

    Raises:
        MissingSecret: there is none, or it is too short to be one.
    """
    return _key(settings, KEY)


def authenticate(settings: Settings, document: Mapping[str, Any]) -> str:
    """The HMAC of a JSON document, by which `authenticated_by` knows it as ours.

    Raises:
        MissingSecret: there is no key, or one too short.
    """
    return _authentication(signing_key(settings), document)


def authenticated_by(settings: Settings, document: Mapping[str, Any], written: str | None) -> str | None:
    """Name of the key that `written` was made of the document with; None where it was made with neither.

    Raises:
        MissingSecret: there is no key to verify with.
    """
    for name, key in zip((KEY, PREVIOUS_KEY), _verifying_keys(settings), strict=False):
        if written and written.isascii() and hmac.compare_digest(_authentication(key, document), written):
            return name
    return None


def _verifying_keys(settings: Settings) -> list[bytes]:
    keys = [signing_key(settings)]
    if process_environment([PREVIOUS_KEY.upper()]) or (settings.home / "secrets" / PREVIOUS_KEY).exists():
        keys.append(_key(settings, PREVIOUS_KEY))
    return keys


def _key(settings: Settings, name: str) -> bytes:
    text = secret(settings, name)
    if len(text) < LEAST_KEY_CHARACTERS:
        raise MissingSecret(
            f"{name} has {len(text)} characters, needs at least {LEAST_KEY_CHARACTERS}: a short key can be guessed. "
            "Make a random one."
        )
    return text.encode()


def _as_it_lies(folder: Path, model: str, written_format: int) -> Signed:
    """What a signature of the folder, as it lies there, would say in that format."""
    raw = (folder / MANIFEST_FILE).read_bytes()
    manifest = json.loads(raw)
    job = json.loads((folder / "job.json").read_bytes())
    if job["identity"] != manifest["identity"]:
        raise ValueError("manifest.json and job.json belong to different jobs")
    return Signed(
        model=model,
        artifact_digest=combined_digest(manifest["artifacts"]),
        manifest_digest=hashlib.sha256(raw).hexdigest(),
        documents={name: file_digest(folder / name) for name in _documents(folder, manifest, written_format)},
        training_set_digest=manifest["training_set_digest"],
        identity=manifest["identity"],
        run_id=job["run_id"],
        format=written_format,
    )


def _documents(folder: Path, manifest: dict[str, Any], written_format: int) -> list[str]:
    if written_format == 1:
        return list(_FIRST_DOCUMENTS)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {name for name in present if name.startswith("model/")} | set(manifest["artifacts"])
    # A name that begins with a dot is an attempt at an object, which a killed run left.
    return sorted(
        name for name in present - own - {MANIFEST_FILE, SIGNATURE_FILE} if not Path(name).name.startswith(".")
    )


def _difference(field: str, wanted: Any, there: Any) -> str:
    if field == "run_id":
        return f"it was signed as trained by run {wanted}, its job.json names run {there}"
    if field == "documents":
        name = next(name for name in sorted({*wanted, *there}) if wanted.get(name) != there.get(name))
        if name not in there:
            return f"{name} is missing, though it was signed"
        return f"{name} was {'changed' if name in wanted else 'added'} after it was signed"
    if field == "artifact_digest":
        return f"manifest.json lists files of digest {there[:12]}…, signed are {wanted[:12]}…"
    if field == "manifest_digest":
        return f"manifest.json was changed after it was signed: it has digest {there[:12]}…, signed is {wanted[:12]}…"
    return f"its {field} is {there}, signed is {wanted}"


def _refusal(folder: Path, what: str, next_step: str) -> str:
    return f"the model in {folder} is not trusted: {what}. Nothing was loaded.\n  {next_step}"


def _authentication(key: bytes, document: Mapping[str, Any]) -> str:
    return hmac.new(key, _canonical(document), hashlib.sha256).hexdigest()


def _mac(key: bytes, signed: Signed) -> str:
    return _authentication(key, asdict(signed))


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
