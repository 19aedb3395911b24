-- Projects by the night of their approval. The file has fiscal years; the nights here are a replay's.
--
-- A fiscal year is twelve nights: 1978 begins on 2001-01-01, 1979 twelve nights later, and so on. Which of its year's
-- twelve a project is approved on follows from a hash of its number alone. Earlier approvals are left out.
-- Lending group and FCS status are left out: the file has those of today, which the approval did not know.
SELECT
    DATE '2001-01-01'
    + CAST(("Approval FY" - 1978) * 12 + CAST('0x' || substr(md5('approval' || "Project ID"), 1, 7) AS INTEGER) % 12 AS INTEGER) AS approved_on,
    "Project ID" AS project,
    timezone('UTC', CAST(approved_on AS TIMESTAMP) + INTERVAL 20 HOUR) AS approved_utc,
    timezone('UTC', CAST(approved_on AS TIMESTAMP) + INTERVAL 32 HOUR) AS portfolio_review_utc,
    "Approval FY" AS approval_year,
    "Project Name" AS name,
    "WB Region" AS region,
    "Country / Economy" AS country,
    "Practice Group" AS practice_group,
    "Global Practice" AS practice,
    "Agreement Type" AS agreement,
    "Lending Instrument Type" AS instrument
FROM source
WHERE "Approval FY" >= 1978
