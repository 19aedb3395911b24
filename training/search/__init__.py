"""The search for trainer parameters."""
