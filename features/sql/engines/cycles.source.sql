-- Every engine flies one cycle a day. NASA's files count cycles and know no dates; the dates here are a replay's.
--
-- The 100 engines of the training file come in three waves, one after the other, so that windows by time hold whole
-- engines apart. An engine's wave follows from its number alone, never from how long it lived: numbers ending in 0 fly
-- from 2006-01-02, those ending in 5 from 2007-01-03, the other 80 from 2005-01-01. No engine lives for 365 cycles.
-- The 100 engines of the test file all fly the last cycle that was recorded of them on 2008-05-10: that night's
-- predictions are the 100 that published figures are about.
SELECT
    CASE
        WHEN fleet = 'test' THEN DATE '2008-05-10' - (max(cycle) OVER (PARTITION BY fleet, engine) - cycle)
        WHEN engine % 10 = 0 THEN DATE '2006-01-02' + (cycle - 1)
        WHEN engine % 10 = 5 THEN DATE '2007-01-03' + (cycle - 1)
        ELSE DATE '2005-01-01' + (cycle - 1)
    END AS flight_date,
    fleet || '-' || lpad(CAST(engine AS VARCHAR), 3, '0') AS unit,
    cycle,
    timezone('UTC', CAST(flight_date AS TIMESTAMP) + INTERVAL 22 HOUR) AS landed_utc,
    timezone('UTC', CAST(flight_date AS TIMESTAMP) + INTERVAL 30 HOUR) AS next_flight_utc,
    * EXCLUDE (fleet, engine, cycle)
FROM source
