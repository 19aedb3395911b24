-- Each fill of the night's own day. What makes fraud visible is what differs from what was to be expected.
SELECT
    n.data_date,
    f.transaction,
    f.litres,
    f.litres / f.consumed_litres AS litres_over_consumed,
    f.litres / f.tank_litres AS litres_over_tank,
    f.price_per_litre - f.market_price_per_litre AS price_over_market,
    f.station_away_km,
    CAST(extract('hour' FROM timezone('UTC', f.paid_utc)) AS INTEGER) AS hour_utc,
    CAST(CASE WHEN extract('hour' FROM timezone('UTC', f.paid_utc)) BETWEEN 6 AND 19 THEN 0 ELSE 1 END AS INTEGER) AS by_night
FROM nights AS n
JOIN fuel_transactions AS f ON f.event_date = n.data_date AND f.data_date <= n.data_date AND f.superseded_on > n.data_date
