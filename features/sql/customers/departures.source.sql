-- Who left within the month after the review, known 30 days after it: that delay is the replay's own, too. Dates as in
-- profiles.source.sql.
SELECT
    DATE '2019-01-01' + CAST('0x' || substr(md5("customerID"), 1, 7) AS INTEGER) % 270 AS review_date,
    "customerID" AS customer,
    "Churn" AS churn,
    timezone('UTC', CAST(review_date + 30 AS TIMESTAMP) + INTERVAL 20 HOUR) AS known_utc
FROM source
