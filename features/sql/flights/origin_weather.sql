-- Weather as observed at an airport up to the cutoff: the last observation, and the 24 hours before the cutoff. No forecast.
-- Measures are DECIMALs before they are added or subtracted: exact, whatever the order.
WITH observed AS (
    SELECT
        n.data_date,
        n.cutoff_utc,
        w.origin,
        w.time_hour,
        CAST(w.temp_fahrenheit AS DECIMAL(18, 6)) AS temp,
        CAST(w.dew_point_fahrenheit AS DECIMAL(18, 6)) AS dew_point,
        CAST(w.humidity_percent AS DECIMAL(18, 6)) AS humidity,
        CAST(w.wind_mph AS DECIMAL(18, 6)) AS wind,
        CAST(w.gust_mph AS DECIMAL(18, 6)) AS gust,
        CAST(w.precipitation_inches AS DECIMAL(18, 6)) AS precipitation,
        CAST(w.pressure_millibars AS DECIMAL(18, 6)) AS pressure,
        CAST(w.visibility_miles AS DECIMAL(18, 6)) AS visibility,
        row_number() OVER (PARTITION BY n.data_date, w.origin ORDER BY w.time_hour DESC) AS newest
    FROM nights AS n
    JOIN weather AS w ON w.data_date <= n.data_date AND w.superseded_on > n.data_date
    WHERE w.time_hour > n.cutoff_utc - INTERVAL 24 HOUR AND w.time_hour <= n.cutoff_utc
)

SELECT
    data_date,
    origin,
    count(*) AS observations_24h,
    min(CASE WHEN newest = 1 THEN epoch(cutoff_utc) - epoch(time_hour) END) / 3600 AS last_observed_hours_ago,
    max(CASE WHEN newest = 1 THEN temp END) AS temp_fahrenheit,
    max(CASE WHEN newest = 1 THEN temp - dew_point END) AS dew_point_spread_fahrenheit,
    max(CASE WHEN newest = 1 THEN humidity END) AS humidity_percent,
    max(CASE WHEN newest = 1 THEN wind END) AS wind_mph,
    max(CASE WHEN newest = 1 THEN visibility END) AS visibility_miles,
    max(CASE WHEN newest = 1 THEN pressure END) AS pressure_millibars,
    -- A front on its way shows in the pressure long before it rains.
    max(CASE WHEN newest = 1 THEN pressure END) - max(CASE WHEN newest = 7 THEN pressure END) AS pressure_change_6h_millibars,
    max(CASE WHEN newest = 1 THEN temp END) - max(CASE WHEN newest = 7 THEN temp END) AS temp_change_6h_fahrenheit,
    sum(precipitation) AS precipitation_24h_inches,
    sum(CASE WHEN time_hour > cutoff_utc - INTERVAL 6 HOUR THEN precipitation END) AS precipitation_6h_inches,
    max(wind) AS wind_max_24h_mph,
    max(gust) AS gust_max_24h_mph,
    count(gust) AS gust_hours_24h,
    min(visibility) AS visibility_min_24h_miles,
    min(temp) AS temp_min_24h_fahrenheit,
    max(temp) AS temp_max_24h_fahrenheit
FROM observed
GROUP BY data_date, origin
