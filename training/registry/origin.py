"""Is a version what MLflow and its signature both say it is? Asked before it is judged, promoted or rolled back to."""

from __future__ import annotations

import logging

from lake.lake import Lake
from lake.signature import Signed, UntrustedModel, verify
from lake.storage import artifact_folder
from training.registry.tracking import MlflowUnavailable, answered, tracking_client

log = logging.getLogger(__name__)


def verify_origin(lake: Lake, model: str, version: int, artifact_digest: str) -> Signed:
    """What the signature of a version says, once MLflow's tags of that version agree with it.

    Where MLflow does not answer, has lost the version, or gives its number to other files than a signed ledger does,
    the signature alone counts, and the log says so.

    Raises:
        UntrustedModel: the signature is missing, false or about another model; or MLflow knows the version by another
            run or other files.
        MissingSecret: there is no key to verify with.
    """
    signed = verify(lake.settings, artifact_folder(lake.settings, model, artifact_digest), model, artifact_digest)
    try:
        client = tracking_client(lake.settings)
        with answered(lake.settings):
            versions = [v for v in client.search_model_versions(f"name = '{model}'") if int(v.version) == version]
    except MlflowUnavailable as error:
        log.warning(
            "%s version %s is known by its signature alone: MLflow could not be asked which run made it. %s",
            model,
            version,
            error,
        )
        return signed
    if not versions:
        log.warning("MLflow has no version %s of %s: its signature alone says which run made it", version, model)
        return signed
    for tag, wanted in (("trained_by_run", signed.run_id), ("artifact_digest", signed.artifact_digest)):
        tagged = versions[0].tags.get(tag)
        if tagged != wanted and _in_a_ledger(lake, model, version, artifact_digest):
            log.warning("MLflow's version %s of %s has another %s than the ledger's", version, model, tag)
            return signed
        if tagged != wanted:
            raise UntrustedModel(
                f"{model} version {version} is not trusted: its signature says {tag} {wanted}, MLflow's tag of that "
                f"version says {tagged}. "
                "Nothing was loaded.\n"
                "  One of them was edited. Restore MLflow's tag where you know that the signature is right, else train "
                "the model again."
            )
    return signed


def _in_a_ledger(lake: Lake, model: str, version: int, artifact_digest: str) -> bool:
    """Whether a signed line, of a promotion or of a rollout, gives that number to those files."""
    given = {(line.version, line.artifact_digest) for line in lake.ledger(model).read().promotions}
    given |= {(line.version, line.artifact_digest) for line in lake.rollouts(model).read().lines}
    return (version, artifact_digest) in given
