-- Each vehicle's last visits that are reported by the night: the later a visit is reported, the later it counts.
SELECT
    n.data_date,
    w.vehicle,
    CAST(n.data_date - max(w.visit_date) FILTER (WHERE w.part = 'pads') AS INTEGER) AS days_since_pads,
    CAST(n.data_date - max(w.visit_date) FILTER (WHERE w.part = 'engine') AS INTEGER) AS days_since_engine,
    CAST(sum(w.unplanned) AS INTEGER) AS unplanned_240d
FROM nights AS n
JOIN workshop_visits AS w ON w.data_date <= n.data_date AND w.superseded_on > n.data_date
WHERE w.visit_date > n.data_date - 240 AND w.visit_date <= n.data_date
GROUP BY n.data_date, w.vehicle
