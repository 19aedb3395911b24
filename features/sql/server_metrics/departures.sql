-- How far each measurement of the night's own day departs from all that its series did in the 28 days before, in four
-- ways: the value, the mean of 24, the range of 48, the change since the same time yesterday. A departure is how far
-- beyond the highest or the lowest before, as a share of the range between them; 0 inside it, and 0 where one of the 50
-- measurements before departed further: one incident is told once. Sums are of decimals, exact in any order.
WITH past AS (
    SELECT n.data_date, m.series, m.step, m.measured_utc, m.value, m.data_date = n.data_date AS tonight
    FROM nights AS n
    JOIN measurements AS m
        ON m.data_date <= n.data_date AND m.data_date > n.data_date - 28 AND m.superseded_on > n.data_date
    -- Only series that measured something tonight.
    JOIN (SELECT DISTINCT data_date, series FROM measurements) AS t ON t.data_date = n.data_date AND t.series = m.series
),

signals AS (
    SELECT
        *,
        CASE WHEN count(*) OVER day = 24 THEN CAST(sum(CAST(value AS DECIMAL(28, 9))) OVER day AS DOUBLE) / 24 END AS mean_24,
        CASE WHEN count(*) OVER two_days = 48 THEN max(value) OVER two_days - min(value) OVER two_days END AS range_48,
        value - CAST(sum(CAST(value AS DECIMAL(28, 9))) OVER yesterday AS DOUBLE) / nullif(count(*) OVER yesterday, 0) AS change,
        row_number() OVER (PARTITION BY data_date, series ORDER BY step) AS place
    FROM past
    WINDOW
        day AS (PARTITION BY data_date, series ORDER BY step ROWS BETWEEN 23 PRECEDING AND CURRENT ROW),
        two_days AS (PARTITION BY data_date, series ORDER BY step ROWS BETWEEN 47 PRECEDING AND CURRENT ROW),
        yesterday AS (
            PARTITION BY data_date, series ORDER BY measured_utc
            RANGE BETWEEN INTERVAL 25 HOUR PRECEDING AND INTERVAL 24 HOUR PRECEDING
        )
),

-- Of the 28 days only tonight's rows and the 50 before them are looked at one by one; of the others, what they bound.
looked_at AS (
    SELECT data_date, series, min(place) - 50 AS first_place FROM signals WHERE tonight GROUP BY data_date, series
),

earlier AS (
    SELECT
        data_date,
        series,
        max(s.value) AS value_high, min(s.value) AS value_low, count(s.value) AS values,
        max(s.mean_24) AS mean_high, min(s.mean_24) AS mean_low, count(s.mean_24) AS means,
        max(s.range_48) AS range_high, min(s.range_48) AS range_low, count(s.range_48) AS ranges,
        max(s.change) AS change_high, min(s.change) AS change_low, count(s.change) AS changes
    FROM looked_at AS l
    JOIN signals AS s USING (data_date, series)
    WHERE s.place < l.first_place
    GROUP BY data_date, series
),

bounds AS (
    SELECT
        s.*,
        greatest(e.value_high, max(s.value) OVER before) AS value_high,
        least(e.value_low, min(s.value) OVER before) AS value_low,
        coalesce(e.values, 0) + count(s.value) OVER before AS values,
        greatest(e.mean_high, max(s.mean_24) OVER before) AS mean_high,
        least(e.mean_low, min(s.mean_24) OVER before) AS mean_low,
        coalesce(e.means, 0) + count(s.mean_24) OVER before AS means,
        greatest(e.range_high, max(s.range_48) OVER before) AS range_high,
        least(e.range_low, min(s.range_48) OVER before) AS range_low,
        coalesce(e.ranges, 0) + count(s.range_48) OVER before AS ranges,
        greatest(e.change_high, max(s.change) OVER before) AS change_high,
        least(e.change_low, min(s.change) OVER before) AS change_low,
        coalesce(e.changes, 0) + count(s.change) OVER before AS changes
    FROM signals AS s
    JOIN looked_at AS l ON l.data_date = s.data_date AND l.series = s.series AND s.place >= l.first_place
    LEFT JOIN earlier AS e ON e.data_date = s.data_date AND e.series = s.series
    WINDOW before AS (PARTITION BY s.data_date, s.series ORDER BY s.step ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),

departed AS (
    SELECT
        data_date, series, step, tonight,
        CASE WHEN values >= 20 THEN greatest(value - value_high, value_low - value, 0) END AS value_over,
        value_high - value_low AS value_range,
        CASE WHEN means >= 20 THEN greatest(mean_24 - mean_high, mean_low - mean_24, 0) END AS mean_over,
        mean_high - mean_low AS mean_range,
        CASE WHEN ranges >= 20 THEN greatest(range_48 - range_high, range_low - range_48, 0) END AS range_over,
        range_high - range_low AS range_range,
        CASE WHEN changes >= 20 THEN greatest(change - change_high, change_low - change, 0) END AS change_over,
        change_high - change_low AS change_range
    FROM bounds
),

-- Beyond a range of nothing, a departure is whole.
shares AS (
    SELECT
        data_date, series, step, tonight,
        CASE WHEN value_over > 0 THEN coalesce(value_over / nullif(value_range, 0), 1) ELSE value_over END AS value_share,
        CASE WHEN mean_over > 0 THEN coalesce(mean_over / nullif(mean_range, 0), 1) ELSE mean_over END AS mean_share,
        CASE WHEN range_over > 0 THEN coalesce(range_over / nullif(range_range, 0), 1) ELSE range_over END AS range_share,
        CASE WHEN change_over > 0 THEN coalesce(change_over / nullif(change_range, 0), 1) ELSE change_over END AS change_share
    FROM departed
),

told AS (
    SELECT
        *,
        max(value_share) OVER recent AS value_recent,
        max(mean_share) OVER recent AS mean_recent,
        max(range_share) OVER recent AS range_recent,
        max(change_share) OVER recent AS change_recent
    FROM shares
    WINDOW recent AS (PARTITION BY data_date, series ORDER BY step ROWS BETWEEN 50 PRECEDING AND 1 PRECEDING)
)

SELECT
    data_date,
    series,
    step,
    CASE WHEN value_share <= value_recent THEN 0 ELSE value_share END AS value_departure,
    CASE WHEN mean_share <= mean_recent THEN 0 ELSE mean_share END AS mean_departure,
    CASE WHEN range_share <= range_recent THEN 0 ELSE range_share END AS range_departure,
    CASE WHEN change_share <= change_recent THEN 0 ELSE change_share END AS change_departure
FROM told
WHERE tonight
