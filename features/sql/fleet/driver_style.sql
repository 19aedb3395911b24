-- The driver of the night's own day, over the days of twelve weeks on which the same one drove. Measures are DECIMALs before they are
-- added: exact, whatever the order.
WITH tonight AS (
    SELECT n.data_date, v.vehicle, v.driver
    FROM nights AS n
    JOIN vehicle_days AS v ON v.event_date = n.data_date AND v.data_date <= n.data_date AND v.superseded_on > n.data_date
),

driven AS (
    SELECT
        t.data_date,
        t.vehicle,
        count(*) AS days,
        sum(CAST(v.distance_km AS DECIMAL(18, 4))) AS km,
        sum(CAST(v.night_km AS DECIMAL(18, 4))) AS night_km,
        sum(CAST(v.hours_driven AS DECIMAL(18, 4))) AS hours,
        sum(CAST(v.harsh_braking AS BIGINT)) AS harsh,
        sum(CAST(v.speeding_minutes AS BIGINT)) AS speeding,
        sum(CAST(v.brake_temp AS DECIMAL(18, 4))) / nullif(count(v.brake_temp), 0) AS brake_temp
    FROM tonight AS t
    JOIN vehicle_days AS v
        ON v.vehicle = t.vehicle AND v.driver = t.driver AND v.data_date <= t.data_date AND v.superseded_on > t.data_date
    WHERE v.event_date > t.data_date - 84 AND v.event_date <= t.data_date
    GROUP BY t.data_date, t.vehicle
),

told AS (
    SELECT n.data_date, i.vehicle, count(*) AS incidents
    FROM nights AS n
    JOIN incidents AS i ON i.data_date <= n.data_date AND i.superseded_on > n.data_date
    WHERE i.event_date > n.data_date - 182 AND i.event_date <= n.data_date
    GROUP BY n.data_date, i.vehicle
)

SELECT
    d.data_date,
    d.vehicle,
    CAST(d.days AS INTEGER) AS driver_days,
    100 * d.harsh / nullif(d.km, 0) AS driver_harsh_braking_100km,
    d.speeding / nullif(60 * d.hours, 0) AS driver_speeding_share,
    d.brake_temp AS driver_brake_temp,
    d.night_km / nullif(d.km, 0) AS night_share,
    CAST(coalesce(t.incidents, 0) AS INTEGER) AS incidents_182d
FROM driven AS d
LEFT JOIN told AS t ON t.data_date = d.data_date AND t.vehicle = d.vehicle
