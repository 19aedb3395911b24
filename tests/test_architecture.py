"""The rules of the architecture, each with the way to mend a breach in its message."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ORDER = ("config", "lake", "features", "serving", "training", "monitoring", "plugins", "dags", "cli")
STAGES = ORDER[:6]
# dags and cli stand side by side at the right end.
MAY_IMPORT = {name: set(ORDER[: i + 1]) for i, name in enumerate(ORDER)} | {"cli": set(ORDER) - {"plugins", "dags"}}
TRAINING_IMAGE = ("config", "lake.artifact", "serving.predictors", "training")
TRAINING_ENTRY = (
    "training/__main__.py",
    "training/rows.py",
    "training/search.py",
    "training/gp_sampler.py",
    "training/cross_validation.py",
    "training/checkpoints.py",
    "training/progress.py",
    "training/job_file.py",
    "training/trainers",
    "training/evaluate.py",
    "serving/predictors",
)


class Import(NamedTuple):
    path: str
    line: int
    module: str
    top_level: bool


def _imports(package: str) -> Iterator[Import]:
    paths = [ROOT / package] if package.endswith(".py") else sorted((ROOT / package).rglob("*.py"))
    for path in paths:
        tree = ast.parse(path.read_text())
        outer = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            for module in modules:
                yield Import(str(path.relative_to(ROOT)), node.lineno, module, id(node) in outer)


def test_a_package_imports_only_from_its_left() -> None:
    for package in ORDER:
        for found in _imports(package):
            root = found.module.split(".")[0]
            assert root not in ORDER or root in MAY_IMPORT[package], (
                f"{found.path}:{found.line} imports {found.module}, but {package}/ may import only from {sorted(MAY_IMPORT[package] - {package})}. "
                "Move what is needed to the left, or pass it in as an argument."
            )


def test_no_stage_imports_airflow() -> None:
    for package in STAGES:
        for found in _imports(package):
            assert found.module.split(".")[0] != "airflow", (
                f"{found.path}:{found.line} imports {found.module}, but {package}/ must run without Airflow. Move the call to dags/ or plugins/."
            )


def test_the_trainer_imports_only_what_its_image_holds() -> None:
    for entry in TRAINING_ENTRY:
        for found in _imports(entry):
            if found.module.split(".")[0] in ORDER:
                assert any(found.module == allowed or found.module.startswith(allowed + ".") for allowed in TRAINING_IMAGE), (
                    f"{found.path}:{found.line} imports {found.module}, which the training image does not hold ({', '.join(TRAINING_IMAGE)})."
                )


def test_only_settings_read_the_environment() -> None:
    for package in (*STAGES, "plugins", "dags"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path == ROOT / "config" / "settings.py":
                continue
            for node in ast.walk(_tree(path)):
                if not isinstance(node, ast.Attribute) or node.attr not in {"environ", "getenv"}:
                    continue
                if isinstance(node.value, ast.Name) and node.value.id == "os" and id(node) not in _written(path):
                    raise AssertionError(f"{path.relative_to(ROOT)}:{node.lineno} reads the environment. Make it a field of config/settings.py.")


def _written(path: Path) -> set[int]:
    """Places where a switch of a library is set: `os.environ.setdefault(...)`, `os.environ[...] = ...`."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Assign):
            found |= {id(target.value) for target in node.targets if isinstance(target, ast.Subscript)}
        elif isinstance(node, ast.Attribute) and node.attr == "setdefault":
            found.add(id(node.value))
    return found


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_dag_files_import_nothing_heavy_at_the_top() -> None:
    light = {
        "__future__",
        "airflow",
        "typing",
        "collections",
        "datetime",
        "pathlib",
        "config",
        "mlops_wiring",
        "mlops_ready",
        "mlops_training_operator",
        "mlops_approval",
        "mlops_links",
    }
    for found in _imports("dags"):
        assert not found.top_level or found.module.split(".")[0] in light, (
            f"{found.path}:{found.line} imports {found.module} at the top; every task would pay for it. Move the import into the task's body."
        )


def test_docker_folder_never_shadows_the_sdk() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists(), "docker/__init__.py would replace the docker SDK. Delete it."


def test_names_say_what_a_module_is() -> None:
    for package in ORDER:
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem not in {"utils", "helpers", "common", "manager"}, f"{path.relative_to(ROOT)}: name it after what it does."
