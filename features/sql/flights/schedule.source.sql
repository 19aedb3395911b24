-- What is known of a flight on the evening before it: no actual time, nothing of the outcome.
-- `time_hour` is the scheduled hour in UTC with daylight saving applied; arrival clocks are local to the destination.
-- The four destinations without a tz database zone (BQN, PSE, SJU, STT) keep UTC-4 all year.
WITH scheduled AS (
    SELECT
        source.*,
        make_date(year, month, day) AS event_date,
        time_hour + to_minutes(minute) AS sched_dep_utc,
        coalesce(airports.tzone, 'America/Puerto_Rico') AS dest_zone
    FROM source
    LEFT JOIN airports ON airports.faa = source.dest
),

clocked AS (
    -- HHMM on the day of departure at the destination; 2400 is the end of that day.
    SELECT
        *,
        timezone(dest_zone, sched_dep_utc) AS dep_at_dest,
        date_trunc('day', timezone(dest_zone, sched_dep_utc)) + to_minutes(sched_arr_time // 100 * 60 + sched_arr_time % 100) AS arr_clock
    FROM scheduled
),

landed AS (
    -- The first time after departure at which the destination's clock shows the scheduled arrival.
    SELECT *, timezone(dest_zone, CASE WHEN arr_clock > dep_at_dest THEN arr_clock ELSE arr_clock + INTERVAL 1 DAY END) AS sched_arr_utc
    FROM clocked
)

SELECT
    event_date,
    carrier,
    flight,
    origin,
    dest,
    landed.tailnum,
    sched_dep_utc,
    CAST(hour AS INTEGER) AS sched_dep_hour,
    CAST(minute AS INTEGER) AS sched_dep_minute,
    sched_arr_utc,
    CAST(sched_arr_time // 100 % 24 AS INTEGER) AS sched_arr_hour,
    CAST(date_diff('minute', sched_dep_utc, sched_arr_utc) AS INTEGER) AS sched_minutes,
    CAST(distance AS INTEGER) AS distance_miles,
    CAST(planes.seats AS INTEGER) AS seats,
    CAST(planes.year AS INTEGER) AS plane_year
FROM landed
LEFT JOIN planes ON planes.tailnum = landed.tailnum
