-- The hours of each project, known when it ends: "Duration" is in months, and a month begun is a night here. Nights as in
-- specifications.source.sql.
SELECT
    DATE '2010-01-01' + CAST((row_number() OVER (ORDER BY md5('specified' || "ID"), "ID") - 1) // 3 AS INTEGER) AS specified_on,
    "ID" AS project,
    "AFP" AS function_points,
    "Effort" AS hours,
    timezone('UTC', CAST(specified_on + CAST(ceil("Duration") AS INTEGER) AS TIMESTAMP) + INTERVAL 20 HOUR) AS ended_utc
FROM source
