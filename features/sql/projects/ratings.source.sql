-- What evaluators said of each project. Known on one of the twelve nights of the fiscal year of the evaluation, years
-- after the approval (half of them eight, one in ten more than eleven); which of the twelve follows from a hash of its
-- number. Nights as in approvals.source.sql. 'Not Rated' says that nobody knows.
SELECT
    DATE '2001-01-01'
    + CAST(("Approval FY" - 1978) * 12 + CAST('0x' || substr(md5('approval' || "Project ID"), 1, 7) AS INTEGER) % 12 AS INTEGER) AS approved_on,
    "Project ID" AS project,
    nullif("Outcome", 'Not Rated') AS outcome,
    "WB Region" AS region,
    "Country / Economy" AS country,
    "Global Practice" AS practice,
    timezone(
        'UTC',
        CAST(
            DATE '2001-01-01'
            + CAST(("Evaluation FY" - 1978) * 12 + CAST('0x' || substr(md5('evaluation' || "Project ID"), 1, 7) AS INTEGER) % 12 AS INTEGER) AS TIMESTAMP
        ) + INTERVAL 20 HOUR
    ) AS evaluated_utc
FROM source
WHERE "Approval FY" >= 1978
