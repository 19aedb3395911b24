"""Predictors, scoring, publishing, trace."""
