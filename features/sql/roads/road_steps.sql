-- For each hour of tomorrow and each road of the night's map: how long that hour took on each of the last seven days, over the road's free-flow
-- time (x); the mean over the roads that touch it (Ax); and of these means over the same roads (A²x). Beside them the same of whole days. A road
-- that touches none, or whose neighbours measured nothing, has no mean. Delays are DECIMALs before they are added: exact, whatever the order.
WITH map AS (
    SELECT n.data_date, n.cutoff_utc, r.road, r.free_flow_minutes, r.road_class
    FROM nights AS n
    JOIN roads AS r ON r.event_date = n.data_date AND r.data_date <= n.data_date AND r.superseded_on > n.data_date
),

touching AS (
    SELECT n.data_date, l.road, l.neighbour
    FROM nights AS n
    JOIN links AS l ON l.event_date = n.data_date AND l.data_date <= n.data_date AND l.superseded_on > n.data_date
    WHERE l.neighbour <> l.road
),

measured AS (
    SELECT
        m.data_date,
        m.road,
        CAST(epoch(m.cutoff_utc) - epoch(h.hour_utc) + 86399 AS BIGINT) // 86400 AS days_back,
        CAST(epoch(h.hour_utc) AS BIGINT) // 3600 % 24 AS hour_of_day,
        CAST(h.travel_minutes / m.free_flow_minutes AS DECIMAL(18, 6)) AS delay
    FROM map AS m
    JOIN road_hours AS h ON h.road = m.road AND h.data_date <= m.data_date AND h.superseded_on > m.data_date
    WHERE h.hour_utc < m.cutoff_utc AND h.travel_minutes IS NOT NULL
),

own AS (
    -- Day by day: each hour, and, as hour -1, all of them together.
    SELECT data_date, road, days_back, hour_of_day, delay FROM measured WHERE days_back <= 7
    UNION ALL
    SELECT data_date, road, days_back, -1, CAST(sum(delay) / count(*) AS DECIMAL(18, 6)) FROM measured WHERE days_back <= 7 GROUP BY ALL
),

near AS (
    SELECT o.data_date, t.road, o.days_back, o.hour_of_day, CAST(sum(o.delay) / count(*) AS DECIMAL(18, 6)) AS near_delay
    FROM own AS o
    JOIN touching AS t ON t.data_date = o.data_date AND t.neighbour = o.road
    GROUP BY o.data_date, t.road, o.days_back, o.hour_of_day
),

further AS (
    SELECT n.data_date, t.road, n.days_back, n.hour_of_day, CAST(sum(n.near_delay) / count(*) AS DECIMAL(18, 6)) AS further_delay
    FROM near AS n
    JOIN touching AS t ON t.data_date = n.data_date AND t.neighbour = n.road
    GROUP BY n.data_date, t.road, n.days_back, n.hour_of_day
),

steps AS (
    SELECT data_date, road, days_back, hour_of_day, delay, near_delay, further_delay
    FROM own
    FULL JOIN near USING (data_date, road, days_back, hour_of_day)
    FULL JOIN further USING (data_date, road, days_back, hour_of_day)
),

by_hour AS (
    SELECT
        data_date,
        road,
        hour_of_day,
        max(CASE WHEN days_back = 1 THEN delay END) AS delay_t0,
        max(CASE WHEN days_back = 2 THEN delay END) AS delay_t1,
        max(CASE WHEN days_back = 3 THEN delay END) AS delay_t2,
        max(CASE WHEN days_back = 4 THEN delay END) AS delay_t3,
        max(CASE WHEN days_back = 5 THEN delay END) AS delay_t4,
        max(CASE WHEN days_back = 6 THEN delay END) AS delay_t5,
        max(CASE WHEN days_back = 7 THEN delay END) AS delay_t6,
        max(CASE WHEN days_back = 1 THEN near_delay END) AS near_delay_t0,
        max(CASE WHEN days_back = 2 THEN near_delay END) AS near_delay_t1,
        max(CASE WHEN days_back = 3 THEN near_delay END) AS near_delay_t2,
        max(CASE WHEN days_back = 4 THEN near_delay END) AS near_delay_t3,
        max(CASE WHEN days_back = 5 THEN near_delay END) AS near_delay_t4,
        max(CASE WHEN days_back = 6 THEN near_delay END) AS near_delay_t5,
        max(CASE WHEN days_back = 7 THEN near_delay END) AS near_delay_t6,
        max(CASE WHEN days_back = 1 THEN further_delay END) AS further_delay_t0,
        max(CASE WHEN days_back = 2 THEN further_delay END) AS further_delay_t1,
        max(CASE WHEN days_back = 3 THEN further_delay END) AS further_delay_t2,
        max(CASE WHEN days_back = 4 THEN further_delay END) AS further_delay_t3,
        max(CASE WHEN days_back = 5 THEN further_delay END) AS further_delay_t4,
        max(CASE WHEN days_back = 6 THEN further_delay END) AS further_delay_t5,
        max(CASE WHEN days_back = 7 THEN further_delay END) AS further_delay_t6
    FROM steps
    GROUP BY data_date, road, hour_of_day
),

weekly AS (
    SELECT data_date, road, hour_of_day, sum(delay) / count(*) AS delay_4w
    FROM measured
    WHERE days_back % 7 = 0
    GROUP BY data_date, road, hour_of_day
),

counted AS (
    SELECT data_date, road, count(*) AS neighbours
    FROM touching
    GROUP BY data_date, road
),

rain AS (
    SELECT n.data_date, f.rain_mm
    FROM nights AS n
    JOIN rain_forecasts AS f ON f.rainy_date = n.data_date + 1 AND f.data_date <= n.data_date AND f.superseded_on > n.data_date
)

SELECT
    m.data_date,
    m.road,
    m.cutoff_utc + hours.ahead * INTERVAL 1 HOUR AS hour_utc,
    s.delay_t0,
    s.delay_t1,
    s.delay_t2,
    s.delay_t3,
    s.delay_t4,
    s.delay_t5,
    s.delay_t6,
    s.near_delay_t0,
    s.near_delay_t1,
    s.near_delay_t2,
    s.near_delay_t3,
    s.near_delay_t4,
    s.near_delay_t5,
    s.near_delay_t6,
    s.further_delay_t0,
    s.further_delay_t1,
    s.further_delay_t2,
    s.further_delay_t3,
    s.further_delay_t4,
    s.further_delay_t5,
    s.further_delay_t6,
    d.delay_t0 AS day_delay_t0,
    d.delay_t1 AS day_delay_t1,
    d.delay_t2 AS day_delay_t2,
    d.delay_t3 AS day_delay_t3,
    d.delay_t4 AS day_delay_t4,
    d.delay_t5 AS day_delay_t5,
    d.delay_t6 AS day_delay_t6,
    d.near_delay_t0 AS near_day_delay_t0,
    d.near_delay_t1 AS near_day_delay_t1,
    d.near_delay_t2 AS near_day_delay_t2,
    d.near_delay_t3 AS near_day_delay_t3,
    d.near_delay_t4 AS near_day_delay_t4,
    d.near_delay_t5 AS near_day_delay_t5,
    d.near_delay_t6 AS near_day_delay_t6,
    d.further_delay_t0 AS further_day_delay_t0,
    d.further_delay_t1 AS further_day_delay_t1,
    d.further_delay_t2 AS further_day_delay_t2,
    d.further_delay_t3 AS further_day_delay_t3,
    d.further_delay_t4 AS further_day_delay_t4,
    d.further_delay_t5 AS further_day_delay_t5,
    d.further_delay_t6 AS further_day_delay_t6,
    w.delay_4w * m.free_flow_minutes AS minutes_4w,
    m.free_flow_minutes,
    m.road_class,
    coalesce(c.neighbours, 0) AS neighbours,
    r.rain_mm,
    hours.ahead AS hour_of_day,
    isodow(m.data_date + 1) AS weekday
FROM map AS m
CROSS JOIN range(24) AS hours (ahead)
LEFT JOIN by_hour AS s ON s.data_date = m.data_date AND s.road = m.road AND s.hour_of_day = hours.ahead
LEFT JOIN by_hour AS d ON d.data_date = m.data_date AND d.road = m.road AND d.hour_of_day = -1
LEFT JOIN weekly AS w ON w.data_date = m.data_date AND w.road = m.road AND w.hour_of_day = hours.ahead
LEFT JOIN counted AS c ON c.data_date = m.data_date AND c.road = m.road
LEFT JOIN rain AS r ON r.data_date = m.data_date
