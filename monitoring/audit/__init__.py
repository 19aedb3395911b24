"""Trace, reproduction, look-up of predictions."""
