-- Each account that sent the night's own day: what its user worked on last, `_t0` the newest; null where there was less in four weeks.
WITH known AS (
    SELECT n.data_date, u.user, u.activity, n.data_date - u.event_date AS days_ago
    FROM nights AS n
    JOIN user_days AS u ON u.data_date <= n.data_date AND u.superseded_on > n.data_date
    WHERE u.event_date > n.data_date - 28 AND u.event_date <= n.data_date
),

ordered AS (
    -- Days without activity come after all others.
    SELECT
        data_date,
        user,
        activity,
        days_ago,
        row_number() OVER (PARTITION BY data_date, user ORDER BY activity IS NULL, days_ago) - 1 AS step
    FROM known
)

SELECT
    data_date,
    user,
    max(CASE WHEN step = 0 THEN activity END) AS recent_t0,
    max(CASE WHEN step = 1 THEN activity END) AS recent_t1,
    max(CASE WHEN step = 2 THEN activity END) AS recent_t2,
    max(CASE WHEN step = 3 THEN activity END) AS recent_t3,
    max(CASE WHEN step = 4 THEN activity END) AS recent_t4,
    CAST(max(CASE WHEN step = 0 AND activity IS NOT NULL THEN days_ago END) AS INTEGER) AS days_ago_t0,
    CAST(max(CASE WHEN step = 1 AND activity IS NOT NULL THEN days_ago END) AS INTEGER) AS days_ago_t1,
    CAST(max(CASE WHEN step = 2 AND activity IS NOT NULL THEN days_ago END) AS INTEGER) AS days_ago_t2,
    max(CASE WHEN days_ago = 13 THEN activity END) AS activity_13d_ago,
    max(CASE WHEN days_ago = 27 THEN activity END) AS activity_27d_ago,
    CAST(min(CASE WHEN activity = 'planning' THEN days_ago END) AS INTEGER) AS days_since_planning
FROM ordered
GROUP BY data_date, user
HAVING max(CASE WHEN days_ago = 0 THEN 1 ELSE 0 END) = 1
