"""The rules of the architecture, each with the way to fix a breach in its message."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from config.settings import IMAGE_FILES
from serving.predictors import FAMILIES

ROOT = Path(__file__).parents[1]
# A room imports from itself and from its left. dags and cli stand side by side at the right end.
ROOMS = (
    "config",
    "lake",
    "features",
    "serving",
    "training",
    "training.registry",
    "monitoring",
    "monitoring.alerting",
    "monitoring.audit",
    "monitoring.pages",
    "plugins",
    "dags",
    "cli",
)
STAGES = ROOMS[: ROOMS.index("plugins")]
FOLDERS = tuple(room for room in ROOMS if "." not in room)
MAY_IMPORT = {room: ROOMS[: number + 1] for number, room in enumerate(ROOMS)} | {"cli": (*STAGES, "cli")}
# Where the training container begins: the entry point, and what it loads by the name of a family, kind or metric.
TRAINER_ENTRIES = (
    "training/__main__.py",
    "training/trainers/*.py",
    "serving/predictors/*.py",
    "serving/kinds/*.py",
    "serving/metrics/*.py",
)


class Import(NamedTuple):
    path: Path
    line: int
    module: str
    top_level: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files(folders: tuple[str, ...] = FOLDERS) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def _modules() -> Mapping[str, Path]:
    return {_module(path): path for path in _files()}


@functools.cache
def _imports(path: Path) -> tuple[Import, ...]:
    """What a file imports, deferred imports included; of `from package import module` the module is meant."""
    outer = {id(node) for node in _tree(path).body}
    imports = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in _modules() else node.module for name in members]
        else:
            continue
        imports += [Import(path, node.lineno, name, id(node) in outer) for name in dict.fromkeys(names)]
    return tuple(imports)


def _room(module: str) -> str | None:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default=None)


def test_a_room_imports_only_from_its_left() -> None:
    for path in _files():
        room = _room(_module(path))
        assert room is not None
        for imported in _imports(path):
            target = _room(imported.module)
            assert target is None or target in MAY_IMPORT[room], (
                f"{imported}, which is in {target}, but {room} may import only from {', '.join(MAY_IMPORT[room])}. "
                "Move what is needed to the left, or pass it in as an argument."
            )


def test_no_file_imports_itself_through_others() -> None:
    graph = {
        name: sorted({i.module for i in _imports(path) if i.module in _modules() and i.module != name})
        for name, path in _modules().items()
    }
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, (
            f"circle: {' -> '.join((*way[way.index(name) :], name))}. Move what both need into a file of its own, to"
            " the left of both."
        )
        if name not in done:
            for target in graph[name]:
                walk(target, (*way, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_no_stage_imports_airflow() -> None:
    for path in _files(tuple(dict.fromkeys(room.split(".")[0] for room in STAGES))):
        for imported in _imports(path):
            assert imported.module.split(".")[0] != "airflow", (
                f"{imported}, but a stage must run without Airflow. Move the call to dags/ or plugins/."
            )


def _trainer_files() -> set[Path]:
    """All that a training process may load of ours, with the packages it passes through."""
    waiting = [path for entry in TRAINER_ENTRIES for path in ROOT.glob(entry)]
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        packages = [folder / "__init__.py" for folder in path.parents if folder != ROOT and ROOT in folder.parents]
        waiting += [package for package in packages if package.exists()]
        waiting += [_modules()[i.module] for i in _imports(path) if i.module in _modules()]
    return reached


def test_the_training_image_holds_what_the_trainer_imports_and_nothing_else() -> None:
    held = {path for pattern in IMAGE_FILES for path in ROOT.glob(pattern) if path.suffix == ".py"}
    reached = _trainer_files()
    missing, needless = (sorted(str(p.relative_to(ROOT)) for p in paths) for paths in (reached - held, held - reached))
    assert not missing, (
        f"the trainer imports {missing}, which the training image does not hold. Pass in what is needed, "
        "or add the file to IMAGE_FILES (config/settings.py) and to docker/training.Dockerfile."
    )
    assert not needless, (
        f"the training image holds {needless}, which no trainer imports: an edit there would retrain equal jobs. "
        "Take it out of IMAGE_FILES (config/settings.py) and out of docker/training.Dockerfile."
    )


# What lies on one machine alone, and who may make paths of it: everything else goes through
# lake/storage.py or lake/delta.py.
LOCAL_FOLDERS: dict[str, tuple[str, ...]] = {
    "lake": (),
    "artifacts": (),
    "reports": (),
    "scratch": (
        "lake/lake.py",
        "features/definitions.py",
        "serving/signed.py",
        "monitoring/audit/retention.py",
    ),  # of one try
    "jobs": (  # a trainer reads and writes them as files
        "training/registry/job.py",
        "monitoring/audit/citations.py",
        "monitoring/audit/retention.py",
    ),
    "online_store": ("features/definitions.py",),  # Feast's SQLite file
    "home": (
        "lake/lake.py",  # the folder of the SQLite database
        "lake/storage.py",  # the cache of what lies elsewhere
        "lake/events.py",  # logs
        "lake/signature.py",  # secrets
        "lake/chain.py",  # what is sealed beside the key
        "features/definitions.py",  # Feast's SQLite files
        "features/feature_repo/definitions.py",  # as above
        "features/sources/read.py",  # the cache of sources
        "training/registry/containers.py",  # a name for the installation, no path
        "plugins/mlops_listener.py",  # the folder of the SQLite database
        "monitoring/audit/retention.py",  # logs
    ),
}


def test_paths_of_state_are_made_in_one_place() -> None:
    for path in _files():
        name = str(path.relative_to(ROOT))
        if name in {"config/settings.py", "lake/storage.py", "lake/delta.py"}:
            continue
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.Attribute) or node.attr not in LOCAL_FOLDERS:
                continue
            if node.attr == "home" and name.startswith("cli/"):
                continue  # it supervises the processes of one machine
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            assert of != "settings" or name in LOCAL_FOLDERS[node.attr], (
                f"{name}:{node.lineno} makes a path of settings.{node.attr}, which may lie on another machine. Ask "
                "lake/storage.py (`artifacts`, `reports`) or lake/delta.py (`table_location`) for it, or, if it is of "
                "one machine alone, name the file in LOCAL_FOLDERS and say why."
            )


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("fcntl", "`lake.storage.advisory_lock`"),
        ("os.link", "`lake.storage.link_or_copy`"),
        ("deltalake.DeltaTable", "`lake.delta.TableLocation.open`"),
    ],
)
def test_what_only_one_machine_has_is_used_behind_the_door_alone(module: str, instead: str) -> None:
    package, _, name = module.partition(".")
    for path in _files(tuple(folder for folder in FOLDERS if folder != "cli")):
        if path in {ROOT / "lake" / "storage.py", ROOT / "lake" / "delta.py"}:
            continue
        if module == "fcntl" and path == ROOT / "lake" / "leftovers.py":
            continue  # it tells dead tries of this machine from live ones, and excludes nobody from state
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Import):
                used = not name and package in {alias.name for alias in node.names}
            elif isinstance(node, ast.Call) and name == "DeltaTable":
                used = isinstance(node.func, ast.Name) and node.func.id == name
            else:
                used = (
                    isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == package and node.attr == name
                )
            assert not used, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} uses {module}. Use {instead}."


def test_duckdb_gets_paths_from_one_function() -> None:
    for path in _files():
        for node in ast.walk(_tree(path)):
            if path == ROOT / "lake" / "duck.py" or not isinstance(node, ast.JoinedStr):
                continue
            texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            assert not any("read_parquet(" in str(text) for text in texts), (
                f"{path.relative_to(ROOT)}:{node.lineno} puts a path into SQL. Use lake.duck.read_parquet."
            )


def test_connections_to_duckdb_come_from_one_function() -> None:
    for path in _files():
        for node in ast.walk(_tree(path)):
            if path == ROOT / "lake" / "duck.py" or not isinstance(node, ast.Attribute):
                continue
            assert (getattr(node.value, "id", ""), node.attr) != ("duckdb", "connect"), (
                f"{path.relative_to(ROOT)}:{node.lineno} opens DuckDB by itself. Use lake.duck.connect, and `confine` "
                "before SQL of a user runs."
            )


def test_only_settings_read_the_environment() -> None:
    for path in _files(tuple(folder for folder in FOLDERS if folder != "cli")):
        if path == ROOT / "config" / "settings.py":
            continue
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.Attribute) or node.attr not in {"environ", "getenv"}:
                continue
            if isinstance(node.value, ast.Name) and node.value.id == "os" and id(node) not in _written(path):
                raise AssertionError(
                    f"{path.relative_to(ROOT)}:{node.lineno} reads the environment. Make it a field of"
                    " config/settings.py."
                )


@functools.cache
def _written(path: Path) -> frozenset[int]:
    """Places where a switch of a library is set: `os.environ.setdefault(...)`, `os.environ[...] = ...`."""
    places = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Assign):
            places |= {id(target.value) for target in node.targets if isinstance(target, ast.Subscript)}
        elif isinstance(node, ast.Attribute) and node.attr == "setdefault":
            places.add(id(node.value))
    return frozenset(places)


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
    for path in _files(("dags",)):
        for imported in _imports(path):
            assert not imported.top_level or imported.module.split(".")[0] in light, (
                f"{imported} at the top; every task would pay for it. Move the import into the task's body."
            )


def test_docker_folder_never_shadows_the_sdk() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists(), "docker/__init__.py would replace the docker SDK. Delete it."


def test_names_say_what_a_module_is() -> None:
    for path in _files():
        assert path.stem not in {
            "utils",
            "helpers",
            "common",
            "manager",
        }, f"{path.relative_to(ROOT)}: name it after what it does."


def test_no_conditional_expression_inside_another() -> None:
    for path in _files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.IfExp):
                inner = [n for child in (node.test, node.body, node.orelse) for n in ast.walk(child)]
                assert not any(isinstance(n, ast.IfExp) for n in inner), (
                    f"{path.relative_to(ROOT)}:{node.lineno} holds a conditional expression inside another. "
                    "Write an if statement, a dictionary, or a function."
                )


def test_no_file_but_its_own_two_names_a_family() -> None:
    own = {ROOT / "training" / "trainers", ROOT / "serving" / "predictors"}
    names = re.compile(r"\b(" + "|".join(FAMILIES) + r")\b")
    for path in (path for path in _files() if path.parent not in own):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name = names.search(line)
            assert not name, (
                f"{path.relative_to(ROOT)}:{number} names the family {name and name[1]}. What is asked about a family "
                "is declared in training/trainers/<family>.py or serving/predictors/<family>.py."
            )


def test_no_file_but_its_own_asks_for_the_kind_of_a_spine() -> None:
    own = ROOT / "config" / "catalog" / "spine.py"
    kinds = [
        node.name for node in ast.walk(_tree(own)) if isinstance(node, ast.ClassDef) and node.name.endswith("Spine")
    ]
    assert len(kinds) > 1
    for path in _files():
        for kind in kinds if path != own else ():
            assert kind not in path.read_text(), (
                f"{path.relative_to(ROOT)} names {kind}. What is particular to a kind of spine is an attribute or a "
                "method of each class in config/catalog/spine.py."
            )


def test_no_file_but_its_own_asks_for_the_kind_of_an_output() -> None:
    own = ROOT / "serving" / "kinds"
    kinds = {path.stem for path in own.glob("*.py")} - {"__init__"}
    assert len(kinds) > 2
    base = ROOT / "config" / "catalog" / "output.py"
    for path in (path for path in _files() if path.parent != own):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Compare):
                named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                assert not named & kinds, (
                    f"{path.relative_to(ROOT)}:{node.lineno} compares with the kind {min(named & kinds)!r}. What "
                    "is particular to a kind is an attribute or a method of each class in serving/kinds."
                )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                kind = ast.unparse(node.args[1])
                assert path == base or "Output" not in kind, (
                    f"{path.relative_to(ROOT)}:{node.lineno} asks isinstance of {kind}. What is particular to a kind "
                    "is an attribute or a method of each class in serving/kinds."
                )
