"""The leakage audit: honest features pass it, and every way the future can get into a training set is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from config.calendar import ONE_DAY, Interval
from features.transform import transform
from lake.lake import Lake
from lake.tables import feature_table, valid_table
from tests import toy
from training.registry.leakage import Audit, NothingToAudit, audit

MODEL = "ride_minutes"
HISTORY = Interval.closed(toy.FIRST, date(2024, 2, 4))
ROWS = Interval.closed(date(2024, 1, 17), date(2024, 2, 1))
AS_OF = HISTORY.last

# Two nights ahead: what the vehicle will have done by tomorrow evening.
FUTURE_SQL = toy.VIEW_SQL.replace("o.data_date <= n.data_date", "o.data_date <= n.data_date + 1").replace(
    "o.end_utc <= n.cutoff_utc", "o.end_utc <= n.cutoff_utc + INTERVAL 24 HOUR"
)
# Every row counts whatever replaced it, and newer revisions before they arrived.
NEWEST_SQL = """
SELECT n.data_date, o.vehicle, count(*) AS rides_7d,
    CAST(sum(CAST(o.minutes AS DECIMAL(18, 6))) AS DOUBLE) / nullif(count(o.minutes), 0) AS minutes_7d
FROM nights AS n
INNER JOIN (SELECT * FROM outcomes QUALIFY row_number() OVER (PARTITION BY event_date, ride
  ORDER BY revision DESC) = 1) AS o
    ON o.end_utc > n.cutoff_utc - INTERVAL 168 HOUR AND o.end_utc <= n.cutoff_utc
GROUP BY n.data_date, o.vehicle
"""


@dataclass(frozen=True)
class Trained:
    """A lake, and training rows built from it as retrieval would."""

    lake: Lake
    path: Path

    def audit(self, *, nights: int = 3, seed: int = 7) -> Audit:
        return audit(
            self.lake, MODEL, as_of=AS_OF, files=[self.path], pins={"vehicle_daily": self.pin}, nights=nights, seed=seed
        )

    @property
    def pin(self) -> int:
        table = feature_table(self.lake.settings, self.lake.dataset("rides"), "vehicle_daily").load()
        assert table is not None
        return table.version()


def history(
    folder: Path, *, sql: str = toy.VIEW_SQL, nightly: bool = False, correct: bool = False, early: date | None = None
) -> Lake:
    """A lake with features of every night; `early`: a night whose partition holds a ride that was known two days
    later.
    """
    lake = toy.toy_lake(folder, sql={"rides/vehicle_daily.sql": sql})
    toy.publish_valid(lake, HISTORY)
    if correct:
        publish_correction(lake)
    if early is not None:
        table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
        rows = table.read([early])
        first = pa.array([True] + [False] * (rows.num_rows - 1))
        known = pc.if_else(first, pc.add(rows["known_at_utc"], timedelta(days=2)), rows["known_at_utc"])
        toy.publish_rows(
            lake,
            table,
            rows.set_column(rows.column_names.index("known_at_utc"), "known_at_utc", known),
            Interval.of(early),
        )
    for interval in [Interval.of(day) for day in HISTORY] if nightly else [HISTORY]:
        transform(lake, "rides", interval, run_id="test")
    return lake


def publish_correction(lake: Lake) -> None:
    """Night 28 January brings other minutes for the rides of the 24th."""
    table = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    night = date(2024, 1, 28)
    rows = table.read([night])
    old = table.read().filter(pc.equal(table.read()["event_date"], pa.scalar(date(2024, 1, 24))))
    changed = old.set_column(old.column_names.index("minutes"), "minutes", pc.add(old["minutes"], 50.0))
    changed = changed.set_column(
        changed.column_names.index("revision"), table.schema.field("revision"), pa.array([1] * old.num_rows, pa.int32())
    )
    changed = changed.set_column(
        changed.column_names.index("data_date"),
        table.schema.field("data_date"),
        pa.array([night] * old.num_rows, pa.date32()),
    )
    arrived = pa.array([rows["known_at_utc"][0].as_py()] * old.num_rows, table.schema.field("known_at_utc").type)
    changed = changed.set_column(
        changed.column_names.index("known_at_utc"), table.schema.field("known_at_utc"), arrived
    )
    toy.publish_rows(lake, table, pa.concat_tables([rows, changed.cast(table.schema)]), Interval.of(night))


def training_rows(lake: Lake, folder: Path, edit: Callable[[pa.Table], pa.Table] = lambda rows: rows) -> Trained:
    """Bookings of each night with their label and the vehicle's features, as a Parquet file."""
    dataset = lake.dataset("rides")
    with lake.duckdb() as connection:
        for name in ("bookings", "outcomes"):
            valid_table(lake.settings, dataset, name).register(connection, name)
        feature_table(lake.settings, dataset, "vehicle_daily").register(connection, "vehicle_daily")
        rows = connection.sql(
            """
            SELECT b.event_date, b.ride, b.vehicle, b.depot, b.data_date, b.start_utc AS target_time_utc,
              o.minutes AS label,
                f.rides_7d AS vehicle_daily__rides_7d, f.minutes_7d AS vehicle_daily__minutes_7d
            FROM bookings b
            JOIN (SELECT * FROM outcomes QUALIFY row_number() OVER (PARTITION BY event_date, ride
              ORDER BY revision DESC) = 1) o USING (event_date, ride)
            LEFT JOIN vehicle_daily f ON f.vehicle = b.vehicle AND f.data_date = b.data_date
            WHERE b.data_date >= ? AND b.data_date < ? AND o.minutes IS NOT NULL ORDER BY b.data_date, b.event_date,
              b.ride
            """,
            params=[ROWS.start, ROWS.end],
        ).to_arrow_table()
    path = folder / "rows.parquet"
    pq.write_table(edit(rows), path)
    return Trained(lake, path)


@pytest.mark.parametrize(("nightly", "correct"), [(False, False), (False, True), (True, True)])
def test_honest_features_pass(tmp_path: Path, nightly: bool, correct: bool) -> None:
    trained = training_rows(history(tmp_path, nightly=nightly, correct=correct), tmp_path)
    found = trained.audit()
    assert found.differing == 0
    assert found.findings == ()
    assert found.rows == pq.read_metadata(trained.path).num_rows
    assert found.cells > 3 * 6 * 2
    assert ROWS.last in found.nights
    # The night before a correction arrived is where seeing it too early shows: it is always among them.
    assert (date(2024, 1, 27) in found.nights) or not correct
    assert len(found.nights) <= (4 if correct else 3)


def test_the_same_seed_looks_at_the_same_nights(tmp_path: Path) -> None:
    trained = training_rows(history(tmp_path), tmp_path)
    first = trained.audit(seed=1, nights=4).nights
    assert trained.audit(seed=1, nights=4).nights == first
    assert trained.audit(seed=2, nights=4).nights != first


def test_a_view_that_reads_tomorrow_is_found(tmp_path: Path) -> None:
    found = training_rows(history(tmp_path, sql=FUTURE_SQL), tmp_path).audit(nights=2)
    assert found.differing > 10
    kinds = {(finding.kind, finding.source, finding.column) for finding in found.findings}
    assert ("feature", "vehicle_daily", "rides_7d") in kinds
    assert ("retrieved", "vehicle_daily", "minutes_7d") in kinds
    first = next(f for f in found.findings if f.kind == "feature" and f.column == "rides_7d")
    assert str(first).startswith(f"vehicle_daily.rides_7d, night {first.night}, vehicle v")
    assert f"the feature partition has {first.recorded}, what was known gives {first.known}." in str(first)
    assert "feature cells" in found.summary


def test_a_view_that_sees_corrections_before_they_arrive_is_found(tmp_path: Path) -> None:
    """The corrected rides lie in one night's window; the sample goes where it shows."""
    found = training_rows(history(tmp_path, sql=NEWEST_SQL, correct=True), tmp_path).audit(nights=1)
    assert {finding.column for finding in found.findings} == {"minutes_7d"}
    assert {finding.night for finding in found.findings} == {date(2024, 1, 27)}


def test_a_partition_that_holds_more_than_its_night_knew_is_found(tmp_path: Path) -> None:
    """No view looks at `known_at`: it trusts the partition. The audit does not."""
    found = training_rows(history(tmp_path, early=ROWS.last), tmp_path).audit(nights=1)
    assert {(f.kind, f.column, f.night) for f in found.findings if f.kind == "feature"} >= {
        ("feature", "rides_7d", ROWS.last)
    }
    assert {f.entity["vehicle"] for f in found.findings if f.kind == "feature"} < {f"v{n}" for n in range(6)}


def test_the_same_view_run_night_by_night_cannot_leak(tmp_path: Path) -> None:
    """Computed in the night itself there is no later partition to read: the audit finds leaks, not bad style."""
    assert training_rows(history(tmp_path, sql=NEWEST_SQL, nightly=True), tmp_path).audit().differing == 0


def test_a_feature_cell_that_was_changed_after_it_was_retrieved_is_found(tmp_path: Path) -> None:
    def edit(rows: pa.Table) -> pa.Table:
        last = rows.num_rows - 1
        values = rows["vehicle_daily__minutes_7d"].to_pylist()
        values[last] += 1
        return rows.set_column(
            rows.column_names.index("vehicle_daily__minutes_7d"), "vehicle_daily__minutes_7d", pa.array(values)
        )

    found = training_rows(history(tmp_path), tmp_path, edit).audit()
    assert found.differing == 1
    [finding] = found.findings
    assert (finding.kind, finding.column, finding.night) == ("retrieved", "minutes_7d", ROWS.last)
    assert set(finding.entity) == {"event_date", "ride"}
    assert "the training set has" in str(finding)


def test_values_of_an_earlier_partition_within_the_ttl_are_no_finding(tmp_path: Path) -> None:
    """A vehicle without a row in the night's own partition serves with an older one: retrieval's rule, not a leak."""
    lake = history(tmp_path)
    table = feature_table(lake.settings, lake.dataset("rides"), "vehicle_daily")
    gone = ROWS.last

    def without_v0(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.not_equal(rows["vehicle"], "v0"))

    valid = valid_table(lake.settings, lake.dataset("rides"), "outcomes")
    for day in Interval.closed(gone - timedelta(days=14), gone):
        toy.publish_rows(lake, valid, without_v0(valid.read([day])), Interval.of(day))
    transform(lake, "rides", Interval.of(gone), run_id="again")
    assert "v0" not in table.read([gone])["vehicle"].to_pylist()
    earlier = {row["vehicle"]: row for row in table.read([gone - ONE_DAY]).to_pylist()}["v0"]

    def serve_older(rows: pa.Table) -> pa.Table:
        served = pc.and_(pc.equal(rows["vehicle"], "v0"), pc.equal(rows["data_date"], pa.scalar(gone)))
        for name in ("rides_7d", "minutes_7d"):
            column = f"vehicle_daily__{name}"
            rows = rows.set_column(
                rows.column_names.index(column), column, pc.if_else(served, earlier[name], rows[column])
            )
        # Their labels went with the outcomes; only that night's rows of other vehicles keep theirs.
        keep = pc.or_(served, pc.is_valid(rows["label"]))
        return rows.filter(keep)

    found = training_rows(lake, tmp_path, serve_older).audit(nights=1)
    assert [f for f in found.findings if f.kind in {"feature", "retrieved"}] == []


def test_a_label_that_was_not_known_yet_is_found(tmp_path: Path) -> None:
    lake = history(tmp_path)

    def edit(rows: pa.Table) -> pa.Table:
        values = rows["label"].to_pylist()
        values[5] += 10
        return rows.set_column(rows.column_names.index("label"), "label", pa.array(values))

    found = training_rows(lake, tmp_path, edit).audit(nights=1)
    [finding] = found.findings
    assert found.differing == 1
    assert (finding.kind, finding.source, finding.column) == ("label", "outcomes", "minutes")
    assert finding.recorded == pytest.approx(finding.known + 10)


def test_a_label_of_a_partition_that_holds_more_than_its_night_knew_is_found(tmp_path: Path) -> None:
    """The partition lies before the as-of night, but one of its rows says it was known later."""
    trained = training_rows(history(tmp_path), tmp_path)
    table = valid_table(trained.lake.settings, trained.lake.dataset("rides"), "outcomes")
    used = pq.read_table(trained.path, columns=["event_date", "ride", "data_date"]).slice(0, 1).to_pylist()[0]
    night = used["event_date"]
    rows = table.read([night])
    this = pc.and_(pc.equal(rows["event_date"], pa.scalar(used["event_date"])), pc.equal(rows["ride"], used["ride"]))
    assert pc.sum(this).as_py() == 1
    known = pc.if_else(this, pc.add(rows["known_at_utc"], timedelta(days=60)), rows["known_at_utc"])
    toy.publish_rows(
        trained.lake,
        table,
        rows.set_column(rows.column_names.index("known_at_utc"), "known_at_utc", known),
        Interval.of(night),
    )
    [finding] = [f for f in trained.audit(nights=1).findings if f.kind == "label"]
    assert (finding.night, finding.known) == (used["data_date"], None)


def test_a_correction_after_the_as_of_night_is_not_asked_for(tmp_path: Path) -> None:
    """Judged later, on a lake that has learnt more since, the labels known then are still right."""
    trained = training_rows(history(tmp_path), tmp_path)
    later = AS_OF + ONE_DAY
    table = valid_table(trained.lake.settings, trained.lake.dataset("rides"), "outcomes")
    rows = table.read([ROWS.last + ONE_DAY])
    rows = rows.set_column(rows.column_names.index("minutes"), "minutes", pc.add(rows["minutes"], 9.0))
    for name, value in {"revision": 1, "data_date": later}.items():
        field = table.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array([value] * rows.num_rows, field.type))
    toy.publish_rows(trained.lake, table, rows, Interval.of(later))
    assert trained.audit(nights=1).differing == 0


def test_a_row_its_night_could_not_know_is_found(tmp_path: Path) -> None:
    """A booking that arrived on the day itself, after the cutoff of the night it is attributed to."""
    lake = history(tmp_path)
    trained = training_rows(lake, tmp_path)
    table = valid_table(lake.settings, lake.dataset("rides"), "bookings")
    rows = table.read([ROWS.last])
    late = pa.array([True] + [False] * (rows.num_rows - 1))
    known = pc.if_else(late, pc.add(rows["known_at_utc"], timedelta(hours=5)), rows["known_at_utc"])
    toy.publish_rows(
        lake,
        table,
        rows.set_column(rows.column_names.index("known_at_utc"), "known_at_utc", known),
        Interval.of(ROWS.last),
    )
    found = [f for f in trained.audit(nights=1).findings if f.kind == "spine"]
    assert [(f.source, f.night, f.known) for f in found] == [("bookings", ROWS.last, "no such row")]


def test_immature_nights_are_found(tmp_path: Path) -> None:
    trained = training_rows(history(tmp_path), tmp_path)
    found = audit(
        trained.lake,
        MODEL,
        as_of=ROWS.last + ONE_DAY,
        files=[trained.path],
        pins={"vehicle_daily": trained.pin},
        nights=1,
    )
    assert "immature" in {finding.kind for finding in found.findings}


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    trained = training_rows(history(tmp_path), tmp_path, lambda rows: rows.slice(0, 0))
    with pytest.raises(NothingToAudit, match="hold no row: there is nothing to compare"):
        trained.audit()


def test_a_pin_before_the_nights_were_published_is_an_error(tmp_path: Path) -> None:
    trained = training_rows(history(tmp_path), tmp_path)
    with pytest.raises(
        NothingToAudit,
        match=(
            r"rides/features/vehicle_daily had no partition .* at version 0, though the training set was built from it"
        ),
    ):
        audit(trained.lake, MODEL, as_of=AS_OF, files=[trained.path], pins={"vehicle_daily": 0})


def test_the_cut_lake_leaves_nothing_behind(tmp_path: Path) -> None:
    trained = training_rows(history(tmp_path), tmp_path)
    trained.audit(nights=1)
    assert list(trained.lake.settings.scratch.iterdir()) == []


def test_a_finding_is_json(tmp_path: Path) -> None:
    import json

    document = training_rows(history(tmp_path, sql=FUTURE_SQL), tmp_path).audit(nights=1).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["differing"] >= len(document["findings"]) > 0
