"""Paginated HTTP JSON: time-outs, retries with back-off, pages staged one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import tenacity

from config.catalog.source import HttpSource, SourceColumn
from config.masking import cause
from config.settings import Settings, secret
from features.sources.columns import Difference, Rows, match_names, null_where_absent, stage_rows
from features.sources.errors import SourceRefused, SourceUnavailable, SourceUnreadable
from features.sources.meter import Meter
from lake.duck import read_parquet

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")


class _Passing(Exception):
    """A failure worth another attempt."""


def is_dated(source: HttpSource) -> bool:
    """Whether each night is asked for by itself."""
    return any("{data_date}" in text for text in (source.url, *source.params.values()))


def stage(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    source: HttpSource,
    columns: Mapping[str, SourceColumn],
    night: date | None,
    folder: Path,
    target: Path,
    meter: Meter,
    *,
    personal: Collection[str] = (),
) -> tuple[Difference, ...]:
    """Write the records of all pages to one Parquet file `target`; one page at a time is held in memory.

    Raises:
        SourceUnavailable: the last attempt of a page failed too (no connection, time-out, 429, 5xx).
        SourceRefused: any other status, a redirect, or a next page on another host.
        SourceUnreadable: a page is not JSON, holds texts that are none, or has no list of records where the catalog
            says.
        SourceTooLarge: the pages exceed one of the source's limits.
        SourceSchemaMismatch: a column is undeclared, missing or retyped.
    """
    label = meter.label
    text_schema = pa.schema([pa.field(name, pa.string()) for name in columns])
    spellings = {name: (name, *(column.renamed_from or ())) for name, column in columns.items()}
    known = {own for names in spellings.values() for own in names}
    pages = folder / f"{target.stem}.pages.parquet"
    keys: set[str] = set()
    with (
        _client(settings, source, label) as client,
        closing(_pages(client, source, night, meter)) as documents,
        pq.ParquetWriter(pages, text_schema, compression="zstd") as writer,
    ):
        for url, records in documents:
            names = {name for record in records for name in record}
            if names - known and source.on_extra in (None, "refuse"):
                match_names(f"{label} ({url})", sorted(names | keys), columns)
            keys |= names
            meter.take("max_rows", len(records))
            try:
                texts = [
                    pa.array([_text(_first(record, names)) for record in records], pa.string())
                    for names in spellings.values()
                ]
            except UnicodeEncodeError as error:
                raise SourceUnreadable(
                    f"{label}: {url} sends a text with half a character (a lone surrogate), which no table holds. "
                    "Nothing was written. Correct it where it is made."
                ) from cause(error, personal=bool(personal))
            writer.write_table(pa.table(texts, schema=text_schema))
    # A service may leave out what is null, from all records of a night too; where it sends other keys, one is renamed.
    absent = columns if keys - known and source.on_extra in (None, "refuse") else null_where_absent(columns)
    matched = match_names(label, sorted(keys), absent, source.on_extra) if keys else None
    with meter.interrupting(connection):
        rows = Rows(read_parquet([pages]), dict.fromkeys(columns, "VARCHAR"))
        stage_rows(connection, meter, [rows], columns, target, personal=personal)
    return matched.differences if matched else ()


def _client(settings: Settings, source: HttpSource, label: str) -> httpx.Client:
    headers = {"Accept": "application/x-ndjson" if source.lines else "application/json"}
    for name, value in (source.headers or {}).items():
        headers[name] = value if isinstance(value, str) else secret(settings, value.secret)
    if source.token_secret:
        headers["Authorization"] = f"Bearer {secret(settings, source.token_secret)}"
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            # The library's own words would quote the value.
            raise SourceRefused(
                f"{label}: the header {name!r} has a name or a value that HTTP cannot carry. Nothing was written.\n"
                "  Names are letters, digits and -, values printable ASCII on one line: correct `headers`, or the "
                "secret."
            )
    return httpx.Client(timeout=source.timeout_seconds, headers=headers, follow_redirects=False)


def first_rows(settings: Settings, source: HttpSource, night: date | None, meter: Meter, *, rows: int) -> pa.Table:
    """The first page's records, under their own names, as texts; raises as `stage` does."""
    with (
        _client(settings, source, meter.label) as client,
        closing(_pages(client, source, night, meter)) as documents,
    ):
        records = next(documents, ("", []))[1][:rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = [pa.array([_text(record.get(name)) for record in records], pa.string()) for name in names]
    return pa.Table.from_arrays(columns, names=names)


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under the first of the names that the record has."""
    return next((record[name] for name in names if name in record), None)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class _Answer:
    """One page: its document, and where its header says that the next one is."""

    document: Any
    link: str | None


def _pages(
    client: httpx.Client, source: HttpSource, night: date | None, meter: Meter
) -> Generator[tuple[str, list[dict[str, Any]]], None, None]:
    def dated(text: str) -> str:
        return text.replace("{data_date}", night.isoformat()) if night else text

    label = meter.label
    first = httpx.URL(dated(source.url))
    params = {name: dated(value) for name, value in source.params.items()}
    start = first.copy_merge_params(params) if params else first
    asked: httpx.URL | None = start
    place = source.first_page if source.page_param else 0
    if counted := source.page_param or source.offset_param:
        asked = start.copy_set_param(counted, place)
    seen, content = set[str](), ""
    while asked is not None:
        if str(asked) in seen:
            raise SourceRefused(
                f"{label}: the pages form a loop: {asked} came up a second time. Nothing was written. Correct "
                f"`{_paging_key(source)}` in the catalog."
            )
        seen.add(str(asked))
        meter.take("max_pages", 1)
        answer = _fetch(client, asked, source, meter)
        records = _records(label, asked, source, answer)
        if answer is None or records is None:
            return
        before, content = content, json.dumps(records, sort_keys=True) if records else ""
        if content and content == before:
            raise SourceRefused(
                f"{label}: {asked} answers with the records of the page before: the service does not go on. Nothing "
                f"was written.\n  Correct `{_paging_key(source)}` in the catalog, which it may not know by that name."
            )
        yield str(asked), records
        place += len(records) if source.offset_param else 1
        asked = _next(label, source, start, asked, answer, place if records else None)


def _paging_key(source: HttpSource) -> str:
    keys = ("page_param", "offset_param", "cursor_param", "next_link", "next_url")
    return next((key for key in keys if getattr(source, key)), "url")


def _records(label: str, asked: httpx.URL, source: HttpSource, answer: _Answer | None) -> list[dict[str, Any]] | None:
    """The records of a page; None where the answer is declared to be the end of the pages."""
    records = _at(answer.document, source.records) if answer is not None else None
    if records is None and (answer is None or None in (source.end_on or ())):
        return None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise SourceUnreadable(
            f"{label}: {asked} has no list of records at {source.records or 'its top'!r} but "
            f"{type(records).__name__}. Nothing was written. Correct `records` in the catalog; where null is the end "
            "of the pages, say `end_on: [null]`."
        )
    return records


def _next(
    label: str, source: HttpSource, start: httpx.URL, asked: httpx.URL, answer: _Answer, place: int | None
) -> httpx.URL | None:
    """The url of the next page, None after the last.

    Args:
        place: number of the next page, or of the records so far; None after an empty page.
    """
    if counted := source.page_param or source.offset_param:
        return None if place is None else start.copy_set_param(counted, place)
    if source.cursor and source.cursor_param:
        cursor = _at(answer.document, source.cursor)
        if cursor is None or cursor in ("", False):
            return None
        return start.copy_set_param(source.cursor_param, cursor if isinstance(cursor, str) else json.dumps(cursor))
    following = _at(answer.document, source.next_url) if source.next_url else answer.link
    if not following:
        return None
    try:
        url = asked.join(str(following))
    except httpx.InvalidURL as error:
        raise SourceUnreadable(
            f"{label}: {asked} names as its next page what is no url ({error}). Nothing was written. Correct "
            f"`{_paging_key(source)}` in the catalog, or the service."
        ) from error
    if (url.scheme, url.host, url.port) != (start.scheme, start.host, start.port):
        raise SourceRefused(
            f"{label}: the next page lies at {url}, on another host than {start.host}. It was not asked for: the "
            "request would carry the token. Nothing was written. Correct `url` in the catalog if the service moved."
        )
    return url


def _at(document: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _fetch(client: httpx.Client, url: httpx.URL, source: HttpSource, meter: Meter) -> _Answer | None:
    """A page; None where the status, or that there is no body, is declared to be the end."""
    label, ends = meter.label, source.end_on or ()
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(source.attempts),
        wait=tenacity.wait_exponential_jitter(initial=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        retry=tenacity.retry_if_exception_type(_Passing),
        reraise=True,
    )
    try:
        response, body = retrying(_once, client, url, meter)
    except _Passing as error:
        raise SourceUnavailable(
            f"{label}: {url} failed {source.attempts} times, last with {error}.\n"
            "  Nothing was written. Check that the service is up, then clear the task."
        ) from error
    if response.status_code in ends or (response.status_code == 200 and not body.strip() and "empty" in ends):
        return None
    if response.status_code != 200:
        raise SourceRefused(
            f"{label}: {url} answers {response.status_code} {response.reason_phrase}, needs 200. "
            "Nothing was written. Correct the url, or the token in `token_secret`; where it is the end of the pages, "
            f"say `end_on: [{response.status_code}]`."
        )
    try:
        # A line ends with a line feed: other characters that end lines for Python stand within texts.
        lines = [line for line in body.split(b"\n") if line.strip()] if source.lines else ()
        document = [json.loads(line) for line in lines] if source.lines else json.loads(body)
        link = response.links.get("next", {}).get("url") if source.next_link else None
    except (ValueError, RecursionError) as error:
        # The words of `RecursionError` say nothing of the page.
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SourceUnreadable(
            f"{label}: {url} did not send JSON ({reason}). Nothing was written. Correct `url` in the catalog."
        ) from error
    return _Answer(document, link)


def _once(client: httpx.Client, url: httpx.URL, meter: Meter) -> tuple[httpx.Response, bytes]:
    """One attempt: the answer, and its body as far as its status is 200."""
    body = bytearray()
    try:
        with client.stream("GET", url) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise _Passing(f"status {response.status_code} {response.reason_phrase}")
            for chunk in response.iter_bytes() if response.status_code == 200 else ():
                body += chunk
                meter.take("max_bytes", len(chunk))
                if "content-encoding" in response.headers:
                    meter.ratio(response.num_bytes_downloaded, len(body))
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise _Passing(f"{type(error).__name__}: {error}".rstrip(": ")) from error
    return response, bytes(body)
