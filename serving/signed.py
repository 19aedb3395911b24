"""The one way to load a stored model: its signature first, then every byte of it, then the model."""

from __future__ import annotations

from config.errors import NightfleetError
from config.settings import Settings
from lake.signature import verify
from lake.storage import artifact_folder
from serving import predictors
from serving.predictors import Predictor


class ModelMissing(NightfleetError):
    """The files of a model version are not on this machine."""


def load_signed(settings: Settings, model: str, artifact_digest: str) -> Predictor:
    """The predictor in `<artifacts>/<model>/<artifact_digest>`; nothing of it is loaded before all of it is verified.

    MLflow's copy of the model is never read: it is for analysts.

    Args:
        artifact_digest: the ledger's, or that of the registered version; never one read from the folder itself.
    Raises:
        ModelMissing: the folder is not there.
        UntrustedModel: it is not signed with our key, or not as signed, or is another model or version.
        BadManifest, ArtifactMismatch: its manifest is damaged, or a file is missing, unlisted or was changed.
        MissingSecret: there is no key to verify with.
    """
    folder = artifact_folder(settings, model, artifact_digest)
    if not folder.is_dir():
        raise ModelMissing(
            f"the files of {model} with digest {artifact_digest[:12]}… are not in {folder}. Nothing was loaded.\n"
            f"  Restore that folder from a backup, or go back to the champion before it (`rollback {model}`)."
        )
    verify(settings, folder, model, artifact_digest)
    return predictors.load_predictor(folder)
