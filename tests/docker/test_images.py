"""The training image: locked to the project's versions, holding what it needs and nothing else, confined, ending when
told.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from config.settings import IMAGE_FILES, ROOT, image_code, load_settings
from tests.training.jobs import write_job
from training.registry.containers import IMAGE_CODE_LABEL, JOB_MOUNT, hand_over, image_name

_PIN = re.compile(r"^([a-zA-Z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    return {name.lower(): version for name, version in _PIN.findall(path.read_text())}


@pytest.mark.parametrize("image", ["training", "training-gpu"])
def test_its_requirements_are_the_projects_versions_locked_by_hash(image: str) -> None:
    text = (ROOT / "docker" / f"{image}-requirements.txt").read_text()
    ours, projects = pins(ROOT / "docker" / f"{image}-requirements.txt"), pins(ROOT / "requirements.txt")
    assert ours
    # CUDA's own libraries are the image's alone.
    other = {
        name: version
        for name, version in ours.items()
        if projects.get(name) != version and not name.startswith("nvidia-")
    }
    assert not other, (
        f"{image}-requirements.txt pins {other}, requirements.txt { ({n: projects.get(n) for n in other}) }. Run `make "
        "lock`."
    )
    assert text.count("--hash=sha256:") >= len(ours)


def test_everything_is_installed_by_its_hash_the_installer_too() -> None:
    files = [
        ROOT / "Makefile",
        *(path for path in (ROOT / "docker").iterdir() if path.suffix in {"", ".sh", ".Dockerfile"}),
    ]
    lines = [(path.name, line) for path in files for line in path.read_text().splitlines() if "pip install" in line]
    assert len(lines) >= 6
    unlocked = [line for line in lines if "--require-hashes" not in line[1]]
    assert not unlocked, (
        f"{unlocked[0]} installs what no hash names. Lock it: a line in docker/*-requirements.in, `make lock`."
    )


def run(client: Any, command: list[str], *, entrypoint: list[str] | None = None, **host: Any) -> tuple[int, str]:
    image = image_name(load_settings(), gpus=False)
    config = client.create_host_config(network_mode="none", read_only=True, **host)
    container = client.create_container(image, command=command, entrypoint=entrypoint, host_config=config)["Id"]
    try:
        client.start(container)
        code = int(client.wait(container)["StatusCode"])
        return code, client.logs(container).decode()
    finally:
        client.remove_container(container, force=True)


def test_it_holds_our_code_and_nothing_else_of_ours(docker_engine: Any) -> None:
    code = (
        "import json, os, pathlib; root = pathlib.Path('/app');"
        "files = sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file() and '__pycache__' not in "
        "p.parts);"
        "print(json.dumps([os.getuid(), files, os.access('/app/training/__main__.py', os.W_OK)]))"
    )
    status, output = run(docker_engine, ["-c", code], entrypoint=["python"])
    assert status == 0, output
    user, files, writable = json.loads(output)
    assert user != 0
    assert not writable
    wanted = {str(p.relative_to(ROOT)) for pattern in IMAGE_FILES for p in ROOT.glob(pattern)}
    assert set(files) == {name for name in wanted if not name.startswith("docker/")}, (
        "docker/training.Dockerfile copies other files than IMAGE_FILES (config/settings.py) names"
    )


def test_its_labels_say_what_code_it_is(docker_engine: Any) -> None:
    labels = docker_engine.inspect_image(image_name(load_settings(), gpus=False))["Config"]["Labels"]
    assert labels[IMAGE_CODE_LABEL] == image_code()
    assert "+" in labels["org.opencontainers.image.version"]


def test_process_1_forwards_signals(docker_engine: Any, tmp_path: Path) -> None:
    job_dir = write_job(
        tmp_path / "job",
        "xgboost",
        params={"n_estimators": 100_000, "early_stopping_rounds": 100_000, "max_depth": 2, "threads": 1},
    )
    client = docker_engine
    config = client.create_host_config(
        network_mode="none", read_only=True, tmpfs={"/tmp": ""}, binds={str(job_dir): {"bind": JOB_MOUNT}}
    )
    container = client.create_container(
        image_name(load_settings(), gpus=False), [JOB_MOUNT], user=hand_over(job_dir), host_config=config
    )["Id"]
    try:
        client.start(container)
        for line in client.logs(container, stream=True, follow=True):
            if b"round 50 of" in line:
                break
        client.stop(container, timeout=30)
        assert client.wait(container)["StatusCode"] == 143
        assert b"ended by SIGTERM" in client.logs(container)
    finally:
        client.remove_container(container, force=True)


def test_a_job_that_is_none_is_refused(docker_engine: Any) -> None:
    status, output = run(docker_engine, ["/nothing"])
    assert status == 3
    assert "BadJob: /nothing/job.json does not exist" in output
