-- Each project that begins on the night's day, its plan, and how the owner's projects that have ended by the night went.
-- The owner's share is shrunk towards 0.55 by two projects, so that one is no certainty.
WITH ended AS (
    SELECT n.data_date, o."user", o.succeeded, o.days_taken, p.planned_days
    FROM nights AS n
    JOIN project_outcomes AS o ON o.data_date <= n.data_date AND o.superseded_on > n.data_date
    LEFT JOIN projects AS p
        ON p.project = o.project AND p.event_date = o.event_date AND p.data_date <= n.data_date AND p.superseded_on > n.data_date
),

owners AS (
    SELECT
        data_date,
        "user",
        count(*) AS projects,
        sum(succeeded) AS succeeded,
        sum(CASE WHEN planned_days IS NOT NULL THEN days_taken END) AS days_taken,
        sum(planned_days) AS planned_days
    FROM ended
    GROUP BY data_date, "user"
)

SELECT
    n.data_date,
    p.project,
    p.kind,
    p.role,
    p.team_size,
    p.planned_days,
    p.scope_points,
    CAST(p.scope_points AS DOUBLE) / (p.team_size * p.planned_days) AS scope_a_person_day,
    CAST(coalesce(o.projects, 0) AS INTEGER) AS owner_ended,
    (CAST(coalesce(o.succeeded, 0) AS DOUBLE) + 1.1) / (coalesce(o.projects, 0) + 2) AS owner_success_share,
    CAST(o.days_taken AS DOUBLE) / nullif(o.planned_days, 0) AS owner_days_share
FROM nights AS n
JOIN projects AS p ON p.event_date = n.data_date AND p.data_date <= n.data_date AND p.superseded_on > n.data_date
LEFT JOIN owners AS o ON o.data_date = n.data_date AND o."user" = p."user"
