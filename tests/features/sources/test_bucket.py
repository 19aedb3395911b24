"""Files in object storage. The store of these tests is a folder behind pyarrow's own door, with keys as S3 has them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from config.limits import SourceLimits
from features.sources import SourceMissing, SourceRefused, SourceTooLarge, SourceUnavailable, SourceUnreadable, bucket
from features.sources.meter import Meter
from tests.features.sources.reading import meters, read

HEADER = "meter,at_utc,litres,pulses,open,billed_on\n"
KEYS = {
    "in/2024/03/04/north.csv": "a",
    "in/2024/03/04/south.csv.gz": "b",
    "in/2024/03/05/north.csv": "c",
    "in/2024/notes.txt": "d",
    "in/q[1].csv": "e",
}


def row(meter: str) -> str:
    return f"{HEADER}{meter},2024-03-04T10:00:00Z,1.5,3,true,\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store" / "lake"
    for key, meter in KEYS.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        text = row(meter).encode()
        (root / key).write_bytes(gzip.compress(text) if key.endswith(".gz") else text)
    served = fs.SubTreeFileSystem(str(root.parent), fs.LocalFileSystem())

    class Served:
        @staticmethod
        def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
            assert uri in ("s3://lake", "s3://lake?region=eu-north-1"), "options go to the store, patterns do not"
            return served, "lake"

    monkeypatch.setattr("features.sources.bucket.fs.FileSystem", Served)
    return root


def source(uri: str, **more: Any) -> dict[str, Any]:
    return {"kind": "file", "uri": uri, **more}


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("in/2024/03/04/north.csv", ["a"]),
        ("in/2024/03/04/*", ["a", "b"]),
        ("in/2024/*/*/north.csv", ["a", "c"]),
        ("in/2024/**/*.csv", ["a", "c"]),
        ("in/2024/03/04/n?rth.csv?region=eu-north-1", ["a"]),
        ("in/q[1].csv", ["e"]),
    ],
)
def test_objects_are_read_by_key_and_by_pattern(store: Path, tmp_path: Path, key: str, found: list[str]) -> None:
    assert read(meters(tmp_path, source(f"s3://lake/{key}")))["meter"].to_pylist() == found


def test_each_night_may_have_an_object_of_its_own(store: Path, tmp_path: Path) -> None:
    (store / "days").mkdir()
    (store / "days" / "2024-03-04.csv").write_text(row("night"))
    assert read(meters(tmp_path, source("s3://lake/days/{data_date}.csv")))["meter"].to_pylist() == ["night"]
    (store / "days" / "2024-03-04.csv").unlink()
    with pytest.raises(SourceMissing, match="nothing is at s3://lake/days/2024-03-04.csv"):
        read(meters(tmp_path, source("s3://lake/days/{data_date}.csv")))


def test_an_object_that_changes_is_read_anew(store: Path, tmp_path: Path) -> None:
    lake = meters(tmp_path, source("s3://lake/in/2024/03/05/north.csv"))
    assert read(lake)["meter"].to_pylist() == ["c"]
    (store / "in/2024/03/05/north.csv").write_text(row("changed"))
    assert read(lake)["meter"].to_pylist() == ["changed"]


def test_an_error_names_the_address(store: Path, tmp_path: Path) -> None:
    (store / "in/2024/03/05/north.csv").write_text("")
    with pytest.raises(SourceUnreadable, match=r"has no header \(s3://lake/in/2024/03/05/north.csv\)"):
        read(meters(tmp_path, source("s3://lake/in/2024/03/05/north.csv")))


def test_limits_hold_before_a_copy_fills_the_disk(store: Path, tmp_path: Path) -> None:
    (store / "large.csv").write_bytes(bytes(3_000_000))
    limits = SourceLimits(max_bytes=1_000_000).model_dump(exclude_unset=True)
    with pytest.raises(SourceTooLarge, match="more than 1,000,000 bytes"):
        read(meters(tmp_path, source("s3://lake/large.csv", limits=limits)))


@pytest.mark.parametrize(
    "uri", ["s3://key:secret@lake/a.csv", "s3://key@lake/a.csv", "https://lake/a.csv", "file:///etc/passwd"]
)
def test_other_addresses_and_passwords_are_refused_without_being_shown(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SourceRefused, match=r"an address is one of s3://") as refused:
        read(meters(tmp_path, source(uri)))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (OSError("When listing objects: AWS Error ACCESS_DENIED during ListObjectsV2"), SourceRefused),
        (PermissionError("no"), SourceRefused),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7"), SourceUnavailable),
    ],
)
def test_what_a_store_says_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: Exception, wanted: type[Exception]
) -> None:
    def refuse(_location: str) -> None:
        raise raised

    monkeypatch.setattr(bucket, "_opened", refuse)
    with pytest.raises(wanted, match="s3://lake/a.csv"):
        bucket.fetch("s3://lake/a.csv", tmp_path, Meter("source of meters/readings", SourceLimits()))
