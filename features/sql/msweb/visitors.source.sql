-- Which user comes when. The files know no days: users of the training file come in the order of their numbers, 546 a
-- day from 1998-01-01 on, those of the test file after them, 500 a day from 1998-03-02 on. A user's last visit in the
-- file is the one of the morning after, which the others are to foretell: it is kept out of `visits`.
WITH counted AS (
    SELECT part, user, count(*) AS areas FROM source GROUP BY part, user
),

placed AS (
    SELECT part, user, areas, row_number() OVER (PARTITION BY part ORDER BY user) - 1 AS place FROM counted
),

dated AS (
    SELECT
        part,
        user,
        areas - 1 AS seen,
        CASE
            WHEN part = 'test' THEN DATE '1998-03-02' + CAST(place // 500 AS INTEGER)
            ELSE DATE '1998-01-01' + CAST(place // 546 AS INTEGER)
        END AS day
    FROM placed
)

SELECT
    part || '-' || CAST(user AS VARCHAR) AS user,
    CASE
        WHEN seen <= 2 THEN CAST(seen AS VARCHAR)
        WHEN seen <= 5 THEN '3-5'
        ELSE '6+'
    END AS areas_seen,
    timezone('UTC', CAST(day AS TIMESTAMP) + INTERVAL 20 HOUR) AS seen_utc,
    timezone('UTC', CAST(day AS TIMESTAMP) + INTERVAL 32 HOUR) AS next_visit_utc
FROM dated
