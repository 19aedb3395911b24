from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import serving.score as scoring
from config.calendar import ONE_DAY, Interval
from config.settings import ROOT
from features.retrieval import retrieve
from lake.artifact import ArtifactMismatch
from lake.assignment import Assignment, BadPlan, Plan, plan_of, scored_by
from lake.lake import Lake
from lake.ledger import LedgerSnapshot, NoChampion
from lake.lineage import Input, PartitionNotReady
from lake.publish import StalePublish
from lake.rollouts import RolloutSnapshot
from lake.signature import UntrustedModel
from lake.tables import feature_table, valid_table
from serving.predictions import BadPredictions, FeatureMissing, NotServedOnce, predictions_table
from serving.score import AlreadyScored, OtherChampion, rescore, score, stale_predictions
from serving.signed import ModelMissing
from tests import toy
from tests.conftest import missing_service
from tests.serving.scenario import (
    FIRST_CHAMPION,
    MODEL,
    NIGHTS,
    LinearPredictor,
    promote,
    publish_inputs,
    restate_features,
    scored_nights,
    use_linear,
)

LATER = date(2024, 1, 23)


@pytest.fixture
def lake(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Inputs of all nights, one champion from the second night on."""
    use_linear(monkeypatch)
    publish_inputs(toy_lake)
    promote(toy_lake, 1)
    return toy_lake


def rows_of(lake: Lake) -> pa.Table:
    return predictions_table(lake.settings, lake.model(MODEL)).read()


def digests_of(lake: Lake, interval: Interval | None = None) -> dict[date, str | None]:
    return lake.publications.digests(predictions_table(lake.settings, lake.model(MODEL)), interval or scored_nights())


def versions_by_night(lake: Lake) -> dict[date, set[int]]:
    found: dict[date, set[int]] = {}
    for row in rows_of(lake).select(["data_date", "version"]).to_pylist():
        found.setdefault(row["data_date"], set()).add(row["version"])
    return found


# ---- what is published -----------------------------------------------------------------------------------------


def test_one_row_per_entity_stamped_with_where_it_came_from(lake: Lake) -> None:
    result = score(lake, MODEL, scored_nights(), run_id="r1")
    assert (result.rows, result.committed) == (120, 4)
    assert result.details["versions"] == {"2024-01-21..2024-01-24": {"champion": 1}}
    assert result.details["status"] == "ok"
    rows = rows_of(lake).to_pylist()
    assert len({row["prediction_id"] for row in rows}) == 120
    champion = lake.ledger(MODEL).read().promotions[0]
    assert {(r["role"], r["model"], r["version"], r["artifact_digest"]) for r in rows} == {
        ("champion", MODEL, 1, champion.artifact_digest)
    }
    assert {row["event_date"] - row["data_date"] for row in rows} == {ONE_DAY}
    publication = lake.publications.current(predictions_table(lake.settings, lake.model(MODEL)))[FIRST_CHAMPION]
    assert {item.table for item in publication.inputs} == {"rides/valid/bookings", "rides/features/vehicle_daily"}
    assert max(item.data_date for item in publication.inputs) == FIRST_CHAMPION
    assert publication.run_id == "r1"
    assert publication.details["ledger_version"] == lake.ledger(MODEL).read().delta_version


def test_each_night_gets_its_own_champion_and_bulk_equals_nightly(lake: Lake, tmp_path: Path) -> None:
    promote(lake, 2, LATER)
    nightly = Lake(lake.settings.model_copy(update={"home": tmp_path / "twin"}), lake.catalog)
    shutil.copytree(lake.settings.home, nightly.settings.home)
    score(lake, MODEL, scored_nights(), run_id="bulk")
    for day in scored_nights():
        score(nightly, MODEL, Interval.of(day), run_id=f"night {day}")
    assert versions_by_night(lake) == {day: {1 if day < LATER else 2} for day in scored_nights()}
    assert digests_of(nightly) == digests_of(lake)
    assert None not in digests_of(lake).values()


def test_small_batches_give_the_same_rows(lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    promote(lake, 2, LATER)
    score(lake, MODEL, scored_nights(), run_id="whole")
    sizes: list[int] = []
    predict = LinearPredictor.predict

    def counted(self: LinearPredictor, batch: pa.Table) -> pa.Table:
        sizes.append(batch.num_rows)
        return predict(self, batch)

    monkeypatch.setattr(LinearPredictor, "predict", counted)
    monkeypatch.setattr(scoring, "BATCH_ROWS", 7)
    again = score(lake, MODEL, scored_nights(), run_id="pieces")
    assert again.committed == 0
    assert max(sizes) == 7
    assert sum(sizes) == 120


def test_again_commits_nothing(lake: Lake) -> None:
    score(lake, MODEL, scored_nights(), run_id="r1")
    table = predictions_table(lake.settings, lake.model(MODEL))
    before = (table.load().version(), digests_of(lake))  # type: ignore[union-attr]
    again = score(lake, MODEL, Interval.of(LATER), run_id="r2")
    assert (again.committed, again.rows) == (0, 30)
    assert (table.load().version(), digests_of(lake)) == before  # type: ignore[union-attr]


def test_mlflow_is_not_needed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # importing it raises
    monkeypatch.setattr(
        type(lake.settings), "tracking_uri", property(lambda _: pytest.fail("scoring asked for MLflow's address"))
    )
    assert score(lake, MODEL, scored_nights(), run_id="r1").committed == 4


def test_a_night_without_entities_is_published_empty_and_says_so(lake: Lake) -> None:
    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    toy.publish_rows(lake, table, table.schema.empty_table(), Interval.of(LATER))
    result = score(lake, MODEL, Interval.of(LATER), run_id="r1")
    assert (result.rows, result.committed) == (0, 1)
    assert result.details["status"] == "warning"
    assert result.details["empty"] is True
    assert result.details["empty_nights"] == [str(LATER)]
    assert "nothing to score on 2024-01-23" in result.details["reason"]
    assert digests_of(lake)[LATER] is not None
    whole = score(lake, MODEL, scored_nights(), run_id="r2")
    assert (whole.details["empty"], whole.details["empty_nights"], whole.rows) == (False, [str(LATER)], 90)


def test_features_without_any_value_are_a_visible_warning(lake: Lake) -> None:
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    toy.publish_rows(lake, table, table.schema.empty_table(), NIGHTS.widened(4))
    result = score(lake, MODEL, scored_nights(), run_id="r1")
    assert result.details["status"] == "warning"
    assert result.details["features_without_values"] == ["vehicle_daily__minutes_7d", "vehicle_daily__rides_7d"]


def test_rows_that_came_too_late_are_counted(lake: Lake) -> None:
    bookings = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    rows = bookings.read([LATER])
    late = rows.slice(0, 2).set_column(rows.schema.get_field_index("ride"), "ride", pa.array([901, 902], pa.int64()))
    starts = pa.array([date(2024, 1, 22)] * 2).cast(pa.timestamp("us", tz="UTC"))
    late = late.set_column(rows.schema.get_field_index("start_utc"), "start_utc", starts)
    toy.publish_rows(lake, bookings, pa.concat_tables([rows, late.cast(rows.schema)]), Interval.of(LATER))
    result = score(lake, MODEL, Interval.of(LATER), run_id="r1")
    assert (result.details["too_late"], result.rows) == (2, 30)


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [Interval.of(date(2024, 1, 20)), NIGHTS])
def test_nights_before_any_champion_are_refused_before_anything_is_computed(
    lake: Lake, interval: Interval, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "retrieve", lambda *_a, **_k: pytest.fail("features were retrieved"))
    with pytest.raises(
        NoChampion,
        match=(
            r"no champion for data date 2024-01-20: its first champion takes effect on 2024-01-21.\n  Train and"
            r" promote one"
        ),
    ):
        score(lake, MODEL, interval, run_id="r1")
    assert set(digests_of(lake, NIGHTS).values()) == {None}


def test_a_model_that_never_had_a_champion(toy_lake: Lake) -> None:
    with pytest.raises(NoChampion, match="it never had one"):
        score(toy_lake, MODEL, NIGHTS, run_id="r1")


def test_a_champion_is_not_used_on_nights_its_training_data_lie_after(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(lake, 2, FIRST_CHAMPION, trained_until=LATER)
    score(lake, MODEL, scored_nights(), run_id="r1")
    assert versions_by_night(lake) == {day: {1 if day < LATER else 2} for day in scored_nights()}


def test_scoring_before_features_exist(toy_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    use_linear(monkeypatch)
    publish_inputs(toy_lake, Interval(NIGHTS.start, LATER))
    promote(toy_lake, 1)
    toy.publish_valid(toy_lake, Interval.of(LATER))
    with pytest.raises(
        PartitionNotReady,
        match=r"rides/features/vehicle_daily has no partition 2024-01-23 \(latest is 2024-01-22\).*\n.*`rides_ingest`",
    ):
        score(toy_lake, MODEL, Interval.closed(FIRST_CHAMPION, LATER), run_id="r1")
    assert set(digests_of(toy_lake).values()) == {None}


def test_a_model_whose_files_are_gone(lake: Lake) -> None:
    shutil.rmtree(lake.settings.artifacts / MODEL)
    scoring._loaded.cache_clear()
    with pytest.raises(
        ModelMissing, match=r"version 1 was promoted, but its files are not in .*\n  Restore that folder"
    ):
        score(lake, MODEL, scored_nights(), run_id="r1")


def test_a_model_whose_bytes_were_edited(lake: Lake) -> None:
    scoring._loaded.cache_clear()
    next(lake.settings.artifacts.rglob("slope.txt")).write_text("9.9")
    with pytest.raises(ArtifactMismatch, match="Nothing was loaded"):
        score(lake, MODEL, scored_nights(), run_id="r1")
    assert set(digests_of(lake).values()) == {None}


def test_a_model_nobody_signed_scores_nothing(lake: Lake) -> None:
    scoring._loaded.cache_clear()
    for signature in lake.settings.artifacts.rglob("signature.json"):
        signature.unlink()
    with pytest.raises(UntrustedModel, match="nobody vouches for it. Nothing was loaded."):
        score(lake, MODEL, scored_nights(), run_id="r1")
    assert set(digests_of(lake).values()) == {None}


def test_a_model_is_verified_and_loaded_once_per_process(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []

    def load(folder: Path) -> LinearPredictor:
        loads.append(folder)
        return LinearPredictor(1.0)

    monkeypatch.setattr("serving.predictors.load_predictor", load)
    scoring._loaded.cache_clear()
    for day in scored_nights():
        score(lake, MODEL, Interval.of(day), run_id="r1")
    assert len(loads) == 1


def test_a_prediction_that_must_not_be_published_stops_the_whole_interval(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = LinearPredictor.predict

    def broken(self: LinearPredictor, batch: pa.Table) -> pa.Table:
        table = predict(self, batch)
        values = np.array(table["long_probability"].to_numpy(), copy=True)
        values[-1] = 1.5
        return table.set_column(3, "long_probability", pa.array(values))

    monkeypatch.setattr(LinearPredictor, "predict", broken)
    with pytest.raises(
        BadPredictions,
        match=rf"{MODEL} version 1: 1 of 120 values of long_probability are not probabilities.*\n.*rollback {MODEL}",
    ):
        score(lake, MODEL, scored_nights(), run_id="r1")
    assert set(digests_of(lake).values()) == {None}
    assert not list(lake.settings.scratch.iterdir())


def test_a_version_that_needs_a_feature_the_catalog_lost(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearPredictor, "feature_columns", ("vehicle_daily__gone",))
    with pytest.raises(FeatureMissing, match="'vehicle_daily__gone'"):
        score(lake, MODEL, scored_nights(), run_id="r1")


def test_a_scored_night_keeps_its_champion(lake: Lake) -> None:
    score(lake, MODEL, scored_nights(), run_id="r1")
    before = digests_of(lake)
    promote(lake, 2, LATER)
    for command in (score, rescore):
        with pytest.raises(
            OtherChampion,
            match=(
                r"for 2024-01-23 was scored by version 1 .* now gives version 2 .*\n.*effective_from up to 2024-01-23"
            ),
        ):
            command(lake, MODEL, scored_nights(), run_id="r2")
    assert digests_of(lake) == before


# ---- after a restate -------------------------------------------------------------------------------------------


def test_only_rescore_rewrites_a_scored_night_and_by_the_same_champion(lake: Lake) -> None:
    score(lake, MODEL, scored_nights(), run_id="r1")
    before = digests_of(lake)
    assert stale_predictions(lake, MODEL) == []
    restate_features(lake, LATER)
    stale = stale_predictions(lake, MODEL)
    assert [night.data_date for night in stale] == [LATER, date(2024, 1, 24)], (
        "a later night reads that partition too, within the view's time to live"
    )
    assert {(c.table, c.data_date) for c in stale[0].changed} == {("rides/features/vehicle_daily", LATER)}
    assert stale[0].changed[0].published not in {None, stale[0].changed[0].recorded}

    with pytest.raises(
        AlreadyScored,
        match=rf"for 2024-01-23, .*for 2024-01-23 was rewritten since.*\n.*cli rescore {MODEL} 2024-01-21 2024-01-24",
    ):
        score(lake, MODEL, scored_nights(), run_id="r2")
    assert digests_of(lake) == before

    result = rescore(lake, MODEL, scored_nights(), run_id="person")
    after = digests_of(lake)
    assert result.committed == 2, "the later night's rows are equal, but it cites the rewritten partition now"
    assert stale_predictions(lake, MODEL) == []
    assert rescore(lake, MODEL, scored_nights(), run_id="person").committed == 0
    assert {day for day in before if before[day] != after[day]} == {LATER}
    assert versions_by_night(lake) == {day: {1} for day in scored_nights()}


def test_rows_that_change_though_the_inputs_did_not_are_explained(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    score(lake, MODEL, scored_nights(), run_id="r1")
    monkeypatch.setattr("serving.predictors.load_predictor", lambda _folder: LinearPredictor(3.0))
    scoring._loaded.cache_clear()
    with pytest.raises(
        AlreadyScored, match="its inputs are the same, so the code, a library or the catalog changed since"
    ):
        score(lake, MODEL, Interval.of(LATER), run_id="r2")
    scoring._loaded.cache_clear()


def test_a_zombie_does_not_overwrite_what_was_published_meanwhile(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(*args: Any, **kwargs: Any) -> Any:
        found = retrieve(*args, **kwargs)
        monkeypatch.setattr(scoring, "retrieve", retrieve)
        restate_features(lake, LATER)
        score(lake, MODEL, Interval.of(LATER), run_id="other")
        return found

    monkeypatch.setattr(scoring, "retrieve", overtaken)
    with pytest.raises(StalePublish, match="another run published in between"):
        score(lake, MODEL, Interval.of(LATER), run_id="zombie")


# ---- faults ----------------------------------------------------------------------------------------------------

# Scores in a process of its own, which kills itself at the point named. What was retrieved is handed over: importing
# Feast takes longer than the rest.
KILLED = """
import os, pickle, signal, sys
from pathlib import Path
import lake.publish, serving.predictors, serving.score
from config.catalog.load import load_catalog
from config.settings import Settings
from lake.lake import Lake
from tests.serving.scenario import MODEL, load_linear, scored_nights

home, folder, point = sys.argv[1:]
serving.predictors.load_predictor = load_linear
serving.score.retrieve = lambda *_args, **_kwargs: pickle.loads((Path(home) / "retrieved.pickle").read_bytes())
serving.score.BATCH_ROWS = 40

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

write, predict, current = lake.publish._commit, serving.score.predict_rows, lake.publish.Publications.current
write_file = lake.publish.write_data_file
calls = {"predict": 0, "current": 0}

def second_batch(*args, **kwargs):
    calls["predict"] += 1
    return die() if calls["predict"] == 2 else predict(*args, **kwargs)

def half_written(root, schema, batches, partition):
    def cut():
        for batch in batches:
            yield batch.slice(0, batch.num_rows // 2)
            die()
    return write_file(root, schema, cut(), partition)

def committed(*args, **kwargs):
    write(*args, **kwargs)
    die()

if point == "while rows are staged":
    serving.score.predict_rows = second_batch
elif point == "before the commit":
    lake.publish._commit = die
elif point == "in the commit":
    lake.publish.write_data_file = half_written
elif point == "after the commit":
    lake.publish._commit = committed
settings = Settings(home=Path(home), catalogs=(Path(folder),), duckdb_memory_gb=1.0)
print(serving.score.score(Lake(settings, load_catalog(settings)), MODEL, scored_nights(), run_id="killed").committed)
"""


@dataclass(frozen=True)
class Retrieved:
    """What `retrieve` gave, in a form that another process can read."""

    rows: pa.Table
    inputs: dict[date, list[Input]]
    too_late: int

    def reader(self) -> pa.RecordBatchReader:
        return self.rows.to_reader()


def in_a_process(lake: Lake, point: str) -> subprocess.Popen[str]:
    s = lake.settings
    with lake.scratch("test") as folder:
        found = retrieve(lake, MODEL, scored_nights(), folder=folder)
        (s.home / "retrieved.pickle").write_bytes(
            pickle.dumps(Retrieved(found.reader().read_all(), found.inputs, found.too_late))
        )
    arguments = [sys.executable, "-c", KILLED, str(s.home), str(s.catalogs[0]), point]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def undisturbed(lake: Lake, tmp_path: Path) -> dict[date, str | None]:
    """Digests of a twin that nothing happens to."""
    twin = Lake(lake.settings.model_copy(update={"home": tmp_path / "undisturbed"}), lake.catalog)
    shutil.copytree(lake.settings.home, twin.settings.home)
    score(twin, MODEL, scored_nights(), run_id="undisturbed")
    return digests_of(twin)


@pytest.mark.parametrize("point", ["while rows are staged", "before the commit", "in the commit", "after the commit"])
def test_killed_and_retried_equals_undisturbed(lake: Lake, undisturbed: dict[date, str | None], point: str) -> None:
    process = in_a_process(lake, point)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    committed = point == "after the commit"
    assert set(digests_of(lake).values()) == (set(undisturbed.values()) if committed else {None})
    retried = score(lake, MODEL, scored_nights(), run_id="retry")
    assert retried.committed == (0 if committed else 4)
    assert digests_of(lake) == undisturbed
    assert rows_of(lake).num_rows == 120


def test_two_runs_at_once_end_in_equal_digests(lake: Lake, undisturbed: dict[date, str | None]) -> None:
    processes = [in_a_process(lake, "nowhere") for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outcomes, strict=True):
        assert process.returncode == 0 or "StalePublish" in errors, errors
    assert sorted(out.strip() for out, _ in outcomes if out)[-1] == "4"
    assert digests_of(lake) == undisturbed
    assert rows_of(lake).num_rows == 120


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of that size; skips where none may be mounted, unless services are required."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if mounted.returncode:
            missing_service(f"a tmpfs cannot be mounted here ({mounted.stderr.strip()})")
        yield folder
    finally:
        # Lazily: Feast keeps its registry open as long as the process lives.
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def outcome(lake: Lake) -> str | None:
    """The error's text, None where scoring succeeded."""
    try:
        score(lake, MODEL, scored_nights(), run_id="full")
    except Exception as error:  # noqa: BLE001 (which library meets the full disk first depends on how full it is)
        return str(error)
    return None


def test_a_full_disk_leaves_nothing_half_written(lake: Lake, undisturbed: dict[date, str | None]) -> None:
    with small_disk(16) as disk:
        full = Lake(lake.settings.model_copy(update={"home": disk / "var"}), lake.catalog)
        shutil.copytree(lake.settings.home, full.settings.home, ignore=shutil.ignore_patterns("nightfleet.db*"))
        filler = disk / "filler"
        failures = 0
        for free_kb in range(0, 400, 8):
            filler.unlink(missing_ok=True)
            assert set(digests_of(full).values()) == {None}
            filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - free_kb * 1024))
            met = outcome(full)
            if met is None:
                break
            failures += 1
            # SQLite says an I/O error where the index of its journal cannot grow.
            assert "No space left" in met or "is full" in met or "disk I/O error" in met, met
            filler.unlink()
            assert not list(full.settings.scratch.iterdir())
            if digests_of(full) == undisturbed:
                break  # the commit was through, and the disk was full for the index behind it: nothing is half-written
            assert not rows_of(full).num_rows
        assert failures > 1, "the disk was never full"
        filler.unlink(missing_ok=True)
        assert score(full, MODEL, scored_nights(), run_id="retry").rows == 120
        assert digests_of(full) == undisturbed
        full.engine.dispose()


# ---- several assignments a night -------------------------------------------------------------------------------


def with_challenger(share: float = 0.0) -> scoring.Planned:
    """The champion, and the ledger's second version beside it from LATER on."""

    def plan(ledger: LedgerSnapshot, rollouts: RolloutSnapshot, night: date) -> Plan:
        first, second = ledger.promotions
        if night < LATER:
            return plan_of(ledger, rollouts, night)
        champion = Assignment("champion", 1, first.artifact_digest, 1.0 - share, first.sequence)
        return champion, Assignment("challenger", 2, second.artifact_digest, share, second.sequence)

    return plan


@pytest.fixture
def two(lake: Lake) -> Lake:
    promote(lake, 2, NIGHTS.last + 30 * ONE_DAY, trained_until=date(2024, 1, 20))
    return lake


def test_two_assignments_give_two_rows_an_entity_of_which_one_is_served(two: Lake) -> None:
    result = score(two, MODEL, scored_nights(), run_id="r", planned=with_challenger())
    assert result.rows == 2 * 30 + 2 * 60
    assert result.details["versions"] == {
        "2024-01-21..2024-01-22": {"champion": 1},
        "2024-01-23..2024-01-24": {"challenger": 2, "champion": 1},
    }
    rows = rows_of(two).to_pylist()
    served: Counter[tuple[date, int]] = Counter()
    for row in rows:
        assert row["version"] == {"champion": 1, "challenger": 2}[row["role"]]
        assert row["served"] is (row["role"] == "champion")
        served[row["data_date"], row["ride"]] += row["served"]
    assert set(served.values()) == {1}
    assert len({row["prediction_id"] for row in rows}) == len(rows)
    published = two.publications.current(predictions_table(two.settings, two.model(MODEL)), scored_nights())
    assert {night: [a.role for a in scored_by(night, p.details)] for night, p in published.items()} == {
        night: ["challenger", "champion"] if night >= LATER else ["champion"] for night in scored_nights()
    }


def test_the_challenger_changes_no_row_of_the_champion(two: Lake, tmp_path: Path) -> None:
    alone = Lake(two.settings.model_copy(update={"home": tmp_path / "alone"}), two.catalog)
    shutil.copytree(two.settings.home, alone.settings.home)
    score(alone, MODEL, scored_nights(), run_id="r")
    score(two, MODEL, scored_nights(), run_id="r", planned=with_challenger())
    beside = rows_of(two)
    assert beside.filter(pc.equal(beside["role"], "champion")).equals(rows_of(alone))


def test_two_assignments_in_small_batches_and_nightly_give_the_same_rows(
    two: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nightly = Lake(two.settings.model_copy(update={"home": tmp_path / "twin"}), two.catalog)
    shutil.copytree(two.settings.home, nightly.settings.home)
    score(two, MODEL, scored_nights(), run_id="bulk", planned=with_challenger())
    monkeypatch.setattr(scoring, "BATCH_ROWS", 7)
    for night in scored_nights():
        score(nightly, MODEL, Interval.of(night), run_id="nightly", planned=with_challenger())
    assert digests_of(nightly) == digests_of(two)
    assert score(two, MODEL, scored_nights(), run_id="again", planned=with_challenger()).committed == 0


def test_a_scored_night_gets_no_challenger_afterwards(two: Lake) -> None:
    score(two, MODEL, scored_nights(), run_id="r")
    before = digests_of(two)
    with pytest.raises(OtherChampion, match="but the ledger now gives challenger version 2 .* and version 1 "):
        score(two, MODEL, scored_nights(), run_id="r", planned=with_challenger())
    assert digests_of(two) == before


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_a_plan_that_does_not_serve_each_entity_once_is_refused(two: Lake, share: float) -> None:
    with pytest.raises(
        BadPlan, match=f"gives champion version 1 with {1 - share:g}, challenger version 2 with {share:g}"
    ):
        score(two, MODEL, scored_nights(), run_id="r", planned=with_challenger(share))
    assert set(digests_of(two).values()) == {None}


def test_rows_that_serve_an_entity_twice_are_not_published(two: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(plan: Plan, rows: pa.Table) -> dict[str, pa.Array]:
        return {a.role: pa.repeat(True, rows.num_rows) for a in plan}

    monkeypatch.setattr(scoring, "served_rows", all_of_them)
    with pytest.raises(
        NotServedOnce, match="30 of 30 entities are not served exactly once, the first 2 times on 2024-01-23"
    ):
        score(two, MODEL, scored_nights(), run_id="r", planned=with_challenger())
    assert set(digests_of(two).values()) == {None}
