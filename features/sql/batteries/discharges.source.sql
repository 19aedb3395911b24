-- One row a discharge; dates as in curves.source.sql.
SELECT
    CASE cell
        WHEN 'B0018' THEN DATE '2008-09-18' + (cycle - 1)
        WHEN 'B0005' THEN DATE '2009-01-29' + (cycle - 1)
        ELSE DATE '2008-04-02' + (cycle - 1)
    END AS test_date,
    cell,
    cycle,
    CAST(count(*) AS INTEGER) AS readings,
    timezone('UTC', CAST(test_date AS TIMESTAMP) + INTERVAL 12 HOUR) AS started_utc,
    timezone('UTC', CAST(test_date AS TIMESTAMP) + INTERVAL 12 HOUR) + to_microseconds(CAST(max(seconds) * 1e6 AS BIGINT)) AS ended_utc,
    timezone('UTC', CAST(test_date AS TIMESTAMP) + INTERVAL 36 HOUR) AS report_due_utc
FROM source
GROUP BY cell, cycle
