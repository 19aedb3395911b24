-- One row an hour. The source repeats an hour once per weather label, always with the same volume: of the rows that
-- share label time and volume the one with the most rain is kept, then the most snow, then the highest temperature and
-- cloud cover, then the first label by name. Rows of one hour with different volumes would all be kept: they are a clash for
-- validation to set aside. The collapse happens here, before keys, revisions and checks see the rows.
--
-- `date_time` is the local clock of Chicago. In spring 02:00 does not exist, and the source has no such row; one that
-- came would be read as 03:00 and clash with it. In autumn 01:00 comes twice, the source labels it once: that is taken
-- for the first, the hour of daylight saving time, and the second hour has no row.
WITH labelled AS (
    SELECT *, strptime(date_time, '%Y-%m-%d %H:%M:%S') AS local_time
    FROM source
),

collapsed AS (
    SELECT *
    FROM labelled
    QUALIFY row_number() OVER (
        PARTITION BY local_time, traffic_volume
        ORDER BY
            rain_1h DESC NULLS LAST, snow_1h DESC NULLS LAST, temp DESC NULLS LAST, clouds_all DESC NULLS LAST,
            weather_main NULLS LAST, weather_description NULLS LAST, holiday NULLS LAST
    ) = 1
),

dated AS (
    -- A repeated hour is read as its second occurrence; the hour before then shows the same clock, and is meant.
    SELECT
        *,
        timezone('America/Chicago', local_time) AS later_utc,
        timezone('America/Chicago', timezone('America/Chicago', local_time) - INTERVAL 1 HOUR) = local_time AS is_repeated
    FROM collapsed
)

SELECT
    CASE WHEN is_repeated THEN later_utc - INTERVAL 1 HOUR ELSE later_utc END AS hour_utc,
    CAST(local_time AS DATE) AS event_date,
    CAST(hour(local_time) AS INTEGER) AS local_hour,
    CAST(traffic_volume AS INTEGER) AS traffic_volume,
    holiday,
    temp AS temp_kelvin,
    rain_1h AS rain_mm,
    snow_1h AS snow_mm,
    CAST(clouds_all AS INTEGER) AS clouds_percent,
    weather_main AS weather,
    weather_description
FROM dated
