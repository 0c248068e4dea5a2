"""Looking up items by title."""
