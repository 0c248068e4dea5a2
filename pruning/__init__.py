"""Offline: prepares data, trains a teacher, prunes it in stages, exports the artifact."""
