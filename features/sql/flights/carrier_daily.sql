-- A carrier's last 1, 7 and 28 days, by the day of the scheduled departure, from what had become known by the night.
-- A flight that lands after midnight is missing from its night's last day, on every night alike.
WITH by_day AS (
    -- Days first: a night then adds up some rows a day, not every flight of a month. Sums of whole minutes are exact in any order.
    SELECT
        data_date,
        superseded_on,
        event_date,
        carrier,
        count(*) AS flights,
        count(*) FILTER (WHERE cancelled) AS cancelled,
        count(arr_delay) AS arrived,
        sum(CAST(arr_delay AS BIGINT)) AS delay_minutes,
        count(*) FILTER (WHERE arr_delay > 15) AS late
    FROM outcomes
    GROUP BY data_date, superseded_on, event_date, carrier
),

summed AS (
    SELECT
        n.data_date,
        d.carrier,
        sum(d.flights) FILTER (WHERE d.event_date = n.data_date) AS flights_1d,
        sum(d.cancelled) FILTER (WHERE d.event_date = n.data_date) AS cancelled_1d,
        sum(d.arrived) FILTER (WHERE d.event_date = n.data_date) AS arrived_1d,
        sum(d.delay_minutes) FILTER (WHERE d.event_date = n.data_date) AS delay_minutes_1d,
        sum(d.late) FILTER (WHERE d.event_date = n.data_date) AS late_1d,
        sum(d.flights) FILTER (WHERE d.event_date > n.data_date - 7) AS flights_7d,
        sum(d.cancelled) FILTER (WHERE d.event_date > n.data_date - 7) AS cancelled_7d,
        sum(d.arrived) FILTER (WHERE d.event_date > n.data_date - 7) AS arrived_7d,
        sum(d.delay_minutes) FILTER (WHERE d.event_date > n.data_date - 7) AS delay_minutes_7d,
        sum(d.late) FILTER (WHERE d.event_date > n.data_date - 7) AS late_7d,
        sum(d.flights) AS flights_28d,
        sum(d.cancelled) AS cancelled_28d,
        sum(d.arrived) AS arrived_28d,
        sum(d.delay_minutes) AS delay_minutes_28d,
        sum(d.late) AS late_28d
    FROM nights AS n
    JOIN by_day AS d ON d.data_date <= n.data_date AND d.superseded_on > n.data_date
    WHERE d.event_date > n.data_date - 28 AND d.event_date <= n.data_date
    GROUP BY n.data_date, d.carrier
)

SELECT
    s.data_date,
    s.carrier,
    s.flights_1d,
    s.flights_7d,
    s.flights_28d,
    s.delay_minutes_1d / nullif(s.arrived_1d, 0) AS delay_mean_1d,
    s.delay_minutes_7d / nullif(s.arrived_7d, 0) AS delay_mean_7d,
    s.delay_minutes_28d / nullif(s.arrived_28d, 0) AS delay_mean_28d,
    s.late_1d / nullif(s.arrived_1d, 0) AS late_share_1d,
    s.late_7d / nullif(s.arrived_7d, 0) AS late_share_7d,
    s.late_28d / nullif(s.arrived_28d, 0) AS late_share_28d,
    s.cancelled_1d / nullif(s.flights_1d, 0) AS cancelled_share_1d,
    s.cancelled_7d / nullif(s.flights_7d, 0) AS cancelled_share_7d,
    s.cancelled_28d / nullif(s.flights_28d, 0) AS cancelled_share_28d
FROM summed AS s
