-- One row a half hour. `timestamp` is the local clock of New York. In autumn 01:00 and 01:30 come twice, the source has
-- them once and counts both passes together: the row is taken for the first of them, the half hour of daylight saving
-- time, without a count of its own; the second has no row.
WITH dated AS (
    -- A repeated half hour is read as its second occurrence; the hour before then shows the same clock.
    SELECT
        local_time,
        value,
        timezone('America/New_York', local_time) AS later_utc,
        timezone('America/New_York', timezone('America/New_York', local_time) - INTERVAL 1 HOUR) = local_time
            AS is_repeated
    FROM (SELECT strptime("timestamp", '%Y-%m-%d %H:%M:%S') AS local_time, value FROM source) AS labelled
)

SELECT
    CASE WHEN is_repeated THEN later_utc - INTERVAL 1 HOUR ELSE later_utc END AS half_hour_utc,
    CAST(local_time AS DATE) AS event_date,
    CAST(hour(local_time) * 60 + minute(local_time) AS INTEGER) AS local_minute,
    CASE WHEN NOT is_repeated THEN value END AS passengers,
    value AS passengers_reported
FROM dated
