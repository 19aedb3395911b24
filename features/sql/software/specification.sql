-- Each project specified on the night's own day, and the hours that a power law gives so many function points: a line
-- through the logarithms of size and hours of all projects that have ended by the night. Logarithms are summed as
-- decimals, so that a night alone and many at once agree to the last bit.
WITH ended AS (
    SELECT
        n.data_date,
        CAST(ln(t.function_points) AS DECIMAL(12, 6)) AS size,
        CAST(ln(t.hours) AS DECIMAL(12, 6)) AS effort
    FROM nights AS n
    JOIN timesheets AS t ON t.data_date <= n.data_date AND t.superseded_on > n.data_date
),

summed AS (
    SELECT
        data_date,
        CAST(count(*) AS DOUBLE) AS projects,
        CAST(sum(size) AS DOUBLE) AS sizes,
        CAST(sum(effort) AS DOUBLE) AS efforts,
        CAST(sum(size * size) AS DOUBLE) AS squares,
        CAST(sum(size * effort) AS DOUBLE) AS products
    FROM ended
    GROUP BY data_date
),

line AS (
    SELECT
        data_date,
        (projects * products - sizes * efforts) / nullif(projects * squares - sizes * sizes, 0) AS slope,
        efforts / projects AS mean_effort,
        sizes / projects AS mean_size
    FROM summed
    WHERE projects >= 10
)

SELECT
    n.data_date,
    s.project,
    s.function_points,
    s.inputs,
    s.outputs,
    s.enquiries,
    s.files,
    s.interfaces,
    CAST(s.changed + s.deleted AS DOUBLE) / nullif(s.added + s.changed + s.deleted, 0) AS changed_share,
    exp(l.mean_effort + l.slope * (ln(s.function_points) - l.mean_size)) AS hours_by_size
FROM nights AS n
JOIN specifications AS s ON s.specified_on = n.data_date AND s.data_date <= n.data_date AND s.superseded_on > n.data_date
LEFT JOIN line AS l ON l.data_date = n.data_date
