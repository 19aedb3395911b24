"""Delta tables: digests, atomic publish, lineage, ledger."""
