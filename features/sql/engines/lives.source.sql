-- What became of each engine after each of its cycles: cycles left until it failed, 125 where it flew that many or more.
-- That is known on the day it fails, or when it has flown 125 more cycles, whichever comes first. Dates as in cycles.source.sql.
-- An engine of the test file was taken out of the record before it failed; `test_lives` says how many cycles it had left.
WITH dated AS (
    SELECT
        fleet,
        engine,
        cycle,
        CASE
            WHEN fleet = 'test' THEN DATE '2008-05-10' - (max(cycle) OVER (PARTITION BY fleet, engine) - cycle)
            WHEN engine % 10 = 0 THEN DATE '2006-01-02' + (cycle - 1)
            WHEN engine % 10 = 5 THEN DATE '2007-01-03' + (cycle - 1)
            ELSE DATE '2005-01-01' + (cycle - 1)
        END AS flight_date,
        max(cycle) OVER (PARTITION BY fleet, engine) - cycle AS cycles_on_record
    FROM source
),

lived AS (
    SELECT
        d.flight_date,
        d.fleet || '-' || lpad(CAST(d.engine AS VARCHAR), 3, '0') AS unit,
        d.cycles_on_record + CASE WHEN d.fleet = 'test' THEN t.cycles_left ELSE 0 END AS cycles_left
    FROM dated AS d
    LEFT JOIN test_lives AS t ON t.engine = d.engine
)

SELECT
    flight_date,
    unit,
    CAST(least(cycles_left, 125) AS INTEGER) AS cycles_left_capped,
    cycles_left <= 125 AS failed,
    timezone('UTC', CAST(flight_date + CAST(least(cycles_left, 125) AS INTEGER) AS TIMESTAMP) + INTERVAL 23 HOUR) AS known_utc
FROM lived
