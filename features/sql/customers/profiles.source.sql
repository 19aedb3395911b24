-- Each customer is looked at once. IBM's file has no dates; the dates here are a replay's.
--
-- The order of arrival: a hash of the customer's number spreads the 7,043 over the 270 nights from 2019-01-01, about 26
-- a night. It follows from the number alone, never from how long the customer stayed or what became of them.
SELECT
    DATE '2019-01-01' + CAST('0x' || substr(md5("customerID"), 1, 7) AS INTEGER) % 270 AS review_date,
    "customerID" AS customer,
    timezone('UTC', CAST(review_date AS TIMESTAMP) + INTERVAL 20 HOUR) AS reviewed_utc,
    timezone('UTC', CAST(review_date AS TIMESTAMP) + INTERVAL 32 HOUR) AS call_utc,
    gender,
    "SeniorCitizen" = 1 AS senior,
    "Partner" AS partner,
    "Dependents" AS dependents,
    tenure AS tenure_months,
    "PhoneService" AS phone_service,
    "MultipleLines" AS multiple_lines,
    "InternetService" AS internet_service,
    "OnlineSecurity" AS online_security,
    "OnlineBackup" AS online_backup,
    "DeviceProtection" AS device_protection,
    "TechSupport" AS tech_support,
    "StreamingTV" AS streaming_tv,
    "StreamingMovies" AS streaming_movies,
    "Contract" AS contract,
    "PaperlessBilling" AS paperless_billing,
    "PaymentMethod" AS payment_method,
    "MonthlyCharges" AS monthly_charges,
    "TotalCharges" AS total_charges
FROM source
