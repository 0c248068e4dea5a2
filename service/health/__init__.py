"""Whether the process lives, and whether it should get requests."""
