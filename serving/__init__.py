"""Predictors, scoring, predictions and their projection to SQL."""
