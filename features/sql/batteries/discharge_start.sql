-- The first 25 minutes of each discharge of the night's own day: voltage at 20 instants, `_t0` the last of them (1,500 s), each
-- between the two readings around it; voltage at rest, its first drop under load, and how much warmer the cell became.
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
    SELECT data_date, cell, voltage, temperature_celsius
    FROM tonight
    WHERE reading = 1
)

SELECT
    r.data_date,
    r.cell,
    r.voltage AS rest_voltage,
    r.voltage - max(CASE WHEN s.step = 19 THEN s.voltage END) AS first_drop,
    max(CASE WHEN s.step = 0 THEN s.temperature_celsius END) - r.temperature_celsius AS temperature_rise,
    max(CASE WHEN s.step = 0 THEN s.voltage END) AS voltage_t0,
    max(CASE WHEN s.step = 1 THEN s.voltage END) AS voltage_t1,
    max(CASE WHEN s.step = 2 THEN s.voltage END) AS voltage_t2,
    max(CASE WHEN s.step = 3 THEN s.voltage END) AS voltage_t3,
    max(CASE WHEN s.step = 4 THEN s.voltage END) AS voltage_t4,
    max(CASE WHEN s.step = 5 THEN s.voltage END) AS voltage_t5,
    max(CASE WHEN s.step = 6 THEN s.voltage END) AS voltage_t6,
    max(CASE WHEN s.step = 7 THEN s.voltage END) AS voltage_t7,
    max(CASE WHEN s.step = 8 THEN s.voltage END) AS voltage_t8,
    max(CASE WHEN s.step = 9 THEN s.voltage END) AS voltage_t9,
    max(CASE WHEN s.step = 10 THEN s.voltage END) AS voltage_t10,
    max(CASE WHEN s.step = 11 THEN s.voltage END) AS voltage_t11,
    max(CASE WHEN s.step = 12 THEN s.voltage END) AS voltage_t12,
    max(CASE WHEN s.step = 13 THEN s.voltage END) AS voltage_t13,
    max(CASE WHEN s.step = 14 THEN s.voltage END) AS voltage_t14,
    max(CASE WHEN s.step = 15 THEN s.voltage END) AS voltage_t15,
    max(CASE WHEN s.step = 16 THEN s.voltage END) AS voltage_t16,
    max(CASE WHEN s.step = 17 THEN s.voltage END) AS voltage_t17,
    max(CASE WHEN s.step = 18 THEN s.voltage END) AS voltage_t18,
    max(CASE WHEN s.step = 19 THEN s.voltage END) AS voltage_t19
FROM at_rest AS r
LEFT JOIN sampled AS s ON s.data_date = r.data_date AND s.cell = r.cell
GROUP BY r.data_date, r.cell, r.voltage, r.temperature_celsius
