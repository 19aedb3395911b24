-- Software projects by the night of their specification. The file has no dates; the nights here are a replay's.
--
-- The order of arrival: three projects a night from 2010-01-01 on, in the order of a hash of their number alone, so that
-- neither size nor effort says when a project comes. A night stands for a month.
SELECT
    DATE '2010-01-01' + CAST((row_number() OVER (ORDER BY md5('specified' || "ID"), "ID") - 1) // 3 AS INTEGER) AS specified_on,
    "ID" AS project,
    timezone('UTC', CAST(specified_on AS TIMESTAMP) + INTERVAL 20 HOUR) AS specified_utc,
    timezone('UTC', CAST(specified_on AS TIMESTAMP) + INTERVAL 32 HOUR) AS offer_utc,
    "AFP" AS function_points,
    "Input" AS inputs,
    "Output" AS outputs,
    "Enquiry" AS enquiries,
    "File" AS files,
    "Interface" AS interfaces,
    "Added" AS added,
    "Changed" AS changed,
    "Deleted" AS deleted
FROM source
