"""Families that a team keeps in a folder of its own: code that travels with a job, and with the model it trained.

A model of such a family has its code among its files, so a version is served by just the code that trained it: it is
verified and signed with them, and an edit of the team's folder changes the next training alone.

Part of the training image, as all of `serving/predictors`.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from config.errors import NightfleetError

FAMILY_FOLDER = "family"
# What such a family consists of; other modules beside them are imported with `from .name import …`.
PARTS = {
    "predictor": ("load", "PRELOAD"),
    "trainer": ("Params", "LEARNS", "ROUNDS", "QUICK", "train"),
}
_MODULE = re.compile(r"[a-z][a-z0-9_]{0,63}\.py")
_MOST_FILES, _MOST_BYTES = 64, 4 * 2**20


class BadFamily(NightfleetError):
    """The code of a family of one's own is not complete, or cannot be imported."""


@dataclass(frozen=True)
class FamilyCode:
    """The modules of one family, by file name, as bytes: what is imported is what was read."""

    name: str
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, name: str, folder: Path) -> FamilyCode:
        """Read the modules that lie directly in a folder.

        Raises:
            BadFamily: one that is needed is missing, or the folder holds what is no module.
        """
        paths = sorted(path for path in folder.iterdir() if path.name != "__pycache__") if folder.is_dir() else []
        for part in PARTS:
            if folder / f"{part}.py" not in paths:
                raise BadFamily(f"{folder / part}.py is missing: the family {name!r} needs it. See docs/add_model.md.")
        wrong = next((p for p in paths if not _MODULE.fullmatch(p.name) or p.is_symlink() or not p.is_file()), None)
        if wrong is not None or len(paths) > _MOST_FILES or sum(p.stat().st_size for p in paths) > _MOST_BYTES:
            raise BadFamily(
                f"{wrong or folder}: a family's folder holds Python modules alone (name.py, no links), at most "
                f"{_MOST_FILES} with {_MOST_BYTES // 2**20} MiB in all. Move what is something else."
            )
        return cls(name, {path.name: path.read_bytes() for path in paths})

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each module, by file name."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.files.items())}

    def write(self, folder: Path) -> None:
        """Write the modules below a new folder."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def module(self, part: str) -> ModuleType:
        """Its `predictor` or its `trainer`, imported from the bytes at hand.

        Raises:
            BadFamily: it cannot be imported, or does not define what it must.
        """
        combined = hashlib.sha256(repr(self.digests).encode()).hexdigest()
        package = f"nightfleet_family_{self.name}_{combined[:16]}"
        _finder.packages[package] = self.files
        try:
            module = importlib.import_module(f"{package}.{part}")
        except Exception as error:
            raise BadFamily(
                f"{part}.py of the family {self.name!r} cannot be imported: {type(error).__name__}: {error}. It may "
                "use the libraries of the training image, and of this repository what the shipped families use."
            ) from error
        lacking = [name for name in PARTS[part] if not hasattr(module, name)]
        if lacking:
            raise BadFamily(f"{part}.py of the family {self.name!r} does not define {', '.join(lacking)}.")
        return module


class _Finder(MetaPathFinder, InspectLoader):
    """Imports modules from bytes that lie in memory."""

    def __init__(self) -> None:
        self.packages: dict[str, Mapping[str, bytes]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package not in self.packages or (name and f"{name}.py" not in self.packages[package]):
            return None
        return ModuleSpec(fullname, self, origin=fullname, is_package=not name)

    def is_package(self, fullname: str) -> bool:
        return "." not in fullname

    def get_source(self, fullname: str) -> str:
        package, _, name = fullname.partition(".")
        return self.packages[package][f"{name}.py"].decode() if name else ""


_finder = _Finder()
sys.meta_path.append(_finder)

_brought: dict[str, FamilyCode] = {}


def bring(code: FamilyCode) -> FamilyCode:
    """Make a family known to this process under its name; a later one of the same name takes its place."""
    _brought[code.name] = code
    return code


def brought() -> Mapping[str, FamilyCode]:
    """The families that were brought into this process, by name."""
    return dict(_brought)
