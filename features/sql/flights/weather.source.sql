-- Hourly observations at the three origins; the calendar columns of the source repeat what time_hour says.
SELECT
    time_hour,
    origin,
    temp AS temp_fahrenheit,
    dewp AS dew_point_fahrenheit,
    humid AS humidity_percent,
    CAST(wind_dir AS INTEGER) AS wind_direction_degrees,
    wind_speed AS wind_mph,
    wind_gust AS gust_mph,
    precip AS precipitation_inches,
    pressure AS pressure_millibars,
    visib AS visibility_miles
FROM source
