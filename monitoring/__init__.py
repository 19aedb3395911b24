"""Drift, performance, reports, and the decision to retrain."""
