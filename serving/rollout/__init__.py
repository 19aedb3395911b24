"""The plan of a night carried out: who is served by which version, and how that is turned back."""
