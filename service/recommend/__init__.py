"""Recommending: HTTP, admission, and the way from a history to ranked items."""
