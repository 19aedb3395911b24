"""Whatever stands in a catalog file, it is a catalog or a `BadCatalog` that names the file.

Each run tries the same examples. To try others, take `derandomize` out and pass `--hypothesis-seed=<n>`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings
from tests import toy

TEXTS = {"datasets/rides.yaml": toy.DATASET_YAML, "models/ride_minutes.yaml": toy.MODEL_YAML}
Place = tuple[Any, ...]


def places(node: Any, here: Place = ()) -> Iterator[Place]:
    """The path of each value of a document."""
    if here:
        yield here
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


PLACES = [(file, place) for file, text in TEXTS.items() for place in places(yaml.safe_load(text))]
WORDS = ["rides", "ride", "bookings", "outcomes", "vehicle", "depot", "minutes", "start_utc", "end_utc", "float64"]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.text(max_size=6),
    st.sampled_from(WORDS),
    st.sampled_from(
        ["99999999999 days", "-1 days", "1e99 hours", "Etc/../UTC", "\0", "%", "{", "[", "x" * 300, "\u202e"]
    ),
    st.sampled_from([{}, [], [[]], {1: 2}, {None: None}, [None], {"a": {"b": []}}, b"\xff", 10**400, 2**63]),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.one_of(st.sampled_from(WORDS), st.integers(), st.none()), st.sampled_from(WORDS), max_size=2),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "set", "set", "drop", "rename", "add"]), ODD, ODD),
    min_size=1,
    max_size=2,
)


def change(document: Any, place: Place, how: str, value: Any, key: Any) -> None:
    *parents, last = place
    for name in parents:
        document = document[name]
    if how == "drop":
        del document[last]
    elif isinstance(document, list) or how == "set":
        document[last] = value
    elif isinstance(key, dict | list):
        document[str(key)] = value
    else:
        document[key] = document.pop(last) if how == "rename" else value


def outcome(files: dict[str, bytes]) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(content)
        try:
            catalog = load_catalog(Settings(home=folder / "var", catalogs=(folder,)))
        except BadCatalog as refusal:
            said = str(refusal)
            assert name in said, "the message must name the file"
            return "refused"
        for dataset in catalog.datasets:
            catalog.digest(dataset.name)
        for model in catalog.models:
            catalog.digest(model.name)
            catalog.feature_columns(model)
        return "read"


@settings(max_examples=150, derandomize=True)
@given(CHANGES)
def test_no_changed_catalog_brings_another_error(changes: list[tuple[tuple[str, Place], str, Any, Any]]) -> None:
    documents = {file: yaml.safe_load(text) for file, text in TEXTS.items()}
    for (file, place), how, value, key in changes:
        try:
            change(documents[file], place, how, value, key)
        except (KeyError, IndexError, TypeError):
            continue  # the change before took the place away
    outcome({file: yaml.safe_dump(document, allow_unicode=True).encode() for file, document in documents.items()})


@settings(max_examples=100, derandomize=True)
@given(
    st.sampled_from(sorted(TEXTS)),
    st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(b"\0\t\n :-{}[]&*!|>'\"%@`#,?\xff\xc3")), max_size=3),
    st.one_of(
        st.just(b""), st.binary(max_size=8), st.sampled_from([b"\n? [a]\n: b", b"\na: &a [*a]", b"\n2024-02-30: x"])
    ),
)
def test_no_bytes_bring_another_error(file: str, flips: list[tuple[int, int]], end: bytes) -> None:
    contents = {name: text.encode() for name, text in TEXTS.items()}
    changed = bytearray(contents[file])
    for place, value in flips:
        changed[place % len(changed)] = value
    outcome(contents | {file: bytes(changed) + end})
