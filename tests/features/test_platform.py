"""The simulated platform's features, from a few nights of the real stages; and what becomes of labels that no model
was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.calendar import Interval, cutoff
from features.ingest import ingest
from features.labels import UnknownClass, labels
from features.retrieval import retrieve
from features.sources import simulation
from features.transform import transform
from features.validate import validate
from lake.lake import Lake
from tests.features.replays import replay_lake

NIGHT = date(2024, 3, 31)
USERS = 30


def platform_lake(folder: Path, *, first: date, episodes: tuple[Mapping[str, Any], ...] = ()) -> Lake:
    """The shipped data set, begun on `first`, with fewer users."""
    lake = replay_lake(folder, "platform", first=first)
    entry = lake.dataset("platform")
    tables = {}
    for name, table in entry.tables.items():
        assert table.source.kind == "simulation"
        world = table.source.model_dump(exclude_unset=True) | {"users": USERS, "episodes": episodes}
        tables[name] = table.model_copy(update={"source": type(table.source).model_validate(world)})
    dataset = entry.model_copy(update={"tables": tables})
    return Lake(lake.settings, lake.catalog.model_copy(update={"datasets": (dataset,)}))


def drawn(lake: Lake, table: str, day: date) -> pa.Table:
    """A table's rows of a night, as the world draws them."""
    source = lake.dataset("platform").tables[table].source
    assert source.kind == "simulation"
    return simulation.night(source, day)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Four weeks up to `NIGHT`."""
    lake = platform_lake(tmp_path_factory.mktemp("platform"), first=NIGHT - timedelta(days=30))
    nights = Interval.closed(NIGHT - timedelta(days=30), NIGHT)
    for stage in (ingest, validate, transform):
        stage(lake, "platform", nights, run_id="test")
    return lake


def features(lake: Lake, model: str) -> list[dict[str, Any]]:
    """The rows that a model is given in `NIGHT`."""
    with lake.scratch("night") as folder:
        rows: pa.Table = retrieve(lake, model, Interval.of(NIGHT), folder=folder).reader().read_all()
    return list(rows.to_pylist())


def test_a_users_scores_add_up_over_four_weeks(history: Lake) -> None:
    days = [drawn(history, "user_days", NIGHT - timedelta(days=ago)).to_pylist() for ago in range(28)]
    rows = features(history, "engagement")
    assert {row["user"] for row in rows} == {row["user"] for row in days[0]}
    for row in rows:
        own = [next((each for each in day if each["user"] == row["user"]), None) for day in days]
        there = [each for each in own if each is not None]
        actions = sum(each["actions"] for each in there)
        active = [ago for ago, each in enumerate(own) if each is not None and each["active"]]
        assert row["user_activity__activity_score"] == pytest.approx(len(active) / 28)
        assert row["user_activity__project_count"] == there[0]["project_count"]
        assert row["user_activity__days_since_active"] == (active[0] if active else None)
        assert row["user_activity__weekday"] == 7
        for feature, column in (("collaboration_score", "shared_actions"), ("ai_usage_frequency", "ai_actions")):
            share = sum(each[column] for each in there) / actions if actions else None
            assert row[f"user_activity__{feature}"] == (None if share is None else pytest.approx(share))
        assert [row[f"user_activity__actions_t{ago}"] for ago in range(10)] == [
            None if each is None else each["actions"] for each in own[:10]
        ]


def test_the_last_activities_are_those_of_active_days_newest_first(history: Lake) -> None:
    days = [drawn(history, "user_days", NIGHT - timedelta(days=ago)).to_pylist() for ago in range(28)]
    seen = set()
    for row in features(history, "platform_next_activity"):
        done = [
            (each["activity"], ago)
            for ago, day in enumerate(days)
            for each in day
            if each["user"] == row["user"] and each["activity"]
        ]
        names, ages = ([*column, *[None] * 5] for column in (zip(*done, strict=True) if done else ((), ())))
        assert [row[f"recent_activities__recent_t{step}"] for step in range(5)] == names[:5]
        assert [row[f"recent_activities__days_ago_t{step}"] for step in range(3)] == ages[:3]
        seen.add(min(len(done), 5))
    assert min(seen) < 5 == max(seen)


def test_each_of_thirty_days_has_what_is_known_of_its_weekday(history: Lake) -> None:
    days = [drawn(history, "cluster_usage", NIGHT - timedelta(days=ago)).to_pylist() for ago in range(28)]
    rows = [row for row in features(history, "cluster_capacity") if row["cluster"] == "eu-1"]
    assert len(rows) == 3 * 30
    used = {
        resource: np.array(
            [each["usage"] for day in days for each in day if (each["cluster"], each["resource"]) == ("eu-1", resource)]
        )
        for resource in ("cpu", "memory", "storage")
    }
    for row in rows:
        own, ahead = used[row["resource"]], row["capacity__days_ahead"]
        assert row["day_utc"] == cutoff(NIGHT, "UTC") + timedelta(days=ahead - 1)
        assert row["capacity__weekday"] == row["day_utc"].isoweekday()
        like = [ago for ago in range(28) if (ahead + ago) % 7 == 0]
        assert row["capacity__weekday_28d"] == pytest.approx(own[like].mean(), abs=1e-6)
        assert row["capacity__trend"] == pytest.approx((own[:14].mean() - own[14:].mean()) / 14, abs=1e-6)
        assert row["capacity__current_usage"] == own[0]
        assert [row[f"capacity__current_{name}"] for name in used] == [each[0] for each in used.values()]
        cleaned = row["capacity__days_since_cleaning"]
        assert (cleaned is None) == (row["resource"] != "storage")
        if cleaned is not None:
            later = drawn(history, "cluster_usage", row["day_utc"].date()).to_pylist()
            plan = next(each["days_to_cleaning"] for each in later if each["cluster"] == "eu-1")
            assert cleaned == (91 - plan) % 91


# ---- faults


def published(folder: Path, kind: str, **episode: Any) -> Lake:
    """A lake over the nights in which the labels of `NIGHT` come, with an episode planted over all of them."""
    nights = Interval.closed(NIGHT, NIGHT + timedelta(days=8))
    planted = {"kind": kind, "from": nights.start, "to": nights.last, **episode}
    lake = platform_lake(folder, first=NIGHT, episodes=(planted,))
    for stage in (ingest, validate):
        stage(lake, "platform", nights, run_id="test")
    return lake


def test_an_activity_that_no_model_was_made_for_stops_with_a_way_out(tmp_path: Path) -> None:
    lake = published(tmp_path, "new_activity", share=1.0)
    with pytest.raises(UnknownClass, match=r"activity = 'pair_programming', which is none of planning, .*\s+Add it to"):
        labels(lake, "platform_next_activity", Interval.of(NIGHT), as_of=NIGHT + timedelta(days=8))


def test_a_week_in_which_nobody_gets_in_teaches_nothing_and_tells_no_class_from_another(tmp_path: Path) -> None:
    lake = published(tmp_path, "outage")
    known = labels(lake, "engagement", Interval.of(NIGHT), as_of=NIGHT + timedelta(days=8))
    label = known["label"].to_numpy()
    assert len(label) > 20
    assert pc.count(known["label"]).as_py() == len(label)
    output = lake.model("engagement").outputs["engagement_level"]
    assert output.unlearnable(label, "training rows") == (
        f"none of {len(label)} training rows is of class 'medium', 'high'"
    )
    said = dict.fromkeys(output.judged_columns("engagement_level"), np.full(len(label), 1 / 3))
    checks = {each.check: each for each in output.measurements("engagement_level", label, said)}
    assert checks["macro_f1"].status == "not_evaluated"
    assert "came out as low" in str(checks["macro_f1"].reason)
    assert checks["log_loss"].value == pytest.approx(np.log(3))
    nothing = labels(lake, "platform_next_activity", Interval.of(NIGHT), as_of=NIGHT + timedelta(days=8))
    assert pc.count(nothing["label"]).as_py() == 0
