-- What each user who came on the night's own day has seen, `_t0` the newest; null where there are fewer.
WITH seen AS (
    SELECT
        n.data_date,
        v.user,
        CAST(v.area AS VARCHAR) AS area,
        row_number() OVER (PARTITION BY n.data_date, v.user ORDER BY v.seq DESC) - 1 AS step
    FROM nights AS n
    JOIN visits AS v ON v.data_date = n.data_date AND v.superseded_on > n.data_date
)

SELECT
    data_date,
    user,
    max(CASE WHEN step = 0 THEN area END) AS recent_t0,
    max(CASE WHEN step = 1 THEN area END) AS recent_t1,
    max(CASE WHEN step = 2 THEN area END) AS recent_t2,
    max(CASE WHEN step = 3 THEN area END) AS recent_t3,
    max(CASE WHEN step = 4 THEN area END) AS recent_t4,
    max(CASE WHEN step = 5 THEN area END) AS recent_t5,
    max(CASE WHEN step = 6 THEN area END) AS recent_t6,
    max(CASE WHEN step = 7 THEN area END) AS recent_t7,
    max(CASE WHEN step = 8 THEN area END) AS recent_t8,
    max(CASE WHEN step = 9 THEN area END) AS recent_t9,
    max(CASE WHEN step = 10 THEN area END) AS recent_t10,
    max(CASE WHEN step = 11 THEN area END) AS recent_t11,
    max(CASE WHEN step = 12 THEN area END) AS recent_t12,
    max(CASE WHEN step = 13 THEN area END) AS recent_t13,
    max(CASE WHEN step = 14 THEN area END) AS recent_t14,
    max(CASE WHEN step = 15 THEN area END) AS recent_t15,
    max(CASE WHEN step = 16 THEN area END) AS recent_t16,
    max(CASE WHEN step = 17 THEN area END) AS recent_t17,
    max(CASE WHEN step = 18 THEN area END) AS recent_t18,
    max(CASE WHEN step = 19 THEN area END) AS recent_t19
FROM seen
GROUP BY data_date, user
