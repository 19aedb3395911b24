-- Each vehicle that sent the night's own day: that day, and its last week and four weeks. Measures are DECIMALs before they are added:
-- exact, whatever the order. A reading that is missing is left out of its mean.
WITH known AS (
    SELECT
        n.data_date,
        v.vehicle,
        n.data_date - v.event_date AS days_ago,
        v.* EXCLUDE (data_date, vehicle)
    FROM nights AS n
    JOIN vehicle_days AS v ON v.data_date <= n.data_date AND v.superseded_on > n.data_date
    WHERE v.event_date > n.data_date - 28 AND v.event_date <= n.data_date
),

summed AS (
    SELECT
        data_date,
        vehicle,
        sum(CAST(load_tonnes AS DECIMAL(18, 4))) / count(*) AS load_tonnes_28d,
        sum(CAST(distance_km AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) AS km_7d,
        sum(CAST(distance_km AS DECIMAL(18, 4))) AS km_28d,
        count(*) AS days_28d,
        sum(CAST(night_km AS DECIMAL(18, 4))) AS night_km_28d,
        sum(CAST(engine_temp AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) / nullif(count(engine_temp) FILTER (WHERE days_ago < 7), 0) AS engine_temp_7d,
        sum(CAST(engine_temp AS DECIMAL(18, 4))) / nullif(count(engine_temp), 0) AS engine_temp_28d,
        sum(CAST(vibration AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) / nullif(count(vibration) FILTER (WHERE days_ago < 7), 0) AS vibration_7d,
        sum(CAST(vibration AS DECIMAL(18, 4))) / nullif(count(vibration), 0) AS vibration_28d,
        sum(CAST(oil_pressure AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) / nullif(count(oil_pressure) FILTER (WHERE days_ago < 7), 0) AS oil_pressure_7d,
        sum(CAST(oil_pressure AS DECIMAL(18, 4))) / nullif(count(oil_pressure), 0) AS oil_pressure_28d,
        sum(CAST(brake_temp AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) / nullif(count(brake_temp) FILTER (WHERE days_ago < 7), 0) AS brake_temp_7d,
        sum(CAST(pad_mm AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) / nullif(count(pad_mm) FILTER (WHERE days_ago < 7), 0) AS pad_mm_7d,
        sum(CAST(brake_energy_mj AS DECIMAL(18, 4))) / count(*) AS brake_energy_mj_28d,
        sum(CAST(harsh_braking AS BIGINT)) FILTER (WHERE days_ago < 7) AS harsh_7d,
        sum(CAST(harsh_braking AS BIGINT)) AS harsh_28d,
        sum(CAST(speeding_minutes AS BIGINT)) FILTER (WHERE days_ago < 7) AS speeding_7d,
        sum(CAST(speeding_minutes AS BIGINT)) AS speeding_28d,
        sum(CAST(hours_driven AS DECIMAL(18, 4))) FILTER (WHERE days_ago < 7) AS hours_7d,
        sum(CAST(hours_driven AS DECIMAL(18, 4))) AS hours_28d
    FROM known
    GROUP BY data_date, vehicle
)

SELECT
    s.data_date,
    s.vehicle,
    k.empty_tonnes,
    s.load_tonnes_28d,
    k.distance_km,
    s.km_28d / s.days_28d AS distance_km_28d,
    s.night_km_28d / nullif(s.km_28d, 0) AS night_share_28d,
    k.ambient_temp,
    k.engine_temp,
    s.engine_temp_7d,
    s.engine_temp_28d,
    k.vibration,
    s.vibration_7d,
    s.vibration_28d,
    s.oil_pressure_7d,
    s.oil_pressure_28d,
    s.brake_temp_7d,
    s.pad_mm_7d,
    k.pads_energy_mj,
    s.brake_energy_mj_28d,
    -- What pads of the three types stand, in MJ, as their maker says.
    k.pads_energy_mj / CASE WHEN k.empty_tonnes < 5 THEN 4320 WHEN k.empty_tonnes < 10 THEN 16760 ELSE 22760 END AS pads_life,
    k.tyre_work,
    100 * s.harsh_7d / nullif(s.km_7d, 0) AS harsh_braking_100km_7d,
    100 * s.harsh_28d / nullif(s.km_28d, 0) AS harsh_braking_100km_28d,
    s.speeding_7d / nullif(60 * s.hours_7d, 0) AS speeding_share_7d,
    s.speeding_28d / nullif(60 * s.hours_28d, 0) AS speeding_share_28d
FROM summed AS s
JOIN known AS k ON k.data_date = s.data_date AND k.vehicle = s.vehicle AND k.days_ago = 0
