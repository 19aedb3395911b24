-- Each project approved on the night's own day: what it is, what its name says, and the mean years that projects like it
-- took, of those that closed in the ten years (120 nights) that the night knows.
WITH tonight AS (
    SELECT n.data_date, o.*
    FROM nights AS n
    JOIN openings AS o ON o.approved_on = n.data_date AND o.data_date <= n.data_date AND o.superseded_on > n.data_date
),

closed AS (
    SELECT n.data_date, c.country, c.practice, c.instrument, c.years, c.data_date > n.data_date - 36 AS recent
    FROM nights AS n
    JOIN closings AS c ON c.data_date <= n.data_date AND c.data_date > n.data_date - 120 AND c.superseded_on > n.data_date
),

by_country AS (
    SELECT data_date, country, count(*) AS projects, CAST(sum(years) AS DOUBLE) / count(*) AS years FROM closed GROUP BY data_date, country
),

by_practice AS (
    SELECT data_date, practice, CAST(sum(years) AS DOUBLE) / count(*) AS years FROM closed WHERE practice IS NOT NULL GROUP BY data_date, practice
),

by_instrument AS (
    SELECT data_date, instrument, CAST(sum(years) AS DOUBLE) / count(*) AS years FROM closed WHERE recent GROUP BY data_date, instrument
)

SELECT
    t.data_date,
    t.project,
    t.region,
    t.country,
    t.practice_group,
    t.practice,
    t.agreement,
    t.instrument,
    regexp_matches(upper(t.name), '(^|[^A-Z0-9])(II|III|IV|V|VI|2|3|4|SECOND|THIRD|FOURTH|2ND|3RD|PHASE|APL)([^A-Z0-9]|$)') AS follows_another,
    regexp_matches(upper(t.name), 'EMERG|RECOVERY|RECONSTR|DISASTER|FLOOD|EARTHQ') AS is_emergency,
    regexp_matches(upper(t.name), 'TECHNICAL|CAPACITY|INSTITUT|REFORM|MANAGEMENT|(^|[^A-Z])TA([^A-Z]|$)') AS builds_institutions,
    CAST(coalesce(c.projects, 0) AS INTEGER) AS country_closed_10y,
    c.years AS country_years_10y,
    p.years AS practice_years_10y,
    i.years AS instrument_years_3y
FROM tonight AS t
LEFT JOIN by_country AS c ON c.data_date = t.data_date AND c.country = t.country
LEFT JOIN by_practice AS p ON p.data_date = t.data_date AND p.practice = t.practice
LEFT JOIN by_instrument AS i ON i.data_date = t.data_date AND i.instrument = t.instrument
