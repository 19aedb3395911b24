"""What `doctor --sample` proposes for a source is what reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cli.sample import sample
from config.calendar import Interval
from config.catalog.base import BadCatalog
from config.catalog.load import load_catalog
from config.settings import Settings
from features.ingest import ingest
from lake.lake import Lake
from lake.tables import raw_table
from tests.features.test_cases import Case


def proposed(folder: Path) -> tuple[dict[str, Any], str]:
    """The proposal for the data set `d`, as YAML reads it, and its text."""
    text = "\n".join(sample(Settings(home=folder / "var", catalogs=(folder,)), "d"))
    return yaml.safe_load(text) or {}, text


def unfinished(folder: Path, source: Mapping[str, Any], *, time_zone: str = "Europe/Berlin", **table: Any) -> Path:
    """A data set that says where its one table lies, and nothing else."""
    (folder / "datasets").mkdir(parents=True, exist_ok=True)
    document = {"dataset": "d", "time_zone": time_zone, "tables": {"t": {"source": dict(source), **table}}}
    (folder / "datasets" / "d.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


@pytest.mark.parametrize(
    ("name", "source", "column", "keys"),
    [
        ("01", {}, "d", {"type": "date", "format": ["%d/%m/%y", "%Y-%m-%d"]}),
        ("02", {}, "d", {"type": "date", "format": ["%d/%m/%y", "%d-%m-%y", "%Y-%m-%d"]}),
        ("09", {}, "seen", {"type": "timestamp", "zone": "America/Chicago"}),
        ("10", {}, "id", {"type": "string"}),
        ("16", {}, "userName_2", {"type": "string", "renamed_from": "userName"}),
        ("20", {"encoding": "cp1252", "delimiter": ";"}, "x", {"type": "float64", "decimal": ","}),
        ("27", {}, "x", {"type": "timestamp", "zone": "Europe/Berlin"}),
    ],
)
def test_the_proposal_for_a_case_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    source: Mapping[str, Any],
    column: str,
    keys: Mapping[str, Any],
) -> None:
    case = Case(name, tmp_path, monkeypatch)
    document, text = proposed(tmp_path)
    assert {key: document["source"].get(key) for key in source} == source, text
    assert {key: document["columns"][column].get(key) for key in keys} == keys, text
    # Pasted as it stands, it reads every row.
    table = case.document["tables"]["t"]
    table |= {"source": document["source"], "columns": document["columns"], "known_at": "arrival"}
    case.declare()
    case.run(ingest)
    assert {row["data_date"] for row in case.rows()} <= set(case.nights)
    assert case.rows()


def test_an_unfinished_file_is_enough(tmp_path: Path) -> None:
    text = "made by a machine\n\nday;at;amount;share;name;flag;code;note\n"
    rows = "".join(
        f"{day:02}.03.2024;{day:02}.03.2024 05:0{day % 10};1.{day:03},50 €;0,{day};n{day};true;00{day};NA\n"
        for day in range(1, 29)
    )
    (tmp_path / "in.csv").write_text(text + rows, encoding="cp1252")
    document, text = proposed(unfinished(tmp_path, {"kind": "file", "uri": "in.csv"}, key=["code"]))
    assert document["source"] == {
        "kind": "file", "uri": "in.csv", "encoding": "cp1252", "delimiter": ";", "skip_lines": 2,
    }, text  # fmt: skip
    columns = {
        name: {key: value for key, value in keys.items() if key != "description"}
        for name, keys in document["columns"].items()
    }
    assert columns == {
        "day": {"type": "date", "format": "%d.%m.%Y"},
        "at": {"type": "timestamp", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"},
        "amount": {"type": "float64", "decimal": ",", "thousands": ".", "currency": "€"},
        "share": {"type": "float64", "decimal": ","},
        "name": {"type": "string"},
        "flag": {"type": "boolean"},
        "code": {"type": "string", "nullable": False},
        "note": {"type": "string", "null_values": ["NA"]},
    }, text
    assert "a name rather than a number" in text
    whole = yaml.safe_load((tmp_path / "datasets" / "d.yaml").read_text()) | {
        "title": "d", "owner": "o", "owner_url": "mailto:o@example.com", "licence": "CC0-1.0",
        "start": yaml.safe_load("2024-03-01"),
    }  # fmt: skip
    whole["tables"]["t"] |= document | {"description": "t", "known_at": "arrival"}
    (tmp_path / "datasets" / "d.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    settings = Settings(home=tmp_path / "var", catalogs=(tmp_path,), duckdb_memory_gb=1.0)
    lake = Lake(settings, load_catalog(settings))
    ingest(lake, "d", Interval.of(whole["start"]), run_id="r")
    read = raw_table(settings, lake.dataset("d"), "t").read().to_pylist()
    assert len(read) == 28
    assert read[0]["amount"] == 1001.5


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (["01/02/24", "03/04/24"], "`format: '%m/%d/%y'` would read them too"),
        (["1,234", "5,678"], "`decimal: ','` would read them too"),
        ([*map(str, range(20)), "x"], "1 of 21 values are no int64"),
        (["", ""], "without any value in the sample"),
    ],
)
def test_what_a_person_should_look_at_is_said(tmp_path: Path, cells: list[str], note: str) -> None:
    (tmp_path / "in.csv").write_text("id;x\n" + "".join(f"{n};{cell}\n" for n, cell in enumerate(cells)))
    assert note in proposed(unfinished(tmp_path, {"kind": "file", "uri": "in.csv"}))[1]


def test_types_of_parquet_are_taken_as_they_are(tmp_path: Path) -> None:
    table = pa.table(
        {
            "revision": pa.array([1, 2], pa.uint64()),
            "at": pa.array([0, 1], pa.timestamp("ns")),
            "seen": pa.array([0, 1], pa.timestamp("us", "UTC")),
            "day": pa.array([0, 1], pa.int32()).cast(pa.date32()),
            "x": pa.array([0.5, None]),
            "tags": pa.array([["a"], []]),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "2024-03-01.parquet")
    source = {"kind": "file", "uri": "in/{data_date}.parquet", "format": "parquet"}
    document, text = proposed(unfinished(tmp_path, source))
    columns = document["columns"]
    assert {name: dict(list(keys.items())[:-1]) for name, keys in columns.items()} == {
        "source_revision": {"type": "int64", "renamed_from": "revision"},
        "at": {"type": "timestamp", "zone": "Europe/Berlin"},
        "seen": {"type": "timestamp"},
        "day": {"type": "date"},
        "x": {"type": "float64"},
        "tags": {"type": "string"},
    }  # fmt: skip
    assert "no column holds" in text


def test_records_of_an_api_are_sampled_from_its_first_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    records = [{"id": 1, "x": "1,5", "at": "2024-03-01T05:00:00Z"}, {"id": 2, "x": "2"}]
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=json.dumps(records)))
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **more: client(transport=transport, **more))
    document, text = proposed(unfinished(tmp_path, {"kind": "http", "url": "http://api.example.com/x"}))
    assert document["columns"]["x"]["decimal"] == ",", text
    assert document["columns"]["at"]["type"] == "timestamp", text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("tables: {t: {source: {kind: file}}}", "# BadCatalog: `source` cannot be read: uri: Field required"),
        ("tables: {t: {}}", "the table has no `source`"),
        ("tables: {t: {source: {kind: file, uri: no.csv}}}", "no file at"),
    ],
)
def test_what_cannot_be_sampled_is_said_and_the_others_go_on(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "d.yaml").write_text(written)
    assert said in proposed(tmp_path)[1]


def test_a_data_set_without_a_file_or_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    with pytest.raises(BadCatalog, match=r"there is no d.yaml in .*datasets"):
        proposed(tmp_path)
    (tmp_path / "datasets" / "d.yaml").write_text("dataset: d")
    with pytest.raises(BadCatalog, match="has no `tables`"):
        proposed(tmp_path)


def test_a_simulated_table_is_proposed_as_its_world_draws_it(tmp_path: Path) -> None:
    source = {"kind": "simulation", "world": "fleet", "table": "vehicle_days", "vehicles": 5}
    document, text = proposed(unfinished(tmp_path, source, time_zone="UTC"))
    assert document["source"] == source, text
    kinds = {name: column["type"] for name, column in document["columns"].items()}
    assert kinds["event_date"] == "date"
    assert (kinds["vehicle"], kinds["engine_temp"], kinds["sent_utc"]) == ("string", "float64", "timestamp")
