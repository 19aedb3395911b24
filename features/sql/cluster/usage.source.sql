-- One row an hour of an instance: the samples of five minutes that it has. Summed as decimals, which no order of rows
-- changes. `timestamp` is taken for UTC: NAB says no zone, and CloudWatch's are.
SELECT
    instance,
    hour_utc,
    CAST(sum(CAST(value AS DECIMAL(18, 6))) AS DOUBLE) / count(*) AS cpu_percent,
    max(value) AS cpu_max_percent,
    CAST(count(*) AS INTEGER) AS samples
FROM (
    SELECT
        instance,
        value,
        date_trunc('hour', timezone('UTC', strptime("timestamp", '%Y-%m-%d %H:%M:%S'))) AS hour_utc
    FROM source
) AS dated
GROUP BY instance, hour_utc
