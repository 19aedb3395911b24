-- An aircraft's last 1, 7 and 28 days out of New York, and how its last flight that had become known by the night ended.
-- Cancelled flights without a registration belong to no aircraft.
WITH by_day AS (
    -- An aircraft leaves New York a few times a day at most.
    SELECT
        data_date,
        superseded_on,
        event_date,
        tailnum,
        count(*) AS flights,
        count(arr_delay) AS arrived,
        sum(CAST(arr_delay AS BIGINT)) AS delay_minutes,
        count(*) FILTER (WHERE arr_delay > 15) AS late
    FROM outcomes
    WHERE tailnum IS NOT NULL
    GROUP BY data_date, superseded_on, event_date, tailnum
),

summed AS (
    SELECT
        n.data_date,
        d.tailnum,
        sum(d.flights) FILTER (WHERE d.event_date = n.data_date) AS flights_1d,
        sum(d.flights) FILTER (WHERE d.event_date > n.data_date - 7) AS flights_7d,
        sum(d.flights) AS flights_28d,
        sum(d.delay_minutes) FILTER (WHERE d.event_date = n.data_date) AS delay_minutes_1d,
        sum(d.delay_minutes) FILTER (WHERE d.event_date > n.data_date - 7) AS delay_minutes_7d,
        sum(d.delay_minutes) AS delay_minutes_28d,
        sum(d.arrived) FILTER (WHERE d.event_date = n.data_date) AS arrived_1d,
        sum(d.arrived) FILTER (WHERE d.event_date > n.data_date - 7) AS arrived_7d,
        sum(d.arrived) AS arrived_28d,
        sum(d.late) AS late_28d,
        max(d.event_date) AS last_event_date
    FROM nights AS n
    JOIN by_day AS d ON d.data_date <= n.data_date AND d.superseded_on > n.data_date
    WHERE d.event_date > n.data_date - 28 AND d.event_date <= n.data_date
    GROUP BY n.data_date, d.tailnum
),

last_flight AS (
    -- Of the flights of its last day the one scheduled last; the rest of the key decides between equals.
    SELECT s.data_date, s.tailnum, o.dest, o.arr_delay, o.dep_delay, o.cancelled, o.diverted, o.known_at_utc
    FROM summed AS s
    JOIN outcomes AS o
        ON o.tailnum = s.tailnum AND o.event_date = s.last_event_date AND o.data_date <= s.data_date AND o.superseded_on > s.data_date
    QUALIFY
        row_number() OVER (PARTITION BY s.data_date, s.tailnum ORDER BY o.sched_dep_utc DESC, o.carrier DESC, o.flight DESC, o.origin DESC, o.dest DESC) = 1
)

SELECT
    s.data_date,
    s.tailnum,
    s.flights_1d,
    s.flights_7d,
    s.flights_28d,
    s.delay_minutes_1d / nullif(s.arrived_1d, 0) AS delay_mean_1d,
    s.delay_minutes_7d / nullif(s.arrived_7d, 0) AS delay_mean_7d,
    s.delay_minutes_28d / nullif(s.arrived_28d, 0) AS delay_mean_28d,
    s.late_28d / nullif(s.arrived_28d, 0) AS late_share_28d,
    l.dest AS last_dest,
    l.dep_delay AS last_departure_delay,
    l.arr_delay AS last_arrival_delay,
    l.cancelled AS last_cancelled,
    l.diverted AS last_diverted,
    (epoch(n.cutoff_utc) - epoch(l.known_at_utc)) / 3600 AS last_known_hours_ago
FROM summed AS s
JOIN nights AS n ON n.data_date = s.data_date
JOIN last_flight AS l ON l.data_date = s.data_date AND l.tailnum = s.tailnum
