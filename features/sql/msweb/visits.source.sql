-- The areas that each user has seen on the day: all but the last in the file.
-- Days as in visitors.source.sql.
WITH placed AS (
    SELECT
        part,
        user,
        seq,
        area,
        dense_rank() OVER (PARTITION BY part ORDER BY user) - 1 AS place,
        max(seq) OVER (PARTITION BY part, user) AS last_seq
    FROM source
),

dated AS (
    SELECT
        part || '-' || CAST(user AS VARCHAR) AS user,
        seq,
        area,
        last_seq,
        CASE
            WHEN part = 'test' THEN DATE '1998-03-02' + CAST(place // 500 AS INTEGER)
            ELSE DATE '1998-01-01' + CAST(place // 546 AS INTEGER)
        END AS day
    FROM placed
)

SELECT user, seq, area, timezone('UTC', CAST(day AS TIMESTAMP) + INTERVAL 20 HOUR) AS seen_utc
FROM dated
WHERE seq < last_seq
