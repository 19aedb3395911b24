-- NAB's own times, which have no zone: taken to be UTC. What was measured on a day is judged by the next morning.
SELECT
    series,
    step,
    timezone('UTC', measured) AS measured_utc,
    timezone('UTC', date_trunc('day', measured) + INTERVAL 30 HOUR) AS due_utc,
    value
FROM (SELECT * EXCLUDE (measured), CAST(measured AS TIMESTAMP) AS measured FROM source)
