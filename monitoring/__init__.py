"""Drift, performance, the retraining policy and its requests."""
