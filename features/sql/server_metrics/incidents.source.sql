-- Every measurement inside one of NAB's labelled windows; people know of an incident when it is over.
SELECT s.series, s.step, 1 AS incident, timezone('UTC', max(CAST(w.ends AS TIMESTAMP))) AS known_utc
FROM source AS s
JOIN windows AS w
    ON w.series = s.series AND CAST(s.measured AS TIMESTAMP) BETWEEN CAST(w.begins AS TIMESTAMP) AND CAST(w.ends AS TIMESTAMP)
GROUP BY s.series, s.step
