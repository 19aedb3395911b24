"""What SQL on a connection reaches."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake.duck import allow, confine, connect, read_parquet, sql_path


def test_a_confined_connection_reads_the_files_it_was_allowed_and_no_other(tmp_path: Path) -> None:
    given, other = tmp_path / "it's q[1].parquet", tmp_path / "q1.parquet"
    pq.write_table(pa.table({"v": [1]}), given)
    pq.write_table(pa.table({"v": [2]}), other)
    with connect() as connection:
        connection.execute(f"CREATE TEMP VIEW given AS SELECT * FROM {read_parquet([given])}")
        allow(connection, [given])
        confine(connection)
        assert connection.execute("SELECT v FROM given").fetchall() == [(1,)]
        for sql in (
            f"SELECT * FROM {read_parquet([other])}",
            f"SELECT * FROM {read_parquet([tmp_path / 'x' / '..' / 'q1.parquet'])}",
            "SELECT * FROM read_text('/etc/hostname')",
            f"SELECT * FROM glob('{tmp_path}/*')",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/other.db'",
            "INSTALL httpfs",
        ):
            with pytest.raises(duckdb.PermissionException):
                connection.execute(sql)
        for sql in ("SET enable_external_access = true", f"SET allowed_directories = ['{tmp_path}']"):
            with pytest.raises(duckdb.Error, match="locked|Cannot"):
                connection.execute(sql)


def test_variables_of_python_are_no_tables() -> None:
    secrets = pa.table({"v": [1]})
    with connect() as connection, pytest.raises(duckdb.CatalogException, match="secrets"):
        connection.execute("SELECT * FROM secrets")
    assert secrets.num_rows == 1


def test_paths_are_literals_for_duckdb() -> None:
    assert sql_path("/it's/a.parquet") == "'/it''s/a.parquet'"
    assert read_parquet([Path("/a"), "/b"]) == "read_parquet(['/a', '/b'], hive_partitioning=false)"
    assert read_parquet(["/q[1]*.parquet"]) == "read_parquet(['/q[[]1][*].parquet'], hive_partitioning=false)"
    assert "hive_partitioning=true" in read_parquet(["/a"], partitioned=True)


def test_files_that_are_allowed_already_are_not_listed_anew(tmp_path: Path) -> None:
    with connect() as connection:
        allow(connection, [tmp_path / "a.parquet", tmp_path / "b.parquet"])
        confine(connection)
        allow(connection, [tmp_path / "b.parquet"])
        with pytest.raises(duckdb.Error, match="locked"):
            allow(connection, [tmp_path / "c.parquet"])
