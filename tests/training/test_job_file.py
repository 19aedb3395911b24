"""What makes two trainings the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from config.settings import IMAGE_FILES, ROOT, image_code
from tests.training.jobs import write_job
from training.job_file import job_identity, read_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_job(write_job(tmp_path_factory.mktemp("jobs") / "job", "linear"))


def identity_of(job: dict[str, Any], tree: Path) -> str:
    return job_identity(job | {"image_code": image_code.__wrapped__(tree)})


@pytest.mark.parametrize(
    ("edited", "retrained"),
    [
        ("monitoring/pages/tonight.py", False),
        ("monitoring/pages/static/style.css", False),
        ("monitoring/alerting/rules.py", False),
        ("config/catalog/policy.py", False),
        ("training/registry/gate.py", False),
        ("serving/score.py", False),
        ("training/trainers/linear.py", True),
        ("serving/predictors/linear.py", True),
        ("docker/training-requirements.txt", True),
    ],
)
def test_an_equal_job_is_trained_again_only_after_an_edit_of_what_its_image_holds(
    job: dict[str, Any], edited: str, retrained: bool, tmp_path: Path
) -> None:
    for name in {edited, *(str(path.relative_to(ROOT)) for pattern in IMAGE_FILES for path in ROOT.glob(pattern))}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = identity_of(job, tmp_path)
    assert before == identity_of(job, ROOT)
    with (tmp_path / edited).open("a") as file:
        file.write("\n")
    assert (identity_of(job, tmp_path) != before) is retrained
