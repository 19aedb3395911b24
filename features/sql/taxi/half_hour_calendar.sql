-- The calendar of each half hour of tomorrow, in New York's time: known for any day, from the date alone.
WITH tomorrow AS (
    -- 46, 48 or 50 half hours: those that New York's calendar counts to tomorrow.
    SELECT data_date, half_hour_utc, local_time, CAST(local_time AS DATE) AS day
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

days_around AS (
    SELECT
        n.data_date,
        n.data_date + 1 + shifts.days AS day,
        shifts.days,
        -- Days since a Monday, so that 1 is Monday everywhere.
        date_diff('day', DATE '1970-01-05', n.data_date + 1 + shifts.days) % 7 + 1 AS weekday
    FROM nights AS n
    CROSS JOIN (VALUES (-1), (0), (1)) AS shifts (days)
),

holidays AS (
    -- The federal holidays by their rules, known for any day.
    SELECT
        data_date,
        max(CASE WHEN days = 0 THEN 1 ELSE 0 END) = 1 AS is_holiday,
        max(CASE WHEN days = 1 THEN 1 ELSE 0 END) = 1 AS is_holiday_eve,
        max(CASE WHEN days = -1 THEN 1 ELSE 0 END) = 1 AS is_day_after_holiday
    FROM days_around
    WHERE
        (month(day) = 1 AND day(day) = 1)
        OR (month(day) = 1 AND weekday = 1 AND day(day) BETWEEN 15 AND 21)
        OR (month(day) = 2 AND weekday = 1 AND day(day) BETWEEN 15 AND 21)
        OR (month(day) = 5 AND weekday = 1 AND day(day) BETWEEN 25 AND 31)
        OR (month(day) = 7 AND day(day) = 4)
        OR (month(day) = 9 AND weekday = 1 AND day(day) BETWEEN 1 AND 7)
        OR (month(day) = 10 AND weekday = 1 AND day(day) BETWEEN 8 AND 14)
        OR (month(day) = 11 AND day(day) = 11)
        OR (month(day) = 11 AND weekday = 4 AND day(day) BETWEEN 22 AND 28)
        OR (month(day) = 12 AND day(day) = 25)
    GROUP BY data_date
)

SELECT
    t.data_date,
    t.half_hour_utc,
    CAST(hour(t.local_time) * 60 + minute(t.local_time) AS INTEGER) AS local_minute,
    date_diff('day', DATE '1970-01-05', t.day) % 7 + 1 AS weekday,
    (date_diff('day', DATE '1970-01-05', t.day) % 7) * 24 + hour(t.local_time) AS hour_of_week,
    coalesce(h.is_holiday, false) AS is_holiday,
    coalesce(h.is_holiday_eve, false) AS is_holiday_eve,
    coalesce(h.is_day_after_holiday, false) AS is_day_after_holiday
FROM tomorrow AS t
LEFT JOIN holidays AS h ON h.data_date = t.data_date
