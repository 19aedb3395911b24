"""Documents that other tools made, shown inside a page: Evidently's reports, model cards, GX's data docs.

They hold values from data and scripts of their own, so none is trusted: each is served under a content security policy
that takes its origin away (`sandbox`, without `allow-same-origin`) and lets it load nothing. From there no cookie is
sent with what a document asks for, so what it needs is put into it. Whatever the frame's attribute says, the policy
holds.
"""

from __future__ import annotations

import base64
import functools
import html
import re
from dataclasses import dataclass

from config.calendar import BadInterval, parse_data_date
from config.catalog.data import Dataset
from features.data_docs import STATIC
from lake.storage import LeadsOutside, ObjectStore, reports
from monitoring.pages.page import BadAddress, Context, NotFound, shortened

HTML = "text/html; charset=utf-8"
SANDBOX = "allow-scripts"
_LOCKED = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; base-uri 'none'; form-action"
    " 'none'; frame-ancestors 'self'"
)
# Their scripts stand in the page, with handlers in attributes; they may draw, and reach nothing.
DRAWN = f"{_LOCKED}; script-src 'unsafe-inline'; sandbox {SANDBOX}"
STILL = f"{_LOCKED}; script-src 'none'; sandbox"
FRAMED = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
NIGHT_REPORTS = ("drift.html", "performance.html")
MODEL_CARDS, DATA_DOCS = "model_cards", "data_docs"
_PARTS = 3
_MOST_NAMED = 5
_LARGEST_BYTES = 64 * 2**20
_LONGEST_ADDRESS = 400
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\%]")
_VERSION = re.compile(r"[1-9][0-9]{0,9}\.html", re.ASCII)
_LINK = re.compile(rb'<link rel="stylesheet" href="(?:\.\./)*static/(css/[a-z.-]+)">')
_SCRIPT = re.compile(rb'<script src="(?:\.\./)*static/(js/[a-z.-]+)"></script>')
_ANCHOR = re.compile(rb'<a href="(?!#)[^"]*"[^>]*>(.*?)</a>', re.DOTALL)
_FONT = re.compile(rb"url\(\.\./(webfonts/[a-z0-9-]+\.woff2)\)")
_OTHER_FONT = re.compile(rb",\s*url\(\.\./webfonts/[^)]*\)\s*format\([^)]*\)")


@dataclass(frozen=True)
class Document:
    """What is sent: bytes, their type, and the content security policy that they must be sent with."""

    content: bytes
    media_type: str
    policy: str


def document(context: Context, path: str) -> Document:
    """The document of an address below `embedded/`, which is its path below the folder of reports.

    `<model>/<data date>/drift.html`, `…/performance.html`, `<model>/model_cards/<version>.html`, `data_docs/<data
    set>/index.html`, `…/suites/<suite>.html`, `…/<interval>/<suite>.html`. Every part is checked against the catalog, a
    date, or a fixed list of names, and the file must lie in the folder of its model or data set, whatever links lie
    there.

    Args:
        path: as decoded once by the server.
    Raises:
        BadAddress: a part is not what it has to be.
        NotFound: there is no such document; the message names what there is.
    """
    place = _place(context, path)
    content = place.content()
    return Document(_whole(content) if place.docs else content, HTML, place.policy)


def framed(address: str) -> Document:
    """A page of ours around a drawn document that is opened alone.

    No policy of its own forbids a document to lead its window elsewhere, with what it read in the address; the policy
    of the page around it does.
    """
    content = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title>'
        "<style>html,body,iframe{margin:0;border:0;width:100%;height:100%;display:block}</style>"
        f'<iframe sandbox="{SANDBOX}" src="{html.escape(address)}" title="Report"></iframe></html>'
    )
    return Document(content.encode(), HTML, FRAMED)


def has_document(context: Context, path: str) -> bool:
    """Whether `document` would find it."""
    try:
        _place(context, path).check()
    except (NotFound, BadAddress):
        return False
    return True


@dataclass(frozen=True)
class _Place:
    """Where a checked address leads.

    Attributes:
        store: the reports, in which no link is followed.
        folder: key of the model's or data set's folder.
        what, others: for messages: the document, and the folder inside whose names tell what there is.
        docs: a page of GX's, to be made whole.
    """

    store: ObjectStore
    folder: str
    parts: tuple[str, ...]
    policy: str
    what: str
    others: str
    docs: bool = False

    @property
    def key(self) -> str:
        """Of the document among the reports."""
        return "/".join((self.folder, *self.parts))

    def check(self) -> None:
        """NotFound where the document is not there, lies behind a link, or is too large."""
        try:
            size = self.store.size(self.key)
        except LeadsOutside as error:
            raise NotFound(
                f"there is no {self.what}: its path leads out of the folder of reports. Write the report again."
            ) from error
        if size is None:
            there = _there(self.store, f"{self.folder}/{self.others}".removesuffix("/"))
            raise NotFound(f"there is no {self.what}. There are: {there}.")
        if size > _LARGEST_BYTES:
            raise NotFound(f"the {self.what} is not shown: it has {size:,} bytes, at most {_LARGEST_BYTES:,} are.")

    def content(self) -> bytes:
        """The document's bytes; NotFound as `check`."""
        self.check()
        return self.store.read(self.key)


def _place(context: Context, path: str) -> _Place:
    if len(path) > _LONGEST_ADDRESS or _UNSAFE.search(path):
        raise BadAddress(
            f"{shortened(path)} is not the address of a document: needs at most {_LONGEST_ADDRESS} printable "
            "characters, no backslash, no percent."
        )
    parts = tuple(path.split("/"))
    if any(part in {"", ".", ".."} for part in parts):
        raise BadAddress(f"{shortened(path)} is not the address of a document: a part of it is empty or a dot.")
    if parts[0] == DATA_DOCS:
        return _docs_place(context, parts)
    if len(parts) != _PARTS:
        known = (
            f"<model>/<data date>/{' or '.join(NIGHT_REPORTS)}, <model>/{MODEL_CARDS}/<version>.html, {DATA_DOCS}/<data"
            " set>/index.html"
        )
        raise NotFound(f"there is no document {shortened(path)}. There are: {known}.")
    entry = context.model(parts[0])
    store = reports(context.lake.settings)
    if parts[1] == MODEL_CARDS:
        if not _VERSION.fullmatch(parts[2]):
            raise BadAddress(f"{shortened(parts[2])} is not a model card: needs <version>.html, for example 3.html.")
        return _Place(
            store,
            entry.name,
            parts[1:],
            STILL,
            f"model card of {entry.name} version {parts[2].removesuffix('.html')}",
            MODEL_CARDS,
        )
    _check_night(parts[1])
    if parts[2] not in NIGHT_REPORTS:
        raise NotFound(f"there is no report {shortened(parts[2])}. There are: {', '.join(NIGHT_REPORTS)}.")
    return _Place(store, entry.name, parts[1:], DRAWN, f"{parts[2]} of {entry.name} for {parts[1]}", "")


def _docs_place(context: Context, parts: tuple[str, ...]) -> _Place:
    if len(parts) not in (_PARTS, _PARTS + 1):
        known = (
            f"{DATA_DOCS}/<data set>/index.html, {DATA_DOCS}/<data set>/suites/<suite>.html, {DATA_DOCS}/<data"
            " set>/<interval>/<suite>.html"
        )
        raise NotFound(f"there is no such page of the data docs. There are: {known}.")
    dataset = context.dataset(parts[1])
    store, folder, inner = reports(context.lake.settings), f"{DATA_DOCS}/{dataset.name}", parts[2:]
    if len(inner) == 1:
        if inner[0] != "index.html":
            raise NotFound(
                f"there is no page {shortened(inner[0])} of the data docs of {dataset.name}. There is: index.html."
            )
        return _Place(store, folder, inner, DRAWN, f"index of the data docs of {dataset.name}", "", docs=True)
    if inner[0] != "suites":
        for end in inner[0].split("..", 1):
            _check_night(end)
    suites = suite_files(dataset)
    if inner[1] not in suites:
        raise NotFound(f"there is no suite {shortened(inner[1])} of {dataset.name}. There are: {', '.join(suites)}.")
    return _Place(
        store, folder, inner, DRAWN, f"{inner[1]} of {inner[0]} in the data docs of {dataset.name}", "", docs=True
    )


def suite_files(dataset: Dataset) -> tuple[str, ...]:
    """Names of the pages of a data set's suites, as `features.data_docs` writes them: of each table its rows, then its
    nights.
    """
    return tuple(f"{dataset.name}.{table}{ending}.html" for table in dataset.tables for ending in ("", "_by_night"))


def _check_night(text: str) -> None:
    try:
        night = parse_data_date(text).isoformat()
    except BadInterval as error:
        raise BadAddress(f"{shortened(text)} is not a valid data date, needs one as 2013-07-01.") from error
    if night != text:
        raise BadAddress(f"{shortened(text)} is not a valid data date, needs {night}.")


def _there(store: ObjectStore, folder: str) -> str:
    """What the folder holds, in a few words: dates or versions."""
    names = sorted(
        (name.removesuffix(".html") for name in store.names(folder) if name[:1].isdigit()),
        key=lambda name: (len(name), name),
    )
    if not names:
        return "none yet"
    return ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)}, from {names[0]} to {names[-1]}"


# ---- GX's pages, whole -----------------------------------------------------------------------------------------


def _whole(page: bytes) -> bytes:
    """A page of the data docs with the files it would load inside it.

    Links to other pages become plain text: a frame without an origin sends no login along, so they would lead nowhere.
    """
    page = _LINK.sub(lambda found: b"<style>" + _static(found[1].decode()) + b"</style>", page)
    page = _SCRIPT.sub(lambda found: b"<script>" + _static(found[1].decode()) + b"</script>", page)
    return _ANCHOR.sub(rb"\1", page)


@functools.cache
def _static(name: str) -> bytes:
    """A file that comes with the data docs, fit to stand inside an element."""
    content = (STATIC / name).read_bytes()
    if name.startswith("css/"):
        content = _OTHER_FONT.sub(b"", content)  # the same font in an older form
        content = _FONT.sub(
            lambda found: (
                b"url(data:font/woff2;base64," + base64.b64encode((STATIC / found[1].decode()).read_bytes()) + b")"
            ),
            content,
        )
        return content.replace(b"</style", b"<\\/style")
    return content.replace(b"</script", b"<\\/script").replace(b"<!--", b"<\\!--")
