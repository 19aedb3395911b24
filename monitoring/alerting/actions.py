"""The audit table: everything a person does through the pages, refused attempts included; appended, never changed.

Delta table `actions`, partitioned by the UTC day of the action, and its projection, the indexed SQL table `actions`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from config.errors import TransientError
from config.settings import code_version
from lake.lake import Lake
from lake.lineage import Lineage, as_utc
from lake.migrations import ACTIONS
from lake.projection import project, sql_columns
from lake.publish import StalePublish, append
from lake.tables import LakeTable, named_table

SQL_TABLE = "actions"
DONE = "done"
REFUSED = "refused: "
LONGEST_TEXT = 4_000
_ATTEMPTS = 40
_COLUMNS = {
    "action_id": "string",
    "at_utc": "timestamp",
    "by": "string",
    "role": "string",
    "action": "string",
    "subject": "string",
    "check": "string",
    "column": "string",
    "segment": "string",
    "until": "date",
    "reason": "string",
    "outcome": "string",
    "details": "string",
    "model_role": "string",
    "model_version": "int64",
}
_INDEXES = (("at_utc",), ("subject", "action", "at_utc"))


class ActionContested(TransientError):
    """Other actions were stored again and again while this one tried to be."""


@dataclass(frozen=True)
class Action:
    """One thing that a person did, or tried to.

    Attributes:
        action_id: names it; the same id again is the same action. Empty: a new one is made when it is recorded.
        at_utc: aware, UTC.
        by, role: the person's name and role, as Airflow knows them.
        action: what was done, a word: acknowledge, silence, unsilence, request_retraining, approve, reject, rollback,
            rollout_advance, rollout_hold, rollout_finish, rollout_rollback, reproduce.
        subject: data set or model; with `check`, `column`, `segment`, `model_role` (empty: none, or said before roles
            were recorded) and `model_version` an alarm's fingerprint.
        until: last date of a silence.
        outcome: `done`, or `refused: ` and why.
        details: whatever else is worth keeping, JSON-able.
    """

    at_utc: datetime
    by: str
    role: str
    action: str
    subject: str = ""
    check: str = ""
    column: str = ""
    segment: str = ""
    until: date | None = None
    reason: str = ""
    outcome: str = DONE
    details: Mapping[str, Any] = field(default_factory=dict)
    action_id: str = ""
    model_role: str = ""
    model_version: int | None = None

    @property
    def done(self) -> bool:
        """Whether it took effect."""
        return self.outcome == DONE


def actions_table(lake: Lake) -> LakeTable:
    """`actions`: partition T holds what people did on the UTC day T."""
    return named_table(lake.settings, "actions", _COLUMNS, ("at_utc", "action_id"), ACTIONS)


def record_action(lake: Lake, action: Action) -> Action:
    """Append an action to the audit table, then to SQL; one with an id that is there already changes nothing.

    Texts are cut at 4,000 characters, and what no database takes (NUL, half characters) is replaced: a refused attempt
    is recorded whatever it held.

    Returns:
        the action as it stands, with its id.
    Raises:
        ActionContested: others were stored first, many times over; nothing was recorded.
    """
    kept = replace(action, action_id=action.action_id or uuid.uuid4().hex, at_utc=action.at_utc.astimezone(UTC))
    table = actions_table(lake)
    day = kept.at_utc.date()
    interval = Interval.of(day)
    row = _row(kept)
    for _ in range(_ATTEMPTS):
        replaces = lake.publications.digests(table, interval)
        held = table.read([day])
        same = held.filter(pc.equal(held["action_id"], row["action_id"])).to_pylist()
        if same:
            kept = _action(same[0])
            break
        rows = pa.Table.from_pylist([row], schema=table.schema)
        lineage = Lineage(run_id=f"action {row['action_id']}", code_version=code_version(), catalog_digest="")
        try:
            with lake.scratch("actions") as scratch:
                append(
                    lake.publications,
                    table,
                    rows,
                    day,
                    held=held,
                    replaces=replaces[day],
                    lineage=lineage,
                    scratch=scratch,
                )
        except StalePublish:
            continue  # another action of the day was stored in between: look again at what is there
        kept = _action(row)
        break
    else:
        raise ActionContested(
            f"the action {action.action} of {action.by} was not recorded: {_ATTEMPTS} times another came first. Try "
            "again."
        )
    project_actions(lake, Interval(day - ONE_DAY, day + ONE_DAY))
    return kept


def project_actions(lake: Lake, interval: Interval | None = None, *, anew: bool = False) -> int:
    """Bring the SQL table `actions` up to date with those UTC days (None: all); rows written."""
    return project(lake, actions_table(lake), SQL_TABLE, interval, indexes=_INDEXES, anew=anew)


def read_actions(
    lake: Lake,
    *,
    subject: str | None = None,
    actions: Collection[str] | None = None,
    since: datetime | None = None,
    limit: int | None = 200,
) -> list[Action]:
    """What people did, the latest first.

    Args:
        since: only at or after that instant, aware.
        limit: at most so many; None: all.
    """
    table = sql_columns(SQL_TABLE, actions_table(lake).schema)
    query = sa.select(table).order_by(table.c.at_utc.desc(), table.c.action_id)
    if subject is not None:
        query = query.where(table.c.subject == subject)
    if actions is not None:
        query = query.where(table.c.action.in_(list(actions)))
    if since is not None:
        query = query.where(table.c.at_utc >= since.astimezone(UTC))
    with lake.engine.connect() as connection:
        if not sa.inspect(connection).has_table(SQL_TABLE):
            return []
        return [_action(dict(row)) for row in connection.execute(query.limit(limit)).mappings()]


def _row(action: Action) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: _text(value) if isinstance(value, str) else value for name, value in action.__dict__.items()
    }
    told = {"details": _details(action.details), "data_date": action.at_utc.date()}
    return values | told | {"model_role": values["model_role"] or None}


def _details(details: Mapping[str, Any]) -> str:
    text = json.dumps(details, sort_keys=True, separators=(",", ":"), default=str)
    return text if len(text) <= LONGEST_TEXT else json.dumps({"cut": text[: LONGEST_TEXT // 2]})


def _text(value: str) -> str:
    clean = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 1] + "…"


def _action(row: Mapping[str, Any]) -> Action:
    values = {name: row[name] for name in _COLUMNS}
    at: datetime = values["at_utc"]
    read = {"at_utc": as_utc(at), "details": json.loads(values["details"]), "model_role": values["model_role"] or ""}
    return Action(**values | read)
