-- Each account that sent the night's own day: what its user did on it and in the four weeks before, and on which of the last days.
WITH known AS (
    SELECT
        n.data_date,
        u.user,
        n.data_date - u.event_date AS days_ago,
        u.* EXCLUDE (data_date, user)
    FROM nights AS n
    JOIN user_days AS u ON u.data_date <= n.data_date AND u.superseded_on > n.data_date
    WHERE u.event_date > n.data_date - 28 AND u.event_date <= n.data_date
)

SELECT
    data_date,
    user,
    max(role) AS role,
    sum(active) / 28.0 AS activity_score,
    max(CASE WHEN days_ago = 0 THEN project_count END) AS project_count,
    sum(shared_actions) / nullif(sum(actions), 0) AS collaboration_score,
    sum(ai_actions) / nullif(sum(actions), 0) AS ai_usage_frequency,
    CAST(count(*) AS INTEGER) AS account_days,
    CAST(sum(active) FILTER (WHERE days_ago < 7) AS INTEGER) AS active_days_7d,
    CAST(sum(active) FILTER (WHERE days_ago < 14) AS INTEGER) AS active_days_14d,
    CAST(sum(active) FILTER (WHERE date_diff('day', DATE '1970-01-05', event_date) % 7 >= 5) AS INTEGER) AS active_weekend_days,
    CAST(min(CASE WHEN active = 1 THEN days_ago END) AS INTEGER) AS days_since_active,
    sum(actions) FILTER (WHERE days_ago < 7) / nullif(sum(active) FILTER (WHERE days_ago < 7), 0) AS actions_active_day_7d,
    sum(actions) / nullif(sum(active), 0) AS actions_active_day_28d,
    sum(project_count) FILTER (WHERE days_ago < 7) / count(*) FILTER (WHERE days_ago < 7) AS project_count_7d,
    sum(project_count) / count(*) AS project_count_28d,
    CAST(date_diff('day', DATE '1970-01-05', data_date) % 7 + 1 AS INTEGER) AS weekday,
    max(CASE WHEN days_ago = 0 THEN actions END) AS actions_t0,
    max(CASE WHEN days_ago = 1 THEN actions END) AS actions_t1,
    max(CASE WHEN days_ago = 2 THEN actions END) AS actions_t2,
    max(CASE WHEN days_ago = 3 THEN actions END) AS actions_t3,
    max(CASE WHEN days_ago = 4 THEN actions END) AS actions_t4,
    max(CASE WHEN days_ago = 5 THEN actions END) AS actions_t5,
    max(CASE WHEN days_ago = 6 THEN actions END) AS actions_t6,
    max(CASE WHEN days_ago = 7 THEN actions END) AS actions_t7,
    max(CASE WHEN days_ago = 8 THEN actions END) AS actions_t8,
    max(CASE WHEN days_ago = 9 THEN actions END) AS actions_t9
FROM known
GROUP BY data_date, user
HAVING max(CASE WHEN days_ago = 0 THEN 1 ELSE 0 END) = 1
