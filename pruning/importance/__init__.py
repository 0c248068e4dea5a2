"""Scores what a model could lose, and selects what it keeps."""
