-- For each of the next 30 days what each cluster uses of a resource now and on such weekdays, and what is known of the day.
-- Shares are DECIMALs before they are added: exact, whatever the order.
WITH known AS (
    SELECT
        n.data_date,
        c.cluster,
        c.resource,
        n.data_date - CAST(c.day_utc AT TIME ZONE 'UTC' AS DATE) AS days_ago,
        CAST(c.usage AS DECIMAL(9, 4)) AS usage,
        c.user_count,
        c.days_to_cleaning,
        (91 - c.days_to_cleaning) % 91 AS days_since_cleaning
    FROM nights AS n
    JOIN cluster_usage AS c ON c.data_date <= n.data_date AND c.superseded_on > n.data_date
    WHERE c.day_utc >= n.cutoff_utc - INTERVAL 672 HOUR
),

weekdays AS (
    SELECT
        data_date,
        cluster,
        resource,
        days_ago % 7 AS days_ago_in_week,
        sum(usage) / count(*) AS weekday_28d,
        sum(days_since_cleaning) / count(*) AS days_since_cleaning
    FROM known
    GROUP BY data_date, cluster, resource, days_ago % 7
),

clusters AS (
    SELECT
        data_date,
        cluster,
        max(CASE WHEN resource = 'cpu' THEN usage END) AS current_cpu,
        max(CASE WHEN resource = 'memory' THEN usage END) AS current_memory,
        max(CASE WHEN resource = 'storage' THEN usage END) AS current_storage
    FROM known
    WHERE days_ago = 0
    GROUP BY data_date, cluster
),

summed AS (
    SELECT
        data_date,
        cluster,
        resource,
        max(CASE WHEN days_ago = 0 THEN usage END) AS current_usage,
        sum(usage) FILTER (WHERE days_ago < 7) / count(*) FILTER (WHERE days_ago < 7) AS usage_7d,
        sum(usage) / count(*) AS usage_28d,
        (
            sum(usage) FILTER (WHERE days_ago < 14) / count(*) FILTER (WHERE days_ago < 14)
            - sum(usage) FILTER (WHERE days_ago >= 14) / nullif(count(*) FILTER (WHERE days_ago >= 14), 0)
        ) / 14 AS trend,
        max(CASE WHEN days_ago = 0 THEN user_count END) AS user_count,
        max(CASE WHEN days_ago = 0 THEN days_to_cleaning END) AS days_to_cleaning
    FROM known
    GROUP BY data_date, cluster, resource
    HAVING max(CASE WHEN days_ago = 0 THEN 1 ELSE 0 END) = 1
),

steps AS (
    SELECT
        s.data_date,
        s.cluster,
        s.resource,
        n.cutoff_utc + ahead.days * INTERVAL 24 HOUR AS day_utc,
        s.resource AS resource_kind,
        CAST(ahead.days + 1 AS INTEGER) AS days_ahead,
        CAST(date_diff('day', DATE '1970-01-05', s.data_date + CAST(ahead.days + 1 AS INTEGER)) % 7 + 1 AS INTEGER) AS weekday,
        CAST(s.current_usage AS DOUBLE) AS current_usage,
        s.usage_7d,
        s.usage_28d,
        w.weekday_28d,
        w.days_since_cleaning AS days_since_cleaning_then,
        CAST(s.current_usage AS DOUBLE) / nullif(today.weekday_28d, 0) AS current_share,
        s.usage_7d / nullif(s.usage_28d, 0) AS share_7d,
        s.trend,
        CAST(c.current_cpu AS DOUBLE) AS current_cpu,
        CAST(c.current_memory AS DOUBLE) AS current_memory,
        CAST(c.current_storage AS DOUBLE) AS current_storage,
        s.user_count,
        -- Only storage is cleaned.
        CASE WHEN s.resource = 'storage' THEN s.days_to_cleaning END AS days_to_cleaning,
        CASE WHEN s.resource = 'storage' THEN CAST((91 - s.days_to_cleaning + ahead.days + 1) % 91 AS INTEGER) END AS days_since_cleaning
    FROM summed AS s
    JOIN nights AS n ON n.data_date = s.data_date
    JOIN clusters AS c ON c.data_date = s.data_date AND c.cluster = s.cluster
    CROSS JOIN range(30) AS ahead (days)
    LEFT JOIN weekdays AS w
        ON w.data_date = s.data_date AND w.cluster = s.cluster AND w.resource = s.resource
        AND w.days_ago_in_week = (7 - (ahead.days + 1) % 7) % 7
    LEFT JOIN weekdays AS today
        ON today.data_date = s.data_date AND today.cluster = s.cluster AND today.resource = s.resource AND today.days_ago_in_week = 0
)

-- A sum of columns can only be as good as the products among them.
SELECT
    * EXCLUDE (days_since_cleaning_then),
    CASE WHEN resource = 'cpu' THEN weekday_28d ELSE 0 END AS cpu_weekday,
    CASE WHEN resource = 'cpu' THEN weekday_28d * (share_7d - 1) ELSE 0 END AS cpu_week_above,
    CASE WHEN resource = 'cpu' THEN weekday_28d * (current_share - 1) ELSE 0 END AS cpu_day_above,
    CASE WHEN resource = 'cpu' THEN weekday_28d * (current_share - 1) * exp(-days_ahead / 10.0) ELSE 0 END AS cpu_day_above_fading,
    CASE WHEN resource = 'cpu' THEN weekday_28d * days_ahead / 30 ELSE 0 END AS cpu_ahead,
    CASE WHEN resource = 'memory' THEN weekday_28d ELSE 0 END AS memory_weekday,
    CASE WHEN resource = 'memory' THEN weekday_28d * (share_7d - 1) ELSE 0 END AS memory_week_above,
    CASE WHEN resource = 'memory' THEN weekday_28d * (current_share - 1) ELSE 0 END AS memory_day_above,
    CASE WHEN resource = 'memory' THEN weekday_28d * (current_share - 1) * exp(-days_ahead / 10.0) ELSE 0 END AS memory_day_above_fading,
    CASE WHEN resource = 'memory' THEN weekday_28d * days_ahead / 30 ELSE 0 END AS memory_ahead,
    CASE WHEN resource = 'storage' THEN weekday_28d ELSE 0 END AS storage_weekday,
    CASE WHEN resource = 'storage' THEN weekday_28d * (share_7d - 1) ELSE 0 END AS storage_week_above,
    CASE WHEN resource = 'storage' THEN weekday_28d * (current_share - 1) ELSE 0 END AS storage_day_above,
    CASE WHEN resource = 'storage' THEN weekday_28d * (current_share - 1) * exp(-days_ahead / 10.0) ELSE 0 END AS storage_day_above_fading,
    CASE WHEN resource = 'storage' THEN weekday_28d * days_ahead / 30 ELSE 0 END AS storage_ahead,
    CASE WHEN resource = 'storage' THEN weekday_28d * (days_since_cleaning - days_since_cleaning_then) / 91 ELSE 0 END AS storage_filling
FROM steps
