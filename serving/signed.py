"""The one way to a stored model: its files copied to where nobody else writes, their signature, every byte, the model.

Whoever can write to the store can change a file between its verification and its use. So nothing is verified in the
store: the files are copied into a folder that only this process' user may enter, verified there, and used from there.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.errors import NightfleetError
from config.settings import Settings
from lake.artifact import verify_files
from lake.leftovers import try_folder
from lake.signature import UntrustedModel, verify
from lake.storage import artifact_folder
from serving import predictors
from serving.predictors import Predictor

_COPY_BYTES = 4 * 2**20
log = logging.getLogger(__name__)


class ModelMissing(NightfleetError):
    """The files of a model version are not on this machine."""


class FolderTaken(NightfleetError):
    """A model is to be copied to where something lies."""


@contextmanager
def signed_files(
    settings: Settings, model: str, artifact_digest: str, *, documents_only: bool = False
) -> Iterator[Path]:
    """A private copy of `<artifacts>/<model>/<artifact_digest>` whose signature is verified; removed at the end.

    Every file but those below `model/` is then known to be as it was signed. Those are verified by
    `predictors.load_predictor`, in this copy. The signature of a version from before vouches for manifest, job
    and training set alone; the log then says so, and the other files are held to what they were when they were seen
    first. Signing it anew would vouch for limits that nobody can check.

    Args:
        artifact_digest: the ledger's, or that of the registered version; never one read from the folder itself.
        documents_only: leave out the model's own files.
    Raises:
        ModelMissing: the folder is not there.
        UntrustedModel: it is not signed with our key, or not as signed, or is another model or version; or something in
            it is a link, or no plain file.
        MissingSecret: there is no key to verify with.
    """
    folder = artifact_folder(settings, model, artifact_digest)
    if not folder.is_dir():
        raise ModelMissing(
            f"the files of {model} with digest {artifact_digest[:12]}… are not in {folder}. Nothing was loaded.\n"
            f"  Restore that folder from a backup, or go back to the champion before it (`rollback {model}`)."
        )
    with try_folder(settings.scratch, "version") as private:
        copy = private / artifact_digest
        copy.mkdir()
        try:
            for source in _plain_files(folder):
                name = source.relative_to(folder)
                if not (documents_only and name.parts[0] == "model"):
                    _copy(source, copy / name)
            if verify(settings, copy, model, artifact_digest).format == 1:
                log.warning(
                    "the files of %s with digest %s… were signed when a signature did not cover all of them: nobody "
                    "vouches for its drift limits (reference.json) from before they were seen first. Train it again to "
                    "have them signed.",
                    model,
                    artifact_digest[:12],
                )
            yield copy
        except NightfleetError as error:
            # The copy is gone when this is read: what has to be mended lies in the store.
            error.args = tuple(str(text).replace(str(copy), str(folder)) for text in error.args)
            raise


def load_signed(settings: Settings, model: str, artifact_digest: str) -> Predictor:
    """The predictor in `<artifacts>/<model>/<artifact_digest>`; nothing of it is loaded before all of it is verified.

    MLflow's copy of the model is never read: it is for analysts.

    Args:
        artifact_digest: the ledger's, or that of the registered version; never one read from the folder itself.
    Raises:
        ModelMissing, UntrustedModel, MissingSecret: see `signed_files`.
        BadManifest, ArtifactMismatch: its manifest is damaged, or a file is missing, unlisted or was changed.
    """
    with signed_files(settings, model, artifact_digest) as folder:
        return predictors.load_predictor(folder)


def export_signed(settings: Settings, model: str, artifact_digest: str, folder: Path) -> None:
    """Copy a stored model to a new folder, once its signature and every byte are verified; nothing of it is loaded.

    `serving.predictors.load_predictor(folder / artifact_digest)` then loads it without the key.

    Raises:
        FolderTaken: something lies there.
        ModelMissing, UntrustedModel, MissingSecret: see `signed_files`; nothing is written.
        BadManifest, ArtifactMismatch: its manifest is damaged, or a file is missing, unlisted or was changed; nothing
            is written.
    """
    target = folder / artifact_digest
    if target.exists():
        raise FolderTaken(f"{target} is there already; nothing was written. Name another folder, or remove it.")
    with signed_files(settings, model, artifact_digest) as verified:
        verify_files(verified, predictors.read_manifest(verified)["artifacts"])
        shutil.copytree(verified, target)


def _plain_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("."):  # an attempt at an object, which a killed run left
                yield Path(parent) / name


def _copy(source: Path, target: Path) -> None:
    """Copy a plain file, and no more of it than it had when it was opened."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(source, str(error)) from error
    with open(descriptor, "rb") as opened, target.open("xb") as written:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(source, "it is not a plain file")
        remaining = status.st_size
        while remaining and (block := opened.read(min(remaining, _COPY_BYTES))):
            written.write(block)
            remaining -= len(block)


def _unreadable(source: Path, why: str) -> UntrustedModel:
    return UntrustedModel(
        f"{source}, a file of a stored model, cannot be copied: {why}. Nothing was loaded.\n"
        "  Restore the folder, or train the model again."
    )
