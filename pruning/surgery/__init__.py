"""Cuts a model to a smaller uniform shape, exactly; what to keep is decided elsewhere."""
