"""The pages of analyst and operator: one module a page, its template beside it; knows neither Airflow nor a web
framework.
"""
