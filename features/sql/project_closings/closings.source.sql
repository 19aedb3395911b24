-- Fiscal years from approval to final closing. Known at 21:00 of one of the twelve nights of the fiscal year of the
-- closing, which follows from a hash of the project's number, and never before the approval. Nights as in
-- projects/approvals.source.sql. Two closings before the approval are mistakes of the file, and left out.
SELECT
    DATE '2001-01-01'
    + CAST(("Approval FY" - 1978) * 12 + CAST('0x' || substr(md5('approval' || "Project ID"), 1, 7) AS INTEGER) % 12 AS INTEGER) AS approved_on,
    "Project ID" AS project,
    CAST("Final Closing FY" AS INTEGER) - "Approval FY" AS years,
    "Country / Economy" AS country,
    "Global Practice" AS practice,
    "Lending Instrument Type" AS instrument,
    timezone(
        'UTC',
        CAST(
            greatest(
                approved_on,
                DATE '2001-01-01'
                + CAST(
                    (CAST("Final Closing FY" AS INTEGER) - 1978) * 12
                    + CAST('0x' || substr(md5('closing' || "Project ID"), 1, 7) AS INTEGER) % 12 AS INTEGER
                )
            ) AS TIMESTAMP
        ) + INTERVAL 21 HOUR
    ) AS closed_utc
FROM source
WHERE "Approval FY" >= 1978 AND CAST("Final Closing FY" AS INTEGER) >= "Approval FY"
