-- For each hour of tomorrow what was counted at the same hour of earlier days, and what road and sky showed today.
-- Lags are hours of elapsed time: on the day of 25 hours the one 24 hours before the last hour lies on that day itself, and is null.
WITH tomorrow AS (
    -- 23, 24 or 25 hours: those that Chicago's calendar counts to tomorrow.
    SELECT data_date, hour_utc
    FROM (
        SELECT n.data_date, n.cutoff_utc + steps.hours * INTERVAL 1 HOUR AS hour_utc
        FROM nights AS n
        CROSS JOIN range(25) AS steps (hours)
    ) AS candidates
    WHERE CAST(hour_utc AT TIME ZONE 'America/Chicago' AS DATE) = data_date + 1
),

asked AS (
    -- The same hour of each of the 28 days before.
    SELECT t.data_date, t.hour_utc, lags.days, t.hour_utc - lags.days * INTERVAL 24 HOUR AS lag_hour_utc
    FROM tomorrow AS t
    CROSS JOIN range(1, 29) AS lags (days)
),

lagged AS (
    SELECT
        a.data_date,
        a.hour_utc,
        max(CASE WHEN a.days = 1 THEN v.traffic_volume END) AS volume_24h_ago,
        max(CASE WHEN a.days = 2 THEN v.traffic_volume END) AS volume_48h_ago,
        max(CASE WHEN a.days = 7 THEN v.traffic_volume END) AS volume_168h_ago,
        max(CASE WHEN a.days = 14 THEN v.traffic_volume END) AS volume_336h_ago,
        sum(CASE WHEN a.days <= 7 THEN CAST(v.traffic_volume AS BIGINT) END) AS volume_7d,
        count(CASE WHEN a.days <= 7 THEN v.traffic_volume END) AS hours_7d,
        sum(CASE WHEN a.days % 7 = 0 THEN CAST(v.traffic_volume AS BIGINT) END) AS volume_4w,
        count(CASE WHEN a.days % 7 = 0 THEN v.traffic_volume END) AS hours_4w
    FROM asked AS a
    JOIN volume AS v ON v.hour_utc = a.lag_hour_utc AND v.data_date <= a.data_date AND v.superseded_on > a.data_date
    GROUP BY a.data_date, a.hour_utc
),

today AS (
    SELECT
        n.data_date,
        n.cutoff_utc,
        v.hour_utc,
        v.traffic_volume,
        v.temp_kelvin,
        v.clouds_percent,
        v.rain_mm,
        v.snow_mm,
        row_number() OVER (PARTITION BY n.data_date ORDER BY v.hour_utc DESC) AS newest
    FROM nights AS n
    JOIN volume AS v ON v.event_date = n.data_date AND v.data_date <= n.data_date AND v.superseded_on > n.data_date
),

tonight AS (
    SELECT
        data_date,
        max(CASE WHEN newest = 1 THEN traffic_volume END) AS last_volume,
        max(CASE WHEN newest = 1 THEN epoch(cutoff_utc) - epoch(hour_utc) END) / 3600 AS last_hours_ago,
        sum(CAST(traffic_volume AS BIGINT)) AS volume,
        count(*) AS hours,
        max(CASE WHEN newest = 1 THEN temp_kelvin END) AS temp_kelvin,
        max(CASE WHEN newest = 1 THEN clouds_percent END) AS clouds_percent,
        sum(CAST(rain_mm AS DECIMAL(18, 6))) AS rain_1d_mm,
        sum(CAST(snow_mm AS DECIMAL(18, 6))) AS snow_1d_mm
    FROM today
    GROUP BY data_date
)

SELECT
    t.data_date,
    t.hour_utc,
    l.volume_24h_ago,
    l.volume_48h_ago,
    l.volume_168h_ago,
    l.volume_336h_ago,
    l.volume_7d / nullif(l.hours_7d, 0) AS volume_mean_7d,
    l.volume_4w / nullif(l.hours_4w, 0) AS volume_mean_4w,
    e.last_volume,
    e.last_hours_ago,
    e.volume / nullif(e.hours, 0) AS volume_mean_1d,
    e.hours AS hours_counted_1d,
    e.temp_kelvin,
    e.clouds_percent,
    e.rain_1d_mm,
    e.snow_1d_mm
FROM tomorrow AS t
LEFT JOIN lagged AS l ON l.data_date = t.data_date AND l.hour_utc = t.hour_utc
LEFT JOIN tonight AS e ON e.data_date = t.data_date
