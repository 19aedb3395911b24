-- Tomorrow's flights as scheduled, one row each: clock, calendar, how busy the hour is, where the flight stands in its
-- aircraft's day, and how this flight, and flights of this hour, did in the last days as far as known by the night.
WITH tomorrow AS (
    SELECT
        n.data_date,
        s.*,
        -- Days since a Monday, so that 1 is Monday everywhere.
        date_diff('day', DATE '1970-01-05', s.event_date) % 7 + 1 AS weekday
    FROM nights AS n
    JOIN schedule AS s ON s.data_date <= n.data_date AND s.superseded_on > n.data_date AND s.event_date = n.data_date + 1
),

days_around AS (
    SELECT
        n.data_date,
        n.data_date + 1 + shifts.days AS day,
        shifts.days,
        date_diff('day', DATE '1970-01-05', n.data_date + 1 + shifts.days) % 7 + 1 AS weekday
    FROM nights AS n
    CROSS JOIN (VALUES (-3), (-2), (-1), (0), (1), (2), (3)) AS shifts (days)
),

holidays AS (
    -- The federal holidays by their rules, and what is left of them within three days.
    SELECT data_date, max(CASE WHEN days = 0 THEN 1 ELSE 0 END) = 1 AS is_holiday, min(abs(days)) AS days_to_holiday
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
),

by_flight AS (
    SELECT
        data_date,
        superseded_on,
        event_date,
        carrier,
        flight,
        origin,
        dest,
        -- Eastern time is what the schedule is written in; the hour of the day in it is what repeats from day to day.
        hour(sched_dep_utc AT TIME ZONE 'America/New_York') AS departure_hour,
        arr_delay
    FROM outcomes
    WHERE arr_delay IS NOT NULL
),

flight_history AS (
    SELECT
        t.data_date,
        t.carrier,
        t.flight,
        t.origin,
        t.dest,
        count(*) AS arrived,
        sum(CAST(o.arr_delay AS BIGINT)) AS delay_minutes,
        count(*) FILTER (WHERE o.arr_delay > 15) AS late
    FROM tomorrow AS t
    JOIN by_flight AS o
        ON o.carrier = t.carrier AND o.flight = t.flight AND o.origin = t.origin AND o.dest = t.dest
        AND o.data_date <= t.data_date AND o.superseded_on > t.data_date
    WHERE o.event_date > t.data_date - 28 AND o.event_date <= t.data_date
    GROUP BY t.data_date, t.carrier, t.flight, t.origin, t.dest
),

hour_by_day AS (
    SELECT
        data_date,
        superseded_on,
        event_date,
        origin,
        carrier,
        departure_hour,
        count(*) AS arrived,
        sum(CAST(arr_delay AS BIGINT)) AS delay_minutes
    FROM by_flight
    GROUP BY data_date, superseded_on, event_date, origin, carrier, departure_hour
),

recent AS (
    SELECT n.data_date, d.event_date, d.origin, d.carrier, d.departure_hour, d.arrived, d.delay_minutes
    FROM nights AS n
    JOIN hour_by_day AS d ON d.data_date <= n.data_date AND d.superseded_on > n.data_date
    WHERE d.event_date > n.data_date - 28 AND d.event_date <= n.data_date
),

hour_history AS (
    SELECT
        data_date,
        origin,
        departure_hour,
        sum(delay_minutes) FILTER (WHERE event_date > data_date - 7) AS delay_minutes_7d,
        sum(arrived) FILTER (WHERE event_date > data_date - 7) AS arrived_7d,
        sum(delay_minutes) AS delay_minutes_28d,
        sum(arrived) AS arrived_28d
    FROM recent
    GROUP BY data_date, origin, departure_hour
),

carrier_hour_history AS (
    SELECT data_date, origin, carrier, departure_hour, sum(delay_minutes) AS delay_minutes_28d, sum(arrived) AS arrived_28d
    FROM recent
    GROUP BY data_date, origin, carrier, departure_hour
)

SELECT
    t.data_date,
    t.event_date,
    t.carrier,
    t.flight,
    t.origin,
    t.dest,
    t.carrier AS airline,
    t.origin AS departure_airport,
    t.dest AS arrival_airport,
    t.sched_dep_hour AS departure_hour,
    t.sched_dep_minute AS departure_minute,
    t.sched_arr_hour AS arrival_hour,
    t.sched_minutes,
    t.distance_miles,
    t.seats,
    year(t.event_date) - t.plane_year AS plane_age_years,
    t.weekday,
    month(t.event_date) AS month,
    coalesce(h.is_holiday, false) AS is_holiday,
    h.days_to_holiday,
    count(*) OVER (PARTITION BY t.data_date, t.origin, t.sched_dep_hour) AS departures_same_hour,
    count(*) OVER (PARTITION BY t.data_date, t.origin) AS departures_same_day,
    CASE
        WHEN t.tailnum IS NOT NULL
            THEN row_number() OVER (PARTITION BY t.data_date, t.tailnum ORDER BY t.sched_dep_utc, t.carrier, t.flight, t.origin, t.dest)
    END AS aircraft_leg,
    f.arrived AS flight_arrived_28d,
    f.delay_minutes / nullif(f.arrived, 0) AS flight_delay_mean_28d,
    f.late / nullif(f.arrived, 0) AS flight_late_share_28d,
    o.delay_minutes_7d / nullif(o.arrived_7d, 0) AS origin_hour_delay_mean_7d,
    o.delay_minutes_28d / nullif(o.arrived_28d, 0) AS origin_hour_delay_mean_28d,
    c.delay_minutes_28d / nullif(c.arrived_28d, 0) AS carrier_hour_delay_mean_28d
FROM tomorrow AS t
LEFT JOIN holidays AS h ON h.data_date = t.data_date
LEFT JOIN flight_history AS f
    ON f.data_date = t.data_date AND f.carrier = t.carrier AND f.flight = t.flight AND f.origin = t.origin AND f.dest = t.dest
LEFT JOIN hour_history AS o ON o.data_date = t.data_date AND o.origin = t.origin AND o.departure_hour = t.sched_dep_hour
LEFT JOIN carrier_hour_history AS c
    ON c.data_date = t.data_date AND c.origin = t.origin AND c.carrier = t.carrier AND c.departure_hour = t.sched_dep_hour
