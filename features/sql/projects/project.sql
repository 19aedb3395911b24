-- Each project approved on the night's own day: what it is, what its name says, how many the country has begun in three
-- years (36 nights), and how projects like it were rated in the ten years (120 nights) that the night knows.
-- A share is shrunk towards 0.75 by two projects, so that one rating is no certainty.
WITH tonight AS (
    SELECT n.data_date, a.*
    FROM nights AS n
    JOIN approvals AS a ON a.approved_on = n.data_date AND a.data_date <= n.data_date AND a.superseded_on > n.data_date
),

rated AS (
    SELECT
        n.data_date,
        r.country,
        r.practice,
        r.region,
        CASE WHEN r.outcome IN ('Moderately Satisfactory', 'Satisfactory', 'Highly Satisfactory') THEN 1 ELSE 0 END AS good,
        CASE WHEN r.data_date > n.data_date - 36 THEN 1 ELSE 0 END AS recent
    FROM nights AS n
    JOIN ratings AS r
        ON r.data_date <= n.data_date AND r.data_date > n.data_date - 120 AND r.superseded_on > n.data_date AND r.outcome IS NOT NULL
),

by_country AS (
    SELECT data_date, country, count(*) AS rated, (sum(good) + 1.5) / (count(*) + 2) AS good_share FROM rated GROUP BY data_date, country
),

by_practice AS (
    SELECT data_date, practice, (sum(good) + 1.5) / (count(*) + 2) AS good_share FROM rated WHERE practice IS NOT NULL GROUP BY data_date, practice
),

by_region AS (
    SELECT data_date, region, (sum(good) + 1.5) / (count(*) + 2) AS good_share FROM rated GROUP BY data_date, region
),

overall AS (
    SELECT data_date, (sum(good * recent) + 1.5) / (sum(recent) + 2) AS good_share FROM rated GROUP BY data_date
),

begun AS (
    SELECT n.data_date, a.country, count(*) AS projects
    FROM nights AS n
    JOIN approvals AS a
        ON a.data_date <= n.data_date AND a.superseded_on > n.data_date AND a.approved_on > n.data_date - 36 AND a.approved_on <= n.data_date
    GROUP BY n.data_date, a.country
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
    CAST(length(t.name) AS INTEGER) AS name_letters,
    CAST(b.projects AS INTEGER) AS country_begun_3y,
    CAST(coalesce(c.rated, 0) AS INTEGER) AS country_rated_10y,
    CAST(c.good_share AS DOUBLE) AS country_good_share_10y,
    CAST(p.good_share AS DOUBLE) AS practice_good_share_10y,
    CAST(r.good_share AS DOUBLE) AS region_good_share_10y,
    CAST(o.good_share AS DOUBLE) AS good_share_3y
FROM tonight AS t
LEFT JOIN begun AS b ON b.data_date = t.data_date AND b.country = t.country
LEFT JOIN by_country AS c ON c.data_date = t.data_date AND c.country = t.country
LEFT JOIN by_practice AS p ON p.data_date = t.data_date AND p.practice = t.practice
LEFT JOIN by_region AS r ON r.data_date = t.data_date AND r.region = t.region
LEFT JOIN overall AS o ON o.data_date = t.data_date
