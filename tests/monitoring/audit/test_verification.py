"""What SQL shows is compared with the lake, row by row, in SQLite and in Postgres."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from config.calendar import ONE_DAY, Interval
from lake.lake import Lake
from lake.verify import altered_dates
from monitoring.audit.verification import verify
from monitoring.retraining_requests import request_retraining
from serving.predictions import predictions_table
from serving.projection import project_predictions, sql_name
from serving.score import rescore, score
from tests.serving.scenario import MODEL, promote, publish_inputs, restate_features, scored_nights, use_linear


def test_sound_rows_are_no_damage_and_one_changed_number_is(sql_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    use_linear(monkeypatch)
    publish_inputs(sql_lake)
    promote(sql_lake, 1)
    nights = scored_nights()
    score(sql_lake, MODEL, nights, run_id="r")
    project_predictions(sql_lake, MODEL, nights, run_id="r")
    restate_features(sql_lake, nights.start)
    rescore(sql_lake, MODEL, Interval.of(nights.start), run_id="r")  # its former rows stay in SQL
    project_predictions(sql_lake, MODEL, nights, run_id="r")
    request_retraining(sql_lake, MODEL, nights.start, by="ada", reason="ümlauts, and 'quotes'", run_id="r")
    assert [damage for damage in verify(sql_lake) if damage.part == "SQL"] == []

    day = nights.start + ONE_DAY
    changed = sa.text(f"UPDATE {sql_name(MODEL)} SET ride_minutes = ride_minutes + 1 WHERE data_date = '{day}'")
    with sql_lake.engine.begin() as connection:
        assert connection.execute(changed).rowcount > 0
    entry = sql_lake.model(MODEL)
    table = predictions_table(sql_lake.settings, entry, sql_lake.dataset(entry.dataset))
    assert altered_dates(sql_lake, table, sql_name(MODEL), keep_replaced=True) == [day]
