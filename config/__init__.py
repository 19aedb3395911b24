"""Settings and catalog: typed, checked at start, the same everywhere."""
