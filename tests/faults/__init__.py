"""Faults: what breaks in the world around the product, and what holds then."""
