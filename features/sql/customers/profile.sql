-- Each customer who is looked at on the night's own day, as the file has them; one number more: what the customer paid
-- a month, over the whole time, against what the current month costs.
SELECT
    n.data_date,
    p.customer,
    p.gender,
    p.senior,
    p.partner,
    p.dependents,
    p.tenure_months,
    p.phone_service,
    p.multiple_lines,
    p.internet_service,
    p.online_security,
    p.online_backup,
    p.device_protection,
    p.tech_support,
    p.streaming_tv,
    p.streaming_movies,
    p.contract,
    p.paperless_billing,
    p.payment_method,
    p.monthly_charges,
    p.total_charges,
    p.monthly_charges - p.total_charges / nullif(p.tenure_months, 0) AS charges_above_average
FROM nights AS n
JOIN profiles AS p ON p.review_date = n.data_date AND p.data_date <= n.data_date AND p.superseded_on > n.data_date
