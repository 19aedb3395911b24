-- What became of each flight, with its instants in UTC. Clocks in the source are local: departure to New York, arrival
-- to the destination; BQN, PSE, SJU and STT have no tz database zone in airports.csv and keep UTC-4 all year.
WITH flown AS (
    SELECT
        source.*,
        make_date(year, month, day) AS event_date,
        time_hour + to_minutes(minute) AS sched_dep_utc,
        time_hour + to_minutes(minute) + to_minutes(dep_delay) AS dep_utc,
        coalesce(airports.tzone, 'America/Puerto_Rico') AS dest_zone
    FROM source
    LEFT JOIN airports ON airports.faa = source.dest
),

clocked AS (
    -- HHMM on the day of departure at the destination; 2400 is the end of that day.
    SELECT
        *,
        timezone(dest_zone, sched_dep_utc) AS sched_dep_at_dest,
        timezone(dest_zone, dep_utc) AS dep_at_dest,
        date_trunc('day', timezone(dest_zone, sched_dep_utc)) + to_minutes(sched_arr_time // 100 * 60 + sched_arr_time % 100) AS sched_arr_clock,
        date_trunc('day', timezone(dest_zone, dep_utc)) + to_minutes(arr_time // 100 * 60 + arr_time % 100) AS arr_clock
    FROM flown
),

landed AS (
    -- The first time after departure at which the destination's clock shows the arrival.
    SELECT
        *,
        timezone(dest_zone, CASE WHEN sched_arr_clock > sched_dep_at_dest THEN sched_arr_clock ELSE sched_arr_clock + INTERVAL 1 DAY END) AS sched_arr_utc,
        timezone(dest_zone, CASE WHEN arr_clock > dep_at_dest THEN arr_clock ELSE arr_clock + INTERVAL 1 DAY END) AS arr_by_clock_utc
    FROM clocked
)

SELECT
    event_date,
    carrier,
    flight,
    origin,
    dest,
    tailnum,
    sched_dep_utc,
    sched_arr_utc,
    dep_utc,
    -- The delay says which of the two is meant where the clock repeats an hour; a diverted flight has no delay, only a clock.
    coalesce(sched_arr_utc + to_minutes(arr_delay), arr_by_clock_utc) AS arr_utc,
    CAST(dep_delay AS INTEGER) AS dep_delay,
    CAST(arr_delay AS INTEGER) AS arr_delay,
    CAST(air_time AS INTEGER) AS air_time,
    dep_time IS NULL AS cancelled,
    dep_time IS NOT NULL AND arr_delay IS NULL AS diverted
FROM landed
