"""From sources to features: ingest, validation, transform, materialization, retrieval."""
