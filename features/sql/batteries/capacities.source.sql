-- The capacity of each discharge, from NASA's metadata, whose tests of a cell stand in the order they were made; dates as in curves.source.sql.
WITH counted AS (
    SELECT
        battery_id AS cell,
        row_number() OVER (PARTITION BY battery_id ORDER BY test_id) AS cycle,
        CAST(Capacity AS DOUBLE) AS capacity_ah
    FROM source
    WHERE type = 'discharge' AND battery_id IN ('B0005', 'B0006', 'B0007', 'B0018')
)

SELECT
    CASE cell
        WHEN 'B0018' THEN DATE '2008-09-18' + CAST(cycle - 1 AS INTEGER)
        WHEN 'B0005' THEN DATE '2009-01-29' + CAST(cycle - 1 AS INTEGER)
        ELSE DATE '2008-04-02' + CAST(cycle - 1 AS INTEGER)
    END AS test_date,
    cell,
    capacity_ah,
    capacity_ah / 2.0 AS state_of_health,
    timezone('UTC', CAST(test_date AS TIMESTAMP) + INTERVAL 36 HOUR) AS known_utc
FROM counted
