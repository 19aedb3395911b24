-- Every cell is discharged once a day. NASA's cycles lie hours to days apart; the dates here are a replay's.
--
-- The cells come one after the other, so that windows by time hold whole cells apart: B0006 and B0007 together from
-- 2008-04-02, the day NASA's own test began, B0018 from 2008-09-18, and B0005, of which figures are published, from 2009-01-29.
SELECT
    CASE cell
        WHEN 'B0018' THEN DATE '2008-09-18' + (cycle - 1)
        WHEN 'B0005' THEN DATE '2009-01-29' + (cycle - 1)
        ELSE DATE '2008-04-02' + (cycle - 1)
    END AS test_date,
    cell,
    CAST(row_number() OVER (PARTITION BY cell, cycle ORDER BY seconds) AS INTEGER) AS reading,
    timezone('UTC', CAST(test_date AS TIMESTAMP) + INTERVAL 12 HOUR) + to_microseconds(CAST(seconds * 1e6 AS BIGINT)) AS measured_utc,
    seconds,
    voltage,
    current AS current_amperes,
    temperature AS temperature_celsius
FROM source
