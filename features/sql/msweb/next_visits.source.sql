-- The last area in the file's list of each user, seen the morning after the others.
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

SELECT
    user,
    area,
    -- The areas that are the last of most users of the training file; two in three visits are of one of them.
    CASE area
        WHEN 1034 THEN 'internet explorer'
        WHEN 1004 THEN 'search'
        WHEN 1018 THEN 'isapi'
        WHEN 1026 THEN 'site construction'
        WHEN 1001 THEN 'support'
        WHEN 1009 THEN 'windows'
        WHEN 1008 THEN 'downloads'
        WHEN 1017 THEN 'products'
        ELSE 'other'
    END AS activity,
    timezone('UTC', CAST(day AS TIMESTAMP) + INTERVAL 32 HOUR) AS seen_utc
FROM dated
WHERE seq = last_seq
