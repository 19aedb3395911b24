-- Tyres lose tread by load times distance: 6 mm of 8 in a nominal life of their work, some sets faster and some slower.
-- How fast this one is, its last measurement says, unless it was mounted since (its work is less now than then). A set that was young
-- as it was measured says little, since the gauge is off by 0.2 mm: its pace counts by the share that is not the gauge's, of paces that
-- differ by 0.17 from set to set. Arithmetic of single rows: the same in any order.
WITH tonight AS (
    SELECT n.data_date, v.vehicle, v.tyre_work
    FROM nights AS n
    JOIN vehicle_days AS v ON v.event_date = n.data_date AND v.data_date <= n.data_date AND v.superseded_on > n.data_date
),

measured AS (
    SELECT
        n.data_date,
        m.vehicle,
        m.event_date,
        m.tread_mm,
        row_number() OVER (PARTITION BY n.data_date, m.vehicle ORDER BY m.event_date DESC) AS newest
    FROM nights AS n
    JOIN tread_measurements AS m ON m.data_date <= n.data_date AND m.superseded_on > n.data_date
    WHERE m.event_date > n.data_date - 120 AND m.event_date < n.data_date
),

judged AS (
    SELECT
        t.data_date,
        t.vehicle,
        t.tyre_work,
        m.tread_mm,
        m.event_date,
        CASE WHEN v.tyre_work <= t.tyre_work AND v.tyre_work > 0 THEN v.tyre_work END AS work_then
    FROM tonight AS t
    LEFT JOIN measured AS m ON m.data_date = t.data_date AND m.vehicle = t.vehicle AND m.newest = 1
    LEFT JOIN vehicle_days AS v
        ON v.event_date = m.event_date AND v.vehicle = m.vehicle AND v.data_date <= t.data_date AND v.superseded_on > t.data_date
),

paced AS (
    SELECT
        *,
        coalesce(
            ((8 - tread_mm) / (6 * work_then) - 1)
            * (6 * work_then * 0.17) * (6 * work_then * 0.17) / ((6 * work_then * 0.17) * (6 * work_then * 0.17) + 0.04),
            0
        ) AS faster
    FROM judged
)

SELECT
    data_date,
    vehicle,
    8 - 6 * (1 + faster) * tyre_work AS tread_projected_mm,
    8 - 6 * tyre_work AS tread_by_work_mm,
    tread_mm AS last_tread_mm,
    CAST(data_date - event_date AS INTEGER) AS days_since_measured
FROM paced
