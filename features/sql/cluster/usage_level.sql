-- For each hour of tomorrow and each instance of the last two days its last use, the means of its last days, and where
-- the straight line of its last three days leads.
WITH recent AS (
    SELECT
        n.data_date,
        n.cutoff_utc,
        u.instance,
        CAST(round((epoch(n.cutoff_utc) - epoch(u.hour_utc)) / 3600) AS BIGINT) AS hours_ago,
        u.cpu_percent,
        CAST(u.cpu_percent AS DECIMAL(18, 6)) AS exact
    FROM nights AS n
    JOIN usage AS u
        ON u.hour_utc >= n.cutoff_utc - INTERVAL 72 HOUR
        AND u.hour_utc < n.cutoff_utc
        AND u.data_date <= n.data_date
        AND u.superseded_on > n.data_date
),

instances AS (
    SELECT
        data_date,
        cutoff_utc,
        instance,
        max(CASE WHEN hours_ago = 1 THEN cpu_percent END) AS last_percent,
        CAST(sum(CASE WHEN hours_ago <= 24 THEN exact END) AS DOUBLE)
        / nullif(count(CASE WHEN hours_ago <= 24 THEN 1 END), 0) AS mean_24h,
        CAST(sum(exact) AS DOUBLE) / count(*) AS mean_72h,
        count(*) AS hours,
        -- Least squares over (-hours_ago, percent), from sums that no order of rows changes.
        CAST(sum(exact) AS DOUBLE) AS sum_y,
        CAST(sum(-hours_ago) AS DOUBLE) AS sum_x,
        CAST(sum(hours_ago * hours_ago) AS DOUBLE) AS sum_xx,
        CAST(sum(-hours_ago * exact) AS DOUBLE) AS sum_xy
    FROM recent
    GROUP BY data_date, cutoff_utc, instance
    HAVING min(hours_ago) <= 48
),

sloped AS (
    SELECT
        *,
        -- One hour alone has no slope: the line is flat.
        coalesce((hours * sum_xy - sum_x * sum_y) / nullif(hours * sum_xx - sum_x * sum_x, 0), 0) AS slope
    FROM instances
)

SELECT
    i.data_date,
    i.instance,
    i.cutoff_utc + steps.hours_ahead * INTERVAL 1 HOUR AS hour_utc,
    i.last_percent,
    i.mean_24h,
    i.mean_72h,
    i.mean_72h + i.slope * (steps.hours_ahead - i.sum_x / i.hours) AS linear_trend
FROM sloped AS i
CROSS JOIN range(24) AS steps (hours_ahead)
