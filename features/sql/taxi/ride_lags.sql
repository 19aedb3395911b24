-- For each half hour of tomorrow the passengers at the same time on the clock of earlier days, and how today went.
WITH tomorrow AS (
    -- 46, 48 or 50 half hours: those that New York's calendar counts to tomorrow.
    SELECT
        data_date,
        half_hour_utc,
        CAST(hour(local_time) * 60 + minute(local_time) AS INTEGER) AS local_minute
    FROM (
        SELECT
            n.data_date,
            n.cutoff_utc + steps.halves * INTERVAL 30 MINUTE AS half_hour_utc,
            (n.cutoff_utc + steps.halves * INTERVAL 30 MINUTE) AT TIME ZONE 'America/New_York' AS local_time
        FROM nights AS n
        CROSS JOIN range(50) AS steps (halves)
    ) AS candidates
    WHERE CAST(local_time AS DATE) = data_date + 1
),

lagged AS (
    SELECT
        t.data_date,
        t.half_hour_utc,
        max(CASE WHEN lags.days = 1 THEN r.passengers END) AS passengers_1d_ago,
        max(CASE WHEN lags.days = 2 THEN r.passengers END) AS passengers_2d_ago,
        max(CASE WHEN lags.days = 3 THEN r.passengers END) AS passengers_3d_ago,
        max(CASE WHEN lags.days = 7 THEN r.passengers END) AS passengers_7d_ago,
        max(CASE WHEN lags.days = 14 THEN r.passengers END) AS passengers_14d_ago,
        max(CASE WHEN lags.days = 21 THEN r.passengers END) AS passengers_21d_ago,
        max(CASE WHEN lags.days = 8 THEN r.passengers END) AS passengers_8d_ago,
        sum(CASE WHEN lags.days <= 7 THEN CAST(r.passengers AS BIGINT) END) AS passengers_7d,
        count(CASE WHEN lags.days <= 7 THEN r.passengers END) AS halves_7d,
        sum(CASE WHEN lags.days % 7 = 0 THEN CAST(r.passengers AS BIGINT) END) AS passengers_4w,
        count(CASE WHEN lags.days % 7 = 0 THEN r.passengers END) AS halves_4w
    FROM tomorrow AS t
    CROSS JOIN range(1, 29) AS lags (days)
    JOIN rides AS r
        ON r.event_date = t.data_date + 1 - CAST(lags.days AS INTEGER)
        AND r.local_minute = t.local_minute
        AND r.data_date <= t.data_date
        AND r.superseded_on > t.data_date
    GROUP BY t.data_date, t.half_hour_utc
),

days AS (
    -- Today and the same weekday a week before, whole and from 21:00 on.
    SELECT
        n.data_date,
        sum(CASE WHEN r.event_date = n.data_date THEN CAST(r.passengers AS BIGINT) END) AS passengers,
        count(CASE WHEN r.event_date = n.data_date THEN r.passengers END) AS halves,
        sum(CASE WHEN r.event_date < n.data_date THEN CAST(r.passengers AS BIGINT) END) AS passengers_then,
        count(CASE WHEN r.event_date < n.data_date THEN r.passengers END) AS halves_then,
        sum(CASE WHEN r.event_date = n.data_date AND r.local_minute >= 1260 THEN CAST(r.passengers AS BIGINT) END)
            AS evening,
        sum(CASE WHEN r.event_date < n.data_date AND r.local_minute >= 1260 THEN CAST(r.passengers AS BIGINT) END)
            AS evening_then
    FROM nights AS n
    JOIN rides AS r
        ON (r.event_date = n.data_date OR r.event_date = n.data_date - 7)
        AND r.data_date <= n.data_date
        AND r.superseded_on > n.data_date
    GROUP BY n.data_date
)

SELECT
    t.data_date,
    t.half_hour_utc,
    l.passengers_1d_ago,
    l.passengers_2d_ago,
    l.passengers_3d_ago,
    l.passengers_7d_ago,
    l.passengers_14d_ago,
    l.passengers_21d_ago,
    CAST(l.passengers_7d AS DOUBLE) / nullif(l.halves_7d, 0) AS passengers_mean_7d,
    CAST(l.passengers_4w AS DOUBLE) / nullif(l.halves_4w, 0) AS passengers_mean_4w,
    l.passengers_1d_ago - l.passengers_8d_ago AS change_1d,
    CAST(d.passengers AS DOUBLE) / nullif(d.halves, 0) AS day_mean,
    CAST(d.passengers AS DOUBLE) / nullif(d.halves, 0) - CAST(d.passengers_then AS DOUBLE) / nullif(d.halves_then, 0)
        AS day_change,
    d.evening - d.evening_then AS evening_change
FROM tomorrow AS t
LEFT JOIN lagged AS l ON l.data_date = t.data_date AND l.half_hour_utc = t.half_hour_utc
LEFT JOIN days AS d ON d.data_date = t.data_date
