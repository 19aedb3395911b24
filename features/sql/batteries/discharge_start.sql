-- The first 25 minutes of each discharge of the night's own day, relative to 75 s after the first reading, when the load is on: how far
-- the voltage has fallen and how much warmer the cell is every 75 s until 1,500 s, `_t0` the last of them, each between the two
-- readings around it. And the fall from rest until 75 s, which is the inner resistance's.
--
-- Nothing later is looked at. The current is constant, so the time until 2.7 V is the capacity but for a factor, and so is any sum
-- of current over the whole discharge: a model that saw them would repeat the measurement it is to spare. The first 25 minutes
-- end well before any of these discharges does (the shortest took 35), so that a partial discharge is enough. The count of cycles
-- is left out too: it would teach how fast two cells of the laboratory aged, and nothing about the cell at hand.
WITH tonight AS (
    SELECT
        n.data_date,
        c.cell,
        c.reading,
        c.seconds,
        c.voltage,
        c.temperature_celsius,
        lead(c.seconds) OVER (PARTITION BY n.data_date, c.cell ORDER BY c.seconds) AS next_seconds,
        lead(c.voltage) OVER (PARTITION BY n.data_date, c.cell ORDER BY c.seconds) AS next_voltage,
        lead(c.temperature_celsius) OVER (PARTITION BY n.data_date, c.cell ORDER BY c.seconds) AS next_temperature_celsius
    FROM nights AS n
    JOIN curves AS c ON c.test_date = n.data_date AND c.data_date <= n.data_date AND c.superseded_on > n.data_date
),

sampled AS (
    SELECT
        t.data_date,
        t.cell,
        back.steps AS step,
        t.voltage + (t.next_voltage - t.voltage) * (1500 - 75 * back.steps - t.seconds) / (t.next_seconds - t.seconds) AS voltage,
        t.temperature_celsius
        + (t.next_temperature_celsius - t.temperature_celsius) * (1500 - 75 * back.steps - t.seconds) / (t.next_seconds - t.seconds)
            AS temperature_celsius
    FROM tonight AS t
    CROSS JOIN range(20) AS back (steps)
    WHERE t.seconds <= 1500 - 75 * back.steps AND t.next_seconds > 1500 - 75 * back.steps
),

at_rest AS (
    SELECT data_date, cell, voltage
    FROM tonight
    WHERE reading = 1
),

loaded AS (
    SELECT data_date, cell, voltage, temperature_celsius
    FROM sampled
    WHERE step = 19
)

SELECT
    l.data_date,
    l.cell,
    max(r.voltage) - l.voltage AS first_fall,
    l.voltage - max(CASE WHEN s.step = 0 THEN s.voltage END) AS voltage_fall_t0,
    l.voltage - max(CASE WHEN s.step = 1 THEN s.voltage END) AS voltage_fall_t1,
    l.voltage - max(CASE WHEN s.step = 2 THEN s.voltage END) AS voltage_fall_t2,
    l.voltage - max(CASE WHEN s.step = 3 THEN s.voltage END) AS voltage_fall_t3,
    l.voltage - max(CASE WHEN s.step = 4 THEN s.voltage END) AS voltage_fall_t4,
    l.voltage - max(CASE WHEN s.step = 5 THEN s.voltage END) AS voltage_fall_t5,
    l.voltage - max(CASE WHEN s.step = 6 THEN s.voltage END) AS voltage_fall_t6,
    l.voltage - max(CASE WHEN s.step = 7 THEN s.voltage END) AS voltage_fall_t7,
    l.voltage - max(CASE WHEN s.step = 8 THEN s.voltage END) AS voltage_fall_t8,
    l.voltage - max(CASE WHEN s.step = 9 THEN s.voltage END) AS voltage_fall_t9,
    l.voltage - max(CASE WHEN s.step = 10 THEN s.voltage END) AS voltage_fall_t10,
    l.voltage - max(CASE WHEN s.step = 11 THEN s.voltage END) AS voltage_fall_t11,
    l.voltage - max(CASE WHEN s.step = 12 THEN s.voltage END) AS voltage_fall_t12,
    l.voltage - max(CASE WHEN s.step = 13 THEN s.voltage END) AS voltage_fall_t13,
    l.voltage - max(CASE WHEN s.step = 14 THEN s.voltage END) AS voltage_fall_t14,
    l.voltage - max(CASE WHEN s.step = 15 THEN s.voltage END) AS voltage_fall_t15,
    l.voltage - max(CASE WHEN s.step = 16 THEN s.voltage END) AS voltage_fall_t16,
    l.voltage - max(CASE WHEN s.step = 17 THEN s.voltage END) AS voltage_fall_t17,
    l.voltage - max(CASE WHEN s.step = 18 THEN s.voltage END) AS voltage_fall_t18,
    max(CASE WHEN s.step = 0 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t0,
    max(CASE WHEN s.step = 1 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t1,
    max(CASE WHEN s.step = 2 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t2,
    max(CASE WHEN s.step = 3 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t3,
    max(CASE WHEN s.step = 4 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t4,
    max(CASE WHEN s.step = 5 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t5,
    max(CASE WHEN s.step = 6 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t6,
    max(CASE WHEN s.step = 7 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t7,
    max(CASE WHEN s.step = 8 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t8,
    max(CASE WHEN s.step = 9 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t9,
    max(CASE WHEN s.step = 10 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t10,
    max(CASE WHEN s.step = 11 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t11,
    max(CASE WHEN s.step = 12 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t12,
    max(CASE WHEN s.step = 13 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t13,
    max(CASE WHEN s.step = 14 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t14,
    max(CASE WHEN s.step = 15 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t15,
    max(CASE WHEN s.step = 16 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t16,
    max(CASE WHEN s.step = 17 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t17,
    max(CASE WHEN s.step = 18 THEN s.temperature_celsius END) - l.temperature_celsius AS warming_t18
FROM loaded AS l
LEFT JOIN at_rest AS r ON r.data_date = l.data_date AND r.cell = l.cell
LEFT JOIN sampled AS s ON s.data_date = l.data_date AND s.cell = l.cell
GROUP BY l.data_date, l.cell, l.voltage, l.temperature_celsius
