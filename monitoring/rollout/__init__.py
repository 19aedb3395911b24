"""Evidence on a challenger in rollout: pure functions of arrays; what is done about it is decided elsewhere."""
