"""What a signature vouches for, whom it is believed, and that nothing of a model is loaded before it is."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.errors import NightfleetError
from config.settings import MissingSecret, Settings
from lake.artifact import ArtifactMismatch, combined_digest, file_digest, folder_digests, verify_files
from lake.signature import KEY, PREVIOUS_KEY, SIGNATURE_FILE, UntrustedModel, sign, verify
from serving.predictors import BadManifest
from serving.predictors.contract import Contract
from serving.signed import ModelMissing, load_signed, signed_files

MODEL = "ride_minutes"
OTHER_KEY = "another-key-of-more-than-32-characters"


def store(home: Path, model: str = MODEL, *, run_id: str = "run-1", weights: bytes = b"weights") -> Path:
    """A stored, signed model; its one file of weights is no model that anything could load."""
    attempt = home / "artifacts" / model / "attempt"
    (attempt / "model").mkdir(parents=True)
    (attempt / "model" / "weights.bin").write_bytes(weights)
    Contract(model, "xgboost", {}, {}, (), "t" * 64, "2024-02-26", 7, {}).write(attempt / "model")
    artifacts = folder_digests(attempt)
    (attempt / "manifest.json").write_text(
        json.dumps({"artifacts": artifacts, "training_set_digest": "t" * 64, "identity": "i" * 64})
    )
    (attempt / "job.json").write_text(json.dumps({"identity": "i" * 64, "run_id": run_id}))
    (attempt / "training_set.json").write_text("{}")
    (attempt / "reference.json").write_text('{"columns": {"minutes": {"limit": 0.2}}}')
    sign(Settings(home=home), attempt, model)
    folder = attempt.with_name(combined_digest(artifacts))
    attempt.rename(folder)
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a family's `load` was called with: whatever runs code of a model runs it there."""
    called: list[Path] = []
    monkeypatch.setattr("serving.predictors.xgboost.load", lambda folder, contract: called.append(folder))
    return called


def load(folder: Path, model: str = MODEL, digest: str | None = None) -> Any:
    return load_signed(Settings(home=folder.parents[2]), model, digest or folder.name)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_signed_model_is_loaded(tmp_path: Path, loads: list[Path]) -> None:
    folder = store(tmp_path)
    load(folder)
    assert len(loads) == 1
    assert loads[0] != folder / "model"  # a private copy of it
    signed = verify(Settings(home=tmp_path), folder, MODEL, folder.name)
    assert (signed.model, signed.artifact_digest, signed.run_id, signed.identity) == (
        MODEL,
        folder.name,
        "run-1",
        "i" * 64,
    )


# ---- what is refused ---------------------------------------------------------------------------------------------


def _swap_weights(folder: Path) -> None:
    (folder / "model" / "weights.bin").write_bytes(b"evil")


def _swap_weights_and_fix_the_manifest(folder: Path) -> None:
    _swap_weights(folder)
    digest = file_digest(folder / "model" / "weights.bin")
    edit(folder / "manifest.json", lambda manifest: manifest["artifacts"].update({"model/weights.bin": digest}))


def _edit_manifest(folder: Path) -> None:
    edit(folder / "manifest.json", lambda manifest: manifest.update(training_set_digest="u" * 64))


def _respell_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + "\n")


def _rename_run(folder: Path) -> None:
    edit(folder / "job.json", lambda job: job.update(run_id="run-2"))


def _other_job(folder: Path) -> None:
    edit(folder / "job.json", lambda job: job.update(identity="j" * 64))


def _edit_training_set(folder: Path) -> None:
    (folder / "training_set.json").write_text('{"windows": {}}')


def _edit_reference(folder: Path) -> None:
    (folder / "reference.json").write_text('{"columns": {"minutes": {"limit": 1e9}}}')


def _lose_reference(folder: Path) -> None:
    (folder / "reference.json").unlink()


def _add_document(folder: Path) -> None:
    (folder / "curves.json").write_text("{}")


def _link_weights(folder: Path) -> None:
    (folder / "model" / "weights.bin").rename(folder.parent / "elsewhere")
    (folder / "model" / "weights.bin").symlink_to(folder.parent / "elsewhere")


def _pipe_weights(folder: Path) -> None:
    (folder / "model" / "weights.bin").unlink()
    os.mkfifo(folder / "model" / "weights.bin")


def _add_file(folder: Path) -> None:
    (folder / "model" / "more.pkl").write_bytes(b"x")


def _respell_signature(folder: Path) -> None:
    edit(folder / SIGNATURE_FILE, lambda document: None)


def _claim(folder: Path) -> None:
    edit(folder / SIGNATURE_FILE, lambda document: document["signed"].update(run_id="run-2"))
    path = folder / SIGNATURE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (_swap_weights, ArtifactMismatch, r"weights.bin has digest .* its bytes were changed. Nothing was loaded."),
        (_swap_weights_and_fix_the_manifest, UntrustedModel, r"manifest.json lists files of digest .* signed are"),
        (_edit_manifest, UntrustedModel, r"manifest.json was changed after it was signed"),
        (_respell_manifest, UntrustedModel, r"manifest.json was changed after it was signed"),
        (_rename_run, UntrustedModel, r"job.json was changed after it was signed"),
        (_other_job, UntrustedModel, r"manifest.json and job.json belong to different jobs"),
        (_edit_training_set, UntrustedModel, r"training_set.json was changed after it was signed"),
        (_edit_reference, UntrustedModel, r"reference.json was changed after it was signed"),
        (_lose_reference, UntrustedModel, r"reference.json is missing, though it was signed"),
        (_add_document, UntrustedModel, r"curves.json was added after it was signed"),
        (_link_weights, UntrustedModel, r"weights.bin, a file of a stored model, cannot be copied"),
        (_pipe_weights, UntrustedModel, r"weights.bin, a file of a stored model, cannot be copied: it is not a plain"),
        (_add_file, ArtifactMismatch, r"holds model/more.pkl, which the manifest does not list"),
        (_respell_signature, UntrustedModel, r"its signature.json is damaged \(it is not as `sign` writes it\)"),
        (_claim, UntrustedModel, r"its signature.json was edited, or made with a key other than model_signing_key"),
        (
            lambda folder: (folder / SIGNATURE_FILE).unlink(),
            UntrustedModel,
            r"it has no signature.json, so nobody vouches for it. Nothing was loaded.",
        ),
        (lambda folder: (folder / SIGNATURE_FILE).write_text("[1]"), UntrustedModel, r"its signature.json is damaged"),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            UntrustedModel,
            r"it is not as it was signed \(FileNotFoundError",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("{"),
            UntrustedModel,
            r"it is not as it was signed \(JSONDecodeError",
        ),
        (shutil.rmtree, ModelMissing, r"Nothing was loaded.\n  Restore that folder from a backup"),
    ],
)
def test_what_is_not_as_it_was_signed_is_not_loaded(
    tmp_path: Path, loads: list[Path], harm: Callable[[Path], None], error: type[NightfleetError], says: str
) -> None:
    folder = store(tmp_path)
    harm(folder)
    with pytest.raises(error, match=says):
        load(folder)
    assert loads == []


def test_a_signature_copied_from_another_model_is_refused(tmp_path: Path, loads: list[Path]) -> None:
    folder = store(tmp_path)
    other = store(tmp_path, "other_model", weights=b"other weights")
    shutil.copy2(other / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    with pytest.raises(
        UntrustedModel,
        match=r"its signature belongs to a version of other_model, but ride_minutes was asked for. Nothing was loaded.",
    ):
        load(folder)
    assert loads == []


def test_a_whole_folder_in_the_place_of_another_is_refused(tmp_path: Path, loads: list[Path]) -> None:
    """Every file of it is genuine, but it is not the version the ledger names."""
    folder, other = store(tmp_path), store(tmp_path, weights=b"worse weights", run_id="run-2")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(
        UntrustedModel, match=rf"its signature is about the files {other.name[:12]}…, asked for are {folder.name[:12]}…"
    ):
        load(folder)
    foreign = store(tmp_path, "other_model", weights=b"x")
    target = folder.parent / foreign.name
    shutil.copytree(foreign, target)
    with pytest.raises(UntrustedModel, match="its signature belongs to a version of other_model"):
        load(target)
    assert loads == []


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded before it was verified")

    monkeypatch.setattr("serving.predictors.xgboost.load", refuse)


@given(
    name=st.sampled_from(
        [
            "manifest.json",
            SIGNATURE_FILE,
            "job.json",
            "training_set.json",
            "reference.json",
            "model/weights.bin",
            "model/contract.json",
        ]
    ),
    position=st.floats(0, 1, exclude_max=True),
    mask=st.integers(1, 255),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("never_loaded")
def test_any_flipped_byte_is_refused_before_anything_is_loaded(
    stored: Path, name: str, position: float, mask: int
) -> None:
    path = stored / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[int(position * len(whole))] ^= mask
    path.write_bytes(bytes(flipped))
    try:
        with pytest.raises((UntrustedModel, ArtifactMismatch, BadManifest)):
            load(stored)
    finally:
        path.write_bytes(whole)


# ---- between verifying and loading -----------------------------------------------------------------------------------


def test_bytes_that_change_after_they_were_verified_are_not_those_that_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that others write to: the file is replaced between its verification and its use."""
    folder = store(tmp_path)
    read: list[bytes] = []

    def verify_and_swap(verified: Path, digests: dict[str, str]) -> None:
        verify_files(verified, digests)
        (folder / "model" / "evil").write_bytes(b"evil")
        (folder / "model" / "evil").replace(folder / "model" / "weights.bin")

    monkeypatch.setattr("serving.predictors.verify_files", verify_and_swap)
    monkeypatch.setattr(
        "serving.predictors.xgboost.load", lambda model, _contract: read.append((model / "weights.bin").read_bytes())
    )
    load(folder)
    assert (folder / "model" / "weights.bin").read_bytes() == b"evil"
    assert read == [b"weights"]


def test_the_copy_is_private_and_does_not_stay(tmp_path: Path) -> None:
    folder = store(tmp_path)
    settings = Settings(home=tmp_path)
    with signed_files(settings, MODEL, folder.name) as copy:
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        assert (copy / "model" / "weights.bin").read_bytes() == b"weights"
    with signed_files(settings, MODEL, folder.name, documents_only=True) as copy:
        assert not (copy / "model").exists()
    assert list(settings.scratch.iterdir()) == []


def test_what_a_killed_run_left_in_a_folder_is_left_out(tmp_path: Path, loads: list[Path]) -> None:
    folder = store(tmp_path)
    (folder / "model" / ".weights.bin.0123").write_bytes(b"wei")
    (folder / ".reference.json.0123").write_text("{")
    load(folder)
    assert len(loads) == 1


def test_a_version_signed_before_all_its_files_were_is_loaded_and_the_log_says_that_its_limits_are_not_signed(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lake.signature.FORMAT", 1)
    folder = store(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("serving.predictors.xgboost.load", lambda folder, contract: loads.append(folder))
    assert set(json.loads((folder / SIGNATURE_FILE).read_text())["signed"]["documents"]) == {
        "job.json",
        "training_set.json",
    }
    load(folder)
    assert len(loads) == 1
    (said,) = caplog.messages
    assert "nobody vouches for its drift limits (reference.json)" in said
    whole = (folder / "reference.json").read_bytes()
    (folder / "reference.json").write_text('{"limit": 1e9}')
    with pytest.raises(UntrustedModel, match=r"reference\.json was changed after it was signed"):
        load(folder)
    (folder / "reference.json").write_bytes(whole)
    load(folder)
    (folder / "more.json").write_text("{}")
    with pytest.raises(UntrustedModel, match=r"more\.json was added"):
        load(folder)
    (folder / "more.json").unlink()
    (kept,) = (tmp_path / "secrets" / "former_versions").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("{")
    with pytest.raises(UntrustedModel):
        load(folder)
    kept.unlink()
    (folder / "job.json").write_text("{}")
    with pytest.raises(UntrustedModel):
        load(folder)


# ---- keys --------------------------------------------------------------------------------------------------------


def test_another_key_signs_nothing_here(tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store(tmp_path)
    monkeypatch.setenv(KEY.upper(), OTHER_KEY)
    with pytest.raises(
        UntrustedModel,
        match=(
            r"made with a key other than model_signing_key \(1 tried\)(?s:.*)give the old one as"
            r" model_signing_key_previous"
        ),
    ):
        load(folder)
    assert loads == []


def test_without_a_key_nothing_is_signed_or_loaded(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store(tmp_path)
    monkeypatch.delenv(KEY.upper())
    with pytest.raises(
        MissingSecret, match=r"model_signing_key is not set. Export MODEL_SIGNING_KEY, or write it to .* \(mode 600\)"
    ):
        load(folder)
    with pytest.raises(MissingSecret):
        store(tmp_path, "other_model")
    monkeypatch.setenv(KEY.upper(), "short")
    with pytest.raises(MissingSecret, match="model_signing_key has 5 characters, needs at least 32"):
        load(folder)
    assert loads == []


def test_a_key_is_read_from_a_file_that_others_may_not_read(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY.upper())
    path = tmp_path / "secrets" / KEY
    path.parent.mkdir()
    path.write_text(OTHER_KEY)
    path.chmod(0o644)
    with pytest.raises(MissingSecret, match="has mode 644, needs 600"):
        store(tmp_path, "other_model")
    path.chmod(0o600)
    load(store(tmp_path))
    assert len(loads) == 1


@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_new_key_signs_and_the_previous_one_still_verifies(
    tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    old = store(tmp_path)
    previous = os.environ[KEY.upper()]
    if place == "environment":
        monkeypatch.setenv(PREVIOUS_KEY.upper(), previous)
    else:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / PREVIOUS_KEY).write_text(previous)
        (tmp_path / "secrets" / PREVIOUS_KEY).chmod(0o600)
    monkeypatch.setenv(KEY.upper(), OTHER_KEY)
    new = store(tmp_path, weights=b"new weights")
    load(old)
    load(new)
    assert len(loads) == 2
    if place == "environment":
        monkeypatch.delenv(PREVIOUS_KEY.upper())
    else:
        (tmp_path / "secrets" / PREVIOUS_KEY).unlink()
    load(new)
    with pytest.raises(UntrustedModel):
        load(old)


def test_an_installation_makes_its_key_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.installation import prepare

    monkeypatch.delenv(KEY.upper())
    path = tmp_path / "secrets" / KEY
    prepare(Settings(home=tmp_path))
    made = path.read_text()
    assert len(made) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    prepare(Settings(home=tmp_path))
    assert path.read_text() == made
    verify(Settings(home=tmp_path), store(tmp_path), MODEL, next((tmp_path / "artifacts" / MODEL).iterdir()).name)
